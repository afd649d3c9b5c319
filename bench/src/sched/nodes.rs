//! Nodes that are only objects: with a status that says Ready, and leases that are renewed as a node's daemon does.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use futures::{StreamExt as _, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

use super::{follow::Lines, pods};
use crate::{
    cluster::{Caller, Cluster, Space},
    lab::say,
    limits,
};

const ZONES: usize = 10;

/// See the module. Their leases are renewed until it is dropped.
pub(super) struct Nodes {
    pub(super) count: usize,
    renewal: AbortOnDropHandle<()>,
}

impl Nodes {
    /// Makes so many and waits until pods may be put on each of them.
    pub(super) async fn make(cluster: &Cluster, space: &Arc<Space>, count: usize) -> Result<Self> {
        say(&format!("making {count} nodes"));
        let callers: Vec<Caller> = (0..limits::LOAD_WRITERS).map(|_| cluster.caller()).collect::<Result<_>>()?;
        let now = now();
        let mut made = stream::iter(0..count)
            .map(|number| {
                let (name, caller, now) = (name(space, number), &callers[number % callers.len()], &now);
                async move { space.node(caller, &node(space, &name, number, now), &lease(space, &name, now)).await }
            })
            .buffer_unordered(limits::LOAD_WRITERS);
        while let Some(made) = made.next().await {
            made.context("cannot make a node")?;
        }
        drop(made);
        let renewal = AbortOnDropHandle::new(tokio::spawn(renew(cluster.caller()?, Arc::clone(space), count)));
        let ready = tokio::time::timeout(limits::NODES_READY, ready(space, count)).await;
        ready.unwrap_or_else(|_| bail!("not all nodes took pods within {} s", limits::NODES_READY.as_secs()))?;
        Ok(Self { count, renewal })
    }

    /// Removes them.
    pub(super) async fn remove(self, space: &Space) -> Result<()> {
        say("removing the nodes");
        drop(self.renewal);
        space.remove_nodes().await
    }
}

/// Of node `number`.
pub(super) fn name(space: &Space, number: usize) -> String {
    format!("{}-{number}", space.name)
}

#[derive(Deserialize)]
struct Seen {
    #[serde(default)]
    spec: Spec,
}

#[derive(Default, Deserialize)]
struct Spec {
    #[serde(default)]
    taints: Vec<Taint>,
}

#[derive(Deserialize)]
struct Taint {
    key: String,
}

#[derive(Deserialize)]
struct Event {
    object: Value,
}

/// Until no node has a taint beside ours: new ones have one until their status has been looked at.
async fn ready(space: &Space, count: usize) -> Result<()> {
    #[derive(Deserialize)]
    struct List {
        metadata: Value,
        items: Vec<Value>,
    }
    let path = space.nodes();
    let list: List = space.caller().read(&path).await?;
    let from = list.metadata["resourceVersion"].as_str().unwrap_or_default().to_owned();
    let mut good = std::collections::HashSet::new();
    for node in list.items {
        note(&mut good, node)?;
    }
    let mut lines = Lines::new(space.caller().stream(&format!("{path}&watch=1&resourceVersion={from}")).await?);
    while good.len() < count {
        let event: Event = lines.next().await?;
        note(&mut good, event.object)?;
    }
    Ok(())
}

fn note(good: &mut std::collections::HashSet<String>, node: Value) -> Result<()> {
    let name = node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let seen: Seen = serde_json::from_value(node)?;
    if seen.spec.taints.iter().all(|taint| taint.key.starts_with("sluice.dev/")) {
        good.insert(name);
    } else {
        good.remove(&name);
    }
    Ok(())
}

/// Renews every lease in each period, a share of them each second.
async fn renew(caller: Caller, space: Arc<Space>, count: usize) {
    let share = count.div_ceil(limits::LEASE_PERIOD.as_secs() as usize);
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    let mut next = 0;
    loop {
        ticks.tick().await;
        let at = now();
        let numbers = (next..next + share).map(|number| number % count);
        stream::iter(numbers)
            .for_each_concurrent(limits::LEASE_WRITERS, |number| {
                let (caller, space, at) = (&caller, &space, &at);
                async move {
                    if let Err(error) = space.renew(caller, &name(space, number), at).await {
                        eprintln!("a lease could not be renewed: {error:#}");
                    }
                }
            })
            .await;
        next = (next + share) % count;
    }
}

fn now() -> String {
    k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

fn node(space: &Space, name: &str, number: usize, now: &str) -> Value {
    let mut labels = space.label();
    labels[pods::HOST] = json!(name);
    labels[pods::ZONE] = json!(format!("zone-{}", number % ZONES));
    labels["kubernetes.io/os"] = json!("linux");
    let now = format!("{}Z", now.split('.').next().unwrap_or_default());
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": "of a bench",
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        })
    };
    let room = json!({"cpu": pods::NODE_CPU, "memory": pods::NODE_MEMORY, "pods": "110"});
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": [space.taint()]},
        "status": {
            "capacity": room,
            "allocatable": room,
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID"),
                condition("Ready", "True", "KubeletReady"),
            ],
            "addresses": [{"type": "Hostname", "address": name}],
            "nodeInfo": {
                "machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": "", "osImage": "",
                "containerRuntimeVersion": "", "kubeletVersion": "v1.36.0", "kubeProxyVersion": "",
                "operatingSystem": "linux", "architecture": "amd64",
            },
        },
    })
}

fn lease(space: &Space, name: &str, now: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "labels": space.label()},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now},
    })
}
