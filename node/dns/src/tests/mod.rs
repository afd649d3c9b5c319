//! Tests: tables of questions for the zone, and stories over real sockets with a stand-in API server.
#![allow(clippy::unwrap_used)]

mod api;
mod noise;
mod questions;
mod sockets;

use std::net::IpAddr;

use crate::zone::{Endpoint, Kind, Port, Service, Slice, Zone};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn port(name: &str, protocol: &str, number: u16) -> Port {
    Port { name: name.to_owned(), protocol: protocol.to_owned(), number }
}

fn service(namespace: &str, name: &str, kind: Kind, ports: Vec<Port>) -> Service {
    Service { namespace: namespace.to_owned(), name: name.to_owned(), kind, ports, publish_not_ready: false }
}

fn endpoint(address: &str, hostname: Option<&str>, ready: bool) -> Endpoint {
    Endpoint { addresses: vec![ip(address)], hostname: hostname.map(str::to_owned), ready }
}

fn slice(namespace: &str, name: &str, service: &str, ports: Vec<Port>, endpoints: Vec<Endpoint>) -> Slice {
    Slice { namespace: namespace.to_owned(), name: name.to_owned(), service: service.to_owned(), ports, endpoints }
}

/// A cluster with one Service of every sort.
fn zone() -> Zone {
    let mut zone = Zone::new("cluster.local.", vec![ip("10.96.0.10")]);
    let cluster = |ips: &[&str]| Kind::ClusterIp(ips.iter().map(|i| ip(i)).collect());
    let web = vec![port("http", "tcp", 80), port("dns", "udp", 53), port("", "tcp", 9)];
    zone.set_service(service("default", "web", cluster(&["10.96.0.5", "fd00::5"]), web));
    zone.set_slice(slice(
        "default",
        "web-a",
        "web",
        vec![port("http", "tcp", 8080)],
        vec![endpoint("10.244.0.7", None, true)],
    ));
    zone.set_service(service("default", "single", cluster(&["10.96.0.6"]), vec![port("", "tcp", 80)]));
    zone.set_service(service("default", "core", cluster(&["10.96.0.7"]), vec![port("s1ap", "sctp", 36412)]));
    zone.set_service(service("default", "docs", Kind::External("www.Example.com".to_owned()), vec![]));
    zone.set_service(service("default", "alias", Kind::External("web.default.svc.cluster.local".to_owned()), vec![]));
    zone.set_service(service("default", "broken", Kind::External("192.0.2.1".to_owned()), vec![]));

    zone.set_service(service("db", "pg", Kind::Headless, vec![port("sql", "tcp", 5432)]));
    zone.set_slice(slice(
        "db",
        "pg-v4",
        "pg",
        vec![port("sql", "tcp", 5432)],
        vec![
            endpoint("10.244.1.1", Some("pg-0"), true),
            endpoint("10.244.1.2", Some("pg-1"), true),
            endpoint("10.244.1.3", Some("pg-2"), false),
            endpoint("10.244.1.4", None, true),
        ],
    ));
    let v6 = vec![endpoint("fd00:1::1", Some("pg-0"), true)];
    zone.set_slice(slice("db", "pg-v6", "pg", vec![port("sql", "tcp", 5432)], v6));
    zone.set_service(service("db", "empty", Kind::Headless, vec![port("sql", "tcp", 1)]));
    zone.set_service(service("db", "starting", Kind::Headless, vec![]));
    zone.set_slice(slice("db", "s-1", "starting", vec![], vec![endpoint("10.244.2.1", None, false)]));
    let mut early = service("db", "early", Kind::Headless, vec![]);
    early.publish_not_ready = true;
    zone.set_service(early);
    zone.set_slice(slice("db", "e-1", "early", vec![], vec![endpoint("10.244.2.2", Some("e-0"), false)]));
    zone
}
