//! Clusters with addresses of both families, and of IPv6 alone: every pod reaches every pod and every Service in each of
//! them, by name too, from pods, from nodes and from outside; by direct routes and by VXLAN.

use std::{
    net::IpAddr,
    process::{Child, Stdio},
};

use anyhow::{Context, Result, ensure};
use sluice_e2e::{Families, Lab, Options, Shape, host, output, sample_image, target};

const MANIFEST: &str = include_str!("../../../xtask/samples/echo.yaml");

/// The same pods by a name that has IPv6 addresses alone, and by one that has those of the pods.
const NAMES: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: echo6}
spec:
  ipFamilies: [IPv6]
  selector: {app: echo}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: bare}
spec:
  clusterIP: None
  ipFamilies: [IPv6]
  selector: {app: echo}
  ports: [{name: http, port: 8080}]
"#;

/// How often something is asked that is to come soon; each time takes a program's start.
const TRIES: usize = 100;

struct Story {
    lab: Lab,
    families: usize,
}

/// A pod of the sample deployment.
struct Pod {
    name: String,
    node: String,
    ips: Vec<String>,
    hosts: Vec<String>,
}

impl Story {
    fn start(name: &str, shape: Shape, nodes: usize, families: Families) -> Result<Self> {
        let lab = Lab::start_with(&Options { nodes, shape, ..Options::one(name) }, families)?;
        lab.import(&sample_image())?;
        lab.apply(&MANIFEST.replace("replicas: 3", &format!("replicas: {nodes}")))?;
        lab.apply(NAMES)?;
        lab.kubectl("rollout status deployment/echo --timeout=120s")?;
        Ok(Self { lab, families: if families == Families::Both { 2 } else { 1 } })
    }

    fn pods(&self) -> Result<Vec<Pod>> {
        let template = "jsonpath={range .items[*]}{.metadata.name}={.spec.nodeName}={.status.podIPs[*].ip}={.status.hostIPs[*].ip}{\"\\n\"}{end}";
        let told = self.lab.kubectl_words(&["get", "pods", "-l", "app=echo", "-o", template])?;
        let pods = told.lines().filter_map(|line| {
            let [name, node, ips, hosts] = line.split('=').collect::<Vec<_>>()[..] else { return None };
            let words = |text: &str| text.split(' ').map(str::to_owned).collect();
            Some(Pod { name: name.into(), node: node.into(), ips: words(ips), hosts: words(hosts) })
        });
        Ok(pods.collect())
    }

    /// Addresses of a Service.
    fn addresses(&self, service: &str) -> Result<Vec<String>> {
        let told = self.lab.kubectl_words(&["get", "service", service, "-o", "jsonpath={.spec.clusterIPs[*]}"])?;
        Ok(told.split_whitespace().map(str::to_owned).collect())
    }

    /// What a pod gets from a URL.
    fn ask(&self, pod: &str, url: &str) -> Result<String> {
        self.lab.kubectl(&format!("exec {pod} -- /echo get {url}"))
    }

    fn everybody_reaches_everybody(&self) -> Result<()> {
        let pods = self.pods()?;
        let mut nodes: Vec<&str> = pods.iter().map(|pod| pod.node.as_str()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        ensure!(nodes.len() == self.lab.nodes().len(), "the pods are not spread over the nodes: {nodes:?}");
        for pod in &pods {
            ensure!(pod.ips.len() == self.families && pod.hosts.len() == self.families, "{}: {:?}", pod.name, pod.ips);
        }
        let count = pods.len();
        for service in ["echo", "echo-nodeport"] {
            let addresses = self.addresses(service)?;
            ensure!(addresses.len() == self.families, "{service} has {addresses:?}");
            for pod in &pods {
                for address in &addresses {
                    let url = format!("http://{}:80/ --distinct {count}", host(address));
                    self.ask(&pod.name, &url).with_context(|| format!("{} asks {service}", pod.name))?;
                }
            }
        }
        for from in &pods {
            for to in &pods {
                for (own, ip) in from.ips.iter().zip(&to.ips) {
                    let answer = self.ask(&from.name, &format!("http://{}:8080/", host(ip)))?;
                    let client: IpAddr = own.parse()?;
                    ensure!(answer.contains(&format!("client {client}\n")), "{} as seen by {ip}: {answer}", from.name);
                }
            }
            for name in ["echo", "echo6"] {
                self.ask(&from.name, &format!("http://{name}/ --distinct {count}"))?;
            }
            self.ask(&from.name, "http://bare:8080/")?;
        }
        self.node_ports(count)
    }

    /// From every node to every node's addresses, by socket and by packet.
    fn node_ports(&self, count: usize) -> Result<()> {
        let distinct = count.to_string();
        for from in self.lab.nodes() {
            for address in self.lab.nodes().iter().flat_map(|node| &node.addresses) {
                let url = format!("http://{}:30080/", host(address));
                output(&mut from.echo(&["get", &url, "--distinct", &distinct]))?;
            }
        }
        Ok(())
    }
}

/// A server outside of the cluster; ended on drop.
struct Outside(Child);

impl Outside {
    fn start(lab: &Lab) -> Result<Self> {
        let echo = target().join(format!("{}-unknown-linux-gnu/release/echo", std::env::consts::ARCH));
        let mut command = lab.outside(&echo);
        let child = command
            .args(["serve", "--http", "7070", "--udp", "7070"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // One that has ended by itself needs no ending.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Services that were made for one family gain the other; returns when every node's kernel knows of it.
fn widen(story: &Story) -> Result<()> {
    for service in ["echo", "echo-nodeport"] {
        let patch = r#"{"spec":{"ipFamilyPolicy":"RequireDualStack"}}"#;
        story.lab.kubectl_words(&["patch", "service", service, "-p", patch])?;
    }
    let wanted = [story.addresses("echo")?, story.addresses("echo-nodeport")?].concat();
    for node in story.lab.nodes() {
        let knows = |_| {
            let table = output(&mut node.sluice(&["services"])).unwrap_or_default();
            wanted.iter().all(|address| table.contains(address.as_str()))
        };
        ensure!((0..TRIES).any(knows), "{} does not serve all of {wanted:?}", node.name);
    }
    Ok(())
}

#[test]
fn both_families_on_one_link() -> Result<()> {
    let story = Story::start("se7", Shape::Shared, 2, Families::Both)?;
    widen(&story)?;
    story.everybody_reaches_everybody()?;
    // Endpoints are of the first family, slices of each.
    let slices = story.lab.kubectl_words(&[
        "get",
        "endpointslices",
        "-l",
        "kubernetes.io/service-name=echo",
        "-o",
        "jsonpath={.items[*].addressType}",
    ])?;
    let mut kinds: Vec<&str> = slices.split_whitespace().collect();
    kinds.sort_unstable();
    ensure!(kinds == ["IPv4", "IPv6"], "{slices}");
    let old = story.lab.kubectl_words(&["get", "endpoints", "echo", "-o", "jsonpath={.subsets[*].addresses[*].ip}"])?;
    ensure!(old.split_whitespace().count() == 2 && !old.contains(':'), "{old}");
    // A Service that gives its second address back is no longer answered there.
    let six = story.addresses("echo")?.pop().context("no second address")?;
    story.lab.kubectl_words(&["patch", "service", "echo", "-p", r#"{"spec":{"ipFamilyPolicy":"SingleStack"}}"#])?;
    ensure!(story.addresses("echo")?.len() == 1);
    let pod = story.pods()?.remove(0).name;
    let gone = (0..TRIES).any(|_| story.ask(&pod, &format!("http://{}:80/", host(&six))).is_err());
    ensure!(gone, "{six} is still answered");
    Ok(())
}

#[test]
fn both_families_through_the_tunnel_and_to_the_outside() -> Result<()> {
    let story = Story::start("se8", Shape::Routed, 2, Families::Both)?;
    widen(&story)?;
    story.everybody_reaches_everybody()?;
    let _outside = Outside::start(&story.lab)?;
    for pod in story.pods()? {
        let node = story.lab.nodes().iter().find(|node| node.name == pod.node).context("an unknown node")?;
        // The router's own address on the node's link; the pod leaves with its node's.
        for (address, router) in node.addresses.iter().zip([".1", "::1"]) {
            let (network, _) = address.rsplit_once(if router == ".1" { "." } else { "::" }).context("an address")?;
            let url = format!("http://{}:7070/", host(&format!("{network}{router}")));
            let answer = (0..TRIES).find_map(|_| story.ask(&pod.name, &url).ok()).context("nobody answers outside")?;
            ensure!(answer.contains(&format!("client {address}\n")), "{} as seen from outside: {answer}", pod.name);
        }
    }
    Ok(())
}

#[test]
fn ipv6_alone() -> Result<()> {
    let story = Story::start("se9", Shape::Shared, 2, Families::V6)?;
    story.everybody_reaches_everybody()
}
