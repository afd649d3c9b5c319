//! Metrics say what the test's own clients and servers did.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{connect, isolated, service, tcp_server};
use sluice_dataplane::model::Protocol;
use sluice_dataplane::{Config, Dataplane, Uplinks, metrics};
use sluice_metrics::Text;

/// Series, as they are written, with their values.
fn read(dataplane: &Dataplane) -> BTreeMap<String, f64> {
    let mut text = Text::default();
    dataplane.write_metrics(&mut text).unwrap();
    let text = text.finish();
    let described: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let named: Vec<&str> = metrics::METRICS.iter().map(|metric| metric.name).collect();
    assert!(named.iter().all(|name| described.contains(name)), "not all of {named:?} in {described:?}");
    assert_eq!(named.len(), described.len());
    let series = text.lines().filter(|line| !line.starts_with('#')).map(|line| line.rsplit_once(' ').unwrap());
    series.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

const SERVICE: &str = r#"{namespace="shop",service="web",port="main",protocol="TCP"}"#;

#[test]
fn services_and_backends_are_counted_as_clients_and_servers_see_them() {
    isolated("services_and_backends_are_counted_as_clients_and_servers_see_them", |place| {
        let outside = place.neighbour("outside", "up0", Some("10.1.0.1/24"), "10.1.0.2/24", None);
        tcp_server("10.1.0.1:8001");
        let config = Config { uplinks: Uplinks::Every { except: vec![] }, ..place.config() };
        let dataplane = Dataplane::load(config).unwrap();
        // Only the node's own sockets are translated when they connect.
        dataplane.know_namespace(1, Path::new("/proc/self/ns/net")).unwrap();
        let before = read(&dataplane);
        assert_eq!(before.get(&format!("sluice_service_connections_total{SERVICE}")), None);
        assert_eq!(before["sluice_masquerade_ports"], before["sluice_masquerade_ports_left"]);
        dataplane.apply(&service(Protocol::Tcp, "10.96.0.10:80", 30080, &["10.1.0.1:8001"])).unwrap();
        // By socket: a connection, and nothing per packet.
        for _ in 0..7 {
            assert!(connect("10.96.0.10:80").unwrap().alive());
        }
        let of = |all: &BTreeMap<String, f64>, name: &str| all[&format!("sluice_service_{name}{SERVICE}")];
        let by_socket = read(&dataplane);
        assert_eq!(of(&by_socket, "connections_total"), 7.0);
        assert_eq!((of(&by_socket, "packets_total"), of(&by_socket, "active_connections")), (0.0, 0.0));
        assert_eq!(of(&by_socket, "backends"), 1.0);
        // By packet: everything.
        let mut clients: Vec<_> =
            outside.within(|| (0..5).map(|_| connect("10.1.0.1:30080").unwrap()).collect::<Vec<_>>());
        assert!(clients.iter_mut().all(common::Client::alive));
        let by_packet = read(&dataplane);
        assert_eq!(of(&by_packet, "connections_total"), 12.0);
        assert_eq!(of(&by_packet, "active_connections"), 5.0);
        // SYN, ACK, a request at the least; SYN and ACK, a greeting, an answer.
        assert!(of(&by_packet, "packets_total") >= 5.0 * 6.0, "{by_packet:?}");
        let backend = |name: &str| by_packet[&format!("sluice_backend_{name}{{backend=\"10.1.0.1:8001\"}}")];
        assert_eq!((backend("connections_total"), backend("active_connections")), (12.0, 5.0));
        assert_eq!(backend("bytes_total"), of(&by_packet, "bytes_total"));
        let belongs = SERVICE.replace('}', r#",backend="10.1.0.1:8001",local="true"}"#);
        assert_eq!(by_packet[&format!("sluice_service_backend{belongs}")], 1.0);
        assert_eq!(by_packet["sluice_flows{of=\"service\"}"], 5.0);
        assert_eq!(by_packet["kubeproxy_sync_proxy_rules_duration_seconds_count"], 1.0);
        // Nobody can answer.
        dataplane.apply(&service(Protocol::Tcp, "10.96.0.10:80", 30080, &[])).unwrap();
        assert!(connect("10.96.0.10:80").is_err());
        let refused = read(&dataplane);
        assert_eq!(of(&refused, "refused_connections_total"), 1.0);
        assert_eq!(refused["sluice_dropped_packets_total{by=\"sluice\",reason=\"NoEndpoint\"}"], 1.0);
        assert!(refused.iter().all(|(name, value)| {
            let counter = name.contains("_total{") && !name.starts_with("sluice_backend");
            !counter || by_packet.get(name).is_none_or(|earlier| earlier <= value)
        }));
    });
}
