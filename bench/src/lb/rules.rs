//! The rules that kube-proxy keeps for TCP services with cluster addresses, in its iptables and its nftables mode: the same
//! chains, maps and matches in the same order, so that a packet takes the same path through the kernel. Pure.
//!
//! Shapes are upstream's of 1.36 (`pkg/proxy/iptables`, `pkg/proxy/nftables`): comments are left out above 1,000 endpoints, as
//! its iptables mode does.

use std::{fmt::Write as _, net::Ipv4Addr};

/// Pods of the cluster.
const PODS: &str = "10.244.0.0/16";
/// Addresses of services.
const SERVICES: &str = "10.100.0.0/14";
/// Endpoints above which iptables rules have no comments.
const LARGE: usize = 1_000;

/// A service with one port.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) address: Ipv4Addr,
    pub(super) port: u16,
    pub(super) endpoints: Vec<(Ipv4Addr, u16)>,
}

/// Input of `iptables-restore`.
pub(super) fn iptables(services: &[Service]) -> String {
    let large = services.iter().map(|service| service.endpoints.len()).sum::<usize>() > LARGE;
    let comment = |text: &str| if large { String::new() } else { format!("-m comment --comment \"{text}\" ") };
    let mut chains = String::new();
    let mut rules = String::new();
    let mut number = 0;
    // Writing into a String cannot fail.
    for (at, service) in services.iter().enumerate() {
        let Service { name, address, port, endpoints } = service;
        let chain = format!("KUBE-SVC-{at:016X}");
        let to = format!("-m tcp -p tcp -d {address} --dport {port}");
        let said = comment(&format!("{name} cluster IP"));
        let _ = writeln!(chains, ":{chain} - [0:0]");
        let _ = writeln!(rules, "-A KUBE-SERVICES {said}{to} -j {chain}");
        let _ = writeln!(rules, "-A {chain} {said}{to} ! -s {PODS} -j KUBE-MARK-MASQ");
        for (left, (pod, pod_port)) in (1..=endpoints.len()).rev().zip(endpoints) {
            let endpoint = format!("KUBE-SEP-{number:016X}");
            number += 1;
            let said = comment(&format!("{name} -> {pod}:{pod_port}"));
            let among = match left {
                1 => String::new(),
                #[expect(clippy::cast_precision_loss)]
                left => format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64),
            };
            let _ = writeln!(chains, ":{endpoint} - [0:0]");
            let _ = writeln!(rules, "-A {chain} {said}{among}-j {endpoint}");
            let said = comment(name);
            let _ = writeln!(rules, "-A {endpoint} {said}-s {pod} -j KUBE-MARK-MASQ");
            let _ = writeln!(rules, "-A {endpoint} {said}-m tcp -p tcp -j DNAT --to-destination {pod}:{pod_port}");
        }
    }
    format!("{FILTER}{NAT_CHAINS}{chains}{NAT_RULES}{rules}{NAT_END}")
}

const FILTER: &str = r#"*filter
:KUBE-FIREWALL - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"#;

const NAT_CHAINS: &str = "*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
";

const NAT_RULES: &str = r#"-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
"#;

const NAT_END: &str = r#"-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
COMMIT
"#;

/// Input of `nft -f`.
pub(super) fn nftables(services: &[Service]) -> String {
    let mut chains = String::new();
    let (mut addresses, mut verdicts) = (Vec::new(), Vec::new());
    for Service { name, address, port, endpoints } in services {
        let chain = format!("service-{name}/tcp/");
        addresses.push(address.to_string());
        verdicts.push(format!("{address} . tcp . {port} : goto {chain}"));
        let _ = writeln!(chains, "add chain ip kube-proxy {chain}");
        let mut choices = Vec::new();
        for (at, (pod, pod_port)) in endpoints.iter().enumerate() {
            let endpoint = format!("endpoint-{name}/tcp/__{pod}/{pod_port}");
            let _ = writeln!(chains, "add chain ip kube-proxy {endpoint}");
            let _ = writeln!(chains, "add rule ip kube-proxy {endpoint} ip saddr {pod} jump mark-for-masquerade");
            let _ = writeln!(chains, "add rule ip kube-proxy {endpoint} meta l4proto tcp dnat to {pod}:{pod_port}");
            choices.push(format!("{at} : goto {endpoint}"));
        }
        let rule = format!("add rule ip kube-proxy {chain}");
        let _ = writeln!(chains, "{rule} ip daddr {address} ip saddr != {PODS} jump mark-for-masquerade");
        let _ =
            writeln!(chains, "{rule} numgen random mod {} vmap {{ {} }}", endpoints.len().max(1), choices.join(", "));
    }
    let base = TABLE.replace("SERVICES", SERVICES);
    let [addresses, verdicts] = [addresses, verdicts].map(|all| all.join(", "));
    format!(
        "{base}{chains}add element ip kube-proxy cluster-ips {{ {addresses} }}\n\
         add element ip kube-proxy service-ips {{ {verdicts} }}\n"
    )
}

const TABLE: &str = "add table ip kube-proxy
add set ip kube-proxy cluster-ips { type ipv4_addr ; }
add set ip kube-proxy nodeport-ips { type ipv4_addr ; }
add map ip kube-proxy firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }
add map ip kube-proxy no-endpoint-nodeports { type inet_proto . inet_service : verdict ; }
add map ip kube-proxy no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict ; }
add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }
add map ip kube-proxy service-nodeports { type inet_proto . inet_service : verdict ; }
add chain ip kube-proxy cluster-ips-check
add chain ip kube-proxy filter-prerouting-pre-dnat { type filter hook prerouting priority -110 ; }
add chain ip kube-proxy filter-output-pre-dnat { type filter hook output priority -110 ; }
add chain ip kube-proxy filter-forward { type filter hook forward priority 0 ; }
add chain ip kube-proxy filter-input { type filter hook input priority 0 ; }
add chain ip kube-proxy filter-output { type filter hook output priority 0 ; }
add chain ip kube-proxy firewall-check
add chain ip kube-proxy mark-for-masquerade
add chain ip kube-proxy masquerading
add chain ip kube-proxy nat-output { type nat hook output priority -100 ; }
add chain ip kube-proxy nat-postrouting { type nat hook postrouting priority 100 ; }
add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority -100 ; }
add chain ip kube-proxy nodeport-endpoints-check
add chain ip kube-proxy reject-chain
add chain ip kube-proxy services
add chain ip kube-proxy service-endpoints-check
add rule ip kube-proxy cluster-ips-check ip daddr @cluster-ips reject
add rule ip kube-proxy cluster-ips-check ip daddr { SERVICES } drop
add rule ip kube-proxy filter-prerouting-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy filter-forward ct state new jump service-endpoints-check
add rule ip kube-proxy filter-forward ct state new jump cluster-ips-check
add rule ip kube-proxy filter-input ct state new jump nodeport-endpoints-check
add rule ip kube-proxy filter-input ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy filter-output ct state new jump cluster-ips-check
add rule ip kube-proxy firewall-check ip daddr . meta l4proto . th dport vmap @firewall-ips
add rule ip kube-proxy mark-for-masquerade mark set mark or 0x4000
add rule ip kube-proxy masquerading mark and 0x4000 == 0 return
add rule ip kube-proxy masquerading mark set mark xor 0x4000
add rule ip kube-proxy masquerading masquerade fully-random
add rule ip kube-proxy nat-output jump services
add rule ip kube-proxy nat-postrouting jump masquerading
add rule ip kube-proxy nat-prerouting jump services
add rule ip kube-proxy nodeport-endpoints-check ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
add rule ip kube-proxy reject-chain reject
add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
add rule ip kube-proxy services ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
add rule ip kube-proxy service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services
";

#[cfg(test)]
mod tests {
    use super::*;

    fn services(count: u8) -> Vec<Service> {
        let endpoints = vec![(Ipv4Addr::new(10, 244, 2, 10), 8080), (Ipv4Addr::new(10, 244, 2, 11), 8080)];
        (0..count)
            .map(|at| Service {
                name: format!("bench/{at}"),
                address: Ipv4Addr::new(10, 100, 0, at),
                port: 80,
                endpoints: endpoints.clone(),
            })
            .collect()
    }

    #[test]
    fn iptables_leads_from_the_service_to_each_endpoint() {
        let text = iptables(&services(2));
        let order = [
            "-A KUBE-SERVICES -m comment --comment \"bench/1 cluster IP\" -m tcp -p tcp -d 10.100.0.1 --dport 80 -j KUBE-SVC-0000000000000001",
            "-A KUBE-SVC-0000000000000001 -m comment --comment \"bench/1 -> 10.244.2.10:8080\" -m statistic --mode random --probability 0.5000000000 -j KUBE-SEP-0000000000000002",
            "-A KUBE-SEP-0000000000000002 -m comment --comment \"bench/1\" -s 10.244.2.10 -j KUBE-MARK-MASQ",
            "-A KUBE-SEP-0000000000000002 -m comment --comment \"bench/1\" -m tcp -p tcp -j DNAT --to-destination 10.244.2.10:8080",
            "-A KUBE-SVC-0000000000000001 -m comment --comment \"bench/1 -> 10.244.2.11:8080\" -j KUBE-SEP-0000000000000003",
            "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n",
        ];
        let places: Vec<_> = order.iter().map(|line| text.find(line)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}\n{text}");
    }

    #[test]
    fn large_clusters_have_no_comments() {
        let mut many = services(1);
        many[0].endpoints = vec![(Ipv4Addr::new(10, 244, 2, 10), 8080); LARGE + 1];
        assert!(!iptables(&many).contains("bench/0"));
    }

    #[test]
    fn nftables_leads_from_the_map_to_each_endpoint() {
        let text = nftables(&services(2));
        for line in [
            "add element ip kube-proxy service-ips { 10.100.0.0 . tcp . 80 : goto service-bench/0/tcp/, 10.100.0.1 . tcp . 80 : goto service-bench/1/tcp/ }\n",
            "add rule ip kube-proxy service-bench/1/tcp/ numgen random mod 2 vmap { 0 : goto endpoint-bench/1/tcp/__10.244.2.10/8080, 1 : goto endpoint-bench/1/tcp/__10.244.2.11/8080 }\n",
            "add rule ip kube-proxy endpoint-bench/1/tcp/__10.244.2.11/8080 meta l4proto tcp dnat to 10.244.2.11:8080\n",
            "add rule ip kube-proxy cluster-ips-check ip daddr { 10.100.0.0/14 } drop\n",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
