//! A screen of figures, as lines. Pure.

use std::fmt::Write as _;

use sluice_dataplane::{By, Spread};

use super::rates::{Rate, Rates};
use crate::services::spread;

/// Lines of a screen of this size; `rows` 0 is for one as long as it has to be.
pub(super) fn lines(rates: &Rates, node: &str, columns: usize, rows: usize) -> Vec<String> {
    let drops = rates.drops.iter().filter(|drop| drop.packets > 0.0 || drop.total > 0);
    let drops: Vec<String> = drops
        .map(|drop| {
            let by = if drop.by == By::Sluice { "sluice" } else { "kernel" };
            format!("{:>11} {:>12}  {by:<7} {:<24} {}", number(drop.packets), drop.total, drop.reason, drop.text)
        })
        .collect();
    let sections = [
        (
            format!(
                "{:<42} {:<6} {:>9} {:>11} {:>11} {:>9} {:>19}",
                "SERVICE", "PROTO", "CONN/S", "PACKETS/S", "BYTES/S", "FAILED/S", "CONNECT 50% / 99%"
            ),
            rates.services.iter().map(service).collect::<Vec<_>>(),
        ),
        (
            format!(
                "{:<42} {:<6} {:>9} {:>11} {:>11} {:>9} {:>19}",
                "POD", "", "OPENED/S", "ACCEPTED/S", "BYTES/S", "FAILED/S", "CONNECT 50% / 99%"
            ),
            rates.pods.iter().map(pod).collect(),
        ),
        (format!("{:>11} {:>12}  {:<7} {:<24} {}", "DROPS/S", "ALL", "BY", "REASON", "MEANING"), drops),
    ];
    let mut all = vec![format!("sluice top  {node}")];
    // What is left for the rows below the headings, and the empty lines between.
    let room = rows.saturating_sub(1 + 2 * sections.len());
    let shares =
        if rows == 0 { [usize::MAX; 3] } else { shares(sections.each_ref().map(|(_, rows)| rows.len()), room) };
    for ((heading, rows), share) in sections.into_iter().zip(shares) {
        all.push(String::new());
        all.push(heading);
        all.extend(rows.into_iter().take(share));
    }
    if rows > 0 {
        all.truncate(rows);
    }
    all.into_iter().map(|line| line.chars().take(columns).collect::<String>().trim_end().to_owned()).collect()
}

/// Room for each section: as much as it needs, as long as the others have a third of it each.
fn shares(needs: [usize; 3], room: usize) -> [usize; 3] {
    let mut shares = needs.map(|need| need.min(room / 3));
    let mut left = room - shares.iter().sum::<usize>();
    for (share, need) in shares.iter_mut().zip(needs) {
        let more = (need - *share).min(left);
        *share += more;
        left -= more;
    }
    shares
}

/// A table of Services alone.
pub(crate) fn services(rates: &Rates) -> String {
    let mut out = format!(
        "{:<42} {:<6} {:>9} {:>11} {:>11} {:>9} {:>19}\n",
        "SERVICE", "PROTO", "CONN/S", "PACKETS/S", "BYTES/S", "FAILED/S", "CONNECT 50% / 99%"
    );
    for rate in &rates.services {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{}", service(rate));
    }
    out
}

fn service(rate: &Rate) -> String {
    row(rate, rate.protocol.unwrap_or(""), rate.packets)
}

fn pod(rate: &Rate) -> String {
    row(rate, "", rate.accepted)
}

fn row(rate: &Rate, protocol: &str, second: Option<f64>) -> String {
    format!(
        "{:<42} {protocol:<6} {:>9} {:>11} {:>11} {:>9} {:>19}",
        rate.name,
        number(rate.connections),
        number(second.unwrap_or(0.0)),
        number(rate.bytes),
        number(rate.failed),
        latency(rate.connect)
    )
}

fn latency(connect: Option<Spread>) -> String {
    spread(connect)
}

/// As short as people read it.
fn number(value: f64) -> String {
    match value {
        v if v >= 1e9 => format!("{:.1}G", v / 1e9),
        v if v >= 1e6 => format!("{:.1}M", v / 1e6),
        v if v >= 1e4 => format!("{:.1}k", v / 1e3),
        v if v >= 100.0 || v == v.trunc() => format!("{v:.0}"),
        v => format!("{v:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::rates::DropRate;

    fn rate(name: &str, connections: f64) -> Rate {
        Rate {
            name: name.to_owned(),
            protocol: Some("TCP"),
            connections,
            accepted: Some(3.0),
            packets: Some(12_345.0),
            bytes: 2_500_000.0,
            failed: 0.5,
            retransmits: 0.0,
            connect: Some(Spread { median_microseconds: 64, most_microseconds: 2_048 }),
        }
    }

    fn all(count: usize) -> Rates {
        let many = |what: &str| (0..count).map(|at| rate(&format!("shop/{what}-{at}"), 100.0)).collect();
        let drop = |at: usize| DropRate {
            by: By::Sluice,
            reason: format!("Reason{at}"),
            text: "why".to_owned(),
            packets: 1.5,
            total: 20,
        };
        Rates { services: many("web"), pods: many("pod"), drops: (0..count).map(drop).collect() }
    }

    #[test]
    fn a_screen_has_a_row_for_each() {
        let lines = lines(&all(1), "n1", 200, 0);
        let expected = [
            "sluice top  n1",
            "",
            "SERVICE                                    PROTO     CONN/S   PACKETS/S     BYTES/S  FAILED/S   CONNECT 50% / 99%",
            "shop/web-0                                 TCP          100       12.3k        2.5M       0.5      64 µs / 2.0 ms",
            "",
            "POD                                                OPENED/S  ACCEPTED/S     BYTES/S  FAILED/S   CONNECT 50% / 99%",
            "shop/pod-0                                              100           3        2.5M       0.5      64 µs / 2.0 ms",
            "",
            "    DROPS/S          ALL  BY      REASON                   MEANING",
            "        1.5           20  sluice  Reason0                  why",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_screen_fits_the_terminal() {
        for (columns, rows) in [(80, 24), (20, 10), (1, 1), (300, 7), (80, 200)] {
            let lines = lines(&all(50), "n1", columns, rows);
            assert!(lines.len() <= rows, "{columns} {rows}");
            assert!(lines.iter().all(|line| line.chars().count() <= columns), "{columns} {rows}");
        }
        assert_eq!(shares([50, 2, 1], 17), [14, 2, 1]);
        assert_eq!(shares([1, 50, 50], 17), [1, 11, 5]);
        assert_eq!(shares([50, 50, 50], 2), [2, 0, 0]);
    }

    #[test]
    fn numbers_are_short() {
        let table = [
            (0.0, "0"),
            (0.25, "0.2"),
            (99.0, "99"),
            (250.4, "250"),
            (12_345.0, "12.3k"),
            (2.5e6, "2.5M"),
            (3e9, "3.0G"),
        ];
        for (value, expected) in table {
            assert_eq!(number(value), expected);
        }
    }
}
