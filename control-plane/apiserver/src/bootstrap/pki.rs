//! The cluster's certificates and keys: made on first start, reloaded after, renewed unattended.
//!
//! Everything lies in one directory with mode 0600, laid out as kubeadm does (`ca.crt`, `ca.key`,
//! `apiserver.crt`, `sa.key`, ...). The authority and the service-account key are never replaced:
//! when one of them cannot be read, opening fails and says which file to restore. The leaf
//! certificates are derived: one that is missing, damaged, short of a name or close to its end is
//! issued again. All keys are ECDSA P-256.

mod files;
mod leaf;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};
use arc_swap::ArcSwap;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use tokio_util::sync::CancellationToken;

pub use leaf::Identity;

use crate::{connect::proxy::AnyCertificate, limits};

/// Who may be addressed by the serving certificate.
#[derive(Clone, Debug)]
pub struct Names {
    pub advertise: Vec<IpAddr>,
    /// The first address of the service range: the `kubernetes` Service.
    pub service: IpAddr,
    pub cluster_domain: String,
    /// More host names, such as a load balancer's.
    pub extra: Vec<String>,
}

/// What a certificate is for: its extended key usages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    Client,
    Server,
    /// A node's serving certificate that it also dials with.
    Both,
}

/// The open key directory. Cheap to share in an `Arc`.
pub struct Pki {
    dir: PathBuf,
    names: Names,
    authority: Authority,
    serving: Arc<Resolver>,
    kubelet_client: Arc<Resolver>,
    /// Signs what the API server shows extension servers, and nothing else: they take its holder's word for who asks.
    front_proxy: Authority,
    front_proxy_client: Arc<Resolver>,
    sa_key: KeyPair,
    encryption_key: [u8; 32],
}

struct Authority {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// Hands rustls the newest certificate of one leaf.
#[derive(Debug)]
struct Resolver(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl rustls::client::ResolvesClientCert for Resolver {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

const SERVING: &str = "apiserver";
const KUBELET_CLIENT: &str = "apiserver-kubelet-client";
const FRONT_PROXY: &str = "front-proxy-ca";
const FRONT_PROXY_CLIENT: &str = "front-proxy-client";

impl Pki {
    /// Opens the directory, making what a first start lacks.
    ///
    /// # Errors
    /// When a file cannot be read or written, or when the authority or the service-account key is
    /// damaged or missing half: these are never made anew over an existing cluster.
    pub fn open(dir: &Path, names: Names) -> Result<Self> {
        Self::open_at(dir, names, SystemTime::now())
    }

    /// [`Pki::open`] with the clock given.
    pub fn open_at(dir: &Path, names: Names, now: SystemTime) -> Result<Self> {
        files::make_dir(dir)?;
        let authority = open_authority(dir, "ca", now)?;
        let front_proxy = open_authority(dir, FRONT_PROXY, now)?;
        let sa_key = open_sa_key(dir)?;
        let encryption_key = files::open_secret_key(&dir.join("encryption.key"))?;
        let serving = leaf::ensure(dir, SERVING, &authority, &serving_request(&names)?, now)?;
        let kubelet_client = leaf::ensure(dir, KUBELET_CLIENT, &authority, &kubelet_request(), now)?;
        let front_proxy_client = leaf::ensure(dir, FRONT_PROXY_CLIENT, &front_proxy, &front_proxy_request(), now)?;
        Ok(Self {
            dir: dir.into(),
            names,
            serving: Arc::new(Resolver(ArcSwap::new(serving.certified_key()?))),
            kubelet_client: Arc::new(Resolver(ArcSwap::new(kubelet_client.certified_key()?))),
            front_proxy_client: Arc::new(Resolver(ArcSwap::new(front_proxy_client.certified_key()?))),
            front_proxy,
            authority,
            sa_key,
            encryption_key,
        })
    }

    /// The cluster authority's certificate: what every client trusts (`kube-root-ca.crt`).
    pub fn ca_pem(&self) -> &str {
        &self.authority.pem
    }

    /// The authority of the API server's certificate at extension servers.
    pub fn front_proxy_ca_pem(&self) -> &str {
        &self.front_proxy.pem
    }

    /// TLS for dialling an extension server, which one of `roots` (PEM) signed; `None` takes any certificate. Shows the
    /// front proxy's certificate.
    ///
    /// # Errors
    /// When `roots` holds no certificate.
    pub fn extension_client_config(&self, roots: Option<&[u8]>) -> Result<Arc<ClientConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let builder = match roots {
            Some(pem) => {
                let mut store = RootCertStore::empty();
                for cert in CertificateDer::pem_slice_iter(pem) {
                    store.add(cert.map_err(|e| anyhow::anyhow!("{e}"))?)?;
                }
                anyhow::ensure!(!store.is_empty(), "caBundle holds no certificate");
                builder.with_root_certificates(store)
            }
            None => builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))),
        };
        let mut config = builder.with_client_cert_resolver(self.front_proxy_client.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// The cluster authority's key, for the CSR signer.
    pub fn ca_key_pem(&self) -> String {
        self.authority.issuer.key().serialize_pem()
    }

    /// `sha256:<hex of the authority's public key>`: what a joining node pins, as kubeadm prints it.
    pub fn ca_hash(&self) -> String {
        leaf::public_key_hash(&self.authority.der)
    }

    /// The key that signs service-account tokens (ECDSA P-256).
    pub fn service_account_key(&self) -> &KeyPair {
        &self.sa_key
    }

    /// The 32-byte key for secrets at rest.
    pub fn encryption_key(&self) -> &[u8; 32] {
        &self.encryption_key
    }

    /// Issues a client certificate: `cn` becomes the user name, `orgs` (at most two) the groups.
    pub fn issue_client(&self, cn: &str, orgs: &[&str], ttl: Duration) -> Result<Identity> {
        self.issue(cn, orgs, &[], Usage::Client, ttl)
    }

    /// Issues a certificate for a node's or component's server; `sans` are addresses and names.
    pub fn issue(&self, cn: &str, orgs: &[&str], sans: &[String], usage: Usage, ttl: Duration) -> Result<Identity> {
        let request = leaf::Request {
            common_name: cn.into(),
            organizations: orgs.iter().map(|&o| o.into()).collect(),
            sans: sans.to_vec(),
            usage,
            ttl,
        };
        leaf::issue(&self.authority, &request, SystemTime::now())
    }

    /// Signs a PEM request as it asks for names, with the usages and lifetime the caller allows.
    ///
    /// # Errors
    /// When the request is malformed, its signature is wrong, or it asks to be an authority.
    pub fn sign_csr(&self, csr_pem: &str, usage: Usage, ttl: Duration) -> Result<String> {
        let mut csr = CertificateSigningRequestParams::from_pem(csr_pem)
            .context("the certificate signing request cannot be read")?;
        if !matches!(csr.params.is_ca, IsCa::NoCa | IsCa::ExplicitNoCa) {
            bail!("a certificate signing request must not ask for an authority");
        }
        leaf::stamp(&mut csr.params, usage, ttl, SystemTime::now());
        Ok(csr.signed_by(&self.authority.issuer)?.pem())
    }

    /// A kubeconfig with an embedded client certificate for `cn` in `orgs`.
    pub fn kubeconfig(&self, server_url: &str, cn: &str, orgs: &[&str]) -> Result<String> {
        let identity = self.issue_client(cn, orgs, limits::LEAF_TTL)?;
        let (ca, cert, key) =
            (BASE64.encode(self.ca_pem()), BASE64.encode(&identity.cert_pem), BASE64.encode(&identity.key_pem));
        Ok(format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: sluice\n  cluster:\n    \
             certificate-authority-data: {ca}\n    server: {server_url}\ncontexts:\n- name: {cn}@sluice\n  \
             context:\n    cluster: sluice\n    user: {cn}\ncurrent-context: {cn}@sluice\nusers:\n- name: {cn}\n  \
             user:\n    client-certificate-data: {cert}\n    client-key-data: {key}\n"
        ))
    }

    /// The administrator's kubeconfig: `kubernetes-admin` in `system:masters`.
    pub fn admin_kubeconfig(&self, server_url: &str) -> Result<String> {
        self.kubeconfig(server_url, "kubernetes-admin", &["system:masters"])
    }

    /// TLS for the API server: its serving certificate, client certificates optional but, when
    /// given, signed by the cluster authority; HTTP/2 and HTTP/1.1.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider.clone())
            .allow_unauthenticated()
            .build()?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.serving.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// TLS for dialling a node's API: trusts the cluster authority only and shows the
    /// kubelet-client certificate. HTTP/1.1, since upgrades pass through.
    pub fn kubelet_client_config(&self) -> Result<Arc<ClientConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots()?)
            .with_client_cert_resolver(self.kubelet_client.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Issues again what is close to its end and returns when to look next.
    pub fn renew(&self, now: SystemTime) -> Result<Duration> {
        let mut next = limits::RENEWAL_CHECK;
        for (name, authority, request, resolver) in [
            (SERVING, &self.authority, serving_request(&self.names)?, &self.serving),
            (KUBELET_CLIENT, &self.authority, kubelet_request(), &self.kubelet_client),
            (FRONT_PROXY_CLIENT, &self.front_proxy, front_proxy_request(), &self.front_proxy_client),
        ] {
            let identity = leaf::ensure(&self.dir, name, authority, &request, now)?;
            next = next.min(leaf::renewal_due(&identity.cert_pem, now)?);
            resolver.0.store(identity.certified_key()?);
        }
        Ok(next.max(limits::RENEWAL_RETRY))
    }

    /// Renews until shutdown. Sleeps to the next due time, at most [`limits::RENEWAL_CHECK`].
    pub async fn run_renewal(&self, shutdown: CancellationToken) {
        loop {
            let pause = self.renew(SystemTime::now()).unwrap_or_else(|error| {
                tracing::warn!(error = format!("{error:#}"), "certificates cannot be renewed");
                limits::RENEWAL_RETRY
            });
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der.clone())?;
        Ok(roots)
    }
}

fn kubelet_request() -> leaf::Request {
    leaf::Request {
        common_name: "kube-apiserver-kubelet-client".into(),
        organizations: vec!["system:masters".into()],
        sans: Vec::new(),
        usage: Usage::Client,
        ttl: limits::LEAF_TTL,
    }
}

fn front_proxy_request() -> leaf::Request {
    leaf::Request {
        common_name: FRONT_PROXY_CLIENT.into(),
        organizations: Vec::new(),
        sans: Vec::new(),
        usage: Usage::Client,
        ttl: limits::LEAF_TTL,
    }
}

fn serving_request(names: &Names) -> Result<leaf::Request> {
    let mut sans = vec![
        "localhost".to_owned(),
        "kubernetes".into(),
        "kubernetes.default".into(),
        "kubernetes.default.svc".into(),
        format!("kubernetes.default.svc.{}", names.cluster_domain),
        "127.0.0.1".into(),
        "::1".into(),
        names.service.to_string(),
    ];
    let host = files::hostname();
    sans.extend(names.advertise.iter().map(IpAddr::to_string));
    sans.extend(host.into_iter().chain(names.extra.iter().cloned()));
    let mut seen = std::collections::BTreeSet::new();
    sans.retain(|name| seen.insert(name.clone()));
    Ok(leaf::Request {
        common_name: "kube-apiserver".into(),
        organizations: Vec::new(),
        sans,
        usage: Usage::Server,
        ttl: limits::LEAF_TTL,
    })
}

/// The key is written before the certificate, so a crash between leaves a key alone, which is
/// safe to complete; a certificate without its key is not.
/// What all servers of a cluster must share, each under its file's name, public halves where there are
/// such; made when missing. Not for printing: the last is secret.
pub(super) fn shared_keys(dir: &Path, now: SystemTime) -> Result<[(&'static str, Vec<u8>); 3]> {
    files::make_dir(dir)?;
    Ok([
        ("ca.crt", open_authority(dir, "ca", now)?.der.to_vec()),
        ("sa.key", open_sa_key(dir)?.public_key_pem().into_bytes()),
        ("encryption.key", files::open_secret_key(&dir.join("encryption.key"))?.to_vec()),
    ])
}

fn open_authority(dir: &Path, name: &str, now: SystemTime) -> Result<Authority> {
    let (cert_path, key_path) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    let key = match files::read(&key_path)? {
        Some(pem) => parse_key(&key_path, &pem)?,
        None if cert_path.exists() => bail!(
            "{} is there but {} is missing: restore it from a backup, or remove {} to make a new \
             cluster authority (every certificate issued so far stops working)",
            cert_path.display(),
            key_path.display(),
            cert_path.display()
        ),
        None => new_key(&key_path)?,
    };
    let pem = match files::read(&cert_path)? {
        Some(pem) => pem,
        None => {
            let pem = authority_params(name, now).self_signed(&key)?.pem();
            files::write(&cert_path, pem.as_bytes())?;
            pem
        }
    };
    let damaged = || format!("{} is damaged: restore it from a backup", cert_path.display());
    let der =
        CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| anyhow::anyhow!("{e}")).with_context(damaged)?;
    if !leaf::has_public_key(&der, &key).with_context(damaged)? {
        bail!("{} does not belong to {}: restore both from one backup", key_path.display(), cert_path.display());
    }
    let issuer = Issuer::from_ca_cert_der(&der, key).with_context(damaged)?;
    Ok(Authority { pem, der, issuer })
}

fn authority_params(name: &str, now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, if name == "ca" { "kubernetes" } else { name });
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - limits::CLOCK_SKEW).into();
    params.not_after = (now + limits::AUTHORITY_TTL).into();
    params.serial_number = Some(leaf::serial());
    params
}

fn open_sa_key(dir: &Path) -> Result<KeyPair> {
    let path = dir.join("sa.key");
    let key = match files::read(&path)? {
        Some(pem) => parse_key(&path, &pem)?,
        None => new_key(&path)?,
    };
    let public = dir.join("sa.pub");
    if files::read(&public)?.as_deref() != Some(key.public_key_pem().as_str()) {
        files::write(&public, key.public_key_pem().as_bytes())?;
    }
    Ok(key)
}

fn new_key(path: &Path) -> Result<KeyPair> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    files::write(path, key.serialize_pem().as_bytes())?;
    Ok(key)
}

fn parse_key(path: &Path, pem: &str) -> Result<KeyPair> {
    KeyPair::from_pem_and_sign_algo(pem, &rcgen::PKCS_ECDSA_P256_SHA256)
        .with_context(|| format!("{} is damaged or not an ECDSA P-256 key: restore it from a backup", path.display()))
}

impl Usage {
    fn purposes(self) -> Vec<ExtendedKeyUsagePurpose> {
        use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        match self {
            Self::Client => vec![ClientAuth],
            Self::Server => vec![ServerAuth],
            Self::Both => vec![ServerAuth, ClientAuth],
        }
    }
}

fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| anyhow::anyhow!("the private key cannot be read: {e}"))
}

#[cfg(test)]
mod tests;
