//! Stories of the state machine and tables of the status it yields.
#![allow(clippy::unwrap_used)]

mod machine;
mod status;
mod stories;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;

use super::machine::{Action, Event, StartError, step};
use super::spec::Spec;
use super::state::{Exit, PodState};
use crate::model::Pod;

/// A pod with a clock; events go in, actions come out as short words (`start a#0`, `stop a 30`).
pub(super) struct World {
    pub(super) pod: Pod,
    pub(super) state: PodState,
    pub(super) now: Timestamp,
    pub(super) status: PodStatus,
    pub(super) events: Vec<String>,
    next_id: u32,
}

impl World {
    /// A pod from YAML-like JSON of its spec.
    pub(super) fn new(spec: serde_json::Value) -> World {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 1},
            "spec": spec,
        }))
        .unwrap();
        let now = Timestamp::from_second(1_000_000).unwrap();
        let state = PodState::new(Arc::new(Spec::of(&pod)), now);
        World { pod, state, now, status: PodStatus::default(), events: Vec::new(), next_id: 0 }
    }

    /// Network and volumes are there.
    pub(super) fn ready(spec: serde_json::Value) -> World {
        let mut w = World::new(spec);
        assert_eq!(w.send(Event::Wake), ["network", "volumes"]);
        w.send(Event::NetworkReady(vec!["10.244.0.5".parse().unwrap()]));
        w
    }

    pub(super) fn send(&mut self, event: Event) -> Vec<String> {
        let (state, actions) = step(self.state.clone(), event, self.now);
        self.state = state;
        self.status =
            super::status::compute(&self.pod, &self.state, &self.status, &["192.0.2.1".parse().unwrap()], self.now);
        let mut words = Vec::new();
        for action in actions {
            match action {
                Action::SetupNetwork => words.push("network".into()),
                Action::SetupVolumes => words.push("volumes".into()),
                Action::Start { index, attempt } => words.push(format!("start {}#{attempt}", self.name(index))),
                Action::AbortStart { index } => words.push(format!("abort {}", self.name(index))),
                Action::Stop { index, grace, .. } => {
                    words.push(format!("stop {} {}", self.name(index), grace.as_secs()));
                }
                Action::StartProbe { index, kind } => words.push(format!("probe {} {}", self.name(index), kind.word())),
                Action::EndProbes { .. } => {}
                Action::TearDown => words.push("teardown".into()),
                Action::DeletePod => words.push("delete".into()),
                Action::Record { reason, message, .. } => self.events.push(format!("{reason}: {message}")),
            }
        }
        words
    }

    pub(super) fn started(&mut self, name: &str) -> Vec<String> {
        self.next_id += 1;
        let event = Event::Started {
            index: self.index(name),
            id: format!("id{}", self.next_id),
            image: "img".into(),
            image_id: "sha256:1".into(),
            at: self.now,
        };
        self.send(event)
    }

    pub(super) fn exited(&mut self, name: &str, code: i32) -> Vec<String> {
        let index = self.index(name);
        let run = self.state.containers[index].run().unwrap();
        let exit = Exit {
            id: run.id.clone(),
            code,
            signal: None,
            reason: if code == 0 { "Completed" } else { "Error" }.into(),
            message: None,
            started: Some(run.at),
            finished: self.now,
        };
        self.send(Event::Exited { index, exit })
    }

    pub(super) fn start_failed(&mut self, name: &str, error: StartError) -> Vec<String> {
        self.send(Event::StartFailed { index: self.index(name), error })
    }

    pub(super) fn later(&mut self, seconds: u64) -> Vec<String> {
        self.now += Duration::from_secs(seconds);
        self.send(Event::Wake)
    }

    pub(super) fn index(&self, name: &str) -> usize {
        self.state.spec.index(name).unwrap()
    }

    fn name(&self, index: usize) -> String {
        self.state.spec.containers[index].name.to_string()
    }

    pub(super) fn phase(&self) -> &str {
        self.status.phase.as_deref().unwrap()
    }

    /// `status` of a condition with its reason: `False ContainersNotReady`.
    pub(super) fn condition(&self, type_: &str) -> String {
        let c = self.status.conditions.iter().flatten().find(|c| c.type_ == type_).unwrap();
        format!("{} {}", c.status, c.reason.as_deref().unwrap_or_default()).trim_end().to_owned()
    }

    /// A container's state in one line: `waiting CrashLoopBackOff`, `running`, `terminated Error 1`.
    pub(super) fn container(&self, name: &str) -> String {
        let s = &self.status;
        let lists = [&s.init_container_statuses, &s.container_statuses, &s.ephemeral_container_statuses];
        let c = lists.into_iter().flatten().flatten().find(|c| c.name == name).unwrap();
        let s = c.state.as_ref().unwrap();
        if let Some(w) = &s.waiting {
            format!("waiting {}", w.reason.as_deref().unwrap())
        } else if let Some(t) = &s.terminated {
            format!("terminated {} {}", t.reason.as_deref().unwrap(), t.exit_code)
        } else {
            "running".into()
        }
    }
}
