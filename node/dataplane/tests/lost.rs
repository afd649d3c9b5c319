//! Packets that are dropped, by the programs and by the kernel, are counted with their reasons.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::UdpSocket;

use common::{connect, isolated, service};
use sluice_dataplane::model::Protocol;
use sluice_dataplane::{By, Dataplane, Drops, drops};

fn packets(drops: &Drops, by: By, reason: &str) -> u64 {
    drops.rows.iter().filter(|row| (row.by, row.reason.as_str()) == (by, reason)).map(|row| row.packets).sum()
}

#[test]
fn what_is_lost_is_counted_by_reason() {
    isolated("what_is_lost_is_counted_by_reason", |place| {
        let dataplane = Dataplane::load(place.config()).unwrap();
        let seen = || drops(&place.pins).unwrap();
        let before = seen();
        assert_eq!(before.missing, None);
        // To a port that nobody has: the kernel drops each of them, and tells the sender, whose next call fails.
        let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for _ in 0..20 {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.send_to(b"x", nobody).unwrap();
        }
        // To a socket whose program does not read.
        let slow = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..2_000 {
            sender.send_to(&[0; 1_000], slow.local_addr().unwrap()).unwrap();
        }
        slow.set_nonblocking(true).unwrap();
        let kept = std::iter::from_fn(|| slow.recv(&mut [0; 1_000]).ok()).count() as u64;
        // A service without endpoints: the data plane refuses it.
        dataplane.apply(&service(Protocol::Tcp, "10.96.0.10:80", 0, &[])).unwrap();
        assert!(connect("10.96.0.10:80").is_err());
        let after = seen();
        assert_eq!((packets(&before, By::Sluice, "NoEndpoint"), packets(&after, By::Sluice, "NoEndpoint")), (0, 1));
        // Others on the machine may lose some, too.
        assert!(
            packets(&after, By::Kernel, "NO_SOCKET") >= packets(&before, By::Kernel, "NO_SOCKET") + 20,
            "{after:?}"
        );
        let full = |drops: &Drops| packets(drops, By::Kernel, "SOCKET_RCVBUFF");
        assert!(kept < 2_000 && full(&after) >= full(&before) + 2_000 - kept, "{kept} kept, {after:?}");
        drop(dataplane);
        let kept = seen();
        assert!(packets(&kept, By::Kernel, "NO_SOCKET") >= packets(&after, By::Kernel, "NO_SOCKET"), "{kept:?}");
    });
}
