//! Whole lives of pods on a simulated node.

use std::time::Duration;

use serde_json::json;

use crate::pod::adopt::{Found, FoundState};
use crate::pod::machine::Event;
use crate::pod::worker::{Beginning, Message};
use crate::sim::Sim;

#[tokio::test]
async fn a_pod_lives_and_dies() {
    let sim = Sim::new();
    let handle = sim.run(json!({"containers": [{
        "name": "a", "image": "img", "command": ["$(WHO)"],
        "env": [{"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "lifecycle": {"preStop": {"exec": {"command": ["bye"]}}, "stopSignal": "SIGUSR1"},
    }]}));
    sim.journal.expect("status Running ready=\"True\"").await;
    assert_eq!(sim.status("/podIP"), "127.0.0.1");
    let spec = sim.runtime.spec("a");
    assert_eq!(spec.command, ["127.0.0.1"]);
    assert_eq!(spec.netns.as_deref(), Some("/sim/netns".as_ref()));
    for event in
        ["Pulled: Container image \"img\" already present", "Created: Container created", "Started: Container started"]
    {
        sim.journal.expect(&format!("event {event}")).await;
    }
    handle.queue.send(Message::Event(Event::Delete { grace: Duration::from_secs(7) })).await.unwrap();
    sim.journal.expect("DELETE p").await;
    sim.done.notified().await;
    for line in ["exec bye", "stop a SIGUSR1 ", "network gone", "event Killing: Stopping container a", "remove"] {
        assert!(sim.journal.has(line), "{line}");
    }
    assert_eq!(sim.status("/phase"), "Failed");
    assert!(!sim.node.dir("u").root().exists());
}

#[tokio::test]
async fn a_pods_bandwidth_is_limited_where_the_kernel_can() {
    let sim = Sim::new();
    let annotations = json!({"kubernetes.io/ingress-bandwidth": "10M"});
    sim.run_annotated(annotations, json!({"containers": [{"name": "a", "image": "img"}]}));
    sim.journal.expect("status Running ready=\"True\"").await;
    assert!(sim.journal.has("limit Bandwidth { ingress: Some(10000000), egress: None }"));
    sim.journal.expect("event BandwidthNotLimited: no such filter").await;
}

#[tokio::test]
async fn bandwidth_that_makes_no_sense_is_refused() {
    let sim = Sim::new();
    let annotations = json!({"kubernetes.io/egress-bandwidth": "10"});
    sim.run_annotated(annotations, json!({"containers": [{"name": "a", "image": "img"}]}));
    let why = "failed to get pod bandwidth from annotations: resource is unreasonably small (< 1kbit)";
    sim.journal.expect(&format!("event FailedCreatePodSandBox: Failed to create pod sandbox: {why}")).await;
    assert!(!sim.journal.has("network"));
}

#[tokio::test]
async fn a_config_map_that_comes_late_and_changes() {
    let sim = Sim::new();
    let handle = sim.run(json!({
        "containers": [{
            "name": "a", "image": "img", "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            "env": [{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}],
        }],
        "volumes": [{"name": "v", "configMap": {"name": "cm"}}],
    }));
    sim.journal
        .expect("event FailedMount: MountVolume.SetUp failed for volume \"v\" : configmap \"cm\" not found")
        .await;
    sim.objects.set("cm", "k", "one");
    sim.journal.expect("status Running ready=\"True\"").await;
    assert_eq!(sim.runtime.spec("a").env[0], ("K".to_owned(), "one".to_owned()));
    let file = sim.node.dir("u").root().join("volumes/kubernetes.io~configmap/v/k");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "one");
    sim.objects.set("cm", "k", "two");
    let changed = async {
        while std::fs::read_to_string(&file).unwrap() != "two" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), changed).await.expect("the file follows the ConfigMap");
    handle.queue.send(Message::Gone).await.unwrap();
    sim.done.notified().await;
}

#[tokio::test]
async fn a_failing_liveness_probe_restarts() {
    let sim = Sim::new();
    sim.runtime.failing.lock().push("check".into());
    sim.run(json!({"containers": [{
        "name": "a", "image": "img",
        "livenessProbe": {"exec": {"command": ["check"]}, "periodSeconds": 1, "failureThreshold": 1,
            "terminationGracePeriodSeconds": 3},
    }]}));
    sim.journal.expect("create a#1").await;
    assert!(sim.journal.has("event Unhealthy: Liveness probe failed: said"));
    assert!(sim.journal.has("event Killing: Container a failed liveness probe, will be restarted"));
    assert!(sim.journal.has("stop a - 3") || sim.journal.has("stop a - 2"));
}

#[tokio::test]
async fn a_missing_image_says_why() {
    let sim = Sim::new();
    sim.runtime.missing.lock().push("nope".into());
    sim.run(json!({"containers": [{"name": "a", "image": "nope", "imagePullPolicy": "IfNotPresent"}]}));
    sim.journal.expect("event Failed: Error: ErrImagePull").await;
    sim.journal.expect("status Pending").await;
    assert!(sim.journal.has("event Pulling: Pulling image \"nope\""));
    assert!(sim.journal.has("event Failed: Failed to pull image \"nope\""));
    let wait = async {
        while sim.status("/containerStatuses/0/state/waiting/reason") != "ErrImagePull" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), wait).await.expect("status says ErrImagePull");
}

#[tokio::test]
async fn an_adopted_pod_is_left_alone() {
    let sim = Sim::new();
    let found = Found {
        id: "c1".into(),
        name: "a".into(),
        attempt: 2,
        image: "img".into(),
        image_id: "sha256:1".into(),
        state: FoundState::Running { at: jiff::Timestamp::now(), pid: 1 },
    };
    let status = json!({
        "phase": "Running", "podIP": "127.0.0.1",
        "containerStatuses": [{"name": "a", "ready": true, "started": true, "restartCount": 2, "image": "img",
            "imageID": "sha256:1", "containerID": "containerd://c1"}],
    });
    let handle = sim.run_with(
        json!({"containers": [{"name": "a", "image": "img", "readinessProbe": {"exec": {"command": ["r"]}}}]}),
        Beginning::Normal { found: vec![found] },
        status,
    );
    sim.journal.expect("exec r").await;
    sim.journal.expect("status Running ready=\"True\"").await;
    assert!(!sim.journal.has("ready=\"False\"") && !sim.journal.has("create"));
    assert_eq!(handle.view.borrow().containers[0].id.as_deref(), Some("c1"));
}

#[tokio::test]
async fn tokens_and_sidecars() {
    let sim = Sim::new();
    sim.run(json!({
        "restartPolicy": "Never", "serviceAccountName": "robot",
        "initContainers": [{"name": "side", "image": "img", "restartPolicy": "Always"}],
        "containers": [{"name": "job", "image": "img"}],
        "volumes": [{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token",
            "expirationSeconds": 3607}}]}}],
    }));
    sim.journal.expect("start job").await;
    sim.journal.expect("status Running").await;
    assert_eq!(sim.journal.count("token robot 3607"), 1);
    let id = sim.runtime.id("job");
    sim.runtime.end(&id, 0).await;
    sim.journal.expect("status Succeeded").await;
    assert!(sim.journal.has("stop side"));
}
