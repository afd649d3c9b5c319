use std::time::Duration;

use serde_json::json;

use super::World;
use crate::pod::machine::{Event, StartError, go_duration, wake};
use crate::pod::spec::ProbeKind;
use crate::pod::state::Made;

#[test]
fn plain_pod_comes_up_in_order_and_goes_down_at_once() {
    let mut w = World::ready(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    assert_eq!(w.container("a"), "waiting ContainerCreating");
    assert_eq!(w.send(Event::VolumesReady), ["start a#0"]);
    assert_eq!(w.started("a"), ["start b#0"]);
    assert_eq!(w.phase(), "Pending");
    assert_eq!(w.started("b"), Vec::<String>::new());
    assert_eq!((w.phase(), w.condition("Ready").as_str()), ("Running", "True"));
    assert_eq!(w.send(Event::Delete { grace: Duration::from_secs(30) }), ["stop a 30", "stop b 30"]);
    assert!(w.events.contains(&"Killing: Stopping container a".into()));
    assert!(w.exited("a", 0).is_empty());
    assert_eq!(w.exited("b", 143), ["teardown"]);
    assert_eq!(w.send(Event::TornDown), ["delete"]);
    assert_eq!(w.phase(), "Failed");
}

#[test]
fn init_containers_run_one_after_the_other() {
    let mut w = World::ready(json!({
        "initContainers": [{"name": "i1"}, {"name": "i2"}], "containers": [{"name": "a"}],
    }));
    assert_eq!(w.send(Event::VolumesReady), ["start i1#0"]);
    assert!(w.started("i1").is_empty());
    assert_eq!(w.exited("i1", 0), ["start i2#0"]);
    assert_eq!(w.condition("Initialized"), "False ContainersNotInitialized");
    w.started("i2");
    // A failing init container of an Always pod is retried: at once, then with back-off.
    assert_eq!(w.exited("i2", 1), ["start i2#1"]);
    w.started("i2");
    assert!(w.exited("i2", 1).is_empty());
    assert_eq!(w.container("i2"), "waiting CrashLoopBackOff");
    assert_eq!(w.later(10), ["start i2#2"]);
    w.started("i2");
    assert_eq!(w.exited("i2", 0), ["start a#0"]);
    w.started("a");
    assert_eq!((w.phase(), w.condition("Initialized").as_str()), ("Running", "True"));
}

#[test]
fn ephemeral_containers_wait_for_nobody_and_count_for_nothing() {
    let mut w = World::ready(json!({
        "restartPolicy": "Always", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}],
        "ephemeralContainers": [{"name": "look", "targetContainerName": "a"}],
    }));
    assert_eq!(w.send(Event::VolumesReady), ["start look#0"]);
    assert_eq!(w.container("look"), "waiting ContainerCreating");
    assert_eq!(w.started("look"), ["start i#0"]);
    w.started("i");
    assert_eq!(w.exited("i", 0), ["start a#0"]);
    w.started("a");
    assert_eq!((w.condition("Ready").as_str(), w.container("look").as_str()), ("True", "running"));
    assert!(w.exited("look", 1).is_empty(), "it is never started again");
    assert_eq!((w.phase(), w.container("look").as_str()), ("Running", "terminated Error 1"));
    assert_eq!(w.send(Event::Delete { grace: Duration::from_secs(30) }), ["stop a 30"]);
}

#[test]
fn failed_init_container_fails_a_never_pod() {
    let mut w = World::ready(json!({
        "restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}],
    }));
    w.send(Event::VolumesReady);
    w.started("i");
    assert_eq!(w.exited("i", 1), ["teardown"]);
    assert_eq!(w.phase(), "Failed");
    // It never came to the others.
    assert_eq!(
        (w.container("i").as_str(), w.container("a").as_str()),
        ("terminated Error 1", "waiting PodInitializing")
    );
    w.send(Event::TornDown);
    assert_eq!(w.container("a"), "waiting PodInitializing");
    w.send(Event::Delete { grace: Duration::ZERO });
    assert_eq!((w.phase(), w.container("a").as_str()), ("Failed", "waiting PodInitializing"));
}

#[test]
fn what_an_initialized_pod_did_not_start_is_unknown_at_its_end() {
    for inits in [json!([]), json!([{"name": "i"}])] {
        let mut w = World::ready(json!({"initContainers": inits, "containers": [{"name": "a"}]}));
        w.send(Event::VolumesReady);
        if w.state.spec.has_init() {
            w.started("i");
            w.exited("i", 0);
        }
        w.start_failed("a", StartError::Create { message: "no".into() });
        assert_eq!(w.container("a"), "waiting CreateContainerError");
        w.send(Event::Delete { grace: Duration::ZERO });
        w.send(Event::TornDown);
        assert_eq!(w.container("a"), "terminated ContainerStatusUnknown 137", "{inits}");
    }
}

#[test]
fn sidecars_start_first_and_stop_last() {
    let mut w = World::ready(json!({
        "initContainers": [
            {"name": "s1", "restartPolicy": "Always", "startupProbe": {"exec": {"command": ["x"]}}},
            {"name": "s2", "restartPolicy": "Always"},
        ],
        "containers": [{"name": "a"}], "terminationGracePeriodSeconds": 20,
    }));
    assert_eq!(w.send(Event::VolumesReady), ["start s1#0"]);
    assert_eq!(w.started("s1"), ["probe s1 Startup"]);
    let id = w.state.containers[0].run().unwrap().id.clone();
    assert_eq!(w.send(Event::Probe { index: 0, id, kind: ProbeKind::Startup, ok: true }), ["start s2#0"]);
    assert_eq!(w.started("s2"), ["start a#0"]);
    w.started("a");
    assert_eq!(w.phase(), "Running");
    // A sidecar that ends is started again, and the pod stays initialized.
    assert_eq!(w.exited("s2", 0), ["start s2#1"]);
    assert_eq!(w.condition("Initialized"), "True");
    assert_eq!(w.condition("Ready"), "False ContainersNotReady");
    w.started("s2");
    assert_eq!(w.send(Event::Delete { grace: Duration::from_secs(20) }), ["stop a 20"]);
    w.now += Duration::from_secs(5);
    assert_eq!(w.exited("a", 0), ["stop s2 15"]);
    assert_eq!(w.exited("s2", 0), ["stop s1 15"]);
    assert_eq!(w.exited("s1", 0), ["teardown"]);
    assert_eq!(w.phase(), "Succeeded");
}

#[test]
fn sidecars_end_with_a_job() {
    let mut w = World::ready(json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "a"}],
    }));
    w.send(Event::VolumesReady);
    w.started("s");
    w.started("a");
    assert_eq!(w.exited("a", 0), ["stop s 30"]);
    assert_eq!(w.exited("s", 137), ["teardown"]);
    assert_eq!((w.phase(), w.condition("Ready").as_str()), ("Succeeded", "False PodCompleted"));
    assert!(w.send(Event::TornDown).is_empty());
    assert_eq!(w.send(Event::Delete { grace: Duration::ZERO }), ["delete"]);
}

#[test]
fn crash_loop_doubles_and_is_forgotten() {
    let mut w = World::ready(json!({"containers": [{"name": "a"}]}));
    w.send(Event::VolumesReady);
    w.started("a");
    assert_eq!(w.exited("a", 1), ["start a#1"], "the first restart comes at once");
    for (attempt, delay) in [(2, 10), (3, 20), (4, 40), (5, 80), (6, 160), (7, 300), (8, 300)] {
        w.started("a");
        assert!(w.exited("a", 1).is_empty());
        assert_eq!(w.container("a"), "waiting CrashLoopBackOff");
        let s = w.status.container_statuses.as_ref().unwrap()[0].clone();
        let message = s.state.unwrap().waiting.unwrap().message.unwrap();
        let text = go_duration(Duration::from_secs(delay));
        assert_eq!(message, format!("back-off {text} restarting failed container=a pod=p_ns(u)"));
        assert_eq!(s.restart_count, attempt - 1);
        assert_eq!(wake(&w.state), Some(w.now + Duration::from_secs(delay)));
        assert!(w.later(delay - 1).is_empty());
        assert_eq!(w.later(1), [format!("start a#{attempt}")]);
    }
    w.started("a");
    w.later(601);
    assert_eq!(w.exited("a", 1), ["start a#9"], "a long run forgets the loop");
    assert!(w.events.contains(&"BackOff: Back-off restarting failed container a in pod p_ns(u)".into()));
}

#[test]
fn policies_end_pods() {
    for (policy, code, next, phase) in [
        ("Never", 0, "teardown", "Succeeded"),
        ("Never", 2, "teardown", "Failed"),
        ("OnFailure", 0, "teardown", "Succeeded"),
        ("OnFailure", 2, "start a#1", "Running"),
        ("Always", 0, "start a#1", "Running"),
    ] {
        let mut w = World::ready(json!({"restartPolicy": policy, "containers": [{"name": "a"}]}));
        w.send(Event::VolumesReady);
        w.started("a");
        assert_eq!(w.exited("a", code), [next], "{policy} {code}");
        assert_eq!(w.phase(), phase, "{policy} {code}");
    }
}

#[test]
fn image_errors_back_off() {
    let mut w = World::ready(json!({"containers": [{"name": "a", "image": "nope"}, {"name": "b"}]}));
    w.send(Event::VolumesReady);
    let error = || StartError::Image { reason: "ErrImagePull", message: "not found".into(), image: "nope".into() };
    assert_eq!(w.start_failed("a", error()), ["start b#0"], "others go on");
    assert_eq!(w.container("a"), "waiting ErrImagePull");
    w.started("b");
    assert!(w.later(3).is_empty());
    assert_eq!(w.container("a"), "waiting ImagePullBackOff");
    let s = &w.status.container_statuses.as_ref().unwrap()[0];
    let message = s.state.as_ref().unwrap().waiting.as_ref().unwrap().message.as_deref();
    assert_eq!(message, Some("Back-off pulling image \"nope\": ErrImagePull: not found"));
    assert_eq!(w.later(7), ["start a#0"]);
    w.start_failed("a", error());
    assert!(w.later(19).is_empty());
    assert_eq!(w.later(1), ["start a#0"]);
    assert_eq!(w.phase(), "Pending");
}

#[test]
fn missing_config_map_waits_for_it() {
    let mut w = World::ready(json!({"containers": [{"name": "a"}]}));
    w.send(Event::VolumesReady);
    let message = "configmap \"x\" not found".to_owned();
    w.start_failed("a", StartError::Config { reason: "CreateContainerConfigError", message });
    assert_eq!(w.container("a"), "waiting CreateContainerConfigError");
    assert!(w.later(5).is_empty());
    assert_eq!(w.send(Event::ReferenceChanged), ["start a#0"]);
}

#[test]
fn a_container_that_does_not_start_counts_as_exited() {
    let mut w = World::ready(json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}));
    w.send(Event::VolumesReady);
    let made = Made { id: "x".into(), image: "docker.io/library/img:latest".into(), image_id: "sha256:1".into() };
    let error = StartError::Run { made, message: "exec: \"nope\": not found".into() };
    assert_eq!(w.start_failed("a", error), ["teardown"]);
    assert_eq!((w.container("a").as_str(), w.phase()), ("terminated StartError 128", "Failed"));
    let status = serde_json::to_value(&w.status.container_statuses.as_ref().unwrap()[0]).unwrap();
    let words = ["/containerID", "/image", "/imageID", "/state/terminated/containerID", "/state/terminated/startedAt"];
    let said = words.map(|pointer| status.pointer(pointer).and_then(|v| v.as_str()).unwrap_or_default());
    assert_eq!(
        said,
        ["containerd://x", "docker.io/library/img:latest", "sha256:1", "containerd://x", "1970-01-01T00:00:00Z"]
    );
}

#[test]
fn an_exit_seen_before_the_start_is_reported_is_not_lost() {
    let mut w = World::ready(json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}));
    w.send(Event::VolumesReady);
    let exit = crate::pod::state::Exit {
        id: "id1".into(),
        code: 0,
        signal: None,
        reason: "Completed".into(),
        message: None,
        started: None,
        finished: w.now,
    };
    assert!(w.send(Event::Exited { index: 0, exit }).is_empty());
    assert_eq!(w.started("a"), ["teardown"]);
    assert_eq!(w.phase(), "Succeeded");
}

#[test]
fn liveness_restarts_and_readiness_only_shows() {
    let probe = json!({"exec": {"command": ["x"]}});
    let mut w = World::ready(json!({"containers": [{
        "name": "a", "livenessProbe": probe, "readinessProbe": probe, "startupProbe": probe,
    }]}));
    w.send(Event::VolumesReady);
    assert_eq!(w.started("a"), ["probe a Startup"]);
    let id = w.state.containers[0].run().unwrap().id.clone();
    let verdict = |kind, ok| Event::Probe { index: 0, id: id.clone(), kind, ok };
    assert_eq!(w.send(verdict(ProbeKind::Startup, true)), ["probe a Liveness", "probe a Readiness"]);
    assert_eq!(w.condition("Ready"), "False ContainersNotReady");
    w.send(verdict(ProbeKind::Readiness, true));
    assert_eq!(w.condition("Ready"), "True");
    w.send(verdict(ProbeKind::Readiness, false));
    assert_eq!(w.condition("Ready"), "False ContainersNotReady");
    assert_eq!(w.send(verdict(ProbeKind::Liveness, false)), ["stop a 30"]);
    assert!(w.events.contains(&"Killing: Container a failed liveness probe, will be restarted".into()));
    assert_eq!(w.exited("a", 137), ["start a#1"]);
}

#[test]
fn force_shortens_a_stop_under_way() {
    let mut w = World::ready(json!({"containers": [{"name": "a"}]}));
    w.send(Event::VolumesReady);
    w.started("a");
    assert_eq!(w.send(Event::Delete { grace: Duration::from_secs(300) }), ["stop a 300"]);
    assert!(w.send(Event::Delete { grace: Duration::from_secs(600) }).is_empty());
    assert_eq!(w.send(Event::Delete { grace: Duration::ZERO }), ["stop a 1"]);
}

#[test]
fn deletion_aborts_a_start() {
    let mut w = World::ready(json!({"containers": [{"name": "a"}]}));
    w.send(Event::VolumesReady);
    assert_eq!(w.send(Event::Delete { grace: Duration::from_secs(5) }), ["abort a"]);
    assert_eq!(w.start_failed("a", StartError::Aborted), ["teardown"]);
    assert_eq!(w.send(Event::TornDown), ["delete"]);
}

#[test]
fn deadline_fails_the_pod() {
    let mut w = World::ready(json!({"activeDeadlineSeconds": 60, "containers": [{"name": "a"}]}));
    w.send(Event::VolumesReady);
    w.started("a");
    assert!(w.later(59).is_empty());
    assert_eq!(w.later(1), ["stop a 30"]);
    assert_eq!(w.exited("a", 0), ["teardown"]);
    assert_eq!((w.phase(), w.status.reason.as_deref()), ("Failed", Some("DeadlineExceeded")));
}

#[test]
fn failed_set_up_is_retried_with_growing_delay() {
    let mut w = World::new(json!({"containers": [{"name": "a"}]}));
    w.send(Event::Wake);
    w.send(Event::VolumesReady);
    for delay in [1, 2, 4] {
        assert!(w.send(Event::NetworkFailed("no address".into())).is_empty());
        assert_eq!(w.later(delay), ["network"]);
    }
    assert_eq!(w.events[0], "FailedCreatePodSandBox: Failed to create pod sandbox: no address");
}
