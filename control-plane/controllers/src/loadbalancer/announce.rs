//! Who announces each address: the nodes that may, in order. Pure.
//!
//! With `externalTrafficPolicy: Local` these are the nodes with ready endpoints, else all that are ready. The order that was
//! chosen once is kept as long as its nodes may announce, so that an address moves only when it has to; new nodes join
//! behind by a hash, which spreads addresses over nodes. The nodes themselves watch those before them and take over when
//! they fail: that needs no API.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::Endpoint;
use kube::core::SelectorExt;

use super::pool;
use super::wish::Wish;
use crate::limits;
use crate::object::Object;
use crate::types::{self, AnnouncementSpec, AnnouncingNode, Slice};

/// Nodes with this label, whatever its value, take no traffic from outside; upstream's name.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// A node as far as announcements go.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    name: String,
    labels: BTreeMap<String, String>,
    addresses: Vec<String>,
    /// May announce what it announces already. A node that says that it is not ready, as it does for a moment when its
    /// daemon starts, forwards packets all the same; one that is silent is lost.
    may_stay: bool,
    /// May announce anything.
    may_join: bool,
}

impl Node {
    pub(super) fn new(node: &types::Node) -> Self {
        let ready = node.condition("Ready").map_or("Unknown", |condition| condition.status.as_str());
        let serves = !node.deleting() && !node.labels().contains_key(EXCLUDED);
        let addresses = node.status.addresses.iter().filter(|a| a.address.parse::<IpAddr>().is_ok());
        Self {
            name: node.name().to_owned(),
            labels: node.labels().clone(),
            addresses: addresses.map(|a| a.address.clone()).collect(),
            may_stay: serves && matches!(ready, "True" | "False"),
            may_join: serves && ready == "True",
        }
    }

    /// Its own addresses.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().filter_map(|address| address.parse().ok())
    }
}

/// What there is to announce with.
pub(super) struct Picture<'a> {
    pub(super) pools: &'a [Arc<types::Pool>],
    /// By name.
    pub(super) nodes: &'a BTreeMap<String, Node>,
    /// The slices of a Service.
    pub(super) slices: &'a (dyn Fn(&Wish) -> Vec<Arc<Slice>> + Sync),
    /// What is announced now, by address.
    pub(super) current: &'a HashMap<String, Arc<types::Announcement>>,
}

/// What is to be said of an address that these Services have and that is this pool's; nothing when the pool is not
/// announced on links.
pub(super) fn announcement(
    picture: &Picture<'_>,
    address: IpAddr,
    holders: &[&Wish],
    pool: &str,
) -> Option<AnnouncementSpec> {
    let policy = &picture.pools.iter().find(|object| object.name() == pool)?.spec.announcement;
    if policy.kind == "None" {
        return None;
    }
    let selector = pool::selector(policy.node_selector.as_ref());
    let text = address.to_string();
    let before = picture.current.get(&text).map_or(&[][..], |announcement| &announcement.spec.nodes);
    let may = |node: &&Node| {
        let known = before.iter().any(|before| before.name == node.name);
        (node.may_join || known && node.may_stay) && selector.matches(&node.labels)
    };
    let mut candidates: BTreeSet<&str> = picture.nodes.values().filter(may).map(|node| &*node.name).collect();
    // Those that share an address have one policy, and with `Local` the same endpoints.
    if let Some(local) = holders.iter().find(|wish| wish.local) {
        let nodes = endpoint_nodes(&(picture.slices)(local), address.is_ipv4());
        candidates.retain(|name| nodes.contains(*name));
    }
    let nodes = order(before, &candidates, address).into_iter().filter_map(|name| {
        let node = picture.nodes.get(name)?;
        Some(AnnouncingNode { name: node.name.clone(), addresses: node.addresses.clone() })
    });
    let mut services: Vec<String> = holders.iter().map(|wish| wish.key.to_string()).collect();
    services.sort();
    Some(AnnouncementSpec {
        address: text,
        services,
        interfaces: policy.interfaces.clone(),
        nodes: nodes.take(limits::ANNOUNCING_NODES).collect(),
    })
}

/// The name of the object for an address: IPv6 addresses have colons, names must not.
pub(super) fn name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => v6.segments().map(|segment| format!("{segment:x}")).join("-"),
    }
}

/// Those that were there before in their order, then the others by their hash with the address.
fn order<'a>(before: &[AnnouncingNode], candidates: &BTreeSet<&'a str>, address: IpAddr) -> Vec<&'a str> {
    let mut kept: Vec<&'a str> = before.iter().filter_map(|node| candidates.get(node.name.as_str()).copied()).collect();
    let mut new: Vec<&'a str> = candidates.iter().copied().filter(|name| !kept.contains(name)).collect();
    new.sort_by_key(|name| {
        let mut hasher = DefaultHasher::new();
        (address, name).hash(&mut hasher);
        (hasher.finish(), *name)
    });
    kept.extend(new);
    kept
}

/// The nodes with endpoints that take connections; where none is ready, those that still serve while they terminate
/// (KEP-1669).
fn endpoint_nodes(slices: &[Arc<Slice>], v4: bool) -> BTreeSet<String> {
    let family = if v4 { "IPv4" } else { "IPv6" };
    let endpoints: Vec<&Endpoint> =
        slices.iter().filter(|slice| slice.address_type == family).flat_map(|slice| &slice.endpoints).collect();
    let nodes = |fits: &dyn Fn(&Endpoint) -> bool| -> BTreeSet<String> {
        endpoints.iter().filter(|e| fits(e)).filter_map(|e| e.node_name.clone()).collect()
    };
    let condition = |endpoint: &Endpoint| endpoint.conditions.clone().unwrap_or_default();
    let ready = nodes(&|endpoint| condition(endpoint).ready != Some(false));
    if !ready.is_empty() {
        return ready;
    }
    nodes(&|endpoint| {
        let condition = condition(endpoint);
        condition.serving != Some(false) && condition.terminating == Some(true)
    })
}
