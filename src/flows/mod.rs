//! `sluice flows`: the connections that this node translates packet by packet, as the kernel's flow table holds them; and all
//! connections as they come and go.

mod events;
mod follow;
pub(crate) mod serve;

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use sluice_dataplane::{End, Filter, FlowRow, is_service};

use crate::held::View;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Connections as they come and go, sockets' too, until Ctrl-C; with --json one object a line
    #[arg(short, long)]
    follow: bool,
    /// Through the API server: connections of every node
    #[arg(long, requires = "follow")]
    cluster: bool,
    /// Through the API server: connections of this node [repeatable]
    #[arg(long, value_name = "NAME", requires = "follow")]
    node: Vec<String>,
    /// How to reach the API server [default: $KUBECONFIG, or the administrator's of this machine]
    #[arg(long, value_name = "FILE", requires = "follow")]
    kubeconfig: Option<PathBuf>,
    /// Only connections with this pod at an end: `namespace/name`, or a name of any namespace
    #[arg(long, value_name = "NAME", requires = "follow")]
    pod: Option<String>,
    /// Only connections of pods or Services of this namespace
    #[arg(short, long, value_name = "NAME", requires = "follow")]
    namespace: Option<String>,
    /// Only what was forwarded, allowed (by network policies), failed, refused or dropped
    #[arg(long, value_name = "VERDICT", requires = "follow")]
    verdict: Option<String>,
    /// Only connections to this Service: `namespace/name`, or a name of any namespace
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only connections that have this address at any of their ends
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// Only connections that have this port at any of their ends
    #[arg(long, value_name = "NUMBER")]
    port: Option<u16>,
    /// Only this protocol: tcp, udp, sctp or icmp
    #[arg(long, value_name = "NAME", value_parser = ["tcp", "udp", "sctp", "icmp"], ignore_case = true)]
    protocol: Option<String>,
    #[command(flatten)]
    view: View,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    if arguments.follow {
        return follow(arguments).await;
    }
    let Arguments { service, address, port, protocol, view, .. } = arguments;
    let wanted = |row: &FlowRow| {
        service.as_deref().is_none_or(|wanted| row.service.as_deref().is_some_and(|full| is_service(full, wanted)))
            && address.is_none_or(|wanted| ends(row).any(|end| end.address == wanted))
            && port.is_none_or(|wanted| ends(row).any(|end| end.port == wanted))
            && protocol.as_deref().is_none_or(|wanted| row.protocol.eq_ignore_ascii_case(wanted))
    };
    let read = |pins: &Path| {
        let mut flows = sluice_dataplane::flows(pins)?;
        flows.retain(wanted);
        Ok(flows)
    };
    view.print(read, |flows| table(flows))
}

async fn follow(arguments: Arguments) -> Result<()> {
    let Arguments {
        cluster, node, kubeconfig, pod, namespace, service, verdict, port, protocol, address, view, ..
    } = arguments;
    let (port, address) = (port.map(|port| port.to_string()), address.map(|address| address.to_string()));
    let wishes = [
        ("pod", pod),
        ("namespace", namespace),
        ("service", service),
        ("verdict", verdict),
        ("port", port),
        ("protocol", protocol),
        ("address", address),
    ];
    let mut filter = Filter::default();
    for (name, value) in wishes {
        value.map_or(Ok(()), |value| filter.set(name, &value)).map_err(anyhow::Error::msg)?;
    }
    let nodes = if cluster || !node.is_empty() {
        follow::Nodes::Cluster { names: node, kubeconfig }
    } else {
        follow::Nodes::Own
    };
    let (config, json) = view.parts()?;
    follow::run(&config, nodes, &filter, json).await
}

fn ends(row: &FlowRow) -> impl Iterator<Item = End> {
    [Some(row.client), Some(row.destination), row.backend, row.leaves_as].into_iter().flatten()
}

fn table(flows: &[FlowRow]) -> String {
    let mut out = format!(
        "{:<5} {:<22} {:<22} {:<22} {:<28} {:<8} {:>9} {:>9} {:>6}\n",
        "PROTO", "CLIENT", "DESTINATION", "BACKEND", "SERVICE", "STATE", "PACKETS", "ANSWERS", "IDLE"
    );
    for row in flows {
        let backend = row.backend.map(text).unwrap_or_else(|| "-".to_owned());
        let service = row.service.as_deref().unwrap_or("- (leaves the cluster)");
        let answers = if row.direct_return { "direct".to_owned() } else { row.answer_packets.to_string() };
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{:<5} {:<22} {:<22} {backend:<22} {service:<28} {:<8} {:>9} {answers:>9} {:>5}s",
            row.protocol,
            text(row.client),
            text(row.destination),
            row.state,
            row.packets,
            row.idle_seconds
        );
    }
    out
}

fn text(end: End) -> String {
    std::net::SocketAddr::new(end.address, end.port).to_string()
}

#[cfg(test)]
mod tests {
    use super::is_service;

    #[test]
    fn services_are_asked_for_by_name() {
        for (wanted, expected) in
            [("shop/web", true), ("web", true), ("shop/we", false), ("other/web", false), ("shop", false)]
        {
            assert_eq!(is_service("shop/web:http", wanted), expected, "{wanted}");
        }
    }
}
