//! Where the bench works: network and mount namespaces of its own, so that links, pins and namespaces end with the process
//! however it ends, and one cgroup that is removed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare},
    unistd::Pid,
};
use sluice_dataplane::{
    Config, Dataplane, Redirect, Sizes, Traffic, Uplinks, Xdp,
    migrate::{BUILD, Build},
    model::Forwarding,
};
use sluice_e2e::run;

use crate::{lab::Interrupts, report::Measured};

/// Prefix of the cgroup's name; the process's id follows.
const CGROUP: &str = "sluice-bench-";
/// The node's own address.
pub(super) const NODE: [u8; 4] = [10, 1, 0, 1];
/// The gateway to other nodes' pods.
pub(super) const NEIGHBOUR: &str = "10.1.0.2";
/// The link that packets from outside arrive on, and its other end.
pub(super) const UPLINK: &str = "up0";
const OUTSIDE: &str = "out0";

pub(super) struct Place {
    cgroup: PathBuf,
    pub(super) interrupts: &'static Interrupts,
}

impl Place {
    /// Measures, and removes what the data plane left behind, whatever came of it.
    pub(super) fn cleaned(&self, measure: impl FnOnce() -> Result<Measured>) -> Result<Measured> {
        let measured = measure();
        let removed = Dataplane::remove_all(&self.config()?.pin_dir);
        let measured = measured?;
        removed?;
        Ok(measured)
    }

    /// Moves this thread, and all that it starts, into namespaces of their own. Needs root.
    pub(super) fn enter(interrupts: &'static Interrupts) -> Result<Place> {
        if !nix::unistd::geteuid().is_root() {
            bail!("the bench loads eBPF programs and makes network namespaces: run it as root");
        }
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("make namespaces of the bench's own")?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("keep mounts private")?;
        mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).context("mount a BPF file system")?;
        fs::create_dir_all("/run/netns").context("make /run/netns")?;
        mount(Some("tmpfs"), "/run/netns", Some("tmpfs"), MsFlags::empty(), none).context("mount over /run/netns")?;
        let root = cgroup_root()?;
        forget_dead(&root);
        let cgroup = root.join(format!("{CGROUP}{}", std::process::id()));
        fs::create_dir(&cgroup).with_context(|| format!("make {}", cgroup.display()))?;
        let place = Place { cgroup, interrupts };
        // The link of packets that programs are run on: they are for it.
        run("ip link set lo address 02:00:00:00:00:01 up")?;
        run(&format!("ip link add {UPLINK} type veth peer name {OUTSIDE}"))?;
        let [a, b, c, d] = NODE;
        run(&format!("ip address add {a}.{b}.{c}.{d}/24 dev {UPLINK}"))?;
        run(&format!("ip link set {OUTSIDE} up"))?;
        run(&format!("ip link set {UPLINK} up"))?;
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("forward packets")?;
        // Nobody answers on the other end: it is never asked.
        run(&format!("ip neighbour replace {NEIGHBOUR} lladdr 02:00:00:00:00:02 dev {UPLINK} nud permanent"))?;
        run(&format!("ip route add 10.245.0.0/16 via {NEIGHBOUR}"))?;
        run(&format!("ip route add default via {NEIGHBOUR}"))?;
        Ok(place)
    }

    /// The cgroup whose sockets are translated.
    pub(super) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// A data plane of a node here. Pods are in 10.244.0.0/16, other nodes' pods in 10.245.0.0/16.
    pub(super) fn load(&self) -> Result<Dataplane> {
        Dataplane::load(self.config()?).context("load the data plane")
    }

    /// The same, with a flow map that has grown to hold so many entries.
    pub(super) fn load_grown(&self, flows: u32) -> Result<Dataplane> {
        let build = Build { start: Sizes { flows, ..Sizes::START }, ..BUILD };
        Dataplane::load_build(self.config()?, Traffic::best(), build).context("load the data plane")
    }

    pub(super) fn config(&self) -> Result<Config> {
        config(&self.cgroup)
    }
}

/// The data plane of a node here.
pub(super) fn config(cgroup: &Path) -> Result<Config> {
    Ok(Config {
        node: "here".into(),
        cgroup: Some(cgroup.to_path_buf()),
        pin_dir: "/sys/fs/bpf/bench".into(),
        node_addresses: vec![NODE.into()],
        node_ports: 30000..=32767,
        node_port_addresses: sluice_dataplane::NodePortAddresses::All,
        pod_range: Some("10.244.0.0/16".parse().map_err(anyhow::Error::msg)?),
        cluster_range: Some("10.244.0.0/15".parse().map_err(anyhow::Error::msg)?),
        uplinks: Uplinks::Named(vec![UPLINK.into()]),
        xdp: Xdp::Always,
        forwarding: Forwarding::Snat,
        redirect: Redirect::On,
    })
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.cgroup) {
            eprintln!("the cgroup {} is left behind: {error}", self.cgroup.display());
        }
    }
}

/// Removes cgroups of benches that were killed.
fn forget_dead(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.strip_prefix(CGROUP).is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Only an empty one goes.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

fn cgroup_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let path = line.and_then(|line| line.split(' ').nth(1));
    path.map(PathBuf::from).context("no cgroup v2 tree is mounted")
}

/// Keeps this thread, and those that it starts meanwhile, on the last CPU it may use, where the least else happens.
pub(super) fn on_one_cpu<R>(act: impl FnOnce() -> Result<R>) -> Result<R> {
    let this = Pid::from_raw(0);
    let before = sched_getaffinity(this).context("ask for the CPUs")?;
    let last = (0..CpuSet::count()).rev().find(|cpu| before.is_set(*cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(last.context("no CPU may be used")?)?;
    sched_setaffinity(this, &one).context("stay on one CPU")?;
    let done = act();
    sched_setaffinity(this, &before).context("use all CPUs again")?;
    done
}
