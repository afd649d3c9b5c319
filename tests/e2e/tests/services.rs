//! What Services and ports do on one node beyond plain balancing: session affinity switched on and off, ports of the
//! host, a Service that nobody serves, and one with an address of a further range.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sluice_e2e::{Lab, Options, output, sample_image, step, until};

#[test]
fn services_keep_their_options() -> Result<()> {
    let mut lab = Lab::start(&Options::one("se6"))?;
    lab.import(&sample_image())?;
    step("session affinity follows the Service", || affinity(&lab))?;
    step("the node's metrics count what was sent", || metrics(&lab))?;
    step("connections are followed, by whoever may", || followed(&lab))?;
    step("one screen says what goes on", || screen(&lab))?;
    step("a host port is served, over TCP and UDP", || host_ports(&lab))?;
    step("a Service without endpoints refuses at once", || nobody(&lab))?;
    step("a further ServiceCIDR is served like the first", || further_range(&lab))?;
    step("the node itself reaches Services by SCTP", || associations(&mut lab))
}

fn affinity(lab: &Lab) -> Result<()> {
    lab.apply(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: sticky}
spec:
  replicas: 3
  selector: {matchLabels: {app: sticky}}
  template:
    metadata: {labels: {app: sticky}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: main, image: "sluice.local/echo:latest", imagePullPolicy: IfNotPresent, ports: [{containerPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec: {selector: {app: sticky}, ports: [{port: 80, targetPort: 8080}]}
"#,
    )?;
    lab.kubectl("rollout status deployment/sticky --timeout=120s")?;
    lab.kubectl("exec deployment/sticky -- /echo get http://sticky/ --distinct 3")?;
    lab.kubectl("patch service sticky -p {\"spec\":{\"sessionAffinity\":\"ClientIP\"}}")?;
    // Twelve requests that are not kept together meet one pod of three by chance once in 170,000 times.
    let kept = "for i in $(seq 100); do \
                test $(/echo get http://sticky/ --times 12 | grep ^sticky | sort -u | wc -l) = 1 && exit 0; \
                sleep 0.1; done; exit 1";
    lab.kubectl_words(&["exec", "deployment/sticky", "--", "sh", "-c", kept])?;
    lab.kubectl("patch service sticky -p {\"spec\":{\"sessionAffinity\":\"None\"}}")?;
    let parted = "for i in $(seq 100); do /echo get http://sticky/ --distinct 3 && exit 0; sleep 0.1; done; exit 1";
    lab.kubectl_words(&["exec", "deployment/sticky", "--", "sh", "-c", parted]).map(drop)
}

/// What a pod asks of a Service is told with both names, by the node's socket and through the API server; there by RBAC.
fn followed(lab: &Lab) -> Result<()> {
    let node = &lab.nodes()[0];
    let follow = |more: &[&str]| node.sluice(&[&["flows", "--follow", "--json", "--service", "sticky"], more].concat());
    first_of(lab, follow(&["--pod", "sticky-nobody"]), false)?;
    first_of(lab, follow(&["--namespace", "default", "--port", "80", "--protocol", "tcp"]), true)?;
    first_of(lab, follow(&["--cluster"]), true)?;
    lab.kubectl("create serviceaccount watcher")?;
    let token = lab.kubectl("create token watcher")?;
    let server = lab.kubectl("config view --raw -o jsonpath={.clusters[0].cluster.server}")?;
    let authority = lab.kubectl("config view --raw -o jsonpath={.clusters[0].cluster.certificate-authority-data}")?;
    let file = lab.dir().join("watcher.kubeconfig");
    let kubeconfig = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, contexts: [{{name: c, context: {{cluster: c, user: u}}}}], \
         clusters: [{{name: c, cluster: {{server: \"{}\", certificate-authority-data: \"{}\"}}}}], \
         users: [{{name: u, user: {{token: \"{}\"}}}}]}}",
        server.trim(),
        authority.trim(),
        token.trim()
    );
    std::fs::write(&file, kubeconfig)?;
    let path = file.display().to_string();
    let as_watcher = || follow(&["--node", &node.name, "--kubeconfig", &path]);
    let refused = as_watcher().output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    let expected = format!(
        "nodes \"{}\" is forbidden: User \"system:serviceaccount:default:watcher\" cannot get resource \"nodes/proxy\" in \
         API group \"\" at the cluster scope",
        node.name
    );
    ensure!(!refused.status.success() && said.contains(&expected), "{said}");
    lab.kubectl("create clusterrole watch-flows --verb=get --resource=nodes/proxy")?;
    lab.kubectl("create clusterrolebinding watch-flows --clusterrole=watch-flows --serviceaccount=default:watcher")?;
    first_of(lab, as_watcher(), true)
}

/// Services and pods with their rates; a script gets the same without a terminal.
fn screen(lab: &Lab) -> Result<()> {
    let node = &lab.nodes()[0];
    let loop_of_requests = "for i in $(seq 40); do /echo get http://sticky/ --times 5 >/dev/null; done";
    std::thread::scope(|scope| {
        let busy =
            scope.spawn(|| lab.kubectl_words(&["exec", "deployment/sticky", "--", "sh", "-c", loop_of_requests]));
        let once = output(&mut node.sluice(&["top", "--once", "--interval", "2"]))?;
        for part in ["SERVICE ", "CONNECT 50% / 99%", "default/sticky:80 ", "POD ", "default/sticky-", "DROPS/S"] {
            ensure!(once.contains(part), "{part} is not in\n{once}");
        }
        let rates = output(&mut node.sluice(&["services", "--rates", "1", "--json"]))?;
        ensure!(rates.contains(r#""name": "default/sticky:80""#), "{rates}");
        busy.join().map_err(|_| anyhow::anyhow!("the requests failed"))??;
        let refused = node.sluice(&["top"]).stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(!refused.status.success() && said.contains("sluice top --once"), "{said}");
        Ok(())
    })
}

/// Asks again and again until the first connection is told; without `told`, nothing is.
fn first_of(lab: &Lab, mut follow: Command, told: bool) -> Result<()> {
    let mut child = follow.stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let attempt = || -> Result<bool> {
        for _ in 0..if told { 20 } else { 2 } {
            lab.kubectl("exec deployment/sticky -- /echo get http://sticky/")?;
            let Ok(line) = receiver.recv_timeout(Duration::from_secs(1)) else { continue };
            ensure!(told, "{line}");
            for part in [
                r#""service":"default/sticky:80""#,
                r#""source":{"address":"#,
                r#""pod":"default/sticky-"#,
                r#""verdict":"forwarded""#,
            ] {
                ensure!(line.contains(part), "{part} is not in {line}");
            }
            return Ok(true);
        }
        Ok(false)
    };
    let seen = attempt();
    child.kill()?;
    child.wait()?;
    if seen? != told {
        bail!("nothing was told");
    }
    Ok(())
}

/// Requests of a pod, each over a connection of its own, beside what Prometheus would read.
fn metrics(lab: &Lab) -> Result<()> {
    const REQUESTS: f64 = 12.0;
    let node = &lab.nodes()[0].name;
    let read = || lab.kubectl(&format!("get --raw /api/v1/nodes/{node}/proxy/metrics"));
    let total = |text: &str, name: &str, label: &str| -> f64 {
        let lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(label));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    };
    let before = read()?;
    lab.kubectl("exec deployment/sticky -- /echo get http://sticky/ --times 12")?;
    let after = read()?;
    for (name, label) in [
        ("sluice_service_connections_total", "service=\"sticky\""),
        ("sluice_service_tcp_connect_duration_seconds_count", "service=\"sticky\""),
        ("sluice_pod_tcp_connect_duration_seconds_count", "pod=\"sticky-"),
        ("sluice_pod_tcp_accepted_connections_total", "pod=\"sticky-"),
    ] {
        let more = total(&after, name, label) - total(&before, name, label);
        ensure!(more == REQUESTS, "{name} grew by {more}");
    }
    let (name, label) = ("sluice_dns_responses_total", "rcode=\"NOERROR\"");
    ensure!(total(&after, name, label) > total(&before, name, label), "no name was asked for");
    let programmed =
        after.lines().find_map(|line| line.strip_prefix("kubeproxy_network_programming_duration_seconds_count "));
    ensure!(programmed.is_some_and(|count| count != "0"), "no change was timed from its cause: {programmed:?}");
    ensure!(total(&after, "sluice_probe_attached", "probe=") == 4.0, "a probe does not run");
    Ok(())
}

fn host_ports(lab: &Lab) -> Result<()> {
    lab.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: doorway}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: sluice.local/echo:latest
    imagePullPolicy: IfNotPresent
    ports:
    - {containerPort: 8080, hostPort: 18888, protocol: TCP}
    - {containerPort: 8080, hostPort: 18888, protocol: UDP}
"#,
    )?;
    lab.kubectl("wait --for=condition=Ready pod/doorway --timeout=60s")?;
    let node = &lab.nodes()[0];
    for address in ["127.0.0.1", node.address.as_str()] {
        let answer = output(&mut node.echo(&["get", &format!("http://{address}:18888/")]))?;
        ensure!(answer.starts_with("doorway\n"), "TCP by {address}: {answer:?}");
        let answer = output(&mut node.echo(&["udp", &format!("{address}:18888"), "hello"]))?;
        ensure!(answer.contains("doorway"), "UDP by {address}: {answer:?}");
    }
    Ok(())
}

fn nobody(lab: &Lab) -> Result<()> {
    lab.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: nobody}\n\
         spec: {selector: {app: nobody}, clusterIP: 10.96.77.77, ports: [{port: 80}]}\n",
    )?;
    let refused = "for i in $(seq 100); do /echo get http://10.96.77.77/ 2>&1 | grep -q refused && exit 0; \
                   sleep 0.1; done; /echo get http://10.96.77.77/; exit 1";
    lab.kubectl_words(&["exec", "deployment/sticky", "--", "sh", "-c", refused]).map(drop)
}

/// As upstream's "should create Services and serve on different Service CIDRs".
fn further_range(lab: &Lab) -> Result<()> {
    lab.apply(
        "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: further}\n\
         spec: {cidrs: [203.0.113.0/24]}\n",
    )?;
    lab.kubectl("wait --for=condition=Ready servicecidr/further --timeout=60s")?;
    lab.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: further}\n\
         spec: {selector: {app: sticky}, clusterIP: 203.0.113.10, type: NodePort, ports: [{port: 80, targetPort: 8080}]}\n",
    )?;
    let parent = lab.kubectl("get ipaddress 203.0.113.10 --no-headers")?;
    ensure!(parent.contains("services/default/further"), "{parent}");
    let served =
        "for i in $(seq 100); do /echo get http://203.0.113.10/ --distinct 3 && exit 0; sleep 0.1; done; exit 1";
    lab.kubectl_words(&["exec", "deployment/sticky", "--", "sh", "-c", served])?;
    lab.kubectl("exec deployment/sticky -- /echo get http://further/ --distinct 3")?;
    let port = lab.kubectl("get service further -o jsonpath={.spec.ports[0].nodePort}")?;
    let node = &lab.nodes()[0];
    for url in ["http://203.0.113.10/".to_owned(), format!("http://{}:{port}/", node.address)] {
        output(&mut node.echo(&["get", &url, "--distinct", "3"]))?;
    }
    // Nobody's addresses of it are refused on the spot, by pods' packets and the node's.
    let nobody = "/echo get http://203.0.113.99/ 2>&1 | grep -q 'No route to host'";
    lab.kubectl_words(&["exec", "deployment/sticky", "--", "sh", "-c", nobody])?;
    let refused = output(&mut node.echo(&["get", "http://203.0.113.99/"])).err().map(|error| error.to_string());
    ensure!(refused.as_ref().is_some_and(|why| why.contains("No route to host")), "{refused:?}");
    // It is held while the Service has its address, and serves on.
    lab.kubectl("delete servicecidr further --wait=false")?;
    lab.kubectl("wait --for=condition=Ready=false servicecidr/further --timeout=60s")?;
    lab.kubectl("exec deployment/sticky -- /echo get http://further/ --distinct 3")?;
    lab.kubectl("delete service further")?;
    lab.kubectl("wait --for=delete servicecidr/further --timeout=60s").map(drop)
}

/// This kernel may have no SCTP sockets: what would become of their packets is asked of the programs that see them.
fn associations(lab: &mut Lab) -> Result<()> {
    lab.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: calls}\n\
         spec: {selector: {app: sticky}, clusterIP: 10.96.77.78, type: NodePort, ports: [{port: 3868, protocol: SCTP, nodePort: 30868}]}\n",
    )?;
    let node = &lab.nodes()[0];
    for to in ["10.96.77.78:3868".to_owned(), format!("{}:30868", node.address), "127.0.0.1:30868".to_owned()] {
        until(Duration::from_secs(30), || {
            let told = output(&mut node.sluice(&["explain", "node", &to, "--protocol", "sctp", "--output", "json"]))?;
            let told: serde_json::Value = serde_json::from_str(&told)?;
            ensure!(told["fate"]["outcome"] == "delivered" && told["answer"]["fits"] == true, "{to}: {told:#}");
            ensure!(told["fate"]["pod"].to_string().contains("sticky"), "{told:#}");
            ensure!(
                told["steps"].as_array().is_some_and(|steps| steps.iter().any(|step| step["at"] == "own_out")),
                "{told:#}"
            );
            Ok(())
        })?;
    }
    // Nobody needs the link when the daemon starts again.
    lab.kubectl("delete service calls")?;
    lab.kill(1)?;
    lab.restart()?;
    let node = &lab.nodes()[0];
    until(Duration::from_secs(30), || {
        let link =
            output(node.command("ip").args(["link", "show", "sluice.home"])).err().map(|error| error.to_string());
        ensure!(link.as_ref().is_some_and(|why| why.contains("does not exist")), "it is there: {link:?}");
        Ok(())
    })
}
