//! Who may do what, through the whole server over HTTPS: certificates, tokens, RBAC, the Node
//! authorizer, admission, secrets at rest, and what a restart leaves alone.
#![allow(clippy::unwrap_used)]

mod common;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use common::{Http, MAPS, Server, configmap, pod};
use serde_json::{Value, json};
use sluice_apiserver::{ApiServer, Config};
use sluice_store::Range;

/// A client over HTTPS that shows a token, or nothing.
async fn bearer(server: &Server, token: Option<&str>) -> Http {
    let ca = BASE64.encode(server.api.pki().ca_pem());
    let user = token.map_or_else(|| json!({}), |token| json!({"token": token}));
    let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("https://{}", server.address), "certificate-authority-data": ca}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": user}]});
    let kubeconfig = kube::config::Kubeconfig::from_yaml(&kubeconfig.to_string()).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
    Http(kube::Client::try_from(config).unwrap())
}

#[tokio::test]
async fn a_user_gets_what_is_bound_to_them() {
    let server = Server::listening().await;
    let jane = server.https("jane", &["dev"]).await;
    let refused = jane.get("/api/v1/namespaces/default/pods").await.failed();
    let why =
        "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"";
    assert_eq!(refused, (403, "Forbidden".into(), why.into()));
    let binding = json!({"metadata": {"name": "dev"}, "subjects": [{"kind": "Group", "name": "dev"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"}});
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    assert_eq!(jane.post(bindings, binding.clone()).await.code, 403);
    server.admin.create(bindings, binding).await;
    assert_eq!(jane.get("/api/v1/namespaces/default/pods").await.code, 200);
    jane.create(MAPS, configmap("a")).await;
    assert_eq!(jane.get("/api/v1/namespaces/kube-system/pods").await.code, 403);
    assert_eq!(jane.get("/api/v1/nodes").await.code, 403);

    let who = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let told = jane.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", who).await;
    assert_eq!(told["status"]["userInfo"]["username"], "jane");
    assert_eq!(told["status"]["userInfo"]["groups"], json!(["dev", "system:authenticated"]));
}

#[tokio::test]
async fn strangers_see_what_is_public() {
    let server = Server::listening().await;
    let stranger = bearer(&server, None).await;
    for (path, code) in [
        ("/healthz", 200),
        ("/version", 200),
        ("/api/v1/namespaces/kube-public/configmaps/cluster-info", 200),
        ("/api/v1/namespaces/kube-public/configmaps", 403),
        ("/apis", 403),
        ("/metrics", 403),
        ("/api/v1/nodes", 403),
    ] {
        assert_eq!(stranger.get(path).await.code, code, "{path}");
    }
    let message = stranger.get("/apis").await.failed().2;
    assert_eq!(message, "forbidden: User \"system:anonymous\" cannot get path \"/apis\"");
    let liar = bearer(&server, Some("junk")).await;
    assert_eq!(liar.get("/healthz").await.failed(), (401, "Unauthorized".into(), "Unauthorized".into()));
}

#[tokio::test]
async fn a_pods_token_lives_as_long_as_the_pod() {
    let server = Server::listening().await;
    server.namespace("shop").await;
    let made = server.admin.create("/api/v1/namespaces/shop/pods", pod("web")).await;
    let volume = &made["spec"]["volumes"][0];
    assert!(volume["name"].as_str().unwrap().starts_with("kube-api-access-"), "{volume}");
    assert_eq!(made["spec"]["serviceAccountName"], "default");
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": [],
        "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "web", "uid": made["metadata"]["uid"]}}});
    let granted = server.admin.create("/api/v1/namespaces/shop/serviceaccounts/default/token", request).await;
    let web = bearer(&server, Some(granted["status"]["token"].as_str().unwrap())).await;
    let message = web.get("/api/v1/namespaces/shop/pods").await.failed().2;
    assert!(message.contains("User \"system:serviceaccount:shop:default\" cannot list"), "{message}");
    assert_eq!(web.get("/apis").await.code, 200);
    let found = web.get("/.well-known/openid-configuration").await.ok();
    assert_eq!(found["issuer"], "https://kubernetes.default.svc.cluster.local");
    let keys = web.get("/openid/v1/jwks").await.ok();
    assert_eq!(keys["keys"][0]["alg"], "ES256");
    let gone = json!({"gracePeriodSeconds": 0});
    server.admin.delete("/api/v1/namespaces/shop/pods/web", gone).await.ok();
    assert_eq!(web.get("/apis").await.code, 401);
}

#[tokio::test]
async fn a_node_joins_with_a_token_and_minds_its_own() {
    let server = Server::listening().await;
    let secret = json!({"metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token",
        "stringData": {"token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true"}});
    server.admin.create("/api/v1/namespaces/kube-system/secrets", secret).await;
    let joining = bearer(&server, Some("abcdef.0123456789abcdef")).await;
    assert_eq!(joining.get("/api/v1/nodes").await.code, 403);
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    assert_eq!(joining.get(requests).await.code, 200);
    let csr = json!({"metadata": {"name": "n1"}, "spec": {"request": "", "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
        "usages": ["client auth"], "username": "root"}});
    let answer = joining.post(requests, csr).await;
    if answer.code == 201 {
        assert_eq!(answer.json()["spec"]["username"], "system:bootstrap:abcdef");
    } else {
        // The empty request is refused by validation, not by authorization.
        assert_eq!(answer.code, 422, "{}", answer.text);
    }

    let node = server.https("system:node:n1", &["system:nodes"]).await;
    let made = node.create("/api/v1/nodes", json!({"metadata": {"name": "n1"}})).await;
    assert_eq!(made["spec"]["taints"], json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]));
    assert_eq!(node.post("/api/v1/nodes", json!({"metadata": {"name": "n2"}})).await.code, 403);
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    node.patch("/api/v1/nodes/n1/status", "strategic-merge", ready).await.ok();
    let lease = json!({"metadata": {"name": "n1"}, "spec": {"holderIdentity": "n1"}});
    node.create("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", lease).await;

    server.namespace("shop").await;
    for name in ["mine", "theirs"] {
        server.admin.create("/api/v1/namespaces/shop/secrets", json!({"metadata": {"name": name}})).await;
    }
    let mut web = pod("web");
    web["spec"]["nodeName"] = json!("n1");
    web["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "mine"}}]);
    server.admin.create("/api/v1/namespaces/shop/pods", web).await;
    assert_eq!(node.get("/api/v1/namespaces/shop/secrets/mine").await.code, 200);
    let refused = node.get("/api/v1/namespaces/shop/secrets/theirs").await.failed().2;
    assert!(refused.ends_with("no relationship found between node 'n1' and this object"), "{refused}");
    assert_eq!(node.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").await.code, 200);
}

#[tokio::test]
async fn secrets_are_sealed_in_the_store() {
    let server = Server::start().await;
    let secrets = "/api/v1/namespaces/default/secrets";
    server.admin.create(secrets, json!({"metadata": {"name": "s"}, "stringData": {"k": "topsecret"}})).await;
    let range = Range { key: "/registry/secrets/default/s".into(), ..Range::default() };
    let stored = server.engine.range(range).await.unwrap().kvs.remove(0).value;
    assert!(stored.starts_with(b"k8s:enc:aesgcm:v1:key1:"));
    let read = server.admin.get(&format!("{secrets}/s")).await.ok();
    assert_eq!(read["data"]["k"], BASE64.encode("topsecret"));
}

#[tokio::test]
async fn a_restart_rewrites_nothing() {
    let server = Server::start().await;
    let before = server.engine.revision().await.unwrap();
    let config = Config { ..server.api.config().clone() };
    let again = ApiServer::start(config, server.engine.clone()).await.unwrap();
    assert_eq!(server.engine.revision().await.unwrap(), before);
    assert_eq!(again.pki().ca_pem(), server.api.pki().ca_pem());
    for namespace in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        server.admin.get(&format!("/api/v1/namespaces/{namespace}")).await.ok();
    }
    let dns = server.admin.get("/api/v1/namespaces/kube-system/services/kube-dns").await.ok();
    assert_eq!(dns["spec"]["clusterIP"], "10.96.0.10");
    let refused = server.admin.delete("/api/v1/namespaces/default", Value::Null).await.failed();
    assert_eq!(refused.2, "namespaces \"default\" is forbidden: this namespace may not be deleted");
}

#[tokio::test]
async fn servers_that_start_together_agree() {
    let server = Server::start().await;
    let admin = "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:basic-user";
    let mut role = server.admin.get(admin).await.ok();
    role["rules"] = json!([]);
    server.admin.put(admin, role).await.ok();
    let start = |last: u8| {
        let advertise = vec![std::net::IpAddr::from([192, 0, 2, last])];
        ApiServer::start(Config { advertise, ..server.api.config().clone() }, server.engine.clone())
    };
    let (one, two, three) = tokio::join!(start(1), start(2), start(3));
    one.and(two).and(three).map(drop).unwrap();
    let role = server.admin.get(admin).await.ok();
    let granted: Vec<&Value> = role["rules"].as_array().unwrap().iter().map(|r| &r["resources"]).collect();
    assert!(granted.contains(&&json!(["selfsubjectaccessreviews"])), "{granted:?}");
}
