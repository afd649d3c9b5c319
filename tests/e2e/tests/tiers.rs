//! Policies of the whole cluster through the API, on two nodes: their kind is installed while pods run, its policies hold, also
//! across restarts, and all is free again when the kind goes.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use sluice_e2e::{Lab, Options, Shape, sample_image, step};

const MANIFEST: &str = include_str!("../../../xtask/samples/echo.yaml");

/// How often something is tried that holds as soon as the nodes have heard of it; an attempt that is denied takes 3 s.
const ATTEMPTS: usize = 10;

/// As network-policy-api's, without what validates.
const KIND: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: clusternetworkpolicies.policy.networking.k8s.io
  annotations: {api-approved.kubernetes.io: 'https://github.com/kubernetes-sigs/network-policy-api/pull/347'}
spec:
  group: policy.networking.k8s.io
  scope: Cluster
  names: {kind: ClusterNetworkPolicy, listKind: ClusterNetworkPolicyList, plural: clusternetworkpolicies, singular: clusternetworkpolicy, shortNames: [cnp]}
  versions:
  - name: v1alpha2
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, x-kubernetes-preserve-unknown-fields: true}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
";

const POLICIES: &str = "
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: quiet}
spec:
  tier: Admin
  priority: 10
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: echo}}}}
  ingress:
  - name: nobody
    action: ACTION
    from:
    - namespaces: {matchLabels: {kubernetes.io/metadata.name: default}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow}
spec:
  podSelector: {matchLabels: {app: echo}}
  ingress:
  - from:
    - podSelector: {}
";

#[test]
fn policies_of_the_cluster_hold_while_their_kind_is_installed() -> Result<()> {
    let mut lab = Lab::start(&Options { nodes: 2, shape: Shape::Shared, ..Options::one("tide") })?;
    lab.import(&sample_image())?;
    lab.apply(MANIFEST)?;
    lab.kubectl("rollout status deployment/echo --timeout=120s")?;
    let listed = lab.kubectl(
        "get pods -l app=echo -o jsonpath={range.items[*]}{.metadata.name}={.status.podIP}={.spec.nodeName}{\"\\n\"}{end}",
    )?;
    let pods: Vec<Vec<&str>> = listed.lines().map(|line| line.split('=').collect()).collect();
    ensure!(pods.iter().any(|pod| pod[2] != pods[0][2]), "all pods are on one node: {pods:?}");
    let first = pods[0][0];
    let others: Vec<&str> = pods[1..].iter().map(|pod| pod[1]).collect();
    let asked = |lab: &Lab| -> Vec<bool> {
        let ask = |to: &&str| lab.kubectl(&format!("exec {first} -- /echo get http://{to}:8080/")).is_ok();
        others.iter().map(ask).collect()
    };
    let until = |lab: &Lab, answered: bool| -> Result<()> {
        for _ in 0..ATTEMPTS {
            if asked(lab).iter().all(|one| *one == answered) {
                return Ok(());
            }
        }
        anyhow::bail!("{first} to {others:?}, answered should be {answered}: {:?}", asked(lab))
    };
    step("everybody may ask before the kind is there", || until(&lab, true))?;
    step("the kind is installed, and a policy of it denies what a NetworkPolicy allows", || {
        lab.apply(KIND)?;
        lab.kubectl(
            "wait --for=condition=Established crd/clusternetworkpolicies.policy.networking.k8s.io --timeout=30s",
        )?;
        lab.apply(&POLICIES.replace("ACTION", "Deny"))?;
        until(&lab, false)?;
        // The node's probes are no business of policies.
        lab.kubectl("wait --for=condition=Ready pods -l app=echo --timeout=30s").map(drop)
    })?;
    step("what it passes on is the NetworkPolicy's", || {
        lab.apply(&POLICIES.replace("ACTION", "Pass"))?;
        until(&lab, true)?;
        lab.apply(&POLICIES.replace("ACTION", "Deny"))?;
        until(&lab, false)
    })?;
    step("what was denied stays denied when the daemons start again", || {
        for number in [2, 1] {
            lab.node(number).end(Signal::SIGKILL)?;
        }
        for number in [1, 2] {
            lab.node(number).restart()?;
        }
        lab.kubectl("wait --for=condition=Ready node --all --timeout=60s")?;
        ensure!(asked(&lab).iter().all(|one| !one), "one was answered");
        lab.kubectl("delete networkpolicy --all")?;
        ensure!(asked(&lab).iter().all(|one| !one), "one was answered");
        Ok(())
    })?;
    step("when the kind goes, so do its policies", || {
        lab.kubectl("delete crd clusternetworkpolicies.policy.networking.k8s.io")?;
        until(&lab, true)
    })
}
