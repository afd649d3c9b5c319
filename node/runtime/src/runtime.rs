//! The node's connection to containerd: everything the agent calls, and the one task that listens to events.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use containerd_client::services::v1::snapshots::StatSnapshotRequest;
use containerd_client::services::v1::{CreateNamespaceRequest, Namespace};
use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::cgroup::Cgroups;
use crate::client::Client;
use crate::host::Host;
use crate::images::Images;
use crate::turns::Turns;
use crate::{
    Config, Credentials, Error, Event, ExecOutput, ExecSpec, Exit, ImageInfo, Process, Progress, Result, Stats,
    archive, events, exec, registry,
};

/// The node's containers and images. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) client: Client,
    pub(crate) images: Arc<Images>,
    /// Of blobs and containers.
    pub(crate) turns: Turns,
    pub(crate) cgroups: Cgroups,
    pub(crate) host: Host,
    pub(crate) events: broadcast::Sender<Event>,
    /// Containers whose end was announced, until they are removed.
    pub(crate) announced: Mutex<HashSet<String>>,
    /// Somebody looks for shims of removed containers soon.
    pub(crate) seeing_off: AtomicBool,
}

/// Events in order. After a lag or a restart of containerd comes [`Event::Resync`]; the stream never ends.
pub struct Events {
    events: broadcast::Receiver<Event>,
}

impl Events {
    /// The next event.
    pub async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Ok(event) => event,
            Err(broadcast::error::RecvError::Lagged(_)) => Event::Resync,
            // The runtime is gone, and with it whatever could happen.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

impl Runtime {
    /// Connects, makes the containerd namespace if needed and starts listening to events.
    pub async fn connect(mut config: Config) -> Result<Self> {
        let client = Client::new(&config.socket, &config.namespace)?;
        make_namespace(&client, &config.namespace).await?;
        let snapshotter = match &config.snapshotter {
            Some(snapshotter) => snapshotter.clone(),
            None => choose_snapshotter(&client).await?,
        };
        config.snapshotter = Some(snapshotter.clone());
        std::fs::create_dir_all(&config.state_dir)
            .map_err(Error::io(format!("making {}", config.state_dir.display())))?;
        let images = Arc::new(Images::new(client.clone(), snapshotter));
        let cgroups = Cgroups::new(&config.cgroup_prefix);
        let (events, _) = broadcast::channel(crate::limits::EVENTS);
        let turns = Turns::default();
        let announced = Mutex::default();
        let inner = Inner {
            config,
            client,
            images,
            turns,
            cgroups,
            host: Host::detect(),
            events,
            announced,
            seeing_off: AtomicBool::new(false),
        };
        let runtime = Self { inner: Arc::new(inner) };
        events::listen(&runtime).await?;
        Ok(runtime)
    }

    /// The configuration in use (the snapshotter filled in).
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// The cgroups of this node's prefix.
    pub fn cgroups(&self) -> &Cgroups {
        &self.inner.cgroups
    }

    /// containerd's version; an error says why it does not answer.
    pub async fn version(&self) -> Result<String> {
        let client = &self.inner.client;
        let answer = client.version().version(client.call(())).await.map_err(client.failed("version"))?;
        Ok(answer.into_inner().version)
    }

    /// The present image of this name (short names are completed, digests and image ids understood).
    pub async fn image(&self, reference: &str) -> Result<Option<ImageInfo>> {
        self.inner.images.info(reference).await
    }

    /// Every present image that fits this machine.
    pub async fn images(&self) -> Result<Vec<ImageInfo>> {
        self.inner.images.infos().await
    }

    /// The present images that were pulled, with the names under which they came: those that can be had again.
    pub async fn pulled_images(&self) -> Result<Vec<ImageInfo>> {
        self.inner.images.pulled().await
    }

    /// Downloads and unpacks. `credentials` are tried in order, then anonymously; `progress` is called at every blob.
    pub async fn pull(
        &self,
        reference: &str,
        credentials: &[Credentials],
        progress: impl Fn(Progress) + Send + Sync,
    ) -> Result<ImageInfo> {
        let Inner { images, turns, config, .. } = &*self.inner;
        registry::pull(images, turns, &config.plain_http, reference, credentials, &progress).await?;
        let present = images.info(reference).await?;
        present.ok_or_else(|| Error::ImageMissing(reference.to_owned()))
    }

    /// Imports a `docker save` or OCI layout archive, gzipped or not. Returns the images it named.
    pub async fn import(&self, archive: &Path) -> Result<Vec<ImageInfo>> {
        archive::import(&self.inner.images, archive).await
    }

    /// Removes the name; containerd collects what nothing uses any more.
    pub async fn remove_image(&self, reference: &str) -> Result<()> {
        self.inner.images.unname(reference).await
    }

    /// Starts a command in a running container.
    pub async fn exec(&self, id: &str, spec: ExecSpec) -> Result<Process> {
        exec::start(self, id, spec).await
    }

    /// Runs a command to its end; killed after `timeout` with [`Error::Timeout`].
    pub async fn exec_sync(&self, id: &str, argv: Vec<String>, timeout: Option<Duration>) -> Result<ExecOutput> {
        exec::sync(self, id, argv, timeout).await
    }

    /// Joins the container's streams from now on; earlier output is in the log. stdin only if the container has one.
    pub async fn attach(&self, id: &str) -> Result<Process> {
        exec::attach(self, id).await
    }

    /// Counters of a running container.
    pub async fn stats(&self, id: &str) -> Result<Stats> {
        let record = self.container_record(id).await?;
        let path = record.labels.get(crate::labels::CGROUP).ok_or_else(|| Error::NotFound(id.to_owned()))?;
        self.inner.cgroups.stats(path)
    }

    /// Events from now on.
    pub fn events(&self) -> Events {
        Events { events: self.inner.events.subscribe() }
    }

    /// Waits for the end.
    pub async fn wait(&self, id: &str) -> Result<Exit> {
        self.await_exit(id).await
    }
}

async fn make_namespace(client: &Client, name: &str) -> Result<()> {
    let namespace = Namespace { name: name.to_owned(), labels: HashMap::new() };
    let request = client.call(CreateNamespaceRequest { namespace: Some(namespace) });
    match client.namespaces().create(request).await {
        Err(status) if status.code() != tonic::Code::AlreadyExists => Err(client.failed(name)(status)),
        _ => Ok(()),
    }
}

/// overlayfs where containerd could load it, else native.
async fn choose_snapshotter(client: &Client) -> Result<String> {
    let request = StatSnapshotRequest { snapshotter: "overlayfs".into(), key: "sluice-probe".into() };
    match client.snapshots().stat(client.call(request)).await {
        Err(status) if status.code() == tonic::Code::NotFound => Ok("overlayfs".into()),
        Err(status) if status.code() == tonic::Code::Unavailable => Err(client.failed("snapshotter")(status)),
        Ok(_) => Ok("overlayfs".into()),
        Err(status) => {
            tracing::warn!(%status, "overlayfs does not work here: the native snapshotter copies every layer");
            Ok("native".into())
        }
    }
}
