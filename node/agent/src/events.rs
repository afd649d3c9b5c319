//! Writes core/v1 Events about pods and the node. Repetitions raise `count` of the first one; each object has a
//! budget of new events, as upstream's spam filter; the queue is bounded and what does not fit is counted.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;

use crate::limits;
use crate::model::Pod;

/// Budget of events per object: so many at once, one more every five minutes (upstream).
const BURST: f64 = 25.0;
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;

/// One event to be written.
#[derive(Clone, Debug)]
pub struct Note {
    pub about: ObjectReference,
    pub warning: bool,
    pub reason: String,
    pub message: String,
}

/// Takes events from anywhere in the node without ever making the caller wait.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Note>,
    dropped: Arc<AtomicU64>,
}

impl Recorder {
    /// A recorder and what it records, to be given to [`write`].
    pub fn new() -> (Recorder, mpsc::Receiver<Note>) {
        let (queue, notes) = mpsc::channel(limits::EVENT_QUEUE);
        (Recorder { queue, dropped: Arc::new(AtomicU64::new(0)) }, notes)
    }

    /// Records an event about a pod, or about its container when `container` names one.
    pub fn pod(&self, pod: &Pod, container: Option<&str>, warning: bool, reason: &str, message: &str) {
        let field = container.map(|name| {
            let among = |list: &[crate::model::Container]| list.iter().any(|c| c.name == name);
            let list = match () {
                () if among(&pod.spec.init_containers) => "initContainers",
                () if among(&pod.spec.ephemeral_containers) => "ephemeralContainers",
                () => "containers",
            };
            format!("spec.{list}{{{name}}}")
        });
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(pod.namespace().to_owned()),
            name: Some(pod.name().to_owned()),
            uid: Some(pod.uid().to_owned()),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: field,
        };
        self.note(Note { about, warning, reason: reason.to_owned(), message: message.to_owned() });
    }

    /// Records an event about the node.
    pub fn node(&self, name: &str, warning: bool, reason: &str, message: &str) {
        let about = ObjectReference {
            kind: Some("Node".into()),
            name: Some(name.to_owned()),
            uid: Some(name.to_owned()),
            ..ObjectReference::default()
        };
        self.note(Note { about, warning, reason: reason.to_owned(), message: message.to_owned() });
    }

    /// Records an event about a Service.
    pub fn service(&self, meta: &ObjectMeta, warning: bool, reason: &str, message: &str) {
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Service".into()),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            field_path: None,
        };
        self.note(Note { about, warning, reason: reason.to_owned(), message: message.to_owned() });
    }

    /// Events lost because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn note(&self, note: Note) {
        if self.queue.try_send(note).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes notes until every recorder is gone.
pub async fn write(client: Client, host: String, mut notes: mpsc::Receiver<Note>) {
    let mut series = Series::default();
    while let Some(note) = notes.recv().await {
        let now = Timestamp::now();
        let namespace = note.about.namespace.clone().unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let result = match series.next(&note, now) {
            Next::Drop => continue,
            Next::Repeat { name, count } => {
                let change = json!({"count": count, "lastTimestamp": Time(now), "message": note.message});
                api.patch(&name, &PatchParams::default(), &Patch::Merge(change)).await.map(|_| ())
            }
            Next::New { name } => {
                api.create(&PostParams::default(), &event(&note, name, namespace, &host, now)).await.map(|_| ())
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, reason = note.reason, "event not written");
            series.forget(&note);
        }
    }
}

fn event(note: &Note, name: String, namespace: String, host: &str, now: Timestamp) -> Event {
    let mut message = note.message.clone();
    if message.len() > limits::EVENT_MESSAGE {
        let mut end = limits::EVENT_MESSAGE;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
    }
    Event {
        metadata: ObjectMeta { name: Some(name), namespace: Some(namespace), ..ObjectMeta::default() },
        involved_object: note.about.clone(),
        type_: Some(if note.warning { "Warning" } else { "Normal" }.into()),
        reason: Some(note.reason.clone()),
        message: Some(message),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        source: Some(EventSource { component: Some("kubelet".into()), host: Some(host.to_owned()) }),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(host.to_owned()),
        ..Event::default()
    }
}

type Key = (String, String, String, String);

fn key(note: &Note) -> Key {
    let a = &note.about;
    (
        a.uid.clone().unwrap_or_default(),
        a.field_path.clone().unwrap_or_default(),
        note.reason.clone(),
        note.message.clone(),
    )
}

enum Next {
    New { name: String },
    Repeat { name: String, count: i32 },
    Drop,
}

/// What was written lately. Pure.
#[derive(Default)]
struct Series {
    known: HashMap<Key, (String, i32)>,
    order: VecDeque<Key>,
    budget: HashMap<String, (f64, Timestamp)>,
}

impl Series {
    fn next(&mut self, note: &Note, now: Timestamp) -> Next {
        let key = key(note);
        if !self.spend(&key.0, now) {
            return Next::Drop;
        }
        if let Some((name, count)) = self.known.get_mut(&key) {
            *count += 1;
            return Next::Repeat { name: name.clone(), count: *count };
        }
        while self.order.len() >= limits::EVENT_SERIES {
            if let Some(old) = self.order.pop_front() {
                self.known.remove(&old);
                self.budget.remove(&old.0);
            }
        }
        let name = format!("{}.{:x}", note.about.name.as_deref().unwrap_or_default(), now.as_nanosecond());
        self.order.push_back(key.clone());
        self.known.insert(key, (name.clone(), 1));
        Next::New { name }
    }

    fn forget(&mut self, note: &Note) {
        let key = key(note);
        self.known.remove(&key);
        self.order.retain(|k| *k != key);
    }

    fn spend(&mut self, uid: &str, now: Timestamp) -> bool {
        let (tokens, since) = self.budget.entry(uid.to_owned()).or_insert((BURST, now));
        let passed = now.duration_since(*since).as_secs_f64().max(0.0);
        *tokens = (*tokens + passed * REFILL_PER_SECOND).min(BURST);
        *since = now;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn repetitions_count_and_floods_end() {
        let mut series = Series::default();
        let now = Timestamp::UNIX_EPOCH;
        let note = |message: &str| Note {
            about: ObjectReference { uid: Some("u".into()), name: Some("p".into()), ..ObjectReference::default() },
            warning: true,
            reason: "BackOff".into(),
            message: message.into(),
        };
        assert!(matches!(series.next(&note("a"), now), Next::New { .. }));
        assert!(matches!(series.next(&note("a"), now), Next::Repeat { count: 2, .. }));
        assert!(matches!(series.next(&note("b"), now), Next::New { .. }));
        for _ in 3..25 {
            assert!(!matches!(series.next(&note("a"), now), Next::Drop));
        }
        assert!(matches!(series.next(&note("a"), now), Next::Drop));
        let later = now + std::time::Duration::from_secs(301);
        assert!(matches!(series.next(&note("a"), later), Next::Repeat { count: 25, .. }));
    }
}
