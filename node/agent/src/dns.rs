//! Cluster DNS on this node: runs the server on the node's address inside its own pod range, and keeps the
//! EndpointSlice that makes it a backend of the kube-dns Service.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Error};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::kept::{self, Kept};

const NAMESPACE: &str = "kube-system";
const SERVICE: &str = "kube-dns";
const PORT: u16 = 53;

/// What DNS is told.
#[derive(Clone, Debug)]
pub struct Settings {
    pub node: String,
    pub node_uid: Option<String>,
    pub domain: String,
    pub listen: Vec<IpAddr>,
    pub upstreams: Vec<SocketAddr>,
    pub stats: Arc<sluice_dns::Stats>,
    pub kept: Arc<Kept>,
}

/// Serves until the shutdown.
pub async fn run(client: Client, settings: Settings, shutdown: CancellationToken) -> anyhow::Result<()> {
    let listen: Vec<SocketAddr> = settings.listen.iter().map(|ip| SocketAddr::new(*ip, PORT)).collect();
    let (udp, tcp) = settings.kept.of(&listen);
    let others = udp.len() + tcp.len() < settings.kept.count();
    let config = sluice_dns::Config {
        cluster_domain: settings.domain.clone(),
        listen: listen.clone(),
        upstreams: settings.upstreams.iter().filter(|u| !listen.contains(u)).copied().collect(),
        stats: settings.stats.clone(),
        udp,
        tcp,
    };
    let dns = sluice_dns::Dns::new(client.clone(), config)?;
    kept::keep(&dns.sockets(), others);
    let publish = publish(client, settings, shutdown.clone());
    let (served, ()) = tokio::join!(dns.run(shutdown), publish);
    served
}

/// Writes the slice, trying again until it is there.
async fn publish(client: Client, settings: Settings, shutdown: CancellationToken) {
    let mut delay = crate::limits::SETUP_RETRY_FIRST;
    loop {
        match write(&client, &settings).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "the node's DNS is not published yet; trying again"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(delay) => {}
        }
        delay = (delay * 2).min(crate::limits::SETUP_RETRY_MAX);
    }
}

async fn write(client: &Client, settings: &Settings) -> Result<(), Error> {
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    for family in ["IPv4", "IPv6"] {
        let Some(object) = slice(settings, family) else { continue };
        let slice: EndpointSlice = serde_json::from_value(object.clone()).map_err(Error::SerdeError)?;
        let name = slice.metadata.name.clone().unwrap_or_default();
        match api.create(&PostParams::default(), &slice).await {
            Err(Error::Api(s)) if s.code == 409 => {
                api.patch(&name, &PatchParams::default(), &Patch::Merge(&object)).await?;
            }
            other => drop(other?),
        }
    }
    Ok(())
}

/// The EndpointSlice of one address family; `None` if the node has no address of it.
fn slice(settings: &Settings, family: &str) -> Option<Value> {
    let addresses: Vec<String> =
        settings.listen.iter().filter(|ip| ip.is_ipv4() == (family == "IPv4")).map(ToString::to_string).collect();
    if addresses.is_empty() {
        return None;
    }
    let mut name = format!("{SERVICE}-{}", settings.node);
    if family == "IPv6" {
        name.push_str("-v6");
    }
    let owner = settings
        .node_uid
        .as_ref()
        .map(|uid| json!([{"apiVersion": "v1", "kind": "Node", "name": settings.node, "uid": uid}]));
    let endpoint = json!({
        "addresses": addresses, "nodeName": settings.node,
        "conditions": {"ready": true, "serving": true, "terminating": false},
    });
    Some(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": name, "namespace": NAMESPACE,
            "labels": {
                "kubernetes.io/service-name": SERVICE,
                "endpointslice.kubernetes.io/managed-by": "node.sluice.io",
            },
            "ownerReferences": owner,
        },
        "addressType": family,
        "endpoints": [endpoint],
        "ports": [
            {"name": "dns", "port": PORT, "protocol": "UDP"},
            {"name": "dns-tcp", "port": PORT, "protocol": "TCP"},
        ],
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_slice_per_family() {
        let settings = Settings {
            node: "n1".into(),
            node_uid: Some("u".into()),
            domain: "cluster.local".into(),
            listen: vec!["10.244.0.1".parse().unwrap()],
            upstreams: Vec::new(),
            stats: Arc::default(),
            kept: Arc::default(),
        };
        let v4 = slice(&settings, "IPv4").unwrap();
        assert_eq!(v4["metadata"]["name"], "kube-dns-n1");
        assert_eq!(v4["endpoints"][0]["nodeName"], "n1");
        assert_eq!(slice(&settings, "IPv6"), None);
        assert!(serde_json::from_value::<EndpointSlice>(v4).is_ok());
    }
}
