//! Policies of the whole cluster with real sockets: pods of two nodes and of two namespaces and a machine outside, over IPv4 and
//! IPv6. The cases are those of network-policy-api's conformance suite, and what its reference says beyond them.
#![allow(clippy::unwrap_used)]

#[path = "common/clusters.rs"]
mod clusters;
mod common;

use clusters::{Cluster, IMPATIENCE, OUTSIDE, cluster, load, policy};
use common::{connect, isolated};
use serde_json::{Value, json};

const ALL: &[&str] = &["80/tcp", "81/tcp", "80/udp", "81/udp"];
const NONE: &[&str] = &[];

/// The policies, and what goes between pod a and others (whom, what).
type Case = (&'static str, Vec<Value>, Vec<(&'static str, &'static [&'static str])>);

/// A ClusterNetworkPolicy for all pods of namespace x.
fn cluster_policy(name: &str, tier: &str, priority: u32, direction: &str, rules: Value) -> Value {
    let mut object = json!({"kind": "ClusterNetworkPolicy", "metadata": {"name": name}, "spec": {
        "tier": tier, "priority": priority, "subject": {"namespaces": {"matchLabels": {"team": "x"}}}
    }});
    object["spec"][direction] = rules;
    object
}

fn admin(direction: &str, rules: Value) -> Value {
    cluster_policy("admin", "Admin", 50, direction, rules)
}

fn baseline(direction: &str, rules: Value) -> Value {
    cluster_policy("baseline", "Baseline", 10, direction, rules)
}

fn of_y() -> Value {
    json!([{"namespaces": {"matchLabels": {"team": "y"}}}])
}

fn one(action: &str, direction: &str) -> Value {
    json!([{"action": action, direction: of_y()}])
}

fn ingress() -> Vec<Case> {
    let from_y = |action: &str| one(action, "from");
    let tcp = |port: u16| json!({"tcp": {"destinationPort": {"number": port}}});
    let up_to_81 = json!({"tcp": {"destinationPort": {"range": {"start": 1, "end": 81}}}});
    let np = policy(
        "np",
        json!({"policyTypes": ["Ingress"], "ingress": [
            {"from": [{"namespaceSelector": {"matchLabels": {"team": "y"}}}], "ports": [{"port": 81}]}
        ]}),
    );
    let old = |kind: &str, spec: Value| json!({"kind": kind, "metadata": {"name": "default"}, "spec": spec});
    let y = || vec![("b", NONE), ("d", NONE), ("c", ALL), ("outside", ALL), ("node", ALL)];
    let all = || vec![("b", ALL), ("d", ALL), ("c", ALL), ("outside", ALL)];
    let only_81 = || vec![("b", &["81/tcp"][..]), ("d", &["81/tcp"]), ("c", NONE), ("outside", NONE)];
    vec![
        ("admin denies", vec![admin("ingress", from_y("Deny"))], y()),
        ("baseline denies", vec![baseline("ingress", from_y("Deny"))], y()),
        ("another namespace is no subject", vec![admin("egress", one("Deny", "to"))], all()),
        (
            "the first rule that matches decides, by port",
            vec![admin(
                "ingress",
                json!([
                    {"action": "Accept", "from": of_y(), "protocols": [tcp(80), {"udp": {"destinationPort": {"number": 81}}}]},
                    {"action": "Deny", "from": of_y()},
                    {"action": "Accept", "from": of_y()}
                ]),
            )],
            vec![("b", &["80/tcp", "81/udp"]), ("d", &["80/tcp", "81/udp"]), ("c", ALL), ("outside", ALL)],
        ),
        (
            "a range of ports is denied",
            vec![admin("ingress", json!([{"action": "Deny", "from": of_y(), "protocols": [up_to_81]}]))],
            vec![("b", &["80/udp", "81/udp"]), ("d", &["80/udp", "81/udp"]), ("c", ALL)],
        ),
        (
            "a port's name is the destination's own, of any protocol",
            vec![admin(
                "ingress",
                json!([
                    {"action": "Accept", "from": of_y(), "protocols": [{"destinationNamedPort": "web"}]},
                    {"action": "Accept", "from": of_y(), "protocols": [{"destinationNamedPort": "ask"}]},
                    {"action": "Deny", "from": [{"namespaces": {}}]}
                ]),
            )],
            vec![("b", &["81/tcp", "81/udp"]), ("d", &["81/tcp", "81/udp"]), ("c", NONE), ("outside", ALL)],
        ),
        (
            "pods of namespaces",
            vec![admin(
                "ingress",
                json!([{"action": "Deny", "from": [
                    {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "d"}}}}
                ]}]),
            )],
            vec![("b", ALL), ("d", NONE), ("c", ALL), ("outside", ALL)],
        ),
        (
            "a later priority is not asked",
            vec![
                admin("ingress", from_y("Deny")),
                cluster_policy("other", "Admin", 60, "ingress", from_y("Pass")),
                baseline("ingress", from_y("Accept")),
            ],
            y(),
        ),
        (
            "an earlier priority passes to the baseline",
            vec![
                admin("ingress", from_y("Deny")),
                cluster_policy("other", "Admin", 40, "ingress", from_y("Pass")),
                baseline("ingress", from_y("Accept")),
            ],
            all(),
        ),
        (
            "admin denies what a NetworkPolicy allows",
            vec![admin("ingress", from_y("Deny")), np.clone()],
            vec![("b", NONE), ("d", NONE), ("c", NONE), ("outside", NONE), ("node", ALL)],
        ),
        (
            "admin accepts what a NetworkPolicy does not",
            vec![admin("ingress", from_y("Accept")), np.clone()],
            vec![("b", ALL), ("d", ALL), ("c", NONE), ("outside", NONE), ("node", ALL)],
        ),
        (
            "what is passed on is the NetworkPolicy's",
            vec![
                admin("ingress", json!([{"action": "Pass", "from": of_y()}, {"action": "Deny", "from": of_y()}])),
                np.clone(),
                baseline("ingress", from_y("Deny")),
            ],
            only_81(),
        ),
        ("a NetworkPolicy goes before the baseline", vec![np, baseline("ingress", from_y("Deny"))], only_81()),
        (
            "the kinds of v1alpha1",
            vec![
                old(
                    "AdminNetworkPolicy",
                    json!({"priority": 3, "subject": {"pods": {
                        "namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "a"}}
                    }}, "ingress": [
                        {"action": "Allow", "from": of_y(), "ports": [{"portNumber": {"protocol": "TCP", "port": 80}}]},
                        {"action": "Pass", "from": of_y(), "ports": [{"portRange": {"protocol": "UDP", "start": 80, "end": 81}}]},
                        {"action": "Deny", "from": of_y(), "ports": [{"namedPort": "web"}]}
                    ]}),
                ),
                old(
                    "BaselineAdminNetworkPolicy",
                    json!({"subject": {"namespaces": {"matchLabels": {"team": "x"}}}, "ingress": [
                        {"action": "Deny", "from": [{"namespaces": {}}], "ports": [{"portNumber": {"protocol": "UDP", "port": 80}}]}
                    ]}),
                ),
            ],
            vec![
                ("b", &["80/tcp", "81/udp"]),
                ("d", &["80/tcp", "81/udp"]),
                ("c", &["80/tcp", "81/tcp", "81/udp"]),
                ("outside", ALL),
            ],
        ),
        ("without policies again", vec![], all()),
    ]
}

fn egress() -> Vec<Case> {
    let everything = json!({"action": "Deny", "to": [{"networks": ["0.0.0.0/0", "::/0"]}]});
    let hosts =
        |addresses: [&str; 2]| json!([{"networks": [format!("{}/32", addresses[0]), format!("{}/128", addresses[1])]}]);
    let outside = json!({"kind": "Node", "metadata": {"name": "n", "labels": {"role": "edge"}}, "status": {
        "addresses": OUTSIDE.map(|address| json!({"type": "InternalIP", "address": address}))
    }});
    let np = policy(
        "np",
        json!({"policyTypes": ["Egress"], "egress": [
            {"to": [{"ipBlock": {"cidr": "10.244.9.0/24"}}, {"ipBlock": {"cidr": "fd44:0:0:9::/64"}}]}
        ]}),
    );
    vec![
        (
            "pods are accepted, every network is denied",
            vec![admin("egress", json!([{"action": "Accept", "to": of_y()}, everything]))],
            vec![("b", ALL), ("d", ALL), ("c", NONE), ("outside", NONE)],
        ),
        (
            "some pods by their networks",
            vec![admin(
                "egress",
                json!([
                    {"action": "Accept", "to": hosts(["10.244.9.6", "fd44:0:0:9::6"])},
                    {"action": "Accept", "to": hosts(OUTSIDE), "protocols": [{"tcp": {"destinationPort": {"number": 80}}}]},
                    everything
                ]),
            )],
            vec![("b", NONE), ("d", ALL), ("c", NONE), ("outside", &["80/tcp"])],
        ),
        (
            "a baseline denies every network, a NetworkPolicy opens one",
            vec![baseline("egress", json!([everything])), np.clone()],
            vec![("b", NONE), ("d", ALL), ("c", ALL), ("outside", NONE)],
        ),
        (
            "admin denies a pod of the block that a NetworkPolicy allows",
            vec![admin("egress", one("Deny", "to")), np],
            vec![("b", NONE), ("d", NONE), ("c", ALL), ("outside", NONE)],
        ),
        (
            "a port's name is each destination's own",
            vec![admin(
                "egress",
                json!([
                    {"action": "Accept", "to": [{"namespaces": {}}], "protocols": [{"destinationNamedPort": "web"}]},
                    {"action": "Deny", "to": [{"namespaces": {}}]}
                ]),
            )],
            vec![("b", &["80/tcp"]), ("d", &["80/tcp"]), ("c", &["81/tcp"]), ("outside", ALL)],
        ),
        (
            "nodes by their labels",
            vec![
                outside,
                admin("egress", json!([{"action": "Deny", "to": [{"nodes": {"matchLabels": {"role": "edge"}}}]}])),
            ],
            vec![("b", ALL), ("d", ALL), ("c", ALL), ("outside", NONE)],
        ),
        (
            "names of domains match nothing, and what denies them denies all",
            vec![admin(
                "egress",
                json!([
                    {"action": "Accept", "to": [{"domainNames": ["example.com"]}]},
                    {"action": "Deny", "to": of_y()}
                ]),
            )],
            vec![("b", NONE), ("d", NONE), ("c", ALL), ("outside", ALL)],
        ),
    ]
}

#[test]
fn tiers_judge_what_comes_to_a_pod() {
    isolated("tiers_judge_what_comes_to_a_pod", |place| {
        let cluster = cluster(place);
        for (what, policies, expected) in ingress() {
            cluster.apply(&policies);
            for (from, reaches) in expected {
                cluster.check(what, from, "a", reaches);
            }
            // Those that are no subject are free.
            cluster.check(what, "d", "b", ALL);
        }
    });
}

#[test]
fn tiers_judge_what_a_pod_sends() {
    isolated("tiers_judge_what_a_pod_sends", |place| {
        let cluster = cluster(place);
        for (what, policies, expected) in egress() {
            cluster.apply(&policies);
            for (to, reaches) in expected {
                cluster.check(what, "a", to, reaches);
            }
            cluster.check(what, "d", "a", ALL);
        }
    });
}

/// Open connections end when a tier denies them, and a daemon that starts goes on from what it finds.
#[test]
fn a_tier_holds_for_open_connections_and_across_restarts() {
    isolated("a_tier_holds_for_open_connections_and_across_restarts", |place| {
        let mut cluster = cluster(place);
        let alive = |cluster: &Cluster, from: usize, change: &mut (dyn FnMut() + Send)| {
            cluster.pods[from].within(|| {
                let mut client = connect("10.244.0.5:80").unwrap();
                assert!(client.alive());
                change();
                client.stream.set_read_timeout(Some(IMPATIENCE)).unwrap();
                client.alive()
            })
        };
        let deny = admin("ingress", one("Deny", "from"));
        for (from, goes_on) in [(1, false), (2, true), (3, false)] {
            cluster.apply(&[]);
            assert_eq!(alive(&cluster, from, &mut || cluster.apply(std::slice::from_ref(&deny))), goes_on, "{from}");
        }
        let next = load(place, 0);
        cluster.planes[0] = next;
        cluster.check("before anything is known", "d", "a", NONE);
        cluster.check("before anything is known", "c", "a", ALL);
        cluster.attach(0);
        cluster.apply(&[deny]);
        cluster.check("when all is known", "d", "a", NONE);
        cluster.check("when all is known", "c", "a", ALL);
    });
}
