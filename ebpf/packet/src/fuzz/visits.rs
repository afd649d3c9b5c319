//! Packets of a client outside to this node's services, for the benches.

use super::node::{Door, End, travel, world};
use crate::tests::frame::{ACK, Frame, SYN};
use crate::tests::world::World;

/// A packet and the node that it comes to, as often as asked.
#[derive(Clone)]
pub struct Visit {
    world: World,
    packet: Frame,
    driver: bool,
}

impl Visit {
    /// The first packet of a connection to a node port.
    pub fn first(driver: bool) -> Visit {
        Visit { world: world(false), packet: packet(30090, SYN), driver }
    }

    /// A packet of a connection whose first one was answered.
    pub fn known(driver: bool) -> Visit {
        let mut visit = Visit::first(driver);
        let sent = visit.leaves().unwrap().ends();
        let (node, backend) = sent.split_once(" > ").unwrap();
        visit.packet = Frame::tcp(backend, node, SYN | ACK, b"");
        visit.pass();
        Visit { packet: packet(30090, ACK), ..visit }
    }

    /// A packet for no service.
    pub fn elsewhere(driver: bool) -> Visit {
        Visit { world: world(false), packet: packet(22, SYN), driver }
    }

    /// Takes the packet through the node; says whether it left for another one.
    pub fn pass(&mut self) -> bool {
        self.leaves().is_some()
    }

    fn leaves(&mut self) -> Option<Frame> {
        let door = if self.driver { Door::Driver } else { Door::Uplink };
        match travel(&mut self.world, self.packet.clone(), door) {
            End::Out(frame) => Some(frame),
            _ => None,
        }
    }
}

fn packet(port: u16, flags: u8) -> Frame {
    Frame::tcp("192.0.2.9:5000", &std::format!("10.1.0.1:{port}"), flags, b"")
}

#[test]
fn visits_end_where_they_should() {
    for driver in [false, true] {
        assert!(Visit::first(driver).pass());
        let mut known = Visit::known(driver);
        // Always from the same port: it is known.
        assert_eq!(known.leaves().unwrap().ends(), known.leaves().unwrap().ends());
        assert!(!Visit::elsewhere(driver).pass());
    }
}
