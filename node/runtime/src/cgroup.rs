//! The pods' cgroups in upstream's layout (`kubepods/<class>/pod<uid>`), in hybrid v1 and in v2 hierarchies.
//!
//! On v1 the pod's group exists in the hierarchies that have limits or counters; runc makes the others. Everything is
//! blocking and fast: these are files in memory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Error, Resources, Result, Stats, sys};

/// `status.qosClass`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

/// v1 controllers that the pod's group is made in.
const POD_CONTROLLERS: [&str; 4] = ["cpu", "cpuacct", "memory", "pids"];
/// v2 controllers passed down.
const V2_CONTROLLERS: [&str; 5] = ["cpuset", "cpu", "io", "memory", "pids"];

/// This node's part of the cgroup tree.
#[derive(Clone, Debug)]
pub struct Cgroups {
    prefix: String,
    hierarchies: Vec<Hierarchy>,
}

#[derive(Clone, Debug)]
struct Hierarchy {
    root: PathBuf,
    /// v1 controllers; empty for v2.
    controllers: Vec<String>,
    v2: bool,
}

impl Cgroups {
    /// `prefix` as in [`crate::Config::cgroup_prefix`].
    pub fn new(prefix: &str) -> Self {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self { prefix: prefix.trim_matches('/').to_owned(), hierarchies: hierarchies(&table) }
    }

    /// The pod's cgroup below the root of every hierarchy: `/<prefix>/kubepods/burstable/pod<uid>`.
    pub fn pod(&self, qos: Qos, uid: &str) -> String {
        let class = match qos {
            Qos::Guaranteed => "",
            Qos::Burstable => "burstable/",
            Qos::BestEffort => "besteffort/",
        };
        format!("/{}/kubepods/{class}pod{uid}", self.prefix)
    }

    /// Makes it (parents too) and sets its limits; present is fine, limits are then updated.
    pub fn create(&self, path: &str, limits: &Resources) -> Result<()> {
        for hierarchy in &self.hierarchies {
            if hierarchy.v2 {
                hierarchy.make_v2(path)?;
            } else if hierarchy.controllers.iter().any(|name| POD_CONTROLLERS.contains(&name.as_str())) {
                make_dir(&hierarchy.at(path))?;
            }
            for (file, value) in hierarchy.limits(limits) {
                write(&hierarchy.at(path).join(file), &value)?;
            }
        }
        Ok(())
    }

    /// Removes it and what is left below it, in every hierarchy. Gone is success; busy is an error.
    pub fn remove(&self, path: &str) -> Result<()> {
        self.hierarchies.iter().try_for_each(|hierarchy| remove_tree(&hierarchy.at(path)))
    }

    /// Paths of the pods' cgroups that exist, with their uids.
    pub fn pods(&self) -> Result<Vec<(String, String)>> {
        let mut found = Vec::new();
        for hierarchy in &self.hierarchies {
            for class in ["", "/burstable", "/besteffort"] {
                let parent = format!("/{}/kubepods{class}", self.prefix);
                for name in folders(&hierarchy.at(&parent)) {
                    if let Some(uid) = name.strip_prefix("pod") {
                        found.push((format!("{parent}/{name}"), uid.to_owned()));
                    }
                }
            }
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// Removes all of this prefix.
    pub fn remove_all(&self) -> Result<()> {
        self.remove(&format!("/{}", self.prefix))
    }

    /// Counters of a cgroup (a pod's, or `<pod>/<container id>`).
    pub fn stats(&self, path: &str) -> Result<Stats> {
        let mut stats = Stats::default();
        let mut found = false;
        for hierarchy in &self.hierarchies {
            let dir = hierarchy.at(path);
            found |= dir.exists();
            if hierarchy.v2 {
                stats.read_v2(&dir);
            } else {
                stats.read_v1(&dir);
            }
        }
        if found { Ok(stats) } else { Err(Error::NotFound(format!("cgroup {path}"))) }
    }

    /// How many processes of the cgroup the kernel has killed for memory.
    pub fn oom_kills(&self, path: &str) -> u64 {
        let counts = self.hierarchies.iter().map(|hierarchy| {
            let file = if hierarchy.v2 { "memory.events" } else { "memory.oom_control" };
            field(&hierarchy.at(path).join(file), "oom_kill").unwrap_or_default()
        });
        counts.max().unwrap_or_default()
    }

    /// The directory in the v2 tree of this prefix (made if missing), where socket programs are attached.
    pub fn unified(&self) -> Result<PathBuf> {
        let v2 = self.hierarchies.iter().find(|hierarchy| hierarchy.v2).ok_or_else(|| {
            Error::InvalidSpec("no cgroup v2 hierarchy is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified".into())
        })?;
        let dir = v2.at(&format!("/{}", self.prefix));
        make_dir(&dir)?;
        Ok(dir)
    }
}

impl Hierarchy {
    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    /// On v2 a controller works in a group only if every parent passes it down.
    fn make_v2(&self, path: &str) -> Result<()> {
        let mut dir = self.root.clone();
        for part in path.trim_matches('/').split('/') {
            let available = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
            for controller in available.split_whitespace().filter(|name| V2_CONTROLLERS.contains(name)) {
                // One by one: a controller that cannot be passed on must not keep back the others.
                if let Err(error) = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}")) {
                    tracing::debug!(dir = %dir.display(), controller, %error, "controller not passed down");
                }
            }
            dir.push(part);
            make_dir(&dir)?;
        }
        Ok(())
    }

    /// Files and values of this hierarchy for some limits.
    fn limits(&self, limits: &Resources) -> Vec<(&'static str, String)> {
        let mut files = Vec::new();
        if self.v2 {
            let passed = fs::read_to_string(self.root.join("cgroup.controllers")).unwrap_or_default();
            let has = |controller: &str| passed.split_whitespace().any(|name| name == controller);
            if has("cpu") {
                files.extend(limits.cpu_shares.map(|shares| ("cpu.weight", cpu_weight(shares).to_string())));
                files.extend(limits.cpu_quota.map(|quota| {
                    let quota = if quota > 0 { quota.to_string() } else { "max".into() };
                    ("cpu.max", format!("{quota} {}", limits.cpu_period.unwrap_or(100_000)))
                }));
            }
            if has("memory") {
                files.extend(limits.memory_limit.map(|limit| ("memory.max", or_max(limit))));
            }
            if has("pids") {
                files.extend(limits.pids_limit.map(|limit| ("pids.max", or_max(limit))));
            }
            return files;
        }
        if self.has("cpu") {
            files.extend(limits.cpu_shares.map(|shares| ("cpu.shares", shares.to_string())));
            files.extend(limits.cpu_period.map(|period| ("cpu.cfs_period_us", period.to_string())));
            files.extend(limits.cpu_quota.map(|quota| ("cpu.cfs_quota_us", quota.to_string())));
        }
        if self.has("memory") {
            files.extend(limits.memory_limit.map(|limit| ("memory.limit_in_bytes", limit.to_string())));
        }
        if self.has("pids") {
            files.extend(limits.pids_limit.map(|limit| ("pids.max", or_max(limit))));
        }
        files
    }
}

impl Stats {
    fn read_v1(&mut self, dir: &Path) {
        if let Some(usage) = number(&dir.join("cpuacct.usage")) {
            self.cpu_usage = Duration::from_nanos(usage);
        }
        if let Some(usage) = number(&dir.join("memory.usage_in_bytes")) {
            let stat = dir.join("memory.stat");
            self.memory_usage = usage;
            self.memory_working_set = usage.saturating_sub(field(&stat, "total_inactive_file").unwrap_or_default());
            self.memory_rss = field(&stat, "total_rss").unwrap_or_default();
        }
        self.pids = number(&dir.join("pids.current")).unwrap_or(self.pids);
    }

    fn read_v2(&mut self, dir: &Path) {
        // Without the controllers (they are in v1 on a hybrid machine) these files do not exist or are empty.
        if let Some(usage) = number(&dir.join("memory.current")) {
            let stat = dir.join("memory.stat");
            self.memory_usage = usage;
            self.memory_working_set = usage.saturating_sub(field(&stat, "inactive_file").unwrap_or_default());
            self.memory_rss = field(&stat, "anon").unwrap_or_default();
        }
        if self.cpu_usage.is_zero()
            && let Some(usage) = field(&dir.join("cpu.stat"), "usage_usec")
        {
            self.cpu_usage = Duration::from_micros(usage);
        }
        self.pids = number(&dir.join("pids.current")).unwrap_or(self.pids);
    }
}

/// `cpu.shares` (2–262144) as `cpu.weight` (1–10000), as runc and kubelet convert it.
fn cpu_weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

fn or_max(limit: i64) -> String {
    if limit > 0 { limit.to_string() } else { "max".into() }
}

fn hierarchies(table: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in table.lines() {
        let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
        let Some(root) = mount.split(' ').nth(4).map(sys::unescape) else { continue };
        let mut fields = filesystem.split(' ');
        let kind = fields.next().unwrap_or_default();
        let options = fields.nth(1).unwrap_or_default();
        if !matches!(kind, "cgroup" | "cgroup2") || found.iter().any(|known| known.root == root) {
            continue;
        }
        let v2 = kind == "cgroup2";
        let controllers = if v2 { "" } else { options };
        found.push(Hierarchy { root, v2, controllers: controllers.split(',').map(str::to_owned).collect() });
    }
    found
}

fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::io(format!("making cgroup {}", dir.display())))
}

fn write(file: &Path, value: &str) -> Result<()> {
    fs::write(file, value).map_err(Error::io(format!("writing {value} to {}", file.display())))
}

fn remove_tree(dir: &Path) -> Result<()> {
    for name in folders(dir) {
        remove_tree(&dir.join(name))?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing cgroup {}", dir.display()))(error))
        }
        _ => Ok(()),
    }
}

fn folders(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The number after `name` in a file of `name number` lines.
fn field(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn both_layouts_are_understood() {
        let table = "30 24 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755\n\
            31 30 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n\
            33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct\n";
        let found = hierarchies(table);
        assert_eq!(found.len(), 2);
        assert!(found[0].v2 && found[0].root == Path::new("/sys/fs/cgroup/unified"));
        assert!(found[1].has("cpu") && found[1].has("cpuacct") && !found[1].has("memory"));
    }

    #[test]
    fn shares_become_weights() {
        for (shares, weight) in [(0, 1), (2, 1), (1024, 39), (262_144, 10_000), (u64::MAX, 10_000)] {
            assert_eq!(cpu_weight(shares), weight, "{shares}");
        }
    }

    #[test]
    fn a_pods_group_lives_and_dies_with_its_limits() {
        assert!(nix::unistd::geteuid().is_root(), "this test makes cgroups: run it as root");
        let cgroups = Cgroups::new(&format!("sluice-test-{}", std::process::id()));
        let path = cgroups.pod(Qos::Burstable, "u1");
        let limits = Resources {
            cpu_shares: Some(512),
            memory_limit: Some(64 << 20),
            pids_limit: Some(32),
            ..Resources::default()
        };
        cgroups.create(&path, &limits).unwrap();
        cgroups.create(&path, &limits).unwrap();
        assert_eq!(cgroups.pods().unwrap(), [(path.clone(), "u1".to_owned())]);
        assert_eq!(cgroups.stats(&path).unwrap().pids, 0);
        assert!(cgroups.unified().unwrap().is_dir());
        cgroups.remove_all().unwrap();
        cgroups.remove_all().unwrap();
        assert!(cgroups.pods().unwrap().is_empty());
        assert!(cgroups.stats(&path).unwrap_err().is_not_found());
    }
}
