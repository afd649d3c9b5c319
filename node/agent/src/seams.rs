//! The narrow interfaces between a pod's worker and the world: containers, the pod network, the API server. The
//! real ones are thin ([`crate::real`]); tests put a simulated node behind the same traits.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use sluice_dataplane::ServicePath;
use sluice_network::Bandwidth;
use sluice_runtime::cgroup::Qos;
use sluice_runtime::{
    ContainerSpec, ContainerState, Credentials, ExecOutput, ExecSpec, Exit, ImageInfo, Prepared, Process, Resources,
    Result, Stats,
};

/// Images and containers.
#[async_trait]
pub trait Containers: Send + Sync + 'static {
    /// The runtime's version; an error says why it does not answer.
    async fn version(&self) -> Result<String>;
    async fn image(&self, reference: &str) -> Result<Option<ImageInfo>>;
    async fn images(&self) -> Result<Vec<ImageInfo>>;
    /// Those of them that were pulled by this node, and can be had again.
    async fn pulled_images(&self) -> Result<Vec<ImageInfo>>;
    async fn pull(&self, reference: &str, credentials: &[Credentials]) -> Result<ImageInfo>;
    /// Removes an image's names; its layers go when nothing uses them.
    async fn remove_image(&self, reference: &str) -> Result<()>;
    /// Mounts a present image for reading.
    async fn mount_image(&self, reference: &str, key: &str, target: &Path) -> Result<()>;
    async fn unmount_image(&self, key: &str, target: &Path) -> Result<()>;
    /// Makes the root file system of the container that will have this id; `None` if the image is not present. One that is
    /// not used is taken away by [`Self::remove`].
    async fn prepare(&self, id: &str, image: &str) -> Result<Option<Prepared>>;
    /// Makes a container, on the root file system that was made for its id if there is one.
    async fn create(&self, spec: &ContainerSpec, prepared: Option<Prepared>) -> Result<()>;
    /// Returns the pid.
    async fn start(&self, id: &str) -> Result<u32>;
    /// Signal (none: the image's), then SIGKILL after `grace`. The end is reported as an event, too.
    async fn stop(&self, id: &str, signal: Option<&str>, grace: Duration) -> Result<Exit>;
    async fn remove(&self, id: &str) -> Result<()>;
    async fn exec(&self, id: &str, spec: ExecSpec) -> Result<Process>;
    async fn exec_sync(&self, id: &str, argv: Vec<String>, timeout: Option<Duration>) -> Result<ExecOutput>;
    async fn attach(&self, id: &str) -> Result<Process>;
    async fn containers(&self) -> Result<Vec<ContainerState>>;
    /// Removes what a daemon that died had begun to make; before the first container is made.
    async fn sweep(&self) -> Result<()>;
    async fn stats(&self, id: &str) -> Result<Stats>;
    /// Bytes of a container's own layer.
    async fn layer_usage(&self, id: &str) -> Result<u64>;
    /// Makes the pod's cgroup and returns its path.
    async fn make_cgroup(&self, qos: Qos, uid: &str, limits: Resources) -> Result<String>;
    /// Sets the limits of a container's cgroup.
    async fn update_cgroup(&self, path: &str, limits: Resources) -> Result<()>;
    async fn remove_cgroup(&self, qos: Qos, uid: &str) -> Result<()>;
}

/// A pod's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodAddress {
    pub netns: PathBuf,
    pub ips: Vec<IpAddr>,
}

/// Pods' namespaces, links and addresses, and their place in the data plane.
#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Makes the pod's network, or finds it. A pod that is to be limited is told so now: its packets must not go past the limit.
    async fn create(&self, pod: &PodName, services: ServicePath, limits: Bandwidth) -> Result<PodAddress, String>;
    /// Limits the traffic of a pod that has its network.
    async fn limit(&self, uid: &str, bandwidth: Bandwidth) -> Result<(), String>;
    async fn delete(&self, uid: &str) -> Result<(), String>;
    /// Removes the networks of all pods but these.
    async fn retain(&self, uids: &HashSet<String>) -> Result<(), String>;
}

/// Who a pod is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodName {
    pub uid: String,
    pub namespace: String,
    pub name: String,
}

/// What a pod's worker asks of the API server.
#[async_trait]
pub trait PodApi: Send + Sync + 'static {
    /// Applies a strategic merge patch to the pod's status.
    async fn patch_status(&self, pod: &PodName, patch: &Value) -> Result<(), ApiError>;
    /// DELETE with grace 0 and the uid as precondition.
    async fn delete(&self, pod: &PodName) -> Result<(), ApiError>;
    /// The handler that a RuntimeClass names.
    async fn runtime_handler(&self, class: &str) -> Result<String, ApiError>;
    /// TokenRequest for the pod's service account.
    async fn token(
        &self,
        pod: &PodName,
        account: &str,
        audience: Option<&str>,
        seconds: i64,
    ) -> Result<Token, ApiError>;
}

/// A service account token and the end of its life.
#[derive(Clone, Debug)]
pub struct Token {
    pub token: String,
    pub expires: jiff::Timestamp,
}

/// A failed request to the API server.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ApiError {
    /// The object is gone, or another one has its name.
    #[error("{0}")]
    Gone(String),
    /// Anything else; worth another try.
    #[error("{0}")]
    Other(String),
}
