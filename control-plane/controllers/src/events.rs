//! Events for users (`kubectl describe`): core/v1 as upstream's controllers write them, in the background, repetitions counted.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::informer::Kind;
use crate::limits;
use crate::object::Object;

#[derive(Debug)]
struct Record {
    component: &'static str,
    namespace: String,
    regarding: Value,
    warning: bool,
    reason: &'static str,
    message: String,
}

/// Writes events. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Record>,
    component: &'static str,
}

impl Recorder {
    /// Starts the writer.
    pub(crate) fn start(client: Client, shutdown: CancellationToken) -> Self {
        let (queue, receiver) = mpsc::channel(limits::EVENTS_QUEUED);
        tokio::spawn(shutdown.run_until_cancelled_owned(write_all(client, receiver)));
        Self { queue, component: "sluice" }
    }

    /// The same for another component.
    pub(crate) fn of(&self, component: &'static str) -> Self {
        Self { queue: self.queue.clone(), component }
    }

    /// Something went as it should.
    pub(crate) fn normal<K: Kind>(&self, object: &K, reason: &'static str, message: String) {
        self.record(object, false, reason, message);
    }

    /// Something did not.
    pub(crate) fn warning<K: Kind>(&self, object: &K, reason: &'static str, message: String) {
        self.record(object, true, reason, message);
    }

    fn record<K: Kind>(&self, object: &K, warning: bool, reason: &'static str, message: String) {
        let regarding = json!({
            "apiVersion": K::api_version(&()), "kind": K::kind(&()), "name": object.name(), "uid": object.uid(),
            "namespace": object.meta().namespace, "resourceVersion": object.meta().resource_version,
        });
        let namespace = if object.ns().is_empty() { "default" } else { object.ns() }.to_owned();
        let message = message.chars().take(1024).collect();
        let record = Record { component: self.component, namespace, regarding, warning, reason, message };
        if let Err(mpsc::error::TrySendError::Full(record)) = self.queue.try_send(record) {
            tracing::warn!(?record, "too many events at once: one was dropped");
        }
    }
}

#[derive(Debug)]
struct Written {
    name: String,
    count: u32,
}

async fn write_all(client: Client, mut receiver: mpsc::Receiver<Record>) {
    let mut written: HashMap<Arc<str>, Written> = HashMap::new();
    while let Some(record) = receiver.recv().await {
        if written.len() >= limits::EVENTS_REMEMBERED {
            written.clear();
        }
        let identity: Arc<str> =
            format!("{}\0{}\0{}\0{}", record.component, record.regarding["uid"], record.reason, record.message).into();
        let api: Api<k8s_openapi::api::core::v1::Event> = Api::namespaced(client.clone(), &record.namespace);
        let now = Timestamp::now();
        if let Some(earlier) = written.get_mut(&identity) {
            earlier.count += 1;
            let patch = Patch::Merge(json!({"count": earlier.count, "lastTimestamp": format!("{now:.0}")}));
            if api.patch(&earlier.name, &PatchParams::default(), &patch).await.is_ok() {
                continue;
            }
            written.remove(&identity);
        }
        let name = format!("{}.{:x}", record.regarding["name"].as_str().unwrap_or_default(), now.as_nanosecond());
        match create(&client, &record, &name, now).await {
            Ok(()) => {
                written.insert(identity, Written { name, count: 1 });
            }
            Err(error) if matches!(&error, kube::Error::Api(status) if matches!(status.code, 403 | 404)) => {}
            Err(error) => tracing::debug!(reason = record.reason, %error, "cannot write an event"),
        }
    }
}

async fn create(client: &Client, record: &Record, name: &str, now: Timestamp) -> kube::Result<()> {
    let now = format!("{now:.0}");
    let body = json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": name, "namespace": record.namespace},
        "involvedObject": record.regarding, "reason": record.reason, "message": record.message,
        "source": {"component": record.component}, "reportingComponent": record.component, "reportingInstance": "",
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        "type": if record.warning { "Warning" } else { "Normal" },
    });
    let request = kube::core::Request::new(format!("/api/v1/namespaces/{}/events", record.namespace))
        .create(&PostParams::default(), body.to_string().into_bytes())
        .map_err(kube::Error::BuildRequest)?;
    client.request::<Value>(request).await.map(|_| ())
}
