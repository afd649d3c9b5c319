//! `sched`: how fast pods get their nodes. The nodes are objects with status and leases and nothing behind them, so pods are
//! bound and never run. Loads as upstream's own bench has them, a steady stream, and one large Deployment.
//!
//! Pods select the bench's nodes and these keep other pods away, so that the loads do no harm on a cluster that is in use.

mod follow;
mod loads;
mod nodes;
mod pods;

use std::sync::Arc;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::{
    cluster::{self, Cluster, Space, Stores},
    limits,
    report::{Bound, Goal, Measured, Report},
    trial::Trial,
};
use nodes::Nodes;
use pods::Shape;

#[derive(Args)]
pub(crate) struct Options {
    /// One JSON document on standard output instead of the table
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) cluster: cluster::Where,
    /// Measure these loads alone
    #[arg(long, value_name = "LOAD", value_delimiter = ',')]
    only: Vec<Load>,
    /// Numbers of nodes
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "500,5000")]
    nodes: Vec<usize>,
    /// Pods of the load `basic`; the others have at most 2,000 of them [default: two for each node]
    #[arg(long, value_name = "NUMBER")]
    pods: Option<usize>,
    /// Pods created in a second by `steady`
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    rate: usize,
    /// How long it creates them in each repeat
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    seconds: usize,
    /// Pods of `deployment`
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    replicas: usize,
    /// Repeats of each load
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    repeats: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Load {
    /// Pods that fit anywhere
    Basic,
    /// Pods that want to be in a zone with others of their kind
    Affinity,
    /// Pods of which a node may have one
    AntiAffinity,
    /// Pods that are spread over zones
    Spread,
    /// Pods that fit anywhere while Services, nodes' labels and pods that fit nowhere come and go
    Churn,
    /// So many pods each second: how long one waits for its node
    Steady,
    /// One Deployment, until all its pods are bound
    Deployment,
}

impl Load {
    const ALL: [Self; 7] =
        [Self::Basic, Self::Affinity, Self::AntiAffinity, Self::Spread, Self::Churn, Self::Steady, Self::Deployment];

    /// What its pods are like, and how many there are: for loads that are measured in pods per second.
    fn crowd(self, options: &Options, nodes: usize) -> Option<(Shape, usize)> {
        let basic = options.pods.unwrap_or(2 * nodes);
        let few = basic.min(limits::SHAPED_PODS);
        match self {
            Self::Basic => Some((Shape::Plain, basic)),
            Self::Affinity => Some((Shape::Affinity, few)),
            Self::AntiAffinity => Some((Shape::AntiAffinity, few.min((nodes / 2).max(1)))),
            Self::Spread => Some((Shape::Spread, few)),
            Self::Churn => Some((Shape::Plain, few)),
            Self::Steady | Self::Deployment => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Basic => "basic",
            Self::Affinity => "affinity",
            Self::AntiAffinity => "anti-affinity",
            Self::Spread => "spread",
            Self::Churn => "churn",
            Self::Steady => "steady",
            Self::Deployment => "deployment",
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    options.check()?;
    let trial = Trial::begin("sched", options.parameters())?;
    let found = cluster::each(&options.cluster, Stores::Embedded, async |cluster, space, measured| {
        let outcome = sizes(options, cluster, space, measured).await;
        measured.goals = goals(options, measured);
        outcome
    })?;
    trial.of(found)
}

async fn sizes(options: &Options, cluster: &Cluster, space: &Arc<Space>, measured: &mut Measured) -> Result<()> {
    for count in &options.nodes {
        let nodes = Nodes::make(cluster, space, *count).await?;
        for load in Load::ALL.into_iter().filter(|load| options.wants(*load)) {
            loads::run(load, options, cluster, space, &nodes, measured).await?;
        }
        nodes.remove(space).await?;
    }
    Ok(())
}

impl Options {
    fn wants(&self, load: Load) -> bool {
        self.only.is_empty() || self.only.contains(&load)
    }

    /// Refuses what cannot be measured: also pods that the nodes have no room for, which would wait for ever.
    fn check(&self) -> Result<()> {
        use limits::within;
        for nodes in &self.nodes {
            within("--nodes", *nodes, limits::LOAD_NODES)?;
        }
        within("--rate", self.rate, limits::STEADY_RATE)?;
        within("--seconds", self.seconds, limits::STEADY_SECONDS)?;
        within("--repeats", self.repeats, limits::LOAD_REPEATS)?;
        for nodes in &self.nodes {
            let room = nodes * pods::EACH;
            within(&format!("{nodes} nodes have room for {room} pods: --pods"), self.pods.unwrap_or(1), room)?;
            if self.wants(Load::Deployment) {
                within(&format!("{nodes} nodes have room for {room} pods: --replicas"), self.replicas, room)?;
            }
            if self.wants(Load::Steady) {
                within(
                    &format!("{nodes} nodes have room for {room} pods: --rate times --seconds"),
                    self.rate * self.seconds,
                    room,
                )?;
            }
        }
        Ok(())
    }

    fn parameters(&self) -> [(&'static str, String); 6] {
        let numbers = |all: &[usize]| all.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        [
            ("nodes", numbers(&self.nodes)),
            ("pods", self.pods.map_or_else(|| "2 for each node".to_owned(), |pods| pods.to_string())),
            ("rate", self.rate.to_string()),
            ("seconds", self.seconds.to_string()),
            ("replicas", self.replicas.to_string()),
            ("repeats", self.repeats.to_string()),
        ]
    }
}

/// What upstream 1.36 came to on a machine of this kind, and what is asked for beside it: 155 pods in a second at 5,000
/// nodes and 10,000 pods, 51 s for a Deployment of 1,000 (18 to 20 with its clients' limits raised).
fn goals(options: &Options, measured: &Measured) -> Vec<Goal> {
    let mut goals = Vec::new();
    let mut goal = |name: String, bound, unit: &str, value| goals.push(Goal::new(&name, bound, unit, value));
    for nodes in &options.nodes {
        let row = |load: Load, what: &str| loads::row_name(load, *nodes, what);
        if options.wants(Load::Basic) && *nodes == 5000 && options.pods.is_none_or(|pods| pods == 10_000) {
            let name = row(Load::Basic, loads::RATE);
            let value = measured.p50(&name);
            goal(name, Bound::AtLeast(1550.0), "per s", value);
        }
        if options.wants(Load::Steady) && options.rate == 100 {
            let name = row(Load::Steady, loads::WAIT);
            let value = measured.results.iter().find(|row| row.name == name).map(|row| row.p99);
            goal(format!("{name}, p99"), Bound::Below(20.0), "ms", value);
        }
        if options.wants(Load::Deployment) && options.replicas == 1000 {
            let name = row(Load::Deployment, loads::ALL_BOUND);
            let value = measured.p50(&name);
            goal(name, Bound::Below(2.0), "s", value);
        }
    }
    goals
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::parsed;

    fn options(line: &str) -> Options {
        parsed(&line.split_whitespace().collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        let check = |line: &str, expected: &str| {
            let said = options(line).check().err().map(|error| error.to_string()).unwrap_or_default();
            assert_eq!(said, expected, "{line}");
        };
        check("", "");
        check("--nodes 0", "--nodes 0: must be from 1 to 20000");
        check("--repeats 0", "--repeats 0: must be from 1 to 100");
        check("--rate 5000", "--rate 5000: must be from 1 to 1000");
        check(
            "--nodes 10 --only basic --pods 500",
            "10 nodes have room for 400 pods: --pods 500: must be from 1 to 400",
        );
        check(
            "--nodes 10 --only deployment",
            "10 nodes have room for 400 pods: --replicas 1000: must be from 1 to 400",
        );
        check(
            "--nodes 10 --only steady",
            "10 nodes have room for 400 pods: --rate times --seconds 1000: must be from 1 to 400",
        );
        check("--nodes 10 --only basic", "");
    }

    #[test]
    fn a_node_has_one_pod_that_repels_its_kind() {
        let crowd = |load: Load, nodes| load.crowd(&options(""), nodes);
        assert_eq!(crowd(Load::Basic, 5000), Some((Shape::Plain, 10_000)));
        assert_eq!(crowd(Load::Spread, 5000), Some((Shape::Spread, 2000)));
        assert_eq!(crowd(Load::AntiAffinity, 500), Some((Shape::AntiAffinity, 250)));
        assert_eq!(crowd(Load::AntiAffinity, 1), Some((Shape::AntiAffinity, 1)));
        assert_eq!(crowd(Load::Steady, 500), None);
    }

    #[test]
    fn goals_are_for_the_loads_that_upstream_was_measured_with() {
        let named = |line: &str| -> Vec<String> {
            goals(&options(line), &Measured::default()).into_iter().map(|goal| goal.name).collect()
        };
        assert_eq!(
            named("--nodes 5000"),
            [
                "basic, 5000 nodes: pods bound",
                "steady, 5000 nodes: create to bound, p99",
                "deployment, 5000 nodes: until all bound"
            ]
        );
        assert_eq!(named("--nodes 500 --rate 50"), ["deployment, 500 nodes: until all bound"]);
    }
}
