//! The Node authorizer: a node reads the secrets, config maps, claims and tokens of the pods that
//! are bound to it and of no others, and writes its own node, leases and pods' statuses.
//!
//! Upstream keeps a graph; here each question is answered from the cached pods of one namespace that
//! are bound to the node. Facts: upstream's `node_authorizer.go`.

use std::sync::Arc;

use serde_json::Value;

use super::Rule;
use crate::{
    auth::view::View,
    bootstrap::roles,
    context::{Attributes, UserInfo},
    storage::StoredObject,
};

const NODES: &str = "system:nodes";

/// This authorizer allows or leaves it to the next.
#[derive(Debug, PartialEq, Eq)]
pub enum Opinion {
    Allow,
    None(Option<String>),
}

pub struct NodeAuthorizer {
    view: Arc<dyn View>,
    rules: Vec<Rule>,
}

/// The node behind a user: `system:node:<name>` in `system:nodes`.
pub fn node_name(user: &UserInfo) -> Option<&str> {
    user.username.strip_prefix("system:node:").filter(|name| !name.is_empty() && user.in_group(NODES))
}

/// What of a pod makes an object readable for its node.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    Secret(&'a str),
    ConfigMap(&'a str),
    Claim(&'a str),
    Account(&'a str),
}

impl NodeAuthorizer {
    pub fn new(view: Arc<dyn View>) -> Self {
        Self { view, rules: roles::cluster_role_rules("system:node") }
    }

    /// The static rules of a node, for rule reviews.
    pub fn rules_for(&self, user: &UserInfo) -> Vec<Rule> {
        node_name(user).map_or_else(Vec::new, |_| self.rules.clone())
    }

    pub fn authorize(&self, request: &Attributes<'_>) -> Opinion {
        let Some(node) = node_name(request.user) else {
            return Opinion::None(None);
        };
        if !request.is_resource {
            return self.by_rules(request);
        }
        let read = matches!(request.verb, "get" | "list" | "watch");
        match (request.group, request.resource, request.subresource) {
            ("", "secrets", "") => self.read(request, node, Wanted::Secret(request.name)),
            ("", "configmaps", "") => self.read(request, node, Wanted::ConfigMap(request.name)),
            ("", "persistentvolumeclaims", "" | "status") => self.reach(request, node, Wanted::Claim(request.name)),
            ("", "serviceaccounts", "token") if request.verb == "create" => {
                self.reach(request, node, Wanted::Account(request.name))
            }
            ("", "serviceaccounts", "token") => no("can only create tokens for individual service accounts"),
            ("", "persistentvolumes", "") if request.verb == "get" => self.volume(request, node),
            ("storage.k8s.io", "volumeattachments", "") if request.verb == "get" => self.attachment(request, node),
            ("coordination.k8s.io", "leases", "") => own_lease(request, node),
            ("discovery.k8s.io", "endpointslices", "") if !read => own_dns(request, node),
            ("storage.k8s.io", "csinodes", "") => own(request, node, "CSINode"),
            ("", "nodes", "" | "status") if !read => own(request, node, "node"),
            ("", "pods", "") if request.verb == "get" => self.own_pod(request, node),
            _ => self.by_rules(request),
        }
    }

    fn by_rules(&self, request: &Attributes<'_>) -> Opinion {
        if self.rules.iter().any(|rule| rule.allows(request)) { Opinion::Allow } else { Opinion::None(None) }
    }

    fn read(&self, request: &Attributes<'_>, node: &str, wanted: Wanted<'_>) -> Opinion {
        if !matches!(request.verb, "get" | "list" | "watch") {
            return no("can only read resources of this type");
        }
        if request.namespace.is_empty() {
            return no("can only read namespaced object of this type");
        }
        self.reach(request, node, wanted)
    }

    fn reach(&self, request: &Attributes<'_>, node: &str, wanted: Wanted<'_>) -> Opinion {
        if request.name.is_empty() {
            return no("No Object name found");
        }
        let ok = match wanted {
            Wanted::Claim(_) if request.subresource == "status" => {
                matches!(request.verb, "get" | "update" | "patch")
            }
            Wanted::Claim(_) => request.verb == "get",
            _ => true,
        };
        if !ok {
            return no("can only get individual resources of this type");
        }
        if self.bound(node, request.namespace, wanted) { Opinion::Allow } else { unrelated(node) }
    }

    /// True if a pod on the node, in the namespace, refers to what is wanted.
    fn bound(&self, node: &str, namespace: &str, wanted: Wanted<'_>) -> bool {
        self.pods(node, namespace).any(|pod| refers(&pod, wanted))
    }

    /// The pods bound to the node, in one namespace or in all. Mirror pods are the node's own
    /// claims and prove nothing.
    fn pods(&self, node: &str, namespace: &str) -> impl Iterator<Item = Value> {
        let pods = self.view.pods_on(node, namespace).into_iter().map(|pod| pod.value());
        pods.filter(|pod| pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null())
    }

    /// A volume is reached through its claim, used by a pod on the node.
    fn volume(&self, request: &Attributes<'_>, node: &str) -> Opinion {
        let Some(volume) = self.view.get("", "persistentvolumes", "", request.name) else {
            return unrelated(node);
        };
        let claim = &volume.value()["spec"]["claimRef"];
        let text = |key: &str| claim[key].as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text("namespace"), text("name"));
        if !name.is_empty() && self.bound(node, &namespace, Wanted::Claim(&name)) {
            Opinion::Allow
        } else {
            unrelated(node)
        }
    }

    fn attachment(&self, request: &Attributes<'_>, node: &str) -> Opinion {
        let attachment = self.view.get("storage.k8s.io", "volumeattachments", "", request.name);
        match attachment {
            Some(a) if a.value()["spec"]["nodeName"] == node => Opinion::Allow,
            _ => unrelated(node),
        }
    }

    fn own_pod(&self, request: &Attributes<'_>, node: &str) -> Opinion {
        let pod = self.view.get("", "pods", request.namespace, request.name);
        match pod {
            // A node asks whether a pod it runs is gone: the answer is a 404, not a 403.
            None => Opinion::Allow,
            Some(pod) if on_node(&pod, node) => Opinion::Allow,
            Some(_) => unrelated(node),
        }
    }
}

/// True if the pod is bound to the node.
pub fn on_node(pod: &StoredObject, node: &str) -> bool {
    pod.value()["spec"]["nodeName"] == node
}

fn own(request: &Attributes<'_>, node: &str, what: &str) -> Opinion {
    match request.verb {
        "create" => Opinion::Allow,
        "get" | "update" | "patch" if request.name == node => Opinion::Allow,
        "delete" if request.name == node && what == "CSINode" => Opinion::Allow,
        "get" | "update" | "patch" | "delete" if request.name != node => {
            no(&format!("can only access {what} with the same name as the requesting node"))
        }
        _ => no(&format!("can only get, create, update or patch a {what}")),
    }
}

fn own_lease(request: &Attributes<'_>, node: &str) -> Opinion {
    if !matches!(request.verb, "get" | "create" | "update" | "patch" | "delete") {
        return no("can only get, create, update, patch, or delete a node lease");
    }
    if request.namespace != "kube-node-lease" {
        return no("can only access leases in the \"kube-node-lease\" system namespace");
    }
    if request.verb != "create" && request.name != node {
        return no("can only access node lease with the same name as the requesting node");
    }
    Opinion::Allow
}

/// Sluice's own: each node answers cluster DNS and publishes itself as a backend of kube-dns.
fn own_dns(request: &Attributes<'_>, node: &str) -> Opinion {
    let named = request.verb == "create" || is_dns_slice(request.name, node);
    if request.namespace == "kube-system" && matches!(request.verb, "create" | "update" | "patch" | "delete") && named {
        Opinion::Allow
    } else {
        no("can only write the EndpointSlice of the requesting node's cluster DNS")
    }
}

/// True for the names under which a node publishes its DNS.
pub fn is_dns_slice(name: &str, node: &str) -> bool {
    name.strip_prefix("kube-dns-").is_some_and(|rest| rest == node || rest.strip_suffix("-v6") == Some(node))
}

fn no(reason: &str) -> Opinion {
    Opinion::None(Some(reason.to_owned()))
}

fn unrelated(node: &str) -> Opinion {
    no(&format!("no relationship found between node '{node}' and this object"))
}

fn refers(pod: &Value, wanted: Wanted<'_>) -> bool {
    let spec = &pod["spec"];
    match wanted {
        Wanted::Account(name) => spec["serviceAccountName"] == name,
        Wanted::Claim(name) => {
            let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
            each(&spec["volumes"]).any(|volume| {
                volume["persistentVolumeClaim"]["claimName"] == name
                    || (!volume["ephemeral"].is_null()
                        && volume["name"].as_str().is_some_and(|v| format!("{pod_name}-{v}") == name))
            })
        }
        Wanted::ConfigMap(name) => {
            each(&spec["volumes"]).any(|volume| {
                volume["configMap"]["name"] == name
                    || each(&volume["projected"]["sources"]).any(|source| source["configMap"]["name"] == name)
            }) || in_environment(spec, "configMapKeyRef", "configMapRef", name)
        }
        Wanted::Secret(name) => {
            each(&spec["imagePullSecrets"]).any(|s| s["name"] == name)
                || each(&spec["volumes"]).any(|volume| volume_secret(volume, name))
                || in_environment(spec, "secretKeyRef", "secretRef", name)
        }
    }
}

fn volume_secret(volume: &Value, name: &str) -> bool {
    const BY_REFERENCE: [(&str, &str); 7] = [
        ("cephfs", "secretRef"),
        ("csi", "nodePublishSecretRef"),
        ("flexVolume", "secretRef"),
        ("iscsi", "secretRef"),
        ("rbd", "secretRef"),
        ("scaleIO", "secretRef"),
        ("storageos", "secretRef"),
    ];
    volume["secret"]["secretName"] == name
        || volume["azureFile"]["secretName"] == name
        || each(&volume["projected"]["sources"]).any(|source| source["secret"]["name"] == name)
        || BY_REFERENCE.iter().any(|(kind, field)| volume[*kind][*field]["name"] == name)
}

fn in_environment(spec: &Value, key_ref: &str, whole_ref: &str, name: &str) -> bool {
    ["initContainers", "containers", "ephemeralContainers"].iter().flat_map(|list| each(&spec[*list])).any(
        |container| {
            each(&container["env"]).any(|env| env["valueFrom"][key_ref]["name"] == name)
                || each(&container["envFrom"]).any(|from| from[whole_ref]["name"] == name)
        },
    )
}

fn each(list: &Value) -> std::slice::Iter<'_, Value> {
    list.as_array().map(Vec::as_slice).unwrap_or_default().iter()
}
