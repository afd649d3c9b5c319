//! Stories of the whole control plane: what users do, and what becomes of it.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Cluster, condition, deployment, rolled_out};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

fn ready_endpoints(slices: &std::collections::BTreeMap<String, Value>) -> Vec<String> {
    let endpoints = slices.values().flat_map(|s| s["endpoints"].as_array().cloned().unwrap_or_default());
    let ready = endpoints.filter(|e| e["conditions"]["ready"] == json!(true));
    let mut names: Vec<String> = ready.map(|e| e["targetRef"]["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_comes_changes_and_goes() {
    let cluster = Cluster::start().await;
    let _nodes = (cluster.node("a").await, cluster.node("b").await);
    cluster.namespace("shop").await;
    cluster
        .until("ConfigMap", "shop", |all| all.get("kube-root-ca.crt").is_some_and(|m| m["data"]["ca.crt"].is_string()))
        .await;
    let service = json!({"metadata": {"name": "web", "namespace": "shop"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}});
    cluster.create("Service", service).await;
    cluster.create("Deployment", deployment("shop", "web", 3)).await;

    let all = cluster.until("Deployment", "shop", |all| all.get("web").is_some_and(rolled_out)).await;
    assert_eq!(all["web"]["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "1");
    let pods = cluster.until("Pod", "shop", |all| all.len() == 3).await;
    let nodes: std::collections::BTreeSet<&str> =
        pods.values().map(|p| p["spec"]["nodeName"].as_str().unwrap()).collect();
    assert_eq!(nodes.len(), 2, "pods are spread");
    let slices = cluster.until("EndpointSlice", "shop", |all| ready_endpoints(all).len() == 3).await;
    assert_eq!(ready_endpoints(&slices), pods.keys().cloned().collect::<Vec<_>>());
    assert_eq!(slices.values().next().unwrap()["ports"][0]["port"], 8080);
    cluster
        .until("Endpoints", "shop", |all| {
            all.get("web").is_some_and(|e| e["subsets"][0]["addresses"].as_array().is_some_and(|a| a.len() == 3))
        })
        .await;

    // A new image: all pods are replaced.
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "echo:v2",
        "ports": [{"name": "http", "containerPort": 8080}]}]}}}});
    cluster.patch("Deployment", "shop", "web", image).await;
    cluster.until("Deployment", "shop", |all| rolled_out(&all["web"])).await;
    let renewed =
        cluster.until("Pod", "shop", |all| all.len() == 3 && all.keys().all(|name| !pods.contains_key(name))).await;
    let slices = cluster
        .until("EndpointSlice", "shop", |all| {
            ready_endpoints(all).len() == 3 && !ready_endpoints(all).iter().any(|n| pods.contains_key(n))
        })
        .await;
    assert_eq!(ready_endpoints(&slices), renewed.keys().cloned().collect::<Vec<_>>());
    let sets = cluster.until("ReplicaSet", "shop", |all| all.len() == 2).await;
    let mut sizes: Vec<_> = sets.values().map(|s| s["spec"]["replicas"].as_i64().unwrap()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [0, 3]);

    // Scaled.
    cluster.patch("Deployment", "shop", "web", json!({"spec": {"replicas": 1}})).await;
    cluster.until("Pod", "shop", |all| all.len() == 1).await;
    let events = cluster.until("Event", "shop", |all| all.values().any(|e| e["reason"] == "ScalingReplicaSet")).await;
    assert!(
        events
            .values()
            .any(|e| e["reason"] == "SuccessfulCreate" && e["source"]["component"] == "replicaset-controller")
    );

    // Deleted: the garbage collector takes the rest.
    cluster.delete("Deployment", "shop", "web", DeleteParams::default()).await;
    cluster.until("ReplicaSet", "shop", |all| all.is_empty()).await;
    cluster.until("Pod", "shop", |all| all.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreground_and_orphan() {
    let cluster = Cluster::start().await;
    let _node = cluster.node("a").await;
    cluster.namespace("n").await;
    for name in ["front", "keep"] {
        cluster.create("Deployment", deployment("n", name, 1)).await;
    }
    cluster.until("Deployment", "n", |all| ["front", "keep"].iter().all(|n| all.get(*n).is_some_and(rolled_out))).await;
    cluster.delete("Deployment", "n", "front", DeleteParams::foreground()).await;
    cluster.until("Deployment", "n", |all| !all.contains_key("front")).await;
    let sets = cluster.until("ReplicaSet", "n", |_| true).await;
    assert_eq!(sets.len(), 1, "a foreground deletion ends after the dependents are gone");

    cluster.delete("Deployment", "n", "keep", DeleteParams::orphan()).await;
    cluster.until("Deployment", "n", |all| all.is_empty()).await;
    let sets = cluster
        .until("ReplicaSet", "n", |all| {
            all.values().all(|s| s["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty))
        })
        .await;
    assert_eq!(sets.len(), 1);
    // A new Deployment of the same selector takes the orphan over.
    let again = cluster.create("Deployment", deployment("n", "keep", 1)).await;
    cluster
        .until("ReplicaSet", "n", |all| {
            all.len() == 1
                && all.values().all(|s| s["metadata"]["ownerReferences"][0]["uid"] == again["metadata"]["uid"])
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_takes_everything_with_it() {
    let cluster = Cluster::start().await;
    let _node = cluster.node("a").await;
    cluster.namespace("n").await;
    cluster.create("Deployment", deployment("n", "web", 2)).await;
    cluster
        .create(
            "ConfigMap",
            json!({"metadata": {"name": "held", "namespace": "n", "finalizers": ["example.com/hold"]}}),
        )
        .await;
    cluster.until("Deployment", "n", |all| all.get("web").is_some_and(rolled_out)).await;
    cluster.all("Namespace").delete("n", &DeleteParams::default()).await.unwrap();
    let all = cluster
        .until("Namespace", "", |all| condition(&all["n"], "NamespaceFinalizersRemaining")["status"] == "True")
        .await;
    assert_eq!(all["n"]["status"]["phase"], "Terminating");
    cluster.until("Pod", "n", |all| all.is_empty()).await;
    cluster.patch("ConfigMap", "n", "held", json!({"metadata": {"finalizers": null}})).await;
    cluster.until("Namespace", "", |all| !all.contains_key("n")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_node() {
    let cluster =
        Cluster::with(|options| sluice_controllers::Options { node_grace: Duration::from_secs(3), ..options }).await;
    let (lost, _stays) = (cluster.node("lost").await, cluster.node("stays").await);
    cluster.until("Node", "", |all| all.values().all(|n| n["spec"]["podCIDR"].is_string())).await;
    cluster.namespace("n").await;
    let mut web = deployment("n", "web", 2);
    web["spec"]["template"]["spec"]["tolerations"] = json!([
        {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}]);
    cluster.create("Deployment", web).await;
    cluster.create("Service", json!({"metadata": {"name": "web", "namespace": "n"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}})).await;
    cluster.until("EndpointSlice", "n", |all| ready_endpoints(all).len() == 2).await;
    lost.die();
    let nodes = cluster.until("Node", "", |all| condition(&all["lost"], "Ready")["status"] == "Unknown").await;
    assert_eq!(condition(&nodes["lost"], "Ready")["reason"], "NodeStatusUnknown");
    cluster
        .until("Node", "", |all| {
            let taints = all["lost"]["spec"]["taints"].as_array().cloned().unwrap_or_default();
            taints.iter().filter(|t| t["key"] == "node.kubernetes.io/unreachable").count() == 2
        })
        .await;
    // Its pod is no endpoint any more, and another one runs elsewhere.
    cluster
        .until("EndpointSlice", "n", |all| {
            let names = ready_endpoints(all);
            let endpoints: Vec<_> =
                all.values().flat_map(|s| s["endpoints"].as_array().cloned().unwrap_or_default()).collect();
            names.len() == 2
                && endpoints.iter().filter(|e| e["conditions"]["ready"] == true).all(|e| e["nodeName"] == "stays")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reasons_are_told() {
    let cluster = Cluster::start().await;
    let _node = cluster.node("a").await;
    cluster.namespace("n").await;
    let spec = json!({"containers": [{"name": "c", "image": "x", "resources": {"requests": {"cpu": "64"}}}]});
    cluster.create("Pod", json!({"metadata": {"name": "big", "namespace": "n"}, "spec": spec})).await;
    let expected = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    let pods = cluster.until("Pod", "n", |all| condition(&all["big"], "PodScheduled")["message"] == expected).await;
    assert_eq!(condition(&pods["big"], "PodScheduled")["reason"], "Unschedulable");
    // Room comes: it is scheduled without anybody asking.
    let more = json!({"status": {"allocatable": {"cpu": "128"}}});
    cluster.all("Node").patch_status("a", &PatchParams::default(), &Patch::Merge(more)).await.unwrap();
    cluster.until("Pod", "n", |all| all["big"]["status"]["phase"] == "Running").await;
    cluster
        .until("Event", "n", |all| {
            let has = |reason: &str| all.values().any(|e| e["reason"] == reason);
            has("FailedScheduling") && has("Scheduled")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn daemons_run_everywhere() {
    let cluster = Cluster::start().await;
    let _first = cluster.node("a").await;
    cluster.namespace("n").await;
    let template = |image: &str| json!({"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": image}]}});
    cluster
        .create(
            "DaemonSet",
            json!({"metadata": {"name": "d", "namespace": "n"},
            "spec": {"selector": {"matchLabels": {"app": "d"}}, "template": template("v1")}}),
        )
        .await;
    let available = |all: &std::collections::BTreeMap<String, Value>, nodes: i64| {
        let (d, status) = (&all["d"], &all["d"]["status"]);
        status["observedGeneration"] == d["metadata"]["generation"]
            && ["numberAvailable", "updatedNumberScheduled", "desiredNumberScheduled"]
                .iter()
                .all(|f| status[*f] == json!(nodes))
    };
    cluster.until("DaemonSet", "n", |all| available(all, 1)).await;
    let _second = cluster.node("b").await;
    cluster.until("DaemonSet", "n", |all| available(all, 2)).await;
    let before = cluster.until("Pod", "n", |all| all.len() == 2).await;
    cluster.patch("DaemonSet", "n", "d", json!({"spec": {"template": template("v2")}})).await;
    cluster.until("DaemonSet", "n", |all| available(all, 2)).await;
    cluster.until("Pod", "n", |all| all.len() == 2 && !all.keys().any(|name| before.contains_key(name))).await;
    let revisions = cluster.until("ControllerRevision", "n", |all| all.len() == 2).await;
    assert!(revisions.values().any(|r| r["revision"] == 2 && r["data"]["spec"]["template"]["$patch"] == "replace"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_completes() {
    let cluster = Cluster::start().await;
    let _node = cluster.node("a").await;
    cluster.namespace("n").await;
    let template = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "done"}]}});
    let spec = json!({"completions": 3, "parallelism": 2, "template": template, "ttlSecondsAfterFinished": 1});
    cluster.create("Job", json!({"metadata": {"name": "j", "namespace": "n"}, "spec": spec})).await;
    let all = cluster.until("Job", "n", |all| condition(&all["j"], "Complete")["status"] == "True").await;
    assert_eq!((&all["j"]["status"]["succeeded"], &all["j"]["status"]["failed"]), (&json!(3), &json!(0)));
    cluster.until("Job", "n", |all| all.is_empty()).await;
    cluster.until("Pod", "n", |all| all.is_empty()).await;
}

/// A request in PEM, base64 as the API wants it, for a node's certificate.
fn request(node: &str, names: &[&str]) -> String {
    use base64::Engine;
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("system:node:{node}"));
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
    let pem = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    base64::engine::general_purpose::STANDARD.encode(pem)
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_get_their_certificates() {
    let cluster = Cluster::start().await;
    let _node = cluster.node("a").await;
    // Upstream leaves serving certificates to people; whoever wants them approved says so with this binding.
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "approve-serving"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
            "name": "system:certificates.k8s.io:kubelet-serving-approver"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:kube-controller-manager"}],
    });
    let bindings = cluster.of("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "clusterrolebindings");
    let bindings = kube::Api::<kube::core::DynamicObject>::all_with(cluster.client.clone(), &bindings);
    bindings.create(&Default::default(), &serde_json::from_value(binding).unwrap()).await.unwrap();
    let node = cluster.user("system:node:a", &["system:nodes", "system:authenticated"]);
    let joining = cluster.user(
        "system:bootstrap:abcdef",
        &["system:bootstrappers", "system:bootstrappers:kubeadm:default-node-token", "system:authenticated"],
    );
    let nobody = cluster.user("mallory", &["system:authenticated"]);
    let client_usages = json!(["digital signature", "client auth"]);
    let server_usages = json!(["digital signature", "server auth"]);
    let (client, serving) = ("kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kubelet-serving");
    for (name, user, signer, usages, request, signed) in [
        ("renewal", &node, client, &client_usages, request("a", &[]), true),
        ("join", &joining, client, &client_usages, request("new", &[]), true),
        ("serving", &node, serving, &server_usages, request("a", &["a", "127.0.0.9"]), true),
        ("foreign-name", &node, serving, &server_usages, request("a", &["kubernetes.default.svc"]), false),
    ] {
        let body = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
            "spec": {"request": request, "signerName": signer, "usages": usages}});
        let api = kube::Api::<kube::core::DynamicObject>::all_with(
            user.clone(),
            &cluster.resource("CertificateSigningRequest"),
        );
        api.create(&Default::default(), &serde_json::from_value(body.clone()).unwrap()).await.unwrap();
        if signed {
            let all = cluster
                .until("CertificateSigningRequest", "", |all| all[name]["status"]["certificate"].is_string())
                .await;
            assert_eq!(condition(&all[name], "Approved")["reason"], "AutoApproved");
        }
        let api = kube::Api::<kube::core::DynamicObject>::all_with(
            nobody.clone(),
            &cluster.resource("CertificateSigningRequest"),
        );
        assert!(api.create(&Default::default(), &serde_json::from_value(body).unwrap()).await.is_err());
    }
    // A later renewal is signed, so the wrong one was looked at and left alone.
    let all = cluster.until("CertificateSigningRequest", "", |all| all.len() == 4).await;
    assert!(all["foreign-name"]["status"]["certificate"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn stateful_pods_keep_their_names() {
    let cluster = Cluster::start().await;
    let _node = cluster.node("a").await;
    cluster.namespace("n").await;
    let template = |image: &str| json!({"metadata": {"labels": {"app": "s"}}, "spec": {"containers": [{"name": "c", "image": image}]}});
    let spec = json!({"replicas": 2, "serviceName": "s", "selector": {"matchLabels": {"app": "s"}}, "template": template("v1")});
    cluster.create("StatefulSet", json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec})).await;
    let settled = |all: &std::collections::BTreeMap<String, Value>, size: i64| {
        let (set, status) = (&all["s"], &all["s"]["status"]);
        status["observedGeneration"] == set["metadata"]["generation"]
            && ["readyReplicas", "updatedReplicas", "currentReplicas", "replicas"]
                .iter()
                .all(|f| status[*f] == json!(size))
            && status["currentRevision"] == status["updateRevision"]
    };
    let first = cluster.until("StatefulSet", "n", |all| settled(all, 2)).await;
    cluster.patch("StatefulSet", "n", "s", json!({"spec": {"template": template("v2"), "replicas": 3}})).await;
    let second = cluster.until("StatefulSet", "n", |all| settled(all, 3)).await;
    assert_ne!(first["s"]["status"]["updateRevision"], second["s"]["status"]["updateRevision"]);
    let pods = cluster.until("Pod", "n", |all| all.len() == 3).await;
    assert_eq!(pods.keys().collect::<Vec<_>>(), ["s-0", "s-1", "s-2"]);
    assert!(pods.values().all(|p| p["spec"]["containers"][0]["image"] == "v2" && p["spec"]["subdomain"] == "s"));
    cluster.patch("StatefulSet", "n", "s", json!({"spec": {"replicas": 1}})).await;
    cluster.until("StatefulSet", "n", |all| settled(all, 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_https_too() {
    let cluster = Cluster::apart().await;
    let _node = cluster.node("a").await;
    cluster.namespace("n").await;
    cluster.create("Deployment", deployment("n", "web", 3)).await;
    let spec = json!({"minAvailable": "50%", "selector": {"matchLabels": {"app": "web"}}});
    cluster.create("PodDisruptionBudget", json!({"metadata": {"name": "web", "namespace": "n"}, "spec": spec})).await;
    cluster.until("Deployment", "n", |all| all.get("web").is_some_and(rolled_out)).await;
    let budgets =
        cluster.until("PodDisruptionBudget", "n", |all| all["web"]["status"]["disruptionsAllowed"] == 1).await;
    assert_eq!(budgets["web"]["status"]["desiredHealthy"], 2);
    cluster.all("Namespace").delete("n", &DeleteParams::default()).await.unwrap();
    cluster.until("Namespace", "", |all| !all.contains_key("n")).await;
}
