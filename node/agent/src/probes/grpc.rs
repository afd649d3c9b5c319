//! The gRPC probe: `grpc.health.v1.Health/Check` over plain HTTP/2, with the two small messages written by hand.

use std::time::Duration;

use prost::Message;
use prost::bytes::{Buf, BufMut};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};

use super::{Outcome, join};

/// Asks for the health of `service` (empty: the server as a whole).
pub async fn probe(host: &str, port: u16, service: &str, timeout: Duration) -> Outcome {
    let address = join(host, port);
    let late = || {
        Outcome::Failure(format!(
            "timeout: failed to connect service \"{address}\" within {}: context deadline exceeded",
            crate::pod::machine::go_duration(timeout)
        ))
    };
    let endpoint = match Endpoint::from_shared(format!("http://{address}")) {
        Ok(endpoint) => endpoint.connect_timeout(timeout).user_agent("kube-probe/1.36"),
        Err(e) => return Outcome::Error(e.to_string()),
    };
    let endpoint = match endpoint {
        Ok(endpoint) => endpoint,
        Err(e) => return Outcome::Error(e.to_string()),
    };
    let work = async {
        let channel = endpoint.connect().await.map_err(|_| None)?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(|_| None)?;
        let request = Request::new(CheckRequest { service: service.to_owned() });
        let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        client.unary(request, path, HealthCodec).await.map(tonic::Response::into_inner).map_err(Some)
    };
    match tokio::time::timeout(timeout, work).await {
        Err(_) | Ok(Err(None)) => late(),
        Ok(Ok(CheckResponse { status: 1 })) => Outcome::Success,
        Ok(Ok(CheckResponse { status })) => {
            let word = match status {
                0 => "UNKNOWN",
                2 => "NOT_SERVING",
                3 => "SERVICE_UNKNOWN",
                _ => "UNRECOGNIZED",
            };
            Outcome::Failure(format!("service unhealthy (responded with \"{word}\")"))
        }
        Ok(Err(Some(status))) => match status.code() {
            Code::Unimplemented => Outcome::Failure(format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
                status.message()
            )),
            Code::DeadlineExceeded => late(),
            _ => Outcome::Failure(format!(
                "error: health rpc probe failed: rpc error: code = {:?} desc = {}",
                status.code(),
                status.message()
            )),
        },
    }
}

#[derive(Clone, PartialEq, Eq, Message)]
struct CheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct CheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Default)]
struct HealthCodec;

impl Codec for HealthCodec {
    type Encode = CheckRequest;
    type Decode = CheckResponse;
    type Encoder = Encode;
    type Decoder = Decode;

    fn encoder(&mut self) -> Encode {
        Encode
    }
    fn decoder(&mut self) -> Decode {
        Decode
    }
}

struct Encode;

impl Encoder for Encode {
    type Item = CheckRequest;
    type Error = Status;

    fn encode(&mut self, item: CheckRequest, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&item.encode_to_vec());
        Ok(())
    }
}

struct Decode;

impl Decoder for Decode {
    type Item = CheckResponse;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<CheckResponse>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        CheckResponse::decode(bytes).map(Some).map_err(|e| Status::internal(e.to_string()))
    }
}
