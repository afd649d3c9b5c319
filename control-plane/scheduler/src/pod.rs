//! A pod as the planner sees it: everything that matters for placing it, computed once when it arrives.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::core::{Selector, SelectorExt};

use crate::resources::{ContainerRequest, Resources, effective};
use crate::wire;

/// Name under which pods ask for this scheduler.
pub const SCHEDULER_NAME: &str = "default-scheduler";

/// A pod to place, or one already placed.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    /// `metadata.uid`: the pod's identity.
    pub uid: Arc<str>,
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// Uid of the controller that owns it: pods of one controller are spread by default.
    pub owner: Option<Arc<str>>,
    /// Node it is bound to.
    pub node: Option<Arc<str>>,
    /// Node that preemption made room on.
    pub nominated: Option<Arc<str>>,
    /// `spec.schedulerName`.
    pub scheduler: Box<str>,
    /// Held back by scheduling gates.
    pub gated: bool,
    /// Succeeded or Failed: it needs no room any more.
    pub finished: bool,
    /// Has a deletion timestamp.
    pub deleting: bool,
    /// `spec.priority`.
    pub priority: i32,
    /// False with `preemptionPolicy: Never`.
    pub may_preempt: bool,
    /// Creation time; start time once it runs.
    pub since: Timestamp,
    /// Effective request.
    pub requests: Resources,
    /// The same with defaults for containers that name none, for scoring.
    pub scored_requests: Resources,
    /// Host ports wanted.
    pub ports: Vec<HostPort>,
    /// Images of all containers.
    pub images: Vec<Box<str>>,
    /// `spec.nodeSelector`.
    pub node_selector: BTreeMap<String, String>,
    /// Required node affinity; `Some(vec![])` matches nothing.
    pub node_terms: Option<Vec<core::NodeSelectorTerm>>,
    /// Preferred node affinity.
    pub preferred_nodes: Vec<core::PreferredSchedulingTerm>,
    /// `spec.tolerations`.
    pub tolerations: Vec<core::Toleration>,
    /// Explicit spread constraints.
    pub spread: Vec<Spread>,
    /// Required pod affinity.
    pub affinity: Vec<Arc<Term>>,
    /// Required pod anti-affinity.
    pub anti_affinity: Vec<Arc<Term>>,
    /// Preferred pod affinity (positive) and anti-affinity (negative weights).
    pub preferred_pods: Vec<(i64, Arc<Term>)>,
    /// The PodScheduled=False message the API already holds, so that it is written only when it changes.
    pub reported: Option<Box<str>>,
}

/// A port wanted on the node itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Address; `0.0.0.0` is all of them.
    pub ip: Box<str>,
    /// TCP, UDP or SCTP.
    pub protocol: Box<str>,
    /// Number.
    pub port: i32,
}

impl HostPort {
    /// Whether both cannot be had on one node.
    pub fn conflicts(&self, other: &Self) -> bool {
        let any = |ip: &str| ip == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || any(&self.ip) || any(&other.ip))
    }
}

/// A topology spread constraint (KEP-895).
#[derive(Clone, Debug)]
pub struct Spread {
    /// Node label whose values are the domains.
    pub topology_key: Box<str>,
    /// Largest allowed difference.
    pub max_skew: i64,
    /// DoNotSchedule; otherwise it only scores.
    pub hard: bool,
    /// Fewer domains than this count as a minimum of zero.
    pub min_domains: Option<i64>,
    /// Count only nodes the pod's node affinity admits.
    pub honor_affinity: bool,
    /// Count only nodes whose taints the pod tolerates.
    pub honor_taints: bool,
    /// Which pods are counted.
    pub matching: Arc<Matching>,
}

/// Which pods a selector means, with a key under which equal ones share their counts.
#[derive(Clone, Debug)]
pub struct Matching {
    /// Equal for equal meaning.
    pub key: Box<str>,
    /// Namespaces by name.
    pub namespaces: Vec<Box<str>>,
    /// Namespaces by label, in addition.
    pub namespace_selector: Option<Selector>,
    /// Pods by label.
    pub selector: Selector,
    /// Pods being deleted do not count (spreading) or do (affinity).
    pub skip_deleting: bool,
}

impl Matching {
    /// Whether `pod` is meant; `namespace_labels` finds a namespace's labels.
    pub fn matches<'a>(
        &self,
        pod: &Pod,
        namespace_labels: impl Fn(&str) -> Option<&'a BTreeMap<String, String>>,
    ) -> bool {
        if self.skip_deleting && pod.deleting {
            return false;
        }
        let namespace = self.namespaces.iter().any(|n| **n == *pod.namespace)
            || self.namespace_selector.as_ref().is_some_and(|s| match namespace_labels(&pod.namespace) {
                Some(labels) => s.matches(labels),
                None => s.selects_all(),
            });
        namespace && self.selector.matches(&pod.labels)
    }
}

/// A pod affinity term.
#[derive(Clone, Debug)]
pub struct Term {
    /// Key of the term among those of placed pods: what it matches and in which topology.
    pub key: Box<str>,
    /// Node label whose values are the domains.
    pub topology_key: Box<str>,
    /// Which pods it looks for.
    pub matching: Arc<Matching>,
}

impl Pod {
    /// Reads a pod. An invalid selector (the API refuses them) matches nothing.
    pub fn from_wire(pod: wire::Pod) -> Self {
        let wire::Pod { metadata, spec, status } = pod;
        let namespace: Arc<str> = metadata.namespace.unwrap_or_default().into();
        let labels = metadata.labels.unwrap_or_default();
        let overhead = Resources::parse(&spec.overhead);
        let containers: Vec<_> = spec.containers.iter().map(request).collect();
        let init: Vec<_> = spec.init_containers.iter().map(request).collect();
        let level = spec.resources.as_ref().map(|r| &r.requests);
        let (requests, scored_requests) = effective(&containers, &init, level, &overhead);
        let affinity = spec.affinity.unwrap_or_default();
        let node_affinity = affinity.node_affinity.unwrap_or_default();
        let (near, apart) = (affinity.pod_affinity.unwrap_or_default(), affinity.pod_anti_affinity.unwrap_or_default());
        let term = |t: &core::PodAffinityTerm| Arc::new(term(t, &namespace, &labels));
        let weighted = |list: Option<Vec<core::WeightedPodAffinityTerm>>, sign: i64| {
            list.unwrap_or_default().into_iter().map(move |w| (sign * i64::from(w.weight), w.pod_affinity_term))
        };
        let preferred_pods = weighted(near.preferred_during_scheduling_ignored_during_execution, 1)
            .chain(weighted(apart.preferred_during_scheduling_ignored_during_execution, -1))
            .map(|(weight, t)| (weight, term(&t)))
            .collect();
        let required = |list: Option<Vec<core::PodAffinityTerm>>| list.unwrap_or_default().iter().map(term).collect();
        let reported = status
            .conditions
            .into_iter()
            .find(|c| c.type_ == "PodScheduled" && c.status == "False")
            .and_then(|c| c.message)
            .map(String::into_boxed_str);
        Self {
            uid: metadata.uid.unwrap_or_default().into(),
            name: metadata.name.unwrap_or_default().into(),
            owner: metadata
                .owner_references
                .unwrap_or_default()
                .into_iter()
                .find(|o| o.controller == Some(true))
                .map(|o| o.uid.into()),
            node: spec.node_name.filter(|n| !n.is_empty()).map(Into::into),
            nominated: status.nominated_node_name.filter(|n| !n.is_empty()).map(Into::into),
            scheduler: spec.scheduler_name.unwrap_or_else(|| SCHEDULER_NAME.into()).into(),
            gated: !spec.scheduling_gates.is_empty(),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            deleting: metadata.deletion_timestamp.is_some(),
            priority: spec.priority.unwrap_or(0),
            may_preempt: spec.preemption_policy.as_deref() != Some("Never"),
            since: status.start_time.or(metadata.creation_timestamp).map_or(Timestamp::UNIX_EPOCH, |t| t.0),
            requests,
            scored_requests,
            ports: spec.containers.iter().chain(&spec.init_containers).flat_map(host_ports).collect(),
            images: spec
                .containers
                .iter()
                .chain(&spec.init_containers)
                .filter_map(|c| c.image.as_deref())
                .map(|image| normalized_image(image).into())
                .collect(),
            node_selector: spec.node_selector,
            node_terms: node_affinity
                .required_during_scheduling_ignored_during_execution
                .map(|required| required.node_selector_terms),
            preferred_nodes: node_affinity.preferred_during_scheduling_ignored_during_execution.unwrap_or_default(),
            tolerations: spec.tolerations,
            spread: spec.topology_spread_constraints.iter().map(|c| spread(c, &namespace, &labels)).collect(),
            affinity: required(near.required_during_scheduling_ignored_during_execution),
            anti_affinity: required(apart.required_during_scheduling_ignored_during_execution),
            preferred_pods,
            reported,
            labels,
            namespace,
        }
    }

    /// Whether this scheduler has to find a node for it.
    pub fn wants_node(&self) -> bool {
        self.node.is_none() && !self.finished && !self.deleting && &*self.scheduler == SCHEDULER_NAME
    }

    /// `namespace/name`, for logs.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// An image reference as nodes report it: with a tag.
pub fn normalized_image(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || last.contains('@') { image.into() } else { format!("{image}:latest") }
}

fn request(container: &wire::Container) -> ContainerRequest {
    let requests = &container.resources.requests;
    ContainerRequest {
        requests: Resources::parse(requests),
        names_cpu: requests.contains_key("cpu"),
        names_memory: requests.contains_key("memory"),
        sidecar: container.restart_policy.as_deref() == Some("Always"),
    }
}

fn host_ports(container: &wire::Container) -> impl Iterator<Item = HostPort> {
    container.ports.iter().filter_map(|p| {
        Some(HostPort {
            port: p.host_port.filter(|port| *port > 0)?,
            ip: p.host_ip.as_deref().filter(|ip| !ip.is_empty()).unwrap_or("0.0.0.0").into(),
            protocol: p.protocol.as_deref().unwrap_or("TCP").into(),
        })
    })
}

/// A selector with `matchLabelKeys` (KEP-3633, KEP-3243) folded in; none selects nothing.
fn selector(
    base: Option<&LabelSelector>,
    keys: &[(&Option<Vec<String>>, &str)],
    labels: &BTreeMap<String, String>,
) -> Selector {
    let nothing = || Selector::from(kube::core::Expression::In(String::new(), [].into()));
    let Some(base) = base else { return nothing() };
    let mut merged = base.clone();
    for (keys, operator) in keys {
        for key in keys.iter().flatten() {
            let Some(value) = labels.get(key) else { continue };
            let requirement = LabelSelectorRequirement {
                key: key.clone(),
                operator: (*operator).into(),
                values: Some(vec![value.clone()]),
            };
            let expressions = merged.match_expressions.get_or_insert_default();
            if !expressions.contains(&requirement) {
                expressions.push(requirement);
            }
        }
    }
    Selector::try_from(merged).unwrap_or_else(|_| nothing())
}

fn matching(
    namespaces: Vec<Box<str>>,
    namespace_selector: Option<Selector>,
    selector: Selector,
    skip_deleting: bool,
) -> Arc<Matching> {
    let key = format!("{namespaces:?} {namespace_selector:?} {selector:?} {skip_deleting}").into();
    Arc::new(Matching { key, namespaces, namespace_selector, selector, skip_deleting })
}

fn spread(c: &core::TopologySpreadConstraint, namespace: &str, labels: &BTreeMap<String, String>) -> Spread {
    let selector = selector(c.label_selector.as_ref(), &[(&c.match_label_keys, "In")], labels);
    Spread {
        topology_key: c.topology_key.as_str().into(),
        max_skew: i64::from(c.max_skew),
        hard: c.when_unsatisfiable == "DoNotSchedule",
        min_domains: c.min_domains.map(i64::from),
        honor_affinity: c.node_affinity_policy.as_deref() != Some("Ignore"),
        honor_taints: c.node_taints_policy.as_deref() == Some("Honor"),
        matching: matching(vec![namespace.into()], None, selector, true),
    }
}

fn term(t: &core::PodAffinityTerm, namespace: &str, labels: &BTreeMap<String, String>) -> Term {
    let selector =
        selector(t.label_selector.as_ref(), &[(&t.match_label_keys, "In"), (&t.mismatch_label_keys, "NotIn")], labels);
    let mut namespaces: Vec<Box<str>> = t.namespaces.iter().flatten().map(|n| n.as_str().into()).collect();
    if namespaces.is_empty() && t.namespace_selector.is_none() {
        namespaces.push(namespace.into());
    }
    namespaces.sort();
    let namespace_selector = t.namespace_selector.clone().and_then(|s| Selector::try_from(s).ok());
    let matching = matching(namespaces, namespace_selector, selector, false);
    Term {
        key: format!("{} {}", t.topology_key, matching.key).into(),
        topology_key: t.topology_key.as_str().into(),
        matching,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_what_matters() {
        let pod: wire::Pod = serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "n", "uid": "u", "labels": {"app": "x", "pod-template-hash": "h"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "owner", "controller": true}]},
            "spec": {
                "priority": 7, "initContainers": null, "tolerations": null,
                "containers": [{"name": "c", "image": "echo", "ports": [{"containerPort": 80, "hostPort": 8080}],
                    "resources": {"requests": {"cpu": "250m", "memory": "64Mi"}}}],
                "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
                    "labelSelector": {"matchLabels": {"app": "x"}}, "matchLabelKeys": ["pod-template-hash"]}],
            },
        }))
        .unwrap();
        let pod = Pod::from_wire(pod);
        assert!(pod.wants_node());
        assert_eq!((pod.requests.milli_cpu, pod.requests.memory, pod.priority), (250, 64 << 20, 7));
        assert_eq!(pod.owner.as_deref(), Some("owner"));
        assert_eq!(&*pod.images[0], "echo:latest");
        assert_eq!(pod.ports[0].port, 8080);
        let other = Pod { labels: [("app".into(), "x".into())].into(), ..pod.clone() };
        let counts = |p: &Pod| pod.spread[0].matching.matches(p, |_| None);
        assert!(counts(&pod));
        assert!(!counts(&other), "matchLabelKeys must keep revisions apart");
        assert!(!counts(&Pod { deleting: true, ..pod.clone() }));
        assert!(!counts(&Pod { namespace: "m".into(), ..pod.clone() }));
    }

    #[test]
    fn port_conflicts() {
        let port = |ip: &str, protocol: &str, port| HostPort { ip: ip.into(), protocol: protocol.into(), port };
        for (a, b, conflict) in [
            (port("0.0.0.0", "TCP", 80), port("127.0.0.1", "TCP", 80), true),
            (port("127.0.0.1", "TCP", 80), port("127.0.0.2", "TCP", 80), false),
            (port("127.0.0.1", "TCP", 80), port("127.0.0.1", "UDP", 80), false),
            (port("0.0.0.0", "TCP", 80), port("0.0.0.0", "TCP", 81), false),
        ] {
            assert_eq!(a.conflicts(&b), conflict);
        }
    }
}
