//! The first contact: how a joining node makes sure that it talks to the right cluster. Either it is given the
//! authority's certificate, or the hash of its public key; then the certificate is read from the public
//! `cluster-info` and believed only if its hash is that one (as kubeadm's token discovery).

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

/// What is known of the cluster's authority beforehand.
#[derive(Clone, Debug)]
pub enum Trust {
    /// `sha256:<hex>` of its public key, as `sluice token create` prints it.
    Hash(String),
    /// The certificate itself, in PEM.
    Pem(String),
}

/// The hash of an authority given as a kubeconfig holds it (base64 of PEM): `sha256:<hex>` of the public key.
///
/// # Errors
/// When it is no certificate.
pub fn ca_hash(data: &str) -> Result<String> {
    let pem = STANDARD.decode(data.trim()).context("the authority's data is not base64")?;
    let der = CertificateDer::from_pem_slice(&pem).context("the authority's data is no PEM certificate")?;
    hash(&der)
}

/// The authority's certificate in PEM, checked.
pub(super) async fn authority(server: &str, trust: &Trust) -> Result<String> {
    let expected = match trust {
        Trust::Pem(pem) => return Ok(pem.clone()),
        Trust::Hash(hash) => hash.trim().to_lowercase(),
    };
    let url: http::Uri = server.parse().with_context(|| format!("`{server}` is no URL; write https://ADDRESS:PORT"))?;
    let mut config = kube::Config::new(url);
    // Nothing is believed yet, and nothing secret is sent: what comes back counts only if its hash fits.
    config.accept_invalid_certs = true;
    let client = Client::try_from(config)?;
    let api: Api<ConfigMap> = Api::namespaced(client, "kube-public");
    let info = api.get("cluster-info").await.with_context(|| format!("{server} did not tell its cluster-info"))?;
    let text = info.data.unwrap_or_default().remove("kubeconfig").context("cluster-info has no kubeconfig")?;
    let file = kube::config::Kubeconfig::from_yaml(&text).context("cluster-info's kubeconfig cannot be read")?;
    let cluster = file.clusters.into_iter().find_map(|c| c.cluster);
    let data = cluster.and_then(|c| c.certificate_authority_data).context("cluster-info names no authority")?;
    let pem = String::from_utf8(STANDARD.decode(data.trim())?)?;
    for der in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        if hash(&der?)? == expected {
            return Ok(pem);
        }
    }
    bail!("{server} is not the cluster with the CA hash {expected}: check the server's address and the hash")
}

/// The certificates of a PEM text.
pub(super) fn ders(pem: &str) -> Result<Vec<Vec<u8>>> {
    let list: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).map(|c| c.map(|c| c.to_vec())).collect();
    let list = list.context("the cluster's authority is no PEM certificate")?;
    if list.is_empty() {
        bail!("the cluster's authority is empty");
    }
    Ok(list)
}

fn hash(der: &[u8]) -> Result<String> {
    let (_, cert) = X509Certificate::from_der(der).context("the authority is no certificate")?;
    let digest = Sha256::digest(cert.public_key().raw);
    Ok(format!("sha256:{}", digest.iter().map(|b| format!("{b:02x}")).collect::<String>()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn hashes_the_public_key() {
        let key = rcgen::KeyPair::generate().unwrap();
        let make =
            |name: &str| rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap().pem();
        let of = |pem: String| ca_hash(&STANDARD.encode(pem)).unwrap();
        let first = of(make("a.test"));
        assert!(first.starts_with("sha256:") && first.len() == 71);
        assert_eq!(first, of(make("b.test")), "the key counts, not the certificate");
        assert!(ca_hash("!").is_err() && ca_hash(&STANDARD.encode("x")).is_err());
    }
}
