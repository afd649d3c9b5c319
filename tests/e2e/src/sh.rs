//! Running commands; a failure carries the command and what it printed.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// The build directory of the workspace.
pub fn target() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir))
}

/// The tar of the sample image: what `SLUICE_TEST_IMAGE` names, or what `cargo xtask image` built.
pub fn sample_image() -> PathBuf {
    std::env::var_os("SLUICE_TEST_IMAGE").map_or_else(|| target().join("image/echo.tar"), PathBuf::from)
}

/// A step of a story: says its name before it, and in its failure.
pub fn step(what: &str, done: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("step: {what}");
    done().with_context(|| format!("step: {what}"))
}

/// Tries again until it holds; what it says takes its time.
pub fn until(patience: Duration, mut holds: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match holds() {
            Err(error) if Instant::now() > deadline => return Err(error).context(format!("not within {patience:?}")),
            Err(_) => {}
            Ok(()) => return Ok(()),
        }
    }
}

/// Runs to the end; the standard output, or an error with both outputs.
pub fn output(command: &mut Command) -> Result<String> {
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    let out = String::from_utf8_lossy(&done.stdout).into_owned();
    if !done.status.success() {
        bail!("{command:?} ended with {}:\n{out}{}", done.status, String::from_utf8_lossy(&done.stderr));
    }
    Ok(out)
}

/// A command from words, for those without odd arguments: `run("ip link set lo up")`.
pub fn run(words: &str) -> Result<String> {
    let mut words = words.split_whitespace();
    let program = words.next().context("an empty command")?;
    output(Command::new(program).args(words))
}

/// An address as a URL has it.
pub fn host(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}
