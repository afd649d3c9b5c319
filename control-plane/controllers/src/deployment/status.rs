//! A Deployment's status and conditions, worded as upstream so that `kubectl rollout status` understands them. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::Observed;
use super::rolling::Bounds;
use crate::object::Object;
use crate::types::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};

const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const REPLICA_FAILURE: &str = "ReplicaFailure";
const DONE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// The numbers of the status; conditions stay as they are.
pub(super) fn counts(observed: &Observed<'_>, newest: Option<&ReplicaSet>) -> DeploymentStatus {
    let sum = |f: fn(&ReplicaSet) -> i32| observed.sets.iter().map(|rs| f(rs)).sum::<i32>();
    let asked = sum(|rs| rs.spec.replicas.unwrap_or(1));
    let available = sum(|rs| rs.status.available_replicas);
    DeploymentStatus {
        observed_generation: observed.deployment.generation(),
        replicas: sum(|rs| rs.status.replicas),
        updated_replicas: newest.map_or(0, |rs| rs.status.replicas),
        ready_replicas: sum(|rs| rs.status.ready_replicas),
        available_replicas: available,
        unavailable_replicas: (asked - available).max(0),
        terminating_replicas: Some(sum(|rs| rs.status.terminating_replicas.unwrap_or(0))),
        conditions: observed.deployment.status.conditions.clone(),
        collision_count: observed.deployment.status.collision_count,
    }
}

/// Whether all pods are of the newest template and available.
pub(super) fn complete(deployment: &Deployment, status: &DeploymentStatus, bounds: Bounds) -> bool {
    status.updated_replicas == bounds.replicas
        && status.replicas == bounds.replicas
        && status.available_replicas == bounds.replicas
        && status.observed_generation >= deployment.generation()
}

/// The next status, and after how many seconds a lack of progress is to be looked at.
pub(super) fn next(
    observed: &Observed<'_>,
    newest: Option<&ReplicaSet>,
    created: Option<&str>,
    bounds: Bounds,
) -> (DeploymentStatus, Option<i64>) {
    let deployment = observed.deployment;
    let mut status = counts(observed, newest);
    let mut conditions = Conditions { list: std::mem::take(&mut status.conditions), now: observed.now };
    if status.available_replicas >= bounds.least_available() {
        conditions.set(AVAILABLE, "True", "MinimumReplicasAvailable", "Deployment has minimum availability.".into());
    } else {
        let message = "Deployment does not have minimum availability.";
        conditions.set(AVAILABLE, "False", "MinimumReplicasUnavailable", message.into());
    }
    let check_after = match deployment.spec.progress_deadline_seconds {
        None | Some(0) | Some(2_147_483_647..) => {
            conditions.remove(PROGRESSING);
            None
        }
        Some(_) if deployment.deleting() => None,
        Some(deadline) => progress(&mut conditions, observed, &status, newest, created, bounds, deadline),
    };
    let failing = observed.sets.iter().filter(|rs| created.is_none() || rs.spec.replicas != Some(0));
    let failure = failing.flat_map(|rs| &rs.status.conditions).find(|c| c.kind == REPLICA_FAILURE);
    match failure {
        Some(failure) => conditions.set(REPLICA_FAILURE, &failure.status, &failure.reason, failure.message.clone()),
        None => conditions.remove(REPLICA_FAILURE),
    }
    status.conditions = conditions.list;
    (status, check_after)
}

fn progress(
    conditions: &mut Conditions,
    observed: &Observed<'_>,
    status: &DeploymentStatus,
    newest: Option<&ReplicaSet>,
    created: Option<&str>,
    bounds: Bounds,
    deadline: i64,
) -> Option<i64> {
    let deployment = observed.deployment;
    let current = conditions.get(PROGRESSING).cloned();
    let reason = current.as_ref().map(|c| c.reason.as_str());
    if deployment.spec.paused {
        if reason != Some(PAUSED) && reason != Some(TIMED_OUT) {
            conditions.set(PROGRESSING, "Unknown", PAUSED, "Deployment is paused".into());
        }
        return None;
    }
    if let Some(name) = created {
        conditions.set(PROGRESSING, "True", "NewReplicaSetCreated", format!("Created new replica set \"{name}\""));
        return Some(deadline + 1);
    }
    let subject = match newest {
        Some(rs) => format!("ReplicaSet \"{}\"", rs.name()),
        None => format!("Deployment \"{}\"", deployment.name()),
    };
    if complete(deployment, status, bounds) {
        conditions.set(PROGRESSING, "True", DONE, format!("{subject} has successfully progressed."));
        return None;
    }
    if reason == Some(PAUSED) {
        conditions.set(PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed".into());
        return Some(deadline + 1);
    }
    if status.updated_replicas == status.replicas && reason == Some(DONE) {
        // Complete once; pods that fail later are no lack of progress of the rollout.
        return None;
    }
    if progressing(&deployment.status, status) {
        conditions.renew(PROGRESSING, "True", "ReplicaSetUpdated", format!("{subject} is progressing."));
        return Some(deadline + 1);
    }
    let Some(current) = current else {
        if let Some(rs) = newest {
            let message = format!("Found new replica set \"{}\"", rs.name());
            conditions.set(PROGRESSING, "True", "FoundNewReplicaSet", message);
            return Some(deadline + 1);
        }
        return None;
    };
    if current.reason == TIMED_OUT {
        return None;
    }
    if current.reason == DONE {
        let message = format!("{subject} is progressing.");
        conditions.renew(PROGRESSING, "True", "ReplicaSetUpdated", message);
        return Some(deadline + 1);
    }
    let since = current.last_update_time.map_or(observed.now, |t| t.0).as_second();
    let left = since + deadline - observed.now.as_second();
    if left >= 0 {
        return Some(left + 1);
    }
    conditions.set(PROGRESSING, "False", TIMED_OUT, format!("{subject} has timed out progressing."));
    None
}

/// Whether something moved since the last status.
fn progressing(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let outdated = |s: &DeploymentStatus| s.replicas - s.updated_replicas;
    new.updated_replicas > old.updated_replicas
        || outdated(new) < outdated(old)
        || new.ready_replicas > old.ready_replicas
        || new.available_replicas > old.available_replicas
}

struct Conditions {
    list: Vec<DeploymentCondition>,
    now: Timestamp,
}

impl Conditions {
    fn get(&self, kind: &str) -> Option<&DeploymentCondition> {
        self.list.iter().find(|c| c.kind == kind)
    }

    fn remove(&mut self, kind: &str) {
        self.list.retain(|c| c.kind != kind);
    }

    /// Sets a condition unless status and reason are as they were.
    fn set(&mut self, kind: &str, status: &str, reason: &str, message: String) {
        if self.get(kind).is_none_or(|c| c.status != status || c.reason != reason) {
            self.renew(kind, status, reason, message);
        }
    }

    /// Sets a condition and notes that it was confirmed now.
    fn renew(&mut self, kind: &str, status: &str, reason: &str, message: String) {
        let kept = self.get(kind).filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
        self.remove(kind);
        self.list.push(DeploymentCondition {
            kind: kind.into(),
            status: status.into(),
            last_update_time: Some(Time(self.now)),
            last_transition_time: Some(kept.unwrap_or(Time(self.now))),
            reason: reason.into(),
            message,
        });
    }
}
