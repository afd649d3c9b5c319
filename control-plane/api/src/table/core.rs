//! Tables of the core group.

use serde_json::{Value, json};

use super::{AGE, Column, NAME, Source, pod, text};

pub(super) const KINDS: &[(&str, &str, &[Column])] = &[
    (
        "",
        "Pod",
        &[
            NAME,
            Column::new("Ready", pod::ready),
            Column::new("Status", pod::status),
            Column::new("Restarts", pod::restarts),
            AGE,
            Column::wide("IP", pod::ip),
            Column::wide("Node", |s| s.or_none("/spec/nodeName")),
            Column::wide("Nominated Node", |s| s.or_none("/status/nominatedNodeName")),
            Column::wide("Readiness Gates", pod::gates),
        ],
    ),
    (
        "",
        "Service",
        &[
            NAME,
            Column::new("Type", |s| s.get("/spec/type")),
            Column::new("Cluster-IP", |s| s.or_none("/spec/clusterIP")),
            Column::new("External-IP", external_ip),
            Column::new("Port(s)", ports),
            AGE,
            Column::wide("Selector", |s| s.selector("/spec/selector")),
        ],
    ),
    ("", "Endpoints", &[NAME, Column::new("Endpoints", endpoints), AGE]),
    (
        "",
        "Node",
        &[
            NAME,
            Column::new("Status", node_status),
            Column::new("Roles", node_roles),
            AGE,
            Column::new("Version", |s| s.get("/status/nodeInfo/kubeletVersion")),
            Column::wide("Internal-IP", |s| node_address(s, "InternalIP")),
            Column::wide("External-IP", |s| node_address(s, "ExternalIP")),
            Column::wide("OS-Image", |s| unknown(s, "/status/nodeInfo/osImage")),
            Column::wide("Kernel-Version", |s| unknown(s, "/status/nodeInfo/kernelVersion")),
            Column::wide("Container-Runtime", |s| unknown(s, "/status/nodeInfo/containerRuntimeVersion")),
        ],
    ),
    ("", "Namespace", &[NAME, Column::new("Status", |s| s.get("/status/phase")), AGE]),
    ("", "ConfigMap", &[NAME, Column::integer("Data", config_data), AGE]),
    (
        "",
        "Secret",
        &[NAME, Column::new("Type", |s| s.get("/type")), Column::integer("Data", |s| s.count("/data")), AGE],
    ),
    // Upstream has counted no secrets here since tokens are no longer listed.
    ("", "ServiceAccount", &[NAME, Column::integer("Secrets", |s| s.count("/secrets")), AGE]),
    (
        "",
        "Event",
        &[
            Column::new("Last Seen", event_last),
            Column::new("Type", |s| s.get("/type")),
            Column::new("Reason", |s| s.get("/reason")),
            Column::new("Object", event_object),
            Column::wide("Subobject", |s| s.get("/involvedObject/fieldPath")),
            Column::wide("Source", event_source),
            Column::new("Message", |s| json!(s.str("/message").trim())),
            Column::wide("First Seen", event_first),
            Column::wide("Count", |s| json!(s.int("/count").max(1).to_string())),
            Column { priority: 1, ..NAME },
        ],
    ),
    (
        "",
        "PersistentVolumeClaim",
        &[
            NAME,
            Column::new("Status", |s| {
                json!(if s.str("/metadata/deletionTimestamp").is_empty() {
                    s.str("/status/phase")
                } else {
                    "Terminating"
                })
            }),
            Column::new("Volume", |s| s.get("/spec/volumeName")),
            Column::new("Capacity", |s| s.get("/status/capacity/storage")),
            Column::new("Access Modes", |s| access_modes(s, "/status/accessModes")),
            Column::new("StorageClass", |s| s.get("/spec/storageClassName")),
            Column::new("VolumeAttributesClass", |s| unset(s, "/spec/volumeAttributesClassName")),
            AGE,
            Column::wide("VolumeMode", |s| s.get("/spec/volumeMode")),
        ],
    ),
    (
        "",
        "PersistentVolume",
        &[
            NAME,
            Column::new("Capacity", |s| s.get("/spec/capacity/storage")),
            Column::new("Access Modes", |s| access_modes(s, "/spec/accessModes")),
            Column::new("Reclaim Policy", |s| s.get("/spec/persistentVolumeReclaimPolicy")),
            Column::new("Status", |s| s.get("/status/phase")),
            Column::new("Claim", claim),
            Column::new("StorageClass", |s| s.get("/spec/storageClassName")),
            Column::new("VolumeAttributesClass", |s| unset(s, "/spec/volumeAttributesClassName")),
            Column::new("Reason", |s| s.get("/status/reason")),
            AGE,
            Column::wide("VolumeMode", |s| s.get("/spec/volumeMode")),
        ],
    ),
    (
        "",
        "ReplicationController",
        &[
            NAME,
            Column::integer("Desired", |s| json!(s.int("/spec/replicas"))),
            Column::integer("Current", |s| json!(s.int("/status/replicas"))),
            Column::integer("Ready", |s| json!(s.int("/status/readyReplicas"))),
            AGE,
            Column::wide("Containers", |s| s.containers("/spec/template/spec/containers", "name")),
            Column::wide("Images", |s| s.containers("/spec/template/spec/containers", "image")),
            Column::wide("Selector", |s| s.selector("/spec/selector")),
        ],
    ),
    (
        "",
        "ResourceQuota",
        &[NAME, Column::new("Request", |s| quota(s, false)), Column::new("Limit", |s| quota(s, true)), AGE],
    ),
];

fn unset(source: &Source<'_>, pointer: &str) -> Value {
    let text = source.str(pointer);
    json!(if text.is_empty() { "<unset>" } else { text })
}

fn unknown(source: &Source<'_>, pointer: &str) -> Value {
    let text = source.str(pointer);
    json!(if text.is_empty() { "<unknown>" } else { text })
}

fn ports(source: &Source<'_>) -> Value {
    let one = |port: &Value| {
        let number = port["port"].as_i64().unwrap_or_default();
        let protocol = port["protocol"].as_str().unwrap_or_default();
        match port["nodePort"].as_i64() {
            Some(node) if node > 0 => format!("{number}:{node}/{protocol}"),
            _ => format!("{number}/{protocol}"),
        }
    };
    let list: Vec<String> = source.list("/spec/ports").iter().map(one).collect();
    json!(text::or_none(&list.join(",")))
}

fn external_ip(source: &Source<'_>) -> Value {
    let given = |pointer: &str| source.list(pointer).iter().filter_map(Value::as_str).collect::<Vec<_>>();
    let external = given("/spec/externalIPs");
    let joined = |addresses: Vec<&str>| if addresses.is_empty() { "<none>".into() } else { addresses.join(",") };
    json!(match source.str("/spec/type") {
        "LoadBalancer" => {
            let ingress = source.list("/status/loadBalancer/ingress").iter();
            let mut all: Vec<&str> = ingress.filter_map(|i| i["ip"].as_str().or(i["hostname"].as_str())).collect();
            all.extend(external);
            if all.is_empty() { "<pending>".into() } else { all.join(",") }
        }
        "ExternalName" => source.str("/spec/externalName").to_owned(),
        _ => joined(external),
    })
}

/// At most three `address:port` pairs.
fn endpoints(source: &Source<'_>) -> Value {
    let mut all = Vec::new();
    for subset in source.list("/subsets") {
        for address in subset["addresses"].as_array().into_iter().flatten() {
            let ip = address["ip"].as_str().unwrap_or_default();
            match subset["ports"].as_array().map_or(&[][..], Vec::as_slice) {
                [] => all.push(ip.to_owned()),
                ports => all.extend(ports.iter().map(|p| format!("{ip}:{}", p["port"]))),
            }
        }
    }
    let more = all.len().saturating_sub(3);
    let shown = all[..all.len() - more].join(",");
    json!(if more > 0 { format!("{shown} + {more} more...") } else { text::or_none(&shown).to_owned() })
}

fn node_status(source: &Source<'_>) -> Value {
    let ready = source.list("/status/conditions").iter().find(|c| c["type"] == "Ready");
    let mut words = vec![match ready.and_then(|c| c["status"].as_str()) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if source.at("/spec/unschedulable") == &Value::Bool(true) {
        words.push("SchedulingDisabled");
    }
    json!(words.join(","))
}

fn node_roles(source: &Source<'_>) -> Value {
    let labels = source.at("/metadata/labels").as_object();
    let mut roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.as_str() {
            "kubernetes.io/role" => value.as_str(),
            key => key.strip_prefix("node-role.kubernetes.io/"),
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    json!(text::or_none(&roles.join(",")))
}

fn node_address(source: &Source<'_>, kind: &str) -> Value {
    let found = source.list("/status/addresses").iter().find(|a| a["type"] == kind);
    json!(text::or_none(found.and_then(|a| a["address"].as_str()).unwrap_or_default()))
}

fn config_data(source: &Source<'_>) -> Value {
    let len = |pointer| source.at(pointer).as_object().map_or(0, serde_json::Map::len);
    json!(len("/data") + len("/binaryData"))
}

fn event_last(source: &Source<'_>) -> Value {
    let times = ["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/firstTimestamp"];
    let time = times.iter().map(|p| source.str(p)).find(|t| !t.is_empty()).unwrap_or_default();
    json!(source.since(time))
}

fn event_first(source: &Source<'_>) -> Value {
    let times = ["/firstTimestamp", "/eventTime"];
    json!(source.since(times.iter().map(|p| source.str(p)).find(|t| !t.is_empty()).unwrap_or_default()))
}

fn event_object(source: &Source<'_>) -> Value {
    let kind = source.str("/involvedObject/kind").to_lowercase();
    json!(format!("{kind}/{}", source.str("/involvedObject/name")))
}

fn event_source(source: &Source<'_>) -> Value {
    let component = match source.str("/source/component") {
        "" => source.str("/reportingComponent"),
        component => component,
    };
    match source.str("/source/host") {
        "" => json!(component),
        host => json!(format!("{component}, {host}")),
    }
}

fn access_modes(source: &Source<'_>, pointer: &str) -> Value {
    let short = |mode: &str| match mode {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        _ => "",
    };
    let modes: Vec<&str> = source.list(pointer).iter().filter_map(Value::as_str).map(short).collect();
    json!(modes.join(","))
}

fn claim(source: &Source<'_>) -> Value {
    match source.str("/spec/claimRef/name") {
        "" => json!(""),
        name => json!(format!("{}/{name}", source.str("/spec/claimRef/namespace"))),
    }
}

fn quota(source: &Source<'_>, limits: bool) -> Value {
    let hard = source.at("/status/hard").as_object();
    let used = source.at("/status/used");
    let mut parts: Vec<String> = hard
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.starts_with("limits.") == limits)
        .map(|(name, hard)| {
            let (used, hard) = (used[name].as_str().unwrap_or("0"), hard.as_str().unwrap_or_default());
            format!("{name}: {used}/{hard}")
        })
        .collect();
    parts.sort();
    json!(parts.join(", "))
}
