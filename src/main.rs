//! The `sluice` program: reads its settings, wires the crates together, and inspects a running
//! installation. No logic of the control plane, the node or the data plane lives here.

mod addresses;
mod allocator;
mod backup;
mod client;
mod config;
mod control_plane;
mod daemon;
mod documents;
mod drops;
mod etcd;
mod explain;
mod flows;
mod held;
mod image;
mod leftovers;
mod machine;
mod node;
mod reference;
mod reset;
mod services;
mod status;
mod token;
mod top;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use sluice_agent::kept::Kept;

use crate::config::Options;

#[derive(Parser)]
#[command(name = "sluice", version, about = "A Kubernetes-compatible orchestrator whose data plane comes first")]
#[command(after_help = "Everything else goes through kubectl: export KUBECONFIG=/var/lib/sluice/admin.kubeconfig")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run control plane and node in one process: a whole cluster on this machine
    Up(Options),
    /// Run the control plane alone: API server, scheduler, controllers
    ///
    /// Several servers may share one etcd (--etcd); they need the same keys: before the first start of
    /// a second server, copy the folder `pki` of the first one's data directory (/var/lib/sluice/pki)
    /// into its own. One with other keys does not start. Scheduler and controllers work in one of the
    /// servers at a time and move to another when it ends.
    Server(Options),
    /// Run the node daemon alone, joined to a control plane elsewhere
    Node(daemon::NodeOptions),
    /// Manage the tokens that nodes join with
    #[command(subcommand)]
    Token(token::Command),
    /// Write everything a control plane needs into one file, while it serves: the store and the keys
    Backup(backup::Arguments),
    /// Put a backup into an empty store, with the keys that belong to it
    Restore(backup::restore::Arguments),
    /// Move from the embedded store to etcd, which several servers may share; the server is stopped meanwhile
    Migrate(backup::migrate::Arguments),
    /// Look at and add the node's images
    #[command(subcommand)]
    Image(image::Command),
    /// Print the service table as the kernel holds it: frontends, backends, counters
    Services(services::Arguments),
    /// Show what is going on at this node's Services and pods, second by second; `q` ends it
    Top(top::Arguments),
    /// Print the connections that this node translates packet by packet, or follow all as they come and go
    Flows(flows::Arguments),
    /// Print what was dropped on this machine and why, by the data plane and by the kernel
    Drops(held::View),
    /// Say what becomes of a packet on this node, and why: services, policies, translations, routes
    ///
    /// Runs the kernel's own programs on the live tables and on copies of what they write: nothing is sent, no connection is
    /// made, no counter moves.
    Explain(explain::Arguments),
    /// Say what is healthy, and for what is not, why and what to do
    Status(status::Arguments),
    /// Stop and remove everything of this installation on this machine
    Reset(reset::Arguments),
    /// Write man pages and shell completions into a directory
    #[command(hide = true)]
    Documents(documents::Arguments),
}

fn main() -> ExitCode {
    // Started by containerd's shims, once per container: it must stay small, so it comes before all else.
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == "logger") {
        let code = sluice_runtime::logger::run(words);
        return ExitCode::from(u8::try_from(code).unwrap_or(1));
    }
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    machine::set_up_tls();
    let kept = Kept::take();
    let threads = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    threads.block_on(async {
        match command {
            Command::Up(options) => daemon::up(options.resolve()?, kept).await,
            Command::Server(options) => daemon::server(options.resolve()?).await,
            Command::Node(options) => daemon::node(options, kept).await,
            Command::Token(command) => token::run(command).await,
            Command::Backup(arguments) => backup::run(arguments).await,
            Command::Restore(arguments) => backup::restore::run(arguments).await,
            Command::Migrate(arguments) => backup::migrate::run(arguments).await,
            Command::Image(command) => image::run(command).await,
            Command::Services(arguments) => services::run(arguments).await,
            Command::Top(arguments) => top::run(arguments).await,
            Command::Flows(arguments) => flows::run(arguments).await,
            Command::Drops(view) => drops::run(view),
            Command::Explain(arguments) => explain::run(arguments).await,
            Command::Status(arguments) => status::run(arguments).await,
            Command::Reset(arguments) => reset::run(arguments).await,
            Command::Documents(arguments) => documents::run(&arguments),
        }
    })
}
