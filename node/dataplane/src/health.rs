//! What load balancers and people ask a node's service proxy over HTTP: whether the proxy works (`/healthz`, `/livez`), for
//! each Service with a health check port whether this node has endpoints for it, and from the node alone how the proxy
//! routes (`/proxyMode`). As upstream's proxy answers.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::limits::{HEALTH_PATIENCE, HEALTH_PORT, STATUS_PORT};
use crate::model::ObjectName;

/// How many endpoints a load balancer would reach here.
const WEIGHT: &str = "X-Load-Balancing-Endpoint-Weight";

/// What it is that routes to Services, where upstream says `iptables` or `nftables`.
const MODE: &str = "ebpf";

/// Health checks by port.
pub(crate) type Checks = BTreeMap<u16, Check>;

/// What can be asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answers {
    /// Load balancers' questions about Services.
    pub(crate) checks: Checks,
    /// The node is about to go, and load balancers should not send it anything new.
    pub(crate) leaving: bool,
}

/// A load balancer's question about a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) service: ObjectName,
    /// Ready endpoints on this node.
    pub(crate) endpoints: usize,
}

/// Whether load balancers' questions are answered on an address of the node's.
pub(crate) type Open = Arc<dyn Fn(IpAddr) -> bool + Send + Sync>;

/// Serves the proxy's own health and all health checks until the shutdown; the latter where node ports are open.
pub(crate) async fn serve(
    checks: watch::Receiver<Answers>,
    open: Open,
    shutdown: &CancellationToken,
) -> Result<(), Error> {
    let mut listeners: BTreeMap<u16, CancellationToken> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    let mut changes = checks.clone();
    let stop_all = shutdown.child_token();
    for port in [HEALTH_PORT, STATUS_PORT] {
        tasks.spawn(listen(port, checks.clone(), Arc::new(|_| true), stop_all.clone()));
    }
    loop {
        let wanted: Vec<u16> = changes.borrow_and_update().checks.keys().copied().collect();
        listeners.retain(|port, stop| {
            let kept = wanted.contains(port);
            if !kept {
                stop.cancel();
            }
            kept
        });
        for port in wanted {
            listeners.entry(port).or_insert_with(|| {
                let stop = stop_all.child_token();
                tasks.spawn(listen(port, checks.clone(), Arc::clone(&open), stop.clone()));
                stop
            });
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            changed = changes.changed() => if changed.is_err() { break },
            Some(_) = tasks.join_next() => {}
        }
    }
    tasks.shutdown().await;
    Ok(())
}

/// Every address of both families, or of IPv4 alone where there is no IPv6; the loopback for what only the node may ask.
fn places(port: u16) -> Vec<SocketAddr> {
    match port {
        STATUS_PORT => vec![(Ipv4Addr::LOCALHOST, port).into()],
        _ => vec![(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()],
    }
}

async fn listen(port: u16, checks: watch::Receiver<Answers>, open: Open, stop: CancellationToken) {
    match TcpListener::bind(&*places(port)).await {
        Ok(listener) => accept(listener, port, checks, open, stop).await,
        Err(error) => tracing::warn!(port, %error, "health checks are not answered: the port is taken"),
    }
}

async fn accept(
    listener: TcpListener,
    port: u16,
    checks: watch::Receiver<Answers>,
    open: Open,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        // A client that went away again, or no descriptor left: the next one may do better.
        let Ok((stream, _)) = accepted else { continue };
        if !stream.local_addr().is_ok_and(|own| open(own.ip().to_canonical())) {
            // As if nobody listened there: addresses come and go, so the socket is for all of them.
            let _ = stream.set_zero_linger();
            continue;
        }
        let checks = checks.clone();
        connections.spawn(async move {
            let answer = service_fn(move |request| {
                let answer = respond(port, &request, &checks.borrow());
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEALTH_PATIENCE).keep_alive(false);
            if let Err(error) = server.serve_connection(TokioIo::new(stream), answer).await {
                tracing::debug!(port, %error, "a health check broke off");
            }
        });
    }
}

fn respond(port: u16, request: &Request<Incoming>, answers: &Answers) -> Response<Full<Bytes>> {
    match (port, answers.checks.get(&port)) {
        (HEALTH_PORT, _) => proxy(request.uri().path(), answers.leaving),
        (STATUS_PORT, _) => status(request.uri().path()),
        (_, Some(check)) => balancer(check),
        (_, None) => reply(StatusCode::NOT_FOUND, &json!({})),
    }
}

/// What the node's administrator asks about the proxy, in plain words.
fn status(path: &str) -> Response<Full<Bytes>> {
    match path {
        "/proxyMode" => plain(StatusCode::OK, MODE),
        "/healthz" => plain(StatusCode::OK, "ok"),
        _ => plain(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

/// Whoever restarts the proxy asks whether it lives, whoever sends to the node whether it is healthy.
fn proxy(path: &str, leaving: bool) -> Response<Full<Bytes>> {
    let now = jiff::Timestamp::now().to_string();
    match path {
        "/healthz" => {
            let status = if leaving { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
            reply(status, &json!({"lastUpdated": now, "currentTime": now, "nodeEligible": !leaving}))
        }
        "/livez" => reply(StatusCode::OK, &json!({"lastUpdated": now, "currentTime": now})),
        _ => reply(StatusCode::NOT_FOUND, &json!({})),
    }
}

fn balancer(check: &Check) -> Response<Full<Bytes>> {
    let (namespace, name) = &check.service;
    let body = json!({
        "service": {"namespace": namespace, "name": name},
        "localEndpoints": check.endpoints,
        "serviceProxyHealthy": true,
    });
    let status = if check.endpoints > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = reply(status, &body);
    response.headers_mut().insert(WEIGHT, http::HeaderValue::from(check.endpoints));
    response
}

fn reply(status: StatusCode, body: &serde_json::Value) -> Response<Full<Bytes>> {
    answer(status, "application/json", body.to_string().into())
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    answer(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}

fn answer(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert("Content-Type", http::HeaderValue::from_static(kind));
    headers.insert("X-Content-Type-Options", http::HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use http_body_util::BodyExt;

    use super::*;

    fn read(response: Response<Full<Bytes>>) -> (u16, Option<String>, serde_json::Value) {
        let weight = response.headers().get(WEIGHT).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(response.headers()["Content-Type"], "application/json");
        assert_eq!(response.headers()["X-Content-Type-Options"], "nosniff");
        (response.status().as_u16(), weight, serde_json::from_slice(&body(response)).unwrap())
    }

    fn body(response: Response<Full<Bytes>>) -> Bytes {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(response.into_body().collect()).unwrap().to_bytes()
    }

    #[test]
    fn the_node_is_told_how_its_proxy_routes() {
        let cases = [("/proxyMode", 200, "ebpf"), ("/healthz", 200, "ok"), ("/other", 404, "404 page not found")];
        for (path, code, text) in cases {
            let response = status(path);
            assert_eq!(response.headers()["Content-Type"], "text/plain; charset=utf-8", "{path}");
            assert_eq!(response.status(), code, "{path}");
            assert_eq!(body(response), text, "{path}");
        }
    }

    #[test]
    fn only_the_node_may_ask_how() {
        assert!(places(STATUS_PORT).iter().all(|place| place.ip().is_loopback()));
        assert!(places(HEALTH_PORT).iter().all(|place| place.ip().is_unspecified()));
    }

    #[test]
    fn load_balancers_get_upstreams_answers() {
        for (endpoints, status) in [(0, 503), (3, 200)] {
            let check = Check { service: ("shop".into(), "web".into()), endpoints };
            let body = json!({"service": {"namespace": "shop", "name": "web"}, "localEndpoints": endpoints,
                "serviceProxyHealthy": true});
            assert_eq!(read(balancer(&check)), (status, Some(endpoints.to_string()), body));
        }
    }

    #[tokio::test]
    async fn load_balancers_are_answered_where_node_ports_are_open() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        for open in [true, false] {
            let listener = TcpListener::bind("[::]:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let check = Check { service: ("shop".into(), "web".into()), endpoints: 1 };
            let (_answers, checks) = watch::channel(Answers { checks: [(port, check)].into(), ..Answers::default() });
            let stop = CancellationToken::new();
            let own = IpAddr::from(Ipv4Addr::LOCALHOST);
            let only = Arc::new(move |address: IpAddr| open && address == own);
            let server = tokio::spawn(accept(listener, port, checks, only, stop.clone()));
            let mut client = tokio::net::TcpStream::connect((own, port)).await.unwrap();
            let asked = client.write_all(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n").await;
            let mut text = String::new();
            let heard = asked.and(client.read_to_string(&mut text).await);
            assert_eq!((heard.is_ok(), text.starts_with("HTTP/1.1 200 ")), (open, open), "{text}");
            stop.cancel();
            server.await.unwrap();
        }
    }

    #[test]
    fn a_node_that_leaves_is_alive_and_not_healthy() {
        let cases = [
            ("/healthz", false, 200, Some(true)),
            ("/healthz", true, 503, Some(false)),
            ("/livez", false, 200, None),
            ("/livez", true, 200, None),
            ("/other", false, 404, None),
        ];
        for (path, leaving, status, eligible) in cases {
            let (code, weight, body) = read(proxy(path, leaving));
            assert_eq!((code, weight, body["nodeEligible"].as_bool()), (status, None, eligible), "{path} {leaving}");
            assert_eq!(body["lastUpdated"].is_string(), status != 404, "{path}");
        }
    }
}
