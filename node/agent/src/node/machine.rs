//! What the machine is: processors, memory, disk, names and versions, read from /proc, /sys and /etc.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::limits;

/// Facts about the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    pub cpus: usize,
    /// Bytes.
    pub memory: u64,
    /// Bytes of the filesystem that holds the daemon's directory.
    pub disk: u64,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel: String,
    pub os_image: String,
    /// In Go's words: `amd64`, `arm64`.
    pub architecture: &'static str,
}

impl Machine {
    /// Reads all of it; what cannot be read is empty.
    pub fn read(dir: &Path) -> Machine {
        let line = |path: &str| fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default();
        let machine_id = line("/etc/machine-id");
        let uuid = line("/sys/class/dmi/id/product_uuid");
        let disk = nix::sys::statvfs::statvfs(dir).map_or(0, |s| s.blocks() * s.fragment_size());
        Machine {
            cpus: line("/proc/stat").lines().filter(|l| l.starts_with("cpu") && !l.starts_with("cpu ")).count(),
            memory: memory(&line("/proc/meminfo"), "MemTotal"),
            disk,
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            kernel: line("/proc/sys/kernel/osrelease"),
            os_image: os_image(&line("/etc/os-release")),
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
        }
    }

    /// `status.capacity`.
    pub fn capacity(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("cpu".into(), self.cpus.to_string()),
            ("memory".into(), format!("{}Ki", self.memory / 1024)),
            ("ephemeral-storage".into(), format!("{}Ki", self.disk / 1024)),
            ("hugepages-1Gi".into(), "0".into()),
            ("hugepages-2Mi".into(), "0".into()),
            ("pods".into(), limits::MAX_PODS.to_string()),
        ])
    }

    /// `status.allocatable`: less what eviction keeps free (100 MiB of memory, a tenth of the disk).
    pub fn allocatable(&self) -> BTreeMap<String, String> {
        let mut map = self.capacity();
        map.insert("memory".into(), format!("{}Ki", self.memory.saturating_sub(limits::EVICTION_MEMORY) / 1024));
        map.insert("ephemeral-storage".into(), (self.disk / 10 * 9).to_string());
        map
    }
}

/// Bytes of memory a new process could have now.
pub fn available_memory() -> u64 {
    memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable")
}

/// Seconds that all processors together were busy since the boot.
pub fn cpu_seconds() -> f64 {
    busy(&fs::read_to_string("/proc/stat").unwrap_or_default())
}

/// Hundredths of seconds of every kind but idle and waiting for input; what guests use is in the others.
fn busy(stat: &str) -> f64 {
    let fields = stat.lines().find_map(|l| l.strip_prefix("cpu ")).unwrap_or_default().split_whitespace();
    let ticks =
        fields.take(8).enumerate().filter(|(i, _)| !matches!(i, 3 | 4)).filter_map(|(_, f)| f.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}

fn memory(meminfo: &str, key: &str) -> u64 {
    let line = meminfo.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}

fn os_image(os_release: &str) -> String {
    let name = os_release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    name.map(|n| n.trim_matches('"').to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_machine() {
        let m = Machine::read(Path::new("/"));
        assert!(m.cpus > 0 && m.memory > 1 << 20 && m.disk > 0, "{m:?}");
        assert!(!m.kernel.is_empty() && !m.boot_id.is_empty());
        assert!(m.allocatable()["memory"] != m.capacity()["memory"]);
        assert!(available_memory() > 0);
    }

    #[test]
    fn parses() {
        assert_eq!(memory("MemTotal:       2048 kB\nMemFree: 1 kB\n", "MemTotal"), 2 << 20);
        assert_eq!(memory("", "MemTotal"), 0);
        assert_eq!(busy("cpu  100 20 30 9999 8888 4 5 6 7 8\ncpu0 1 1\n"), 1.65);
        assert_eq!(os_image("ID=x\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
    }
}
