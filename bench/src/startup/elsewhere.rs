//! The start of a cluster that is somebody else's. It is ready when its API says so and every node is Ready with a heartbeat
//! that is younger than the start: what a node said before it was ended counts for nothing.
//!
//! The cluster runs before and afterwards, also when a signal ends the bench.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::{
    cluster::{self, Caller, Signals},
    document::Label,
    lab::say,
    limits,
    report::Measured,
};

const READY: &str = "stopped to ready: API and all nodes";
const SERVES: &str = "stopped to ready: API alone";

/// Which cluster, and the shell commands that start and end it.
pub(super) struct Place<'a> {
    pub(super) kubeconfig: &'a Path,
    pub(super) start: &'a str,
    pub(super) stop: &'a str,
}

pub(super) fn run(place: &Place, label: Option<&str>, repeats: usize) -> Result<(Label, Measured)> {
    cluster::run(async {
        let mut signals = Signals::catch()?;
        let config = cluster::config(place.kubeconfig).await?;
        let label = cluster::label(&Caller::new(&config)?, label).await?;
        let mut switch = Switch { place, runs: true, child: None };
        let mut measured = Measured::default();
        let outcome = signals.end(rounds(&mut switch, &config, repeats, &mut measured)).await;
        let left = if switch.runs { Ok(()) } else { switch.start() };
        outcome.and(left.context("the cluster is not started again")).map(|()| (label, measured))
    })
}

async fn rounds(switch: &mut Switch<'_>, config: &kube::Config, repeats: usize, measured: &mut Measured) -> Result<()> {
    let (mut serves, mut ready) = (Vec::new(), Vec::new());
    for round in 1..=repeats {
        say(&format!("start {round} of {repeats}"));
        switch.stop()?;
        let (begun, at) = (Instant::now(), Timestamp::now());
        switch.start()?;
        // A client of its own: an old one may hold connections to what has ended.
        let caller = Caller::new(config)?;
        until("the API", switch, begun, async || Ok(caller.get("/readyz").await.is_ok())).await?;
        serves.push(begun.elapsed().as_secs_f64() * 1e3);
        until("every node", switch, begun, async || nodes_ready(&caller, at).await).await?;
        ready.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    measured.row(READY, "ms", &ready);
    measured.row(SERVES, "ms", &serves);
    Ok(())
}

/// Starts and ends the cluster.
struct Switch<'a> {
    place: &'a Place<'a>,
    runs: bool,
    child: Option<Child>,
}

impl Switch<'_> {
    fn start(&mut self) -> Result<()> {
        let mut command = Command::new("sh");
        command.args(["-c", self.place.start]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // Ctrl-C is not meant for it.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        self.child = Some(command.spawn().context("cannot run the command of --start")?);
        self.runs = true;
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        self.runs = false;
        let status = Command::new("sh").args(["-c", self.place.stop]).stdin(Stdio::null()).status()?;
        if !status.success() {
            bail!("the command of --stop ended with {status}");
        }
        if let Some(mut child) = self.child.take() {
            child.wait()?;
        }
        Ok(())
    }

    /// An error if the command that started the cluster has failed.
    fn check(&mut self) -> Result<()> {
        match self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
            Some(status) if !status.success() => bail!("the command of --start ended with {status}"),
            _ => Ok(()),
        }
    }
}

/// Asks again and again: nothing tells when.
async fn until(
    what: &str,
    switch: &mut Switch<'_>,
    begun: Instant,
    ready: impl AsyncFn() -> Result<bool>,
) -> Result<()> {
    loop {
        switch.check()?;
        match ready().await {
            Ok(true) => return Ok(()),
            outcome if begun.elapsed() > limits::ELSEWHERE => {
                outcome?;
                bail!("{what} was not ready in {} s", limits::ELSEWHERE.as_secs());
            }
            _ => tokio::time::sleep(limits::ELSEWHERE_PAUSE).await,
        }
    }
}

async fn nodes_ready(caller: &Caller, since: Timestamp) -> Result<bool> {
    let nodes: Value = caller.read("/api/v1/nodes").await?;
    let leases: Value = caller.read("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases").await?;
    Ok(ready(&nodes, &leases, since))
}

/// Whether there are nodes and all of them are Ready and were heard of since then.
fn ready(nodes: &Value, leases: &Value, since: Timestamp) -> bool {
    let items = |list: &Value| list["items"].as_array().cloned().unwrap_or_default();
    let leases = items(leases);
    let is_ready = |node: &Value| {
        let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    let heard = |node: &Value| {
        let lease = leases.iter().find(|lease| lease["metadata"]["name"] == node["metadata"]["name"]);
        let renewed = lease.and_then(|lease| lease["spec"]["renewTime"].as_str()?.parse::<Timestamp>().ok());
        renewed.is_some_and(|at| at.duration_since(since) > k8s_openapi::jiff::SignedDuration::ZERO)
    };
    let nodes = items(nodes);
    !nodes.is_empty() && nodes.iter().all(|node| is_ready(node) && heard(node))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_said_before_the_start_counts_for_nothing() {
        let node = |name: &str, status: &str| json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": status}]}});
        let lease = |name: &str, at: &str| json!({"metadata": {"name": name}, "spec": {"renewTime": at}});
        let since: Timestamp = "2026-01-01T00:00:10Z".parse().unwrap();
        let check = |nodes: &[Value], leases: &[Value], expected: bool| {
            let found = ready(&json!({"items": nodes}), &json!({"items": leases}), since);
            assert_eq!(found, expected, "{nodes:?} {leases:?}");
        };
        let (old, new) = (lease("a", "2026-01-01T00:00:09.5Z"), lease("a", "2026-01-01T00:00:10.5Z"));
        check(&[], &[], false);
        check(&[node("a", "True")], &[], false);
        check(&[node("a", "True")], std::slice::from_ref(&old), false);
        check(&[node("a", "True")], std::slice::from_ref(&new), true);
        check(&[node("a", "False")], std::slice::from_ref(&new), false);
        check(&[node("a", "True"), node("b", "True")], &[new], false);
    }
}
