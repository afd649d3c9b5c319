//! Addresses and ports of Services: cluster IPs from the ranges of ServiceCIDRs, node ports, health-check ports, and the
//! address-family fields that go with them.
//!
//! Several servers may share one store. Nothing is given out twice because it is taken in the very transaction that writes
//! the Service: an address by the IPAddress object that is created with it ([`addresses`]), a port by a note that every
//! write that gives out such a port renews ([`ports`]). A write that finds either changed chooses anew. A Service that
//! goes, or needs an address no more, takes the IPAddress along in the same way.

mod addresses;
mod complete;
mod families;
mod held;
mod metrics;
mod ports;
mod range;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use parking_lot::Mutex;
use serde_json::Value;
use sluice_api::{
    resource::{Resource, builtin},
    status::{FieldError, Status},
};
use tokio::sync::OwnedMutexGuard;

use crate::{
    limits, meta,
    storage::{Along, Storage, StoredObject},
    verbs::Call,
};
pub(crate) use addresses::adopt;
use complete::keep;
use families::{families, normalize};
use held::{Held, Known};
pub(crate) use metrics::described as described_metrics;
use metrics::{Counts, Scope, Source, Used};
pub(crate) use range::{DEFAULT as DEFAULT_RANGE, Range};

/// What is to be written with a Service, and what keeps this server's other requests off it until it is.
#[derive(Default)]
pub(crate) struct Allocation {
    pub(crate) along: Along,
    _begun: Option<Begun>,
    _turn: Option<OwnedMutexGuard<()>>,
}

/// Addresses that a request is about to store, which no other request of this server chooses meanwhile.
struct Begun {
    all: Arc<Mutex<BTreeSet<IpAddr>>>,
    own: Vec<IpAddr>,
    /// What they were chosen from.
    ranges: Vec<Range>,
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        for address in &self.own {
            all.remove(address);
        }
    }
}

/// See the module.
pub(crate) struct Services {
    /// The cluster's address families as configured, the default one first.
    families: Vec<&'static str>,
    known: Mutex<Known>,
    begun: Arc<Mutex<BTreeSet<IpAddr>>>,
    /// Whose turn it is to choose ports: requests of one server would meet at the same notes.
    turn: Arc<tokio::sync::Mutex<()>>,
    counts: Counts,
}

/// What other Services hold.
#[derive(Default)]
struct Taken {
    addresses: BTreeSet<IpAddr>,
    ports: BTreeSet<u16>,
}

/// A Service gets nothing.
struct Refused {
    why: Why,
    /// As what that counts.
    counts: Vec<(Source, Scope)>,
}

enum Why {
    Invalid(Vec<FieldError>),
    /// There is nothing left to give.
    Failed(String),
}

impl Refused {
    fn invalid(errors: Vec<FieldError>) -> Self {
        Self { why: Why::Invalid(errors), counts: Vec::new() }
    }

    fn failed(why: impl Into<String>) -> Self {
        Self { why: Why::Failed(why.into()), counts: Vec::new() }
    }

    fn counted(self, counts: impl IntoIterator<Item = (Source, Scope)>) -> Self {
        Self { counts: counts.into_iter().collect(), ..self }
    }

    fn status(self, resource: &Resource, name: &str) -> Status {
        match self.why {
            Why::Invalid(errors) => Status::invalid(resource, name, errors),
            Why::Failed(why) => Status::internal(why),
        }
    }
}

impl Taken {
    fn add(&mut self, held: &Held) {
        self.addresses.extend(&held.addresses);
        self.ports.extend(&held.ports);
    }
}

impl Services {
    pub(crate) fn new(ranges: &[Range]) -> Self {
        Self {
            families: ranges.iter().map(|range| range.family()).collect(),
            known: Mutex::default(),
            begun: Arc::default(),
            turn: Arc::default(),
            counts: Counts::default(),
        }
    }

    /// Completes a new Service; nothing for other kinds.
    pub(crate) async fn create(&self, call: &Call<'_>, object: &mut Value) -> Result<Allocation, Status> {
        if !is_service(&call.view.resource) {
            return Ok(Allocation::default());
        }
        normalize(None, object);
        self.allocate(call, None, object).await
    }

    /// Completes a changed Service: what it holds is kept, what it newly needs is given.
    pub(crate) async fn update(&self, call: &Call<'_>, old: &Value, new: &mut Value) -> Result<Allocation, Status> {
        if !is_service(&call.view.resource) {
            return Ok(Allocation::default());
        }
        keep(old, new);
        normalize(Some(old), new);
        self.allocate(call, Some(old), new).await
    }

    async fn allocate(&self, call: &Call<'_>, old: Option<&Value>, object: &mut Value) -> Result<Allocation, Status> {
        let (resource, storage) = (&*call.view.resource, &*call.core.storage);
        let name = meta::name(object).to_owned();
        let errors = families(&self.families, old, object);
        if !errors.is_empty() {
            return Err(Status::invalid(resource, &name, errors));
        }
        let held = old.map(Held::of).unwrap_or_default();
        let turn = match ports::wanted(object, &held) {
            true => Some(Arc::clone(&self.turn).lock_owned().await),
            false => None,
        };
        let mut newest = false;
        loop {
            // Before the Services are read: whatever is given out after this is noticed by the write.
            let notes = match turn {
                Some(_) => storage.notes(ports::NOTES).await?,
                None => Default::default(),
            };
            let mut completed = object.clone();
            match self.choose(call, old, &held, &mut completed) {
                Ok(begun) => {
                    let mut along = Along::default();
                    let asked = Held::of(&std::mem::replace(object, completed));
                    if !call.dry_run {
                        let holds = Held::of(object);
                        addresses::take(storage, &mut along, object, holds.addresses.difference(&held.addresses))?;
                        addresses::give_up(storage, &mut along, object, held.addresses.difference(&holds.addresses));
                        ports::take(storage, &mut along, &notes, holds.ports.difference(&held.ports));
                        // Counted before the write, as upstream does.
                        self.counts.give(&begun.ranges, &asked, &holds, &held);
                    }
                    return Ok(Allocation { along, _begun: Some(begun), _turn: turn });
                }
                Err(refused) if newest => {
                    for (source, scope) in refused.counts.iter().filter(|_| !call.dry_run) {
                        self.counts.refuse(source.clone(), *scope);
                    }
                    return Err(refused.status(resource, &name));
                }
                Err(_) => {
                    // What is in the way may be gone by what another server did.
                    storage.fresh().await?;
                    newest = true;
                }
            }
        }
    }

    /// Chooses what is missing and checks what is asked for, by what the cache has.
    fn choose(&self, call: &Call<'_>, old: Option<&Value>, held: &Held, object: &mut Value) -> Result<Begun, Refused> {
        let (resource, storage) = (&*call.view.resource, &*call.core.storage);
        // A new Service whose name is taken is refused what the other one holds, as upstream does.
        let own = old.map(|old| (call.namespace(), meta::name(old)));
        let taken = self.known.lock().of_others(storage, resource, own, self.families.len() > 1);
        let ranges = range::ready(storage);
        let mut all = self.begun.lock();
        let is_taken = |address: &IpAddr| taken.addresses.contains(address) || addresses::exists(storage, *address);
        complete::addresses(old, object, &ranges, is_taken, |address| all.contains(address))?;
        complete::ports(object, &taken.ports)?;
        let own: Vec<IpAddr> = match call.dry_run {
            true => Vec::new(),
            // What is begun by another request is asked for by name in both: the store decides.
            false => {
                Held::of(object).addresses.difference(&held.addresses).copied().filter(|a| all.insert(*a)).collect()
            }
        };
        Ok(Begun { all: Arc::clone(&self.begun), own, ranges })
    }

    /// What `/metrics` says of Services' addresses and ports.
    pub(crate) fn metrics(&self, storage: &Storage) -> String {
        let Some(row) = builtin().by_path("", "v1", "services") else { return String::new() };
        let taken = self.known.lock().of_others(storage, row, None, self.families.len() > 1);
        let addresses = addresses::all(storage);
        let count = |range: Range| addresses.iter().filter(|address| range.contains(**address)).count();
        let ranges: BTreeMap<_, _> = range::all(storage).into_iter().map(|range| (range.to_string(), range)).collect();
        let ports = taken.ports.iter().filter(|port| limits::NODE_PORTS.contains(port)).count();
        self.counts.render(&Used {
            addresses: ranges.into_values().map(|range| (range, count(range) as u64)).collect(),
            ports: ports as u64,
        })
    }
}

/// What goes with a Service that is removed; nothing for other kinds.
pub(crate) fn released(storage: &Storage, resource: &Resource, object: &StoredObject) -> Along {
    let mut along = Along::default();
    if is_service(resource) {
        let object = object.value();
        addresses::give_up(storage, &mut along, &object, Held::of(&object).addresses.iter());
    }
    along
}

pub(crate) fn is_service(resource: &Resource) -> bool {
    resource.group.is_empty() && resource.plural == "services"
}
