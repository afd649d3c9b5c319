//! The restore drill, on both engines: a backup taken while the cluster serves, the loss of everything, and the cluster
//! back with pods that never stopped; between the two, the move from one engine to the other.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Stdio};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use sluice_e2e::{Lab, Options, output, sample_image};

const MANIFEST: &str = include_str!("../../../xtask/samples/echo.yaml");
const RUNNING: &str = "get pods -l app=echo --sort-by=.metadata.name -o \
    jsonpath={range.items[*]}{.metadata.name}{.metadata.uid}{.status.containerStatuses[0].containerID}{\"\\n\"}{end}";
const SECRET: &str = "get secret kept -o jsonpath={.data.word}";

/// `sluice` on the first node; what it prints when it fails.
fn refused(lab: &Lab, words: &[&str]) -> Result<String> {
    let done = lab.nodes()[0].sluice(words).stdin(Stdio::null()).output()?;
    ensure!(!done.status.success(), "{words:?} succeeded");
    Ok(String::from_utf8_lossy(&done.stderr).into_owned())
}

fn words<'a>(command: &[&'a str], flags: &'a [String]) -> Vec<&'a str> {
    command.iter().copied().chain(flags.iter().map(String::as_str)).collect()
}

/// Backs up, changes the cluster, loses store and keys, restores, and looks whether all is as it was.
fn drill(lab: &mut Lab, file: &Path, flags: &[String]) -> Result<()> {
    let path = file.to_string_lossy().into_owned();
    let before = lab.kubectl(RUNNING)?;
    let said = output(&mut lab.nodes()[0].sluice(&words(&["backup", &path], flags)))?;
    ensure!(said.contains("private keys"), "{said}");
    ensure!(fs::metadata(file)?.permissions().mode() & 0o777 == 0o600, "the backup can be read by others");
    let header = fs::read(file)?;
    ensure!(header.starts_with(b"{\"sluiceBackup\":1,\"version\":\""), "no header");

    // What is made after the backup is not in it, what is deleted after it comes back.
    lab.kubectl("create configmap later")?;
    lab.kubectl("delete secret kept")?;
    let restore = words(&["restore", &path], flags);
    ensure!(refused(lab, &restore)?.contains("sluice runs already"), "restored under a running server");
    lab.node(1).end(Signal::SIGKILL)?;
    ensure!(refused(lab, &restore)?.contains("is not empty: say --replace"), "restored into a full store");

    let damaged = file.with_extension("damaged");
    let mut bytes = header;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes)?;
    let said = refused(lab, &words(&["restore", "--replace", &damaged.to_string_lossy()], flags))?;
    ensure!(said.contains("is damaged"), "{said}");

    // The machine's disk is lost but for its pods.
    fs::remove_dir_all(lab.nodes()[0].data_dir().join("pki"))?;
    let _ = fs::remove_dir_all(lab.nodes()[0].data_dir().join("store"));
    let mut replace = restore.clone();
    if !flags.is_empty() {
        replace.push("--replace");
    }
    output(&mut lab.nodes()[0].sluice(&replace))?;
    lab.node(1).restart()?;
    lab.kubectl("wait --for=condition=Ready node --all --timeout=60s")?;
    ensure!(lab.kubectl(SECRET)? == "c3BlYWs=", "the Secret cannot be read");
    ensure!(lab.kubectl("get configmaps")?.lines().all(|line| !line.starts_with("later")));
    ensure!(lab.kubectl(RUNNING)? == before, "pods were started again");
    lab.kubectl("scale deployment echo --replicas 4")?;
    lab.kubectl("rollout status deployment/echo --timeout=120s")?;
    lab.kubectl("scale deployment echo --replicas 3")?;
    lab.kubectl("rollout status deployment/echo --timeout=60s")?;
    lab.kubectl("wait --for=jsonpath={.status.replicas}=3 deployment/echo --timeout=60s").map(drop)
}

#[test]
fn what_was_backed_up_comes_back_on_both_engines() -> Result<()> {
    let mut lab = Lab::start(&Options::one("sebk"))?;
    let dir = tempfile::tempdir()?;
    lab.import(&sample_image())?;
    lab.apply(MANIFEST)?;
    lab.kubectl("create secret generic kept --from-literal=word=speak")?;
    lab.kubectl("rollout status deployment/echo --timeout=120s")?;
    drill(&mut lab, &dir.path().join("embedded.backup"), &[])?;

    eprintln!("step: migrate");
    lab.start_etcd(1)?;
    let flags = lab.etcd_flags();
    let migrate = words(&["migrate"], &flags);
    ensure!(refused(&lab, &migrate)?.contains("sluice runs already"), "migrated under a running server");
    lab.node(1).end(Signal::SIGTERM)?;
    let settings = dir.path().join("sluice.yaml");
    fs::write(&settings, "# settings\n")?;
    let path = settings.to_string_lossy().into_owned();
    let said = output(&mut lab.nodes()[0].sluice(&words(&["migrate", "--config", &path], &flags)))?;
    ensure!(said.contains("to etcd at https://172.30.0.11:2379"), "{said}");
    let told = fs::read_to_string(&settings)?;
    let line = |begin: &str| told.lines().any(|line| line.starts_with(begin));
    ensure!(line("etcd: [https://172.30.0.11:2379]") && line("etcdCafile: /") && line("etcdKeyfile: /"), "{told}");
    // (To open it may change its length.)
    let kept = fs::read(lab.nodes()[0].data_dir().join("store.migrated/store.redb"))?;
    ensure!(kept.windows(12).any(|bytes| bytes == b"default/kept"), "the store before is not kept");
    let said = refused(&lab, &["up"])?;
    ensure!(said.contains("was moved to etcd"), "{said}");
    ensure!(refused(&lab, &migrate)?.contains("nothing to migrate"));
    lab.node(1).start(&["up".to_owned(), "--config".to_owned(), path])?;
    lab.kubectl("wait --for=condition=Ready node --all --timeout=60s")?;
    ensure!(lab.kubectl(SECRET)? == "c3BlYWs=");
    lab.kubectl("exec deployment/echo -- /echo get http://echo/ --distinct 3")?;

    eprintln!("step: the drill on etcd");
    drill(&mut lab, &dir.path().join("etcd.backup"), &flags)
}
