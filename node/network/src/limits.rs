//! Every bound and fixed number of this crate.

use std::time::Duration;

/// A released address is not given to another pod for so long, as long as others are free.
pub const COOL_DOWN: Duration = Duration::from_secs(60);
/// Released addresses remembered.
pub const COOLING: usize = 4096;
/// Marks our routes in the kernel (`proto 92`): what has it is ours to remove.
pub const ROUTE_PROTOCOL: u8 = 92;
/// The tunnel's network identifier.
pub const VXLAN_VNI: u32 = 1;
/// The tunnel's UDP port (RFC 7348).
pub const VXLAN_PORT: u16 = 4789;
/// Bytes that the tunnel adds to a packet: outer IPv4, UDP, VXLAN and inner Ethernet headers.
pub const VXLAN_OVERHEAD_V4: u32 = 50;
/// The same with an outer IPv6 header.
pub const VXLAN_OVERHEAD_V6: u32 = 70;
/// The kernel takes IPv6 off a link with a smaller MTU (RFC 8200).
pub const IPV6_MTU: u32 = 1280;
/// MTU where no uplink tells one.
pub const DEFAULT_MTU: u32 = 1500;
/// First part of pod links' names on the node.
pub const LINK_PREFIX: &str = "slc";
/// Name of the tunnel's link.
pub const VXLAN_LINK: &str = "sluice.vxlan";
/// Names of both ends of the link that leads to services by packet for the node's own sockets.
pub const HOME_LINKS: [&str; 2] = ["sluice.home", "sluice.home.end"];
/// Services' addresses that nobody serves any more and that still lead there, for connections that go on; the oldest go first.
pub const HOME_LEFT: usize = 1024;
/// Group of links whose pods have ended: removed all at once (`ip link show group 20828`).
pub const ENDED_GROUP: u32 = 0x515c;
/// What a limited pod may send at once: so much time of its rate,
pub const BURST_TIME: Duration = Duration::from_millis(10);
/// and so many bytes at least, which is one packet as the kernel hands it over.
pub const BURST_LEAST: u64 = 65_536;
/// How long a packet may wait for its turn before it is dropped (upstream's bandwidth plugin).
pub const QUEUE_TIME: Duration = Duration::from_millis(25);
