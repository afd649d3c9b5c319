//! Stories of rollouts: the planner's writes are applied to ReplicaSets, whose pods become available one by one.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::plan::{Action, Observed, plan};
use super::rolling::{Bounds, wanted};
use crate::object::Object;
use crate::types::{Deployment, ReplicaSet};

struct World {
    deployment: Value,
    sets: BTreeMap<String, Value>,
    now: i64,
}

impl World {
    fn new(spec: Value) -> Self {
        let mut deployment = json!({
            "metadata": {"name": "web", "namespace": "n", "uid": "d", "generation": 1, "annotations": {"note": "x"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "progressDeadlineSeconds": 600,
                "revisionHistoryLimit": 10, "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"image": "v1"}}},
        });
        json_patch::merge(&mut deployment["spec"], &spec);
        Self { deployment, sets: BTreeMap::new(), now: 1_800_000_000 }
    }

    fn parsed(&self) -> (Deployment, Vec<Arc<ReplicaSet>>) {
        let sets = self.sets.values().map(|set| Arc::new(serde_json::from_value(set.clone()).unwrap()));
        (serde_json::from_value(self.deployment.clone()).unwrap(), sets.collect())
    }

    /// One sync, as the driver does it; the events it would record.
    fn sync(&mut self) -> Vec<String> {
        self.now += 1;
        let (deployment, sets) = self.parsed();
        let now = Timestamp::from_second(self.now).unwrap();
        let newest = super::plan::newest(&sets, &deployment.spec.template.value());
        let old_pods_remain =
            sets.iter().any(|s| s.status.replicas > 0 && newest.as_ref().is_none_or(|n| n.name() != s.name()));
        let plan = plan(&Observed { deployment: &deployment, sets: &sets, old_pods_remain, now });
        let mut done = Vec::new();
        for action in plan.actions {
            match action {
                Action::Create { name, mut body, size } => {
                    let at = now.to_string();
                    json_patch::merge(
                        &mut body["metadata"],
                        &json!({"uid": name, "generation": 1, "creationTimestamp": at, "resourceVersion": "1"}),
                    );
                    self.sets.insert(name, body);
                    done.push(format!("create {size}"));
                }
                Action::Scale { rs, from, to, patch } => {
                    let set = self.sets.get_mut(rs.name()).unwrap();
                    json_patch::merge(set, &patch);
                    done.push(format!("scale {from}->{to}"));
                }
                Action::Refresh { rs, patch } => json_patch::merge(self.sets.get_mut(rs.name()).unwrap(), &patch),
                Action::Revision(revision) => {
                    self.deployment["metadata"]["annotations"][super::plan::REVISION] = json!(revision);
                    done.push(format!("revision {revision}"));
                }
                Action::Cleanup(rs) => {
                    self.sets.remove(rs.name());
                    done.push("cleanup".into());
                }
            }
        }
        self.deployment["status"] = serde_json::to_value(plan.status).unwrap();
        done
    }

    /// ReplicaSets do their part: all pods asked for exist, at most `ready` more become available in each.
    fn pods(&mut self, ready: i64) {
        for set in self.sets.values_mut() {
            let size = set["spec"]["replicas"].as_i64().unwrap();
            let available = (set["status"]["availableReplicas"].as_i64().unwrap_or(0) + ready).min(size);
            set["status"] = json!({"replicas": size, "readyReplicas": available, "availableReplicas": available,
                "observedGeneration": set["metadata"]["generation"]});
        }
    }

    fn settle(&mut self) {
        for _ in 0..60 {
            self.sync();
            self.pods(1);
        }
    }

    fn update(&mut self, spec: Value) {
        json_patch::merge(&mut self.deployment["spec"], &spec);
        let generation = self.deployment["metadata"]["generation"].as_i64().unwrap();
        self.deployment["metadata"]["generation"] = json!(generation + 1);
    }

    fn image(&mut self, image: &str) {
        self.update(json!({"template": {"spec": {"image": image}}}));
    }

    fn condition(&self, kind: &str) -> (String, String, String) {
        let conditions = self.deployment["status"]["conditions"].as_array().unwrap();
        let condition = conditions.iter().find(|c| c["type"] == kind).unwrap();
        let text = |field: &str| condition[field].as_str().unwrap().to_owned();
        (text("status"), text("reason"), text("message"))
    }

    fn revision(&self) -> &str {
        self.deployment["metadata"]["annotations"][super::plan::REVISION].as_str().unwrap()
    }

    fn sizes(&self) -> Vec<i32> {
        let (_, sets) = self.parsed();
        let mut sets = sets;
        sets.sort_by_key(|s| s.created());
        sets.iter().map(|s| wanted(s)).collect()
    }
}

#[test]
fn first_rollout() {
    let mut world = World::new(json!({}));
    assert_eq!(world.sync(), ["create 3", "revision 1"]);
    assert_eq!(world.condition("Progressing").1, "NewReplicaSetCreated");
    assert_eq!(world.condition("Available").1, "MinimumReplicasUnavailable");
    world.settle();
    let name = world.sets.keys().next().unwrap().clone();
    let (status, reason, message) = world.condition("Progressing");
    assert_eq!((status.as_str(), reason.as_str()), ("True", "NewReplicaSetAvailable"));
    assert_eq!(message, format!("ReplicaSet \"{name}\" has successfully progressed."));
    assert_eq!(world.condition("Available").0, "True");
    let set = &world.sets[&name];
    assert_eq!(set["metadata"]["annotations"]["note"], "x");
    let hash = set["metadata"]["labels"]["pod-template-hash"].as_str().unwrap();
    assert_eq!(name, format!("web-{hash}"));
    assert_eq!(set["spec"]["selector"]["matchLabels"]["pod-template-hash"], hash);
    assert!(world.sync().is_empty(), "a finished rollout needs nothing");
    let before = world.deployment.clone();
    world.sync();
    assert_eq!(before, world.deployment, "and its status stays as it is");
}

#[test]
fn update_undo_and_history() {
    let mut world = World::new(json!({"revisionHistoryLimit": 1}));
    world.settle();
    for (image, revision) in [("v2", "2"), ("v3", "3"), ("v2", "4")] {
        world.image(image);
        world.settle();
        assert_eq!(world.revision(), revision);
        assert_eq!(world.condition("Progressing").1, "NewReplicaSetAvailable");
        assert_eq!(world.deployment["status"]["updatedReplicas"], 3);
    }
    // v1 was cleaned up; v2 came back with its history.
    assert_eq!(world.sets.len(), 2);
    let back = world.sets.values().find(|s| s["spec"]["template"]["spec"]["image"] == "v2").unwrap();
    assert_eq!(back["metadata"]["annotations"]["deployment.kubernetes.io/revision-history"], "2");
    assert_eq!(back["spec"]["replicas"], 3);
}

#[test]
fn recreate_waits_for_the_old_pods() {
    let mut world = World::new(json!({"strategy": {"type": "Recreate"}}));
    world.settle();
    world.image("v2");
    assert_eq!(world.sync(), ["scale 3->0"]);
    assert!(world.sync().is_empty(), "old pods still run");
    world.pods(0);
    assert_eq!(world.sync(), ["create 3", "revision 2"]);
    world.settle();
    assert_eq!(world.sizes(), [0, 3]);
}

#[test]
fn paused_and_scaled() {
    let mut world = World::new(json!({}));
    world.settle();
    world.update(json!({"paused": true, "replicas": 5, "template": {"spec": {"image": "v2"}}}));
    assert_eq!(world.sync(), ["scale 3->5"]);
    assert_eq!(world.condition("Progressing").1, "DeploymentPaused");
    world.settle();
    assert_eq!(world.sizes(), [5], "no new revision while paused");
    world.update(json!({"paused": false}));
    world.settle();
    assert_eq!(world.sizes(), [0, 5]);
    world.update(json!({"replicas": 0}));
    world.settle();
    assert_eq!(world.sizes(), [0, 0]);
    world.update(json!({"replicas": 2}));
    world.settle();
    assert_eq!(world.sizes(), [0, 2]);
}

#[test]
fn no_progress_is_said() {
    let mut world = World::new(json!({"progressDeadlineSeconds": 30}));
    world.sync();
    world.pods(0);
    world.sync();
    world.sync();
    world.now += 60;
    world.sync();
    let (status, reason, message) = world.condition("Progressing");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "ProgressDeadlineExceeded"));
    assert!(message.ends_with("has timed out progressing."), "{message}");
    world.settle();
    assert_eq!(world.condition("Progressing").1, "NewReplicaSetAvailable");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// However pods come up and whatever is changed meanwhile: a rolling update keeps to its bounds and gets there.
    #[test]
    fn rolling_updates_keep_their_bounds(
        replicas in 1i32..12, surge in 0i32..4, unavailable in 0i32..4,
        steps in prop::collection::vec((0i64..3, prop::option::of(0u8..4)), 5..40),
    ) {
        let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}});
        let mut world = World::new(json!({"replicas": replicas, "strategy": strategy}));
        world.settle();
        let bounds = Bounds::of(&world.parsed().0);
        for (ready, image) in steps {
            if let Some(image) = image {
                world.image(&format!("v{image}"));
            }
            world.sync();
            world.pods(ready);
            let (_, sets) = world.parsed();
            let total: i32 = sets.iter().map(|s| wanted(s)).sum();
            let available: i32 = sets.iter().map(|s| s.status.available_replicas).sum();
            prop_assert!(total <= bounds.most(), "{total} pods");
            prop_assert!(available >= bounds.least_available(), "{available} available");
        }
        world.settle();
        prop_assert_eq!(&world.deployment["status"]["updatedReplicas"], &json!(replicas));
        prop_assert_eq!(&world.deployment["status"]["replicas"], &json!(replicas));
        prop_assert_eq!(world.condition("Progressing").1, "NewReplicaSetAvailable");
    }
}
