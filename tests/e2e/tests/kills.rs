//! kill -9 of every process in turn, a node that falls silent and comes back by itself, then kill -9 of
//! all at once: what runs goes on, what ended is started again, and `reset` leaves nothing. The control
//! plane runs alone; the node under test joined it with a token.

use std::{net::UdpSocket, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sluice_e2e::{Lab, Options, output, sample_image, step, target};

const MANIFEST: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: kept}
spec:
  replicas: 1
  selector: {matchLabels: {app: kept}}
  template:
    metadata: {labels: {app: kept}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists}]
      containers:
        - name: web
          image: sluice.local/echo:latest
          imagePullPolicy: IfNotPresent
          args: [serve, --drain, "0"]
          readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: kept}
spec: {clusterIP: 10.96.0.200, selector: {app: kept}, ports: [{port: 80, targetPort: 8080}]}
"#;

#[test]
fn what_is_killed_comes_back_and_disturbs_nothing_else() -> Result<()> {
    let mut lab = Lab::start_apart(&Options { nodes: 2, ..Options::one("se5") })?;
    output(&mut lab.nodes()[1].sluice(&["image", "import", &sample_image().to_string_lossy()]))?;
    lab.apply(MANIFEST)?;
    lab.kubectl("rollout status deployment/kept --timeout=60s")?;
    step("containerd", || {
        let before = identity(&lab)?;
        kill_all(&lab, " --config ")?;
        answers(&lab)?;
        ensure!(identity(&lab)? == before, "the pod's container changed");
        Ok(())
    })?;
    step("the container's logger", || {
        let before = identity(&lab)?;
        kill_all(&lab, " logger ")?;
        answers(&lab)?;
        ensure!(identity(&lab)? == before, "the pod's container changed");
        Ok(())
    })?;
    step("the container's process", || {
        let pids = lab.nodes()[1].contained()?;
        ensure!(!pids.is_empty(), "the pod's cgroup holds no process");
        pids.into_iter().try_for_each(end)?;
        restarted(&lab, 1)
    })?;
    step("the shim", || {
        kill_all(&lab, "containerd-shim")?;
        restarted(&lab, 2)
    })?;
    step("the node's daemon", || killed_daemon(&mut lab, 2))?;
    step("the control plane", || killed_daemon(&mut lab, 1))?;
    step("a node that falls silent and comes back by itself", || silent(&lab))?;
    step("everything at once, then reset", || everything(&mut lab))
}

/// kill -9 of the processes of node 2 with `part` in their command line.
fn kill_all(lab: &Lab, part: &str) -> Result<()> {
    let all = lab.nodes()[1].processes()?;
    let chosen: Vec<Pid> = all.iter().filter(|(_, line)| line.contains(part)).map(|(pid, _)| *pid).collect();
    ensure!(!chosen.is_empty(), "node2 has no process with {part:?} in {all:#?}");
    chosen.into_iter().try_for_each(end)
}

fn end(pid: Pid) -> Result<()> {
    kill(pid, Signal::SIGKILL).with_context(|| format!("kill -9 {pid}"))
}

/// The pod's container with the count of its restarts.
fn identity(lab: &Lab) -> Result<String> {
    let status = ".items[*].status.containerStatuses[0]";
    lab.kubectl(&format!("get pods -l app=kept -o jsonpath={{{status}.containerID}}{{{status}.restartCount}}"))
}

/// Node 2 reaches the pod through its Service, over a new connection.
fn answers(lab: &Lab) -> Result<()> {
    let echo = target().join(format!("{}-unknown-linux-gnu/release/echo", std::env::consts::ARCH));
    output(lab.nodes()[1].command(echo).args(["get", "http://10.96.0.200/"])).map(drop)
}

fn ready(lab: &Lab) -> Result<()> {
    lab.kubectl("wait --for=condition=Ready node/node2 --timeout=90s")?;
    lab.kubectl("wait --for=condition=Ready pod -l app=kept --timeout=60s").map(drop)
}

fn restarted(lab: &Lab, times: u32) -> Result<()> {
    let count = format!("jsonpath={{.status.containerStatuses[0].restartCount}}={times}");
    lab.kubectl(&format!("wait --for={count} pod -l app=kept --timeout=60s"))?;
    ready(lab)?;
    answers(lab)
}

/// Since when the node and the pod on it are ready.
fn ready_since(lab: &Lab) -> Result<String> {
    const SINCE: &str = "-o jsonpath={.status.conditions[?(@.type==\"Ready\")].lastTransitionTime}";
    let pod = lab.kubectl("get pods -l app=kept -o name")?;
    Ok(lab.kubectl(&format!("get node/node2 {SINCE}"))? + &lab.kubectl(&format!("get {} {SINCE}", pod.trim()))?)
}

fn killed_daemon(lab: &mut Lab, number: usize) -> Result<()> {
    let (before, since) = (identity(lab)?, ready_since(lab)?);
    let range = lab.kubectl("get node node2 -o jsonpath={.spec.podCIDR}")?;
    lab.node(number).end(Signal::SIGKILL)?;
    answers(lab).context("while the daemon is down")?;
    let question = Question::put(lab, &range).context("while the daemon is down")?;
    lab.node(number).restart()?;
    question.answered()?;
    ready(lab)?;
    answers(lab)?;
    ensure!(identity(lab)? == before, "the pod's container changed");
    // Not for a moment: the Service would have been without endpoints.
    ensure!(ready_since(lab)? == since, "it was not ready all along");
    Ok(())
}

/// A question for the Service's address, put to node 2.
struct Question(UdpSocket);

impl Question {
    const NAME: &[u8] = b"\x04kept\x07default\x03svc\x07cluster\x05local\0";
    const HEAD: &[u8] = &[7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    const ADDRESSES: &[u8] = &[0, 1, 0, 1];

    /// DNS is served on the first address of the node's range.
    fn put(lab: &Lab, range: &str) -> Result<Question> {
        let server = range.trim().replace(".0/24", ".1:53");
        lab.nodes()[1].within(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(Duration::from_secs(60)))?;
            socket.connect(&server)?;
            socket.send(&[Self::HEAD, Self::NAME, Self::ADDRESSES].concat())?;
            Ok(Question(socket))
        })
    }

    fn answered(self) -> Result<()> {
        let mut answer = [0; 512];
        let length = self.0.recv(&mut answer).context("nobody took the question")?;
        let (head, rest) = answer[..length].split_at(Self::HEAD.len());
        // No error, one address, which ends it but for what EDNS adds.
        ensure!(head[3] & 15 == 0 && head[7] == 1, "{head:?}");
        ensure!(rest.windows(4).any(|part| part == [10, 96, 0, 200]), "{rest:?}");
        Ok(())
    }
}

/// A daemon that is stopped renews no lease; set going again it must find its way back.
fn silent(lab: &Lab) -> Result<()> {
    let before = identity(lab)?;
    let daemon = Pid::from_raw(i32::try_from(lab.nodes()[1].pid().context("no daemon")?)?);
    kill(daemon, Signal::SIGSTOP)?;
    let noticed = lab.kubectl("wait --for=condition=Ready=unknown node/node2 --timeout=120s");
    kill(daemon, Signal::SIGCONT)?;
    noticed?;
    ready(lab)?;
    ensure!(identity(lab)? == before, "the pod's container changed");
    Ok(())
}

/// Daemon, containerd, shims and loggers die; the containers' own processes are left to nobody.
fn everything(lab: &mut Lab) -> Result<()> {
    lab.node(2).end(Signal::SIGKILL)?;
    for (pid, _) in lab.nodes()[1].processes()? {
        end(pid)?;
    }
    let node = &lab.nodes()[1];
    ensure!(!node.contained()?.is_empty(), "the container was not left running");
    output(node.sluice(&["reset", "--yes"]).current_dir("/"))?;
    ensure!(node.contained()?.is_empty(), "processes of containers are left");
    ensure!(node.processes()?.is_empty(), "processes are left: {:?}", node.processes()?);
    for dir in [node.data_dir(), node.run_dir()] {
        ensure!(!dir.exists(), "{} is left", dir.display());
    }
    Ok(())
}
