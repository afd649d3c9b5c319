//! From a container's specification to the OCI runtime's, with upstream's defaults. Pure: what the machine can do and who
//! the user is come in.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capability, Linux, LinuxCapabilities, LinuxCpu, LinuxDevice, LinuxDeviceCgroup, LinuxMemory, LinuxNamespace,
    LinuxNamespaceType, LinuxPids, LinuxResources, LinuxSeccomp, Mount as OciMount, Process, Root, Spec, User,
};

use crate::host::Host;
use crate::seccomp;
use crate::users::Identity;
use crate::{
    ContainerSpec, Error, ImageConfig, Mount, MountSource, PidMode, Propagation, Resources, Result, Seccomp, Security,
};

/// What containerd gives every container.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Builds the specification. `devices` are the resolved devices of `spec`, or the host's for a privileged container;
/// `profile` is the file that `spec` names.
pub(crate) fn build(
    spec: &ContainerSpec,
    image: &ImageConfig,
    user: &Identity,
    host: &Host,
    devices: Vec<LinuxDevice>,
    profile: Option<LinuxSeccomp>,
) -> Result<Spec> {
    let process = process(spec, image, user, host)?;
    let seccomp = match &spec.security.seccomp {
        _ if spec.security.privileged => None,
        Seccomp::Unconfined => None,
        Seccomp::RuntimeDefault => {
            process.capabilities().as_ref().and_then(|sets| sets.bounding().as_ref()).map(seccomp::default)
        }
        Seccomp::Localhost(_) => profile,
    };
    let mut linux = linux(spec, host, devices);
    linux.set_seccomp(seccomp);
    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs")).set_readonly(Some(spec.security.read_only_root));
    let mut built = Spec::default();
    built
        .set_version("1.0.2".into())
        .set_root(Some(root))
        .set_process(Some(process))
        .set_hostname(spec.hostname.clone())
        .set_mounts(Some(mounts(spec)))
        .set_annotations(Some(spec.annotations.clone().into_iter().collect()))
        .set_linux(Some(linux));
    Ok(built)
}

fn process(spec: &ContainerSpec, image: &ImageConfig, user: &Identity, host: &Host) -> Result<Process> {
    let args = arguments(spec, image);
    if args.is_empty() {
        return Err(Error::InvalidSpec("no command specified: neither the container nor its image has one".into()));
    }
    let mut ids = User::default();
    ids.set_uid(user.uid).set_gid(user.gid).set_additional_gids(Some(user.groups.clone()));
    let cwd = match &spec.cwd {
        Some(cwd) => cwd.clone(),
        None if image.working_dir.is_empty() => PathBuf::from("/"),
        None => PathBuf::from(&image.working_dir),
    };
    let mut process = Process::default();
    process
        .set_terminal(Some(spec.tty))
        .set_user(ids)
        .set_args(Some(args))
        .set_env(Some(environment(spec, image)))
        .set_cwd(cwd)
        .set_capabilities(Some(capabilities(&spec.security, host)?))
        .set_rlimits(None)
        .set_oom_score_adj(oom_score_adj(&spec.resources, host))
        .set_no_new_privileges(Some(spec.security.no_new_privileges && !spec.security.privileged));
    Ok(process)
}

/// Kubernetes' rule: a command replaces the image's entry point and drops its arguments.
fn arguments(spec: &ContainerSpec, image: &ImageConfig) -> Vec<String> {
    let (first, rest) = match (spec.command.is_empty(), spec.args.is_empty()) {
        (false, _) => (&spec.command, &spec.args),
        (true, false) => (&image.entrypoint, &spec.args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    first.iter().chain(rest).cloned().collect()
}

fn environment(spec: &ContainerSpec, image: &ImageConfig) -> Vec<String> {
    let terminal = spec.tty.then(|| "TERM=xterm".to_owned());
    let hostname = spec.hostname.iter().map(|name| format!("HOSTNAME={name}"));
    let own = spec.env.iter().map(|(name, value)| format!("{name}={value}"));
    let all = [DEFAULT_PATH.to_owned()]
        .into_iter()
        .chain(terminal)
        .chain(hostname)
        .chain(image.env.iter().cloned())
        .chain(own);
    let mut merged: Vec<String> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for variable in all {
        let name = variable.split('=').next().unwrap_or_default().to_owned();
        match places.get(&name) {
            Some(place) => merged[*place] = variable,
            None => {
                places.insert(name, merged.len());
                merged.push(variable);
            }
        }
    }
    merged
}

/// Additions and removals over the default; nothing that we do not hold ourselves, as the kernel would refuse the lot.
fn capabilities(security: &Security, host: &Host) -> Result<LinuxCapabilities> {
    let held: HashSet<Capability> = if security.privileged {
        host.capabilities.clone()
    } else {
        let mut wanted = names(DEFAULT_CAPABILITIES)?;
        let drops_all = security.drop_capabilities.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
        let adds_all = security.add_capabilities.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
        if drops_all {
            wanted.clear();
        }
        if adds_all {
            wanted.clone_from(&host.capabilities);
        }
        wanted.extend(names(listed(&security.add_capabilities))?);
        for dropped in names(listed(&security.drop_capabilities))? {
            wanted.remove(&dropped);
        }
        wanted.intersection(&host.capabilities).copied().collect()
    };
    let mut sets = LinuxCapabilities::default();
    // Of a user that is not root the kernel itself takes them at exec, but for files with capabilities of their own.
    sets.set_bounding(Some(held.clone()))
        .set_effective(Some(held.clone()))
        .set_permitted(Some(held))
        .set_inheritable(None)
        .set_ambient(None);
    Ok(sets)
}

fn listed(given: &[String]) -> impl Iterator<Item = &str> {
    given.iter().map(String::as_str).filter(|name| !name.eq_ignore_ascii_case("ALL"))
}

fn names<'a>(given: impl IntoIterator<Item = &'a str>) -> Result<HashSet<Capability>> {
    let parse = |name: &str| {
        let upper = name.to_ascii_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        short.parse().map_err(|_| Error::InvalidSpec(format!("unknown capability {name:?}")))
    };
    given.into_iter().map(parse).collect()
}

/// Without CAP_SYS_RESOURCE a score lower than our own cannot be set, and runc would refuse to start the container.
fn oom_score_adj(resources: &Resources, host: &Host) -> Option<i32> {
    let free = host.capabilities.contains(&Capability::SysResource);
    resources.oom_score_adj.filter(|wanted| free || *wanted >= host.oom_score_adj)
}

fn mounts(spec: &ContainerSpec) -> Vec<OciMount> {
    let sys = if spec.security.privileged { "rw" } else { "ro" };
    let shared_ipc = |at: &str| mount("bind", at, at, &["rbind", "nosuid", "noexec", "nodev", "rw"]);
    let shm = if spec.host_ipc {
        shared_ipc("/dev/shm")
    } else {
        mount("tmpfs", "shm", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"])
    };
    let queues = if spec.host_ipc && Path::new("/dev/mqueue").exists() {
        shared_ipc("/dev/mqueue")
    } else {
        mount("mqueue", "mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"])
    };
    let terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    let mut all = vec![
        mount("proc", "proc", "/proc", &["nosuid", "noexec", "nodev"]),
        mount("tmpfs", "tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("devpts", "devpts", "/dev/pts", &terminals),
        queues,
        mount("sysfs", "sysfs", "/sys", &["nosuid", "noexec", "nodev", sys]),
        mount("cgroup", "cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "relatime", sys]),
        shm,
    ];
    all.retain(|default| spec.mounts.iter().all(|own| own.destination != *default.destination()));
    let mut own: Vec<&Mount> = spec.mounts.iter().collect();
    own.sort_by_key(|mount| mount.destination.components().count());
    all.extend(own.into_iter().map(own_mount));
    all
}

fn own_mount(own: &Mount) -> OciMount {
    let mode = if own.read_only { "ro" } else { "rw" };
    match &own.source {
        MountSource::Bind(source) | MountSource::Sealed(source) => {
            let propagation = match own.propagation {
                Propagation::None => "rprivate",
                Propagation::HostToContainer => "rslave",
                Propagation::Bidirectional => "rshared",
            };
            let source = source.to_string_lossy();
            let sealed = matches!(own.source, MountSource::Sealed(_)).then_some("noexec");
            let options: Vec<&str> = ["rbind", propagation, mode].into_iter().chain(sealed).collect();
            mount("bind", &source, &own.destination.to_string_lossy(), &options)
        }
        MountSource::Tmpfs { size } => {
            let size = size.map(|size| format!("size={size}"));
            let options: Vec<&str> =
                ["nosuid", "nodev", "mode=1777", mode].into_iter().chain(size.as_deref()).collect();
            mount("tmpfs", "tmpfs", &own.destination.to_string_lossy(), &options)
        }
    }
}

fn mount(kind: &str, source: &str, destination: &str, options: &[&str]) -> OciMount {
    let mut mount = OciMount::default();
    mount
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(PathBuf::from(source)))
        .set_destination(PathBuf::from(destination))
        .set_options(Some(options.iter().map(|&option| option.to_owned()).collect()));
    mount
}

fn linux(spec: &ContainerSpec, host: &Host, devices: Vec<LinuxDevice>) -> Linux {
    let unmasked = spec.security.privileged || spec.security.unmasked_proc;
    let paths = |list: &[&str]| {
        let list = if unmasked { &[] } else { list };
        Some(list.iter().map(|&path| path.to_owned()).collect())
    };
    let strongest = spec.mounts.iter().map(|mount| mount.propagation);
    let propagation = strongest.max_by_key(|propagation| *propagation as u8).unwrap_or_default();
    let propagation = match propagation {
        Propagation::None => None,
        Propagation::HostToContainer => Some("rslave".to_owned()),
        Propagation::Bidirectional => Some("rshared".to_owned()),
    };
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces(spec, host)))
        .set_resources(Some(resources(spec, &devices)))
        .set_devices(Some(devices))
        .set_cgroups_path(Some(PathBuf::from(format!("{}/{}", spec.cgroup_parent, spec.id))))
        .set_sysctl(Some(spec.sysctls.clone().into_iter().collect()))
        .set_masked_paths(paths(&MASKED))
        .set_readonly_paths(paths(&READ_ONLY))
        .set_rootfs_propagation(propagation);
    linux
}

fn namespaces(spec: &ContainerSpec, host: &Host) -> Vec<LinuxNamespace> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, Uts};
    let of = |pid: u32, kind: &str| Some(PathBuf::from(format!("/proc/{pid}/ns/{kind}")));
    let mut wanted = vec![(Mount, None)];
    match spec.pid {
        PidMode::Container => wanted.push((Pid, None)),
        PidMode::Of(pid) => wanted.push((Pid, of(pid, "pid"))),
        PidMode::Host => {}
    }
    if !spec.host_ipc {
        wanted.push((Ipc, spec.ipc_of.and_then(|pid| of(pid, "ipc"))));
    }
    if spec.hostname.is_some() {
        wanted.push((Uts, None));
    }
    if let Some(netns) = &spec.netns {
        wanted.push((Network, Some(netns.clone())));
    }
    if host.unified && !spec.security.privileged {
        wanted.push((Cgroup, None));
    }
    let namespace = |(kind, path)| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind).set_path(path);
        namespace
    };
    wanted.into_iter().map(namespace).collect()
}

fn resources(spec: &ContainerSpec, devices: &[LinuxDevice]) -> LinuxResources {
    let limits = &spec.resources;
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(limits.cpu_shares)
        .set_quota(limits.cpu_quota)
        .set_period(limits.cpu_period)
        .set_cpus(limits.cpuset_cpus.clone());
    let mut memory = LinuxMemory::default();
    memory.set_limit(limits.memory_limit);
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(device_rules(spec, devices))).set_cpu(Some(cpu)).set_memory(Some(memory)).set_pids(
        limits.pids_limit.map(|limit| {
            let mut pids = LinuxPids::default();
            pids.set_limit(limit);
            pids
        }),
    );
    resources
}

/// runc adds the harmless devices (null, zero, random, …) itself.
fn device_rules(spec: &ContainerSpec, devices: &[LinuxDevice]) -> Vec<LinuxDeviceCgroup> {
    let mut all = LinuxDeviceCgroup::default();
    all.set_allow(spec.security.privileged).set_access(Some("rwm".into()));
    if spec.security.privileged {
        return vec![all];
    }
    let permitted = devices.iter().map(|device| {
        let own = spec.devices.iter().find(|own| own.container_path == *device.path());
        let mut rule = LinuxDeviceCgroup::from(device);
        rule.set_access(Some(own.map_or("rwm", |own| &own.permissions).to_owned()));
        rule
    });
    [all].into_iter().chain(permitted).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn host(capabilities: &[&str]) -> Host {
        let capabilities = names(capabilities.iter().copied()).unwrap();
        Host { unified: true, capabilities, oom_score_adj: 0 }
    }

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["default".into()],
            env: vec!["PATH=/image".into(), "FROM=image".into()],
            working_dir: "/work".into(),
            ..ImageConfig::default()
        }
    }

    #[test]
    fn commands_follow_kubernetes_rule() {
        for (command, args, want) in [
            (vec![], vec![], vec!["/entry", "default"]),
            (vec![], vec!["a"], vec!["/entry", "a"]),
            (vec!["c"], vec![], vec!["c"]),
            (vec!["c"], vec!["a"], vec!["c", "a"]),
        ] {
            let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
            let spec = ContainerSpec { command: owned(&command), args: owned(&args), ..ContainerSpec::default() };
            assert_eq!(arguments(&spec, &image()), want, "{command:?} {args:?}");
        }
    }

    #[test]
    fn the_last_word_on_a_variable_wins_in_its_first_place() {
        let env = vec![("FROM".into(), "pod".into()), ("A".into(), "1".into()), ("A".into(), "2".into())];
        let spec = ContainerSpec { env, hostname: Some("web".into()), tty: true, ..ContainerSpec::default() };
        let want = ["PATH=/image", "TERM=xterm", "HOSTNAME=web", "FROM=pod", "A=2"];
        assert_eq!(environment(&spec, &image()), want);
    }

    #[test]
    fn only_what_we_hold_is_passed_on() {
        let held = host(&["CHOWN", "SYS_ADMIN", "NET_BIND_SERVICE"]);
        let check = |set: fn(&mut Security), want: &[&str]| {
            let mut security = Security::default();
            set(&mut security);
            let sets = capabilities(&security, &held).unwrap();
            assert_eq!(*sets.bounding(), Some(names(want.iter().copied()).unwrap()), "{security:?}");
        };
        check(|_| {}, &["CHOWN", "NET_BIND_SERVICE"]);
        check(|security| security.privileged = true, &["CHOWN", "SYS_ADMIN", "NET_BIND_SERVICE"]);
        check(
            |security| security.add_capabilities = vec!["CAP_SYS_ADMIN".into(), "SYS_TIME".into()],
            &["CHOWN", "SYS_ADMIN", "NET_BIND_SERVICE"],
        );
        check(|security| security.drop_capabilities = vec!["chown".into()], &["NET_BIND_SERVICE"]);
        check(|security| security.drop_capabilities = vec!["all".into()], &[]);
        check(|security| security.add_capabilities = vec!["ALL".into()], &["CHOWN", "SYS_ADMIN", "NET_BIND_SERVICE"]);
    }

    #[test]
    fn a_score_that_cannot_be_set_is_left_out() {
        for (held, wanted, want) in
            [(&[][..], -997, None), (&[], 0, Some(0)), (&[], 1000, Some(1000)), (&["SYS_RESOURCE"], -997, Some(-997))]
        {
            let resources = Resources { oom_score_adj: Some(wanted), ..Resources::default() };
            assert_eq!(oom_score_adj(&resources, &host(held)), want, "{held:?} {wanted}");
        }
    }

    #[test]
    fn namespaces_and_mounts_are_shared_where_asked() {
        let spec = ContainerSpec {
            netns: Some("/run/netns/pod".into()),
            hostname: Some("web".into()),
            pid: PidMode::Of(7),
            mounts: vec![Mount {
                source: MountSource::Bind("/host".into()),
                destination: "/dev/shm".into(),
                read_only: true,
                propagation: Propagation::HostToContainer,
            }],
            ..ContainerSpec::default()
        };
        let built = build(&spec, &image(), &Identity::default(), &host(&[]), Vec::new(), None).unwrap();
        let json = serde_json::to_value(&built).unwrap();
        let paths: Vec<_> = json["linux"]["namespaces"].as_array().unwrap().iter().collect();
        let path = |kind: &str| paths.iter().find(|space| space["type"] == kind).map(|space| space["path"].as_str());
        assert_eq!(path("network"), Some(Some("/run/netns/pod")));
        assert_eq!(path("pid"), Some(Some("/proc/7/ns/pid")));
        assert_eq!(
            (path("ipc"), path("uts"), path("cgroup"), path("user")),
            (Some(None), Some(None), Some(None), None)
        );
        let shm: Vec<_> =
            json["mounts"].as_array().unwrap().iter().filter(|mount| mount["destination"] == "/dev/shm").collect();
        assert_eq!(shm.len(), 1, "the pod's mount replaces the default one");
        assert_eq!(shm[0]["options"], serde_json::json!(["rbind", "rslave", "ro"]));
        assert_eq!(json["linux"]["rootfsPropagation"], "rslave");
        assert_eq!(json["process"]["cwd"], "/work");
    }
}
