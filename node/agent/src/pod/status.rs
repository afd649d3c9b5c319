//! A pod's status as upstream's kubelet would write it, computed from the pod, its state and what was written
//! before (transition times, conditions of others). Pure; [`patch`] makes the smallest strategic merge patch.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, HostIP,
    PodCondition, PodIP, PodStatus, ResourceRequirements, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Map, Value, json};

use super::adopt::container_id;
use super::machine::initialized;
use super::spec::{ContainerSpec, Kind, Restart};
use super::state::{Ctr, Exit, Phase, PodState, Resize, Step, Teardown};
use crate::model::{Container, Pod, Resources};

/// The status of `pod` in `state`. `old` is what was written last (or read from the API server); its conditions
/// keep their transition times while they do not change.
pub fn compute(pod: &Pod, state: &PodState, old: &PodStatus, host: &[IpAddr], now: Timestamp) -> PodStatus {
    let [init, main, ephemeral] = container_statuses(pod, state);
    let phase = phase(state);
    let mut status = PodStatus {
        phase: Some(phase.to_owned()),
        start_time: Some(Time(whole_seconds(state.start_time))),
        host_ip: host.first().map(ToString::to_string),
        host_ips: Some(host.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        qos_class: old.qos_class.clone().or_else(|| Some(qos_class(pod).to_owned())),
        observed_generation: pod.metadata.generation,
        nominated_node_name: old.nominated_node_name.clone(),
        container_statuses: Some(main),
        init_container_statuses: (!init.is_empty()).then_some(init),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        ..PodStatus::default()
    };
    if !state.ips.is_empty() {
        status.pod_ip = state.ips.first().map(ToString::to_string);
        status.pod_ips = Some(state.ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect());
    } else if pod.spec.host_network {
        status.pod_ip.clone_from(&status.host_ip);
        status.pod_ips = Some(host.iter().map(|ip| PodIP { ip: ip.to_string() }).collect());
    }
    if let Some(failure) = &state.failure {
        status.reason = Some(failure.reason.clone());
        status.message = Some(failure.message.clone());
        if is_rejected(state) {
            // Upstream writes nothing but phase, reason and message for a pod it refused.
            status.container_statuses = None;
            status.init_container_statuses = None;
            status.ephemeral_container_statuses = None;
        }
    }
    status.conditions = Some(conditions(pod, state, &status, phase, old, now));
    status
}

/// The strategic merge patch that turns `old` into `new`, or `None` if nothing differs.
pub fn patch(uid: &str, old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let (old, new) = (object(old), object(new));
    let mut change = Map::new();
    for (key, value) in &new {
        if old.get(key) == Some(value) {
            continue;
        }
        if key == "conditions" {
            let before = old.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let items = value.as_array().map_or(&[][..], Vec::as_slice);
            let mut changed: Vec<Value> =
                items.iter().filter(|c| !before.contains(c)).map(|c| without_leftovers(c, before)).collect();
            let gone = RESIZE.iter().filter(|type_| {
                let among = |list: &[Value]| list.iter().any(|c| c["type"] == **type_);
                among(before) && !among(items)
            });
            changed.extend(gone.map(|type_| json!({"$patch": "delete", "type": type_})));
            if !changed.is_empty() {
                change.insert(key.clone(), Value::Array(changed));
            }
            continue;
        }
        change.insert(key.clone(), value.clone());
    }
    for key in old.keys().filter(|k| OWNED.contains(&k.as_str()) && !new.contains_key(*k)) {
        change.insert(key.clone(), Value::Null);
    }
    (!change.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": change}))
}

/// The phase, by upstream's rules (`getPhase`).
pub fn phase(state: &PodState) -> &'static str {
    if state.failure.is_some() && (is_rejected(state) || state.is_finished()) {
        return "Failed";
    }
    let never = state.spec.restart == Restart::Never;
    let mut pending_init = false;
    for (_, spec, c) in state.each() {
        let blocked = match spec.kind {
            Kind::Init => !c.succeeded(),
            Kind::Sidecar => !c.started,
            Kind::Main | Kind::Ephemeral => false,
        };
        let failed = matches!(&c.phase, Phase::Exited { exit, .. } if exit.code != 0);
        if spec.kind == Kind::Init && failed && (never || state.is_finished()) {
            return "Failed";
        }
        pending_init |= blocked;
    }
    let mains = || state.each().filter(|(_, s, _)| s.kind == Kind::Main).map(|(_, s, c)| (s, c));
    let running = mains().filter(|(_, c)| c.run().is_some()).count();
    let ended = mains().filter(|(_, c)| c.exit().is_some() || c.last.is_some() && c.run().is_none());
    let (mut stopped, mut succeeded) = (0, 0);
    for (_, c) in ended {
        stopped += 1;
        succeeded += usize::from(c.exit().or(c.last.as_deref()).is_some_and(|e| e.code == 0));
    }
    let waiting = mains().count() - running - stopped;
    let any_main = mains().any(|(_, c)| c.made);
    if state.is_finished() {
        return match () {
            () if pending_init && !any_main => "Failed",
            () if waiting == 0 && stopped == succeeded && running == 0 => "Succeeded",
            () => "Failed",
        };
    }
    match () {
        () if pending_init && !any_main => "Pending",
        () if waiting > 0 => "Pending",
        () if running > 0 => "Running",
        () if state.spec.restart == Restart::Always => "Running",
        () if stopped == succeeded && mains().all(|(s, c)| ended_for_good(s, c)) => "Succeeded",
        () if mains().all(|(s, c)| ended_for_good(s, c)) => "Failed",
        () => "Running",
    }
}

/// The class by requests and limits of every container.
pub fn qos_class(pod: &Pod) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    for c in pod.own_containers() {
        for name in ["cpu", "memory"] {
            let limit = c.resources.limits.get(name).filter(|q| crate::quantity::milli(q) != Some(0));
            let request = c.resources.requests.get(name).filter(|q| crate::quantity::milli(q) != Some(0));
            any |= limit.is_some() || request.is_some();
            let same = match (limit, request) {
                (Some(l), Some(r)) => crate::quantity::milli(l) == crate::quantity::milli(r),
                (Some(_), None) => true,
                _ => false,
            };
            guaranteed &= same;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// True if the container runs, is started and its readiness probe (if any) said yes.
pub fn is_ready(spec: &ContainerSpec, c: &Ctr) -> bool {
    match spec.kind {
        Kind::Init => return c.succeeded(),
        Kind::Ephemeral => return false,
        Kind::Main | Kind::Sidecar => {}
    }
    c.run().is_some() && c.started && (!spec.has_readiness || c.probe_ready)
}

const OWNED: [&str; 8] = [
    "reason",
    "message",
    "podIP",
    "podIPs",
    "containerStatuses",
    "initContainerStatuses",
    "ephemeralContainerStatuses",
    "observedGeneration",
];

fn ended_for_good(spec: &ContainerSpec, c: &Ctr) -> bool {
    matches!(&c.phase, Phase::Exited { exit, .. } if !spec.restarts_after(exit.code))
}

fn is_rejected(state: &PodState) -> bool {
    state.failure.is_some() && state.containers.iter().all(|c| !c.made && !c.is_active())
}

fn object(status: &PodStatus) -> Map<String, Value> {
    match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// A condition for a merge by type: what it no longer says is taken away.
fn without_leftovers(condition: &Value, before: &[Value]) -> Value {
    let mut out = condition.clone();
    let old = before.iter().find(|b| b["type"] == condition["type"]).and_then(Value::as_object);
    if let (Some(out), Some(old)) = (out.as_object_mut(), old) {
        for key in old.keys() {
            out.entry(key.clone()).or_insert(Value::Null);
        }
    }
    out
}

/// API times have whole seconds; rounding here keeps a status equal to what comes back.
pub fn whole_seconds(t: Timestamp) -> Timestamp {
    Timestamp::from_second(t.as_second()).unwrap_or(t)
}

/// Those of init, main and ephemeral containers.
fn container_statuses(pod: &Pod, state: &PodState) -> [Vec<ContainerStatus>; 3] {
    let mut lists = [Vec::new(), Vec::new(), Vec::new()];
    for ((_, spec, c), container) in state.each().zip(pod.containers()) {
        let list = match spec.kind {
            Kind::Init | Kind::Sidecar => &mut lists[0],
            Kind::Main => &mut lists[1],
            Kind::Ephemeral => &mut lists[2],
        };
        list.push(container_status(state, spec, c, container));
    }
    lists[0].sort_by_key(|s| order(&pod.spec.init_containers, s));
    lists[1].sort_by(|a, b| a.name.cmp(&b.name));
    lists[2].sort_by(|a, b| a.name.cmp(&b.name));
    lists
}

fn order(list: &[Container], status: &ContainerStatus) -> usize {
    list.iter().position(|c| c.name == status.name).unwrap_or(usize::MAX)
}

fn container_status(state: &PodState, spec: &ContainerSpec, c: &Ctr, container: &Container) -> ContainerStatus {
    let waiting = |reason: &str, message: Option<String>| ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..ContainerState::default()
    };
    let initializing = state.spec.has_init() && spec.kind != Kind::Ephemeral;
    let default = if initializing { "PodInitializing" } else { "ContainerCreating" };
    let mut last = c.last.as_deref();
    let now_state = match &c.phase {
        Phase::Running(run) => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(Time(whole_seconds(run.at))) }),
            ..ContainerState::default()
        },
        Phase::Exited { exit, why: None, .. } => terminated(exit),
        Phase::Exited { exit, why: Some(why), .. } | Phase::Starting { exit: Some(exit), why: Some(why), .. } => {
            last = Some(exit);
            waiting(&why.reason, Some(why.message.clone()))
        }
        Phase::Starting { exit: Some(exit), why: None, .. } => terminated(exit),
        // A pod that is gone has no waiting containers (upstream: the state could not be found), but those it never
        // came to.
        Phase::Waiting { .. } if gone(state, spec, c) => terminated(&unknown(c)),
        Phase::Waiting { why: Some(why), .. } | Phase::Starting { why: Some(why), .. } => {
            waiting(&why.reason, Some(why.message.clone()))
        }
        Phase::Waiting { .. } | Phase::Starting { .. } => waiting(default, None),
    };
    let newest = match &c.phase {
        Phase::Running(run) => Some(run.id.as_str()),
        _ => c.exit().or(c.last.as_deref()).map(|e| e.id.as_str()),
    };
    let listed = c.run().is_some();
    let allocated = c.allocated.as_ref().unwrap_or(&container.resources);
    ContainerStatus {
        name: container.name.clone(),
        image: if c.image.is_empty() { container.image.clone() } else { c.image.clone() },
        image_id: c.image_id.clone(),
        container_id: newest.filter(|id| !id.is_empty()).map(container_id),
        ready: is_ready(spec, c),
        started: Some(c.run().is_some() && c.started),
        restart_count: i32::try_from(c.restarts).unwrap_or(i32::MAX),
        state: Some(now_state),
        last_state: Some(last.map(terminated).unwrap_or_default()),
        allocated_resources: listed.then(|| quantities(&allocated.requests)).flatten(),
        resources: listed.then(|| resources(c.resources.as_ref().unwrap_or(allocated))),
        volume_mounts: volume_mounts(container),
        ..ContainerStatus::default()
    }
}

fn gone(state: &PodState, spec: &ContainerSpec, c: &Ctr) -> bool {
    let came_to = match spec.kind {
        Kind::Main => initialized(state),
        Kind::Init | Kind::Sidecar | Kind::Ephemeral => c.made,
    };
    let over = state.teardown == Teardown::Deleting || state.teardown != Teardown::No && spec.kind == Kind::Main;
    came_to && over && state.is_finished()
}

fn unknown(c: &Ctr) -> Exit {
    Exit {
        id: c.last.as_ref().map(|e| e.id.clone()).unwrap_or_default(),
        code: 137,
        signal: None,
        reason: "ContainerStatusUnknown".into(),
        message: Some("The container could not be located when the pod was terminated".into()),
        started: None,
        finished: Timestamp::UNIX_EPOCH,
    }
}

fn terminated(exit: &Exit) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: (!exit.id.is_empty()).then(|| container_id(&exit.id)),
            exit_code: exit.code,
            signal: exit.signal,
            reason: Some(exit.reason.clone()),
            message: exit.message.clone(),
            started_at: exit.started.map(|t| Time(whole_seconds(t))),
            finished_at: (exit.finished != Timestamp::UNIX_EPOCH).then(|| Time(whole_seconds(exit.finished))),
        }),
        ..ContainerState::default()
    }
}

type Quantities = std::collections::BTreeMap<String, Quantity>;

fn quantities(map: &std::collections::BTreeMap<String, String>) -> Option<Quantities> {
    (!map.is_empty()).then(|| map.iter().map(|(k, v)| (k.clone(), Quantity(v.clone()))).collect())
}

fn resources(r: &Resources) -> ResourceRequirements {
    ResourceRequirements { limits: quantities(&r.limits), requests: quantities(&r.requests), claims: None }
}

fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let list: Vec<_> = container
        .volume_mounts
        .iter()
        .map(|m| VolumeMountStatus {
            name: m.name.clone(),
            mount_path: m.mount_path.clone(),
            read_only: m.read_only.then_some(true),
            recursive_read_only: m.read_only.then(|| "Disabled".to_owned()),
            ..VolumeMountStatus::default()
        })
        .collect();
    (!list.is_empty()).then_some(list)
}

/// A verdict on one condition: true, or why not.
type Verdict = Result<Option<&'static str>, (&'static str, String)>;

fn conditions(
    pod: &Pod,
    state: &PodState,
    status: &PodStatus,
    phase: &str,
    old: &PodStatus,
    now: Timestamp,
) -> Vec<PodCondition> {
    let ready = containers_ready(state, phase);
    let sandbox = state.network == Step::Done && state.teardown == Teardown::No && !state.is_finished();
    let own: [(&str, Verdict); 4] = [
        ("PodReadyToStartContainers", if sandbox { Ok(None) } else { Err(("", String::new())) }),
        ("Initialized", is_initialized(state, phase)),
        ("Ready", pod_ready(pod, old, &ready)),
        ("ContainersReady", ready),
    ];
    let before = old.conditions.as_deref().unwrap_or_default();
    let mut list: Vec<PodCondition> = own
        .into_iter()
        .map(|(type_, verdict)| condition(type_, verdict, before, status.observed_generation, now))
        .collect();
    if let Some(failure) = state.failure.as_ref().filter(|f| f.reason == "Evicted" && !is_rejected(state)) {
        let verdict = Ok(Some("TerminationByKubelet"));
        let mut target = condition("DisruptionTarget", verdict, before, status.observed_generation, now);
        target.message = Some(failure.message.clone());
        list.push(target);
    }
    list.extend(resize_condition(state, before, status.observed_generation, now));
    let others = |c: &&PodCondition| !RESIZE.contains(&c.type_.as_str()) && list.iter().all(|own| own.type_ != c.type_);
    for c in before.iter().filter(others).cloned().collect::<Vec<_>>() {
        list.push(c);
    }
    if !list.iter().any(|c| c.type_ == "PodScheduled") {
        list.push(condition("PodScheduled", Ok(None), before, status.observed_generation, now));
    }
    list
}

/// Conditions that are there only while a resize is not through.
pub const RESIZE: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

fn resize_condition(
    state: &PodState,
    before: &[PodCondition],
    generation: Option<i64>,
    now: Timestamp,
) -> Option<PodCondition> {
    let (type_, reason, message) = match state.resize.as_ref()? {
        Resize::Pending { reason, message } => (RESIZE[0], *reason, message.as_str()),
        Resize::Under(Some(error)) => (RESIZE[1], "Error", error.as_str()),
        Resize::Under(None) => (RESIZE[1], "", ""),
    };
    let mut condition = condition(type_, Ok(Some(reason)), before, generation, now);
    condition.message = (!message.is_empty()).then(|| message.to_owned());
    Some(condition)
}

fn condition(
    type_: &str,
    verdict: Verdict,
    before: &[PodCondition],
    generation: Option<i64>,
    now: Timestamp,
) -> PodCondition {
    let (status, reason, message) = match verdict {
        Ok(reason) => ("True", reason.unwrap_or_default(), String::new()),
        Err((reason, message)) => ("False", reason, message),
    };
    let since = before
        .iter()
        .find(|c| c.type_ == type_ && c.status == status)
        .and_then(|c| c.last_transition_time.clone())
        .unwrap_or(Time(whole_seconds(now)));
    PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: (!reason.is_empty()).then(|| reason.to_owned()),
        message: (!message.is_empty()).then_some(message),
        last_transition_time: Some(since),
        last_probe_time: None,
        observed_generation: generation,
    }
}

fn is_initialized(state: &PodState, phase: &str) -> Verdict {
    if phase == "Succeeded" {
        return Ok(Some("PodCompleted"));
    }
    if initialized(state) {
        return Ok(None);
    }
    let open: Vec<&str> = state
        .each()
        .filter(|(_, s, c)| match s.kind {
            Kind::Init => !c.succeeded(),
            Kind::Sidecar => !c.started,
            Kind::Main | Kind::Ephemeral => false,
        })
        .map(|(_, s, _)| &*s.name)
        .collect();
    Err(("ContainersNotInitialized", format!("containers with incomplete status: [{}]", open.join(" "))))
}

fn containers_ready(state: &PodState, phase: &str) -> Verdict {
    match phase {
        "Succeeded" => return Err(("PodCompleted", String::new())),
        "Failed" => return Err(("PodFailed", String::new())),
        _ => {}
    }
    let open: Vec<&str> = state
        .each()
        .filter(|(_, s, c)| matches!(s.kind, Kind::Main | Kind::Sidecar) && !is_ready(s, c))
        .map(|(_, s, _)| &*s.name)
        .collect();
    if open.is_empty() {
        return Ok(None);
    }
    Err(("ContainersNotReady", format!("containers with unready status: [{}]", open.join(" "))))
}

fn pod_ready(pod: &Pod, old: &PodStatus, containers: &Verdict) -> Verdict {
    containers.clone()?;
    let known = |type_: &str| old.conditions.iter().flatten().find(|c| c.type_ == type_);
    let open: Vec<String> = pod
        .spec
        .readiness_gates
        .iter()
        .filter_map(|gate| match known(&gate.condition_type) {
            None => Some(format!(
                "corresponding condition of pod readiness gate \"{}\" does not exist.",
                gate.condition_type
            )),
            Some(c) if c.status != "True" => Some(format!(
                "the status of pod readiness gate \"{}\" is not \"True\", but {}",
                gate.condition_type, c.status
            )),
            Some(_) => None,
        })
        .collect();
    if open.is_empty() { Ok(None) } else { Err(("ReadinessGatesNotReady", open.join(", "))) }
}
