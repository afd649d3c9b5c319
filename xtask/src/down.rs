//! Removes every trace of `cargo xtask up`, and says what it removed.

use std::{fs, process::Command};

use anyhow::Result;

use crate::{ebpf, sh, up};

pub(crate) fn run() -> Result<()> {
    sh::require_root("cargo xtask down")?;
    if !up::binary().exists() {
        sh::step("building (release): `sluice reset` does the removing");
        ebpf::build()?;
        sh::run(sh::cargo().args(["build", "--release", "--package", "sluice"]))?;
    }
    sh::run(Command::new(up::binary()).args(["reset", "--yes", "--data-dir", up::DATA, "--run-dir", up::RUN]))?;
    if fs::remove_file(up::LOG).is_ok() {
        println!("removed {}", up::LOG);
    }
    Ok(())
}
