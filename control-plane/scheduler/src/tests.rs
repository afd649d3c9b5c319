//! Stories of the planner: clusters in, decisions and reasons out.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::node::NodeSpec;
use crate::plan::{Planner, Unschedulable};
use crate::pod::Pod;
use crate::wishes::Wishes;
use crate::{preempt, wire};

struct World {
    cluster: Cluster,
    planner: Planner,
    rng: SmallRng,
    pods: usize,
}

impl World {
    fn new() -> Self {
        Self { cluster: Cluster::default(), planner: Planner::default(), rng: SmallRng::seed_from_u64(1), pods: 0 }
    }

    fn node(&mut self, name: &str, labels: Value, extra: Value) -> &mut Self {
        let mut node = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}},
        });
        merge(&mut node, json!({"metadata": {"labels": labels}}));
        merge(&mut node, extra);
        let node: wire::Node = serde_json::from_value(node).unwrap();
        self.cluster.set_node(NodeSpec::from_wire(node));
        self
    }

    fn make(&mut self, labels: Value, spec: Value) -> Pod {
        self.pods += 1;
        let name = format!("p{}", self.pods);
        let mut pod =
            json!({"metadata": {"name": name, "namespace": "default", "uid": name, "labels": labels}, "spec": spec});
        merge(&mut pod, json!({"spec": {"containers": [{"name": "c"}]}}));
        Pod::from_wire(serde_json::from_value(pod).unwrap())
    }

    /// Plans a pod and assumes it; the node's name, or the message.
    fn schedule(&mut self, labels: Value, spec: Value) -> Result<String, String> {
        let pod = self.make(labels, spec);
        self.schedule_pod(pod).map_err(|failure| failure.tally.to_string())
    }

    fn schedule_pod(&mut self, pod: Pod) -> Result<String, Unschedulable> {
        let slot = self.planner.plan(&mut self.cluster, &pod, &mut self.rng)?;
        let name = self.cluster.node(slot).spec.name.clone();
        self.cluster.place(Arc::new(pod), &name);
        Ok(name.to_string())
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into @ Value::Null, from) => *into = from,
        (Value::Array(_), _) => {}
        (into, from) => *into = from,
    }
}

fn requests(cpu: &str) -> Value {
    json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]})
}

#[test]
fn no_nodes() {
    assert_eq!(World::new().schedule(json!({}), json!({})).unwrap_err(), "no nodes available to schedule pods");
}

#[test]
fn reasons_read_as_upstream() {
    let mut world = World::new();
    let taint = json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}});
    world.node("a", json!({}), taint.clone()).node("b", json!({}), taint).node("c", json!({}), json!({}));
    assert_eq!(
        world.schedule(json!({}), requests("5")).unwrap_err(),
        "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint {k: v}."
    );
    assert_eq!(world.schedule(json!({}), requests("4")).unwrap(), "c");
    assert_eq!(
        world
            .schedule(json!({}), json!({"nodeSelector": {"disk": "ssd"}, "tolerations": [{"operator": "Exists"}]}))
            .unwrap_err(),
        "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."
    );
}

#[test]
fn full_cordoned_and_busy_ports() {
    let mut world = World::new();
    world.node("a", json!({}), json!({"spec": {"unschedulable": true}}));
    world.node("b", json!({}), json!({"status": {"allocatable": {"pods": "1"}}}));
    let port = json!({"containers": [{"name": "c", "ports": [{"hostPort": 80, "containerPort": 80}]}]});
    assert_eq!(world.schedule(json!({}), port.clone()).unwrap(), "b");
    assert_eq!(
        world.schedule(json!({}), port).unwrap_err(),
        "0/2 nodes are available: 1 node(s) didn't have free ports for the requested pod ports, 1 node(s) were unschedulable."
    );
    assert_eq!(
        world.schedule(json!({}), json!({})).unwrap_err(),
        "0/2 nodes are available: 1 Too many pods, 1 node(s) were unschedulable."
    );
}

#[test]
fn controllers_pods_are_spread_by_default() {
    let mut world = World::new();
    for (node, zone) in [("a", "x"), ("b", "x"), ("c", "y")] {
        world.node(node, json!({"topology.kubernetes.io/zone": zone}), json!({}));
    }
    let mut per_node: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..9 {
        let pod = Pod { owner: Some("rs".into()), ..world.make(json!({}), json!({})) };
        *per_node.entry(world.schedule_pod(pod).unwrap()).or_default() += 1;
    }
    assert!(per_node.values().all(|n| (2..=5).contains(n)) && per_node.len() == 3, "{per_node:?}");
}

#[test]
fn hard_spread_by_zone() {
    let mut world = World::new();
    world.node("a", json!({"zone": "x"}), json!({})).node(
        "b",
        json!({"zone": "y"}),
        json!({"spec": {"unschedulable": true}}),
    );
    world.node("c", json!({}), json!({}));
    let spec = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "w"}}}]});
    assert_eq!(world.schedule(json!({"app": "w"}), spec.clone()).unwrap(), "a");
    assert_eq!(
        world.schedule(json!({"app": "w"}), spec).unwrap_err(),
        "0/3 nodes are available: 1 node(s) didn't match pod topology spread constraints, \
         1 node(s) didn't match pod topology spread constraints (missing required label), 1 node(s) were unschedulable."
    );
}

fn affinity(kind: &str, app: &str) -> Value {
    json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": app}}}]}}})
}

#[test]
fn pods_near_and_apart() {
    let mut world = World::new();
    world.node("a", json!({}), json!({})).node("b", json!({}), json!({}));
    // Nobody to be near.
    assert_eq!(
        world.schedule(json!({}), affinity("podAffinity", "db")).unwrap_err(),
        "0/2 nodes are available: 2 node(s) didn't match pod affinity rules."
    );
    // The first of a group that seeks itself goes anywhere, the others follow it.
    let first = world.schedule(json!({"app": "db"}), affinity("podAffinity", "db")).unwrap();
    for _ in 0..3 {
        assert_eq!(world.schedule(json!({}), affinity("podAffinity", "db")).unwrap(), first);
    }
    // One that keeps away from itself fills each node once.
    let one = world.schedule(json!({"app": "w"}), affinity("podAntiAffinity", "w")).unwrap();
    let two = world.schedule(json!({"app": "w"}), affinity("podAntiAffinity", "w")).unwrap();
    assert_ne!(one, two);
    assert_eq!(
        world.schedule(json!({"app": "w"}), affinity("podAntiAffinity", "w")).unwrap_err(),
        "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules."
    );
    // And those it keeps away are told so, though they have no rule themselves.
    assert_eq!(
        world.schedule(json!({"app": "w"}), json!({})).unwrap_err(),
        "0/2 nodes are available: 2 node(s) didn't satisfy existing pods anti-affinity rules."
    );
}

#[test]
fn the_least_loaded_node_wins() {
    let mut world = World::new();
    world.node("a", json!({}), json!({})).node("b", json!({}), json!({}));
    let first = world.schedule(json!({}), requests("2")).unwrap();
    assert_ne!(world.schedule(json!({}), requests("1")).unwrap(), first);
    let preferred = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 100, "preference": {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [first]}]}}]}}});
    assert_eq!(world.schedule(json!({}), preferred).unwrap(), first);
}

#[test]
fn preemption_takes_the_least_important() {
    let mut world = World::new();
    world.node("a", json!({}), json!({})).node("b", json!({}), json!({}));
    for (priority, node) in [(5, "a"), (1, "b"), (3, "b")] {
        let mut spec = requests("2");
        spec["priority"] = json!(priority);
        let pod = world.make(json!({}), spec);
        world.cluster.place(Arc::new(pod), &node.into());
    }
    let filler = world.make(json!({}), requests("2"));
    world.cluster.place(Arc::new(filler), &"a".into());
    for (priority, cpu, expected) in [(4, "2", Some("p4")), (10, "4", Some("p2 p3")), (0, "2", None)] {
        let mut spec = requests(cpu);
        spec["priority"] = json!(priority);
        let pod = world.make(json!({}), spec);
        let failure = world.planner.plan(&mut world.cluster, &pod, &mut world.rng).unwrap_err();
        let outcome = preempt::find(&world.cluster, &pod, &failure);
        let victims = outcome.chosen.map(|chosen| {
            let mut names: Vec<_> = chosen.victims.iter().map(|v| v.name.to_string()).collect();
            names.sort();
            names.join(" ")
        });
        assert_eq!(victims.as_deref(), expected);
        if expected.is_none() {
            let message = "0/2 nodes are available: 2 No preemption victims found for incoming pod.";
            assert_eq!(outcome.tally.to_string(), message);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes and goes, no node is ever overcommitted and the counts equal a recount.
    #[test]
    fn counts_stay_exact(steps in prop::collection::vec((0u8..4, 0usize..40, 1i64..2000, 0usize..3), 1..120)) {
        let mut world = World::new();
        for i in 0..4 {
            world.node(&format!("n{i}"), json!({"zone": format!("z{}", i % 2)}), json!({}));
        }
        let apps = ["x", "y", "z"];
        let spread = |app: &str| json!({"topologySpreadConstraints": [{"maxSkew": 3, "topologyKey": "zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": app}}}]});
        let mut live: Vec<String> = Vec::new();
        for (step, pick, cpu, app) in steps {
            if step == 0 && !live.is_empty() {
                let uid = live.swap_remove(pick % live.len());
                prop_assert!(world.cluster.remove(&uid).is_some());
            } else {
                let mut spec = requests(&format!("{cpu}m"));
                merge(&mut spec, spread(apps[app]));
                let pod = world.make(json!({"app": apps[app]}), spec);
                let uid = pod.uid.to_string();
                if world.schedule_pod(pod).is_ok() {
                    live.push(uid);
                }
            }
            for app in apps {
                let probe = world.make(json!({"app": app}), spread(app));
                let matching = probe.spread[0].matching.clone();
                let counted: Vec<u32> = world.cluster.counts(&matching).to_vec();
                for slot in world.cluster.live().to_vec() {
                    let node = world.cluster.node(slot);
                    let recount = node.pods.values().filter(|p| p.labels["app"] == app).count();
                    prop_assert_eq!(counted[slot] as usize, recount);
                    let used: i64 = node.pods.values().map(|p| p.requests.milli_cpu).sum();
                    prop_assert_eq!(used, node.requested.milli_cpu);
                    prop_assert!(used <= 4000);
                }
            }
        }
    }

    /// Whatever becomes of nodes, what was worked out of them is what a new look finds.
    #[test]
    fn wishes_stay_exact(steps in prop::collection::vec((0usize..5, 0u8..6), 1..40)) {
        let mut world = World::new();
        let taint = |effect: &str| json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": effect}]}});
        let pods = [
            json!({}),
            json!({"nodeSelector": {"disk": "ssd"}}),
            json!({"tolerations": [{"key": "k", "operator": "Exists"}]}),
        ].map(|spec| world.make(json!({}), spec));
        for (node, step) in steps {
            let name = format!("n{node}");
            match step {
                0 => world.cluster.remove_node(&name),
                1 => drop(world.node(&name, json!({"disk": "ssd"}), json!({}))),
                2 => drop(world.node(&name, json!({}), taint("NoSchedule"))),
                3 => drop(world.node(&name, json!({}), taint("PreferNoSchedule"))),
                4 => drop(world.node(&name, json!({}), json!({"spec": {"unschedulable": true}}))),
                _ => drop(world.node(&name, json!({}), json!({}))),
            }
            for pod in &pods {
                let kept = world.cluster.found(pod);
                for slot in world.cluster.live().to_vec() {
                    let fresh = Wishes::new(pod, std::iter::once(&world.cluster.node(slot).spec));
                    prop_assert_eq!(kept[slot], fresh.on[0]);
                }
            }
        }
    }
}
