//! What a bench makes on a cluster, so that it can be removed whole: a namespace, and nodes with one label.

use std::{fmt, time::Instant};

use anyhow::{Context, Result, bail};
use futures::{StreamExt as _, future::try_join_all};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Caller;
use crate::{lab::say, limits};

/// The label that marks everything outside of the namespace.
const LABEL: &str = "sluice.dev/bench";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
const NODES: &str = "/api/v1/nodes";

/// See the module.
pub(crate) struct Space {
    caller: Caller,
    /// Of the namespace, and the label's value.
    pub(crate) name: String,
}

/// A place in the API that a bench makes objects at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    Pods,
    ConfigMaps,
    Deployments,
    Services,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pods => "pods",
            Self::ConfigMaps => "configmaps",
            Self::Deployments => "deployments",
            Self::Services => "services",
        })
    }
}

/// A list's beginning.
#[derive(Deserialize)]
struct List<T = serde::de::IgnoredAny> {
    metadata: ListMeta,
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

#[derive(Deserialize)]
struct Named {
    metadata: Name,
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    resource_version: String,
}

impl Space {
    pub(super) fn new(caller: Caller) -> Self {
        Self { caller, name: format!("sluice-bench-{}", std::process::id()) }
    }

    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The namespace, with its default ServiceAccount: pods are refused before it is there.
    pub(super) async fn make(&self) -> Result<()> {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name}});
        self.caller.post("/api/v1/namespaces", &namespace).await.context("cannot make a namespace")?;
        let accounts =
            format!("/api/v1/namespaces/{}/serviceaccounts?fieldSelector=metadata.name%3Ddefault", self.name);
        let appears = async {
            let list: List = self.caller.read(&accounts).await?;
            if !list.items.is_empty() {
                return Ok(());
            }
            let path = format!("{accounts}&watch=1&resourceVersion={}", list.metadata.resource_version);
            let mut watch = std::pin::pin!(self.caller.stream(&path).await?);
            watch.next().await.context("the watch of ServiceAccounts ended")?.map(drop)
        };
        let seconds = limits::POD.as_secs();
        let appeared = tokio::time::timeout(limits::POD, appears).await;
        appeared.unwrap_or_else(|_| bail!("the namespace's default ServiceAccount did not appear in {seconds} s"))
    }

    /// Removes everything and waits until it is gone. What cannot be removed does not keep the rest from it.
    pub(crate) async fn remove(&self) -> Result<()> {
        say("removing what was made");
        let ours = self.ours();
        // Deployments first, or they would make their pods again.
        let paths = [
            self.path(Object::Deployments),
            // Nobody runs them, so nobody would say that they have ended.
            format!("{}?gracePeriodSeconds=0", self.path(Object::Pods)),
            format!("{NODES}{ours}"),
            format!("{LEASES}{ours}"),
            self.namespace(),
        ];
        let mut outcome = Ok(());
        for path in paths {
            let deleted = self.caller.delete(&path).await;
            outcome = outcome.and(deleted);
        }
        outcome.and(self.gone().await).with_context(|| format!("cannot remove everything of {}", self.name))
    }

    /// Until the namespace is not there any more: the cluster empties it in its own time.
    async fn gone(&self) -> Result<()> {
        let until = Instant::now() + limits::GONE;
        while let Some(rest) = self.caller.find::<Value>(&self.namespace()).await? {
            if Instant::now() > until {
                let conditions = rest["status"]["conditions"].to_string();
                bail!("the namespace is still there after {} s: {conditions}", limits::GONE.as_secs());
            }
            tokio::time::sleep(limits::GONE_PAUSE).await;
        }
        Ok(())
    }

    fn namespace(&self) -> String {
        format!("/api/v1/namespaces/{}", self.name)
    }

    /// Selects what is outside of the namespace.
    fn ours(&self) -> String {
        format!("?labelSelector={}%3D{}", LABEL.replace('/', "%2F"), self.name)
    }

    /// The collection in the namespace.
    pub(crate) fn path(&self, of: Object) -> String {
        let group = if of == Object::Deployments { "apis/apps/v1" } else { "api/v1" };
        format!("/{group}/namespaces/{}/{of}", self.name)
    }

    /// Where the collection is now, for a watch from there.
    pub(crate) async fn revision(&self, of: Object) -> Result<String> {
        let list: List = self.caller.read(&format!("{}?limit=1", self.path(of))).await?;
        Ok(list.metadata.resource_version)
    }

    /// Deletes what the bench made of a kind in the namespace: everything but what the cluster puts into each.
    pub(crate) async fn empty(&self, of: Object) -> Result<()> {
        let path = format!("{}?fieldSelector=metadata.name%21%3Dkube-root-ca.crt", self.path(of));
        if !self.caller.delete_all(&format!("{path}&gracePeriodSeconds=0")).await? {
            // Before 1.23 Services could be deleted one by one only.
            let list: List<Named> = self.caller.read(&path).await?;
            for one in list.items {
                self.caller.delete(&format!("{}/{}", self.path(of), one.metadata.name)).await?;
            }
        }
        let list: List = self.caller.read(&format!("{path}&limit=1")).await?;
        if list.items.is_empty() { Ok(()) } else { bail!("{of} are left after all of them were deleted") }
    }

    /// The label that nodes carry and that pods select them by.
    pub(crate) fn label(&self) -> Value {
        json!({LABEL: self.name})
    }

    /// Keeps the pods of others away from these nodes.
    pub(crate) fn taint(&self) -> Value {
        json!({"key": LABEL, "value": self.name, "effect": "NoSchedule"})
    }

    pub(crate) fn toleration(&self) -> Value {
        json!({"key": LABEL, "operator": "Equal", "value": self.name, "effect": "NoSchedule"})
    }

    /// Makes a node with its status, and its lease.
    pub(crate) async fn node(&self, by: &Caller, node: &Value, lease: &Value) -> Result<()> {
        let made: Value = serde_json::from_slice(&by.post(NODES, node).await?)?;
        if made["status"].get("conditions").is_none() {
            let path = format!("{NODES}/{}/status", made["metadata"]["name"].as_str().unwrap_or_default());
            by.merge(&path, &json!({"status": node["status"]})).await?;
        }
        by.post(LEASES, lease).await.map(drop)
    }

    /// Renews a node's lease.
    pub(crate) async fn renew(&self, by: &Caller, node: &str, at: &str) -> Result<()> {
        by.merge(&format!("{LEASES}/{node}"), &json!({"spec": {"renewTime": at}})).await.map(drop)
    }

    /// Removes the nodes.
    pub(crate) async fn remove_nodes(&self) -> Result<()> {
        let ours = self.ours();
        try_join_all([format!("{NODES}{ours}"), format!("{LEASES}{ours}")].iter().map(|path| self.caller.delete(path)))
            .await
            .map(drop)
    }

    /// The nodes of this bench, as a path to list or watch.
    pub(crate) fn nodes(&self) -> String {
        format!("{NODES}{}", self.ours())
    }
}
