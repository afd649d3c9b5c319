//! From a container of a pod spec to what the runtime is asked to make: mounts, resources, security. Pure, apart
//! from `subPath`s, which have to be looked at on disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use sluice_runtime::cgroup::Qos;
use sluice_runtime::{ContainerSpec, Mount, MountSource, PidMode, Propagation, Resources, Seccomp, Security};

use crate::env;
use crate::model::{Container, Pod, SeccompProfile};
use crate::pod::status::qos_class;
use crate::quantity;
use crate::volumes::{self, PodDir};

/// What a container's specification is made from, beside the pod.
pub struct Inputs<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub attempt: u32,
    pub env: Vec<(String, String)>,
    pub dir: &'a PodDir,
    pub log_path: PathBuf,
    pub netns: Option<PathBuf>,
    pub hostname: String,
    pub cgroup_parent: String,
    /// A running process of the pod, to share namespaces with.
    pub neighbour: Option<u32>,
    /// The process whose container an ephemeral one looks at.
    pub target: Option<u32>,
    /// The node's memory, for the OOM score.
    pub node_memory: i128,
}

/// The runtime's specification, or the message of a `CreateContainerConfigError`.
pub fn spec(i: Inputs<'_>) -> Result<ContainerSpec, String> {
    let (pod, c) = (i.pod, i.container);
    let env = i.env;
    let command = env::expand_all(&c.command, &env);
    let args = env::expand_all(&c.args, &env);
    let mounts = mounts(pod, c, i.dir, &env, i.attempt)?;
    let host_network = pod.spec.host_network;
    Ok(ContainerSpec {
        id: new_id(pod.uid(), &c.name, i.attempt),
        labels: BTreeMap::new(),
        pod_uid: pod.uid().to_owned(),
        pod_name: pod.name().to_owned(),
        namespace: pod.namespace().to_owned(),
        name: c.name.clone(),
        attempt: i.attempt,
        image: c.image.clone(),
        command,
        args,
        env,
        cwd: (!c.working_dir.is_empty()).then(|| PathBuf::from(&c.working_dir)),
        mounts,
        devices: Vec::new(),
        netns: i.netns,
        hostname: (!host_network).then_some(i.hostname),
        pid: match (pod.spec.host_pid, pod.spec.share_process_namespace, i.neighbour) {
            (true, ..) => PidMode::Host,
            (_, Some(true), Some(pid)) => PidMode::Of(pid),
            _ => i.target.map_or(PidMode::Container, PidMode::Of),
        },
        host_ipc: pod.spec.host_ipc,
        ipc_of: i.neighbour.filter(|_| !pod.spec.host_ipc),
        cgroup_parent: i.cgroup_parent,
        resources: resources(pod, c, i.node_memory),
        security: security(pod, c),
        sysctls: pod.spec.security_context.sysctls.iter().map(|s| (s.name.clone(), s.value.clone())).collect(),
        log_path: i.log_path,
        tty: c.tty,
        stdin: c.stdin,
        stdin_once: c.stdin_once,
        annotations: BTreeMap::new(),
    })
}

/// The class as the cgroup tree names it.
pub fn qos(pod: &Pod) -> Qos {
    match pod.status.qos_class.as_deref().unwrap_or_else(|| qos_class(pod)) {
        "Guaranteed" => Qos::Guaranteed,
        "Burstable" => Qos::Burstable,
        _ => Qos::BestEffort,
    }
}

/// CPU and memory of a container in cgroup terms, by upstream's formulas.
pub fn resources(pod: &Pod, c: &Container, node_memory: i128) -> Resources {
    let milli = |map: &BTreeMap<String, String>, name: &str| map.get(name).and_then(|q| quantity::milli(q));
    let limit_cpu = milli(&c.resources.limits, "cpu").filter(|m| *m > 0);
    let request_cpu = milli(&c.resources.requests, "cpu").or(limit_cpu).unwrap_or(0);
    let limit_memory = c.resources.limits.get("memory").and_then(|q| quantity::value(q)).filter(|m| *m > 0);
    let request_memory =
        c.resources.requests.get("memory").and_then(|q| quantity::value(q)).or(limit_memory).unwrap_or(0);
    let clamp = |n: i128| i64::try_from(n).unwrap_or(i64::MAX);
    let score = match qos(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let used = if node_memory > 0 { 1000 * request_memory / node_memory } else { 0 };
            i32::try_from((1000 - used).clamp(3, 999)).unwrap_or(999)
        }
    };
    Resources {
        cpu_shares: Some((request_cpu * 1024 / 1000).clamp(2, 262_144).unsigned_abs() as u64),
        cpu_quota: limit_cpu.map(|m| clamp((m * 100).max(1000))),
        cpu_period: limit_cpu.map(|_| 100_000),
        memory_limit: limit_memory.map(clamp),
        pids_limit: None,
        cpuset_cpus: None,
        oom_score_adj: Some(score),
    }
}

/// Limits of the pod's cgroup: the sums over its containers where every one has a limit.
pub fn pod_resources(pod: &Pod) -> Resources {
    let each: Vec<Resources> = pod.spec.containers.iter().map(|c| resources(pod, c, 0)).collect();
    let sum = |get: fn(&Resources) -> Option<i64>| -> Option<i64> {
        each.iter().map(get).try_fold(0i64, |a, b| Some(a.saturating_add(b?)))
    };
    let shares: u64 = each.iter().filter_map(|r| r.cpu_shares).sum();
    // Init containers may ask for more than the main ones: their limits are not put on the pod.
    let plain = pod.spec.init_containers.is_empty();
    let quota = sum(|r| r.cpu_quota).filter(|_| plain);
    Resources {
        cpu_shares: Some(shares.clamp(2, 262_144)),
        cpu_quota: quota,
        cpu_period: quota.map(|_| 100_000),
        memory_limit: sum(|r| r.memory_limit).filter(|_| plain),
        ..Resources::default()
    }
}

/// Sixty-four hexadecimal digits, new for every attempt.
pub(crate) fn new_id(uid: &str, name: &str, attempt: u32) -> String {
    let salt: u64 = rand::random();
    let hash = Sha256::digest(format!("{uid}/{name}/{attempt}/{salt}"));
    hash.iter().map(|b| format!("{b:02x}")).collect()
}

fn mounts(
    pod: &Pod,
    c: &Container,
    dir: &PodDir,
    env: &[(String, String)],
    attempt: u32,
) -> Result<Vec<Mount>, String> {
    let mut out = Vec::new();
    for m in &c.volume_mounts {
        let volume = pod.spec.volumes.iter().find(|v| v.name == m.name);
        let volume = volume.ok_or_else(|| format!("volume \"{}\" not found", m.name))?;
        let sub_path = if m.sub_path_expr.is_empty() { m.sub_path.clone() } else { sub_path(&m.sub_path_expr, env)? };
        // Files made from API objects are replaced as a whole: writing to them would be lost (upstream: read-only).
        let api_files = volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.downward_api.is_some()
            || volume.projected.is_some()
            || volume.image.is_some();
        let source = volumes::source(dir, volume, m, &sub_path)?;
        out.push(Mount {
            source: if volume.image.is_some() { MountSource::Sealed(source) } else { MountSource::Bind(source) },
            destination: absolute(&m.mount_path),
            read_only: m.read_only || api_files,
            propagation: match m.mount_propagation.as_deref() {
                Some("HostToContainer") => Propagation::HostToContainer,
                Some("Bidirectional") => Propagation::Bidirectional,
                _ => Propagation::None,
            },
        });
    }
    let taken = |path: &str, out: &[Mount]| out.iter().any(|m| m.destination == Path::new(path));
    let read_only_root = c.security_context.as_ref().is_some_and(|s| s.read_only_root_filesystem);
    for (path, file) in
        [("/etc/hosts", "etc-hosts"), ("/etc/resolv.conf", "resolv.conf"), ("/etc/hostname", "hostname")]
    {
        if taken(path, &out) {
            continue;
        }
        out.push(Mount {
            source: MountSource::Bind(dir.file(file)),
            destination: path.into(),
            read_only: read_only_root,
            propagation: Propagation::None,
        });
    }
    if !c.termination_message_path.is_empty() && !taken(&c.termination_message_path, &out) {
        out.push(Mount {
            source: MountSource::Bind(dir.termination(&c.name, attempt)),
            destination: absolute(&c.termination_message_path),
            read_only: false,
            propagation: Propagation::None,
        });
    }
    Ok(out)
}

/// A `subPathExpr` with its variables; upstream takes no unknown ones here.
fn sub_path(text: &str, env: &[(String, String)]) -> Result<String, String> {
    let missing = std::cell::RefCell::new(None);
    let known = |name: &str| {
        let value = env.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        if value.is_none() {
            missing.borrow_mut().get_or_insert_with(|| name.to_owned());
        }
        value
    };
    let expanded = env::expand(text, known);
    match missing.into_inner() {
        Some(name) => Err(format!("missing value for \"{name}\"")),
        None => Ok(expanded),
    }
}

fn absolute(path: &str) -> PathBuf {
    Path::new("/").join(path)
}

fn security(pod: &Pod, c: &Container) -> Security {
    let p = &pod.spec.security_context;
    let empty = crate::model::SecurityContext::default();
    let own = c.security_context.as_deref().unwrap_or(&empty);
    let mut groups = p.supplemental_groups.clone();
    groups.extend(p.fs_group);
    Security {
        privileged: own.privileged,
        run_as_user: own.run_as_user.or(p.run_as_user).map(i64::from),
        run_as_group: own.run_as_group.or(p.run_as_group).map(i64::from),
        run_as_non_root: own.run_as_non_root.or(p.run_as_non_root).unwrap_or(false),
        supplemental_groups: groups.into_iter().map(i64::from).collect(),
        read_only_root: own.read_only_root_filesystem,
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        add_capabilities: own.capabilities.add.clone(),
        drop_capabilities: own.capabilities.drop.clone(),
        unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
        seccomp: seccomp(own.seccomp_profile.as_ref().or(p.seccomp_profile.as_ref())),
    }
}

fn seccomp(profile: Option<&SeccompProfile>) -> Seccomp {
    match profile {
        Some(p) if p.type_ == "RuntimeDefault" => Seccomp::RuntimeDefault,
        Some(p) if p.type_ == "Localhost" => {
            let path = p.localhost_profile.as_deref().unwrap_or_default();
            Seccomp::Localhost(Path::new("/var/lib/kubelet/seccomp").join(path))
        }
        _ => Seccomp::Unconfined,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn cgroup_numbers() {
        let gib = 1 << 30;
        for (r, shares, quota, memory, score) in [
            (json!({}), 2, None, None, 1000),
            (json!({"requests": {"cpu": "500m", "memory": "1Gi"}}), 512, None, None, 750),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), 1024, Some(100_000), Some(gib), -997),
            (json!({"limits": {"cpu": "5m"}}), 5, Some(1000), None, 999),
        ] {
            let pod: Pod =
                serde_json::from_value(json!({"spec": {"containers": [{"name": "a", "resources": r}]}})).unwrap();
            let actual = resources(&pod, &pod.spec.containers[0], 4 * i128::from(gib));
            assert_eq!(
                (actual.cpu_shares, actual.cpu_quota, actual.memory_limit, actual.oom_score_adj),
                (Some(shares), quota, memory, Some(score)),
                "{r}"
            );
        }
    }

    #[test]
    fn sub_path_expressions_know_their_variables() {
        let env = [("A".to_owned(), "x".to_owned())];
        for (text, expected) in
            [("$(A)/y", Ok("x/y")), ("$$(A)", Ok("$(A)")), ("a/$(NO)", Err("missing value for \"NO\""))]
        {
            assert_eq!(sub_path(text, &env), expected.map(str::to_owned).map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn mounts_and_namespaces() {
        let tmp = tempfile::tempdir().unwrap();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {
                "shareProcessNamespace": true,
                "volumes": [{"name": "e", "emptyDir": {}}, {"name": "c", "configMap": {"name": "x"}}],
                "containers": [{
                    "name": "a", "command": ["run", "$(X)"], "terminationMessagePath": "/dev/termination-log",
                    "volumeMounts": [
                        {"name": "e", "mountPath": "/e", "subPathExpr": "$(X)"}, {"name": "c", "mountPath": "/etc/hosts"},
                    ],
                }],
            },
        }))
        .unwrap();
        let dir = PodDir::new(tmp.path(), "u");
        for v in &pod.spec.volumes {
            std::fs::create_dir_all(dir.volume(v)).unwrap();
        }
        let spec = spec(Inputs {
            pod: &pod,
            container: &pod.spec.containers[0],
            attempt: 3,
            env: vec![("X".into(), "sub".into())],
            dir: &dir,
            log_path: "/l".into(),
            netns: None,
            hostname: "p".into(),
            cgroup_parent: "/x".into(),
            neighbour: Some(7),
            target: None,
            node_memory: 0,
        })
        .unwrap();
        let shown: Vec<(String, bool)> =
            spec.mounts.iter().map(|m| (m.destination.display().to_string(), m.read_only)).collect();
        let expected = [
            ("/e", false),
            ("/etc/hosts", true),
            ("/etc/resolv.conf", false),
            ("/etc/hostname", false),
            ("/dev/termination-log", false),
        ];
        assert_eq!(shown, expected.map(|(p, r)| (p.to_owned(), r)));
        assert!(matches!(&spec.mounts[0].source, MountSource::Bind(p) if p.ends_with("e/sub")));
        assert_eq!((spec.pid, spec.command.as_slice()), (PidMode::Of(7), &["run".to_owned(), "sub".to_owned()][..]));
        assert_eq!(spec.id.len(), 64);
    }
}
