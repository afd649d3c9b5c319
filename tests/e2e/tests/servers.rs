//! Several API servers on an etcd of three members, and what may happen to them: a server ends or dies, a machine with a
//! member is cut off, the etcd changes its leader, loses its quorum and gets it back, the power goes everywhere. One
//! cluster lives through all of it: nodes 1 and 2 serve, 1 to 3 have a member each, pods run on 3 and 4.

use std::{
    fs::{self, File},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use sluice_e2e::{Lab, Options, output, run, sample_image, step, until};

const REPLICAS: usize = 4;
const SERVICE: &str = "10.96.0.200";
const MANIFEST: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo}
spec:
  replicas: 4
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      tolerations:
        - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 1}
        - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 1}
      containers:
        - name: echo
          image: sluice.local/echo:latest
          imagePullPolicy: IfNotPresent
          env:
            - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
          readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec: {clusterIP: 10.96.0.200, selector: {app: echo}, ports: [{port: 80, targetPort: 8080}]}
"#;

const LEASES: [&str; 2] = ["kube-scheduler", "kube-controller-manager"];
/// How long a dead leader's work lies, at most. Its lease is over after 1.5 s; a busy machine needs its time.
const TAKEOVER: Duration = Duration::from_secs(4);

#[test]
fn the_cluster_outlives_its_servers_and_its_etcd() -> Result<()> {
    let mut lab = Lab::start_apart(&Options { nodes: 4, servers: 2, etcd: 3, ..Options::one("sesv") })?;
    for node in [3, 4] {
        lab.import_on(node, &sample_image())?;
    }
    lab.apply(MANIFEST)?;
    lab.kubectl("rollout status deployment/echo --timeout=120s")?;
    step("both servers are the kubernetes Service", || endpoints(&lab, 1, &[1, 2]))?;
    step("the leading server dies in a rolling update under load", || leader_dies(&mut lab))?;
    step("the leading server ends", || leader_ends(&mut lab))?;
    step("the etcd's leader dies", || etcd_leader_dies(&mut lab))?;
    step("a machine with a member is cut off", || cut_off(&mut lab))?;
    step("the etcd loses its quorum", || quorum(&mut lab))?;
    step("the power goes everywhere", || power(&mut lab))
}

/// A new object, by way of server `on`.
fn writes(lab: &Lab, on: usize) -> Result<()> {
    lab.kubectl_on(on, "create configmap written --request-timeout=20s")?;
    lab.kubectl_on(on, "delete configmap written --request-timeout=20s").map(drop)
}

/// Node 4 asks the Service again and again, over new connections.
fn answers(lab: &Lab) -> Result<()> {
    output(&mut lab.nodes()[3].echo(&["get", &format!("http://{SERVICE}/"), "--times", "40"])).map(drop)
}

/// The `kubernetes` Service names these servers, and node 4 reaches what it names through it.
fn endpoints(lab: &Lab, on: usize, servers: &[usize]) -> Result<()> {
    let expected: Vec<&str> = servers.iter().map(|number| lab.nodes()[number - 1].address.as_str()).collect();
    until(Duration::from_secs(30), || {
        let told = lab.kubectl_on(on, "get endpoints kubernetes -o jsonpath={.subsets[*].addresses[*].ip}")?;
        ensure!(told.split_whitespace().collect::<Vec<_>>() == expected, "they are {told}, not {expected:?}");
        Ok(())
    })?;
    (0..4).try_for_each(|_| {
        let nodes = kubectl_at(lab, on, "https://10.96.0.1", "", "get nodes -o name")?;
        ensure!(nodes == "node/node3\nnode/node4\n", "{nodes}");
        Ok(())
    })
}

/// kubectl on node 4, with the keys of server `on` and `hosts` for /etc/hosts.
fn kubectl_at(lab: &Lab, on: usize, server: &str, hosts: &str, arguments: &str) -> Result<String> {
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("hosts"), hosts)?;
    let own = fs::read_to_string(lab.nodes()[on - 1].data_dir().join("admin.kubeconfig"))?;
    let file = dir.path().join("kubeconfig");
    fs::write(&file, own.replace("https://127.0.0.1:6443", server))?;
    let mut command: Command = lab.nodes()[3].command("unshare");
    let script = r#"mount --bind "$0" /etc/hosts && exec kubectl "$@""#;
    command.args(["--mount", "sh", "-c", script]).arg(dir.path().join("hosts")).args(arguments.split_whitespace());
    output(command.env("KUBECONFIG", file).env("HOME", dir.path()))
}

/// Requests to the Service from node 4 that never end, unless one fails.
struct Load {
    child: Child,
    said: tempfile::NamedTempFile,
}

impl Load {
    fn start(lab: &Lab) -> Result<Self> {
        let said = tempfile::NamedTempFile::new()?;
        let mut command = lab.nodes()[3].echo(&["get", &format!("http://{SERVICE}/"), "--times", "4000000000"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(said.path())?);
        Ok(Self { child: command.spawn()?, said })
    }

    fn end(mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            bail!("a request failed: {}", fs::read_to_string(self.said.path())?);
        }
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // One that has ended by itself is as good as killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server that holds a lease, how often it changed hands, and since when it is held, in milliseconds.
fn holder(lab: &Lab, on: usize, lease: &str) -> Result<(usize, u64, i128)> {
    let fields = "{.spec.holderIdentity} {.spec.leaseTransitions} {.spec.acquireTime}";
    let mut command = lab.nodes()[on - 1].kubectl();
    let told = output(command.args(["-n", "kube-system", "get", "lease", lease, "-o", &format!("jsonpath={fields}")]))?;
    let [identity, transitions, since] = told.split_whitespace().collect::<Vec<_>>()[..] else {
        bail!("{lease}: {told:?}");
    };
    let node = identity.split('_').next().unwrap_or_default();
    Ok((lab.number(node)?, transitions.parse()?, run(&format!("date +%s%3N -d {since}"))?.trim().parse()?))
}

/// Milliseconds of the clock that leases are dated by.
fn now() -> Result<i128> {
    Ok(run("date +%s%3N")?.trim().parse()?)
}

/// The server that schedules, and the other one.
fn leader(lab: &Lab, on: usize) -> Result<(usize, usize)> {
    let (leader, ..) = holder(lab, on, LEASES[0])?;
    Ok((leader, 3 - leader))
}

fn leader_dies(lab: &mut Lab) -> Result<()> {
    let (dead, other) = leader(lab, 1)?;
    let load = Load::start(lab)?;
    lab.kubectl_on(other, "rollout restart deployment/echo")?;
    let killed = now()?;
    lab.node(dead).end(Signal::SIGKILL)?;
    for lease in LEASES {
        until(Duration::from_secs(20), || {
            let (leader, _, since) = holder(lab, other, lease)?;
            ensure!(leader == other, "{lease} is not held by the other server");
            let after = since - killed;
            eprintln!("{lease} taken over after {after} ms");
            ensure!(after < TAKEOVER.as_millis().cast_signed(), "{lease} was taken over after {after} ms");
            Ok(())
        })?;
    }
    lab.kubectl_on(other, "rollout status deployment/echo --timeout=120s")?;
    load.end().context("in the rolling update")?;
    // Whoever knows both servers by one name finds the one that is left.
    let hosts: String = lab.nodes()[..2].iter().map(|node| format!("{} kubernetes\n", node.address)).collect();
    let nodes = kubectl_at(lab, other, "https://kubernetes:6443", &hosts, "get nodes -o name")?;
    ensure!(nodes == "node/node3\nnode/node4\n", "{nodes}");
    endpoints(lab, other, &[other])?;
    lab.node(dead).restart()?;
    endpoints(lab, dead, &[1, 2])
}

fn leader_ends(lab: &mut Lab) -> Result<()> {
    let (ended, other) = leader(lab, 1)?;
    lab.node(ended).end(Signal::SIGTERM)?;
    // What it had it gave back before it was gone.
    let log = fs::read_to_string(lab.nodes()[ended - 1].log())?;
    let log = log.rsplit("sluice::daemon: ready").next().unwrap_or_default();
    let last = |lease: &str| log.lines().rfind(|line| line.contains(&format!("lease=\"{lease}\""))).unwrap_or_default();
    ensure!(last(LEASES[0]).contains("let go of the lease"), "it did not give back what it had:\n{log}");
    ensure!(!last(LEASES[1]).contains(": leading "), "it did not give back what it had:\n{log}");
    let told = lab.kubectl_on(other, "get endpoints kubernetes -o jsonpath={.subsets[*].addresses[*].ip}")?;
    ensure!(told == lab.nodes()[other - 1].address, "still an endpoint: {told}");
    scaled(lab, other, REPLICAS + 1)?;
    lab.node(ended).restart()?;
    scaled(lab, ended, REPLICAS)
}

fn scaled(lab: &Lab, on: usize, replicas: usize) -> Result<()> {
    lab.kubectl_on(on, &format!("scale deployment echo --replicas {replicas}"))?;
    let wait = format!("wait --for=jsonpath={{.status.availableReplicas}}={replicas} deployment/echo --timeout=90s");
    lab.kubectl_on(on, &wait).map(drop)
}

/// The member that leads the etcd.
fn etcd_leader(lab: &mut Lab) -> Result<usize> {
    for number in 1..=3 {
        let (member, node) = lab.etcd(number);
        let metrics = output(&mut node.echo(&["get", &format!("{}/metrics", member.metrics())]))?;
        if metrics.lines().any(|line| line == "etcd_server_is_leader 1") {
            return Ok(number);
        }
    }
    bail!("no member leads")
}

fn etcd_leader_dies(lab: &mut Lab) -> Result<()> {
    let leader = etcd_leader(lab)?;
    lab.etcd(leader).0.kill()?;
    for server in [1, 2] {
        until(Duration::from_secs(20), || writes(lab, server))?;
    }
    scaled(lab, 1, REPLICAS + 1)?;
    lab.heal()?;
    scaled(lab, 2, REPLICAS)
}

fn cut_off(lab: &mut Lab) -> Result<()> {
    lab.partition(&[3])?;
    for server in [1, 2] {
        until(Duration::from_secs(20), || writes(lab, server))?;
    }
    lab.kubectl_on(2, "wait --for=condition=Ready=unknown node/node3 --timeout=90s")?;
    until(Duration::from_secs(5), || answers(lab)).context("the Service still uses what is cut off")?;
    let ready = "get pods -l app=echo --field-selector spec.nodeName=node4 -o \
        jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}";
    until(Duration::from_secs(40), || {
        let told = lab.kubectl_on(1, ready)?;
        ensure!(told.matches("True").count() == REPLICAS, "pods elsewhere: {told:?}");
        Ok(())
    })?;
    lab.heal()?;
    lab.kubectl_on(1, "wait --for=condition=Ready node/node3 --timeout=60s")?;
    lab.kubectl_on(2, "rollout status deployment/echo --timeout=60s").map(drop)
}

fn quorum(lab: &mut Lab) -> Result<()> {
    for member in [1, 2] {
        lab.etcd(member).0.kill()?;
    }
    for (verb, words) in [("read", "get configmaps"), ("write", "create configmap lost")] {
        let Err(error) = lab.kubectl_on(1, &format!("{words} --request-timeout=30s")) else {
            bail!("a {verb} succeeded without a quorum");
        };
        let said = format!("{error:?}");
        ensure!(said.contains("the store is unavailable"), "a {verb}: {said}");
    }
    answers(lab).context("without a quorum")?;
    lab.heal()?;
    for server in [1, 2] {
        until(Duration::from_secs(30), || writes(lab, server))?;
    }
    lab.kubectl_on(1, "wait --for=condition=Ready node --all --timeout=60s")?;
    scaled(lab, 2, REPLICAS + 1)
}

fn power(lab: &mut Lab) -> Result<()> {
    for number in 1..=4 {
        lab.kill(number)?;
    }
    lab.heal()?;
    lab.kubectl_on(1, "wait --for=condition=Ready node --all --timeout=90s")?;
    lab.kubectl_on(2, "rollout status deployment/echo --timeout=90s")?;
    until(Duration::from_secs(30), || answers(lab))?;
    endpoints(lab, 2, &[1, 2])?;
    scaled(lab, 1, REPLICAS)
}
