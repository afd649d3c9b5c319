//! A whole control plane in one process (API server over an embedded store, scheduler, controllers, each as the user it is in
//! production) and nodes that pretend: they run whatever is bound to them, at once.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use sluice_apiserver::{ApiServer, Config, context::UserInfo};
use sluice_store::{DynEngine, embedded::Embedded};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Cluster {
    pub api: ApiServer,
    pub client: Client,
    /// The store below it all.
    pub engine: DynEngine,
    shutdown: CancellationToken,
    _stop: DropGuard,
    _dir: tempfile::TempDir,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::with(|options| options).await
    }

    /// Scheduler and controllers talk to the API server over HTTPS, as on a machine of their own.
    pub async fn apart() -> Self {
        Self::build(true, |options| options).await
    }

    /// A control plane whose controllers' options are changed by `change`.
    pub async fn with(change: impl FnOnce(sluice_controllers::Options) -> sluice_controllers::Options) -> Self {
        Self::build(false, change).await
    }

    async fn build(
        https: bool,
        change: impl FnOnce(sluice_controllers::Options) -> sluice_controllers::Options,
    ) -> Self {
        let _ = tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).try_init();
        let dir = tempfile::tempdir().unwrap();
        let engine: DynEngine = Embedded::open(&dir.path().join("store"), Default::default()).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = Config {
            dir: dir.path().join("pki"),
            advertise: vec!["127.0.0.1".parse().unwrap()],
            bind: address,
            service_cidr: "10.96.0.0/16".into(),
            pod_cidr: "10.244.0.0/16".into(),
            cluster_domain: "cluster.local".into(),
        };
        let api = ApiServer::start(config, engine.clone()).await.unwrap();
        let shutdown = CancellationToken::new();
        if https {
            let (api, shutdown) = (api.clone(), shutdown.clone());
            tokio::spawn(async move { api.serve(listener, shutdown).await.unwrap() });
        }
        let user = |name: &'static str| {
            let api = api.clone();
            async move {
                if !https {
                    return api.client(UserInfo::new(name, &["system:authenticated"]));
                }
                let text = api.pki().kubeconfig(&format!("https://{address}"), name, &[]).unwrap();
                let kubeconfig = kube::config::Kubeconfig::from_yaml(&text).unwrap();
                let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
                Client::try_from(config).unwrap()
            }
        };
        let options = change(sluice_controllers::Options {
            cluster_ca: Some((api.pki().ca_pem().to_owned(), api.pki().ca_key_pem())),
            ca_bundle: api.pki().ca_pem().to_owned(),
            pod_cidrs: vec!["10.244.0.0/16".into()],
            ..Default::default()
        });
        tokio::spawn(sluice_controllers::run(user("system:kube-controller-manager").await, options, shutdown.clone()));
        tokio::spawn(sluice_scheduler::run(user("system:kube-scheduler").await, Default::default(), shutdown.clone()));
        let client = api.client(UserInfo::new("admin", &["system:masters"]));
        Self { api, client, engine, _stop: shutdown.clone().drop_guard(), shutdown, _dir: dir }
    }

    pub fn user(&self, name: &str, groups: &[&str]) -> Client {
        self.api.client(UserInfo::new(name, groups))
    }

    /// A kind by `group/version` (`v1` for core), kind and plural.
    pub fn of(&self, api_version: &str, kind: &str, plural: &str) -> ApiResource {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
    }

    pub fn resource(&self, kind: &str) -> ApiResource {
        match kind {
            "Deployment" => self.of("apps/v1", kind, "deployments"),
            "ReplicaSet" => self.of("apps/v1", kind, "replicasets"),
            "DaemonSet" => self.of("apps/v1", kind, "daemonsets"),
            "ControllerRevision" => self.of("apps/v1", kind, "controllerrevisions"),
            "PodDisruptionBudget" => self.of("policy/v1", kind, "poddisruptionbudgets"),
            "StatefulSet" => self.of("apps/v1", kind, "statefulsets"),
            "CronJob" => self.of("batch/v1", kind, "cronjobs"),
            "PriorityClass" => self.of("scheduling.k8s.io/v1", kind, "priorityclasses"),
            "ClusterRole" => self.of("rbac.authorization.k8s.io/v1", kind, "clusterroles"),
            "Job" => self.of("batch/v1", kind, "jobs"),
            "EndpointSlice" => self.of("discovery.k8s.io/v1", kind, "endpointslices"),
            "Endpoints" => self.of("v1", kind, "endpoints"),
            "LoadBalancerAnnouncement" => self.of("sluice.dev/v1", kind, "loadbalancerannouncements"),
            "LoadBalancerPool" => self.of("sluice.dev/v1", kind, "loadbalancerpools"),
            "IPAddress" => self.of("networking.k8s.io/v1", kind, "ipaddresses"),
            "ServiceCIDR" => self.of("networking.k8s.io/v1", kind, "servicecidrs"),
            "APIService" => self.of("apiregistration.k8s.io/v1", kind, "apiservices"),
            "Lease" => self.of("coordination.k8s.io/v1", kind, "leases"),
            "CertificateSigningRequest" => self.of("certificates.k8s.io/v1", kind, "certificatesigningrequests"),
            _ => self.of("v1", kind, &format!("{}s", kind.to_lowercase())),
        }
    }

    pub fn all(&self, kind: &str) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &self.resource(kind))
    }

    pub fn namespaced(&self, kind: &str, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &self.resource(kind))
    }

    /// Creates an object; `apiVersion` is filled in.
    pub async fn create(&self, kind: &str, mut body: Value) -> Value {
        let resource = self.resource(kind);
        body["apiVersion"] = json!(resource.api_version);
        body["kind"] = json!(resource.kind);
        let object: DynamicObject = serde_json::from_value(body).unwrap();
        let api = match object.namespace() {
            Some(namespace) => self.namespaced(kind, &namespace),
            None => self.all(kind),
        };
        serde_json::to_value(api.create(&PostParams::default(), &object).await.unwrap()).unwrap()
    }

    pub async fn namespace(&self, name: &str) {
        self.create("Namespace", json!({"metadata": {"name": name}})).await;
        self.until("ServiceAccount", name, |all| all.contains_key("default")).await;
    }

    pub async fn patch(&self, kind: &str, namespace: &str, name: &str, patch: Value) {
        self.namespaced(kind, namespace).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    pub async fn delete(&self, kind: &str, namespace: &str, name: &str, params: DeleteParams) {
        self.namespaced(kind, namespace).delete(name, &params).await.unwrap();
    }

    /// Watches a kind in a namespace (all of the cluster when empty) until what is there, by name, is as wanted.
    pub async fn until(
        &self,
        kind: &str,
        namespace: &str,
        wanted: impl Fn(&BTreeMap<String, Value>) -> bool,
    ) -> BTreeMap<String, Value> {
        let api = if namespace.is_empty() { self.all(kind) } else { self.namespaced(kind, namespace) };
        let mut stream = watch(api, watcher::Config::default()).default_backoff().boxed();
        let mut all: BTreeMap<String, Value> = BTreeMap::new();
        let mut listed = false;
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                match stream.next().await.unwrap() {
                    Ok(Event::Init) => all.clear(),
                    Ok(Event::InitDone) => listed = true,
                    Ok(Event::InitApply(object) | Event::Apply(object)) => {
                        all.insert(object.name_any(), serde_json::to_value(&object).unwrap());
                    }
                    Ok(Event::Delete(object)) => {
                        all.remove(&object.name_any());
                    }
                    Err(error) => panic!("{error}"),
                }
                if listed && wanted(&all) {
                    return;
                }
            }
        });
        let done = waited.await.is_ok();
        assert!(
            done,
            "{kind} in {namespace:?} never became as wanted: {}",
            serde_json::to_string_pretty(&all).unwrap()
        );
        all
    }

    /// A node that runs what is bound to it.
    pub async fn node(&self, name: &str) -> SimulatedNode {
        let client = self.user(&format!("system:node:{name}"), &["system:nodes", "system:authenticated"]);
        let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": "z"}}});
        self.create("Node", node).await;
        let status = json!({"status": {
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}, "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "addresses": [{"type": "InternalIP", "address": "127.0.0.9"}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
                "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        }});
        let nodes = self.all("Node");
        nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        let stop = self.shutdown.child_token();
        let pods = self.of("v1", "Pod", "pods");
        tokio::spawn(stop.clone().run_until_cancelled_owned(run_pods(client, pods, name.to_owned())));
        let leases = self.namespaced("Lease", "kube-node-lease");
        tokio::spawn(stop.clone().run_until_cancelled_owned(renew(leases, name.to_owned())));
        SimulatedNode { stop, name: name.to_owned() }
    }
}

/// Dropped without effect; `die` stops it.
pub struct SimulatedNode {
    stop: CancellationToken,
    pub name: String,
}

impl SimulatedNode {
    pub fn die(&self) {
        self.stop.cancel();
    }
}

/// Renews the node's lease often enough for the short grace of the tests.
async fn renew(leases: Api<DynamicObject>, node: String) {
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    loop {
        tick.tick().await;
        let now = format!("{:.6}", jiff::Timestamp::now());
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": node, "namespace": "kube-node-lease"},
            "spec": {"holderIdentity": node, "renewTime": now}});
        if leases.patch(&node, &PatchParams::default(), &Patch::Merge(&lease)).await.is_err() {
            let _ = leases.create(&PostParams::default(), &serde_json::from_value(lease).unwrap()).await;
        }
    }
}

/// Runs every pod of the node: it becomes ready at once, and goes at once when deleted.
async fn run_pods(client: Client, resource: ApiResource, node: String) {
    let all: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let mut stream = watch(all, config).default_backoff().boxed();
    let mut next = 1u8;
    while let Some(event) = stream.next().await {
        let Ok(Event::Apply(pod) | Event::InitApply(pod)) = event else { continue };
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &pod.namespace().unwrap(), &resource);
        let name = pod.name_any();
        if pod.metadata.deletion_timestamp.is_some() {
            let now = DeleteParams { grace_period_seconds: Some(0), ..Default::default() };
            let _ = api.delete(&name, &now).await;
            continue;
        }
        if pod.data["status"]["podIPs"].is_array() {
            continue;
        }
        next = next.wrapping_add(1).max(2);
        let ip = format!("10.244.0.{next}");
        let (phase, ready, code) = end(&pod);
        let mut status = json!({"status": {"phase": phase, "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        if phase == "Failed" {
            // Long ago, so that nothing is delayed on its account.
            let ended = json!({"terminated": {"exitCode": code, "finishedAt": "2020-01-01T00:00:00Z"}});
            status["status"]["containerStatuses"] = json!([{"name": "c", "image": "x", "imageID": "x", "ready": false,
                "restartCount": 0, "state": ended}]);
        }
        let _ = api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(status)).await;
    }
}

/// What becomes of a pod, by its image: `done` ends at once and well, `exit:3` with code 3, `odd` ends badly where its
/// completion index is odd and well elsewhere, others run. Its phase, readiness and exit code.
fn end(pod: &DynamicObject) -> (&'static str, &'static str, i32) {
    let image = pod.data["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
    let index = pod.annotations().get("batch.kubernetes.io/job-completion-index");
    let odd = index.and_then(|index| index.parse::<i32>().ok()).is_some_and(|index| index % 2 == 1);
    match image.split_once(':') {
        _ if image == "done" || image == "odd" && !odd => ("Succeeded", "False", 0),
        _ if image == "odd" => ("Failed", "False", 1),
        Some(("exit", code)) => ("Failed", "False", code.parse().unwrap()),
        _ => ("Running", "True", 0),
    }
}

/// A Deployment of an image that the simulated nodes pretend to run.
pub fn deployment(namespace: &str, name: &str, replicas: i32) -> Value {
    json!({
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": "echo:v1", "ports": [{"name": "http", "containerPort": 8080}]}]},
            },
        },
    })
}

/// Whether a Deployment is rolled out as `kubectl rollout status` judges it.
pub fn rolled_out(deployment: &Value) -> bool {
    let (spec, status) = (&deployment["spec"], &deployment["status"]);
    let replicas = &spec["replicas"];
    status["observedGeneration"] == deployment["metadata"]["generation"]
        && status["updatedReplicas"] == *replicas
        && status["replicas"] == *replicas
        && status["availableReplicas"] == *replicas
        && condition(deployment, "Progressing")["reason"] == "NewReplicaSetAvailable"
}

pub fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions.and_then(|all| all.iter().find(|c| c["type"] == kind)).cloned().unwrap_or_default()
}

/// Names of the pods that slices call ready, sorted.
pub fn ready_endpoints(slices: &std::collections::BTreeMap<String, Value>) -> Vec<String> {
    let endpoints = slices.values().flat_map(|s| s["endpoints"].as_array().cloned().unwrap_or_default());
    let ready = endpoints.filter(|e| e["conditions"]["ready"] == json!(true));
    let mut names: Vec<String> = ready.map(|e| e["targetRef"]["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}
