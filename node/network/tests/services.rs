//! Further ranges of Services: refused while they are there, and never at the cost of anybody else.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::net::IpAddr;

use common::{Namespace, Node};
use sluice_network::{Cidr, limits};

fn ranges(list: &[&str]) -> Vec<Cidr> {
    list.iter().map(|range| range.parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn further_ranges_are_refused_while_they_are_there() {
    let (inside, outside) = (Namespace::new(), Namespace::new());
    inside.cable("up0", "192.0.2.1/24", &outside, "up0", "192.0.2.254/24");
    inside.ip("route add default via 192.0.2.254");
    inside.ip("route add 198.51.100.0/24 via 192.0.2.254");
    let mut node = Node::new(inside, "10.244.1.0/24");
    node.network.setup_node().await.unwrap();
    let configured = ["10.96.0.0/16", "10.244.0.0/16", "10.244.1.0/24"];
    let refused = |node: &Node| -> Vec<String> {
        let text =
            node.namespace.ip("route show type unreachable") + &node.namespace.ip("-6 route show type unreachable");
        let to = |line: &str| line.split(' ').nth(1).filter(|_| line.starts_with("unreachable")).map(str::to_owned);
        let mut all: Vec<String> = text.lines().filter_map(to).filter(|to| !configured.contains(&&**to)).collect();
        all.retain(|to| !to.starts_with("fd00:10:244"));
        all.sort();
        all
    };
    let nodes: [IpAddr; 2] = ["192.0.2.7".parse().unwrap(), "100.64.0.9".parse().unwrap()];
    let set = async |node: &Node, list: &[&str]| node.network.set_service_cidrs(&ranges(list), &nodes).await.unwrap();

    // The default ServiceCIDR is among those of the API.
    assert_eq!(set(&node, &["10.96.0.0/16"]).await, []);
    assert_eq!(refused(&node), [""; 0]);
    assert_eq!(set(&node, &["10.96.0.0/16", "203.0.113.0/24", "2001:db8:96::/112"]).await, []);
    assert_eq!(refused(&node), ["2001:db8:96::/112", "203.0.113.0/24"]);

    // After a restart the kernel tells what is there; what is gone is no longer refused.
    node.reopen();
    node.network.setup_node().await.unwrap();
    assert_eq!(set(&node, &["10.96.0.0/16", "203.0.113.0/24"]).await, []);
    assert_eq!(refused(&node), ["203.0.113.0/24"]);

    // Nodes, whatever lies around them and what others have routes for come first.
    let shared = ["0.0.0.0/0", "192.0.0.0/8", "100.64.0.0/10"];
    let mut all = shared.to_vec();
    all.push("198.51.100.0/24");
    assert_eq!(set(&node, &all).await, ranges(&shared));
    assert_eq!(refused(&node), [""; 0]);
    let routes = node.namespace.ip("route show");
    assert!(
        routes.contains("default via 192.0.2.254") && routes.contains("198.51.100.0/24 via 192.0.2.254"),
        "{routes}"
    );

    // What pods' ranges need stays.
    let own = node.namespace.ip("route show type unreachable");
    assert!(configured.iter().all(|range| own.contains(range)), "{own}");
    set(&node, &["203.0.113.0/24"]).await;
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_that_the_node_reaches_by_packet_lead_to_the_home_link() {
    let (inside, outside) = (Namespace::new(), Namespace::new());
    inside.cable("up0", "192.0.2.1/24", &outside, "up0", "192.0.2.254/24");
    inside.ip("route add default via 192.0.2.254");
    let mut node = Node::new(inside, "10.244.1.0/24,fd00:10:244:1::/64");
    node.network.setup_node().await.unwrap();
    let mac = [2, 0, 0, 0, 0, 7];
    let addresses = |list: &[&str]| -> BTreeSet<IpAddr> { list.iter().map(|ip| ip.parse().unwrap()).collect() };
    let led = |node: &Node| {
        let text =
            node.namespace.ip("route show dev sluice.home") + &node.namespace.ip("-6 route show dev sluice.home");
        let mut all: Vec<String> = text.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
        all.sort();
        all
    };
    // Without a link there is nothing to do.
    node.network.lead_home(&addresses(&["10.96.0.7"])).await.unwrap();
    node.network.remove_home().await.unwrap();

    let home = node.network.ensure_home(mac).await.unwrap();
    assert_eq!(node.network.ensure_home(mac).await.unwrap(), home);
    let link = node.namespace.ip("-o link show dev sluice.home");
    assert!(link.contains("NOARP,UP,LOWER_UP") && link.contains("02:00:00:00:00:07"), "{link}");
    assert_eq!(led(&node), [""; 0], "no addresses of its own");
    assert_eq!(node.namespace.sysctl_of("net/ipv4/conf/sluice.home/accept_local"), "1");

    // Own addresses stay the node's: node ports answer there.
    node.network.lead_home(&addresses(&["10.96.0.7", "198.51.100.4", "fd96::7", "192.0.2.1"])).await.unwrap();
    assert_eq!(led(&node), ["10.96.0.7", "198.51.100.4", "fd96::7"]);
    let route = node.namespace.ip("route get 10.96.0.7");
    assert!(route.contains("dev sluice.home src 10.244.1.1"), "{route}");
    let route = node.namespace.ip("route get fd96::7");
    assert!(route.contains("dev sluice.home") && route.contains("src fd00:10:244:1::1"), "{route}");
    let local = node.namespace.ip("route get 192.0.2.1");
    assert!(local.starts_with("local"), "{local}");

    // What is gone stays for connections that go on, also when the daemon starts again; the oldest go first.
    node.network.lead_home(&addresses(&["10.96.0.8"])).await.unwrap();
    node.reopen();
    node.network.setup_node().await.unwrap();
    assert_eq!(node.network.ensure_home(mac).await.unwrap(), home);
    let many: Vec<IpAddr> =
        (0..limits::HOME_LEFT as u32).map(|at| IpAddr::from([10, 96, 1 + (at >> 8) as u8, at as u8])).collect();
    node.network.lead_home(&addresses(&["10.96.0.9"])).await.unwrap();
    assert_eq!(led(&node), ["10.96.0.7", "10.96.0.8", "10.96.0.9", "198.51.100.4", "fd96::7"]);
    node.network.lead_home(&many.iter().copied().collect()).await.unwrap();
    node.network.lead_home(&addresses(&["10.96.0.10"])).await.unwrap();
    let left = led(&node);
    assert_eq!(left.len(), limits::HOME_LEFT + 1);
    assert!(left.contains(&"10.96.0.10".to_owned()) && !left.contains(&"10.96.0.8".to_owned()), "{left:?}");
    node.end().await;
}
