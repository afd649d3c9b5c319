//! Several API servers on one etcd: any of them may go, and nodes, controllers and kubectl go on with the other.

use std::{fs, process::Command};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use sluice_e2e::{Lab, Options, output, sample_image, step};

const MANIFEST: &str = include_str!("../../../xtask/samples/echo.yaml");

fn scaled(lab: &Lab, on: usize, replicas: usize) -> Result<()> {
    lab.kubectl_on(on, &format!("scale deployment echo --replicas {replicas}"))?;
    let wait = format!("wait --for=jsonpath={{.status.availableReplicas}}={replicas} deployment/echo --timeout=90s");
    lab.kubectl_on(on, &wait)?;
    // Their node still speaks to a server.
    lab.kubectl_on(on, "exec deployment/echo -- /echo get http://echo/ --distinct 2").map(drop)
}

/// kubectl that knows both servers by one name.
fn by_name(lab: &Lab, arguments: &str) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let hosts: String = lab.nodes()[..2].iter().map(|node| format!("{} kubernetes\n", node.address)).collect();
    fs::write(dir.path().join("hosts"), hosts)?;
    let own = fs::read_to_string(lab.nodes()[1].data_dir().join("admin.kubeconfig"))?;
    let file = dir.path().join("kubeconfig");
    fs::write(&file, own.replace("https://127.0.0.1:6443", "https://kubernetes:6443"))?;
    let mut command: Command = lab.nodes()[2].command("unshare");
    let script = r#"mount --bind "$0" /etc/hosts && exec kubectl "$@""#;
    command.args(["--mount", "sh", "-c", script]).arg(dir.path().join("hosts")).args(arguments.split_whitespace());
    output(command.env("KUBECONFIG", file).env("HOME", dir.path()))
}

#[test]
fn either_of_two_servers_may_go() -> Result<()> {
    let mut lab = Lab::start_apart(&Options { nodes: 3, servers: 2, etcd: 1, ..Options::one("sesv") })?;
    lab.import_on(3, &sample_image())?;
    lab.apply(MANIFEST)?;
    lab.kubectl("rollout status deployment/echo --timeout=120s")?;
    ensure!(by_name(&lab, "get nodes -o name")? == "node/node3\n");

    lab.node(1).end(Signal::SIGKILL)?;
    step("the first is gone: new pods start", || scaled(&lab, 2, 5))?;
    step("kubectl finds the second by the name of both", || {
        ensure!(by_name(&lab, "get nodes -o name")? == "node/node3\n");
        Ok(())
    })?;
    step("the node stays Ready beyond the life of its lease", || {
        lab.kubectl_on(2, "wait --for=condition=Ready=unknown node/node3 --timeout=50s")
            .map_or(Ok(()), |_| anyhow::bail!("the node was given up"))
    })?;
    lab.node(1).restart()?;
    lab.node(2).end(Signal::SIGKILL)?;
    step("the second is gone: new pods start", || scaled(&lab, 1, 7))
}
