//! What the policy compiler looks at: plain views of NetworkPolicies, pods and namespaces with nothing else in them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::Range;
use crate::model::{ObjectName, Protocol};

/// Everything that decides what a node's pods may send and receive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Labels of namespaces by their name.
    pub namespaces: BTreeMap<Arc<str>, Labels>,
    /// Pods of the cluster by name.
    pub pods: BTreeMap<ObjectName, Pod>,
    /// Policies by name.
    pub policies: BTreeMap<ObjectName, Policy>,
    /// Policies of the whole cluster, above and below those.
    pub tiers: BTreeMap<TierName, TierPolicy>,
    /// Nodes by name: their labels and addresses.
    pub nodes: BTreeMap<Arc<str>, Node>,
}

/// A node that policies of the cluster may name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its labels.
    pub labels: Labels,
    /// Its addresses.
    pub addresses: Box<[IpAddr]>,
}

/// Labels of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels(Box<[(Arc<str>, Arc<str>)]>);

impl<K: Into<Arc<str>>, V: Into<Arc<str>>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Labels {
        let all: BTreeMap<Arc<str>, Arc<str>> =
            labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        Labels(all.into_iter().collect())
    }
}

impl Labels {
    /// The value of a label.
    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(known, _)| (**known).cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| &**value)
    }

    /// The texts, to be shared with other objects' equal ones.
    pub(crate) fn texts(&mut self) -> impl Iterator<Item = &mut Arc<str>> {
        self.0.iter_mut().flat_map(|(key, value)| [key, value])
    }
}

/// A pod that has addresses of its own and has not ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its labels.
    pub labels: Labels,
    /// Its addresses.
    pub addresses: Box<[IpAddr]>,
    /// Its ports that have names.
    pub ports: Box<[NamedPort]>,
    /// Is it about to go? Its address may be another pod's already.
    pub deleting: bool,
}

/// A container's port with a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedPort {
    /// Its name.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Number.
    pub port: u16,
}

/// A NetworkPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Pods of its namespace that it holds for.
    pub pods: Selector,
    /// What may come to them; `None` when it says nothing about that.
    pub ingress: Option<Vec<Rule>>,
    /// What they may send; `None` when it says nothing about that.
    pub egress: Option<Vec<Rule>>,
}

/// What a policy allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The other end; empty for anybody.
    pub peers: Vec<Peer>,
    /// Destination ports; empty for every port of every protocol.
    pub ports: Vec<Port>,
}

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Pods.
    Pods(Namespaces, Selector),
    /// Addresses, less some of them.
    Block(Range, Vec<Range>),
    /// Nodes with such labels, by their addresses.
    Nodes(Selector),
    /// Nobody: what the API says cannot be read here.
    Nobody,
}

/// Namespaces of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// The policy's own.
    Own,
    /// Those with such labels.
    Labelled(Selector),
}

/// Destination ports of a protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Protocol.
    pub protocol: Protocol,
    /// Which ports.
    pub which: Which,
}

/// Which ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// Every one.
    All,
    /// From the first to the last one.
    Numbers(u16, u16),
    /// The one that the destination pod's containers give this name.
    Named(Arc<str>),
    /// None: what the API says cannot be read here.
    None,
}

/// A label selector: all of its requirements have to be met.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector(pub Vec<Requirement>);

/// A requirement of a label selector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Requirement {
    /// The label has one of these values.
    In(Arc<str>, BTreeSet<Arc<str>>),
    /// The label has none of these values, or is not there.
    NotIn(Arc<str>, BTreeSet<Arc<str>>),
    /// The label is there.
    Exists(Arc<str>),
    /// The label is not there.
    DoesNotExist(Arc<str>),
    /// Never met: an operator that is unknown here.
    Never,
}

impl Selector {
    /// Does it select an object with these labels? An empty selector selects all.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Requirement::Exists(key) => labels.get(key).is_some(),
            Requirement::DoesNotExist(key) => labels.get(key).is_none(),
            Requirement::Never => false,
        })
    }
}

/// Which way a packet goes, as a pod sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Policy {
    /// What it allows in a direction; `None` when it says nothing about that.
    pub fn rules(&self, direction: Direction) -> Option<&Vec<Rule>> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }
}

/// A kind of policy for the whole cluster and its name.
pub type TierName = (TierKind, Arc<str>);

/// Kinds of policies for the whole cluster (policy.networking.k8s.io).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TierKind {
    /// v1alpha2, of both tiers.
    ClusterNetworkPolicy,
    /// v1alpha1, above NetworkPolicies.
    AdminNetworkPolicy,
    /// v1alpha1, below NetworkPolicies.
    BaselineAdminNetworkPolicy,
}

/// A policy of the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierPolicy {
    /// Above or below NetworkPolicies.
    pub tier: Tier,
    /// The smallest goes first within its tier.
    pub priority: u32,
    /// Namespaces of the pods that it holds for.
    pub namespaces: Selector,
    /// Those pods.
    pub pods: Selector,
    /// Rules for what comes to them: the first that matches decides.
    pub ingress: Vec<TierRule>,
    /// Rules for what they send.
    pub egress: Vec<TierRule>,
}

/// Where a policy of the whole cluster stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Asked before NetworkPolicies.
    Admin,
    /// Asked when no NetworkPolicy holds for the pod.
    Baseline,
}

/// A rule of a policy of the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierRule {
    /// Its name, may be empty.
    pub name: Arc<str>,
    /// What it does.
    pub action: Action,
    /// What it matches.
    pub matches: Rule,
}

/// What a rule of a policy of the whole cluster does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// It may pass, whatever comes after this rule.
    Accept,
    /// It is dropped, whatever comes after this rule.
    Deny,
    /// The next tier decides.
    Pass,
}

impl TierPolicy {
    /// Its rules of a direction.
    pub fn rules(&self, direction: Direction) -> &[TierRule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}
