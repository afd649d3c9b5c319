//! Whatever arrives, the server lives, and what it says can be read.

use std::sync::Arc;

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Name, RecordType},
};
use proptest::prelude::*;

use crate::{
    informer::Shared,
    server::{Server, encode},
};

/// Names near those of the zone: every mix of their labels.
fn name() -> impl Strategy<Value = Name> {
    let label = prop::sample::select(vec![
        "svc",
        "pod",
        "default",
        "db",
        "web",
        "pg",
        "pg-0",
        "_http",
        "_tcp",
        "_sql",
        "10-0-0-1",
        "--",
        "_",
        "dns",
        "ns",
        "dns-version",
        "in-addr",
        "ip6",
        "arpa",
        "1",
        "f",
        "255",
        "256",
        "WEB",
        "x",
        "\u{e9}",
    ]);
    let ends: [&[&str]; 6] =
        [&["cluster", "local"], &["Cluster", "Local"], &["arpa"], &["ip6", "arpa"], &["in-addr", "arpa"], &[]];
    (prop::collection::vec(label, 0..12), prop::sample::select(ends.to_vec())).prop_map(|(mut labels, end)| {
        labels.extend(end);
        let mut name = Name::from_labels(labels.into_iter().map(str::as_bytes)).unwrap();
        name.set_fqdn(true);
        name
    })
}

fn request() -> impl Strategy<Value = Vec<u8>> {
    let valid = (name(), 0u16..70).prop_map(|(name, kind)| {
        let mut message = Message::new(1, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(name, RecordType::from(kind)));
        message.to_vec().unwrap()
    });
    let bent =
        (name(), prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6)).prop_map(|(name, bends)| {
            let mut message = Message::new(1, MessageType::Query, OpCode::Query);
            message.add_query(Query::query(name, RecordType::A));
            let mut bytes = message.to_vec().unwrap();
            for (at, byte) in bends {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        });
    prop_oneof![valid, bent, prop::collection::vec(any::<u8>(), 0..600)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn nothing_that_arrives_does_harm(bytes in request(), limit in 512usize..1300) {
        let shared = Arc::new(Shared::new(super::zone()));
        shared.set_loaded();
        let server = Server::new(shared, vec![], Arc::default());
        if let Some(reply) = server.reply(&bytes) {
            let sent = encode(reply, limit);
            prop_assert!(sent.len() <= limit);
            let read = Message::from_vec(&sent).unwrap();
            prop_assert_eq!(read.metadata.message_type, MessageType::Response);
            prop_assert_eq!(&sent[..2], &bytes[..2]);
        }
    }
}
