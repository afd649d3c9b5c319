//! Where a packet begins: who sends it, with which ends, from which socket.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sluice_ebpf_common::{AllowedKey, Flow, FlowKind};

use super::frame::{Ends, key};
use super::routes::Route;
use super::walk::{CLIENT_PORTS, Kind, Origin, Walk};
use super::{Question, Sender, decide};
use crate::attach::has_pod_programs;
use crate::model::Protocol;
use crate::pins::cgroup_root;
use crate::range::wire;
use crate::{End, Error, sys};

impl Walk<'_> {
    pub(super) fn origin(&self, sender: Sender) -> Result<Origin, Error> {
        let Sender::At(address) = sender else { return Ok(Origin::Node) };
        Ok(match self.find(None, address, 0)? {
            Route::Here { .. } => Origin::Node,
            Route::By { link, .. } if self.kind(link) == Kind::Pod => Origin::Pod(link),
            Route::By { link, .. } => Origin::Outside(link),
            Route::Nowhere(why) => {
                return Err(Error::Kernel(format!("nothing can come from {address}: {why}")));
            }
        })
    }

    pub(super) fn find(&self, source: Option<IpAddr>, destination: IpAddr, came_by: u32) -> Result<Route, Error> {
        self.routes
            .find(source, destination, came_by, 0)
            .map_err(|error| Error::system(format!("ask for the route to {destination}"), error))
    }

    pub(super) fn kind(&self, link: u32) -> Kind {
        if has_pod_programs(&self.live.pins, link) {
            Kind::Pod
        } else if self.live.uplinks.contains_key(&link) {
            Kind::Uplink
        } else {
            Kind::Other
        }
    }

    /// Both ends of the first packet, and whether it belongs to a connection that is there.
    pub(super) fn ends(&self, origin: Origin, question: &Question) -> Result<(Ends, bool), Error> {
        let destination = question.destination;
        let address = match question.sender {
            Sender::At(address) => address,
            Sender::Node => self.own_address(destination.address)?,
        };
        let number = question.protocol.number();
        let with = |port| Ends { source: End { address, port }, destination };
        let link = if let Origin::Pod(link) = origin { link } else { 0 };
        let taken = |ends: &Ends| self.is_open(ends, number, link);
        match question.source_port {
            Some(port) => Ok((with(port), taken(&with(port)))),
            None => {
                let mut free = CLIENT_PORTS.map(with).filter(|ends| !taken(ends));
                Ok((free.next().unwrap_or_else(|| with(CLIENT_PORTS.start)), false))
            }
        }
    }

    /// What the node's own packets to somebody leave with.
    pub(super) fn own_address(&self, destination: IpAddr) -> Result<IpAddr, Error> {
        let own = match self.find(None, destination, 0)? {
            Route::Here { source } | Route::By { source, .. } => source,
            Route::Nowhere(_) => None,
        };
        let of_family = || decide::end(&self.live.settings.family(destination.is_ipv4()).node, 0).address;
        Ok(own.unwrap_or_else(of_family))
    }

    /// Is there an entry of such a connection that has not ended?
    pub(super) fn is_open(&self, ends: &Ends, number: u8, link: u32) -> bool {
        let kinds = [FlowKind::Service, FlowKind::Masquerade];
        let flows = kinds.into_iter().filter_map(|kind| self.live.flow(&key(ends, number, kind)));
        let judged = AllowedKey {
            pod: wire(ends.source.address),
            peer: wire(ends.destination.address),
            pod_port: ends.source.port.to_be(),
            peer_port: ends.destination.port.to_be(),
            link,
            protocol: number.into(),
        };
        flows.into_iter().any(|flow| flow.flags & (Flow::FIN | Flow::RST) == 0)
            || link != 0 && self.live.allowed(&judged).is_some()
    }

    /// The namespace of the socket, where its address is translated when it connects.
    pub(super) fn socket_of(&mut self, origin: Origin, protocol: Protocol, existing: bool) -> Option<u64> {
        if protocol == Protocol::Sctp || existing {
            return None;
        }
        match origin {
            Origin::Node if !self.is_below_programs() => {
                self.warnings.push(
                    "this process is in none of the cgroups whose sockets are translated when they connect: this is what \
                     becomes of its own packets, not of those cgroups'"
                        .into(),
                );
                None
            }
            Origin::Node => Some(self.live.settings.host_cookie),
            Origin::Pod(link) => self.live.namespace_of(link),
            Origin::Outside(_) => None,
        }
    }

    /// Is this process below the cgroup that the socket programs are attached to?
    pub(super) fn is_below_programs(&self) -> bool {
        let attached =
            sys::open_pinned(&self.live.pins.link("connect4")).and_then(|link| sys::link_target(link.as_fd()));
        let (Ok(attached), Ok(root)) = (attached, cgroup_root()) else { return false };
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).map(|path| root.join(path));
        let is = |path: &Path| path.metadata().is_ok_and(|found| found.ino() == attached.cgroup());
        own.is_some_and(|own| own.ancestors().take_while(|path| path.starts_with(&root)).any(is))
    }
}
