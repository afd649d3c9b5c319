//! The numbers of a rolling update: pure arithmetic on ReplicaSets, as upstream computes them.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::object::Object;
use crate::types::{Deployment, ReplicaSet, portion};

/// Annotation: replicas of the Deployment when its ReplicaSet was last scaled.
pub(crate) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// Annotation: the most pods there could be then.
pub(crate) const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// What a Deployment asks for in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Pods wanted.
    pub(crate) replicas: i32,
    /// Pods more than that for a while.
    pub(crate) surge: i32,
    /// Pods fewer than that for a while.
    pub(crate) unavailable: i32,
}

impl Bounds {
    /// Reads them; percentages are of the replicas, the surge rounded up, the rest down, and never both nothing.
    pub(crate) fn of(deployment: &Deployment) -> Self {
        let replicas = deployment.spec.replicas.unwrap_or(1);
        if recreates(deployment) {
            return Self { replicas, surge: 0, unavailable: 0 };
        }
        let rolling = deployment.spec.strategy.rolling_update.clone().unwrap_or_default();
        let quarter = || IntOrString::String("25%".into());
        let surge = portion(&rolling.max_surge.unwrap_or_else(quarter), replicas, true);
        let unavailable = portion(&rolling.max_unavailable.unwrap_or_else(quarter), replicas, false);
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
        Self { replicas, surge, unavailable: unavailable.min(replicas) }
    }

    /// The most pods there may be.
    pub(crate) fn most(self) -> i32 {
        self.replicas + self.surge
    }

    /// The fewest available pods there may be.
    pub(crate) fn least_available(self) -> i32 {
        self.replicas - self.unavailable
    }
}

/// Whether old pods go before new ones come.
pub(crate) fn recreates(deployment: &Deployment) -> bool {
    deployment.spec.strategy.kind.as_deref() == Some("Recreate")
}

/// Pods a ReplicaSet is asked for.
pub(crate) fn wanted(rs: &ReplicaSet) -> i32 {
    rs.spec.replicas.unwrap_or(1)
}

/// Sum of what ReplicaSets are asked for.
pub(crate) fn wanted_sum(sets: &[Arc<ReplicaSet>]) -> i32 {
    sets.iter().map(|rs| wanted(rs)).sum()
}

/// The size of the newest ReplicaSet (`current` now) when all together are asked for `total`.
pub(crate) fn new_size(bounds: Bounds, recreate: bool, current: i32, total: i32) -> i32 {
    if recreate || current >= bounds.replicas {
        return bounds.replicas;
    }
    let room = bounds.most() - total;
    if room <= 0 { current } else { current + room.min(bounds.replicas - current) }
}

/// Sizes for old ReplicaSets that change: unhealthy pods go first, then as many as availability allows.
pub(crate) fn shrink_old(bounds: Bounds, new: &ReplicaSet, old: &[Arc<ReplicaSet>]) -> Vec<(Arc<ReplicaSet>, i32)> {
    let total = wanted_sum(old) + wanted(new);
    if wanted_sum(old) == 0 {
        return Vec::new();
    }
    let new_unavailable = wanted(new) - new.status.available_replicas;
    let mut removable = total - bounds.least_available() - new_unavailable;
    if removable <= 0 {
        return Vec::new();
    }
    let mut sets: Vec<(Arc<ReplicaSet>, i32)> = old.iter().map(|rs| (rs.clone(), wanted(rs))).collect();
    sets.sort_by_key(|(rs, _)| (rs.created(), rs.name().to_owned()));
    for (rs, size) in &mut sets {
        let unhealthy = (*size - rs.status.available_replicas).max(0).min(removable);
        *size -= unhealthy;
        removable -= unhealthy;
    }
    let available: i32 = old.iter().map(|rs| rs.status.available_replicas).sum::<i32>() + new.status.available_replicas;
    let mut spare = available - bounds.least_available();
    for (_, size) in &mut sets {
        let step = (*size).min(spare).max(0);
        *size -= step;
        spare -= step;
    }
    sets.retain(|(rs, size)| *size != wanted(rs));
    sets
}

/// Sizes when the Deployment itself was scaled in the middle of an update: every ReplicaSet gets its share.
pub(crate) fn proportional(bounds: Bounds, active: &[Arc<ReplicaSet>]) -> Vec<(Arc<ReplicaSet>, i32)> {
    let allowed = if bounds.replicas > 0 { bounds.most() } else { 0 };
    let to_add = allowed - wanted_sum(active);
    let mut sets: Vec<(Arc<ReplicaSet>, i32)> = active.iter().map(|rs| (rs.clone(), wanted(rs))).collect();
    // The largest first; among equals the newest when growing, the oldest when shrinking.
    sets.sort_by_key(|(rs, size)| {
        let age = rs.created().as_second();
        (std::cmp::Reverse(*size), if to_add > 0 { -age } else { age })
    });
    let mut added = 0;
    for (rs, size) in &mut sets {
        if to_add == 0 || *size == 0 {
            continue;
        }
        let before = rs.annotations().get(MAX).and_then(|max| max.parse::<i32>().ok()).unwrap_or(allowed).max(1);
        let share = (f64::from(*size) * f64::from(allowed) / f64::from(before)).round() as i32 - *size;
        let left = to_add - added;
        let share = if to_add > 0 { share.clamp(0, left.max(0)) } else { share.clamp(left.min(0), 0) };
        *size += share;
        added += share;
    }
    if let Some((_, size)) = sets.first_mut() {
        *size = (*size + to_add - added).max(0);
    }
    sets.retain(|(rs, size)| *size != wanted(rs));
    sets
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn bounds(replicas: i32, surge: serde_json::Value, unavailable: serde_json::Value) -> Bounds {
        let deployment = serde_json::from_value(json!({"metadata": {}, "spec": {"replicas": replicas, "strategy":
            {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}}))
        .unwrap();
        Bounds::of(&deployment)
    }

    fn set(name: &str, size: i32, available: i32) -> Arc<ReplicaSet> {
        let at = format!("2026-01-0{}T00:00:00Z", name.len().clamp(1, 9));
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "creationTimestamp": at},
                "spec": {"replicas": size}, "status": {"replicas": size, "availableReplicas": available}}))
            .unwrap(),
        )
    }

    #[test]
    fn percentages() {
        for (replicas, surge, unavailable, expected) in [
            (10, json!("25%"), json!("25%"), (3, 2)),
            (1, json!("25%"), json!("25%"), (1, 0)),
            (4, json!(0), json!(0), (0, 1)),
            (3, json!(2), json!("100%"), (2, 3)),
            (0, json!(1), json!(5), (1, 0)),
        ] {
            let b = bounds(replicas, surge, unavailable);
            assert_eq!((b.surge, b.unavailable), expected);
        }
    }

    #[test]
    fn growing_the_new() {
        let b = Bounds { replicas: 10, surge: 3, unavailable: 2 };
        assert_eq!(new_size(b, false, 0, 10), 3);
        assert_eq!(new_size(b, false, 3, 13), 3);
        assert_eq!(new_size(b, false, 3, 11), 5);
        assert_eq!(new_size(b, false, 12, 12), 10);
        assert_eq!(new_size(b, true, 0, 10), 10);
    }

    fn sizes(changes: Vec<(Arc<ReplicaSet>, i32)>) -> Vec<(String, i32)> {
        let mut out: Vec<_> = changes.into_iter().map(|(rs, size)| (rs.name().to_owned(), size)).collect();
        out.sort();
        out
    }

    #[test]
    fn shrinking_the_old() {
        let b = Bounds { replicas: 10, surge: 3, unavailable: 2 };
        // New pods not available yet: two old ones may go.
        assert_eq!(sizes(shrink_old(b, &set("new", 3, 0), &[set("o", 10, 10)])), [("o".into(), 8)]);
        // All at the limit: nothing.
        assert_eq!(sizes(shrink_old(b, &set("new", 5, 0), &[set("o", 8, 8)])), []);
        // Broken old pods go first and do not count against availability.
        assert_eq!(sizes(shrink_old(b, &set("new", 3, 0), &[set("o", 10, 6)])), [("o".into(), 8)]);
        // The oldest set shrinks first.
        let changes = shrink_old(b, &set("new", 4, 4), &[set("o", 5, 5), set("oo", 3, 3)]);
        assert_eq!(sizes(changes), [("o".into(), 1)]);
    }

    #[test]
    fn scaled_in_the_middle() {
        let grow = Bounds { replicas: 20, surge: 5, unavailable: 5 };
        let annotated = |name: &str, size: i32| {
            let mut rs = (*set(name, size, size)).clone();
            rs.metadata.annotations = Some([(MAX.to_owned(), "13".to_owned())].into());
            Arc::new(rs)
        };
        let changes = proportional(grow, &[annotated("a", 8), annotated("bb", 5)]);
        assert_eq!(sizes(changes), [("a".into(), 15), ("bb".into(), 10)]);
        let none = Bounds { replicas: 0, surge: 1, unavailable: 0 };
        assert_eq!(
            sizes(proportional(none, &[annotated("a", 8), annotated("bb", 5)])),
            [("a".into(), 0), ("bb".into(), 0)]
        );
    }
}
