//! The sample's pods, and who of them answers whom: what stories of policies ask.

use anyhow::{Result, bail, ensure};

use crate::Lab;

const MANIFEST: &str = include_str!("../../../xtask/samples/echo.yaml");

/// How often something is tried that holds as soon as the nodes have heard of it; an attempt that is denied takes 3 s.
const ATTEMPTS: usize = 10;

/// The pods of the sample, on more than one node.
pub struct Echoes {
    /// Name and address of the first one.
    pub first: (String, String),
    /// The others' addresses: of the same node and of another one, if there are both.
    pub others: Vec<String>,
}

impl Echoes {
    /// Starts them, and waits until they run.
    pub fn start(lab: &Lab) -> Result<Self> {
        lab.apply(MANIFEST)?;
        lab.kubectl("rollout status deployment/echo --timeout=120s")?;
        let listed = lab.kubectl(
            "get pods -l app=echo -o jsonpath={range.items[*]}{.metadata.name}={.status.podIP}={.spec.nodeName}{\"\\n\"}{end}",
        )?;
        let pods: Vec<Vec<&str>> = listed.lines().map(|line| line.split('=').collect()).collect();
        ensure!(pods.iter().any(|pod| pod[2] != pods[0][2]), "all pods are on one node: {pods:?}");
        let first = (pods[0][0].to_owned(), pods[0][1].to_owned());
        Ok(Self { first, others: pods[1..].iter().map(|pod| pod[1].to_owned()).collect() })
    }

    /// Which of the others answer the pod of this name.
    pub fn asked(&self, lab: &Lab, from: &str) -> Vec<bool> {
        let ask = |to: &String| lab.kubectl(&format!("exec {from} -- /echo get http://{to}:8080/")).is_ok();
        self.others.iter().map(ask).collect()
    }

    /// Waits until all of them do, or none.
    pub fn until(&self, lab: &Lab, from: &str, answered: bool) -> Result<()> {
        for _ in 0..ATTEMPTS {
            if self.asked(lab, from).iter().all(|one| *one == answered) {
                return Ok(());
            }
        }
        bail!("from {from} to {:?}, answered should be {answered}: {:?}", self.others, self.asked(lab, from))
    }
}
