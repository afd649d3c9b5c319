//! A pod on its way in: strict decoding of a request's body, defaults, validation. `cargo bench -p sluice-api`.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use serde_json::json;
use sluice_api::{decode, resource::builtin, schema, strategy};

fn body() -> Vec<u8> {
    let container = json!({
        "name": "main", "image": "registry.example/app:1", "args": ["--serve", "--port=8080"],
        "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "ports": [{"containerPort": 8080}],
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}},
        "spec": {"containers": [container], "volumes": [{"name": "data", "emptyDir": {}}]},
    });
    serde_json::to_vec(&pod).unwrap()
}

fn pod(c: &mut Criterion) {
    let row = builtin().by_path("", "v1", "pods").unwrap();
    let schema = schema::builtin().get(&row.schema).unwrap();
    let body = body();
    let mut group = c.benchmark_group("pod");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("decode", |b| b.iter(|| decode::body(schema, black_box(&body)).unwrap()));
    let (decoded, _) = decode::body(schema, &body).unwrap();
    group.bench_function("defaults", |b| {
        b.iter_batched_ref(|| decoded.clone(), |pod| strategy::defaults(row, pod), criterion::BatchSize::SmallInput);
    });
    let mut whole = decoded.clone();
    strategy::defaults(row, &mut whole);
    group.bench_function("validate", |b| b.iter(|| strategy::validate_create(row, black_box(&whole))));
}

criterion_group!(benches, pod);
criterion_main!(benches);
