//! Addresses and ports of Services: cluster IPs from the service range, node ports, health-check
//! ports, and the address-family fields that go with them. What is in use is read from the cache
//! under a lock that is held until the Service is stored, so this server never gives one out twice;
//! what other servers are about to give out is noted in the store ([`reserved`]).

mod complete;
mod reserved;

use std::{collections::BTreeSet, net::Ipv4Addr, sync::Arc};

use rand::Rng as _;
use serde::Deserialize;
use serde_json::Value;
use sluice_api::{resource::Resource, status::Status};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::{
    limits, meta,
    storage::{Storage, StoredObject},
    verbs::Call,
};
use complete::{addresses, families, keep, ports};
use reserved::{Held, Reserved};

/// Held until the Service is stored, or the request has failed.
pub(crate) struct Allocation {
    guard: Option<OwnedMutexGuard<()>>,
    /// What other servers see of it.
    noted: Option<(Arc<Storage>, String)>,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let Some((storage, service)) = self.noted.take() else { return };
        let guard = self.guard.take();
        tokio::spawn(async move {
            if let Err(status) = Reserved::cross_out(&storage, &service).await {
                tracing::debug!(service, error = %status.message, "a note about a Service is left to expire");
            }
            drop(guard);
        });
    }
}

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
        let (resource, storage) = (&*call.view.resource, &call.core.storage);
        let name = meta::name(object).to_owned();
        let own = format!("{}/{name}", call.namespace());
        let mut refused = None;
        let held = storage.get(resource.store_prefix(), call.namespace(), &name).map(|o| Held::of(&o.value()));
        for _ in 0..limits::WRITE_ATTEMPTS {
            let reserved = Reserved::read(storage).await?;
            let mut taken = Taken::read(storage, resource, call.namespace(), &name);
            reserved.add_to(&mut taken, &own);
            let mut completed = object.clone();
            let mut errors = families(&mut completed);
            if errors.is_empty() {
                errors = addresses(&mut completed, self.range, &taken);
            }
            if errors.is_empty() {
                errors = ports(&mut completed, &taken);
            }
            if !errors.is_empty() {
                if !reserved.others(&own) {
                    return Err(Status::invalid(resource, &name, errors));
                }
                // What another server is about to store may be what is in the way: soon it is known.
                refused = Some(errors);
                tokio::time::sleep(limits::RESERVED_WAIT).await;
                continue;
            }
            let wanted = Held::of(&completed);
            let new = !call.dry_run && !wanted.is_within(&held.clone().unwrap_or_default());
            if !new || reserved.note(storage, &own, wanted).await? {
                *object = completed;
                let noted = new.then(|| (Arc::clone(storage), own));
                return Ok(Allocation { guard: Some(guard), noted });
            }
        }
        Err(match refused {
            Some(errors) => Status::invalid(resource, &name, errors),
            None => Status::conflict(resource, &name),
        })
    }
}

fn is_service(resource: &Resource) -> bool {
    resource.group.is_empty() && resource.plural == "services"
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ranges_parse() {
        assert_eq!(Range::parse("10.96.0.0/16").unwrap().at(10).to_string(), "10.96.0.10");
        assert!(Range::parse("10.96.0.0/16").unwrap().contains("10.96.255.254".parse().unwrap()));
        for outside in ["10.96.0.0", "10.96.255.255", "10.97.0.1", "9.0.0.1"] {
            assert!(!Range::parse("10.96.0.0/16").unwrap().contains(outside.parse().unwrap()), "{outside}");
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
}
