//! Man pages and shell completions, from the commands themselves: `sluice documents DIR`, which packaging calls.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use clap::{Args, CommandFactory as _};
use clap_complete::{Shell, generate_to};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Where to write them; made where it is missing
    dir: PathBuf,
    /// The reference part of the book instead
    #[arg(long)]
    reference: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let dir = &arguments.dir;
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    if arguments.reference {
        let pages = crate::reference::pages();
        return pages.into_iter().try_for_each(|(name, text)| {
            fs::write(dir.join(name), text).with_context(|| format!("cannot write {name}"))
        });
    }
    let mut command = crate::Arguments::command();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command, "sluice", dir).with_context(|| format!("cannot write for {shell}"))?;
    }
    clap_mangen::generate_to(command, dir).context("cannot write the man pages")
}
