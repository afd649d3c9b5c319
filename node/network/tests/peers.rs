//! Several nodes: pods reach each other by routes on a shared link, and through the tunnel where there is none.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Namespace, Node};
use sluice_network::{Peer, PeerPath, PodNet};

fn peer(name: &str, range: &str, ip: &str, path: PeerPath) -> Peer {
    Peer { node: name.into(), pod_cidrs: vec![range.parse().unwrap()], node_ip: ip.parse().unwrap(), path }
}

/// A pod on each node; each reaches the other and the other's node with its own address.
async fn reach_each_other(one: &Node, other: &Node) -> (PodNet, PodNet) {
    let a = one.network.create_pod("pod-a").await.unwrap();
    let b = other.network.create_pod("pod-b").await.unwrap();
    let (in_a, in_b) = (Namespace::open(&a.netns), Namespace::open(&b.netns));
    assert_eq!(in_a.asks(&in_b, b.ips[0]).unwrap(), a.ips[0]);
    assert_eq!(in_b.asks(&in_a, a.ips[0]).unwrap(), b.ips[0]);
    assert_eq!(one.namespace.asks(&in_b, b.ips[0]).unwrap(), one.network.gateways()[0]);
    assert_eq!(in_a.asks(&other.namespace, other.network.gateways()[0]).unwrap(), a.ips[0]);
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
    assert!(Namespace::open(&a.netns).ip("link show eth0").contains("mtu 1430"));
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
