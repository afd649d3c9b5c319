//! Why a node cannot take a pod, in upstream's words, and the sentence that sums the reasons up.

use std::collections::HashMap;
use std::fmt;

/// The rule that turned a node down. Each is a bit, so that a pod remembers which rules held it up and is woken only by
/// changes that may satisfy one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules(pub u16);

impl Rules {
    /// spec.unschedulable.
    pub const UNSCHEDULABLE: Self = Self(1);
    /// Taints.
    pub const TAINTS: Self = Self(1 << 1);
    /// Node selector and affinity.
    pub const NODE_AFFINITY: Self = Self(1 << 2);
    /// Host ports.
    pub const PORTS: Self = Self(1 << 3);
    /// Resources.
    pub const FIT: Self = Self(1 << 4);
    /// Topology spread.
    pub const SPREAD: Self = Self(1 << 5);
    /// Pod affinity and anti-affinity.
    pub const POD_AFFINITY: Self = Self(1 << 6);
    /// All of them.
    pub const ALL: Self = Self(u16::MAX);

    /// Both sets together.
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the sets share a rule.
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// One reason for which one node was turned down.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The node is cordoned.
    Unschedulable,
    /// A taint is not tolerated.
    Taint {
        /// Its key.
        key: String,
        /// Its value.
        value: String,
    },
    /// The selector or the required affinity does not match.
    NodeAffinity,
    /// A host port is taken.
    Ports,
    /// The node's pod count is reached.
    TooManyPods,
    /// Too little of a resource is left.
    Insufficient(Box<str>),
    /// The node lacks a spread constraint's topology label.
    SpreadLabel,
    /// The skew would become too large.
    Spread,
    /// No pod the affinity asks for is near.
    Affinity,
    /// A pod the anti-affinity keeps away from is near.
    AntiAffinity,
    /// A pod near keeps this one away.
    ExistingAntiAffinity,
    /// Preemption would not change anything.
    PreemptionNotHelpful,
    /// No pods of lower priority make enough room.
    NoVictims,
}

impl Reason {
    /// The rule behind it.
    pub fn rule(&self) -> Rules {
        match self {
            Self::Unschedulable => Rules::UNSCHEDULABLE,
            Self::Taint { .. } => Rules::TAINTS,
            Self::NodeAffinity => Rules::NODE_AFFINITY,
            Self::Ports => Rules::PORTS,
            Self::TooManyPods | Self::Insufficient(_) => Rules::FIT,
            Self::SpreadLabel | Self::Spread => Rules::SPREAD,
            Self::Affinity | Self::AntiAffinity | Self::ExistingAntiAffinity => Rules::POD_AFFINITY,
            Self::PreemptionNotHelpful | Self::NoVictims => Rules::default(),
        }
    }

    /// Whether taking pods off the node could remove it.
    pub fn preemption_may_help(&self) -> bool {
        matches!(self, Self::Ports | Self::TooManyPods | Self::Insufficient(_))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Unschedulable => "node(s) were unschedulable",
            Self::Taint { key, value } => return write!(f, "node(s) had untolerated taint {{{key}: {value}}}"),
            Self::NodeAffinity => "node(s) didn't match Pod's node affinity/selector",
            Self::Ports => "node(s) didn't have free ports for the requested pod ports",
            Self::TooManyPods => "Too many pods",
            Self::Insufficient(resource) => return write!(f, "Insufficient {resource}"),
            Self::SpreadLabel => "node(s) didn't match pod topology spread constraints (missing required label)",
            Self::Spread => "node(s) didn't match pod topology spread constraints",
            Self::Affinity => "node(s) didn't match pod affinity rules",
            Self::AntiAffinity => "node(s) didn't match pod anti-affinity rules",
            Self::ExistingAntiAffinity => "node(s) didn't satisfy existing pods anti-affinity rules",
            Self::PreemptionNotHelpful => "Preemption is not helpful for scheduling",
            Self::NoVictims => "No preemption victims found for incoming pod",
        };
        f.write_str(text)
    }
}

/// Reasons counted over all nodes.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Nodes looked at.
    pub nodes: usize,
    counts: HashMap<Reason, usize>,
}

impl Tally {
    /// No reasons yet, over so many nodes.
    pub fn of(nodes: usize) -> Self {
        Self { nodes, counts: HashMap::new() }
    }

    /// Counts one node's reason.
    pub fn add(&mut self, reason: Reason) {
        *self.counts.entry(reason).or_default() += 1;
    }

    /// Counts a reason for several nodes.
    pub fn add_many(&mut self, reason: Reason, nodes: usize) {
        if nodes > 0 {
            *self.counts.entry(reason).or_default() += nodes;
        }
    }

    /// The rules behind all reasons.
    pub fn rules(&self) -> Rules {
        self.counts.keys().fold(Rules::default(), |rules, reason| rules.or(reason.rule()))
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        let mut reasons: Vec<String> = self.counts.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
        reasons.sort();
        write!(f, "0/{} nodes are available: {}.", self.nodes, reasons.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_up_as_upstream() {
        let mut tally = Tally { nodes: 3, ..Default::default() };
        tally.add(Reason::Insufficient("cpu".into()));
        for _ in 0..2 {
            tally.add(Reason::Taint { key: "k".into(), value: "v".into() });
        }
        let expected = "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint {k: v}.";
        assert_eq!(tally.to_string(), expected);
        assert!(tally.rules().meets(Rules::FIT) && tally.rules().meets(Rules::TAINTS));
        assert!(!tally.rules().meets(Rules::PORTS));
        assert_eq!(Tally::default().to_string(), "no nodes available to schedule pods");
    }
}
