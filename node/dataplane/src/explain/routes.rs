//! The kernel's routes, asked about one packet at a time. What the answer names is what the stack would do with it.

use std::io;
use std::net::IpAddr;

use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP};

use super::frame::Ends;
use crate::netlink::Netlink;

/// Where a packet goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// To the node itself.
    Here { source: Option<IpAddr> },
    /// By a link, to a neighbour or to the destination itself.
    By { link: u32, gateway: Option<IpAddr>, source: Option<IpAddr> },
    /// Nowhere, for the kernel's reason.
    Nowhere(String),
}

/// The routes of the namespace of the thread that opened it.
pub(super) struct Routes(Netlink);

impl Routes {
    pub(super) fn open() -> io::Result<Routes> {
        Netlink::open().map(Routes)
    }

    /// Where a packet goes that came by a link (0: that the node sends). `source` may be left open.
    pub(super) fn find(
        &self,
        source: Option<IpAddr>,
        destination: IpAddr,
        came_by: u32,
        mark: u32,
    ) -> io::Result<Route> {
        let mut message = RouteMessage::default();
        let v4 = destination.is_ipv4();
        let bits = if v4 { 32 } else { 128 };
        message.header = RouteHeader {
            address_family: if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 },
            destination_prefix_length: bits,
            source_prefix_length: source.map_or(0, |_| bits),
            flags: RouteFlags::empty(),
            ..RouteHeader::default()
        };
        let address = |address: IpAddr| match address {
            IpAddr::V4(address) => RouteAddress::Inet(address),
            IpAddr::V6(address) => RouteAddress::Inet6(address),
        };
        message.attributes.push(RouteAttribute::Destination(address(destination)));
        message.attributes.extend(source.map(|source| RouteAttribute::Source(address(source))));
        if came_by != 0 {
            message.attributes.push(RouteAttribute::Iif(came_by));
        }
        if mark != 0 {
            message.attributes.push(RouteAttribute::Mark(mark));
        }
        match self.ask(message) {
            Ok(Some(answer)) => Ok(route(&answer)),
            Ok(None) => Ok(Route::Nowhere("the kernel says nothing about it".into())),
            Err(error) => match why(&error) {
                Some(why) => Ok(Route::Nowhere(why.into())),
                None => Err(error),
            },
        }
    }

    /// The same for a packet with these ends.
    pub(super) fn of(&self, ends: &Ends, came_by: u32, mark: u32) -> io::Result<Route> {
        self.find(Some(ends.source.address), ends.destination.address, came_by, mark)
    }

    /// Where a tunnel's packets to a gateway come out: by the gateway's Ethernet address, and that one's place among the
    /// tunnel's ends.
    pub(super) fn tunnel_end(&self, link: u32, gateway: IpAddr) -> io::Result<Option<IpAddr>> {
        let family = if gateway.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let of = |attributes: &[NeighbourAttribute]| {
            let (mut address, mut ethernet) = (None, None);
            for attribute in attributes {
                match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(known)) => {
                        address = Some(IpAddr::from(*known))
                    }
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(known)) => {
                        address = Some(IpAddr::from(*known))
                    }
                    // Of the bridge family no address is read as one.
                    NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => address = plain(bytes),
                    NeighbourAttribute::LinkLayerAddress(known) => ethernet = Some(known.clone()),
                    _ => {}
                }
            }
            (address, ethernet)
        };
        let mut ethernet = None;
        self.neighbours(family, link, |attributes| {
            let (address, found) = of(attributes);
            if address == Some(gateway) {
                ethernet = found;
            }
        })?;
        let mut end = None;
        self.neighbours(AddressFamily::Bridge, link, |attributes| {
            let (address, found) = of(attributes);
            if found.is_some() && found == ethernet {
                end = address;
            }
        })?;
        Ok(end)
    }

    fn neighbours(
        &self,
        family: AddressFamily,
        link: u32,
        mut take: impl FnMut(&[NeighbourAttribute]),
    ) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = family;
        self.0.ask(RouteNetlinkMessage::GetNeighbour(message), NLM_F_DUMP, |answer| match answer {
            RouteNetlinkMessage::NewNeighbour(message) if message.header.ifindex == link => take(&message.attributes),
            _ => {}
        })
    }

    fn ask(&self, message: RouteMessage) -> io::Result<Option<RouteMessage>> {
        let mut found = None;
        self.0.ask(RouteNetlinkMessage::GetRoute(message), NLM_F_ACK, |answer| {
            if let RouteNetlinkMessage::NewRoute(message) = answer {
                found = Some(message);
            }
        })?;
        Ok(found)
    }
}

/// What the kernel's errors mean about a route.
fn why(error: &io::Error) -> Option<&'static str> {
    Some(match error.raw_os_error()? {
        libc::ENETUNREACH => "there is no route to the destination",
        libc::EHOSTUNREACH => {
            "there is no route to the destination that a packet by this link may take, or the link does not forward"
        }
        libc::EACCES => "a route prohibits it",
        libc::EINVAL => "its source or destination may not stand in a packet that comes by this link (a martian)",
        libc::EXDEV => "its source is not reached by the link that it came by (rp_filter)",
        _ => return None,
    })
}

fn route(message: &RouteMessage) -> Route {
    let (mut link, mut gateway, mut source) = (0, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => link = *index,
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::PrefSource(address) => source = ip(address),
            _ => {}
        }
    }
    match message.header.kind {
        RouteType::Local | RouteType::Anycast => Route::Here { source },
        RouteType::BlackHole => Route::Nowhere("a route swallows it (blackhole)".into()),
        RouteType::Unreachable => Route::Nowhere("there is no route to the destination".into()),
        RouteType::Prohibit => Route::Nowhere("a route prohibits it".into()),
        _ if link == 0 => Route::Nowhere("its route names no link".into()),
        _ => Route::By { link, gateway, source },
    }
}

/// An address as its bytes.
fn plain(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_kernel_tells_its_own_address_from_others() {
        let routes = Routes::open().unwrap();
        let own = routes.find(None, "127.0.0.1".parse().unwrap(), 0, 0).unwrap();
        assert!(matches!(own, Route::Here { source: Some(_) }), "{own:?}");
        let none = routes.find(None, "240.0.0.1".parse().unwrap(), 0, 0).unwrap();
        assert!(!matches!(none, Route::Here { .. }), "{none:?}");
    }
}
