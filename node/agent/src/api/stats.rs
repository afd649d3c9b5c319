//! Pods, statistics and settings: `/pods`, `/runningpods`, `/stats/summary`, `/configz`.

use std::sync::Arc;

use http::{Response, StatusCode};
use jiff::Timestamp;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};
use sluice_runtime::Stats;

use super::Shared;
use super::reply::{Reply, error, json as reply_json};
use crate::eviction::signals::Signals;
use crate::limits;
use crate::node::{machine, time};
use crate::pod::worker::View;
use crate::quantity;

/// The pods of this node as the API server has them.
pub(super) async fn pods(shared: &Arc<Shared>) -> Response<Reply> {
    let api: Api<k8s_openapi::api::core::v1::Pod> = Api::all(shared.client.clone());
    let params = ListParams::default().fields(&format!("spec.nodeName={}", shared.node.identity.name));
    match api.list(&params).await {
        Ok(list) => reply_json(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": list.items})),
        Err(e) => error(StatusCode::INTERNAL_SERVER_ERROR, &format!("the API server was not reached: {e}")),
    }
}

/// The pods with running containers, by name alone.
pub(super) fn running(shared: &Shared) -> Response<Reply> {
    let items: Vec<Value> = views(shared)
        .iter()
        .filter(|v| v.containers.iter().any(|c| c.id.is_some()))
        .map(|v| {
            let names = v.containers.iter().filter(|c| c.id.is_some());
            json!({
                "metadata": {"name": v.pod.name(), "namespace": v.pod.namespace(), "uid": v.pod.uid()},
                "spec": {"containers": names.map(|c| json!({"name": c.name})).collect::<Vec<_>>()},
                "status": {},
            })
        })
        .collect();
    reply_json(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

/// Upstream's summary, with processor and memory.
pub(super) async fn summary(shared: &Arc<Shared>) -> Response<Reply> {
    let now = time(Timestamp::now());
    let mut list = Vec::new();
    for view in views(shared) {
        let (mut containers, mut cpu, mut memory) = (Vec::new(), 0u128, 0);
        for (name, stats) in usage(shared, &view).await {
            cpu += stats.cpu_usage.as_nanos();
            memory += stats.memory_working_set;
            containers.push(json!({
                "name": name,
                "cpu": {"time": now, "usageCoreNanoSeconds": u64::try_from(stats.cpu_usage.as_nanos()).unwrap_or(u64::MAX)},
                "memory": {"time": now, "usageBytes": stats.memory_usage,
                    "workingSetBytes": stats.memory_working_set, "rssBytes": stats.memory_rss},
            }));
        }
        list.push(json!({
            "podRef": {"name": view.pod.name(), "namespace": view.pod.namespace(), "uid": view.pod.uid()},
            "startTime": view.status.start_time,
            "containers": containers,
            "cpu": {"time": now, "usageCoreNanoSeconds": u64::try_from(cpu).unwrap_or(u64::MAX)},
            "memory": {"time": now, "workingSetBytes": memory},
        }));
    }
    let total = u64::try_from(shared.node.identity.memory).unwrap_or_default();
    let available = machine::available_memory();
    let cpu = u64::try_from(std::time::Duration::from_secs_f64(machine::cpu_seconds()).as_nanos()).unwrap_or(u64::MAX);
    let signals = Signals::read(&shared.node.identity.dir);
    let used = |room: crate::eviction::signals::Room| room.all.saturating_sub(room.left);
    let fs = json!({
        "time": now, "availableBytes": signals.disk.left, "capacityBytes": signals.disk.all,
        "usedBytes": used(signals.disk), "inodesFree": signals.inodes.left, "inodes": signals.inodes.all,
        "inodesUsed": used(signals.inodes),
    });
    reply_json(&json!({
        "node": {
            "nodeName": shared.node.identity.name,
            "cpu": {"time": now, "usageCoreNanoSeconds": cpu},
            "fs": fs, "runtime": {"imageFs": fs},
            "rlimit": {"time": now, "maxpid": signals.pids.all,
                "curproc": signals.pids.all.saturating_sub(signals.pids.left)},
            "memory": {"time": now, "availableBytes": available,
                "usageBytes": total.saturating_sub(available), "workingSetBytes": total.saturating_sub(available)},
        },
        "pods": list,
    }))
}

/// The settings in force, as far as upstream's clients look at them.
pub(super) fn configz(shared: &Shared) -> Response<Reply> {
    let dns: Vec<String> = shared.node.identity.dns.cluster_dns.iter().map(ToString::to_string).collect();
    let t = &shared.thresholds;
    reply_json(&json!({"kubeletconfig": {
        "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "clusterDomain": shared.node.identity.dns.cluster_domain,
        "clusterDNS": dns,
        "maxPods": limits::MAX_PODS,
        "podsPerCore": 0,
        "cgroupDriver": "cgroupfs",
        "cpuManagerPolicy": "none",
        "memoryManagerPolicy": "None",
        "topologyManagerPolicy": "none",
        "serializeImagePulls": false,
        "maxParallelImagePulls": limits::PARALLEL_PULLS,
        "nodeStatusMaxImages": limits::NODE_IMAGES,
        "nodeStatusUpdateFrequency": format!("{}s", limits::LEASE_RENEW.as_secs()),
        "nodeLeaseDurationSeconds": limits::LEASE_DURATION.as_secs(),
        "imageMinimumGCAge": "2m0s",
        "imageGCHighThresholdPercent": t.images_high,
        "imageGCLowThresholdPercent": t.images_low,
        "evictionHard": {
            "memory.available": quantity::binary(t.memory.into()),
            "nodefs.available": format!("{}%", t.disk),
            "nodefs.inodesFree": format!("{}%", t.inodes),
            "pid.available": format!("{}%", t.pids),
        },
        "evictionPressureTransitionPeriod": "5m0s",
        "failSwapOn": false,
        "enableServer": true,
        "enableSystemLogHandler": shared.system_logs.is_some(),
        "enableSystemLogQuery": false,
        "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": false}},
        "authorization": {"mode": "Webhook"},
    }}))
}

/// What is known of every pod of the node.
pub(super) fn views(shared: &Shared) -> Vec<View> {
    shared.workers.all().iter().map(|h| h.view.borrow().clone()).collect()
}

/// Counters of the pod's running containers, by name.
pub(super) async fn usage(shared: &Shared, view: &View) -> Vec<(String, Stats)> {
    let mut out = Vec::new();
    for c in &view.containers {
        if let Some(id) = &c.id
            && let Ok(stats) = shared.node.runtime.stats(id).await
        {
            out.push((c.name.clone(), stats));
        }
    }
    out
}
