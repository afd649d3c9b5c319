//! Network policies through the API, on two nodes: what a pod may be asked, by whom, from the first packet of a new pod on, and
//! again when a policy goes.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use sluice_e2e::{Echoes, Lab, Options, Shape, sample_image, step};

const DENY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny}
spec:
  podSelector: {matchLabels: {app: echo}}
";

const ALLOW: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow}
spec:
  podSelector: {matchLabels: {app: echo}}
  ingress:
  - from:
    - podSelector: {matchLabels: {app: echo}}
    ports:
    - {port: http}
";

const STRANGER: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: quiet}
spec:
  podSelector: {matchLabels: {app: stranger}}
  policyTypes: [Egress]
  egress:
  - to:
    - podSelector: {matchLabels: {app: nobody}}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, labels: {app: stranger}}
spec:
  containers:
  - {name: main, image: 'sluice.local/echo:latest', imagePullPolicy: IfNotPresent}
";

#[test]
fn policies_hold_from_the_api_to_the_packet() -> Result<()> {
    let mut lab = Lab::start(&Options { nodes: 2, shape: Shape::Shared, ..Options::one("sea") })?;
    lab.import(&sample_image())?;
    let echoes = Echoes::start(&lab)?;
    let (first, own) = (echoes.first.0.as_str(), &echoes.first.1);
    step("everybody may ask without a policy", || echoes.until(&lab, first, true))?;
    step("a policy without rules denies", || {
        lab.apply(DENY)?;
        echoes.until(&lab, first, false)?;
        // The node's probes are no business of policies, nor is what a pod asks itself.
        lab.kubectl(&format!("exec {first} -- /echo get http://{own}:8080/"))?;
        lab.kubectl("wait --for=condition=Ready pods -l app=echo --timeout=30s").map(drop)
    })?;
    step("another one allows pods by label and port by name", || {
        lab.apply(ALLOW)?;
        echoes.until(&lab, first, true)?;
        lab.kubectl(&format!("exec {first} -- /echo get http://echo/ --distinct 3"))?;
        let datagram = lab.kubectl(&format!("exec {first} -- /echo udp {}:8080 x", echoes.others[0]));
        ensure!(datagram.is_err(), "only TCP is allowed: {datagram:?}");
        Ok(())
    })?;
    step("a new pod is a stranger from its first packet on, and may itself send to nobody", || {
        lab.apply(STRANGER)?;
        lab.kubectl("wait --for=condition=Ready pod/stranger --timeout=60s")?;
        ensure!(echoes.asked(&lab, "stranger").iter().all(|one| !one), "the stranger was answered");
        let address = lab.kubectl("get pod stranger -o jsonpath={.status.podIP}")?;
        lab.kubectl(&format!("exec {first} -- /echo get http://{address}:8080/")).map(drop)
    })?;
    step("what was denied stays denied without the daemons", || {
        for number in [2, 1] {
            lab.node(number).end(Signal::SIGKILL)?;
        }
        for number in [1, 2] {
            lab.node(number).restart()?;
        }
        lab.kubectl("wait --for=condition=Ready node --all --timeout=60s")?;
        ensure!(echoes.asked(&lab, "stranger").iter().all(|one| !one), "the stranger was answered");
        echoes.until(&lab, first, true)
    })?;
    step("when the policies go, so do their bounds", || {
        lab.kubectl("delete networkpolicy --all")?;
        echoes.until(&lab, "stranger", true)
    })
}
