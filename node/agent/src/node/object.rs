//! The Node object as this machine's daemon writes it. Pure.

use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sluice_runtime::ImageInfo;

use super::machine::Machine;
use crate::eviction::signals::Pressure;
use crate::limits;

/// What the Node's status is made from.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub name: String,
    pub ips: Vec<IpAddr>,
    pub api_port: u16,
    pub machine: Machine,
    /// The runtime's version, or why it does not answer.
    pub runtime: Option<Result<String, String>>,
    /// True once pods can have addresses.
    pub network: bool,
    pub pressure: Pressure,
    pub images: Vec<(Vec<String>, u64)>,
}

/// Labels every node gets.
pub fn labels(name: &str, architecture: &str) -> Map<String, Value> {
    let mut map = Map::new();
    for (key, value) in [
        ("beta.kubernetes.io/arch", architecture),
        ("beta.kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture),
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
    ] {
        map.insert(key.to_owned(), Value::String(value.to_owned()));
    }
    map
}

/// The object to register.
pub fn node(o: &Observed, now: Timestamp) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": o.name, "labels": labels(&o.name, o.machine.architecture)},
        "spec": {},
        "status": status(o, &Value::Null, now),
    })
}

/// The status; conditions keep the transition times of `old` while they stay the same.
pub fn status(o: &Observed, old: &Value, now: Timestamp) -> Value {
    let mut addresses: Vec<Value> =
        o.ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip.to_string()})).collect();
    addresses.push(json!({"type": "Hostname", "address": o.name}));
    let version = match &o.runtime {
        Some(Ok(v)) => format!("containerd://{}", v.trim_start_matches('v')),
        _ => "containerd://".to_owned(),
    };
    let m = &o.machine;
    json!({
        "addresses": addresses,
        "capacity": m.capacity(),
        "allocatable": m.allocatable(),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": o.api_port}},
        "nodeInfo": {
            "architecture": m.architecture,
            "bootID": m.boot_id,
            "containerRuntimeVersion": version,
            "kernelVersion": m.kernel,
            "kubeProxyVersion": "",
            "kubeletVersion": VERSION,
            "machineID": m.machine_id,
            "operatingSystem": "linux",
            "osImage": m.os_image,
            "systemUUID": m.system_uuid,
        },
        "images": o.images.iter().take(limits::NODE_IMAGES)
            .map(|(names, size)| json!({"names": names, "sizeBytes": size})).collect::<Vec<_>>(),
        "conditions": conditions(o, old, now),
    })
}

/// What `kubectl get nodes` shows as version.
pub const VERSION: &str = "v1.36.0+sluice";

/// The largest images first, as upstream lists them.
pub fn images(list: Vec<ImageInfo>) -> Vec<(Vec<String>, u64)> {
    let mut images: Vec<_> = list
        .into_iter()
        .map(|i| {
            let mut names = i.names;
            if !i.repo_digest.is_empty() && !names.contains(&i.repo_digest) {
                names.insert(0, i.repo_digest);
            }
            names.truncate(5);
            (names, i.size)
        })
        .collect();
    images.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    images.truncate(limits::NODE_IMAGES);
    images
}

fn conditions(o: &Observed, old: &Value, now: Timestamp) -> Vec<Value> {
    let pressure = |on: bool, yes: (&'static str, &'static str), no: (&'static str, &'static str)| {
        let (reason, message) = if on { yes } else { no };
        (on, reason, message.to_owned())
    };
    let ready = match (&o.runtime, o.network) {
        (Some(Ok(_)), true) => (true, "KubeletReady", "kubelet is posting ready status".to_owned()),
        (Some(Err(e)), _) => (false, "KubeletNotReady", format!("[container runtime is down: {e}]")),
        (None, _) => {
            (false, "KubeletNotReady", "[container runtime status check may not have completed yet]".to_owned())
        }
        (Some(Ok(_)), false) => (
            false,
            "KubeletNotReady",
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
             message:Network plugin returns error: the node has no podCIDR yet"
                .to_owned(),
        ),
    };
    let list = [
        (
            "MemoryPressure",
            pressure(
                o.pressure.memory,
                ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
                ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            ),
        ),
        (
            "DiskPressure",
            pressure(
                o.pressure.disk,
                ("KubeletHasDiskPressure", "kubelet has disk pressure"),
                ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            ),
        ),
        (
            "PIDPressure",
            pressure(
                o.pressure.pids,
                ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
                ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            ),
        ),
        ("Ready", ready),
    ];
    let now = super::time(now);
    let before = |type_: &str| {
        old.get("conditions").and_then(Value::as_array).into_iter().flatten().find(|c| c["type"] == type_).cloned()
    };
    list.into_iter()
        .map(|(type_, (on, reason, message))| {
            let status = if on { "True" } else { "False" };
            let since = before(type_).filter(|c| c["status"] == status).map(|c| c["lastTransitionTime"].clone());
            json!({
                "type": type_, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": now,
                "lastTransitionTime": since.unwrap_or_else(|| now.clone().into()),
            })
        })
        .collect()
}

/// True if two statuses differ in more than heartbeats.
pub fn differs(a: &Value, b: &Value) -> bool {
    let strip = |v: &Value| {
        let mut v = v.clone();
        if let Some(list) = v.get_mut("conditions").and_then(Value::as_array_mut) {
            for c in list {
                if let Some(c) = c.as_object_mut() {
                    c.remove("lastHeartbeatTime");
                }
            }
        }
        v
    };
    strip(a) != strip(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed() -> Observed {
        Observed { name: "n1".into(), runtime: Some(Ok("1.6.20".into())), network: true, ..Observed::default() }
    }

    fn ready(status: &Value) -> (String, String) {
        let list = status["conditions"].as_array().cloned().unwrap_or_default();
        let c = list.iter().find(|c| c["type"] == "Ready").cloned().unwrap_or_default();
        (c["status"].as_str().unwrap_or_default().into(), c["message"].as_str().unwrap_or_default().into())
    }

    #[test]
    fn readiness_says_why() {
        let now = Timestamp::UNIX_EPOCH;
        let check = |o: &Observed| ready(&status(o, &Value::Null, now));
        assert_eq!(check(&observed()).0, "True");
        let down = Observed { runtime: Some(Err("no socket".into())), ..observed() };
        assert_eq!(check(&down), ("False".into(), "[container runtime is down: no socket]".into()));
        let bare = Observed { network: false, ..observed() };
        assert!(check(&bare).1.contains("NetworkReady=false"));
    }

    #[test]
    fn pressure_is_shown_for_a_while() {
        let mut relief = super::super::Relief::default();
        let start = std::time::Instant::now();
        let felt = Pressure { disk: true, ..Pressure::default() };
        assert_eq!(relief.shown(Pressure::default(), start), Pressure::default());
        assert_eq!(relief.shown(felt, start), felt);
        assert_eq!(relief.shown(Pressure::default(), start + limits::PRESSURE_SHOWN / 2), felt);
        assert_eq!(relief.shown(Pressure::default(), start + limits::PRESSURE_SHOWN), Pressure::default());
    }

    #[test]
    fn heartbeats_are_no_difference() {
        let a = status(&observed(), &Value::Null, Timestamp::UNIX_EPOCH);
        let later = Timestamp::UNIX_EPOCH + std::time::Duration::from_secs(60);
        let b = status(&observed(), &a, later);
        assert!(!differs(&a, &b));
        let c =
            status(&Observed { pressure: Pressure { memory: true, ..Pressure::default() }, ..observed() }, &b, later);
        assert!(differs(&b, &c));
        assert_eq!(c["conditions"][0]["lastTransitionTime"], "1970-01-01T00:01:00Z");
        assert_eq!(c["conditions"][3]["lastTransitionTime"], "1970-01-01T00:00:00Z");
    }
}
