//! The cells of a pod: ready containers, the reason that stands for its state, restarts.
//! Source: upstream's `printPod`.

use serde_json::{Value, json};

use super::{Source, text};

/// `1/2`: ready containers (restartable init containers count) of all.
pub(super) fn ready(source: &Source<'_>) -> Value {
    let summary = Summary::of(source);
    json!(format!("{}/{}", summary.ready, summary.total))
}

pub(super) fn status(source: &Source<'_>) -> Value {
    json!(Summary::of(source).reason)
}

/// `3 (5m ago)`.
pub(super) fn restarts(source: &Source<'_>) -> Value {
    let summary = Summary::of(source);
    match summary.last_restart {
        Some(time) if summary.restarts > 0 => json!(format!("{} ({} ago)", summary.restarts, source.since(time))),
        _ => json!(summary.restarts.to_string()),
    }
}

/// `1/2`: readiness gates that hold, of all; `<none>` without gates.
pub(super) fn gates(source: &Source<'_>) -> Value {
    let gates = source.list("/spec/readinessGates");
    if gates.is_empty() {
        return json!("<none>");
    }
    let holds = |gate: &&Value| {
        source.list("/status/conditions").iter().any(|c| c["type"] == gate["conditionType"] && c["status"] == "True")
    };
    json!(format!("{}/{}", gates.iter().filter(holds).count(), gates.len()))
}

pub(super) fn ip(source: &Source<'_>) -> Value {
    let first = source.str("/status/podIPs/0/ip");
    json!(text::or_none(if first.is_empty() { source.str("/status/podIP") } else { first }))
}

struct Summary<'a> {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    /// When the latest of the counted restarts' predecessors ended.
    last_restart: Option<&'a str>,
}

impl<'a> Summary<'a> {
    fn of(source: &Source<'a>) -> Self {
        let phase = source.str("/status/phase");
        let reason = match source.str("/status/reason") {
            "" => phase,
            reason => reason,
        };
        let mut summary = Self {
            reason: reason.to_owned(),
            ready: 0,
            total: source.list("/spec/containers").len(),
            restarts: 0,
            last_restart: None,
        };
        let gated = source
            .list("/status/conditions")
            .iter()
            .any(|c| c["type"] == "PodScheduled" && c["status"] == "False" && c["reason"] == "SchedulingGated");
        if gated {
            summary.reason = "SchedulingGated".into();
        }
        if !summary.init_containers(source) || initialized(source) {
            summary.containers(source);
        }
        if !source.str("/metadata/deletionTimestamp").is_empty() {
            if source.str("/status/reason") == "NodeLost" {
                summary.reason = "Unknown".into();
            } else if !matches!(phase, "Succeeded" | "Failed") {
                summary.reason = "Terminating".into();
            }
        }
        summary
    }

    /// True while an init container keeps the pod from running.
    fn init_containers(&mut self, source: &Source<'a>) -> bool {
        let specs = source.list("/spec/initContainers");
        let sidecar = |name: &Value| specs.iter().any(|s| s["name"] == *name && s["restartPolicy"] == "Always");
        self.total += specs.iter().filter(|s| s["restartPolicy"] == "Always").count();
        let mut sidecar_restarts = (0, None);
        for (index, status) in source.list("/status/initContainerStatuses").iter().enumerate() {
            let restartable = sidecar(&status["name"]);
            let count = status["restartCount"].as_i64().unwrap_or_default();
            self.restarts += count;
            self.note_restart(status);
            if restartable {
                sidecar_restarts = (sidecar_restarts.0 + count, finished(status).or(sidecar_restarts.1));
            }
            let (terminated, waiting) = (&status["state"]["terminated"], &status["state"]["waiting"]);
            if terminated.is_object() && terminated["exitCode"] == 0 {
                continue;
            }
            if restartable && status["started"] == true {
                self.ready += usize::from(status["ready"] == true);
                continue;
            }
            let waiting_reason = waiting["reason"].as_str().unwrap_or_default();
            self.reason = if terminated.is_object() {
                format!("Init:{}", ended(terminated))
            } else if !waiting_reason.is_empty() && waiting_reason != "PodInitializing" {
                format!("Init:{waiting_reason}")
            } else {
                format!("Init:{index}/{}", specs.len())
            };
            return true;
        }
        // Past initialization only sidecars' restarts go on counting.
        (self.restarts, self.last_restart) = sidecar_restarts;
        false
    }

    fn containers(&mut self, source: &Source<'a>) {
        if initialized(source) {
            self.restarts = 0;
            self.last_restart = None;
            for status in source.list("/status/initContainerStatuses") {
                let specs = source.list("/spec/initContainers");
                if specs.iter().any(|s| s["name"] == status["name"] && s["restartPolicy"] == "Always") {
                    self.restarts += status["restartCount"].as_i64().unwrap_or_default();
                    self.note_restart(status);
                }
            }
        }
        let mut running = false;
        for status in source.list("/status/containerStatuses").iter().rev() {
            self.restarts += status["restartCount"].as_i64().unwrap_or_default();
            self.note_restart(status);
            let state = &status["state"];
            let waiting = state["waiting"]["reason"].as_str().unwrap_or_default();
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if state["terminated"].is_object() {
                self.reason = ended(&state["terminated"]);
            } else if status["ready"] == true && state["running"].is_object() {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && running {
            let ready = source.list("/status/conditions").iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            self.reason = if ready { "Running".into() } else { "NotReady".into() };
        }
    }

    fn note_restart(&mut self, status: &'a Value) {
        // RFC 3339 in UTC sorts as text.
        self.last_restart = self.last_restart.max(finished(status));
    }
}

fn finished(status: &Value) -> Option<&str> {
    status["lastState"]["terminated"]["finishedAt"].as_str()
}

fn initialized(source: &Source<'_>) -> bool {
    source.list("/status/conditions").iter().any(|c| c["type"] == "Initialized" && c["status"] == "True")
}

fn ended(terminated: &Value) -> String {
    let reason = terminated["reason"].as_str().unwrap_or_default();
    let signal = terminated["signal"].as_i64().unwrap_or_default();
    match (reason, signal) {
        ("", 0) => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or_default()),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pod: Value, expected: [&str; 3]) {
        let source = Source { object: &pod, now: "2026-01-01T01:00:00Z".parse().unwrap() };
        let cells = [ready(&source), status(&source), restarts(&source)];
        assert_eq!(cells.map(|c| c.as_str().unwrap().to_owned()), expected, "{pod}");
    }

    #[test]
    fn pods_read_as_upstreams() {
        let two = json!([{"name": "a"}, {"name": "b"}]);
        check(json!({"spec": {"containers": two}, "status": {"phase": "Pending"}}), ["0/2", "Pending", "0"]);
        let running = json!({"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}});
        let crashed = json!({"name": "b", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "2026-01-01T00:55:00Z"}}});
        check(
            json!({"spec": {"containers": two}, "status": {"phase": "Running", "containerStatuses": [running, crashed]}}),
            ["1/2", "CrashLoopBackOff", "3 (5m ago)"],
        );
        let done = json!({"name": "b", "state": {"terminated": {"reason": "Completed", "exitCode": 0}}});
        check(
            json!({"spec": {"containers": two}, "status": {"phase": "Running", "containerStatuses": [done, running],
                "conditions": [{"type": "Ready", "status": "False"}]}}),
            ["1/2", "NotReady", "0"],
        );
        check(
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"containers": two},
                "status": {"phase": "Running", "containerStatuses": [running]}}),
            ["1/2", "Terminating", "0"],
        );
    }

    #[test]
    fn init_containers_show_how_far_they_are() {
        let spec = json!({"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}]});
        let status = |init: Value| json!({"spec": spec, "status": {"phase": "Pending", "initContainerStatuses": init}});
        let done = json!({"name": "i", "state": {"terminated": {"exitCode": 0}}});
        check(status(json!([{"name": "i", "state": {"running": {}}}])), ["0/1", "Init:0/2", "0"]);
        check(
            status(json!([done, {"name": "j", "state": {"waiting": {"reason": "PodInitializing"}}}])),
            ["0/1", "Init:1/2", "0"],
        );
        check(
            status(json!([done, {"name": "j", "state": {"waiting": {"reason": "ImagePullBackOff"}}}])),
            ["0/1", "Init:ImagePullBackOff", "0"],
        );
        check(
            status(json!([{"name": "i", "state": {"terminated": {"exitCode": 2}}}])),
            ["0/1", "Init:ExitCode:2", "0"],
        );
    }
}
