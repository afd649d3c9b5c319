//! The planner: `(cluster, pod) → node, or the reasons`. Pure; chance comes from the caller's generator.

use rand::Rng;

use crate::cluster::Cluster;
use crate::domains::Domains;
use crate::limits;
use crate::pod::Pod;
use crate::reason::{Reason, Tally};
use crate::wishes::Found;
use crate::{filter, score};

/// Why no node was found.
#[derive(Clone, Debug, Default)]
pub struct Unschedulable {
    /// Reasons over all nodes.
    pub tally: Tally,
    /// Nodes that could take the pod if some pods left.
    pub preemptible: Vec<usize>,
}

/// Chooses nodes. Keeps only where the last search ended, so that all nodes get their turn.
#[derive(Debug, Default)]
pub struct Planner {
    next: usize,
}

impl Planner {
    /// The slot of the best node for `pod`.
    ///
    /// # Errors
    /// When no node can take it: the reasons.
    pub fn plan(&mut self, cluster: &mut Cluster, pod: &Pod, rng: &mut impl Rng) -> Result<usize, Unschedulable> {
        let domains = Domains::new(cluster, pod);
        let nodes = cluster.live().len();
        let wanted = enough(nodes);
        let start = if nodes == 0 { 0 } else { self.next % nodes };
        let mut feasible = Vec::with_capacity(wanted);
        let mut examined = 0;
        while examined < nodes && feasible.len() < wanted {
            let slot = cluster.live()[(start + examined) % nodes];
            examined += 1;
            if filter::fits(cluster, pod, &domains, slot) {
                feasible.push(slot);
            }
        }
        self.next = start + examined;
        if feasible.is_empty() {
            return Err(failure(cluster, pod, &domains, start));
        }
        Ok(best(cluster, pod, &domains.found, &feasible, rng))
    }
}

/// The reasons of all nodes, which nobody asks for while there is one that can take the pod.
fn failure(cluster: &Cluster, pod: &Pod, domains: &Domains, start: usize) -> Unschedulable {
    let nodes = cluster.live().len();
    let mut failure = Unschedulable::default();
    for examined in 0..nodes {
        let slot = cluster.live()[(start + examined) % nodes];
        let reasons = filter::reasons(cluster, pod, domains, slot);
        if reasons.iter().all(Reason::preemption_may_help) {
            failure.preemptible.push(slot);
        }
        reasons.into_iter().for_each(|reason| failure.tally.add(reason));
    }
    failure.tally.nodes = nodes;
    failure
}

/// Upstream's adaptive share of nodes to find before scoring: 50 % falling to 5 % on large clusters.
fn enough(nodes: usize) -> usize {
    if nodes <= limits::MIN_FEASIBLE_NODES {
        return nodes;
    }
    let percent = 50usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(limits::MIN_FEASIBLE_NODES)
}

/// The best node; chance decides among equals.
fn best(cluster: &mut Cluster, pod: &Pod, found: &[Found], feasible: &[usize], rng: &mut impl Rng) -> usize {
    if let [only] = feasible {
        return *only;
    }
    let totals = score::totals(cluster, pod, found, feasible);
    let (mut best, mut ties) = (0, 1);
    for i in 1..totals.len() {
        // Scores are whole numbers upstream: smaller differences are ties.
        let (a, b) = (totals[i].floor(), totals[best].floor());
        if a > b {
            (best, ties) = (i, 1);
        } else if a == b {
            ties += 1;
            if rng.random_range(0..ties) == 0 {
                best = i;
            }
        }
    }
    feasible[best]
}
