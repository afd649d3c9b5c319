//! The node's connection to containerd.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::{
    Config, ContainerSpec, ContainerState, Credentials, Error, Event, ExecOutput, ExecSpec, Exit, ImageInfo, Process,
    Progress, Result, Stats,
};

/// The node's containers and images. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    config: Arc<Config>,
}

/// Events in order. After a lag or a restart of containerd comes [`Event::Resync`]; the stream never ends.
pub struct Events {
    events: tokio::sync::broadcast::Receiver<Event>,
}

impl Events {
    /// The next event.
    pub async fn next(&mut self) -> Event {
        self.events.recv().await.unwrap_or(Event::Resync)
    }
}

fn stub<T>() -> Result<T> {
    Err(Error::Containerd("not built yet".into()))
}

impl Runtime {
    /// Connects, makes the containerd namespace if needed and starts listening to events.
    pub async fn connect(config: Config) -> Result<Self> {
        Ok(Self { config: Arc::new(config) })
    }
    /// The configuration in use (the snapshotter filled in).
    pub fn config(&self) -> &Config {
        &self.config
    }
    /// containerd's version; an error says why it does not answer.
    pub async fn version(&self) -> Result<String> {
        stub()
    }
    /// The present image of this name (short names are completed, digests and image ids understood).
    pub async fn image(&self, _reference: &str) -> Result<Option<ImageInfo>> {
        stub()
    }
    pub async fn images(&self) -> Result<Vec<ImageInfo>> {
        stub()
    }
    /// Downloads and unpacks. `credentials` are tried in order, then anonymously; `progress` is called now and then.
    pub async fn pull(
        &self,
        _reference: &str,
        _credentials: &[Credentials],
        _progress: impl Fn(Progress) + Send + Sync,
    ) -> Result<ImageInfo> {
        stub()
    }
    /// Imports a `docker save` or OCI layout archive, gzipped or not. Returns the images it named.
    pub async fn import(&self, _archive: &Path) -> Result<Vec<ImageInfo>> {
        stub()
    }
    /// Removes the name; containerd collects what nothing uses any more.
    pub async fn remove_image(&self, _reference: &str) -> Result<()> {
        stub()
    }
    /// Makes the snapshot, the container and its task (cgroup, namespaces; nothing of it runs yet). Undone on error.
    pub async fn create(&self, _spec: &ContainerSpec) -> Result<()> {
        stub()
    }
    /// Runs it. Returns the pid.
    pub async fn start(&self, _id: &str) -> Result<u32> {
        stub()
    }
    /// `signal` (`None`: the image's, else SIGTERM), then SIGKILL after `grace`. Ended already is success.
    pub async fn stop(&self, _id: &str, _signal: Option<&str>, _grace: Duration) -> Result<Exit> {
        stub()
    }
    /// Sends a signal to the container's first process, or to all of them.
    pub async fn kill(&self, _id: &str, _signal: &str, _all: bool) -> Result<()> {
        stub()
    }
    /// Waits for the end.
    pub async fn wait(&self, _id: &str) -> Result<Exit> {
        stub()
    }
    /// Removes task, container, snapshot and its run-time files (killing it if it runs); the log stays. Gone is success.
    pub async fn remove(&self, _id: &str) -> Result<()> {
        stub()
    }
    /// Starts a command in a running container.
    pub async fn exec(&self, _id: &str, _spec: ExecSpec) -> Result<Process> {
        stub()
    }
    /// Runs a command to its end; killed after `timeout` with [`Error::Timeout`].
    pub async fn exec_sync(&self, _id: &str, _argv: Vec<String>, _timeout: Option<Duration>) -> Result<ExecOutput> {
        stub()
    }
    /// Joins the container's streams from now on; earlier output is in the log. stdin only if the container has one.
    pub async fn attach(&self, _id: &str) -> Result<Process> {
        stub()
    }
    /// Every container of ours, of any state.
    pub async fn containers(&self) -> Result<Vec<ContainerState>> {
        stub()
    }
    pub async fn container(&self, _id: &str) -> Result<Option<ContainerState>> {
        stub()
    }
    pub async fn stats(&self, _id: &str) -> Result<Stats> {
        stub()
    }
    /// Events from now on.
    pub fn events(&self) -> Events {
        let (_, events) = tokio::sync::broadcast::channel(crate::limits::EVENTS);
        Events { events }
    }
}
