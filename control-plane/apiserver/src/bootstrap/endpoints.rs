//! The endpoints of the `kubernetes` Service: the addresses of all servers that serve, as upstream's lease reconciler keeps
//! them. Each server says in the store that it is there ([`Storage::enter`]) and takes itself back when it ends; one that
//! dies is gone when its lease is. Every server writes what all of them said, whenever that changes or somebody changed what
//! was written; none of them writes endpoints that name nobody. The public `cluster-info` names one of them.

use std::net::{IpAddr, SocketAddr};

use anyhow::bail;
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use sluice_api::{resource::builtin, status::Status};
use sluice_store::cache::{CacheItem, CacheWatch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::objects::{self, Cluster, Item};
use crate::{
    limits,
    storage::{Storage, StoredObject},
};

const SERVICE: (&str, &str) = ("default", "kubernetes");
/// A slice for each family, written only when there are addresses of it.
const SLICES: [(&str, &str); 2] = [("IPv4", "kubernetes"), ("IPv6", "kubernetes-ipv6")];

/// Whether this server may serve beside those that do.
///
/// # Errors
/// When another one listens on another port: as with upstream's, the endpoints of all of them have one.
pub(crate) fn agree(storage: &Storage, cluster: &Cluster) -> anyhow::Result<()> {
    let is_other = |server: &SocketAddr| server.port() != cluster.port && !cluster.advertise.contains(&server.ip());
    let Some(other) = storage.servers().into_iter().find(is_other) else { return Ok(()) };
    bail!(
        "the servers of one cluster listen on one port: {other} serves it already, and this one would listen on {}; start it \
         with --bind and port {}, or end all others before the port is changed",
        cluster.port,
        other.port()
    )
}

/// Keeps this server among the endpoints, and the endpoints right, until `shutdown`; then takes it out.
pub(crate) async fn run(storage: &Storage, cluster: &Cluster, shutdown: &CancellationToken) {
    let own: Vec<SocketAddr> = cluster.advertise.iter().map(|ip| SocketAddr::new(*ip, cluster.port)).collect();
    let mut lease = None;
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = stay(storage, &own, &mut lease) => {}
        () = follow(storage, cluster) => {}
    }
    let Some(lease) = lease else { return };
    let left = async {
        storage.leave(lease).await?;
        publish(storage, cluster).await.map_err(Status::internal)
    };
    match timeout(limits::SERVER_LEAVES, left).await {
        Ok(Ok(())) => {}
        Ok(Err(status)) => tracing::warn!(error = %status.message, "still an endpoint of the kubernetes Service"),
        Err(_) => tracing::warn!("still an endpoint of the kubernetes Service: the store does not answer"),
    }
}

/// Says again and again that this server is there.
async fn stay(storage: &Storage, own: &[SocketAddr], lease: &mut Option<i64>) {
    let mut refused = false;
    loop {
        let renewed = renewed(storage, own, *lease).await;
        if let Err(status) = &renewed
            && !refused
        {
            tracing::warn!(error = %status.message, "the store does not take this server's sign of life, trying again");
        }
        refused = renewed.is_err();
        let pause = if refused { limits::OWN_RETRY } else { limits::SERVER_RENEWAL };
        *lease = renewed.ok().or(*lease);
        sleep(pause).await;
    }
}

/// Renews the lease, or enters under another one when it has ended or somebody removed what it holds.
async fn renewed(storage: &Storage, own: &[SocketAddr], lease: Option<i64>) -> Result<i64, Status> {
    if let Some(lease) = lease
        && storage.stay(lease).await?
        && own.iter().all(|address| storage.servers().contains(address))
    {
        return Ok(lease);
    }
    storage.enter(own).await
}

/// Writes the endpoints whenever that may be needed.
async fn follow(storage: &Storage, cluster: &Cluster) {
    loop {
        // Begun first, so that nothing is missed that changes meanwhile.
        let watches = watches(storage);
        if let Err(error) = publish(storage, cluster).await {
            tracing::warn!(
                error = format!("{error:#}"),
                "the kubernetes Service's endpoints cannot be written, trying again"
            );
            sleep(limits::OWN_RETRY).await;
            continue;
        }
        match watches {
            Ok(watches) => change(watches).await,
            Err(_) => sleep(limits::OWN_RETRY).await,
        }
    }
}

/// The servers, and what is written of them.
fn watches(storage: &Storage) -> Result<Vec<CacheWatch<StoredObject>>, Status> {
    let written = [("", "endpoints", SERVICE.1)]
        .into_iter()
        .chain(SLICES.map(|(_, name)| ("discovery.k8s.io", "endpointslices", name)));
    let own = written.filter_map(|(group, plural, name)| {
        let row = builtin().by_path(group, "v1", plural)?;
        Some(storage.watch_where(row.store_prefix(), SERVICE.0, 0, Some(name), Box::new(|_, _| true)))
    });
    std::iter::once(storage.watch_servers()).chain(own).collect()
}

/// Returns with the first change, or when there may have been one.
async fn change(watches: Vec<CacheWatch<StoredObject>>) {
    let mut items =
        stream::select_all(watches.into_iter().map(|watch| {
            Box::pin(stream::unfold(watch, |mut watch| async move { Some((watch.next().await, watch)) }))
        }));
    while let Some(CacheItem::Progress(_)) = items.next().await {}
}

/// Writes what differs from what the servers say.
async fn publish(storage: &Storage, cluster: &Cluster) -> anyhow::Result<()> {
    let servers = storage.servers();
    let Some(first) = servers.first() else { return Ok(()) };
    if let Some(other) = servers.iter().find(|server| server.port() != first.port()) {
        tracing::warn!(%first, %other, "servers of one cluster must listen on one port (--bind); the second is left out");
    }
    let unused =
        SLICES.into_iter().filter(|(family, _)| !servers.iter().any(|server| family_of(server.ip()) == *family));
    for (_, name) in unused {
        remove_slice(storage, name).await?;
    }
    let mut items = planned(&servers, cluster.service_ip);
    items.push(objects::cluster_info(cluster, &servers));
    objects::run(storage, items, objects::exact).await
}

async fn remove_slice(storage: &Storage, name: &str) -> Result<(), Status> {
    let Some(row) = builtin().by_path("discovery.k8s.io", "v1", "endpointslices") else { return Ok(()) };
    match storage.delete(row, SERVICE.0, name).await {
        Err(status) if status.code != 404 => Err(status),
        _ => Ok(()),
    }
}

/// The objects that name these servers, of which there is one at least. The port is the first one's: slices have one for
/// all their endpoints.
fn planned(servers: &[SocketAddr], service_ip: IpAddr) -> Vec<Item> {
    let port = servers.first().map_or(0, SocketAddr::port);
    let of = |family: &str| -> Vec<IpAddr> {
        let named = servers.iter().filter(|server| server.port() == port && family_of(server.ip()) == family);
        named.map(SocketAddr::ip).collect()
    };
    let ports = json!([{"name": "https", "port": port, "protocol": "TCP"}]);
    // Endpoints are of the Service's first family alone.
    let addresses: Vec<Value> = of(family_of(service_ip)).iter().map(|ip| json!({"ip": ip})).collect();
    let subsets = if addresses.is_empty() { json!([]) } else { json!([{"addresses": addresses, "ports": ports}]) };
    let endpoints = json!({"metadata": {"namespace": SERVICE.0, "name": SERVICE.1,
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": subsets});
    let slice = |(family, name): (&str, &str)| {
        let endpoints: Vec<Value> =
            of(family).iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect();
        let slice = json!({"metadata": {"namespace": SERVICE.0, "name": name,
                "labels": {"kubernetes.io/service-name": SERVICE.1}},
            "addressType": family, "endpoints": endpoints, "ports": ports});
        ("discovery.k8s.io", "endpointslices", slice)
    };
    let slices = SLICES.into_iter().filter(|(family, _)| !of(family).is_empty()).map(slice);
    std::iter::once(("", "endpoints", endpoints)).chain(slices).collect()
}

fn family_of(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What is written for `servers`: the Endpoints' addresses, then each slice's.
    fn check(servers: &[&str], service_ip: &str, expected: &[&[&str]]) {
        let servers: Vec<SocketAddr> = servers.iter().map(|server| server.parse().unwrap()).collect();
        let items = planned(&servers, service_ip.parse().unwrap());
        let addresses = |(_, plural, object): &Item| -> Vec<String> {
            let (list, field) = match *plural {
                "endpoints" => (&object["subsets"][0]["addresses"], "/ip"),
                _ => (&object["endpoints"], "/addresses/0"),
            };
            let each = list.as_array().into_iter().flatten();
            each.map(|entry| entry.pointer(field).unwrap().as_str().unwrap().to_owned()).collect()
        };
        let told: Vec<Vec<String>> = items.iter().map(addresses).collect();
        assert_eq!(told, expected, "{servers:?}");
        for (group, plural, object) in items {
            assert!(builtin().by_path(group, "v1", plural).is_some(), "{object}");
        }
    }

    #[test]
    fn endpoints_name_every_server() {
        let one = "192.0.2.7:6443";
        check(&[one], "10.96.0.1", &[&["192.0.2.7"], &["192.0.2.7"]]);
        check(&[one, "192.0.2.9:6443"], "10.96.0.1", &[&["192.0.2.7", "192.0.2.9"], &["192.0.2.7", "192.0.2.9"]]);
        // Endpoints have one family, slices both.
        let both = [one, "[2001:db8::7]:6443"];
        check(&both, "10.96.0.1", &[&["192.0.2.7"], &["192.0.2.7"], &["2001:db8::7"]]);
        check(&both, "fd00::1", &[&["2001:db8::7"], &["192.0.2.7"], &["2001:db8::7"]]);
        check(&[one], "fd00::1", &[&[], &["192.0.2.7"]]);
        check(&[one, "192.0.2.8:7443"], "10.96.0.1", &[&["192.0.2.7"], &["192.0.2.7"]]);
    }
}
