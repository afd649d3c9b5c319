//! The HTTPS listener: TLS with optional client certificates, HTTP/1.1 and HTTP/2 by ALPN, upgrades,
//! limits on connections and headers, and a graceful end. What a request means is the pipeline's.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use http::Request;
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown, graceful::Watcher},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::{
    context::{Certified, Peer, PeerAddr},
    drain::Drained,
    limits,
    pipeline::Pipeline,
};

/// Serves until `shutdown`; then open requests get [`limits::SHUTDOWN_GRACE`] to end.
pub(crate) async fn serve(
    pipeline: Arc<Pipeline>,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut tls = (*tls).clone();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let http = Arc::new(builder());
    let places = Arc::new(Semaphore::new(limits::CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let ending = shutdown.child_token();

    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, listener.accept().await)
            } => accepted,
        };
        let (Ok(place), stream) = accepted else { break };
        let (stream, peer) = match stream {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors or a client gone already: neither is a reason to end.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let (acceptor, http, pipeline) = (acceptor.clone(), Arc::clone(&http), Arc::clone(&pipeline));
        let (watcher, ending) = (graceful.watcher(), ending.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = ended(&ending) => {}
                result = connection(&http, pipeline, acceptor, stream, peer, watcher) => {
                    if let Err(error) = result {
                        tracing::debug!(%peer, %error, "connection ended");
                    }
                }
            }
            drop(place);
        });
    }
    drop(listener);
    pipeline.end_watches();
    let _ = tokio::time::timeout(limits::SHUTDOWN_GRACE, graceful.shutdown()).await;
    Ok(())
}

/// Resolves when the grace after the shutdown is over.
async fn ended(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(limits::SHUTDOWN_GRACE).await;
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .max_buf_size(limits::HEADER_BYTES)
        .header_read_timeout(limits::HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(limits::HEADER_BYTES as u32)
        .max_concurrent_streams(limits::STREAMS)
        .keep_alive_interval(limits::KEEP_ALIVE)
        .keep_alive_timeout(limits::KEEP_ALIVE);
    builder
}

async fn connection(
    http: &auto::Builder<TokioExecutor>,
    pipeline: Arc<Pipeline>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    watcher: Watcher,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    let chain = stream.get_ref().1.peer_certificates();
    let certified = chain.and_then(<[_]>::first).and_then(Certified::read).map(|certified| Peer(Arc::new(certified)));
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(PeerAddr(peer));
        if let Some(certified) = &certified {
            request.extensions_mut().insert(certified.clone());
        }
        let pipeline = Arc::clone(&pipeline);
        async move {
            let old = request.version() < http::Version::HTTP_2;
            let request = request.map(|body| match old {
                true => Drained::new(body).boxed_unsync(),
                false => body.map_err(Into::into).boxed_unsync(),
            });
            Ok::<_, Infallible>(pipeline.handle(request).await)
        }
    });
    let connection = http.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
    watcher.watch(connection).await.map_err(|error| anyhow::anyhow!(error))
}
