//! What this node does not take although the scheduler chose it, in upstream's words. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::eviction::rank::CRITICAL;
use crate::eviction::signals::Pressure;
use crate::limits;
use crate::model::{Pod, Port};
use crate::pod::state::Failure;
use crate::pod::status::qos_class;
use crate::quantity;

/// Kernel parameters that concern nobody but the pod (upstream's list).
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Requests of a pod in thousandths of a processor and bytes: the larger of what runs together and what the init
/// containers need one after the other, plus overhead.
pub fn requests(pod: &Pod) -> (i128, i128) {
    let amount = |map: &BTreeMap<String, String>, name: &str| -> i128 {
        let read = if name == "cpu" { quantity::milli } else { quantity::value };
        map.get(name).and_then(|q| read(q)).unwrap_or(0)
    };
    let total = |name: &str| {
        let main: i128 = pod.spec.containers.iter().map(|c| amount(&c.resources.requests, name)).sum();
        let (mut sidecars, mut peak) = (0, 0);
        for c in &pod.spec.init_containers {
            let own = amount(&c.resources.requests, name);
            if c.restart_policy.as_deref() == Some("Always") {
                sidecars += own;
                peak = peak.max(sidecars);
            } else {
                peak = peak.max(sidecars + own);
            }
        }
        (main + sidecars).max(peak) + amount(&pod.spec.overhead, name)
    };
    (total("cpu"), total("memory"))
}

/// Why this node does not take the pod; `others` run here already.
pub fn refusal(
    pod: &Pod,
    others: &[Arc<Pod>],
    allocatable: &BTreeMap<String, String>,
    labels: Option<&BTreeMap<String, String>>,
    pressure: Pressure,
) -> Option<Failure> {
    let failure = |reason: &str, message: String| Some(Failure { reason: reason.to_owned(), message });
    if is_kept_out(pod, pressure) {
        let message = format!("Pod was rejected: The node had condition: [{}]. ", pressure.names().join(" "));
        return failure("Evicted", message);
    }
    if let Some(labels) = labels
        && pod.spec.node_selector.iter().any(|(k, v)| labels.get(k) != Some(v))
    {
        let message =
            "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        return failure("NodeAffinity", message.to_owned());
    }
    if let Some(message) = forbidden_sysctl(pod) {
        return failure("SysctlForbidden", format!("Pod was rejected: {message}"));
    }
    if others.iter().any(|other| ports_collide(pod, other)) {
        let message = "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested \
                       pod ports";
        return failure("NodePorts", message.to_owned());
    }
    let short = |what: &str, requested: i128, used: i128, capacity: i128| {
        format!(
            "Pod was rejected: Node didn't have enough resource: {what}, requested: {requested}, used: {used}, \
             capacity: {capacity}"
        )
    };
    let pods = allocatable.get("pods").and_then(|q| quantity::value(q)).unwrap_or(limits::MAX_PODS as i128);
    let running = others.len() as i128;
    if running + 1 > pods {
        return failure("OutOfpods", short("pods", 1, running, pods));
    }
    let (cpu, memory) = requests(pod);
    let used = others.iter().map(|p| requests(p)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    let capacity = |name: &str, read: fn(&str) -> Option<i128>| allocatable.get(name).and_then(|q| read(q));
    if let Some(capacity) = capacity("cpu", quantity::milli)
        && cpu > 0
        && used.0 + cpu > capacity
    {
        return failure("OutOfcpu", short("cpu", cpu, used.0, capacity));
    }
    if let Some(capacity) = capacity("memory", quantity::value)
        && memory > 0
        && used.1 + memory > capacity
    {
        return failure("OutOfmemory", short("memory", memory, used.1, capacity));
    }
    None
}

/// Under memory pressure alone, pods that asked for memory still come in (upstream: all but BestEffort).
fn is_kept_out(pod: &Pod, pressure: Pressure) -> bool {
    let critical = pod.spec.priority.is_some_and(|p| p >= CRITICAL);
    let only_memory = pressure.memory && !pressure.disk && !pressure.pids;
    pressure.any() && !critical && !(only_memory && qos_class(pod) != "BestEffort")
}

/// Upstream's sentence about the first kernel parameter that the pod may not set.
fn forbidden_sysctl(pod: &Pod) -> Option<String> {
    let spec = &pod.spec;
    spec.security_context.sysctls.iter().find_map(|s| {
        let name = s.name.replace('/', ".");
        let because = match () {
            () if spec.host_network && name.starts_with("net.") => "not allowed with host net enabled",
            () if spec.host_ipc && name.starts_with("kernel.") => "not allowed with host ipc enabled",
            () if !SAFE_SYSCTLS.contains(&name.as_str()) => "not allowlisted",
            () => return None,
        };
        Some(format!("forbidden sysctl: {name:?} {because}"))
    })
}

/// Whether two pods want the same port of the node.
fn ports_collide(a: &Pod, b: &Pod) -> bool {
    let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
    let same = |a: &Port, b: &Port| {
        let ip = any(&a.host_ip) || any(&b.host_ip) || a.host_ip == b.host_ip;
        let protocol = |p: &Port| if p.protocol.is_empty() { "TCP".to_owned() } else { p.protocol.clone() };
        a.host_port == b.host_port && ip && protocol(a) == protocol(b)
    };
    let wanted = |pod: &Pod| -> Vec<Port> {
        pod.own_containers().flat_map(|c| &c.ports).filter(|p| p.host_port > 0).cloned().collect()
    };
    let theirs = wanted(b);
    wanted(a).iter().any(|a| theirs.iter().any(|b| same(a, b)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    #[test]
    fn sums() {
        let r = |cpu: &str| json!({"requests": {"cpu": cpu, "memory": "1Mi"}});
        let p = pod(json!({
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": r("100m")},
                {"name": "i", "resources": r("1")},
            ],
            "containers": [{"name": "a", "resources": r("200m")}, {"name": "b", "resources": r("300m")}],
            "overhead": {"cpu": "10m"},
        }));
        assert_eq!(requests(&p), (1110, 3 << 20));
    }

    #[test]
    fn refusals() {
        let allocatable: BTreeMap<String, String> =
            [("cpu", "1"), ("memory", "1Gi"), ("pods", "2")].map(|(k, v)| (k.into(), v.into())).into();
        let labels = BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]);
        let ask = |cpu: &str, memory: &str| {
            pod(json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}))
        };
        let other = Arc::new(ask("600m", "600Mi"));
        for (p, others, reason) in [
            (ask("400m", "100Mi"), vec![other.clone()], None),
            (ask("500m", "100Mi"), vec![other.clone()], Some("OutOfcpu")),
            (ask("100m", "500Mi"), vec![other.clone()], Some("OutOfmemory")),
            (ask("0", "0"), vec![other.clone(), other.clone()], Some("OutOfpods")),
            (pod(json!({"nodeSelector": {"disk": "ssd"}})), vec![], None),
            (pod(json!({"nodeSelector": {"disk": "hdd"}})), vec![], Some("NodeAffinity")),
        ] {
            let actual = refusal(&p, &others, &allocatable, Some(&labels), Pressure::default());
            assert_eq!(actual.as_ref().map(|f| f.reason.as_str()), reason, "{actual:?}");
        }
        let sysctl = |name: &str, host: bool| {
            let context = json!({"sysctls": [{"name": name, "value": "1"}]});
            pod(json!({"hostNetwork": host, "securityContext": context, "containers": [{"name": "a"}]}))
        };
        let port = |ip: &str, protocol: &str| {
            let port = json!({"hostPort": 80, "hostIP": ip, "protocol": protocol, "containerPort": 1});
            pod(json!({"containers": [{"name": "a", "ports": [port]}]}))
        };
        let taken = Arc::new(port("192.0.2.1", "TCP"));
        for (p, reason) in [
            (sysctl("kernel.shm_rmid_forced", false), None),
            (sysctl("net.ipv4.tcp_syncookies", true), Some("SysctlForbidden")),
            (sysctl("kernel.msgmax", false), Some("SysctlForbidden")),
            (port("192.0.2.1", ""), Some("NodePorts")),
            (port("0.0.0.0", "TCP"), Some("NodePorts")),
            (port("192.0.2.2", "TCP"), None),
            (port("192.0.2.1", "UDP"), None),
        ] {
            let actual = refusal(&p, std::slice::from_ref(&taken), &allocatable, None, Pressure::default());
            assert_eq!(actual.as_ref().map(|f| f.reason.as_str()), reason, "{actual:?}");
        }
        let (memory, disk) =
            (Pressure { memory: true, ..Pressure::default() }, Pressure { disk: true, ..Pressure::default() });
        for (p, pressure, refused) in [
            (pod(json!({"containers": [{"name": "a"}]})), memory, true),
            (ask("1m", "1Mi"), memory, false),
            (ask("1m", "1Mi"), disk, true),
            (pod(json!({"priority": 2_000_000_000, "containers": [{"name": "a"}]})), disk, false),
        ] {
            assert_eq!(refusal(&p, &[], &allocatable, None, pressure).is_some(), refused, "{pressure:?}");
        }
        let f = refusal(&ask("500m", "0"), &[other], &allocatable, None, Pressure::default()).unwrap();
        assert_eq!(
            f.message,
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 500, used: 600, capacity: 1000"
        );
    }
}
