//! NetworkPolicies, pods and namespaces as the API writes them, as far as we care, and what the compiler makes of them.

use std::borrow::Cow;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::Resource;
use serde::Deserialize;
use serde_json::Value;

use super::model::{Labels, NamedPort, Namespaces, Peer, Pod, Policy, Port, Requirement, Rule, Selector, Which};
use crate::Range;
use crate::model::Protocol;
use crate::views::{PodView, view};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NamespaceView {
    metadata: ObjectMeta,
}
view!(NamespaceView, "Namespace", "", "v1", "namespaces", ClusterResourceScope);

impl From<NamespaceView> for Option<Labels> {
    fn from(view: NamespaceView) -> Option<Labels> {
        Some(view.metadata.labels.into_iter().flatten().collect())
    }
}

impl From<PodView> for Option<Pod> {
    /// `None` for pods that ended, and for those with the node's own addresses: no selector reaches them.
    fn from(view: PodView) -> Option<Pod> {
        let ended = matches!(view.status.phase.as_deref(), Some("Succeeded" | "Failed"));
        if ended || view.spec.host_network {
            return None;
        }
        let containers = view.spec.containers.iter().chain(view.spec.init_containers.iter().flatten());
        let ports = containers.flat_map(|container| container.ports.iter().flatten()).filter_map(|port| {
            Some(NamedPort {
                name: port.name.as_deref()?.into(),
                protocol: Protocol::from_api(port.protocol.as_deref())?,
                port: port.container_port,
            })
        });
        Some(Pod {
            addresses: view.status.ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect(),
            ports: ports.collect(),
            deleting: view.metadata.deletion_timestamp.is_some(),
            labels: view.metadata.labels.into_iter().flatten().collect(),
        })
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PolicyView {
    metadata: ObjectMeta,
    spec: PolicySpecView,
}
view!(
    PolicyView,
    "NetworkPolicy",
    "networking.k8s.io",
    "networking.k8s.io/v1",
    "networkpolicies",
    NamespaceResourceScope
);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PolicySpecView {
    pod_selector: SelectorView,
    policy_types: Option<Vec<String>>,
    ingress: Option<Vec<RuleView>>,
    egress: Option<Vec<RuleView>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RuleView {
    from: Option<Vec<PeerView>>,
    to: Option<Vec<PeerView>>,
    ports: Option<Vec<PortView>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PeerView {
    pod_selector: Option<SelectorView>,
    namespace_selector: Option<SelectorView>,
    ip_block: Option<BlockView>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct BlockView {
    cidr: String,
    except: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PortView {
    protocol: Option<String>,
    port: Option<Value>,
    end_port: Option<u16>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct SelectorView {
    match_labels: Option<std::collections::BTreeMap<String, String>>,
    match_expressions: Option<Vec<RequirementView>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RequirementView {
    key: String,
    operator: String,
    values: Option<Vec<String>>,
}

impl From<PolicyView> for Option<Policy> {
    fn from(view: PolicyView) -> Option<Policy> {
        let spec = view.spec;
        // The API server fills the types in; without them they are these (networking/v1 API reference).
        let types = spec.policy_types.filter(|types| !types.is_empty());
        let types = types.unwrap_or_else(|| {
            let egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
            if egress { vec!["Ingress".into(), "Egress".into()] } else { vec!["Ingress".into()] }
        });
        let says = |direction: &str| types.iter().any(|kind| kind == direction);
        let ingress = spec.ingress.unwrap_or_default().into_iter().map(|rule| self::rule(rule.from, rule.ports));
        let egress = spec.egress.unwrap_or_default().into_iter().map(|rule| self::rule(rule.to, rule.ports));
        Some(Policy {
            pods: spec.pod_selector.into(),
            ingress: says("Ingress").then(|| ingress.collect()),
            egress: says("Egress").then(|| egress.collect()),
        })
    }
}

fn rule(peers: Option<Vec<PeerView>>, ports: Option<Vec<PortView>>) -> Rule {
    Rule {
        peers: peers.into_iter().flatten().map(Peer::from).collect(),
        ports: ports.into_iter().flatten().map(Port::from).collect(),
    }
}

impl From<PeerView> for Peer {
    fn from(view: PeerView) -> Peer {
        if let Some(block) = view.ip_block {
            let except = block.except.into_iter().flatten().map(|text| text.parse());
            return match (block.cidr.parse::<Range>(), except.collect::<Result<Vec<Range>, _>>()) {
                (Ok(cidr), Ok(except)) => Peer::Block(cidr, except),
                _ => Peer::Nobody,
            };
        }
        match (view.namespace_selector, view.pod_selector) {
            (None, None) => Peer::Nobody,
            (None, Some(pods)) => Peer::Pods(Namespaces::Own, pods.into()),
            (Some(namespaces), pods) => {
                Peer::Pods(Namespaces::Labelled(namespaces.into()), pods.unwrap_or_default().into())
            }
        }
    }
}

impl From<PortView> for Port {
    fn from(view: PortView) -> Port {
        let Some(protocol) = Protocol::from_api(view.protocol.as_deref()) else {
            return Port { protocol: Protocol::Tcp, which: Which::None };
        };
        let which = match view.port {
            None | Some(Value::Null) => Which::All,
            Some(Value::Number(number)) => match number.as_u64().and_then(|number| u16::try_from(number).ok()) {
                Some(first) => Which::Numbers(first, view.end_port.unwrap_or(first)),
                None => Which::None,
            },
            Some(Value::String(name)) => Which::Named(name.into()),
            Some(_) => Which::None,
        };
        Port { protocol, which }
    }
}

impl From<SelectorView> for Selector {
    fn from(view: SelectorView) -> Selector {
        let labels = view.match_labels.into_iter().flatten();
        let equal = labels.map(|(key, value)| Requirement::In(key.into(), [value.into()].into()));
        let expressions = view.match_expressions.into_iter().flatten().map(|expression| {
            let key: Arc<str> = expression.key.into();
            let values = || expression.values.iter().flatten().map(|value| value.as_str().into()).collect();
            match expression.operator.as_str() {
                "In" => Requirement::In(key, values()),
                "NotIn" => Requirement::NotIn(key, values()),
                "Exists" => Requirement::Exists(key),
                "DoesNotExist" => Requirement::DoesNotExist(key),
                _ => Requirement::Never,
            }
        });
        let mut all: Vec<Requirement> = equal.chain(expressions).collect();
        all.sort_unstable();
        Selector(all)
    }
}
