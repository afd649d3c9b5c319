//! `serviceaccounts/token`: TokenRequest, upstream's `registry/core/serviceaccount/storage/token.go`.

use serde::Deserialize;
use serde_json::{Value, json};
use sluice_api::status::{FieldError, Status};

use super::Connect;
use crate::{
    auth::{
        refusal,
        service_account::{Bound, Claims, Reference},
    },
    authz::node,
    context::{ReviewRequest, UserInfo},
    limits,
    storage::StoredObject,
};

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    audiences: Option<Vec<String>>,
    expiration_seconds: Option<i64>,
    bound_object_ref: Option<BoundRef>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct BoundRef {
    kind: String,
    api_version: String,
    name: String,
    uid: String,
}

impl Connect {
    pub(super) fn token_request(&self, request: ReviewRequest<'_>) -> Result<Value, Status> {
        let (namespace, name) = (&request.info.namespace, &request.info.name);
        let mut object = request.object;
        let spec = Spec::deserialize(&object["spec"]).map_err(|e| Status::bad_request(e.to_string()))?;
        let tokens = self.authenticator.service_account_tokens();
        let seconds = spec.expiration_seconds.unwrap_or(limits::TOKEN_DEFAULT_SECONDS);
        check_duration(seconds)?;
        let audiences = spec.audiences.filter(|a| !a.is_empty()).unwrap_or_else(|| vec![tokens.issuer().to_owned()]);
        let account = self
            .view
            .get("", "serviceaccounts", namespace, name)
            .ok_or_else(|| refusal::not_found("", "serviceaccounts", name))?;
        let mut bound = Bound {
            namespace: namespace.clone(),
            node: None,
            pod: None,
            secret: None,
            serviceaccount: Reference { name: name.clone(), uid: account.uid.to_string() },
            warnafter: None,
        };
        if let Some(reference) = &spec.bound_object_ref {
            self.bind(&mut bound, reference)?;
        }
        self.restrict_node(request.user, &bound, spec.bound_object_ref.as_ref())?;

        let now = jiff::Timestamp::now().as_second();
        let mut claims = Claims {
            exp: now + seconds,
            iat: now,
            nbf: now,
            iss: tokens.issuer().to_owned(),
            jti: uuid(),
            sub: format!("system:serviceaccount:{namespace}:{name}"),
            aud: audiences,
            bound,
        };
        let promised = claims.exp;
        // Clients that never read their token again keep working for a year (upstream's
        // service-account-extend-token-expiration); the pod's volume renews it in time.
        if seconds == limits::TOKEN_PROJECTED_SECONDS && claims.bound.pod.is_some() && claims.aud == [tokens.issuer()] {
            claims.bound.warnafter = Some(promised);
            claims.exp = now + limits::TOKEN_EXTENDED_SECONDS;
        }
        let token = tokens.sign(&claims).map_err(Status::internal)?;
        let expires = jiff::Timestamp::from_second(promised).map_err(Status::internal)?;
        object["metadata"]["name"] = json!(name);
        object["metadata"]["namespace"] = json!(namespace);
        object["metadata"]["creationTimestamp"] =
            json!(jiff::Timestamp::from_second(now).map_err(Status::internal)?.to_string());
        object["spec"]["audiences"] = json!(claims.aud);
        object["spec"]["expirationSeconds"] = json!(seconds);
        object["status"] = json!({"token": token, "expirationTimestamp": expires.to_string()});
        Ok(object)
    }

    fn bind(&self, bound: &mut Bound, reference: &BoundRef) -> Result<(), Status> {
        let find = |plural: &str, namespace: &str| {
            let stored = self
                .view
                .get("", plural, namespace, &reference.name)
                .ok_or_else(|| refusal::not_found("", plural, &reference.name))?;
            if !reference.uid.is_empty() && *reference.uid != *stored.uid {
                return Err(Status::new(
                    409,
                    "Conflict",
                    format!(
                        "Operation cannot be fulfilled on {plural} {:?}: the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
                        reference.name, reference.uid
                    ),
                ));
            }
            Ok(stored)
        };
        match (reference.api_version.as_str(), reference.kind.as_str()) {
            ("v1", "Pod") => {
                let pod = find("pods", &bound.namespace)?;
                let value = pod.value();
                if value["spec"]["serviceAccountName"] != bound.serviceaccount.name.as_str() {
                    return Err(Status::bad_request(format!(
                        "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                        bound.serviceaccount.name
                    )));
                }
                bound.node = value["spec"]["nodeName"].as_str().map(|name| Reference {
                    name: name.to_owned(),
                    uid: self.view.get("", "nodes", "", name).map_or_else(String::new, |n| n.uid.to_string()),
                });
                bound.pod = Some(named(&pod));
            }
            ("v1", "Secret") => bound.secret = Some(named(&*find("secrets", &bound.namespace)?)),
            ("v1", "Node") => bound.node = Some(named(&*find("nodes", "")?)),
            (version, kind) => {
                return Err(Status::bad_request(format!("cannot bind token to object of type {version}, Kind={kind}")));
            }
        }
        Ok(())
    }

    /// A node asks only for tokens of pods that it runs (upstream's NodeRestriction plugin).
    fn restrict_node(&self, user: &UserInfo, bound: &Bound, reference: Option<&BoundRef>) -> Result<(), Status> {
        let Some(own) = node::node_name(user) else {
            return Ok(());
        };
        let forbid = |why: &str| {
            let account = &bound.serviceaccount.name;
            Err(refusal::forbid("", "serviceaccounts", account, why))
        };
        if bound.pod.is_none() {
            return forbid("node requested token not bound to a pod");
        }
        if reference.is_none_or(|r| r.uid.is_empty()) {
            return forbid("node requested token with a pod binding without a uid");
        }
        if bound.node.as_ref().is_none_or(|n| n.name != own) {
            return forbid("node requested token bound to a pod scheduled on a different node");
        }
        Ok(())
    }
}

fn named(object: &StoredObject) -> Reference {
    Reference { name: object.name.to_string(), uid: object.uid.to_string() }
}

fn check_duration(seconds: i64) -> Result<(), Status> {
    let rule = if seconds < limits::TOKEN_LEAST_SECONDS {
        "may not specify a duration less than 10 minutes"
    } else if seconds > limits::TOKEN_MOST_SECONDS {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(());
    };
    let error = FieldError::invalid("spec.expirationSeconds", seconds, rule);
    Err(Status::invalid_kind("authentication.k8s.io", "TokenRequest", "", vec![error]))
}

/// A random version 4 UUID.
fn uuid() -> String {
    let n: u128 = rand::random();
    let n = n & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{n:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
