//! The next step of a StatefulSet: pure, from it and its pods. Pods come up in order, each after the one before is ready,
//! and go in reverse order.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object::Object;
// On a StatefulSet's pods its value is the revision's whole name.
use crate::revisions::HASH_LABEL as REVISION_LABEL;
use crate::types::{Pod, StatefulSet, StatefulSetStatus, Template};

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
    let start = set.spec.ordinals.start;
    let end = start + set.spec.replicas.unwrap_or(1);
    let surplus = by_number.split_off(&end).into_values().chain(below(&mut by_number, start)).collect::<Vec<_>>();
    let ordered = set.spec.pod_management_policy.as_deref() != Some("Parallel");
    let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
    for number in start..end {
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
    if !plan.delete.is_empty() || set.spec.update_strategy.kind.as_deref() == Some("OnDelete") {
        return plan;
    }
    let partition = set.spec.update_strategy.rolling_update.partition.max(start);
    for (_, pod) in by_number.range(partition..).rev() {
        let outdated = revision(pod) != Some(update);
        if outdated && !pod.deleting() {
            plan.delete.push(pod.clone());
        }
        if outdated || !pod.available(min_ready, now) {
            return plan;
        }
    }
    plan
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
    if current != update && status.updated_replicas == all && status.replicas == all && status.ready_replicas == all {
        status.current_revision = update.into();
        status.current_replicas = status.updated_replicas;
    }
    status
}

/// The revision a new pod gets: those below the partition stay with the current one.
pub(super) fn revision_for<'a>(set: &'a StatefulSet, status: &'a StatefulSetStatus, number: i32) -> &'a str {
    let rolls = set.spec.update_strategy.kind.as_deref() != Some("OnDelete");
    let kept = rolls && number < set.spec.update_strategy.rolling_update.partition;
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
        json!({"name": volume, "persistentVolumeClaim": {"claimName": claim_name(claim, &name)}})
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

/// The claims of a pod: they stay when the pod goes.
pub(super) fn claims(set: &StatefulSet, number: i32) -> Vec<Value> {
    let pod = format!("{}-{number}", set.name());
    let claim = |template: &Value| {
        let mut labels = json!(set.spec.selector.match_labels.clone().unwrap_or_default());
        json_merge(&mut labels, &template["metadata"]["labels"]);
        json!({
            "metadata": {"name": claim_name(template, &pod), "namespace": set.ns(), "labels": labels,
                "annotations": template["metadata"]["annotations"]},
            "spec": template["spec"],
        })
    };
    set.spec.volume_claim_templates.iter().map(claim).collect()
}

fn json_merge(into: &mut Value, from: &Value) {
    for (key, value) in from.as_object().into_iter().flatten() {
        into[key] = value.clone();
    }
}

fn claim_name(claim: &Value, pod: &str) -> String {
    format!("{}-{pod}", claim["metadata"]["name"].as_str().unwrap_or_default())
}

fn revision(pod: &Pod) -> Option<&str> {
    pod.labels().get(REVISION_LABEL).map(String::as_str)
}

fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    pod.name().strip_prefix(set.name())?.strip_prefix('-')?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn set(extra: Value) -> StatefulSet {
        let mut value = json!({"metadata": {"name": "s", "namespace": "n", "uid": "s"}, "spec": {"replicas": 3, "serviceName": "svc",
            "template": {"spec": {"containers": [], "volumes": [{"name": "other"}]}}}, "status": {"currentRevision": "s-1"}});
        json_patch::merge(&mut value["spec"], &extra);
        serde_json::from_value(value).unwrap()
    }

    /// Pods written as `number:revision` with `!` not ready, `x` leaving.
    fn pods(text: &str) -> Vec<Arc<Pod>> {
        let one = |word: &str| {
            let (number, revision) = word.trim_end_matches(['!', 'x']).split_once(':').unwrap();
            let ready = if word.ends_with('!') { "False" } else { "True" };
            let deleted = word.ends_with('x').then_some("2026-01-01T00:00:00Z");
            let value = json!({"metadata": {"name": format!("s-{number}"), "labels": {REVISION_LABEL: revision}, "deletionTimestamp": deleted},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
            Arc::new(serde_json::from_value(value).unwrap())
        };
        text.split_whitespace().map(one).collect()
    }

    #[test]
    fn steps() {
        let parallel = json!({"podManagementPolicy": "Parallel"});
        let partition = json!({"updateStrategy": {"rollingUpdate": {"partition": 2}}});
        for (spec, there, create, delete) in [
            (json!({}), "", vec![0], ""),
            (json!({}), "0:s-1!", vec![], ""),
            (json!({}), "0:s-1", vec![1], ""),
            (json!({}), "0:s-1 2:s-1", vec![1], ""),
            (parallel.clone(), "1:s-1!", vec![0, 2], ""),
            // Too many: the highest first, one at a time.
            (json!({"replicas": 1}), "0:s-1 1:s-1 2:s-1", vec![], "s-2"),
            (json!({"replicas": 1}), "0:s-1 1:s-1 2:s-1x", vec![], ""),
            (json!({"replicas": 0, "podManagementPolicy": "Parallel"}), "0:s-1 1:s-1", vec![], "s-1 s-0"),
            // An update from the top.
            (json!({}), "0:s-1 1:s-1 2:s-1", vec![], "s-2"),
            (json!({}), "0:s-1 1:s-1 2:s-2!", vec![], ""),
            (json!({}), "0:s-1 1:s-1 2:s-2", vec![], "s-1"),
            (partition, "0:s-1 1:s-1 2:s-2", vec![], ""),
            (json!({"updateStrategy": {"type": "OnDelete"}}), "0:s-1 1:s-1 2:s-1", vec![], ""),
            (json!({"ordinals": {"start": 5}, "replicas": 1}), "0:s-2 5:s-2", vec![], "s-0"),
        ] {
            let got = plan(&set(spec.clone()), &pods(there), "s-2", Timestamp::now());
            let deleted: Vec<_> = got.delete.iter().map(|p| p.name()).collect();
            assert_eq!((got.create, deleted.join(" ")), (create, delete.to_owned()), "{spec} {there}");
        }
    }

    #[test]
    fn the_revision_is_current_when_all_have_it() {
        let got = plan(&set(json!({})), &pods("0:s-1 1:s-2 2:s-2"), "s-2", Timestamp::now()).status;
        assert_eq!((got.current_revision.as_str(), got.current_replicas, got.updated_replicas), ("s-1", 1, 2));
        let got = plan(&set(json!({})), &pods("0:s-2 1:s-2 2:s-2"), "s-2", Timestamp::now()).status;
        assert_eq!((got.current_revision.as_str(), got.current_replicas, got.updated_replicas), ("s-2", 3, 3));
    }

    #[test]
    fn pods_have_names_and_claims() {
        let claim = json!({"metadata": {"name": "data"}, "spec": {"x": 1}});
        let set = set(json!({"volumeClaimTemplates": [claim], "selector": {"matchLabels": {"a": "b"}}}));
        let body = pod_body(&set, &set.spec.template, "s-2", 1);
        assert_eq!((&body["metadata"]["name"], &body["spec"]["subdomain"]), (&json!("s-1"), &json!("svc")));
        assert!(body["metadata"]["generateName"].is_null());
        assert_eq!(body["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"], "data-s-1");
        assert_eq!(body["spec"]["volumes"][1]["name"], "other");
        let claims = claims(&set, 1);
        assert_eq!(
            (&claims[0]["metadata"]["name"], &claims[0]["metadata"]["labels"]["a"]),
            (&json!("data-s-1"), &json!("b"))
        );
    }
}
