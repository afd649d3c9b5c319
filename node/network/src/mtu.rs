//! The size of pods' packets, worked out once and again only when the kernel tells of a change that may matter: a link that
//! is no pod's, an address, a default route.

use std::sync::Arc;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressScope;
use netlink_packet_route::link::LinkAttribute;
use parking_lot::Mutex;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::SocketAddr;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{Error, limits, netns};

/// See the module.
pub(crate) struct Mtu {
    known: Arc<Mutex<Known>>,
    _ends: DropGuard,
}

#[derive(Default)]
struct Known {
    value: Option<u32>,
    /// Counts the times that it was forgotten.
    changes: u64,
}

impl Mtu {
    /// Follows changes of the calling thread's namespace; needs tokio's context.
    pub(crate) fn follow() -> Result<Self, Error> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, handle, news) = rtnetlink::new_multicast_connection(&groups)
            .map_err(netns::failed("following the changes of links".into()))?;
        let (known, ends) = (Arc::new(Mutex::new(Known::default())), CancellationToken::new());
        let (told, end) = (Arc::clone(&known), ends.clone());
        tokio::spawn(async move {
            // Without a handle the connection would end.
            let _handle = handle;
            tokio::select! {
                () = end.cancelled() => {}
                () = connection => {}
                () = listen(news, &told) => {}
            }
        });
        Ok(Self { known, _ends: ends.drop_guard() })
    }

    /// The value; or, while it is not known, what [`Self::learn`] is to be given.
    pub(crate) fn known(&self) -> Result<u32, u64> {
        let known = self.known.lock();
        known.value.ok_or(known.changes)
    }

    /// Keeps a value that was worked out, unless something has changed since it was begun.
    pub(crate) fn learn(&self, begun: u64, value: u32) {
        let mut known = self.known.lock();
        if known.changes == begun {
            known.value = Some(value);
        }
    }

    /// Something has changed.
    pub(crate) fn forget(&self) {
        forget(&self.known);
    }
}

fn forget(known: &Mutex<Known>) {
    let mut known = known.lock();
    known.value = None;
    known.changes += 1;
}

async fn listen(mut news: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>, known: &Mutex<Known>) {
    while let Some((message, _)) = news.next().await {
        if matters(&message.payload) {
            forget(known);
        }
    }
}

/// Whether a change may be one of the uplinks'. What cannot be read, or was lost, may be.
fn matters(news: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    let NetlinkPayload::InnerMessage(message) = news else { return true };
    match message {
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
            let pods = |attribute: &LinkAttribute| match attribute {
                LinkAttribute::IfName(name) => name.starts_with(limits::LINK_PREFIX),
                _ => false,
            };
            !link.attributes.iter().any(pods)
        }
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            route.header.destination_prefix_length == 0
        }
        RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
            address.header.scope != AddressScope::Link
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str) -> NetlinkPayload<RouteNetlinkMessage> {
        let message = rtnetlink::LinkUnspec::new_with_name(name).build();
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message))
    }

    fn route(prefix: u8) -> NetlinkPayload<RouteNetlinkMessage> {
        let mut message = netlink_packet_route::route::RouteMessage::default();
        message.header.destination_prefix_length = prefix;
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(message))
    }

    fn address(scope: AddressScope) -> NetlinkPayload<RouteNetlinkMessage> {
        let mut message = netlink_packet_route::address::AddressMessage::default();
        message.header.scope = scope;
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(message))
    }

    #[test]
    fn pods_links_and_routes_change_nothing() {
        for (news, expected) in [
            (link("slc0123abcd"), false),
            (link("eth0"), true),
            (route(32), false),
            (route(128), false),
            (route(0), true),
            (address(AddressScope::Link), false),
            (address(AddressScope::Universe), true),
            (NetlinkPayload::Noop, true),
        ] {
            assert_eq!(matters(&news), expected, "{news:?}");
        }
    }
}
