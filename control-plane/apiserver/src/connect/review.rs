//! Reviews: who a token is, and what a user may do. Objects in, the same with a status out.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};
use sluice_api::status::Status;

use super::Connect;
use crate::{
    authz::Rule,
    context::{Attributes, Decision, ReviewRequest, UserInfo},
};

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct AccessSpec {
    resource_attributes: Option<ResourceAttributes>,
    non_resource_attributes: Option<NonResourceAttributes>,
    user: String,
    groups: Option<Vec<String>>,
    extra: Option<BTreeMap<String, Vec<String>>>,
    uid: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ResourceAttributes {
    namespace: String,
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NonResourceAttributes {
    path: String,
    verb: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TokenSpec {
    token: String,
    audiences: Option<Vec<String>>,
}

impl Connect {
    pub(super) fn token_review(&self, mut object: Value) -> Value {
        let spec = TokenSpec::deserialize(&object["spec"]).unwrap_or_default();
        let audiences = spec.audiences.unwrap_or_default();
        object["status"] = match self.authenticator.authenticate_token(&spec.token, &audiences) {
            Ok((user, shared)) => {
                json!({"authenticated": true, "user": user, "audiences": shared})
            }
            Err(why) => json!({"user": {}, "error": why}),
        };
        object
    }

    pub(super) fn access_review(&self, request: ReviewRequest<'_>) -> Result<Value, Status> {
        let mut object = request.object;
        let spec = AccessSpec::deserialize(&object["spec"]).map_err(|e| Status::bad_request(e.to_string()))?;
        let own = request.info.resource == "selfsubjectaccessreviews";
        let user = if own {
            request.user.clone()
        } else {
            UserInfo {
                username: spec.user,
                uid: spec.uid,
                groups: spec.groups.unwrap_or_default(),
                extra: spec.extra.unwrap_or_default(),
            }
        };
        if !own && user.username.is_empty() && user.groups.is_empty() {
            return Err(invalid(
                request.resource,
                "spec.user: Invalid value: \"\": at least one of user or group must be specified",
            ));
        }
        let (resource, path) = (spec.resource_attributes, spec.non_resource_attributes);
        let local = request.info.resource == "localsubjectaccessreviews";
        if local && resource.as_ref().is_none_or(|r| r.namespace != request.info.namespace) {
            return Err(invalid(
                request.resource,
                "spec.resourceAttributes.namespace: Invalid value: must match metadata.namespace",
            ));
        }
        let attributes = match (&resource, &path) {
            (Some(r), None) => Attributes {
                user: &user,
                verb: &r.verb,
                group: &r.group,
                version: &r.version,
                resource: &r.resource,
                subresource: &r.subresource,
                namespace: &r.namespace,
                name: &r.name,
                path: "",
                is_resource: true,
            },
            (None, Some(p)) => Attributes {
                user: &user,
                verb: &p.verb,
                group: "",
                version: "",
                resource: "",
                subresource: "",
                namespace: "",
                name: "",
                path: &p.path,
                is_resource: false,
            },
            _ => {
                return Err(invalid(
                    request.resource,
                    "spec.resourceAttributes: Invalid value: exactly one of nonResourceAttributes or resourceAttributes must be specified",
                ));
            }
        };
        object["status"] = match self.authorizer.authorize(&attributes) {
            Decision::Allow => json!({"allowed": true}),
            Decision::Deny(reason) if reason.is_empty() => json!({"allowed": false}),
            Decision::Deny(reason) => json!({"allowed": false, "reason": reason}),
        };
        Ok(object)
    }

    pub(super) fn rules_review(&self, request: ReviewRequest<'_>) -> Result<Value, Status> {
        let mut object = request.object;
        let namespace = object["spec"]["namespace"].as_str().unwrap_or_default();
        if namespace.is_empty() {
            return Err(Status::bad_request("no namespace on request"));
        }
        let rules = self.authorizer.rules_for(request.user, namespace);
        let (paths, resources): (Vec<Rule>, Vec<Rule>) =
            rules.into_iter().partition(|rule| !rule.non_resource_urls.is_empty());
        object["status"] = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false});
        Ok(object)
    }
}

/// Who the server takes the caller for.
pub(super) fn self_subject(request: ReviewRequest<'_>) -> Value {
    let mut object = request.object;
    object["status"] = json!({"userInfo": request.user});
    object
}

fn invalid(resource: &sluice_api::resource::Resource, why: &str) -> Status {
    Status::new(422, "Invalid", format!("{} \"\" is invalid: {why}", resource.qualified_kind()))
}
