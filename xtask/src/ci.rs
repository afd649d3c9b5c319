//! What CI runs, in the order that fails fastest.

use anyhow::Result;

use crate::{ebpf, fuzz, kernel, setup, sh, test};

pub(crate) fn run() -> Result<()> {
    sh::step("formatting");
    sh::run(sh::cargo().args(["fmt", "--all", "--check"]))?;
    setup::ensure(setup::Purpose::Everything)?;
    ebpf::build()?;
    sh::step("clippy");
    sh::run(sh::cargo().args(["clippy", "--all-targets", "--quiet", "--", "-D", "warnings"]))?;
    test::run(&test::Options::default())?;
    fuzz::run(&fuzz::Options::default())?;
    kernel::run()
}
