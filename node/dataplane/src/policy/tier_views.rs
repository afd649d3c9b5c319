//! Policies of the whole cluster (policy.networking.k8s.io) as the API writes them, as far as we care, and what the compiler
//! makes of them; their definitions, which users install.
//!
//! What cannot be read here belongs to a newer version of these kinds. As their reference has it, a rule that accepts then matches
//! nothing by it, and one that denies or passes denies everything.

use std::borrow::Cow;
use std::sync::Arc;

use k8s_openapi::ClusterResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;

use super::model::{
    Action, Labels, Namespaces, Node, Peer, Port, Requirement, Rule, Selector, Tier, TierKind, TierPolicy, TierRule,
    Which,
};
use super::views::SelectorView;
use crate::Range;
use crate::model::Protocol;
use crate::views::view;

const GROUP: &str = "policy.networking.k8s.io";
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

impl TierKind {
    /// All of them.
    pub const ALL: [TierKind; 3] =
        [TierKind::ClusterNetworkPolicy, TierKind::AdminNetworkPolicy, TierKind::BaselineAdminNetworkPolicy];

    /// As manifests name it.
    pub fn name(self) -> &'static str {
        match self {
            TierKind::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            TierKind::AdminNetworkPolicy => "AdminNetworkPolicy",
            TierKind::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
        }
    }

    /// The version that is read here.
    pub fn version(self) -> &'static str {
        match self {
            TierKind::ClusterNetworkPolicy => "v1alpha2",
            TierKind::AdminNetworkPolicy | TierKind::BaselineAdminNetworkPolicy => "v1alpha1",
        }
    }

    /// As paths name it.
    pub fn plural(self) -> &'static str {
        match self {
            TierKind::ClusterNetworkPolicy => "clusternetworkpolicies",
            TierKind::AdminNetworkPolicy => "adminnetworkpolicies",
            TierKind::BaselineAdminNetworkPolicy => "baselineadminnetworkpolicies",
        }
    }

    /// Where the API server lists them, while they are installed.
    pub fn path(self) -> String {
        format!("/apis/{GROUP}/{}/{}", self.version(), self.plural())
    }

    /// The name of the definition that installs it.
    pub(crate) fn definition(self) -> String {
        format!("{}.{GROUP}", self.plural())
    }
}

/// A CustomResourceDefinition.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct DefinitionView {
    metadata: ObjectMeta,
    spec: DefinitionSpecView,
    status: DefinitionStatusView,
}
view!(
    DefinitionView,
    "CustomResourceDefinition",
    "apiextensions.k8s.io",
    "apiextensions.k8s.io/v1",
    "customresourcedefinitions",
    ClusterResourceScope
);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct DefinitionSpecView {
    versions: Vec<VersionView>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct VersionView {
    name: String,
    served: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct DefinitionStatusView {
    conditions: Option<Vec<ConditionView>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ConditionView {
    r#type: String,
    status: String,
}

impl DefinitionView {
    /// Can objects of the version that is read here be listed, as far as the definition says?
    pub(crate) fn serves(&self, kind: TierKind) -> bool {
        let mut conditions = self.status.conditions.iter().flatten();
        conditions.any(|condition| condition.r#type == "Established" && condition.status == "True")
            && self.spec.versions.iter().any(|version| version.served && version.name == kind.version())
    }
}

/// A policy of any of these kinds.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TierView {
    metadata: ObjectMeta,
    spec: TierSpecView,
}

impl Resource for TierView {
    type DynamicType = TierKind;
    type Scope = ClusterResourceScope;
    fn kind(kind: &TierKind) -> Cow<'_, str> {
        kind.name().into()
    }
    fn group(_: &TierKind) -> Cow<'_, str> {
        GROUP.into()
    }
    fn version(kind: &TierKind) -> Cow<'_, str> {
        kind.version().into()
    }
    fn plural(kind: &TierKind) -> Cow<'_, str> {
        kind.plural().into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct TierSpecView {
    tier: String,
    priority: u32,
    subject: SubjectView,
    ingress: Option<Vec<TierRuleView>>,
    egress: Option<Vec<TierRuleView>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct SubjectView {
    namespaces: Option<SelectorView>,
    pods: Option<PodsView>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodsView {
    namespace_selector: SelectorView,
    pod_selector: SelectorView,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct TierRuleView {
    name: String,
    action: String,
    from: Option<Vec<TierPeerView>>,
    to: Option<Vec<TierPeerView>>,
    /// Of v1alpha2.
    protocols: Option<Vec<ProtocolView>>,
    /// Of v1alpha1.
    ports: Option<Vec<OldPortView>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct TierPeerView {
    namespaces: Option<SelectorView>,
    pods: Option<PodsView>,
    nodes: Option<SelectorView>,
    networks: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ProtocolView {
    tcp: Option<TransportView>,
    udp: Option<TransportView>,
    sctp: Option<TransportView>,
    destination_named_port: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct TransportView {
    destination_port: Option<TierPortView>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct TierPortView {
    number: Option<u16>,
    range: Option<RangeView>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RangeView {
    start: u16,
    end: u16,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct OldPortView {
    port_number: Option<OldNumberView>,
    port_range: Option<OldRangeView>,
    named_port: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct OldNumberView {
    protocol: Option<String>,
    port: u16,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct OldRangeView {
    protocol: Option<String>,
    start: u16,
    end: u16,
}

impl TierView {
    /// What the compiler makes of it.
    pub(crate) fn policy(self, kind: TierKind) -> TierPolicy {
        let spec = self.spec;
        let (tier, priority) = match kind {
            TierKind::ClusterNetworkPolicy if spec.tier == "Baseline" => (Tier::Baseline, spec.priority),
            TierKind::ClusterNetworkPolicy | TierKind::AdminNetworkPolicy => (Tier::Admin, spec.priority),
            // There is one, without a number: after those that have one.
            TierKind::BaselineAdminNetworkPolicy => (Tier::Baseline, u32::MAX),
        };
        let (namespaces, pods) = match (spec.subject.namespaces, spec.subject.pods) {
            (Some(namespaces), None) => (namespaces.into(), Selector::default()),
            (None, Some(pods)) => (pods.namespace_selector.into(), pods.pod_selector.into()),
            _ => (Selector(vec![Requirement::Never]), Selector::default()),
        };
        let ingress = spec.ingress.into_iter().flatten().map(|rule| rule.rule(|rule| rule.from.take()));
        let egress = spec.egress.into_iter().flatten().map(|rule| rule.rule(|rule| rule.to.take()));
        TierPolicy { tier, priority, namespaces, pods, ingress: ingress.collect(), egress: egress.collect() }
    }
}

impl TierRuleView {
    fn rule(mut self, peers: impl Fn(&mut TierRuleView) -> Option<Vec<TierPeerView>>) -> TierRule {
        let action = match self.action.as_str() {
            "Accept" | "Allow" => Action::Accept,
            "Pass" => Action::Pass,
            _ => Action::Deny,
        };
        let peers: Option<Vec<Vec<Peer>>> = match peers(&mut self) {
            Some(peers) if action == Action::Accept => {
                Some(peers.into_iter().map(|peer| peer.peers().unwrap_or_default()).collect())
            }
            peers => peers.unwrap_or_default().into_iter().map(TierPeerView::peers).collect(),
        };
        let new = self.protocols.into_iter().flatten().map(ProtocolView::ports);
        let ports: Vec<Option<Vec<Port>>> =
            new.chain(self.ports.into_iter().flatten().map(OldPortView::ports)).collect();
        let any_port = ports.is_empty();
        let ports: Option<Vec<Vec<Port>>> = match action {
            Action::Accept => Some(ports.into_iter().map(Option::unwrap_or_default).collect()),
            Action::Deny | Action::Pass => ports.into_iter().collect(),
        };
        let name: Arc<str> = self.name.into();
        let (Some(peers), Some(ports)) = (peers, ports) else {
            return TierRule { name, action: Action::Deny, matches: Rule::default() };
        };
        let mut matches = Rule { peers: peers.concat(), ports: ports.concat() };
        // Empty lists would mean everybody, and every port.
        if matches.peers.is_empty() {
            matches.peers.push(Peer::Nobody);
        }
        if matches.ports.is_empty() && !any_port {
            matches.ports.push(Port { protocol: Protocol::Tcp, which: Which::None });
        }
        TierRule { name, action, matches }
    }
}

impl TierPeerView {
    /// `None` for what cannot be read here; by names of domains nobody is found.
    fn peers(self) -> Option<Vec<Peer>> {
        let pods = |namespaces: SelectorView, pods: SelectorView| {
            vec![Peer::Pods(Namespaces::Labelled(namespaces.into()), pods.into())]
        };
        match self {
            TierPeerView { namespaces: Some(namespaces), .. } => Some(pods(namespaces, SelectorView::default())),
            TierPeerView { pods: Some(both), .. } => Some(pods(both.namespace_selector, both.pod_selector)),
            TierPeerView { nodes: Some(nodes), .. } => Some(vec![Peer::Nodes(nodes.into())]),
            TierPeerView { networks: Some(networks), .. } => {
                networks.iter().map(|text| Some(Peer::Block(text.parse::<Range>().ok()?, Vec::new()))).collect()
            }
            _ => None,
        }
    }
}

impl ProtocolView {
    fn ports(self) -> Option<Vec<Port>> {
        let (protocol, transport) = match self {
            ProtocolView { tcp: Some(transport), .. } => (Protocol::Tcp, transport),
            ProtocolView { udp: Some(transport), .. } => (Protocol::Udp, transport),
            ProtocolView { sctp: Some(transport), .. } => (Protocol::Sctp, transport),
            ProtocolView { destination_named_port: Some(name), .. } => return Some(named(name)),
            _ => return None,
        };
        let which = match transport.destination_port? {
            TierPortView { number: Some(number), .. } => Which::Numbers(number, number),
            TierPortView { range: Some(range), .. } => Which::Numbers(range.start, range.end),
            _ => return None,
        };
        Some(vec![Port { protocol, which }])
    }
}

impl OldPortView {
    fn ports(self) -> Option<Vec<Port>> {
        let (protocol, which) = match self {
            OldPortView { port_number: Some(it), .. } => (it.protocol, Which::Numbers(it.port, it.port)),
            OldPortView { port_range: Some(it), .. } => (it.protocol, Which::Numbers(it.start, it.end)),
            OldPortView { named_port: Some(name), .. } => return Some(named(name)),
            _ => return None,
        };
        Some(vec![Port { protocol: Protocol::from_api(protocol.as_deref())?, which }])
    }
}

/// A name of ports is of any protocol.
fn named(name: String) -> Vec<Port> {
    let name: Arc<str> = name.into();
    PROTOCOLS.map(|protocol| Port { protocol, which: Which::Named(name.clone()) }).to_vec()
}

/// A node, for its labels and addresses.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PlaceView {
    metadata: ObjectMeta,
    status: PlaceStatusView,
}
view!(PlaceView, "Node", "", "v1", "nodes", ClusterResourceScope);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct PlaceStatusView {
    addresses: Option<Vec<PlaceAddressView>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct PlaceAddressView {
    address: String,
}

impl From<PlaceView> for Option<Node> {
    fn from(view: PlaceView) -> Option<Node> {
        let labels: Labels = view.metadata.labels.into_iter().flatten().collect();
        let addresses = view.status.addresses.into_iter().flatten().filter_map(|address| address.address.parse().ok());
        Some(Node { labels, addresses: addresses.collect() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn rule(kind: TierKind, rule: Value) -> TierRule {
        let view = json!({"metadata": {"name": "p"}, "spec": {"tier": "Admin", "subject": {"namespaces": {}}, "egress": [rule]}});
        TierView::deserialize(view).unwrap().policy(kind).egress.remove(0)
    }

    /// Both versions of the kinds say the same.
    #[test]
    fn rules_are_read() {
        let ports = |ports: &[(Protocol, Which)]| -> Vec<Port> {
            ports.iter().map(|(protocol, which)| Port { protocol: *protocol, which: which.clone() }).collect()
        };
        let named = PROTOCOLS.map(|protocol| (protocol, Which::Named("web".into())));
        let some = ports(&[(Protocol::Udp, Which::Numbers(53, 53)), (Protocol::Tcp, Which::Numbers(80, 90))]);
        let (new, old) = (TierKind::ClusterNetworkPolicy, TierKind::AdminNetworkPolicy);
        let cases = [
            (new, json!({}), vec![]),
            (old, json!({}), vec![]),
            (
                new,
                json!({"protocols": [{"udp": {"destinationPort": {"number": 53}}},
                {"tcp": {"destinationPort": {"range": {"start": 80, "end": 90}}}}]}),
                some.clone(),
            ),
            (
                old,
                json!({"ports": [{"portNumber": {"protocol": "UDP", "port": 53}},
                {"portRange": {"start": 80, "end": 90}}]}),
                some,
            ),
            (new, json!({"protocols": [{"destinationNamedPort": "web"}]}), ports(&named)),
            (old, json!({"ports": [{"namedPort": "web"}]}), ports(&named)),
        ];
        for (kind, mut object, expected) in cases {
            for (word, action) in
                [("Accept", Action::Accept), ("Allow", Action::Accept), ("Pass", Action::Pass), ("Deny", Action::Deny)]
            {
                object["action"] = word.into();
                object["name"] = "its name".into();
                object["to"] = json!([{"networks": ["10.0.0.0/8", "fd00::/8"]}, {"nodes": {}}]);
                let found = rule(kind, object.clone());
                let blocks = ["10.0.0.0/8", "fd00::/8"].map(|text| Peer::Block(text.parse().unwrap(), vec![]));
                let peers = blocks.into_iter().chain([Peer::Nodes(Selector::default())]).collect();
                let matches = Rule { peers, ports: expected.clone() };
                assert_eq!(found, TierRule { name: "its name".into(), action, matches }, "{object}");
            }
        }
    }

    /// What is of a later version must not open anything.
    #[test]
    fn what_cannot_be_read_fails_closed() {
        let everything = TierRule { name: "".into(), action: Action::Deny, matches: Rule::default() };
        for unknown in [json!({}), json!({"domainNames": ["example.com"]}), json!({"networks": ["10.0.0.0/8", "what"]})]
        {
            for action in ["Deny", "Pass", "Unheard"] {
                let object = json!({"action": action, "to": [{"namespaces": {}}, unknown]});
                assert_eq!(rule(TierKind::ClusterNetworkPolicy, object), everything, "{action} {unknown}");
            }
            let accepts = rule(TierKind::ClusterNetworkPolicy, json!({"action": "Accept", "to": [unknown]}));
            assert_eq!(accepts.matches.peers, [Peer::Nobody], "{unknown}");
        }
        let to = json!([{"namespaces": {}}]);
        for unknown in [json!({}), json!({"quic": {}}), json!({"tcp": {}})] {
            let denies =
                rule(TierKind::ClusterNetworkPolicy, json!({"action": "Deny", "to": to, "protocols": [unknown]}));
            assert_eq!(denies, everything, "{unknown}");
            let accepts =
                rule(TierKind::ClusterNetworkPolicy, json!({"action": "Accept", "to": to, "protocols": [unknown]}));
            assert_eq!(accepts.matches.ports, [Port { protocol: Protocol::Tcp, which: Which::None }], "{unknown}");
        }
    }

    #[test]
    fn a_definition_says_when_it_serves() {
        let definition = |version: &str, served: bool, established: &str| -> DefinitionView {
            DefinitionView::deserialize(json!({
                "spec": {"versions": [{"name": version, "served": served, "schema": {}}]},
                "status": {"conditions": [{"type": "Established", "status": established}]}
            }))
            .unwrap()
        };
        let kind = TierKind::ClusterNetworkPolicy;
        assert!(definition("v1alpha2", true, "True").serves(kind));
        assert!(!definition("v1alpha2", true, "False").serves(kind));
        assert!(!definition("v1alpha2", false, "True").serves(kind));
        assert!(!definition("v1alpha1", true, "True").serves(kind));
        assert!(definition("v1alpha1", true, "True").serves(TierKind::AdminNetworkPolicy));
    }
}
