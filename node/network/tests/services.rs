//! Further ranges of Services: refused while they are there, and never at the cost of anybody else.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::IpAddr;

use common::{Namespace, Node};
use sluice_network::Cidr;

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
