//! What goes in and out of the runtime: configuration, container specifications, observed states, events.
//! Plain data, no IO.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

/// How to reach containerd and where this node's things are.
#[derive(Clone, Debug)]
pub struct Config {
    /// containerd's socket (`/run/containerd/containerd.sock`, or the private one).
    pub socket: PathBuf,
    /// containerd namespace, `k8s.io`.
    pub namespace: String,
    /// First part of every cgroup of this node, no slashes at the ends (`sluice`).
    pub cgroup_prefix: String,
    /// Run-time directory for fifos and attach sockets (`/run/sluice/<node>`); lost on reboot, never needed after one.
    pub state_dir: PathBuf,
    /// containerd snapshotter; `None`: overlayfs, or native where overlayfs does not work.
    pub snapshotter: Option<String>,
    /// The program the shims start as `<program> logger <arguments>` for every container: the `sluice` binary.
    pub logger: PathBuf,
    /// Registries (`host:port`) that may be spoken to in plain HTTP besides those on loopback.
    pub plain_http: Vec<String>,
}

/// Everything needed to make one container. What is `None` or empty comes from the image or is upstream's default.
#[derive(Clone, Debug, Default)]
pub struct ContainerSpec {
    /// Unique, at most 64 of `[a-z0-9]`; also the cgroup's last part. Kubernetes shows it as `containerd://<id>`.
    pub id: String,
    /// Labels besides the ones made from the fields below; found again in [`ContainerState::labels`].
    pub labels: BTreeMap<String, String>,
    pub pod_uid: String,
    pub pod_name: String,
    pub namespace: String,
    /// Name in the pod spec.
    pub name: String,
    /// 0 for the first, then one more for every restart.
    pub attempt: u32,
    /// Image reference as in the pod spec (short names are completed).
    pub image: String,
    /// Replaces the image's entry point (`command` of the pod spec).
    pub command: Vec<String>,
    /// Replaces the image's arguments (`args`).
    pub args: Vec<String>,
    /// Added to the image's environment, in order, later wins.
    pub env: Vec<(String, String)>,
    pub cwd: Option<PathBuf>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    /// The pod's pinned network namespace; `None`: the host's (`hostNetwork`).
    pub netns: Option<PathBuf>,
    pub hostname: Option<String>,
    pub pid: PidMode,
    pub host_ipc: bool,
    /// Shares its IPC namespace with the process of this pid (first container of the pod) when given.
    pub ipc_of: Option<u32>,
    /// The pod's cgroup as [`crate::cgroup::Cgroups::pod`] names it; the container gets `<parent>/<id>`.
    pub cgroup_parent: String,
    pub resources: Resources,
    pub security: Security,
    /// Kernel parameters of the pod (`net.*` only without `host_network`).
    pub sysctls: BTreeMap<String, String>,
    /// CRI log file (`/var/log/pods/<ns>_<name>_<uid>/<container>/<attempt>.log`); its directory is made.
    pub log_path: PathBuf,
    pub tty: bool,
    pub stdin: bool,
    /// Close the container's stdin when the first attached client's ends.
    pub stdin_once: bool,
    /// Annotations for the OCI specification.
    pub annotations: BTreeMap<String, String>,
}

/// A bind mount of a host path, or a filesystem of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub source: MountSource,
    /// Absolute path in the container.
    pub destination: PathBuf,
    pub read_only: bool,
    pub propagation: Propagation,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountSource {
    /// Existing host file or directory.
    Bind(PathBuf),
    /// Existing host file or directory, nothing of which can be executed.
    Sealed(PathBuf),
    /// A tmpfs of at most so many bytes (`None`: the kernel's default).
    Tmpfs { size: Option<u64> },
}

/// `mountPropagation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    #[default]
    None,
    HostToContainer,
    Bidirectional,
}

/// A host device made available.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    /// Some of `rwm`.
    pub permissions: String,
}

/// Whose processes the container sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PidMode {
    /// Its own.
    #[default]
    Container,
    /// Those of the namespace of this process (`shareProcessNamespace`: the pod's first container).
    Of(u32),
    /// The host's.
    Host,
}

/// Limits in cgroup terms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// `cpu.shares`; turned into a weight on v2.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU per period; negative: unlimited.
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// Bytes.
    pub memory_limit: Option<i64>,
    pub pids_limit: Option<i64>,
    pub cpuset_cpus: Option<String>,
    /// Best effort: left out where this process may not set it (no CAP_SYS_RESOURCE).
    pub oom_score_adj: Option<i32>,
}

/// The security context, pod and container merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    pub privileged: bool,
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    /// Refuse to run as uid 0 ([`crate::Error::RunAsRoot`]).
    pub run_as_non_root: bool,
    /// `supplementalGroups` and `fsGroup`.
    pub supplemental_groups: Vec<i64>,
    pub read_only_root: bool,
    /// `allowPrivilegeEscalation: false`.
    pub no_new_privileges: bool,
    /// Without the `CAP_` prefix; `ALL` is understood.
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    /// `procMount: Unmasked`.
    pub unmasked_proc: bool,
    pub seccomp: Seccomp,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    #[default]
    Unconfined,
    /// The runtime's default profile.
    RuntimeDefault,
    /// A profile file on the host.
    Localhost(PathBuf),
}

/// What containerd knows of one of our containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerState {
    pub id: String,
    pub pod_uid: String,
    pub pod_name: String,
    pub namespace: String,
    pub name: String,
    pub attempt: u32,
    /// Image reference as it was asked for.
    pub image: String,
    /// Digest of the image's configuration or manifest: `sha256:…`.
    pub image_id: String,
    pub labels: BTreeMap<String, String>,
    pub log_path: PathBuf,
    pub created_at: Timestamp,
    pub status: Status,
    pub tty: bool,
    pub stdin: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Made, not started (also: the start was cut short by a crash; remove it and make another).
    Created,
    Running {
        pid: u32,
        started_at: Timestamp,
    },
    /// Frozen by somebody else.
    Paused {
        pid: u32,
        started_at: Timestamp,
    },
    Exited(Exit),
    /// containerd does not know.
    Unknown,
}

/// The end of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, 128 + signal where a signal ended it.
    pub code: i32,
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
    /// The kernel killed it for memory.
    pub oom_killed: bool,
}

/// Something that happened to one of our containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Started {
        id: String,
        pid: u32,
    },
    Exited {
        id: String,
        exit: Exit,
    },
    Oom {
        id: String,
    },
    Removed {
        id: String,
    },
    /// Events may have been missed (containerd restarted, or the receiver lagged): read [`crate::Runtime::containers`] again.
    Resync,
}

/// A present image.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ImageInfo {
    /// Normalised references (`docker.io/library/nginx:1.29`).
    pub names: Vec<String>,
    /// Digest of the configuration (`sha256:…`), what kubelet calls image ID.
    pub id: String,
    /// Digest of the manifest or index that the name points at.
    pub digest: String,
    /// Name with digest (`docker.io/library/nginx@sha256:…`), for status.containerStatuses[].imageID.
    pub repo_digest: String,
    /// Bytes of compressed content.
    pub size: u64,
    pub config: ImageConfig,
}

/// What an image's configuration says about running it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub user: String,
    pub working_dir: String,
    pub stop_signal: Option<String>,
    pub volumes: Vec<String>,
    /// Uncompressed layer digests.
    pub diff_ids: Vec<String>,
}

/// Credentials for one registry, from a dockerconfigjson.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    Basic {
        username: String,
        password: String,
    },
    /// `registrytoken`.
    Bearer(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// How far a pull is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub layers: usize,
    pub layers_done: usize,
    pub bytes: u64,
    pub bytes_done: u64,
}

/// A command to run in a running container.
#[derive(Clone, Debug, Default)]
pub struct ExecSpec {
    pub argv: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    /// Never with `tty`.
    pub stderr: bool,
    /// First size of the terminal.
    pub size: Option<TerminalSize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// Output of a short command ([`crate::Runtime::exec_sync`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    pub code: i32,
    /// At most [`crate::limits::EXEC_SYNC_OUTPUT`] bytes of stdout and stderr each.
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Usage counters of a container or pod cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Cumulative CPU time.
    pub cpu_usage: Duration,
    /// Usage less inactive page cache, as upstream.
    pub memory_working_set: u64,
    pub memory_usage: u64,
    pub memory_rss: u64,
    pub pids: u64,
}
