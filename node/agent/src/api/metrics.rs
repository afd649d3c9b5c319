//! Metrics in Prometheus' text format: `/metrics/resource` with upstream's names (what the metrics server reads),
//! `/metrics/cadvisor` with the containers' part of cAdvisor's. The texts are pure.

use std::fmt::Write as _;
use std::sync::Arc;

use http::Response;
use sluice_metrics::CONTENT_TYPE;
use sluice_runtime::Stats;

use super::Shared;
use super::reply::{Reply, with_type};
use super::stats::{usage, views};
use crate::node::machine;
use crate::pod::worker::View;

/// One running container.
#[derive(Clone, Debug, Default)]
struct Sample {
    namespace: String,
    pod: String,
    container: String,
    /// Seconds since 1970.
    started: Option<i64>,
    stats: Stats,
}

/// Upstream's resource metrics.
pub(super) async fn resource(shared: &Arc<Shared>) -> Response<Reply> {
    let samples = samples(shared).await;
    with_type(CONTENT_TYPE, resource_text(&samples, machine::cpu_seconds(), working_set(shared)))
}

/// The containers as cAdvisor shows them.
pub(super) async fn cadvisor(shared: &Arc<Shared>) -> Response<Reply> {
    with_type(CONTENT_TYPE, cadvisor_text(&samples(shared).await))
}

fn working_set(shared: &Shared) -> u64 {
    u64::try_from(shared.node.identity.memory).unwrap_or_default().saturating_sub(machine::available_memory())
}

async fn samples(shared: &Shared) -> Vec<Sample> {
    let mut out = Vec::new();
    for view in views(shared) {
        for (container, stats) in usage(shared, &view).await {
            out.push(Sample {
                namespace: view.pod.namespace().to_owned(),
                pod: view.pod.name().to_owned(),
                started: started(&view, &container),
                container,
                stats,
            });
        }
    }
    out
}

/// When the container that runs was started.
fn started(view: &View, container: &str) -> Option<i64> {
    let s = &view.status;
    let lists = [&s.init_container_statuses, &s.container_statuses, &s.ephemeral_container_statuses];
    let found = lists.into_iter().flatten().flatten().find(|c| c.name == container)?;
    Some(found.state.as_ref()?.running.as_ref()?.started_at.as_ref()?.0.as_second())
}

fn resource_text(samples: &[Sample], node_cpu: f64, node_memory: u64) -> String {
    let mut out = String::new();
    let each = |out: &mut String, name: &str, kind: &str, value: &dyn Fn(&Sample) -> Option<String>| {
        head(out, name, kind);
        for s in samples {
            if let Some(value) = value(s) {
                line(out, name, &format!("container=\"{}\",{}", s.container, of_pod(s)), &value);
            }
        }
    };
    let cpu = |s: &Sample| Some(s.stats.cpu_usage.as_secs_f64().to_string());
    each(&mut out, "container_cpu_usage_seconds_total", "counter", &cpu);
    let memory = |s: &Sample| Some(s.stats.memory_working_set.to_string());
    each(&mut out, "container_memory_working_set_bytes", "gauge", &memory);
    each(&mut out, "container_start_time_seconds", "gauge", &|s| s.started.map(|t| t.to_string()));
    for (name, kind, value) in [
        ("node_cpu_usage_seconds_total", "counter", node_cpu.to_string()),
        ("node_memory_working_set_bytes", "gauge", node_memory.to_string()),
    ] {
        head(&mut out, name, kind);
        line(&mut out, name, "", &value);
    }
    let mut pods: Vec<(String, f64, u64)> = Vec::new();
    for s in samples {
        let (cpu, memory) = (s.stats.cpu_usage.as_secs_f64(), s.stats.memory_working_set);
        match pods.iter_mut().find(|(pod, ..)| *pod == of_pod(s)) {
            Some(pod) => (pod.1, pod.2) = (pod.1 + cpu, pod.2 + memory),
            None => pods.push((of_pod(s), cpu, memory)),
        }
    }
    head(&mut out, "pod_cpu_usage_seconds_total", "counter");
    pods.iter().for_each(|(pod, cpu, _)| line(&mut out, "pod_cpu_usage_seconds_total", pod, &cpu.to_string()));
    head(&mut out, "pod_memory_working_set_bytes", "gauge");
    pods.iter().for_each(|(pod, _, memory)| line(&mut out, "pod_memory_working_set_bytes", pod, &memory.to_string()));
    head(&mut out, "resource_scrape_error", "gauge");
    line(&mut out, "resource_scrape_error", "", "0");
    out
}

fn cadvisor_text(samples: &[Sample]) -> String {
    let mut out = String::new();
    type Value = fn(&Stats) -> String;
    let metrics: [(&str, &str, &str, Value); 5] = [
        ("container_cpu_usage_seconds_total", "counter", ",cpu=\"total\"", |s| s.cpu_usage.as_secs_f64().to_string()),
        ("container_memory_usage_bytes", "gauge", "", |s| s.memory_usage.to_string()),
        ("container_memory_working_set_bytes", "gauge", "", |s| s.memory_working_set.to_string()),
        ("container_memory_rss", "gauge", "", |s| s.memory_rss.to_string()),
        ("container_processes", "gauge", "", |s| s.pids.to_string()),
    ];
    for (name, kind, more, value) in metrics {
        head(&mut out, name, kind);
        for s in samples {
            line(&mut out, name, &format!("container=\"{}\"{more},{}", s.container, of_pod(s)), &value(&s.stats));
        }
    }
    out
}

fn of_pod(s: &Sample) -> String {
    format!("namespace=\"{}\",pod=\"{}\"", s.namespace, s.pod)
}

fn head(out: &mut String, name: &str, kind: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "# TYPE {name} {kind}");
}

fn line(out: &mut String, name: &str, labels: &str, value: &str) {
    let _ = match labels {
        "" => writeln!(out, "{name} {value}"),
        labels => writeln!(out, "{name}{{{labels}}} {value}"),
    };
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_the_metrics_server_reads() {
        let sample = |container: &str, millis, memory| Sample {
            namespace: "ns".into(),
            pod: "p".into(),
            container: container.into(),
            started: Some(17),
            stats: Stats {
                cpu_usage: Duration::from_millis(millis),
                memory_working_set: memory,
                pids: 3,
                ..Stats::default()
            },
        };
        let samples = [sample("a", 1500, 10), sample("b", 500, 5)];
        let text = resource_text(&samples, 99.5, 1000);
        for expected in [
            "# TYPE container_cpu_usage_seconds_total counter\n",
            "container_cpu_usage_seconds_total{container=\"a\",namespace=\"ns\",pod=\"p\"} 1.5\n",
            "container_start_time_seconds{container=\"b\",namespace=\"ns\",pod=\"p\"} 17\n",
            "node_cpu_usage_seconds_total 99.5\n",
            "node_memory_working_set_bytes 1000\n",
            "pod_cpu_usage_seconds_total{namespace=\"ns\",pod=\"p\"} 2\n",
            "pod_memory_working_set_bytes{namespace=\"ns\",pod=\"p\"} 15\n",
            "resource_scrape_error 0\n",
        ] {
            assert!(text.contains(expected), "{expected} in\n{text}");
        }
        assert!(
            cadvisor_text(&samples).contains("container_processes{container=\"b\",namespace=\"ns\",pod=\"p\"} 3\n")
        );
    }
}
