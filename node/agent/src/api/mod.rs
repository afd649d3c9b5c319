//! The node's HTTPS API, on upstream's paths: logs of pods and of the node, exec, attach, port-forward, pods, statistics. Every client proves
//! itself with a certificate of the cluster's authority and is then authorized; there is no anonymous access.

mod auth;
mod channel;
mod dial;
mod exec;
mod figures;
mod flows;
mod forward;
mod logs;
mod metrics;
mod node_logs;
mod peer;
mod remote;
mod reply;
mod session;
mod stats;
mod tls;
mod tunnel;
mod upgrade;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use kube::Client;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::dispatch::Workers;
use crate::eviction::signals::Thresholds;
use crate::limits;
use crate::node_context::NodeContext;
use auth::{Authorizer, User};
pub use figures::{Sources, metrics as every_metric};
pub use flows::{Lines, lines as flow_lines};
use reply::{Reply, error, text};

/// Where and with what identity the API is served.
#[derive(Clone, Debug)]
pub struct Config {
    /// Usually port 10250 on every address.
    pub bind: SocketAddr,
    /// The cluster's authority: clients' certificates are checked against it.
    pub client_ca_pem: String,
    /// The serving certificate and its key; renewed ones are sent through the channel.
    pub identity: watch::Receiver<ServingIdentity>,
    /// The directory that `/logs/` shows (upstream's `enableSystemLogHandler`); `None` refuses.
    pub system_logs: Option<PathBuf>,
}

/// A serving certificate (chain) with its key, in PEM.
#[derive(Clone, Default)]
pub struct ServingIdentity {
    pub cert_pem: String,
    pub key_pem: String,
}

impl std::fmt::Debug for ServingIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServingIdentity(..)")
    }
}

impl Config {
    /// A configuration with a certificate that is not renewed, without the node's logs.
    pub fn fixed(bind: SocketAddr, client_ca_pem: String, cert_pem: String, key_pem: String) -> Config {
        let (_, identity) = watch::channel(ServingIdentity { cert_pem, key_pem });
        Config { bind, client_ca_pem, identity, system_logs: None }
    }
}

/// The server, bound when it runs.
pub struct Server {
    config: Config,
    shared: Arc<Shared>,
    tls: tls::Acceptor,
    shutdown: CancellationToken,
}

/// What requests work on.
pub(crate) struct Shared {
    pub(crate) node: Arc<NodeContext>,
    pub(crate) workers: Workers,
    pub(crate) client: Client,
    pub(crate) thresholds: Thresholds,
    sources: Sources,
    authorizer: Authorizer,
    system_logs: Option<PathBuf>,
}

impl Server {
    /// Prepares TLS; nothing is bound yet.
    ///
    /// # Errors
    /// When the certificate, its key or the authority cannot be used.
    pub fn new(
        config: Config,
        node: Arc<NodeContext>,
        workers: Workers,
        client: Client,
        thresholds: Thresholds,
        sources: Sources,
        shutdown: CancellationToken,
    ) -> Result<Server> {
        let tls = tls::Acceptor::new(&config.client_ca_pem, config.identity.clone())?;
        let authorizer = Authorizer::new(client.clone(), node.identity.name.clone());
        let shared = Arc::new(Shared {
            node,
            workers,
            client,
            thresholds,
            sources,
            authorizer,
            system_logs: config.system_logs.clone(),
        });
        Ok(Server { config, shared, tls, shutdown })
    }

    /// Serves until the shutdown.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn run(self) -> Result<()> {
        let listener = TcpListener::bind(self.config.bind)
            .await
            .with_context(|| format!("the node's API cannot listen on {}", self.config.bind))?;
        let tasks = TaskTracker::new();
        let places = Arc::new(Semaphore::new(limits::API_CONNECTIONS));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { break };
            let accepted = tokio::select! {
                () = self.shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else { continue };
            let (tls, shared) = (self.tls.current(), self.shared.clone());
            let stop = self.shutdown.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    result = connection(stream, tls, shared) => if let Err(error) = result {
                        tracing::debug!(error = format!("{error:#}"), "a connection to the node's API");
                    }
                }
                drop(place);
            });
        }
        tasks.close();
        tasks.wait().await;
        Ok(())
    }
}

async fn connection(stream: tokio::net::TcpStream, tls: tokio_rustls::TlsAcceptor, shared: Arc<Shared>) -> Result<()> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(limits::HANDSHAKE, tls.accept(stream)).await??;
    let user = User::of(stream.get_ref().1.peer_certificates());
    let service = service_fn(move |request| {
        let (shared, user) = (shared.clone(), user.clone());
        async move { Ok::<_, std::convert::Infallible>(route(&shared, user, request).await) }
    });
    auto::Builder::new(TokioExecutor::new())
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await
        .map_err(|e| anyhow::anyhow!("{e}"))
}

async fn route(shared: &Arc<Shared>, user: Option<User>, request: Request<Incoming>) -> Response<Reply> {
    let Some(user) = user else {
        return error(StatusCode::UNAUTHORIZED, "Unauthorized");
    };
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    if let Err(message) = shared.authorizer.allows(&user, request.method(), parts.first().copied().unwrap_or("")).await
    {
        return error(StatusCode::FORBIDDEN, &message);
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    match parts.as_slice() {
        ["healthz", ..] | ["livez"] | ["readyz"] if reads => text("ok"),
        ["containerLogs", namespace, pod, container] if reads => {
            logs::serve(shared, namespace, pod, container, request.uri().query().unwrap_or_default())
        }
        ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
            exec::exec(shared, namespace, pod, container, request).await
        }
        ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
            exec::attach(shared, namespace, pod, container, request).await
        }
        ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
            forward::serve(shared, namespace, pod, request)
        }
        ["pods"] if reads => stats::pods(shared).await,
        ["runningpods"] if reads => stats::running(shared),
        ["stats", "summary"] if reads => stats::summary(shared).await,
        ["configz"] if reads => stats::configz(shared),
        ["metrics", "resource"] if reads => metrics::resource(shared).await,
        ["metrics", "cadvisor"] if reads => metrics::cadvisor(shared).await,
        ["flows"] if reads => flows::serve(shared, request.uri().query().unwrap_or_default()).await,
        ["metrics"] if reads => figures::serve(shared).await,
        ["logs", ..] => node_logs::serve(shared.system_logs.as_deref(), &request).await,
        _ => error(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

/// Values of a query parameter, decoded.
pub(crate) fn query<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = String> + 'a {
    query.split('&').filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then(|| decode(value))
    })
}

/// True for `1` and `true`.
pub(crate) fn flag(text: &str, names: &[&str]) -> bool {
    names.iter().any(|name| query(text, name).any(|v| v == "1" || v == "true"))
}

/// A path, in which a plus sign is one.
fn decode_path(text: &str) -> String {
    decode(&text.replace('+', "%2B"))
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |b: u8| char::from(b).to_digit(16);
        match bytes[i] {
            b'+' => out.push(b' '),
            b'%' if i + 2 < bytes.len() => match (hex(bytes[i + 1]), hex(bytes[i + 2])) {
                (Some(high), Some(low)) => {
                    out.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                    i += 2;
                }
                _ => out.push(b'%'),
            },
            b => out.push(b),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let q = "command=sh&command=-c&command=echo+a%20b%26&tty=1&input=false";
        assert_eq!(query(q, "command").collect::<Vec<_>>(), ["sh", "-c", "echo a b&"]);
        assert!(flag(q, &["tty"]) && !flag(q, &["input", "stdin"]));
        assert_eq!(decode("100%"), "100%");
    }
}
