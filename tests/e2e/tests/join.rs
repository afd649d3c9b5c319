//! Joining that cannot work: each mistake is said in one sentence, and leaves nothing behind.

use std::{fs, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use sluice_e2e::{Lab, Node, Options, output, step, target, until};

/// A node that has nothing else to say renews its lease every ten seconds.
const PATIENCE: Duration = Duration::from_secs(60);

const DAY: i64 = 24 * 60 * 60;

/// Clocks that are off by a day, in seconds, and what is said of each.
const WRONG: [(i64, &str); 2] =
    [(DAY, "this machine's clock is 1440 minutes ahead of"), (-DAY, "this machine's clock is 1440 minutes behind")];

/// Tries to join as a machine with its own directories would; what it says.
fn refused(lab: &Lab, server: &str, token: &str, hash: &str, name: &str) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name).display().to_string();
    let mut join = lab.nodes()[1].command(target().join("debug/sluice"));
    join.args(["node", "--server", server, "--token", token, "--ca-hash", hash, "--node-name", name])
        .args(["--data-dir", &at("data"), "--run-dir", &at("run"), "--instance", "sejno", "--containerd", "own"])
        .args(["--socket-hooks", "instance"]);
    let done = join.stdin(Stdio::null()).output()?;
    ensure!(!done.status.success(), "it joined");
    ensure!(!dir.path().join("data/node-pki/client.pem").exists(), "a certificate was kept");
    ensure!(fs::read_dir(dir.path().join("data"))?.count() == 1, "more than an empty folder of keys is left");
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    Ok(said.lines().rfind(|line| line.starts_with("error: ")).unwrap_or(&said).to_owned())
}

#[test]
fn each_mistake_is_named() -> Result<()> {
    let lab = Lab::start_apart(&Options { nodes: 2, ..Options::one("sejn") })?;
    let url = "https://172.30.0.11:6443";
    let line = output(&mut lab.nodes()[0].sluice(&["token", "create", "--server", url]))?;
    let after = |flag: &str| line.split_whitespace().skip_while(|word| *word != flag).nth(1).context("no such flag");
    let (token, hash) = (after("--token")?, after("--ca-hash")?);
    let (id, secret) = token.split_once('.').context("no token")?;

    let said = refused(&lab, url, &format!("{id}.0000000000000000"), hash, "other")?;
    ensure!(said.contains(&format!("the token \"{id}\" is not one of this cluster's, or it has expired")), "{said}");
    let said = refused(&lab, url, &format!("aaaaaa.{secret}"), hash, "other")?;
    ensure!(
        said.contains("the token \"aaaaaa\" is not one of this cluster's") && said.contains("sluice token create"),
        "{said}"
    );
    let said = refused(&lab, url, token, &format!("sha256:{}", "0".repeat(64)), "other")?;
    ensure!(said.contains("is not the cluster with the CA hash"), "{said}");
    let said = refused(&lab, url, token, hash, "node2")?;
    ensure!(said.contains("a Node with name \"node2\" and status \"Ready\" already exists in the cluster"), "{said}");
    let said = refused(&lab, "https://172.30.0.11:1", token, hash, "other")?;
    ensure!(said.contains("https://172.30.0.11:1 did not tell its cluster-info"), "{said}");

    let patch = "{\"stringData\":{\"expiration\":\"2020-01-01T00:00:00Z\"}}";
    lab.kubectl(&format!("-n kube-system patch secret bootstrap-token-{id} -p {patch}"))?;
    let said = refused(&lab, url, token, hash, "other")?;
    ensure!(said.contains("or it has expired"), "{said}");
    ensure!(lab.kubectl("get nodes -o name")? == "node/node2\n", "a node was made");

    // The lines for the settings file say the same as the command.
    let lines = output(&mut lab.nodes()[0].sluice(&["token", "create", "--server", url, "--output", "config"]))?;
    ensure!(
        lines.starts_with(&format!("server: [{url}]\ntoken: ")) && lines.contains(&format!("\ncaHash: {hash}\n")),
        "{lines}"
    );
    Ok(())
}

/// What a node's daemon wrote into its log beyond the first `read` bytes.
fn since(node: &Node, read: u64) -> Result<String> {
    let log = fs::read(node.log())?;
    Ok(String::from_utf8_lossy(log.get(usize::try_from(read)?..).unwrap_or_default()).into_owned())
}

/// What `sluice status` says there.
fn status(node: &Node) -> Result<String> {
    let done = node.sluice(&["status"]).stdin(Stdio::null()).output()?;
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

#[test]
fn a_clock_that_is_off_by_a_day_is_named() -> Result<()> {
    let mut lab = Lab::start_apart(&Options { nodes: 2, ..Options::one("sejc") })?;
    lab.kill(2)?;
    lab.node(2).set_clock(0)?;
    lab.restart()?;
    lab.kubectl("wait --for=condition=Ready node/node2 --timeout=90s")?;
    for (ahead, expected) in WRONG {
        step(&format!("a running node's clock goes wrong by {ahead} s"), || {
            let read = fs::metadata(lab.nodes()[1].log())?.len();
            lab.node(2).set_clock(ahead)?;
            // By an answer, or by a new connection's certificate; once.
            until(PATIENCE, || {
                let (log, shown) = (since(&lab.nodes()[1], read)?, status(&lab.nodes()[1])?);
                ensure!(log.matches("this machine's clock").count() == 1 && shown.contains(expected), "{shown}{log}");
                Ok(())
            })?;
            lab.node(2).set_clock(0)?;
            until(PATIENCE, || {
                let (log, shown) = (since(&lab.nodes()[1], read)?, status(&lab.nodes()[1])?);
                ensure!(log.contains("clock agrees with the API server's again"), "{log}");
                ensure!(log.matches("this machine's clock").count() == 2 && shown.contains(" answers"), "{shown}{log}");
                Ok(())
            })?;
            Ok(())
        })?;
    }
    lab.kill(2)?;
    output(&mut lab.nodes()[1].sluice(&["reset", "--yes"]))?;
    lab.kubectl("delete node node2")?;
    for (ahead, expected) in WRONG {
        step(&format!("it does not join with a clock that is wrong by {ahead} s"), || {
            lab.node(2).set_clock(ahead)?;
            let read = fs::metadata(lab.nodes()[1].log())?.len();
            if lab.join().is_ok() {
                bail!("it joined");
            }
            let said = since(&lab.nodes()[1], read)?;
            ensure!(said.lines().any(|line| line.starts_with("error: ") && line.contains(expected)), "{said}");
            let kept: Vec<_> = fs::read_dir(lab.nodes()[1].data_dir())?.collect();
            ensure!(kept.len() == 1 && !lab.nodes()[1].data_dir().join("node-pki/client.pem").exists(), "{kept:?}");
            ensure!(lab.kubectl("get nodes -o name")?.is_empty(), "a node was made");
            Ok(())
        })?;
    }
    step("it joins with a clock that is right again", || {
        lab.node(2).set_clock(0)?;
        lab.join()?;
        lab.kubectl("wait --for=condition=Ready node/node2 --timeout=90s").map(drop)
    })
}
