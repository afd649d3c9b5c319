//! Which policies hold for a pod, and which of their rules let something through, by name: for people. Pure.

use std::net::IpAddr;

use super::model::{
    Action, Direction, Labels, Namespaces, Peer, Pod, Port, Rule, Selector, Snapshot, Tier, TierKind, TierPolicy, Which,
};
use crate::Range;
use crate::model::{ObjectName, Protocol};

/// What is asked about: a connection between a pod and somebody, in a direction as the pod sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) direction: Direction,
    pub(crate) pod: IpAddr,
    pub(crate) peer: IpAddr,
    pub(crate) protocol: Protocol,
    /// The destination's.
    pub(crate) port: u16,
}

/// Policies and rules as `namespace/name` and `namespace/name, ingress rule 1 (from pods team=x; TCP 80)`; those of the cluster by
/// their kind, and in their place: `ClusterNetworkPolicy name`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Named {
    /// Policies that hold for the pod in this direction.
    pub(crate) holding: Vec<String>,
    /// Their rules that allow it.
    pub(crate) allowing: Vec<String>,
    /// The one that denies it.
    pub(crate) denying: Vec<String>,
}

/// The pod with an address, one that does not end before one that does.
pub(crate) fn pod_with(snapshot: &Snapshot, address: IpAddr) -> Option<(&ObjectName, &Pod)> {
    let mut all = snapshot.pods.iter().filter(|(_, pod)| pod.addresses.contains(&address));
    let first = all.next()?;
    Some(if first.1.deleting { all.find(|(_, pod)| !pod.deleting).unwrap_or(first) } else { first })
}

/// `None` for an address that is no pod's.
pub(crate) fn named(snapshot: &Snapshot, asked: &Asked) -> Option<Named> {
    let ((namespace, _), pod) = pod_with(snapshot, asked.pod)?;
    let mut found = Named::default();
    let labels = snapshot.namespaces.get(namespace);
    let mut open = tier(snapshot, asked, pod, labels, Tier::Admin, &mut found, true);
    let own =
        snapshot.policies.iter().filter(|((space, _), policy)| space == namespace && policy.pods.matches(&pod.labels));
    let mut isolated = false;
    for ((space, name), policy) in own {
        let Some(rules) = policy.rules(asked.direction) else { continue };
        isolated = true;
        found.holding.push(format!("{space}/{name}"));
        let allowing = (1..).zip(rules).filter(|(_, rule)| open && allows(snapshot, space, rule, asked, pod));
        let text = |(number, rule): (usize, &Rule)| {
            format!("{space}/{name}, {} ({})", place(asked, number), rule_text(rule, asked))
        };
        found.allowing.extend(allowing.map(text));
    }
    open &= !isolated;
    tier(snapshot, asked, pod, labels, Tier::Baseline, &mut found, open);
    Some(found)
}

/// Adds a tier's policies that hold, and the rule that decides if it is asked at all (`open`); true if the next tier is asked.
fn tier(
    snapshot: &Snapshot,
    asked: &Asked,
    pod: &Pod,
    home: Option<&Labels>,
    tier: Tier,
    found: &mut Named,
    open: bool,
) -> bool {
    let holds = |it: &TierPolicy| {
        it.tier == tier
            && !it.rules(asked.direction).is_empty()
            && home.is_some_and(|labels| it.namespaces.matches(labels))
            && it.pods.matches(&pod.labels)
    };
    let mut holding: Vec<_> = snapshot.tiers.iter().filter(|(_, policy)| holds(policy)).collect();
    holding.sort_by_key(|(name, policy)| (policy.priority, *name));
    let title = |kind: TierKind, name: &str| format!("{} {name}", kind.name());
    found.holding.extend(holding.iter().map(|((kind, name), _)| title(*kind, name)));
    let rules = holding.iter().filter(|_| open).flat_map(|((kind, name), policy)| {
        (1..).zip(policy.rules(asked.direction)).map(move |(number, rule)| (*kind, name, number, rule))
    });
    let mut matching = rules.filter(|(.., rule)| allows(snapshot, "", &rule.matches, asked, pod));
    let Some((kind, name, number, rule)) = matching.next() else { return open };
    let called = if rule.name.is_empty() { String::new() } else { format!(" \"{}\"", rule.name) };
    let matches = rule_text(&rule.matches, asked);
    let text = format!("{}, {}{called} ({matches})", title(kind, name), place(asked, number));
    match rule.action {
        Action::Accept => found.allowing.push(text),
        Action::Deny => found.denying.push(text),
        Action::Pass => return true,
    }
    false
}

fn place(asked: &Asked, number: usize) -> String {
    match asked.direction {
        Direction::Ingress => format!("ingress rule {number}"),
        Direction::Egress => format!("egress rule {number}"),
    }
}

fn allows(snapshot: &Snapshot, namespace: &str, rule: &Rule, asked: &Asked, pod: &Pod) -> bool {
    let destination = match asked.direction {
        Direction::Ingress => Some(pod),
        Direction::Egress => pod_with(snapshot, asked.peer).map(|(_, pod)| pod),
    };
    (rule.peers.is_empty() || rule.peers.iter().any(|peer| is_peer(snapshot, namespace, peer, asked.peer)))
        && (rule.ports.is_empty() || rule.ports.iter().any(|port| is_port(port, asked, destination)))
}

fn is_peer(snapshot: &Snapshot, namespace: &str, peer: &Peer, address: IpAddr) -> bool {
    match peer {
        Peer::Nobody => false,
        Peer::Nodes(selector) => {
            let nodes = snapshot.nodes.values().filter(|node| selector.matches(&node.labels));
            nodes.into_iter().any(|node| node.addresses.contains(&address))
        }
        Peer::Block(block, except) => {
            let inside = |range: &Range| range.holds(address);
            inside(block) && !except.iter().any(inside)
        }
        Peer::Pods(namespaces, selector) => {
            let Some(((space, _), pod)) = pod_with(snapshot, address) else { return false };
            let home = match namespaces {
                Namespaces::Own => **space == *namespace,
                Namespaces::Labelled(wanted) => {
                    snapshot.namespaces.get(space).is_some_and(|labels| wanted.matches(labels))
                }
            };
            home && selector.matches(&pod.labels)
        }
    }
}

fn is_port(port: &Port, asked: &Asked, destination: Option<&Pod>) -> bool {
    port.protocol == asked.protocol
        && match &port.which {
            Which::All => true,
            Which::None => false,
            Which::Numbers(first, last) => (*first..=*last).contains(&asked.port),
            Which::Named(name) => destination.is_some_and(|pod| {
                let mut ports = pod.ports.iter();
                ports.any(|known| known.name == *name && known.protocol == asked.protocol && known.port == asked.port)
            }),
        }
}

fn rule_text(rule: &Rule, asked: &Asked) -> String {
    let word = if asked.direction == Direction::Ingress { "from" } else { "to" };
    let peers = match rule.peers.as_slice() {
        [] => "everybody".to_owned(),
        peers => peers.iter().map(peer_text).collect::<Vec<_>>().join(" or "),
    };
    let ports = match rule.ports.as_slice() {
        [] => "every port".to_owned(),
        ports => ports.iter().map(port_text).collect::<Vec<_>>().join(", "),
    };
    format!("{word} {peers}; {ports}")
}

fn peer_text(peer: &Peer) -> String {
    match peer {
        Peer::Nobody => "nobody".into(),
        Peer::Nodes(selector) => format!("nodes {}", selector_text(selector)),
        Peer::Block(range, except) if except.is_empty() => range.to_string(),
        Peer::Block(range, except) => {
            format!("{range} but {}", except.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
        }
        Peer::Pods(Namespaces::Own, pods) => format!("pods {}", selector_text(pods)),
        Peer::Pods(Namespaces::Labelled(spaces), pods) => {
            format!("pods {} of namespaces {}", selector_text(pods), selector_text(spaces))
        }
    }
}

fn port_text(port: &Port) -> String {
    let protocol = port.protocol.name();
    match &port.which {
        Which::All => protocol.into(),
        Which::None => "no port".into(),
        Which::Numbers(first, last) if first == last => format!("{protocol} {first}"),
        Which::Numbers(first, last) => format!("{protocol} {first}-{last}"),
        Which::Named(name) => format!("{protocol} {name}"),
    }
}

/// As kubectl writes selectors.
fn selector_text(selector: &Selector) -> String {
    use super::model::Requirement::{DoesNotExist, Exists, In, Never, NotIn};
    let list = |values: &std::collections::BTreeSet<std::sync::Arc<str>>| {
        values.iter().map(|value| &**value).collect::<Vec<_>>().join(",")
    };
    let texts = selector.0.iter().map(|requirement| match requirement {
        In(key, values) if values.len() == 1 => format!("{key}={}", list(values)),
        In(key, values) => format!("{key} in ({})", list(values)),
        NotIn(key, values) => format!("{key} notin ({})", list(values)),
        Exists(key) => key.to_string(),
        DoesNotExist(key) => format!("!{key}"),
        Never => "(unknown operator)".into(),
    });
    let texts: Vec<String> = texts.collect();
    if texts.is_empty() { "of every label".into() } else { texts.join(",") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;
    use crate::policy::snapshot;

    fn object(kind: &str, name: &str, rest: Value) -> Value {
        let mut object = json!({"kind": kind, "metadata": {"name": name, "namespace": "x"}});
        for (key, value) in rest.as_object().unwrap() {
            match (key.as_str(), value) {
                ("labels", labels) => object["metadata"]["labels"] = labels.clone(),
                _ => object[key] = value.clone(),
            }
        }
        object
    }

    #[test]
    fn rules_are_named_that_allow_and_policies_that_hold() {
        let ports = json!({"containers": [{"ports": [{"name": "web", "containerPort": 80}]}]});
        let snapshot = snapshot(&[
            object("Namespace", "x", json!({"labels": {"team": "x"}})),
            object(
                "Pod",
                "a",
                json!({"labels": {"app": "a"}, "spec": ports, "status": {"podIPs": [{"ip": "10.0.0.1"}]}}),
            ),
            object(
                "Pod",
                "b",
                json!({"labels": {"app": "b"}, "spec": {"containers": []}, "status": {"podIPs": [{"ip": "10.0.0.2"}]}}),
            ),
            object("NetworkPolicy", "closed", json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress"]}})),
            object(
                "NetworkPolicy",
                "web",
                json!({"spec": {
                    "podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Ingress"],
                    "ingress": [
                        {"from": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.9/32"]}}]},
                        {"from": [{"podSelector": {"matchLabels": {"app": "b"}}}], "ports": [{"port": "web"}]}
                    ]
                }}),
            ),
        ])
        .unwrap();
        let ask = |direction, pod: &str, peer: &str, port| {
            let (pod, peer) = (pod.parse().unwrap(), peer.parse().unwrap());
            named(&snapshot, &Asked { direction, pod, peer, protocol: Protocol::Tcp, port })
        };
        let both = ["x/closed".to_owned(), "x/web".to_owned()];
        let cases = [
            ("10.0.0.1", "10.0.0.2", 80, &both[..], Some("x/web, ingress rule 2 (from pods app=b; TCP web)")),
            ("10.0.0.1", "10.0.0.2", 81, &both, None),
            (
                "10.0.0.1",
                "192.0.2.1",
                81,
                &both,
                Some("x/web, ingress rule 1 (from 192.0.2.0/24 but 192.0.2.9/32; every port)"),
            ),
            ("10.0.0.1", "192.0.2.9", 81, &both, None),
            ("10.0.0.2", "10.0.0.1", 80, &both[..1], None),
        ];
        for (pod, peer, port, holding, allowing) in cases {
            let found = ask(Direction::Ingress, pod, peer, port).unwrap();
            assert_eq!(
                (found.holding.as_slice(), found.allowing.first().map(String::as_str)),
                (holding, allowing),
                "{pod} {peer}"
            );
        }
        assert_eq!(ask(Direction::Egress, "10.0.0.1", "10.0.0.2", 80), Some(Named::default()));
        assert_eq!(ask(Direction::Ingress, "10.0.0.3", "10.0.0.2", 80), None);
    }

    /// The tiers in their order, and who decides.
    #[test]
    fn the_policy_of_the_cluster_that_decides_is_named() {
        let cluster = |name: &str, tier: &str, priority: u32, rules: Value| {
            let spec = json!({"tier": tier, "priority": priority, "subject": {"namespaces": {}}, "ingress": rules});
            object("ClusterNetworkPolicy", name, json!({"spec": spec}))
        };
        let from = |action: &str, name: &str, app: &str| {
            let pods = json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": app}}});
            json!({"name": name, "action": action, "from": [{"pods": pods}]})
        };
        let pod = |name: &str, address: &str| {
            let rest =
                json!({"labels": {"app": name}, "spec": {"containers": []}, "status": {"podIPs": [{"ip": address}]}});
            object("Pod", name, rest)
        };
        let mut objects = vec![
            object("Namespace", "x", json!({"labels": {"team": "x"}})),
            pod("a", "10.0.0.1"),
            pod("b", "10.0.0.2"),
            pod("c", "10.0.0.3"),
            pod("d", "10.0.0.4"),
            cluster("late", "Admin", 7, json!([from("Deny", "", "b"), from("Deny", "no c", "c")])),
            cluster("early", "Admin", 3, json!([from("Accept", "", "b"), from("Pass", "", "d")])),
            cluster("base", "Baseline", 3, json!([from("Deny", "no d", "d")])),
        ];
        let ask = |objects: &[Value], peer: &str| {
            let (pod, peer) = ("10.0.0.1".parse().unwrap(), peer.parse().unwrap());
            let asked = Asked { direction: Direction::Ingress, pod, peer, protocol: Protocol::Tcp, port: 80 };
            named(&snapshot(objects).unwrap(), &asked).unwrap()
        };
        let holding = ["ClusterNetworkPolicy early", "ClusterNetworkPolicy late", "ClusterNetworkPolicy base"];
        let spaces = "of namespaces of every label; every port)";
        let found = ask(&objects, "10.0.0.2");
        assert_eq!(found.holding, holding);
        assert_eq!(found.allowing, [format!("ClusterNetworkPolicy early, ingress rule 1 (from pods app=b {spaces}")]);
        let found = ask(&objects, "10.0.0.3");
        let text = format!("ClusterNetworkPolicy late, ingress rule 2 \"no c\" (from pods app=c {spaces}");
        assert_eq!((found.allowing, found.denying), (vec![], vec![text]));
        let found = ask(&objects, "10.0.0.4");
        let text = format!("ClusterNetworkPolicy base, ingress rule 1 \"no d\" (from pods app=d {spaces}");
        assert_eq!(found.denying, [text]);
        // A NetworkPolicy has the last word on what was passed on.
        let open = json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}]}});
        objects.push(object("NetworkPolicy", "open", open));
        let found = ask(&objects, "10.0.0.4");
        assert_eq!(
            (found.allowing.as_slice(), found.denying.as_slice()),
            (&["x/open, ingress rule 1 (from everybody; every port)".to_owned()][..], &[][..])
        );
    }
}
