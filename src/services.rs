//! `sluice services`: the service table as the kernel's maps hold it, without asking the API server.

use anyhow::{Context, Result};
use clap::Args;
use sluice_dataplane::Dataplane;

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
    let config = arguments.options.resolve()?;
    let services = Dataplane::services(&config.pin_dir()).with_context(|| {
        format!("cannot read the maps pinned under {}; is the node running, and are you root?", config.pin_dir().display())
    })?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&services)?);
        return Ok(());
    }
    print!("{}", table(&services));
    Ok(())
}
