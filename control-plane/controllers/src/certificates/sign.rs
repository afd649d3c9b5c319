//! Reads requests and signs certificates with the cluster's authority.

use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateSigningRequestParams, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use x509_parser::prelude::{FromDer, X509CertificationRequest};

use super::rules::Subject;
use crate::limits;

/// Clocks may differ this much.
const BACKDATE: Duration = Duration::from_secs(300);

/// The authority.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// From PEM.
    ///
    /// # Errors
    /// A sentence when certificate or key cannot be read.
    pub(super) fn new(certificate: &str, key: &str) -> Result<Self, String> {
        let key = KeyPair::from_pem(key).map_err(|error| format!("the cluster CA's key cannot be read: {error}"))?;
        let issuer = Issuer::from_ca_cert_pem(certificate, key);
        Ok(Self { issuer: issuer.map_err(|error| format!("the cluster CA's certificate cannot be read: {error}"))? })
    }

    /// The certificate in PEM for a request in PEM, with these usages, for at most `wanted`.
    ///
    /// # Errors
    /// A sentence when the request cannot be signed.
    pub(super) fn sign(
        &self,
        request: &str,
        usages: &[String],
        wanted: Option<Duration>,
        now: SystemTime,
    ) -> Result<String, String> {
        let mut csr = CertificateSigningRequestParams::from_pem(request)
            .map_err(|e| format!("the request cannot be read: {e}"))?;
        let longest = Duration::from_secs(limits::CERTIFICATE_DAYS.unsigned_abs() * 24 * 3600);
        csr.params.is_ca = IsCa::ExplicitNoCa;
        csr.params.not_before = (now - BACKDATE).into();
        csr.params.not_after = (now + wanted.unwrap_or(longest).min(longest)).into();
        csr.params.use_authority_key_identifier_extension = true;
        csr.params.serial_number = None;
        csr.params.key_usages.clear();
        csr.params.extended_key_usages.clear();
        for usage in usages {
            match usage.as_str() {
                "digital signature" => csr.params.key_usages.push(KeyUsagePurpose::DigitalSignature),
                "key encipherment" => csr.params.key_usages.push(KeyUsagePurpose::KeyEncipherment),
                "client auth" => csr.params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth),
                "server auth" => csr.params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth),
                other => return Err(format!("usage {other:?} is not supported")),
            }
        }
        let certificate = csr.signed_by(&self.issuer).map_err(|error| format!("signing failed: {error}"))?;
        Ok(certificate.pem())
    }
}

/// What a request in PEM asks for; its signature is checked.
///
/// # Errors
/// A sentence when it cannot be read.
pub(super) fn subject(request: &str) -> Result<Subject, String> {
    let csr =
        CertificateSigningRequestParams::from_pem(request).map_err(|e| format!("the request cannot be read: {e}"))?;
    let mut subject = Subject::default();
    if let Some(name) = csr.params.distinguished_name.get(&DnType::CommonName) {
        subject.common_name = text(name);
    }
    subject.organizations = organizations(request)?;
    for name in &csr.params.subject_alt_names {
        match name {
            SanType::DnsName(name) => subject.dns.push(name.to_string()),
            SanType::IpAddress(ip) => subject.ips.push(ip.to_string()),
            _ => subject.other_names = true,
        }
    }
    Ok(subject)
}

/// All organizations: the signing library keeps only the last of several.
fn organizations(request: &str) -> Result<Vec<String>, String> {
    let wrong = |_| "the request cannot be read".to_owned();
    let (_, pem) = x509_parser::pem::parse_x509_pem(request.as_bytes()).map_err(|_| wrong(()))?;
    let (_, csr) = X509CertificationRequest::from_der(&pem.contents).map_err(|_| wrong(()))?;
    let names = csr.certification_request_info.subject.iter_organization();
    names.map(|name| name.as_str().map(str::to_owned).map_err(|_| wrong(()))).collect()
}

fn text(value: &DnValue) -> String {
    match value {
        DnValue::Utf8String(s) => s.clone(),
        DnValue::PrintableString(s) => s.as_str().to_owned(),
        DnValue::Ia5String(s) => s.as_str().to_owned(),
        DnValue::TeletexString(s) => s.as_str().to_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, DistinguishedName};
    use x509_parser::prelude::X509Certificate;

    fn request(organizations: &[&str]) -> String {
        let mut params = CertificateParams::new(vec!["a".to_owned(), "127.0.0.9".to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "system:node:a");
        for organization in organizations {
            params.distinguished_name.push(DnType::OrganizationName, *organization);
        }
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    }

    #[test]
    fn reads_and_signs() {
        let request = request(&["system:nodes"]);
        let subject = subject(&request).unwrap();
        assert_eq!(
            (subject.common_name.as_str(), subject.organizations.as_slice()),
            ("system:node:a", &["system:nodes".to_owned()][..])
        );
        assert_eq!(
            (subject.dns.as_slice(), subject.ips.as_slice()),
            (&["a".to_owned()][..], &["127.0.0.9".to_owned()][..])
        );

        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap().pem();
        let authority = Authority::new(&ca, &key.serialize_pem()).unwrap();
        let now = SystemTime::now();
        let usages = ["server auth".to_owned(), "digital signature".to_owned()];
        let hour = Duration::from_secs(3600);
        let pem = authority.sign(&request, &usages, Some(hour), now).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, certificate) = X509Certificate::from_der(&pem.contents).unwrap();
        assert_eq!(certificate.subject().to_string(), "CN=system:node:a, O=system:nodes");
        let usage = certificate.extended_key_usage().unwrap().unwrap().value.clone();
        assert!(usage.server_auth && !usage.client_auth);
        let life = certificate.validity().not_after.timestamp() - certificate.validity().not_before.timestamp();
        assert_eq!(life, 3900);
        assert!(!certificate.is_ca());
        assert!(authority.sign(&request, &["code signing".to_owned()], None, now).is_err());
        assert!(Authority::new("x", "y").is_err());
        assert!(super::subject("nonsense").is_err());
    }
}
