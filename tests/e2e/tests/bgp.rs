//! The files of `docs/bgp.md` at work: BIRD on every node announces load balancers' addresses to a router, which sends what
//! it gets for them to the nodes that serve them.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use sluice_e2e::{Lab, Node, Options, run, sample_image, step};

const DOCUMENT: &str = include_str!("../../../docs/bgp.md");
const NAME: &str = "sebgp";
/// The bridge's namespace is the router, and the client behind it.
const ROUTER: &str = "sebgp-net";
const ADDRESS: &str = "198.51.100.0";
const PATIENCE: usize = 600;

const ROUTER_CONF: &str = r#"
router id 172.30.0.1;
protocol device { scan time 1; }
protocol kernel { merge paths on; ipv4 { export all; }; }
template bgp node { local 172.30.0.1 as 64513; ipv4 { import all; export none; }; }
protocol bgp node1 from node { neighbor 172.30.0.11 as 64512; }
protocol bgp node2 from node { neighbor 172.30.0.12 as 64512; }
"#;

const MANIFEST: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      nodeSelector: {kubernetes.io/hostname: node2}
      containers:
      - name: main
        image: sluice.local/echo:latest
        imagePullPolicy: IfNotPresent
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"#;

/// The document's first block of this language.
fn block(language: &str) -> Result<&'static str> {
    let (_, rest) = DOCUMENT.split_once(&format!("```{language}\n")).context("the document has no such block")?;
    rest.split_once("```").map(|(block, _)| block).context("the block has no end")
}

/// A program that is killed when it is no longer needed.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn().with_context(|| format!("cannot start {command:?}"))?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn bird(mut command: Command, dir: &Path) -> Result<Running> {
    let (conf, socket) = (dir.join("bird.conf"), dir.join("bird.ctl"));
    Running::start(command.arg("-f").arg("-c").arg(conf).arg("-s").arg(socket))
}

/// BIRD and the script of the document on a node.
fn announce(lab: &Lab, node: &Node, dir: &Path) -> Result<[Running; 2]> {
    fs::create_dir_all(dir)?;
    let place = dir.to_string_lossy();
    let conf = block("bird")?.replace("192.0.2.11", &node.address).replace("192.0.2.1", "172.30.0.1");
    fs::write(dir.join("bird.conf"), conf.replace("/etc/bird", &place))?;
    for file in ["sluice4.conf", "sluice6.conf"] {
        File::create(dir.join(file))?;
    }
    fs::write(dir.join("sluice-bird"), block("sh")?)?;
    let first = &lab.nodes()[0];
    let kubeconfig = fs::read_to_string(first.data_dir().join("admin.kubeconfig"))?;
    fs::write(dir.join("kubeconfig"), kubeconfig.replace("127.0.0.1", &first.address))?;
    let bird = bird(node.command("bird"), dir)?;
    let mut script = node.command("sh");
    script.arg(dir.join("sluice-bird")).arg(dir).arg(dir.join("bird.ctl"));
    script.env("KUBECONFIG", dir.join("kubeconfig")).env("HOME", dir);
    Ok([bird, Running::start(&mut script)?])
}

/// Waits until the router sends packets for the address to these nodes.
fn until_routed(nodes: &[&str]) -> Result<()> {
    let mut routes = String::new();
    for _ in 0..PATIENCE {
        routes = run(&format!("ip -n {ROUTER} route show {ADDRESS}"))?;
        let via = |node: &&str| routes.contains(&format!("via {node} "));
        if routes.matches("via ").count() == nodes.len() && nodes.iter().all(via) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("the router's route is {routes:?} and not to {nodes:?}")
}

fn ask() -> Result<String> {
    let once = || -> Result<String> {
        setns(File::open(format!("/run/netns/{ROUTER}"))?, CloneFlags::CLONE_NEWNET)?;
        let mut stream = TcpStream::connect_timeout(&format!("{ADDRESS}:80").parse()?, Duration::from_secs(3))?;
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    std::thread::scope(|scope| scope.spawn(once).join().map_err(|_| anyhow::anyhow!("the client panicked"))?)
}

#[test]
fn a_router_learns_the_addresses_that_nodes_serve() -> Result<()> {
    let lab = Lab::start(&Options { nodes: 2, ..Options::one(NAME) })?;
    let dir = tempfile::tempdir()?;
    run(&format!("ip -n {ROUTER} addr add 172.30.0.1/24 dev br0"))?;
    lab.import(&sample_image())?;
    let router: PathBuf = dir.path().join("router");
    fs::create_dir_all(&router)?;
    fs::write(router.join("bird.conf"), ROUTER_CONF)?;
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{ROUTER}")).arg("bird");
    let _router = bird(command, &router)?;
    let mut speakers = Vec::new();
    for node in lab.nodes() {
        speakers.push(announce(&lab, node, &dir.path().join(&node.name))?);
    }
    lab.apply(block("yaml")?)?;
    lab.apply(MANIFEST)?;
    lab.kubectl("rollout status deployment/web --timeout=120s")?;
    step("every node announces the address of a Service", || {
        until_routed(&["172.30.0.11", "172.30.0.12"])?;
        ensure!(lab.kubectl("get loadbalancerannouncements -o name")?.is_empty(), "it is announced on the link too");
        ensure!(ask()?.contains("web-"), "{}", ask()?);
        Ok(())
    })?;
    step("with the policy Local those with endpoints announce it, and clients are seen as they are", || {
        lab.kubectl("patch service web -p {\"spec\":{\"externalTrafficPolicy\":\"Local\"}}")?;
        until_routed(&["172.30.0.12"])?;
        let answer = ask()?;
        ensure!(answer.contains("172.30.0.1"), "the pod saw another client: {answer:?}");
        Ok(())
    })?;
    step("a Service that goes takes its route along", || {
        lab.kubectl("delete service web")?;
        until_routed(&[])
    })
}
