//! Asks certificates.k8s.io for a certificate and waits for it by watch.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::StreamExt;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::{Api, PostParams};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::json;

use super::{Place, base64};

/// How long an approval may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be known at the API server as `system:node:<name>`.
    Client,
    /// To serve the node's API.
    Serving,
}

/// Certificate and key, in one PEM text.
pub(super) async fn certificate(client: &Client, place: &Place, purpose: Purpose) -> Result<String> {
    let key = KeyPair::generate()?;
    let csr = signing_request(place, purpose, &key)?;
    let (signer, usage) = match purpose {
        Purpose::Client => ("kubernetes.io/kube-apiserver-client-kubelet", "client auth"),
        Purpose::Serving => ("kubernetes.io/kubelet-serving", "server auth"),
    };
    let object = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"generateName": "node-csr-"},
        "spec": {"request": base64(&csr), "signerName": signer, "usages": ["digital signature", usage]},
    });
    let object: CertificateSigningRequest = serde_json::from_value(object)?;
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let made = api.create(&PostParams::default(), &object).await.context("the request was not accepted")?;
    let name = made.name_any();
    let answer = tokio::time::timeout(PATIENCE, wait(api, &name)).await;
    let chain = answer.with_context(|| {
        format!("the request was not approved within {} s: kubectl certificate approve {name}", PATIENCE.as_secs())
    })??;
    Ok(format!("{}\n{}", chain.trim_end(), key.serialize_pem()))
}

async fn wait(api: Api<CertificateSigningRequest>, name: &str) -> Result<String> {
    let stream = watcher::watch_object(api, name);
    futures::pin_mut!(stream);
    while let Some(item) = stream.next().await {
        let object = match item {
            Ok(Some(object)) => object,
            Ok(None) => bail!("the request {name} was deleted"),
            Err(error) => {
                tracing::debug!(%error, "watch of a certificate request");
                tokio::time::sleep(crate::limits::STATUS_RETRY).await;
                continue;
            }
        };
        let status = object.status.unwrap_or_default();
        if let Some(c) = status.conditions.iter().flatten().find(|c| c.type_ == "Denied" || c.type_ == "Failed") {
            bail!("the request {name} was refused: {}", c.message.as_deref().unwrap_or(&c.type_));
        }
        if let Some(certificate) = status.certificate {
            return Ok(String::from_utf8(certificate.0)?);
        }
    }
    bail!("the watch of the request {name} ended")
}

fn signing_request(place: &Place, purpose: Purpose, key: &KeyPair) -> Result<String> {
    let names = match purpose {
        Purpose::Client => Vec::new(),
        Purpose::Serving => {
            let ips = place.node_ips.iter().map(ToString::to_string);
            std::iter::once(place.node_name.clone()).chain(ips).collect()
        }
    };
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{}", place.node_name));
    Ok(params.serialize_request(key)?.pem()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use x509_parser::prelude::{FromDer, X509CertificationRequest};

    use super::*;

    #[test]
    fn asks_for_the_node() {
        let place =
            Place { node_name: "n1".into(), node_ips: vec!["192.0.2.4".parse().unwrap()], dir: "/nowhere".into() };
        let key = KeyPair::generate().unwrap();
        for (purpose, sans) in [(Purpose::Client, 0), (Purpose::Serving, 2)] {
            let pem = signing_request(&place, purpose, &key).unwrap();
            let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
            let (_, csr) = X509CertificationRequest::from_der(&block.contents).unwrap();
            let info = &csr.certification_request_info;
            assert_eq!(info.subject.to_string(), "O=system:nodes, CN=system:node:n1");
            let names = csr.requested_extensions().into_iter().flatten().find_map(|e| match e {
                x509_parser::extensions::ParsedExtension::SubjectAlternativeName(n) => Some(n.general_names.len()),
                _ => None,
            });
            assert_eq!(names.unwrap_or(0), sans);
        }
    }
}
