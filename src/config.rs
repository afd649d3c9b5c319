//! Settings: flags over the config file over the defaults. [`Options`] is what a person may say,
//! in either form and under the same names; [`Config`] is what the program runs with.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;
use sluice_network::Cidr;

use sluice_dataplane::NodePortAddresses;

use crate::{
    addresses::{self, NodePrefixes},
    etcd, machine,
};

/// The name of the first installation on a machine.
const DEFAULT_INSTANCE: &str = "sluice";
/// The machine's settings, read where no other file is named and this one exists.
const DEFAULT_FILE: &str = "/etc/sluice/sluice.yaml";
/// IPv4 alone: forwarding IPv6 changes how a machine learns its own routes, which is for its owner to decide.
pub(crate) const DEFAULT_POD_CIDR: &str = "10.244.0.0/16";
pub(crate) const DEFAULT_SERVICE_CIDR: &str = "10.96.0.0/16";

/// Every setting, each optional. In the file the names are camelCase (`dataDir`, `podCidr`).
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Options {
    /// Config file (YAML) with these same settings in camelCase; flags win over it [default: /etc/sluice/sluice.yaml,
    /// where there is one]
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Lasting files: store, certificates, volumes, images [default: /var/lib/sluice]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Files until the next boot: sockets, network namespaces, pid file [default: /run/sluice]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Name of this installation on the machine: prefix of its cgroups and pinned eBPF maps [default: sluice]
    #[arg(long, value_name = "NAME")]
    pub instance: Option<String>,
    /// Name of the node [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Address that other nodes reach this one by, or one of each family, the primary one first [default: those of the
    /// default routes' links, of the pods' families]
    #[arg(long, value_name = "ADDRESS[,ADDRESS]")]
    pub node_ip: Option<String>,
    /// Where the API server listens [default: 0.0.0.0:6443, or [::]:6443 where pods have IPv6 addresses]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub bind: Option<SocketAddr>,
    /// Addresses that clients reach the API server by, besides the node's [repeatable]
    #[arg(long, value_name = "ADDRESS")]
    pub advertise: Vec<IpAddr>,
    /// Pods' address range of the whole cluster, or one of each family, the primary one first [default: 10.244.0.0/16]
    #[arg(long, value_name = "CIDR[,CIDR]")]
    pub pod_cidr: Option<String>,
    /// Services' address range, or one of each family, the default one first [default: 10.96.0.0/16]
    #[arg(long, value_name = "CIDR[,CIDR]")]
    pub service_cidr: Option<String>,
    /// Prefix of the part of the IPv4 pod range that one node gets [default: 24]
    #[arg(long, value_name = "BITS")]
    pub node_cidr_mask_size_ipv4: Option<u8>,
    /// Prefix of the part of the IPv6 pod range that one node gets [default: 64]
    #[arg(long, value_name = "BITS")]
    pub node_cidr_mask_size_ipv6: Option<u8>,
    /// Destinations outside of the cluster that pods reach with their own address, not the node's; `none` for no such
    /// destination [repeatable] [default: the link-local ranges 169.254.0.0/16 and fe80::/10]
    #[arg(long, value_name = "none|CIDR")]
    pub non_masquerade_cidr: Vec<String>,
    /// On which of the node's own addresses node ports (and load balancers' health checks) answer: `primary` for the node's
    /// addresses in the API, or ranges; an address family without one has them on every address, loopback included
    /// [repeatable] [default: on every address]
    #[arg(long = "nodeport-addresses", value_name = "primary|CIDR")]
    pub node_port_addresses: Vec<String>,
    /// DNS domain of the cluster [default: cluster.local]
    #[arg(long, value_name = "DOMAIN")]
    pub cluster_domain: Option<String>,
    /// Where names that are not the cluster's are looked up: `auto` (the host's resolv.conf), `none`, or addresses [repeatable]
    #[arg(long, value_name = "auto|none|ADDRESS")]
    pub dns_upstream: Vec<String>,
    /// etcd endpoints; without any the embedded store is used [repeatable]
    #[arg(long, value_name = "URL")]
    pub etcd: Vec<String>,
    /// The authority that signed the certificates of etcd's https:// endpoints, PEM
    #[arg(long, value_name = "FILE")]
    pub etcd_cafile: Option<PathBuf>,
    /// The certificate that etcd knows this server by, PEM; with --etcd-keyfile
    #[arg(long, value_name = "FILE")]
    pub etcd_certfile: Option<PathBuf>,
    /// The key of that certificate, PEM
    #[arg(long, value_name = "FILE")]
    pub etcd_keyfile: Option<PathBuf>,
    /// Which containerd: `auto` uses the machine's if it runs and else starts one of our own, `own` always does that,
    /// or a socket's path [default: auto]
    #[arg(long, value_name = "auto|own|SOCKET")]
    pub containerd: Option<String>,
    /// Port of the node's HTTPS API [default: 10250]
    #[arg(long, value_name = "PORT")]
    pub node_port: Option<u16>,
    /// Where the socket programs attach: `root` serves every process of the machine, `instance` only this
    /// instance's cgroup (nodes as namespaces) [default: root]
    #[arg(long, value_name = "root|instance")]
    pub socket_hooks: Option<SocketHooks>,
    /// How packets reach other nodes' pods [default: auto: direct on a shared link, else VXLAN]
    #[arg(long, value_name = "auto|direct|vxlan")]
    pub overlay: Option<Overlay>,
    /// Where packets for services are handled in the network card's driver (XDP): `auto` on links with a wire, `off`
    /// nowhere, `always` on veth links, too, whose other ends must then finish checksums [default: auto]
    #[arg(long, value_name = "auto|off|always")]
    pub xdp: Option<Xdp>,
    /// How packets from outside reach services' backends on other nodes: `snat` with this node's address, so that answers
    /// come back through it; `dsr` as they are, inside packets of its own, so that backends' nodes answer clients
    /// themselves. Services choose with the annotation sluice.dev/forwarding-mode [default: snat]
    #[arg(long, value_name = "snat|dsr")]
    pub load_balancer_mode: Option<LoadBalancerMode>,
    /// Whether packets go straight into this node's pods, from them straight to the outside, and Services' packets straight on
    /// to other nodes: `off` sends them through the node's stack, for firewalls and other programs that have to see them
    /// there [default: on]
    #[arg(long, value_name = "on|off")]
    pub pod_redirect: Option<PodRedirect>,
    /// Whether the node's HTTPS API shows the files of /var/log under /logs/, to who may `get` `nodes/log` (through the API
    /// server `nodes/proxy`) [default: on]
    #[arg(long, value_name = "on|off")]
    pub system_logs: Option<SystemLogs>,
    /// In the file alone: `sluice node` has a flag for it.
    #[arg(skip)]
    pub server: Vec<String>,
    /// In the file alone: `sluice node` has a flag for it.
    #[arg(skip)]
    pub token: Option<String>,
    /// In the file alone: `sluice node` has a flag for it.
    #[arg(skip)]
    pub ca_hash: Option<String>,
}

/// See [`Options::socket_hooks`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SocketHooks {
    #[default]
    Root,
    Instance,
}

/// See [`Options::overlay`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Overlay {
    #[default]
    Auto,
    Direct,
    Vxlan,
}

/// See [`Options::xdp`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Xdp {
    #[default]
    Auto,
    Off,
    Always,
}

/// See [`Options::load_balancer_mode`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LoadBalancerMode {
    #[default]
    Snat,
    Dsr,
}

/// See [`Options::pod_redirect`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PodRedirect {
    #[default]
    On,
    Off,
}

/// See [`Options::system_logs`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SystemLogs {
    #[default]
    On,
    Off,
}

/// See [`Options::containerd`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Containerd {
    Auto,
    Own,
    At(PathBuf),
}

/// What the program runs with.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    pub instance: String,
    pub node_name: String,
    /// As configured; see [`Config::node_addresses`].
    pub node_ips: Vec<IpAddr>,
    pub bind: SocketAddr,
    pub advertise: Vec<IpAddr>,
    /// One or two, the primary family first.
    pub pod_cidrs: Vec<Cidr>,
    /// One or two, the default family first.
    pub service_cidrs: Vec<Cidr>,
    pub node_prefixes: NodePrefixes,
    /// Destinations that pods reach with their own address.
    pub unmasqueraded: Vec<Cidr>,
    pub node_port_addresses: NodePortAddresses,
    pub cluster_domain: String,
    pub dns_upstreams: Vec<SocketAddr>,
    pub etcd: Vec<String>,
    pub etcd_files: Option<etcd::Files>,
    pub containerd: Containerd,
    pub node_port: u16,
    pub socket_hooks: SocketHooks,
    pub overlay: Overlay,
    pub xdp: Xdp,
    pub load_balancer_mode: LoadBalancerMode,
    pub pod_redirect: PodRedirect,
    pub system_logs: SystemLogs,
    pub join: JoinSettings,
}

/// What a node joins with, and the servers that it asks.
#[derive(Clone, Debug, Default)]
pub(crate) struct JoinSettings {
    /// URLs.
    pub servers: Vec<String>,
    pub token: Option<String>,
    pub ca_hash: Option<String>,
}

impl Options {
    /// Reads the file, lays the flags over it, fills in the defaults and checks every value.
    pub(crate) fn resolve(self) -> Result<Config> {
        let all = match self.settings_file() {
            Some(file) => self.over(read(&file)?),
            None => self,
        };
        let run_dir = all.run_dir.unwrap_or_else(|| "/run/sluice".into());
        let instance = all.instance.unwrap_or_else(|| DEFAULT_INSTANCE.into());
        if !is_label(&instance) {
            bail!("instance: {instance:?} must be lower-case letters, digits and '-', at most 40 characters");
        }
        let node_name = match all.node_name {
            Some(name) => name,
            None => nix::unistd::gethostname().context("cannot read the host name")?.to_string_lossy().to_lowercase(),
        };
        let pod_cidrs = addresses::ranges("podCidr", all.pod_cidr.as_deref().unwrap_or(DEFAULT_POD_CIDR))?;
        let service_cidrs =
            addresses::ranges("serviceCidr", all.service_cidr.as_deref().unwrap_or(DEFAULT_SERVICE_CIDR))?;
        let usual = NodePrefixes::default();
        let node_prefixes = NodePrefixes {
            v4: all.node_cidr_mask_size_ipv4.unwrap_or(usual.v4),
            v6: all.node_cidr_mask_size_ipv6.unwrap_or(usual.v6),
        };
        addresses::check(&pod_cidrs, &service_cidrs, node_prefixes)?;
        let etcd = etcd::Named { ca: all.etcd_cafile, certificate: all.etcd_certfile, key: all.etcd_keyfile };
        Ok(Config {
            data_dir: all.data_dir.unwrap_or_else(|| "/var/lib/sluice".into()),
            run_dir,
            instance,
            node_name,
            node_ips: all.node_ip.map_or(Ok(Vec::new()), |text| addresses::node_ips("nodeIp", &text))?,
            bind: all.bind.unwrap_or_else(|| (everywhere(&pod_cidrs), 6443).into()),
            advertise: all.advertise,
            pod_cidrs,
            service_cidrs,
            node_prefixes,
            unmasqueraded: addresses::unmasqueraded("nonMasqueradeCidr", &all.non_masquerade_cidr)?,
            node_port_addresses: addresses::node_ports("nodePortAddresses", &all.node_port_addresses)?,
            cluster_domain: all.cluster_domain.unwrap_or_else(|| "cluster.local".into()),
            dns_upstreams: upstreams(&all.dns_upstream)?,
            etcd_files: etcd.check(&all.etcd)?,
            etcd: all.etcd,
            containerd: match all.containerd.as_deref() {
                None | Some("auto") => Containerd::Auto,
                Some("own") => Containerd::Own,
                Some(socket) => Containerd::At(socket.into()),
            },
            node_port: all.node_port.unwrap_or(10250),
            socket_hooks: all.socket_hooks.unwrap_or_default(),
            overlay: all.overlay.unwrap_or_default(),
            xdp: all.xdp.unwrap_or_default(),
            load_balancer_mode: all.load_balancer_mode.unwrap_or_default(),
            pod_redirect: all.pod_redirect.unwrap_or_default(),
            system_logs: all.system_logs.unwrap_or_default(),
            join: JoinSettings { servers: all.server, token: all.token, ca_hash: all.ca_hash },
        })
    }

    /// The file that is read: the one that is named, or the machine's if there is one.
    pub(crate) fn settings_file(&self) -> Option<PathBuf> {
        self.config.clone().or_else(|| Some(PathBuf::from(DEFAULT_FILE)).filter(|file| file.exists()))
    }

    fn over(self, file: Options) -> Options {
        let list = |mine: Vec<String>, other: Vec<String>| if mine.is_empty() { other } else { mine };
        Options {
            config: self.config,
            data_dir: self.data_dir.or(file.data_dir),
            run_dir: self.run_dir.or(file.run_dir),
            instance: self.instance.or(file.instance),
            node_name: self.node_name.or(file.node_name),
            node_ip: self.node_ip.or(file.node_ip),
            bind: self.bind.or(file.bind),
            advertise: if self.advertise.is_empty() { file.advertise } else { self.advertise },
            pod_cidr: self.pod_cidr.or(file.pod_cidr),
            service_cidr: self.service_cidr.or(file.service_cidr),
            node_cidr_mask_size_ipv4: self.node_cidr_mask_size_ipv4.or(file.node_cidr_mask_size_ipv4),
            node_cidr_mask_size_ipv6: self.node_cidr_mask_size_ipv6.or(file.node_cidr_mask_size_ipv6),
            non_masquerade_cidr: list(self.non_masquerade_cidr, file.non_masquerade_cidr),
            node_port_addresses: list(self.node_port_addresses, file.node_port_addresses),
            cluster_domain: self.cluster_domain.or(file.cluster_domain),
            dns_upstream: list(self.dns_upstream, file.dns_upstream),
            etcd: list(self.etcd, file.etcd),
            etcd_cafile: self.etcd_cafile.or(file.etcd_cafile),
            etcd_certfile: self.etcd_certfile.or(file.etcd_certfile),
            etcd_keyfile: self.etcd_keyfile.or(file.etcd_keyfile),
            containerd: self.containerd.or(file.containerd),
            node_port: self.node_port.or(file.node_port),
            socket_hooks: self.socket_hooks.or(file.socket_hooks),
            overlay: self.overlay.or(file.overlay),
            xdp: self.xdp.or(file.xdp),
            load_balancer_mode: self.load_balancer_mode.or(file.load_balancer_mode),
            pod_redirect: self.pod_redirect.or(file.pod_redirect),
            system_logs: self.system_logs.or(file.system_logs),
            server: list(self.server, file.server),
            token: self.token.or(file.token),
            ca_hash: self.ca_hash.or(file.ca_hash),
        }
    }
}

impl Config {
    /// The administrator's kubeconfig, written by the control plane.
    pub(crate) fn admin_kubeconfig(&self) -> PathBuf {
        self.data_dir.join("admin.kubeconfig")
    }

    pub(crate) fn pid_file(&self) -> PathBuf {
        self.run_dir.join("sluice.pid")
    }

    /// The instance's pinned maps and links.
    pub(crate) fn pin_dir(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.instance)
    }

    /// Where pods' logs go: the standard place, but for installations beside the first (nodes as namespaces).
    pub(crate) fn pod_logs(&self) -> PathBuf {
        if self.instance == DEFAULT_INSTANCE { "/var/log/pods".into() } else { self.data_dir.join("log/pods") }
    }

    /// The directory that the node's API shows: the one that pods' logs are in.
    pub(crate) fn system_logs(&self) -> Option<PathBuf> {
        let on = self.system_logs == SystemLogs::On;
        self.pod_logs().parent().filter(|_| on).map(PathBuf::from)
    }

    /// The node's addresses: the configured ones, else those of the default routes' links, of the families that pods have;
    /// none where there is neither.
    pub(crate) fn node_addresses(&self) -> Vec<IpAddr> {
        if !self.node_ips.is_empty() {
            return self.node_ips.clone();
        }
        self.pod_cidrs.iter().filter_map(|range| machine::own_address(range.addr().is_ipv4())).collect()
    }

    /// Where to listen for everybody.
    pub(crate) fn everywhere(&self) -> IpAddr {
        everywhere(&self.pod_cidrs)
    }

    /// The addresses that clients may reach the API server by, the chosen ones first.
    pub(crate) fn server_addresses(&self) -> Vec<IpAddr> {
        let bound = Some(self.bind.ip()).filter(|ip| !ip.is_unspecified());
        let mut all = self.advertise.clone();
        match bound.filter(|_| self.node_ips.is_empty()) {
            Some(bound) => all.push(bound),
            None => all.extend(self.node_addresses()),
        }
        all.dedup();
        all
    }

    /// The keys of the control plane.
    pub(crate) fn pki_dir(&self) -> PathBuf {
        self.data_dir.join("pki")
    }

    /// Where a containerd of our own listens.
    pub(crate) fn own_containerd_socket(&self) -> PathBuf {
        self.run_dir.join("containerd/containerd.sock")
    }

    pub(crate) fn own_containerd_dir(&self) -> PathBuf {
        self.data_dir.join("containerd")
    }
}

fn read(file: &Path) -> Result<Options> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read the config file {}", file.display()))?;
    parse(&text).with_context(|| format!("the config file {} is not valid", file.display()))
}

/// A file of comments alone says nothing, which is no mistake.
fn parse(text: &str) -> Result<Options> {
    Ok(serde_saphyr::from_str::<Option<Options>>(text)?.unwrap_or_default())
}

fn is_label(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !text.is_empty() && text.len() <= 40 && text.chars().all(allowed)
}

/// A kernel without IPv6 has no `::` to listen on, so it is asked for only where it is needed.
fn everywhere(pod_cidrs: &[Cidr]) -> IpAddr {
    let v4 = pod_cidrs.iter().all(|range| range.addr().is_ipv4());
    if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// Ranges as a setting says them.
pub(crate) fn joined(ranges: &[Cidr]) -> String {
    ranges.iter().map(Cidr::to_string).collect::<Vec<_>>().join(",")
}

fn upstreams(given: &[String]) -> Result<Vec<SocketAddr>> {
    match given {
        [] => Ok(host_resolvers()),
        [one] if one == "auto" => Ok(host_resolvers()),
        [one] if one == "none" => Ok(Vec::new()),
        many => many
            .iter()
            .map(|text| {
                text.parse::<SocketAddr>()
                    .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)))
                    .with_context(|| format!("dnsUpstream: {text:?} must be auto, none or an address"))
            })
            .collect(),
    }
}

/// The nameservers of the host's resolv.conf; loopback stubs are left out, pods cannot use them
/// but this process can, so they stay when there is nothing else.
fn host_resolvers() -> Vec<SocketAddr> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|address| address.trim().parse::<IpAddr>().ok())
        .map(|ip| SocketAddr::new(ip, 53))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(yaml: &str) -> Options {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn flags_win_over_the_file_and_defaults_fill_the_rest() {
        let flags = Options { pod_cidr: Some("10.1.0.0/16".into()), ..Options::default() };
        let file = options("podCidr: 10.2.0.0/16\nnodeName: one\nsocketHooks: instance\ndnsUpstream: [none]\n");
        let config = flags.over(file).resolve().unwrap();
        assert_eq!((joined(&config.pod_cidrs).as_str(), config.node_name.as_str()), ("10.1.0.0/16", "one"));
        assert_eq!((joined(&config.service_cidrs).as_str(), config.node_port), ("10.96.0.0/16", 10250));
        assert_eq!(config.bind.to_string(), "0.0.0.0:6443");
        assert_eq!(config.socket_hooks, SocketHooks::Instance);
        assert!(config.dns_upstreams.is_empty());
    }

    #[test]
    fn the_server_is_reached_where_it_listens_unless_the_node_has_an_address() {
        let check = |yaml: &str, expected: &[&str]| {
            let addresses = options(yaml).resolve().unwrap().server_addresses();
            assert_eq!(addresses, expected.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>(), "{yaml}");
        };
        check("bind: 192.0.2.1:6443", &["192.0.2.1"]);
        check("bind: 192.0.2.1:6443\nnodeIp: 192.0.2.2", &["192.0.2.2"]);
        check("bind: 0.0.0.0:6443\nnodeIp: 192.0.2.2\nadvertise: [192.0.2.9]", &["192.0.2.9", "192.0.2.2"]);
        check("nodeIp: 192.0.2.2\nadvertise: [192.0.2.2]", &["192.0.2.2"]);
    }

    #[test]
    fn the_logs_that_a_node_shows_are_beside_its_pods() {
        let check = |yaml: &str, expected: Option<&str>| {
            assert_eq!(options(yaml).resolve().unwrap().system_logs(), expected.map(PathBuf::from), "{yaml}");
        };
        check("nodeName: one", Some("/var/log"));
        check("instance: two\ndataDir: /srv/two", Some("/srv/two/log"));
        check("systemLogs: off", None);
    }

    #[test]
    fn the_packaged_file_shows_the_defaults() {
        let file = include_str!("../packaging/sluice.yaml");
        assert!(parse(file).unwrap().data_dir.is_none(), "it sets nothing");
        let shown = |line: &&str| line.starts_with(|c: char| c.is_ascii_lowercase());
        let lines: Vec<&str> = file.lines().filter_map(|line| line.strip_prefix('#')).filter(shown).collect();
        let shown = parse(&lines.join("\n")).unwrap().resolve().unwrap();
        let usual = Options { config: Some("/dev/null".into()), ..Options::default() }.resolve().unwrap();
        assert_eq!(format!("{shown:?}"), format!("{usual:?}"));
        // The examples are settings that exist.
        let examples = |line: &&str| line.starts_with(|c: char| c.is_ascii_lowercase()) && line.contains(": ");
        let named =
            ["nodeIp", "advertise", "etcd", "etcdCafile", "etcdCertfile", "etcdKeyfile", "server", "token", "caHash"];
        let lines: Vec<&str> = file.lines().filter_map(|line| line.strip_prefix("# ")).filter(examples).collect();
        let lines: Vec<&str> =
            lines.into_iter().filter(|line| named.iter().any(|name| line.starts_with(name))).collect();
        assert_eq!(lines.len(), named.len(), "{lines:?}");
        parse(&lines.join("\n")).unwrap().resolve().unwrap();
    }

    #[test]
    fn both_families_are_settings_of_their_own() {
        let yaml = "podCidr: fd00:1::/48,10.1.0.0/16\nserviceCidr: fd00:2::/108,10.2.0.0/16\n\
                    nodeIp: 2001:db8::1,192.0.2.1\nnodeCidrMaskSizeIpv4: 26\n";
        let config = options(yaml).resolve().unwrap();
        assert_eq!(joined(&config.pod_cidrs), "fd00:1::/48,10.1.0.0/16");
        assert_eq!(joined(&config.service_cidrs), "fd00:2::/108,10.2.0.0/16");
        assert_eq!(config.node_prefixes, NodePrefixes { v4: 26, v6: 64 });
        assert_eq!(config.bind.to_string(), "[::]:6443");
        assert_eq!(joined(&config.unmasqueraded), "169.254.0.0/16,fe80::/10");
        let addresses: Vec<String> = config.server_addresses().iter().map(IpAddr::to_string).collect();
        assert_eq!(addresses, ["2001:db8::1", "192.0.2.1"]);
    }

    #[test]
    fn bad_values_name_their_field() {
        let check = |yaml: &str, expected: &str| {
            let error = format!("{:#}", options(yaml).resolve().unwrap_err());
            assert!(error.contains(expected), "{error}");
        };
        check("podCidr: nonsense", "podCidr: \"nonsense\" is no address range");
        check("serviceCidr: 10.244.0.0/20", "serviceCidr: 10.244.0.0/20 and podCidr 10.244.0.0/16 have addresses");
        check("nodeIp: 192.0.2.1,192.0.2.2", "nodeIp: ");
        check("nodePortAddresses: [10.0.0.0]", "nodePortAddresses: \"10.0.0.0\" is no address range");
        check("instance: Has Space", "instance: \"Has Space\" must be");
        check("dnsUpstream: [somewhere]", "dnsUpstream: \"somewhere\" must be auto, none or an address");
        let unknown = serde_saphyr::from_str::<Options>("podCIDR: 10.0.0.0/8").unwrap_err().to_string();
        assert!(unknown.contains("podCIDR"), "{unknown}");
    }
}
