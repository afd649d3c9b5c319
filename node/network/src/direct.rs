//! A blocking netlink connection, for what a pod's start and end wait for: a request is answered within microseconds when
//! no other thread has to be woken for the answer. Belongs to the network namespace of the thread that opened it, whatever
//! thread uses it afterwards. Nothing here decides anything.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rtnetlink::{AddressMessageBuilder, LinkUnspec, LinkVeth};

use crate::netns::{self, Netns};
use crate::nl::{self, Link, Mac, Neighbour, Route, gone, is};
use crate::{Cidr, Error, limits};

/// See the module.
pub(crate) struct Direct {
    socket: Socket,
    sequence: u32,
}

impl Direct {
    /// In the calling thread's namespace.
    pub(crate) fn open() -> Result<Self, Error> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // Errors come without the request that they are about.
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        let socket = open().map_err(netns::failed("opening netlink".into()))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The link of that name, if there is one.
    pub(crate) fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        let request = LinkUnspec::new_with_name(name).build();
        match self.ask(RouteNetlinkMessage::GetLink(request), 0, || "looking for a link".into()) {
            Ok(Some(RouteNetlinkMessage::NewLink(message))) => Ok(Some(nl::link(&message))),
            Ok(_) => Ok(None),
            Err(error) if is(&error, &[libc::ENODEV, libc::ENOENT]) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A pair of links, this end up, the other as `eth0` of the namespace: it cannot be up before this one is there.
    pub(crate) fn add_veth(
        &mut self,
        name: &str,
        mac: Mac,
        inside: &Netns,
        inside_mac: Mac,
        mtu: u32,
    ) -> Result<(), Error> {
        let peer = LinkUnspec::new_with_name("eth0")
            .address(inside_mac.to_vec())
            .mtu(mtu)
            .setns_by_fd(inside.file().as_raw_fd())
            .build();
        let pair = LinkVeth::new(name, "eth0")
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .address(mac.to_vec())
            .mtu(mtu)
            .up()
            .build();
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.change(RouteNetlinkMessage::NewLink(pair), flags, || format!("making link {name}"))
    }

    /// A pair of links in the node's own namespace, down, that ask for no neighbour: what one end sends is for the other.
    pub(crate) fn add_pair(&mut self, [name, end]: [&str; 2], mac: Mac, mtu: u32) -> Result<(), Error> {
        let peer = LinkUnspec::new_with_name(end).address(mac.to_vec()).mtu(mtu).arp(false).build();
        let pair = LinkVeth::new(name, end)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .address(mac.to_vec())
            .mtu(mtu)
            .arp(false)
            .build();
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.change(RouteNetlinkMessage::NewLink(pair), flags, || format!("making link {name}"))
    }

    /// Names the link's owner and sets it up.
    pub(crate) fn set_up(&mut self, index: u32, alias: Option<&str>) -> Result<(), Error> {
        let link = LinkUnspec::new_with_index(index).up();
        let link = match alias {
            Some(alias) => link.alias(alias),
            None => link,
        };
        self.change(RouteNetlinkMessage::SetLink(link.build()), 0, || "setting a link up".into())
    }

    /// Takes the link from its owner and puts it among those that [`Self::sweep`] removes.
    pub(crate) fn give_up(&mut self, index: u32) -> Result<(), Error> {
        let link = LinkUnspec::new_with_index(index).alias("").link_group(limits::ENDED_GROUP).build();
        gone(self.change(RouteNetlinkMessage::SetLink(link), 0, || "giving a link up".into()))
    }

    /// Removes all links that were given up, in one step: the kernel waits for its readers once for all of them.
    pub(crate) fn sweep(&mut self) -> Result<(), Error> {
        let mut group = LinkMessage::default();
        group.attributes.push(LinkAttribute::Group(limits::ENDED_GROUP));
        gone(self.change(RouteNetlinkMessage::DelLink(group), 0, || "removing links of ended pods".into()))
    }

    pub(crate) fn delete_link(&mut self, index: u32) -> Result<(), Error> {
        let link = LinkUnspec::new_with_index(index).build();
        gone(self.change(RouteNetlinkMessage::DelLink(link), 0, || "removing a link".into()))
    }

    pub(crate) fn add_address(&mut self, index: u32, ip: IpAddr) -> Result<(), Error> {
        let message = address(index, ip);
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change(RouteNetlinkMessage::NewAddress(message), flags, || format!("adding address {ip}"))
    }

    /// Adds the route, or changes the one to the same range.
    pub(crate) fn replace_route(&mut self, route: &Route) -> Result<(), Error> {
        let what = || format!("setting the route to {}", route.to);
        self.change(RouteNetlinkMessage::NewRoute(route.message()?), NLM_F_CREATE | NLM_F_REPLACE, what)
    }

    pub(crate) fn delete_route(&mut self, route: &Route) -> Result<(), Error> {
        let what = || format!("removing the route to {}", route.to);
        gone(self.change(RouteNetlinkMessage::DelRoute(route.message()?), 0, what))
    }

    /// A neighbour that is never asked for.
    pub(crate) fn set_neighbour(&mut self, entry: &Neighbour) -> Result<(), Error> {
        let mut message = NeighbourMessage::default();
        let (family, destination) = match entry.ip {
            IpAddr::V4(ip) => (AddressFamily::Inet, NeighbourAddress::Inet(ip)),
            IpAddr::V6(ip) => (AddressFamily::Inet6, NeighbourAddress::Inet6(ip)),
        };
        message.header.family = family;
        message.header.ifindex = entry.link;
        message.header.state = NeighbourState::Permanent;
        message.header.kind = RouteType::Unspec;
        message.attributes = vec![
            NeighbourAttribute::Destination(destination),
            NeighbourAttribute::LinkLayerAddress(entry.mac.to_vec()),
        ];
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change(RouteNetlinkMessage::NewNeighbour(message), flags, || format!("setting the neighbour {}", entry.ip))
    }

    /// Gives a link a queue of another kind, or changes the one it has.
    pub(crate) fn set_queue(&mut self, queue: RouteNetlinkMessage, what: impl Fn() -> String) -> Result<(), Error> {
        self.change(queue, NLM_F_CREATE | NLM_F_REPLACE, what)
    }

    fn change(&mut self, message: RouteNetlinkMessage, flags: u16, what: impl Fn() -> String) -> Result<(), Error> {
        self.ask(message, flags, what).map(drop)
    }

    /// Sends one request; returns what the kernel says before it acknowledges.
    fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        what: impl Fn() -> String,
    ) -> Result<Option<RouteNetlinkMessage>, Error> {
        self.exchange(message, flags).map_err(|source| Error::Kernel { what: what(), source })
    }

    fn exchange(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Option<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut told = None;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                // Messages begin at multiples of four.
                let length = (answer.header.length as usize).next_multiple_of(4).clamp(4, rest.len());
                rest = &rest[length..];
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Error(_) => return Ok(told),
                    NetlinkPayload::InnerMessage(message) => told = Some(message),
                    _ => {}
                }
            }
        }
    }
}

fn address(index: u32, ip: IpAddr) -> AddressMessage {
    let prefix = Cidr::host(ip).prefix();
    let mut message = match ip {
        IpAddr::V4(ip) => AddressMessageBuilder::<std::net::Ipv4Addr>::new().index(index).address(ip, prefix).build(),
        IpAddr::V6(ip) => AddressMessageBuilder::<std::net::Ipv6Addr>::new().index(index).address(ip, prefix).build(),
    };
    message.header.flags = nl::address_flags(ip);
    message
}
