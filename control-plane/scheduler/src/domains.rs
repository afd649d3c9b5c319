//! What a pod's spread constraints and pod affinity come to on this cluster, worked out once per pod: for each rule a small
//! table by topology domain, so that looking at a node afterwards is a few array reads.

use std::sync::Arc;

use crate::cluster::{Cluster, Column, NO_DOMAIN};
use crate::pod::{Pod, Spread, Term};
use crate::reason::Reason;
use crate::wishes::Found;

/// A rule whose table says which domains are good.
#[derive(Debug)]
struct DomainSet {
    column: Arc<Column>,
    good: Vec<bool>,
}

impl DomainSet {
    fn holds(&self, slot: usize) -> bool {
        match self.column.of[slot] {
            NO_DOMAIN => false,
            domain => self.good[domain as usize],
        }
    }
}

#[derive(Debug)]
struct HardSpread {
    column: Arc<Column>,
    allowed: Vec<bool>,
}

/// The tables of one pod.
#[derive(Debug)]
pub(crate) struct Domains {
    /// By node slot, what the node itself is to the pod.
    pub(crate) found: Arc<Vec<Found>>,
    spread: Vec<HardSpread>,
    affinity: Vec<DomainSet>,
    first_of_its_kind: bool,
    anti_affinity: Vec<DomainSet>,
    repelled: Vec<DomainSet>,
}

impl Domains {
    /// Works the tables out.
    pub(crate) fn new(cluster: &mut Cluster, pod: &Pod) -> Self {
        let mut out = Self {
            found: cluster.found(pod),
            spread: Vec::new(),
            affinity: Vec::new(),
            first_of_its_kind: false,
            anti_affinity: Vec::new(),
            repelled: Vec::new(),
        };
        let hard: Vec<&Spread> = pod.spread.iter().filter(|s| s.hard).collect();
        let columns: Vec<_> = hard.iter().map(|s| cluster.column(&s.topology_key)).collect();
        for (constraint, column) in hard.iter().zip(&columns) {
            out.spread.push(hard_spread(cluster, pod, &out.found, constraint, column, &columns));
        }
        let mut nothing_near = true;
        let mut matches_itself = true;
        for term in &pod.affinity {
            let (set, any) = near(cluster, term);
            nothing_near &= !any;
            matches_itself &= term.matching.matches(pod, |ns| cluster.namespace_labels(ns));
            out.affinity.push(set);
        }
        // The first pod of a group that is to be near itself may go anywhere that has the labels.
        out.first_of_its_kind = nothing_near && matches_itself;
        for term in &pod.anti_affinity {
            let (set, any) = near(cluster, term);
            if any {
                out.anti_affinity.push(set);
            }
        }
        let repelling: Vec<(Arc<Term>, Vec<usize>)> = cluster
            .repelling()
            .filter(|group| group.term.matching.matches(pod, |ns| cluster.namespace_labels(ns)))
            .map(|group| (group.term.clone(), (0..group.weights.len()).filter(|s| group.weights[*s] > 0).collect()))
            .collect();
        for (term, slots) in repelling {
            let column = cluster.column(&term.topology_key);
            let mut good = vec![false; column.domains];
            for slot in slots {
                if column.of[slot] != NO_DOMAIN {
                    good[column.of[slot] as usize] = true;
                }
            }
            out.repelled.push(DomainSet { column, good });
        }
        out
    }

    /// The reason for which the node in `slot` is no good, if there is one.
    pub(crate) fn reject(&self, slot: usize) -> Option<Reason> {
        for rule in &self.spread {
            match rule.column.of[slot] {
                NO_DOMAIN => return Some(Reason::SpreadLabel),
                domain if !rule.allowed[domain as usize] => return Some(Reason::Spread),
                _ => {}
            }
        }
        let labelled = |set: &DomainSet| set.column.of[slot] != NO_DOMAIN;
        let near = self.affinity.iter().all(|set| set.holds(slot))
            || self.first_of_its_kind && self.affinity.iter().all(labelled);
        if !near {
            return Some(Reason::Affinity);
        }
        if self.anti_affinity.iter().any(|set| set.holds(slot)) {
            return Some(Reason::AntiAffinity);
        }
        self.repelled.iter().any(|set| set.holds(slot)).then_some(Reason::ExistingAntiAffinity)
    }
}

/// Domains in which some pod matches the term, and whether there is any such pod.
fn near(cluster: &mut Cluster, term: &Term) -> (DomainSet, bool) {
    let column = cluster.column(&term.topology_key);
    let mut good = vec![false; column.domains];
    let mut any = false;
    for (slot, count) in cluster.counts(&term.matching).iter().enumerate() {
        if *count > 0 && column.of[slot] != NO_DOMAIN {
            good[column.of[slot] as usize] = true;
            any = true;
        }
    }
    (DomainSet { column, good }, any)
}

/// Whether the nodes that count for a constraint include this one.
fn counted(node: Found, constraint: &Spread) -> bool {
    (!constraint.honor_affinity || node.admitted) && (!constraint.honor_taints || node.tolerated)
}

fn hard_spread(
    cluster: &mut Cluster,
    pod: &Pod,
    found: &[Found],
    constraint: &Spread,
    column: &Arc<Column>,
    all: &[Arc<Column>],
) -> HardSpread {
    let mut counts = vec![0i64; column.domains];
    let mut eligible = vec![false; column.domains];
    cluster.counts(&constraint.matching);
    let own = i64::from(constraint.matching.matches(pod, |ns| cluster.namespace_labels(ns)));
    let slots: Vec<usize> = cluster
        .live()
        .iter()
        .copied()
        .filter(|slot| all.iter().all(|c| c.of[*slot] != NO_DOMAIN) && counted(found[*slot], constraint))
        .collect();
    let per_node = cluster.counts(&constraint.matching);
    for slot in slots {
        let domain = column.of[slot] as usize;
        counts[domain] += i64::from(per_node[slot]);
        eligible[domain] = true;
    }
    let domains = eligible.iter().filter(|e| **e).count() as i64;
    let least = counts.iter().zip(&eligible).filter(|(_, e)| **e).map(|(c, _)| *c).min().unwrap_or(0);
    let least = if constraint.min_domains.is_some_and(|wanted| domains < wanted) { 0 } else { least };
    let allowed = counts.iter().map(|count| count + own - least <= constraint.max_skew).collect();
    HardSpread { column: column.clone(), allowed }
}

/// Raw spread score of every feasible node: lower is better; `None` where a constraint's label is missing.
pub(crate) fn spread_scores(
    cluster: &mut Cluster,
    pod: &Pod,
    found: &[Found],
    feasible: &[usize],
) -> Option<Vec<Option<f64>>> {
    let soft: Vec<&Spread> = pod.spread.iter().filter(|s| !s.hard).collect();
    if !soft.is_empty() {
        return Some(explicit_spread(cluster, found, &soft, feasible));
    }
    if !pod.spread.is_empty() {
        return None;
    }
    default_spread(cluster, pod, feasible)
}

fn explicit_spread(cluster: &mut Cluster, found: &[Found], soft: &[&Spread], feasible: &[usize]) -> Vec<Option<f64>> {
    let mut scores = vec![Some(0.0); feasible.len()];
    for constraint in soft {
        let column = cluster.column(&constraint.topology_key);
        let hostname = &*constraint.topology_key == HOSTNAME;
        cluster.counts(&constraint.matching);
        let slots: Vec<usize> = cluster
            .live()
            .iter()
            .copied()
            .filter(|s| column.of[*s] != NO_DOMAIN && counted(found[*s], constraint))
            .collect();
        let per_node = cluster.counts(&constraint.matching);
        let mut counts = vec![0u32; column.domains];
        for slot in slots {
            counts[column.of[slot] as usize] += per_node[slot];
        }
        let weight = weight(if hostname { feasible.len() } else { present(&column, feasible) });
        for (score, slot) in scores.iter_mut().zip(feasible) {
            let Some(sum) = score else { continue };
            match column.of[*slot] {
                NO_DOMAIN => *score = None,
                domain => *sum += f64::from(counts[domain as usize]) * weight + (constraint.max_skew - 1) as f64,
            }
        }
    }
    scores
}

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Upstream's cluster default: spread a controller's pods over hosts (skew 3) and zones (skew 5).
fn default_spread(cluster: &mut Cluster, pod: &Pod, feasible: &[usize]) -> Option<Vec<Option<f64>>> {
    let owner = pod.owner.as_ref()?;
    let zones = cluster.column(ZONE);
    let siblings = cluster.siblings(owner)?;
    let mut per_zone = vec![0u32; zones.domains];
    for (slot, count) in siblings {
        if let Some(zone) = zones.of.get(*slot).filter(|zone| **zone != NO_DOMAIN) {
            per_zone[*zone as usize] += count;
        }
    }
    let (host_weight, zone_weight) = (weight(feasible.len()), weight(present(&zones, feasible)));
    let score = |slot: &usize| {
        let mut sum = f64::from(siblings.get(slot).copied().unwrap_or(0)) * host_weight + 2.0;
        if zones.of[*slot] != NO_DOMAIN {
            sum += f64::from(per_zone[zones.of[*slot] as usize]) * zone_weight + 4.0;
        }
        Some(sum)
    };
    Some(feasible.iter().map(score).collect())
}

/// Upstream's weight for a topology of `size` domains: rarer domains weigh more per pod.
fn weight(size: usize) -> f64 {
    (size as f64 + 2.0).ln()
}

/// Number of distinct domains among the feasible nodes.
fn present(column: &Column, feasible: &[usize]) -> usize {
    let mut seen = vec![false; column.domains];
    for slot in feasible {
        if column.of[*slot] != NO_DOMAIN {
            seen[column.of[*slot] as usize] = true;
        }
    }
    seen.into_iter().filter(|s| *s).count()
}

/// Raw preference of every feasible node by pod affinity, from the pod's own terms and those of placed pods.
pub(crate) fn affinity_scores(cluster: &mut Cluster, pod: &Pod, feasible: &[usize]) -> Option<Vec<i64>> {
    // (column, weight of each slot's pods towards its domain)
    let mut rules: Vec<(Arc<Column>, Vec<i64>)> = Vec::new();
    for (weight, term) in &pod.preferred_pods {
        let column = cluster.column(&term.topology_key);
        let weights = cluster.counts(&term.matching).iter().map(|n| i64::from(*n) * weight).collect();
        rules.push((column, weights));
    }
    let attracting: Vec<(Arc<Term>, Vec<i64>)> = cluster
        .attracting()
        .filter(|group| group.term.matching.matches(pod, |ns| cluster.namespace_labels(ns)))
        .map(|group| (group.term.clone(), group.weights.clone()))
        .collect();
    for (term, weights) in attracting {
        rules.push((cluster.column(&term.topology_key), weights));
    }
    if rules.is_empty() {
        return None;
    }
    let mut scores = vec![0; feasible.len()];
    for (column, weights) in rules {
        let mut sums = vec![0i64; column.domains];
        for (slot, weight) in weights.iter().enumerate() {
            if column.of[slot] != NO_DOMAIN {
                sums[column.of[slot] as usize] += weight;
            }
        }
        for (score, slot) in scores.iter_mut().zip(feasible) {
            if column.of[*slot] != NO_DOMAIN {
                *score += sums[column.of[*slot] as usize];
            }
        }
    }
    Some(scores)
}
