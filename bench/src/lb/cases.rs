//! What is measured packet by packet, and what is promised of it: one row each. Pure.
//!
//! The promises are the commitments at the end of section 3 of the design's data-plane notes, whose figures (ns, least
//! disturbed) were taken on one machine where a hash lookup with a 16-byte key costs 25 to 30: 27.5 here. As multiples of
//! that lookup they hold on any machine:
//!
//! | promise | of what | ns | lookups |
//! | --- | --- | --- | --- |
//! | established, DSR | 0.5 × Katran's 99 | 50 | 1.8 |
//! | established, NAT | 0.15 × Cilium's SNAT, 443 tuned to 474 | 66 to 71 | 2.5 |
//! | the same of 64k flows, DSR | 1.0 × Katran's 250 | 250 | 9 |
//! | the same of 64k flows, NAT | 0.3 × Cilium's 1,225 tuned to 1,310 | 368 to 393 | 14 |
//! | new flow, DSR | 0.8 × Katran's 460 | 368 | 13 |
//! | new flow, SNAT | 0.3 × Cilium's 2,220 | 666 | 24 |
//! | flood from random sources, DSR | 1.2 × Katran's guarded 165 to 190 | 198 to 228 | 8 |
//! | no port is left | 2 × our own new flow | | |

use super::frame::{ACK, Frame, SYN};
use super::place::NODE;

/// Which kind of program, and so which wrapper and floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Tc,
    Xdp,
}

/// Which flow a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flows {
    /// So many, one after the other; a power of two. Each had packets before.
    Known(u32),
    /// Each packet begins one, into tables that are emptied between runs.
    New,
    /// Each packet begins one, from a random source, into tables that nobody empties.
    Flood,
    /// Each packet begins one, after so many before it that no port is left.
    After(u32),
}

/// What the program has to make of the packet, or the measurement is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Makes {
    Nothing,
    /// The destination becomes an address that begins so.
    Destination([u8; 2]),
    /// The source becomes this address.
    Source([u8; 4]),
    /// Both.
    Both([u8; 4], [u8; 2]),
    /// It goes inside another packet with this source, to an address that begins so.
    Inside([u8; 4], [u8; 2]),
    Drop,
}

pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) program: &'static str,
    pub(super) frame: Frame,
    pub(super) flows: Flows,
    pub(super) makes: Makes,
}

impl Case {
    /// The packets that are measured: new flows begin with a SYN.
    pub(super) fn flags(&self) -> u8 {
        if matches!(self.flows, Flows::Known(_)) { ACK } else { SYN }
    }
}

/// At most so many times the floor's hash lookup.
pub(super) struct Promise {
    pub(super) name: &'static str,
    pub(super) case: &'static str,
    pub(super) lookups: f64,
}

const OUTSIDE: [u8; 4] = [198, 18, 0, 0];
const POD: [u8; 4] = [10, 244, 16, 0];
/// A node port with one backend on this node, in 10.244.
const NEAR: Frame = Frame { client: OUTSIDE, destination: NODE, port: super::packets::NEAR_PORT };
/// A node port with 64 backends on other nodes, in 10.245.
const FAR: Frame = Frame { client: OUTSIDE, destination: NODE, port: super::packets::FAR_PORT };
/// A node port with one backend on another node, so that its ports run out.
const ONE: Frame = Frame { client: OUTSIDE, destination: NODE, port: super::packets::ONE_PORT };
/// A load balancer's address with 64 backends on other nodes, in 10.245, that answer by themselves.
const DIRECT: Frame = Frame { client: OUTSIDE, destination: super::packets::DIRECT, port: 80 };
/// A port of the node that no service has.
const NOBODY: Frame = Frame { client: OUTSIDE, destination: NODE, port: 22 };
/// A pod of the cluster by its own address.
const OTHERS: Frame = Frame { client: OUTSIDE, destination: [10, 244, 0, 9], port: 80 };
/// A cluster address, from a pod.
const CLUSTER: Frame = Frame { client: POD, destination: [10, 96, 0, 1], port: 80 };
/// From a pod to the world.
const WORLD: Frame = Frame { client: POD, destination: [203, 0, 113, 9], port: 443 };

const HERE: Makes = Makes::Destination([10, 244]);
const THERE: Makes = Makes::Destination([10, 245]);
const MASQUERADED: Makes = Makes::Source(NODE);
const TRANSLATED: Makes = Makes::Both(NODE, [10, 245]);
const CARRIED: Makes = Makes::Inside(NODE, [10, 245]);

const fn tc(program: &'static str, name: &'static str, frame: Frame, flows: Flows, makes: Makes) -> Case {
    Case { name, kind: Kind::Tc, program, frame, flows, makes }
}

const fn xdp(name: &'static str, frame: Frame, flows: Flows, makes: Makes) -> Case {
    Case { name, kind: Kind::Xdp, program: "uplink_xdp", frame, flows, makes }
}

pub(super) const CASES: &[Case] = &[
    tc("uplink_in", "uplink_in: for no service", NOBODY, Flows::Known(1), Makes::Nothing),
    tc("uplink_in", "uplink_in: DNAT, 1 flow", NEAR, Flows::Known(1), HERE),
    tc("uplink_in", "uplink_in: DNAT, 1k flows", NEAR, Flows::Known(1 << 10), HERE),
    tc("uplink_in", "uplink_in: DNAT, 64k flows", NEAR, Flows::Known(1 << 16), HERE),
    tc("uplink_in", "uplink_in: DNAT to another node, 1 flow", FAR, Flows::Known(1), THERE),
    tc("uplink_in", "uplink_in: DNAT, new flow", NEAR, Flows::New, HERE),
    tc("uplink_in", "uplink_in: DNAT, flood", NEAR, Flows::Flood, HERE),
    tc("pod_in", "pod_in: DNAT, 1 flow", CLUSTER, Flows::Known(1), HERE),
    tc("pod_in", "pod_in: DNAT, new flow", CLUSTER, Flows::New, HERE),
    tc("pod_out", "pod_out: for no service", WORLD, Flows::Known(1), Makes::Nothing),
    tc("uplink_out", "uplink_out: SNAT, 1 flow", WORLD, Flows::Known(1), MASQUERADED),
    tc("uplink_out", "uplink_out: SNAT, 1k flows", WORLD, Flows::Known(1 << 10), MASQUERADED),
    tc("uplink_out", "uplink_out: SNAT, new flow", WORLD, Flows::New, MASQUERADED),
    tc("uplink_out", "uplink_out: SNAT, no port is left", WORLD, Flows::After(1 << 15), Makes::Drop),
    tc("uplink_onward", "uplink_onward: for a pod", OTHERS, Flows::Known(1), Makes::Nothing),
    tc("uplink_onward", "uplink_onward: for no service", NOBODY, Flows::Known(1), Makes::Nothing),
    tc("uplink_onward", "uplink_onward: DNAT, 1 flow", NEAR, Flows::Known(1), HERE),
    tc("uplink_onward", "uplink_onward: NAT, 1 flow", FAR, Flows::Known(1), TRANSLATED),
    tc("uplink_onward", "uplink_onward: NAT, 1k flows", FAR, Flows::Known(1 << 10), TRANSLATED),
    tc("uplink_onward", "uplink_onward: NAT, 64k flows", FAR, Flows::Known(1 << 16), TRANSLATED),
    tc("uplink_onward", "uplink_onward: NAT, new flow", FAR, Flows::New, TRANSLATED),
    xdp("uplink_xdp: for no service", NOBODY, Flows::Known(1), Makes::Nothing),
    xdp("uplink_xdp: DNAT, 1 flow", NEAR, Flows::Known(1), HERE),
    xdp("uplink_xdp: NAT, 1 flow", FAR, Flows::Known(1), TRANSLATED),
    xdp("uplink_xdp: NAT, 1k flows", FAR, Flows::Known(1 << 10), TRANSLATED),
    xdp("uplink_xdp: NAT, 64k flows", FAR, Flows::Known(1 << 16), TRANSLATED),
    xdp("uplink_xdp: NAT, new flow", FAR, Flows::New, TRANSLATED),
    xdp("uplink_xdp: NAT, flood", FAR, Flows::Flood, TRANSLATED),
    xdp("uplink_xdp: NAT, no port is left", ONE, Flows::After(1 << 15), Makes::Nothing),
    xdp("uplink_xdp: DSR, 1 flow", DIRECT, Flows::Known(1), CARRIED),
    xdp("uplink_xdp: DSR, 1k flows", DIRECT, Flows::Known(1 << 10), CARRIED),
    xdp("uplink_xdp: DSR, 64k flows", DIRECT, Flows::Known(1 << 16), CARRIED),
    xdp("uplink_xdp: DSR, new flow", DIRECT, Flows::New, CARRIED),
    xdp("uplink_xdp: DSR, flood", DIRECT, Flows::Flood, CARRIED),
];

pub(super) const PROMISES: &[Promise] = &[
    promise("established, DSR, 1 flow", "uplink_xdp: DSR, 1 flow", 1.8),
    promise("established, NAT, 1 flow", "uplink_xdp: NAT, 1 flow", 2.5),
    promise("established, DSR, 64k flows", "uplink_xdp: DSR, 64k flows", 9.0),
    promise("established, NAT, 64k flows", "uplink_xdp: NAT, 64k flows", 14.0),
    promise("new flow, DSR", "uplink_xdp: DSR, new flow", 13.0),
    promise("new flow, SNAT", NEW, 24.0),
    promise("flood", "uplink_xdp: DSR, flood", 8.0),
];

/// When ports end, a packet costs at most so many times what a new flow costs.
pub(super) const NEW: &str = "uplink_xdp: NAT, new flow";
pub(super) const EXHAUSTED: &str = "uplink_xdp: NAT, no port is left";
pub(super) const EXHAUSTED_TIMES: f64 = 2.0;

const fn promise(name: &'static str, case: &'static str, lookups: f64) -> Promise {
    Promise { name, case, lookups }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_counts_are_masks() {
        let names: BTreeSet<_> = CASES.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), CASES.len());
        for case in CASES {
            if let Flows::Known(count) = case.flows {
                assert!(count.is_power_of_two(), "{}", case.name);
            }
        }
        assert!(names.contains(NEW) && names.contains(EXHAUSTED));
    }
}
