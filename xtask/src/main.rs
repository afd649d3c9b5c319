//! Every task of the repository, one file each: `cargo xtask <task>`. Tasks call the public
//! commands of the product and of the toolchain; no product logic lives here.

mod bench;
mod book;
mod ci;
mod codegen;
mod dist;
mod down;
mod ebpf;
mod fuzz;
mod image;
mod kernel;
mod lab;
mod setup;
mod sh;
mod test;
mod tidy;
mod up;
mod vm;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The tasks of the Sluice repository")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Bring up a one-node cluster on this machine with a sample Service (installs what is missing)
    Up(up::Options),
    /// Remove every trace of what `up` made
    Down,
    /// Run all tests, on real containerd, etcd and kernel (installs what is missing)
    Test(test::Options),
    /// Run the data plane's tests on a second kernel, Debian 12's, under QEMU
    Kernel,
    /// Run a coverage-guided fuzzer on the packet logic
    Fuzz(fuzz::Options),
    /// Several nodes as network namespaces on this machine
    Lab(lab::Options),
    /// Measure: startup, pods, memory, api, sched, lb; compare and draw what was measured
    Bench(bench::Options),
    /// Install what the tasks need with the system's package manager
    Setup,
    /// Build the eBPF object that the binary embeds
    Ebpf,
    /// Build the sample image as a tar for `sluice image import`
    Image,
    /// Make what is handed out: Debian package, tarball, OCI image
    Dist(dist::Options),
    /// Build the Vagrant box of the labs in `vagrant/` (installs what is missing)
    Box(vm::Options),
    /// Write the book's reference anew from the code; `--html` builds the book
    Book(book::Options),
    /// Write the tables of API facts anew from the sources they come from
    Codegen,
    /// Check the repository's own rules
    Tidy,
    /// What CI runs: formatting, clippy, all tests, the fuzzer, the second kernel
    Ci,
}

fn main() -> std::process::ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Up(options) => up::run(&options),
        Task::Down => down::run(),
        Task::Test(options) => test::run(&options),
        Task::Kernel => kernel::run(),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Lab(options) => lab::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Setup => setup::ensure(setup::Purpose::Everything),
        Task::Ebpf => {
            setup::ensure(setup::Purpose::Build)?;
            ebpf::build().map(|object| println!("{}", object.display()))
        }
        Task::Image => image::build().map(|tar| println!("{}", tar.display())),
        Task::Dist(options) => dist::run(&options),
        Task::Box(options) => vm::run(&options),
        Task::Book(options) => book::run(&options),
        Task::Codegen => codegen::run(),
        Task::Tidy => tidy::run(),
        Task::Ci => ci::run(),
    }
}
