//! Node ports that the API server did not give out: a store that came from elsewhere may have Services that share one, or
//! one of another range. Nothing is changed; the Service is told of by upstream's events (`portallocator-repair-controller`).
//! What a Service holds stands in itself alone, so that there is nothing else that could be wrong.

use std::sync::Arc;
use std::time::Duration;

use crate::context::Context;
use crate::events::Recorder;
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::Store;
use crate::limits;
use crate::object::Object;
use crate::queue::Key;
use crate::types::Service;

const NAME: &str = "portallocator-repair-controller";

struct Controller {
    events: Recorder,
    services: Arc<Store<Service>>,
}

/// Starts the controller.
pub(crate) fn start(context: &Context, all: &Informers) {
    let mut wiring = Wiring::new();
    let controller = Arc::new(Controller { events: context.events.of(NAME), services: wiring.reads(&all.services) });
    wiring.wakes(&all.services, |old, new, queue| {
        if let Some(new) = new
            && new.node_ports() != old.map(|old| old.node_ports()).unwrap_or_default()
        {
            queue.add(new.key());
        }
    });
    wiring.run(context, NAME, controller);
}

/// An event's reason and message.
type Event = (&'static str, String);

/// What is wrong with a Service's ports. Of Services that share one the first keeps it, as in upstream's list; within a
/// Service one number is for several protocols.
fn plan(service: &Service, is_others: impl Fn(u16) -> bool) -> Vec<Event> {
    let ports = service.node_ports();
    let mut events = Vec::new();
    for (i, (port, protocol)) in ports.iter().enumerate() {
        let before = &ports[..i];
        if before.iter().any(|(other, _)| other == port) && !before.contains(&(*port, protocol)) {
            continue;
        }
        if !limits::NODE_PORTS.contains(port) {
            let range = format!("{}-{}", limits::NODE_PORTS.start(), limits::NODE_PORTS.end());
            let text = format!("Port {port} is not within the port range {range}; please recreate service");
            events.push(("PortOutOfRange", text));
        } else if before.contains(&(*port, protocol)) || is_others(*port) {
            let text = format!("Port {port} was assigned to multiple services; please recreate service");
            events.push(("PortAlreadyAllocated", text));
        }
    }
    events
}

impl Reconcile for Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(service) = self.services.get(key) else { return Ok(None) };
        let is_others = |port| self.services.indexed(&Service::port_index(port)).iter().any(|other| other.key() < *key);
        for (reason, text) in plan(&service, is_others) {
            self.events.warning(&*service, reason, text);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_is_wrong_with_ports() {
        let check = |ports: &[(u16, &str)], health: u16, expected: &[&str]| {
            let port = |(port, protocol): &(u16, &str)| json!({"port": 80, "nodePort": port, "protocol": protocol});
            let ports: Vec<Value> = ports.iter().map(port).collect();
            let spec = json!({"ports": ports, "healthCheckNodePort": health});
            let service: Service =
                serde_json::from_value(json!({"metadata": {"namespace": "n", "name": "s"}, "spec": spec})).unwrap();
            let events = plan(&service, |port| port == 30090);
            let told: Vec<String> = events.iter().map(|(reason, text)| format!("{reason}: {text}")).collect();
            assert_eq!(told, expected, "{service:?}");
        };
        let shared = |port: u16| {
            format!("PortAlreadyAllocated: Port {port} was assigned to multiple services; please recreate service")
        };
        let outside = "PortOutOfRange: Port 8080 is not within the port range 30000-32767; please recreate service";
        check(&[], 0, &[]);
        check(&[(0, "TCP"), (30080, "TCP"), (30081, "TCP")], 30082, &[]);
        check(&[(30080, "TCP"), (30080, "UDP")], 0, &[]);
        check(&[(30080, "TCP"), (30080, "TCP")], 0, &[&shared(30080)]);
        check(&[(30080, "UDP")], 30080, &[]);
        check(&[(30080, "TCP")], 30080, &[&shared(30080)]);
        check(&[(30090, "TCP"), (30090, "UDP")], 0, &[&shared(30090)]);
        check(&[(8080, "TCP"), (30081, "TCP")], 30090, &[outside, &shared(30090)]);
    }
}
