//! The in-process transport: a `kube::Client` whose requests enter the pipeline without a socket,
//! with a fixed identity. Authorization and admission run as for everybody.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use tower::Service;

use crate::{
    context::{Body, UserInfo},
    pipeline::Pipeline,
};

/// Marks a request whose user is known: set by this transport alone. The listener builds its
/// requests from bytes, so a client cannot bring one along.
#[derive(Clone)]
pub(crate) struct FixedUser(pub(crate) Arc<UserInfo>);

/// A tower service over the pipeline, as one user.
#[derive(Clone)]
pub(crate) struct InProcess {
    pipeline: Arc<Pipeline>,
    user: Arc<UserInfo>,
}

/// A client that acts as `user`.
pub(crate) fn client(pipeline: Arc<Pipeline>, user: UserInfo) -> kube::Client {
    let user = Arc::new(user);
    kube::Client::new(InProcess { pipeline, user }, "default")
}

impl Service<Request<kube::client::Body>> for InProcess {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let mut request = request.map(|body| body.map_err(Into::into).boxed_unsync());
        request.extensions_mut().insert(FixedUser(Arc::clone(&self.user)));
        let pipeline = Arc::clone(&self.pipeline);
        Box::pin(async move { Ok(pipeline.handle(request).await) })
    }
}
