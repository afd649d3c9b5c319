//! Leaf certificates: issue, judge, keep on disk.

use std::{
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use rustls::{
    pki_types::{CertificateDer, pem::PemObject},
    sign::CertifiedKey,
};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::{Authority, Usage, files, private_key};
use crate::limits;

/// A certificate with its key, both PEM.
#[derive(Clone)]
pub struct Identity {
    pub cert_pem: String,
    pub key_pem: String,
}

pub(super) struct Request {
    pub(super) common_name: String,
    pub(super) organizations: Vec<String>,
    pub(super) sans: Vec<String>,
    pub(super) usage: Usage,
    pub(super) ttl: Duration,
}

impl Identity {
    /// The form rustls serves.
    pub fn certified_key(&self) -> Result<Arc<CertifiedKey>> {
        let key = rustls::crypto::ring::sign::any_supported_type(&private_key(&self.key_pem)?)?;
        Ok(Arc::new(CertifiedKey::new(vec![der(&self.cert_pem)?], key)))
    }
}

/// Reads `<name>.crt` and `<name>.key`, or issues them when they will not do.
pub(super) fn ensure(
    dir: &Path,
    name: &str,
    authority: &Authority,
    request: &Request,
    now: SystemTime,
) -> Result<Identity> {
    let (cert, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    if let (Some(cert_pem), Some(key_pem)) = (files::read(&cert)?, files::read(&key)?) {
        let identity = Identity { cert_pem, key_pem };
        match usable(&identity, authority, request, now) {
            Ok(()) => return Ok(identity),
            Err(why) => tracing::info!(certificate = name, %why, "issuing a certificate again"),
        }
    }
    let identity = issue(authority, request, now)?;
    files::write(&key, identity.key_pem.as_bytes())?;
    files::write(&cert, identity.cert_pem.as_bytes())?;
    Ok(identity)
}

pub(super) fn issue(authority: &Authority, request: &Request, now: SystemTime) -> Result<Identity> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(request.sans.clone())?;
    params.distinguished_name = subject(&request.common_name, &request.organizations)?;
    stamp(&mut params, request.usage, request.ttl, now);
    Ok(Identity { cert_pem: params.signed_by(&key, &authority.issuer)?.pem(), key_pem: key.serialize_pem() })
}

/// Everything of a leaf but its names.
pub(super) fn stamp(params: &mut CertificateParams, usage: Usage, ttl: Duration, now: SystemTime) {
    params.is_ca = IsCa::NoCa;
    params.serial_number = Some(serial());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usage.purposes();
    params.use_authority_key_identifier_extension = true;
    params.not_before = (now - limits::CLOCK_SKEW).into();
    params.not_after = (now + ttl).into();
}

/// 126 random bits: positive, and never shorter for a leading zero.
pub(super) fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = (bytes[0] & 0x3f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// How long until the certificate should be renewed: when a third of its life is left.
pub(super) fn renewal_due(cert_pem: &str, now: SystemTime) -> Result<Duration> {
    let der = der(cert_pem)?;
    let (_, cert) = X509Certificate::from_der(&der).context("the certificate cannot be read")?;
    let (start, end) = (cert.validity().not_before.timestamp(), cert.validity().not_after.timestamp());
    let due = end - (end - start) / 3;
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
    Ok(Duration::from_secs(u64::try_from(due.saturating_sub(now)).unwrap_or(0)))
}

pub(super) fn has_public_key(cert: &CertificateDer<'_>, key: &KeyPair) -> Result<bool> {
    let (_, cert) = X509Certificate::from_der(cert).context("the certificate cannot be read")?;
    Ok(cert.public_key().raw == key.subject_public_key_info().as_slice())
}

pub(super) fn public_key_hash(cert: &CertificateDer<'_>) -> String {
    let raw = X509Certificate::from_der(cert).map(|(_, cert)| cert.public_key().raw.to_vec()).unwrap_or_default();
    let hex: String = Sha256::digest(raw).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// The certificate library keeps one value per attribute type, so the second organization goes
/// in under the same OID given as a custom type; there is no third.
fn subject(common_name: &str, organizations: &[String]) -> Result<DistinguishedName> {
    let mut name = DistinguishedName::new();
    let types = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])];
    if organizations.len() > types.len() {
        bail!("a client certificate carries at most {} groups", types.len());
    }
    for (kind, organization) in types.into_iter().zip(organizations) {
        name.push(kind, organization.as_str());
    }
    name.push(DnType::CommonName, common_name);
    Ok(name)
}

/// Says why a certificate from disk will not do.
fn usable(identity: &Identity, authority: &Authority, request: &Request, now: SystemTime) -> Result<()> {
    let key = KeyPair::from_pem_and_sign_algo(&identity.key_pem, &rcgen::PKCS_ECDSA_P256_SHA256)
        .context("its key cannot be read")?;
    let cert_der = der(&identity.cert_pem)?;
    if !has_public_key(&cert_der, &key)? {
        bail!("its key belongs to another certificate");
    }
    let (_, cert) = X509Certificate::from_der(&cert_der).context("it cannot be read")?;
    let (_, root) = X509Certificate::from_der(&authority.der).context("the authority")?;
    if cert.verify_signature(Some(root.public_key())).is_err() {
        bail!("another authority signed it");
    }
    if renewal_due(&identity.cert_pem, now)?.is_zero() {
        bail!("it ends soon");
    }
    let held = names(&cert);
    match request.sans.iter().find(|name| !held.contains(name)) {
        Some(name) => bail!("it lacks the name {name}"),
        None => Ok(()),
    }
}

fn names(cert: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = cert.subject_alternative_name() else {
        return Vec::new();
    };
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match *bytes {
            [a, b, c, d] => Some(IpAddr::from([*a, *b, *c, *d]).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
        },
        _ => None,
    };
    extension.value.general_names.iter().filter_map(text).collect()
}

fn der(pem: &str) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| anyhow::anyhow!("the certificate cannot be read: {e}"))
}
