//! Carries the loads out.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures::future::try_join_all;
use serde_json::json;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Load, Options,
    follow::Follower,
    nodes::{self, Nodes},
    pods::{self, Shape},
};
use crate::{
    cluster::{Caller, Cluster, Object, Space},
    lab::say,
    limits,
    report::{Measured, Row},
};

pub(super) const RATE: &str = "pods bound";
pub(super) const WAIT: &str = "create to bound";
pub(super) const ALL_BOUND: &str = "until all bound";
const CPU: &str = "server CPU, each pod";

/// What a load's quantity is called.
pub(super) fn row_name(load: Load, nodes: usize, what: &str) -> String {
    format!("{}, {nodes} nodes: {what}", load.name())
}

/// Measures one load as often as is asked for.
pub(super) async fn run(
    load: Load,
    options: &Options,
    cluster: &Cluster,
    space: &Arc<Space>,
    nodes: &Nodes,
    measured: &mut Measured,
) -> Result<()> {
    let callers: Vec<Caller> = (0..limits::LOAD_WRITERS).map(|_| cluster.caller()).collect::<Result<_>>()?;
    let mut figures = Figures::default();
    for repeat in 1..=options.repeats {
        say(&format!("{} on {} nodes, {repeat} of {}", load.name(), nodes.count, options.repeats));
        let mut follower = Follower::start(space).await?;
        let before = cluster.meter.read()?;
        let pods = match load.crowd(options, nodes.count) {
            Some((shape, pods)) => {
                let churn = (load == Load::Churn).then(|| {
                    let (caller, space, count) = (callers[0].clone(), Arc::clone(space), nodes.count);
                    Churn::begin(move |turn| change(caller.clone(), Arc::clone(&space), count, turn))
                });
                let seconds = crowd(&callers, space, shape, pods, &mut follower).await?;
                if let Some(churn) = churn {
                    churn.end().await?;
                }
                #[expect(clippy::cast_precision_loss)]
                figures.rates.push(pods as f64 / seconds);
                pods
            }
            None if load == Load::Steady => {
                figures.waits.push(steady(&callers, space, options, &mut follower).await?);
                options.rate * options.seconds
            }
            None => {
                figures.times.push(deployment(space, options.replicas, &mut follower).await?);
                options.replicas
            }
        };
        figures.costs.extend(cluster.meter.read()?.per(before, pods).server);
        drop(follower);
        space.empty(Object::Services).await?;
        space.empty(Object::Deployments).await?;
        space.empty(Object::Pods).await?;
    }
    figures.add(load, nodes.count, measured);
    Ok(())
}

/// Of all repeats; each load fills some of them.
#[derive(Default)]
struct Figures {
    rates: Vec<f64>,
    waits: Vec<Vec<f64>>,
    times: Vec<f64>,
    costs: Vec<f64>,
}

impl Figures {
    fn add(&self, load: Load, nodes: usize, measured: &mut Measured) {
        let mut add = |what: &str, row: Option<Row>| {
            #[expect(clippy::cast_precision_loss)]
            measured.push(row.map(|row| row.at(&format!("{}: {what}", load.name()), "nodes", nodes as f64)));
        };
        let name = |what: &str| row_name(load, nodes, what);
        add(RATE, Row::of(&name(RATE), "per s", &self.rates));
        add(WAIT, Row::distribution(&name(WAIT), "ms", &self.waits));
        add(ALL_BOUND, Row::of(&name(ALL_BOUND), "s", &self.times));
        add(CPU, Row::of(&name(CPU), "ms", &self.costs));
    }
}

/// Creates the pods as fast as they are taken; the seconds until the last is bound.
async fn crowd(
    callers: &[Caller],
    space: &Arc<Space>,
    shape: Shape,
    pods: usize,
    follower: &mut Follower,
) -> Result<f64> {
    let next = Arc::new(AtomicUsize::new(0));
    let begun = Instant::now();
    let writers = callers.iter().map(|caller| {
        let (caller, space, next) = (caller.clone(), Arc::clone(space), Arc::clone(&next));
        let work = async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= pods {
                    return anyhow::Ok(());
                }
                create(&caller, &space, shape, number).await?;
            }
        };
        let task = AbortOnDropHandle::new(tokio::spawn(work));
        async move { task.await? }
    });
    let (_, bound) = tokio::try_join!(try_join_all(writers), follower.bound(pods))?;
    Ok(last(begun, bound))
}

/// Creates pods at an even pace; how long each waited from its request to the event of its binding, in milliseconds.
async fn steady(
    callers: &[Caller],
    space: &Arc<Space>,
    options: &Options,
    follower: &mut Follower,
) -> Result<Vec<f64>> {
    let pods = options.rate * options.seconds;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / u32::try_from(options.rate)?);
    let pace = async {
        let mut requests = Vec::with_capacity(pods);
        for number in 0..pods {
            ticks.tick().await;
            let (caller, space) = (callers[number % callers.len()].clone(), Arc::clone(space));
            requests.push(AbortOnDropHandle::new(tokio::spawn(async move {
                let begun = Instant::now();
                create(&caller, &space, Shape::Plain, number).await.map(|()| (name(number), begun))
            })));
        }
        let mut begun = HashMap::with_capacity(pods);
        for request in requests {
            let (name, at) = request.await??;
            begun.insert(name, at);
        }
        anyhow::Ok(begun)
    };
    let (begun, bound) = tokio::try_join!(pace, follower.bound(pods))?;
    let wait = |(name, at): (&String, &Instant)| begun.get(name).map(|from| (*at - *from).as_secs_f64() * 1e3);
    Ok(bound.iter().filter_map(wait).collect())
}

/// Creates one Deployment; the seconds until all its pods are bound.
async fn deployment(space: &Space, replicas: usize, follower: &mut Follower) -> Result<f64> {
    let begun = Instant::now();
    space.caller().post(&space.path(Object::Deployments), &pods::deployment(space, replicas)).await?;
    Ok(last(begun, follower.bound(replicas).await?))
}

fn last(begun: Instant, bound: &HashMap<String, Instant>) -> f64 {
    bound.values().max().map_or(0.0, |last| (*last - begun).as_secs_f64())
}

async fn create(caller: &Caller, space: &Space, shape: Shape, number: usize) -> Result<()> {
    let pod = pods::pod(space, shape, &name(number));
    caller.post(&space.path(Object::Pods), &pod).await.map(drop).context("cannot create a pod")
}

fn name(number: usize) -> String {
    format!("bench-{number}")
}

/// A Service and a pod that fits nowhere come, those before go, and a node's label changes, again and again.
struct Churn {
    task: AbortOnDropHandle<()>,
    stop: CancellationToken,
}

impl Churn {
    /// Each turn is told its number.
    fn begin<W: Future<Output = Result<()>> + Send>(mut turn: impl FnMut(usize) -> W + Send + 'static) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut ticks = tokio::time::interval(limits::CHURN);
            for number in 0.. {
                if stopped.run_until_cancelled(ticks.tick()).await.is_none() {
                    return;
                }
                if let Err(error) = turn(number).await {
                    eprintln!("churn: {error:#}");
                }
            }
        }));
        Self { task, stop }
    }

    /// Returns when its last request has been answered: what is given up under way may still come to be.
    async fn end(self) -> Result<()> {
        self.stop.cancel();
        Ok(self.task.await?)
    }
}

async fn change(caller: Caller, space: Arc<Space>, nodes: usize, turn: usize) -> Result<()> {
    let (pods_at, services) = (space.path(Object::Pods), space.path(Object::Services));
    let name = |turn: usize| format!("churn-{turn}");
    caller.post(&services, &pods::service(&name(turn))).await?;
    caller.post(&pods_at, &pods::giant(&space, &name(turn))).await?;
    let label = json!({"metadata": {"labels": {"turn": turn.to_string()}}});
    caller.merge(&format!("/api/v1/nodes/{}", nodes::name(&space, turn % nodes)), &label).await?;
    if let Some(before) = turn.checked_sub(1) {
        caller.delete(&format!("{services}/{}", name(before))).await?;
        caller.delete(&format!("{pods_at}/{}", name(before))).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn churn_ends_with_its_last_request() {
        let (under_way, mut begun) = tokio::sync::mpsc::channel(1);
        let (answer, answered) = tokio::sync::watch::channel(false);
        let churn = Churn::begin(move |_| {
            let (under_way, mut answered) = (under_way.clone(), answered.clone());
            async move {
                under_way.send(()).await?;
                answered.wait_for(|answered| *answered).await?;
                Ok(())
            }
        });
        begun.recv().await.unwrap();
        let mut end = std::pin::pin!(churn.end());
        for _ in 0..3 {
            assert!(futures::poll!(&mut end).is_pending(), "a request is under way");
            tokio::task::yield_now().await;
        }
        answer.send(true).unwrap();
        end.await.unwrap();
        assert!(begun.try_recv().is_err(), "another turn began");
    }

    #[test]
    fn figures_stand_on_curves_by_nodes() {
        let mut measured = Measured::default();
        let figures = Figures { rates: vec![100.0, 120.0], costs: vec![1.5], ..Figures::default() };
        figures.add(Load::Basic, 500, &mut measured);
        let names: Vec<&str> = measured.results.iter().map(|row| &*row.name).collect();
        assert_eq!(names, ["basic, 500 nodes: pods bound", "basic, 500 nodes: server CPU, each pod"]);
        let point = measured.results[0].point.as_ref().unwrap();
        assert_eq!((&*point.of, &*point.by, point.at), ("basic: pods bound", "nodes", 500.0));
    }
}
