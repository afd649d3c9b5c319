//! `pods/log`, `pods/exec`, `pods/attach`, `pods/portforward`: checks the options, then speaks to
//! the pod's node. Messages are upstream's (`registry/core/pod/strategy.go`).

use std::sync::Arc;

use http::{HeaderMap, Method, Response, StatusCode, header};
use serde::Deserialize;
use sluice_api::status::{FieldError, Status};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Connect,
    forward::{self, Outgoing, Target},
    socket::Socket,
};
use crate::{
    auth::refusal,
    context::{Body, ConnectRequest, full},
    request::Query,
};

#[derive(Deserialize)]
struct Pod {
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    #[serde(default)]
    node_name: Option<String>,
    #[serde(default)]
    containers: Vec<Container>,
    #[serde(default)]
    init_containers: Option<Vec<Container>>,
    #[serde(default)]
    ephemeral_containers: Option<Vec<Container>>,
}

#[derive(Deserialize)]
struct Container {
    name: String,
}

#[derive(Default, Deserialize)]
struct PodStatus {
    #[serde(default)]
    phase: Option<String>,
}

/// A path on the node's API, with its query.
pub(super) struct Path(String, char);

impl Path {
    pub(super) fn new(segments: &[&str]) -> Self {
        let mut path = String::new();
        for segment in segments {
            path.push('/');
            escape(segment, &mut path);
        }
        Self(path, '?')
    }

    pub(super) fn add(&mut self, key: &str, value: &str) {
        self.0.push(self.1);
        self.1 = '&';
        escape(key, &mut self.0);
        self.0.push('=');
        escape(value, &mut self.0);
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}

impl Connect {
    /// A log, as a plain stream or over a WebSocket.
    pub(super) async fn log(&self, mut request: ConnectRequest) -> Result<Response<Body>, Status> {
        let socket = Socket::asked(&mut request.parts)?;
        let answer = self.plain_log(request).await?;
        let Some(socket) = socket else { return Ok(answer) };
        Ok(socket.answer(answer, self.permit()?))
    }

    async fn plain_log(&self, request: ConnectRequest) -> Result<Response<Body>, Status> {
        let query = Query::parse(request.parts.uri.query().unwrap_or(""));
        check_log_options(&query)?;
        let (namespace, name) = (&request.info.namespace, &request.info.name);
        let pod = self.pod(namespace, name)?;
        let container = pick(&pod, name, query.text("container"))?;
        let Some(node) = pod.spec.node_name.as_deref().filter(|n| !n.is_empty()) else {
            // Nothing has run yet, so there is nothing to show.
            return Ok(Response::new(full(bytes::Bytes::new())));
        };
        let target = self.node_target(node)?;
        let mut path = Path::new(&["containerLogs", namespace, name, &container]);
        for flag in ["follow", "previous", "timestamps"] {
            if query.flag(flag) {
                path.add(flag, "true");
            }
        }
        for value in ["sinceSeconds", "sinceTime", "tailLines", "limitBytes", "stream"] {
            if let Some(text) = query.get(value) {
                path.add(value, text);
            }
        }
        let stream = forward::dial(&target, Some(&self.tls)).await?;
        let outgoing = Outgoing {
            method: Method::GET,
            path: path.finish(),
            headers: HeaderMap::new(),
            body: full(bytes::Bytes::new()),
        };
        let response = forward::send(&target, stream, outgoing).await?;
        if !response.status().is_success() {
            return Err(backend_error(response, "pods", name).await);
        }
        let mut answer = forward::plain(response);
        let text = header::HeaderValue::from_static("text/plain");
        answer.headers_mut().insert(header::CONTENT_TYPE, text);
        Ok(answer)
    }

    /// Exec and attach differ in the path and the command alone.
    pub(super) async fn exec(&self, request: ConnectRequest) -> Result<Response<Body>, Status> {
        let query = Query::parse(request.parts.uri.query().unwrap_or(""));
        let (namespace, name) = (&request.info.namespace, &request.info.name);
        let verb = request.info.subresource.clone();
        if !["stdin", "stdout", "stderr"].iter().any(|s| query.flag(s)) {
            return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
        }
        if verb == "exec" && query.all("command").next().is_none() {
            return Err(Status::bad_request("you must specify at least one command for the container"));
        }
        let pod = self.pod(namespace, name)?;
        let container = pick(&pod, name, query.text("container"))?;
        if let Some(phase @ ("Succeeded" | "Failed")) = pod.status.phase.as_deref() {
            return Err(Status::bad_request(format!(
                "cannot {verb} into a container in a completed pod; current phase is {phase}"
            )));
        }
        let target = self.pod_node(&pod, name)?;
        let mut path = Path::new(&[&verb, namespace, name, &container]);
        for (ours, theirs) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
            if query.flag(ours) {
                path.add(theirs, "1");
            }
        }
        for word in query.all("command") {
            path.add("command", word);
        }
        self.stream(request, target, path.finish()).await
    }

    pub(super) async fn port_forward(&self, request: ConnectRequest) -> Result<Response<Body>, Status> {
        let query = Query::parse(request.parts.uri.query().unwrap_or(""));
        let (namespace, name) = (&request.info.namespace, &request.info.name);
        let pod = self.pod(namespace, name)?;
        let target = self.pod_node(&pod, name)?;
        let mut path = Path::new(&["portForward", namespace, name]);
        for ports in query.all("ports") {
            for port in ports.split(',') {
                if port.parse::<u16>().is_ok_and(|p| p > 0) {
                    path.add("port", port);
                } else {
                    return Err(Status::bad_request(format!("{port:?} is not a port")));
                }
            }
        }
        self.stream(request, target, path.finish()).await
    }

    async fn stream(
        &self,
        mut request: ConnectRequest,
        target: Target,
        path: String,
    ) -> Result<Response<Body>, Status> {
        let headers = &request.parts.headers;
        if !forward::is_upgrade(headers) {
            return Err(Status::bad_request("Upgrade request required"));
        }
        let headers = forward::upgrade_headers(headers);
        let client = forward::client(&mut request.parts)?;
        let permit = self.permit()?;
        let stream = forward::dial(&target, Some(&self.tls)).await?;
        let outgoing = Outgoing { method: request.parts.method, path, headers, body: full(bytes::Bytes::new()) };
        forward::upgrade(&target, stream, outgoing, client, permit).await
    }

    /// A place for one more stream.
    pub(super) fn permit(&self) -> Result<OwnedSemaphorePermit, Status> {
        let streams = Arc::clone(&self.streams);
        streams
            .try_acquire_owned()
            .map_err(|_| Status::too_many_requests("too many streams are open through this server", 1))
    }

    fn pod(&self, namespace: &str, name: &str) -> Result<Pod, Status> {
        let stored = self.view.get("", "pods", namespace, name).ok_or_else(|| refusal::not_found("", "pods", name))?;
        stored.parse().map_err(Status::internal)
    }

    fn pod_node(&self, pod: &Pod, name: &str) -> Result<Target, Status> {
        match pod.spec.node_name.as_deref() {
            Some(node) if !node.is_empty() => self.node_target(node),
            _ => Err(Status::bad_request(format!("pod {name} does not have a host assigned"))),
        }
    }
}

/// The container that is meant: the only one, or the named one.
fn pick(pod: &Pod, pod_name: &str, wanted: &str) -> Result<String, Status> {
    let names = |list: &[Container]| -> Vec<String> { list.iter().map(|c| c.name.clone()).collect() };
    let containers = names(&pod.spec.containers);
    let init = names(pod.spec.init_containers.as_deref().unwrap_or_default());
    let ephemeral = names(pod.spec.ephemeral_containers.as_deref().unwrap_or_default());
    if wanted.is_empty() {
        if let [only] = containers.as_slice() {
            return Ok(only.clone());
        }
        let mut message =
            format!("a container name must be specified for pod {pod_name}, choose one of: [{}]", containers.join(" "));
        if !init.is_empty() {
            message += &format!(" or one of the init containers: [{}]", init.join(" "));
        }
        if !ephemeral.is_empty() {
            message += &format!(" or one of the ephemeral containers: [{}]", ephemeral.join(" "));
        }
        return Err(Status::bad_request(message));
    }
    let known = [containers, init, ephemeral].concat();
    if known.iter().any(|name| name == wanted) {
        return Ok(wanted.to_owned());
    }
    Err(Status::bad_request(format!("container {wanted} is not valid for pod {pod_name}")))
}

/// Upstream's `ValidatePodLogOptions`.
fn check_log_options(query: &Query) -> Result<(), Status> {
    let mut errors = Vec::new();
    for (field, least, rule) in [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ] {
        if let Some(number) = query.number(field)?
            && number < least
        {
            errors.push(FieldError::invalid(field, number, rule));
        }
    }
    if let Some(time) = query.get("sinceTime") {
        if time.parse::<jiff::Timestamp>().is_err() {
            return Err(Status::bad_request(format!("sinceTime {time:?} is not a time in RFC 3339")));
        }
        if query.get("sinceSeconds").is_some() {
            errors.push(FieldError::forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid_kind("", "PodLogOptions", "", errors)) }
}

/// A node's refusal as the API server's (upstream's `GenericHttpResponseChecker`).
pub(super) async fn backend_error(response: Response<hyper::body::Incoming>, plural: &str, name: &str) -> Status {
    let code = response.status();
    let text = forward::text(response.into_body()).await;
    let text = text.trim_end();
    match code {
        StatusCode::INTERNAL_SERVER_ERROR => Status::internal(text),
        StatusCode::BAD_REQUEST => Status::bad_request(text),
        StatusCode::NOT_FOUND => Status::new(
            404,
            "NotFound",
            format!("the server could not find the requested resource ( {plural} {name}): {text}"),
        ),
        other => Status::new(
            other.as_u16(),
            "InternalError",
            format!("the node answered {other} for {plural} {name}: {text}"),
        ),
    }
}

fn escape(text: &str, into: &mut String) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                into.push(char::from(byte));
            }
            _ => into.push_str(&format!("%{byte:02X}")),
        }
    }
}
