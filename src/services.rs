//! `sluice services`: the service table as the kernel's maps hold it, without asking the API server.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use sluice_dataplane::{FrontendRow, ServiceRow, Spread};

use crate::flows::serve;
use crate::held::View;
use crate::top::{Place, screen};

#[derive(Args)]
pub(crate) struct Arguments {
    /// How TCP connections of this node and its pods fare, in place of addresses and backends
    #[arg(long)]
    tcp: bool,
    /// What happens in so many seconds from now on, for each of them: connections, packets, bytes, time to connect
    #[arg(
        long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", conflicts_with = "tcp",
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    rates: Option<u64>,
    #[command(flatten)]
    view: View,
}

pub(crate) async fn run(Arguments { tcp, rates, view }: Arguments) -> anyhow::Result<()> {
    if let Some(seconds) = rates {
        let (config, json) = view.parts()?;
        let place = Place { pins: config.pin_dir(), socket: serve::socket(&config), node: config.node_name };
        let rates = place.over(Duration::from_secs(seconds)).await?;
        if json {
            println!("{}", serde_json::to_string_pretty(&rates.services)?);
        } else {
            print!("{}", screen::services(&rates));
        }
        return Ok(());
    }
    view.print(sluice_dataplane::services, |services| if tcp { measured(services) } else { table(services) })
}

fn measured(services: &[ServiceRow]) -> String {
    let mut out = format!(
        "{:<38} {:>11} {:>8} {:>11} {:>8} {:>19} {:>19}\n",
        "SERVICE", "OPENED", "FAILED", "RETRANSMITS", "RESETS", "CONNECT 50% / 99%", "ROUND TRIP"
    );
    for row in services {
        let Some(tcp) = &row.tcp else { continue };
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{:<38} {:>11} {:>8} {:>11} {:>8} {:>19} {:>19}",
            row.service,
            tcp.opened,
            tcp.failed,
            tcp.retransmits,
            tcp.resets,
            spread(tcp.connect),
            spread(tcp.round_trip)
        );
    }
    out
}

pub(crate) fn spread(spread: Option<Spread>) -> String {
    let Some(spread) = spread else { return "-".to_owned() };
    format!("{} / {}", duration(spread.median_microseconds), duration(spread.most_microseconds))
}

/// In the unit that leaves the fewest digits.
fn duration(microseconds: u64) -> String {
    match microseconds {
        0..1_000 => format!("{microseconds} µs"),
        1_000..1_000_000 => format!("{:.1} ms", microseconds as f64 / 1e3),
        _ => format!("{:.1} s", microseconds as f64 / 1e6),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        let table = [(64, "64 µs"), (2_048, "2.0 ms"), (524_288, "524.3 ms"), (1_048_576, "1.0 s")];
        for (microseconds, expected) in table {
            assert_eq!(duration(microseconds), expected);
        }
        assert_eq!(spread(None), "-");
    }
}
