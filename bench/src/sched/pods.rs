//! The pods of each load, and the objects that come and go beside them. Pure.

use serde_json::{Value, json};

use crate::cluster::Space;

/// Pods that fit on one node, by what they ask for.
pub(super) const EACH: usize = 40;
/// The CPU that a node of the bench has.
pub(super) const NODE_CPU: &str = "4";
/// And its memory.
pub(super) const NODE_MEMORY: &str = "32Gi";
pub(super) const ZONE: &str = "topology.kubernetes.io/zone";
pub(super) const HOST: &str = "kubernetes.io/hostname";

/// What a pod asks of the scheduler beside room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Plain,
    Affinity,
    AntiAffinity,
    Spread,
}

/// A pod for the bench's nodes.
pub(super) fn pod(space: &Space, shape: Shape, name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels(shape)},
        "spec": spec(space, shape),
    })
}

/// A pod that fits nowhere.
pub(super) fn giant(space: &Space, name: &str) -> Value {
    let mut pod = pod(space, Shape::Plain, name);
    pod["metadata"]["labels"] = json!({"app": "giant"});
    pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("1000");
    pod
}

pub(super) fn deployment(space: &Space, replicas: usize) -> Value {
    let labels = json!({"app": "deployment"});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "bench"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec(space, Shape::Plain)},
        },
    })
}

pub(super) fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": "giant"}, "ports": [{"port": 80}]},
    })
}

fn labels(shape: Shape) -> Value {
    json!({"app": match shape {
        Shape::Plain => "plain",
        Shape::Affinity => "affinity",
        Shape::AntiAffinity => "anti-affinity",
        Shape::Spread => "spread",
    }})
}

fn spec(space: &Space, shape: Shape) -> Value {
    let mut spec = json!({
        "nodeSelector": space.label(),
        "tolerations": [space.toleration()],
        "containers": [{
            "name": "main",
            "image": "registry.k8s.io/pause:3.10",
            "resources": {"requests": {"cpu": "100m", "memory": "500Mi"}},
        }],
    });
    let near = |topology: &str| {
        let term = json!({"labelSelector": {"matchLabels": labels(shape)}, "topologyKey": topology});
        json!({"requiredDuringSchedulingIgnoredDuringExecution": [term]})
    };
    match shape {
        Shape::Plain => {}
        Shape::Affinity => spec["affinity"] = json!({"podAffinity": near(ZONE)}),
        Shape::AntiAffinity => spec["affinity"] = json!({"podAntiAffinity": near(HOST)}),
        Shape::Spread => {
            spec["topologySpreadConstraints"] = json!([{
                "maxSkew": 5,
                "topologyKey": ZONE,
                "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": labels(shape)},
            }]);
        }
    }
    spec
}
