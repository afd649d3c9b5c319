//! A coverage-guided fuzzer on the packet logic: libFuzzer, which its crate builds, and the coverage that the compiler's own
//! pass counts. Starts from the seeds in `ebpf/fuzz/seeds`; what it found before stands in the build directory.

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::sh;

#[derive(Args, Default)]
pub(crate) struct Options {
    /// How many inputs each target gets
    #[arg(long)]
    runs: Option<u32>,
    /// One target: packets or changes
    target: Option<String>,
}

/// Each target, and how many inputs it gets in CI.
const TARGETS: [(&str, u32); 2] = [("packets", 40_000), ("changes", 60_000)];
/// Longest input in bytes.
const LONGEST: u32 = 400;
/// Seconds that one input may take.
const PATIENCE: u32 = 20;

/// Counters at the edges of the program, with a table of where they stand, and what is compared with what.
const COVERAGE: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

pub(crate) fn run(options: &Options) -> Result<()> {
    let asked = |name: &&(&str, u32)| options.target.as_ref().is_none_or(|target| target == name.0);
    let targets: Vec<_> = TARGETS.iter().filter(asked).collect();
    if targets.is_empty() {
        bail!("there is no such target; there are: {}", TARGETS.map(|(name, _)| name).join(", "));
    }
    let (folder, made) = (sh::root().join("ebpf/fuzz"), sh::target().join("fuzz"));
    // Named, so that the flags are not for build scripts.
    let machine = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    sh::step("building the fuzzer");
    let mut build = sh::cargo();
    build.args(["build", "--release", "--locked", "--quiet", "--manifest-path"]).arg(folder.join("Cargo.toml"));
    build.args(["--target", &machine, "--target-dir"]).arg(&made);
    // An environment that counts coverage of its own, or links for other ends, is not for this.
    sh::run(build.env("RUSTFLAGS", COVERAGE.join(" ")).env_remove("CARGO_ENCODED_RUSTFLAGS"))?;
    for (name, runs) in targets {
        let runs = options.runs.unwrap_or(*runs);
        sh::step(&format!("fuzzing {name}, {runs} inputs"));
        let corpus = made.join("corpus").join(name);
        std::fs::create_dir_all(&corpus).with_context(|| format!("make {}", corpus.display()))?;
        let mut fuzzer = sh::command(made.join(machine.as_str()).join("release").join(name));
        fuzzer.arg(&corpus).arg(folder.join("seeds").join(name));
        fuzzer.args([format!("-runs={runs}"), format!("-max_len={LONGEST}"), format!("-timeout={PATIENCE}")]);
        fuzzer.args([format!("-artifact_prefix={}/{name}-", made.display()), "-verbosity=0".into()]);
        sh::run(&mut fuzzer)?;
    }
    Ok(())
}
