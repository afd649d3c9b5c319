//! Everything below no resource: discovery, version, health, metrics and the token issuer's keys.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, header, request::Parts};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sluice_api::{
    discovery::{self, AGGREGATED_VERSIONS, Root},
    resource::Registry,
    status::Status,
};

use crate::{
    context::{Body, RequestInfo, full},
    core::Core,
    metrics::Metrics,
    negotiate::{self, Form},
    openapi,
    request::Query,
    respond, services, view,
};

/// The version of the API that is served.
pub(crate) const GIT_VERSION: &str = "v1.36.0+sluice";

/// Answers a request for a non-resource path.
pub(crate) async fn answer(
    core: &Core,
    info: &RequestInfo,
    query: &Query,
    parts: &Parts,
    form: Result<Form, Status>,
) -> Result<Response<Body>, Status> {
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return Err(Status::method_not_allowed());
    }
    let path = info.path.trim_end_matches('/');
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let registry = core.registry.load_full();
    let found = match segments[..] {
        [] | [""] => Some(root(&registry)),
        ["version"] => Some(version()),
        ["healthz" | "livez" | "readyz", ref rest @ ..] => return health(core, segments[0], rest, query).await,
        [".well-known", "openid-configuration"] => {
            Some(core.authenticator.service_account_tokens().openid_configuration(&core.address))
        }
        ["openid", "v1", "jwks"] => Some(core.authenticator.service_account_tokens().jwks()),
        ["metrics"] => return metrics(core).await,
        ["openapi", ref below @ ..] => return openapi::answer(core, &parts.headers, query, below).await,
        ["api"] | ["apis"] => return Ok(discovery_root(core, &registry, segments[0], parts, form?)),
        ["api", version] => discovery::resource_list(&registry, "", version),
        ["apis", group] => core.extensions.group(group, discovery::group(&registry, group)),
        ["apis", group, version] => discovery::resource_list(&registry, group, version),
        _ => None,
    };
    match found {
        Some(value) => Ok(respond::object(200, view::encode(&value), form?)),
        None if segments.first().is_some_and(|s| matches!(*s, "api" | "apis")) => Err(Status::not_found_path()),
        None => Ok(respond::text(404, "404 page not found\n")),
    }
}

/// `/`: the paths there are.
fn root(registry: &Registry) -> Value {
    let mut paths = vec!["/api".to_owned(), "/api/v1".into(), "/apis".into(), "/apis/".into()];
    for (group, versions) in registry.groups() {
        if !group.is_empty() {
            paths.push(format!("/apis/{group}"));
            paths.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
        }
    }
    paths.extend(
        [
            "/.well-known/openid-configuration",
            "/healthz",
            "/livez",
            "/metrics",
            "/openapi/v2",
            "/openapi/v3",
            "/openid/v1/jwks",
            "/readyz",
            "/version",
        ]
        .map(str::to_owned),
    );
    paths.sort();
    json!({ "paths": paths })
}

fn version() -> Value {
    json!({
        "major": "1",
        "minor": "36",
        "emulationMajor": "1",
        "emulationMinor": "36",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": GIT_VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    })
}

/// `/api` and `/apis`, plain or aggregated as `Accept` says.
fn discovery_root(core: &Core, registry: &Registry, which: &str, parts: &Parts, form: Form) -> Response<Body> {
    let aggregated = negotiate::clauses(&parts.headers)
        .iter()
        .find_map(|clause| {
            let json = matches!(clause.media, "application/json" | "*/*");
            match clause.param("as") {
                None if json => Some(None),
                Some("APIGroupDiscoveryList") if json && clause.param("g") == Some("apidiscovery.k8s.io") => {
                    let version = clause.param("v")?;
                    AGGREGATED_VERSIONS.iter().find(|v| **v == version).map(|v| Some(*v))
                }
                _ => None,
            }
        })
        .flatten();
    let root = if which == "api" { Root::Core } else { Root::Groups };
    match aggregated {
        Some(version) => {
            let mut list = discovery::aggregated(registry, root, version);
            if root == Root::Groups {
                core.extensions.add_discovery(&mut list);
            }
            let bytes = view::encode(&list);
            let media = match version {
                "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
                _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
            };
            let mut response = tag(&parts.headers, bytes, media);
            let vary = HeaderValue::from_static("Accept");
            response.headers_mut().insert(header::VARY, vary);
            response
        }
        None => {
            let value = match root {
                Root::Core => discovery::api_versions(registry, &core.address),
                Root::Groups => {
                    let mut list = discovery::api_groups(registry);
                    core.extensions.add_groups(&mut list);
                    list
                }
            };
            respond::object(200, view::encode(&value), form)
        }
    }
}

/// An answer with an ETag; 304 without a body for a client that has it.
pub(crate) fn tag(headers: &HeaderMap, bytes: Bytes, media: &'static str) -> Response<Body> {
    let digest = Sha256::digest(&bytes);
    let tag: String = digest[..16].iter().map(|b| format!("{b:02X}")).collect();
    let mut response = if is_known(headers, &tag) {
        respond::typed(304, media, full(Bytes::new()))
    } else {
        respond::typed(200, media, full(bytes))
    };
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{tag}\"")) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// Whether the client has the version with this tag.
pub(crate) fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|v| v.trim().trim_start_matches("W/").trim_matches('"') == tag)
}

/// `/healthz`, `/livez`, `/readyz`: the store answers (and, for readiness, no shutdown has begun).
async fn health(core: &Core, which: &str, only: &[&str], query: &Query) -> Result<Response<Body>, Status> {
    let mut checks = vec![("ping", None), ("log", None)];
    let store = core.storage.fresh().await.err().map(|status| status.message);
    checks.push(("etcd", store));
    if which == "readyz" {
        let ending = core.shutdown.is_cancelled().then(|| "process is shutting down".to_owned());
        checks.push(("shutdown", ending));
    }
    if let [only] = only {
        checks.retain(|(name, _)| name == only);
        if checks.is_empty() {
            return Ok(respond::text(404, "404 page not found\n"));
        }
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    checks.retain(|(name, _)| !excluded.contains(name));
    let failed = checks.iter().any(|(_, why)| why.is_some());
    let lines: String = checks
        .iter()
        .map(|(name, why)| match why {
            None => format!("[+]{name} ok\n"),
            Some(_) => format!("[-]{name} failed: reason withheld\n"),
        })
        .collect();
    for (name, why) in &checks {
        if let Some(why) = why {
            tracing::warn!(check = name, %why, "health check failed");
        }
    }
    Ok(if failed {
        respond::text(500, format!("{lines}{which} check failed\n"))
    } else if query.get("verbose").is_some() {
        respond::text(200, format!("{lines}{which} check passed\n"))
    } else {
        respond::text(200, "ok")
    })
}

/// The store's and the cache's numbers, in the order of [`gauges`].
const GAUGES: [(&str, &str); 5] = [
    ("sluice_store_revision", "The store's newest revision."),
    ("sluice_store_compacted_revision", "The oldest revision that is kept."),
    ("sluice_store_size_bytes", "The store's size on disk."),
    ("sluice_cache_revision", "The newest revision in the watch cache."),
    ("sluice_cache_watchers", "Open watches of the cache."),
];

fn gauges(values: [i64; GAUGES.len()]) -> Vec<(&'static str, &'static str, i64)> {
    GAUGES.into_iter().zip(values).map(|((name, help), value)| (name, help, value)).collect()
}

/// What `/metrics` of a server that was never asked anything says: every metric with its kind and meaning.
#[must_use]
pub fn described_metrics() -> String {
    let mut text = Metrics::default().render(&gauges([0; GAUGES.len()]));
    text.push_str(&services::described_metrics());
    text
}

async fn metrics(core: &Core) -> Result<Response<Body>, Status> {
    let store = core.storage.status().await?;
    let values = [
        store.revision,
        store.compacted,
        store.size_bytes as i64,
        core.storage.revision(),
        core.storage.watchers() as i64,
    ];
    let mut text = core.metrics.render(&gauges(values));
    text.push_str(&core.services.metrics(&core.storage));
    let media = "text/plain; version=0.0.4; charset=utf-8";
    Ok(respond::typed(200, media, full(text)))
}
