//! `sluice flows`: the connections that this node translates packet by packet, as the kernel's flow table holds them.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;
use clap::Args;
use sluice_dataplane::{End, FlowRow};

use crate::held::View;

#[derive(Args)]
pub(crate) struct Arguments {
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

pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let Arguments { service, address, port, protocol, view } = arguments;
    let wanted = |row: &FlowRow| {
        service.as_deref().is_none_or(|wanted| row.service.as_deref().is_some_and(|name| is_of(name, wanted)))
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

/// Is `namespace/name:port` the service that was asked for?
fn is_of(full: &str, wanted: &str) -> bool {
    let name = full.rsplit_once(':').map_or(full, |(name, _)| name);
    name == wanted || !wanted.contains('/') && name.split_once('/').is_some_and(|(_, name)| name == wanted)
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
    use super::is_of;

    #[test]
    fn services_are_asked_for_by_name() {
        for (wanted, expected) in
            [("shop/web", true), ("web", true), ("shop/we", false), ("other/web", false), ("shop", false)]
        {
            assert_eq!(is_of("shop/web:http", wanted), expected, "{wanted}");
        }
    }
}
