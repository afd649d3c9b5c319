//! MutatingAdmissionWebhook and ValidatingAdmissionWebhook: asks other servers about a write, as
//! webhook configurations say. Mutating ones run one after another in the order of their
//! configurations' names, validating ones side by side.

mod call;
pub(super) mod rules;

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use futures::future::join_all;
use serde_json::{Value, json};
use sluice_api::status::Status;

use self::rules::Webhook;
pub(crate) use self::{
    call::{by_service, post},
    rules::{ClientConfig, ServiceRef},
};
use super::policy::Frame;
use crate::{auth::view::View, authz::Authorizer, context::Admit, limits};

const GROUP: &str = "admissionregistration.k8s.io";

/// What a webhook answered.
struct Verdict {
    patch: Option<Value>,
    warnings: Vec<String>,
}

/// What the mutating webhooks did.
#[derive(Default)]
pub(super) struct Mutated {
    pub(super) warnings: Vec<String>,
    /// True if any of them changed the object.
    pub(super) changed: bool,
}

/// Lets every matching mutating webhook change the object.
pub(super) async fn mutate(
    view: &dyn View,
    authorizer: &Arc<Authorizer>,
    admit: &Admit<'_>,
    object: &mut Value,
) -> Result<Mutated, Status> {
    let mut mutated = Mutated::default();
    let mut again: Vec<Webhook> = Vec::new();
    let mut changed_since = false;
    for webhook in matching(view, "mutatingwebhookconfigurations", admit, Some(object)) {
        if !wanted(view, authorizer, &webhook, admit, Some(object))? {
            continue;
        }
        let changed = apply(view, &webhook, admit, object, &mut mutated.warnings).await?;
        mutated.changed |= changed;
        changed_since |= changed && !again.is_empty();
        if webhook.reinvocation_policy == "IfNeeded" {
            again.push(webhook);
        }
    }
    if changed_since {
        for webhook in again {
            apply(view, &webhook, admit, object, &mut mutated.warnings).await?;
        }
    }
    Ok(mutated)
}

/// Asks every matching validating webhook; the first refusal in their order is the answer.
pub(super) async fn validate(
    view: &dyn View,
    authorizer: &Arc<Authorizer>,
    admit: &Admit<'_>,
    object: Option<&Value>,
) -> Result<Vec<String>, Status> {
    let mut webhooks = matching(view, "validatingwebhookconfigurations", admit, object);
    for at in (0..webhooks.len()).rev() {
        if !wanted(view, authorizer, &webhooks[at], admit, object)? {
            webhooks.remove(at);
        }
    }
    let asked = webhooks.iter().map(|webhook| ask(view, webhook, admit, object));
    let mut warnings = Vec::new();
    for verdict in join_all(asked).await {
        warnings.extend(verdict?.map(|v| v.warnings).unwrap_or_default());
    }
    Ok(warnings)
}

/// Whether the webhook's match conditions hold; where one fails and another does not refuse, the
/// failure policy decides.
fn wanted(
    view: &dyn View,
    authorizer: &Arc<Authorizer>,
    webhook: &Webhook,
    admit: &Admit<'_>,
    object: Option<&Value>,
) -> Result<bool, Status> {
    if super::list(&webhook.match_conditions).is_empty() {
        return Ok(true);
    }
    let frame = Frame::new(view, authorizer, admit, object);
    match frame.conditions(&webhook.match_conditions, &[]) {
        Ok(holds) => Ok(holds),
        Err(_) if webhook.fails_open() => Ok(false),
        Err(why) => Err(super::forbid(admit, object, why)),
    }
}

/// True if the webhook changed the object.
async fn apply(
    view: &dyn View,
    webhook: &Webhook,
    admit: &Admit<'_>,
    object: &mut Value,
    warnings: &mut Vec<String>,
) -> Result<bool, Status> {
    let Some(verdict) = ask(view, webhook, admit, Some(object)).await? else {
        return Ok(false);
    };
    warnings.extend(verdict.warnings);
    let Some(patch) = verdict.patch else {
        return Ok(false);
    };
    let before = object.clone();
    let patched = sluice_api::patch::operations(patch)
        .map_err(|e| e.to_string())
        .and_then(|patch| json_patch::patch(object, &patch).map_err(|e| e.to_string()));
    if let Err(error) = patched {
        *object = before;
        let why = format!("the patch of webhook {:?} cannot be applied: {error}", webhook.name);
        return if webhook.fails_open() { Ok(false) } else { Err(Status::internal(why)) };
    }
    if *object == before {
        return Ok(false);
    }
    // What a webhook wrote gets the form of what a client sends: fields in order, no nulls.
    super::canonical(admit, object)?;
    Ok(true)
}

/// `None` when the webhook could not be asked and its policy is to go on.
async fn ask(
    view: &dyn View,
    webhook: &Webhook,
    admit: &Admit<'_>,
    object: Option<&Value>,
) -> Result<Option<Verdict>, Status> {
    if admit.dry_run && !matches!(webhook.side_effects.as_str(), "None" | "NoneOnDryRun") {
        return Err(Status::bad_request(format!("admission webhook {:?} does not support dry run", webhook.name)));
    }
    let uid = uid();
    let review = review(&uid, admit, object);
    let seconds = webhook.timeout_seconds.unwrap_or(limits::WEBHOOK_TIMEOUT_SECONDS);
    let seconds = seconds.min(limits::WEBHOOK_MOST_SECONDS);
    let answered = match post(view, &webhook.client_config, seconds, &review).await {
        Ok(answer) => read(&uid, &answer),
        Err(error) => Err(error),
    };
    let response = match answered {
        Ok(response) => response,
        Err(error) if webhook.fails_open() => {
            tracing::warn!(webhook = webhook.name, error, "an admission webhook failed and is passed over");
            return Ok(None);
        }
        Err(error) => {
            let name = &webhook.name;
            return Err(Status::internal(format!("failed calling webhook {name:?}: failed to call webhook: {error}")));
        }
    };
    if response["allowed"] != true {
        return Err(denied(&webhook.name, &response["status"]));
    }
    let patch = match response["patch"].as_str() {
        None | Some("") => None,
        Some(text) => {
            let bytes = BASE64.decode(text).ok();
            let patch = bytes.and_then(|b| serde_json::from_slice(&b).ok());
            Some(patch.ok_or_else(|| {
                Status::internal(format!("webhook {:?} sent a patch that is not base64 of JSON", webhook.name))
            })?)
        }
    };
    let warnings = super::list(&response["warnings"])
        .iter()
        .filter_map(Value::as_str)
        .take(limits::WEBHOOK_WARNINGS)
        .map(|w| w.chars().take(limits::WEBHOOK_WARNING_CHARS).collect())
        .collect();
    Ok(Some(Verdict { patch, warnings }))
}

fn matching(view: &dyn View, plural: &str, admit: &Admit<'_>, object: Option<&Value>) -> Vec<Webhook> {
    // A configuration that cannot be written because of itself could never be mended.
    if admit.attributes.group == GROUP || view.stamp(GROUP, plural).0 == 0 {
        return Vec::new();
    }
    let mut configurations = view.list(GROUP, plural, "");
    configurations.sort_by(|a, b| a.name.cmp(&b.name));
    configurations
        .iter()
        .flat_map(|configuration| rules::parse(&configuration.value()))
        .filter(|webhook| webhook.matches(view, admit, object))
        .collect()
}

/// The `admission.k8s.io/v1 AdmissionReview` to send.
fn review(uid: &str, admit: &Admit<'_>, object: Option<&Value>) -> Value {
    let of = |object: Option<&Value>| object.cloned().unwrap_or(Value::Null);
    let mut request = super::policy::request(admit);
    request["uid"] = json!(uid);
    request["object"] = of(object);
    request["oldObject"] = of(admit.old);
    json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request})
}

fn read(uid: &str, answer: &[u8]) -> Result<Value, String> {
    let mut answer: Value = serde_json::from_slice(answer).map_err(|e| format!("the answer is not JSON: {e}"))?;
    if answer["kind"] != "AdmissionReview" || answer["response"].is_null() {
        return Err("the answer is not an AdmissionReview with a response".into());
    }
    let response = answer["response"].take();
    if response["uid"] != uid {
        return Err(format!("expected response.uid={uid:?}, got {}", response["uid"]));
    }
    Ok(response)
}

/// Upstream's `ToStatusErr`.
fn denied(webhook: &str, status: &Value) -> Status {
    let text = |field: &str| status[field].as_str().filter(|t| !t.is_empty());
    let why = match text("message").or_else(|| text("reason")) {
        Some(why) => format!(": {why}"),
        None => " without explanation".into(),
    };
    let code = status["code"].as_u64().and_then(|c| u16::try_from(c).ok()).filter(|c| (400..600).contains(c));
    let message = format!("admission webhook {webhook:?} denied the request{why}");
    Status::new(code.unwrap_or(400), text("reason").unwrap_or_default(), message)
}

pub(crate) fn uid() -> String {
    format!("{:032x}", rand::random::<u128>())
}

#[cfg(test)]
mod tests;
