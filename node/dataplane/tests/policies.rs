//! Network policies with real sockets: pods of two nodes and of two namespaces, the node and a machine outside, over IPv4 and
//! IPv6. The cases are those of upstream's test/e2e/network/netpol.
#![allow(clippy::unwrap_used)]

#[path = "common/clusters.rs"]
mod clusters;
mod common;

use std::net::UdpSocket;

use clusters::{Cluster, IMPATIENCE, cluster, load, policy};
use common::{PATIENCE, connect, isolated, service};
use serde_json::{Value, json};
use sluice_dataplane::model::Protocol;

const ALL: &[&str] = &["80/tcp", "81/tcp", "80/udp", "81/udp"];
const NONE: &[&str] = &[];

/// The policies, and what reaches pod a (from, what).
type Case = (&'static str, Value, [(&'static str, &'static [&'static str]); 5]);

fn ingress() -> Vec<Case> {
    vec![
        (
            "default deny",
            json!({"policyTypes": ["Ingress"]}),
            [("b", NONE), ("c", NONE), ("d", NONE), ("outside", NONE), ("node", ALL)],
        ),
        (
            "an empty rule lets everybody in",
            json!({"policyTypes": ["Ingress"], "ingress": [{}]}),
            [("b", ALL), ("c", ALL), ("d", ALL), ("outside", ALL), ("node", ALL)],
        ),
        (
            "by pod, in the own namespace",
            json!({"policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {}}]}]}),
            [("b", NONE), ("c", ALL), ("d", NONE), ("outside", NONE), ("node", ALL)],
        ),
        (
            "by namespace",
            json!({"policyTypes": ["Ingress"], "ingress": [
                {"from": [{"namespaceSelector": {"matchLabels": {"team": "y"}}}]}
            ]}),
            [("b", ALL), ("c", NONE), ("d", ALL), ("outside", NONE), ("node", ALL)],
        ),
        (
            "by namespace and pod",
            json!({"policyTypes": ["Ingress"], "ingress": [{"from": [{
                "namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["x"]}]},
                "podSelector": {"matchExpressions": [{"key": "pod", "operator": "In", "values": ["d", "e"]}]}
            }]}]}),
            [("b", NONE), ("c", NONE), ("d", ALL), ("outside", NONE), ("node", ALL)],
        ),
        (
            "by port, from everybody",
            json!({"policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 80}, {"port": 81, "protocol": "UDP"}]}]}),
            [
                ("b", &["80/tcp", "81/udp"]),
                ("c", &["80/tcp", "81/udp"]),
                ("d", &["80/tcp", "81/udp"]),
                ("outside", &["80/tcp", "81/udp"]),
                ("node", ALL),
            ],
        ),
        (
            "by a port's name, and every port of a protocol",
            json!({"policyTypes": ["Ingress"], "ingress": [
                {"from": [{"podSelector": {}}], "ports": [{"port": "web"}]},
                {"from": [{"namespaceSelector": {"matchLabels": {"team": "y"}}}], "ports": [{"protocol": "UDP"}]}
            ]}),
            [
                ("b", &["80/udp", "81/udp"]),
                ("c", &["81/tcp"]),
                ("d", &["80/udp", "81/udp"]),
                ("outside", NONE),
                ("node", ALL),
            ],
        ),
        (
            "a range of ports",
            json!({"policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 81, "endPort": 90}]}]}),
            [("b", &["81/tcp"]), ("c", &["81/tcp"]), ("d", &["81/tcp"]), ("outside", &["81/tcp"]), ("node", ALL)],
        ),
        (
            "blocks of addresses, less some",
            json!({"policyTypes": ["Ingress"], "ingress": [{"from": [
                {"ipBlock": {"cidr": "192.0.2.0/24"}}, {"ipBlock": {"cidr": "fd02::/64"}},
                {"ipBlock": {"cidr": "10.244.0.0/16", "except": ["10.244.9.6/32", "10.244.0.0/24"]}},
                {"ipBlock": {"cidr": "fd44::/48", "except": ["fd44:0:0:9::6/128", "fd44::/64"]}}
            ]}]}),
            [("b", NONE), ("c", ALL), ("d", NONE), ("outside", ALL), ("node", ALL)],
        ),
    ]
}

#[test]
fn what_comes_to_a_pod_is_judged() {
    isolated("what_comes_to_a_pod_is_judged", |place| {
        let cluster = cluster(place);
        for from in ["b", "c", "d", "outside", "node"] {
            cluster.check("no policy", from, "a", ALL);
        }
        for (what, spec, expected) in ingress() {
            cluster.apply(&[policy("p", spec)]);
            for (from, reaches) in expected {
                cluster.check(what, from, "a", reaches);
            }
            // What the pod sends is nobody's business, and its answers come back; other pods are free.
            cluster.check(what, "a", "d", ALL);
            cluster.check(what, "a", "outside", ALL);
            cluster.check(what, "d", "b", ALL);
        }
        // Policies add up.
        let one = policy("one", json!({"policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 80}]}]}));
        let two = policy("two", json!({"policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 81}]}]}));
        let none = policy("none", json!({"policyTypes": ["Ingress"]}));
        cluster.apply(&[one, two, none]);
        cluster.check("three policies", "d", "a", &["80/tcp", "81/tcp"]);
        cluster.apply(&[]);
        cluster.check("without policies again", "d", "a", ALL);
    });
}

fn egress() -> Vec<Case> {
    let own = json!({"policyTypes": ["Egress"]});
    let with = |rules: Value| {
        let mut spec = own.clone();
        spec["egress"] = rules;
        spec
    };
    vec![
        ("default deny", own.clone(), [("b", NONE), ("c", NONE), ("d", NONE), ("outside", NONE), ("node", NONE)]),
        (
            "an empty rule lets it reach everybody",
            with(json!([{}])),
            [("b", ALL), ("c", ALL), ("d", ALL), ("outside", ALL), ("node", NONE)],
        ),
        (
            "by namespace",
            with(json!([{"to": [{"namespaceSelector": {"matchLabels": {"team": "y"}}}]}])),
            [("b", ALL), ("c", NONE), ("d", ALL), ("outside", NONE), ("node", NONE)],
        ),
        (
            "by a port's name, which is each destination's own",
            with(
                json!([{"to": [{"namespaceSelector": {}}], "ports": [{"port": "web"}, {"port": "ask", "protocol": "UDP"}]}]),
            ),
            [
                ("b", &["80/tcp", "80/udp"]),
                ("c", &["81/tcp", "81/udp"]),
                ("d", &["80/tcp", "80/udp"]),
                ("outside", NONE),
                ("node", NONE),
            ],
        ),
        (
            "by a port's name, wherever there is one",
            with(json!([{"ports": [{"port": "web"}]}])),
            [("b", &["80/tcp"]), ("c", &["81/tcp"]), ("d", &["80/tcp"]), ("outside", NONE), ("node", NONE)],
        ),
        (
            "blocks of addresses, less some, by port",
            with(json!([{"to": [
                {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.244.9.5/32"]}},
                {"ipBlock": {"cidr": "::/0", "except": ["fd44:0:0:9::5/128"]}}
            ], "ports": [{"port": 80}]}])),
            [("b", &["80/tcp"]), ("c", NONE), ("d", &["80/tcp"]), ("outside", &["80/tcp"]), ("node", NONE)],
        ),
    ]
}

#[test]
fn what_a_pod_sends_is_judged() {
    isolated("what_a_pod_sends_is_judged", |place| {
        let cluster = cluster(place);
        for (what, spec, expected) in egress() {
            cluster.apply(&[policy("p", spec)]);
            // Nobody listens on the node, which is never judged.
            for (to, reaches) in expected.into_iter().filter(|(to, _)| *to != "node") {
                cluster.check(what, "a", to, reaches);
            }
            for from in ["b", "d", "outside", "node"] {
                cluster.check(what, from, "a", ALL);
            }
        }
        cluster.apply(&[policy("p", json!({"policyTypes": ["Ingress", "Egress"]}))]);
        cluster.check("a pod reaches itself", "a", "a", ALL);
    });
}

/// Changes something under an open connection, which then goes on or not.
fn under(cluster: &Cluster, from: usize, address: &str, goes_on: bool, change: impl FnOnce() + Send) {
    let lives = cluster.pods[from].within(|| {
        let mut client = connect(address).unwrap();
        assert!(client.alive());
        change();
        client.stream.set_read_timeout(Some(if goes_on { PATIENCE } else { IMPATIENCE })).unwrap();
        client.alive()
    });
    assert_eq!(lives, goes_on, "{from} to {address}");
}

#[test]
fn a_change_holds_for_open_connections() {
    isolated("a_change_holds_for_open_connections", |place| {
        let mut cluster = cluster(place);
        let deny = policy("deny", json!({"policyTypes": ["Ingress"]}));
        let from_x = json!({"policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {}}]}]});
        let deny_egress = policy("deny", json!({"policyTypes": ["Egress"]}));
        // The pods c and d on the other node, b on this one; the change, and whether the connection goes on.
        for address in ["10.244.0.5:80", "[fd44::5]:80"] {
            for from in [1, 2, 3] {
                cluster.apply(&[]);
                under(&cluster, from, address, false, || cluster.apply(std::slice::from_ref(&deny)));
                cluster.apply(&[]);
                under(&cluster, from, address, true, || cluster.apply(std::slice::from_ref(&deny_egress)));
            }
            cluster.apply(&[policy("p", from_x.clone())]);
            under(&cluster, 2, address, true, || cluster.apply(&[policy("p", from_x.clone())]));
            let other = policy("p", json!({"policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 81}]}]}));
            under(&cluster, 2, address, false, || cluster.apply(&[other]));
        }
        // What the pod opened goes on when nothing may come to it any more, and ends when it may send nothing.
        for address in ["10.244.9.6:80", "[fd44:0:0:9::6]:80", "10.244.0.6:80"] {
            cluster.apply(&[]);
            under(&cluster, 0, address, true, || cluster.apply(std::slice::from_ref(&deny)));
            cluster.apply(&[]);
            under(&cluster, 0, address, false, || cluster.apply(std::slice::from_ref(&deny_egress)));
        }
        // A daemon that starts goes on from what it finds: what was denied is denied, what was allowed goes on.
        cluster.apply(&[policy("p", from_x.clone())]);
        let mut open = cluster.pods[2].within(|| connect("10.244.0.5:80").unwrap());
        let next = load(place, 0);
        cluster.planes[0] = next;
        cluster.check("before anything is known", "d", "a", NONE);
        assert!(open.alive());
        cluster.check("before anything is known", "c", "a", ALL);
        cluster.attach(0);
        cluster.check("when the pods are known", "d", "a", NONE);
        cluster.apply(&[policy("p", from_x)]);
        cluster.check("when all is known", "d", "a", NONE);
        cluster.check("when all is known", "c", "a", ALL);
        assert!(open.alive());
        cluster.apply(&[]);
        cluster.check("without policies again", "d", "a", ALL);
    });
}

/// A Service that nobody serves is refused at once, whoever may reach the pod that asks.
#[test]
fn refusals_reach_a_pod_with_policies() {
    isolated("refusals_reach_a_pod_with_policies", |place| {
        let cluster = cluster(place);
        cluster.apply(&[policy("p", json!({"policyTypes": ["Ingress", "Egress"], "egress": [{}]}))]);
        for to in ["10.96.0.10:80", "[fd96::10]:80"] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                cluster.planes[0].apply(&service(protocol, to, 0, &[])).unwrap();
                let refused = cluster.pods[0].within(|| match protocol {
                    Protocol::Tcp => connect(to).map(drop).unwrap_err(),
                    _ => {
                        let socket = UdpSocket::bind(if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" }).unwrap();
                        socket.set_read_timeout(Some(PATIENCE)).unwrap();
                        socket.connect(to).unwrap();
                        socket.send(b"?").unwrap();
                        socket.recv(&mut [0; 8]).unwrap_err()
                    }
                });
                assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{to} {protocol:?}");
            }
        }
    });
}
