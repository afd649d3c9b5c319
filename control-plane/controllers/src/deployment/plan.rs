//! What a Deployment needs next: pure, from it, its ReplicaSets and the time to a list of writes and its new status. One
//! sync takes one step; the change it makes brings the next.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::hash::{self, HASH_LABEL};
use super::rolling::{self, Bounds, DESIRED, MAX, wanted};
use super::status;
use crate::object::Object;
use crate::types::{Deployment, DeploymentStatus, ReplicaSet};

/// Annotation with a revision's number, on Deployments and ReplicaSets.
pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Annotations of a Deployment that its ReplicaSets do not get.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

/// One write.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Create the ReplicaSet of the current template.
    Create { name: String, body: Value, size: i32 },
    /// Change a ReplicaSet's size (and the annotations that go with it).
    Scale { rs: Arc<ReplicaSet>, from: i32, to: i32, patch: Value },
    /// Bring a ReplicaSet's annotations and minReadySeconds up to date.
    Refresh { rs: Arc<ReplicaSet>, patch: Value },
    /// Note the revision on the Deployment.
    Revision(String),
    /// Delete an old ReplicaSet nobody needs.
    Cleanup(Arc<ReplicaSet>),
}

/// The next writes and the status that goes with them.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) actions: Vec<Action>,
    pub(crate) status: DeploymentStatus,
    /// Seconds after which lack of progress is to be looked at.
    pub(crate) check_after: Option<i64>,
}

/// What the planner looks at.
#[derive(Debug)]
pub(crate) struct Observed<'a> {
    pub(crate) deployment: &'a Deployment,
    /// Its ReplicaSets.
    pub(crate) sets: &'a [Arc<ReplicaSet>],
    /// Whether pods of old revisions still exist (asked only for Recreate).
    pub(crate) old_pods_remain: bool,
    pub(crate) now: Timestamp,
}

/// Plans one step.
pub(crate) fn plan(observed: &Observed<'_>) -> Plan {
    let deployment = observed.deployment;
    let template = deployment.spec.template.value();
    let newest = newest(observed.sets, &template);
    let mut old: Vec<Arc<ReplicaSet>> =
        observed.sets.iter().filter(|rs| newest.as_ref().is_none_or(|n| n.uid() != rs.uid())).cloned().collect();
    old.sort_by_key(|rs| (rs.created(), rs.name().to_owned()));
    let mut planner = Planner { observed, bounds: Bounds::of(deployment), template, newest, old, actions: Vec::new() };
    if !deployment.deleting() {
        planner.decide();
    }
    let (status, check_after) = status::next(observed, planner.newest.as_deref(), planner.created(), planner.bounds);
    Plan { actions: planner.actions, status, check_after }
}

/// The oldest ReplicaSet of the current template.
pub(crate) fn newest(sets: &[Arc<ReplicaSet>], template: &Value) -> Option<Arc<ReplicaSet>> {
    let same = sets.iter().filter(|rs| hash::same_template(&rs.spec.template.value(), template));
    same.min_by_key(|rs| (rs.created(), rs.name().to_owned())).cloned()
}

struct Planner<'a> {
    observed: &'a Observed<'a>,
    bounds: Bounds,
    template: Value,
    newest: Option<Arc<ReplicaSet>>,
    old: Vec<Arc<ReplicaSet>>,
    actions: Vec<Action>,
}

impl Planner<'_> {
    fn deployment(&self) -> &Deployment {
        self.observed.deployment
    }

    fn created(&self) -> Option<&str> {
        self.actions.iter().find_map(|action| match action {
            Action::Create { name, .. } => Some(name.as_str()),
            _ => None,
        })
    }

    fn decide(&mut self) {
        if self.deployment().spec.paused || self.was_scaled() {
            if self.newest.is_some() {
                self.refresh();
            }
            self.scale_all();
            if self.deployment().spec.paused {
                self.cleanup();
            }
            return;
        }
        if rolling::recreates(self.deployment()) { self.recreate() } else { self.roll() }
    }

    /// Whether the Deployment's replicas changed since its ReplicaSets were scaled.
    fn was_scaled(&self) -> bool {
        let desired = |rs: &ReplicaSet| rs.annotations().get(DESIRED).and_then(|n| n.parse::<i32>().ok());
        self.observed.sets.iter().any(|rs| wanted(rs) > 0 && desired(rs).is_some_and(|n| n != self.bounds.replicas))
    }

    fn roll(&mut self) {
        let Some(newest) = self.newest_or_create() else { return };
        let total = wanted(&newest) + rolling::wanted_sum(&self.old);
        let size = rolling::new_size(self.bounds, false, wanted(&newest), total);
        if size != wanted(&newest) {
            return self.scale(&newest, size);
        }
        let shrinking = rolling::shrink_old(self.bounds, &newest, &self.old);
        if shrinking.is_empty() {
            return self.cleanup_when_complete();
        }
        for (rs, size) in shrinking {
            self.scale(&rs, size);
        }
    }

    fn recreate(&mut self) {
        let running: Vec<_> = self.old.iter().filter(|rs| wanted(rs) > 0).cloned().collect();
        if !running.is_empty() {
            if self.newest.is_some() {
                self.refresh();
            }
            for rs in running {
                self.scale(&rs, 0);
            }
            return;
        }
        if self.observed.old_pods_remain {
            return;
        }
        let Some(newest) = self.newest_or_create() else { return };
        if wanted(&newest) != self.bounds.replicas {
            return self.scale(&newest, self.bounds.replicas);
        }
        self.cleanup_when_complete();
    }

    /// Sizes after the Deployment itself was scaled, or while it is paused.
    fn scale_all(&mut self) {
        let active: Vec<Arc<ReplicaSet>> = self.observed.sets.iter().filter(|rs| wanted(rs) > 0).cloned().collect();
        let single = match active.as_slice() {
            [] => self.newest.clone().or_else(|| self.old.last().cloned()),
            [only] => Some(only.clone()),
            _ => None,
        };
        if let Some(rs) = single {
            if wanted(&rs) != self.bounds.replicas || annotated(&rs, DESIRED) != Some(self.bounds.replicas) {
                self.scale(&rs, self.bounds.replicas);
            }
            return;
        }
        if active.is_empty() {
            return;
        }
        let saturated = self.newest.as_ref().is_some_and(|rs| {
            wanted(rs) == self.bounds.replicas
                && annotated(rs, DESIRED) == Some(self.bounds.replicas)
                && rs.status.available_replicas == self.bounds.replicas
        });
        let changes = if saturated {
            self.old.iter().filter(|rs| wanted(rs) > 0).map(|rs| (rs.clone(), 0)).collect()
        } else if rolling::recreates(self.deployment()) {
            Vec::new()
        } else {
            rolling::proportional(self.bounds, &active)
        };
        // Those whose size stays still learn the new number, or the scaling would never be over.
        let unchanged: Vec<_> =
            active.iter().filter(|rs| !changes.iter().any(|(c, _)| c.uid() == rs.uid())).cloned().collect();
        for (rs, size) in changes {
            self.scale(&rs, size);
        }
        for rs in unchanged {
            if annotated(&rs, DESIRED) != Some(self.bounds.replicas) {
                let size = wanted(&rs);
                self.scale(&rs, size);
            }
        }
    }

    fn scale(&mut self, rs: &Arc<ReplicaSet>, to: i32) {
        let annotations = json!({DESIRED: self.bounds.replicas.to_string(), MAX: self.bounds.most().to_string()});
        let patch = json!({
            "metadata": {"annotations": annotations, "resourceVersion": rs.metadata.resource_version},
            "spec": {"replicas": to},
        });
        // Only one write per ReplicaSet and step: the version it names is gone after the first.
        self.actions.retain(|a| !matches!(a, Action::Refresh { rs: other, .. } if other.uid() == rs.uid()));
        self.actions.push(Action::Scale { rs: rs.clone(), from: wanted(rs), to, patch });
    }

    fn newest_or_create(&mut self) -> Option<Arc<ReplicaSet>> {
        if let Some(newest) = self.newest.clone() {
            self.refresh();
            return Some(newest);
        }
        let deployment = self.deployment();
        let hash = hash::template_hash(&self.template, deployment.status.collision_count);
        let name = format!("{}-{hash}", deployment.name());
        let mut template = self.template.clone();
        template["metadata"]["labels"][HASH_LABEL] = json!(hash);
        let mut selector = serde_json::to_value(&deployment.spec.selector).unwrap_or_default();
        selector["matchLabels"][HASH_LABEL] = json!(hash);
        let size = rolling::new_size(self.bounds, rolling::recreates(deployment), 0, rolling::wanted_sum(&self.old));
        let revision = (self.last_revision() + 1).to_string();
        let mut annotations = copied(deployment);
        annotations.insert(DESIRED.into(), self.bounds.replicas.to_string());
        annotations.insert(MAX.into(), self.bounds.most().to_string());
        annotations.insert(REVISION.into(), revision.clone());
        let body = json!({
            "metadata": {
                "name": name, "labels": template["metadata"]["labels"], "annotations": annotations,
                "ownerReferences": [deployment.as_controller()],
            },
            "spec": {
                "replicas": size, "minReadySeconds": deployment.spec.min_ready_seconds.unwrap_or(0),
                "selector": selector, "template": template,
            },
        });
        self.actions.push(Action::Create { name, body, size });
        self.note_revision(revision);
        None
    }

    fn last_revision(&self) -> i64 {
        self.old.iter().map(|rs| revision(rs)).max().unwrap_or(0)
    }

    fn note_revision(&mut self, revision: String) {
        if self.deployment().annotations().get(REVISION) != Some(&revision) {
            self.actions.push(Action::Revision(revision));
        }
    }

    /// Revision, copied annotations and minReadySeconds of the newest ReplicaSet.
    fn refresh(&mut self) {
        let Some(rs) = self.newest.clone() else { return };
        let mut annotations = copied(self.deployment());
        let next = self.last_revision() + 1;
        let current = revision(&rs);
        if current < next {
            annotations.insert(REVISION.into(), next.to_string());
            if current > 0 {
                let history = rs.annotations().get(REVISION_HISTORY).map(|h| format!("{h},")).unwrap_or_default();
                annotations.insert(REVISION_HISTORY.into(), format!("{history}{current}"));
            }
        }
        self.note_revision(current.max(next).to_string());
        let min_ready = self.deployment().spec.min_ready_seconds.unwrap_or(0);
        annotations.retain(|key, value| rs.annotations().get(key) != Some(value));
        if annotations.is_empty() && rs.spec.min_ready_seconds.unwrap_or(0) == min_ready {
            return;
        }
        let patch = json!({"metadata": {"annotations": annotations}, "spec": {"minReadySeconds": min_ready}});
        self.actions.push(Action::Refresh { rs, patch });
    }

    fn cleanup_when_complete(&mut self) {
        let newest = self.newest.as_deref();
        if status::complete(self.deployment(), &status::counts(self.observed, newest), self.bounds) {
            self.cleanup();
        }
    }

    /// Old ReplicaSets beyond revisionHistoryLimit that have no pods.
    fn cleanup(&mut self) {
        let Some(limit) = self.deployment().spec.revision_history_limit else { return };
        let mut alive: Vec<_> = self.old.iter().filter(|rs| !rs.deleting()).cloned().collect();
        let surplus = alive.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
        alive.sort_by_key(|rs| (revision(rs), rs.created()));
        for rs in alive.into_iter().take(surplus) {
            let unused =
                rs.status.replicas == 0 && wanted(&rs) == 0 && rs.generation() <= rs.status.observed_generation;
            if unused {
                self.actions.push(Action::Cleanup(rs));
            }
        }
    }
}

fn revision(rs: &ReplicaSet) -> i64 {
    rs.annotations().get(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

fn annotated(rs: &ReplicaSet, key: &str) -> Option<i32> {
    rs.annotations().get(key).and_then(|n| n.parse().ok())
}

fn copied(deployment: &Deployment) -> BTreeMap<String, String> {
    let all = deployment.annotations().iter();
    all.filter(|(key, _)| !NOT_COPIED.contains(&key.as_str())).map(|(k, v)| (k.clone(), v.clone())).collect()
}
