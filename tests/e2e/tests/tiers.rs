//! Policies of the whole cluster through the API, on two nodes: their kind is installed while pods run, its policies hold, also
//! across restarts, and all is free again when the kind goes.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use sluice_e2e::{Echoes, Lab, Options, Shape, sample_image, step};

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
    let echoes = Echoes::start(&lab)?;
    let first = echoes.first.0.as_str();
    step("everybody may ask before the kind is there", || echoes.until(&lab, first, true))?;
    step("the kind is installed, and a policy of it denies what a NetworkPolicy allows", || {
        lab.apply(KIND)?;
        lab.kubectl(
            "wait --for=condition=Established crd/clusternetworkpolicies.policy.networking.k8s.io --timeout=30s",
        )?;
        lab.apply(&POLICIES.replace("ACTION", "Deny"))?;
        echoes.until(&lab, first, false)?;
        // The node's probes are no business of policies.
        lab.kubectl("wait --for=condition=Ready pods -l app=echo --timeout=30s").map(drop)
    })?;
    step("what it passes on is the NetworkPolicy's", || {
        lab.apply(&POLICIES.replace("ACTION", "Pass"))?;
        echoes.until(&lab, first, true)?;
        lab.apply(&POLICIES.replace("ACTION", "Deny"))?;
        echoes.until(&lab, first, false)
    })?;
    step("what was denied stays denied when the daemons start again", || {
        for number in [2, 1] {
            lab.node(number).end(Signal::SIGKILL)?;
        }
        for number in [1, 2] {
            lab.node(number).restart()?;
        }
        lab.kubectl("wait --for=condition=Ready node --all --timeout=60s")?;
        ensure!(echoes.asked(&lab, first).iter().all(|one| !one), "one was answered");
        lab.kubectl("delete networkpolicy --all")?;
        ensure!(echoes.asked(&lab, first).iter().all(|one| !one), "one was answered");
        Ok(())
    })?;
    step("when the kind goes, so do its policies", || {
        lab.kubectl("delete crd clusternetworkpolicies.policy.networking.k8s.io")?;
        echoes.until(&lab, first, true)
    })
}
