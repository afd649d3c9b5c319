//! The main job: a one-node cluster on this machine that serves a sample Service.
//!
//! Installs what is missing, builds, starts `sluice up` in the background, waits until it says
//! that it is ready, and shows the sample at work. Run again it changes nothing that is right.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::{net::UnixDatagram, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{ebpf, image, setup, sh};

/// Where the cluster that `up` makes keeps its things; `down` removes them.
pub(crate) const DATA: &str = "/var/lib/sluice";
pub(crate) const RUN: &str = "/run/sluice";
pub(crate) const LOG: &str = "/var/log/sluice.log";

/// How long the daemon may take until it says that it is ready.
const READY: Duration = Duration::from_secs(60);
const REPLICAS: &str = "3";

#[derive(Args)]
pub(crate) struct Options {
    /// Let the cluster's DNS forward names that are not the cluster's to this machine's resolvers
    #[arg(long)]
    forward_dns: bool,
    /// Stop when the cluster is ready, without the sample
    #[arg(long)]
    no_sample: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    sh::require_root("cargo xtask up")?;
    setup::ensure(setup::Purpose::Up)?;
    sh::step("building (release)");
    ebpf::build()?;
    sh::run(sh::cargo().args(["build", "--release", "--package", "sluice"]))?;
    let tar = image::build()?;
    start(options)?;
    if !options.no_sample {
        sample(&tar)?;
    }
    println!("\nTry next:");
    println!("  kubectl get pods --all-namespaces -o wide");
    println!("  kubectl scale deployment echo --replicas 5");
    println!("  kubectl logs -f deployment/echo");
    println!("  {} services", binary().display());
    println!("  {} status", binary().display());
    println!("  cargo xtask down");
    println!("export KUBECONFIG={}", kubeconfig().display());
    Ok(())
}

/// The release binary.
pub(crate) fn binary() -> PathBuf {
    sh::target().join("release/sluice")
}

/// The administrator's kubeconfig that the server writes.
pub(crate) fn kubeconfig() -> PathBuf {
    Path::new(DATA).join("admin.kubeconfig")
}

/// The pid of a running daemon, from its pid file, if that process is alive and is ours.
pub(crate) fn running() -> Option<i32> {
    let pid: i32 = fs::read_to_string(Path::new(RUN).join("sluice.pid")).ok()?.trim().parse().ok()?;
    let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    words.split(|byte| *byte == 0).next()?.ends_with(b"sluice").then_some(pid)
}

fn start(options: &Options) -> Result<()> {
    if let Some(pid) = running() {
        sh::step(&format!("sluice already runs (pid {pid})"));
        return Ok(());
    }
    sh::step("starting sluice up");
    let sockets = tempfile::tempdir()?;
    let ready = UnixDatagram::bind(sockets.path().join("ready"))?;
    ready.set_read_timeout(Some(Duration::from_millis(250)))?;
    let log = File::options().create(true).append(true).open(LOG).with_context(|| format!("cannot open {LOG}"))?;
    let mut command = Command::new(binary());
    command
        .args(["up", "--data-dir", DATA, "--run-dir", RUN])
        .env("NOTIFY_SOCKET", sockets.path().join("ready"))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Its own process group: the terminal's Ctrl-C is not meant for it.
        .process_group(0);
    if !options.forward_dns {
        command.args(["--dns-upstream", "none"]);
    }
    let begun = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start {}", binary().display()))?;
    wait_ready(&ready, &mut child)?;
    sh::step(&format!("ready after {} ms", begun.elapsed().as_millis()));
    Ok(())
}

/// Waits for the daemon's `READY=1` (the systemd protocol), or for its end.
fn wait_ready(socket: &UnixDatagram, child: &mut Child) -> Result<()> {
    let deadline = Instant::now() + READY;
    let mut buffer = [0; 256];
    while Instant::now() < deadline {
        match socket.recv(&mut buffer) {
            Ok(length) if buffer[..length].starts_with(b"READY=1") => return Ok(()),
            _ => {}
        }
        if let Some(status) = child.try_wait()? {
            bail!("sluice up ended with {status}:\n{}", tail(LOG));
        }
    }
    bail!("sluice up was not ready after {} s; its log is {LOG}:\n{}", READY.as_secs(), tail(LOG))
}

fn tail(path: &str) -> String {
    let mut text = String::new();
    // A log that cannot be read leaves the message without it.
    let _ = File::open(path).and_then(|mut file| file.read_to_string(&mut text));
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

fn sample(tar: &Path) -> Result<()> {
    sh::step("importing the sample image");
    sh::run(Command::new(binary()).args(["image", "import"]).arg(tar).args(["--run-dir", RUN]))?;
    sh::step("applying the sample: a Deployment with a ClusterIP and a NodePort Service");
    let manifest = sh::root().join("xtask/samples/echo.yaml");
    sh::run(kubectl().args(["apply", "--filename"]).arg(manifest))?;
    sh::run(kubectl().args(["rollout", "status", "deployment/echo", "--timeout=120s"]))?;
    sh::run(kubectl().args(["get", "deployments,pods,services,endpointslices", "-o", "wide"]))?;
    sh::step("a pod calls the Service by name until every pod has answered");
    let ask = ["exec", "deployment/echo", "--", "/echo", "get", "http://echo.default.svc.cluster.local/"];
    sh::run(kubectl().args(ask).args(["--distinct", REPLICAS]))?;
    let address = sh::output(kubectl().args(["get", "service", "echo", "--output=jsonpath={.spec.clusterIP}"]))?;
    for (what, url) in [
        ("the Service's address", format!("http://{address}/")),
        ("the node port on loopback", "http://127.0.0.1:30080/".to_owned()),
    ] {
        sh::step(&format!("the host calls {what}, {url}"));
        sh::run(Command::new(image::program()?).args(["get", &url, "--distinct", REPLICAS]))?;
    }
    Ok(())
}

fn kubectl() -> Command {
    let mut command = sh::command("kubectl");
    command.env("KUBECONFIG", kubeconfig());
    command
}
