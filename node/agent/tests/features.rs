//! What pods may ask of a real node beyond running: debugging, resizing, image volumes, limits of storage, probes by gRPC.
#![allow(clippy::unwrap_used)]

mod common;

use common::{IMAGE, NODE, World, health, in_namespace};
use serde_json::{Value, json};

const IDLE: [&str; 3] = ["sh", "-c", "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done"];

/// Runs a script in a container; panics if it fails.
fn run(w: &World, pod: &str, container: &str, script: &str) -> String {
    let (code, out, err) = w.kubectl(&["exec", pod, "-c", container, "--", "sh", "-c", script]);
    assert_eq!(code, 0, "{script}: {err}");
    out.trim().to_owned()
}

fn condition<'a>(status: &'a Value, type_: &str) -> &'a Value {
    let mut all = status["conditions"].as_array().into_iter().flatten();
    all.find(|c| c["type"] == type_).unwrap_or(&Value::Null)
}

#[test]
fn a_running_pod_is_debugged_and_resized() {
    in_namespace(|| async {
        let mut w = World::start("debug").await;
        let of = |cpu: &str, memory: &str| json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}});
        w.pod(
            "app",
            json!({"terminationGracePeriodSeconds": 1, "containers": [
                {"name": "calm", "image": IMAGE, "command": IDLE, "resources": of("100m", "32Mi")},
                {"name": "fresh", "image": IMAGE, "command": IDLE, "resources": of("100m", "32Mi"),
                    "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]},
            ]}),
        )
        .await;
        w.ready("app").await;

        let args =
            ["debug", "app", "--image", IMAGE, "--target", "calm", "-c", "look", "--attach=false", "--profile=general"];
        let (code, out, err) = w.kubectl(&[&args[..], &["--", "sleep", "1000"]].concat());
        assert_eq!(code, 0, "{out}{err}");
        let status = w
            .until("app", "being looked at", |s| s["ephemeralContainerStatuses"][0]["state"]["running"].is_object())
            .await;
        assert_eq!(status["phase"], "Running");
        assert_eq!(condition(&status, "Ready")["status"], "True");
        let seen = run(&w, "app", "look", "cat /proc/[0-9]*/cmdline | busybox tr '\\0' ' '");
        assert!(seen.contains("trap 'exit 0'") && seen.contains("sleep 1000"), "the target's processes: {seen}");

        let before = w.status("app").await;
        let patch = json!({"spec": {"containers": [
            {"name": "calm", "resources": of("200m", "48Mi")}, {"name": "fresh", "resources": of("50m", "64Mi")},
        ]}});
        let (code, _, err) = w.kubectl(&["patch", "pod", "app", "--subresource", "resize", "-p", &patch.to_string()]);
        assert_eq!(code, 0, "{err}");
        let status = w
            .until("app", "resized", |s| {
                let both = s["containerStatuses"].as_array().into_iter().flatten();
                let memory: Vec<&Value> = both.map(|c| &c["resources"]["limits"]["memory"]).collect();
                memory == ["48Mi", "64Mi"] && condition(s, "PodResizeInProgress").is_null()
            })
            .await;
        let [calm, fresh] = [&status["containerStatuses"][0], &status["containerStatuses"][1]];
        assert_eq!((calm["restartCount"].as_i64(), fresh["restartCount"].as_i64()), (Some(0), Some(1)));
        assert_eq!(calm["containerID"], before["containerStatuses"][0]["containerID"]);
        assert_eq!(calm["allocatedResources"], json!({"cpu": "200m", "memory": "48Mi"}));
        let limits = "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us \
                      /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; true";
        for (container, quota, memory) in [("calm", "20000", 48 << 20), ("fresh", "5000", 64 << 20)] {
            let text = run(&w, "app", container, limits);
            assert!(text.contains(quota) && text.contains(&memory.to_string()), "{container}: {text}");
        }

        // What no node of this size has is said, and changes nothing.
        let patch = json!({"spec": {"containers": [{"name": "calm", "resources": of("4000", "48Mi")}]}});
        w.kubectl(&["patch", "pod", "app", "--subresource", "resize", "-p", &patch.to_string()]);
        let status = w.until("app", "refused", |s| condition(s, "PodResizePending")["reason"] == "Infeasible").await;
        let message = condition(&status, "PodResizePending")["message"].as_str().unwrap().to_owned();
        assert!(
            message.starts_with("Node didn't have enough capacity: cpu, requested: 4000050, capacity: "),
            "{message}"
        );
        assert_eq!(status["containerStatuses"][0]["resources"]["limits"]["cpu"], "200m");
        // A daemon that comes back still knows.
        w.stop_agent().await;
        w.start_agent().await;
        let patch = json!({"spec": {"containers": [{"name": "calm", "resources": of("150m", "48Mi")}]}});
        let (code, _, err) = w.kubectl(&["patch", "pod", "app", "--subresource", "resize", "-p", &patch.to_string()]);
        assert_eq!(code, 0, "{err}");
        w.until("app", "resized again", |s| {
            s["containerStatuses"][0]["resources"]["limits"]["cpu"] == "150m"
                && condition(s, "PodResizePending").is_null()
        })
        .await;
        let status = w.status("app").await;
        assert_eq!(status["containerStatuses"][0]["restartCount"], 0);

        w.kubectl(&["delete", "pod", "app", "--wait=false"]);
        w.until("app", "gone", Value::is_null).await;
        w.end().await;
    });
}

#[test]
fn storage_of_pods() {
    in_namespace(|| async {
        let w = World::start("store").await;
        w.pod(
            "volumes",
            json!({
                "securityContext": {"fsGroup": 1001}, "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "a", "image": IMAGE, "command": IDLE,
                    "securityContext": {"runAsUser": 1000},
                    "env": [{"name": "WHERE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['where']"}}}],
                    "volumeMounts": [
                        {"name": "image", "mountPath": "/image"}, {"name": "image", "mountPath": "/applets", "subPath": "bin"},
                        {"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"},
                        {"name": "disk", "mountPath": "/part", "subPathExpr": "$(WHERE)/parts"},
                        {"name": "maybe", "mountPath": "/maybe"}, {"name": "disk", "mountPath": "/ro", "readOnly": true},
                    ]}],
                "volumes": [
                    {"name": "image", "image": {"reference": IMAGE, "pullPolicy": "IfNotPresent"}},
                    {"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                    {"name": "maybe", "projected": {"defaultMode": 288, "sources": [
                        {"configMap": {"name": "later", "optional": true}},
                        {"secret": {"name": "never", "optional": true}},
                        {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}, "mode": 256}]}},
                        {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
                    ]}},
                ],
            }),
        )
        .await;
        // An annotation that is not there makes no path; once it is, the container starts.
        w.until("volumes", "waiting for its annotation", |s| {
            s["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError"
        })
        .await;
        w.kubectl(&["annotate", "pod", "volumes", "where=here"]);
        w.ready("volumes").await;
        let run = |script: &str| run(&w, "volumes", "a", script);
        assert_eq!(run("/image/bin/busybox true && echo runs || echo sealed"), "sealed");
        assert_eq!(run("busybox cmp /image/bin/busybox /bin/busybox && echo same"), "same");
        assert!(run("busybox touch /image/x 2>&1 || true").contains("Read-only"));
        assert!(run("ls /applets").contains("busybox"));
        assert_eq!(run("busybox stat -c '%a %g' /disk /memory"), "2777 1001\n2777 1001");
        assert_eq!(run("echo x > /part/f; cat /disk/here/parts/f"), "x");
        assert!(run("busybox touch /ro/f 2>&1 || true").contains("Read-only"));
        assert!(run("busybox dd if=/dev/zero of=/memory/f bs=1k count=2000 2>&1 || true").contains("No space left"));
        assert_eq!(run("busybox stat -L -c '%a %u:%g' /maybe/name /maybe/token"), "440 0:1001\n640 1000:1001");
        let map = json!({"metadata": {"name": "later"}, "data": {"k": "v"}, "binaryData": {"b": "AQI="}});
        w.post("/api/v1/namespaces/default/configmaps", &map).await.unwrap();
        let eventually = async |script: &str, expected: &str| {
            for _ in 0..100 {
                if run(script) == expected {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            panic!("{script} never said {expected}: {}", run(script));
        };
        eventually("cat /maybe/k 2>/dev/null; true", "v").await;
        assert_eq!(run("busybox wc -c < /maybe/b"), "2");
        w.kubectl(&["delete", "configmap", "later"]);
        eventually("ls /maybe", "name\ntoken").await;

        // A pod that takes more of the disk than it said it would goes.
        w.pod(
            "hungry",
            json!({"terminationGracePeriodSeconds": 30, "containers": [{"name": "a", "image": IMAGE,
                "command": ["sh", "-c", "busybox dd if=/dev/zero of=/disk/f bs=1M count=5; sleep 1000"],
                "volumeMounts": [{"name": "disk", "mountPath": "/disk"}]}],
                "volumes": [{"name": "disk", "emptyDir": {"sizeLimit": "1Mi"}}]}),
        )
        .await;
        let status = w.until("hungry", "evicted", |s| s["phase"] == "Failed").await;
        assert_eq!(status["reason"], "Evicted");
        assert_eq!(status["message"], "Usage of EmptyDir volume \"disk\" exceeds the limit \"1Mi\". ");
        assert_eq!(condition(&status, "DisruptionTarget")["reason"], "TerminationByKubelet");

        for pod in ["volumes", "hungry"] {
            w.kubectl(&["delete", "pod", pod, "--wait=false"]);
            w.until(pod, "gone", Value::is_null).await;
        }
        let lib = w.dir.path().join("lib");
        assert_eq!(common::mounts_below(&lib), Vec::<std::path::PathBuf>::new());
        w.end().await;
    });
}

#[test]
fn probes_by_grpc() {
    in_namespace(|| async {
        let w = World::start("grpc").await;
        let server = health::Server::start("192.0.2.10:0").await;
        let probe = |service: &str| json!({"grpc": {"port": server.port(), "service": service}, "periodSeconds": 1});
        // On the host's network the pod's address is the node's, where the server is.
        w.pod(
            "asked",
            json!({"hostNetwork": true, "terminationGracePeriodSeconds": 1, "containers": [{
                "name": "a", "image": IMAGE, "command": IDLE, "readinessProbe": probe("ready"), "livenessProbe": probe("")}]}),
        )
        .await;
        w.until("asked", "running", |s| s["containerStatuses"][0]["started"] == true).await;
        server.asked("ready").await;
        assert_eq!(condition(&w.status("asked").await, "Ready")["status"], "False");
        server.set("ready", 2);
        server.asked("ready").await;
        server.set("ready", 1);
        w.ready("asked").await;
        server.set("", 2);
        let status = w.until("asked", "restarted", |s| s["containerStatuses"][0]["restartCount"] == 1).await;
        server.set("", 1);
        assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 0);
        let (_, events, _) = w.kubectl(&["get", "events", "-o", "custom-columns=M:.message"]);
        for message in [
            "Readiness probe failed: service unhealthy (responded with \"NOT_SERVING\")",
            "Liveness probe failed: service unhealthy (responded with \"NOT_SERVING\")",
            "Container a failed liveness probe, will be restarted",
        ] {
            assert!(events.contains(message), "{message} in\n{events}");
        }
        assert!(events.contains("Readiness probe failed: error: health rpc probe failed: "), "{events}");
        w.kubectl(&["delete", "pod", "asked", "--wait=false"]);
        w.until("asked", "gone", Value::is_null).await;
        w.end().await;
    });
}

#[test]
fn the_status_of_a_node_is_kept_true() {
    in_namespace(|| async {
        let w = World::start("status").await;
        let node = async || w.get(&format!("/api/v1/nodes/{NODE}")).await.unwrap();
        let lease = async || {
            let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{NODE}");
            w.get(&path).await.map(|l| l["spec"]["renewTime"].clone()).unwrap_or_default()
        };
        let until = async |what: &str, holds: fn(&Value) -> bool| {
            for _ in 0..400 {
                let node = node().await;
                if holds(&node["status"]) {
                    return node;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            panic!("the node is never {what}: {:#}", node().await);
        };
        let ready = |s: &Value| condition(s, "Ready")["status"] == "True";
        until("ready", ready).await;

        // What the node controller does to a node that falls silent, and a resource that somebody adds to it.
        let patch = json!({"status": {
            "conditions": [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}],
            "capacity": {"example.com/foo": "3"},
        }})
        .to_string();
        let (code, _, error) = w.kubectl(&["patch", "node", NODE, "--subresource=status", "-p", &patch]);
        assert_eq!(code, 0, "{error}");
        until("ready again", ready).await;
        let whole = |s: &Value| s["allocatable"]["example.com/foo"] == "3" && s["capacity"]["example.com/foo"] == "3";
        let before = until("whole", whole).await;

        // Then it leaves the Node alone: over two renewals of its lease.
        for _ in 0..2 {
            let renewed = lease().await;
            while lease().await == renewed {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
        assert_eq!(node().await, before);
        w.end().await;
    });
}
