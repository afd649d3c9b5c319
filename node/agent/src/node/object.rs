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
    /// Whether pods can have addresses; not known while a node that has just started sees to it.
    pub network: Option<bool>,
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

/// The status; conditions keep the transition times of `old`, the status as the server has it, while they stay the same,
/// and resources that others added to its capacity are kept and allocatable.
pub fn status(o: &Observed, old: &Value, now: Timestamp) -> Value {
    let mut addresses: Vec<Value> =
        o.ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip.to_string()})).collect();
    addresses.push(json!({"type": "Hostname", "address": o.name}));
    let version = match &o.runtime {
        Some(Ok(v)) => format!("containerd://{}", v.trim_start_matches('v')),
        _ => "containerd://".to_owned(),
    };
    let m = &o.machine;
    let (mut capacity, mut allocatable) = (m.capacity(), m.allocatable());
    for (name, amount) in old.get("capacity").and_then(Value::as_object).into_iter().flatten() {
        if let Some(amount) = amount.as_str().filter(|_| !capacity.contains_key(name)) {
            capacity.insert(name.clone(), amount.to_owned());
            allocatable.insert(name.clone(), amount.to_owned());
        }
    }
    json!({
        "addresses": addresses,
        "capacity": capacity,
        "allocatable": allocatable,
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
    let before = |type_: &str| {
        old.get("conditions").and_then(Value::as_array).into_iter().flatten().find(|c| c["type"] == type_).cloned()
    };
    // A daemon that starts again must not seem to be down: pods' endpoints would go.
    let network = o.network.unwrap_or_else(|| before("Ready").is_some_and(|c| c["status"] == "True"));
    let ready = match (&o.runtime, network) {
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

/// The strategic merge patch that brings the server's status `old` to `new`.
pub fn patch(old: &Value, new: &Value) -> Value {
    let mut new = new.clone();
    for name in leftovers(old, &new) {
        new["allocatable"][name] = Value::Null;
    }
    // Addresses are merged by type, which may occur twice.
    if let Some(addresses) = new["addresses"].as_array_mut() {
        addresses.push(json!({"$patch": "replace"}));
    }
    json!({"status": new})
}

/// True if the server's status `old` is not what `new` says, in more than heartbeats. What others added does not count.
pub fn differs(old: &Value, new: &Value) -> bool {
    let differs = |(key, new): (&String, &Value)| {
        let old = &old[key];
        match key.as_str() {
            "conditions" => !new.as_array().into_iter().flatten().all(|c| has_condition(old, c)),
            "capacity" | "allocatable" => {
                !new.as_object().into_iter().flatten().all(|(name, q)| same_quantity(&old[name], q))
            }
            _ => !holds(old, new),
        }
    };
    new.as_object().into_iter().flatten().any(differs) || !leftovers(old, new).is_empty()
}

/// Extended resources that are allocatable still though the capacity no longer has them.
fn leftovers(old: &Value, new: &Value) -> Vec<String> {
    let names = old["allocatable"].as_object().into_iter().flatten().map(|(name, _)| name);
    names.filter(|name| name.contains('/') && new["allocatable"].get(name).is_none()).cloned().collect()
}

fn has_condition(list: &Value, condition: &Value) -> bool {
    let same = |c: &Value| {
        ["type", "status", "reason", "message", "lastTransitionTime"].iter().all(|key| c[key] == condition[key])
    };
    list.as_array().into_iter().flatten().any(same)
}

fn same_quantity(a: &Value, b: &Value) -> bool {
    let milli = |v: &Value| v.as_str().and_then(crate::quantity::milli);
    a == b || milli(a).is_some_and(|a| milli(b) == Some(a))
}

/// True if `have` says all that `want` does; an absent field is an empty one.
fn holds(have: &Value, want: &Value) -> bool {
    match (have, want) {
        (_, Value::Object(want)) => want.iter().all(|(key, want)| holds(&have[key], want)),
        (Value::Array(have), Value::Array(want)) => {
            have.len() == want.len() && have.iter().zip(want).all(|(have, want)| holds(have, want))
        }
        (Value::Null, Value::Array(want)) => want.is_empty(),
        (Value::Null, Value::String(want)) => want.is_empty(),
        _ => have == want,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed() -> Observed {
        Observed { name: "n1".into(), runtime: Some(Ok("1.6.20".into())), network: Some(true), ..Observed::default() }
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
        for network in [None, Some(false)] {
            let bare = Observed { network, ..observed() };
            assert!(check(&bare).1.contains("NetworkReady=false"), "{network:?}");
        }
    }

    #[test]
    fn a_node_that_starts_again_stays_as_it_was() {
        let now = Timestamp::UNIX_EPOCH;
        let running = status(&observed(), &Value::Null, now);
        let again = |network, old: &Value| status(&Observed { network, ..observed() }, old, now);
        assert!(!differs(&running, &again(None, &running)));
        assert_eq!(ready(&again(Some(false), &running)).0, "False");
        let mut lost = running.clone();
        lost["conditions"][3]["status"] = "Unknown".into();
        assert_eq!(ready(&again(None, &lost)).0, "False");
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

    #[test]
    fn only_what_is_ours_and_not_so_is_written() {
        let now = Timestamp::UNIX_EPOCH;
        let o = Observed { ips: vec!["192.0.2.1".parse().unwrap_or_else(|_| unreachable!())], ..observed() };
        let ours = status(&o, &Value::Null, now);
        type Change = fn(&mut Value);
        let cases: [(&str, Change, bool); 11] = [
            ("nothing", |_| {}, false),
            ("absent empty text", |s| s["nodeInfo"]["kubeProxyVersion"] = Value::Null, false),
            ("absent empty list", |s| s["images"] = Value::Null, false),
            ("a field of others", |s| s["nodeInfo"]["swap"] = json!({"capacity": 1}), false),
            ("a condition of others", |s| s["conditions"][7] = json!({"type": "NetworkUnavailable"}), false),
            ("a quantity in other words", |s| s["capacity"]["pods"] = "110000m".into(), false),
            ("a silent node", |s| s["conditions"][3]["status"] = "Unknown".into(), true),
            ("a reason of others", |s| s["conditions"][0]["reason"] = "NodeStatusUnknown".into(), true),
            ("another address", |s| s["addresses"][0]["address"] = "192.0.2.2".into(), true),
            ("an image", |s| s["images"] = json!([{"names": ["a"], "sizeBytes": 1}]), true),
            ("no memory", |s| s["allocatable"]["memory"] = "7".into(), true),
        ];
        for (name, change, differ) in cases {
            let mut server = ours.clone();
            if name == "a condition of others" {
                server["conditions"].as_array_mut().into_iter().for_each(|l| l.resize(8, Value::Null));
            }
            change(&mut server);
            assert_eq!(differs(&server, &status(&o, &server, now)), differ, "{name}");
        }
        assert!(differs(&Value::Null, &ours), "a new Node");
        let later = now + std::time::Duration::from_secs(60);
        let mut silent = ours.clone();
        silent["conditions"][3]["status"] = "Unknown".into();
        assert_eq!(status(&o, &silent, later)["conditions"][3]["lastTransitionTime"], "1970-01-01T00:01:00Z");
    }

    #[test]
    fn resources_of_others_are_kept_and_allocatable() {
        let now = Timestamp::UNIX_EPOCH;
        let mut server = status(&observed(), &Value::Null, now);
        server["capacity"]["example.com/foo"] = "3".into();
        let ours = status(&observed(), &server, now);
        assert!(differs(&server, &ours));
        let patch = patch(&server, &ours);
        for map in ["capacity", "allocatable"] {
            assert_eq!(patch["status"][map]["example.com/foo"], "3", "{map}");
        }
        assert_eq!(patch["status"]["addresses"][1], json!({"$patch": "replace"}));
        assert!(!differs(&ours, &status(&observed(), &ours, now)));
        // Taken away again from the capacity: no longer allocatable either.
        let mut server = ours.clone();
        server["capacity"].as_object_mut().into_iter().for_each(|map| drop(map.remove("example.com/foo")));
        let ours = status(&observed(), &server, now);
        assert!(differs(&server, &ours));
        let patch = super::patch(&server, &ours);
        assert_eq!(patch["status"]["allocatable"].get("example.com/foo"), Some(&Value::Null));
    }
}
