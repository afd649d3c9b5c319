//! containerd's events as ours, for as long as the runtime lives; what is missed is made good by a resync.

use std::sync::{Arc, Weak};
use std::time::Duration;

use containerd_client::events::{ContainerDelete, TaskExit, TaskOom, TaskStart};
use containerd_client::services::v1::{PublishRequest, SubscribeRequest};
use containerd_client::types::Envelope;
use prost::Message;
use tonic::Streaming;

use crate::runtime::Inner;
use crate::{Error, Event, Result, Runtime, Status, exec, labels, limits};

/// The topic of our own event.
const READY: &str = "/sluice/ready";

/// Starts the task that listens. Everything that ended while nobody listened is settled first.
pub(crate) async fn listen(runtime: &Runtime) -> Result<()> {
    let stream = subscribe(runtime).await?;
    resync(runtime).await?;
    let weak = Arc::downgrade(&runtime.inner);
    tokio::spawn(follow(weak, stream));
    Ok(())
}

async fn follow(weak: Weak<Inner>, mut stream: Streaming<Envelope>) {
    loop {
        while let Ok(Some(envelope)) = stream.message().await {
            let Some(inner) = weak.upgrade() else { return };
            handle(Runtime { inner }, envelope);
        }
        let Some(next) = again(&weak).await else { return };
        stream = next;
    }
}

/// Subscribes anew after the stream has broken; `None` when the runtime is gone.
async fn again(weak: &Weak<Inner>) -> Option<Streaming<Envelope>> {
    let mut pause = Duration::from_millis(20);
    loop {
        let runtime = Runtime { inner: weak.upgrade()? };
        let resumed = async {
            let stream = subscribe(&runtime).await?;
            resync(&runtime).await?;
            Ok::<_, Error>(stream)
        };
        match resumed.await {
            Ok(stream) => {
                tracing::info!("containerd answers again");
                let _ = runtime.inner.events.send(Event::Resync);
                return Some(stream);
            }
            Err(error) => tracing::warn!(%error, "no events from containerd"),
        }
        drop(runtime);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(limits::RECONNECT);
    }
}

/// Subscribes, and returns only when the subscription is known to stand: containerd says nothing before its first event,
/// so we publish one of our own.
async fn subscribe(runtime: &Runtime) -> Result<Streaming<Envelope>> {
    let client = &runtime.inner.client;
    let namespace = &runtime.inner.config.namespace;
    let tasks = format!("namespace=={namespace},topic~=\"^/(tasks/(start|exit|oom)|containers/delete)$\"");
    let ours = format!("namespace=={namespace},topic==\"{READY}\"");
    let mut events = client.events();
    let subscribed = events.subscribe(client.endless(SubscribeRequest { filters: vec![tasks, ours] }));
    tokio::pin!(subscribed);
    let mut publisher = client.events();
    loop {
        let event = prost_types::Any { type_url: "io.sluice.Ready".into(), value: Vec::new() };
        let publish = client.call(PublishRequest { topic: READY.into(), event: Some(event) });
        publisher.publish(publish).await.map_err(client.failed("events"))?;
        if let Ok(answer) = tokio::time::timeout(limits::SUBSCRIBED, &mut subscribed).await {
            return Ok(answer.map_err(client.failed("events"))?.into_inner());
        }
    }
}

/// Settles what ended unseen, and brings back loggers that died with an earlier daemon.
async fn resync(runtime: &Runtime) -> Result<()> {
    for state in runtime.settle_all().await? {
        let running = matches!(state.status, Status::Running { .. });
        if running && let Err(error) = exec::revive_logger(&runtime.inner.config, &state).await {
            tracing::warn!(container = state.id, %error, "nobody reads a container's output");
        }
    }
    Ok(())
}

fn handle(runtime: Runtime, envelope: Envelope) {
    let Some(any) = envelope.event else { return };
    let event = match envelope.topic.as_str() {
        "/tasks/start" => TaskStart::decode(any.value.as_slice())
            .ok()
            .map(|event| Event::Started { id: event.container_id, pid: event.pid }),
        "/tasks/oom" => TaskOom::decode(any.value.as_slice()).ok().map(|event| Event::Oom { id: event.container_id }),
        "/containers/delete" => {
            ContainerDelete::decode(any.value.as_slice()).ok().map(|event| Event::Removed { id: event.id })
        }
        "/tasks/exit" => {
            // Of an exec'd process its own waiter knows.
            if let Ok(event) = TaskExit::decode(any.value.as_slice())
                && event.id == event.container_id
            {
                tokio::spawn(exited(runtime, event));
            }
            return;
        }
        _ => None,
    };
    if let Some(event) = event {
        // Nobody listening is fine.
        let _ = runtime.inner.events.send(event);
    }
}

/// Writes the end of a container down, lets its task go, and announces it. In this order, because the shim holds the
/// logger's pipes until the task is deleted and answers that only after the logger's end: then the log is whole.
async fn exited(runtime: Runtime, event: TaskExit) {
    let id = event.container_id;
    let record = match runtime.container_record(&id).await {
        Ok(record) => record,
        Err(error) => {
            tracing::debug!(container = id, %error, "an unknown container ended");
            return;
        }
    };
    // Not ours; or containerd tells a second, made-up end when a shim goes after its task.
    if !record.labels.contains_key(labels::ATTEMPT) || record.labels.contains_key(labels::EXIT) {
        return;
    }
    let exit = runtime.exit(&record, event.exit_status, event.exited_at);
    if let Err(error) = runtime.settle(&id, &exit).await {
        tracing::warn!(container = id, %error, "the end of a container is not written down yet");
    }
    let _ = runtime.inner.events.send(Event::Exited { id, exit });
}
