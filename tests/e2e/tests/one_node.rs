//! One node, from an empty directory to a Service that every pod answers, through stock kubectl;
//! then what a user does to it and what breaks. One lab for all of it: each step names itself.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sluice_e2e::{Lab, Options, output, sample_image, step};

const MANIFEST: &str = include_str!("../../../xtask/samples/echo.yaml");

#[test]
fn a_cluster_serves_survives_and_goes() -> Result<()> {
    let mut lab = Lab::start(&Options::one("se1"))?;
    lab.import(&sample_image())?;
    step("apply, roll out, answer", || serves(&lab))?;
    step("explained as it happens", || explained(&lab))?;
    step("configuration reaches containers", || configuration(&lab))?;
    step("logs, exec, exit codes", || logs_and_exec(&lab))?;
    step("probes take a pod out of its Service and bring it back", || readiness(&lab))?;
    step("a crash backs off, a missing image is reported", || failures(&lab))?;
    step("rolling update and rollback under load", || rolling_update(&lab))?;
    step("kill -9 of the daemon disturbs nothing", || killed(&mut lab))?;
    step("deletion leaves nothing", || deletion(&lab))
}

fn serves(lab: &Lab) -> Result<()> {
    lab.apply(MANIFEST)?;
    lab.kubectl("rollout status deployment/echo --timeout=120s")?;
    lab.kubectl("exec deployment/echo -- /echo get http://echo.default.svc.cluster.local/ --distinct 3")?;
    lab.kubectl("exec deployment/echo -- /echo get http://echo/ --distinct 3")?;
    let address = lab.kubectl("get service echo -o jsonpath={.spec.clusterIP}")?;
    from_node(lab, &["get", &format!("http://{address}/"), "--distinct", "3"])?;
    from_node(lab, &["get", "http://127.0.0.1:30080/", "--distinct", "3"])?;
    let node = &lab.nodes()[0].address;
    from_node(lab, &["get", &format!("http://{node}:30080/"), "--distinct", "3"])?;
    let answer = from_node(lab, &["udp", &format!("{address}:80"), "hello"])?;
    ensure!(answer.contains("hello"), "UDP through the Service: {answer}");
    Ok(())
}

fn from_node(lab: &Lab, arguments: &[&str]) -> Result<String> {
    output(&mut lab.nodes()[0].echo(arguments))
}

/// By names, as a user asks; a policy is called by its name.
fn explained(lab: &Lab) -> Result<()> {
    let ask = |arguments: &[&str]| output(&mut lab.nodes()[0].sluice(&[&["explain"], arguments].concat()));
    let pod = lab.kubectl("get pods -l app=echo -o jsonpath={.items[0].metadata.name}")?;
    // By chance the pod itself, whose packets never leave it.
    let mut told = ask(&[&pod, "svc/echo:80"])?;
    for _ in 0..16 {
        if told.contains("answers come back from") {
            break;
        }
        told = ask(&[&pod, "svc/echo:80"])?;
    }
    for part in [
        "at connect(2)",
        "service      default/echo",
        "one of 3, this time this one",
        "=> DELIVERED to the pod default/echo-",
        "answers come back from",
    ] {
        ensure!(told.contains(part), "{part:?} is not in:\n{told}");
    }
    println!("{told}");
    let json: serde_json::Value = serde_json::from_str(&ask(&["node", "echo.default.svc:80", "--output", "json"])?)?;
    ensure!(json["fate"]["outcome"] == "delivered" && json["warnings"] == serde_json::json!([]), "{json:#}");
    lab.apply(
        r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: quiet}
spec: {podSelector: {matchLabels: {app: echo}}, policyTypes: [Egress]}
"#,
    )?;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let told = loop {
        let told = ask(&[&pod, "192.0.2.1:80"])?;
        if told.contains("DROPPED") || std::time::Instant::now() > deadline {
            break told;
        }
    };
    for part in ["is DENIED", "default/quiet", "=> DROPPED (PolicyEgress)"] {
        ensure!(told.contains(part), "{part:?} is not in:\n{told}");
    }
    println!("{told}");
    lab.kubectl("delete networkpolicy quiet")?;
    for (wrong, expected) in [
        (["nobody", "svc/echo"], "pods \"nobody\" not found"),
        ([&pod, "svc/nothing"], "services \"nothing\" not found"),
        ([&pod, "10.0.0.1"], "say the port"),
    ] {
        let refused = format!("{:#}", ask(&wrong).err().context("it was explained")?);
        ensure!(refused.contains(expected), "{wrong:?}: {refused}");
    }
    Ok(())
}

fn configuration(lab: &Lab) -> Result<()> {
    lab.apply(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: blue, file.txt: "from a ConfigMap"}
---
apiVersion: v1
kind: Secret
metadata: {name: hidden}
stringData: {password: swordfish}
---
apiVersion: v1
kind: Pod
metadata: {name: configured, labels: {tier: test}}
spec:
  initContainers:
    - name: first
      image: sluice.local/echo:latest
      imagePullPolicy: IfNotPresent
      command: [sh, -c, "echo prepared > /shared/state"]
      volumeMounts: [{name: shared, mountPath: /shared}]
  containers:
    - name: main
      image: sluice.local/echo:latest
      imagePullPolicy: IfNotPresent
      command: [sh, -c, "exec /echo serve --http $(PORT)"]
      env:
        - {name: PORT, value: "8081"}
        - {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}
        - {name: PASSWORD, valueFrom: {secretKeyRef: {name: hidden, key: password}}}
        - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
        - {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
      resources: {limits: {memory: 32Mi, cpu: 100m}}
      volumeMounts:
        - {name: shared, mountPath: /shared}
        - {name: settings, mountPath: /settings}
        - {name: hidden, mountPath: /hidden, readOnly: true}
        - {name: labels, mountPath: /labels}
  volumes:
    - {name: shared, emptyDir: {}}
    - {name: settings, configMap: {name: settings}}
    - {name: hidden, secret: {secretName: hidden}}
    - name: labels
      downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}
"#,
    )?;
    lab.kubectl("wait --for=condition=Ready pod/configured --timeout=60s")?;
    for (command, expected) in [
        ("cat /shared/state", "prepared"),
        ("cat /settings/file.txt", "from a ConfigMap"),
        ("cat /hidden/password", "swordfish"),
        ("cat /labels/labels", "tier=\"test\""),
        ("env", "COLOR=blue"),
        ("env", "PASSWORD=swordfish"),
        ("env", "NODE=node1"),
        ("env", "LIMIT=32"),
        ("hostname", "configured"),
        ("cat /var/run/secrets/kubernetes.io/serviceaccount/namespace", "default"),
        ("cat /etc/resolv.conf", "search default.svc.cluster.local svc.cluster.local cluster.local"),
    ] {
        let found = lab.kubectl(&format!("exec configured -c main -- {command}"))?;
        ensure!(found.contains(expected), "{command} gave {found:?}, not {expected:?}");
    }
    lab.kubectl("delete pod configured --wait --timeout=60s").map(drop)
}

fn logs_and_exec(lab: &Lab) -> Result<()> {
    lab.apply(&pod("talker", "for i in 1 2 3; do echo line $i; done; echo wrong >&2; exit 3"))?;
    lab.kubectl("wait --for=jsonpath={.status.phase}=Failed pod/talker --timeout=60s")?;
    let logs = lab.kubectl("logs talker")?;
    ensure!(logs == "line 1\nline 2\nline 3\nwrong\n", "logs: {logs:?}");
    let tail = lab.kubectl("logs talker --tail=1")?;
    ensure!(tail == "wrong\n", "last line: {tail:?}");
    let code = lab.kubectl("get pod talker -o jsonpath={.status.containerStatuses[0].state.terminated.exitCode}")?;
    ensure!(code == "3", "exit code: {code}");
    let exit = output(lab.nodes()[0].kubectl().args(["exec", "deployment/echo", "--", "sh", "-c", "exit 7"]));
    let message = format!("{:#}", exit.err().context("exec of `exit 7` must fail")?);
    ensure!(message.contains("exit code 7"), "{message}");
    lab.kubectl("delete pod talker --wait").map(drop)
}

/// A pod that runs a shell script once.
fn pod(name: &str, script: &str) -> String {
    let script = script.replace('"', "\\\"");
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  containers:\n  \
         - name: main\n    image: sluice.local/echo:latest\n    imagePullPolicy: IfNotPresent\n    \
         command: [sh, -c, \"{script}\"]\n"
    )
}

fn readiness(lab: &Lab) -> Result<()> {
    let first = lab.kubectl("get pods -l app=echo -o jsonpath={.items[0].metadata.name}")?;
    lab.kubectl(&format!("exec {first} -- /echo get http://127.0.0.1:8080/healthz/fail"))?;
    lab.kubectl(&format!("wait --for=condition=Ready=false pod/{first} --timeout=60s"))?;
    lab.kubectl("wait --for=jsonpath={.status.availableReplicas}=2 deployment/echo --timeout=60s")?;
    lab.kubectl(&format!("exec {first} -- /echo get http://127.0.0.1:8080/healthz/pass"))?;
    lab.kubectl(&format!("wait --for=condition=Ready pod/{first} --timeout=60s"))?;
    lab.kubectl("exec deployment/echo -- /echo get http://echo/ --distinct 3").map(drop)
}

fn failures(lab: &Lab) -> Result<()> {
    lab.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: crasher}
spec:
  containers:
    - {name: main, image: "sluice.local/echo:latest", imagePullPolicy: IfNotPresent, command: [sh, -c, "exit 1"]}
---
apiVersion: v1
kind: Pod
metadata: {name: imageless}
spec:
  containers:
    - {name: main, image: "127.0.0.1:9/nothing:1", command: [sh]}
"#,
    )?;
    let waiting = "jsonpath={.status.containerStatuses[0].state.waiting.reason}";
    lab.kubectl(&format!("wait --for={waiting}=CrashLoopBackOff pod/crasher --timeout=60s"))?;
    lab.kubectl(&format!("wait --for={waiting}=ImagePullBackOff pod/imageless --timeout=60s"))?;
    let events = lab.kubectl("get events --field-selector involvedObject.name=imageless")?;
    ensure!(events.contains("127.0.0.1:9/nothing:1"), "events: {events}");
    lab.kubectl("delete pod crasher imageless --grace-period=0 --force").map(drop)
}

fn rolling_update(lab: &Lab) -> Result<()> {
    // Every request opens a connection; one that is refused or cut makes the client fail.
    let address = lab.kubectl("get service echo -o jsonpath={.spec.clusterIP}")?;
    let url = format!("http://{address}/");
    let load = std::thread::scope(|scope| {
        let load = scope.spawn(|| from_node(lab, &["get", &url, "--times", "3000"]));
        lab.kubectl("set env deployment/echo STAGE=two")?;
        lab.kubectl("rollout status deployment/echo --timeout=120s")?;
        load.join().map_err(|_| anyhow::anyhow!("the client panicked"))?
    })?;
    ensure!(load.contains("echo-"), "the client saw no pod");
    let environment = lab.kubectl("exec deployment/echo -- env")?;
    ensure!(environment.contains("STAGE=two"), "after the update: {environment}");
    lab.kubectl("rollout undo deployment/echo")?;
    lab.kubectl("rollout status deployment/echo --timeout=120s")?;
    let going = lab.kubectl("get pods -o jsonpath={.items[?(@.metadata.deletionTimestamp)].metadata.name}")?;
    for pod in going.split_whitespace() {
        lab.kubectl(&format!("wait --for=delete pod/{pod} --timeout=60s"))?;
    }
    Ok(())
}

fn killed(lab: &mut Lab) -> Result<()> {
    let ids = "get pods -l app=echo -o jsonpath={.items[*].status.containerStatuses[0].containerID}";
    let before = lab.kubectl(ids)?;
    let address = lab.kubectl("get service echo -o jsonpath={.spec.clusterIP}")?;
    lab.node(1).end(Signal::SIGKILL)?;
    from_node(lab, &["get", &format!("http://{address}/"), "--distinct", "3"]).context("while the daemon is down")?;
    lab.node(1).restart()?;
    lab.kubectl("wait --for=condition=Ready pod -l app=echo --timeout=60s")?;
    let after = lab.kubectl(ids)?;
    ensure!(before == after, "containers changed: {before} -> {after}");
    let restarts =
        lab.kubectl("get pods -l app=echo -o jsonpath={.items[*].status.containerStatuses[0].restartCount}")?;
    ensure!(restarts.split(' ').all(|count| count == "0"), "restarts: {restarts}");
    Ok(())
}

fn deletion(lab: &Lab) -> Result<()> {
    lab.kubectl("delete deployment/echo service/echo service/echo-nodeport --timeout=60s")?;
    lab.kubectl("wait --for=delete pod -l app=echo --timeout=60s")?;
    let services = output(&mut lab.nodes()[0].sluice(&["services", "--json"]))?;
    ensure!(!services.contains("default/echo"), "the kernel still serves: {services}");
    let netns = std::fs::read_dir(lab.nodes()[0].run_dir().join("netns"))?.count();
    ensure!(netns == 0, "{netns} pod namespaces are left");
    Ok(())
}
