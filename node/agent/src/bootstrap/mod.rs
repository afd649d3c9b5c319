//! How a node gets and keeps its certificates: joins with a token, then asks for its own through
//! certificates.k8s.io, and renews them unattended long before they end. Keys are made here and never leave the node.

mod clock;
mod request;
mod rotate;
mod servers;
mod trust;

use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::config::{AuthInfo, Kubeconfig};
use kube::{Api, Client};
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::ServingIdentity;
use crate::limits;
use request::Purpose;
use servers::Servers;
pub use trust::{Trust, ca_hash};

/// What a node is told to join.
#[derive(Clone, Debug)]
pub struct Join {
    /// `https://10.0.0.1:6443`; at least one.
    pub servers: Vec<String>,
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
    urls: Vec<String>,
    ca_pem: String,
    servers: Arc<Servers>,
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
        let ca_pem = authority(join).await?;
        let auth = AuthInfo { token: Some(join.token.clone().into()), ..AuthInfo::default() };
        let client = Servers::new(clients(&join.servers, &ca_pem, &auth)?).client();
        admitted(&client, &place, &join.token).await?;
        let identity = request::certificate(&client, &place, Purpose::Client)
            .await
            .with_context(|| format!("{} did not give this node a certificate", join.servers.join(", ")))?;
        keep_cluster(&place, &join.servers, &ca_pem)?;
        keep(&place.file("client.pem"), &identity)?;
        Membership::open(place, &[]).await
    }

    /// The membership of a node that joined before. `servers` take the place of those that it knows, if there are any.
    ///
    /// # Errors
    /// When its files are missing or unusable.
    pub async fn open(place: Place, servers: &[String]) -> Result<Membership> {
        let read = |name: &str| {
            let file = place.file(name);
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}; join again", file.display()))
        };
        let Known { servers: known, server, ca } =
            serde_json::from_str(&read("cluster.json")?).context("cluster.json is damaged; join again")?;
        let known: Vec<String> = if known.is_empty() { server.into_iter().collect() } else { known };
        let urls = if servers.is_empty() { known.clone() } else { servers.to_vec() };
        let first = urls.first().context("cluster.json names no server; join again")?;
        let identity = read("client.pem")?;
        let servers = Servers::new(clients(&urls, &ca, &auth_of(&identity))?);
        if urls != known {
            keep_cluster(&place, &urls, &ca)?;
        }
        keep(&place.kubeconfig(), &kubeconfig(first, &ca, &identity)?)?;
        let (serving, _) = watch::channel(ServingIdentity::default());
        Ok(Membership { place, urls, ca_pem: ca, servers, serving })
    }

    /// The cluster's authority.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// A client that always uses the newest certificate, and a server that answers.
    pub fn client(&self) -> Client {
        self.servers.client()
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
                let fresh = clients(&self.urls, &self.ca_pem, &auth_of(pem))?;
                keep(&self.place.file("client.pem"), pem)?;
                let first = self.urls.first().map_or("", String::as_str);
                keep(&self.place.kubeconfig(), &kubeconfig(first, &self.ca_pem, pem)?)?;
                self.servers.replace(fresh);
            }
            Purpose::Serving => {
                keep(&self.place.file("serving.pem"), pem)?;
                self.serving.send_replace(ServingIdentity { cert_pem: pem.to_owned(), key_pem: pem.to_owned() });
            }
        }
        Ok(())
    }
}

/// Each API server that the node with its keys in `dir` knows, and whether it answers a machine with this clock.
///
/// # Errors
/// When the node has not joined, or its file is damaged.
pub async fn known_servers(dir: &Path) -> Result<Vec<(String, Result<()>)>> {
    let text = std::fs::read_to_string(dir.join("cluster.json")).context("this machine has not joined a cluster")?;
    let Known { mut servers, server, .. } =
        serde_json::from_str(&text).context("cluster.json is damaged; join again")?;
    servers.extend(server);
    let asked = servers.into_iter().map(async |server| {
        let told = clock::told(&server).await;
        (server, told)
    });
    Ok(futures::future::join_all(asked).await)
}

/// The authority as the first server that answers tells it.
async fn authority(join: &Join) -> Result<String> {
    let mut failed = None;
    for server in &join.servers {
        match trust::authority(server, &join.trust).await {
            Ok(pem) => return Ok(pem),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| anyhow::anyhow!("no server is named")))
}

/// Whether the token is taken, and the node's name free: asked before anything is made.
///
/// # Errors
/// In kubeadm's words for a name that is taken.
async fn admitted(client: &Client, place: &Place, token: &str) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let name = &place.node_name;
    match nodes.get_opt(name).await {
        Ok(Some(node)) if is_ready(&node) => bail!(
            "a Node with name \"{name}\" and status \"Ready\" already exists in the cluster. You must delete the existing \
             Node or change the name of this new joining Node (--node-name); a machine that was reset may join again \
             under its name once that is no longer Ready, after a minute"
        ),
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 401 => {
            let id = token.split_once('.').map_or("", |(id, _)| id);
            bail!(
                "the token {id:?} is not one of this cluster's, or it has expired: make another one on a server (`sluice \
                 token create`; `sluice token list` shows when they expire)"
            )
        }
        // A control plane of an earlier version does not let it look.
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(()),
        Err(error) => Err(error).context("no API server answered"),
    }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// A client of each server.
fn clients(urls: &[String], ca_pem: &str, auth: &AuthInfo) -> Result<Vec<Client>> {
    let client = |server: &String| {
        let url: http::Uri =
            server.parse().with_context(|| format!("`{server}` is no URL; write https://ADDRESS:PORT"))?;
        let mut config = kube::Config::new(url);
        config.root_cert = Some(trust::ders(ca_pem)?);
        config.auth_info = auth.clone();
        if urls.len() > 1 {
            config.connect_timeout = Some(limits::SERVER_CONNECT);
        }
        Ok(Client::try_from(config)?)
    };
    urls.iter().map(client).collect()
}

/// `cluster.json`.
#[derive(Deserialize)]
struct Known {
    #[serde(default)]
    servers: Vec<String>,
    /// The only one, as earlier versions wrote it.
    server: Option<String>,
    ca: String,
}

fn keep_cluster(place: &Place, servers: &[String], ca_pem: &str) -> Result<()> {
    let cluster = serde_json::json!({"servers": servers, "ca": ca_pem});
    keep(&place.file("cluster.json"), &cluster.to_string())
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
