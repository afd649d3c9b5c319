//! What a stranger's manifests ask for, on one node: ordered and one-off workloads, DNS, node
//! ports from other namespaces, probes that fail and recover, init containers and sidecars, custom
//! resources, and kubectl's ways into a pod. One lab for all of it; each step names itself.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use sluice_e2e::{Lab, Options, output, sample_image, step};

const IMAGE: &str = r#"image: "sluice.local/echo:latest", imagePullPolicy: IfNotPresent"#;

#[test]
fn a_cluster_runs_what_manifests_ask_for() -> Result<()> {
    let lab = Lab::start(&Options::one("se4"))?;
    lab.import(&sample_image())?;
    step("names and node ports reach a Service from another namespace", || names(&lab))?;
    step("a StatefulSet keeps order, names and revisions", || stateful(&lab))?;
    step("Jobs end, by count, by index and in failure", || jobs(&lab))?;
    step("liveness restarts, readiness takes out and in, startup holds back", || probes(&lab))?;
    step("init containers and sidecars keep their order", || init_containers(&lab))?;
    step("a changed ConfigMap and Secret reach a running pod", || volumes_follow(&lab))?;
    step("attach, cp and port-forward", || ways_in(&lab))?;
    step("a custom resource is served, checked and explained", || custom(&lab))?;
    step("a rollback takes the old ReplicaSet", || rollback(&lab))
}

/// Applies a manifest in which `IMAGE` stands for the sample image.
fn apply(lab: &Lab, manifest: &str) -> Result<String> {
    lab.apply(&manifest.replace("IMAGE", IMAGE))
}

/// Runs a shell script in a pod.
fn sh(lab: &Lab, pod: &str, script: &str) -> Result<String> {
    lab.kubectl_words(&["exec", pod, "--", "sh", "-c", script])
}

fn names(lab: &Lab) -> Result<()> {
    apply(
        lab,
        r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
        - {name: web, IMAGE, ports: [{name: http, containerPort: 8080}], readinessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1}}
        - {name: side, IMAGE, command: [sh, -c, "sleep 1000"]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {type: NodePort, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http, nodePort: 31080}]}
---
apiVersion: v1
kind: Service
metadata: {name: members, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: default}
spec: {type: ExternalName, externalName: web.shop.svc.cluster.local}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, IMAGE, command: [sh, -c, "sleep 1000"]}]
"#,
    )?;
    lab.kubectl("wait --for=condition=Ready pod/client --timeout=60s")?;
    lab.kubectl("-n shop rollout status deployment/web --timeout=60s")?;
    let node = &lab.nodes()[0].address;
    for host in ["web.shop", "web.shop.svc", "web.shop.svc.cluster.local", "alias", &format!("{node}:31080")] {
        lab.kubectl(&format!("exec client -- /echo get http://{host}/ --distinct 2"))?;
    }
    let domain = "shop.svc.cluster.local";
    let ips = lab.kubectl("-n shop get pods -l app=web -o jsonpath={.items[*].status.podIP}")?;
    let members = sh(lab, "client", &format!("nslookup members.{domain}"))?;
    for ip in ips.split(' ') {
        ensure!(members.contains(ip), "{ip} is missing from {members}");
    }
    for (question, expected) in [
        (format!("-type=srv _http._tcp.web.{domain}"), format!("80 web.{domain}")),
        (format!("-type=srv _http._tcp.members.{domain}"), format!(".members.{domain}")),
        ("10.96.0.1".to_owned(), "kubernetes.default.svc.cluster.local".to_owned()),
    ] {
        let found = sh(lab, "client", &format!("nslookup {question}"))?;
        ensure!(found.contains(&expected), "nslookup {question}: {found}");
    }
    let absent = sh(lab, "client", "nslookup absent.shop.svc.cluster.local || true")?;
    ensure!(absent.contains("NXDOMAIN"), "a name that is not there: {absent}");
    lab.kubectl("delete namespace shop --timeout=60s")?;
    lab.kubectl("delete service alias").map(drop)
}

fn stateful(lab: &Lab) -> Result<()> {
    apply(
        lab,
        r#"
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80, name: http}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - {name: main, IMAGE, readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}}
"#,
    )?;
    lab.kubectl("rollout status statefulset/db --timeout=60s")?;
    let name = sh(lab, "db-0", "hostname -f")?;
    ensure!(name.trim() == "db-0.db.default.svc.cluster.local", "the pod's own name: {name}");
    lab.kubectl("exec db-0 -- /echo get http://db-1.db:8080/")?;
    let uid = lab.kubectl("get pod db-1 -o jsonpath={.metadata.uid}")?;
    lab.kubectl("delete pod db-1 --timeout=60s")?;
    lab.kubectl("wait --for=create pod/db-1 --timeout=60s")?;
    lab.kubectl("wait --for=condition=Ready pod/db-1 --timeout=60s")?;
    ensure!(lab.kubectl("get pod db-1 -o jsonpath={.metadata.uid}")? != uid, "db-1 is the old pod");
    lab.kubectl("set env statefulset/db STAGE=two")?;
    lab.kubectl("rollout status statefulset/db --timeout=60s")?;
    let stage = sh(lab, "db-0", "echo $STAGE")?;
    ensure!(stage.trim() == "two", "after the update: {stage}");
    lab.kubectl("scale statefulset/db --replicas=1")?;
    lab.kubectl("wait --for=delete pod/db-1 --timeout=60s")?;
    lab.kubectl("delete statefulset/db service/db --timeout=60s").map(drop)
}

fn jobs(lab: &Lab) -> Result<()> {
    apply(
        lab,
        r#"
apiVersion: batch/v1
kind: Job
metadata: {name: counted}
spec:
  completions: 3
  parallelism: 2
  template: {spec: {restartPolicy: Never, containers: [{name: main, IMAGE, command: ["true"]}]}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: indexed}
spec:
  completions: 2
  parallelism: 2
  completionMode: Indexed
  template: {spec: {restartPolicy: Never, containers: [{name: main, IMAGE, command: [sh, -c, "echo index $JOB_COMPLETION_INDEX"]}]}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: failing}
spec:
  backoffLimit: 0
  template: {spec: {restartPolicy: Never, containers: [{name: main, IMAGE, command: ["false"]}]}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly}
spec:
  schedule: "0 3 * * *"
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: main, IMAGE, command: ["true"]}]}}}}
"#,
    )?;
    lab.kubectl("create job by-hand --from=cronjob/nightly")?;
    for job in ["counted", "indexed", "by-hand"] {
        lab.kubectl(&format!("wait --for=condition=Complete job/{job} --timeout=60s"))?;
    }
    lab.kubectl("wait --for=condition=Failed job/failing --timeout=60s")?;
    let reason = lab.kubectl("get job failing -o jsonpath={.status.conditions[?(@.type==\"Failed\")].reason}")?;
    ensure!(reason == "BackoffLimitExceeded", "the failed job's reason: {reason}");
    let logs = lab.kubectl("logs -l batch.kubernetes.io/job-name=indexed --tail=-1")?;
    ensure!(logs.contains("index 0") && logs.contains("index 1"), "the indexed job's logs: {logs}");
    lab.kubectl("delete cronjob/nightly job/counted job/indexed job/failing --timeout=60s").map(drop)
}

fn probes(lab: &Lab) -> Result<()> {
    apply(
        lab,
        r#"
apiVersion: v1
kind: Pod
metadata: {name: probed}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: sluice.local/echo:latest
      imagePullPolicy: IfNotPresent
      command: [sh, -c, "sleep 1; touch /tmp/started; sleep 1000"]
      startupProbe: {exec: {command: [test, -f, /tmp/started]}, periodSeconds: 1, failureThreshold: 60}
      readinessProbe: {exec: {command: [test, "!", -f, /tmp/busy]}, periodSeconds: 1}
      livenessProbe: {exec: {command: [test, "!", -f, /tmp/broken]}, periodSeconds: 1, failureThreshold: 1}
"#,
    )?;
    lab.kubectl("wait --for=condition=Ready pod/probed --timeout=60s")?;
    sh(lab, "probed", "touch /tmp/busy")?;
    lab.kubectl("wait --for=condition=Ready=false pod/probed --timeout=60s")?;
    sh(lab, "probed", "rm /tmp/busy")?;
    lab.kubectl("wait --for=condition=Ready pod/probed --timeout=60s")?;
    sh(lab, "probed", "touch /tmp/broken")?;
    lab.kubectl("wait --for=jsonpath={.status.containerStatuses[0].restartCount}=1 pod/probed --timeout=60s")?;
    lab.kubectl("wait --for=condition=Ready pod/probed --timeout=60s")?;
    let events = lab.kubectl("get events --field-selector involvedObject.name=probed")?;
    for line in ["Liveness probe failed", "Readiness probe failed", "failed liveness probe, will be restarted"] {
        ensure!(events.contains(line), "{line:?} is missing from {events}");
    }
    lab.kubectl("delete pod probed --timeout=60s").map(drop)
}

fn init_containers(lab: &Lab) -> Result<()> {
    apply(
        lab,
        r#"
apiVersion: v1
kind: Pod
metadata: {name: ordered}
spec:
  restartPolicy: Never
  volumes: [{name: log, emptyDir: {}}]
  initContainers:
    - {name: first, IMAGE, command: [sh, -c, "echo first >> /log/order"], volumeMounts: [{name: log, mountPath: /log}]}
    - {name: helper, IMAGE, restartPolicy: Always, command: [sh, -c, "echo helper >> /log/order; trap 'exit 0' TERM; while :; do sleep 0.1; done"], startupProbe: {exec: {command: [grep, helper, /log/order]}, periodSeconds: 1}, volumeMounts: [{name: log, mountPath: /log}]}
    - {name: last, IMAGE, command: [sh, -c, "echo last >> /log/order"], volumeMounts: [{name: log, mountPath: /log}]}
  containers:
    - {name: main, IMAGE, command: [cat, /log/order], volumeMounts: [{name: log, mountPath: /log}]}
---
apiVersion: v1
kind: Pod
metadata: {name: hindered}
spec:
  restartPolicy: Never
  initContainers: [{name: first, IMAGE, command: ["false"]}]
  containers: [{name: main, IMAGE, command: ["true"]}]
"#,
    )?;
    lab.kubectl("wait --for=jsonpath={.status.phase}=Succeeded pod/ordered --timeout=60s")?;
    let order = lab.kubectl("logs ordered -c main")?;
    ensure!(order == "first\nhelper\nlast\n", "the order: {order:?}");
    lab.kubectl("wait --for=jsonpath={.status.phase}=Failed pod/hindered --timeout=60s")?;
    let waiting = lab.kubectl("get pod hindered -o jsonpath={.status.containerStatuses[0].state.waiting.reason}")?;
    ensure!(waiting == "PodInitializing", "a container behind a failed init container: {waiting:?}");
    lab.kubectl("delete pod ordered hindered --timeout=60s").map(drop)
}

fn volumes_follow(lab: &Lab) -> Result<()> {
    lab.kubectl("create configmap words --from-literal=word=one")?;
    lab.kubectl("create secret generic keys --from-literal=key=one")?;
    apply(
        lab,
        r#"
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: all, projected: {sources: [{configMap: {name: words}}, {secret: {name: keys}}]}}]
  containers:
    - {name: main, IMAGE, command: [sh, -c, "sleep 1000"], volumeMounts: [{name: all, mountPath: /all}]}
"#,
    )?;
    lab.kubectl("wait --for=condition=Ready pod/reader --timeout=60s")?;
    lab.kubectl_words(&["patch", "configmap", "words", "-p", r#"{"data":{"word":"two"}}"#])?;
    lab.kubectl_words(&["patch", "secret", "keys", "-p", r#"{"stringData":{"key":"two"}}"#])?;
    let follow =
        "for i in $(seq 600); do test \"$(cat /all/word /all/key)\" = twotwo && exit 0; sleep 0.1; done; exit 1";
    sh(lab, "reader", follow)?;
    lab.kubectl("delete pod/reader configmap/words secret/keys --timeout=60s").map(drop)
}

fn ways_in(lab: &Lab) -> Result<()> {
    let file = lab.nodes()[0].data_dir().with_file_name("carried");
    std::fs::write(&file, "carried over\n")?;
    let path = file.display();
    lab.kubectl(&format!("cp {path} client:/tmp/carried"))?;
    let inside = sh(lab, "client", "cat /tmp/carried")?;
    ensure!(inside == "carried over\n", "in the pod: {inside:?}");
    lab.kubectl(&format!("cp client:/tmp/carried {path}.back"))?;
    ensure!(std::fs::read_to_string(format!("{path}.back"))? == "carried over\n", "back on the node");

    apply(
        lab,
        r#"
apiVersion: v1
kind: Pod
metadata: {name: asker}
spec:
  restartPolicy: Never
  containers: [{name: main, IMAGE, stdin: true, stdinOnce: true, command: [sh, -c, "read answer; echo heard $answer"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: server}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, IMAGE, readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}}]
"#,
    )?;
    lab.kubectl("wait --for=condition=Ready pod/asker pod/server --timeout=60s")?;
    let config = lab.nodes()[0].data_dir().join("admin.kubeconfig");
    let attach = format!("echo yes | KUBECONFIG={} kubectl attach -i asker", config.display());
    output(lab.nodes()[0].command("sh").args(["-c", &attach]))?;
    lab.kubectl("wait --for=jsonpath={.status.phase}=Succeeded pod/asker --timeout=60s")?;
    let heard = lab.kubectl("logs asker")?;
    ensure!(heard == "heard yes\n", "the attached pod's log: {heard:?}");

    let mut command = lab.nodes()[0].kubectl();
    let mut forward = command.args(["port-forward", "pod/server", "18080:8080"]).stdout(Stdio::piped()).spawn()?;
    // Kept: kubectl says more, and must not find its output closed.
    let mut output_of_kubectl = BufReader::new(forward.stdout.take().context("no output")?);
    let mut said = String::new();
    output_of_kubectl.read_line(&mut said)?;
    let asked = output(&mut lab.nodes()[0].echo(&["get", "http://127.0.0.1:18080/"]));
    forward.kill()?;
    forward.wait()?;
    ensure!(asked?.starts_with("server\n"), "through the forwarded port, after {said:?}");
    lab.kubectl("delete pod asker server client --timeout=60s").map(drop)
}

fn custom(lab: &Lab) -> Result<()> {
    apply(
        lab,
        r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: valves.plumbing.example.com}
spec:
  group: plumbing.example.com
  scope: Namespaced
  names: {plural: valves, singular: valve, kind: Valve, shortNames: [vl]}
  versions:
    - name: v1
      served: true
      storage: true
      subresources: {status: {}}
      additionalPrinterColumns: [{name: Flow, type: integer, jsonPath: .spec.flow}]
      schema:
        openAPIV3Schema:
          type: object
          properties:
            spec:
              type: object
              description: What the valve should do.
              required: [flow]
              properties:
                flow: {type: integer, minimum: 1, description: Litres in a second.}
                state: {type: string, enum: [open, closed], default: open}
"#,
    )?;
    lab.kubectl("wait --for=condition=Established crd/valves.plumbing.example.com --timeout=60s")?;
    lab.apply(&valve("main", "flow: 3"))?;
    let shown = lab.kubectl("get vl main --no-headers -o custom-columns=F:.spec.flow,S:.spec.state")?;
    ensure!(shown.split_whitespace().eq(["3", "open"]), "with its default: {shown}");
    let table = lab.kubectl("get valves")?;
    ensure!(table.contains("FLOW"), "its own column: {table}");
    let explained = lab.kubectl("explain valve.spec")?;
    ensure!(explained.contains("Litres in a second."), "explain: {explained}");
    let refused = format!("{:#}", lab.apply(&valve("dry", "flow: 0")).err().context("flow 0 must be refused")?);
    ensure!(refused.contains("spec.flow"), "{refused}");
    lab.kubectl("delete crd valves.plumbing.example.com --timeout=60s").map(drop)
}

fn valve(name: &str, spec: &str) -> String {
    format!("apiVersion: plumbing.example.com/v1\nkind: Valve\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
}

fn rollback(lab: &Lab) -> Result<()> {
    lab.kubectl("create deployment turn --image=sluice.local/echo:latest --replicas=1 -- sh -c true")?;
    lab.kubectl("wait --for=create rs -l app=turn --timeout=60s")?;
    lab.kubectl("set image deployment/turn echo=sluice.local/echo:absent")?;
    let current = "jsonpath={.metadata.annotations.deployment\\.kubernetes\\.io/revision}";
    lab.kubectl(&format!("wait --for={current}=2 deployment/turn --timeout=60s"))?;
    lab.kubectl("rollout undo deployment/turn")?;
    lab.kubectl(&format!("wait --for={current}=3 deployment/turn --timeout=60s"))?;
    let sets = lab.kubectl("get rs -l app=turn -o name")?;
    ensure!(sets.lines().count() == 2, "the rollback made a third ReplicaSet: {sets}");
    lab.kubectl("delete deployment turn --timeout=60s").map(drop)
}
