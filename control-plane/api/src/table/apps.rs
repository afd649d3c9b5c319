//! Tables of workloads: `apps`, `batch`, `autoscaling`, `policy`.

use serde_json::{Value, json};

use super::{AGE, Column, NAME, Source};

const TEMPLATE: &str = "/spec/template/spec/containers";
const CONTAINERS: Column = Column::wide("Containers", |s| s.containers(TEMPLATE, "name"));
const IMAGES: Column = Column::wide("Images", |s| s.containers(TEMPLATE, "image"));
const SELECTOR: Column = Column::wide("Selector", |s| s.selector("/spec/selector"));
const SCALE_READY: Column =
    Column::new("Ready", |s| json!(format!("{}/{}", s.int("/status/readyReplicas"), s.int("/spec/replicas"))));

pub(super) const KINDS: &[(&str, &str, &[Column])] = &[
    (
        "apps",
        "Deployment",
        &[
            NAME,
            SCALE_READY,
            Column::integer("Up-to-date", |s| json!(s.int("/status/updatedReplicas"))),
            Column::integer("Available", |s| json!(s.int("/status/availableReplicas"))),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
    ),
    (
        "apps",
        "ReplicaSet",
        &[
            NAME,
            Column::integer("Desired", |s| json!(s.int("/spec/replicas"))),
            Column::integer("Current", |s| json!(s.int("/status/replicas"))),
            Column::integer("Ready", |s| json!(s.int("/status/readyReplicas"))),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
    ),
    ("apps", "StatefulSet", &[NAME, SCALE_READY, AGE, CONTAINERS, IMAGES]),
    (
        "apps",
        "DaemonSet",
        &[
            NAME,
            Column::integer("Desired", |s| json!(s.int("/status/desiredNumberScheduled"))),
            Column::integer("Current", |s| json!(s.int("/status/currentNumberScheduled"))),
            Column::integer("Ready", |s| json!(s.int("/status/numberReady"))),
            Column::integer("Up-to-date", |s| json!(s.int("/status/updatedNumberScheduled"))),
            Column::integer("Available", |s| json!(s.int("/status/numberAvailable"))),
            Column::new("Node Selector", |s| s.selector("/spec/template/spec/nodeSelector")),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
    ),
    (
        "apps",
        "ControllerRevision",
        &[NAME, Column::new("Controller", controller), Column::integer("Revision", |s| json!(s.int("/revision"))), AGE],
    ),
    (
        "batch",
        "Job",
        &[
            NAME,
            Column::new("Status", job_status),
            Column::new("Completions", completions),
            Column::new("Duration", duration),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
    ),
    (
        "batch",
        "CronJob",
        &[
            NAME,
            Column::new("Schedule", |s| s.get("/spec/schedule")),
            Column::new("Timezone", |s| s.or_none("/spec/timeZone")),
            Column::new("Suspend", |s| {
                json!(if s.at("/spec/suspend") == &Value::Bool(true) { "True" } else { "False" })
            }),
            Column::integer("Active", |s| s.count("/status/active")),
            Column::new("Last Schedule", |s| match s.str("/status/lastScheduleTime") {
                "" => json!("<none>"),
                time => json!(s.since(time)),
            }),
            AGE,
            Column::wide("Containers", |s| s.containers("/spec/jobTemplate/spec/template/spec/containers", "name")),
            Column::wide("Images", |s| s.containers("/spec/jobTemplate/spec/template/spec/containers", "image")),
            Column::wide("Selector", |s| s.selector("/spec/jobTemplate/spec/selector")),
        ],
    ),
    (
        "autoscaling",
        "HorizontalPodAutoscaler",
        &[
            NAME,
            Column::new("Reference", |s| {
                json!(format!("{}/{}", s.str("/spec/scaleTargetRef/kind"), s.str("/spec/scaleTargetRef/name")))
            }),
            Column::new("Targets", super::cluster::targets),
            Column::integer("MinPods", |s| json!(s.int("/spec/minReplicas"))),
            Column::integer("MaxPods", |s| json!(s.int("/spec/maxReplicas"))),
            Column::integer("Replicas", |s| json!(s.int("/status/currentReplicas"))),
            AGE,
        ],
    ),
    (
        "policy",
        "PodDisruptionBudget",
        &[
            NAME,
            Column::new("Min Available", |s| not_applicable(s.at("/spec/minAvailable"))),
            Column::new("Max Unavailable", |s| not_applicable(s.at("/spec/maxUnavailable"))),
            Column::integer("Allowed Disruptions", |s| json!(s.int("/status/disruptionsAllowed"))),
            AGE,
        ],
    ),
];

fn not_applicable(value: &Value) -> Value {
    match value {
        Value::Null => json!("N/A"),
        Value::String(text) => json!(text),
        number => json!(number.to_string()),
    }
}

fn controller(source: &Source<'_>) -> Value {
    let owner = source.list("/metadata/ownerReferences").iter().find(|o| o["controller"] == true);
    match owner {
        None => json!("<none>"),
        Some(owner) => {
            let text = |key: &str| owner[key].as_str().unwrap_or_default();
            let group = text("apiVersion").split_once('/').map_or("", |(group, _)| group);
            let kind = text("kind").to_lowercase();
            let kind = if group.is_empty() { kind } else { format!("{kind}.{group}") };
            json!(format!("{kind}/{}", text("name")))
        }
    }
}

fn job_status(source: &Source<'_>) -> Value {
    let holds =
        |kind: &str| source.list("/status/conditions").iter().any(|c| c["type"] == kind && c["status"] == "True");
    json!(match () {
        () if holds("Complete") => "Complete",
        () if holds("Failed") => "Failed",
        () if !source.str("/metadata/deletionTimestamp").is_empty() => "Terminating",
        () if holds("Suspended") => "Suspended",
        () if holds("FailureTarget") => "FailureTarget",
        () if holds("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    })
}

fn completions(source: &Source<'_>) -> Value {
    let done = source.int("/status/succeeded");
    json!(match (source.at("/spec/completions").as_i64(), source.int("/spec/parallelism")) {
        (Some(wanted), _) => format!("{done}/{wanted}"),
        (None, parallel) if parallel > 1 => format!("{done}/1 of {parallel}"),
        (None, _) => format!("{done}/1"),
    })
}

fn duration(source: &Source<'_>) -> Value {
    let time = |pointer: &str| source.str(pointer).parse::<jiff::Timestamp>().ok();
    let Some(start) = time("/status/startTime") else { return json!("") };
    let end = time("/status/completionTime").unwrap_or(source.now);
    json!(super::human_duration(end.as_second() - start.as_second()))
}
