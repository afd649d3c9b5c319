//! A real node: containerd, the kernel's network, the API server and stock kubectl.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{IMAGE, NODE, World, in_namespace, mounts_below};
use serde_json::json;

#[test]
fn a_pod_from_create_to_gone() {
    in_namespace(|| async {
        let mut w = World::start("pod").await;
        let begun = Instant::now();
        w.pod(
            "web",
            json!({
                "terminationGracePeriodSeconds": 5,
                "initContainers": [{"name": "init", "image": IMAGE, "command": ["sh", "-c", "echo made > /data/index.html"],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
                "containers": [{
                    "name": "web", "image": IMAGE,
                    "command": ["sh", "-c", "trap 'exit 0' TERM; echo hello $POD; httpd -p 8080 -h /data; while true; do sleep 1 & wait $!; done"],
                    "env": [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                    "readinessProbe": {"httpGet": {"path": "/index.html", "port": 8080}, "periodSeconds": 1},
                    "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}},
                }],
                "volumes": [{"name": "data", "emptyDir": {}}],
            }),
        )
        .await;
        let status = w.ready("web").await;
        println!("create to ready: {:?}\n{status:#}", begun.elapsed());
        assert_eq!(status["phase"], "Running");
        assert_eq!(status["qosClass"], "Burstable");
        assert_eq!(status["initContainerStatuses"][0]["state"]["terminated"]["reason"], "Completed");

        let (code, out, err) =
            w.kubectl(&["exec", "web", "-c", "web", "--", "sh", "-c", "cat /data/index.html; exit 3"]);
        assert_eq!((code, out.as_str()), (3, "made\n"), "{err}");
        assert!(err.contains("command terminated with exit code 3"), "{err}");
        // As clients before Kubernetes 1.31 ask.
        let spdy = [("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")];
        let script = "cat /data/index.html; echo no >&2; exit 3";
        let (code, out, err) = w.kubectl_with(&spdy, &["exec", "web", "-c", "web", "--", "sh", "-c", script]);
        assert_eq!((code, out.as_str()), (3, "made\n"), "{err}");
        assert!(err.starts_with("no\n") && err.contains("command terminated with exit code 3"), "{err}");
        let token =
            ["exec", "web", "-c", "web", "--", "sh", "-c", "cat /var/run/secrets/kubernetes.io/serviceaccount/ca.crt"];
        assert_eq!(w.kubectl(&token).1, "authority");
        let (_, hosts, _) = w.kubectl(&["exec", "web", "-c", "web", "--", "cat", "/etc/hosts", "/etc/resolv.conf"]);
        assert!(hosts.contains("\tweb\n") && hosts.contains("nameserver 10.96.0.10"), "{hosts}");

        // A daemon that comes back leaves the pod alone.
        let before = w.status("web").await;
        w.stop_agent().await;
        w.start_agent().await;
        w.until("web", "seen again", |s| s["containerStatuses"][0]["ready"] == true).await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let after = w.status("web").await;
        assert_eq!(before, after, "a restart changes nothing:\n{before}\n{after}");

        for websockets in ["true", "false"] {
            assert_eq!(forwarded(&w, "web", 8080, websockets), "made\n", "WebSockets: {websockets}");
        }

        let begun = Instant::now();
        let (code, _, err) = w.kubectl(&["delete", "pod", "web"]);
        assert_eq!(code, 0, "{err}");
        println!("delete to gone: {:?}", begun.elapsed());
        w.until("web", "gone", serde_json::Value::is_null).await;
        let (_, events, _) = w.kubectl(&["get", "events", "-o", "custom-columns=R:.reason,M:.message"]);
        println!("{events}");
        for reason in ["Pulled", "Created", "Started", "Killing"] {
            assert!(events.contains(reason), "{reason}");
        }
        let left = async {
            while !w.runtime.containers().await.unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), left).await.expect("no container is left");
        let lib = w.dir.path().join("lib");
        assert_eq!(mounts_below(&lib), Vec::<std::path::PathBuf>::new());
        w.end().await;
    });
}

#[test]
fn logs_as_kubectl_shows_them() {
    in_namespace(|| async {
        let w = World::start("logs").await;
        w.pod(
            "talk",
            json!({
                "restartPolicy": "Always",
                "containers": [{"name": "a", "image": IMAGE,
                    "command": ["sh", "-c", "echo first; echo second >&2; sleep 1; echo third; exit 4"]}],
            }),
        )
        .await;
        w.until("talk", "restarted", |s| s["containerStatuses"][0]["restartCount"] == 1).await;
        let (code, out, err) = w.kubectl(&["logs", "talk", "--previous"]);
        assert_eq!((code, out.as_str()), (0, "first\nsecond\nthird\n"), "{err}");
        assert_eq!(w.kubectl(&["logs", "talk", "--previous", "--tail=1"]).1, "third\n");
        // Following ends when the container does.
        let (code, out, err) = w.kubectl(&["logs", "-f", "talk"]);
        assert_eq!((code, out.as_str()), (0, "first\nsecond\nthird\n"), "{err}");
        let status = w
            .until("talk", "in a crash loop", |s| {
                s["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
            })
            .await;
        assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 4);
        let (code, _, err) = w.kubectl(&["logs", "talk", "-c", "nobody"]);
        assert!(code != 0 && err.contains("nobody"), "{err}");

        // The node's own logs, which have the pods' among them.
        for node in [NODE.to_owned(), format!("{NODE}:10250")] {
            let get = |path: &str| w.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/logs{path}")]);
            let (code, out, err) = get("/");
            let pod = out.split('"').find(|name| name.starts_with("default_talk_")).unwrap_or_default().to_owned();
            assert!(code == 0 && pod.ends_with('/'), "{out}{err}");
            assert_eq!(get("").1, out);
            assert_eq!(get(&format!("/{}", pod.trim_end_matches('/'))).1, get(&format!("/{pod}")).1);
            let (_, out, err) = get(&format!("/{pod}a/0.log"));
            assert!(out.contains(" stdout F first\n") && out.contains(" stderr F second\n"), "{out}{err}");
            assert_ne!(get("/nothing").0, 0);
        }
        w.kubectl(&["delete", "pod", "talk", "--wait=false"]);
        w.until("talk", "gone", serde_json::Value::is_null).await;
        w.end().await;
    });
}

/// GETs `/index.html` through `kubectl port-forward`, over WebSockets or SPDY.
fn forwarded(w: &World, pod: &str, port: u16, websockets: &str) -> String {
    use std::io::{BufRead, BufReader, Read, Write};
    let mut child = std::process::Command::new("kubectl")
        .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets)
        .arg("--kubeconfig")
        .arg(&w.kubeconfig)
        .args(["port-forward", &format!("pod/{pod}"), &format!(":{port}")])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let text = tokio::task::block_in_place(|| {
        let mut line = String::new();
        // Kept open: kubectl says more, and must not find its output closed.
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        // "Forwarding from 127.0.0.1:40001 -> 8080"
        let local = line.split_whitespace().nth(2).unwrap_or_default().to_owned();
        let mut stream = std::net::TcpStream::connect(&local).unwrap_or_else(|e| panic!("{line:?}: {e}"));
        stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        child.kill().unwrap();
        text
    });
    child.wait().unwrap();
    text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or(text)
}

#[test]
fn what_pods_may_ask_for() {
    in_namespace(|| async {
        let w = World::start("ask").await;
        let map = json!({"metadata": {"name": "settings"}, "data": {"greeting": "hello", "mode": "slow"}});
        w.post("/api/v1/namespaces/default/configmaps", &map).await.unwrap();
        let secret = json!({"metadata": {"name": "keys"}, "stringData": {"password": "s3cret"}});
        w.post("/api/v1/namespaces/default/secrets", &secret).await.unwrap();
        let idle = ["sh", "-c", "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done"];
        w.pod(
            "full",
            json!({
                "hostname": "box", "subdomain": "sub", "shareProcessNamespace": true,
                "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000},
                "initContainers": [{"name": "side", "image": IMAGE, "restartPolicy": "Always", "command": idle,
                    "startupProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1}}],
                "containers": [{
                    "name": "main", "image": IMAGE, "command": idle,
                    "envFrom": [{"configMapRef": {"name": "settings"}, "prefix": "S_"}],
                    "env": [
                        {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "password"}}},
                        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
                        {"name": "BOTH", "value": "$(S_greeting) $(PW)"},
                    ],
                    "resources": {"limits": {"cpu": "250m", "memory": "32Mi"}},
                    "lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", "echo up > /scratch/started"]}}},
                    "volumeMounts": [
                        {"name": "map", "mountPath": "/map"}, {"name": "sec", "mountPath": "/sec", "readOnly": true},
                        {"name": "me", "mountPath": "/me"}, {"name": "scratch", "mountPath": "/scratch"},
                        {"name": "map", "mountPath": "/one", "subPath": "greeting"},
                    ],
                }],
                "volumes": [
                    {"name": "map", "configMap": {"name": "settings"}},
                    {"name": "sec", "secret": {"secretName": "keys", "defaultMode": 256}},
                    {"name": "me", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
                    {"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                ],
            }),
        )
        .await;
        let status = w.ready("full").await;
        let run = |script: &str| {
            let (code, out, err) = w.kubectl(&["exec", "full", "-c", "main", "--", "sh", "-c", script]);
            assert_eq!(code, 0, "{script}: {err}");
            out.trim().to_owned()
        };
        assert_eq!(run("echo $S_greeting $S_mode $PW $CPU $BOTH"), "hello slow s3cret 250 hello s3cret");
        assert_eq!(run("echo $IP"), status["podIP"].as_str().unwrap());
        assert_eq!(run("cat /map/greeting /sec/password /one /scratch/started"), "hellos3crethelloup");
        assert_eq!(run("cat /me/labels"), "app=\"full\"");
        assert_eq!(run("hostname; id -u; id -G"), "box\n1000\n1000 2000");
        assert!(run("cat /etc/hosts").contains("box.sub.default.svc.cluster.local\tbox"));
        assert!(run("ls -l /sec/..data/password").contains("r--r-----"));
        assert!(run("cat /proc/*/cmdline | tr '\\0' ' ' 2>/dev/null || cat /proc/*/comm").matches("sh").count() >= 2);
        // What the objects say, the files say, without anybody asking.
        let patch = json!({"data": {"greeting": "servus"}});
        let request = http::Request::patch("/api/v1/namespaces/default/configmaps/settings")
            .header("content-type", "application/merge-patch+json")
            .body(serde_json::to_vec(&patch).unwrap())
            .unwrap();
        let _: serde_json::Value = w.client.request(request).await.unwrap();
        let begun = Instant::now();
        while run("cat /map/greeting") != "servus" {
            assert!(begun.elapsed() < Duration::from_secs(10), "the file follows the ConfigMap");
        }

        w.pod(
            "poor",
            json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": IMAGE,
            "command": ["sh", "-c", "echo because > /dev/termination-log; exit 7"]}]}),
        )
        .await;
        let status = w.until("poor", "failed", |s| s["phase"] == "Failed").await;
        let end = &status["containerStatuses"][0]["state"]["terminated"];
        assert_eq!(
            (end["exitCode"].as_i64(), end["reason"].as_str(), end["message"].as_str()),
            (Some(7), Some("Error"), Some("because\n"))
        );

        w.pod(
            "mistaken",
            json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": IMAGE, "command": ["/nonexistent"]}]}),
        )
        .await;
        let status = w.until("mistaken", "failed", |s| s["phase"] == "Failed").await;
        let container = &status["containerStatuses"][0];
        let end = &container["state"]["terminated"];
        assert_eq!((&end["reason"], &end["exitCode"]), (&json!("StartError"), &json!(128)), "{container:#}");
        assert_eq!(end["startedAt"], "1970-01-01T00:00:00Z");
        assert_eq!(end["containerID"], container["containerID"]);
        assert!(container["containerID"].as_str().is_some_and(|id| id.starts_with("containerd://")), "{container:#}");
        assert!(container["imageID"].as_str().is_some_and(|id| id.contains("sha256:")), "{container:#}");

        w.pod(
            "hindered",
            json!({"restartPolicy": "Never", "initContainers": [{"name": "i", "image": IMAGE, "command": ["sh", "-c", "exit 1"]}],
                "containers": [{"name": "a", "image": IMAGE, "command": idle}]}),
        )
        .await;
        let torn_down = |s: &serde_json::Value| {
            s["phase"] == "Failed"
                && s["conditions"].as_array().into_iter().flatten().any(|c| c["reason"] == "PodFailed")
        };
        let status = w.until("hindered", "failed", torn_down).await;
        assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");

        w.pod(
            "missing",
            json!({"containers": [{"name": "a", "image": "127.0.0.1:1/none:1", "imagePullPolicy": "IfNotPresent"}]}),
        )
        .await;
        let status = w
            .until("missing", "in back-off", |s| {
                s["containerStatuses"][0]["state"]["waiting"]["reason"] == "ImagePullBackOff"
            })
            .await;
        println!("{}", status["containerStatuses"][0]["state"]["waiting"]["message"]);

        w.pod(
            "keyless",
            json!({"containers": [{"name": "a", "image": IMAGE, "command": idle,
            "env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "later"}}}]}]}),
        )
        .await;
        let status = w
            .until("keyless", "waiting for its key", |s| {
                s["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError"
            })
            .await;
        let message = &status["containerStatuses"][0]["state"]["waiting"]["message"];
        assert_eq!(message, "couldn't find key later in ConfigMap default/settings");

        w.pod(
            "greedy",
            json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": IMAGE,
            "command": ["busybox", "tail", "/dev/zero"],
            "resources": {"limits": {"memory": "16Mi"}}}]}),
        )
        .await;
        let status = w.until("greedy", "killed", |s| s["phase"] == "Failed").await;
        println!("{}", status["containerStatuses"][0]["state"]);

        for name in ["full", "poor", "mistaken", "hindered", "missing", "keyless", "greedy"] {
            w.kubectl(&["delete", "pod", name, "--wait=false"]);
        }
        for name in ["full", "poor", "mistaken", "hindered", "missing", "keyless", "greedy"] {
            w.until(name, "gone", serde_json::Value::is_null).await;
        }
        w.end().await;
    });
}

#[test]
fn how_long_a_pod_takes() {
    in_namespace(|| async {
        let w = World::start("time").await;
        let idle = ["sh", "-c", "trap 'exit 0' TERM; while true; do sleep 100 & wait $!; done"];
        let (mut up, mut down) = (Vec::new(), Vec::new());
        for i in 0..6 {
            let name = format!("p{i}");
            let begun = Instant::now();
            w.pod(&name, json!({"containers": [{"name": "a", "image": IMAGE, "command": idle}]})).await;
            w.until(&name, "running", |s| s["phase"] == "Running").await;
            up.push(begun.elapsed().as_millis());
            let begun = Instant::now();
            w.kubectl(&["delete", "pod", &name, "--wait=false"]);
            w.until(&name, "gone", serde_json::Value::is_null).await;
            down.push(begun.elapsed().as_millis());
        }
        println!("create to Running: {up:?} ms; delete to gone: {down:?} ms");
        assert!(up.iter().all(|ms| *ms < 20_000));
        w.end().await;
    });
}
