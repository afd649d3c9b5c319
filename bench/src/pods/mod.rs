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

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::{
    cluster::{self, Stores, Where},
    lab::{Nodes, Sizes},
    limits,
    report::{Bound, Goal, Measured, Report},
    trial::Trial,
};
use space::Space;

/// The sample image, present on every node of our own clusters.
pub(crate) const IMAGE: &str = "sluice.local/echo:latest";
/// The sample's server, ending at once on SIGTERM.
pub(crate) const ARGUMENTS: &str = "serve --drain 0";

#[derive(Args)]
pub(crate) struct Options {
    /// One JSON document on standard output instead of the table
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    sizes: Sizes,
    #[command(flatten)]
    load: Load,
    /// Measure this cluster instead of starting one
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// What to call it in reports [default: the server's version]
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    label: Option<String>,
    #[command(flatten)]
    target: Target,
}

/// How many pods.
#[derive(Args, Clone, Debug)]
struct Load {
    /// Pods created one after the other
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    sequence: usize,
    /// Times that many pods are created at once
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    bursts: usize,
    /// Pods created at once at the end, once [default: 110 for each node; with --kubeconfig none]
    #[arg(long, value_name = "NUMBER")]
    full: Option<usize>,
}

/// What the pods run.
#[derive(Args, Clone, Debug)]
pub(crate) struct Target {
    /// The image to run; with --kubeconfig, nodes must have it or be able to pull it
    #[arg(long, value_name = "NAME", default_value = IMAGE, requires = "kubeconfig")]
    pub(crate) image: String,
    /// The container's arguments: it must run until SIGTERM and then exit at once
    #[arg(long, value_name = "WORDS", default_value = ARGUMENTS, allow_hyphen_values = true, requires = "kubeconfig")]
    arguments: String,
}

impl Target {
    pub(crate) fn arguments(&self) -> Vec<String> {
        self.arguments.split_whitespace().map(str::to_owned).collect()
    }
}

/// A node of our own cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NodePlace {
    pub(crate) name: String,
    /// Socket of the node's containerd.
    pub(crate) containerd: PathBuf,
    /// The configuration file on its command line.
    pub(crate) containerd_config: PathBuf,
    /// Cgroup for containers that are not Sluice's.
    pub(crate) cgroup: String,
    /// Pid of the Sluice daemon.
    pub(crate) daemon: u32,
}

/// The part that runs in the network namespace of our own cluster's first node.
#[derive(Args)]
pub(crate) struct Inside {
    #[arg(long)]
    kubeconfig: PathBuf,
    #[command(flatten)]
    load: Load,
    #[command(flatten)]
    target: Target,
    /// Each node, as JSON
    #[arg(long, value_parser = |text: &str| serde_json::from_str::<NodePlace>(text))]
    place: Vec<NodePlace>,
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    options.sizes.check()?;
    options.load.check()?;
    let Some(kubeconfig) = &options.kubeconfig else {
        let trial = Trial::begin("pods", options.load.parameters().into_iter().chain([options.sizes.parameter()]))?;
        return trial.own(|| options.sizes.each(|nodes| own(nodes, &options.load)));
    };
    let trial = Trial::begin("pods", options.load.parameters())?;
    let place = Where { kubeconfig: Some(kubeconfig.clone()), label: options.label.clone(), ..Where::default() };
    trial.of(measure(&place, &options.target, &options.load, &[])?)
}

fn own(nodes: usize, load: &Load) -> Result<Measured> {
    let cluster = Nodes::start(nodes)?;
    cluster.import()?;
    cluster.measure("pods", &load.words(nodes))
}

/// What [`run`] measures of our own cluster, inside of it.
pub(crate) fn inside(options: &Inside) -> Result<Measured> {
    let place = Where { kubeconfig: Some(options.kubeconfig.clone()), ..Where::default() };
    let found = measure(&place, &options.target, &options.load, &options.place)?;
    Ok(found.into_iter().fold(Measured::default(), |mut all, (_, measured)| {
        all.extend(measured);
        all
    }))
}

/// Measures everything that can be measured; what fails is said in a note.
fn measure(
    place: &Where,
    target: &Target,
    load: &Load,
    nodes: &[NodePlace],
) -> Result<Vec<(crate::document::Label, Measured)>> {
    cluster::each(place, Stores::Embedded, async |cluster, space, measured| {
        let space = Space::of(cluster.client()?, &space.name, target.clone());
        stages(&space, nodes, load, measured).await;
        measured.goals = goals(measured);
        // Several nodes share one machine, and what is somebody else's cannot be looked into.
        if nodes.len() != 1 {
            measured.goals.retain(|goal| goal.value.is_some());
        }
        Ok(())
    })
}

impl Load {
    fn check(&self) -> Result<()> {
        limits::within("--sequence", self.sequence, limits::REPEATS)?;
        limits::within("--bursts", self.bursts, limits::REPEATS)?;
        self.full.map_or(Ok(()), |full| limits::within("--full", full, limits::BURST_MOST))
    }

    fn parameters(&self) -> [(&'static str, String); 3] {
        [
            ("sequence", self.sequence.to_string()),
            ("bursts", format!("{} of {}", self.bursts, limits::BURST)),
            ("full", self.full.map_or_else(|| format!("{} for each node", limits::FULL_NODE), |full| full.to_string())),
        ]
    }

    /// The command line of the part inside, for a cluster of so many nodes.
    fn words(&self, nodes: usize) -> Vec<String> {
        let full = self.full.unwrap_or(limits::FULL_NODE * nodes);
        let words = [("--sequence", self.sequence), ("--bursts", self.bursts), ("--full", full)];
        words.iter().flat_map(|(flag, value)| [(*flag).to_owned(), value.to_string()]).collect()
    }
}

async fn stages(space: &Space, nodes: &[NodePlace], load: &Load, measured: &mut Measured) {
    let outcome = sequence::run(space, nodes, load.sequence, measured).await;
    said("one pod after the other", outcome, measured);
    let outcome = burst::run(space, nodes, (limits::BURST, load.bursts), measured).await;
    said("many pods at once", outcome, measured);
    if let Some(full) = load.full {
        let outcome = burst::run(space, nodes, (full, 1), measured).await;
        said("a node full of pods", outcome, measured);
    }
    if nodes.is_empty() {
        measured.note("ctr, CPU time and traffic need the node's own namespaces: not measured with --kubeconfig");
    } else {
        // From one node to another, where there is another.
        let other = nodes.get(1).map(|node| node.name.as_str());
        let outcome = traffic::run(space, other, measured).await;
        said("traffic", outcome, measured);
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
