//! Addresses and ports of Services: cluster IPs from the service ranges, node ports, health-check
//! ports, and the address-family fields that go with them. What is in use is read from the cache
//! under a lock that is held until the Service is stored, so this server never gives one out twice;
//! what other servers are about to give out is noted in the store ([`reserved`]).

mod complete;
mod families;
mod held;
mod range;
mod reserved;

use std::{collections::BTreeSet, sync::Arc};

use rand::Rng as _;
use serde_json::Value;
use sluice_api::{resource::Resource, status::Status};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::{limits, meta, storage::Storage, verbs::Call};
use complete::{addresses, keep, ports};
use families::{families, normalize};
use held::{Held, Known};
pub(crate) use range::Range;
use reserved::Reserved;

/// Held until the Service is stored, or the request has failed.
pub(crate) struct Allocation {
    guard: Option<OwnedMutexGuard<Known>>,
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
    /// One or two, the default family first.
    ranges: Vec<Range>,
    lock: Arc<Mutex<Known>>,
}

/// What other Services hold.
#[derive(Default)]
struct Taken {
    addresses: BTreeSet<String>,
    ports: BTreeSet<u16>,
}

impl Taken {
    fn add(&mut self, held: &Held) {
        self.addresses.extend(held.addresses.iter().cloned());
        self.ports.extend(&held.ports);
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
    pub(crate) fn new(ranges: Vec<Range>) -> Self {
        Self { ranges, lock: Arc::default() }
    }

    /// Completes a new Service; nothing for other kinds.
    pub(crate) async fn create(&self, call: &Call<'_>, object: &mut Value) -> Result<Option<Allocation>, Status> {
        if !is_service(&call.view.resource) {
            return Ok(None);
        }
        normalize(None, object);
        self.allocate(call, None, object).await.map(Some)
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
        normalize(Some(old), new);
        self.allocate(call, Some(old), new).await.map(Some)
    }

    async fn allocate(&self, call: &Call<'_>, old: Option<&Value>, object: &mut Value) -> Result<Allocation, Status> {
        let cluster: Vec<&str> = self.ranges.iter().map(|range| range.family()).collect();
        let mut guard = Arc::clone(&self.lock).lock_owned().await;
        let (resource, storage) = (&*call.view.resource, &call.core.storage);
        let name = meta::name(object).to_owned();
        let own = format!("{}/{name}", call.namespace());
        let mut refused = None;
        let held = storage.get(resource.store_prefix(), call.namespace(), &name).map(|o| Held::of(&o.value()));
        for _ in 0..limits::WRITE_ATTEMPTS {
            let reserved = Reserved::read(storage).await?;
            let mut taken = guard.of_others(storage, resource, call.namespace(), &name, self.ranges.len() > 1);
            reserved.add_to(&mut taken, &own);
            let mut completed = object.clone();
            let mut errors = families(&cluster, old, &mut completed);
            if errors.is_empty() {
                errors = addresses(old, &mut completed, &self.ranges, &taken);
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
