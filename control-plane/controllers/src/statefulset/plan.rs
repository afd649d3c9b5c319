//! The next step of a StatefulSet: pure, from it and its pods. Pods come up in order, each after the one before is ready,
//! and go in reverse order.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object::Object;
// On a StatefulSet's pods its value is the revision's whole name.
use crate::revisions::HASH_LABEL as REVISION_LABEL;
use crate::types::{Pod, StatefulSet, StatefulSetStatus, Template, portion};

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Numbers of pods to create.
    pub(super) create: Vec<i32>,
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) status: StatefulSetStatus,
}

/// Plans; `update` is the name of the newest revision.
pub(super) fn plan(set: &StatefulSet, pods: &[Arc<Pod>], update: &str, now: Timestamp) -> Plan {
    let numbered = pods.iter().filter_map(|pod| Some((ordinal(set, pod)?, pod.clone())));
    let mut by_number: BTreeMap<i32, Arc<Pod>> = numbered.collect();
    let status = status(set, &by_number, update, now);
    let mut plan = Plan { status, ..Default::default() };
    let wanted = wanted(set);
    let surplus =
        by_number.split_off(&wanted.end).into_values().chain(below(&mut by_number, wanted.start)).collect::<Vec<_>>();
    let ordered = set.spec.pod_management_policy.as_deref() != Some("Parallel");
    let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
    for number in wanted.clone() {
        let step = match by_number.get(&number) {
            None => {
                plan.create.push(number);
                true
            }
            Some(pod) if pod.deleting() => true,
            Some(pod) if pod.finished() => {
                plan.delete.push(pod.clone());
                true
            }
            Some(pod) => !pod.available(min_ready, now),
        };
        if step && ordered {
            return plan;
        }
    }
    if !plan.create.is_empty() || !plan.delete.is_empty() {
        return plan;
    }
    // The highest first; the next one when it is gone.
    for pod in surplus.iter().rev() {
        if !pod.deleting() {
            plan.delete.push(pod.clone());
        }
        if ordered {
            return plan;
        }
    }
    if plan.delete.is_empty() && rolls(set) {
        roll(set, &by_number, update, &|pod| !pod.deleting() && pod.available(min_ready, now), &mut plan);
    }
    plan
}

/// The numbers of the pods that should be.
pub(super) fn wanted(set: &StatefulSet) -> std::ops::Range<i32> {
    let start = set.spec.ordinals.start;
    start..start + set.spec.replicas.unwrap_or(1)
}

fn rolls(set: &StatefulSet) -> bool {
    set.spec.update_strategy.kind.as_deref() != Some("OnDelete")
}

/// Replaces outdated pods from the highest number down to the partition, so that at most `maxUnavailable` are missing.
fn roll(
    set: &StatefulSet,
    pods: &BTreeMap<i32, Arc<Pod>>,
    update: &str,
    available: &dyn Fn(&Pod) -> bool,
    plan: &mut Plan,
) {
    let rolling = &set.spec.update_strategy.rolling_update;
    let replicas = set.spec.replicas.unwrap_or(1);
    let most = rolling.max_unavailable.as_ref().map_or(1, |most| portion(most, replicas, true).max(1));
    let first = set.spec.ordinals.start + rolling.partition;
    if rolling.max_unavailable.is_none() {
        // One after the other: the next only when the one above is updated and available.
        for (_, pod) in pods.range(first..).rev() {
            let outdated = revision(pod) != Some(update);
            if outdated && !pod.deleting() {
                plan.delete.push(pod.clone());
            }
            if outdated || !available(pod) {
                return;
            }
        }
        return;
    }
    let missing = i32::try_from(pods.values().filter(|pod| !available(pod)).count()).unwrap_or(i32::MAX);
    let mut room = most - missing;
    for (_, pod) in pods.range(first..).rev() {
        if revision(pod) == Some(update) || pod.deleting() {
            continue;
        }
        let counted = !available(pod);
        if !counted && room <= 0 {
            return;
        }
        room -= i32::from(!counted);
        plan.delete.push(pod.clone());
    }
}

/// Takes the pods with numbers under `start` out.
fn below(by_number: &mut BTreeMap<i32, Arc<Pod>>, start: i32) -> Vec<Arc<Pod>> {
    let kept = by_number.split_off(&start);
    std::mem::replace(by_number, kept).into_values().collect()
}

fn status(set: &StatefulSet, pods: &BTreeMap<i32, Arc<Pod>>, update: &str, now: Timestamp) -> StatefulSetStatus {
    let count = |wanted: &dyn Fn(&Pod) -> bool| {
        i32::try_from(pods.values().filter(|pod| !pod.finished() && wanted(pod)).count()).unwrap_or(i32::MAX)
    };
    let current = Some(set.status.current_revision.as_str()).filter(|r| !r.is_empty()).unwrap_or(update);
    let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
    let mut status = StatefulSetStatus {
        observed_generation: set.generation(),
        replicas: count(&|_| true),
        ready_replicas: count(&|pod| pod.ready()),
        available_replicas: count(&|pod| pod.available(min_ready, now)),
        current_replicas: count(&|pod| revision(pod) == Some(current) && !pod.deleting()),
        updated_replicas: count(&|pod| revision(pod) == Some(update) && !pod.deleting()),
        current_revision: current.into(),
        update_revision: update.into(),
        collision_count: 0,
    };
    let all = set.spec.replicas.unwrap_or(1);
    if rolls(set)
        && current != update
        && status.updated_replicas == all
        && status.replicas == all
        && status.ready_replicas == all
    {
        status.current_revision = update.into();
        status.current_replicas = status.updated_replicas;
    }
    status
}

/// The revision a new pod gets: those below the partition stay with the current one.
pub(super) fn revision_for<'a>(set: &'a StatefulSet, status: &'a StatefulSetStatus, number: i32) -> &'a str {
    let kept = rolls(set) && number < set.spec.ordinals.start + set.spec.update_strategy.rolling_update.partition;
    if kept { &status.current_revision } else { &status.update_revision }
}

/// The body of a pod.
pub(super) fn pod_body(set: &StatefulSet, template: &Template, revision: &str, number: i32) -> Value {
    let mut body = crate::pods::body(template, set.name(), set.as_controller());
    let name = format!("{}-{number}", set.name());
    let metadata = &mut body["metadata"];
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.shift_remove("generateName");
    }
    metadata["name"] = json!(name);
    metadata["labels"][REVISION_LABEL] = json!(revision);
    metadata["labels"]["statefulset.kubernetes.io/pod-name"] = json!(name);
    metadata["labels"]["apps.kubernetes.io/pod-index"] = json!(number.to_string());
    let spec = &mut body["spec"];
    spec["hostname"] = json!(name);
    spec["subdomain"] = json!(set.spec.service_name);
    let claims = set.spec.volume_claim_templates.iter().map(|claim| {
        let volume = claim["metadata"]["name"].clone();
        json!({"name": volume, "persistentVolumeClaim": {"claimName": super::claims::name(claim, &name)}})
    });
    let claims: Vec<Value> = claims.collect();
    let others = spec["volumes"].as_array().cloned().unwrap_or_default();
    let others = others.into_iter().filter(|v| !claims.iter().any(|claim| claim["name"] == v["name"]));
    let volumes: Vec<Value> = claims.iter().cloned().chain(others).collect();
    if !volumes.is_empty() {
        spec["volumes"] = json!(volumes);
    }
    body
}

/// The name of a pod's revision.
pub(super) fn revision(pod: &Pod) -> Option<&str> {
    pod.labels().get(REVISION_LABEL).map(String::as_str)
}

/// The number in a pod's name; `None` when the name is not of this StatefulSet's making.
pub(super) fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    pod.name().strip_prefix(set.name())?.strip_prefix('-')?.parse().ok()
}
