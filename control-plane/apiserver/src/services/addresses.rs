//! IPAddress objects (KEP-1880): one for each cluster IP of a Service, written and removed with it.

use std::net::IpAddr;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};
use sluice_api::{
    resource::{Resource, builtin},
    status::Status,
};

use super::{held::Held, range};
use crate::{
    limits, meta,
    storage::{Along, Storage, StoredObject},
};

const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
/// Who makes these objects.
const ALLOCATOR: &str = "ipallocator.k8s.io";

fn row() -> Option<&'static Resource> {
    builtin().by_path("networking.k8s.io", "v1", "ipaddresses").map(|row| &**row)
}

fn stored(storage: &Storage, address: IpAddr) -> Option<std::sync::Arc<StoredObject>> {
    storage.get(row()?.store_prefix(), "", &address.to_string())
}

/// The addresses that the API server's own objects say are taken.
pub(super) fn all(storage: &Storage) -> Vec<IpAddr> {
    let Some(row) = row() else { return Vec::new() };
    let objects = storage.list(row.store_prefix(), "").items;
    let own = objects.iter().filter(|object| object.label(MANAGED_BY) == Some(ALLOCATOR));
    own.filter_map(|object| object.name.parse().ok()).collect()
}

/// Whether an address is taken, by whomever.
pub(super) fn exists(storage: &Storage, address: IpAddr) -> bool {
    stored(storage, address).is_some()
}

/// Adds the objects of addresses that a Service is about to hold.
pub(super) fn take<'a>(
    storage: &Storage,
    along: &mut Along,
    service: &Value,
    addresses: impl Iterator<Item = &'a IpAddr>,
) -> Result<(), Status> {
    let Some(row) = row() else { return Ok(()) };
    for address in addresses {
        let mut object = object(*address, meta::namespace(service), meta::name(service));
        meta::stamp(&mut object);
        storage.also_create(along, row, &object)?;
    }
    Ok(())
}

/// Adds the removal of the objects of addresses that a Service holds no more. Others' objects stay, and those that somebody
/// holds by a finalizer are left to the repair.
pub(super) fn give_up<'a>(
    storage: &Storage,
    along: &mut Along,
    service: &Value,
    addresses: impl Iterator<Item = &'a IpAddr>,
) {
    let Some(row) = row() else { return };
    for found in addresses.filter_map(|address| stored(storage, *address)) {
        let object = found.value();
        if is_of(&object, service) && meta::finalizers(&object).is_empty() {
            storage.also_remove(along, row, &found);
        }
    }
}

/// Makes the objects that Services lack which were stored without: by an earlier release, or as a cluster's own.
pub(crate) async fn adopt(storage: &Storage) -> Result<(), Status> {
    let (Some(row), Some(services)) = (row(), builtin().by_path("", "v1", "services")) else { return Ok(()) };
    let ranges = range::all(storage);
    let mut missing = Vec::new();
    for service in storage.list(services.store_prefix(), "").items {
        let held = Held::read(&service).addresses.into_iter();
        let lost = held.filter(|a| !exists(storage, *a) && ranges.iter().any(|range| range.contains(*a)));
        missing.extend(lost.map(|address| object(address, &service.namespace, &service.name)));
    }
    let made = missing.into_iter().map(|object| async move {
        match storage.create(row, object).await {
            // Another server does the same.
            Err(status) if status.code != 409 => Err(status),
            _ => Ok(()),
        }
    });
    let made: Vec<_> = made.collect();
    stream::iter(made).buffer_unordered(limits::BOOTSTRAP_WRITES).try_collect().await
}

fn object(address: IpAddr, namespace: &str, name: &str) -> Value {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    json!({
        "kind": "IPAddress", "apiVersion": "networking.k8s.io/v1",
        "metadata": {"name": address, "labels": {FAMILY: family, MANAGED_BY: ALLOCATOR}},
        "spec": {"parentRef": {"resource": "services", "namespace": namespace, "name": name}},
    })
}

/// Whether an IPAddress is a Service's.
fn is_of(object: &Value, service: &Value) -> bool {
    let parent = &object["spec"]["parentRef"];
    let text = |field: &str| parent[field].as_str().unwrap_or_default();
    (text("group"), text("resource")) == ("", "services")
        && (text("namespace"), text("name")) == (meta::namespace(service), meta::name(service))
}
