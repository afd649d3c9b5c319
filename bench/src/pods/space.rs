//! What the bench creates in its namespace, and goes with it.

use std::{collections::BTreeMap, time::Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};
use serde_json::json;

use super::{Target, follow::Follower};

/// See the module.
pub(super) struct Space {
    client: Client,
    name: String,
    target: Target,
}

impl Space {
    /// In the namespace of this name.
    pub(super) fn of(client: Client, name: &str, target: Target) -> Self {
        Self { client, name: name.into(), target }
    }

    pub(super) fn image(&self) -> &str {
        &self.target.image
    }

    pub(super) fn arguments(&self) -> Vec<String> {
        self.target.arguments()
    }

    /// Follows the pods.
    pub(super) async fn follow(&self) -> Result<Follower> {
        Follower::start(self.pods()).await
    }

    /// Creates a pod; the moment before the request.
    pub(super) async fn create(&self, name: &str) -> Result<Instant> {
        self.create_on(name, None).await
    }

    /// The same on a node of this name, if one is named.
    pub(super) async fn create_on(&self, name: &str, node: Option<&str>) -> Result<Instant> {
        let selector = node.map(|node| json!({"kubernetes.io/hostname": node}));
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"bench": name}},
            "spec": {
                "nodeSelector": selector,
                "containers": [{
                    "name": "main",
                    "image": self.target.image,
                    "imagePullPolicy": "IfNotPresent",
                    "args": self.target.arguments(),
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
}
