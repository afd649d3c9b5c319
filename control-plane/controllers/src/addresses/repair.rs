//! Every cluster IP of a Service has its IPAddress, and every IPAddress that the API server made has its Service: what
//! somebody removed, changed or left behind is repaired, with upstream's events (`ipallocator-repair-controller`).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};

use super::MANAGED_BY;
use crate::context::Context;
use crate::events::Recorder;
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::Store;
use crate::limits;
use crate::object::Object;
use crate::queue::Key;
use crate::rest;
use crate::types::{IpAddress, Parent, Service, ServiceCidr};

const NAME: &str = "ipallocator-repair-controller";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";

/// Its keys are addresses.
struct Controller {
    client: Client,
    events: Recorder,
    clock: crate::Clock,
    addresses: Arc<Store<IpAddress>>,
    services: Arc<Store<Service>>,
    ranges: Arc<Store<ServiceCidr>>,
}

/// Starts the controller.
pub(crate) fn start(context: &Context, all: &Informers) {
    let mut wiring = Wiring::new();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        events: context.events.of(NAME),
        clock: context.options.clock.clone(),
        addresses: wiring.drives(&all.addresses),
        services: wiring.reads(&all.services),
        ranges: wiring.reads(&all.service_cidrs),
    });
    wiring.wakes(&all.services, |old, new, queue| {
        let indexes = |service: Option<&Arc<Service>>| service.map(|service| service.addresses()).unwrap_or_default();
        let (had, has) = (indexes(old), indexes(new));
        let changed = had.iter().filter(|ip| !has.contains(ip)).chain(has.iter().filter(|ip| !had.contains(ip)));
        changed.for_each(|ip| queue.add(Key::new("", ip)));
    });
    let services = controller.services.clone();
    wiring.wakes(&all.service_cidrs, move |old, new, queue| {
        // What was outside of every range may be inside of one.
        if let (None, Some(range)) = (old, new) {
            let all = services.all();
            let inside = |ip: &String| ip.parse().is_ok_and(|ip| range.contains(ip));
            all.iter().flat_map(|s| s.addresses()).filter(inside).for_each(|ip| queue.add(Key::new("", &ip)));
        }
    });
    wiring.run(context, NAME, controller);
}

/// An event's reason and message.
type Event = (&'static str, String);

/// What has to happen to the object of an address.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Nothing,
    /// The Service is told; nothing can be done.
    Tell(Event),
    /// Made for the Service, after an object that is wrong is removed.
    Make(Option<Event>),
    /// Removed; the IPAddress itself is told of.
    Remove(Event),
    Wait(Duration),
}

/// What is known of one address.
struct Seen<'a> {
    address: &'a str,
    found: Option<&'a IpAddress>,
    /// The Service that has the address: the one that the object names, if several do.
    owner: Option<&'a Service>,
    /// The Service that the object names.
    named: Option<&'a Service>,
    /// In no ServiceCIDR.
    outside: bool,
}

fn plan(seen: &Seen<'_>, now: Timestamp) -> Action {
    let Seen { address, found, owner, named, outside } = *seen;
    let managed = |found: &IpAddress| found.labels().get(MANAGED_BY.0).is_some_and(|by| by == MANAGED_BY.1);
    let family = family(address);
    let has = |service: &Service| service.addresses().iter().any(|ip| ip == address);
    match (found, owner) {
        (_, Some(_)) if outside => {
            let text = format!(
                "Cluster IP [{family}]: {address} is not within any configured Service CIDR; please recreate service"
            );
            Action::Tell(("ClusterIPOutOfRange", text))
        }
        (None, Some(_)) => {
            let text = format!("Cluster IP [{family}]: {address} is not allocated; repairing");
            Action::Make(Some(("ClusterIPNotAllocated", text)))
        }
        (Some(found), Some(owner)) => {
            let parent = &found.spec.parent_ref;
            let wrong = || {
                let service = format!("{}/{}", owner.ns(), owner.name());
                let text = format!(
                    "the ClusterIP [{family}]: {address} for Service {service} has a wrong reference; repairing"
                );
                Action::Make(Some(("ClusterIPNotAllocated", text)))
            };
            if *parent == of(owner) {
                let labelled = managed(found) && found.labels().get(FAMILY).is_some_and(|label| label == family);
                return if labelled { Action::Nothing } else { Action::Make(None) };
            }
            match named {
                Some(named) if is_service(parent) && has(named) => {
                    let text = format!(
                        "Cluster IP [{family}]:{address} was assigned to multiple services; please recreate service"
                    );
                    Action::Tell(("ClusterIPAlreadyAllocated", text))
                }
                _ => wrong(),
            }
        }
        (Some(found), None) if !managed(found) || found.deleting() => Action::Nothing,
        (Some(found), None) => {
            let parent = &found.spec.parent_ref;
            let Parent { group, resource, namespace, name } = parent;
            if !is_service(parent) {
                let text = format!(
                    "IPAddress {address} appears to have been modified, not referencing a Service \
                     &ParentReference{{Group:{group},Resource:{resource},Namespace:{namespace},Name:{name},}}: cleaning up"
                );
                return Action::Remove(("IPAddressNotAllocated", text));
            }
            if named.is_some() {
                let text =
                    format!("IPAddress: {address} for Service {namespace}/{name} has a wrong reference; cleaning up");
                return Action::Remove(("IPAddressWrongReference", text));
            }
            let age = now.duration_since(found.created());
            match limits::ADDRESS_GRACE.checked_sub(age.try_into().unwrap_or_default()) {
                Some(rest) if !rest.is_zero() => Action::Wait(rest),
                _ => {
                    let text = format!(
                        "IPAddress: {address} for Service {namespace}/{name} appears to have leaked: cleaning up"
                    );
                    Action::Remove(("IPAddressNotAllocated", text))
                }
            }
        }
        (None, None) => Action::Nothing,
    }
}

fn is_service(parent: &Parent) -> bool {
    (&*parent.group, &*parent.resource) == ("", "services")
}

fn of(service: &Service) -> Parent {
    let (namespace, name) = (service.ns().to_owned(), service.name().to_owned());
    Parent { group: String::new(), resource: "services".into(), namespace, name }
}

fn family(address: &str) -> &'static str {
    if address.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) { "IPv6" } else { "IPv4" }
}

fn wanted(address: &str, owner: &Service) -> Value {
    json!({
        "metadata": {"name": address, "labels": {MANAGED_BY.0: MANAGED_BY.1, FAMILY: family(address)}},
        "spec": {"parentRef": {"group": "", "resource": "services", "namespace": owner.ns(), "name": owner.name()}},
    })
}

impl Reconcile for Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let found = self.addresses.get(key);
        let parent = found.as_ref().map(|found| &found.spec.parent_ref);
        let mut owners = self.services.indexed(&key.name);
        owners.sort_by_key(|service| (parent != Some(&of(service)), service.key()));
        let named = parent.and_then(|parent| self.services.get(&Key::new(&parent.namespace, &parent.name)));
        let outside =
            key.name.parse().is_ok_and(|address| !self.ranges.all().iter().any(|range| range.contains(address)));
        // All but the first are Services that nothing can be done for.
        for (i, owner) in owners.iter().map(|owner| Some(&**owner)).chain(owners.is_empty().then_some(None)).enumerate()
        {
            let seen = Seen { address: &key.name, found: found.as_deref(), owner, named: named.as_deref(), outside };
            match (plan(&seen, (self.clock)()), owner) {
                (Action::Tell((reason, text)), Some(owner)) => self.events.warning(owner, reason, text),
                (Action::Make(event), Some(owner)) if i == 0 => self.make(key, found.as_deref(), owner, event).await?,
                (Action::Remove(event), _) => {
                    let Some(found) = &found else { continue };
                    self.remove(found, named.as_deref(), event).await?;
                }
                (Action::Wait(rest), _) => return Ok(Some(rest)),
                _ => {}
            }
        }
        Ok(None)
    }
}

impl Controller {
    /// Whether the Service has the address, asked past every cache.
    async fn has(&self, service: &Service, address: &str) -> kube::Result<bool> {
        let found = rest::fresh::<Service>(&self.client, service.ns(), service.name()).await?;
        Ok(found.is_some_and(|found| found.addresses().iter().any(|ip| ip == address)))
    }

    /// Makes the object of an address that a Service has, in the place of one that is wrong.
    async fn make(
        &self,
        key: &Key,
        wrong: Option<&IpAddress>,
        owner: &Service,
        event: Option<Event>,
    ) -> kube::Result<()> {
        // Both kinds come by watches of their own: the Service may have lost the address just now.
        if !self.has(owner, &key.name).await? {
            return Ok(());
        }
        if let Some(wrong) = wrong {
            rest::delete(&self.client, wrong).await?;
        }
        match rest::create::<IpAddress>(&self.client, "", wanted(&key.name, owner)).await {
            Ok(_) => {
                if let Some((reason, text)) = event {
                    self.events.warning(owner, reason, text);
                }
                Ok(())
            }
            // It was there all along.
            Err(error) if rest::is(&error, 409) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes an object whose Service has the address no more.
    async fn remove(&self, found: &IpAddress, named: Option<&Service>, (reason, text): Event) -> kube::Result<()> {
        // As above: it may have got the address just now.
        if let Some(named) = named
            && self.has(named, found.name()).await?
        {
            return Ok(());
        }
        self.events.warning(found, reason, text);
        rest::delete(&self.client, found).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn service(name: &str, addresses: &[&str]) -> Service {
        serde_json::from_value(json!({"metadata": {"namespace": "n", "name": name}, "spec": {"clusterIPs": addresses}}))
            .unwrap()
    }

    fn object(address: &str, parent: &str, change: Value) -> IpAddress {
        let mut object = wanted(address, &service(parent, &[]));
        object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        json_patch::merge(&mut object, &change);
        serde_json::from_value(object).unwrap()
    }

    fn told(action: Action) -> String {
        match action {
            Action::Nothing => "nothing".into(),
            Action::Tell((reason, text)) => format!("tell {reason}: {text}"),
            Action::Make(None) => "make".into(),
            Action::Make(Some((reason, text))) => format!("make {reason}: {text}"),
            Action::Remove((reason, text)) => format!("remove {reason}: {text}"),
            Action::Wait(rest) => format!("wait {}", rest.as_secs()),
        }
    }

    #[test]
    fn what_becomes_of_an_address() {
        let (four, six) = ("10.96.0.9", "fd00::9");
        let web = service("web", &[four, "FD00::9"]);
        let (bare, both) = (service("old", &[]), service("old", &[four]));
        let none = json!({});
        let labels = |change: Value| json!({"metadata": {"labels": change}});
        let strange = labels(json!({MANAGED_BY.0: "me"}));
        let elsewhere = json!({"spec": {"parentRef": {"group": "a.io", "resource": "gateways"}}});
        let check = |address: &str,
                     found: Option<(&str, &Value)>,
                     owner: Option<&Service>,
                     named: Option<&Service>,
                     expected: &str| {
            let found = found.map(|(parent, change)| object(address, parent, change.clone()));
            let seen = Seen { address, found: found.as_ref(), owner, named, outside: false };
            assert_eq!(told(plan(&seen, "2026-01-01T00:00:20Z".parse().unwrap())), expected, "{found:?}");
        };
        let wrong = "make ClusterIPNotAllocated: the ClusterIP [IPv4]: 10.96.0.9 for Service n/web has a wrong reference; repairing";
        check(four, None, None, None, "nothing");
        let missing = "make ClusterIPNotAllocated: Cluster IP [IPv4]: 10.96.0.9 is not allocated; repairing";
        check(four, None, Some(&web), None, missing);
        check(four, Some(("web", &none)), Some(&web), Some(&web), "nothing");
        check(six, Some(("web", &none)), Some(&web), Some(&web), "nothing");
        check(four, Some(("web", &strange)), Some(&web), Some(&web), "make");
        check(four, Some(("web", &labels(json!({FAMILY: "IPv6"})))), Some(&web), Some(&web), "make");
        check(four, Some(("web", &elsewhere)), Some(&web), None, wrong);
        check(four, Some(("old", &none)), Some(&web), None, wrong);
        check(four, Some(("old", &none)), Some(&web), Some(&bare), wrong);
        let twice = "tell ClusterIPAlreadyAllocated: Cluster IP [IPv4]:10.96.0.9 was assigned to multiple services; please \
                     recreate service";
        check(four, Some(("old", &none)), Some(&web), Some(&both), twice);

        check(four, Some(("old", &strange)), None, None, "nothing");
        check(four, Some(("old", &none)), None, None, "wait 40");
        let old = json!({"metadata": {"creationTimestamp": "2025-12-31T23:59:20Z"}});
        let leaked =
            "remove IPAddressNotAllocated: IPAddress: 10.96.0.9 for Service n/old appears to have leaked: cleaning up";
        check(four, Some(("old", &old)), None, None, leaked);
        let left =
            "remove IPAddressWrongReference: IPAddress: 10.96.0.9 for Service n/old has a wrong reference; cleaning up";
        check(four, Some(("old", &none)), None, Some(&bare), left);
        let modified = "remove IPAddressNotAllocated: IPAddress 10.96.0.9 appears to have been modified, not referencing a \
                        Service &ParentReference{Group:a.io,Resource:gateways,Namespace:n,Name:old,}: cleaning up";
        check(four, Some(("old", &elsewhere)), None, None, modified);

        let seen = Seen { address: four, found: None, owner: Some(&web), named: None, outside: true };
        let outside = "tell ClusterIPOutOfRange: Cluster IP [IPv4]: 10.96.0.9 is not within any configured Service CIDR; \
                       please recreate service";
        assert_eq!(told(plan(&seen, Timestamp::UNIX_EPOCH)), outside);
    }
}
