//! `cargo xtask book`: writes the book's reference anew from the code, and with `--html` builds the book by mdBook, which it
//! installs under `target/tools` when the machine has none.

mod limits;

use std::{fs, path::PathBuf};

use anyhow::Result;
use clap::Args;

use crate::{ebpf, sh};

/// The one that the pages are tried with.
const MDBOOK: &str = "0.5.4";

#[derive(Args)]
pub(crate) struct Options {
    /// Build the pages in target/book/html as well
    #[arg(long)]
    html: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ebpf::build()?;
    sh::run(sh::cargo().args(["build", "--quiet", "--package", "sluice"]))?;
    let reference = sh::root().join("docs/reference");
    sh::run(sh::command(sh::target().join("debug/sluice")).args(["documents", "--reference"]).arg(&reference))?;
    fs::write(reference.join("limits.md"), limits::page()?)?;
    println!("{}", reference.display());
    if options.html {
        sh::run(sh::command(mdbook()?).args(["build", "docs"]))?;
        println!("{}", sh::target().join("book/html/index.html").display());
    }
    Ok(())
}

fn mdbook() -> Result<PathBuf> {
    let ours = sh::target().join("tools/bin/mdbook");
    if let Some(found) = Some(ours.clone()).filter(|path| path.exists()).or_else(|| sh::which("mdbook")) {
        return Ok(found);
    }
    sh::step("installing mdBook under target/tools");
    let mut install = sh::cargo();
    install.args(["install", "--quiet", "--locked", "--no-default-features", "--version", MDBOOK, "--root"]);
    sh::run(install.arg(sh::target().join("tools")).arg("mdbook"))?;
    Ok(ours)
}
