//! Pods and statistics: `/pods`, `/runningpods`, `/stats/summary`, `/metrics`, `/metrics/resource`.

use std::fmt::Write as _;
use std::sync::Arc;

use http::{Response, StatusCode};
use jiff::Timestamp;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};
use sluice_runtime::Stats;

use super::Shared;
use super::reply::{Reply, error, json as reply_json, with_type};
use crate::node::{machine, time};
use crate::pod::worker::View;

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
    reply_json(&json!({
        "node": {
            "nodeName": shared.node.identity.name,
            "memory": {"time": now, "availableBytes": available,
                "usageBytes": total.saturating_sub(available), "workingSetBytes": total.saturating_sub(available)},
        },
        "pods": list,
    }))
}

/// Upstream's resource metrics in Prometheus' text format.
pub(super) async fn resource(shared: &Arc<Shared>) -> Response<Reply> {
    let mut cpu = String::new();
    let mut memory = String::new();
    for view in views(shared) {
        for (name, stats) in usage(shared, &view).await {
            let labels =
                format!("container=\"{name}\",namespace=\"{}\",pod=\"{}\"", view.pod.namespace(), view.pod.name());
            // Writing to a string cannot fail.
            let _ = writeln!(cpu, "container_cpu_usage_seconds_total{{{labels}}} {}", stats.cpu_usage.as_secs_f64());
            let _ = writeln!(memory, "container_memory_working_set_bytes{{{labels}}} {}", stats.memory_working_set);
        }
    }
    let total = u64::try_from(shared.node.identity.memory).unwrap_or_default();
    let used = total.saturating_sub(machine::available_memory());
    let body = format!(
        "# TYPE container_cpu_usage_seconds_total counter\n{cpu}\
         # TYPE container_memory_working_set_bytes gauge\n{memory}\
         # TYPE node_memory_working_set_bytes gauge\nnode_memory_working_set_bytes {used}\n"
    );
    with_type("text/plain; version=0.0.4", body)
}

/// Counters of the daemon itself.
pub(super) fn metrics(shared: &Shared) -> Response<Reply> {
    let views = views(shared);
    let running: usize = views.iter().map(|v| v.containers.iter().filter(|c| c.id.is_some()).count()).sum();
    let body = format!(
        "# TYPE kubelet_node_name gauge\nkubelet_node_name{{node=\"{}\"}} 1\n\
         # TYPE kubelet_active_pods gauge\nkubelet_active_pods {}\n\
         # TYPE kubelet_running_containers gauge\nkubelet_running_containers{{container_state=\"running\"}} {running}\n\
         # TYPE sluice_events_dropped_total counter\nsluice_events_dropped_total {}\n",
        shared.node.identity.name,
        views.len(),
        shared.node.recorder.dropped(),
    );
    with_type("text/plain; version=0.0.4", body)
}

fn views(shared: &Shared) -> Vec<View> {
    shared.workers.all().iter().map(|h| h.view.borrow().clone()).collect()
}

async fn usage(shared: &Shared, view: &View) -> Vec<(String, Stats)> {
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
