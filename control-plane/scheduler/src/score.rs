//! Which of the feasible nodes is best: upstream's default scores with upstream's weights, each 0 to 100.

use crate::cluster::Cluster;
use crate::domains;
use crate::matching;
use crate::node::Node;
use crate::pod::Pod;
use crate::wishes::Found;

const MAX: f64 = 100.0;
const TAINTS_WEIGHT: f64 = 3.0;
const NODE_AFFINITY_WEIGHT: f64 = 2.0;
const SPREAD_WEIGHT: f64 = 2.0;
const POD_AFFINITY_WEIGHT: f64 = 2.0;
/// Images smaller than this do not count (upstream's minThreshold).
const IMAGE_MIN: f64 = 23.0 * 1024.0 * 1024.0;
/// Per container, images larger than this count no more (upstream's maxContainerThreshold).
const IMAGE_MAX: f64 = 1000.0 * 1024.0 * 1024.0;

/// The total score of each feasible node, in their order.
pub(crate) fn totals(cluster: &mut Cluster, pod: &Pod, found: &[Found], feasible: &[usize]) -> Vec<f64> {
    let present = pod.images.iter().any(|image| cluster.image_spread(image) > 0);
    let mut totals: Vec<f64> = feasible.iter().map(|slot| resources(pod, cluster.node(*slot))).collect();
    if present {
        totals.iter_mut().zip(feasible).for_each(|(total, slot)| *total += images(cluster, pod, *slot));
    }
    let mut add = |weight: f64, scores: Option<Vec<f64>>| {
        for (total, score) in totals.iter_mut().zip(scores.into_iter().flatten()) {
            *total += weight * score;
        }
    };
    add(TAINTS_WEIGHT, taints(found, feasible));
    add(NODE_AFFINITY_WEIGHT, node_affinity(cluster, pod, feasible));
    add(SPREAD_WEIGHT, domains::spread_scores(cluster, pod, found, feasible).map(|raw| normalize_spread(&raw)));
    add(POD_AFFINITY_WEIGHT, domains::affinity_scores(cluster, pod, feasible).map(|raw| normalize_affinity(&raw)));
    totals
}

/// LeastAllocated and BalancedAllocation over cpu and memory.
fn resources(pod: &Pod, node: &Node) -> f64 {
    let offered = &node.spec.allocatable;
    let parts = [
        (pod.scored_requests.milli_cpu, node.scored.milli_cpu, offered.milli_cpu),
        (pod.scored_requests.memory, node.scored.memory, offered.memory),
    ];
    let least: f64 = parts
        .iter()
        .map(|(wanted, used, offered)| {
            let free = offered - used - wanted;
            if *offered <= 0 || free < 0 { 0.0 } else { free as f64 * MAX / *offered as f64 }
        })
        .sum::<f64>()
        / parts.len() as f64;
    // A pod that asks for nothing does not tip the balance (as upstream).
    if pod.requests.is_zero() {
        return least;
    }
    let exact = [
        (pod.requests.milli_cpu + node.requested.milli_cpu, offered.milli_cpu),
        (pod.requests.memory + node.requested.memory, offered.memory),
    ];
    let fractions =
        exact.map(|(used, offered)| if offered <= 0 { 1.0 } else { (used as f64 / offered as f64).min(1.0) });
    least + (1.0 - (fractions[0] - fractions[1]).abs() / 2.0) * MAX
}

/// ImageLocality: sizes of the images present, scaled by how many nodes have them.
fn images(cluster: &Cluster, pod: &Pod, slot: usize) -> f64 {
    let nodes = cluster.live().len().max(1) as f64;
    let node = cluster.node(slot);
    let sum: f64 = pod
        .images
        .iter()
        .filter_map(|image| {
            let size = *node.spec.images.get(image)? as f64;
            Some(size * f64::from(cluster.image_spread(image)) / nodes)
        })
        .sum();
    let max = IMAGE_MAX * pod.images.len() as f64;
    (sum.clamp(IMAGE_MIN, max) - IMAGE_MIN) * MAX / (max - IMAGE_MIN)
}

/// Fewer PreferNoSchedule taints that are not tolerated is better.
fn taints(found: &[Found], feasible: &[usize]) -> Option<Vec<f64>> {
    let count = |slot: &usize| f64::from(found[*slot].disliked);
    let worst = feasible.iter().map(count).fold(0.0, f64::max);
    let counts = feasible.iter().map(count);
    (worst > 0.0).then(|| counts.map(|count| MAX - MAX * count / worst).collect())
}

/// More weight of preferred node affinity is better.
fn node_affinity(cluster: &Cluster, pod: &Pod, feasible: &[usize]) -> Option<Vec<f64>> {
    if pod.preferred_nodes.is_empty() {
        return None;
    }
    let sums: Vec<f64> = feasible
        .iter()
        .map(|slot| {
            let spec = &cluster.node(*slot).spec;
            pod.preferred_nodes
                .iter()
                .filter(|term| matching::term_matches(&term.preference, spec))
                .map(|term| f64::from(term.weight))
                .sum()
        })
        .collect();
    let best = sums.iter().copied().fold(0.0, f64::max);
    (best > 0.0).then(|| sums.iter().map(|sum| MAX * sum / best).collect())
}

/// Fewer pods near is better; nodes outside the topology get nothing.
fn normalize_spread(raw: &[Option<f64>]) -> Vec<f64> {
    let known = raw.iter().flatten().copied();
    let (min, max) = known.fold((f64::INFINITY, 0.0), |(min, max): (f64, f64), s| (min.min(s), max.max(s)));
    raw.iter()
        .map(|score| match score {
            None => 0.0,
            Some(_) if max == 0.0 => MAX,
            Some(score) => MAX * (max + min - score) / max,
        })
        .collect()
}

fn normalize_affinity(raw: &[i64]) -> Vec<f64> {
    let (min, max) = raw.iter().fold((i64::MAX, i64::MIN), |(min, max), s| (min.min(*s), max.max(*s)));
    if max <= min {
        return vec![0.0; raw.len()];
    }
    raw.iter().map(|score| MAX * (score - min) as f64 / (max - min) as f64).collect()
}
