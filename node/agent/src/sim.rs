//! A simulated node for tests: containers that run until told otherwise, a network that hands out addresses, and an
//! API server that remembers what was written. Behind the same traits as the real ones.
#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sluice_dataplane::ServicePath;
use sluice_network::Bandwidth;
use sluice_runtime::cgroup::Qos;
use sluice_runtime::{
    ContainerSpec, ContainerState, Credentials, Error, ExecOutput, ExecSpec, Exit, ImageInfo, Prepared, Process,
    Resources, Result, Stats, Status,
};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use crate::env::{KeyData, ServiceLinks};
use crate::events::{Note, Recorder};
use crate::model::Pod;
use crate::node_context::{Identity, NodeContext};
use crate::pod::worker::{Beginning, Handle, Message, spawn};
use crate::references::{Changed, Kind, Lookup, References, Source};
use crate::seams::{ApiError, Containers, PodAddress, PodApi, PodName, PodNetwork, Token};

/// What happened, in order, as short lines.
#[derive(Default)]
pub(crate) struct Journal {
    lines: Mutex<Vec<String>>,
    changed: Notify,
}

impl Journal {
    fn add(&self, line: impl Into<String>) {
        self.lines.lock().push(line.into());
        self.changed.notify_waiters();
    }

    /// Waits until a line contains `text`; panics with the whole journal if it does not come.
    pub(crate) async fn expect(&self, text: &str) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.has(text) {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(10), wait).await.is_err() {
            panic!("no \"{text}\" in\n{}", self.lines.lock().join("\n"));
        }
    }

    pub(crate) fn has(&self, text: &str) -> bool {
        self.lines.lock().iter().any(|l| l.contains(text))
    }

    pub(crate) fn count(&self, text: &str) -> usize {
        self.lines.lock().iter().filter(|l| l.contains(text)).count()
    }
}

/// The simulated node.
pub(crate) struct Sim {
    pub(crate) journal: Arc<Journal>,
    pub(crate) node: Arc<NodeContext>,
    pub(crate) runtime: Arc<SimRuntime>,
    pub(crate) objects: Arc<SimObjects>,
    pub(crate) status: Arc<Mutex<Value>>,
    pub(crate) done: Arc<Notify>,
    _dir: tempfile::TempDir,
}

impl Sim {
    pub(crate) fn new() -> Sim {
        let journal = Arc::new(Journal::default());
        let dir = tempfile::tempdir().unwrap();
        let (recorder, mut notes) = Recorder::new();
        let log = journal.clone();
        tokio::spawn(async move {
            while let Some(Note { reason, message, .. }) = notes.recv().await {
                log.add(format!("event {reason}: {message}"));
            }
        });
        let runtime = Arc::new(SimRuntime { journal: journal.clone(), ..SimRuntime::default() });
        let status = Arc::new(Mutex::new(json!({})));
        let api = Arc::new(SimApi { journal: journal.clone(), status: status.clone() });
        let objects = Arc::new(SimObjects::default());
        let identity = Identity {
            name: "n1".into(),
            dir: dir.path().join("lib"),
            logs: dir.path().join("logs"),
            ips: vec!["192.0.2.1".parse().unwrap()],
            ..Identity::default()
        };
        let (_, services) = watch::channel(Some(ServiceLinks::default()));
        let network = Arc::new(SimNetwork { journal: journal.clone() });
        let references = References::new(ObjectsRef(objects.clone()));
        let node = Arc::new(NodeContext::new(identity, runtime.clone(), network, api, references, recorder, services));
        *runtime.node.lock() = Some(Arc::downgrade(&node));
        Sim { journal, node, runtime, objects, status, done: Arc::new(Notify::new()), _dir: dir }
    }

    /// Starts the worker of a pod with this spec.
    pub(crate) fn run(&self, spec: Value) -> Handle {
        self.run_with(spec, Beginning::Normal { found: Vec::new() }, json!({}))
    }

    pub(crate) fn run_with(&self, spec: Value, beginning: Beginning, status: Value) -> Handle {
        self.begin(json!({"spec": spec, "status": status}), beginning)
    }

    /// Starts the worker of a pod with these annotations.
    pub(crate) fn run_annotated(&self, annotations: Value, spec: Value) -> Handle {
        let pod = json!({"metadata": {"annotations": annotations}, "spec": spec});
        self.begin(pod, Beginning::Normal { found: Vec::new() })
    }

    fn begin(&self, mut pod: Value, beginning: Beginning) -> Handle {
        for (field, value) in [("name", "p"), ("namespace", "ns"), ("uid", "u")] {
            pod["metadata"][field] = value.into();
        }
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let done = self.done.clone();
        spawn(self.node.clone(), Arc::new(pod), beginning, move |_| done.notify_one())
    }

    /// What `kubectl` would see: `status.<pointer>`.
    pub(crate) fn status(&self, pointer: &str) -> Value {
        self.status.lock().pointer(pointer).cloned().unwrap_or_default()
    }
}

/// Containers that run until stopped or ended by the test.
#[derive(Default)]
pub(crate) struct SimRuntime {
    journal: Arc<Journal>,
    node: Mutex<Option<std::sync::Weak<NodeContext>>>,
    running: Mutex<HashMap<String, ContainerSpec>>,
    /// Exec'd commands that fail.
    pub(crate) failing: Mutex<Vec<String>>,
    /// Images that are not there.
    pub(crate) missing: Mutex<Vec<String>>,
}

impl SimRuntime {
    /// Id of the running container of that name.
    pub(crate) fn id(&self, name: &str) -> String {
        let running = self.running.lock();
        running.iter().find(|(_, s)| s.name == name).map(|(id, _)| id.clone()).unwrap()
    }

    pub(crate) fn spec(&self, name: &str) -> ContainerSpec {
        self.running.lock().values().find(|s| s.name == name).cloned().unwrap()
    }

    /// Ends a container.
    pub(crate) async fn end(&self, id: &str, code: i32) -> Exit {
        let exit = Exit { code, started_at: None, finished_at: Timestamp::now(), oom_killed: false };
        if self.running.lock().remove(id).is_some() {
            let node = self.node.lock().as_ref().and_then(std::sync::Weak::upgrade).unwrap();
            if let Some((index, worker)) = node.owner(id) {
                let _ = worker.send(Message::Exited { index, id: id.to_owned(), exit: exit.clone() }).await;
            }
        }
        exit
    }
}

#[async_trait]
impl Containers for SimRuntime {
    async fn version(&self) -> Result<String> {
        Ok("1.0".into())
    }
    async fn image(&self, reference: &str) -> Result<Option<ImageInfo>> {
        Ok((!self.missing.lock().iter().any(|m| m == reference)).then(|| image(reference)))
    }
    async fn images(&self) -> Result<Vec<ImageInfo>> {
        Ok(Vec::new())
    }
    async fn pulled_images(&self) -> Result<Vec<ImageInfo>> {
        Ok(Vec::new())
    }
    async fn pull(&self, reference: &str, _: &[Credentials]) -> Result<ImageInfo> {
        self.journal.add(format!("pull {reference}"));
        if self.missing.lock().iter().any(|m| m == reference) {
            return Err(Error::ImageNotFound { image: reference.to_owned() });
        }
        Ok(image(reference))
    }
    async fn remove_image(&self, reference: &str) -> Result<()> {
        self.journal.add(format!("remove image {reference}"));
        Ok(())
    }
    async fn mount_image(&self, reference: &str, _: &str, _: &Path) -> Result<()> {
        self.journal.add(format!("mount {reference}"));
        Ok(())
    }
    async fn unmount_image(&self, _: &str, _: &Path) -> Result<()> {
        Ok(())
    }
    async fn prepare(&self, _: &str, _: &str) -> Result<Option<Prepared>> {
        Ok(None)
    }
    async fn create(&self, spec: &ContainerSpec, _: Option<Prepared>) -> Result<()> {
        self.journal.add(format!("create {}#{}", spec.name, spec.attempt));
        self.running.lock().insert(spec.id.clone(), spec.clone());
        Ok(())
    }
    async fn start(&self, id: &str) -> Result<u32> {
        let name = self.running.lock().get(id).map(|s| s.name.clone()).unwrap();
        self.journal.add(format!("start {name}"));
        Ok(4711)
    }
    async fn stop(&self, id: &str, signal: Option<&str>, grace: Duration) -> Result<Exit> {
        let name = self.running.lock().get(id).map(|s| s.name.clone()).unwrap_or_default();
        self.journal.add(format!("stop {name} {} {}", signal.unwrap_or("-"), grace.as_secs()));
        Ok(self.end(id, 143).await)
    }
    async fn remove(&self, _id: &str) -> Result<()> {
        self.journal.add("remove");
        Ok(())
    }
    async fn exec(&self, id: &str, _: ExecSpec) -> Result<Process> {
        Err(Error::NotFound(id.to_owned()))
    }
    async fn exec_sync(&self, _id: &str, argv: Vec<String>, _: Option<Duration>) -> Result<ExecOutput> {
        let text = argv.join(" ");
        self.journal.add(format!("exec {text}"));
        let code = i32::from(self.failing.lock().contains(&text));
        Ok(ExecOutput { code, stdout: b"said".to_vec(), stderr: Vec::new() })
    }
    async fn attach(&self, id: &str) -> Result<Process> {
        Err(Error::NotFound(id.to_owned()))
    }
    async fn sweep(&self) -> Result<()> {
        Ok(())
    }
    async fn containers(&self) -> Result<Vec<ContainerState>> {
        let running = self.running.lock();
        Ok(running
            .values()
            .map(|s| ContainerState {
                id: s.id.clone(),
                pod_uid: s.pod_uid.clone(),
                pod_name: s.pod_name.clone(),
                namespace: s.namespace.clone(),
                name: s.name.clone(),
                attempt: s.attempt,
                image: s.image.clone(),
                image_id: String::new(),
                labels: s.labels.clone(),
                log_path: s.log_path.clone(),
                created_at: Timestamp::now(),
                status: Status::Running { pid: 1, started_at: Timestamp::now() },
                tty: s.tty,
                stdin: s.stdin,
            })
            .collect())
    }
    async fn stats(&self, _id: &str) -> Result<Stats> {
        Ok(Stats::default())
    }
    async fn layer_usage(&self, _: &str) -> Result<u64> {
        Ok(0)
    }
    async fn make_cgroup(&self, _: Qos, uid: &str, _: Resources) -> Result<String> {
        Ok(format!("/sim/pod{uid}"))
    }
    async fn update_cgroup(&self, _: &str, limits: Resources) -> Result<()> {
        self.journal.add(format!("update {:?} {:?}", limits.cpu_quota, limits.memory_limit));
        Ok(())
    }
    async fn remove_cgroup(&self, _: Qos, _: &str) -> Result<()> {
        Ok(())
    }
}

fn image(reference: &str) -> ImageInfo {
    ImageInfo {
        names: vec![reference.to_owned()],
        id: "sha256:1".into(),
        digest: "sha256:2".into(),
        repo_digest: String::new(),
        size: 10,
        config: sluice_runtime::ImageConfig::default(),
    }
}

struct SimNetwork {
    journal: Arc<Journal>,
}

#[async_trait]
impl PodNetwork for SimNetwork {
    async fn create(&self, _: &PodName, _: ServicePath, _: Bandwidth) -> Result<PodAddress, String> {
        self.journal.add("network");
        Ok(PodAddress { netns: "/sim/netns".into(), ips: vec!["127.0.0.1".parse().unwrap()] })
    }
    async fn limit(&self, _: &str, bandwidth: Bandwidth) -> Result<(), String> {
        self.journal.add(format!("limit {bandwidth:?}"));
        Err("no such filter".to_owned())
    }
    async fn delete(&self, _: &str) -> Result<(), String> {
        self.journal.add("network gone");
        Ok(())
    }
    async fn retain(&self, _: &HashSet<String>) -> Result<(), String> {
        Ok(())
    }
}

struct SimApi {
    journal: Arc<Journal>,
    status: Arc<Mutex<Value>>,
}

#[async_trait]
impl PodApi for SimApi {
    async fn patch_status(&self, _: &PodName, patch: &Value) -> Result<(), ApiError> {
        let line = {
            let mut status = self.status.lock();
            for (key, value) in patch["status"].as_object().unwrap() {
                if key == "conditions" {
                    for c in value.as_array().unwrap() {
                        status[format!("condition:{}", c["type"].as_str().unwrap())] = c["status"].clone();
                    }
                }
                status[key] = value.clone();
            }
            format!("status {} ready={}", status["phase"].as_str().unwrap_or("Running"), status["condition:Ready"])
        };
        self.journal.add(line);
        Ok(())
    }
    async fn delete(&self, pod: &PodName) -> Result<(), ApiError> {
        self.journal.add(format!("DELETE {}", pod.name));
        Ok(())
    }
    async fn runtime_handler(&self, class: &str) -> Result<String, ApiError> {
        Ok(class.to_owned())
    }
    async fn token(&self, _: &PodName, account: &str, _: Option<&str>, seconds: i64) -> Result<Token, ApiError> {
        self.journal.add(format!("token {account} {seconds}"));
        Ok(Token { token: "jwt".into(), expires: Timestamp::now() + Duration::from_secs(3600) })
    }
}

type Follower = (watch::Sender<Lookup>, Arc<Changed>);

/// ConfigMaps the test sets; Secrets are all missing.
#[derive(Default)]
pub(crate) struct SimObjects {
    senders: Mutex<HashMap<String, Follower>>,
    data: Mutex<HashMap<String, Arc<KeyData>>>,
}

impl SimObjects {
    pub(crate) fn set(&self, name: &str, key: &str, value: &str) {
        let data = KeyData { data: [(key.to_owned(), value.as_bytes().to_vec())].into(), ..KeyData::default() };
        let data = Arc::new(data);
        self.data.lock().insert(name.to_owned(), data.clone());
        if let Some((sender, changed)) = self.senders.lock().get(name) {
            sender.send_replace(Lookup::Found(data));
            changed.tell();
        }
    }
}

struct ObjectsRef(Arc<SimObjects>);

impl Source for ObjectsRef {
    fn follow(&self, _: Kind, _: &str, name: &str, out: watch::Sender<Lookup>, changed: Arc<Changed>) -> AbortHandle {
        let first = match self.0.data.lock().get(name) {
            Some(data) => Lookup::Found(data.clone()),
            None => Lookup::Missing,
        };
        out.send_replace(first);
        self.0.senders.lock().insert(name.to_owned(), (out, changed));
        tokio::spawn(std::future::pending::<()>()).abort_handle()
    }
}
