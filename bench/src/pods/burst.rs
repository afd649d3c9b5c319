//! Many pods at once: the time until all are Ready, and what it costs.

use std::{collections::BTreeMap, time::Instant};

use anyhow::Result;
use futures::future::try_join_all;

use super::{NodePlace, space::Space};
use crate::{lab::say, limits, proc, report::Measured};

pub(super) const READY: &str = "30 pods at once until all Ready";
pub(super) const CPU: &str = "30 pods at once: CPU time of sluice, per pod";
const _: () = assert!(limits::BURST == 30, "the names above say how many");

/// Figures of all bursts, by name, with their unit.
type Figures = BTreeMap<(&'static str, &'static str), Vec<f64>>;

pub(super) async fn run(space: &Space, node: Option<&NodePlace>, measured: &mut Measured) -> Result<()> {
    let mut figures = Figures::new();
    let mut outcome = Ok(());
    for round in 1..=limits::BURSTS {
        say(&format!("{} pods at once, {round} of {}", limits::BURST, limits::BURSTS));
        outcome = burst(space, node, round, &mut figures).await;
        if outcome.is_err() {
            break;
        }
    }
    for ((name, unit), values) in &figures {
        measured.row(name, unit, values);
    }
    outcome
}

async fn burst(space: &Space, node: Option<&NodePlace>, round: usize, figures: &mut Figures) -> Result<()> {
    let names: Vec<String> = (0..limits::BURST).map(|number| format!("burst-{round}-{number}")).collect();
    let mut add = |name, unit, value: f64| figures.entry((name, unit)).or_default().push(value);
    let mut follower = space.follow().await?;
    let before = node.map(Costs::read).transpose()?;
    let begun = Instant::now();
    try_join_all(names.iter().map(|name| space.create(name))).await?;
    add("30 pods at once until all created", "s", begun.elapsed().as_secs_f64());
    let (mut running, mut ready) = (begun, begun);
    for name in &names {
        running = running.max(follower.moment(name, |moments| moments.running).await?);
        ready = ready.max(follower.moment(name, |moments| moments.ready).await?);
    }
    add("30 pods at once until all Running", "s", (running - begun).as_secs_f64());
    add(READY, "s", (ready - begun).as_secs_f64());
    // What is still to be written belongs to these pods.
    tokio::time::sleep(limits::BURST_TAIL).await;
    if let (Some(before), Some(node)) = (before, node) {
        let after = Costs::read(node)?;
        #[expect(clippy::cast_precision_loss)]
        let per_pod = |seconds: f64| seconds / limits::BURST as f64;
        add(CPU, "CPU-s", per_pod(after.daemon - before.daemon));
        add(
            "30 pods at once: CPU time of containerd and living shims, per pod",
            "CPU-s",
            per_pod(after.containerd - before.containerd),
        );
        add(
            "30 pods at once: CPU time of the whole machine, per pod",
            "CPU-s",
            per_pod(after.machine - before.machine),
        );
    }
    let begun = Instant::now();
    try_join_all(names.iter().map(|name| space.delete(name))).await?;
    let mut gone = begun;
    for name in &names {
        gone = gone.max(follower.moment(name, |moments| moments.gone).await?);
    }
    add("30 pods deleted at once until all gone", "s", (gone - begun).as_secs_f64());
    Ok(())
}

/// CPU time so far, in seconds.
struct Costs {
    daemon: f64,
    containerd: f64,
    machine: f64,
}

impl Costs {
    fn read(node: &NodePlace) -> Result<Self> {
        let processes = proc::Cluster::find(node.daemon, &node.containerd_config, &node.containerd);
        let others = processes.containerd.iter().chain(&processes.shims);
        Ok(Self {
            daemon: proc::cpu_seconds(node.daemon)?,
            // A shim that ends between the look and the reading counts nothing.
            containerd: others.map(|pid| proc::cpu_seconds(*pid).unwrap_or_default()).sum(),
            machine: proc::machine_cpu_seconds()?,
        })
    }
}
