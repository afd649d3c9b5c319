//! Many pods at once, and a whole node full of them: the time until all are Ready, and what it costs.

use std::{collections::BTreeMap, time::Instant};

use anyhow::Result;
use futures::future::try_join_all;

use super::{NodePlace, space::Space};
use crate::{lab::say, limits, proc, report::Measured};

/// What the time that goals are about is called.
pub(super) fn ready(pods: usize) -> String {
    format!("{pods} pods at once until all Ready")
}

/// What the CPU time that goals are about is called.
pub(super) fn cpu(pods: usize) -> String {
    format!("{pods} pods at once: CPU time of sluice, per pod")
}

/// Figures of all bursts, by name, with their unit.
type Figures = BTreeMap<(String, &'static str), Vec<f64>>;

/// So many pods, `rounds` times.
pub(super) async fn run(
    space: &Space,
    nodes: &[NodePlace],
    (pods, rounds): (usize, usize),
    measured: &mut Measured,
) -> Result<()> {
    let mut figures = Figures::new();
    let mut outcome = Ok(());
    for round in 1..=rounds {
        say(&format!("{pods} pods at once, {round} of {rounds}"));
        outcome = burst(space, nodes, (pods, round), &mut figures).await;
        if outcome.is_err() {
            break;
        }
    }
    for ((name, unit), values) in &figures {
        measured.row(name, unit, values);
    }
    outcome
}

async fn burst(space: &Space, nodes: &[NodePlace], (pods, round): (usize, usize), figures: &mut Figures) -> Result<()> {
    let names: Vec<String> = (0..pods).map(|number| format!("burst-{pods}-{round}-{number}")).collect();
    let mut add = |name: String, unit, value: f64| figures.entry((name, unit)).or_default().push(value);
    let named = |what: &str| format!("{pods} pods at once{what}");
    let mut follower = space.follow().await?;
    let before = (!nodes.is_empty()).then(|| Costs::read(nodes)).transpose()?;
    let begun = Instant::now();
    try_join_all(names.iter().map(|name| space.create(name))).await?;
    add(named(" until all created"), "s", begun.elapsed().as_secs_f64());
    let (mut running, mut all_ready) = (begun, begun);
    for name in &names {
        running = running.max(follower.moment(name, |moments| moments.running).await?);
        all_ready = all_ready.max(follower.moment(name, |moments| moments.ready).await?);
    }
    add(named(" until all Running"), "s", (running - begun).as_secs_f64());
    add(ready(pods), "s", (all_ready - begun).as_secs_f64());
    // What is still to be written belongs to these pods.
    tokio::time::sleep(limits::BURST_TAIL).await;
    if let Some(before) = before {
        let after = Costs::read(nodes)?;
        #[expect(clippy::cast_precision_loss)]
        let per_pod = |seconds: f64| seconds / pods as f64;
        add(cpu(pods), "CPU-s", per_pod(after.daemon - before.daemon));
        add(
            named(": CPU time of containerd and living shims, per pod"),
            "CPU-s",
            per_pod(after.containerd - before.containerd),
        );
        add(named(": CPU time of the whole machine, per pod"), "CPU-s", per_pod(after.machine - before.machine));
        add(named(": memory of sluice and its loggers (PSS)"), "MB", memory(nodes)?);
    }
    let begun = Instant::now();
    try_join_all(names.iter().map(|name| space.delete(name))).await?;
    let mut gone = begun;
    for name in &names {
        gone = gone.max(follower.moment(name, |moments| moments.gone).await?);
    }
    add(format!("{pods} pods deleted at once until all gone"), "s", (gone - begun).as_secs_f64());
    Ok(())
}

/// Of the daemons and the containers' loggers, in MB.
fn memory(nodes: &[NodePlace]) -> Result<f64> {
    let mut bytes = 0;
    for node in nodes {
        let processes = proc::Cluster::find(node.daemon, &node.containerd_config, &node.containerd);
        // A logger that ends between the look and the reading holds nothing.
        let loggers = processes.loggers.iter().filter_map(|pid| proc::memory(*pid).ok()).map(|one| one.pss);
        bytes += proc::memory(node.daemon)?.pss + loggers.sum::<u64>();
    }
    #[expect(clippy::cast_precision_loss)]
    Ok(bytes as f64 / 1e6)
}

/// CPU time so far, in seconds.
struct Costs {
    daemon: f64,
    containerd: f64,
    machine: f64,
}

impl Costs {
    fn read(nodes: &[NodePlace]) -> Result<Self> {
        let mut costs = Self { daemon: 0.0, containerd: 0.0, machine: proc::machine_cpu_seconds()? };
        for node in nodes {
            let processes = proc::Cluster::find(node.daemon, &node.containerd_config, &node.containerd);
            let others = processes.containerd.iter().chain(&processes.shims);
            costs.daemon += proc::cpu_seconds(node.daemon)?;
            // A shim that ends between the look and the reading counts nothing.
            costs.containerd += others.map(|pid| proc::cpu_seconds(*pid).unwrap_or_default()).sum::<f64>();
        }
        Ok(costs)
    }
}
