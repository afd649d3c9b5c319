//! Rebuilds a pod's state when the daemon (re)starts: from the containers containerd knows (found by their labels),
//! the pod's network as the kernel has it, and the status last written to the API server. There is no private file.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStatus, PodStatus, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::spec::Spec;
use super::state::{Ctr, Exit, Failure, Phase, PodState, Run, Step, Stop, Teardown};
use crate::model::Resources;

/// A container that the runtime knows, as far as the state needs it.
#[derive(Clone, Debug)]
pub struct Found {
    pub id: String,
    /// Container name in the pod.
    pub name: String,
    pub attempt: u32,
    pub image: String,
    pub image_id: String,
    pub state: FoundState,
}

/// What became of a [`Found`] container.
#[derive(Clone, Debug)]
pub enum FoundState {
    /// Made, never started.
    Created,
    Running {
        at: Timestamp,
        pid: u32,
    },
    Exited(Exit),
}

/// The state of a pod that may have run here before.
pub fn adopt(
    spec: Arc<Spec>,
    found: &[Found],
    status: &PodStatus,
    network: Option<Vec<IpAddr>>,
    now: Timestamp,
) -> PodState {
    let mut state = PodState::new(spec.clone(), now);
    if let Some(t) = &status.start_time {
        state.start_time = t.0;
    }
    for (index, c) in spec.containers.iter().enumerate() {
        let mut mine: Vec<&Found> = found.iter().filter(|f| f.name == *c.name).collect();
        mine.sort_by_key(|f| std::cmp::Reverse(f.attempt));
        let reported = reported(status, &c.name);
        state.containers[index] = container(&mine, reported);
    }
    if let Some(ips) = network {
        state.ips = ips;
        state.network = Step::Done;
    }
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        if let Some(reason) = &status.reason {
            let message = status.message.clone().unwrap_or_default();
            state.failure = Some(Failure { reason: reason.clone(), message });
        }
        state.stop = Some(Stop { deadline: now });
        state.teardown = Teardown::No;
    }
    state
}

fn reported<'a>(status: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
    let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|c| c.name == name)
}

fn container(mine: &[&Found], reported: Option<&ContainerStatus>) -> Ctr {
    let mut c = Ctr::new();
    let last_reported =
        |s: &Option<ContainerState>| s.as_ref().and_then(|s| s.terminated.as_ref()).map(|t| Box::new(exit_of(t)));
    if let Some(r) = reported {
        c.restarts = u32::try_from(r.restart_count).unwrap_or(0);
        c.image = r.image.clone();
        c.image_id = r.image_id.clone();
        c.last = last_reported(&r.last_state);
    }
    let Some(newest) = mine.first() else {
        // The runtime has nothing of it: what was reported as ended has ended, anything else starts anew.
        if let Some(exit) = reported.and_then(|r| last_reported(&r.state)) {
            c.made = true;
            c.phase = Phase::Exited { exit, why: None, retry_at: None };
        } else if reported.is_some_and(|r| r.container_id.is_some()) {
            c.made = true;
        }
        return c;
    };
    c.made = true;
    c.restarts = newest.attempt;
    // What was reported of this very container stays as it was said: the same words, the same second.
    let same = reported.filter(|r| r.container_id.as_deref() == Some(&container_id(&newest.id)));
    if same.is_none() {
        c.image = newest.image.clone();
        c.image_id = newest.image_id.clone();
        c.last = None;
    }
    if let (None, Some(FoundState::Exited(exit))) = (&c.last, mine.get(1).map(|f| &f.state)) {
        c.last = Some(Box::new(exit.clone()));
    }
    match &newest.state {
        FoundState::Created => {
            // Its start was never reported: it is made again under the next number.
            c.phase = Phase::Waiting { why: None, retry_at: None };
        }
        FoundState::Running { at, .. } => {
            let since = same.and_then(|r| r.state.as_ref()?.running.as_ref()?.started_at.as_ref()).map(|t| t.0);
            c.started = same.is_some_and(|r| r.started.unwrap_or(false));
            c.probe_ready = same.is_some_and(|r| r.ready);
            c.resources = same.and_then(|r| r.resources.as_ref()).map(resources_of);
            c.allocated.clone_from(&c.resources);
            c.phase = Phase::Running(Run { id: newest.id.clone(), at: since.unwrap_or(*at), stopping: None });
        }
        FoundState::Exited(exit) => {
            let known = same.and_then(|r| last_reported(&r.state)).filter(|e| e.id == exit.id);
            let exit = known.unwrap_or_else(|| Box::new(exit.clone()));
            c.phase = Phase::Exited { exit, why: None, retry_at: None };
        }
    }
    c
}

/// What a container runs with, as its status said it.
fn resources_of(r: &ResourceRequirements) -> Resources {
    let map = |m: &Option<std::collections::BTreeMap<String, Quantity>>| {
        m.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect()
    };
    Resources { limits: map(&r.limits), requests: map(&r.requests) }
}

/// The id as status carries it.
pub fn container_id(id: &str) -> String {
    format!("containerd://{id}")
}

fn exit_of(t: &ContainerStateTerminated) -> Exit {
    let id = t.container_id.as_deref().unwrap_or_default();
    Exit {
        id: id.strip_prefix("containerd://").unwrap_or(id).to_owned(),
        code: t.exit_code,
        signal: t.signal,
        reason: t.reason.clone().unwrap_or_default(),
        message: t.message.clone(),
        started: t.started_at.as_ref().map(|t| t.0),
        finished: t.finished_at.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Container, Pod};

    fn spec() -> Arc<Spec> {
        let mut pod = Pod::default();
        pod.spec.containers = vec![Container { name: "a".into(), ..Container::default() }];
        Arc::new(Spec::of(&pod))
    }

    fn exit(id: &str) -> Exit {
        Exit {
            id: id.into(),
            code: 1,
            signal: None,
            reason: "Error".into(),
            message: None,
            started: None,
            finished: Timestamp::UNIX_EPOCH,
        }
    }

    fn found(id: &str, attempt: u32, state: FoundState) -> Found {
        Found { id: id.into(), name: "a".into(), attempt, image: "i".into(), image_id: "sha".into(), state }
    }

    #[test]
    fn running_container_keeps_its_readiness_only_if_it_is_the_reported_one() {
        for (reported, ready) in [("containerd://new", true), ("containerd://old", false)] {
            let status = PodStatus {
                container_statuses: Some(vec![ContainerStatus {
                    name: "a".into(),
                    ready: true,
                    started: Some(true),
                    container_id: Some(reported.into()),
                    ..ContainerStatus::default()
                }]),
                ..PodStatus::default()
            };
            let now = Timestamp::UNIX_EPOCH;
            let list = [
                found("old", 1, FoundState::Exited(exit("old"))),
                found("new", 2, FoundState::Running { at: now, pid: 1 }),
            ];
            let state = adopt(spec(), &list, &status, None, now);
            let c = &state.containers[0];
            assert_eq!(c.run().map(|r| r.id.as_str()), Some("new"));
            assert_eq!((c.restarts, c.probe_ready), (2, ready));
            assert_eq!(c.last.as_ref().map(|e| e.id.as_str()), Some("old"));
            assert_eq!(state.network, Step::NEW);
        }
    }

    #[test]
    fn nothing_in_the_runtime_means_what_was_reported() {
        let mut status = PodStatus {
            container_statuses: Some(vec![ContainerStatus {
                name: "a".into(),
                restart_count: 4,
                container_id: Some("containerd://x".into()),
                state: Some(ContainerState {
                    terminated: Some(ContainerStateTerminated { exit_code: 3, ..Default::default() }),
                    ..ContainerState::default()
                }),
                ..ContainerStatus::default()
            }]),
            ..PodStatus::default()
        };
        let state = adopt(spec(), &[], &status, None, Timestamp::UNIX_EPOCH);
        assert_eq!(state.containers[0].exit().map(|e| e.code), Some(3));
        status.phase = Some("Failed".into());
        assert!(adopt(spec(), &[], &status, None, Timestamp::UNIX_EPOCH).stop.is_some());
    }
}
