//! What each verb does, once for every resource: [`Call`] is one authorized request for a served
//! resource, and [`Call::run`] the table of verbs and subresources.

mod apply;
mod create;
mod delete;
mod deletion;
mod faces;
mod list;
mod managers;
mod paging;
mod patch;
mod pods;
mod watch;
mod write;

use bytes::Bytes;
use http::{HeaderMap, Response};
use parking_lot::Mutex;
use serde_json::Value;
use sluice_api::{decode::Parsed, status::Status};

use crate::{
    body::{self, Expected, PatchKind},
    context::{Body, RequestInfo, ReviewRequest, UserInfo},
    core::Core,
    negotiate::Form,
    request::Query,
    respond, rules,
    view::{Object, View},
};
use faces::Face;
use write::Tracked;

/// One authorized request for a served resource.
pub(crate) struct Call<'a> {
    pub(crate) core: &'a Core,
    pub(crate) info: &'a RequestInfo,
    pub(crate) query: &'a Query,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) user: &'a UserInfo,
    pub(crate) view: View,
    pub(crate) form: Form,
    pub(crate) dry_run: bool,
    namespace: String,
    name: String,
    warnings: &'a Mutex<Vec<String>>,
}

/// What a request brings along besides its resource.
#[derive(Clone, Copy)]
pub(crate) struct Incoming<'a> {
    pub(crate) core: &'a Core,
    pub(crate) info: &'a RequestInfo,
    pub(crate) query: &'a Query,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) user: &'a UserInfo,
    pub(crate) form: Form,
    pub(crate) warnings: &'a Mutex<Vec<String>>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(incoming: Incoming<'a>, view: View) -> Result<Self, Status> {
        let Incoming { core, info, query, headers, user, form, warnings } = incoming;
        check_segment("Name", &info.name)?;
        check_segment("Namespace", &info.namespace)?;
        let mut errors = Vec::new();
        let writes = matches!(info.verb.as_str(), "create" | "update" | "patch");
        if writes {
            managers::check_options(&info.verb, body::is_apply(headers), query, &mut errors);
        }
        let dry_run = deletion::dry_run(query.all("dryRun"), &mut errors);
        if writes {
            managers::check_validation(query, &mut errors);
        }
        if !errors.is_empty() {
            let kind = match info.verb.as_str() {
                "create" => "CreateOptions",
                "update" => "UpdateOptions",
                "patch" => "PatchOptions",
                _ => "DeleteOptions",
            };
            return Err(Status::invalid_kind("meta.k8s.io", kind, "", errors));
        }
        let namespace = if view.resource.namespaced { info.namespace.clone() } else { String::new() };
        let name = if info.is_collection() { String::new() } else { info.name.clone() };
        Ok(Self { core, info, query, headers, user, view, form, dry_run, namespace, name, warnings })
    }

    /// The namespace that the path names; empty for cluster-scoped resources and for all.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The object that the path names; empty for the collection.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The same call in one namespace.
    fn within(&self, namespace: &str) -> Self {
        Self { view: self.view.clone(), namespace: namespace.to_owned(), name: self.name.clone(), ..*self }
    }

    /// The same call about one object.
    fn about(&self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self.within(&self.namespace) }
    }

    /// Adds warnings for the client, each once.
    pub(crate) fn warn(&self, warnings: Vec<String>) {
        let mut all = self.warnings.lock();
        for warning in warnings {
            if !all.contains(&warning) {
                all.push(warning);
            }
        }
    }

    /// Carries the request out.
    pub(crate) async fn run(mut self, body: Body) -> Result<Response<Body>, Status> {
        self.check_place()?;
        let verb = self.info.verb.as_str();
        if let Some(subresource) = self.served_subresource(verb)? {
            return self.subresource(subresource, body).await;
        }
        match verb {
            "get" => self.get().await,
            "list" => self.list().await,
            "watch" => self.watch().await,
            "create" => {
                let object = self.decode(body).await?;
                let resource = &self.view.resource;
                match (&*resource.group, &*resource.plural) {
                    ("authentication.k8s.io" | "authorization.k8s.io", _) => self.review(object).await,
                    ("", "bindings") => {
                        let name = crate::meta::name(&object).to_owned();
                        self.pods().about(&name).bind(&object).await
                    }
                    _ => self.create(object).await,
                }
            }
            "update" => {
                let object = self.decode(body).await?;
                self.update(object).await
            }
            "patch" => self.patched(&faces::MAIN, body).await,
            "delete" | "deletecollection" => {
                let bytes = body::read(self.headers, body).await?;
                let given = match deletion::options_from_body(&bytes)? {
                    Some(given) => given,
                    None => deletion::options_from_query(self.query)?,
                };
                let options = deletion::DeleteOptions::parse(&given)?;
                self.dry_run |= options.dry_run;
                if verb == "delete" { self.delete(&options).await } else { self.delete_collection(&options).await }
            }
            _ => Err(Status::method_not_allowed()),
        }
    }

    /// The path exists: namespaced resources have single objects only below a namespace.
    fn check_place(&self) -> Result<(), Status> {
        let resource = &self.view.resource;
        let below = !self.info.namespace.is_empty();
        let own = resource.group.is_empty() && resource.plural == "namespaces";
        if below && !resource.namespaced && !own {
            return Err(Status::not_found_path());
        }
        if resource.namespaced && !below {
            if !self.info.is_collection() && self.info.verb != "watch" {
                return Err(Status::not_found_path());
            }
            if !matches!(self.info.verb.as_str(), "list" | "watch" | "deletecollection") {
                return Err(Status::method_not_allowed());
            }
        }
        Ok(())
    }

    /// The subresource asked for, `None` for the object itself; 404 and 405 for what is not served.
    fn served_subresource(&self, verb: &str) -> Result<Option<&'static str>, Status> {
        if self.info.subresource.is_empty() {
            return if self.view.resource.verbs.contains(verb) { Ok(None) } else { Err(Status::method_not_allowed()) };
        }
        let found = self.view.resource.subresource(&self.info.subresource);
        let Some(subresource) = found else {
            return Err(Status::not_found_path());
        };
        // Streams take the verb of whatever method carries them.
        let streams = ["attach", "exec", "portforward", "proxy", "log"];
        if streams.contains(&subresource.name) || subresource.verbs.contains(&verb) {
            return Ok(Some(subresource.name));
        }
        Err(Status::method_not_allowed())
    }

    async fn subresource(&self, name: &'static str, body: Body) -> Result<Response<Body>, Status> {
        if let Some(face) = Face::of(name) {
            return match self.info.verb.as_str() {
                "get" => self.shown(face).await,
                "update" => self.replaced(face, body).await,
                _ => self.patched(face, body).await,
            };
        }
        let kind = self.view.resource.subresource(name).and_then(|s| s.kind);
        let Some((group, version, kind)) = kind else {
            return Err(Status::not_found_path());
        };
        let expected = sluice_api::resource::api_version(group, version);
        let expected = Expected { api_version: &expected, kind };
        let object = self.decode_as(body, expected).await?;
        match name {
            "binding" => self.bind(&object).await,
            "eviction" => self.evict(&object).await,
            "token" => self.review(object).await,
            _ => Err(Status::not_found_path()),
        }
    }

    /// A body that is an object of this resource.
    pub(crate) async fn decode(&self, body: Body) -> Result<Value, Status> {
        let version = self.view.resource.api_version();
        let kind = &self.view.resource.kind;
        self.decode_as(body, Expected { api_version: &version, kind }).await
    }

    /// A body of the expected type, checked against its schema.
    pub(crate) async fn decode_as(&self, body: Body, expected: Expected<'_>) -> Result<Value, Status> {
        let form = body::form(self.headers)?;
        let bytes = body::read(self.headers, body).await?;
        let Parsed { value: mut object, duplicates } = body::parse_object(&bytes, form, expected.kind)?;
        body::check_type(&mut object, expected)?;
        self.check_schema(object, duplicates, expected)
    }

    /// Unknown and duplicate fields are dropped, warned about or refused, as `fieldValidation` says;
    /// values of a wrong type are refused.
    pub(crate) fn check_schema(
        &self,
        object: Value,
        mut unknown: Vec<String>,
        expected: Expected<'_>,
    ) -> Result<Value, Status> {
        let (object, more) = rules::check(&self.view.resource, object, expected)?;
        unknown.extend(more);
        match self.query.text("fieldValidation") {
            "Ignore" => {}
            "Strict" if !unknown.is_empty() => {
                let unknown = unknown.join(", ");
                return Err(Status::bad_request(format!(
                    "{kind} in version \"{version}\" cannot be handled as a {kind}: strict decoding error: {unknown}",
                    kind = expected.kind,
                    version = expected.api_version.rsplit('/').next().unwrap_or_default(),
                )));
            }
            "Strict" => {}
            _ => self.warn(unknown),
        }
        Ok(object)
    }

    /// A computed answer: reviews and tokens.
    async fn review(&self, mut object: Value) -> Result<Response<Body>, Status> {
        rules::defaults(&self.view.resource, &mut object);
        let answer = self
            .core
            .connect
            .review(ReviewRequest {
                info: self.info,
                user: self.user,
                resource: &self.view.resource,
                object,
                dry_run: self.dry_run,
            })
            .await?;
        Ok(respond::object(201, crate::view::encode(&answer), self.form))
    }

    /// GET of a subresource that shows the object.
    async fn shown(&self, face: &Face) -> Result<Response<Body>, Status> {
        let object = self.read(self.name(), paging::revision(self.query)?).await?;
        self.face_response(200, face, Object::Stored(object))
    }

    /// PUT of a subresource.
    async fn replaced(&self, face: &Face, body: Body) -> Result<Response<Body>, Status> {
        let submitted = match face.expected {
            Some((api_version, kind)) => self.decode_as(body, Expected { api_version, kind }).await?,
            None => self.decode(body).await?,
        };
        self.check_address(&submitted)?;
        let resource = &self.view.resource;
        let change = |old: &Value| (face.merge)(resource, old, submitted.clone());
        let written = self.modify(face.part, Tracked::Update, change, None).await?;
        self.face_response(200, face, written.object)
    }

    /// PATCH of the object or of a subresource.
    async fn patched(&self, face: &Face, body: Body) -> Result<Response<Body>, Status> {
        let kind = body::patch_kind(self.headers)?;
        let bytes: Bytes = body::read(self.headers, body).await?;
        if kind == PatchKind::Apply {
            return self.applied(face, &bytes).await;
        }
        let patch = patch::Patch::parse(kind, &bytes)?;
        let resource = &self.view.resource;
        let change = |old: &Value| {
            let shown = (face.show)(resource, old)?;
            let submitted = self.patch(&patch, face, &shown)?;
            (face.merge)(resource, old, submitted)
        };
        let written = self.modify(face.part, Tracked::Update, change, None).await?;
        self.face_response(200, face, written.object)
    }

    fn face_response(&self, code: u16, face: &Face, object: Object) -> Result<Response<Body>, Status> {
        if face.expected.is_none() {
            return Ok(self.object_response(code, &object));
        }
        let value = match object {
            Object::Stored(stored) => self.view.value(&stored),
            Object::Made(value) => value,
        };
        let shown = (face.show)(&self.view.resource, &value)?;
        Ok(respond::object(code, crate::view::encode(&shown), self.form))
    }
}

/// Names become parts of keys: upstream's `IsValidPathSegmentName`.
fn check_segment(what: &str, name: &str) -> Result<(), Status> {
    let why = match name {
        "." => "may not be '.'",
        ".." => "may not be '..'",
        name if name.contains('/') => "may not contain '/'",
        name if name.contains('%') => "may not contain '%'",
        _ => return Ok(()),
    };
    let name = Value::from(name);
    Err(Status::bad_request(format!("{what} parameter invalid: {name}: {why}")))
}
