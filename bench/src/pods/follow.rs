//! When each pod of a namespace first was bound to a node, Running, Ready and gone, from one watch.

use std::{collections::HashMap, time::Instant};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, runtime::watcher};
use tokio::{sync::mpsc, task::JoinHandle};

use crate::limits;

/// First moments; a pod of the same name as an earlier one must not be created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moments {
    pub(super) bound: Option<Instant>,
    pub(super) running: Option<Instant>,
    pub(super) ready: Option<Instant>,
    pub(super) gone: Option<Instant>,
}

/// What one event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fact {
    /// The watch stands.
    Begun,
    Lives {
        bound: bool,
        running: bool,
        ready: bool,
    },
    Gone,
}

struct Seen {
    at: Instant,
    name: String,
    fact: Fact,
}

/// Follows until it is dropped.
pub(super) struct Follower {
    events: mpsc::Receiver<Seen>,
    pods: HashMap<String, Moments>,
    task: JoinHandle<()>,
}

impl Follower {
    /// Returns when the watch stands.
    pub(super) async fn start(pods: Api<Pod>) -> Result<Self> {
        let (sender, events) = mpsc::channel(limits::EVENTS);
        let mut follower = Self { events, pods: HashMap::new(), task: tokio::spawn(read(pods, sender)) };
        let begun = tokio::time::timeout(limits::POD, async {
            while let Some(seen) = follower.events.recv().await {
                if seen.fact == Fact::Begun {
                    return Ok(());
                }
            }
            bail!("the watch of pods ended")
        });
        begun.await.context("no answer to the watch of pods")??;
        Ok(follower)
    }

    /// Waits for a moment of a pod.
    pub(super) async fn moment(&mut self, name: &str, of: impl Fn(&Moments) -> Option<Instant>) -> Result<Instant> {
        let until = tokio::time::Instant::now() + limits::POD;
        loop {
            if let Some(at) = self.pods.get(name).and_then(&of) {
                return Ok(at);
            }
            let next = tokio::time::timeout_at(until, self.events.recv()).await;
            let Ok(seen) = next else {
                bail!("pod {name} got no further within {} s: {:?}", limits::POD.as_secs(), self.pods.get(name))
            };
            let seen = seen.context("the watch of pods ended")?;
            note(self.pods.entry(seen.name).or_default(), seen.fact, seen.at);
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn read(pods: Api<Pod>, sender: mpsc::Sender<Seen>) {
    let mut stream = std::pin::pin!(watcher(pods, watcher::Config::default()));
    while let Some(event) = stream.next().await {
        let at = Instant::now();
        let (name, fact) = match event {
            Ok(watcher::Event::InitDone) => (String::new(), Fact::Begun),
            Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => (pod.name_any(), state(&pod)),
            Ok(watcher::Event::Delete(pod)) => (pod.name_any(), Fact::Gone),
            Ok(watcher::Event::Init) => continue,
            Err(error) => {
                eprintln!("watch of pods: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        if sender.send(Seen { at, name, fact }).await.is_err() {
            return;
        }
    }
}

fn state(pod: &Pod) -> Fact {
    let status = pod.status.as_ref();
    let running = status.and_then(|status| status.phase.as_deref()) == Some("Running");
    let conditions = status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    Fact::Lives { bound, running, ready }
}

fn note(moments: &mut Moments, fact: Fact, at: Instant) {
    match fact {
        Fact::Begun => {}
        Fact::Lives { bound, running, ready } => {
            moments.bound = moments.bound.or(bound.then_some(at));
            moments.running = moments.running.or(running.then_some(at));
            moments.ready = moments.ready.or(ready.then_some(at));
        }
        Fact::Gone => moments.gone = moments.gone.or(Some(at)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_first_moments_are_kept() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut moments = Moments::default();
        for (second, fact) in [
            (1, Fact::Lives { bound: false, running: false, ready: false }),
            (2, Fact::Lives { bound: true, running: false, ready: false }),
            (3, Fact::Lives { bound: true, running: true, ready: false }),
            (4, Fact::Lives { bound: true, running: true, ready: true }),
            (5, Fact::Lives { bound: true, running: true, ready: true }),
            (6, Fact::Gone),
        ] {
            note(&mut moments, fact, after(second));
        }
        let [bound, running, ready, gone] = [2, 3, 4, 6].map(|second| Some(after(second)));
        let expected = Moments { bound, running, ready, gone };
        assert_eq!(moments, expected);
    }

    #[test]
    fn a_pods_state_is_read_from_its_status() {
        let check = |status: serde_json::Value, running, ready| {
            let pod: Pod = serde_json::from_value(serde_json::json!({"status": status})).unwrap();
            assert_eq!(state(&pod), Fact::Lives { bound: false, running, ready }, "{status}");
        };
        check(serde_json::json!({}), false, false);
        check(serde_json::json!({"phase": "Pending"}), false, false);
        check(serde_json::json!({"phase": "Running"}), true, false);
        let conditions = |status: &str| serde_json::json!([{"type": "Ready", "status": status}]);
        check(serde_json::json!({"phase": "Running", "conditions": conditions("False")}), true, false);
        check(serde_json::json!({"phase": "Running", "conditions": conditions("True")}), true, true);
    }

    #[test]
    fn a_pod_with_a_node_is_bound() {
        let pod: Pod =
            serde_json::from_value(serde_json::json!({"spec": {"nodeName": "n", "containers": []}})).unwrap();
        assert_eq!(state(&pod), Fact::Lives { bound: true, running: false, ready: false });
    }
}
