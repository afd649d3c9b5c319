//! Keeps the zone in step with the API server: one watch of Services and one of EndpointSlices, each
//! decoded into the few fields DNS needs, nothing else kept.

use std::{
    borrow::Cow,
    collections::HashSet,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::{Stream, StreamExt};
use k8s_openapi::{NamespaceResourceScope, api::core::v1 as core, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use parking_lot::RwLock;
use serde::Deserialize;
use tokio::sync::Notify;

use crate::zone::{Endpoint, Kind, Port, Service, Slice, Zone};

/// The label that says which Service a slice belongs to.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// The zone, and whether everything was loaded once.
pub(crate) struct Shared {
    pub(crate) zone: RwLock<Zone>,
    services: AtomicBool,
    slices: AtomicBool,
    /// One of them came.
    came: Notify,
}

impl Shared {
    pub(crate) fn new(zone: Zone) -> Self {
        Shared { zone: RwLock::new(zone), services: false.into(), slices: false.into(), came: Notify::new() }
    }

    fn came(&self, what: &AtomicBool) {
        what.store(true, Ordering::Release);
        self.came.notify_waiters();
    }

    pub(crate) async fn wait_until_loaded(&self) {
        loop {
            let came = self.came.notified();
            if self.loaded() {
                return;
            }
            came.await;
        }
    }

    /// Until then a name that is not found may still exist.
    pub(crate) fn loaded(&self) -> bool {
        self.services.load(Ordering::Acquire) && self.slices.load(Ordering::Acquire)
    }

    #[cfg(test)]
    pub(crate) fn set_loaded(&self) {
        self.came(&self.services);
        self.came(&self.slices);
    }
}

/// Follows both kinds for ever; an API server that is away leaves the last known state.
pub(crate) async fn run(client: Client, shared: Arc<Shared>) {
    let config = || watcher::Config::default().any_semantic();
    let services = watcher(Api::<ServiceView>::all(client.clone()), config()).default_backoff();
    let slices = watcher(Api::<SliceView>::all(client), config()).default_backoff();
    tokio::join!(
        follow(services, |event| apply_services(&shared, event)),
        follow(slices, |event| apply_slices(&shared, event)),
    );
}

async fn follow<K>(stream: impl Stream<Item = Result<Event<K>, watcher::Error>>, mut apply: impl FnMut(Tracked<K>)) {
    let mut stream = std::pin::pin!(stream);
    let mut listed = HashSet::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => apply(Tracked::Listed(object, &mut listed)),
            Ok(Event::InitDone) => apply(Tracked::AllListed(std::mem::take(&mut listed))),
            Ok(Event::Apply(object)) => apply(Tracked::Set(object)),
            Ok(Event::Delete(object)) => apply(Tracked::Gone(object)),
            Err(error) => tracing::warn!(%error, "DNS lost its watch on the API server, trying again"),
        }
    }
}

/// A watch event with what a list needs to find out what is gone.
enum Tracked<'a, K> {
    Listed(K, &'a mut HashSet<(String, String)>),
    AllListed(HashSet<(String, String)>),
    Set(K),
    Gone(K),
}

fn apply_services(shared: &Shared, event: Tracked<'_, ServiceView>) {
    let mut zone = shared.zone.write();
    match event {
        Tracked::Listed(object, listed) => {
            listed.insert(id(&object.metadata));
            set_service(&mut zone, object);
        }
        Tracked::Set(object) => set_service(&mut zone, object),
        Tracked::Gone(object) => {
            let (namespace, name) = id(&object.metadata);
            zone.remove_service(&namespace, &name);
        }
        Tracked::AllListed(listed) => {
            zone.retain_services(|namespace, name| listed.contains(&(namespace.to_owned(), name.to_owned())));
            shared.came(&shared.services);
        }
    }
}

fn apply_slices(shared: &Shared, event: Tracked<'_, SliceView>) {
    let mut zone = shared.zone.write();
    match event {
        Tracked::Listed(object, listed) => {
            listed.insert(id(&object.metadata));
            set_slice(&mut zone, object);
        }
        Tracked::Set(object) => set_slice(&mut zone, object),
        Tracked::Gone(object) => {
            let (namespace, name) = id(&object.metadata);
            zone.remove_slice(&namespace, &name);
        }
        Tracked::AllListed(listed) => {
            zone.retain_slices(|namespace, name| listed.contains(&(namespace.to_owned(), name.to_owned())));
            shared.came(&shared.slices);
        }
    }
}

fn set_service(zone: &mut Zone, object: ServiceView) {
    let (namespace, name) = id(&object.metadata);
    match object.into_service() {
        Some(service) => zone.set_service(service),
        // It has no address yet.
        None => zone.remove_service(&namespace, &name),
    }
}

fn set_slice(zone: &mut Zone, object: SliceView) {
    let (namespace, name) = id(&object.metadata);
    match object.into_slice() {
        Some(slice) => zone.set_slice(slice),
        None => zone.remove_slice(&namespace, &name),
    }
}

fn id(metadata: &ObjectMeta) -> (String, String) {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    (text(&metadata.namespace), text(&metadata.name))
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ServiceView {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: ServiceSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceSpec {
    r#type: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    external_name: Option<String>,
    publish_not_ready_addresses: Option<bool>,
    ports: Option<Vec<PortView>>,
}

#[derive(Clone, Debug, Deserialize)]
struct PortView {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i32>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct SliceView {
    metadata: ObjectMeta,
    endpoints: Option<Vec<EndpointView>>,
    ports: Option<Vec<PortView>>,
}

#[derive(Clone, Debug, Deserialize)]
struct EndpointView {
    addresses: Vec<String>,
    conditions: Option<Conditions>,
    hostname: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Conditions {
    ready: Option<bool>,
}

impl ServiceView {
    /// `None` while it stands for nothing.
    pub(crate) fn into_service(self) -> Option<Service> {
        let (namespace, name) = id(&self.metadata);
        let spec = self.spec;
        let kind = if spec.r#type.as_deref() == Some("ExternalName") {
            Kind::External(spec.external_name.filter(|n| !n.is_empty())?)
        } else if spec.cluster_ip.as_deref() == Some("None") {
            Kind::Headless
        } else {
            let all = spec.cluster_ips.unwrap_or_default().into_iter().chain(spec.cluster_ip);
            let mut addresses: Vec<IpAddr> = Vec::new();
            for address in all.filter_map(|text| text.parse().ok()) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            if addresses.is_empty() {
                return None;
            }
            Kind::ClusterIp(addresses)
        };
        Some(Service {
            namespace,
            name,
            kind,
            ports: ports(spec.ports),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        })
    }
}

impl SliceView {
    /// `None` when it belongs to no Service.
    pub(crate) fn into_slice(mut self) -> Option<Slice> {
        let (namespace, name) = id(&self.metadata);
        let service = self.metadata.labels.as_mut()?.remove(SERVICE_LABEL)?;
        let endpoint = |view: EndpointView| Endpoint {
            addresses: view.addresses.iter().filter_map(|text| text.parse().ok()).collect(),
            hostname: view.hostname.filter(|h| !h.is_empty()),
            // Unknown counts as ready (the field's documentation).
            ready: view.conditions.and_then(|c| c.ready).unwrap_or(true),
        };
        let endpoints = self.endpoints.unwrap_or_default().into_iter().map(endpoint).collect();
        Some(Slice { namespace, name, service, ports: ports(self.ports), endpoints })
    }
}

fn ports(views: Option<Vec<PortView>>) -> Vec<Port> {
    let port = |view: PortView| Port {
        name: view.name.unwrap_or_default().to_ascii_lowercase(),
        protocol: view.protocol.unwrap_or_else(|| "TCP".to_owned()).to_ascii_lowercase(),
        number: view.port.and_then(|p| u16::try_from(p).ok()).unwrap_or(0),
    };
    views.unwrap_or_default().into_iter().map(port).collect()
}

macro_rules! narrow {
    ($view:ty, $full:ty) => {
        impl Resource for $view {
            type DynamicType = ();
            type Scope = NamespaceResourceScope;
            fn kind(dt: &()) -> Cow<'_, str> {
                <$full as Resource>::kind(dt)
            }
            fn group(dt: &()) -> Cow<'_, str> {
                <$full as Resource>::group(dt)
            }
            fn version(dt: &()) -> Cow<'_, str> {
                <$full as Resource>::version(dt)
            }
            fn plural(dt: &()) -> Cow<'_, str> {
                <$full as Resource>::plural(dt)
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

narrow!(ServiceView, core::Service);
narrow!(SliceView, k8s_openapi::api::discovery::v1::EndpointSlice);
