//! What a Service's own fields say and lack: types, addresses and ports, given what others hold. Pure but for the choice
//! among free ones.

use std::{collections::BTreeSet, net::IpAddr};

use serde_json::{Value, json};
use sluice_api::status::FieldError;

use super::{Range, Taken};
use crate::{limits, meta};

pub(super) fn kind(object: &Value) -> &str {
    kind_of(&object["spec"])
}

fn kind_of(spec: &Value) -> &str {
    spec["type"].as_str().filter(|t| !t.is_empty()).unwrap_or("ClusterIP")
}

/// A name for something outside: it has neither addresses nor families.
pub(super) fn is_external(object: &Value) -> bool {
    kind(object) == "ExternalName"
}

fn wants_ports(object: &Value) -> bool {
    match kind(object) {
        "NodePort" => true,
        "LoadBalancer" => object["spec"]["allocateLoadBalancerNodePorts"] != json!(false),
        _ => false,
    }
}

fn wants_health_port(object: &Value) -> bool {
    kind(object) == "LoadBalancer" && object["spec"]["externalTrafficPolicy"] == "Local"
}

/// What an update leaves out is taken over; what the new type has no use for goes, unless the
/// client set it to something else (upstream's `patchAllocatedValues` and `dropTypeDependentFields`).
pub(super) fn keep(old: &Value, new: &mut Value) {
    let (was, is) = (kind(old).to_owned(), kind(new).to_owned());
    let external = |kind: &str| kind == "ExternalName";
    let old_spec = &old["spec"];
    if !external(&was) && !external(&is) {
        let unset = |value: &Value| value.is_null() || value == "" || value.as_array().is_some_and(Vec::is_empty);
        if unset(&new["spec"]["clusterIP"]) {
            new["spec"]["clusterIP"] = old_spec["clusterIP"].clone();
        }
        if unset(&new["spec"]["clusterIPs"]) && new["spec"]["clusterIP"] == old_spec["clusterIP"] {
            new["spec"]["clusterIPs"] = old_spec["clusterIPs"].clone();
        }
    }
    let old_ports: Vec<Value> = old_spec["ports"].as_array().cloned().unwrap_or_default();
    let (had, wants) = (wants_ports(old), wants_ports(new));
    for port in new["spec"]["ports"].as_array_mut().into_iter().flatten() {
        let same =
            |o: &&Value| o["port"] == port["port"] && o["protocol"] == port["protocol"] && o["name"] == port["name"];
        let before = old_ports.iter().find(same).map(|o| o["nodePort"].clone());
        let given = port["nodePort"].as_u64().unwrap_or(0);
        if had && wants && given == 0 {
            if let Some(before) = before.filter(|b| !b.is_null()) {
                port["nodePort"] = before;
            }
        } else if had && !wants && before.is_some_and(|b| b.as_u64() == Some(given)) {
            meta::map(port).shift_remove("nodePort");
        }
    }
    let given = new["spec"]["healthCheckNodePort"].as_u64().unwrap_or(0);
    if wants_health_port(old) {
        if wants_health_port(new) && given == 0 {
            new["spec"]["healthCheckNodePort"] = old_spec["healthCheckNodePort"].clone();
        } else if !wants_health_port(new) && old_spec["healthCheckNodePort"].as_u64() == Some(given) {
            meta::map(&mut new["spec"]).shift_remove("healthCheckNodePort");
        }
    }
    drop_unused(old, new);
    if external(&is) && !external(&was) {
        let spec = meta::map(&mut new["spec"]);
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.shift_remove(field);
        }
    }
}

/// What only Services with outside traffic have goes with the type that had it.
fn drop_unused(old: &Value, new: &mut Value) {
    let outside = |object: &Value| {
        let addresses = object["spec"]["externalIPs"].as_array().is_some_and(|ips| !ips.is_empty());
        addresses || matches!(kind(object), "NodePort" | "LoadBalancer")
    };
    let balanced = |object: &Value| kind(object) == "LoadBalancer";
    let unused: &[&str] = match () {
        () if outside(old) && !outside(new) => {
            &["externalTrafficPolicy", "allocateLoadBalancerNodePorts", "loadBalancerClass"]
        }
        () if balanced(old) && !balanced(new) => &["allocateLoadBalancerNodePorts", "loadBalancerClass"],
        () => &[],
    };
    for field in unused {
        if new["spec"][field] == old["spec"][field] {
            meta::map(&mut new["spec"]).shift_remove(*field);
        }
    }
    if new["spec"]["healthCheckNodePort"] == 0 {
        meta::map(&mut new["spec"]).shift_remove("healthCheckNodePort");
    }
}

/// Gives the Service an address of each of its families, or checks those it asks for; those it held stay without a look.
pub(super) fn addresses(old: Option<&Value>, object: &mut Value, ranges: &[Range], taken: &Taken) -> Vec<FieldError> {
    let spec = &mut object["spec"];
    let text = |list: &Value| -> Vec<String> { meta::strings(list).into_iter().map(str::to_owned).collect() };
    let asked = text(&spec["clusterIPs"]);
    if kind_of(spec) == "ExternalName" || asked.first().is_some_and(|address| address == "None") {
        return Vec::new();
    }
    let held = old.map(|old| text(&old["spec"]["clusterIPs"])).unwrap_or_default();
    let mut given = Vec::new();
    for (i, family) in text(&spec["ipFamilies"]).iter().enumerate() {
        let address = asked.get(i).filter(|address| !address.is_empty());
        if let Some(kept) = address.filter(|address| held.contains(address)) {
            given.push(kept.clone());
            continue;
        }
        let Some(range) = ranges.iter().find(|range| range.family() == family) else { continue };
        match address {
            Some(address) => match unavailable(address, *range, taken) {
                Some(why) => {
                    let why = format!("failed to allocate IP {address}: {why}");
                    return vec![FieldError::invalid("spec.clusterIPs", json!(asked), why)];
                }
                None => given.push(address.clone()),
            },
            None => match range.free(&taken.addresses) {
                Some(free) => given.push(free.to_string()),
                None => {
                    let why = "failed to allocate a serviceIP: range is full";
                    return vec![FieldError::internal("spec.clusterIPs", why)];
                }
            },
        }
    }
    let spec = meta::map(spec);
    spec.insert("clusterIP".into(), json!(given.first()));
    spec.insert("clusterIPs".into(), json!(given));
    Vec::new()
}

/// Why a Service cannot have the address that it asks for.
fn unavailable(address: &str, range: Range, taken: &Taken) -> Option<String> {
    match address.parse::<IpAddr>() {
        Ok(ip) if !range.contains(ip) => {
            Some(format!("the provided IP ({ip}) is not in the valid range. The range of valid IPs is {range}"))
        }
        Ok(ip) if taken.addresses.contains(&ip.to_string()) => Some("provided IP is already allocated".into()),
        Ok(_) => None,
        Err(_) => Some("not a valid IP address".into()),
    }
}

pub(super) fn ports(object: &mut Value, taken: &Taken) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut own = BTreeSet::new();
    if wants_ports(object) {
        // (port, protocol, nodePort) of the ports done so far.
        let mut done: Vec<(Value, Value, u64)> = Vec::new();
        let given: BTreeSet<u16> = object["spec"]["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|p| p["nodePort"].as_u64()?.try_into().ok())
            .collect();
        let ports = object["spec"]["ports"].as_array_mut();
        for (i, port) in ports.into_iter().flatten().enumerate() {
            let field = format!("spec.ports[{i}].nodePort");
            let number = port["nodePort"].as_u64().unwrap_or(0);
            let clash = done.iter().any(|(_, protocol, n)| *n == number && *protocol == port["protocol"]);
            let number = if number != 0 {
                if clash {
                    errors.push(FieldError::duplicate(field, number));
                } else {
                    errors.extend(check_port(&field, number, taken));
                }
                number
            } else if let Some((_, _, shared)) =
                done.iter().find(|(p, protocol, _)| *p == port["port"] && *protocol != port["protocol"])
            {
                // One number for both protocols of a port, as upstream does for DNS.
                *shared
            } else if let Some(free) = taken.free_port(&own.union(&given).copied().collect()) {
                own.insert(free);
                u64::from(free)
            } else {
                let why = "failed to allocate a nodePort: range is full";
                errors.push(FieldError::internal(field, why));
                continue;
            };
            port["nodePort"] = number.into();
            done.push((port["port"].clone(), port["protocol"].clone(), number));
        }
        own.extend(given);
    }
    if wants_health_port(object) {
        match object["spec"]["healthCheckNodePort"].as_u64().unwrap_or(0) {
            0 => {
                if let Some(free) = taken.free_port(&own) {
                    object["spec"]["healthCheckNodePort"] = free.into();
                }
            }
            number => errors.extend(check_port("spec.healthCheckNodePort", number, taken)),
        }
    }
    errors
}

fn check_port(field: &str, number: u64, taken: &Taken) -> Option<FieldError> {
    let inside = u16::try_from(number).ok().filter(|n| limits::NODE_PORTS.contains(n));
    let why = match inside {
        None => format!(
            "provided port is not in the valid range. The range of valid ports is {}-{}",
            limits::NODE_PORTS.start(),
            limits::NODE_PORTS.end()
        ),
        Some(port) if taken.ports.contains(&port) => "provided port is already allocated".to_owned(),
        Some(_) => return None,
    };
    Some(FieldError::invalid(field, number, why))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ranges() -> Vec<Range> {
        Range::parse_all("10.96.0.0/16,fd00:96::/108").unwrap()
    }

    fn taken(addresses: &[&str], ports: &[u16]) -> Taken {
        Taken { addresses: addresses.iter().map(|a| (*a).to_owned()).collect(), ports: ports.iter().copied().collect() }
    }

    #[test]
    fn addresses_are_given_or_checked() {
        let both = json!({"spec": {"ipFamilies": ["IPv6", "IPv4"]}});
        let mut service = both.clone();
        assert!(addresses(None, &mut service, &ranges(), &taken(&[], &[])).is_empty());
        let given = meta::strings(&service["spec"]["clusterIPs"]);
        let [six, four] = given[..] else { panic!("{service}") };
        assert!(ranges()[1].contains(six.parse().unwrap()) && ranges()[0].contains(four.parse().unwrap()), "{service}");
        assert_eq!(service["spec"]["clusterIP"], six);

        // One more family: the address that is there stays, even outside of what the range is now.
        let old = json!({"spec": {"clusterIPs": ["192.0.2.1"]}});
        let mut more = json!({"spec": {"ipFamilies": ["IPv4", "IPv6"], "clusterIPs": ["192.0.2.1"]}});
        assert!(addresses(Some(&old), &mut more, &ranges(), &taken(&["192.0.2.1"], &[])).is_empty());
        let given = meta::strings(&more["spec"]["clusterIPs"]);
        assert!(given.len() == 2 && given[0] == "192.0.2.1" && given[1].starts_with("fd00:96::"), "{more}");

        let check = |asked: &[&str], expected: &str| {
            let mut service = json!({"spec": {"ipFamilies": ["IPv4", "IPv6"], "clusterIPs": asked}});
            let errors = addresses(None, &mut service, &ranges(), &taken(&["10.96.0.10", "fd00:96::a"], &[]));
            let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(text.join(""), expected);
        };
        check(
            &["10.96.0.10"],
            "spec.clusterIPs: Invalid value: [\"10.96.0.10\"]: failed to allocate IP 10.96.0.10: provided IP is already allocated",
        );
        check(
            &["10.96.0.11", "fd00:96::a"],
            "spec.clusterIPs: Invalid value: [\"10.96.0.11\",\"fd00:96::a\"]: failed to allocate IP fd00:96::a: provided IP is \
             already allocated",
        );
        check(
            &["10.1.0.10"],
            "spec.clusterIPs: Invalid value: [\"10.1.0.10\"]: failed to allocate IP 10.1.0.10: the provided IP (10.1.0.10) is not \
             in the valid range. The range of valid IPs is 10.96.0.0/16",
        );
        check(&["None"], "");
    }

    #[test]
    fn node_ports_are_given_or_checked() {
        let mut service = json!({"spec": {"type": "NodePort", "ports": [
            {"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}, {"port": 80, "protocol": "TCP"}]}});
        assert!(ports(&mut service, &taken(&[], &[])).is_empty());
        let number = |i: usize| service["spec"]["ports"][i]["nodePort"].as_u64().unwrap();
        assert_eq!(number(0), number(1));
        assert_ne!(number(0), number(2));

        let check = |port: u64, expected: &str| {
            let mut service = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}});
            let errors = ports(&mut service, &taken(&[], &[30080]));
            assert_eq!(errors[0].to_string(), expected);
        };
        check(30080, "spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated");
        check(
            80,
            "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767",
        );
    }

    #[test]
    fn an_update_keeps_what_it_does_not_name() {
        let old = json!({"spec": {"type": "NodePort", "externalTrafficPolicy": "Cluster", "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"],
            "ipFamilies": ["IPv4"], "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}});
        let mut same = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}});
        keep(&old, &mut same);
        assert_eq!(same["spec"]["clusterIP"], "10.96.1.1");
        assert_eq!(same["spec"]["ports"][0]["nodePort"], 30080);

        let mut inner = old.clone();
        inner["spec"]["type"] = json!("ClusterIP");
        inner["spec"]["healthCheckNodePort"] = json!(0);
        keep(&old, &mut inner);
        assert_eq!(inner["spec"].get("externalTrafficPolicy"), None);
        assert_eq!(inner["spec"].get("healthCheckNodePort"), None);
        assert_eq!(inner["spec"]["ports"][0].get("nodePort"), None);

        let mut external = old.clone();
        external["spec"]["type"] = json!("ExternalName");
        keep(&old, &mut external);
        assert_eq!(external["spec"].get("clusterIP"), None);
    }
}
