//! Macro benches on real parts: builds in release mode and hands over to the `sluice-bench` program.

use anyhow::Result;
use clap::Args;

use crate::{ebpf, image, setup, sh};

#[derive(Args)]
pub(crate) struct Options {
    /// `startup`, `pods`, `memory` or `lb`, with that bench's flags (`--json`, `--help`)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    bench: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    sh::require_root("cargo xtask bench")?;
    setup::ensure(setup::Purpose::Bench)?;
    ebpf::build()?;
    let image = image::build()?;
    sh::run(sh::cargo().args(["build", "--release", "--package", "sluice", "--package", "sluice-bench"]))?;
    let mut bench = sh::command(sh::target().join("release/sluice-bench"));
    bench.args(&options.bench).env("SLUICE_BIN", crate::up::binary()).env("SLUICE_IMAGE", image);
    sh::run(bench.env("SLUICE_ECHO", image::program()?))
}
