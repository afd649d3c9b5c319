//! Tables of the remaining groups.

use serde_json::{Value, json};

use super::{AGE, CREATED, Column, NAME, Source, text};

const RBAC: &str = "rbac.authorization.k8s.io";
const ROLE: Column = Column::wide("Role", |s| json!(format!("{}/{}", s.str("/roleRef/kind"), s.str("/roleRef/name"))));
const BINDING: &[Column] = &[
    NAME,
    Column { priority: 0, ..ROLE },
    AGE,
    Column::wide("Users", |s| subjects(s, "User")),
    Column::wide("Groups", |s| subjects(s, "Group")),
    Column::wide("ServiceAccounts", |s| subjects(s, "ServiceAccount")),
];
const WEBHOOKS: &[Column] = &[NAME, Column::integer("Webhooks", |s| s.count("/webhooks")), AGE];

pub(super) const KINDS: &[(&str, &str, &[Column])] = &[
    (
        "discovery.k8s.io",
        "EndpointSlice",
        &[
            NAME,
            Column::new("AddressType", |s| s.get("/addressType")),
            Column::new("Ports", slice_ports),
            Column::new("Endpoints", slice_endpoints),
            AGE,
        ],
    ),
    (RBAC, "Role", &[NAME, CREATED]),
    (RBAC, "ClusterRole", &[NAME, CREATED]),
    (RBAC, "RoleBinding", BINDING),
    (RBAC, "ClusterRoleBinding", BINDING),
    ("coordination.k8s.io", "Lease", &[NAME, Column::new("Holder", |s| s.get("/spec/holderIdentity")), AGE]),
    (
        "networking.k8s.io",
        "Ingress",
        &[
            NAME,
            Column::new("Class", |s| s.or_none("/spec/ingressClassName")),
            Column::new("Hosts", hosts),
            Column::new("Address", ingress_address),
            Column::new("Ports", |s| json!(if s.list("/spec/tls").is_empty() { "80" } else { "80, 443" })),
            AGE,
        ],
    ),
    (
        "networking.k8s.io",
        "IngressClass",
        &[
            NAME,
            Column::new("Controller", |s| s.get("/spec/controller")),
            Column::new("Parameters", |s| s.or_none("/spec/parameters/name")),
            AGE,
        ],
    ),
    (
        "networking.k8s.io",
        "NetworkPolicy",
        &[NAME, Column::new("Pod-Selector", |s| s.selector("/spec/podSelector")), AGE],
    ),
    (
        "storage.k8s.io",
        "StorageClass",
        &[
            Column::new("Name", storage_class_name),
            Column::new("Provisioner", |s| s.get("/provisioner")),
            Column::new("ReclaimPolicy", |s| s.get("/reclaimPolicy")),
            Column::new("VolumeBindingMode", |s| s.get("/volumeBindingMode")),
            Column::new("AllowVolumeExpansion", |s| json!(s.at("/allowVolumeExpansion") == &Value::Bool(true))),
            AGE,
        ],
    ),
    (
        "scheduling.k8s.io",
        "PriorityClass",
        &[
            NAME,
            Column::integer("Value", |s| json!(s.int("/value"))),
            Column::new("Global-Default", |s| json!(s.at("/globalDefault") == &Value::Bool(true))),
            AGE,
            Column::wide("PreemptionPolicy", |s| s.get("/preemptionPolicy")),
        ],
    ),
    ("node.k8s.io", "RuntimeClass", &[NAME, Column::new("Handler", |s| s.get("/handler")), AGE]),
    (
        "certificates.k8s.io",
        "CertificateSigningRequest",
        &[
            NAME,
            AGE,
            Column::new("SignerName", |s| s.get("/spec/signerName")),
            Column::new("Requestor", |s| s.get("/spec/username")),
            Column::new("RequestedDuration", |s| match s.at("/spec/expirationSeconds").as_i64() {
                Some(seconds) => json!(super::human_duration(seconds)),
                None => json!("<none>"),
            }),
            Column::new("Condition", csr_condition),
        ],
    ),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration", WEBHOOKS),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration", WEBHOOKS),
    (
        "apiregistration.k8s.io",
        "APIService",
        &[NAME, Column::new("Service", api_service), Column::new("Available", api_available), AGE],
    ),
];

fn subjects(source: &Source<'_>, kind: &str) -> Value {
    let name = |subject: &Value| {
        let name = subject["name"].as_str().unwrap_or_default();
        match subject["namespace"].as_str() {
            Some(namespace) if kind == "ServiceAccount" => format!("{namespace}/{name}"),
            _ => name.to_owned(),
        }
    };
    let names: Vec<String> = source.list("/subjects").iter().filter(|s| s["kind"] == kind).map(name).collect();
    json!(names.join(", "))
}

/// At most `max` texts, then how many more.
fn few(all: Vec<String>, max: usize) -> Value {
    if all.is_empty() {
        return json!("<unset>");
    }
    let more = all.len().saturating_sub(max);
    let shown = all[..all.len() - more].join(",");
    json!(if more > 0 { format!("{shown} + {more} more...") } else { shown })
}

fn slice_ports(source: &Source<'_>) -> Value {
    let number = |port: &Value| port["port"].as_i64().map_or_else(|| "*".to_owned(), |n| n.to_string());
    few(source.list("/ports").iter().map(number).collect(), 3)
}

fn slice_endpoints(source: &Source<'_>) -> Value {
    let first = |endpoint: &Value| endpoint["addresses"][0].as_str().map(str::to_owned);
    few(source.list("/endpoints").iter().filter_map(first).collect(), 3)
}

fn hosts(source: &Source<'_>) -> Value {
    let hosts: Vec<&str> = source.list("/spec/rules").iter().filter_map(|r| r["host"].as_str()).collect();
    json!(if hosts.is_empty() { "*".to_owned() } else { hosts.join(",") })
}

fn ingress_address(source: &Source<'_>) -> Value {
    let ingress = source.list("/status/loadBalancer/ingress").iter();
    let all: Vec<&str> = ingress.filter_map(|i| i["ip"].as_str().or(i["hostname"].as_str())).collect();
    json!(all.join(","))
}

fn storage_class_name(source: &Source<'_>) -> Value {
    let annotations = source.at("/metadata/annotations");
    let default = annotations["storageclass.kubernetes.io/is-default-class"] == "true";
    let name = source.str("/metadata/name");
    json!(if default { format!("{name} (default)") } else { name.to_owned() })
}

fn csr_condition(source: &Source<'_>) -> Value {
    let holds = |kind: &str| source.list("/status/conditions").iter().any(|c| c["type"] == kind);
    let mut words = Vec::new();
    if holds("Denied") {
        words.push("Denied");
    } else if holds("Approved") {
        words.push("Approved");
    } else {
        words.push("Pending");
    }
    if holds("Failed") {
        words.push("Failed");
    }
    if !source.str("/status/certificate").is_empty() {
        words.push("Issued");
    }
    json!(words.join(","))
}

fn api_service(source: &Source<'_>) -> Value {
    match source.str("/spec/service/name") {
        "" => json!("Local"),
        name => json!(format!("{}/{name}", source.str("/spec/service/namespace"))),
    }
}

fn api_available(source: &Source<'_>) -> Value {
    let condition = source.list("/status/conditions").iter().find(|c| c["type"] == "Available");
    json!(match condition {
        Some(c) if c["status"] == "True" => "True".to_owned(),
        Some(c) => format!("False ({})", text::or_none(c["reason"].as_str().unwrap_or_default())),
        None => "Unknown".to_owned(),
    })
}
