//! Whether ServiceCIDRs are ready, and when one that is deleted may go (upstream's `service-cidrs-controller`): a finalizer
//! holds it while a Service has an address of it that is in no other one.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};
use sluice_api::block::Block;

use super::MANAGED_BY;
use crate::context::Context;
use crate::events::Recorder;
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::Store;
use crate::limits;
use crate::object::Object;
use crate::queue::Key;
use crate::rest;
use crate::types::{IpAddress, ServiceCidr};

const NAME: &str = "service-cidrs-controller";
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const READY: &str = "Kubernetes Service CIDR is ready";
const HELD: &str =
    "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";

struct Controller {
    client: Client,
    events: Recorder,
    clock: crate::Clock,
    ranges: Arc<Store<ServiceCidr>>,
    addresses: Arc<Store<IpAddress>>,
}

/// Starts the controller.
pub(crate) fn start(context: &Context, all: &Informers) {
    let mut wiring = Wiring::new();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        events: context.events.of(NAME),
        clock: context.options.clock.clone(),
        ranges: wiring.drives(&all.service_cidrs),
        addresses: wiring.reads(&all.addresses),
    });
    let ranges = controller.ranges.clone();
    wiring.wakes(&all.service_cidrs, move |old, new, queue| {
        // One that comes may set another free; one that goes may bind it.
        let ((None, Some(changed)) | (Some(changed), None)) = (old, new) else { return };
        let overlapping = |other: &Arc<ServiceCidr>| other.ranges().any(|o| changed.ranges().any(|c| c.overlaps(o)));
        ranges.all().iter().filter(|other| overlapping(other)).for_each(|other| queue.add(other.key()));
    });
    let ranges = controller.ranges.clone();
    wiring.wakes(&all.addresses, move |old, new, queue| {
        let ((None, Some(changed)) | (Some(changed), None)) = (old, new) else { return };
        if let Some(address) = given(changed) {
            let around = ranges.all().into_iter().filter(|range| range.deleting() && range.contains(address));
            around.for_each(|range| queue.add(range.key()));
        }
    });
    wiring.run(context, NAME, controller);
}

/// The address of an IPAddress that the API server gave to a Service.
fn given(address: &IpAddress) -> Option<IpAddr> {
    let managed = address.labels().get(MANAGED_BY.0).is_some_and(|by| by == MANAGED_BY.1);
    address.name().parse().ok().filter(|_| managed)
}

/// What has to happen to a ServiceCIDR.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Nothing,
    AddFinalizer,
    /// Say that it is ready.
    Ready,
    /// Say why it stays.
    Held,
    Wait(Duration),
    RemoveFinalizer,
}

fn plan(range: &ServiceCidr, others: &[Arc<ServiceCidr>], addresses: &[IpAddr], now: Timestamp) -> Action {
    let finalizer = range.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER);
    let says = |status: &str| range.status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == status);
    let Some(deleted) = &range.metadata.deletion_timestamp else {
        return match () {
            () if !finalizer => Action::AddFinalizer,
            () if !says("True") => Action::Ready,
            () => Action::Nothing,
        };
    };
    if !finalizer {
        return Action::Nothing;
    }
    if needed(range, others, addresses) {
        return if says("False") { Action::Nothing } else { Action::Held };
    }
    let over = now.duration_since(deleted.0).unsigned_abs();
    match limits::RANGE_GRACE.checked_sub(over) {
        Some(rest) if !rest.is_zero() => Action::Wait(rest),
        _ => Action::RemoveFinalizer,
    }
}

/// Whether an address would be in no ServiceCIDR without this one. Those that are being deleted themselves do not count.
fn needed(range: &ServiceCidr, others: &[Arc<ServiceCidr>], addresses: &[IpAddr]) -> bool {
    let stays = || others.iter().filter(|other| other.name() != range.name() && !other.deleting());
    let within = |inner: Block, outer: Block| outer.contains(inner.first()) && outer.contains(inner.last());
    let covered = range.ranges().all(|inner| stays().any(|other| other.ranges().any(|outer| within(inner, outer))));
    !covered
        && addresses.iter().any(|address| range.contains(*address) && !stays().any(|other| other.contains(*address)))
}

fn condition(status: &str, reason: &str, message: &str, now: Timestamp) -> Value {
    json!({"type": "Ready", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": format!("{now:.0}")})
}

impl Controller {
    /// Writes the condition beside others'.
    async fn say(&self, range: &ServiceCidr, ready: Value) -> kube::Result<()> {
        let others = range.status.conditions.iter().filter(|condition| condition.type_ != "Ready");
        let mut conditions: Vec<Value> = others.map(|c| serde_json::to_value(c).unwrap_or_default()).collect();
        conditions.push(ready);
        let status = json!({"conditions": conditions});
        rest::patch_status_of_version(&self.client, range, status).await.map(drop)
    }
}

impl Reconcile for Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(range) = self.ranges.get(key) else { return Ok(None) };
        let addresses: Vec<IpAddr> = match range.deleting() {
            true => self.addresses.all().iter().filter_map(|address| given(address)).collect(),
            false => Vec::new(),
        };
        let now = (self.clock)();
        match plan(&range, &self.ranges.all(), &addresses, now) {
            Action::Nothing => {}
            Action::AddFinalizer => {
                let mut finalizers = range.metadata.finalizers.clone().unwrap_or_default();
                finalizers.push(FINALIZER.into());
                rest::set_finalizers(&self.client, &*range, &finalizers).await?;
            }
            Action::Ready => {
                if let Err(error) = self.say(&range, condition("True", "", READY, now)).await {
                    if !rest::is(&error, 409) && !rest::is(&error, 404) {
                        let text = "The ServiceCIDR Status can not be set to Ready=True".to_owned();
                        self.events.warning(&*range, "KubernetesServiceCIDRError", text);
                    }
                    return Err(error.into());
                }
            }
            Action::Held => self.say(&range, condition("False", "Terminating", HELD, now)).await?,
            Action::Wait(rest) => return Ok(Some(rest)),
            Action::RemoveFinalizer => rest::remove_finalizer(&self.client, &*range, FINALIZER).await?,
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOW: &str = "2026-01-01T00:00:20Z";

    fn range(name: &str, cidrs: &[&str], metadata: Value, ready: &str) -> Arc<ServiceCidr> {
        let mut object = json!({"metadata": {"name": name}, "spec": {"cidrs": cidrs}});
        json_patch::merge(&mut object["metadata"], &metadata);
        if !ready.is_empty() {
            object["status"] = json!({"conditions": [condition(ready, "", "", NOW.parse().unwrap())]});
        }
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn what_becomes_of_a_range() {
        let held = json!({"finalizers": [FINALIZER]});
        let leaving = |at: &str| json!({"finalizers": [FINALIZER], "deletionTimestamp": at});
        let (long_ago, just) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:15Z");
        let four = &["10.0.0.0/24"][..];
        let default = range("kubernetes", &["10.96.0.0/16"], held.clone(), "True");
        let same = range("same", &["10.0.0.0/24"], held.clone(), "True");
        let around = range("around", &["10.0.0.0/16", "fd00::/108"], held.clone(), "True");
        let half = range("half", &["10.0.0.0/25"], held.clone(), "True");
        let gone = range("gone", &["10.0.0.0/16"], leaving(long_ago), "True");
        for (metadata, ready, others, addresses, expected) in [
            (json!({}), "", vec![], vec![], Action::AddFinalizer),
            (held.clone(), "", vec![], vec![], Action::Ready),
            (held.clone(), "False", vec![], vec![], Action::Ready),
            (held.clone(), "True", vec![], vec!["10.0.0.5"], Action::Nothing),
            (leaving(long_ago), "True", vec![], vec!["10.96.0.5"], Action::RemoveFinalizer),
            (leaving(just), "True", vec![], vec![], Action::Wait(Duration::from_secs(5))),
            (leaving(long_ago), "True", vec![], vec!["10.0.0.5"], Action::Held),
            (leaving(long_ago), "False", vec![], vec!["10.0.0.5"], Action::Nothing),
            // No Service has these.
            (leaving(long_ago), "True", vec![], vec!["10.0.0.0", "10.0.0.255"], Action::RemoveFinalizer),
            (leaving(long_ago), "True", vec![&default], vec!["10.0.0.5"], Action::Held),
            (leaving(long_ago), "True", vec![&same], vec!["10.0.0.5"], Action::RemoveFinalizer),
            (leaving(long_ago), "True", vec![&around], vec!["10.0.0.5"], Action::RemoveFinalizer),
            (leaving(long_ago), "True", vec![&half], vec!["10.0.0.5"], Action::RemoveFinalizer),
            (leaving(long_ago), "True", vec![&half], vec!["10.0.0.5", "10.0.0.200"], Action::Held),
            (leaving(long_ago), "True", vec![&gone], vec!["10.0.0.5"], Action::Held),
        ] {
            let own = range("own", four, metadata, ready);
            let mut all: Vec<Arc<ServiceCidr>> = others.into_iter().cloned().collect();
            all.push(own.clone());
            let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
            assert_eq!(plan(&own, &all, &addresses, NOW.parse().unwrap()), expected, "{own:?} {addresses:?}");
        }
    }
}
