//! A pod's host name and its /etc/hosts and /etc/resolv.conf, as upstream writes them. Pure.

use std::net::IpAddr;

use crate::limits;
use crate::model::Pod;

/// What a pod's resolver depends on beside the pod.
#[derive(Clone, Debug, Default)]
pub struct DnsSettings {
    /// Address of the kube-dns Service.
    pub cluster_dns: Vec<IpAddr>,
    /// `cluster.local`.
    pub cluster_domain: String,
    /// The host's resolv.conf.
    pub host: ResolvConf,
}

/// A parsed resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    pub nameservers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Reads a resolv.conf; unknown lines are left out.
    pub fn parse(text: &str) -> ResolvConf {
        let mut conf = ResolvConf::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let words_of = |w: std::str::SplitWhitespace<'_>| w.map(str::to_owned).collect();
            match words.next() {
                Some("nameserver") => conf.nameservers.extend(words.next().map(str::to_owned)),
                Some("search") => conf.searches = words_of(words),
                Some("options") => conf.options = words_of(words),
                _ => {}
            }
        }
        conf
    }

    /// The file's text.
    pub fn render(&self) -> String {
        let mut out = String::new();
        if !self.searches.is_empty() {
            out.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for server in &self.nameservers {
            out.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            out.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        out
    }
}

/// The pod's resolver configuration by `dnsPolicy` and `dnsConfig`.
pub fn resolv_conf(pod: &Pod, dns: &DnsSettings) -> ResolvConf {
    let policy = match (pod.spec.dns_policy.as_str(), pod.spec.host_network) {
        ("Default" | "None", _) => pod.spec.dns_policy.as_str(),
        ("ClusterFirstWithHostNet", _) | (_, false) => "ClusterFirst",
        (_, true) => "Default",
    };
    let mut conf = match policy {
        "None" => ResolvConf::default(),
        "ClusterFirst" if !dns.cluster_dns.is_empty() => {
            let (ns, domain) = (pod.namespace(), &dns.cluster_domain);
            let mut searches = vec![format!("{ns}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
            append_new(&mut searches, &dns.host.searches);
            ResolvConf {
                nameservers: dns.cluster_dns.iter().map(ToString::to_string).collect(),
                searches,
                options: vec!["ndots:5".into()],
            }
        }
        _ => dns.host.clone(),
    };
    if let Some(extra) = &pod.spec.dns_config {
        append_new(&mut conf.nameservers, &extra.nameservers);
        append_new(&mut conf.searches, &extra.searches);
        for option in &extra.options {
            conf.options.retain(|o| o.split(':').next() != Some(option.name.as_str()));
            conf.options.push(match option.value.as_deref() {
                Some(v) if !v.is_empty() => format!("{}:{v}", option.name),
                _ => option.name.clone(),
            });
        }
    }
    conf.nameservers.truncate(limits::DNS_NAMESERVERS);
    conf.searches.truncate(limits::DNS_SEARCHES);
    conf
}

/// Host name and domain of a pod; the domain is empty without a `subdomain`.
pub fn host_and_domain(pod: &Pod, cluster_domain: &str) -> (String, String) {
    if let Some(name) = pod.spec.hostname_override.as_deref().filter(|n| !n.is_empty()) {
        return (name.to_owned(), String::new());
    }
    let host = match pod.spec.hostname.as_deref().filter(|h| !h.is_empty()) {
        Some(host) => host.to_owned(),
        None => {
            let name = pod.name();
            name[..name.len().min(limits::HOSTNAME)].trim_end_matches(['-', '.']).to_owned()
        }
    };
    let domain = match pod.spec.subdomain.as_deref().filter(|s| !s.is_empty()) {
        Some(sub) => format!("{sub}.{}.svc.{cluster_domain}", pod.namespace()),
        None => String::new(),
    };
    (host, domain)
}

/// The name the kernel gets, with `setHostnameAsFQDN` obeyed.
pub fn kernel_hostname(pod: &Pod, cluster_domain: &str) -> Result<String, String> {
    let (host, domain) = host_and_domain(pod, cluster_domain);
    if pod.spec.set_hostname_as_fqdn != Some(true) || domain.is_empty() {
        return Ok(host);
    }
    let full = format!("{host}.{domain}");
    if full.len() > 64 {
        return Err(format!("Failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long"));
    }
    Ok(full)
}

/// The pod's /etc/hosts. `host` is the host's file, given for pods on the host network.
pub fn hosts(pod: &Pod, ips: &[IpAddr], cluster_domain: &str, host: Option<&str>) -> String {
    let mut out = String::new();
    if let Some(host) = host {
        out.push_str("# Kubernetes-managed hosts file (host network).\n");
        out.push_str(host);
    } else {
        out.push_str(concat!(
            "# Kubernetes-managed hosts file.\n",
            "127.0.0.1\tlocalhost\n",
            "::1\tlocalhost ip6-localhost ip6-loopback\n",
            "fe00::0\tip6-localnet\n",
            "fe00::0\tip6-mcastprefix\n",
            "fe00::1\tip6-allnodes\n",
            "fe00::2\tip6-allrouters\n",
        ));
        let (name, domain) = host_and_domain(pod, cluster_domain);
        for ip in ips {
            if domain.is_empty() {
                out.push_str(&format!("{ip}\t{name}\n"));
            } else {
                out.push_str(&format!("{ip}\t{name}.{domain}\t{name}\n"));
            }
        }
    }
    if !pod.spec.host_aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
        for alias in &pod.spec.host_aliases {
            out.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.join("\t")));
        }
    }
    out
}

fn append_new(list: &mut Vec<String>, more: &[String]) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec})).unwrap()
    }

    #[test]
    fn resolver() {
        let dns = DnsSettings {
            cluster_dns: vec!["10.96.0.10".parse().unwrap()],
            cluster_domain: "cluster.local".into(),
            host: ResolvConf::parse("# x\nnameserver 192.0.2.53\nsearch corp.test\noptions timeout:1\n"),
        };
        let cluster = "search ns.svc.cluster.local svc.cluster.local cluster.local corp.test\n\
                       nameserver 10.96.0.10\noptions ndots:5\n";
        let host = "search corp.test\nnameserver 192.0.2.53\noptions timeout:1\n";
        for (spec, expected) in [
            (json!({"dnsPolicy": "ClusterFirst"}), cluster),
            (json!({}), cluster),
            (json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}), host),
            (json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}), cluster),
            (json!({"dnsPolicy": "Default"}), host),
            (
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.7"], "searches": ["a.test"],
                    "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
                "search a.test\nnameserver 192.0.2.7\noptions ndots:2 edns0\n",
            ),
            (
                json!({"dnsConfig": {"options": [{"name": "ndots", "value": "2"}]}}),
                "search ns.svc.cluster.local svc.cluster.local cluster.local corp.test\n\
                 nameserver 10.96.0.10\noptions ndots:2\n",
            ),
        ] {
            assert_eq!(resolv_conf(&pod(spec.clone()), &dns).render(), expected, "{spec}");
        }
    }

    #[test]
    fn hosts_file() {
        let ips = ["10.244.0.5".parse().unwrap()];
        let p = pod(json!({"subdomain": "sub", "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["a", "b"]}]}));
        let text = hosts(&p, &ips, "cluster.local", None);
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with(
            "10.244.0.5\tp.sub.ns.svc.cluster.local\tp\n\n# Entries added by HostAliases.\n192.0.2.9\ta\tb\n"
        ));
        let text = hosts(&p, &ips, "cluster.local", Some("127.0.0.1 localhost\n"));
        assert!(text.starts_with("# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n\n# Entries"));
    }

    #[test]
    fn names() {
        let long = "a".repeat(62) + "-bcd";
        let mut p = pod(json!({}));
        p.metadata.name = Some(long);
        assert_eq!(host_and_domain(&p, "c").0, "a".repeat(62));
        let p = pod(json!({"hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true}));
        assert_eq!(kernel_hostname(&p, "c").unwrap(), "h.s.ns.svc.c");
        assert!(kernel_hostname(&p, &"c".repeat(60)).unwrap_err().contains("too long"));
    }
}
