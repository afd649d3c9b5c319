//! When the cause of a slice's change came about, noted with the slice: who programs it can tell how long that took. As
//! upstream's `TriggerTimeTracker` has it, without a memory of its own: a Service that is new counts from its creation, else
//! the pods whose readiness the slices did not say yet count from when it changed, the earliest of them.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::mirror::TRIGGER;
use super::slices::Write;
use crate::object::Object;
use crate::types::{Pod, Service, Slice};

/// Notes it in what is written. Without a time of its own a slice loses the one that it had.
pub(super) fn note(writes: &mut [Write], service: &Service, pods: &[Arc<Pod>], existing: &[Arc<Slice>]) {
    let known: HashMap<&str, Option<bool>> = existing
        .iter()
        .flat_map(|slice| &slice.endpoints)
        .filter_map(|endpoint| {
            let serving = endpoint.conditions.as_ref().and_then(|conditions| conditions.serving);
            Some((endpoint.target_ref.as_ref()?.uid.as_deref()?, serving))
        })
        .collect();
    let changed = |endpoint: &Value| -> Option<Timestamp> {
        let uid = endpoint["targetRef"]["uid"].as_str()?;
        if known.get(uid) == Some(&endpoint["conditions"]["serving"].as_bool()) {
            return None;
        }
        let ready = pods.iter().find(|pod| pod.uid() == uid)?.condition("Ready")?;
        ready.last_transition_time.as_ref().map(|time| time.0)
    };
    for write in writes {
        let (Write::Create(body) | Write::Update(_, body)) = write else { continue };
        let time = match existing.is_empty() {
            true => Some(service.created()).filter(|time| *time != Timestamp::UNIX_EPOCH),
            false => body["endpoints"].as_array().into_iter().flatten().filter_map(changed).min(),
        };
        if let Some(time) = time {
            body["metadata"]["annotations"][TRIGGER] = json!(time.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::slices::plan;
    use super::*;

    fn pod(name: &str, ready: &str, since: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "n", "uid": name, "labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c"}]},
                "status": {"phase": "Running", "podIPs": [{"ip": format!("10.0.0.{}", name.len())}],
                    "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": since}]}
            }))
            .unwrap(),
        )
    }

    fn service() -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "n", "uid": "s", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"clusterIP": "10.96.0.7", "selector": {"app": "web"}, "ports": [{"port": 80}]}
        }))
        .unwrap()
    }

    fn noted(pods: &[Arc<Pod>], existing: &[Arc<Slice>]) -> (Option<String>, Vec<Arc<Slice>>) {
        let mut writes = plan(&service(), pods, existing, &|_| None);
        note(&mut writes, &service(), pods, existing);
        let [Write::Create(body) | Write::Update(_, body)] = &mut writes[..] else { panic!("{writes:?}") };
        body["metadata"]["name"] = json!("web-1");
        let time = body["metadata"]["annotations"][TRIGGER].as_str().map(str::to_owned);
        (time, vec![Arc::new(serde_json::from_value(body.clone()).unwrap())])
    }

    #[test]
    fn a_change_counts_from_its_earliest_cause() {
        let (one, two) = ("2026-01-01T00:00:10Z", "2026-01-01T00:00:20Z");
        let (time, slices) = noted(&[pod("a", "True", one)], &[]);
        assert_eq!(time.as_deref(), Some("2026-01-01T00:00:00Z"), "a new Service");
        let (time, slices) = noted(&[pod("a", "True", one), pod("bb", "False", two)], &slices);
        assert_eq!(time.as_deref(), Some(two), "a pod that was not there");
        let both = [pod("a", "False", "2026-01-01T00:00:40Z"), pod("bb", "True", "2026-01-01T00:00:30Z")];
        let (time, slices) = noted(&both, &slices);
        assert_eq!(time.as_deref(), Some("2026-01-01T00:00:30Z"), "the first of two");
        let (time, _) = noted(&both[..1], &slices);
        assert_eq!(time, None, "one that went");
    }
}
