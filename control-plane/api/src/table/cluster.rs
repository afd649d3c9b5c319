//! Tables of what administrators of clusters look at: storage drivers, policies, flow control, devices,
//! address ranges, events in their own group, and the targets of autoscalers.

use serde_json::{Value, json};

use super::{AGE, Column, NAME, Source, text};

const ADMISSION: &str = "admissionregistration.k8s.io";
const FLOW: &str = "flowcontrol.apiserver.k8s.io";
const OWN: &str = "sluice.dev";
const RESOURCE: &str = "resource.k8s.io";
const STORAGE: &str = "storage.k8s.io";
const PARAM_KIND: Column = Column::new("ParamKind", param_kind);
const POLICY_BINDING: &[Column] =
    &[NAME, Column::new("PolicyName", |s| s.get("/spec/policyName")), Column::new("ParamRef", param_ref), AGE];

pub(super) const KINDS: &[(&str, &str, &[Column])] = &[
    (
        "",
        "PodTemplate",
        &[
            NAME,
            Column::new("Containers", |s| s.containers("/template/spec/containers", "name")),
            Column::new("Images", |s| s.containers("/template/spec/containers", "image")),
            Column::new("Pod Labels", |s| labels(s.at("/template/metadata/labels"))),
        ],
    ),
    (
        "events.k8s.io",
        "Event",
        &[
            Column::new("Last Seen", last_seen),
            Column::new("Type", |s| s.get("/type")),
            Column::new("Reason", |s| s.get("/reason")),
            Column::new("Object", regarding),
            Column::wide("Subobject", |s| s.get("/regarding/fieldPath")),
            Column::wide("Source", reporter),
            Column::new("Message", |s| json!(s.str("/note").trim())),
            Column::wide("First Seen", first_seen),
            Column::wide("Count", |s| json!(s.int("/series/count").max(s.int("/deprecatedCount")).max(1).to_string())),
            Column { priority: 1, ..NAME },
        ],
    ),
    ("networking.k8s.io", "ServiceCIDR", &[NAME, Column::new("CIDRs", |s| joined(s.list("/spec/cidrs"))), AGE]),
    ("networking.k8s.io", "IPAddress", &[NAME, Column::new("ParentRef", parent), AGE]),
    (
        OWN,
        "LoadBalancerAnnouncement",
        &[
            NAME,
            Column::new("Address", |s| s.get("/spec/address")),
            Column::new("Node", |s| s.or_none("/status/node")),
            Column::new("Services", |s| joined(s.list("/spec/services"))),
            AGE,
            Column::wide("Candidates", candidates),
        ],
    ),
    (
        OWN,
        "LoadBalancerPool",
        &[
            NAME,
            Column::new("Blocks", blocks),
            Column::new("Disabled", |s| flag(s, "/spec/disabled")),
            Column::integer("Free", |s| json!(s.int("/status/free"))),
            Column::integer("Used", |s| json!(s.int("/status/used"))),
            Column::new("Conflict", conflict),
            AGE,
        ],
    ),
    (
        STORAGE,
        "CSIDriver",
        &[
            NAME,
            Column::new("AttachRequired", |s| json!(s.at("/spec/attachRequired") != &Value::Bool(false))),
            Column::new("PodInfoOnMount", |s| flag(s, "/spec/podInfoOnMount")),
            Column::new("StorageCapacity", |s| flag(s, "/spec/storageCapacity")),
            Column::new("TokenRequests", audiences),
            Column::new("RequiresRepublish", |s| flag(s, "/spec/requiresRepublish")),
            Column::new("Modes", |s| match joined(s.list("/spec/volumeLifecycleModes")) {
                Value::String(none) if none.is_empty() => json!("<none>"),
                modes => modes,
            }),
            AGE,
        ],
    ),
    (STORAGE, "CSINode", &[NAME, Column::integer("Drivers", |s| s.count("/spec/drivers")), AGE]),
    (
        STORAGE,
        "CSIStorageCapacity",
        &[
            NAME,
            Column::new("StorageClassName", |s| s.get("/storageClassName")),
            Column::new("Capacity", |s| s.get("/capacity")),
        ],
    ),
    (
        STORAGE,
        "VolumeAttachment",
        &[
            NAME,
            Column::new("Attacher", |s| s.get("/spec/attacher")),
            Column::new("PV", |s| s.get("/spec/source/persistentVolumeName")),
            Column::new("Node", |s| s.get("/spec/nodeName")),
            Column::new("Attached", |s| flag(s, "/status/attached")),
            AGE,
        ],
    ),
    (STORAGE, "VolumeAttributesClass", &[NAME, Column::new("DriverName", |s| s.get("/driverName")), AGE]),
    (
        FLOW,
        "FlowSchema",
        &[
            NAME,
            Column::new("PriorityLevel", |s| s.get("/spec/priorityLevelConfiguration/name")),
            Column::integer("MatchingPrecedence", |s| json!(s.int("/spec/matchingPrecedence"))),
            Column::new("DistinguisherMethod", |s| s.or_none("/spec/distinguisherMethod/type")),
            AGE,
            Column::new("MissingPL", missing_level),
        ],
    ),
    (
        FLOW,
        "PriorityLevelConfiguration",
        &[
            NAME,
            Column::new("Type", |s| s.get("/spec/type")),
            Column::new("NominalConcurrencyShares", shares),
            Column::new("Queues", |s| number(s, "/spec/limited/limitResponse/queuing/queues")),
            Column::new("HandSize", |s| number(s, "/spec/limited/limitResponse/queuing/handSize")),
            Column::new("QueueLengthLimit", |s| number(s, "/spec/limited/limitResponse/queuing/queueLengthLimit")),
            AGE,
        ],
    ),
    (
        ADMISSION,
        "ValidatingAdmissionPolicy",
        &[NAME, Column::integer("Validations", |s| s.count("/spec/validations")), PARAM_KIND, AGE],
    ),
    (ADMISSION, "ValidatingAdmissionPolicyBinding", POLICY_BINDING),
    (
        ADMISSION,
        "MutatingAdmissionPolicy",
        &[NAME, Column::integer("Mutations", |s| s.count("/spec/mutations")), PARAM_KIND, AGE],
    ),
    (ADMISSION, "MutatingAdmissionPolicyBinding", POLICY_BINDING),
    (RESOURCE, "DeviceClass", &[NAME, AGE]),
    (RESOURCE, "ResourceClaim", &[NAME, Column::new("State", claim_state), AGE]),
    (RESOURCE, "ResourceClaimTemplate", &[NAME, AGE]),
    (
        RESOURCE,
        "ResourceSlice",
        &[
            NAME,
            Column::new("Node", |s| s.get("/spec/nodeName")),
            Column::new("Driver", |s| s.get("/spec/driver")),
            Column::new("Pool", |s| s.get("/spec/pool/name")),
            AGE,
        ],
    ),
];

/// What an autoscaler's metrics are and ought to be: `cpu: 12%/80%`, at most two of them.
pub(super) fn targets(source: &Source<'_>) -> Value {
    const SHOWN: usize = 2;
    let (wanted, found) = (source.list("/spec/metrics"), source.list("/status/currentMetrics"));
    let all: Vec<String> =
        wanted.iter().enumerate().map(|(i, m)| target(m, found.get(i).unwrap_or(&Value::Null))).collect();
    match all.len() {
        0 => json!("<none>"),
        n if n > SHOWN => json!(format!("{} + {} more...", all[..SHOWN].join(", "), n - SHOWN)),
        _ => json!(all.join(", ")),
    }
}

fn target(metric: &Value, current: &Value) -> String {
    let (field, named) = match metric["type"].as_str().unwrap_or_default() {
        "Resource" => ("resource", metric["resource"]["name"].as_str()),
        "ContainerResource" => ("containerResource", metric["containerResource"]["name"].as_str()),
        "Pods" => ("pods", None),
        "Object" => ("object", None),
        "External" => ("external", None),
        _ => return "<unknown type>".to_owned(),
    };
    let (goal, now) = (&metric[field]["target"], &current[field]["current"]);
    let value = |of: &str, suffix: &str| {
        let shown = |side: &Value| match side {
            Value::Null => "<unknown>".to_owned(),
            Value::String(text) => text.clone(),
            number => format!("{number}{suffix}"),
        };
        format!("{}/{}", shown(&now[of]), shown(&goal[of]))
    };
    let text = if !goal["averageUtilization"].is_null() {
        value("averageUtilization", "%")
    } else if !goal["averageValue"].is_null() {
        let average = if matches!(field, "object" | "external") { " (avg)" } else { "" };
        format!("{}{average}", value("averageValue", ""))
    } else {
        value("value", "")
    };
    named.map_or(text.clone(), |name| format!("{name}: {text}"))
}

fn labels(map: &Value) -> Value {
    let each = map.as_object().into_iter().flatten();
    let mut all: Vec<String> = each.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    all.sort();
    json!(text::or_none(&all.join(",")))
}

/// `cidr` or `start-stop` of each block.
fn blocks(source: &Source<'_>) -> Value {
    let one = |block: &Value| {
        let text = |field: &str| block[field].as_str().unwrap_or_default().to_owned();
        match (text("cidr"), text("start"), text("stop")) {
            (_, start, stop) if !start.is_empty() && !stop.is_empty() => format!("{start}-{stop}"),
            (cidr, start, _) => cidr + &start,
        }
    };
    json!(source.list("/spec/blocks").iter().map(one).collect::<Vec<_>>().join(","))
}

fn conflict(source: &Source<'_>) -> Value {
    let condition = source.list("/status/conditions").iter().find(|c| c["type"] == "Conflict");
    json!(condition.and_then(|c| c["status"].as_str()).unwrap_or("Unknown"))
}

fn candidates(source: &Source<'_>) -> Value {
    json!(source.list("/spec/nodes").iter().filter_map(|n| n["name"].as_str()).collect::<Vec<_>>().join(","))
}

fn joined(list: &[Value]) -> Value {
    json!(list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","))
}

fn flag(source: &Source<'_>, pointer: &str) -> Value {
    json!(source.at(pointer) == &Value::Bool(true))
}

fn number(source: &Source<'_>, pointer: &str) -> Value {
    match source.at(pointer) {
        Value::Null => json!("<none>"),
        value => json!(value.to_string()),
    }
}

fn shares(source: &Source<'_>) -> Value {
    let exempt = source.str("/spec/type") == "Exempt";
    number(
        source,
        if exempt { "/spec/exempt/nominalConcurrencyShares" } else { "/spec/limited/nominalConcurrencyShares" },
    )
}

fn last_seen(source: &Source<'_>) -> Value {
    let times = ["/series/lastObservedTime", "/deprecatedLastTimestamp", "/eventTime"];
    json!(source.since(times.map(|t| source.str(t)).into_iter().find(|t| !t.is_empty()).unwrap_or_default()))
}

fn first_seen(source: &Source<'_>) -> Value {
    let times = ["/deprecatedFirstTimestamp", "/eventTime"];
    json!(source.since(times.map(|t| source.str(t)).into_iter().find(|t| !t.is_empty()).unwrap_or_default()))
}

fn regarding(source: &Source<'_>) -> Value {
    json!(format!("{}/{}", source.str("/regarding/kind").to_lowercase(), source.str("/regarding/name")))
}

fn reporter(source: &Source<'_>) -> Value {
    let first = |places: [&str; 2]| places.map(|p| source.str(p)).into_iter().find(|t| !t.is_empty());
    let component = first(["/reportingController", "/deprecatedSource/component"]).unwrap_or_default();
    match first(["/reportingInstance", "/deprecatedSource/host"]) {
        Some(host) => json!(format!("{component}, {host}")),
        None => json!(component),
    }
}

fn parent(source: &Source<'_>) -> Value {
    let part = |field: &str| source.at("/spec/parentRef")[field].as_str().unwrap_or_default();
    if part("name").is_empty() {
        return json!("<none>");
    }
    let group = if part("group").is_empty() { String::new() } else { format!(".{}", part("group")) };
    let namespace = if part("namespace").is_empty() { String::new() } else { format!("/{}", part("namespace")) };
    json!(format!("{}{group}{namespace}/{}", part("resource"), part("name")))
}

fn audiences(source: &Source<'_>) -> Value {
    let all: Vec<&str> = source.list("/spec/tokenRequests").iter().filter_map(|r| r["audience"].as_str()).collect();
    json!(if all.is_empty() { "<unset>".to_owned() } else { all.join(",") })
}

fn missing_level(source: &Source<'_>) -> Value {
    let condition = source.list("/status/conditions").iter().find(|c| c["type"] == "Dangling");
    json!(condition.and_then(|c| c["status"].as_str()).unwrap_or("?"))
}

fn param_kind(source: &Source<'_>) -> Value {
    match source.at("/spec/paramKind") {
        Value::Null => json!("<unset>"),
        kind => json!(format!(
            "{}/{}",
            kind["apiVersion"].as_str().unwrap_or_default(),
            kind["kind"].as_str().unwrap_or_default()
        )),
    }
}

fn param_ref(source: &Source<'_>) -> Value {
    let param = source.at("/spec/paramRef");
    let text = |field: &str| param[field].as_str().unwrap_or_default();
    json!(match (param, text("namespace"), text("name")) {
        (Value::Null, ..) => "<unset>".to_owned(),
        (_, "", "") => format!("*/{}", text::label_selector(&param["selector"])),
        (_, "", name) => format!("*/{name}"),
        (_, namespace, "") => format!("{namespace}/{}", text::label_selector(&param["selector"])),
        (_, namespace, name) => format!("{namespace}/{name}"),
    })
}

fn claim_state(source: &Source<'_>) -> Value {
    let deleted = !source.str("/metadata/deletionTimestamp").is_empty();
    let allocated = !source.at("/status/allocation").is_null();
    let reserved = !source.list("/status/reservedFor").is_empty();
    let mut states = Vec::new();
    for (holds, word) in
        [(deleted, "deleted"), (!allocated && !deleted, "pending"), (allocated, "allocated"), (reserved, "reserved")]
    {
        if holds {
            states.push(word);
        }
    }
    json!(states.join(","))
}

#[cfg(test)]
mod tests {
    use super::super::tests::row;
    use super::*;

    #[test]
    fn rows_read_as_upstreams() {
        let check = |group: &str, kind: &str, mut object: Value, expected: &[&str]| {
            object["metadata"] = json!({"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"});
            assert_eq!(row(group, kind, &object), expected, "{kind}");
        };
        check(
            "networking.k8s.io",
            "IPAddress",
            json!({"spec": {"parentRef": {"resource": "services", "namespace": "n", "name": "web"}}}),
            &["a", "services/n/web", "60m"],
        );
        check(
            "networking.k8s.io",
            "ServiceCIDR",
            json!({"spec": {"cidrs": ["10.0.0.0/8", "fd00::/64"]}}),
            &["a", "10.0.0.0/8,fd00::/64", "60m"],
        );
        check(
            "storage.k8s.io",
            "CSIDriver",
            json!({"spec": {"volumeLifecycleModes": ["Persistent", "Ephemeral"]}}),
            &["a", "true", "false", "false", "<unset>", "false", "Persistent,Ephemeral", "60m"],
        );
        check(
            "resource.k8s.io",
            "ResourceClaim",
            json!({"status": {"allocation": {}, "reservedFor": [{}]}}),
            &["a", "allocated,reserved", "60m"],
        );
        check(
            "sluice.dev",
            "LoadBalancerPool",
            json!({"spec": {"blocks": [{"cidr": "192.0.2.0/24"}, {"start": "2001:db8::1", "stop": "2001:db8::9"}, {"start": "192.0.3.1"}]},
                "status": {"free": 9, "used": 1, "conditions": [{"type": "Conflict", "status": "False"}]}}),
            &["a", "192.0.2.0/24,2001:db8::1-2001:db8::9,192.0.3.1", "false", "9", "1", "False", "60m"],
        );
        check(
            "sluice.dev",
            "LoadBalancerAnnouncement",
            json!({"spec": {"address": "192.0.2.1", "services": ["n/web"], "nodes": [{"name": "b"}, {"name": "c"}]},
                "status": {"node": "c"}}),
            &["a", "192.0.2.1", "c", "n/web", "60m", "b,c"],
        );
        check(
            "admissionregistration.k8s.io",
            "ValidatingAdmissionPolicyBinding",
            json!({"spec": {"policyName": "p", "paramRef": {"name": "x"}}}),
            &["a", "p", "*/x", "60m"],
        );
        check(
            "autoscaling",
            "HorizontalPodAutoscaler",
            json!({
                "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "web"}, "minReplicas": 1, "maxReplicas": 5,
                    "metrics": [
                        {"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}},
                        {"type": "Pods", "pods": {"target": {"averageValue": "100m"}}},
                        {"type": "External", "external": {"target": {"value": "3"}}},
                    ]},
                "status": {"currentReplicas": 2, "currentMetrics": [
                    {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 12}}}]},
            }),
            &["a", "Deployment/web", "cpu: 12%/80%, <unknown>/100m + 1 more...", "1", "5", "2", "60m"],
        );
    }
}
