//! All tests, on real parts: containerd, etcd, a registry, the kernel. Nothing is skipped: what is
//! missing is installed first, and a test that cannot run fails and says why.

use anyhow::Result;
use clap::Args;

use crate::{dist, ebpf, image, setup, sh};

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Passed on to `cargo test` (after `--`: to the tests)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    cargo: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    sh::require_root("cargo xtask test")?;
    setup::ensure(setup::Purpose::Everything)?;
    setup::require_kubectl()?;
    prepare()?;
    let test = || {
        let mut command = sh::cargo();
        command.args(["test", "--no-fail-fast"]);
        command
    };
    sh::step("building the tests");
    let own = options.cargo.iter().take_while(|word| *word != "--");
    sh::run(test().arg("--no-run").args(own))?;
    setup::require_room()?;
    sh::step("cargo test");
    sh::run(test().args(&options.cargo).env("SLUICE_TEST_IMAGE", image::build()?))
}

/// Builds what the end-to-end tests start: the eBPF object, the binary, the sample image.
pub(crate) fn prepare() -> Result<()> {
    sh::step("building the eBPF object");
    ebpf::build()?;
    sh::step("building sluice and the sample image");
    sh::run(sh::cargo().args(["build", "--package", "sluice"]))?;
    image::build()?;
    dist::for_tests()
}
