//! The Service's address beside its only pod's own, request by request, so that both meet the same machine. Run in the node's
//! network namespace and cgroup: what a program on the node sees.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::space::Space;
use crate::{
    lab::say,
    limits,
    load::{self, Connections, Outcome},
    report::Measured,
    stats::{percentile, sorted},
};

pub(super) const RATIO_KEPT: &str = "Service beside pod, requests per second, kept connections";
pub(super) const RATIO_FRESH: &str = "Service beside pod, requests per second, fresh connections";

/// The sample's port, and the Service's.
const POD_PORT: u16 = 8080;
const SERVICE_PORT: u16 = 80;

pub(super) async fn run(space: &Space, node: Option<&str>, measured: &mut Measured) -> Result<()> {
    say("a Service beside its pod's own address");
    let mut follower = space.follow().await?;
    let name = "traffic";
    space.create_on(name, node).await?;
    follower.moment(name, |moments| moments.ready).await?;
    let pod = SocketAddr::new(space.address(name).await?, POD_PORT);
    first_answer(pod).await.context("the pod does not answer")?;
    let begun = Instant::now();
    let service = SocketAddr::new(space.service(name, SERVICE_PORT, POD_PORT).await?, SERVICE_PORT);
    first_answer(service).await.context("the Service does not answer")?;
    measured.row("Service: create to first answer", "ms", &[begun.elapsed().as_secs_f64() * 1e3]);
    for (connections, words, ratio) in
        [(Connections::Kept, "kept", RATIO_KEPT), (Connections::Fresh, "fresh", RATIO_FRESH)]
    {
        let rounds = tokio::task::spawn_blocking(move || rounds(pod, service, connections)).await?;
        report(words, ratio, &rounds, measured);
    }
    space.delete(name).await.map(drop)
}

/// Both addresses' load of one round.
struct Round {
    pod: Outcome,
    service: Outcome,
}

fn rounds(pod: SocketAddr, service: SocketAddr, connections: Connections) -> Vec<Round> {
    let load = || load::run([pod, service], connections, limits::TRAFFIC_THREADS, limits::TRAFFIC_SLICE);
    // Caches and the processor's clock are warm before the first counted one.
    load();
    let rounds = (0..limits::TRAFFIC_ROUNDS).map(|_| {
        let [pod, service] = load();
        Round { pod, service }
    });
    rounds.collect()
}

fn report(words: &str, ratio: &str, rounds: &[Round], measured: &mut Measured) {
    for (place, of) in [("pod", (|round| &round.pod) as fn(&Round) -> &Outcome), ("Service", |round| &round.service)] {
        let rates: Vec<f64> = rounds.iter().map(|round| of(round).rate()).collect();
        measured.row(&format!("{place}, {words} connections"), "requests/s", &rates);
        let latencies: Vec<f64> = rounds.iter().flat_map(|round| of(round).latencies.iter().copied()).collect();
        measured.row(&format!("{place}, {words} connections, latency"), "us", &latencies);
        let failed: usize = rounds.iter().map(|round| of(round).failed).sum();
        if failed > 0 {
            measured.note(format!("{place}, {words} connections: {failed} requests failed"));
        }
    }
    measured.row(ratio, "times", &ratios(rounds, Outcome::rate));
    let slower = ratios(rounds, |outcome| percentile(&sorted(&outcome.latencies), 50.0).unwrap_or_default());
    measured.row(&format!("Service beside pod, median latency, {words} connections"), "times", &slower);
}

/// The Service's figure as a part of the pod's, round by round.
fn ratios(rounds: &[Round], of: impl Fn(&Outcome) -> f64) -> Vec<f64> {
    let both = rounds.iter().map(|round| (of(&round.service), of(&round.pod)));
    both.filter(|(_, pod)| *pod > 0.0).map(|(service, pod)| service / pod).collect()
}

/// Asks until there is an answer: nothing tells a client when an address begins to work.
async fn first_answer(target: SocketAddr) -> Result<()> {
    let begun = Instant::now();
    loop {
        match tokio::task::spawn_blocking(move || load::once(target)).await? {
            Ok(()) => return Ok(()),
            Err(error) if begun.elapsed() > limits::SERVICE => {
                bail!("{target}, {} s after its making: {error}", limits::SERVICE.as_secs())
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_compared_with_themselves() {
        let outcome = |count, failed| Outcome { latencies: vec![5.0; count], failed, seconds: 2.0 };
        let rounds = [
            Round { pod: outcome(100, 0), service: outcome(99, 1) },
            Round { pod: outcome(10, 0), service: outcome(10, 0) },
            Round { pod: outcome(0, 9), service: outcome(10, 0) },
        ];
        assert_eq!(ratios(&rounds, Outcome::rate), vec![0.99, 1.0]);
        let mut measured = Measured::default();
        report("kept", RATIO_KEPT, &rounds, &mut measured);
        assert_eq!(measured.p50("pod, kept connections"), Some(5.0));
        assert_eq!(measured.p50("Service, kept connections, latency"), Some(5.0));
        assert_eq!(measured.notes.len(), 2, "{:?}", measured.notes);
    }
}
