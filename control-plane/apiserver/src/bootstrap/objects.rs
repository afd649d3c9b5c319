//! The objects of a new cluster, made at each start where they are missing: namespaces, default
//! roles, priority classes, the `kubernetes` and `kube-dns` Services, what joining nodes read. The endpoints of the
//! `kubernetes` Service are [`super::endpoints`]'s.
//!
//! What a user may change is only completed, never reset: a default role gets back rules it lost,
//! unless it is annotated `rbac.authorization.kubernetes.io/autoupdate=false`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Deserialize as _;
use serde_json::{Value, json};
use sluice_api::{
    resource::{Resource, builtin},
    status::Status,
};

use super::{range, roles};
use crate::{
    authz::{Rule, escalation},
    limits, services,
    storage::Storage,
};

const RBAC: &str = "rbac.authorization.k8s.io";
/// Namespaces that always exist and cannot be deleted, but for the last.
pub const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// The ConfigMap in `kube-system` with `podCidr` and `serviceCidr` as the API server was told.
pub const NETWORK: &str = "cluster-network";

/// What the objects say of this cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Where this API server is reached, and on which port.
    pub advertise: Vec<IpAddr>,
    pub port: u16,
    /// The addresses of the `kubernetes` and `kube-dns` Services.
    pub service_ip: IpAddr,
    pub dns_ip: IpAddr,
    /// As configured: one or two, separated by commas.
    pub service_cidr: String,
    pub pod_cidr: String,
    pub ca_pem: String,
    /// Of the certificate that this server shows extension servers.
    pub front_proxy_ca_pem: String,
}

/// Makes what is missing.
///
/// # Errors
/// When the store refuses a write.
pub async fn ensure(storage: &Storage, cluster: &Cluster) -> Result<()> {
    let namespaces = NAMESPACES.map(|name| ("", "namespaces", namespace(name)));
    run(storage, namespaces.into(), present).await?;
    let roles = roles::defaults().into_iter().map(|d| (RBAC, d.plural, d.object)).collect();
    tokio::try_join!(
        run(storage, roles, reconciled),
        run(storage, fixed(cluster), present),
        run(storage, described(cluster, &storage.servers()), exact),
        run(storage, vec![authentication(cluster)], trusted),
        run(storage, vec![range::default(cluster)], range::kept),
    )?;
    services::adopt(storage).await.context("the addresses of Services cannot be noted")
}

/// The objects that are made again when somebody deletes them: the system's namespaces, the Services
/// that every pod counts on, and what describes the cluster.
pub(super) fn lasting(cluster: &Cluster) -> Vec<Item> {
    let namespaces = NAMESPACES.map(|name| ("", "namespaces", namespace(name)));
    namespaces
        .into_iter()
        .chain(fixed(cluster))
        .chain(described(cluster, &[]))
        .chain([authentication(cluster), range::default(cluster)])
        .collect()
}

/// Group, plural and object.
pub(super) type Item = (&'static str, &'static str, Value);

/// Writes run side by side so that they share the store's commits.
pub(super) async fn run<'a, F, Fut>(storage: &'a Storage, items: Vec<Item>, write: F) -> Result<()>
where
    F: Fn(&'a Storage, &'static Resource, Value) -> Fut + Copy,
    Fut: Future<Output = Result<(), Status>>,
{
    let writes: Vec<_> = items.into_iter().map(|item| made(storage, item, write)).collect();
    stream::iter(writes).buffer_unordered(limits::BOOTSTRAP_WRITES).try_collect().await
}

async fn made<'a, F, Fut>(storage: &'a Storage, (group, plural, object): Item, write: F) -> Result<()>
where
    F: Fn(&'a Storage, &'static Resource, Value) -> Fut,
    Fut: Future<Output = Result<(), Status>>,
{
    let row = builtin().by_path(group, "v1", plural);
    let row = row.with_context(|| format!("{plural} are not served"))?;
    let name = object["metadata"]["name"].to_string();
    settled(storage, || write(storage, row, object.clone()))
        .await
        .with_context(|| format!("{plural} {name} cannot be made"))
}

/// Writes again when another server, starting at the same time, wrote first.
async fn settled<Fut>(storage: &Storage, write: impl Fn() -> Fut) -> Result<(), Status>
where
    Fut: Future<Output = Result<(), Status>>,
{
    for _ in 1..limits::WRITE_ATTEMPTS {
        match write().await {
            Err(status) if status.code == 409 => storage.fresh().await.map(drop)?,
            done => return done,
        }
    }
    write().await
}

/// Creates the object if there is none of its name.
pub(super) async fn present(storage: &Storage, row: &Resource, object: Value) -> Result<(), Status> {
    let (namespace, name) = key(&object);
    if storage.get(row.store_prefix(), namespace, name).is_some() {
        return Ok(());
    }
    match storage.create(row, object).await {
        Err(status) if status.code != 409 => Err(status),
        _ => Ok(()),
    }
}

/// Creates the object, or replaces one that differs outside its metadata, or lacks a label.
pub(super) async fn exact(storage: &Storage, row: &Resource, object: Value) -> Result<(), Status> {
    let (namespace, name) = key(&object);
    let Some(stored) = storage.get(row.store_prefix(), namespace, name) else {
        return present(storage, row, object).await;
    };
    let mut current = stored.value();
    let mut changed = false;
    for (field, value) in object.as_object().into_iter().flatten() {
        // The status is made once, and then others'.
        if !matches!(field.as_str(), "metadata" | "apiVersion" | "kind" | "status") && current[field] != *value {
            current[field] = value.clone();
            changed = true;
        }
    }
    for (label, value) in object["metadata"]["labels"].as_object().into_iter().flatten() {
        if current["metadata"]["labels"][label] != *value {
            current["metadata"]["labels"][label] = value.clone();
            changed = true;
        }
    }
    if changed {
        storage.update(row, current).await?;
    }
    Ok(())
}

/// Creates a role or binding, or gives one back the rules and subjects it lost.
async fn reconciled(storage: &Storage, row: &Resource, object: Value) -> Result<(), Status> {
    let (namespace, name) = key(&object);
    let Some(stored) = storage.get(row.store_prefix(), namespace, name) else {
        return present(storage, row, object).await;
    };
    match completed(stored.value(), &object) {
        Some(object) => storage.update(row, object).await.map(drop),
        None => Ok(()),
    }
}

/// The stored object with what it lacks of the default one; `None` when it lacks nothing.
fn completed(mut stored: Value, default: &Value) -> Option<Value> {
    const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
    if stored["metadata"]["annotations"][AUTO_UPDATE] == "false" {
        return None;
    }
    let before = stored.clone();
    if let Some(rule) = default.get("aggregationRule") {
        stored["aggregationRule"] = rule.clone();
    } else if default.get("rules").is_some() {
        let rules = |object: &Value| Vec::<Rule>::deserialize(&object["rules"]).unwrap_or_default();
        let missing = escalation::missing(&rules(&stored), &rules(default));
        push(&mut stored, "rules", missing.into_iter().map(|r| json!(r)));
    }
    let held: Vec<Value> = stored["subjects"].as_array().cloned().unwrap_or_default();
    let subjects = default["subjects"].as_array().into_iter().flatten();
    let lost = subjects.filter(|s| !held.contains(s)).cloned();
    push(&mut stored, "subjects", lost);
    (stored != before).then_some(stored)
}

fn push(object: &mut Value, field: &str, more: impl Iterator<Item = Value>) {
    let more: Vec<Value> = more.collect();
    if more.is_empty() {
        return;
    }
    match &mut object[field] {
        Value::Array(list) => list.extend(more),
        other => *other = more.into(),
    }
}

pub(super) fn key(object: &Value) -> (&str, &str) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    (text("namespace"), text("name"))
}

fn namespace(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
        "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
}

/// Made once and then the user's.
fn fixed(cluster: &Cluster) -> Vec<Item> {
    let class = |name: &str, value: i64, what: &str| {
        let object = json!({"metadata": {"name": name}, "value": value, "globalDefault": false,
            "description": format!("Used for system critical pods that must not be moved from their current {what}."),
            "preemptionPolicy": "PreemptLowerPriority"});
        ("scheduling.k8s.io", "priorityclasses", object)
    };
    let kubernetes = service(
        "default",
        "kubernetes",
        json!({"component": "apiserver", "provider": "kubernetes"}),
        cluster.service_ip,
        json!([{"name": "https", "port": 443, "protocol": "TCP", "targetPort": cluster.port}]),
    );
    let mut dns = service(
        "kube-system",
        "kube-dns",
        json!({"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true",
            "kubernetes.io/name": "CoreDNS"}),
        cluster.dns_ip,
        json!([{"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53}]),
    );
    // Every node answers DNS itself: a question leaves the node only when its own server is away.
    dns["spec"]["trafficDistribution"] = json!("PreferSameNode");
    vec![
        class("system-node-critical", 2_000_001_000, "node"),
        class("system-cluster-critical", 2_000_000_000, "cluster"),
        ("", "services", kubernetes),
        ("", "services", dns),
    ]
}

/// Follows the configuration at each start.
fn described(cluster: &Cluster, servers: &[SocketAddr]) -> Vec<Item> {
    vec![("", "configmaps", network(cluster)), cluster_info(cluster, servers)]
}

/// What extension servers tell clients and the API server by.
fn authentication(cluster: &Cluster) -> Item {
    let object = json!({"metadata": {"namespace": "kube-system", "name": "extension-apiserver-authentication"}, "data": {
        "client-ca-file": cluster.ca_pem,
        REQUEST_HEADER_CA: cluster.front_proxy_ca_pem,
        "requestheader-allowed-names": r#"["front-proxy-client"]"#,
        "requestheader-extra-headers-prefix": r#"["X-Remote-Extra-"]"#,
        "requestheader-group-headers": r#"["X-Remote-Group"]"#,
        "requestheader-uid-headers": r#"["X-Remote-Uid"]"#,
        "requestheader-username-headers": r#"["X-Remote-User"]"#}});
    ("", "configmaps", object)
}

const REQUEST_HEADER_CA: &str = "requestheader-client-ca-file";

/// As [`exact`], but other servers' authorities stay beside this one's.
async fn trusted(storage: &Storage, row: &Resource, mut object: Value) -> Result<(), Status> {
    let (namespace, name) = key(&object);
    let held = storage.get(row.store_prefix(), namespace, name).map(|stored| stored.value());
    if let Some(held) = held.as_ref().and_then(|object| object["data"][REQUEST_HEADER_CA].as_str()) {
        let own = object["data"][REQUEST_HEADER_CA].as_str().unwrap_or_default();
        let all = if held.contains(own.trim()) { held.to_owned() } else { format!("{held}{own}") };
        object["data"][REQUEST_HEADER_CA] = json!(all);
    }
    exact(storage, row, object).await
}

/// The ranges that every node has to be told, for the command that joins one.
fn network(cluster: &Cluster) -> Value {
    json!({"metadata": {"namespace": "kube-system", "name": NETWORK},
        "data": {"podCidr": cluster.pod_cidr, "serviceCidr": cluster.service_cidr}})
}

/// What a node without credentials reads to find the cluster; it pins the authority's hash. It has room for one server: of
/// those that serve, the first one of the Services' family, and until one does, this one.
pub(super) fn cluster_info(cluster: &Cluster, servers: &[SocketAddr]) -> Item {
    use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
    let first = servers.iter().find(|server| server.is_ipv4() == cluster.service_ip.is_ipv4()).or(servers.first());
    let own = cluster.advertise.first().copied().unwrap_or(Ipv4Addr::LOCALHOST.into());
    let server = first.copied().unwrap_or(SocketAddr::new(own, cluster.port));
    let kubeconfig = format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {}\n    server: https://{server}\n  \
         name: \"\"\ncontexts: null\ncurrent-context: \"\"\nkind: Config\npreferences: {{}}\nusers: null\n",
        BASE64.encode(&cluster.ca_pem)
    );
    let object = json!({"metadata": {"namespace": "kube-public", "name": "cluster-info"},
        "data": {"kubeconfig": kubeconfig}});
    ("", "configmaps", object)
}

fn service(namespace: &str, name: &str, labels: Value, ip: IpAddr, ports: Value) -> Value {
    let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    json!({"metadata": {"namespace": namespace, "name": name, "labels": labels},
        "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": [family],
            "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None", "ports": ports},
        "status": {"loadBalancer": {}}})
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn default_roles_are_completed_but_not_reset() {
        let default = roles::defaults()
            .into_iter()
            .find(|d| d.object["metadata"]["name"] == "system:basic-user" && d.plural == "clusterroles")
            .unwrap()
            .object;
        assert_eq!(completed(default.clone(), &default), None);
        let mut less = default.clone();
        less["rules"].as_array_mut().unwrap().remove(0);
        let mine = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]});
        less["rules"].as_array_mut().unwrap().push(mine.clone());
        let fixed = completed(less.clone(), &default).unwrap();
        let rules = fixed["rules"].as_array().unwrap();
        assert!(rules.contains(&mine));
        assert!(rules.iter().any(|r| r["resources"] == json!(["selfsubjectaccessreviews"])));
        less["metadata"]["annotations"] = json!({"rbac.authorization.kubernetes.io/autoupdate": "false"});
        assert_eq!(completed(less, &default), None);
    }

    #[test]
    fn bindings_get_their_subjects_back() {
        let default = roles::defaults()
            .into_iter()
            .find(|d| d.object["metadata"]["name"] == "cluster-admin" && d.plural == "clusterrolebindings")
            .unwrap()
            .object;
        let mut other = default.clone();
        let joe = json!({"apiGroup": RBAC, "kind": "User", "name": "joe"});
        other["subjects"] = json!([joe]);
        let fixed = completed(other, &default).unwrap();
        assert_eq!(fixed["subjects"], json!([joe, default["subjects"][0]]));
        let mut none = default.clone();
        none.as_object_mut().unwrap().remove("subjects");
        assert_eq!(completed(none, &default).unwrap()["subjects"], default["subjects"]);
    }

    #[test]
    fn the_cluster_describes_itself() {
        let cluster = Cluster {
            advertise: vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
            port: 6443,
            service_ip: "10.96.0.1".parse().unwrap(),
            dns_ip: "10.96.0.10".parse().unwrap(),
            service_cidr: "10.96.0.0/16,fd00::/108".into(),
            pod_cidr: "10.244.0.0/16,fd01::/48".into(),
            ca_pem: "PEM".into(),
            front_proxy_ca_pem: "PROXY".into(),
        };
        let mut items = described(&cluster, &[]);
        items.push(range::default(&cluster));
        let of = |plural: &str| &items.iter().find(|i| i.1 == plural).unwrap().2;
        assert_eq!(of("servicecidrs")["spec"]["cidrs"], json!(["10.96.0.0/16", "fd00::/108"]));
        let both: [SocketAddr; 2] = ["192.0.2.8:6443".parse().unwrap(), "[2001:db8::8]:6443".parse().unwrap()];
        for (servers, expected) in [(&[][..], "192.0.2.7"), (&both, "192.0.2.8"), (&both[1..], "[2001:db8::8]")] {
            let (.., info) = cluster_info(&cluster, servers);
            let text = info["data"]["kubeconfig"].as_str().unwrap();
            let config = kube::config::Kubeconfig::from_yaml(text).unwrap();
            let server = config.clusters[0].cluster.as_ref().unwrap().server.clone();
            assert_eq!(server.unwrap(), format!("https://{expected}:6443"));
        }
        for (group, plural, object) in fixed(&cluster).into_iter().chain(items) {
            assert!(builtin().by_path(group, "v1", plural).is_some(), "{object}");
        }
    }
}
