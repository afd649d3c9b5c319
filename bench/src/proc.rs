//! What the kernel says about processes: which are a cluster's, their CPU time, memory and writes.

use std::{fs, path::Path};

use anyhow::{Context, Result};

/// The unit of times in /proc/PID/stat: the same on every architecture that Linux has today (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Resident memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Memory {
    pub(crate) rss: u64,
    /// Pages that several processes share count in parts.
    pub(crate) pss: u64,
    /// The part of `pss` that is of no file.
    pub(crate) anonymous: u64,
}

/// The processes of a one-node cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cluster {
    pub(crate) daemon: u32,
    pub(crate) containerd: Vec<u32>,
    pub(crate) shims: Vec<u32>,
    /// One per container.
    pub(crate) loggers: Vec<u32>,
}

/// One process as the process table has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    pid: u32,
    parent: u32,
    words: Vec<String>,
}

impl Cluster {
    /// Finds them: the daemon is known, its containerd has `config` on its command line and its shims have `socket`.
    pub(crate) fn find(daemon: u32, config: &Path, socket: &Path) -> Self {
        sort(&all(), daemon, &config.to_string_lossy(), &socket.to_string_lossy())
    }
}

/// CPU time of a process so far, in seconds: all its threads, without its children.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid}"))?;
    ticks(&stat).map(|ticks| ticks / TICKS_PER_SECOND).with_context(|| format!("/proc/{pid}/stat: {stat}"))
}

/// CPU time that all processes and the kernel together have used so far, in seconds.
pub(crate) fn machine_cpu_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    busy_ticks(&stat).map(|ticks| ticks / TICKS_PER_SECOND).context("/proc/stat has no line of all CPUs")
}

/// Bytes that a process has caused to be written to disks so far.
pub(crate) fn written(pid: u32) -> Result<u64> {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).with_context(|| format!("process {pid}"))?;
    field(&io, "write_bytes").with_context(|| format!("/proc/{pid}/io: {io}"))
}

/// Resident memory of a process.
pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).with_context(|| format!("process {pid}"))?;
    resident(&rollup).with_context(|| format!("/proc/{pid}/smaps_rollup: {rollup}"))
}

fn ticks(stat: &str) -> Option<f64> {
    // The program's name in parentheses may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11).map(str::parse::<f64>);
    Some(fields.next()?.ok()? + fields.next()?.ok()?)
}

/// Everything but waiting: user, nice, system, interrupts, soft interrupts.
fn busy_ticks(stat: &str) -> Option<f64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<f64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    Some([0, 1, 2, 5, 6].iter().filter_map(|place| fields.get(*place)).sum())
}

fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.split_whitespace().next()?.parse().ok()
}

fn resident(rollup: &str) -> Option<Memory> {
    let bytes = |name| field(rollup, name).map(|kilobytes| kilobytes * 1024);
    Some(Memory { rss: bytes("Rss")?, pss: bytes("Pss")?, anonymous: bytes("Pss_Anon")? })
}

fn sort(all: &[Process], daemon: u32, config: &str, socket: &str) -> Cluster {
    let pids = |is: &dyn Fn(&Process) -> bool| -> Vec<u32> { all.iter().filter(|p| is(p)).map(|p| p.pid).collect() };
    let shims = pids(&|p| {
        named(p, |name| name.starts_with("containerd-shim"))
            && p.words.iter().skip_while(|word| *word != "-address").nth(1).is_some_and(|word| word == socket)
    });
    let is_logger = |p: &Process| {
        p.words.get(1).is_some_and(|word| word == "logger") && (shims.contains(&p.parent) || p.parent == daemon)
    };
    Cluster {
        daemon,
        containerd: pids(&|p| named(p, |name| name == "containerd") && p.words.iter().any(|word| word == config)),
        loggers: pids(&is_logger),
        shims,
    }
}

fn named(process: &Process, is: impl Fn(&str) -> bool) -> bool {
    let program = process.words.first().map(Path::new).and_then(Path::file_name);
    program.is_some_and(|name| is(&name.to_string_lossy()))
}

/// Every process; one that ends meanwhile is left out.
fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| process(entry.file_name().to_str()?.parse().ok()?)).collect()
}

fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
    let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    Some(Process { pid, parent, words })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_user_and_system() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 900 0 0 0 125 75 9 9 20 0 1 0 100 1000 10";
        assert_eq!(ticks(stat), Some(200.0));
        assert_eq!(ticks("7 (short"), None);
        assert!(cpu_seconds(std::process::id()).unwrap() >= 0.0);
    }

    #[test]
    fn waiting_is_no_cpu_time() {
        assert_eq!(busy_ticks("cpu  100 1 20 5000 300 4 5 0 0 0\ncpu0 9 9 9 9\n"), Some(130.0));
        assert_eq!(busy_ticks("cpu0 9 9 9 9\n"), None);
    }

    #[test]
    fn memory_and_writes_are_bytes() {
        let rollup = "5581e5c3d000-7ffc r--p 00000000 00:00 0 [rollup]\nRss:  100 kB\nPss:  60 kB\nPss_Anon: 10 kB\n";
        assert_eq!(resident(rollup), Some(Memory { rss: 102_400, pss: 61_440, anonymous: 10_240 }));
        assert_eq!(field("wchar: 5\nwrite_bytes: 8192\ncancelled_write_bytes: 1\n", "write_bytes"), Some(8192));
        assert_eq!(resident("Rss: 1 kB\n"), None);
    }

    #[test]
    fn a_clusters_processes_are_told_from_others() {
        let process =
            |pid, parent, line: &str| Process { pid, parent, words: line.split(' ').map(str::to_owned).collect() };
        let all = [
            process(10, 1, "/target/sluice up --data-dir /d"),
            process(20, 10, "containerd --config /d/containerd/config.toml"),
            process(21, 1, "/usr/bin/containerd"),
            process(30, 1, "/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -id a -address /r/containerd.sock"),
            process(31, 1, "/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -id b -address /run/other.sock"),
            process(40, 30, "/target/sluice logger log=x"),
            process(41, 31, "/target/sluice logger log=y"),
            process(42, 10, "/target/sluice logger log=z a b"),
            process(50, 30, "/echo serve"),
        ];
        let found = sort(&all, 10, "/d/containerd/config.toml", "/r/containerd.sock");
        assert_eq!(found, Cluster { daemon: 10, containerd: vec![20], shims: vec![30], loggers: vec![40, 42] });
    }
}
