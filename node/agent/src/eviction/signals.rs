//! What the node has left of what its pods share, and when that is too little. Pure but for the reading.

use std::fs;
use std::path::Path;

use crate::limits;
use crate::node::machine::available_memory;

/// Amounts that are left, beside all there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// Bytes of memory a new process could have.
    pub memory: u64,
    /// Bytes on the filesystem of the daemon's directory.
    pub disk: Room,
    pub inodes: Room,
    pub pids: Room,
}

/// How much of something is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    pub left: u64,
    pub all: u64,
}

impl Room {
    /// True if less than so many of a hundred parts are left, and less than `enough`; false where nothing is known.
    pub fn is_short(self, percent: u64, enough: u64) -> bool {
        self.all > 0 && self.left < enough && u128::from(self.left) * 100 < u128::from(self.all) * u128::from(percent)
    }

    /// The parts of a hundred that are in use.
    pub fn used_percent(self) -> u64 {
        let used = u128::from(self.all.saturating_sub(self.left));
        u64::try_from(used * 100 / u128::from(self.all.max(1))).unwrap_or(100)
    }
}

/// When a node is short: upstream's percentages, unless told otherwise, but never while there is enough in bytes: a
/// tenth of a large disk is room for many pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Bytes of memory that stay free.
    pub memory: u64,
    /// Parts of a hundred that stay free.
    pub disk: u64,
    pub inodes: u64,
    pub pids: u64,
    /// Bytes of the disk that are enough, whatever part of it they are.
    pub disk_enough: u64,
    /// The same before images are collected.
    pub images_enough: u64,
    /// Parts of a hundred of the disk in use from which, and down to which, unused images are collected.
    pub images_high: u64,
    pub images_low: u64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds {
            memory: limits::EVICTION_MEMORY,
            disk: limits::EVICTION_DISK,
            inodes: limits::EVICTION_INODES,
            pids: limits::EVICTION_PIDS,
            disk_enough: limits::DISK_ENOUGH,
            images_enough: limits::IMAGES_ENOUGH,
            images_high: limits::IMAGES_HIGH,
            images_low: limits::IMAGES_LOW,
        }
    }
}

/// Conditions of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pids: bool,
}

impl Pressure {
    /// True if there is any.
    pub fn any(self) -> bool {
        self.memory || self.disk || self.pids
    }

    /// Upstream's names of those there are.
    pub fn names(self) -> Vec<&'static str> {
        let all = [(self.memory, "MemoryPressure"), (self.disk, "DiskPressure"), (self.pids, "PIDPressure")];
        all.into_iter().filter(|(on, _)| *on).map(|(_, name)| name).collect()
    }
}

impl Signals {
    /// Reads them; what cannot be read counts as plenty.
    pub fn read(dir: &Path) -> Signals {
        let stat = nix::sys::statvfs::statvfs(dir).ok();
        // As `df` counts: blocks kept back for others are no part of it.
        let disk = stat.as_ref().map(|s| {
            let left = s.blocks_available() * s.fragment_size();
            let used = s.blocks().saturating_sub(s.blocks_free()) * s.fragment_size();
            Room { left, all: left + used }
        });
        let inodes = stat.as_ref().map(|s| Room { left: s.files_available(), all: s.files() });
        Signals {
            memory: available_memory(),
            disk: disk.unwrap_or_default(),
            inodes: inodes.unwrap_or_default(),
            pids: pids().unwrap_or_default(),
        }
    }

    /// What there is too little of.
    pub fn pressure(&self, t: &Thresholds) -> Pressure {
        Pressure {
            memory: self.memory > 0 && self.memory < t.memory,
            disk: self.disk.is_short(t.disk, t.disk_enough) || self.inodes.is_short(t.inodes, limits::INODES_ENOUGH),
            pids: self.pids.is_short(t.pids, u64::MAX),
        }
    }
}

/// Process numbers: the kernel's bound, less the tasks there are.
fn pids() -> Option<Room> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let all = number("/proc/sys/kernel/pid_max")?.min(number("/proc/sys/kernel/threads-max")?);
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    let tasks: u64 = load.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    Some(Room { left: all.saturating_sub(tasks), all })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds() {
        let room = |left, all| Room { left, all };
        let plenty = Signals { memory: 1 << 30, disk: room(50, 100), inodes: room(50, 100), pids: room(5000, 10_000) };
        for (signals, expected) in [
            (plenty, &[][..]),
            (Signals { memory: (100 << 20) - 1, ..plenty }, &["MemoryPressure"][..]),
            (Signals { disk: room(9, 100), ..plenty }, &["DiskPressure"]),
            (Signals { disk: room(10, 100), ..plenty }, &[]),
            (Signals { disk: room(3 << 30, 100 << 30), ..plenty }, &[]),
            (Signals { disk: room(1 << 30, 100 << 30), ..plenty }, &["DiskPressure"]),
            (Signals { inodes: room(4, 100), ..plenty }, &["DiskPressure"]),
            (Signals { pids: room(99, 10_000), ..plenty }, &["PIDPressure"]),
            (Signals::default(), &[]),
        ] {
            assert_eq!(signals.pressure(&Thresholds::default()).names(), expected, "{signals:?}");
        }
        assert_eq!(room(15, 100).used_percent(), 85);
        let here = Signals::read(Path::new("/"));
        assert!(here.disk.all > 0 && here.pids.all > 0 && here.memory > 0, "{here:?}");
    }
}
