//! Macro benches on real parts: builds in release mode and hands over to the `sluice-bench` program.

use anyhow::Result;
use clap::Args;

use crate::{ebpf, image, setup, sh};

#[derive(Args)]
pub(crate) struct Options {
    /// `startup`, `pods`, `memory`, `api`, `sched`, `lb` or `all`, with that bench's flags (`--json`, `--help`); `compare` or
    /// `report` with documents that benches wrote; `cores` for the pure parts by themselves
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    bench: Vec<String>,
}

/// What only reads documents: it needs no cluster, and so nothing of what makes one.
const READERS: [&str; 2] = ["compare", "report"];

/// Benches of the pure parts, by criterion: they need nothing of the machine.
const CORES: [(&str, &str); 5] = [
    ("sluice-api", "decode"),
    ("sluice-store", "store"),
    ("sluice-scheduler", "planner"),
    ("sluice-dataplane", "services"),
    ("sluice-packet", "packets"),
];

pub(crate) fn run(options: &Options) -> Result<()> {
    if let Some(("cores", rest)) = options.bench.split_first().map(|(word, rest)| (word.as_str(), rest)) {
        let mut cores = sh::cargo();
        cores.args(["bench", "--features", "sluice-packet/fuzz"]);
        cores.args(CORES.iter().flat_map(|(package, bench)| ["--package", *package, "--bench", *bench]));
        cores.arg("--").args(rest);
        return sh::run(&mut cores);
    }
    if options.bench.first().is_some_and(|word| READERS.contains(&word.as_str())) {
        let mut read = sh::cargo();
        read.args(["run", "--quiet", "--release", "--package", "sluice-bench", "--"]).args(&options.bench);
        // Documents are named as they are seen from where the task was called.
        return sh::run(read.current_dir(std::env::current_dir()?));
    }
    sh::require_root("cargo xtask bench")?;
    setup::ensure(setup::Purpose::Bench)?;
    ebpf::build()?;
    let image = image::build()?;
    let mut build = sh::cargo();
    build.args(["build", "--release", "--package", "sluice", "--package", "sluice-bench"]);
    if options.bench.iter().any(|word| word.split('=').next() == Some("--flamegraph")) {
        build.args(["--features", "sluice-bench/flamegraph"]);
    }
    sh::run(&mut build)?;
    let mut bench = sh::command(sh::target().join("release/sluice-bench"));
    bench.args(&options.bench).env("SLUICE_BIN", crate::up::binary()).env("SLUICE_IMAGE", image);
    sh::run(bench.env("SLUICE_ECHO", image::program()?))
}
