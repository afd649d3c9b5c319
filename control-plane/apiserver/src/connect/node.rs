//! Where a node's HTTPS API is.

use serde::Deserialize;
use sluice_api::status::Status;

use super::{Connect, forward::Target};
use crate::auth::refusal;

const KUBELET_PORT: u16 = 10250;

#[derive(Deserialize)]
struct Node {
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeStatus {
    addresses: Option<Vec<Address>>,
    daemon_endpoints: Option<DaemonEndpoints>,
}

#[derive(Deserialize)]
struct Address {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DaemonEndpoints {
    kubelet_endpoint: Option<Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    #[serde(rename = "Port")]
    port: u16,
}

impl Connect {
    /// The node's API: its InternalIP and the port that it reports.
    pub(super) fn node_target(&self, name: &str) -> Result<Target, Status> {
        let stored = self.view.get("", "nodes", "", name).ok_or_else(|| refusal::not_found("", "nodes", name))?;
        let node: Node = stored.parse().map_err(Status::internal)?;
        let addresses = node.status.addresses.unwrap_or_default();
        let of = |kind: &str| addresses.iter().find(|a| a.kind == kind).map(|a| a.address.clone());
        let host = ["InternalIP", "InternalDNS", "Hostname", "ExternalIP", "ExternalDNS"]
            .into_iter()
            .find_map(of)
            .ok_or_else(|| {
                Status::internal(format!("node {name} has not reported an address yet: is its daemon running?"))
            })?;
        let port = node.status.daemon_endpoints.and_then(|d| d.kubelet_endpoint).map_or(KUBELET_PORT, |e| e.port);
        Ok(Target { host, port, name: format!("node {name}"), server_name: None })
    }
}
