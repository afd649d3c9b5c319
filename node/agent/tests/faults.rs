//! kill -9 of everything beneath running pods, in turn, on real parts: statuses become right by themselves, restart policies
//! hold, logs go on, nothing is left.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{IMAGE, World, in_namespace, mounts_below};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sluice_runtime::Status;
use sluice_runtime::daemon::Containerd;
use tokio_util::sync::CancellationToken;

const TICKS: &str = "trap 'exit 0' TERM; echo begun; while true; do echo tick; sleep 0.2 & wait $!; done";

fn end(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// The pid of the pod's only container's first process.
async fn process(w: &World, pod: &str) -> i32 {
    let all = w.runtime.containers().await.unwrap();
    let running = all.iter().find_map(|c| match &c.status {
        Status::Running { pid, .. } if c.pod_name == pod => Some(*pid),
        _ => None,
    });
    running.unwrap_or_else(|| panic!("{pod} does not run: {all:?}")).cast_signed()
}

fn parent(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap()
}

/// Processes whose command line contains all of these.
fn processes(words: &[&str]) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let found = entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).into_owned();
        words.iter().all(|word| line.contains(word)).then_some(pid)
    });
    found.collect()
}

fn restarts(status: &Value) -> i64 {
    status["containerStatuses"][0]["restartCount"].as_i64().unwrap_or(-1)
}

async fn restarted(w: &World, pod: &str, what: &str) -> Value {
    let again = |s: &Value| restarts(s) == 1 && s["containerStatuses"][0]["state"]["running"].is_object();
    w.until(pod, &format!("restarted after {what}"), again).await
}

/// Waits until the pod's log has grown by some lines.
async fn logs_go_on(w: &World, pod: &str) {
    let lines = || w.kubectl(&["logs", pod]).1.lines().filter(|line| *line == "tick").count();
    let before = lines();
    let grown = async {
        while lines() < before + 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), grown).await.unwrap_or_else(|_| panic!("{pod}: no more lines"));
}

#[test]
fn pods_survive_the_death_of_everything_beneath_them() {
    in_namespace(|| async {
        let mut w = World::start("kill").await;
        let pods = ["main", "shim", "logger", "away", "unseen", "calm"];
        for name in pods {
            w.pod(name, json!({"containers": [{"name": "a", "image": IMAGE, "command": ["sh", "-c", TICKS]}]})).await;
        }
        for name in pods {
            w.ready(name).await;
        }

        end(process(&w, "main").await);
        let status = restarted(&w, "main", "the end of its first process").await;
        let last = &status["containerStatuses"][0]["lastState"]["terminated"];
        assert_eq!((&last["exitCode"], &last["reason"]), (&json!(137), &json!("Error")));

        end(parent(process(&w, "shim").await));
        restarted(&w, "shim", "the end of its shim").await;

        let loggers = || processes(&["logger", "default_logger_", &w.dir.path().to_string_lossy()]);
        let [before] = loggers()[..] else { panic!("one logger: {:?}", loggers()) };
        end(before);
        logs_go_on(&w, "logger").await;
        assert!(loggers().iter().all(|now| *now != before));

        // While no daemon runs: what ended meanwhile is restarted by the next.
        w.stop_agent().await;
        end(process(&w, "away").await);
        w.start_agent().await;
        restarted(&w, "away", "an end without a daemon").await;

        // While no containerd runs: it is started again, and what ended meanwhile is seen.
        let (dir, socket) = (w.dir.path().join("containerd"), w.dir.path().join("containerd.sock"));
        let supervised = Containerd::spawn(&dir, &socket).await.unwrap();
        let (pid, unseen) = (supervised.pid().cast_signed(), process(&w, "unseen").await);
        let shutdown = CancellationToken::new();
        let supervision = tokio::spawn(supervised.supervise(shutdown.clone()));
        end(pid);
        end(unseen);
        restarted(&w, "unseen", "an end without containerd").await;

        // Nobody was restarted for another's sake, and all talk on.
        for (name, expected) in pods.into_iter().zip([1, 1, 0, 1, 1, 0]) {
            assert_eq!(restarts(&w.status(name).await), expected, "{name}");
            logs_go_on(&w, name).await;
        }
        shutdown.cancel();
        supervision.await.unwrap();

        for name in pods {
            w.kubectl(&["delete", "pod", name, "--wait=false"]);
        }
        for name in pods {
            w.until(name, "gone", Value::is_null).await;
        }
        nothing_is_left(&w).await;
        w.end().await;
    });
}

/// Containers, processes, mounts, namespaces, links; some of them go a moment after the pod's object.
async fn nothing_is_left(w: &World) {
    let dir = w.dir.path();
    let left = async || -> Vec<String> {
        let mut left: Vec<String> = w.runtime.containers().await.unwrap().iter().map(|c| c.id.clone()).collect();
        left.extend(processes(&["logger", &dir.to_string_lossy()]).iter().map(|pid| format!("logger {pid}")));
        left.extend(processes(&["containerd-shim", &dir.to_string_lossy()]).iter().map(|pid| format!("shim {pid}")));
        let mounts: Vec<PathBuf> = ["lib", "netns"].iter().flat_map(|sub| mounts_below(&dir.join(sub))).collect();
        left.extend(mounts.iter().map(|mount| format!("mount {}", mount.display())));
        left.extend(fs::read_dir(dir.join("netns")).into_iter().flatten().flatten().map(|e| format!("{e:?}")));
        left.extend(fs::read_dir(dir.join("run/io")).into_iter().flatten().flatten().map(|e| format!("{e:?}")));
        let links = Command::new("ip").args(["-o", "link"]).output().unwrap().stdout;
        let links = String::from_utf8(links).unwrap();
        left.extend(links.lines().filter(|line| line.contains("slc")).map(str::to_owned));
        left.extend(w.runtime.cgroups().pods().unwrap().into_iter().map(|(path, _)| path));
        left
    };
    let end = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let left = left().await;
        if left.is_empty() {
            return;
        }
        assert!(tokio::time::Instant::now() < end, "left: {left:#?}, {}", told_of_shims(dir));
        tokio::task::yield_now().await;
    }
}

/// Shims that are left, and what containerd said of their containers.
fn told_of_shims(dir: &Path) -> String {
    let log = fs::read_to_string(dir.join("containerd/containerd.log")).unwrap_or_default();
    let mut told = String::new();
    for pid in processes(&["containerd-shim", &dir.to_string_lossy()]) {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let id = line.split(" -id ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or("?");
        told += &format!("{line}\n");
        log.lines().filter(|line| line.contains(id)).for_each(|line| told += &format!("  {line}\n"));
    }
    told
}
