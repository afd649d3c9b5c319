//! The node's containerd: when it did what, by its events, and the same image run by its own command.

use std::{
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail};
use containerd_client::{
    services::v1::{
        PublishRequest, SubscribeRequest,
        events_client::EventsClient,
        snapshots::{
            ListSnapshotsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, snapshots_client::SnapshotsClient,
        },
    },
    types::Envelope,
};
use tokio::{process::Command, sync::mpsc};
use tonic::{Request, Streaming, transport::Channel};

use super::{NodePlace, space::Space};
use crate::limits;

/// Where pods' containers are; `ctr` shares it, and with it the unpacked image.
const NAMESPACE: &str = "k8s.io";
const SNAPSHOTTER: &str = "overlayfs";
/// Containers and snapshots of ours.
const PREFIX: &str = "sluice-bench-ctr";
/// An event that we publish to see that the subscription stands.
const HELLO: &str = "/sluice/bench";

/// When containerd had done each step of one container's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Steps {
    pub(super) snapshot: SystemTime,
    pub(super) record: SystemTime,
    pub(super) task: SystemTime,
    pub(super) start: SystemTime,
}

/// See the module.
pub(super) struct Containerd {
    socket: PathBuf,
    cgroup: String,
    channel: Channel,
    events: mpsc::Receiver<(String, SystemTime)>,
}

impl Containerd {
    /// Returns when its events are being followed.
    pub(super) async fn connect(node: &NodePlace) -> Result<Self> {
        let channel = containerd_client::connect(&node.containerd)
            .await
            .with_context(|| format!("cannot reach containerd at {}", node.containerd.display()))?;
        let (sender, mut events) = mpsc::channel(limits::EVENTS);
        let subscribed = tokio::spawn(follow(channel.clone(), sender));
        let hello = async {
            loop {
                let event = prost_types::Any { type_url: "sluice.bench.Hello".into(), value: Vec::new() };
                let publish = PublishRequest { topic: HELLO.into(), event: Some(event) };
                EventsClient::new(channel.clone()).publish(call(publish)?).await?;
                // containerd does not say when a subscription stands, so the question is repeated.
                if tokio::time::timeout(Duration::from_millis(20), events.recv()).await.is_ok() {
                    return Ok::<_, anyhow::Error>(());
                }
                if subscribed.is_finished() {
                    bail!("no events from containerd");
                }
            }
        };
        tokio::time::timeout(limits::CONTAINERD_EVENT, hello).await.context("no events from containerd")??;
        Ok(Self { socket: node.containerd.clone(), cgroup: node.cgroup.clone(), channel, events })
    }

    /// Drops what has been heard so far.
    pub(super) fn forget(&mut self) {
        while self.events.try_recv().is_ok() {}
    }

    /// The steps of the one container that was started since [`Self::forget`].
    pub(super) async fn steps(&mut self) -> Result<Steps> {
        let mut found: [Option<SystemTime>; 4] = [None; 4];
        let all = async {
            while let Some((topic, at)) = self.events.recv().await {
                if let Some(place) = place(&topic) {
                    found[place].get_or_insert(at);
                }
                if let [Some(snapshot), Some(record), Some(task), Some(start)] = found {
                    return Ok(Steps { snapshot, record, task, start });
                }
            }
            bail!("containerd's events ended")
        };
        tokio::time::timeout(limits::CONTAINERD_EVENT, all).await.context("containerd did not tell of a start")?
    }

    /// Starts the image as `ctr run -d` does, in a network namespace of its own; its id.
    pub(super) async fn ctr_run(&self, space: &Space, number: usize) -> Result<String> {
        let id = format!("{PREFIX}-{number}");
        let mut command = self.ctr();
        command.args(["run", "--detach", "--snapshotter", SNAPSHOTTER]);
        command.args(["--cgroup", &format!("{}/{id}", self.cgroup)]).args([space.image(), &id]);
        // A command of its own replaces the whole of the image's.
        command.arg("/echo").args(space.arguments());
        ended(&mut command).await?;
        Ok(id)
    }

    /// Kills and removes it.
    pub(super) async fn ctr_remove(&self, id: &str) -> Result<()> {
        ended(self.ctr().args(["tasks", "delete", "--force", id])).await?;
        ended(self.ctr().args(["containers", "delete", id])).await
    }

    /// How long containerd takes for a container's snapshot, called by itself, in milliseconds.
    pub(super) async fn prepare_alone(&self, times: usize) -> Result<Vec<f64>> {
        let mut snapshots = SnapshotsClient::new(self.channel.clone());
        let list = ListSnapshotsRequest { snapshotter: SNAPSHOTTER.into(), filters: vec!["kind==committed".into()] };
        let first = snapshots.list(call(list)?).await?.into_inner().message().await?;
        let parent = first.and_then(|answer| answer.info.into_iter().next()).context("no unpacked image")?.name;
        let mut took = Vec::new();
        for number in 0..times {
            let key = format!("{PREFIX}-snapshot-{number}");
            let prepare = PrepareSnapshotRequest {
                snapshotter: SNAPSHOTTER.into(),
                key: key.clone(),
                parent: parent.clone(),
                // Nothing refers to it: without the label containerd may collect it before it is removed.
                labels: [("containerd.io/gc.root".to_owned(), "bench".to_owned())].into(),
            };
            let begun = Instant::now();
            snapshots.prepare(call(prepare)?).await?;
            took.push(begun.elapsed().as_secs_f64() * 1e3);
            let remove = RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key };
            snapshots.remove(call(remove)?).await?;
        }
        Ok(took)
    }

    fn ctr(&self) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&self.socket).args(["--namespace", NAMESPACE]);
        command
    }
}

async fn ended(command: &mut Command) -> Result<()> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let done = command.output().await.context("cannot start ctr")?;
    if !done.status.success() {
        bail!("{:?} ended with {}: {}", command.as_std(), done.status, String::from_utf8_lossy(&done.stderr));
    }
    Ok(())
}

/// Which of the four steps a topic tells of.
fn place(topic: &str) -> Option<usize> {
    ["/snapshot/prepare", "/containers/create", "/tasks/create", "/tasks/start"].iter().position(|step| *step == topic)
}

async fn follow(channel: Channel, sender: mpsc::Sender<(String, SystemTime)>) -> Result<()> {
    let filters = vec![format!("namespace=={NAMESPACE}")];
    let request = call(SubscribeRequest { filters })?;
    let mut stream: Streaming<Envelope> = EventsClient::new(channel).subscribe(request).await?.into_inner();
    while let Some(envelope) = stream.message().await? {
        let at = envelope.timestamp.and_then(|at| SystemTime::try_from(at).ok()).unwrap_or_else(SystemTime::now);
        sender.send((envelope.topic, at)).await?;
    }
    Ok(())
}

fn call<T>(message: T) -> Result<Request<T>> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", NAMESPACE.parse()?);
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_steps_in_their_order() {
        assert_eq!(place("/snapshot/prepare"), Some(0));
        assert_eq!(place("/tasks/start"), Some(3));
        assert_eq!(place("/tasks/exit"), None);
    }
}
