//! One pod after the other, each followed by the same container from `ctr run -d` on the same containerd, so that
//! both meet the same machine.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result};

use super::{
    NodePlace,
    containerd::{Containerd, Steps},
    follow::Follower,
    space::Space,
};
use crate::{lab::say, limits, report::Measured};

pub(super) const RUNNING: &str = "pod: create to Running";
pub(super) const CTR: &str = "ctr run -d, whole command";
/// Holds containerd's own snapshot call, whose end is the first that containerd tells of.
pub(super) const OWN_PART: &str = "pod: create to snapshot made";
/// The same call by itself.
pub(super) const PREPARE: &str = "containerd: making a snapshot, alone";

/// The measured times of one way to start containers, in milliseconds.
#[derive(Default)]
struct Column {
    snapshot: Vec<f64>,
    record: Vec<f64>,
    task: Vec<f64>,
    start: Vec<f64>,
    rest: Vec<f64>,
}

impl Column {
    fn add(&mut self, begun: SystemTime, steps: &Steps, end: SystemTime) {
        let mut last = begun;
        let mut step = |column: &mut Vec<f64>, at: SystemTime| {
            column.push(between(last, at));
            last = at;
        };
        step(&mut self.snapshot, steps.snapshot);
        step(&mut self.record, steps.record);
        step(&mut self.task, steps.task);
        step(&mut self.start, steps.start);
        step(&mut self.rest, end);
    }
}

pub(super) async fn run(space: &Space, nodes: &[NodePlace], pods: usize, measured: &mut Measured) -> Result<()> {
    // Steps can be told where there is one node alone that a pod can be on.
    let node = if let [node] = nodes { Some(node) } else { None };
    let mut containerd = match node {
        Some(node) => Some(Containerd::connect(node).await?),
        None => None,
    };
    let mut follower = space.follow().await?;
    let (mut accepted, mut bound, mut running, mut ready, mut gone) = (vec![], vec![], vec![], vec![], vec![]);
    let mut ctr = vec![];
    let (mut pod_steps, mut ctr_steps) = (Column::default(), Column::default());
    for number in 0..limits::WARM_UP + pods {
        say(&format!("pod {} of {}", number + 1, limits::WARM_UP + pods));
        let counted = number >= limits::WARM_UP;
        let pod = one(space, &mut follower, containerd.as_mut(), &format!("one-{number}")).await?;
        if counted {
            accepted.push(pod.accepted);
            bound.push(pod.bound);
            running.push(pod.running);
            ready.push(pod.ready);
            gone.push(pod.gone);
            if let Some((steps, begun, end)) = &pod.steps {
                pod_steps.add(*begun, steps, *end);
            }
        }
        let Some(containerd) = containerd.as_mut() else { continue };
        containerd.forget();
        let begun = (SystemTime::now(), Instant::now());
        let id = containerd.ctr_run(space, number).await?;
        let (took, end) = (milliseconds(begun.1.elapsed()), SystemTime::now());
        let steps = containerd.steps().await;
        containerd.ctr_remove(&id).await?;
        if counted {
            ctr.push(took);
            ctr_steps.add(begun.0, &steps?, end);
        }
    }
    measured.row(RUNNING, "ms", &running);
    measured.row("pod: create to Ready", "ms", &ready);
    measured.row("pod: create to the answer of the API server", "ms", &accepted);
    measured.row("pod: create to bound to its node", "ms", &bound);
    measured.row("pod: delete to gone", "ms", &gone);
    let Some(containerd) = &mut containerd else { return Ok(()) };
    measured.row(CTR, "ms", &ctr);
    measured.row(OWN_PART, "ms", &pod_steps.snapshot);
    measured.row("pod: to container recorded", "ms", &pod_steps.record);
    measured.row("pod: to task created (shim, runc create)", "ms", &pod_steps.task);
    measured.row("pod: to task started (runc start)", "ms", &pod_steps.start);
    measured.row("pod: to Running seen by the watch", "ms", &pod_steps.rest);
    measured.row("ctr: begin to snapshot made", "ms", &ctr_steps.snapshot);
    measured.row("ctr: to container recorded", "ms", &ctr_steps.record);
    measured.row("ctr: to task created (shim, runc create)", "ms", &ctr_steps.task);
    measured.row("ctr: to task started (runc start)", "ms", &ctr_steps.start);
    measured.row("ctr: to the command's end", "ms", &ctr_steps.rest);
    measured.row(PREPARE, "ms", &containerd.prepare_alone(pods).await?);
    let dir = node.and_then(|node| node.containerd_config.parent()).context("containerd's directory")?;
    measured.row("disk: write and fsync of 4 KiB, alone", "ms", &fsync_alone(dir, pods)?);
    Ok(())
}

/// What the node's disk takes to make a small write last; every change of an object waits for it at least once.
fn fsync_alone(dir: &Path, times: usize) -> Result<Vec<f64>> {
    let path = dir.join("sluice-bench-fsync");
    let mut file = File::create(&path)?;
    let took = (0..times).map(|_| {
        let begun = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        Ok(milliseconds(begun.elapsed()))
    });
    let took = took.collect::<Result<Vec<f64>>>();
    fs::remove_file(&path)?;
    took
}

/// One pod's life, in milliseconds.
struct Life {
    accepted: f64,
    bound: f64,
    running: f64,
    ready: f64,
    gone: f64,
    /// With the moments of the create and of Running.
    steps: Option<(Steps, SystemTime, SystemTime)>,
}

async fn one(
    space: &Space,
    follower: &mut Follower,
    mut containerd: Option<&mut Containerd>,
    name: &str,
) -> Result<Life> {
    if let Some(containerd) = containerd.as_mut() {
        containerd.forget();
    }
    let wall = SystemTime::now();
    let begun = space.create(name).await?;
    let accepted = begun.elapsed();
    let seen = async {
        let bound = follower.moment(name, |moments| moments.bound).await?;
        let running = follower.moment(name, |moments| moments.running).await?;
        let ready = follower.moment(name, |moments| moments.ready).await?;
        Ok::<_, anyhow::Error>((bound, running, ready))
    };
    let (bound, running, ready) = match seen.await {
        Ok(moments) => moments,
        Err(error) => return Err(error.context(format!("its status: {}", space.describe(name).await))),
    };
    let steps = match containerd {
        Some(containerd) => Some((containerd.steps().await?, wall, wall + (running - begun))),
        None => None,
    };
    let deleted = space.delete(name).await?;
    let gone = follower.moment(name, |moments| moments.gone).await?;
    Ok(Life {
        accepted: milliseconds(accepted),
        bound: milliseconds(bound - begun),
        running: milliseconds(running - begun),
        ready: milliseconds(ready - begun),
        gone: milliseconds(gone - deleted),
        steps,
    })
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Negative if `end` is before `begin`: two clocks' moments may be out of order.
fn between(begin: SystemTime, end: SystemTime) -> f64 {
    match end.duration_since(begin) {
        Ok(time) => milliseconds(time),
        Err(error) => -milliseconds(error.duration()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_add_up_to_the_whole() {
        let begun = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let at = |ms| begun + Duration::from_millis(ms);
        let mut column = Column::default();
        column.add(begun, &Steps { snapshot: at(9), record: at(12), task: at(80), start: at(95) }, at(90));
        assert_eq!((column.snapshot[0], column.record[0], column.task[0]), (9.0, 3.0, 68.0));
        assert_eq!((column.start[0], column.rest[0]), (15.0, -5.0));
    }
}
