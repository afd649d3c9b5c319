//! The real node behind the seams: containerd, the kernel's network with the data plane, and the API server.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Client, Error};
use serde_json::{Value, json};
use sluice_dataplane::{Dataplane, Neighbour, PodInfo, ServicePath};
use sluice_network::{Bandwidth, Network};
use sluice_runtime::cgroup::Qos;
use sluice_runtime::{
    ContainerSpec, ContainerState, Credentials, ExecOutput, ExecSpec, Exit, ImageInfo, Prepared, Process, Resources,
    Result, Runtime, Stats,
};
use tokio::sync::watch;

use crate::model::Pod;
use crate::seams::{ApiError, Containers, PodAddress, PodApi, PodName, PodNetwork, Token};

#[async_trait]
impl Containers for Runtime {
    async fn version(&self) -> Result<String> {
        Runtime::version(self).await
    }
    async fn image(&self, reference: &str) -> Result<Option<ImageInfo>> {
        Runtime::image(self, reference).await
    }
    async fn images(&self) -> Result<Vec<ImageInfo>> {
        Runtime::images(self).await
    }
    async fn pulled_images(&self) -> Result<Vec<ImageInfo>> {
        Runtime::pulled_images(self).await
    }
    async fn pull(&self, reference: &str, credentials: &[Credentials]) -> Result<ImageInfo> {
        Runtime::pull(self, reference, credentials, |_| {}).await
    }
    async fn remove_image(&self, reference: &str) -> Result<()> {
        Runtime::remove_image(self, reference).await
    }
    async fn mount_image(&self, reference: &str, key: &str, target: &Path) -> Result<()> {
        Runtime::mount_image(self, reference, key, target).await
    }
    async fn unmount_image(&self, key: &str, target: &Path) -> Result<()> {
        Runtime::unmount_image(self, key, target).await
    }
    async fn prepare(&self, id: &str, image: &str) -> Result<Option<Prepared>> {
        Runtime::prepare(self, id, image).await
    }
    async fn create(&self, spec: &ContainerSpec, prepared: Option<Prepared>) -> Result<()> {
        match prepared {
            Some(prepared) => self.create_on(spec, prepared).await,
            None => Runtime::create(self, spec).await,
        }
    }
    async fn start(&self, id: &str) -> Result<u32> {
        Runtime::start(self, id).await
    }
    async fn stop(&self, id: &str, signal: Option<&str>, grace: Duration) -> Result<Exit> {
        Runtime::stop(self, id, signal, grace).await
    }
    async fn remove(&self, id: &str) -> Result<()> {
        Runtime::remove(self, id).await
    }
    async fn exec(&self, id: &str, spec: ExecSpec) -> Result<Process> {
        let (runtime, id) = (self.clone(), id.to_owned());
        on_a_thread(move |handle| handle.block_on(async move { Runtime::exec(&runtime, &id, spec).await })).await
    }
    async fn exec_sync(&self, id: &str, argv: Vec<String>, timeout: Option<Duration>) -> Result<ExecOutput> {
        let (runtime, id) = (self.clone(), id.to_owned());
        let run = async move |argv| Runtime::exec_sync(&runtime, &id, argv, timeout).await;
        on_a_thread(move |handle| handle.block_on(run(argv))).await
    }
    async fn attach(&self, id: &str) -> Result<Process> {
        Runtime::attach(self, id).await
    }
    async fn containers(&self) -> Result<Vec<ContainerState>> {
        Runtime::containers(self).await
    }
    async fn sweep(&self) -> Result<()> {
        Runtime::sweep(self).await
    }
    async fn stats(&self, id: &str) -> Result<Stats> {
        Runtime::stats(self, id).await
    }
    async fn layer_usage(&self, id: &str) -> Result<u64> {
        Runtime::layer_usage(self, id).await
    }
    async fn make_cgroup(&self, qos: Qos, uid: &str, limits: Resources) -> Result<String> {
        let path = self.cgroups().pod(qos, uid);
        self.cgroups().create(&path, &limits)?;
        Ok(path)
    }
    async fn update_cgroup(&self, path: &str, limits: Resources) -> Result<()> {
        self.cgroups().create(path, &limits)
    }
    async fn remove_cgroup(&self, qos: Qos, uid: &str) -> Result<()> {
        self.cgroups().remove(&self.cgroups().pod(qos, uid))
    }
}

/// For futures of the runtime that cannot change threads.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce(tokio::runtime::Handle) -> Result<T> + Send + 'static,
) -> Result<T> {
    let handle = tokio::runtime::Handle::current();
    let done = tokio::task::spawn_blocking(move || work(handle)).await;
    done.unwrap_or_else(|e| Err(sluice_runtime::Error::Containerd(e.to_string())))
}

/// Pods' links and addresses, attached to the data plane.
pub(crate) struct RealNetwork {
    pub(crate) network: Network,
    pub(crate) dataplane: Option<Dataplane>,
    /// True once the node has its pod range.
    pub(crate) ready: watch::Receiver<bool>,
}

#[async_trait]
impl PodNetwork for RealNetwork {
    async fn create(&self, pod: &PodName, services: ServicePath, limits: Bandwidth) -> Result<PodAddress, String> {
        // A sender that is gone means shutdown: nobody reads the answer then.
        if self.ready.clone().wait_for(|r| *r).await.is_err() {
            return Err("the node is shutting down".to_owned());
        }
        let net = self.network.create_pod(&pod.uid).await.map_err(|e| e.to_string())?;
        if let Some(dataplane) = self.dataplane.clone() {
            // What a pod sends is limited on its own side of the link or on the uplinks, what it receives on the node's.
            let straight = limits.ingress.is_none() && !net.queued;
            let neighbour = straight.then(|| Neighbour { addresses: net.ips.clone(), mac: net.mac });
            let info = PodInfo { namespace: pod.namespace.clone(), name: pod.name.clone(), services, neighbour };
            let (index, netns) = (net.host_ifindex, net.netns.clone());
            let added = tokio::task::spawn_blocking(move || dataplane.add_pod(index, &netns, &info)).await;
            added.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        }
        Ok(PodAddress { netns: net.netns, ips: net.ips })
    }

    async fn limit(&self, uid: &str, mut bandwidth: Bandwidth) -> Result<(), String> {
        if let (Some(dataplane), Some(bits)) = (self.dataplane.clone(), bandwidth.egress) {
            let index = self.network.create_pod(uid).await.map_err(|e| e.to_string())?.host_ifindex;
            let paced = tokio::task::spawn_blocking(move || dataplane.pace_pod(index, bits / 8)).await;
            match paced.map_err(|e| e.to_string())?.map_err(|e| e.to_string())? {
                None => bandwidth.egress = None,
                Some(reason) => tracing::debug!(uid, reason, "the pod's own link limits what it sends"),
            }
        }
        self.network.limit_pod(uid, bandwidth).await.map_err(|e| e.to_string())
    }

    async fn delete(&self, uid: &str) -> Result<(), String> {
        if let Some(dataplane) = &self.dataplane {
            let gone = self.network.addresses(uid).await.map_err(|e| e.to_string())?;
            dataplane.forget_addresses(gone).map_err(|e| e.to_string())?;
        }
        // The link goes, and the programs on it with it.
        self.network.delete_pod(uid).await.map_err(|e| e.to_string())
    }

    async fn retain(&self, uids: &HashSet<String>) -> Result<(), String> {
        for pod in self.network.pods().await.map_err(|e| e.to_string())? {
            if !uids.contains(&pod.uid) {
                self.delete(&pod.uid).await?;
            }
        }
        self.network.retain(uids).await.map_err(|e| e.to_string())
    }
}

/// The API server through `kube::Client`.
pub(crate) struct RealApi(pub(crate) Client);

#[async_trait]
impl PodApi for RealApi {
    async fn patch_status(&self, pod: &PodName, patch: &Value) -> Result<(), ApiError> {
        let api: Api<Pod> = Api::namespaced(self.0.clone(), &pod.namespace);
        let params = PatchParams::default();
        api.patch_status(&pod.name, &params, &Patch::Strategic(patch)).await.map(|_| ()).map_err(api_error)
    }

    async fn delete(&self, pod: &PodName) -> Result<(), ApiError> {
        let api: Api<Pod> = Api::namespaced(self.0.clone(), &pod.namespace);
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(pod.uid.clone()), ..Preconditions::default() }),
            ..DeleteParams::default()
        };
        api.delete(&pod.name, &params).await.map(|_| ()).map_err(api_error)
    }

    async fn runtime_handler(&self, class: &str) -> Result<String, ApiError> {
        let api: Api<RuntimeClass> = Api::all(self.0.clone());
        api.get(class).await.map(|class| class.handler).map_err(api_error)
    }

    async fn token(
        &self,
        pod: &PodName,
        account: &str,
        audience: Option<&str>,
        seconds: i64,
    ) -> Result<Token, ApiError> {
        let account = if account.is_empty() { "default" } else { account };
        let other = |e: &dyn std::fmt::Display| ApiError::Other(e.to_string());
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "metadata": {},
            "spec": {
                "audiences": audience.into_iter().collect::<Vec<_>>(),
                "expirationSeconds": seconds,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid},
            },
        });
        let uri = format!("/api/v1/namespaces/{}/serviceaccounts/{account}/token", pod.namespace);
        let request = http::Request::post(uri)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(serde_json::to_vec(&body).map_err(|e| other(&e))?)
            .map_err(|e| other(&e))?;
        let answer: TokenRequest = self.0.request(request).await.map_err(api_error)?;
        let status = answer.status.ok_or_else(|| other(&"the TokenRequest was answered without a token"))?;
        let (Some(token), Some(expires)) = (status.token, status.expiration_timestamp) else {
            return Err(other(&"the TokenRequest was answered without a token"));
        };
        Ok(Token { token, expires: expires.0.max(Timestamp::now()) })
    }
}

/// 404 and a uid that differs mean that the pod is gone.
fn api_error(e: Error) -> ApiError {
    match &e {
        Error::Api(status) if status.code == 404 => ApiError::Gone(status.message.clone()),
        Error::Api(status) if status.code == 409 && status.message.to_lowercase().contains("uid") => {
            ApiError::Gone(status.message.clone())
        }
        _ => ApiError::Other(e.to_string()),
    }
}
