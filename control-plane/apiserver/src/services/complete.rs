//! What a Service's own fields say and lack: types, addresses and ports, given what others hold. Pure but for the choice
//! among free ones.

use std::{collections::BTreeSet, net::IpAddr};

use serde_json::{Value, json};
use sluice_api::status::FieldError;

use super::{
    Range, Refused,
    metrics::{Scope, Source},
    ports as notes,
};
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
/// `is_avoided` are addresses that may be taken by the time the Service is stored.
pub(super) fn addresses(
    old: Option<&Value>,
    object: &mut Value,
    ranges: &[Range],
    is_taken: impl Fn(&IpAddr) -> bool,
    is_avoided: impl Fn(&IpAddr) -> bool,
) -> Result<(), Refused> {
    let spec = &mut object["spec"];
    let text = |list: &Value| -> Vec<String> { meta::strings(list).into_iter().map(str::to_owned).collect() };
    let asked = text(&spec["clusterIPs"]);
    if kind_of(spec) == "ExternalName" || asked.first().is_some_and(|address| address == "None") {
        return Ok(());
    }
    let held = old.map(|old| text(&old["spec"]["clusterIPs"])).unwrap_or_default();
    let mut given = Vec::new();
    for (i, family) in text(&spec["ipFamilies"]).iter().enumerate() {
        let address = asked.get(i).filter(|address| !address.is_empty());
        if let Some(address) = address {
            if !held.contains(address)
                && let Some(why) = unavailable(address, ranges, &is_taken)
            {
                let why = format!("failed to allocate IP {address}: {why}");
                let of = ranges.iter().find(|range| address.parse().is_ok_and(|ip| range.contains(ip)));
                let of = of.map(|range| (Source::Addresses(range.to_string()), Scope::Static));
                let error = FieldError::invalid("spec.clusterIPs", json!(asked), why);
                return Err(Refused::invalid(vec![error]).counted(of));
            }
            given.push(address.clone());
            continue;
        }
        let free = |is_taken: &dyn Fn(&IpAddr) -> bool| {
            ranges.iter().filter(|range| range.family() == family).find_map(|range| range.free(is_taken))
        };
        let free = free(&|address| is_taken(address) || is_avoided(address)).or_else(|| free(&is_taken));
        match free {
            Some(free) => given.push(free.to_string()),
            None => {
                let full = ranges.iter().filter(|range| range.family() == family);
                let full = full.map(|range| (Source::Addresses(range.to_string()), Scope::Dynamic));
                return Err(Refused::failed("failed to allocate a serviceIP: range is full").counted(full));
            }
        }
    }
    let spec = meta::map(spec);
    spec.insert("clusterIP".into(), json!(given.first()));
    spec.insert("clusterIPs".into(), json!(given));
    Ok(())
}

/// Why a Service cannot have the address that it asks for.
fn unavailable(address: &str, ranges: &[Range], is_taken: impl Fn(&IpAddr) -> bool) -> Option<&'static str> {
    match address.parse() {
        Ok(ip) if !ranges.iter().any(|range| range.contains(ip)) => {
            Some("the provided network does not match the current range")
        }
        Ok(ip) if is_taken(&ip) => Some("provided IP is already allocated"),
        Ok(_) => None,
        Err(_) => Some("not a valid IP address"),
    }
}

/// Whether a port is to be chosen for the Service.
pub(super) fn lacks_port(object: &Value) -> bool {
    let unset = |value: &Value| value.as_u64().unwrap_or(0) == 0;
    let mut ports = object["spec"]["ports"].as_array().into_iter().flatten();
    wants_ports(object) && ports.any(|port| unset(&port["nodePort"]))
        || wants_health_port(object) && unset(&object["spec"]["healthCheckNodePort"])
}

/// Gives the Service the ports that it needs, or checks those it asks for. `taken` are others'.
pub(super) fn ports(object: &mut Value, taken: &BTreeSet<u16>) -> Result<(), Refused> {
    let mut own: BTreeSet<u16> = BTreeSet::new();
    // Where ports are not given by themselves, those that are asked for still are.
    let gives = wants_ports(object);
    if matches!(kind(object), "NodePort" | "LoadBalancer") {
        let mut errors = Vec::new();
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
                } else if let Some(why) = port_unavailable(number, taken) {
                    errors.push(FieldError::invalid(field, number, why));
                }
                number
            } else if !gives {
                continue;
            } else if let Some((_, _, shared)) =
                done.iter().find(|(p, protocol, _)| *p == port["port"] && *protocol != port["protocol"])
            {
                // One number for both protocols of a port, as upstream does for DNS.
                *shared
            } else {
                let free = notes::free(|free| taken.contains(&free) || own.contains(&free) || given.contains(&free));
                let free = free.ok_or_else(|| {
                    Refused::failed("failed to allocate a nodePort: range is full").counted(one_port(Scope::Dynamic))
                })?;
                own.insert(free);
                u64::from(free)
            };
            port["nodePort"] = number.into();
            done.push((port["port"].clone(), port["protocol"].clone(), number));
        }
        if !errors.is_empty() {
            let of = errors.iter().map(|_| (Source::Ports, Scope::Static)).collect::<Vec<_>>();
            return Err(Refused::invalid(errors).counted(of));
        }
        own.extend(given);
    }
    if wants_health_port(object) {
        match object["spec"]["healthCheckNodePort"].as_u64().unwrap_or(0) {
            0 => {
                let failed = || {
                    let why = "failed to allocate a HealthCheck NodePort 0: range is full";
                    Refused::failed(why).counted(one_port(Scope::Dynamic))
                };
                let free = notes::free(|free| taken.contains(&free) || own.contains(&free));
                object["spec"]["healthCheckNodePort"] = free.ok_or_else(failed)?.into();
            }
            number => {
                let shared = u16::try_from(number).is_ok_and(|number| own.contains(&number));
                let why = if shared { Some(TAKEN_PORT.into()) } else { port_unavailable(number, taken) };
                if let Some(why) = why {
                    let why = format!("failed to allocate requested HealthCheck NodePort {number}: {why}");
                    return Err(Refused::failed(why).counted(one_port(Scope::Static)));
                }
            }
        }
    }
    Ok(())
}

/// What is counted when a port is not given.
fn one_port(scope: Scope) -> Option<(Source, Scope)> {
    Some((Source::Ports, scope))
}

const TAKEN_PORT: &str = "provided port is already allocated";

/// Why a Service cannot have the port that it asks for.
fn port_unavailable(number: u64, taken: &BTreeSet<u16>) -> Option<String> {
    match u16::try_from(number).ok().filter(|n| limits::NODE_PORTS.contains(n)) {
        None => Some(format!(
            "provided port is not in the valid range. The range of valid ports is {}-{}",
            limits::NODE_PORTS.start(),
            limits::NODE_PORTS.end()
        )),
        Some(port) => taken.contains(&port).then(|| TAKEN_PORT.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{super::Why, *};

    fn ranges() -> Vec<Range> {
        ["10.96.0.0/16", "fd00:96::/108", "203.0.113.0/24"].into_iter().filter_map(Range::of).collect()
    }

    fn told(refused: Refused) -> String {
        match refused.why {
            Why::Invalid(errors) => errors.iter().map(ToString::to_string).collect(),
            Why::Failed(why) => why,
        }
    }

    fn nothing(_: &IpAddr) -> bool {
        false
    }

    #[test]
    fn addresses_are_given_or_checked() {
        let both = json!({"spec": {"ipFamilies": ["IPv6", "IPv4"]}});
        let mut service = both.clone();
        assert!(addresses(None, &mut service, &ranges(), nothing, nothing).is_ok());
        let given = meta::strings(&service["spec"]["clusterIPs"]);
        let [six, four] = given[..] else { panic!("{service}") };
        assert!(ranges()[1].contains(six.parse().unwrap()) && ranges()[0].contains(four.parse().unwrap()), "{service}");
        assert_eq!(service["spec"]["clusterIP"], six);

        // One more family: the address that is there stays, even outside of what the range is now.
        let old = json!({"spec": {"clusterIPs": ["192.0.2.1"]}});
        let mut more = json!({"spec": {"ipFamilies": ["IPv4", "IPv6"], "clusterIPs": ["192.0.2.1"]}});
        assert!(addresses(Some(&old), &mut more, &ranges(), nothing, nothing).is_ok());
        let given = meta::strings(&more["spec"]["clusterIPs"]);
        assert!(given.len() == 2 && given[0] == "192.0.2.1" && given[1].starts_with("fd00:96::"), "{more}");

        let check = |asked: &[&str], expected: &str| {
            let mut service = json!({"spec": {"ipFamilies": ["IPv4", "IPv6"], "clusterIPs": asked}});
            let is_taken = |ip: &IpAddr| matches!(&*ip.to_string(), "10.96.0.10" | "fd00:96::a");
            let refused = addresses(None, &mut service, &ranges(), is_taken, |_| true).err();
            assert_eq!(refused.map(told).unwrap_or_default(), expected);
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
            "spec.clusterIPs: Invalid value: [\"10.1.0.10\"]: failed to allocate IP 10.1.0.10: the provided network does not \
             match the current range",
        );
        check(&["203.0.113.10", "fd00:96::b"], "");
        check(&["10.96.0.11"], "");
        check(&["None"], "");
    }

    #[test]
    fn a_further_range_is_for_when_the_first_is_full() {
        let four = |is_taken: fn(&IpAddr) -> bool, is_avoided: fn(&IpAddr) -> bool| {
            let mut service = json!({"spec": {"ipFamilies": ["IPv4"]}});
            match addresses(None, &mut service, &ranges(), is_taken, is_avoided) {
                Ok(()) => service["spec"]["clusterIP"].as_str().unwrap().split('.').next().unwrap().to_owned(),
                Err(refused) => told(refused),
            }
        };
        let ten: fn(&IpAddr) -> bool = |ip| ip.to_string().starts_with("10.");
        assert_eq!(four(nothing, nothing), "10");
        assert_eq!(four(ten, nothing), "203");
        assert_eq!(four(|_| true, nothing), "failed to allocate a serviceIP: range is full");
        // What another request may take is only avoided.
        assert_eq!(four(nothing, ten), "203");
        assert_eq!(four(nothing, |_| true), "10");
    }

    #[test]
    fn node_ports_are_given_or_checked() {
        let mut service = json!({"spec": {"type": "NodePort", "ports": [
            {"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}, {"port": 80, "protocol": "TCP"}]}});
        assert!(lacks_port(&service));
        assert!(ports(&mut service, &BTreeSet::new()).is_ok());
        assert!(!lacks_port(&service));
        let number = |i: usize| service["spec"]["ports"][i]["nodePort"].as_u64().unwrap();
        assert_eq!(number(0), number(1));
        assert_ne!(number(0), number(2));

        let check = |spec: Value, expected: &str| {
            let mut service = json!({"spec": spec});
            let refused = ports(&mut service, &BTreeSet::from([30080])).err();
            assert_eq!(refused.map(told).unwrap_or_default(), expected, "{spec}");
        };
        let node_port = |port: u64| json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
        check(node_port(30080), "spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated");
        check(
            node_port(80),
            "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767",
        );
        let balanced = |port: u64, health: u64| {
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "allocateLoadBalancerNodePorts": false,
                "healthCheckNodePort": health, "ports": [{"port": 80, "nodePort": port}]})
        };
        check(balanced(30080, 0), "spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated");
        let health = |port: u64, why: &str| format!("failed to allocate requested HealthCheck NodePort {port}: {why}");
        check(balanced(30081, 30080), &health(30080, "provided port is already allocated"));
        check(balanced(30081, 30081), &health(30081, "provided port is already allocated"));
        check(
            balanced(30081, 80),
            &health(80, "provided port is not in the valid range. The range of valid ports is 30000-32767"),
        );
        check(balanced(30081, 0), "");

        let mut service = json!({"spec": balanced(0, 0)});
        assert!(lacks_port(&service));
        assert!(ports(&mut service, &BTreeSet::new()).is_ok());
        assert!(service["spec"]["healthCheckNodePort"].as_u64().unwrap() >= 30000, "{service}");
        assert_eq!(service["spec"]["ports"][0]["nodePort"], 0);
    }

    #[test]
    fn no_port_is_left() {
        let all: BTreeSet<u16> = limits::NODE_PORTS.collect();
        let mut service = json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        assert_eq!(ports(&mut service, &all).err().map(told).unwrap(), "failed to allocate a nodePort: range is full");
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
