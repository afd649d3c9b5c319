//! `sluice drops`: the packets that were dropped on this machine, by reason, as the kernel's maps count them.

use std::fmt::Write as _;

use sluice_dataplane::{By, Drops};

use crate::held::View;

pub(crate) fn run(view: View) -> anyhow::Result<()> {
    view.print(sluice_dataplane::drops, table)
}

fn table(drops: &Drops) -> String {
    let mut out = format!("{:>12}  {:<7} {:<24} {}\n", "PACKETS", "BY", "REASON", "MEANING");
    for row in &drops.rows {
        let by = match row.by {
            By::Sluice => "sluice",
            By::Kernel => "kernel",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{:>12}  {by:<7} {:<24} {}", row.packets, row.reason, row.text);
    }
    if let Some(why) = &drops.missing {
        let _ = writeln!(out, "the kernel's own drops are not counted: {why}");
    }
    out
}
