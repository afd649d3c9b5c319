//! One step of a DaemonSet's rolling update, and what a node needs outside of one: pure, as upstream does it (KEP-1591).

use std::sync::Arc;

use super::plan::{Place, Plan};
use crate::types::{DaemonSet, Pod, portion};

/// How a DaemonSet's pods are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bounds {
    /// By whoever deletes them.
    OnDelete,
    /// Old pods go first, so many nodes may be without.
    Unavailable(usize),
    /// New pods come first, on so many nodes at once.
    Surge(usize),
}

impl Bounds {
    /// Reads them; percentages are of the nodes that should run a pod.
    pub(super) fn of(set: &DaemonSet, nodes: i32) -> Self {
        if set.spec.update_strategy.kind.as_deref() == Some("OnDelete") {
            return Self::OnDelete;
        }
        let rolling = set.spec.update_strategy.rolling_update.clone().unwrap_or_default();
        let number = |value: Option<_>| value.map(|v| usize::try_from(portion(&v, nodes, true)).unwrap_or(0));
        match (number(rolling.max_surge).unwrap_or(0), number(rolling.max_unavailable)) {
            (0, unavailable) => Self::Unavailable(unavailable.unwrap_or(1).max(1)),
            (surge, _) => Self::Surge(surge),
        }
    }
}

/// Adds to the plan what the places need.
pub(super) fn roll(bounds: Bounds, places: Vec<Place<'_>>, available: &dyn Fn(&Pod) -> bool, plan: &mut Plan) {
    match bounds {
        Bounds::OnDelete => places.into_iter().for_each(|place| {
            settle(&place, plan);
        }),
        Bounds::Unavailable(most) => replace(most, &places, available, plan),
        Bounds::Surge(most) => surge(most, &places, available, plan),
    }
}

/// A node without a pod gets one; of several one stays. The one that stays, if any.
fn settle<'a>(place: &Place<'a>, plan: &mut Plan) -> Option<&'a Arc<Pod>> {
    let mut all = place.new.iter().chain(&place.old).copied().collect::<Vec<_>>();
    all.sort_by_key(|pod| (pod.spec.node_name.is_none(), crate::object::Object::created(&***pod)));
    if all.is_empty() {
        if !place.occupied {
            plan.create.push(place.node.to_owned());
        }
        return None;
    }
    plan.delete.extend(all[1..].iter().map(|pod| (*pod).clone()));
    all.first().copied()
}

fn replace(most: usize, places: &[Place<'_>], available: &dyn Fn(&Pod) -> bool, plan: &mut Plan) {
    let mut missing = 0;
    let mut candidates = Vec::new();
    for place in places {
        let Some(pod) = settle(place, plan) else {
            missing += 1;
            continue;
        };
        let old = place.old.iter().any(|p| Arc::ptr_eq(p, pod));
        match (old, available(pod)) {
            (true, true) => candidates.push(pod),
            (old, false) => {
                missing += 1;
                // Pods that do not work anyway are replaced without asking.
                plan.delete.extend(old.then(|| pod.clone()));
            }
            (false, true) => {}
        }
    }
    plan.delete.extend(candidates.into_iter().take(most.saturating_sub(missing)).cloned());
}

fn surge(most: usize, places: &[Place<'_>], available: &dyn Fn(&Pod) -> bool, plan: &mut Plan) {
    let mut surging = 0;
    let mut candidates = Vec::new();
    for place in places {
        // Of each revision one is enough.
        let twins = place.new.iter().skip(1).chain(place.old.iter().skip(1));
        plan.delete.extend(twins.map(|pod| (*pod).clone()));
        match (place.new.first(), place.old.first()) {
            (None, None) => {
                if !place.occupied {
                    plan.create.push(place.node.to_owned());
                }
            }
            (Some(_), None) => {}
            (None, Some(old)) if available(old) => candidates.push(place.node),
            // One that does not work needs no room of its own.
            (None, Some(_)) => plan.create.push(place.node.to_owned()),
            (Some(new), Some(old)) => {
                if available(new) || !available(old) {
                    plan.delete.push((*old).clone());
                } else {
                    surging += 1;
                }
            }
        }
    }
    let room = most.saturating_sub(surging);
    plan.create.extend(candidates.into_iter().take(room).map(str::to_owned));
}
