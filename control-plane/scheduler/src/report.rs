//! Tells users what happened: the PodScheduled condition and events, written in the background through a bounded queue, so
//! that planning never waits for them.

use std::sync::Arc;

use futures::StreamExt;
use jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::limits;
use crate::pod::{Pod, SCHEDULER_NAME};
use crate::wire;

/// Message of a pod that waits for its gates.
pub(crate) const GATED: &str = "Scheduling is blocked due to non-empty scheduling gates";

/// Something to tell.
#[derive(Debug)]
pub(crate) enum Report {
    /// The pod was bound.
    Scheduled(Arc<Pod>, Arc<str>),
    /// It waits for its gates.
    Gated(Arc<Pod>),
    /// No node was found; the message says why.
    Unschedulable(Arc<Pod>, String),
    /// A pod was deleted to make room.
    Preempted {
        /// The pod that had to leave.
        victim: Arc<Pod>,
        /// The pod it made room for.
        by: Arc<Pod>,
        /// The node.
        node: Arc<str>,
    },
}

/// The sending side.
#[derive(Clone, Debug)]
pub(crate) struct Reporter {
    queue: mpsc::Sender<Report>,
}

impl Reporter {
    /// Starts the writer.
    pub(crate) fn start(client: Client, shutdown: CancellationToken) -> Self {
        let (queue, receiver) = mpsc::channel(limits::REPORTS_QUEUED);
        tokio::spawn(async move {
            let reports =
                futures::stream::unfold(receiver, |mut r| async move { r.recv().await.map(|item| (item, r)) });
            let written =
                reports.for_each_concurrent(limits::REPORTS_IN_FLIGHT, move |report| write(client.clone(), report));
            let _ = shutdown.run_until_cancelled(written).await;
        });
        Self { queue }
    }

    /// Queues a report; when the queue is full it is dropped and said.
    pub(crate) fn send(&self, report: Report) {
        if let Err(mpsc::error::TrySendError::Full(report)) = self.queue.try_send(report) {
            tracing::warn!(?report, "too many scheduling reports at once: one was dropped");
        }
    }
}

async fn write(client: Client, report: Report) {
    let client = &client;
    match report {
        Report::Scheduled(pod, node) => {
            let note = format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
            event(client, &pod, "Normal", "Scheduled", "Binding", &note, None).await;
        }
        Report::Gated(pod) => condition(client, &pod, "SchedulingGated", GATED).await,
        Report::Unschedulable(pod, message) => {
            condition(client, &pod, "Unschedulable", &message).await;
            event(client, &pod, "Warning", "FailedScheduling", "Scheduling", &message, None).await;
        }
        Report::Preempted { victim, by, node } => {
            let note = format!("Preempted by pod {} on node {node}", by.uid);
            event(client, &victim, "Normal", "Preempted", "Preempting", &note, Some(&by)).await;
        }
    }
}

async fn condition(client: &Client, pod: &Pod, reason: &str, message: &str) {
    let pods: Api<wire::Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let patch = json!({"metadata": {"uid": &*pod.uid}, "status": {"conditions": [{
        "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
        "lastProbeTime": null, "lastTransitionTime": seconds(Timestamp::now()),
    }]}});
    if let Err(error) = pods.patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch)).await
        && !gone(&error)
    {
        tracing::warn!(pod = pod.key(), %error, "cannot write the PodScheduled condition");
    }
}

async fn event(client: &Client, pod: &Pod, kind: &str, reason: &str, action: &str, note: &str, related: Option<&Pod>) {
    let now = Timestamp::now();
    let note: String = note.chars().take(1024).collect();
    let mut body = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": {"name": format!("{}.{:x}", pod.name, now.as_nanosecond()), "namespace": &*pod.namespace},
        "eventTime": format!("{now:.6}"),
        "reportingController": SCHEDULER_NAME, "reportingInstance": SCHEDULER_NAME,
        "action": action, "reason": reason, "type": kind, "note": note, "regarding": reference(pod),
    });
    if let Some(related) = related {
        body["related"] = reference(related);
    }
    let request = kube::core::Request::new(format!("/apis/events.k8s.io/v1/namespaces/{}/events", pod.namespace))
        .create(&PostParams::default(), body.to_string().into_bytes());
    let sent = match request {
        Ok(request) => client.request::<Value>(request).await.map(|_| ()),
        Err(error) => Err(kube::Error::BuildRequest(error)),
    };
    if let Err(error) = sent
        && !gone(&error)
    {
        tracing::debug!(pod = pod.key(), %error, "cannot write an event");
    }
}

fn reference(pod: &Pod) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "namespace": &*pod.namespace, "name": &*pod.name, "uid": &*pod.uid})
}

/// RFC 3339 in whole seconds.
fn seconds(at: Timestamp) -> String {
    format!("{at:.0}")
}

/// The pod or its namespace is gone or going: nobody is left to be told.
pub(crate) fn gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 403 | 404 | 409))
}
