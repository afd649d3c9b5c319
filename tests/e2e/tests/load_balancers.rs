//! Addresses of load balancers, asked from a machine beside the nodes: found by ARP, answered, followed when the announcing
//! node dies or the endpoint moves, shared, and released.

use std::{
    fs::File,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::Signal,
};
use sluice_e2e::{Lab, Options, run, sample_image, step};

const NAME: &str = "selb";
/// The bridge's namespace: the client is on it.
const OUTSIDE: &str = "selb-net";
const CLIENT: &str = "172.30.0.1";
/// How long a try may take; a failed one takes at least so long.
const TRY: Duration = Duration::from_millis(100);
/// Failed tries in a row until the address must be elsewhere: three seconds.
const LOST: usize = 30;
/// Tries for what takes as long as it takes on a busy machine.
const PATIENCE: usize = 600;

const MANIFEST: &str = r#"
apiVersion: sluice.dev/v1
kind: LoadBalancerPool
metadata: {name: front}
spec:
  blocks: [{start: 172.30.0.200, stop: 172.30.0.203}]
  announcement: {nodeSelector: {matchLabels: {edge: "yes"}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      nodeSelector: {kubernetes.io/hostname: node1}
      containers:
      - name: main
        image: sluice.local/echo:latest
        imagePullPolicy: IfNotPresent
        args: [serve, --drain, "0"]
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web, annotations: {sluice.dev/sharing-key: front}}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"#;

const ALSO: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: also, annotations: {sluice.dev/sharing-key: front}}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 81, targetPort: 8080}]}
"#;

/// One request from outside: the answer's second line is who asked, as the pod sees it.
fn ask(port: u16) -> Result<String> {
    let address = SocketAddr::from(([172, 30, 0, 200], port));
    let once = || -> Result<String> {
        setns(File::open(format!("/run/netns/{OUTSIDE}"))?, CloneFlags::CLONE_NEWNET)?;
        let mut stream = TcpStream::connect_timeout(&address, TRY)?;
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).context("the answer is cut short")
    };
    std::thread::scope(|scope| scope.spawn(once).join().map_err(|_| anyhow::anyhow!("the client panicked"))?)
}

/// Asks until it is answered, at most so many times.
fn answered(port: u16, tries: usize) -> Result<String> {
    let mut last = None;
    for _ in 0..tries {
        let start = Instant::now();
        match ask(port) {
            Ok(answer) => return Ok(answer),
            Err(error) => last = Some(error),
        }
        std::thread::sleep(TRY.saturating_sub(start.elapsed()));
    }
    bail!("not answered in {tries} tries: {last:?}\n{}", run(&format!("ip -n {OUTSIDE} neigh"))?)
}

fn logs(lab: &Lab) -> String {
    lab.nodes().iter().map(|node| format!("{}:\n{}\n", node.name, node.log_tail())).collect()
}

fn announcer(lab: &Lab) -> Result<String> {
    lab.kubectl("get loadbalancerannouncement 172.30.0.200 -o jsonpath={.status.node}")
}

fn until_announced_by(lab: &Lab, node: &str) -> Result<()> {
    lab.kubectl(&format!(
        "wait --for=jsonpath={{.status.node}}={node} loadbalancerannouncement/172.30.0.200 --timeout=60s"
    ))
    .map(drop)
    .with_context(|| {
        lab.nodes().iter().map(|node| format!("{}:\n{}\n", node.name, node.log_tail())).collect::<String>()
    })
}

#[test]
fn an_address_is_served_to_the_outside() -> Result<()> {
    let mut lab = Lab::start(&Options { nodes: 3, ..Options::one(NAME) })?;
    run(&format!("ip -n {OUTSIDE} addr add {CLIENT}/24 dev br0"))?;
    lab.import(&sample_image())?;
    lab.kubectl("label node node2 node3 edge=yes")?;
    lab.apply(MANIFEST)?;
    lab.kubectl("rollout status deployment/web --timeout=120s")?;
    step("the Service gets the first address and answers there", || {
        lab.kubectl("wait --for=jsonpath={.status.loadBalancer.ingress[0].ip}=172.30.0.200 service/web --timeout=60s")?;
        answered(80, PATIENCE).map(drop)
    })?;
    let first = announcer(&lab)?;
    ensure!(["node2", "node3"].contains(&first.as_str()), "announced by {first:?}");
    let number: usize = first.trim_start_matches("node").parse()?;
    let second = if number == 2 { "node3" } else { "node2" };

    step("a daemon that is killed and comes back moves nothing", || {
        lab.node(number).end(Signal::SIGKILL)?;
        answered(80, LOST)?;
        lab.node(number).restart()?;
        run(&format!("ip -n {OUTSIDE} neigh flush all"))?;
        answered(80, LOST)?;
        ensure!(announcer(&lab)? == first, "announced by {} and not {first}\n{}", announcer(&lab)?, logs(&lab));
        Ok(())
    })?;
    step("the next node answers within three seconds of a node's death", || {
        run(&format!("ip -n {OUTSIDE} link set port{number} down"))?;
        answered(80, LOST)?;
        until_announced_by(&lab, second)
    })?;
    step("a node that is back disturbs nobody", || {
        run(&format!("ip -n {OUTSIDE} link set port{number} up"))?;
        answered(80, LOST)?;
        lab.kubectl(&format!("wait --for=condition=Ready node/{first} --timeout=60s")).map(drop)
    })?;
    step("two Services share the address", || {
        lab.apply(ALSO)?;
        lab.kubectl(
            "wait --for=jsonpath={.status.loadBalancer.ingress[0].ip}=172.30.0.200 service/also --timeout=60s",
        )?;
        answered(81, PATIENCE)?;
        answered(80, LOST).map(drop)
    })?;
    step("with the policy Local the address follows the endpoint, and clients are seen as they are", || {
        lab.kubectl("delete service also")?;
        lab.kubectl("patch service web -p {\"spec\":{\"externalTrafficPolicy\":\"Local\"}}")?;
        for node in ["node2", "node3"] {
            let selector = format!(
                "{{\"spec\":{{\"template\":{{\"spec\":{{\"nodeSelector\":{{\"kubernetes.io/hostname\":\"{node}\"}}}}}}}}}}"
            );
            lab.kubectl_words(&["patch", "deployment", "web", "-p", &selector])?;
            lab.kubectl("rollout status deployment/web --timeout=120s")?;
            until_announced_by(&lab, node)?;
            let answer = answered(80, PATIENCE)?;
            ensure!(answer.contains(CLIENT), "the pod saw another client: {answer:?}");
        }
        Ok(())
    })?;
    step("an address that is released is nowhere", || {
        lab.kubectl("delete service web")?;
        lab.kubectl("wait --for=delete loadbalancerannouncement/172.30.0.200 --timeout=60s")?;
        let gone = || -> Result<bool> {
            run(&format!("ip -n {OUTSIDE} neigh flush all"))?;
            ensure!(ask(80).is_err(), "somebody answers still");
            Ok(!run(&format!("ip -n {OUTSIDE} neigh show to 172.30.0.200"))?.contains("lladdr"))
        };
        for _ in 0..PATIENCE {
            if gone()? {
                return Ok(());
            }
        }
        bail!("somebody says that the address is there")
    })
}
