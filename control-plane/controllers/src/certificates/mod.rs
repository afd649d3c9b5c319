//! CertificateSigningRequests: approves those of nodes that prove who they are, signs what is approved, and clears old ones
//! away. [`rules`] decides, [`sign`] signs.

mod rules;
mod sign;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::api::PostParams;
use kube::{Client, Resource};
use serde_json::{Value, json};

use crate::context::Context;
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::Store;
use crate::object::Object;
use crate::queue::Key;
use crate::rest;
use crate::types::{Certificate, Node};
use rules::{Recognized, Subject};
use sign::Authority;

/// Requests wait this long for an approval, and denied or failed ones are kept as long (upstream's are a day and an hour).
const PENDING: Duration = Duration::from_secs(24 * 3600);
const SETTLED: Duration = Duration::from_secs(3600);

struct Controller {
    client: Client,
    context: Context,
    authority: Authority,
    requests: Arc<Store<Certificate>>,
    nodes: Arc<Store<Node>>,
}

/// Starts the controller; does nothing without an authority.
///
/// # Errors
/// A sentence when the authority cannot be read.
pub(crate) fn start(context: &Context, all: &Informers) -> Result<(), String> {
    let Some((certificate, key)) = &context.options.cluster_ca else { return Ok(()) };
    let mut wiring = Wiring::new();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        context: context.clone(),
        authority: Authority::new(certificate, key)?,
        requests: wiring.drives(&all.requests),
        nodes: wiring.reads(&all.nodes),
    });
    let requests = controller.requests.clone();
    wiring.wakes(&all.nodes, move |old, new, queue| {
        // A serving certificate waits until its node says what it is called.
        if let Some(node) = new.filter(|new| old.is_none_or(|old| old.status.addresses != new.status.addresses)) {
            let user = format!("system:node:{}", node.name());
            let waiting = requests.all().into_iter();
            let waiting = waiting.filter(|r| r.spec.username == user && r.status.conditions.is_empty());
            waiting.for_each(|request| queue.add(request.key()));
        }
    });
    wiring.run(context, "certificate-controller", controller);
    Ok(())
}

impl Reconcile for Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(request) = self.requests.get(key) else { return Ok(None) };
        let Some(again) = self.clean(&request).await? else { return Ok(None) };
        if request.status.certificate.is_none() {
            self.answer(&request).await?;
        }
        Ok(Some(again))
    }
}

impl Controller {
    async fn answer(&self, request: &Certificate) -> anyhow::Result<()> {
        let has = |kind: &str| request.status.conditions.iter().any(|c| c.kind == kind);
        if has("Denied") || has("Failed") || !signer_is_ours(&request.spec.signer_name) {
            return Ok(());
        }
        let pem = String::from_utf8_lossy(&request.spec.request.0).into_owned();
        let subject = match sign::subject(&pem) {
            Ok(subject) => subject,
            Err(reason) if has("Approved") => return self.fail(request, &reason).await,
            Err(_) => return Ok(()),
        };
        if !has("Approved") {
            return self.approve(request, &subject).await;
        }
        let wanted = request.spec.expiration_seconds.map(|s| Duration::from_secs(s.max(600).unsigned_abs()));
        let signed = rules::check(&request.spec, &subject).and_then(|()| {
            self.authority.sign(&pem, &request.spec.usages, wanted, SystemTime::from(self.context.now()))
        });
        match signed {
            Ok(certificate) => {
                let status = json!({"certificate": STANDARD.encode(certificate)});
                rest::patch_status(&self.client, request, status).await?;
                Ok(())
            }
            Err(reason) => self.fail(request, &reason).await,
        }
    }
}

impl Controller {
    /// Deletes a request nobody needs any more; otherwise says when it will be old.
    async fn clean(&self, request: &Certificate) -> anyhow::Result<Option<Duration>> {
        let settled =
            request.status.certificate.is_some() || request.status.conditions.iter().any(|c| c.kind != "Approved");
        let keep = if settled { SETTLED } else { PENDING };
        let age = self.context.now().duration_since(request.created()).unsigned_abs();
        match keep.checked_sub(age).filter(|left| !left.is_zero()) {
            Some(left) => Ok(Some(left + Duration::from_secs(1))),
            None => {
                rest::delete(&self.client, request).await?;
                Ok(None)
            }
        }
    }

    async fn approve(&self, request: &Certificate, subject: &Subject) -> anyhow::Result<()> {
        let Some(recognized) = rules::recognize(&request.spec, subject) else { return Ok(()) };
        let mut recognized = recognized;
        let allowed = match recognized.permission() {
            None => self
                .nodes
                .get(&Key::new("", rules::node_of(subject)))
                .is_some_and(|node| rules::names_are_of(&node, subject)),
            Some(subresource) => {
                let mut allowed = self.may(request, subresource).await?;
                if !allowed && recognized == Recognized::SelfNodeClient {
                    recognized = Recognized::NodeClient;
                    allowed = self.may(request, "nodeclient").await?;
                }
                allowed
            }
        };
        if !allowed {
            return Ok(());
        }
        self.condition(request, "approval", "Approved", "AutoApproved", recognized.message()).await
    }

    /// Asks whether the one who asks may create this kind of request.
    async fn may(&self, request: &Certificate, subresource: &str) -> anyhow::Result<bool> {
        let body = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": request.spec.username, "groups": request.spec.groups,
                "resourceAttributes": {
                    "group": "certificates.k8s.io", "resource": "certificatesigningrequests", "verb": "create",
                    "version": "*", "subresource": subresource,
                },
            },
        });
        let review = kube::core::Request::new("/apis/authorization.k8s.io/v1/subjectaccessreviews")
            .create(&PostParams::default(), body.to_string().into_bytes())
            .map_err(kube::Error::BuildRequest)?;
        let answer: Value = self.client.request(review).await?;
        Ok(answer["status"]["allowed"] == json!(true))
    }

    async fn fail(&self, request: &Certificate, reason: &str) -> anyhow::Result<()> {
        self.condition(request, "status", "Failed", "SignerValidationFailure", reason).await
    }

    async fn condition(
        &self,
        request: &Certificate,
        sub: &str,
        kind: &str,
        reason: &str,
        message: &str,
    ) -> anyhow::Result<()> {
        // The whole object is needed for an update; the watch keeps only a part of it.
        let requests = kube::core::Request::new(Certificate::url_path(&(), None));
        let get = requests.get(request.name(), &Default::default()).map_err(kube::Error::BuildRequest)?;
        let mut object: Value = self.client.request(get).await?;
        let now = format!("{:.0}", self.context.now());
        let condition = json!({
            "type": kind, "status": "True", "reason": reason, "message": message,
            "lastUpdateTime": now, "lastTransitionTime": now,
        });
        match object["status"]["conditions"].as_array_mut() {
            Some(conditions) => conditions.push(condition),
            None => object["status"]["conditions"] = json!([condition]),
        }
        let put = requests
            .replace_subresource(sub, request.name(), &PostParams::default(), object.to_string().into_bytes())
            .map_err(kube::Error::BuildRequest)?;
        self.client.request::<Value>(put).await?;
        Ok(())
    }
}

fn signer_is_ours(signer: &str) -> bool {
    [rules::KUBELET_CLIENT, rules::KUBELET_SERVING, rules::CLIENT].contains(&signer)
}
