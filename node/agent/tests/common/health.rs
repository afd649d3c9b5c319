//! A gRPC health server (`grpc.health.v1.Health`), as applications have them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use prost::Message;
use prost::bytes::{Buf, BufMut};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{Body, BoxFuture, Service, StdError};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};

type Statuses = Arc<Mutex<HashMap<String, i32>>>;

/// The server, with `""` serving and every other service unknown until it is set.
pub struct Server {
    address: SocketAddr,
    statuses: Statuses,
    asked: watch::Receiver<Vec<String>>,
}

impl Server {
    pub async fn start(address: &str) -> Server {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let statuses: Statuses = Arc::new(Mutex::new(HashMap::from([(String::new(), 1)])));
        let (asked_of, asked) = watch::channel(Vec::new());
        let health = Health { statuses: statuses.clone(), asked: asked_of };
        let incoming = futures::stream::unfold(listener, |listener| async move {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        tokio::spawn(tonic::transport::Server::builder().add_service(health).serve_with_incoming(incoming));
        Server { address, statuses, asked }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// 1 is serving, 2 is not.
    pub fn set(&self, service: &str, status: i32) {
        self.statuses.lock().insert(service.to_owned(), status);
    }

    /// Waits until the service is asked for once more.
    pub async fn asked(&self, service: &str) {
        let mut asked = self.asked.clone();
        let count = |list: &Vec<String>| list.iter().filter(|s| *s == service).count();
        let before = count(&asked.borrow());
        let more = asked.wait_for(|list| count(list) > before);
        tokio::time::timeout(std::time::Duration::from_secs(20), more).await.expect("the probe asks").unwrap();
    }
}

#[derive(Clone)]
struct Health {
    statuses: Statuses,
    asked: watch::Sender<Vec<String>>,
}

impl NamedService for Health {
    const NAME: &'static str = "grpc.health.v1.Health";
}

impl<B> Service<http::Request<B>> for Health
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let health = self.clone();
        Box::pin(async move {
            if request.uri().path() != "/grpc.health.v1.Health/Check" {
                return Ok(Status::unimplemented("").into_http());
            }
            Ok(Grpc::new(Messages).unary(health, request).await)
        })
    }
}

impl UnaryService<Check> for Health {
    type Response = Answer;
    type Future = BoxFuture<Response<Answer>, Status>;

    fn call(&mut self, request: Request<Check>) -> Self::Future {
        let service = request.into_inner().service;
        let status = self.statuses.lock().get(&service).copied();
        self.asked.send_modify(|list| list.push(service));
        Box::pin(async move {
            status.map(|status| Response::new(Answer { status })).ok_or_else(|| Status::not_found("unknown service"))
        })
    }
}

#[derive(Clone, PartialEq, Message)]
struct Check {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(int32, tag = "1")]
    status: i32,
}

struct Messages;

impl Codec for Messages {
    type Encode = Answer;
    type Decode = Check;
    type Encoder = Messages;
    type Decoder = Messages;

    fn encoder(&mut self) -> Messages {
        Messages
    }
    fn decoder(&mut self) -> Messages {
        Messages
    }
}

impl Encoder for Messages {
    type Item = Answer;
    type Error = Status;

    fn encode(&mut self, item: Answer, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&item.encode_to_vec());
        Ok(())
    }
}

impl Decoder for Messages {
    type Item = Check;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Check>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        Check::decode(bytes).map(Some).map_err(|e| Status::internal(e.to_string()))
    }
}
