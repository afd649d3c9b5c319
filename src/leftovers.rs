//! Ends what is left of this installation's pods without asking containerd, for `reset`: every
//! process in the instance's cgroups, in every hierarchy, then the cgroups themselves. Whoever called
//! is moved out first and never killed. Reads and writes the kernel's files only.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use sluice_runtime::cgroup::Cgroups;

/// How often the groups are looked through: a process that forks while it is killed leaves its child to the next round.
const ROUNDS: usize = 100;
/// Time for the killed processes to end; one that waits for a dead disk may not.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two rounds in which nobody was there to be waited for.
const PAUSE: Duration = Duration::from_millis(20);

/// Kills every process in the instance's cgroups and removes the groups; says how many were killed.
///
/// # Errors
/// When a process does not end or a group cannot be removed; both may be tried again.
pub(crate) fn remove(instance: &str) -> Result<usize> {
    let groups = groups(instance)?;
    leave(&groups)?;
    let until = Instant::now() + PATIENCE;
    let cgroups = Cgroups::new(instance);
    let mut killed = 0;
    for _ in 1..ROUNDS {
        let dying = kill(instance, &groups)?;
        killed += dying.len();
        for (pid, process) in &dying {
            wait(process, until).with_context(|| format!("process {pid} does not end"))?;
        }
        if dying.is_empty() {
            if cgroups.remove_all().is_ok() {
                return Ok(killed);
            }
            std::thread::sleep(PAUSE);
        }
    }
    cgroups.remove_all()?;
    Ok(killed)
}

/// The instance's group in every hierarchy that is mounted and has it.
fn groups(instance: &str) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    let roots = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (target, kind) = (fields.next()?, fields.next()?);
        matches!(kind, "cgroup" | "cgroup2").then(|| Path::new(target).join(instance))
    });
    Ok(roots.filter(|group| group.is_dir()).collect())
}

/// Moves this process and those that it was called by (a shell on a namespaced node) to the root groups.
fn leave(groups: &[PathBuf]) -> Result<()> {
    let callers = callers();
    for group in groups {
        let root = group.parent().unwrap_or(group).join("cgroup.procs");
        for pid in members(group).intersection(&callers) {
            fs::write(&root, pid.to_string())
                .with_context(|| format!("cannot move process {pid} out of the cgroup {}", group.display()))?;
        }
    }
    Ok(())
}

/// This process, its parent, and so on.
fn callers() -> BTreeSet<i32> {
    let parent = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before may hold anything, but the last bracket ends it.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok().filter(|pid| *pid > 0)
    };
    let own = i32::try_from(std::process::id()).ok();
    std::iter::successors(own, parent).collect()
}

/// The processes in a group and below it.
fn members(group: &Path) -> BTreeSet<i32> {
    // A group that has just gone holds nobody; a process of another namespace reads as 0.
    let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut all: BTreeSet<i32> = procs.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect();
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(members(&entry.path()));
        }
    }
    all
}

/// Kills everybody in the groups; returns those that are to be waited for.
fn kill(instance: &str, groups: &[PathBuf]) -> Result<Vec<(i32, OwnedFd)>> {
    let pids: BTreeSet<i32> = groups.iter().flat_map(|group| members(group)).collect();
    let mut dying = Vec::new();
    for pid in pids {
        let Some(known) = Pid::from_raw(pid) else { continue };
        let process = match pidfd_open(known, PidfdFlags::empty()) {
            Err(Errno::SRCH) => continue,
            other => other.with_context(|| format!("cannot watch process {pid}"))?,
        };
        // Read after the descriptor was opened: its number may be another process's by now.
        if is_member(pid, instance) {
            match pidfd_send_signal(&process, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => dying.push((pid, process)),
                Err(error) => return Err(error).with_context(|| format!("cannot kill process {pid}")),
            }
        }
    }
    Ok(dying)
}

fn is_member(pid: i32, instance: &str) -> bool {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    groups
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .any(|path| path.split('/').any(|part| part == instance))
}

/// Until the process has ended.
fn wait(process: &OwnedFd, until: Instant) -> Result<()> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: i64::try_from(left.as_secs())?, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left)) {
            Ok(0) => bail!("it was killed {} seconds ago", PATIENCE.as_secs()),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::Command};

    use super::*;

    #[test]
    fn everybody_in_the_groups_is_killed_and_the_groups_are_removed() {
        assert!(nix::unistd::geteuid().is_root(), "this test makes cgroups: run it as root");
        let instance = format!("sluice-test-left-{}", std::process::id());
        let root = crate::machine::cgroup_root();
        let mut children = Vec::new();
        for below in ["kubepods/podx/c1", "kubepods/podx/c2"] {
            let group = root.join(&instance).join(below);
            fs::create_dir_all(&group).unwrap();
            let child = Command::new("sleep").arg("1000").spawn().unwrap();
            fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
            children.push(child);
        }
        let bystander = Command::new("sleep").arg("1000").spawn();
        assert_eq!(remove(&instance).unwrap(), 2);
        for mut child in children {
            assert_eq!(child.wait().unwrap().signal(), Some(9));
        }
        let mut bystander = bystander.unwrap();
        assert!(bystander.try_wait().unwrap().is_none());
        bystander.kill().unwrap();
        bystander.wait().unwrap();
        assert!(!root.join(&instance).exists());
        assert_eq!(remove(&instance).unwrap(), 0);
    }
}
