//! `metav1.Status` errors with upstream's reasons, codes and messages.
//!
//! Every failure a client can see is made by one of the constructors here, so that the wording
//! stands in one place (that of upstream's `apimachinery/pkg/api/errors`). Field errors of
//! validation are [`FieldError`]s, gathered into one `Invalid` status.

mod field;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::resource::Resource;
pub use field::{FieldError, FieldErrorKind, quote};

/// The reason of an optimistic-lock conflict.
pub const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

const CONTINUE_EXPIRED: &str = "The provided continue parameter is too old to display a consistent \
    list result. You can start a new list without the continue parameter, or use the continue token \
    in this response to retrieve the remainder of the results. Continuing with the provided token \
    results in an inconsistent list - objects that were created, modified, or deleted between the \
    time the first chunk was returned and now may show up in the list.";

/// A failure as the client sees it. Build one with the constructors, which carry upstream's wording.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub message: String,
    pub reason: String,
    pub code: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<Details>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Details {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// The plural of the resource, or the kind for `Invalid`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
    /// The Status's `metadata.continue`: where a list whose token expired may go on.
    #[serde(skip)]
    pub continue_token: Option<String>,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// Constructors, by code.
impl Status {
    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403 about an object, or about the resource when `name` is empty (admission's refusals).
    pub fn forbidden(res: &Resource, name: &str, why: impl std::fmt::Display) -> Self {
        let what = res.qualified();
        let message = match name {
            "" => format!("{what} is forbidden: {why}"),
            _ => format!("{what} {} is forbidden: {why}", quote(name)),
        };
        Self::new(403, "Forbidden", message).with_details(of(res, name))
    }

    /// 403 for a path or where no resource is known: `forbidden: {why}`.
    pub fn forbidden_path(why: impl std::fmt::Display) -> Self {
        Self::new(403, "Forbidden", format!("forbidden: {why}")).with_details(Details::default())
    }

    /// 403 of the authorizer, in full: `pods "x" is forbidden: User "u" cannot get resource ...`.
    pub fn access_denied(denied: &Denied<'_>) -> Self {
        let Denied { user, verb, group, resource, subresource, namespace, name, reason } = *denied;
        let slash = if subresource.is_empty() { "" } else { "/" };
        let place = match namespace {
            "" => "at the cluster scope".to_owned(),
            _ => format!("in the namespace {}", quote(namespace)),
        };
        let what = if group.is_empty() { resource.into() } else { format!("{resource}.{group}") };
        let subject = if name.is_empty() { what } else { format!("{what} {}", quote(name)) };
        let colon = if reason.is_empty() { "" } else { ": " };
        let message = format!(
            "{subject} is forbidden: User {} cannot {verb} resource {} in API group {} \
             {place}{colon}{reason}",
            quote(user),
            quote(&format!("{resource}{slash}{subresource}")),
            quote(group),
        );
        let details = Details { name: name.into(), group: group.into(), kind: resource.into(), ..Details::default() };
        Self::new(403, "Forbidden", message).with_details(details)
    }

    /// 404 for an object.
    pub fn not_found(res: &Resource, name: &str) -> Self {
        let message = format!("{} {} not found", res.qualified(), quote(name));
        Self::new(404, "NotFound", message).with_details(of(res, name))
    }

    /// 404 for a path that is no resource.
    pub fn not_found_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource").with_details(Details::default())
    }

    /// 405 for a method that the path does not know.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message).with_details(Details::default())
    }

    /// 405 for a verb that a kind does not support, e.g. `create`.
    pub fn method_not_supported(res: &Resource, verb: &str) -> Self {
        let kind = quote(&res.qualified());
        let message = format!("{verb} is not supported on resources of kind {kind}");
        Self::new(405, "MethodNotAllowed", message).with_details(of(res, ""))
    }

    /// 406; `accepted` are the media types that can be answered.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let accepted = accepted.join(", ");
        let message = format!("only the following media types are accepted: {accepted}");
        Self::new(406, "NotAcceptable", message)
    }

    /// 409 on create.
    pub fn already_exists(res: &Resource, name: &str) -> Self {
        let message = format!("{} {} already exists", res.qualified(), quote(name));
        Self::new(409, "AlreadyExists", message).with_details(of(res, name))
    }

    /// 409 of the optimistic lock: the object changed since the client read it.
    pub fn conflict(res: &Resource, name: &str) -> Self {
        Self::conflict_because(res, name, MODIFIED)
    }

    /// 409 for another reason, e.g. a failed precondition.
    pub fn conflict_because(res: &Resource, name: &str, why: impl std::fmt::Display) -> Self {
        let what = res.qualified();
        let message = format!("Operation cannot be fulfilled on {what} {}: {why}", quote(name));
        Self::new(409, "Conflict", message).with_details(of(res, name))
    }

    /// 410 with reason `Expired`: the client has to list again.
    pub fn gone(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 410 of a watch or list from a revision that is no longer kept.
    pub fn too_old(wanted: impl std::fmt::Display, oldest: impl std::fmt::Display) -> Self {
        Self::gone(format!("too old resource version: {wanted} ({oldest})"))
    }

    /// 410 of a list at an exact revision that is compacted.
    pub fn list_too_old() -> Self {
        Self::gone("The resourceVersion for the provided list is too old.")
    }

    /// 410 of a continue token; `next` is a token to go on with at the newest revision.
    pub fn continue_expired(next: Option<String>) -> Self {
        let status = Self::gone(CONTINUE_EXPIRED);
        match next {
            None => status,
            next => status.with_details(Details { continue_token: next, ..Details::default() }),
        }
    }

    /// 413; `limit` in bytes.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit}");
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 415; `accepted` are the media types that can be read.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 422 about an object of `res`.
    pub fn invalid(res: &Resource, name: &str, errors: Vec<FieldError>) -> Self {
        Self::invalid_kind(&res.group, &res.kind, name, errors)
    }

    /// 422 about a body whose kind is not its resource's (`Scale`, `Eviction`, ...).
    pub fn invalid_kind(group: &str, kind: &str, name: &str, errors: Vec<FieldError>) -> Self {
        let dot = if group.is_empty() { "" } else { "." };
        let mut message = format!("{kind}{dot}{group} {} is invalid", quote(name));
        let mut texts: Vec<String> = Vec::new();
        for text in errors.iter().map(FieldError::to_string) {
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        match &texts[..] {
            [] => {}
            [one] => message.push_str(&format!(": {one}")),
            several => message.push_str(&format!(": [{}]", several.join(", "))),
        }
        let details = Details {
            name: name.into(),
            group: group.into(),
            kind: kind.into(),
            causes: errors.iter().map(FieldError::cause).collect(),
            ..Details::default()
        };
        Self::new(422, "Invalid", message).with_details(details)
    }

    /// 422 without field errors: a well-formed body that cannot be worked with (patches).
    pub fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(422, "Invalid", message)
    }

    /// 429 with the seconds to wait.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let details = Details { retry_after_seconds, ..Details::default() };
        Self::new(429, "TooManyRequests", message).with_details(details)
    }

    /// 500.
    pub fn internal(why: impl std::fmt::Display) -> Self {
        let cause = Cause { message: why.to_string(), ..Cause::default() };
        Self::new(500, "InternalError", format!("Internal error occurred: {why}"))
            .with_details(Details { causes: vec![cause], ..Details::default() })
    }

    /// 500 that asks to try again: the operation could not be completed in time.
    pub fn server_timeout(res: &Resource, verb: &str, retry_after_seconds: u32) -> Self {
        let message = format!(
            "The {verb} operation against {} could not be completed at this time, please try again.",
            res.qualified()
        );
        Self::new(500, "ServerTimeout", message).with_details(Details { retry_after_seconds, ..of(res, "") })
    }

    /// 501: a form of the request that this server does not serve.
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(501, "NotImplemented", message)
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 504.
    pub fn timeout(message: impl std::fmt::Display, retry_after_seconds: u32) -> Self {
        let details = Details { retry_after_seconds, ..Details::default() };
        Self::new(504, "Timeout", format!("Timeout: {message}")).with_details(details)
    }

    /// 504 for a resource version that lies in the future.
    pub fn too_new(wanted: impl std::fmt::Display, current: impl std::fmt::Display) -> Self {
        let cause = Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            field: String::new(),
        };
        let details = Details { causes: vec![cause], retry_after_seconds: 1, ..Details::default() };
        let message = format!("Timeout: Too large resource version: {wanted}, current: {current}");
        Self::new(504, "Timeout", message).with_details(details)
    }

    /// A failure of another kind than the constructors know.
    pub fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        let (message, reason) = (message.into(), reason.to_owned());
        Self { message, reason, code, details: None }
    }

    /// The same failure with these details.
    pub fn with_details(self, details: Details) -> Self {
        Self { details: Some(Box::new(details)), ..self }
    }
}

impl Status {
    /// The object as it goes over the wire.
    pub fn to_json(&self) -> Value {
        let mut metadata = Map::new();
        if let Some(token) = self.details.as_ref().and_then(|d| d.continue_token.as_ref()) {
            metadata.insert("continue".into(), json!(token));
        }
        let mut out = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": metadata,
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        });
        if let Some(details) = &self.details {
            out["details"] = json!(details);
        }
        out["code"] = json!(self.code);
        out
    }

    /// The answer to a delete that left nothing behind.
    pub fn success(res: &Resource, name: &str, uid: &str) -> Value {
        let details = Details { uid: uid.into(), ..of(res, name) };
        json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "details": details,
        })
    }
}

/// A request that the authorizer refused, for [`Status::access_denied`]. Empty means not given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Denied<'a> {
    pub user: &'a str,
    pub verb: &'a str,
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub reason: &'a str,
}

fn of(res: &Resource, name: &str) -> Details {
    Details { name: name.into(), group: res.group.to_string(), kind: res.plural.to_string(), ..Details::default() }
}

#[cfg(test)]
mod tests;
