//! Addresses of load balancers of both families, asked from a machine beside the nodes: found by ARP and neighbour
//! discovery, answered, followed when the announcing node dies or the endpoint moves, shared, and released.

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
use sluice_e2e::{Families, Lab, Options, run, sample_image, step};

const NAME: &str = "selb";
/// The bridge's namespace: the client is on it.
const OUTSIDE: &str = "selb-net";
/// Of both families: where the client is, the addresses that it asks, and what their announcements are called.
const FAMILIES: [(&str, &str, &str); 2] =
    [("172.30.0.1", "172.30.0.200", "172.30.0.200"), ("fd30::1", "fd30::200", "fd30-0-0-0-0-0-0-200")];
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
  blocks: [{start: 172.30.0.200, stop: 172.30.0.203}, {start: 'fd30::200', stop: 'fd30::203'}]
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
spec: {type: LoadBalancer, ipFamilyPolicy: RequireDualStack, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"#;

const ALSO: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: also, annotations: {sluice.dev/sharing-key: front}}
spec: {type: LoadBalancer, ipFamilyPolicy: RequireDualStack, selector: {app: web}, ports: [{port: 81, targetPort: 8080}]}
"#;

/// One request from outside: the answer's second line is who asked, as the pod sees it.
fn ask(ip: &str, port: u16) -> Result<String> {
    let address = SocketAddr::new(ip.parse()?, port);
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

/// Asks each address until it is answered, at most so many times; the pod sees the client as it is, or a node instead.
fn answered(port: u16, tries: usize, as_it_is: bool) -> Result<()> {
    for (client, ip, _) in FAMILIES {
        let mut last = None;
        let answer = (0..tries).find_map(|_| {
            let start = Instant::now();
            let answer = ask(ip, port).map_err(|error| last = Some(error)).ok();
            if answer.is_none() {
                std::thread::sleep(TRY.saturating_sub(start.elapsed()));
            }
            answer
        });
        let Some(answer) = answer else {
            bail!("{ip} does not answer in {tries} tries: {last:?}\n{}", run(&format!("ip -n {OUTSIDE} neigh"))?);
        };
        let seen = answer.lines().any(|line| line.contains(client));
        ensure!(seen || !as_it_is, "the pod saw another client than {client}: {answer:?}");
    }
    Ok(())
}

fn logs(lab: &Lab) -> String {
    lab.nodes().iter().map(|node| format!("{}:\n{}\n", node.name, node.log_tail())).collect()
}

fn announcer(lab: &Lab) -> Result<String> {
    lab.kubectl("get loadbalancerannouncement 172.30.0.200 -o jsonpath={.status.node}")
}

fn until_announced_by(lab: &Lab, name: &str, node: &str) -> Result<()> {
    lab.kubectl(&format!("wait --for=jsonpath={{.status.node}}={node} loadbalancerannouncement/{name} --timeout=60s"))
        .map(drop)
        .with_context(|| {
            lab.nodes().iter().map(|node| format!("{}:\n{}\n", node.name, node.log_tail())).collect::<String>()
        })
}

#[test]
fn an_address_is_served_to_the_outside() -> Result<()> {
    let mut lab = Lab::start_with(&Options { nodes: 3, ..Options::one(NAME) }, Families::Both)?;
    run(&format!("ip -n {OUTSIDE} addr add 172.30.0.1/24 dev br0"))?;
    run(&format!("ip -n {OUTSIDE} addr add fd30::1/64 dev br0 nodad"))?;
    lab.import(&sample_image())?;
    lab.kubectl("label node node2 node3 edge=yes")?;
    lab.apply(MANIFEST)?;
    lab.kubectl("rollout status deployment/web --timeout=120s")?;
    step("the Service gets the first address and answers there", || {
        lab.kubectl("wait --for=jsonpath={.status.loadBalancer.ingress[0].ip}=172.30.0.200 service/web --timeout=60s")?;
        answered(80, PATIENCE, false)
    })?;
    let first = announcer(&lab)?;
    ensure!(["node2", "node3"].contains(&first.as_str()), "announced by {first:?}");
    let number: usize = first.trim_start_matches("node").parse()?;
    let second = if number == 2 { "node3" } else { "node2" };

    step("a daemon that is killed and comes back moves nothing", || {
        lab.node(number).end(Signal::SIGKILL)?;
        answered(80, LOST, false)?;
        lab.node(number).restart()?;
        run(&format!("ip -n {OUTSIDE} neigh flush all"))?;
        answered(80, LOST, false)?;
        ensure!(announcer(&lab)? == first, "announced by {} and not {first}\n{}", announcer(&lab)?, logs(&lab));
        Ok(())
    })?;
    step("the next node answers within three seconds of a node's death, without the API", || {
        lab.node(1).end(Signal::SIGKILL)?;
        run(&format!("ip -n {OUTSIDE} link set port{number} down"))?;
        answered(80, LOST, false)?;
        lab.node(1).restart()?;
        until_announced_by(&lab, FAMILIES[0].2, second)?;
        answered(80, LOST, false)
    })?;
    step("a node that is back disturbs nobody", || {
        run(&format!("ip -n {OUTSIDE} link set port{number} up"))?;
        answered(80, LOST, false)?;
        lab.kubectl(&format!("wait --for=condition=Ready node/{first} --timeout=60s")).map(drop)
    })?;
    step("two Services share the address", || {
        lab.apply(ALSO)?;
        lab.kubectl(
            "wait --for=jsonpath={.status.loadBalancer.ingress[0].ip}=172.30.0.200 service/also --timeout=60s",
        )?;
        answered(81, PATIENCE, false)?;
        answered(80, LOST, false)
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
            for (_, _, name) in FAMILIES {
                until_announced_by(&lab, name, node)?;
            }
            answered(80, PATIENCE, true)?;
        }
        Ok(())
    })?;
    step("an address that is released is nowhere", || {
        lab.kubectl("delete service web")?;
        for (_, _, name) in FAMILIES {
            lab.kubectl(&format!("wait --for=delete loadbalancerannouncement/{name} --timeout=60s"))?;
        }
        let gone = || -> Result<bool> {
            run(&format!("ip -n {OUTSIDE} neigh flush all"))?;
            for (_, ip, _) in FAMILIES {
                ensure!(ask(ip, 80).is_err(), "somebody answers still at {ip}");
                if run(&format!("ip -n {OUTSIDE} neigh show to {ip}"))?.contains("lladdr") {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        for _ in 0..PATIENCE {
            if gone()? {
                return Ok(());
            }
        }
        bail!("somebody says that the address is there")
    })
}
