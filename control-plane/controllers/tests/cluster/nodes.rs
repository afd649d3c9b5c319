//! Nodes: lost ones, and their certificates.

use std::time::Duration;

use serde_json::json;

use crate::common::{Cluster, condition, deployment, ready_endpoints};

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
