#![allow(clippy::unwrap_used)]

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use rustls::{ClientConnection, ServerConnection, pki_types::ServerName};

use super::*;

fn names() -> Names {
    Names {
        advertise: vec!["192.0.2.7".parse().unwrap()],
        service: "10.96.0.1".parse().unwrap(),
        cluster_domain: "cluster.local".into(),
        extra: vec!["api.example.org".into()],
    }
}

fn text(dir: &Path, file: &str) -> String {
    fs::read_to_string(dir.join(file)).unwrap()
}

const FILES: [&str; 9] = [
    "ca.crt",
    "ca.key",
    "apiserver.crt",
    "apiserver.key",
    "apiserver-kubelet-client.crt",
    "apiserver-kubelet-client.key",
    "sa.key",
    "sa.pub",
    "encryption.key",
];

#[test]
fn a_second_start_reads_what_the_first_made() {
    let dir = tempfile::tempdir().unwrap();
    let dir = &dir.path().join("pki");
    drop(Pki::open(dir, names()).unwrap());
    let first = FILES.map(|f| text(dir, f));
    for file in FILES {
        let mode = fs::metadata(dir.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let pki = Pki::open(dir, names()).unwrap();
    assert_eq!(FILES.map(|f| text(dir, f)), first);
    assert_eq!(pki.ca_pem(), first[0]);
}

#[test]
fn damage_is_named_and_never_papered_over() {
    let check = |damage: &dyn Fn(&Path), expected: Result<(), &str>| {
        let dir = tempfile::tempdir().unwrap();
        drop(Pki::open(dir.path(), names()).unwrap());
        damage(dir.path());
        match (Pki::open(dir.path(), names()), expected) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(words)) => {
                let error = format!("{error:#}");
                assert!(error.contains(words), "{error}");
            }
            (got, expected) => panic!("{:?} instead of {expected:?}", got.map(drop)),
        }
    };
    let remove = |file: &'static str| move |dir: &Path| fs::remove_file(dir.join(file)).unwrap();
    let spoil = |file: &'static str| move |dir: &Path| fs::write(dir.join(file), "junk").unwrap();
    check(&remove("ca.key"), Err("ca.key is missing"));
    check(&spoil("ca.key"), Err("ca.key is damaged"));
    check(&spoil("ca.crt"), Err("ca.crt is damaged"));
    check(&spoil("sa.key"), Err("sa.key is damaged"));
    check(&spoil("encryption.key"), Err("encryption.key is damaged"));
    // A crash between the two files of a first start.
    check(&remove("ca.crt"), Ok(()));
    // Leaves are derived.
    check(&spoil("apiserver.crt"), Ok(()));
    check(&remove("apiserver-kubelet-client.key"), Ok(()));
    let swapped = |dir: &Path| {
        let other = tempfile::tempdir().unwrap();
        drop(Pki::open(other.path(), names()).unwrap());
        fs::copy(other.path().join("ca.key"), dir.join("ca.key")).unwrap();
    };
    check(&swapped, Err("does not belong to"));
}

#[test]
fn the_serving_certificate_is_renewed_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let start = SystemTime::now();
    let pki = Pki::open_at(dir.path(), names(), start).unwrap();
    let first = text(dir.path(), "apiserver.crt");
    let served = || pki.serving.0.load().cert[0].clone();
    let first_served = served();
    assert_eq!(pki.renew(start).unwrap(), limits::RENEWAL_CHECK);
    assert_eq!(text(dir.path(), "apiserver.crt"), first);
    pki.renew(start + limits::LEAF_TTL * 3 / 4).unwrap();
    assert_ne!(text(dir.path(), "apiserver.crt"), first);
    assert_ne!(served(), first_served);
    assert_eq!(leaf::renewal_due(&first, start + limits::LEAF_TTL).unwrap(), Duration::ZERO);
}

#[test]
fn a_new_address_makes_a_new_serving_certificate() {
    let dir = tempfile::tempdir().unwrap();
    drop(Pki::open(dir.path(), names()).unwrap());
    let (ca, leaf) = (text(dir.path(), "ca.crt"), text(dir.path(), "apiserver.crt"));
    let mut more = names();
    more.advertise.push("2001:db8::1".parse().unwrap());
    drop(Pki::open(dir.path(), more).unwrap());
    assert_eq!(text(dir.path(), "ca.crt"), ca);
    assert_ne!(text(dir.path(), "apiserver.crt"), leaf);
}

/// Runs a TLS handshake in memory; the server's view of the client's chain on success.
fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>, name: &str) -> Result<usize, rustls::Error> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(client, name)?;
    let mut server = ServerConnection::new(server)?;
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets()?;
        wire.clear();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    Ok(server.peer_certificates().map_or(0, <[_]>::len))
}

#[test]
fn tls_accepts_our_names_and_our_clients_only() {
    let (ours, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ours = Pki::open(ours.path(), names()).unwrap();
    let other = Pki::open(other.path(), names()).unwrap();
    let server = ours.server_config().unwrap();
    let good = ours.kubelet_client_config().unwrap();
    for name in [
        "localhost",
        "127.0.0.1",
        "::1",
        "192.0.2.7",
        "10.96.0.1",
        "kubernetes.default.svc.cluster.local",
        "api.example.org",
    ] {
        assert_eq!(handshake(good.clone(), server.clone(), name), Ok(1), "{name}");
    }
    assert!(handshake(good, server.clone(), "example.net").is_err());
    let stranger = other.kubelet_client_config().unwrap();
    assert!(handshake(stranger, server.clone(), "localhost").is_err());
    // Trusts our authority but shows a certificate of another one.
    let mut provider = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(ours.roots().unwrap())
        .with_client_cert_resolver(other.kubelet_client.clone());
    provider.alpn_protocols.clear();
    assert!(handshake(Arc::new(provider), server.clone(), "localhost").is_err());
    let anonymous = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(ours.roots().unwrap())
        .with_no_client_auth();
    assert_eq!(handshake(Arc::new(anonymous), server, "localhost"), Ok(0));
}

#[test]
fn requests_are_signed_without_what_they_must_not_ask() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path(), names()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["node-1".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, "system:node:node-1");
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    let cert = pki.sign_csr(&csr, Usage::Client, Duration::from_secs(3600)).unwrap();
    let der = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
    assert!(leaf::has_public_key(&der, &key).unwrap());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    assert!(pki.sign_csr(&csr, Usage::Client, Duration::from_secs(3600)).is_err());
    assert!(pki.sign_csr("junk", Usage::Client, Duration::from_secs(3600)).is_err());
}

#[test]
fn the_kubeconfig_carries_its_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path(), names()).unwrap();
    let config = pki.admin_kubeconfig("https://127.0.0.1:6443").unwrap();
    let config: kube::config::Kubeconfig = kube::config::Kubeconfig::from_yaml(&config).unwrap();
    assert_eq!(config.current_context.as_deref(), Some("kubernetes-admin@sluice"));
    let cluster = config.clusters[0].cluster.as_ref().unwrap();
    let ca = BASE64.decode(cluster.certificate_authority_data.as_ref().unwrap()).unwrap();
    assert_eq!(ca, pki.ca_pem().as_bytes());
}
