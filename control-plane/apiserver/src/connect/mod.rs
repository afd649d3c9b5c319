//! Subresources that store nothing: streams to nodes and pods, and reviews.
//!
//! For `log`, `exec`, `attach`, `portforward` and `nodes/proxy` this server finds the node of the
//! pod, dials its HTTPS API with the kubelet-client certificate and passes the request on. An
//! upgrade (WebSocket in every subprotocol, SPDY from old clients) is passed as it is: the two
//! ends speak, and here bytes are copied. Requests come here authorized.

mod aggregated;
pub(crate) mod forward;
mod node;
mod pod;
pub(crate) mod proxy;
mod review;
mod rewrite;
mod socket;
mod token;

use std::sync::Arc;

use http::Response;
use rustls::ClientConfig;
use serde_json::Value;
use sluice_api::status::Status;
use tokio::sync::Semaphore;

use crate::{
    auth::{Authenticator, view::View},
    authz::Authorizer,
    bootstrap::pki::Pki,
    context::{Attributes, Body, ConnectRequest, ReviewRequest},
    limits,
};

/// Serves the connecting subresources. Shared as `Arc<Connect>`.
pub struct Connect {
    view: Arc<dyn View>,
    authenticator: Arc<Authenticator>,
    authorizer: Arc<Authorizer>,
    tls: Arc<ClientConfig>,
    streams: Arc<Semaphore>,
}

impl Connect {
    pub fn new(
        pki: &Pki,
        view: Arc<dyn View>,
        authenticator: Arc<Authenticator>,
        authorizer: Arc<Authorizer>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            view,
            authenticator,
            authorizer,
            tls: pki.kubelet_client_config()?,
            streams: Arc::new(Semaphore::new(limits::PROXIED_STREAMS)),
        })
    }

    /// `log`, `exec`, `attach`, `portforward` of pods and `proxy` of pods, services and nodes.
    ///
    /// # Errors
    /// What the client is to be told, in upstream's words; 502 and 503 where the node or the
    /// backend cannot be reached.
    pub async fn handle(&self, request: ConnectRequest) -> Result<Response<Body>, Status> {
        let (resource, subresource) = (request.info.resource.clone(), request.info.subresource.clone());
        match (resource.as_str(), subresource.as_str()) {
            ("pods", "log") => self.log(request).await,
            ("pods", "exec" | "attach") => {
                self.may_create(&request)?;
                self.exec(request).await
            }
            ("pods", "portforward") => {
                self.may_create(&request)?;
                self.port_forward(request).await
            }
            ("nodes", "proxy") => self.node_proxy(request).await,
            ("pods", "proxy") => self.pod_proxy(request).await,
            ("services", "proxy") => self.service_proxy(request).await,
            _ => Err(Status::not_found_path()),
        }
    }

    /// A stream into a pod takes the verb `create`, also when a WebSocket comes as GET (upstream's
    /// `AuthorizePodWebsocketUpgradeCreatePermission`, on since 1.35).
    fn may_create(&self, request: &ConnectRequest) -> Result<(), Status> {
        let attributes = request.info.attributes(&request.user);
        self.authorizer.check(&Attributes { verb: "create", ..attributes })
    }

    /// TokenReview, the access reviews, SelfSubjectReview and `serviceaccounts/token`: the object
    /// with its status filled in, to be sent with 201.
    pub async fn review(&self, request: ReviewRequest<'_>) -> Result<Value, Status> {
        match (request.info.resource.as_str(), request.info.subresource.as_str()) {
            ("serviceaccounts", "token") => self.token_request(request),
            ("tokenreviews", "") => Ok(self.token_review(request.object)),
            ("selfsubjectreviews", "") => Ok(review::self_subject(request)),
            ("selfsubjectrulesreviews", "") => self.rules_review(request),
            ("subjectaccessreviews" | "localsubjectaccessreviews" | "selfsubjectaccessreviews", "") => {
                self.access_review(request)
            }
            _ => Err(Status::not_found_path()),
        }
    }
}

#[cfg(test)]
mod tests;
