//! Connections are shown as clients and servers see them.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::time::Instant;

use common::{PATIENCE, connect, isolated, service, tcp_server};
use sluice_dataplane::model::Protocol;
use sluice_dataplane::{Config, Dataplane, Uplinks, flows};

#[test]
fn a_connection_is_shown_with_its_ends_and_what_it_carried() {
    isolated("a_connection_is_shown_with_its_ends_and_what_it_carried", |place| {
        let outside = place.neighbour("outside", "up0", Some("10.1.0.1/24"), "10.1.0.2/24", None);
        let server = tcp_server("10.1.0.1:8001");
        let config = Config { uplinks: Uplinks::Every { except: vec![] }, ..place.config() };
        let dataplane = Dataplane::load(config).unwrap();
        dataplane.apply(&service(Protocol::Tcp, "10.96.0.10:80", 30080, &["10.1.0.1:8001"])).unwrap();
        // Only the node's own sockets are translated when they connect.
        dataplane.know_namespace(1, Path::new("/proc/self/ns/net")).unwrap();
        assert_eq!(flows(&place.pins).unwrap(), []);
        let (mut client, own) = outside.within(|| {
            let client = connect("10.1.0.1:30080").unwrap();
            let own = client.stream.local_addr().unwrap();
            (client, own)
        });
        // SYN, ACK, a request at the least; SYN and ACK, a greeting, an answer. What the driver's records count of it is told with
        // a later second's first packet.
        let start = Instant::now();
        let rows = loop {
            assert!(client.alive());
            let rows = flows(&place.pins).unwrap();
            if rows.iter().all(|row| row.packets >= 3 && row.answer_packets >= 3) {
                break rows;
            }
            assert!(start.elapsed() < PATIENCE, "{rows:?}");
        };
        assert_eq!(rows.len(), 1, "{rows:?}");
        let row = &rows[0];
        let ends = |end: sluice_dataplane::End| (end.address, end.port);
        assert_eq!(ends(row.client), (own.ip(), own.port()));
        assert_eq!(ends(row.destination), ("10.1.0.1".parse().unwrap(), 30080));
        assert_eq!(row.backend.map(ends), Some((server.ip(), server.port())));
        assert_eq!((row.protocol, row.service.as_deref(), row.state), ("TCP", Some("shop/web:main"), "open"));
        assert!(!row.direct_return && row.leaves_as.is_none(), "{row:?}");
        drop(client);
        // Both ends close; the entry stays for a while and says so.
        let ended = || flows(&place.pins).unwrap().iter().all(|row| row.state == "closed");
        let start = Instant::now();
        while !ended() {
            assert!(start.elapsed() < PATIENCE, "{:?}", flows(&place.pins));
            std::thread::yield_now();
        }
    });
}
