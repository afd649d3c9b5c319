//! Addresses and ports of Services: cluster IPs from the service range, node ports, health-check
//! ports, and the address-family fields that go with them. What is in use is read from the cache
//! under a lock that is held until the Service is stored, so this server never gives one out twice.

use std::{collections::BTreeSet, net::Ipv4Addr, sync::Arc};

use rand::Rng as _;
use serde::Deserialize;
use serde_json::{Value, json};
use sluice_api::{
    resource::Resource,
    status::{FieldError, Status},
};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::{
    limits, meta,
    storage::{Storage, StoredObject},
    verbs::Call,
};

/// Held until the Service is stored.
pub(crate) type Allocation = OwnedMutexGuard<()>;

/// See the module.
pub(crate) struct Services {
    range: Range,
    lock: Arc<Mutex<()>>,
}

/// An IPv4 range of which network and broadcast address are never given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    base: u32,
    size: u32,
}

impl Range {
    /// From `10.96.0.0/16`.
    pub(crate) fn parse(cidr: &str) -> anyhow::Result<Self> {
        let wrong = || anyhow::anyhow!("the service range {cidr} is no IPv4 network such as 10.96.0.0/16");
        let (address, bits) = cidr.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let bits: u32 = bits.parse().map_err(|_| wrong())?;
        if !(8..=30).contains(&bits) {
            anyhow::bail!("the service range {cidr} has to be between /8 and /30");
        }
        let size = 1u32 << (32 - bits);
        Ok(Self { base: u32::from(address) & !(size - 1), size })
    }

    /// The address at an offset.
    pub(crate) fn at(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.base + offset)
    }

    fn contains(self, address: Ipv4Addr) -> bool {
        let offset = u32::from(address).wrapping_sub(self.base);
        offset > 0 && offset < self.size - 1
    }

    /// A free address, from upstream's upper band first: the lower one is for those who ask for an
    /// address by name.
    fn free(self, used: &BTreeSet<String>) -> Option<Ipv4Addr> {
        let reserved = (self.size / 16).clamp(16, 256).min(self.size / 2);
        let upper = self.size - 1 - reserved;
        let start = rand::rng().random_range(0..upper);
        let upper = (0..upper).map(|i| reserved + (start + i) % upper);
        upper.chain(1..reserved).map(|offset| self.at(offset)).find(|address| !used.contains(&address.to_string()))
    }
}

#[derive(Default, Deserialize)]
struct Used {
    #[serde(default)]
    spec: UsedSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct UsedSpec {
    ports: Vec<UsedPort>,
    health_check_node_port: Option<u16>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct UsedPort {
    node_port: Option<u16>,
}

/// What other Services hold.
#[derive(Default)]
struct Taken {
    addresses: BTreeSet<String>,
    ports: BTreeSet<u16>,
}

impl Taken {
    fn read(storage: &Storage, services: &Resource, namespace: &str, name: &str) -> Self {
        let mut taken = Self::default();
        for object in storage.list(services.store_prefix(), "").items {
            if &*object.namespace != namespace || &*object.name != name {
                taken.add(&object, services);
            }
        }
        taken
    }

    fn add(&mut self, object: &StoredObject, services: &Resource) {
        let field = |name: &str| {
            let at = services.selectable.iter().position(|f| f == name);
            at.and_then(|i| object.fields.get(i)).map_or("", |text| &**text)
        };
        let address = field("spec.clusterIP");
        if !address.is_empty() && address != "None" {
            self.addresses.insert(address.to_owned());
        }
        if matches!(field("spec.type"), "NodePort" | "LoadBalancer")
            && let Ok(used) = object.parse::<Used>()
        {
            self.ports.extend(used.spec.ports.iter().filter_map(|p| p.node_port));
            self.ports.extend(used.spec.health_check_node_port);
        }
    }

    fn free_port(&self, own: &BTreeSet<u16>) -> Option<u16> {
        let (first, last) = (*limits::NODE_PORTS.start(), *limits::NODE_PORTS.end());
        // Upstream keeps the lowest ports for those who ask for one by number.
        let reserved = ((last - first + 1) / 32).clamp(16, 128);
        let start = rand::rng().random_range(first + reserved..=last);
        (start..=last)
            .chain(first + reserved..start)
            .chain(first..first + reserved)
            .find(|port| !self.ports.contains(port) && !own.contains(port))
    }
}

impl Services {
    pub(crate) fn new(range: Range) -> Self {
        Self { range, lock: Arc::default() }
    }

    /// Completes a new Service; nothing for other kinds.
    pub(crate) async fn create(&self, call: &Call<'_>, object: &mut Value) -> Result<Option<Allocation>, Status> {
        if !is_service(&call.view.resource) {
            return Ok(None);
        }
        self.allocate(call, object).await.map(Some)
    }

    /// Completes a changed Service: what it holds is kept, what it newly needs is given.
    pub(crate) async fn update(
        &self,
        call: &Call<'_>,
        old: &Value,
        new: &mut Value,
    ) -> Result<Option<Allocation>, Status> {
        if !is_service(&call.view.resource) {
            return Ok(None);
        }
        keep(old, new);
        self.allocate(call, new).await.map(Some)
    }

    async fn allocate(&self, call: &Call<'_>, object: &mut Value) -> Result<Allocation, Status> {
        let guard = Arc::clone(&self.lock).lock_owned().await;
        let resource = &*call.view.resource;
        let name = meta::name(object).to_owned();
        let taken = Taken::read(&call.core.storage, resource, call.namespace(), &name);
        let mut errors = families(object);
        if errors.is_empty() {
            errors = addresses(object, self.range, &taken);
        }
        if errors.is_empty() {
            errors = ports(object, &taken);
        }
        if errors.is_empty() {
            return Ok(guard);
        }
        Err(Status::invalid(resource, &name, errors))
    }
}

fn is_service(resource: &Resource) -> bool {
    resource.group.is_empty() && resource.plural == "services"
}

fn kind(object: &Value) -> &str {
    object["spec"]["type"].as_str().filter(|t| !t.is_empty()).unwrap_or("ClusterIP")
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
fn keep(old: &Value, new: &mut Value) {
    let (was, is) = (kind(old).to_owned(), kind(new).to_owned());
    let external = |kind: &str| kind == "ExternalName";
    let old_spec = &old["spec"];
    if !external(&was) && !external(&is) {
        for field in ["clusterIP", "clusterIPs"] {
            let given = &new["spec"][field];
            let empty = given.is_null() || given == "" || given.as_array().is_some_and(Vec::is_empty);
            if empty && !old_spec[field].is_null() {
                new["spec"][field] = old_spec[field].clone();
            }
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if new["spec"][field].is_null() && !old_spec[field].is_null() {
                new["spec"][field] = old_spec[field].clone();
            }
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
    if external(&is) && !external(&was) {
        let spec = meta::map(&mut new["spec"]);
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.shift_remove(field);
        }
    }
}

/// `ipFamilies` and `ipFamilyPolicy` of a cluster with IPv4 alone.
fn families(object: &mut Value) -> Vec<FieldError> {
    if kind(object) == "ExternalName" {
        return Vec::new();
    }
    let spec = &object["spec"];
    let headless = spec["clusterIP"] == "None" || spec["clusterIPs"][0] == "None";
    let selects = spec["selector"].as_object().is_some_and(|s| !s.is_empty());
    let spec = meta::map(&mut object["spec"]);
    let unset = |value: Option<&Value>| value.is_none_or(|v| v.is_null() || v.as_array().is_some_and(Vec::is_empty));
    if unset(spec.get("ipFamilies")) {
        spec.insert("ipFamilies".into(), json!(["IPv4"]));
    }
    if headless && !selects {
        // Whoever fills in the endpoints decides; upstream asks for both families then.
        if unset(spec.get("ipFamilyPolicy")) {
            spec.insert("ipFamilyPolicy".into(), json!("RequireDualStack"));
            spec.insert("ipFamilies".into(), json!(["IPv4", "IPv6"]));
        }
        return Vec::new();
    }
    if unset(spec.get("ipFamilyPolicy")) {
        spec.insert("ipFamilyPolicy".into(), json!("SingleStack"));
    }
    let mut errors = Vec::new();
    if spec["ipFamilyPolicy"] == "RequireDualStack" {
        errors.push(FieldError::invalid(
            "spec.ipFamilyPolicy",
            "RequireDualStack",
            "this cluster is not configured for dual-stack services",
        ));
    }
    for (i, family) in spec["ipFamilies"].as_array().into_iter().flatten().enumerate() {
        if family == "IPv6" {
            errors.push(FieldError::invalid(format!("spec.ipFamilies[{i}]"), "IPv6", "not configured on this cluster"));
        }
    }
    errors
}

fn addresses(object: &mut Value, range: Range, taken: &Taken) -> Vec<FieldError> {
    if kind(object) == "ExternalName" {
        return Vec::new();
    }
    let spec = &mut object["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut address = text(&spec["clusterIP"]);
    let listed: Vec<String> = meta::strings(&spec["clusterIPs"]).into_iter().map(str::to_owned).collect();
    if address.is_empty() {
        address = listed.first().cloned().unwrap_or_default();
    }
    let invalid = |why: String| {
        let shown = if listed.is_empty() { vec![address.clone()] } else { listed.clone() };
        vec![FieldError::invalid("spec.clusterIPs", json!(shown), why)]
    };
    if address.is_empty() {
        let Some(free) = range.free(&taken.addresses) else {
            let why = "failed to allocate a serviceIP: range is full";
            return vec![FieldError::internal("spec.clusterIPs", why)];
        };
        address = free.to_string();
    } else if address != "None" {
        let inside = address.parse().is_ok_and(|a| range.contains(a));
        if !inside {
            let last = range.at(range.size - 1);
            return invalid(format!(
                "failed to allocate IP {address}: the provided IP is not in the valid range. The range of valid IPs is {}-{last}",
                range.at(0)
            ));
        }
        if taken.addresses.contains(&address) {
            return invalid(format!("failed to allocate IP {address}: provided IP is already allocated"));
        }
    }
    let spec = meta::map(spec);
    if listed.is_empty() {
        spec.insert("clusterIPs".into(), json!([address]));
    }
    spec.insert("clusterIP".into(), address.into());
    Vec::new()
}

fn ports(object: &mut Value, taken: &Taken) -> Vec<FieldError> {
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

    fn range() -> Range {
        Range::parse("10.96.0.0/16").unwrap()
    }

    fn taken(addresses: &[&str], ports: &[u16]) -> Taken {
        Taken { addresses: addresses.iter().map(|a| (*a).to_owned()).collect(), ports: ports.iter().copied().collect() }
    }

    #[test]
    fn ranges_parse() {
        assert_eq!(range().at(10).to_string(), "10.96.0.10");
        assert!(range().contains("10.96.255.254".parse().unwrap()));
        for outside in ["10.96.0.0", "10.96.255.255", "10.97.0.1", "9.0.0.1"] {
            assert!(!range().contains(outside.parse().unwrap()), "{outside}");
        }
        assert!(Range::parse("10.96.0.0").is_err());
        assert!(Range::parse("fd00::/108").is_err());
    }

    #[test]
    fn a_small_range_is_used_up_to_the_last_address() {
        let range = Range::parse("10.0.0.0/29").unwrap();
        let mut used = BTreeSet::new();
        while let Some(address) = range.free(&used) {
            assert!(range.contains(address), "{address}");
            assert!(used.insert(address.to_string()));
        }
        assert_eq!(used.len(), 6);
    }

    #[test]
    fn addresses_are_given_or_checked() {
        let mut service = json!({"spec": {"ports": []}});
        assert!(families(&mut service).is_empty());
        assert!(addresses(&mut service, range(), &taken(&[], &[])).is_empty());
        let address = service["spec"]["clusterIP"].as_str().unwrap().to_owned();
        assert!(range().contains(address.parse().unwrap()));
        assert_eq!(service["spec"]["clusterIPs"], json!([address]));
        assert_eq!(service["spec"]["ipFamilies"], json!(["IPv4"]));
        assert_eq!(service["spec"]["ipFamilyPolicy"], "SingleStack");

        let check = |address: &str, expected: &str| {
            let mut service = json!({"spec": {"clusterIP": address}});
            let errors = addresses(&mut service, range(), &taken(&["10.96.0.10"], &[]));
            let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert!(text.join("").contains(expected), "{text:?}");
        };
        check("10.96.0.10", "failed to allocate IP 10.96.0.10: provided IP is already allocated");
        check("10.1.0.10", "not in the valid range");
        check("None", "");
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
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"],
            "ipFamilies": ["IPv4"], "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}});
        let mut same = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}});
        keep(&old, &mut same);
        assert_eq!(same["spec"]["clusterIP"], "10.96.1.1");
        assert_eq!(same["spec"]["ports"][0]["nodePort"], 30080);

        let mut inner = old.clone();
        inner["spec"]["type"] = json!("ClusterIP");
        keep(&old, &mut inner);
        assert_eq!(inner["spec"]["ports"][0].get("nodePort"), None);

        let mut external = old.clone();
        external["spec"]["type"] = json!("ExternalName");
        keep(&old, &mut external);
        assert_eq!(external["spec"].get("clusterIP"), None);
    }
}
