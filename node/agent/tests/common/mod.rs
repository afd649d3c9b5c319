//! A whole node for a test: its own network namespace, containerd, API server and agent.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod health;

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use sluice_agent::eviction::signals::Thresholds;
use sluice_agent::{Agent, Config, api};
use sluice_apiserver::ApiServer;
use sluice_apiserver::bootstrap::pki::Usage;
use sluice_apiserver::context::UserInfo;
use sluice_network::PeerPath;
use sluice_runtime::Runtime;
use sluice_runtime::cgroup::Cgroups;
use sluice_runtime::daemon::Containerd;
use sluice_store::embedded::{Embedded, Options};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub const NODE: &str = "n1";
pub const IMAGE: &str = "busybox:test";
const IP: &str = "192.0.2.10";

/// Runs a story in a network namespace of its own, which ends with its threads.
pub fn in_namespace<F: Future<Output = ()>>(story: impl FnOnce() -> F + Send + 'static) {
    assert!(nix::unistd::geteuid().is_root(), "this test runs containers: run it as root");
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        ip(&format!("address add {IP}/32 dev lo"));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(story());
        runtime.shutdown_timeout(Duration::from_secs(5));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) {
    assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success(), "ip {arguments}");
}

/// Everything of one node.
pub struct World {
    /// Goes first: it finds containerd by the socket in the directory.
    guard: Guard,
    pub dir: TempDir,
    pub server: ApiServer,
    pub client: kube::Client,
    pub runtime: Runtime,
    pub kubeconfig: PathBuf,
    daemon: Containerd,
    agent: Option<(CancellationToken, tokio::task::JoinHandle<anyhow::Result<()>>)>,
    prefix: String,
}

/// Cleans up after a test that has failed.
struct Guard(PathBuf, String);

impl Drop for Guard {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let (dir, prefix) = (self.0.clone(), self.1.clone());
        let clean = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let ended = runtime.block_on(Containerd::teardown(&dir.join("containerd"), &dir.join("containerd.sock")));
            let removed = Cgroups::new(&prefix).remove_all();
            for mount in mounts_below(&dir) {
                // Best effort: the test has failed already, and says so.
                let _ = nix::mount::umount2(mount.as_path(), nix::mount::MntFlags::MNT_DETACH);
            }
            let _ = std::fs::remove_dir_all(&dir);
            eprintln!("cleaned up: {ended:?} {removed:?}");
        };
        std::thread::spawn(clean).join().unwrap();
    }
}

impl World {
    pub async fn start(name: &str) -> World {
        // A second test in this process finds it installed.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".into()))
            .with_test_writer()
            .try_init();
        let dir = tempfile::Builder::new().prefix("sluice-agent-").tempdir().unwrap();
        let prefix = format!("sluice-agent-{name}-{}", std::process::id());
        let guard = Guard(dir.path().to_owned(), prefix.clone());
        let socket = dir.path().join("containerd.sock");
        let daemon = Containerd::spawn(&dir.path().join("containerd"), &socket).await.unwrap();
        let runtime = Runtime::connect(runtime_config(dir.path(), &prefix)).await.unwrap();
        let archive = dir.path().join("busybox.tar");
        busybox_archive(&archive, IMAGE);
        runtime.import(&archive).await.unwrap();

        let engine = Embedded::open(&dir.path().join("store"), Options::default()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bind = listener.local_addr().unwrap();
        let config = sluice_apiserver::Config {
            dir: dir.path().join("server"),
            advertise: vec!["127.0.0.1".parse().unwrap()],
            bind,
            service_cidr: "10.96.0.0/16".into(),
            pod_cidr: "10.244.0.0/16".into(),
            cluster_domain: "cluster.local".into(),
        };
        let server = ApiServer::start(config, engine).await.unwrap();
        let serving = server.clone();
        tokio::spawn(async move { serving.serve(listener, CancellationToken::new()).await });
        let client = server.client(UserInfo::new("admin", &["system:masters", "system:authenticated"]));
        let kubeconfig = dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, server.pki().admin_kubeconfig(&format!("https://{bind}")).unwrap()).unwrap();
        let mut world = World { dir, server, client, runtime, kubeconfig, daemon, agent: None, prefix, guard };
        world.objects().await;
        world.start_agent().await;
        let nodes: Api<Node> = Api::all(world.client.clone());
        let range = json!({"spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"]}});
        nodes.patch(NODE, &PatchParams::default(), &Patch::Merge(range)).await.unwrap();
        world
    }

    /// What the controllers would make.
    async fn objects(&self) {
        for (kind, object) in [
            ("serviceaccounts", json!({"metadata": {"name": "default"}})),
            ("configmaps", json!({"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": "authority"}})),
        ] {
            self.post(&format!("/api/v1/namespaces/default/{kind}"), &object).await.unwrap();
        }
    }

    pub async fn post(&self, path: &str, object: &Value) -> Result<Value, kube::Error> {
        let request = http::Request::post(path)
            .header("content-type", "application/json")
            .body(serde_json::to_vec(object).unwrap())
            .unwrap();
        self.client.request(request).await
    }

    pub async fn get(&self, path: &str) -> Result<Value, kube::Error> {
        self.client.request(http::Request::get(path).body(Vec::new()).unwrap()).await
    }

    pub async fn start_agent(&mut self) {
        let user = format!("system:node:{NODE}");
        let client = self.server.client(UserInfo::new(&user, &["system:nodes", "system:authenticated"]));
        let pki = self.server.pki();
        let sans = [NODE.to_owned(), IP.to_owned()];
        let identity = pki.issue(&user, &["system:nodes"], &sans, Usage::Both, Duration::from_secs(3600)).unwrap();
        let mut api = api::Config::fixed(
            format!("{IP}:10250").parse().unwrap(),
            pki.ca_pem().to_owned(),
            identity.cert_pem,
            identity.key_pem,
        );
        api.system_logs = Some(self.dir.path().join("logs"));
        let ip: IpAddr = IP.parse().unwrap();
        let config = Config {
            node_name: NODE.into(),
            node_ips: vec![ip],
            dir: self.dir.path().join("lib"),
            logs: self.dir.path().join("logs"),
            runtime: runtime_config(self.dir.path(), &self.prefix),
            network: sluice_network::Config {
                cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
                service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
                pod_cidrs: Vec::new(),
                node_ips: vec![ip],
                mtu: Some(1500),
                netns_dir: self.dir.path().join("netns"),
            },
            dataplane: None,
            unmasqueraded: Vec::new(),
            peer_path: PeerPath::Auto,
            cluster_domain: "cluster.local".into(),
            cluster_dns: vec!["10.96.0.10".parse().unwrap()],
            serve_dns: false,
            kept: Default::default(),
            dns_upstreams: Some(Vec::new()),
            resolv_conf: "/etc/resolv.conf".into(),
            // However full the disk of the machine is that tests.
            thresholds: Thresholds { disk: 0, inodes: 0, images_high: 101, ..Thresholds::default() },
            api: Some(api),
        };
        let agent = Agent::start(config, client).await.unwrap();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(agent.run(shutdown.clone()));
        self.agent = Some((shutdown, running));
    }

    pub async fn stop_agent(&mut self) {
        if let Some((shutdown, running)) = self.agent.take() {
            shutdown.cancel();
            tokio::time::timeout(Duration::from_secs(20), running).await.expect("the agent ends").unwrap().unwrap();
        }
    }

    /// Creates a pod on the node.
    pub async fn pod(&self, name: &str, mut spec: Value) {
        spec["nodeName"] = NODE.into();
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec});
        self.post("/api/v1/namespaces/default/pods", &pod).await.unwrap();
    }

    pub async fn status(&self, name: &str) -> Value {
        self.get(&format!("/api/v1/namespaces/default/pods/{name}"))
            .await
            .map(|p| p["status"].clone())
            .unwrap_or_default()
    }

    /// Waits until the pod's status fulfils a condition.
    pub async fn until(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let end = tokio::time::Instant::now() + Duration::from_secs(120);
        loop {
            let status = self.status(name).await;
            if holds(&status) {
                return status;
            }
            if tokio::time::Instant::now() > end {
                let events = self.kubectl(&["get", "events"]);
                panic!("{name} never {what}: {status:#}\n{events:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn ready(&self, name: &str) -> Value {
        self.until(name, "ready", |s| {
            s["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
        })
        .await
    }

    /// Exit code, standard output and standard error of stock kubectl.
    pub fn kubectl(&self, arguments: &[&str]) -> (i32, String, String) {
        self.kubectl_with(&[], arguments)
    }

    /// The same, with variables of its environment.
    pub fn kubectl_with(&self, environment: &[(&str, &str)], arguments: &[&str]) -> (i32, String, String) {
        let mut command = Command::new("timeout");
        command.envs(environment.iter().copied());
        command.arg("30").arg("kubectl").arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        let out = tokio::task::block_in_place(|| command.output().unwrap());
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        (out.status.code().unwrap_or(-1), text(&out.stdout), text(&out.stderr))
    }

    pub async fn end(mut self) {
        self.stop_agent().await;
        for container in self.runtime.containers().await.unwrap() {
            self.runtime.remove(&container.id).await.unwrap();
        }
        self.daemon.stop().await.unwrap();
        let socket = self.dir.path().join("containerd.sock");
        Containerd::teardown(&self.dir.path().join("containerd"), &socket).await.unwrap();
        Cgroups::new(&self.prefix).remove_all().unwrap();
        for mount in mounts_below(self.dir.path()) {
            nix::mount::umount2(mount.as_path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
        }
    }
}

pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut list: Vec<PathBuf> =
        table.lines().filter_map(|l| l.split(' ').nth(4)).map(PathBuf::from).filter(|p| p.starts_with(dir)).collect();
    list.reverse();
    list
}

fn runtime_config(dir: &Path, prefix: &str) -> sluice_runtime::Config {
    sluice_runtime::Config {
        socket: dir.join("containerd.sock"),
        namespace: "k8s.io".into(),
        cgroup_prefix: prefix.into(),
        state_dir: dir.join("run"),
        snapshotter: None,
        logger: env!("CARGO_BIN_EXE_sluice-agent-test-logger").into(),
        plain_http: Vec::new(),
    }
}

/// A `docker save` archive with busybox as its only layer.
fn busybox_archive(path: &Path, tag: &str) {
    let mut layer = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: tar::EntryType, mode: u32, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        if kind == tar::EntryType::Symlink {
            layer.append_link(&mut header, name, "busybox").unwrap();
        } else {
            layer.append_data(&mut header, name, data).unwrap();
        }
    };
    for dir in ["bin/", "etc/", "tmp/", "proc/", "sys/", "dev/"] {
        add(dir, tar::EntryType::Directory, 0o755, b"");
    }
    add("bin/busybox", tar::EntryType::Regular, 0o755, &std::fs::read("/bin/busybox").unwrap());
    for applet in
        ["sh", "echo", "sleep", "cat", "id", "env", "httpd", "nc", "ls", "true", "kill", "hostname", "mkdir", "tar"]
    {
        add(&format!("bin/{applet}"), tar::EntryType::Symlink, 0o777, b"");
    }
    let layer = layer.into_inner().unwrap();
    let digest = sha256(&layer);
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    })
    .to_string();
    let manifest = json!([{"Config": "config.json", "RepoTags": [tag], "Layers": ["l1/layer.tar"]}]).to_string();
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

/// Hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
