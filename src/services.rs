//! `sluice services`: the service table as the kernel's maps hold it, without asking the API server.

use std::fmt::Write as _;

use sluice_dataplane::{FrontendRow, ServiceRow};

use crate::held::View;

pub(crate) fn run(view: View) -> anyhow::Result<()> {
    view.print(sluice_dataplane::services, |services| table(services))
}

fn table(services: &[ServiceRow]) -> String {
    let mut out = format!(
        "{:<38} {:<6} {:<24} {:>11} {:>9} {:>8}\n",
        "SERVICE", "PROTO", "ADDRESS", "CONNECTIONS", "PACKETS", "REFUSED"
    );
    for row in services {
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{:<38} {:<6} {:<24} {:>11} {:>9} {:>8}",
            row.service,
            row.protocol,
            row.frontends.first().map(frontend).unwrap_or_default(),
            row.connections,
            row.packets,
            row.refused
        );
        for more in row.frontends.iter().skip(1) {
            let _ = writeln!(out, "{:<38} {:<6} {:<24}", "", "", frontend(more));
        }
        for backend in &row.backends {
            let place = if backend.local { "here" } else { "" };
            let address = format!("{}:{}", backend.address, backend.port);
            let _ = writeln!(
                out,
                "{:<45} -> {:<21} {:>11} {:>9} {place:>8}",
                "", address, backend.connections, backend.packets
            );
        }
        if row.backends.is_empty() {
            let _ = writeln!(out, "{:<45} -> no ready endpoint", "");
        }
    }
    out
}

fn frontend(row: &FrontendRow) -> String {
    let address = row.address.map_or_else(|| "every node address".to_owned(), |ip| ip.to_string());
    let scope = if row.scope == "external" { " from outside" } else { "" };
    let local = if row.local_only { " local only" } else { "" };
    format!("{address}:{}{scope}{local}", row.port)
}
