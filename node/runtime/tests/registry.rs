//! Pulls from a real registry (Debian's docker-registry) on loopback, with and without credentials.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{World, busybox_layer, config, eventually, log, sha256};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use parking_lot::Mutex;
use sluice_runtime::{Credentials, Error, Progress};

/// `me` with the password `secret`.
const HTPASSWD: &str = "me:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

struct Registry {
    process: Child,
    host: String,
}

impl Registry {
    async fn start(dir: &Path, password: bool) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        fs::create_dir_all(dir).unwrap();
        let settings = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {0}/data\nhttp:\n  addr: {host}\n",
            dir.display()
        );
        let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {}/htpasswd\n", dir.display());
        fs::write(dir.join("htpasswd"), HTPASSWD).unwrap();
        fs::write(dir.join("config.yml"), if password { settings + &auth } else { settings }).unwrap();
        let log = fs::File::create(dir.join("log")).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.join("config.yml"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("install docker-registry: it is the registry of this test");
        eventually("the registry listens", || TcpStream::connect(&host).is_ok()).await;
        Self { process, host }
    }

    /// Pushes busybox as an index with a manifest for this machine and one for another.
    async fn push(&self, name: &str, auth: &RegistryAuth) -> Pushed {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let settings = ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() };
        let client = Client::new(settings);
        let reference: Reference = format!("{}/{name}", self.host).parse().unwrap();
        client.store_auth_if_needed(reference.resolve_registry(), auth).await;
        let layer = busybox_layer();
        let config = config(&layer);
        let layer_digest = format!("sha256:{}", sha256(&layer));
        let config_digest = format!("sha256:{}", sha256(config.as_bytes()));
        let (layer_size, config_size) = (layer.len(), config.len());
        client.push_blob(&reference, layer, &layer_digest).await.unwrap();
        client.push_blob(&reference, config.into_bytes(), &config_digest).await.unwrap();
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config_digest}","size":{config_size}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{layer_digest}","size":{layer_size}}}]}}"#
        );
        let manifest_digest = format!("sha256:{}", sha256(manifest.as_bytes()));
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let by_digest = reference.clone_with_digest(manifest_digest.clone());
        let size = manifest.len();
        client.push_manifest_raw(&by_digest, manifest.into_bytes(), manifest_type.parse().unwrap()).await.unwrap();
        let index = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{{"mediaType":"{manifest_type}","digest":"{manifest_digest}","size":{size},"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#
        );
        let index_digest = format!("sha256:{}", sha256(index.as_bytes()));
        let index_type = "application/vnd.oci.image.index.v1+json";
        client.push_manifest_raw(&reference, index.into_bytes(), index_type.parse().unwrap()).await.unwrap();
        Pushed { name: reference.whole(), config_digest, index_digest, layer_digest }
    }
}

struct Pushed {
    name: String,
    config_digest: String,
    index_digest: String,
    layer_digest: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn an_image_is_pulled_and_runs() {
    let mut world = World::start("pull").await;
    let registry = Registry::start(&world.dir.path().join("registry"), false).await;
    let pushed = registry.push("team/busybox:1", &RegistryAuth::Anonymous).await;
    let runtime = world.runtime.clone();

    let seen = Mutex::new(Vec::new());
    let image = runtime.pull(&pushed.name, &[], |progress: Progress| seen.lock().push(progress)).await.unwrap();
    assert_eq!(
        (image.id.as_str(), image.digest.as_str()),
        (pushed.config_digest.as_str(), pushed.index_digest.as_str())
    );
    assert_eq!(image.repo_digest, format!("{}/team/busybox@{}", registry.host, pushed.index_digest));
    let last = *seen.lock().last().unwrap();
    assert_eq!((last.layers, last.layers_done), (2, 2));
    assert!(last.bytes > 0 && last.bytes == last.bytes_done);
    assert!(runtime.image(&image.repo_digest).await.unwrap().is_some());

    let mut spec = world.spec("echo pulled");
    spec.image.clone_from(&pushed.name);
    runtime.create(&spec).await.unwrap();
    runtime.start(&spec.id).await.unwrap();
    assert_eq!(runtime.wait(&spec.id).await.unwrap().code, 0);
    eventually("its output is in the log", || log(&spec).contains("pulled")).await;

    // Twice at once, and what is there already: no error, nothing new.
    let again = tokio::join!(runtime.pull(&pushed.name, &[], |_| {}), runtime.pull(&pushed.name, &[], |_| {}));
    assert_eq!((again.0.unwrap(), again.1.unwrap()), (image.clone(), image));
    assert_eq!(runtime.images().await.unwrap().len(), 1);

    // What was pulled can be had again; what was imported cannot.
    world.import().await;
    let names = |images: Vec<sluice_runtime::ImageInfo>| images.into_iter().flat_map(|i| i.names).collect::<Vec<_>>();
    let (all, again) = (names(runtime.images().await.unwrap()), names(runtime.pulled_images().await.unwrap()));
    assert_eq!((all.len(), again.len()), (3, 2), "{all:?} {again:?}");
    assert!(again.iter().all(|name| name.starts_with(&registry.host)), "{again:?}");
    world.end().await;
}

#[tokio::test]
async fn credentials_open_a_closed_registry() {
    let world = World::start("auth").await;
    let registry = Registry::start(&world.dir.path().join("registry"), true).await;
    let basic = RegistryAuth::Basic("me".into(), "secret".into());
    let pushed = registry.push("closed:1", &basic).await;
    let with = |password: &str| Credentials::Basic { username: "me".into(), password: password.into() };

    let refused = world.runtime.pull(&pushed.name, &[], |_| {}).await.unwrap_err();
    assert!(matches!(refused, Error::ImageUnauthorized { .. }), "{refused}");
    assert!(refused.to_string().contains("pull access denied, repository does not exist or may require authorization"));
    let wrong = world.runtime.pull(&pushed.name, &[with("wrong")], |_| {}).await.unwrap_err();
    assert!(matches!(wrong, Error::ImageUnauthorized { .. }), "{wrong}");
    assert!(world.runtime.images().await.unwrap().is_empty());
    let image = world.runtime.pull(&pushed.name, &[with("wrong"), with("secret")], |_| {}).await.unwrap();
    assert_eq!(image.id, pushed.config_digest);
    world.end().await;
}

#[tokio::test]
async fn a_pull_that_cannot_work_says_why() {
    let world = World::start("fail").await;
    let dir = world.dir.path().join("registry");
    let registry = Registry::start(&dir, false).await;
    let pushed = registry.push("busybox:1", &RegistryAuth::Anonymous).await;
    let pull = async |name: &str| world.runtime.pull(name, &[], |_| {}).await.unwrap_err();

    let name = format!("{}/none:1", registry.host);
    let missing = pull(&name).await;
    assert!(matches!(missing, Error::ImageNotFound { .. }), "{missing}");
    assert!(missing.to_string().ends_with(&format!("{name}: not found")), "{missing}");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let unreachable = pull(&format!("{nobody}/app:1")).await;
    assert!(matches!(unreachable, Error::RegistryUnreachable { .. }), "{unreachable}");
    assert!(unreachable.to_string().contains("refused"), "{unreachable}");
    let invalid = pull("UPPER/case").await;
    assert!(matches!(invalid, Error::InvalidImageName { .. }), "{invalid}");

    // A layer that is not what its digest says never becomes an image.
    let hex = pushed.layer_digest.strip_prefix("sha256:").unwrap();
    let data = dir.join(format!("data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]));
    let mut bytes = fs::read(&data).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&data, bytes).unwrap();
    let damaged = pull(&pushed.name).await;
    assert!(matches!(damaged, Error::Pull { .. }), "{damaged}");
    assert!(world.runtime.images().await.unwrap().is_empty());
    world.end().await;
}
