//! A namespace of the benches' own: everything that they create is in it, and goes with it.

use std::{collections::BTreeMap, time::Instant};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service, ServiceAccount};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
    runtime::watcher,
};
use serde_json::json;

use super::{Target, follow::Follower};
use crate::limits;

/// See the module.
pub(super) struct Space {
    client: Client,
    name: String,
    target: Target,
}

impl Space {
    /// Makes the namespace and waits until pods may be created in it.
    pub(super) async fn make(client: Client, target: Target) -> Result<Self> {
        let name = format!("sluice-bench-{}", std::process::id());
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        let namespaces = Api::<Namespace>::all(client.clone());
        namespaces.create(&PostParams::default(), &namespace).await.context("cannot make a namespace")?;
        let space = Self { client, name, target };
        let account = tokio::time::timeout(limits::POD, space.default_account()).await;
        if account.is_err() {
            space.remove().await?;
            bail!("the namespace's default ServiceAccount did not appear in {} s", limits::POD.as_secs());
        }
        Ok(space)
    }

    /// Removes the namespace and what is in it; the cluster does so in its own time.
    pub(super) async fn remove(&self) -> Result<()> {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        let removed = namespaces.delete(&self.name, &DeleteParams::default()).await;
        removed.map(drop).with_context(|| format!("cannot remove the namespace {}", self.name))
    }

    pub(super) fn image(&self) -> &str {
        &self.target.image
    }

    pub(super) fn arguments(&self) -> &[String] {
        &self.target.arguments
    }

    /// Follows the pods.
    pub(super) async fn follow(&self) -> Result<Follower> {
        Follower::start(self.pods()).await
    }

    /// Creates a pod; the moment before the request.
    pub(super) async fn create(&self, name: &str) -> Result<Instant> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"bench": name}},
            "spec": {
                "containers": [{
                    "name": "main",
                    "image": self.target.image,
                    "imagePullPolicy": "IfNotPresent",
                    "args": self.target.arguments,
                }],
            },
        }))?;
        let begun = Instant::now();
        self.pods().create(&PostParams::default(), &pod).await.with_context(|| format!("cannot create pod {name}"))?;
        Ok(begun)
    }

    /// Deletes a pod with its own grace period; the moment before the request.
    pub(super) async fn delete(&self, name: &str) -> Result<Instant> {
        let begun = Instant::now();
        let deleted = self.pods().delete(name, &DeleteParams::default()).await;
        deleted.map(|_| begun).with_context(|| format!("cannot delete pod {name}"))
    }

    /// The pod's address.
    pub(super) async fn address(&self, name: &str) -> Result<std::net::IpAddr> {
        let pod = self.pods().get_status(name).await?;
        let address = pod.status.and_then(|status| status.pod_ip).context("the pod has no address")?;
        Ok(address.parse()?)
    }

    /// What the API server says of a pod, for a message.
    pub(super) async fn describe(&self, name: &str) -> String {
        let status = self.pods().get_status(name).await.ok().and_then(|pod| pod.status);
        status.and_then(|status| serde_json::to_string(&status).ok()).unwrap_or_else(|| "it does not exist".into())
    }

    /// Makes a Service in front of the pod of that name; its address.
    pub(super) async fn service(&self, name: &str, port: u16, target: u16) -> Result<std::net::IpAddr> {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"selector": BTreeMap::from([("bench", name)]), "ports": [{"port": port, "targetPort": target}]},
        }))?;
        let services = Api::<Service>::namespaced(self.client.clone(), &self.name);
        let made = services.create(&PostParams::default(), &service).await.context("cannot create a Service")?;
        Ok(made.spec.and_then(|spec| spec.cluster_ip).context("the Service has no address")?.parse()?)
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Pods are refused before it is there.
    async fn default_account(&self) {
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), &self.name);
        let mut stream = std::pin::pin!(watcher(accounts, watcher::Config::default().fields("metadata.name=default")));
        while let Some(event) = stream.next().await {
            if let Ok(watcher::Event::Apply(_) | watcher::Event::InitApply(_)) = event {
                return;
            }
        }
    }
}
