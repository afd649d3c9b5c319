//! A screen of figures, as lines. Pure.

use std::fmt::Write as _;

use sluice_dataplane::{By, Spread};

use super::rates::{Rate, Rates};
use crate::services::spread;

/// Columns of figures behind a name, by their widths, the one that narrow screens miss least first.
const FIGURES: [(Figure, usize); 6] = [
    (Figure::Second, 11),
    (Figure::Protocol, 6),
    (Figure::Latency, 19),
    (Figure::Failed, 9),
    (Figure::Bytes, 11),
    (Figure::Connections, 9),
];

/// In the order of a line.
const ORDER: [Figure; 6] =
    [Figure::Protocol, Figure::Connections, Figure::Second, Figure::Bytes, Figure::Failed, Figure::Latency];

/// The width of names where there is room, and the one that figures leave to them.
const NAME: usize = 42;
const NARROW: usize = 28;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Figure {
    Protocol,
    Connections,
    /// Packets of Services, connections that pods accepted.
    Second,
    Bytes,
    Failed,
    Latency,
}

/// What a line of names and figures is made of.
struct Layout {
    name: usize,
    figures: Vec<(Figure, usize)>,
}

impl Layout {
    fn of(columns: usize) -> Layout {
        let width = |figures: &[(Figure, usize)]| figures.iter().map(|(_, width)| width + 1).sum::<usize>();
        let missed = (0..FIGURES.len()).find(|missed| width(&FIGURES[*missed..]).saturating_add(NARROW) <= columns);
        let kept = &FIGURES[missed.unwrap_or(FIGURES.len())..];
        let in_line = |figure: &Figure| kept.iter().find(|(known, _)| known == figure).copied();
        let name = columns.saturating_sub(width(kept)).clamp(1, NAME);
        Layout { name, figures: ORDER.iter().filter_map(in_line).collect() }
    }

    fn line(&self, name: &str, text: impl Fn(Figure) -> String) -> String {
        let mut line = format!("{:<width$}", shortened(name, self.name), width = self.name);
        for (figure, width) in &self.figures {
            // Writing to a String cannot fail.
            let _ = match figure {
                Figure::Protocol => write!(line, " {:<width$}", text(*figure)),
                _ => write!(line, " {:>width$}", text(*figure)),
            };
        }
        line
    }

    fn heading(&self, name: &str, [protocol, first, second]: [&str; 3]) -> String {
        self.line(name, |figure| {
            match figure {
                Figure::Protocol => protocol,
                Figure::Connections => first,
                Figure::Second => second,
                Figure::Bytes => "BYTES/S",
                Figure::Failed => "FAILED/S",
                Figure::Latency => "CONNECT 50% / 99%",
            }
            .to_owned()
        })
    }

    fn row(&self, rate: &Rate, protocol: &str, second: Option<f64>) -> String {
        self.line(&rate.name, |figure| match figure {
            Figure::Protocol => protocol.to_owned(),
            Figure::Connections => number(rate.connections),
            Figure::Second => number(second.unwrap_or(0.0)),
            Figure::Bytes => number(rate.bytes),
            Figure::Failed => number(rate.failed),
            Figure::Latency => latency(rate.connect),
        })
    }

    fn services(&self, rates: &Rates) -> (String, Vec<String>) {
        let rows = rates.services.iter().map(|rate| self.row(rate, rate.protocol.unwrap_or(""), rate.packets));
        (self.heading("SERVICE", ["PROTO", "CONN/S", "PACKETS/S"]), rows.collect())
    }

    fn pods(&self, rates: &Rates) -> (String, Vec<String>) {
        let rows = rates.pods.iter().map(|rate| self.row(rate, "", rate.accepted));
        (self.heading("POD", ["", "OPENED/S", "ACCEPTED/S"]), rows.collect())
    }
}

/// A name that fits, with its middle left out: ends tell Services apart by their ports, and pods of a set.
fn shortened(name: &str, width: usize) -> String {
    let letters: Vec<char> = name.chars().collect();
    if letters.len() <= width {
        return name.to_owned();
    }
    let end = (width - 1) / 2;
    letters[..width - 1 - end].iter().chain(['…'].iter()).chain(&letters[letters.len() - end..]).collect()
}

/// Those that happened, without their sums where there is little room.
fn drops(rates: &Rates, columns: usize) -> (String, Vec<String>) {
    let line = |rate: String, all: String, by: &str, reason: &str, text: &str| {
        let all = if columns < NARROW + 85 { String::new() } else { format!(" {all:>12}") };
        format!("{rate:>11}{all}  {by:<7} {reason:<24} {text}")
    };
    let heading = line("DROPS/S".into(), "ALL".into(), "BY", "REASON", "MEANING");
    let happened = rates.drops.iter().filter(|drop| drop.packets > 0.0 || drop.total > 0);
    let rows = happened.map(|drop| {
        let by = if drop.by == By::Sluice { "sluice" } else { "kernel" };
        line(number(drop.packets), drop.total.to_string(), by, &drop.reason, &drop.text)
    });
    (heading, rows.collect())
}

/// Lines of a screen of this size; `rows` 0 is for one as long as it has to be.
pub(super) fn lines(rates: &Rates, node: &str, columns: usize, rows: usize) -> Vec<String> {
    let layout = Layout::of(columns);
    let sections = [layout.services(rates), layout.pods(rates), drops(rates, columns)];
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
    let (heading, rows) = Layout::of(usize::MAX).services(rates);
    let lines = [heading].into_iter().chain(rows);
    lines.map(|line| line + "\n").collect()
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

    /// At 80 columns everything that is shown is whole: less is shown, and names lose their middles.
    #[test]
    fn a_narrow_screen_leaves_columns_out() {
        let mut rates = all(1);
        rates.services[0].name = "production/checkout-frontend-canary:https".into();
        let expected = [
            "sluice top  n1",
            "",
            "SERVICE                         CONN/S     BYTES/S  FAILED/S   CONNECT 50% / 99%",
            "production/che…-canary:https       100        2.5M       0.5      64 µs / 2.0 ms",
            "",
            "POD                           OPENED/S     BYTES/S  FAILED/S   CONNECT 50% / 99%",
            "shop/pod-0                         100        2.5M       0.5      64 µs / 2.0 ms",
            "",
            "    DROPS/S  BY      REASON                   MEANING",
            "        1.5  sluice  Reason0                  why",
        ];
        assert_eq!(lines(&rates, "n1", 80, 0), expected);
        let figures = |columns| Layout::of(columns).figures.len();
        let table = [(113, 6), (99, 6), (98, 5), (86, 4), (79, 3), (60, 3), (59, 2), (40, 1), (30, 0), (0, 0)];
        for (columns, expected) in table {
            assert_eq!(figures(columns), expected, "{columns}");
        }
        assert_eq!(
            (shortened("abcdef", 4), shortened("abcdef", 1), shortened("abc", 3)),
            ("ab…f".into(), "…".into(), "abc".into())
        );
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
