//! The few netlink requests we need, in our own words. Nothing here decides anything.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use futures::{Stream, TryStreamExt};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use rtnetlink::{Handle, LinkUnspec, LinkVxlan, RouteMessageBuilder};
use tokio::sync::Mutex;

use crate::{Cidr, Error, limits};

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// A connection to one namespace's netlink.
#[derive(Clone, Debug)]
pub(crate) struct Netlink {
    handle: Handle,
    /// The kernel lists one table at a time per connection.
    listing: Arc<Mutex<()>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: String,
    pub(crate) mac: Mac,
    pub(crate) mtu: u32,
    /// Packets wait in a queue of its own.
    pub(crate) queued: bool,
}

/// A route of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) to: Cidr,
    pub(crate) via: Hop,
    /// Source address of the node's own packets.
    pub(crate) source: Option<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hop {
    /// Packets are refused.
    Unreachable,
    /// On the link itself.
    Link(u32),
    /// Through another machine on the link, whatever the link's own addresses are.
    Gateway(u32, IpAddr),
}

/// An IP or bridge neighbour entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Neighbour {
    pub(crate) link: u32,
    pub(crate) ip: IpAddr,
    pub(crate) mac: Mac,
}

impl Netlink {
    /// Opens a connection in the calling thread's namespace; needs tokio's context.
    pub(crate) fn open() -> Result<Self, Error> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|source| Error::Kernel { what: "opening netlink".into(), source })?;
        tokio::spawn(connection);
        Ok(Self { handle, listing: Arc::default() })
    }

    pub(crate) async fn links(&self) -> Result<Vec<Link>, Error> {
        let messages = || self.handle.link().get().execute();
        self.collect("listing links", messages, |message| Some(link(&message))).await
    }

    pub(crate) async fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        let messages = || self.handle.link().get().match_name(name).execute();
        match self.collect("looking for a link", messages, |message| Some(link(&message))).await {
            Ok(mut found) => Ok(found.pop()),
            Err(error) if is(&error, &[libc::ENODEV, libc::ENOENT]) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn add_vxlan(&self, name: &str, mac: Mac, local: IpAddr, mtu: u32) -> Result<(), Error> {
        let tunnel = LinkVxlan::new(name, limits::VXLAN_VNI)
            .port(limits::VXLAN_PORT)
            .learning(false)
            .address(mac.to_vec())
            .mtu(mtu);
        let tunnel = match local {
            IpAddr::V4(local) => tunnel.local(local),
            IpAddr::V6(local) => tunnel.local6(local),
        };
        self.handle.link().add(tunnel.up().build()).execute().await.map_err(failed(&format!("making link {name}")))
    }

    pub(crate) async fn set_up(&self, index: u32) -> Result<(), Error> {
        let link = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(link).execute().await.map_err(failed("setting a link up"))
    }

    pub(crate) async fn delete_link(&self, index: u32) -> Result<(), Error> {
        gone(self.handle.link().del(index).execute().await.map_err(failed("removing a link")))
    }

    pub(crate) async fn add_address(&self, index: u32, ip: IpAddr) -> Result<(), Error> {
        let mut request = self.handle.address().add(index, ip, Cidr::host(ip).prefix()).replace();
        request.message_mut().header.flags = address_flags(ip);
        request.execute().await.map_err(failed(&format!("adding address {ip}")))
    }

    /// Addresses with their links.
    pub(crate) async fn addresses(&self) -> Result<Vec<(u32, IpAddr)>, Error> {
        let messages = || self.handle.address().get().execute();
        self.collect("listing addresses", messages, |message| Some((message.header.index, address(&message)?))).await
    }

    pub(crate) async fn delete_address(&self, index: u32, ip: IpAddr) -> Result<(), Error> {
        let mut request = self.handle.address().add(index, ip, Cidr::host(ip).prefix());
        let message = request.message_mut().clone();
        gone(self.handle.address().del(message).execute().await.map_err(failed(&format!("removing address {ip}"))))
    }

    /// Adds the route, or changes the one to the same range.
    pub(crate) async fn replace_route(&self, route: &Route) -> Result<(), Error> {
        let request = self.handle.route().add(route.message()?).replace();
        request.execute().await.map_err(failed(&format!("setting the route to {}", route.to)))
    }

    /// Adds the route, unless somebody has one to the same range.
    pub(crate) async fn add_route(&self, route: &Route) -> Result<(), Error> {
        let request = self.handle.route().add(route.message()?);
        match request.execute().await.map_err(failed(&format!("adding the route to {}", route.to))) {
            Err(error) if is(&error, &[libc::EEXIST]) => Ok(()),
            other => other,
        }
    }

    pub(crate) async fn delete_route(&self, route: &Route) -> Result<(), Error> {
        let request = self.handle.route().del(route.message()?);
        gone(request.execute().await.map_err(failed(&format!("removing the route to {}", route.to))))
    }

    /// Routes of ours, both families.
    pub(crate) async fn routes(&self) -> Result<Vec<Route>, Error> {
        let mut routes = Vec::new();
        for message in every_route() {
            let messages = || self.handle.route().get(message).execute();
            routes.extend(self.collect("listing routes", messages, |message| route(&message)).await?);
        }
        Ok(routes)
    }

    /// Links of the default routes of both families, whoever made them.
    pub(crate) async fn default_links(&self) -> Result<Vec<u32>, Error> {
        let mut links = Vec::new();
        for message in every_route() {
            let messages = || self.handle.route().get(message).execute();
            let main = |message: RouteMessage| {
                let is_default = message.header.destination_prefix_length == 0
                    && message.header.kind == RouteType::Unicast
                    && message.header.table == RouteHeaderTable::MAIN;
                is_default.then(|| output(&message)).flatten()
            };
            links.extend(self.collect("listing routes", messages, main).await?);
        }
        Ok(links)
    }

    /// How the kernel reaches an address now: link, and the machine in between if there is one.
    pub(crate) async fn path(&self, ip: IpAddr) -> Result<Option<(u32, Option<IpAddr>)>, Error> {
        let builder = RouteMessageBuilder::<IpAddr>::new().destination_prefix(ip, Cidr::host(ip).prefix());
        let message = builder.map_err(|error| Error::Invalid(error.to_string()))?.build();
        let messages = || self.handle.route().get(message).execute();
        let found = self
            .collect("asking for a route", messages, |message| {
                (message.header.kind == RouteType::Unicast)
                    .then(|| Some((output(&message)?, gateway(&message))))
                    .flatten()
            })
            .await;
        match found {
            Ok(mut found) => Ok(found.pop()),
            Err(error) if is(&error, &[libc::ENETUNREACH, libc::EHOSTUNREACH]) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A neighbour that is never asked for.
    pub(crate) async fn set_neighbour(&self, entry: &Neighbour) -> Result<(), Error> {
        let request = self.handle.neighbours().add(entry.link, entry.ip).link_layer_address(&entry.mac).replace();
        request.execute().await.map_err(failed(&format!("setting the neighbour {}", entry.ip)))
    }

    /// Permanent neighbours of both families.
    pub(crate) async fn neighbours(&self) -> Result<Vec<Neighbour>, Error> {
        let messages = || self.handle.neighbours().get().execute();
        self.collect("listing neighbours", messages, |message| {
            (message.header.state == NeighbourState::Permanent).then(|| neighbour(&message)).flatten()
        })
        .await
    }

    pub(crate) async fn delete_neighbour(&self, entry: &Neighbour) -> Result<(), Error> {
        let mut request = self.handle.neighbours().add(entry.link, entry.ip);
        let message = request.message_mut().clone();
        gone(self.handle.neighbours().del(message).execute().await.map_err(failed("removing a neighbour")))
    }

    /// Where the tunnel sends frames for a hardware address.
    pub(crate) async fn set_tunnel(&self, entry: &Neighbour) -> Result<(), Error> {
        let request = self.handle.neighbours().add_bridge(entry.link, &entry.mac).destination(entry.ip);
        let request = request.flags(NeighbourFlags::Own).replace();
        request.execute().await.map_err(failed(&format!("setting the tunnel to {}", entry.ip)))
    }

    /// The tunnel's entries.
    pub(crate) async fn tunnels(&self, link: u32) -> Result<Vec<Neighbour>, Error> {
        let request = self.handle.neighbours().get().set_address_family(AddressFamily::Bridge);
        self.collect(
            "listing tunnels",
            || request.execute(),
            |message| (message.header.ifindex == link).then(|| neighbour(&message)).flatten(),
        )
        .await
    }

    pub(crate) async fn delete_tunnel(&self, entry: &Neighbour) -> Result<(), Error> {
        let request = self.handle.neighbours().add_bridge(entry.link, &entry.mac).destination(entry.ip);
        let mut request = request.flags(NeighbourFlags::Own);
        let message = request.message_mut().clone();
        gone(self.handle.neighbours().del(message).execute().await.map_err(failed("removing a tunnel")))
    }

    async fn collect<M, T, S: Stream<Item = Result<M, rtnetlink::Error>>>(
        &self,
        what: &str,
        ask: impl FnOnce() -> S,
        mut pick: impl FnMut(M) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let _alone = self.listing.lock().await;
        let all = ask().try_fold(Vec::new(), |mut all, message| {
            all.extend(pick(message));
            std::future::ready(Ok(all))
        });
        all.await.map_err(failed(what))
    }
}

/// What asks for all routes, per family.
fn every_route() -> [RouteMessage; 2] {
    [RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(), RouteMessageBuilder::<std::net::Ipv6Addr>::new().build()]
}

/// Routing tables by number.
struct RouteHeaderTable;

impl RouteHeaderTable {
    const MAIN: u8 = 254;
}

impl Route {
    pub(crate) fn message(&self) -> Result<RouteMessage, Error> {
        let invalid = |error: &dyn std::fmt::Display| Error::Invalid(format!("route to {}: {error}", self.to));
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(self.to.addr(), self.to.prefix())
            .map_err(|error| invalid(&error))?
            .protocol(RouteProtocol::Other(limits::ROUTE_PROTOCOL));
        builder = match &self.via {
            Hop::Unreachable => builder.kind(RouteType::Unreachable),
            Hop::Link(link) => builder.output_interface(*link).scope(RouteScope::Link),
            Hop::Gateway(link, gateway) => {
                builder.output_interface(*link).gateway(*gateway).map_err(|error| invalid(&error))?.onlink()
            }
        };
        if let Some(source) = self.source {
            builder = builder.pref_source(source).map_err(|error| invalid(&error))?;
        }
        Ok(builder.build())
    }
}

pub(crate) fn link(message: &LinkMessage) -> Link {
    let mut link = Link { index: message.header.index, ..Link::default() };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().unwrap_or_default(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Qdisc(queue) => link.queued = !matches!(queue.as_str(), "noqueue" | "noop"),
            _ => {}
        }
    }
    link
}

/// Our addresses are unique without asking the link for others that have them; until it was asked, an IPv6 address is not used.
pub(crate) fn address_flags(ip: IpAddr) -> AddressHeaderFlags {
    if ip.is_ipv4() { AddressHeaderFlags::empty() } else { AddressHeaderFlags::Nodad }
}

fn address(message: &AddressMessage) -> Option<IpAddr> {
    let attributes = || message.attributes.iter();
    let local = attributes().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    local.or_else(|| {
        attributes().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    })
}

/// A route of ours, else `None`.
fn route(message: &RouteMessage) -> Option<Route> {
    if message.header.protocol != RouteProtocol::Other(limits::ROUTE_PROTOCOL) {
        return None;
    }
    let to = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(to) => ip(to),
        _ => None,
    })?;
    let source = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(source) => ip(source),
        _ => None,
    });
    let via = match (message.header.kind, output(message), gateway(message)) {
        (RouteType::Unreachable, ..) => Hop::Unreachable,
        (_, Some(link), Some(gateway)) => Hop::Gateway(link, gateway),
        (_, Some(link), None) => Hop::Link(link),
        _ => return None,
    };
    Some(Route { to: Cidr::new(to, message.header.destination_prefix_length)?, via, source })
}

fn output(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(link) => Some(*link),
        _ => None,
    })
}

fn gateway(message: &RouteMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(gateway) => ip(gateway),
        _ => None,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => ip = Some(IpAddr::from(*address)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => ip = Some(IpAddr::from(*address)),
            NeighbourAttribute::LinkLayerAddress(address) => mac = address.as_slice().try_into().ok(),
            _ => {}
        }
    }
    Some(Neighbour { link: message.header.ifindex, ip: ip?, mac: mac? })
}

fn failed(what: &str) -> impl FnOnce(rtnetlink::Error) -> Error {
    let what = what.to_owned();
    move |error| {
        let source = match error {
            rtnetlink::Error::NetlinkError(answer) => answer.to_io(),
            other => io::Error::other(other.to_string()),
        };
        Error::Kernel { what, source }
    }
}

pub(crate) fn is(error: &Error, codes: &[i32]) -> bool {
    matches!(error, Error::Kernel { source, .. } if source.raw_os_error().is_some_and(|code| codes.contains(&code)))
}

/// Makes a removal succeed when there is nothing to remove.
pub(crate) fn gone(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if is(&error, &[libc::ENODEV, libc::ENOENT, libc::ESRCH, libc::EADDRNOTAVAIL]) => Ok(()),
        other => other,
    }
}
