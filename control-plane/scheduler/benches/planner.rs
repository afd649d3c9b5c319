//! One decision of the planner on 5,000 nodes that hold 10,000 pods. `cargo bench -p sluice-scheduler`.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde_json::{Value, json};
use sluice_scheduler::{cluster::Cluster, node::NodeSpec, plan::Planner, pod::Pod};

const NODES: usize = 5000;
const PODS: usize = 10_000;
const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";

fn node(number: usize) -> NodeSpec {
    let name = format!("node-{number}");
    NodeSpec::from_wire(
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {HOST: name, ZONE: format!("zone-{}", number % 10)}},
            "spec": {"taints": [{"key": "bench", "effect": "NoSchedule"}]},
            "status": {"allocatable": {"cpu": "4", "memory": "16Gi", "pods": "110"}},
        }))
        .unwrap(),
    )
}

fn pod(name: &str, mut rules: Value) -> Pod {
    rules["tolerations"] = json!([{"key": "bench", "operator": "Exists"}]);
    rules["containers"] = json!([{"name": "c", "resources": {"requests": {"cpu": "100m", "memory": "500Mi"}}}]);
    Pod::from_wire(
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "a"}},
            "spec": rules,
        }))
        .unwrap(),
    )
}

fn full() -> Cluster {
    let mut cluster = Cluster::default();
    for number in 0..NODES {
        cluster.set_node(node(number));
    }
    for number in 0..PODS {
        let node: Arc<str> = format!("node-{}", number % NODES).into();
        cluster.place(Arc::new(pod(&format!("pod-{number}"), json!({}))), &node);
    }
    cluster
}

fn planner(c: &mut Criterion) {
    let mut group = c.benchmark_group("planner");
    let mut cluster = full();
    let selector = json!({"matchLabels": {"app": "a"}});
    let near = |kind: &str, of: &Value, topology: &str| {
        let term = json!({"labelSelector": of, "topologyKey": topology});
        json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}})
    };
    let others = json!({"matchLabels": {"app": "b"}});
    let spread =
        json!({"maxSkew": 5, "topologyKey": ZONE, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector});
    let loads = [
        ("basic", json!({})),
        ("affinity", near("podAffinity", &selector, ZONE)),
        ("anti-affinity", near("podAntiAffinity", &others, HOST)),
        ("spread", json!({"topologySpreadConstraints": [spread]})),
    ];
    for (name, rules) in loads {
        let pod = pod("new", rules);
        let (mut planner, mut rng) = (Planner::default(), SmallRng::seed_from_u64(1));
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| planner.plan(&mut cluster, &pod, &mut rng).unwrap());
        });
    }
}

criterion_group!(benches, planner);
criterion_main!(benches);
