//! `memory`: what an idle cluster holds and does: resident memory, CPU time and writes to the disk, first without pods, then
//! with the sample (three pods that are probed every two seconds), then with as many of its pods as the nodes take (110 each).
//! Of a cluster that is somebody else's: the same of the processes that are named, with pods that are not probed.

mod look;

use std::{path::PathBuf, time::Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::{
    cluster::{self, Cluster, Object, Space, Stores, Where},
    document::Label,
    lab::{Nodes, Sizes, named, say},
    limits,
    pods::Target,
    report::{Bound, Goal, Measured, Report},
    trial::Trial,
};
use look::{CPU, Processes, WHOLE};

const SAMPLE: &str = include_str!("../../../xtask/samples/echo.yaml");
/// Its Deployment, and how many pods that has.
const DEPLOYMENT: &str = "echo";
const SAMPLE_PODS: usize = 3;

#[derive(Args)]
pub(crate) struct Options {
    /// One JSON document on standard output instead of the table
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    sizes: Sizes,
    #[command(flatten)]
    time: Time,
    /// Pods at the end [default: as many as the nodes take, 110 each; with --kubeconfig none]
    #[arg(long, value_name = "NUMBER")]
    full: Option<usize>,
    /// Measure this cluster instead of starting one
    #[arg(long, value_name = "FILE", requires = "pid")]
    kubeconfig: Option<PathBuf>,
    /// With --kubeconfig: a process of the cluster on this machine, of the control plane or of a node [repeatable]
    #[arg(long, value_name = "PID", value_delimiter = ',', requires = "kubeconfig")]
    pid: Vec<u32>,
    /// What to call it in reports [default: the server's version]
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    label: Option<String>,
    #[command(flatten)]
    target: Target,
}

#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Time {
    /// How long the idle cluster is looked at each time
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: usize,
    /// How long it is left alone before
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    settle: usize,
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    options.check()?;
    let time = [("seconds", options.time.seconds.to_string()), ("settle", options.time.settle.to_string())];
    let full = options.full.map_or_else(|| format!("{} for each node", limits::FULL_NODE), |full| full.to_string());
    let parameters = time.into_iter().chain([("full", full)]);
    if options.kubeconfig.is_some() {
        return Trial::begin("memory", parameters)?.of(elsewhere(options)?);
    }
    let trial = Trial::begin("memory", parameters.chain([options.sizes.parameter()]))?;
    trial.own(|| options.sizes.each(|nodes| own(nodes, options)))
}

impl Options {
    fn check(&self) -> Result<()> {
        self.sizes.check()?;
        limits::within("--seconds", self.time.seconds, limits::IDLE_MOST)?;
        limits::within("--settle", self.time.settle, limits::IDLE_MOST)?;
        self.full.map_or(Ok(()), |full| limits::within("--full", full, limits::BURST_MOST))
    }
}

fn own(nodes: usize, options: &Options) -> Result<Measured> {
    let cluster = Nodes::start(nodes)?;
    let mut measured = Measured::default();
    let mut look = |place: &str| {
        let pause = async |time| cluster.interrupts().sleep(time);
        cluster::run(look::at(place, &options.time, pause, &Processes::of(cluster.processes()?), &mut measured))
    };
    look("no pods")?;
    say("rolling out the sample");
    cluster.import()?;
    cluster.roll_out(SAMPLE, DEPLOYMENT)?;
    look("sample")?;
    let full = options.full.unwrap_or(limits::FULL_NODE * nodes);
    say(&format!("{}: {full} pods", named(nodes)));
    cluster.scale(DEPLOYMENT, full)?;
    look(&format!("{full} pods"))?;
    if nodes == 1 {
        measured.goals = goals(&measured);
    }
    Ok(measured)
}

fn goals(measured: &Measured) -> Vec<Goal> {
    let goal = |place: &str, what: &str, bound, unit: &str| {
        let name = format!("{place}: {what}");
        Goal::new(&name, bound, unit, measured.p50(&name))
    };
    ["no pods", "sample"]
        .iter()
        .flat_map(|place| [goal(place, WHOLE, Bound::Below(100.0), "MB"), goal(place, CPU, Bound::Below(1.0), "%")])
        .collect()
}

fn elsewhere(options: &Options) -> Result<Vec<(Label, Measured)>> {
    let place = Where {
        kubeconfig: options.kubeconfig.clone(),
        pid: options.pid.clone(),
        label: options.label.clone(),
        ..Where::default()
    };
    // All of them count as daemons: what each is for is somebody else's affair.
    let processes = Processes::alone(options.pid.clone());
    cluster::each(&place, Stores::Embedded, async |cluster, space, measured| {
        let pause = async |time| {
            tokio::time::sleep(time).await;
            Ok(())
        };
        look::at("no pods", &options.time, pause, &processes, measured).await?;
        let sample = [("sample".to_owned(), SAMPLE_PODS)].into_iter();
        for (name, pods) in sample.chain(options.full.map(|full| (format!("{full} pods"), full))) {
            say(&format!("making {pods} pods"));
            deploy(cluster, space, &options.target, pods).await?;
            look::at(&name, &options.time, pause, &processes, measured).await?;
        }
        Ok(())
    })
}

/// Makes a Deployment have so many pods and waits until all of them are ready.
async fn deploy(cluster: &Cluster, space: &Space, target: &Target, pods: usize) -> Result<()> {
    let caller = cluster.caller()?;
    let path = format!("{}/{DEPLOYMENT}", space.path(Object::Deployments));
    let labels = json!({"app": DEPLOYMENT});
    let container = json!({
        "name": "main", "image": target.image, "imagePullPolicy": "IfNotPresent", "args": target.arguments(),
    });
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": DEPLOYMENT},
        "spec": {
            "replicas": pods,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    });
    match caller.find::<Value>(&path).await? {
        None => caller.post(&space.path(Object::Deployments), &deployment).await.map(drop)?,
        Some(_) => caller.merge(&path, &json!({"spec": {"replicas": pods}})).await.map(drop)?,
    }
    let until = Instant::now() + limits::ELSEWHERE;
    loop {
        let status = caller.find::<Value>(&path).await?.context("the Deployment is gone")?["status"].clone();
        if status["readyReplicas"].as_u64() == Some(pods as u64) {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("not all {pods} pods were ready in {} s: {status}", limits::ELSEWHERE.as_secs());
        }
        tokio::time::sleep(limits::GONE_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::parsed;

    #[test]
    fn what_cannot_be_measured_is_refused() {
        let check = |words: &[&str], expected: &str| {
            let said = match parsed::<Options>(words) {
                Ok(options) => options.check().err().map(|error| error.to_string()).unwrap_or_default(),
                Err(error) => error.to_string(),
            };
            assert!(said.contains(expected), "{words:?}: {said}");
        };
        check(&["--seconds", "0"], "--seconds 0: must be from 1 to 3600");
        check(&["--full", "5000"], "--full 5000: must be from 1 to 1100");
        check(&["--nodes", "1,11"], "--nodes 11: must be from 1 to 10");
        check(&["--kubeconfig", "x"], "--pid <PID>");
        check(&["--image", "x"], "--kubeconfig <FILE>");
    }
}
