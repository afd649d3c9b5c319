//! containerd's events as ours, for as long as the runtime lives; what is missed is made good by a resync.

use std::sync::{Arc, Weak};
use std::time::Duration;

use containerd_client::events::{ContainerDelete, TaskExit, TaskOom, TaskStart};
use containerd_client::services::v1::{PublishRequest, SubscribeRequest, WaitRequest};
use containerd_client::types::Envelope;
use nix::unistd::Pid;
use prost::Message;
use tonic::Streaming;

use crate::runtime::Inner;
use crate::{Error, Event, Result, Runtime, Status, exec, labels, limits, loggers, shims, sys};

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

/// Settles what ended unseen, waits for the end of what runs, and brings back loggers that died with an earlier daemon.
async fn resync(runtime: &Runtime) -> Result<()> {
    for state in runtime.settle_all().await? {
        let Status::Running { pid, .. } = state.status else { continue };
        watch(runtime, &state.id, pid);
        loggers::keep(runtime, &state.id);
        if let Err(error) = exec::revive_logger(&runtime.inner.config, &state).await {
            tracing::warn!(container = state.id, %error, "nobody reads a container's output");
        }
    }
    Ok(())
}

/// Waits for a running container's end beside the event of it: a shim that cannot get rid of its events drops them, and one
/// that hangs tells nothing.
pub(crate) fn watch(runtime: &Runtime, id: &str, pid: u32) {
    watch_process(runtime, id, pid);
    let (weak, client, id) = (Arc::downgrade(&runtime.inner), runtime.inner.client.clone(), id.to_owned());
    tokio::spawn(async move {
        let request = WaitRequest { container_id: id.clone(), exec_id: String::new() };
        // containerd or the shim has gone: the resync or containerd's own event tells what became of the container.
        let Ok(answer) = client.tasks().wait(client.endless(request)).await else { return };
        let (answer, Some(inner)) = (answer.into_inner(), weak.upgrade()) else { return };
        ended(&Runtime { inner }, &id, answer.exit_status, answer.exited_at).await;
    });
}

/// Looks at the container's first process: if its end is not written down a while after it, the kernel's word is taken, or the
/// shim is ended, and containerd tells an end of its own.
fn watch_process(runtime: &Runtime, id: &str, pid: u32) {
    // It may have ended already.
    let pid = Pid::from_raw(pid.cast_signed());
    let Ok(process) = sys::pidfd(pid) else { return };
    let (weak, id) = (Arc::downgrade(&runtime.inner), id.to_owned());
    tokio::spawn(async move {
        if process.readable().await.is_err() {
            return;
        }
        let at = prost_types::Timestamp::from(std::time::SystemTime::now());
        tokio::time::sleep(limits::END_UNTOLD).await;
        let Some(inner) = weak.upgrade() else { return };
        let runtime = Runtime { inner };
        match runtime.container_record(&id).await {
            Ok(record) if record.labels.contains_key(labels::EXIT) => return,
            // Removed meanwhile.
            Err(Error::NotFound(_)) => return,
            Ok(_) | Err(_) => {}
        }
        tracing::warn!(container = id, "a shim does not tell of its container's end");
        match sys::exit_code(pid, process.get_ref()) {
            Some(code) => ended(&runtime, &id, code, Some(at)).await,
            None => shims::end(&runtime.inner.config.socket, &id),
        }
    });
}

fn handle(runtime: Runtime, envelope: Envelope) {
    let Some(any) = envelope.event else { return };
    let event = match envelope.topic.as_str() {
        "/tasks/start" => TaskStart::decode(any.value.as_slice())
            .ok()
            .map(|event| Event::Started { id: event.container_id, pid: event.pid }),
        "/tasks/oom" => TaskOom::decode(any.value.as_slice()).ok().map(|event| Event::Oom { id: event.container_id }),
        "/containers/delete" => ContainerDelete::decode(any.value.as_slice()).ok().map(|event| {
            runtime.inner.announced.lock().remove(&event.id);
            Event::Removed { id: event.id }
        }),
        "/tasks/exit" => {
            // Of an exec'd process its own waiter knows.
            if let Ok(event) = TaskExit::decode(any.value.as_slice())
                && event.id == event.container_id
            {
                tokio::spawn(
                    async move { ended(&runtime, &event.container_id, event.exit_status, event.exited_at).await },
                );
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
/// logger's pipes until the task is deleted and answers that only after the logger's end: then the log is whole. Each of
/// these runtimes announces it once, whoever tells of it first; an end that another daemon has written down counts.
pub(crate) async fn ended(runtime: &Runtime, id: &str, code: u32, at: Option<prost_types::Timestamp>) {
    let _once = runtime.inner.turns.take(&format!("end of {id}")).await;
    let mut pause = limits::SETTLE_FIRST;
    loop {
        match settle(runtime, id, code, at).await {
            Ok(()) => return,
            Err(Error::NotFound(_)) => {
                tracing::debug!(container = id, "an unknown container ended");
                return;
            }
            // The end is not written down: a resync would settle it, but nobody may ever ask for one.
            Err(error) => tracing::warn!(container = id, %error, "the end of a container is not settled yet"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(limits::RECONNECT);
    }
}

async fn settle(runtime: &Runtime, id: &str, code: u32, at: Option<prost_types::Timestamp>) -> Result<()> {
    // Told twice, by an event and by our own waiter; or made up by containerd when a shim goes after its task.
    if runtime.inner.announced.lock().contains(id) {
        return Ok(());
    }
    let record = runtime.container_record(id).await?;
    // Not ours.
    if !record.labels.contains_key(labels::ATTEMPT) {
        return Ok(());
    }
    let exit = match runtime.written_exit(&record) {
        Some(exit) => exit,
        None => {
            let exit = runtime.exit(&record, code, at);
            runtime.write_exit(id, &exit).await?;
            exit
        }
    };
    // A task that is not let go, for whatever reason, must not hide the container's end.
    match tokio::time::timeout(limits::TASK_DELETED, runtime.delete_task(id)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(container = id, %error, "an ended container keeps its task"),
        Err(_) => tracing::warn!(container = id, "an ended container's task is not deleted yet"),
    }
    runtime.inner.announced.lock().insert(id.to_owned());
    // Nobody listening is fine.
    let _ = runtime.inner.events.send(Event::Exited { id: id.to_owned(), exit });
    Ok(())
}
