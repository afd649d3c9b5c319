//! TLS of the node's API: clients' certificates are checked against the cluster's authority; the serving certificate
//! may be renewed while the server runs.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::ServingIdentity;

/// Makes acceptors with the newest certificate.
pub(super) struct Acceptor {
    verifier: Arc<dyn ClientCertVerifier>,
    identity: watch::Receiver<ServingIdentity>,
    current: Mutex<TlsAcceptor>,
}

impl Acceptor {
    pub(super) fn new(ca_pem: &str, mut identity: watch::Receiver<ServingIdentity>) -> Result<Acceptor> {
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            roots.add(cert.context("the cluster's authority is no certificate")?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build()
            .context("the cluster's authority cannot be used to check clients")?;
        let first = acceptor(&verifier, &identity.borrow_and_update())?;
        Ok(Acceptor { verifier, identity, current: Mutex::new(first) })
    }

    /// The acceptor for the next connection.
    pub(super) fn current(&self) -> TlsAcceptor {
        let mut current = self.current.lock();
        let mut identity = self.identity.clone();
        if identity.has_changed().unwrap_or(false) {
            match acceptor(&self.verifier, &identity.borrow_and_update()) {
                Ok(fresh) => *current = fresh,
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "the renewed serving certificate is not used")
                }
            }
        }
        current.clone()
    }
}

fn acceptor(verifier: &Arc<dyn ClientCertVerifier>, identity: &ServingIdentity) -> Result<TlsAcceptor> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(identity.cert_pem.as_bytes())
        .collect::<Result<_, _>>()
        .context("the serving certificate is no PEM")?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).context("the serving key is no PEM")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier.clone())
        .with_single_cert(chain, key)
        .context("the serving certificate and its key do not belong together")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
