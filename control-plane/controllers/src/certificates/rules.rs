//! Who may have which certificate: pure checks on a request's subject, names and usages, as upstream's kubelet signers.

use std::collections::BTreeSet;

use crate::types::{CertificateSpec, Node};

/// Signs nodes' client certificates.
pub(super) const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signs nodes' serving certificates.
pub(super) const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// Signs other clients' certificates once someone approved them.
pub(super) const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Prefix of a node's user name.
const NODE_USER: &str = "system:node:";
/// Group of nodes.
const NODES: &str = "system:nodes";

/// What a request asks for, read from its PKCS#10 body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) common_name: String,
    pub(super) organizations: Vec<String>,
    pub(super) dns: Vec<String>,
    pub(super) ips: Vec<String>,
    /// Mail addresses, URIs and the like.
    pub(super) other_names: bool,
}

/// How a request may be approved without a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recognized {
    /// A node renews its own client certificate.
    SelfNodeClient,
    /// Someone asks for a node's client certificate, as a joining machine does.
    NodeClient,
    /// A node asks for a serving certificate.
    NodeServing,
}

impl Recognized {
    /// The subresource of `certificatesigningrequests` whose creation the asker must be allowed; none for serving
    /// certificates, whose names are checked instead.
    pub(super) fn permission(self) -> Option<&'static str> {
        match self {
            Self::SelfNodeClient => Some("selfnodeclient"),
            Self::NodeClient => Some("nodeclient"),
            Self::NodeServing => None,
        }
    }

    /// The sentence of the approval.
    pub(super) fn message(self) -> &'static str {
        match self {
            Self::SelfNodeClient => "Auto approving self kubelet client certificate after SubjectAccessReview.",
            Self::NodeClient => "Auto approving kubelet client certificate after SubjectAccessReview.",
            Self::NodeServing => {
                "Auto approving kubelet serving certificate: its names are those of the node that asks."
            }
        }
    }
}

/// Recognizes what may be approved; other requests wait for a person.
pub(super) fn recognize(spec: &CertificateSpec, subject: &Subject) -> Option<Recognized> {
    check(spec, subject).ok()?;
    let own = spec.username == subject.common_name && spec.groups.iter().any(|g| g == NODES);
    match spec.signer_name.as_str() {
        KUBELET_CLIENT if own => Some(Recognized::SelfNodeClient),
        KUBELET_CLIENT => Some(Recognized::NodeClient),
        KUBELET_SERVING if own => Some(Recognized::NodeServing),
        _ => None,
    }
}

/// Whether the signer signs this at all, once approved.
///
/// # Errors
/// The sentence that goes into the request's Failed condition.
pub(super) fn check(spec: &CertificateSpec, subject: &Subject) -> Result<(), String> {
    let usages: BTreeSet<&str> = spec.usages.iter().map(String::as_str).collect();
    let allow = |required: &str, optional: &[&str]| {
        let foreign = usages.iter().find(|u| **u != required && !optional.contains(u));
        match foreign {
            _ if !usages.contains(required) => Err(format!("usages must include {required:?}")),
            Some(usage) => Err(format!("usage {usage:?} is not signed by {}", spec.signer_name)),
            None => Ok(()),
        }
    };
    let both = ["digital signature", "key encipherment"];
    match spec.signer_name.as_str() {
        KUBELET_CLIENT => {
            node_identity(subject)?;
            if !subject.dns.is_empty() || !subject.ips.is_empty() || subject.other_names {
                return Err("a node's client certificate has no subject alternative names".into());
            }
            allow("client auth", &both)
        }
        KUBELET_SERVING => {
            node_identity(subject)?;
            if subject.dns.is_empty() && subject.ips.is_empty() {
                return Err("a serving certificate needs at least one DNS name or IP address".into());
            }
            if subject.other_names {
                return Err("a serving certificate has DNS names and IP addresses only".into());
            }
            allow("server auth", &both)
        }
        CLIENT => allow("client auth", &both),
        other => Err(format!("signer {other} is unknown")),
    }
}

/// Whether every name of a serving certificate is one of the node's own.
pub(super) fn names_are_of(node: &Node, subject: &Subject) -> bool {
    let own = |name: &String| {
        node.metadata.name.as_ref() == Some(name) || node.status.addresses.iter().any(|a| a.address == *name)
    };
    subject.common_name.strip_prefix(NODE_USER) == node.metadata.name.as_deref()
        && subject.dns.iter().chain(&subject.ips).all(own)
}

/// The node a subject names.
pub(super) fn node_of(subject: &Subject) -> &str {
    subject.common_name.strip_prefix(NODE_USER).unwrap_or_default()
}

fn node_identity(subject: &Subject) -> Result<(), String> {
    if subject.organizations != [NODES] {
        return Err(format!("the organization must be {NODES} alone"));
    }
    if node_of(subject).is_empty() {
        return Err(format!("the common name must be {NODE_USER}<name>"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn node_subject() -> Subject {
        Subject { common_name: "system:node:a".into(), organizations: vec![NODES.into()], ..Default::default() }
    }

    fn spec(signer: &str, user: &str, usages: &[&str]) -> CertificateSpec {
        CertificateSpec {
            signer_name: signer.into(),
            username: user.into(),
            groups: vec![if user.starts_with(NODE_USER) { NODES } else { "system:bootstrappers" }.into()],
            usages: usages.iter().map(|u| (*u).to_owned()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn recognized() {
        let client = ["client auth", "digital signature"];
        let server = ["server auth", "digital signature"];
        let named = Subject { dns: vec!["a".into()], ips: vec!["127.0.0.9".into()], ..node_subject() };
        let master = Subject { organizations: vec!["system:masters".into()], ..node_subject() };
        let two = Subject { organizations: vec![NODES.into(), "x".into()], ..node_subject() };
        for (spec, subject, expected) in [
            (spec(KUBELET_CLIENT, "system:node:a", &client), node_subject(), Some(Recognized::SelfNodeClient)),
            (spec(KUBELET_CLIENT, "system:bootstrap:x", &client), node_subject(), Some(Recognized::NodeClient)),
            // Another node's name: not its own, so the asker needs the joiners' permission.
            (spec(KUBELET_CLIENT, "system:node:b", &client), node_subject(), Some(Recognized::NodeClient)),
            (spec(KUBELET_CLIENT, "system:node:a", &server), node_subject(), None),
            (spec(KUBELET_CLIENT, "system:node:a", &client), master, None),
            (spec(KUBELET_CLIENT, "system:node:a", &client), two, None),
            (spec(KUBELET_CLIENT, "system:node:a", &client), named.clone(), None),
            (spec(KUBELET_SERVING, "system:node:a", &server), named.clone(), Some(Recognized::NodeServing)),
            (spec(KUBELET_SERVING, "system:node:b", &server), named.clone(), None),
            (spec(KUBELET_SERVING, "system:node:a", &server), node_subject(), None),
            (spec(CLIENT, "system:node:a", &client), node_subject(), None),
        ] {
            assert_eq!(recognize(&spec, &subject), expected, "{spec:?} {subject:?}");
        }
    }

    #[test]
    fn serving_names_are_the_nodes_own() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "a"}, "status": {"addresses":
            [{"type": "InternalIP", "address": "127.0.0.9"}, {"type": "Hostname", "address": "a.local"}]}}))
        .unwrap();
        let with = |dns: &[&str], ips: &[&str]| Subject {
            dns: dns.iter().map(|s| (*s).into()).collect(),
            ips: ips.iter().map(|s| (*s).into()).collect(),
            ..node_subject()
        };
        assert!(names_are_of(&node, &with(&["a", "a.local"], &["127.0.0.9"])));
        assert!(!names_are_of(&node, &with(&["kubernetes.default"], &[])));
        assert!(!names_are_of(&node, &with(&["a"], &["127.0.0.10"])));
        assert!(!names_are_of(&node, &Subject { common_name: "system:node:b".into(), ..with(&["a"], &[]) }));
    }
}
