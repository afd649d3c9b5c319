//! The way of every request: limits, identity, permission, then a verb, a document or a stream; and
//! the way back: warnings and metrics.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Instant,
};

use http::{Request, Response, request::Parts};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use sluice_api::{resource::Resource, status::Status};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    auth::impersonation,
    context::{Body, ConnectRequest, Peer, RequestInfo, UserInfo},
    core::Core,
    documents, limits,
    metrics::{Metrics, Series},
    negotiate::{self, Form},
    request::Query,
    respond,
    transport::FixedUser,
    verbs::{Call, Incoming},
    view::View,
};

/// See the module. Shared by the listener and all in-process clients.
pub(crate) struct Pipeline {
    core: Core,
    reading: Arc<Semaphore>,
    writing: Arc<Semaphore>,
    long_running: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Pipeline {
    pub(crate) fn new(core: Core) -> Self {
        let places = |n| Arc::new(Semaphore::new(n));
        Self {
            core,
            reading: places(limits::READING),
            writing: places(limits::WRITING),
            long_running: places(limits::LONG_RUNNING),
            waiting: Semaphore::new(limits::WAITING),
        }
    }

    /// Tells the watches to end, so that a shutdown need not wait for them.
    pub(crate) fn end_watches(&self) {
        self.core.shutdown.cancel();
    }

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    /// Answers one request; failures become their Status.
    pub(crate) async fn handle(&self, request: Request<Body>) -> Response<Body> {
        let started = Instant::now();
        let (parts, body) = request.into_parts();
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let info = RequestInfo::parse(&parts.method, parts.uri.path(), &query);
        let long = info.is_long_running();
        let warnings = Mutex::new(Vec::new());
        let form = negotiate::form(&parts.headers, &query, negotiate::has_tables(&info));
        let failures = form.as_ref().copied().unwrap_or_default();
        let series = self.series(&info);

        let answer = async {
            let place = self.place(&info, long).await?;
            let work = self.answer(&info, &query, parts, body, form, &warnings);
            let answer = if long {
                work.await
            } else {
                tokio::time::timeout(limits::REQUEST_TIMEOUT, work).await.unwrap_or_else(|_| {
                    let why = "request did not complete within the allotted timeout";
                    Err(Status::timeout(why, 0))
                })
            };
            answer.map(|response| response.map(|body| place.keep(body)))
        };
        let mut response = answer.await.unwrap_or_else(|status| {
            if status.code >= 500 {
                tracing::warn!(path = %info.path, verb = %info.verb, code = status.code, error = %status.message, "request failed");
            }
            respond::failure(&status, failures)
        });
        respond::warn(&mut response, &warnings.into_inner());
        let took = (!long).then(|| started.elapsed());
        let code = response.status().as_u16();
        self.core.metrics.request(series, code, took);
        response
    }

    /// A place among the running requests; 429 when there is none for too long.
    async fn place(&self, info: &RequestInfo, long: bool) -> Result<Place, Status> {
        let reads = matches!(info.verb.as_str(), "get" | "list" | "watch" | "head" | "options");
        let metrics = &self.core.metrics;
        let (places, gauge): (_, Option<Gauge>) = match (long, reads) {
            (true, _) => (&self.long_running, None),
            (false, true) => (&self.reading, Some(|m| &m.reading)),
            (false, false) => (&self.writing, Some(|m| &m.writing)),
        };
        let permit = match Arc::clone(places).try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) if long => None,
            Err(_) => self.wait(places).await,
        };
        let Some(permit) = permit else {
            metrics.rejected.fetch_add(1, Ordering::Relaxed);
            let why = "Too many requests, please try again later.";
            return Err(Status::too_many_requests(why, limits::RETRY_AFTER_SECONDS));
        };
        if let Some(gauge) = gauge {
            gauge(metrics).fetch_add(1, Ordering::Relaxed);
        }
        Ok(Place { gauge, metrics: Arc::clone(metrics), _permit: permit })
    }

    /// Waits in line for a place, as upstream's priority and fairness lets a burst wait.
    async fn wait(&self, places: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        let _waiting = self.waiting.try_acquire().ok()?;
        let place = Arc::clone(places).acquire_owned();
        tokio::time::timeout(limits::WAITING_TIMEOUT, place).await.ok()?.ok()
    }

    /// The labels under which a request is counted. Names that nobody serves are not among them, so
    /// that no client can make up new ones.
    fn series(&self, info: &RequestInfo) -> Series {
        let registry = self.core.registry.load();
        let row = registry.by_path(&info.group, &info.version, &info.resource);
        let served = row.is_some_and(|r| info.subresource.is_empty() || r.subresource(&info.subresource).is_some());
        let scope = match (served, info.name.is_empty(), info.namespace.is_empty()) {
            (false, ..) => "",
            (true, false, _) => "resource",
            (true, true, false) => "namespace",
            (true, true, true) => "cluster",
        };
        let take = |text: &str| if served { text.to_owned() } else { String::new() };
        Series {
            verb: if info.verb.len() < 20 { info.verb.to_ascii_uppercase() } else { "OTHER".into() },
            group: take(&info.group),
            version: take(&info.version),
            resource: take(&info.resource),
            subresource: take(&info.subresource),
            scope,
        }
    }

    async fn answer(
        &self,
        info: &RequestInfo,
        query: &Query,
        parts: Parts,
        body: Body,
        form: Result<Form, Status>,
        warnings: &Mutex<Vec<String>>,
    ) -> Result<Response<Body>, Status> {
        let user = self.identify(&parts).await?;
        self.core.authorizer.check(&info.attributes(&user))?;
        if let Some(extension) = self.core.extensions.serving(info) {
            return self.core.connect.aggregated(&self.core.extensions, &extension, &user, parts, body).await;
        }
        if !info.is_resource {
            return documents::answer(&self.core, info, query, &parts, form).await;
        }
        let registry = self.core.registry.load_full();
        let Some(resource) = registry.by_path(&info.group, &info.version, &info.resource) else {
            return Err(Status::not_found_path());
        };
        if let Some(warning) = deprecated(resource).filter(|_| parts.extensions.get::<FixedUser>().is_none()) {
            warnings.lock().push(warning.to_owned());
        }
        let streams = matches!(info.subresource.as_str(), "exec" | "attach" | "portforward" | "log" | "proxy");
        if streams && resource.subresource(&info.subresource).is_some() {
            if info.subresource != "log" {
                self.core.admission.connect(info, &user, resource, query).await?;
            }
            let request = ConnectRequest { info: info.clone(), user, resource: Arc::clone(resource), parts, body };
            return self.core.connect.handle(request).await;
        }
        let incoming =
            Incoming { core: &self.core, info, query, headers: &parts.headers, user: &user, form: form?, warnings };
        let view = View::new(&registry, resource, &self.core.columns.load());
        Call::new(incoming, view)?.run(body).await
    }

    /// Who asks: fixed for in-process clients, else by certificate or token; then whom they act as.
    async fn identify(&self, parts: &Parts) -> Result<Arc<UserInfo>, Status> {
        if let Some(FixedUser(user)) = parts.extensions.get::<FixedUser>() {
            return Ok(Arc::clone(user));
        }
        let peer = parts.extensions.get::<Peer>().map(|Peer(certified)| &**certified);
        let user = self.core.authenticator.authenticate(peer, &parts.headers).await?;
        let user = impersonation::apply(user, &parts.headers, &self.core.authorizer)?;
        Ok(Arc::new(user))
    }
}

/// What a client is told of a kind that upstream wants to be rid of.
fn deprecated(resource: &Resource) -> Option<&'static str> {
    match (&*resource.group, &*resource.kind) {
        ("", "Endpoints") => Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
        ("", "ComponentStatus") => Some("v1 ComponentStatus is deprecated in v1.19+"),
        _ => None,
    }
}

type Gauge = fn(&Metrics) -> &AtomicI64;

/// A running request's place; given back when dropped.
struct Place {
    gauge: Option<Gauge>,
    metrics: Arc<Metrics>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    /// A streamed answer runs until its last frame.
    fn keep(self, body: Body) -> Body {
        if body.size_hint().exact().is_some() {
            return body;
        }
        body.map_frame(move |frame| {
            let _ = &self;
            frame
        })
        .boxed_unsync()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(gauge) = self.gauge {
            gauge(&self.metrics).fetch_sub(1, Ordering::Relaxed);
        }
    }
}
