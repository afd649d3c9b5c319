//! Installs what is missing with the system's package manager (Debian's apt-get), and says so.

use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::sys::statvfs::statvfs;

use crate::image::BUSYBOX;
use crate::sh;

/// The oldest minor version of kubectl that the tests are written for.
const TESTED_KUBECTL: u32 = 30;
/// Bytes that the tests' nodes need on their disk: twice what they call pressure.
const TESTED_ROOM: u64 = 4 << 30;

/// What the caller is about to do; decides which needs count.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Compile the workspace and the eBPF object.
    Build,
    /// Run a cluster.
    Up,
    /// Measure, beside what others use.
    Bench,
    /// Run every test.
    Everything,
    /// Build the box of the labs, of which the others need nothing.
    Box,
}

enum Probe {
    Program(&'static str),
    File(&'static str),
}

struct Need {
    from: Purpose,
    probe: Probe,
    packages: &'static [&'static str],
    why: &'static str,
}

const NEEDS: &[Need] = &[
    need(Purpose::Build, Probe::Program("cc"), &["build-essential"], "links the binaries"),
    need(Purpose::Build, Probe::Program("make"), &["build-essential"], "builds the allocator"),
    need(
        Purpose::Build,
        Probe::Program("protoc"),
        &["protobuf-compiler"],
        "compiles containerd's and etcd's protocols",
    ),
    need(
        Purpose::Build,
        Probe::File("/usr/include/google/protobuf/descriptor.proto"),
        &["libprotobuf-dev"],
        "the protocols' common definitions",
    ),
    need(Purpose::Build, Probe::File("/usr/bin/rustc"), &["rustc-web"], "compiles the eBPF programs"),
    need(
        Purpose::Build,
        Probe::File("/usr/share/doc/rust-web-src"),
        &["rust-web-src"],
        "the core library's source for the eBPF target",
    ),
    need(
        Purpose::Build,
        Probe::File("/usr/lib/llvm-22/bin/llvm-config"),
        &["llvm-22-dev", "libpolly-22-dev"],
        "links the eBPF programs",
    ),
    need(Purpose::Everything, Probe::Program("c++"), &["build-essential"], "compiles the fuzzer"),
    need(Purpose::Build, Probe::Program("dpkg-shlibdeps"), &["dpkg-dev"], "makes the Debian package"),
    need(Purpose::Up, Probe::Program("containerd"), &["containerd"], "runs containers"),
    need(Purpose::Up, Probe::Program("runc"), &["runc"], "runs containers"),
    need(Purpose::Up, Probe::Program("kubectl"), &["kubernetes-client"], "drives the cluster"),
    need(Purpose::Build, Probe::File(BUSYBOX), &["busybox-static"], "tools inside the sample image"),
    need(Purpose::Bench, Probe::Program("ip"), &["iproute2"], "makes namespaces"),
    need(
        Purpose::Bench,
        Probe::Program("iptables-restore"),
        &["iptables"],
        "kube-proxy's rules, for the bench to compare with",
    ),
    need(Purpose::Bench, Probe::Program("nft"), &["nftables"], "kube-proxy's rules, for the bench to compare with"),
    need(Purpose::Bench, Probe::Program("etcd"), &["etcd-server"], "the real etcd of tests and benches"),
    need(Purpose::Everything, Probe::Program("docker-registry"), &["docker-registry"], "the pull tests' real registry"),
    need(Purpose::Everything, Probe::Program("bird"), &["bird2"], "the routing test's real BGP speaker"),
    need(
        Purpose::Everything,
        Probe::Program("debootstrap"),
        &["debootstrap"],
        "the bare system that the package is tried on",
    ),
    need(Purpose::Everything, Probe::Program("chromium"), &["chromium"], "shows the benches' page"),
    need(Purpose::Everything, Probe::Program("sfdisk"), &["fdisk"], "reads the partition table of the labs' box"),
    need(Purpose::Everything, Probe::Program("qemu-system-x86_64"), &["qemu-system-x86"], "boots the second kernel"),
    need(Purpose::Everything, Probe::Program("qemu-img"), &["qemu-utils"], "reads back how disks are written"),
];

/// What the box is built with.
const BOX: &[Need] = &[
    need(Purpose::Box, Probe::Program("debootstrap"), &["debootstrap"], "makes the box's system"),
    need(Purpose::Box, Probe::Program("mke2fs"), &["e2fsprogs"], "makes the box's file system"),
    need(Purpose::Box, Probe::Program("qemu-img"), &["qemu-utils"], "makes the box's disk"),
];

const fn need(from: Purpose, probe: Probe, packages: &'static [&'static str], why: &'static str) -> Need {
    Need { from, probe, packages, why }
}

/// Makes sure that everything for `purpose` is there; installs the rest as root.
pub(crate) fn ensure(purpose: Purpose) -> Result<()> {
    install(&missing(purpose))?;
    // What was there by another version may have had to give way: it comes back by the one that fits.
    install(&missing(purpose))?;
    let still = packages(&missing(purpose));
    if still.is_empty() {
        return Ok(());
    }
    bail!("missing although apt-get installed it, as packages displace each other: {}", still.join(", "))
}

fn packages(needs: &[&Need]) -> Vec<&'static str> {
    needs.iter().flat_map(|need| need.packages.iter().copied()).collect()
}

fn missing(purpose: Purpose) -> Vec<&'static Need> {
    let needs = if purpose == Purpose::Box { BOX } else { NEEDS };
    needs.iter().filter(|need| need.from <= purpose && !present(&need.probe)).collect()
}

fn install(missing: &[&Need]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    for need in missing {
        sh::step(&format!("missing: {} ({})", need.packages.join(", "), need.why));
    }
    let packages = packages(missing);
    let by_hand = format!("install by hand: {}", packages.join(" "));
    if sh::which("apt-get").is_none() {
        bail!("this machine has no apt-get; {by_hand}");
    }
    sh::require_root("installing packages").context(by_hand.clone())?;
    sh::step(&format!("apt-get install {}", packages.join(" ")));
    apt(&["update", "-q"]).context(by_hand.clone())?;
    apt(&[&["install", "-y", "-q", "--no-install-recommends"], packages.as_slice()].concat()).context(by_hand)
}

/// The stories speak to the cluster as today's users do: with subcommands and flags that old kubectls lack.
pub(crate) fn require_kubectl() -> Result<()> {
    let said = sh::output(sh::command("kubectl").args(["version", "--client", "-o", "json"]))?;
    let version = &serde_json::from_str::<serde_json::Value>(&said)?["clientVersion"];
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u32>().ok();
    let minor = version["minor"].as_str().and_then(digits).unwrap_or_default();
    if minor < TESTED_KUBECTL {
        bail!(
            "the tests need kubectl 1.{TESTED_KUBECTL} or newer, this one is {}: put a newer one first on PATH \
             (`cargo xtask up` works with this one, too)",
            version["gitVersion"].as_str().unwrap_or("older")
        );
    }
    Ok(())
}

/// A node with less room than this on its disk says DiskPressure, and no pod of a story would ever start.
pub(crate) fn require_room() -> Result<()> {
    let dir = std::env::temp_dir();
    let stat = statvfs(&dir).with_context(|| format!("cannot read how much room {} has", dir.display()))?;
    let left = stat.blocks_available() * stat.fragment_size();
    if left < TESTED_ROOM {
        bail!(
            "the tests' nodes need {} GiB free in {}, there are {:.1}: free some (`cargo clean` in other checkouts), or \
             name a directory on another disk in TMPDIR",
            TESTED_ROOM >> 30,
            dir.display(),
            left as f64 / f64::from(1 << 30)
        );
    }
    Ok(())
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = sh::command("apt-get");
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
    sh::output(&mut command).map(drop)
}

fn present(probe: &Probe) -> bool {
    match probe {
        Probe::Program(name) => sh::which(name).is_some(),
        Probe::File(path) => Path::new(path).exists(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_builds_can_build_the_sample_image() {
        let needed = |need: &&Need| matches!(need.probe, Probe::File(BUSYBOX));
        assert!(NEEDS.iter().find(needed).is_some_and(|need| need.from == Purpose::Build));
    }
}
