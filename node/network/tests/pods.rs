//! One node: pods, the node and nothing reach each other as they should.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use common::{Namespace, Node};
use sluice_network::{Bandwidth, Error};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_talk_to_each_other_and_to_the_node() {
    let mut node = Node::new(Namespace::new(), "10.244.1.0/24");
    node.network.setup_node().await.unwrap();
    node.network.setup_node().await.unwrap();
    let a = node.network.create_pod("pod-a").await.unwrap();
    let b = node.network.create_pod("pod-b").await.unwrap();
    assert_eq!((a.ips[0].to_string(), b.ips[0].to_string()), ("10.244.1.2".into(), "10.244.1.3".into()));
    assert_eq!(node.network.create_pod("pod-a").await.unwrap(), a);

    let (in_a, in_b) = (Namespace::open(&a.netns), Namespace::open(&b.netns));
    let gateway = node.network.gateways()[0];
    assert_eq!(in_a.asks(&in_b, b.ips[0]).unwrap(), a.ips[0]);
    assert_eq!(in_a.asks(&in_a, a.ips[0]).unwrap(), a.ips[0]);
    assert_eq!(in_a.asks(&in_a, "127.0.0.1".parse().unwrap()).unwrap().to_string(), "127.0.0.1");
    assert_eq!(node.namespace.asks(&in_a, a.ips[0]).unwrap(), gateway);
    assert_eq!(in_b.asks(&node.namespace, gateway).unwrap(), b.ips[0]);

    // Nobody's addresses are refused at once, in pods and on the node.
    for (from, to) in [(&in_a, "10.96.0.10:53"), (&in_a, "10.244.7.7:80"), (&node.namespace, "10.96.0.10:53")] {
        let began = Instant::now();
        let to: SocketAddr = to.parse().unwrap();
        let error = from.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(5))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{to}: {error}");
        assert!(began.elapsed() < Duration::from_secs(1));
    }

    // A daemon that starts again finds everything in the kernel.
    node.reopen();
    node.network.setup_node().await.unwrap();
    let mut found = node.network.pods().await.unwrap();
    found.sort_by(|x, y| x.uid.cmp(&y.uid));
    assert_eq!(found, [a.clone(), b.clone()]);
    assert_eq!(node.network.create_pod("pod-b").await.unwrap(), b);
    assert_eq!(in_a.asks(&in_b, b.ips[0]).unwrap(), a.ips[0]);

    node.network.delete_pod("pod-a").await.unwrap();
    node.network.delete_pod("pod-a").await.unwrap();
    assert_eq!(node.network.pods().await.unwrap(), [b]);
    let c = node.network.create_pod("pod-c").await.unwrap();
    assert_eq!(c.ips[0].to_string(), "10.244.1.4", "a released address rests");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_range_says_so() {
    let node = Node::new(Namespace::new(), "10.244.1.0/30");
    node.network.setup_node().await.unwrap();
    let a = node.network.create_pod("a").await.unwrap();
    let error = node.network.create_pod("b").await.unwrap_err();
    assert!(matches!(error, Error::Exhausted { used: 1, .. }), "{error}");
    assert!(error.to_string().starts_with("no free pod address in 10.244.1.0/30: 1 are in use"), "{error}");
    node.network.delete_pod("a").await.unwrap();
    assert_eq!(node.network.create_pod("b").await.unwrap().ips, a.ips);
    assert!(node.network.create_pod("../x").await.is_err());
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pods_at_once_get_different_addresses() {
    let node = Node::new(Namespace::new(), "10.244.1.0/24");
    node.network.setup_node().await.unwrap();
    let began = Instant::now();
    let pods = (0..30).map(|at| {
        let network = node.network.clone();
        tokio::spawn(async move { network.create_pod(&format!("pod-{at}")).await.unwrap() })
    });
    let mut ips = Vec::new();
    for pod in pods.collect::<Vec<_>>() {
        ips.push(pod.await.unwrap().ips[0]);
    }
    println!("30 pods' networks in {:?}", began.elapsed());
    ips.sort();
    ips.dedup();
    assert_eq!(ips.len(), 30);
    assert_eq!(node.network.pods().await.unwrap().len(), 30);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_have_an_address_of_each_family() {
    let mut node = Node::new(Namespace::new(), "10.244.1.0/24,fd00:10:244:1::/64");
    node.network.setup_node().await.unwrap();
    let a = node.network.create_pod("pod-a").await.unwrap();
    let b = node.network.create_pod("pod-b").await.unwrap();
    let ips: Vec<String> = b.ips.iter().map(ToString::to_string).collect();
    assert_eq!(ips, ["10.244.1.3", "fd00:10:244:1::3"]);
    let (in_a, in_b) = (Namespace::open(&a.netns), Namespace::open(&b.netns));
    for at in [0, 1] {
        assert_eq!(in_a.asks(&in_b, b.ips[at]).unwrap(), a.ips[at]);
        assert_eq!(node.namespace.asks(&in_b, b.ips[at]).unwrap(), node.network.gateways()[at]);
    }
    node.reopen();
    assert_eq!(node.network.create_pod("pod-b").await.unwrap(), b);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_belongs_to_no_pod_is_removed() {
    let node = Node::new(Namespace::new(), "10.244.1.0/24");
    node.network.setup_node().await.unwrap();
    let kept = node.network.create_pod("kept").await.unwrap();
    let gone = node.network.create_pod("gone").await.unwrap();
    // As a daemon leaves it that dies between the namespace and the link.
    node.network.create_pod("half").await.unwrap();
    let half = node.network.pods().await.unwrap().into_iter().find(|pod| pod.uid == "half").unwrap();
    node.namespace.ip(&format!("link del {}", half.host_ifname));
    node.network.retain(&["kept".to_owned()].into()).await.unwrap();
    assert_eq!(node.network.pods().await.unwrap(), [kept]);
    assert!(!gone.netns.exists() && !half.netns.exists());
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_of_ended_pods_go_by_themselves() {
    let mut node = Node::new(Namespace::new(), "10.244.1.0/24");
    node.network.setup_node().await.unwrap();
    let kept = node.network.create_pod("kept").await.unwrap();
    for round in 0..3 {
        let uids: Vec<String> = (0..8).map(|at| format!("pod-{round}-{at}")).collect();
        for uid in &uids {
            node.network.create_pod(uid).await.unwrap();
        }
        for uid in &uids {
            node.network.delete_pod(uid).await.unwrap();
        }
        // Neither address nor namespace waits for the links.
        assert_eq!(node.network.pods().await.unwrap(), std::slice::from_ref(&kept));
        assert_eq!(node.namespace.ip("route show proto 92 scope link").lines().count(), 1);
    }
    links_become(&node, 1);
    // A pod whose uid comes back meanwhile gets a whole new link.
    node.network.delete_pod("kept").await.unwrap();
    let again = node.network.create_pod("kept").await.unwrap();
    assert!(node.namespace.asks(&Namespace::open(&again.netns), again.ips[0]).is_ok());
    // As a daemon leaves it that dies between the two steps.
    node.namespace.ip(&format!("link set {} group 20828 alias -", again.host_ifname));
    node.reopen();
    node.network.setup_node().await.unwrap();
    links_become(&node, 0);
    node.end().await;
}

/// Each look takes a program's start: no need to wait in between.
fn links_become(node: &Node, count: usize) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let links = node.namespace.ip("-o link show");
        if links.lines().filter(|line| line.contains("slc")).count() == count {
            return;
        }
        assert!(Instant::now() < end, "links are left: {links}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_may_have_ipv6_alone() {
    let node = Node::new(Namespace::new(), "fd00:10:244:1::/64");
    node.network.setup_node().await.unwrap();
    let a = node.network.create_pod("pod-a").await.unwrap();
    let b = node.network.create_pod("pod-b").await.unwrap();
    assert_eq!(b.ips, ["fd00:10:244:1::3".parse::<std::net::IpAddr>().unwrap()]);
    let (in_a, in_b) = (Namespace::open(&a.netns), Namespace::open(&b.netns));
    assert_eq!(in_a.asks(&in_b, b.ips[0]).unwrap(), a.ips[0]);
    assert_eq!(node.namespace.asks(&in_b, b.ips[0]).unwrap(), node.network.gateways()[0]);
    let nobody: SocketAddr = "[fd00:10:244:7::7]:80".parse().unwrap();
    for from in [&in_a, &node.namespace] {
        let error = from.enter(|| TcpStream::connect_timeout(&nobody, Duration::from_secs(5))).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable), "{error}");
    }
    // The node's side of a pod's link has no address of its own and listens to no router.
    assert!(!node.namespace.ip(&format!("-6 addr show dev {}", a.host_ifname)).contains("inet6"));
    let listens = node.namespace.sysctl_of(&format!("net/ipv6/conf/{}/accept_ra", a.host_ifname));
    assert_eq!(listens, "0");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_forwards_still_listens_to_its_router() {
    let (node, router) = (Namespace::new(), Namespace::new());
    router.cable("r1", "192.0.2.254/24", &node, "up0", "192.0.2.1/24");
    let node = Node::new(node, "10.244.1.0/24,fd00:10:244:1::/64");
    assert_eq!(node.namespace.sysctl_of("net/ipv6/conf/up0/accept_ra"), "1");
    node.network.setup_node().await.unwrap();
    assert_eq!(node.namespace.sysctl_of("net/ipv6/conf/all/forwarding"), "1");
    assert_eq!(node.namespace.sysctl_of("net/ipv6/conf/up0/accept_ra"), "2");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_with_ipv6_switched_off_is_told_so() {
    let node = Node::new(Namespace::new(), "10.244.1.0/24,fd00:10:244:1::/64");
    node.namespace.sysctl("net/ipv6/conf/lo/disable_ipv6", "1");
    let error = node.network.setup_node().await.unwrap_err().to_string();
    assert!(error.contains("IPv6 is switched off here: sysctl -w net.ipv6.conf.all.disable_ipv6=0"), "{error}");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pods_traffic_is_limited_at_both_ends() {
    let node = Node::new(Namespace::new(), "10.244.1.0/24");
    node.network.setup_node().await.unwrap();
    let a = node.network.create_pod("a").await.unwrap();
    let b = node.network.create_pod("b").await.unwrap();
    let (in_a, in_b) = (Namespace::open(&a.netns), Namespace::open(&b.netns));
    let limits = Bandwidth { ingress: Some(80_000_000), egress: Some(40_000_000_000) };
    // A daemon that starts again says the same again, and may say something else.
    for first in [Bandwidth { ingress: Some(8_000), ..limits }, limits, limits] {
        node.network.limit_pod("a", first).await.unwrap();
    }
    let host = node.namespace.tc(&format!("qdisc show dev {}", a.host_ifname));
    assert!(host.contains("tbf") && host.contains("rate 80Mbit burst ") && host.contains("lat 25ms"), "{host}");
    let inside = in_a.tc("qdisc show dev eth0");
    assert!(inside.contains("tbf") && inside.contains("rate 40Gbit "), "{inside}");
    assert!(!node.namespace.tc(&format!("qdisc show dev {}", b.host_ifname)).contains("tbf"));
    // A daemon that starts again finds out, so that nothing goes past the queue.
    let mut node = node;
    node.reopen();
    assert!(node.network.create_pod("a").await.unwrap().queued);
    assert!(!node.network.create_pod("b").await.unwrap().queued);
    assert_eq!(in_a.asks(&in_b, b.ips[0]).unwrap(), a.ips[0]);
    assert_eq!(in_b.asks(&in_a, a.ips[0]).unwrap(), b.ips[0]);
    node.network.limit_pod("gone", limits).await.unwrap_err();
    node.end().await;
}
