//! A containerd of the test's own, and images made on the spot.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sluice_runtime::cgroup::{Cgroups, Qos};
use sluice_runtime::daemon::Containerd;
use sluice_runtime::{Config, ContainerSpec, Resources, Runtime};
use tempfile::TempDir;

/// Everything of one test; [`World::end`] leaves nothing behind.
pub struct World {
    _guard: Guard,
    pub dir: TempDir,
    pub socket: PathBuf,
    pub runtime: Runtime,
    pub daemon: Containerd,
    pub pod_cgroup: String,
    next: u32,
}

/// Cleans up after a test that has failed.
struct Guard {
    dir: PathBuf,
    prefix: String,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let (dir, prefix) = (self.dir.clone(), self.prefix.clone());
        let clean = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let ended = runtime.block_on(Containerd::teardown(&dir.join("containerd"), &dir.join("containerd.sock")));
            let removed = Cgroups::new(&prefix).remove_all();
            let log = fs::read_to_string(dir.join("containerd/containerd.log")).unwrap_or_default();
            let log: Vec<&str> = log.lines().filter(|line| !line.contains("level=info msg")).collect();
            eprintln!("cleaned up: {ended:?} {removed:?}; containerd said:\n{}", log.join("\n"));
        };
        std::thread::spawn(clean).join().unwrap();
    }
}

impl World {
    pub async fn start(name: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test runs containers: run it as root");
        assert!(Path::new("/bin/busybox").exists(), "install busybox-static: the test's image is made of it");
        let dir = tempfile::Builder::new().prefix("sluice-rt-").tempdir().unwrap();
        let socket = dir.path().join("containerd.sock");
        let prefix = format!("sluice-test-{name}-{}", std::process::id());
        let guard = Guard { dir: dir.path().to_owned(), prefix: prefix.clone() };
        let daemon = Containerd::spawn(&dir.path().join("containerd"), &socket).await.unwrap();
        let runtime = connect(dir.path(), &socket, &prefix).await;
        let pod_cgroup = runtime.cgroups().pod(Qos::BestEffort, "pod1");
        runtime.cgroups().create(&pod_cgroup, &Resources::default()).unwrap();
        Self { _guard: guard, dir, socket, runtime, daemon, pod_cgroup, next: 0 }
    }

    /// As a daemon that has just been started again.
    pub async fn reconnect(&self) -> Runtime {
        connect(self.dir.path(), &self.socket, &self.runtime.config().cgroup_prefix).await
    }

    pub async fn import(&self) {
        let archive = self.dir.path().join("busybox.tar");
        busybox_archive(&archive, "busybox:test");
        self.runtime.import(&archive).await.unwrap();
    }

    pub fn spec(&mut self, script: &str) -> ContainerSpec {
        self.next += 1;
        ContainerSpec {
            id: format!("{:032x}", rand::random::<u128>()),
            pod_uid: "pod1".into(),
            pod_name: "web".into(),
            namespace: "default".into(),
            name: format!("main{}", self.next),
            image: "busybox:test".into(),
            command: vec!["/bin/sh".into(), "-c".into(), script.into()],
            hostname: Some("web".into()),
            cgroup_parent: self.pod_cgroup.clone(),
            log_path: self.dir.path().join(format!("pods/main{}/0.log", self.next)),
            ..ContainerSpec::default()
        }
    }

    pub async fn run(&mut self, script: &str) -> ContainerSpec {
        let spec = self.spec(script);
        self.runtime.create(&spec).await.unwrap();
        self.runtime.start(&spec.id).await.unwrap();
        spec
    }

    pub async fn end(mut self) {
        for container in self.runtime.containers().await.unwrap() {
            self.runtime.remove(&container.id).await.unwrap();
        }
        self.daemon.stop().await.unwrap();
        let dir = self.dir.path().join("containerd");
        Containerd::teardown(&dir, &self.socket).await.unwrap();
        Cgroups::new(&self.runtime.config().cgroup_prefix).remove_all().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "mounts are left:\n{mounts}");
    }
}

pub async fn connect(dir: &Path, socket: &Path, prefix: &str) -> Runtime {
    let config = Config {
        socket: socket.to_owned(),
        namespace: "k8s.io".into(),
        cgroup_prefix: prefix.into(),
        state_dir: dir.join("run"),
        snapshotter: None,
        logger: env!("CARGO_BIN_EXE_sluice-test-logger").into(),
        plain_http: Vec::new(),
    };
    Runtime::connect(config).await.unwrap()
}

/// The log's text without times.
pub fn log(spec: &ContainerSpec) -> String {
    let text = fs::read_to_string(&spec.log_path).unwrap_or_default();
    text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned() + "\n").collect()
}

/// Waits until the condition holds; for what has no event.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(tokio::time::Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const CONFIG_HEAD: &str = r#"{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin","FROM=image"],"Cmd":["/bin/sh"],"WorkingDir":"/tmp","StopSignal":"SIGTERM"},"rootfs":{"type":"layers","diff_ids":[""#;

/// The layer of busybox with its applets and users.
pub fn busybox_layer() -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    for dir in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(if dir == "tmp" { 0o1777 } else { 0o755 });
        header.set_size(0);
        layer.append_data(&mut header, format!("{dir}/"), std::io::empty()).unwrap();
    }
    let mut header = tar::Header::new_gnu();
    let busybox = fs::read("/bin/busybox").unwrap();
    header.set_mode(0o755);
    header.set_size(busybox.len() as u64);
    layer.append_data(&mut header, "bin/busybox", busybox.as_slice()).unwrap();
    for applet in [
        "df", "grep", "head", "mount", "unshare", "sh", "echo", "sleep", "cat", "id", "seq", "env", "pwd", "hostname",
        "stty", "dd", "tail", "ls", "true",
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    for (path, text) in [
        ("etc/passwd", "root:x:0:0::/root:/bin/sh\nweb:x:101:102::/:/bin/sh\n"),
        ("etc/group", "root:x:0:\nweb:x:102:\nlogs:x:7:web\n"),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(text.len() as u64);
        layer.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    layer.into_inner().unwrap()
}

pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The configuration of an image of this one layer.
pub fn config(layer: &[u8]) -> String {
    format!("{CONFIG_HEAD}sha256:{}\"]}}}}", sha256(layer))
}

/// An archive as `docker save` makes it.
pub fn busybox_archive(path: &Path, tag: &str) {
    let layer = busybox_layer();
    let config = config(&layer);
    let manifest = format!(r#"[{{"Config":"config.json","RepoTags":["{tag}"],"Layers":["l1/layer.tar"]}}]"#);
    let mut archive = tar::Builder::new(File::create(path).unwrap());
    for (name, data) in
        [("config.json", config.as_bytes()), ("l1/layer.tar", &layer), ("manifest.json", manifest.as_bytes())]
    {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        archive.append_data(&mut header, name, data).unwrap();
    }
    archive.finish().unwrap();
}
