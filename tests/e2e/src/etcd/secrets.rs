//! The keys of a lab's etcd: an authority, and a certificate of it for each member and for the servers, as files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

/// The files of one who has a certificate.
#[derive(Clone)]
pub(super) struct Identity {
    pub(super) ca: PathBuf,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// Makes an authority in this folder.
pub(super) struct Authority<'a> {
    dir: &'a Path,
    issuer: Issuer<'static, KeyPair>,
}

impl<'a> Authority<'a> {
    pub(super) fn make(dir: &'a Path) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut ca = CertificateParams::new(Vec::new())?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(DnType::CommonName, "the lab's etcd");
        fs::write(Self::file(dir), ca.self_signed(&key)?.pem())?;
        Ok(Self { dir, issuer: Issuer::new(ca, key) })
    }

    fn file(dir: &Path) -> PathBuf {
        dir.join("etcd-ca.pem")
    }

    /// A certificate for a name and an address; etcd's members are each other's clients, too.
    pub(super) fn identity(&self, name: &str, address: Option<&str>) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(address.map(str::to_owned).into_iter().collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let identity = Identity {
            ca: Self::file(self.dir),
            certificate: self.dir.join(format!("etcd-{name}.pem")),
            key: self.dir.join(format!("etcd-{name}-key.pem")),
        };
        fs::write(&identity.certificate, params.signed_by(&key, &self.issuer)?.pem())?;
        fs::write(&identity.key, key.serialize_pem())?;
        Ok(identity)
    }
}
