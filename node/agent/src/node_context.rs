//! What all pod workers of a node share: its identity, its directories, the seams to the world, and the bounds on
//! how much happens at once.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::allocations::Allocations;
use crate::env::ServiceLinks;
use crate::etc::DnsSettings;
use crate::events::Recorder;
use crate::eviction::signals::Pressure;
use crate::limits;
use crate::model::Pod;
use crate::pod::worker::Message;
use crate::references::References;
use crate::seams::{Containers, PodApi, PodNetwork};
use crate::volumes::{self, PodDir};

/// Facts of the node that do not change while it runs.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    pub name: String,
    /// The daemon's directory (`/var/lib/sluice`).
    pub dir: PathBuf,
    /// `/var/log/pods`.
    pub logs: PathBuf,
    pub ips: Vec<IpAddr>,
    pub dns: DnsSettings,
    /// Bytes of memory, for OOM scores.
    pub memory: i128,
    pub allocatable: BTreeMap<String, String>,
}

/// Shared by all workers.
pub struct NodeContext {
    pub identity: Identity,
    pub runtime: Arc<dyn Containers>,
    pub network: Arc<dyn PodNetwork>,
    pub api: Arc<dyn PodApi>,
    pub references: References,
    pub recorder: Recorder,
    pub allocations: Allocations,
    /// Services for environment variables; none before the first list.
    pub services: watch::Receiver<Option<ServiceLinks>>,
    /// The node's conditions.
    pub pressure: watch::Sender<Pressure>,
    pub pulls: Semaphore,
    pub starts: Semaphore,
    owners: Mutex<HashMap<String, (usize, mpsc::Sender<Message>)>>,
}

impl NodeContext {
    /// A context with empty registries.
    pub fn new(
        identity: Identity,
        runtime: Arc<dyn Containers>,
        network: Arc<dyn PodNetwork>,
        api: Arc<dyn PodApi>,
        references: References,
        recorder: Recorder,
        services: watch::Receiver<Option<ServiceLinks>>,
    ) -> NodeContext {
        NodeContext {
            allocations: Allocations::new(&identity.allocatable),
            identity,
            runtime,
            network,
            api,
            references,
            recorder,
            services,
            pressure: watch::Sender::default(),
            pulls: Semaphore::new(limits::PARALLEL_PULLS),
            starts: Semaphore::new(limits::PARALLEL_STARTS),
            owners: Mutex::new(HashMap::new()),
        }
    }

    /// The directories of a pod.
    pub fn dir(&self, uid: &str) -> PodDir {
        PodDir::new(&self.identity.dir, uid)
    }

    /// `/var/log/pods/<namespace>_<name>_<uid>`.
    pub fn log_dir(&self, pod: &Pod) -> PathBuf {
        self.identity.logs.join(format!("{}_{}_{}", pod.namespace(), pod.name(), pod.uid()))
    }

    /// The log file of one attempt of a container.
    pub fn log_path(&self, pod: &Pod, container: &str, attempt: u32) -> PathBuf {
        self.log_dir(pod).join(container).join(format!("{attempt}.log"))
    }

    /// Lets go of the images mounted for a pod.
    pub async fn unmount_images(&self, uid: &str) -> sluice_runtime::Result<()> {
        for (target, key) in volumes::image_mounts(&self.dir(uid), uid) {
            self.runtime.unmount_image(&key, &target).await?;
        }
        Ok(())
    }

    /// From now on events of this container go to that worker. Done before the container is made, so that none is lost.
    pub fn own(&self, container_id: &str, index: usize, worker: mpsc::Sender<Message>) {
        self.owners.lock().insert(container_id.to_owned(), (index, worker));
    }

    /// The container is gone.
    pub fn disown(&self, container_id: &str) {
        self.owners.lock().remove(container_id);
    }

    /// Whose container it is: its position in the pod, and the pod's worker.
    pub fn owner(&self, container_id: &str) -> Option<(usize, mpsc::Sender<Message>)> {
        self.owners.lock().get(container_id).cloned()
    }
}
