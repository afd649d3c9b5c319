//! Commands that print what the kernel's maps hold, without asking the API server.

use std::path::Path;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

use crate::config::{Config, Options};

#[derive(Args)]
pub(crate) struct View {
    /// One JSON document instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    options: Options,
}

impl View {
    /// The settings, and whether JSON is wanted.
    pub(crate) fn parts(self) -> Result<(Config, bool)> {
        Ok((self.options.resolve()?, self.json))
    }

    /// Reads the maps pinned under the node's directory, and prints the part of it that is asked for.
    pub(crate) fn print<T: Serialize>(
        self,
        read: impl FnOnce(&Path) -> Result<T, sluice_dataplane::Error>,
        table: impl FnOnce(&T) -> String,
    ) -> Result<()> {
        let pins = self.options.resolve()?.pin_dir();
        let held = read(&pins).with_context(|| {
            format!("cannot read the maps pinned under {}; is the node running, and are you root?", pins.display())
        })?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&held)?);
        } else {
            print!("{}", table(&held));
        }
        Ok(())
    }
}
