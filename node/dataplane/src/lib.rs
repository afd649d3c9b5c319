//! The node's data plane: loads and attaches the eBPF programs, compiles Services and EndpointSlices into their maps,
//! reads tables and counters back.
//!
//! Invariants: the compiler ([`compile`]) and the planner ([`plan`]) are pure; the kernel's maps are the only state, so a
//! restarted process takes over what it finds; programs and maps are pinned and work on while no process runs; nothing
//! but service addresses, pods' traffic to the outside and the way of pods' packets past the stack is ever touched, and nothing
//! but what network policies deny is kept from pods.

#[cfg(test)]
extern crate self as sluice_dataplane;

mod attach;
mod btf;
mod catch_up;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;
pub mod compile;
mod counters;
mod datagrams;
mod dataplane;
mod diag;
mod endpoints;
mod error;
pub mod explain;
mod flows;
mod frontends;
mod health;
mod held;
mod inspect;
mod intern;
mod kept;
mod lengths;
mod limits;
mod links;
mod lost;
mod maglev;
mod masquerade;
mod measured;
pub mod metrics;
pub mod migrate;
pub mod model;
mod namespaces;
mod neighbours;
mod netlink;
mod node_ports;
mod object;
mod openings;
mod own;
mod pace;
mod pending;
mod picture;
mod pins;
pub mod plan;
pub mod policy;
mod pool;
mod probe;
mod probes;
mod queues;
mod range;
mod resize;
mod rules;
mod settings;
mod store;
mod stream;
mod sweep;
mod sys;
mod views;
pub mod wanted;
mod watch;
mod wire;
mod words;

pub use attach::Traffic;
pub use dataplane::{Config, Dataplane, PodInfo, ServicePath, Uplinks};
pub use error::Error;
pub use flows::{End, FlowRow, flows};
pub use inspect::{BackendRow, FrontendRow, MapRow, ProgramRow, ServiceRow, Status, services, status};
pub use limits::UNMASQUERADED;
pub use lost::{By, DropRow, Drops, drops};
pub use measured::{Measured, PodRow, Spread, TcpRow, pods};
pub use neighbours::{Neighbour, Redirect};
pub use node_ports::NodePortAddresses;
pub use own::ByPacket;
pub use probe::{Hook, Outcome, Probe};
pub use range::Range;
pub use resize::Sizes;
pub use sluice_ebpf_common::HOME_MAC;
pub use stream::{Figures, Filter, FlowEvent, Follower, Party, Seen, Step, Verdict, is_service};
pub use wire::{UplinkRow, Xdp};
