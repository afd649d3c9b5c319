//! What pods of any cluster see: requests to Services beside those to the pod behind them, in turns, from a pod of the same node
//! and from one of another node, with few and with many Services there. The client is the sample image's, in a pod of its
//! own; its log says what came of it.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    cluster::{self, Cluster, Object, Space, Stores, Where},
    lab::say,
    limits,
    pods::Target,
    report::{Measured, Report},
    trial::Trial,
};

const SERVER: &str = "server";
const POD_PORT: u16 = 8080;
const PORT: u16 = 80;
/// Services that a client asks in turns, out of all that are there.
const ASKED: usize = 50;

#[derive(Args)]
pub(crate) struct Elsewhere {
    /// Measure what pods of this cluster see
    #[arg(long, value_name = "FILE")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// What to call it in reports [default: the server's version]
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    label: Option<String>,
    /// With --kubeconfig: numbers of Services
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "10,1000", requires = "kubeconfig")]
    services: Vec<usize>,
    /// With --kubeconfig: how often the ways take turns, each for 0.2 s
    #[arg(long, value_name = "NUMBER", default_value_t = 20, requires = "kubeconfig")]
    rounds: usize,
    #[command(flatten)]
    target: Target,
}

/// Where the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Same,
    Other,
}

impl Side {
    fn name(self) -> &'static str {
        if self == Self::Same { "the same node" } else { "another node" }
    }
}

pub(super) fn run(options: &Elsewhere) -> Result<Report> {
    for services in &options.services {
        limits::within("--services", *services, limits::LOAD_SERVICES)?;
    }
    limits::within("--rounds", options.rounds, limits::REPEATS)?;
    let services = options.services.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let trial = Trial::begin("lb", [("services", services), ("rounds", options.rounds.to_string())])?;
    let place = Where { kubeconfig: options.kubeconfig.clone(), label: options.label.clone(), ..Where::default() };
    trial.of(cluster::each(&place, Stores::Embedded, async |cluster, space, measured| {
        measure(cluster, space, options, measured).await
    })?)
}

async fn measure(cluster: &Cluster, space: &Space, options: &Elsewhere, measured: &mut Measured) -> Result<()> {
    say("starting the server");
    let pod = pod(&options.target, SERVER, &options.target.arguments(), None);
    space.caller().post(&space.path(Object::Pods), &pod).await?;
    let server = until(space, SERVER, limits::POD, |pod| {
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    })
    .await?;
    let direct = server["status"]["podIP"].as_str().context("the server has no address")?.to_owned();
    let nodes: Value = space.caller().read("/api/v1/nodes").await?;
    let several = nodes["items"].as_array().is_some_and(|nodes| nodes.len() > 1);
    if !several {
        measured.note("the cluster has one node: nothing is measured from one to another");
    }
    let mut addresses = Vec::new();
    let mut counts = options.services.clone();
    counts.sort_unstable();
    for count in counts {
        say(&format!("{count} Services: making them"));
        addresses.extend(services(cluster, space, addresses.len()..count).await?);
        let step = addresses.len().div_ceil(ASKED);
        let asked: Vec<String> = addresses.iter().step_by(step).map(|address| at(address, PORT)).collect();
        for side in [Side::Same, Side::Other].into_iter().filter(|side| several || *side == Side::Same) {
            say(&format!("{count} Services, client on {}", side.name()));
            let name = format!("client-{count}-{}", if side == Side::Same { "same" } else { "other" });
            let rounds = call(space, options, &name, side, &at(&direct, POD_PORT), &asked).await?;
            rows(&rounds, side, count, measured);
        }
    }
    Ok(())
}

/// Address and port as they are written together.
fn at(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// Makes Services of these numbers in front of the server: their addresses.
async fn services(cluster: &Cluster, space: &Space, numbers: std::ops::Range<usize>) -> Result<Vec<String>> {
    let caller = cluster.caller()?;
    let make = async |number: usize| {
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": format!("service-{number}")},
            "spec": {"selector": {"app": SERVER}, "ports": [{"port": PORT, "targetPort": POD_PORT}]},
        });
        let made: Value = serde_json::from_slice(&caller.post(&space.path(Object::Services), &service).await?)?;
        let address = made["spec"]["clusterIP"].as_str().context("a Service has no address")?;
        anyhow::Ok(address.to_owned())
    };
    stream::iter(numbers.map(make)).buffered(limits::LOAD_WRITERS).try_collect().await
}

fn pod(target: &Target, name: &str, arguments: &[String], side: Option<Side>) -> Value {
    let near = json!({
        "requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {"app": SERVER}}, "topologyKey": "kubernetes.io/hostname"},
        ],
    });
    let affinity = side.map(|side| json!({if side == Side::Same { "podAffinity" } else { "podAntiAffinity" }: near}));
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "affinity": affinity,
            "containers": [
                {"name": "main", "image": target.image, "imagePullPolicy": "IfNotPresent", "args": arguments},
            ],
        },
    })
}

/// Waits until a pod is as it should be; the pod then.
async fn until(space: &Space, name: &str, time: std::time::Duration, done: impl Fn(&Value) -> bool) -> Result<Value> {
    let begun = std::time::Instant::now();
    let path = format!("{}/{name}", space.path(Object::Pods));
    loop {
        let pod: Value = space.caller().read(&path).await?;
        if done(&pod) {
            return Ok(pod);
        }
        if pod["status"]["phase"] == "Failed" || begun.elapsed() > time {
            let log = space.caller().get(&format!("{path}/log")).await.unwrap_or_default();
            bail!("the pod {name} came to no good: {}\n{}", pod["status"], String::from_utf8_lossy(&log));
        }
        tokio::time::sleep(limits::GONE_PAUSE).await;
    }
}

/// One turn of both ways, as the client writes it.
#[derive(Clone, Debug, Deserialize, PartialEq)]
struct Round {
    kept: bool,
    /// Answers and seconds of the way straight to the pod, and to the Services.
    direct: (u64, f64),
    service: (u64, f64),
    failed: u64,
}

/// Runs a client: what it says.
async fn call(
    space: &Space,
    options: &Elsewhere,
    name: &str,
    side: Side,
    direct: &str,
    services: &[String],
) -> Result<Vec<Round>> {
    let rounds = options.rounds.to_string();
    let words = ["load", "--rounds", &rounds, "--direct", direct, "--services", &services.join(",")];
    let pod = pod(&options.target, name, &words.map(str::to_owned), Some(side));
    let path = space.path(Object::Pods);
    space.caller().post(&path, &pod).await?;
    let time = limits::POD + limits::SERVICE + limits::LB_TURN * 4 * u32::try_from(options.rounds)?;
    until(space, name, time, |pod| pod["status"]["phase"] == "Succeeded").await?;
    let log = space.caller().get(&format!("{path}/{name}/log")).await?;
    space.caller().delete(&format!("{path}/{name}?gracePeriodSeconds=0")).await?;
    said(&String::from_utf8_lossy(&log))
}

fn said(log: &str) -> Result<Vec<Round>> {
    log.lines().map(|line| serde_json::from_str(line).with_context(|| format!("the client said {line:?}"))).collect()
}

fn rows(rounds: &[Round], side: Side, count: usize, measured: &mut Measured) {
    #[expect(clippy::cast_precision_loss)]
    let rate = |(done, seconds): (u64, f64)| done as f64 / seconds.max(f64::MIN_POSITIVE);
    for (kept, words) in [(true, "kept connections"), (false, "short connections")] {
        let of = || rounds.iter().filter(|round| round.kept == kept);
        let mut row = |what: &str, unit: &str, values: Vec<f64>| {
            let name = format!("{}, {words}, {count} services: {what}", side.name());
            #[expect(clippy::cast_precision_loss)]
            let row = crate::report::Row::of(&name, unit, &values)
                .map(|row| row.at(&format!("{}, {words}: {what}", side.name()), "services", count as f64));
            measured.push(row);
        };
        row("pod directly", "per s", of().map(|round| rate(round.direct)).collect());
        row("Service", "per s", of().map(|round| rate(round.service)).collect());
        row("Service beside pod", "", of().map(|round| rate(round.service) / rate(round.direct)).collect());
        let failed: u64 = of().map(|round| round.failed).sum();
        if failed > 0 {
            measured.note(format!("{}, {words}, {count} services: {failed} requests failed", side.name()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_log_is_read_round_by_round() {
        let line = |kept, direct, service| {
            format!("{{\"kept\":{kept},\"direct\":[{direct},0.2],\"service\":[{service},0.2],\"failed\":0}}\n")
        };
        let rounds = said(&[line(true, 100, 99), line(false, 50, 40), line(false, 50, 45)].concat()).unwrap();
        let mut measured = Measured::default();
        rows(&rounds, Side::Other, 10, &mut measured);
        let p50 = |what: &str| measured.p50(&format!("another node, {what}, 10 services: Service beside pod"));
        assert_eq!((p50("kept connections"), p50("short connections")), (Some(0.99), Some(0.8)));
        assert!(said("Killed\n").unwrap_err().to_string().contains("Killed"));
    }

    #[test]
    fn addresses_of_both_families_take_ports() {
        assert_eq!((at("10.0.0.1", 80), at("fd00::1", 80)), ("10.0.0.1:80".into(), "[fd00::1]:80".into()));
    }
}
