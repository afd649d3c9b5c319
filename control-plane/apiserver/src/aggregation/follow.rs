//! Keeps the table of extension servers, and tells each APIService whether its server can be asked. Upstream:
//! kube-aggregator's `pkg/controllers/status/remote`. Acts on changes of APIServices, Services and endpoints; a server that
//! cannot be asked is tried again after growing delays.

use std::{collections::HashSet, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use futures::{FutureExt as _, future::join_all};
use http::{HeaderMap, HeaderValue, Method, header};
use http_body_util::{BodyExt as _, Limited};
use parking_lot::Mutex;
use serde::Deserialize as _;
use serde_json::{Value, json};
use sluice_api::resource::{Resource, builtin};
use sluice_store::cache::{CacheItem, CacheWatch};

use super::Extension;
use crate::{
    admission::webhook::{ServiceRef, by_service},
    auth::view::View,
    bootstrap::pki::Pki,
    connect::forward::{self, Outgoing},
    context::full,
    limits, meta,
    pipeline::Pipeline,
    storage::{Storage, StoredObject},
};

/// Namespace and name of a Service.
type Named = (Box<str>, Box<str>);

/// What a check found: the condition's status, reason and message.
struct Verdict {
    available: bool,
    reason: &'static str,
    message: String,
}

/// Follows the APIServices for ever.
pub(crate) async fn follow(pipeline: Arc<Pipeline>, pki: Arc<Pki>) {
    let Some(row) = builtin().by_path("apiregistration.k8s.io", "v1", "apiservices") else { return };
    let core = pipeline.core();
    let storage = &*core.storage;
    let named: Arc<Mutex<HashSet<Named>>> = Arc::default();
    let mut delay = limits::EXTENSION_RETRY;
    loop {
        let Some(mut watches) = watches(storage, row, &named) else {
            tokio::time::sleep(limits::CRD_RETRY).await;
            continue;
        };
        loop {
            let objects: Vec<Value> = storage.list(row.store_prefix(), "").items.iter().map(|o| o.value()).collect();
            let extensions = table(&objects, &pki, &core.extensions.all.load());
            *named.lock() = extensions
                .iter()
                .map(|e| (e.service.namespace.as_str().into(), e.service.name.as_str().into()))
                .collect();
            core.extensions.all.store(Arc::new(extensions.iter().cloned().map(Arc::new).collect()));
            let checked = join_all(extensions.into_iter().map(|e| check(storage, e))).await;
            let waiting = checked.iter().any(|(_, verdict)| !verdict.available);
            core.extensions.all.store(Arc::new(checked.iter().map(|(e, _)| Arc::new(e.clone())).collect()));
            for object in objects {
                let verdict = checked.iter().find(|(e, _)| e.name == meta::name(&object)).map(|(_, verdict)| verdict);
                tell(storage, row, object, verdict).await;
            }
            delay = if waiting { (delay * 2).min(limits::EXTENSION_MOST_RETRY) } else { limits::EXTENSION_RETRY };
            let patience = if waiting { delay } else { Duration::MAX };
            let [services, versions, slices] = &mut watches;
            let changed = async {
                tokio::select! {
                    item = services.next() => item,
                    item = versions.next() => item,
                    item = slices.next() => item,
                }
            };
            tokio::select! {
                item = changed => if matches!(item, CacheItem::Lagged) { break },
                () = core.extensions.doubted.notified() => {}
                () = tokio::time::sleep(patience) => {}
            }
            // What came along with it needs no look of its own.
            for watch in &mut watches {
                while let Some(item) = watch.next().now_or_never() {
                    if matches!(item, CacheItem::Lagged) {
                        break;
                    }
                }
            }
        }
    }
}

/// Changes of the APIServices, and of the Services and endpoints that they name.
fn watches(
    storage: &Storage,
    row: &Resource,
    named: &Arc<Mutex<HashSet<Named>>>,
) -> Option<[CacheWatch<StoredObject>; 3]> {
    let about = |name: fn(&StoredObject) -> Option<&str>| {
        let named = Arc::clone(named);
        move |object: &StoredObject, _: Option<&StoredObject>| {
            name(object).is_some_and(|name| named.lock().contains(&(object.namespace.clone(), name.into())))
        }
    };
    let services = builtin().by_path("", "v1", "services")?.store_prefix();
    let slices = builtin().by_path("discovery.k8s.io", "v1", "endpointslices")?.store_prefix();
    let from = storage.revision();
    Some([
        storage.watch_where(services, "", from, None, Box::new(about(|o| Some(&o.name)))).ok()?,
        storage.watch(row.store_prefix(), "", from).ok()?,
        storage.watch_where(slices, "", from, None, Box::new(about(slice_service))).ok()?,
    ])
}

fn slice_service(slice: &StoredObject) -> Option<&str> {
    slice.label("kubernetes.io/service-name")
}

/// The extensions that APIServices name, in the order of discovery; what is known of one stays known.
fn table(objects: &[Value], pki: &Pki, known: &[Arc<Extension>]) -> Vec<Extension> {
    let mut all: Vec<Extension> = objects.iter().filter_map(|object| read(object, pki, known)).collect();
    all.sort_by(|a, b| {
        let order = |e: &Extension| (-e.group_priority, e.group.clone(), -e.version_priority);
        order(a).cmp(&order(b)).then_with(|| a.name.cmp(&b.name))
    });
    all
}

fn read(object: &Value, pki: &Pki, known: &[Arc<Extension>]) -> Option<Extension> {
    let spec = &object["spec"];
    let service = ServiceRef::deserialize(&spec["service"]).ok()?;
    let text = |field: &str| spec[field].as_str().unwrap_or_default().to_owned();
    let (group, version) = (text("group"), text("version"));
    if builtin().groups().iter().any(|(own, versions)| *own == group && versions.contains(&version.as_str())) {
        return None;
    }
    let roots = match spec["caBundle"].as_str() {
        Some(bundle) => BASE64.decode(bundle).map(Some).map_err(|e| format!("caBundle is not base64: {e}")),
        None if spec["insecureSkipTLSVerify"] == true => Ok(None),
        None => Err("the APIService has no caBundle".into()),
    };
    let tls = roots.and_then(|roots| pki.extension_client_config(roots.as_deref()).map_err(|e| format!("{e:#}")));
    let before = known.iter().find(|e| e.name == meta::name(object));
    Some(Extension {
        name: meta::name(object).to_owned(),
        group,
        version,
        group_priority: spec["groupPriorityMinimum"].as_i64().unwrap_or_default(),
        version_priority: spec["versionPriority"].as_i64().unwrap_or_default(),
        service,
        tls,
        resources: before.and_then(|e| e.resources.clone()),
        available: before.is_some_and(|e| e.available),
    })
}

/// Asks the server for what it serves.
async fn check(storage: &Storage, mut extension: Extension) -> (Extension, Verdict) {
    let (namespace, name) = (&extension.service.namespace, &extension.service.name);
    let port = extension.service.port.unwrap_or(443);
    let missing = |reason, message| Verdict { available: false, reason, message };
    let verdict = match View::get(storage, "", "services", namespace, name).map(|stored| stored.value()) {
        None => missing("ServiceNotFound", format!("service/{name} in {namespace:?} is not present")),
        Some(service) if !ports(&service).any(|p| p == u64::from(port)) => {
            missing("ServicePortError", format!("service/{name} in {namespace:?} is not listening on port {port}"))
        }
        Some(_) => match by_service(storage, &extension.service) {
            Err(_) => {
                let why = format!("endpoints for service/{name} in {namespace:?} have no addresses");
                missing("MissingEndpoints", why)
            }
            Ok((target, _)) => {
                let url =
                    format!("https://{}/apis/{}/{}", forward::authority(&target), extension.group, extension.version);
                match tokio::time::timeout(limits::EXTENSION_CHECK, discover(&extension, &target)).await {
                    Ok(Ok(resources)) => {
                        extension.resources = Some(resources);
                        Verdict { available: true, reason: "Passed", message: "all checks passed".into() }
                    }
                    failed => {
                        let why =
                            failed.map_or_else(|_| "context deadline exceeded".into(), |e| e.err().unwrap_or_default());
                        missing("FailedDiscoveryCheck", format!("failing or missing response from {url}: {why}"))
                    }
                }
            }
        },
    };
    extension.available = verdict.available;
    (extension, verdict)
}

async fn discover(extension: &Extension, target: &forward::Target) -> Result<Value, String> {
    let tls = extension.tls.as_ref().map_err(Clone::clone)?;
    let stream = forward::dial(target, Some(tls)).await.map_err(|status| status.message)?;
    let headers = HeaderMap::from_iter([
        (header::HeaderName::from_static("x-remote-user"), HeaderValue::from_static("system:kube-aggregator")),
        (header::HeaderName::from_static("x-remote-group"), HeaderValue::from_static("system:masters")),
        (header::ACCEPT, HeaderValue::from_static("application/json")),
    ]);
    let path = format!("/apis/{}/{}", extension.group, extension.version);
    let outgoing = Outgoing { method: Method::GET, path, headers, body: full("") };
    let answer = forward::send(target, stream, outgoing).await.map_err(|status| status.message)?;
    if !answer.status().is_success() {
        return Err(format!("bad status from the server: {}", answer.status().as_u16()));
    }
    let body = Limited::new(answer.into_body(), limits::BODY_BYTES).collect().await.map_err(|e| e.to_string())?;
    serde_json::from_slice(&body.to_bytes()).map_err(|e| format!("the answer is not JSON: {e}"))
}

/// Writes the condition, if it is not so.
async fn tell(storage: &Storage, row: &Resource, mut object: Value, verdict: Option<&Verdict>) {
    let local = Verdict { available: true, reason: "Local", message: "Local APIServices are always available".into() };
    let verdict = match verdict {
        Some(verdict) => verdict,
        None if object["spec"]["service"].is_object() => return,
        None => &local,
    };
    let state = if verdict.available { "True" } else { "False" };
    let status = meta::map(&mut object["status"]);
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    let Some(conditions) = conditions.as_array_mut() else { return };
    let found = conditions.iter().position(|c| c["type"] == "Available");
    let same = |field: &str, value: &str| found.is_some_and(|at| conditions[at][field] == value);
    if same("status", state) && same("reason", verdict.reason) && same("message", &verdict.message) {
        return;
    }
    let since = match found.filter(|at| conditions[*at]["status"] == state) {
        Some(at) => conditions[at]["lastTransitionTime"].clone(),
        None => meta::now().into(),
    };
    let condition = json!({"type": "Available", "status": state, "lastTransitionTime": since,
        "reason": verdict.reason, "message": verdict.message});
    match found {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
    match storage.update(row, object).await {
        // Whoever changed it meanwhile made an event, which leads here again.
        Err(status) if !matches!(status.code, 404 | 409) => {
            tracing::warn!(error = %status.message, "an APIService's condition cannot be written");
        }
        _ => {}
    }
}

fn ports(service: &Value) -> impl Iterator<Item = u64> {
    service["spec"]["ports"].as_array().into_iter().flatten().filter_map(|p| p["port"].as_u64())
}
