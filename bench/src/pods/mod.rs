//! `pods`: how fast pods come and go and how fast their Service answers.
//!
//! This part runs where the node's network is: in its namespace for our own cluster, anywhere for a cluster that a
//! kubeconfig leads to. It talks to the API server as any client, and to containerd to see what it did when and to
//! run the same image without Sluice.

mod burst;
mod containerd;
mod follow;
mod sequence;
mod space;
mod traffic;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::{
    limits,
    report::{Bound, Goal, Measured},
};
use space::Space;

/// The sample image, present on every node of our own clusters.
pub(crate) const IMAGE: &str = "sluice.local/echo:latest";
/// The sample's server, ending at once on SIGTERM.
pub(crate) const ARGUMENTS: &str = "serve --drain 0";

/// What the pods run.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) image: String,
    pub(crate) arguments: Vec<String>,
}

impl Target {
    pub(crate) fn sample() -> Self {
        Self { image: IMAGE.into(), arguments: ARGUMENTS.split(' ').map(str::to_owned).collect() }
    }
}

/// The node that this process runs on, where it does.
#[derive(Args, Clone, Debug)]
pub(crate) struct NodePlace {
    /// Socket of the node's containerd
    #[arg(long)]
    containerd: PathBuf,
    /// The configuration file on its command line
    #[arg(long)]
    containerd_config: PathBuf,
    /// Cgroup for containers that are not Sluice's
    #[arg(long)]
    cgroup: String,
    /// Pid of the Sluice daemon
    #[arg(long)]
    daemon: u32,
}

/// Measures everything that can be measured; what fails is said in a note.
pub(crate) fn run(kubeconfig: &Path, target: Target, node: Option<NodePlace>) -> Result<Measured> {
    // It fails only if there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    threads.block_on(async {
        let file =
            Kubeconfig::read_from(kubeconfig).with_context(|| format!("cannot read {}", kubeconfig.display()))?;
        let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        let space = Space::make(kube::Client::try_from(config)?, target).await?;
        let mut measured = Measured::default();
        let done = tokio::time::timeout(limits::WHOLE, stages(&space, node.as_ref(), &mut measured)).await;
        if done.is_err() {
            measured.note(format!("not everything was measured within {} s", limits::WHOLE.as_secs()));
        }
        space.remove().await?;
        measured.goals = goals(&measured);
        if node.is_none() {
            measured.goals.retain(|goal| goal.value.is_some());
        }
        Ok(measured)
    })
}

async fn stages(space: &Space, node: Option<&NodePlace>, measured: &mut Measured) {
    let outcome = sequence::run(space, node, measured).await;
    said("one pod after the other", outcome, measured);
    let outcome = burst::run(space, node, (limits::BURST, limits::BURSTS), measured).await;
    said("many pods at once", outcome, measured);
    if node.is_some() {
        let outcome = burst::run(space, node, (limits::FULL_NODE, 1), measured).await;
        said("a node full of pods", outcome, measured);
    }
    if node.is_some() {
        let outcome = traffic::run(space, measured).await;
        said("traffic", outcome, measured);
    } else {
        measured.note("ctr, CPU time and traffic need the node's own namespaces: not measured with --kubeconfig");
    }
}

fn said(stage: &str, outcome: Result<()>, measured: &mut Measured) {
    if let Err(error) = outcome {
        eprintln!("{stage}: {error:#}");
        measured.note(format!("{stage}: not (wholly) measured: {error:#}"));
    }
}

/// The goals, from whatever was measured.
fn goals(measured: &Measured) -> Vec<Goal> {
    let p50 = |name: &str| measured.p50(name);
    let beside = p50(sequence::RUNNING).zip(p50(sequence::CTR)).map(|(pod, ctr)| pod / ctr);
    let own = p50(sequence::OWN_PART).zip(p50(sequence::PREPARE)).map(|(until, prepare)| until - prepare);
    let goal = |name: &str, bound, unit: &str, value| Goal::new(name, bound, unit, value);
    let (ready, cpu) = (burst::ready(limits::BURST), burst::cpu(limits::BURST));
    vec![
        goal("create to Running, of ctr run -d in the same run", Bound::AtMost(1.3), "times", beside),
        goal("create to the first call to containerd", Bound::Below(10.0), "ms", own),
        goal(&ready, Bound::AtMost(2.7), "s", p50(&ready)),
        goal(&cpu, Bound::AtMost(0.18), "CPU-s", p50(&cpu)),
        goal(traffic::RATIO_KEPT, Bound::AtLeast(0.97), "times", p50(traffic::RATIO_KEPT)),
        goal(traffic::RATIO_FRESH, Bound::AtLeast(0.97), "times", p50(traffic::RATIO_FRESH)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_compare_with_what_was_measured_beside() {
        let mut measured = Measured::default();
        measured.row(sequence::RUNNING, "ms", &[130.0]);
        measured.row(sequence::CTR, "ms", &[104.0]);
        measured.row(sequence::OWN_PART, "ms", &[14.0]);
        measured.row(sequence::PREPARE, "ms", &[5.0]);
        measured.row(&burst::ready(limits::BURST), "s", &[2.8]);
        let goals: Vec<(Option<f64>, bool)> = goals(&measured).into_iter().map(|goal| (goal.value, goal.met)).collect();
        assert_eq!(goals[0], (Some(1.25), true));
        assert_eq!(goals[1], (Some(9.0), true));
        assert_eq!(goals[2], (Some(2.8), false));
        assert_eq!(goals[4], (None, false));
    }
}
