//! Services and EndpointSlices from the API into the kernel: two watches, a short pause to gather changes, one pass of
//! compiler, planner and writes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::Ipv4Addr;
use std::pin::pin;

use futures::{Stream, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use crate::dataplane::Dataplane;
use crate::limits::{DEBOUNCE, DEBOUNCE_MOST, QUARANTINE};
use crate::model::{Endpoint, ObjectName, Protocol, Service, ServicePort, Slice, SlicePort, Snapshot};
use crate::{Error, compile};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";

macro_rules! view {
    ($name:ident, $kind:literal, $group:literal, $api:literal, $plural:literal) => {
        impl Resource for $name {
            type DynamicType = ();
            type Scope = NamespaceResourceScope;
            fn kind(_: &()) -> Cow<'_, str> {
                $kind.into()
            }
            fn group(_: &()) -> Cow<'_, str> {
                $group.into()
            }
            fn version(_: &()) -> Cow<'_, str> {
                "v1".into()
            }
            fn api_version(_: &()) -> Cow<'_, str> {
                $api.into()
            }
            fn plural(_: &()) -> Cow<'_, str> {
                $plural.into()
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

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ServiceView {
    metadata: ObjectMeta,
    spec: ServiceSpecView,
    status: ServiceStatusView,
}
view!(ServiceView, "Service", "", "v1", "services");

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ServiceSpecView {
    r#type: String,
    #[serde(rename = "clusterIP")]
    cluster_ip: String,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<String>,
    #[serde(rename = "externalIPs")]
    external_ips: Vec<String>,
    ports: Vec<PortView>,
    internal_traffic_policy: Option<String>,
    external_traffic_policy: Option<String>,
    traffic_distribution: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PortView {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<u16>,
    node_port: Option<u16>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ServiceStatusView {
    load_balancer: LoadBalancerView,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct LoadBalancerView {
    ingress: Vec<IngressView>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct IngressView {
    ip: Option<String>,
    ip_mode: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SliceView {
    metadata: ObjectMeta,
    address_type: String,
    endpoints: Option<Vec<EndpointView>>,
    ports: Option<Vec<PortView>>,
}
view!(SliceView, "EndpointSlice", "discovery.k8s.io", "discovery.k8s.io/v1", "endpointslices");

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct EndpointView {
    addresses: Vec<String>,
    conditions: ConditionsView,
    node_name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ConditionsView {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

fn addresses<'a>(texts: impl IntoIterator<Item = &'a String>) -> Vec<Ipv4Addr> {
    texts.into_iter().filter_map(|text| text.parse().ok()).collect()
}

fn is_local(policy: &Option<String>) -> bool {
    policy.as_deref() == Some("Local")
}

impl From<ServiceView> for Option<Service> {
    /// `None` for services that another proxy or the DNS alone serves.
    fn from(view: ServiceView) -> Option<Service> {
        let others = view.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(OTHER_PROXY));
        let spec = view.spec;
        if others || spec.r#type == "ExternalName" || spec.cluster_ip == "None" {
            return None;
        }
        let cluster = if spec.cluster_ips.is_empty() { vec![spec.cluster_ip] } else { spec.cluster_ips };
        let balancers = view.status.load_balancer.ingress.iter();
        let balancers = balancers.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
        let ports = spec.ports.into_iter().filter_map(|port| {
            Some(ServicePort {
                name: port.name.unwrap_or_default(),
                protocol: Protocol::from_api(port.protocol.as_deref())?,
                port: port.port?,
                node_port: port.node_port.unwrap_or(0),
            })
        });
        Some(Service {
            cluster: addresses(&cluster),
            external: addresses(spec.external_ips.iter().chain(balancers.filter_map(|ingress| ingress.ip.as_ref()))),
            ports: ports.collect(),
            internal_local: is_local(&spec.internal_traffic_policy),
            external_local: is_local(&spec.external_traffic_policy),
            prefer_local: spec.traffic_distribution.as_deref() == Some("PreferSameNode"),
        })
    }
}

impl From<SliceView> for Option<Slice> {
    /// `None` for slices of other address families and of no service.
    fn from(view: SliceView) -> Option<Slice> {
        if view.address_type != "IPv4" {
            return None;
        }
        let service = view.metadata.labels?.remove(SERVICE_NAME)?;
        let ports = view.ports.unwrap_or_default().into_iter().filter_map(|port| {
            Some(SlicePort {
                name: port.name.unwrap_or_default(),
                protocol: Protocol::from_api(port.protocol.as_deref())?,
                port: port.port?,
            })
        });
        let endpoints = view.endpoints.unwrap_or_default().into_iter().map(|endpoint| {
            // Unknown means ready; serving follows ready when it is not said (discovery/v1 API reference).
            let ready = endpoint.conditions.ready.unwrap_or(true);
            Endpoint {
                address: endpoint.addresses.first().and_then(|text| text.parse().ok()),
                ready,
                serving: endpoint.conditions.serving.unwrap_or(ready),
                terminating: endpoint.conditions.terminating.unwrap_or(false),
                node: endpoint.node_name,
            }
        });
        Some(Slice { service, ports: ports.collect(), endpoints: endpoints.collect() })
    }
}

/// One kind of object as it stands in the API.
struct Mirror<T> {
    objects: BTreeMap<ObjectName, T>,
    /// Filled while a list is under way.
    fresh: Option<BTreeMap<ObjectName, T>>,
    listed: bool,
}

impl<T: PartialEq> Mirror<T> {
    fn new() -> Self {
        Mirror { objects: BTreeMap::new(), fresh: None, listed: false }
    }

    /// Takes in an event; true if the objects may have changed.
    fn take<V: Resource + Into<Option<T>>>(&mut self, event: Event<V>) -> bool {
        match event {
            Event::Init => {
                self.fresh = Some(BTreeMap::new());
                false
            }
            Event::InitApply(view) => {
                let name = name(&view);
                if let (Some(fresh), Some(object)) = (&mut self.fresh, view.into()) {
                    fresh.insert(name, object);
                }
                false
            }
            Event::InitDone => {
                let fresh = self.fresh.take().unwrap_or_default();
                let changed = !self.listed || self.objects != fresh;
                self.objects = fresh;
                self.listed = true;
                changed
            }
            Event::Apply(view) => {
                let name = name(&view);
                match view.into() {
                    Some(object) if self.objects.get(&name) == Some(&object) => false,
                    Some(object) => {
                        self.objects.insert(name, object);
                        true
                    }
                    None => self.objects.remove(&name).is_some(),
                }
            }
            Event::Delete(view) => self.objects.remove(&name(&view)).is_some(),
        }
    }
}

fn name<V: Resource>(view: &V) -> ObjectName {
    let meta = view.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

fn events<V>(client: &kube::Client) -> impl Stream<Item = Result<Event<V>, watcher::Error>> + use<V>
where
    V: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    watcher(Api::<V>::all(client.clone()), watcher::Config::default()).default_backoff()
}

impl Dataplane {
    /// Feeds the kernel from the API until the shutdown. What an earlier process left stays in effect until both kinds
    /// have been listed.
    pub(crate) async fn follow_services(
        &self,
        client: kube::Client,
        shutdown: &CancellationToken,
    ) -> Result<(), Error> {
        let mut services = pin!(events::<ServiceView>(&client));
        let mut slices = pin!(events::<SliceView>(&client));
        let (mut known_services, mut known_slices) = (Mirror::<Service>::new(), Mirror::<Slice>::new());
        // When the change that waits came, and when to act on it.
        let mut waiting: Option<(Instant, Instant)> = None;
        loop {
            let due = waiting.map(|(_, due)| due).filter(|_| known_services.listed && known_slices.listed);
            let changed = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                Some(event) = services.next() => taken(event, |event| known_services.take(event)),
                Some(event) = slices.next() => taken(event, |event| known_slices.take(event)),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    let snapshot = Snapshot {
                        services: known_services.objects.clone(),
                        slices: known_slices.objects.clone(),
                        node: self.inner.config.node.clone(),
                    };
                    waiting = self.pass(snapshot).await.map(|later| (Instant::now(), Instant::now() + later));
                    false
                }
            };
            if changed {
                let now = Instant::now();
                let since = waiting.map_or(now, |(since, _)| since);
                waiting = Some((since, (now + DEBOUNCE).min(since + DEBOUNCE_MOST)));
            }
        }
    }

    /// One pass; returns after what time to try again when not everything could be placed.
    async fn pass(&self, snapshot: Snapshot) -> Option<Duration> {
        let dataplane = self.clone();
        let work = move || dataplane.apply_desired(&compile::compile(&snapshot));
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok((problems, again))) => {
                for problem in problems {
                    tracing::warn!(problem, "a service cannot be served");
                }
                again.then_some(QUARANTINE)
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "the service table could not be written");
                Some(QUARANTINE)
            }
            Err(error) => {
                tracing::error!(%error, "the service compiler failed");
                None
            }
        }
    }
}

fn taken<V>(event: Result<Event<V>, watcher::Error>, take: impl FnOnce(Event<V>) -> bool) -> bool {
    match event {
        Ok(event) => take(event),
        Err(error) => {
            tracing::debug!(%error, "a watch broke; it starts again");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn service(value: serde_json::Value) -> Option<Service> {
        serde_json::from_value::<ServiceView>(value).unwrap().into()
    }

    #[test]
    fn services_as_the_api_writes_them() {
        let full = service(json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00::9"],
                "externalIPs": ["192.0.2.7"], "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Cluster",
                "ports": [
                    {"name": "http", "port": 80, "targetPort": "http", "nodePort": 30001, "protocol": "TCP"},
                    {"name": "sctp", "port": 81, "protocol": "SCTP"}
                ]
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.8"}, {"ip": "192.0.2.9", "ipMode": "Proxy"}]}}
        }))
        .unwrap();
        assert_eq!(full.cluster, [Ipv4Addr::new(10, 96, 0, 9)]);
        assert_eq!(full.external, [Ipv4Addr::new(192, 0, 2, 7), Ipv4Addr::new(192, 0, 2, 8)]);
        assert_eq!(full.ports.len(), 1);
        assert_eq!((full.ports[0].port, full.ports[0].node_port), (80, 30001));
        assert!(full.external_local && !full.internal_local);
        for spec in [json!({"clusterIP": "None"}), json!({"type": "ExternalName", "externalName": "x"})] {
            assert_eq!(service(json!({"metadata": {"name": "x"}, "spec": spec})), None);
        }
        let other =
            json!({"metadata": {"name": "x", "labels": {OTHER_PROXY: "y"}}, "spec": {"clusterIP": "10.96.0.9"}});
        assert_eq!(service(other), None);
    }

    #[test]
    fn slices_as_the_api_writes_them() {
        let slice: Option<Slice> = serde_json::from_value::<SliceView>(json!({
            "metadata": {"name": "web-x", "namespace": "shop", "labels": {SERVICE_NAME: "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": ["10.244.0.5"], "conditions": {}},
                {"addresses": ["10.244.0.6"], "conditions": {"ready": false, "serving": true, "terminating": true}, "nodeName": "a"}
            ]
        }))
        .unwrap()
        .into();
        let slice = slice.unwrap();
        let states: Vec<_> =
            slice.endpoints.iter().map(|endpoint| (endpoint.ready, endpoint.serving, endpoint.terminating)).collect();
        assert_eq!(states, [(true, true, false), (false, true, true)]);
        assert_eq!(slice.endpoints[1].node.as_deref(), Some("a"));
        let empty = json!({"metadata": {"labels": {SERVICE_NAME: "web"}}, "addressType": "IPv4", "endpoints": null, "ports": null});
        assert!(Option::<Slice>::from(serde_json::from_value::<SliceView>(empty).unwrap()).is_some());
    }

    #[test]
    fn a_new_list_replaces_everything_at_once() {
        let view = |name: &str| {
            let value = json!({"metadata": {"name": name, "namespace": "n"}, "spec": {"clusterIP": "10.96.0.9"}});
            serde_json::from_value::<ServiceView>(value).unwrap()
        };
        let mut mirror = Mirror::<Service>::new();
        assert!(!mirror.take(Event::<ServiceView>::Init));
        assert!(!mirror.take(Event::InitApply(view("a"))));
        assert!(mirror.take(Event::<ServiceView>::InitDone));
        assert!(mirror.take(Event::Apply(view("b"))));
        assert!(!mirror.take(Event::Apply(view("b"))), "nothing that matters changed");
        assert!(!mirror.take(Event::<ServiceView>::Init));
        assert_eq!(mirror.objects.len(), 2, "the old list stays until the new one is whole");
        mirror.take(Event::InitApply(view("b")));
        assert!(mirror.take(Event::<ServiceView>::InitDone));
        assert_eq!(mirror.objects.len(), 1);
        assert!(mirror.take(Event::Delete(view("b"))));
    }
}
