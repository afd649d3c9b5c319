//! The cluster's API servers as one: requests go to the one in use, and when it does not answer, to the next, which is
//! then in use. What the one that was left still sends is cut off, so that watches begin anew where they are answered.
//!
//! A request that may have been carried out is not sent again, but for reading: its caller learns that it failed.

use std::{
    error::Error as StdError,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Method, Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use jiff::Timestamp;
use kube::{Client, client::Body};
use parking_lot::RwLock;
use tokio::sync::watch;

use super::clock::Clock;
use crate::limits;

type Failed = Box<dyn StdError + Send + Sync>;

/// One client for each server, of which one is in use.
pub(super) struct Servers {
    clients: RwLock<Vec<Client>>,
    used: watch::Sender<usize>,
    clock: Clock,
}

impl Servers {
    /// The first one is in use to begin with. There is at least one.
    pub(super) fn new(clients: Vec<Client>) -> Arc<Self> {
        Arc::new(Self { clients: RwLock::new(clients), used: watch::Sender::new(0), clock: Clock::default() })
    }

    /// The same servers with other credentials.
    pub(super) fn replace(&self, clients: Vec<Client>) {
        *self.clients.write() = clients;
    }

    /// All of them as one client.
    pub(super) fn client(self: &Arc<Self>) -> Client {
        let servers = Arc::clone(self);
        let service = tower::service_fn(move |request| {
            let servers = Arc::clone(&servers);
            async move { servers.send(request).await }
        });
        Client::new(service, "default")
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Followed>, Failed> {
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await?;
        let mut attempts = self.clients.read().len();
        loop {
            let index = *self.used.borrow();
            let client = self.clients.read().get(index).cloned().ok_or("no API server is known")?;
            let error = match ask(&client, Request::from_parts(head.clone(), body.clone().into()), attempts > 1).await {
                Ok(response) => {
                    self.compare(&response);
                    return Ok(response.map(|body| self.followed(body, index)));
                }
                Err(error) => error,
            };
            if let Some(off) = self.clock.failed(&*error, Timestamp::now()) {
                tracing::error!("{off}");
            }
            attempts -= 1;
            self.leave(index, &error);
            let harmless = matches!(head.method, Method::GET | Method::HEAD) || unsent(&*error);
            if attempts == 0 || !harmless {
                return Err(error);
            }
        }
    }

    fn compare(&self, response: &Response<Body>) {
        match self.clock.answered(response.headers(), Timestamp::now()) {
            Some(Err(off)) => tracing::error!("{off}"),
            Some(Ok(())) => tracing::info!("this machine's clock agrees with the API server's again"),
            None => {}
        }
    }

    /// Goes over to the next one, unless somebody has done so already.
    fn leave(&self, index: usize, error: &Failed) {
        let all = self.clients.read().len();
        self.used.send_if_modified(|used| {
            let moves = all > 1 && *used == index;
            if moves {
                *used = (index + 1) % all;
                tracing::warn!(server = index, next = *used, error = %error, "an API server does not answer; using the next");
            }
            moves
        });
    }

    fn followed(&self, body: Body, index: usize) -> Followed {
        let mut used = self.used.subscribe();
        let left = async move {
            // A sender that is gone cannot move anybody.
            if used.wait_for(|used| *used != index).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        Followed { body, left: Box::pin(left) }
    }
}

/// One server's answer; with another one to turn to, it is not waited for at length.
async fn ask(client: &Client, request: Request<Body>, others: bool) -> Result<Response<Body>, Failed> {
    if !others {
        return Ok(client.send(request).await?);
    }
    match tokio::time::timeout(limits::SERVER_ANSWER, client.send(request)).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(format!("no answer within {} s", limits::SERVER_ANSWER.as_secs()).into()),
    }
}

/// Whether the request cannot have reached a server: no connection came about.
fn unsent(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<hyper_util::client::legacy::Error>() {
            return error.is_connect();
        }
        next = error.source();
    }
    false
}

/// A body that ends with an error when its server is left.
struct Followed {
    body: Body,
    left: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl HttpBody for Followed {
    type Data = Bytes;
    type Error = Failed;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failed>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        self.left.as_mut().poll(context).map(|()| Some(Err("its API server was left for another".into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    /// A server in memory: answers its name, or fails as told.
    struct Fake {
        name: &'static str,
        broken: AtomicBool,
        asked: AtomicUsize,
    }

    fn fake(name: &'static str) -> (Arc<Fake>, Client) {
        let fake = Arc::new(Fake { name, broken: AtomicBool::new(false), asked: AtomicUsize::new(0) });
        let server = Arc::clone(&fake);
        let service = tower::service_fn(move |_: Request<Body>| {
            let server = Arc::clone(&server);
            async move {
                server.asked.fetch_add(1, Ordering::SeqCst);
                match server.broken.load(Ordering::SeqCst) {
                    true => Err(Failed::from("connection reset")),
                    false => Ok(Response::new(Body::from(server.name.as_bytes().to_vec()))),
                }
            }
        });
        (fake, Client::new(service, "default"))
    }

    async fn told(client: &Client, method: Method) -> Result<String, kube::Error> {
        let request = Request::builder().method(method).uri("/api").body(Body::empty()).unwrap();
        let bytes = client.send(request).await?.into_body().collect_bytes().await?;
        Ok(String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn reading_goes_on_at_the_next_server_and_stays_there() {
        let ((one, a), (two, b)) = (fake("one"), fake("two"));
        let client = Servers::new(vec![a, b]).client();
        assert_eq!(told(&client, Method::GET).await.unwrap(), "one");
        one.broken.store(true, Ordering::SeqCst);
        assert_eq!(told(&client, Method::GET).await.unwrap(), "two");
        one.broken.store(false, Ordering::SeqCst);
        assert_eq!(told(&client, Method::GET).await.unwrap(), "two");
        assert_eq!(one.asked.load(Ordering::SeqCst), 2);
        two.broken.store(true, Ordering::SeqCst);
        assert_eq!(told(&client, Method::GET).await.unwrap(), "one");
        one.broken.store(true, Ordering::SeqCst);
        assert!(told(&client, Method::GET).await.is_err(), "nobody answers");
    }

    #[tokio::test]
    async fn a_write_that_may_have_happened_is_not_repeated_but_the_next_goes_elsewhere() {
        let ((one, a), (two, b)) = (fake("one"), fake("two"));
        let client = Servers::new(vec![a, b]).client();
        one.broken.store(true, Ordering::SeqCst);
        assert!(told(&client, Method::POST).await.is_err());
        assert_eq!(two.asked.load(Ordering::SeqCst), 0);
        assert_eq!(told(&client, Method::POST).await.unwrap(), "two");
    }

    #[tokio::test]
    async fn what_the_server_left_still_sends_is_cut_off() {
        use futures::stream;
        // As a watch without changes.
        let silent = tower::service_fn(|_: Request<Body>| async {
            let silence = stream::pending::<Result<Frame<Bytes>, Failed>>();
            Ok::<_, Failed>(Response::new(http_body_util::StreamBody::new(silence)))
        });
        let (_two, b) = fake("two");
        let servers = Servers::new(vec![Client::new(silent, "default"), b]);
        let request = Request::builder().uri("/watch").body(Body::empty()).unwrap();
        let body = servers.client().send(request).await.unwrap().into_body();
        let reading = tokio::spawn(body.collect_bytes());
        servers.leave(0, &"gone".into());
        assert!(reading.await.unwrap().is_err());
        assert_eq!(told(&servers.client(), Method::GET).await.unwrap(), "two");
    }
}
