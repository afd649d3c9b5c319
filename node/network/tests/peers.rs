//! Several nodes: pods reach each other by routes on a shared link, and through the tunnel where there is none.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Namespace, Node};
use sluice_network::{Peer, PeerPath, PodNet};

fn peer(name: &str, range: &str, ip: &str, path: PeerPath) -> Peer {
    let pod_cidrs = range.split(',').map(|range| range.parse().unwrap()).collect();
    let node_ips = ip.split(',').map(|ip| ip.parse().unwrap()).collect();
    Peer { node: name.into(), pod_cidrs, node_ips, path }
}

/// A pod on each node; each reaches the other and the other's node with its own address.
async fn reach_each_other(one: &Node, other: &Node) -> (PodNet, PodNet) {
    let a = one.network.create_pod("pod-a").await.unwrap();
    let b = other.network.create_pod("pod-b").await.unwrap();
    let (in_a, in_b) = (Namespace::open(&a.netns), Namespace::open(&b.netns));
    for at in 0..a.ips.len() {
        assert_eq!(in_a.asks(&in_b, b.ips[at]).unwrap(), a.ips[at]);
        assert_eq!(in_b.asks(&in_a, a.ips[at]).unwrap(), b.ips[at]);
        assert_eq!(one.namespace.asks(&in_b, b.ips[at]).unwrap(), one.network.gateways()[at]);
        assert_eq!(in_a.asks(&other.namespace, other.network.gateways()[at]).unwrap(), a.ips[at]);
    }
    (a, b)
}

async fn two_nodes_on_a_link(path: PeerPath) -> (Node, Node) {
    let (one, other) = (Namespace::new(), Namespace::new());
    one.cable("up0", "192.0.2.1/24", &other, "up0", "192.0.2.2/24");
    one.ip("route add default via 192.0.2.254");
    other.ip("route add default via 192.0.2.254");
    let (one, other) = (Node::new(one, "10.244.1.0/24"), Node::new(other, "10.244.2.0/24"));
    for node in [&one, &other] {
        node.network.setup_node().await.unwrap();
    }
    one.network.set_peers(vec![peer("two", "10.244.2.0/24", "192.0.2.2", path)]).await.unwrap();
    other.network.set_peers(vec![peer("one", "10.244.1.0/24", "192.0.2.1", path)]).await.unwrap();
    (one, other)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_link_is_used_directly() {
    let (one, other) = two_nodes_on_a_link(PeerPath::Auto).await;
    assert_eq!(one.network.node_ips().await.unwrap(), ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(one.network.uplinks().await.unwrap(), ["up0"]);
    reach_each_other(&one, &other).await;
    assert!(!one.namespace.ip("-o link show").contains("sluice.vxlan"));
    one.network.set_peers(Vec::new()).await.unwrap();
    assert!(!one.namespace.ip("route show proto 92").contains("10.244.2.0/24"));
    one.end().await;
    other.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tunnel_carries_pods_and_goes_when_not_needed() {
    let (one, other) = two_nodes_on_a_link(PeerPath::Tunnel).await;
    let (a, _) = reach_each_other(&one, &other).await;
    assert!(one.namespace.ip("-o link show").contains("sluice.vxlan"));
    assert!(Namespace::open(&a.netns).ip("link show eth0").contains("mtu 1450"));
    // The same nodes, found to be on one link: pods stay, the way changes.
    one.network.set_peers(vec![peer("two", "10.244.2.0/24", "192.0.2.2", PeerPath::Direct)]).await.unwrap();
    other.network.set_peers(vec![peer("one", "10.244.1.0/24", "192.0.2.1", PeerPath::Direct)]).await.unwrap();
    assert!(!one.namespace.ip("-o link show").contains("sluice.vxlan"));
    reach_each_other(&one, &other).await;
    one.end().await;
    other.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_behind_a_router_get_a_tunnel() {
    let (one, router, other) = (Namespace::new(), Namespace::new(), Namespace::new());
    router.sysctl("net/ipv4/ip_forward", "1");
    router.cable("r1", "192.0.2.254/24", &one, "up0", "192.0.2.1/24");
    router.cable("r2", "198.51.100.254/24", &other, "up0", "198.51.100.1/24");
    one.ip("route add default via 192.0.2.254");
    other.ip("route add default via 198.51.100.254");
    let (one, other) = (Node::new(one, "10.244.1.0/24"), Node::new(other, "10.244.2.0/24"));
    for node in [&one, &other] {
        node.network.setup_node().await.unwrap();
    }
    let direct = peer("two", "10.244.2.0/24", "198.51.100.1", PeerPath::Direct);
    let error = one.network.set_peers(vec![direct]).await.unwrap_err();
    assert!(error.to_string().contains("behind 192.0.2.254"), "{error}");
    let nowhere = peer("three", "10.244.3.0/24", "10.244.9.9", PeerPath::Auto);
    let two = peer("two", "10.244.2.0/24", "198.51.100.1", PeerPath::Auto);
    one.network.set_peers(vec![nowhere, two]).await.unwrap();
    other.network.set_peers(vec![peer("one", "10.244.1.0/24", "192.0.2.1", PeerPath::Auto)]).await.unwrap();
    reach_each_other(&one, &other).await;
    assert_eq!(one.network.uplinks().await.unwrap().len(), 2);
    one.end().await;
    other.end().await;
}

const ONE: &str = "10.244.1.0/24,fd00:10:244:1::/64";
const TWO: &str = "10.244.2.0/24,fd00:10:244:2::/64";

/// Two nodes on one link, with pods of both families, told of each other's addresses.
async fn two_dual_nodes(ips: [&str; 2], path: PeerPath) -> (Node, Node) {
    let (one, other) = (Namespace::new(), Namespace::new());
    one.cable("up0", "192.0.2.1/24", &other, "up0", "192.0.2.2/24");
    for (node, address) in [(&one, "2001:db8::1/64"), (&other, "2001:db8::2/64")] {
        node.ip(&format!("addr add {address} dev up0 nodad"));
        node.ip("route add default via 192.0.2.254");
        node.ip("-6 route add default via 2001:db8::fe");
    }
    let (one, other) = (Node::new(one, ONE), Node::new(other, TWO));
    for node in [&one, &other] {
        node.network.setup_node().await.unwrap();
    }
    one.network.set_peers(vec![peer("two", TWO, ips[1], path)]).await.unwrap();
    other.network.set_peers(vec![peer("one", ONE, ips[0], path)]).await.unwrap();
    (one, other)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_families_go_directly_and_by_the_tunnel() {
    let ips = ["192.0.2.1,2001:db8::1", "192.0.2.2,2001:db8::2"];
    let (one, other) = two_dual_nodes(ips, PeerPath::Auto).await;
    let own: Vec<String> = one.network.node_ips().await.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(own, ["192.0.2.1", "2001:db8::1"]);
    reach_each_other(&one, &other).await;
    assert!(!one.namespace.ip("-o link show").contains("sluice.vxlan"));
    for path in [PeerPath::Tunnel, PeerPath::Direct] {
        one.network.set_peers(vec![peer("two", TWO, ips[1], path)]).await.unwrap();
        other.network.set_peers(vec![peer("one", ONE, ips[0], path)]).await.unwrap();
        reach_each_other(&one, &other).await;
        assert_eq!(one.namespace.ip("-o link show").contains("sluice.vxlan"), path == PeerPath::Tunnel);
    }
    one.network.set_peers(Vec::new()).await.unwrap();
    assert!(!one.namespace.ip("-6 route show proto 92").contains("fd00:10:244:2::"));
    one.end().await;
    other.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_may_have_a_family_that_their_nodes_lack() {
    for (ips, overhead) in [(["192.0.2.1", "192.0.2.2"], 50), (["2001:db8::1", "2001:db8::2"], 70)] {
        let (one, other) = two_dual_nodes(ips, PeerPath::Auto).await;
        // Each node has an address of one family alone.
        let missing = if overhead == 50 { "-6 addr flush dev up0" } else { "-4 addr flush dev up0" };
        for (node, told) in
            [(&one, peer("two", TWO, ips[1], PeerPath::Auto)), (&other, peer("one", ONE, ips[0], PeerPath::Auto))]
        {
            node.namespace.ip(missing);
            node.network.set_peers(vec![told]).await.unwrap();
        }
        let (a, _) = reach_each_other(&one, &other).await;
        let mtu = format!("mtu {}", 1500 - overhead);
        assert!(Namespace::open(&a.netns).ip("link show eth0").contains(&mtu));
        one.end().await;
        other.end().await;
    }
}
