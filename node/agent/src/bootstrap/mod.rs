//! How a node gets and keeps its certificates: joins with a token, then asks for its own through
//! certificates.k8s.io, and renews them unattended long before they end. Keys are made here and never leave the node.

mod request;
mod rotate;
mod trust;

use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use kube::Client;
use kube::config::{AuthInfo, Kubeconfig};
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::ServingIdentity;
use request::Purpose;
pub use trust::{Trust, ca_hash};

/// What a node is told to join.
#[derive(Clone, Debug)]
pub struct Join {
    /// `https://10.0.0.1:6443`
    pub server: String,
    /// `ID.SECRET`
    pub token: String,
    pub trust: Trust,
}

/// Who the node is and where its keys are kept.
#[derive(Clone, Debug)]
pub struct Place {
    pub node_name: String,
    pub node_ips: Vec<IpAddr>,
    /// Keys and certificates are kept here, readable by root alone.
    pub dir: PathBuf,
}

/// The identity of a node that has joined. Cheap to clone.
#[derive(Clone)]
pub struct Membership {
    place: Place,
    server: String,
    ca_pem: String,
    current: Arc<RwLock<Client>>,
    serving: watch::Sender<ServingIdentity>,
}

impl Place {
    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The kubeconfig of the node, usable by any client on this machine.
    pub fn kubeconfig(&self) -> PathBuf {
        self.file("kubeconfig")
    }

    /// True if the node has joined before.
    pub fn has_joined(&self) -> bool {
        self.file("client.pem").exists() && self.file("cluster.json").exists()
    }
}

impl Membership {
    /// Joins: finds the cluster's authority, asks for a client certificate with the token, waits for its approval and
    /// keeps all of it in the place's directory.
    ///
    /// # Errors
    /// In words that say which of server, hash or token is wrong.
    pub async fn join(place: Place, join: &Join) -> Result<Membership> {
        std::fs::create_dir_all(&place.dir).with_context(|| format!("cannot make {}", place.dir.display()))?;
        let ca_pem = trust::authority(&join.server, &join.trust).await?;
        let auth = AuthInfo { token: Some(join.token.clone().into()), ..AuthInfo::default() };
        let client = client(&join.server, &ca_pem, auth).await?;
        let identity = request::certificate(&client, &place, Purpose::Client).await.with_context(|| {
            format!("{} did not give this node a certificate: is the token right, and not expired?", join.server)
        })?;
        let cluster = serde_json::json!({"server": join.server, "ca": ca_pem});
        keep(&place.file("cluster.json"), &cluster.to_string())?;
        keep(&place.file("client.pem"), &identity)?;
        Membership::open(place).await
    }

    /// The membership of a node that joined before.
    ///
    /// # Errors
    /// When its files are missing or unusable.
    pub async fn open(place: Place) -> Result<Membership> {
        let read = |name: &str| {
            let file = place.file(name);
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}; join again", file.display()))
        };
        let cluster: serde_json::Value = serde_json::from_str(&read("cluster.json")?)?;
        let text =
            |key: &str| cluster[key].as_str().map(str::to_owned).with_context(|| format!("cluster.json: no {key}"));
        let (server, ca_pem) = (text("server")?, text("ca")?);
        let identity = read("client.pem")?;
        keep(&place.kubeconfig(), &kubeconfig(&server, &ca_pem, &identity)?)?;
        let first = client(&server, &ca_pem, auth_of(&identity)).await?;
        let (serving, _) = watch::channel(ServingIdentity::default());
        Ok(Membership { place, server, ca_pem, current: Arc::new(RwLock::new(first)), serving })
    }

    /// The cluster's authority.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// A client that always uses the newest certificate.
    pub fn client(&self) -> Client {
        let current = self.current.clone();
        let service = tower::service_fn(move |request| {
            let client = current.read().clone();
            async move { client.send(request).await }
        });
        Client::new(service, "default")
    }

    /// The serving certificate of the node's API; empty until [`Membership::serve`] has got one.
    pub fn identity(&self) -> watch::Receiver<ServingIdentity> {
        self.serving.subscribe()
    }

    /// Asks for a serving certificate if there is none. It is granted only once the Node object has the addresses it
    /// names, so the node must be registered meanwhile.
    ///
    /// # Errors
    /// When the request is refused or cannot be made.
    pub async fn serve(&self) -> Result<()> {
        let file = self.place.file("serving.pem");
        let pem = match std::fs::read_to_string(&file) {
            Ok(pem) if rotate::left(&pem).is_some_and(|l| !l.is_zero()) => pem,
            _ => {
                let pem = request::certificate(&self.client(), &self.place, Purpose::Serving)
                    .await
                    .context("no serving certificate for the node's API")?;
                keep(&file, &pem)?;
                pem
            }
        };
        self.serving.send_replace(ServingIdentity { cert_pem: pem.clone(), key_pem: pem });
        Ok(())
    }

    /// Renews both certificates at 70 to 90 % of their life, until the shutdown.
    pub async fn renew(&self, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = rotate::forever(self, Purpose::Client) => {}
            () = rotate::forever(self, Purpose::Serving) => {}
        }
    }

    async fn adopt(&self, purpose: Purpose, pem: &str) -> Result<()> {
        match purpose {
            Purpose::Client => {
                let fresh = client(&self.server, &self.ca_pem, auth_of(pem)).await?;
                keep(&self.place.file("client.pem"), pem)?;
                keep(&self.place.kubeconfig(), &kubeconfig(&self.server, &self.ca_pem, pem)?)?;
                *self.current.write() = fresh;
            }
            Purpose::Serving => {
                keep(&self.place.file("serving.pem"), pem)?;
                self.serving.send_replace(ServingIdentity { cert_pem: pem.to_owned(), key_pem: pem.to_owned() });
            }
        }
        Ok(())
    }
}

async fn client(server: &str, ca_pem: &str, auth: AuthInfo) -> Result<Client> {
    let url: http::Uri = server.parse().with_context(|| format!("`{server}` is no URL; write https://ADDRESS:PORT"))?;
    let mut config = kube::Config::new(url);
    config.root_cert = Some(trust::ders(ca_pem)?);
    config.auth_info = auth;
    Ok(Client::try_from(config)?)
}

fn auth_of(pem: &str) -> AuthInfo {
    let data = base64(pem);
    AuthInfo { client_certificate_data: Some(data.clone()), client_key_data: Some(data.into()), ..AuthInfo::default() }
}

fn base64(text: &str) -> String {
    use ::base64::Engine as _;
    ::base64::engine::general_purpose::STANDARD.encode(text)
}

fn kubeconfig(server: &str, ca_pem: &str, identity: &str) -> Result<String> {
    let (ca, identity) = (base64(ca_pem), base64(identity));
    let value = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "node",
        "clusters": [{"name": "cluster", "cluster": {"server": server, "certificate-authority-data": ca}}],
        "users": [{"name": "node", "user": {"client-certificate-data": identity, "client-key-data": identity}}],
        "contexts": [{"name": "node", "context": {"cluster": "cluster", "user": "node"}}],
    });
    // JSON is YAML; reading it back makes sure that a client can.
    let text = serde_json::to_string_pretty(&value)?;
    Kubeconfig::from_yaml(&text).context("the kubeconfig made for this node cannot be read")?;
    Ok(text)
}

/// Writes a file that only root reads, replacing it at once.
fn keep(path: &Path, text: &str) -> Result<()> {
    let tmp = path.with_extension("tmp");
    let write = || -> std::io::Result<()> {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&tmp)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&tmp, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
