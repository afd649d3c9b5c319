//! `sluice drops`: the packets that were dropped on this machine, by reason, as the kernel's maps count them.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use clap::Args;
use sluice_dataplane::{By, Drops};

use crate::config::Options;

#[derive(Args)]
pub(crate) struct Arguments {
    /// One JSON document instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    options: Options,
}

pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let pins = arguments.options.resolve()?.pin_dir();
    let drops = sluice_dataplane::drops(&pins).with_context(|| {
        format!("cannot read the maps pinned under {}; is the node running, and are you root?", pins.display())
    })?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&drops)?);
    } else {
        print!("{}", table(&drops));
    }
    Ok(())
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
