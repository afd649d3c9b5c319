//! What the cluster's services are called: a pure index of Services and EndpointSlices, kept up to
//! date object by object. [`crate::answer`] asks it; nothing here knows DNS messages or sockets.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

/// A named port of a Service or slice; an unnamed one has an empty name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Lower case.
    pub name: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    pub number: u16,
}

/// What a Service's name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its virtual addresses, one per family.
    ClusterIp(Vec<IpAddr>),
    /// The addresses of its endpoints.
    Headless,
    /// Another name.
    External(String),
}

/// A Service as DNS sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    pub kind: Kind,
    pub ports: Vec<Port>,
    /// Endpoints count before they are ready.
    pub publish_not_ready: bool,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub addresses: Vec<IpAddr>,
    pub hostname: Option<String>,
    pub ready: bool,
}

/// An EndpointSlice as DNS sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    pub namespace: String,
    pub name: String,
    /// The Service it belongs to, by its label.
    pub service: String,
    pub ports: Vec<Port>,
    pub endpoints: Vec<Endpoint>,
}

/// `namespace/name`, in lower case.
pub(crate) type Key = Arc<str>;

/// The cluster's zone.
pub struct Zone {
    /// Labels of the cluster domain, in lower case.
    domain: Vec<String>,
    /// Addresses of this server, for its own name.
    pub(crate) own: Vec<IpAddr>,
    services: HashMap<Key, Service>,
    /// Slices by their Service, then by name.
    slices: HashMap<Key, BTreeMap<String, Slice>>,
    /// Which Service a slice belongs to.
    owners: HashMap<Key, Key>,
    cluster_ips: HashMap<IpAddr, BTreeSet<Key>>,
    /// Services by endpoint address, with how many times they have it.
    endpoint_ips: HashMap<IpAddr, BTreeMap<Key, usize>>,
    /// Services in each namespace.
    namespaces: HashMap<String, usize>,
    /// Counts changes.
    pub(crate) serial: u32,
}

impl Zone {
    /// An empty zone for `domain`, such as `cluster.local`.
    pub fn new(domain: &str, own: Vec<IpAddr>) -> Self {
        let labels = domain.trim_matches('.').split('.').filter(|l| !l.is_empty());
        Zone {
            domain: labels.map(str::to_ascii_lowercase).collect(),
            own,
            services: HashMap::new(),
            slices: HashMap::new(),
            owners: HashMap::new(),
            cluster_ips: HashMap::new(),
            endpoint_ips: HashMap::new(),
            namespaces: HashMap::new(),
            serial: 1,
        }
    }

    pub(crate) fn domain(&self) -> &[String] {
        &self.domain
    }

    /// Adds or replaces a Service.
    pub fn set_service(&mut self, service: Service) {
        let key = key(&service.namespace, &service.name);
        if self.services.get(&key) == Some(&service) {
            return;
        }
        self.remove_service(&service.namespace, &service.name);
        if let Kind::ClusterIp(addresses) = &service.kind {
            for address in addresses {
                self.cluster_ips.entry(*address).or_default().insert(Arc::clone(&key));
            }
        }
        *self.namespaces.entry(service.namespace.to_ascii_lowercase()).or_default() += 1;
        self.services.insert(key, service);
        self.changed();
    }

    pub fn remove_service(&mut self, namespace: &str, name: &str) {
        let key = key(namespace, name);
        let Some(service) = self.services.remove(&key) else {
            return;
        };
        if let Kind::ClusterIp(addresses) = &service.kind {
            for address in addresses {
                if let Some(holders) = self.cluster_ips.get_mut(address) {
                    holders.remove(&key);
                    if holders.is_empty() {
                        self.cluster_ips.remove(address);
                    }
                }
            }
        }
        let namespace = namespace.to_ascii_lowercase();
        if let Some(count) = self.namespaces.get_mut(&namespace) {
            *count -= 1;
            if *count == 0 {
                self.namespaces.remove(&namespace);
            }
        }
        self.changed();
    }

    /// Adds or replaces an EndpointSlice.
    pub fn set_slice(&mut self, slice: Slice) {
        let owner = key(&slice.namespace, &slice.service);
        let held = self.slices.get(&owner).and_then(|slices| slices.get(&slice.name));
        if held == Some(&slice) {
            return;
        }
        self.remove_slice(&slice.namespace, &slice.name);
        for address in slice.endpoints.iter().flat_map(|e| &e.addresses) {
            let holders = self.endpoint_ips.entry(*address).or_default();
            *holders.entry(Arc::clone(&owner)).or_default() += 1;
        }
        self.owners.insert(key(&slice.namespace, &slice.name), Arc::clone(&owner));
        self.slices.entry(owner).or_default().insert(slice.name.clone(), slice);
        self.changed();
    }

    pub fn remove_slice(&mut self, namespace: &str, name: &str) {
        let Some(owner) = self.owners.remove(&key(namespace, name)) else {
            return;
        };
        let Some(slices) = self.slices.get_mut(&owner) else {
            return;
        };
        let removed = slices.remove(name);
        if slices.is_empty() {
            self.slices.remove(&owner);
        }
        for address in removed.iter().flat_map(|s| &s.endpoints).flat_map(|e| &e.addresses) {
            let Some(holders) = self.endpoint_ips.get_mut(address) else {
                continue;
            };
            if let Some(count) = holders.get_mut(&owner) {
                *count -= 1;
                if *count == 0 {
                    holders.remove(&owner);
                }
            }
            if holders.is_empty() {
                self.endpoint_ips.remove(address);
            }
        }
        self.changed();
    }

    /// Keeps only Services for which `keep(namespace, name)` holds.
    pub fn retain_services(&mut self, keep: impl Fn(&str, &str) -> bool) {
        let all = self.services.values();
        let gone: Vec<_> =
            all.filter(|s| !keep(&s.namespace, &s.name)).map(|s| (s.namespace.clone(), s.name.clone())).collect();
        for (namespace, name) in gone {
            self.remove_service(&namespace, &name);
        }
    }

    /// Keeps only slices for which `keep(namespace, name)` holds.
    pub fn retain_slices(&mut self, keep: impl Fn(&str, &str) -> bool) {
        let all = self.slices.values().flat_map(|slices| slices.values());
        let gone: Vec<_> =
            all.filter(|s| !keep(&s.namespace, &s.name)).map(|s| (s.namespace.clone(), s.name.clone())).collect();
        for (namespace, name) in gone {
            self.remove_slice(&namespace, &name);
        }
    }

    /// Services and slices held.
    pub fn len(&self) -> (usize, usize) {
        (self.services.len(), self.owners.len())
    }

    pub fn is_empty(&self) -> bool {
        self.len() == (0, 0)
    }

    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains_key(namespace)
    }

    /// By lower-case namespace and name.
    pub(crate) fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.services.get(&key(namespace, name))
    }

    /// The endpoints a Service's names stand for, with the ports of their slice.
    pub(crate) fn endpoints<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = (&'a Endpoint, &'a [Port])> {
        let slices = self.slices.get(&key(&service.namespace, &service.name));
        let slices = slices.into_iter().flat_map(|slices| slices.values());
        slices.flat_map(move |slice| {
            let counted = slice.endpoints.iter().filter(|e| e.ready || service.publish_not_ready);
            counted.map(|endpoint| (endpoint, &slice.ports[..]))
        })
    }

    /// Services that have `address` as their own.
    pub(crate) fn with_cluster_ip(&self, address: IpAddr) -> impl Iterator<Item = &Service> {
        let keys = self.cluster_ips.get(&address).into_iter().flatten();
        keys.filter_map(|key| self.services.get(key))
    }

    /// Services with an endpoint at `address`, ready or not.
    pub(crate) fn with_endpoint(&self, address: IpAddr) -> impl Iterator<Item = &Service> {
        let keys = self.endpoint_ips.get(&address).into_iter().flat_map(|k| k.keys());
        keys.filter_map(|key| self.services.get(key))
    }

    fn changed(&mut self) {
        self.serial = self.serial.wrapping_add(1);
    }
}

impl Endpoint {
    /// The label of one of its addresses under the Service's name: the hostname, else the address
    /// with dashes, as CoreDNS does.
    pub(crate) fn label(&self, address: IpAddr) -> String {
        match &self.hostname {
            Some(hostname) => hostname.to_ascii_lowercase(),
            None => address.to_string().replace(['.', ':'], "-"),
        }
    }
}

fn key(namespace: &str, name: &str) -> Key {
    let mut key = String::with_capacity(namespace.len() + name.len() + 1);
    key.push_str(namespace);
    key.push('/');
    key.push_str(name);
    key.make_ascii_lowercase();
    key.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, ip: [u8; 4]) -> Service {
        Service {
            namespace: "ns".to_owned(),
            name: name.to_owned(),
            kind: Kind::ClusterIp(vec![IpAddr::from(ip)]),
            ports: Vec::new(),
            publish_not_ready: false,
        }
    }

    fn slice(name: &str, service: &str, ips: &[[u8; 4]]) -> Slice {
        let endpoint = |ip: &[u8; 4]| Endpoint { addresses: vec![IpAddr::from(*ip)], hostname: None, ready: true };
        Slice {
            namespace: "ns".to_owned(),
            name: name.to_owned(),
            service: service.to_owned(),
            ports: Vec::new(),
            endpoints: ips.iter().map(endpoint).collect(),
        }
    }

    /// Whatever came and went, nothing of it stays behind.
    #[test]
    fn what_is_removed_leaves_no_trace() {
        let mut zone = Zone::new("cluster.local", Vec::new());
        let (a, b) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        zone.set_service(service("x", a));
        zone.set_service(service("x", b)); // moved
        assert_eq!(zone.with_cluster_ip(a.into()).count(), 0);
        assert_eq!(zone.with_cluster_ip(b.into()).count(), 1);
        zone.set_slice(slice("x-1", "x", &[a, b]));
        zone.set_slice(slice("x-2", "x", &[a]));
        zone.set_slice(slice("x-1", "y", &[b])); // another Service's now
        assert_eq!(zone.with_endpoint(a.into()).count(), 1);
        assert_eq!(zone.with_endpoint(b.into()).count(), 0, "y is no Service yet");
        zone.set_service(service("y", a));
        assert_eq!(zone.with_endpoint(b.into()).count(), 1);
        let serial = zone.serial;
        zone.set_service(service("y", a));
        zone.set_slice(slice("x-2", "x", &[a]));
        assert_eq!(zone.serial, serial, "nothing changed");
        zone.retain_services(|_, name| name == "y");
        zone.retain_slices(|_, _| false);
        assert_eq!(zone.len(), (1, 0));
        zone.remove_service("ns", "y");
        assert!(zone.is_empty() && !zone.has_namespace("ns"));
        assert!(zone.cluster_ips.is_empty() && zone.endpoint_ips.is_empty() && zone.slices.is_empty());
    }
}
