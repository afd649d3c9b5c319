//! Services of a cluster with addresses of both families: what they are given, how they gain and lose a family, and what a
//! cluster that gains its second range keeps.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::Http;
use serde_json::{Value, json};
use sluice_apiserver::{ApiServer, Config, context::UserInfo};
use sluice_store::{DynEngine, embedded::Embedded};

const SERVICES: &str = "/api/v1/namespaces/default/services";

struct Cluster {
    dir: tempfile::TempDir,
    engine: DynEngine,
}

impl Cluster {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine: DynEngine = Embedded::open(&dir.path().join("store"), Default::default()).unwrap();
        Self { dir, engine }
    }

    async fn serve(&self, service_cidr: &str) -> (ApiServer, Http) {
        let config = Config {
            dir: self.dir.path().join("pki"),
            advertise: vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
            bind: "127.0.0.1:6443".parse().unwrap(),
            service_cidr: service_cidr.into(),
            pod_cidr: "10.244.0.0/16,fd00:244::/48".into(),
            cluster_domain: "cluster.local".into(),
        };
        let server = ApiServer::start(config, Arc::clone(&self.engine)).await.unwrap();
        let admin = Http(server.client(UserInfo::new("admin", &["system:masters"])));
        (server, admin)
    }
}

fn service(name: &str, spec: Value) -> Value {
    let mut object = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], "selector": {"a": "b"}}});
    json_patch::merge(&mut object["spec"], &spec);
    object
}

fn addresses(service: &Value) -> Vec<String> {
    let listed = service["spec"]["clusterIPs"].as_array().unwrap();
    assert_eq!(service["spec"]["clusterIP"], listed[0]);
    listed.iter().map(|ip| ip.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn services_gain_and_lose_their_second_family() {
    let cluster = Cluster::new();
    let (_server, http) = cluster.serve("10.96.0.0/24,fd00:96::/120").await;
    let patch =
        async |name: &str, spec: Value| http.patch(&format!("{SERVICES}/{name}"), "merge", json!({"spec": spec})).await;
    let single = http.create(SERVICES, service("web", json!({}))).await;
    assert_eq!((&single["spec"]["ipFamilies"], addresses(&single).len()), (&json!(["IPv4"]), 1));
    let first = addresses(&single).remove(0);

    let both = patch("web", json!({"ipFamilyPolicy": "PreferDualStack"})).await.ok();
    let [kept, second] = &addresses(&both)[..] else { panic!("{both}") };
    assert!(*kept == first && second.starts_with("fd00:96::"), "{both}");
    assert_eq!(both["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));

    // Nobody else gets the second address, neither by chance nor by name.
    let same = json!({"ipFamilies": ["IPv6"], "clusterIP": second});
    let (code, _, message) = http.post(SERVICES, service("other", same.clone())).await.failed();
    assert!(code == 422 && message.ends_with("provided IP is already allocated"), "{message}");

    let (code, _, message) = patch("web", json!({"clusterIPs": [first], "ipFamilies": ["IPv4"]})).await.failed();
    assert!(code == 422 && message.contains("must be 'SingleStack' to release the secondary cluster IP"), "{message}");

    let single = patch("web", json!({"ipFamilyPolicy": "SingleStack"})).await.ok();
    assert_eq!(addresses(&single), [first]);
    let freed = http.create(SERVICES, service("other", same)).await;
    assert_eq!(addresses(&freed), std::slice::from_ref(second));

    let (code, _, message) = patch("other", json!({"ipFamilies": ["IPv4"]})).await.failed();
    assert!(code == 422 && message.contains("expected an IPv4 value as indicated by `ipFamilies[0]`"), "{message}");

    let headless = http.create(SERVICES, service("bare", json!({"clusterIP": "None", "selector": null}))).await;
    assert_eq!(headless["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(headless["spec"]["ipFamilyPolicy"], "RequireDualStack");
    let named = http.create(SERVICES, service("named", json!({"type": "ExternalName", "externalName": "a.b"}))).await;
    assert_eq!((named["spec"].get("ipFamilies"), named["spec"].get("clusterIPs")), (None, None));
    let inside =
        patch("named", json!({"type": "ClusterIP", "externalName": null, "ipFamilyPolicy": "RequireDualStack"}));
    assert_eq!(addresses(&inside.await.ok()).len(), 2);
}

#[tokio::test]
async fn the_first_range_is_the_clusters_own_family() {
    let cluster = Cluster::new();
    let (_server, http) = cluster.serve("fd00:96::/108,10.96.0.0/16").await;
    let own = http.get(&format!("{SERVICES}/kubernetes")).await.ok();
    assert_eq!((addresses(&own), &own["spec"]["ipFamilies"]), (vec!["fd00:96::1".to_owned()], &json!(["IPv6"])));
    let dns = http.get("/api/v1/namespaces/kube-system/services/kube-dns").await.ok();
    assert_eq!(addresses(&dns), ["fd00:96::a"]);
    let made = http.create(SERVICES, service("web", json!({"ipFamilyPolicy": "PreferDualStack"}))).await;
    assert_eq!(made["spec"]["ipFamilies"], json!(["IPv6", "IPv4"]));
    assert!(addresses(&made)[0].starts_with("fd00:96::"));
}

#[tokio::test]
async fn a_cluster_that_gains_a_range_keeps_what_its_services_have() {
    let cluster = Cluster::new();
    let prefers = json!({"ipFamilyPolicy": "PreferDualStack"});
    let made = {
        let (_server, http) = cluster.serve("10.96.0.0/16").await;
        let (code, _, message) =
            http.post(SERVICES, service("both", json!({"ipFamilyPolicy": "RequireDualStack"}))).await.failed();
        assert!(code == 422 && message.contains("this cluster is not configured for dual-stack services"), "{message}");
        http.create(SERVICES, service("web", prefers.clone())).await
    };
    assert_eq!(made["spec"]["ipFamilies"], json!(["IPv4"]));
    let (_server, http) = cluster.serve("10.96.0.0/16,fd00:96::/108").await;
    let range = http.get("/apis/networking.k8s.io/v1/servicecidrs/kubernetes").await.ok();
    assert_eq!(range["spec"]["cidrs"], json!(["10.96.0.0/16", "fd00:96::/108"]));
    assert_eq!(range["status"]["conditions"][0]["type"], "Ready");
    let network = http.get("/api/v1/namespaces/kube-system/configmaps/cluster-network").await.ok();
    assert_eq!(network["data"]["serviceCidr"], "10.96.0.0/16,fd00:96::/108");
    let path = format!("{SERVICES}/web");
    let same = http.patch(&path, "merge", json!({"spec": {"sessionAffinity": "ClientIP"}})).await.ok();
    assert_eq!(addresses(&same), addresses(&made));
    let more = http.patch(&path, "merge", json!({"spec": {"ipFamilyPolicy": "RequireDualStack"}})).await.ok();
    assert_eq!(addresses(&more)[0], addresses(&made)[0]);
    assert_eq!(addresses(&more).len(), 2);
}
