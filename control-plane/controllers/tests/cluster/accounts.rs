//! Secrets with service accounts' tokens.

use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};
use sluice_apiserver::context::UserInfo;

use crate::common::Cluster;

const TYPE: &str = "kubernetes.io/service-account-token";

fn secret(name: &str, account: &str) -> Value {
    let annotations = json!({"kubernetes.io/service-account.name": account});
    json!({"metadata": {"name": name, "namespace": "n", "annotations": annotations}, "type": TYPE})
}

fn text(secret: &Value, key: &str) -> String {
    use base64::Engine as _;
    let data = secret["data"][key].as_str().unwrap_or_default();
    String::from_utf8(base64::engine::general_purpose::STANDARD.decode(data).unwrap()).unwrap()
}

/// Who the API server takes the token's holder for; `None` when it refuses.
async fn holder(cluster: &Cluster, token: &str) -> Option<String> {
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let request = kube::core::Request::new("/apis/authentication.k8s.io/v1/tokenreviews");
    let request = request.create(&PostParams::default(), body.to_string().into()).unwrap();
    let admin = cluster.api.client(UserInfo::new("admin", &["system:masters"]));
    let review: Value = admin.request(request).await.unwrap();
    let status = &review["status"];
    (status["authenticated"] == true).then(|| status["user"]["username"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_given_its_accounts_token() {
    let cluster = Cluster::start().await;
    cluster.namespace("n").await;
    cluster.create("ServiceAccount", json!({"metadata": {"name": "web", "namespace": "n"}})).await;
    cluster.create("Secret", secret("token", "web")).await;
    let filled = |all: &std::collections::BTreeMap<String, Value>| !all["token"]["data"]["token"].is_null();
    let first = cluster.until("Secret", "n", filled).await["token"].clone();
    let token = text(&first, "token");
    assert_eq!(holder(&cluster, &token).await.as_deref(), Some("system:serviceaccount:n:web"));
    assert_eq!(text(&first, "namespace"), "n");
    assert_eq!(text(&first, "ca.crt"), cluster.api.pki().ca_pem());
    let account = cluster.namespaced("ServiceAccount", "n").get("web").await.unwrap();
    let uid = &first["metadata"]["annotations"]["kubernetes.io/service-account.uid"];
    assert_eq!(uid.as_str(), account.metadata.uid.as_deref());
    // What somebody takes away or changes is put back, a token that is there stays.
    cluster.patch("Secret", "n", "token", json!({"data": {"namespace": null, "ca.crt": "eA=="}})).await;
    let whole = |all: &std::collections::BTreeMap<String, Value>| all["token"]["data"] == first["data"];
    cluster.until("Secret", "n", whole).await;
    cluster.patch("Secret", "n", "token", json!({"data": {"token": null}})).await;
    let all = cluster.until("Secret", "n", filled).await;
    assert_ne!(text(&all["token"], "token"), token);
    // With the account go its tokens, and its Secrets.
    cluster.delete("ServiceAccount", "n", "web", DeleteParams::default()).await;
    assert_eq!(holder(&cluster, &token).await, None);
    cluster.until("Secret", "n", |all| !all.contains_key("token")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_while_its_secret_is_there() {
    let cluster = Cluster::start().await;
    cluster.namespace("n").await;
    cluster.create("Secret", secret("one", "default")).await;
    cluster.create("Secret", secret("nobodys", "missing")).await;
    let wanted = |all: &std::collections::BTreeMap<String, Value>| {
        all.get("one").is_some_and(|one| !one["data"]["token"].is_null()) && !all.contains_key("nobodys")
    };
    let all = cluster.until("Secret", "n", wanted).await;
    let token = text(&all["one"], "token");
    assert!(holder(&cluster, &token).await.is_some());
    cluster.delete("Secret", "n", "one", DeleteParams::default()).await;
    assert_eq!(holder(&cluster, &token).await, None);
}
