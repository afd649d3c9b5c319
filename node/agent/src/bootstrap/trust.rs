//! The first contact: how a joining node makes sure that it talks to the right cluster. Either it is given the
//! authority's certificate, or the hash of its public key; then the certificate is read from the public
//! `cluster-info` and believed only if its hash is that one (as kubeadm's token discovery).

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Client, client::Body};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::clock;

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
    let info = cluster_info(&Client::try_from(config)?, jiff::Timestamp::now())
        .await
        .with_context(|| format!("{server} did not tell its cluster-info"))?;
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

/// The public `cluster-info`, from a server whose clock agrees with this machine's.
async fn cluster_info(client: &Client, now: jiff::Timestamp) -> Result<ConfigMap> {
    let request = http::Request::get("/api/v1/namespaces/kube-public/configmaps/cluster-info").body(Body::empty())?;
    let response = client.send(request).await?;
    if let Err(off) = clock::in_step(response.headers(), now) {
        bail!("{off}, and join again");
    }
    let status = response.status();
    let body = response.into_body().collect_bytes().await?;
    if !status.is_success() {
        bail!("it answered {status}");
    }
    Ok(serde_json::from_slice(&body)?)
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

    #[tokio::test]
    async fn a_clock_off_by_a_day_is_said_before_anything_else() {
        let server = tower::service_fn(|_: http::Request<Body>| async {
            let body = r#"{"apiVersion": "v1", "kind": "ConfigMap", "data": {"kubeconfig": "x"}}"#;
            let answer = http::Response::builder().header("date", "Sun, 06 Nov 1994 08:49:37 GMT");
            answer.body(Body::from(body.as_bytes().to_vec()))
        });
        let client = Client::new(server, "default");
        for (now, expected) in [
            ("1994-11-06T08:49:00Z", None),
            ("1994-11-06T08:54:00Z", None),
            ("1994-11-07T08:49:37Z", Some("1440 minutes ahead of the server's, where it is 1994-11-06T08:49:37Z")),
            ("1994-11-05T08:49:37Z", Some("1440 minutes behind the server's")),
        ] {
            let said = cluster_info(&client, now.parse().unwrap()).await.map_err(|error| error.to_string());
            match expected {
                None => assert!(said.is_ok(), "{now}: {said:?}"),
                Some(words) => assert!(said.unwrap_err().contains(words), "{now}"),
            }
        }
    }

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
