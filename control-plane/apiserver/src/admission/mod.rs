//! Built-in admission: what is filled into an object before it is validated (`mutate`), and what
//! may not be stored (`validate`). Upstream's default plugins in upstream's order, each a module.
//!
//! The plugins read the cached store and change only the object at hand.

mod balancer;
mod certificates;
mod limit_ranger;
mod namespace;
mod node;
mod pod;
mod pod_security;
mod policy;
mod quota;
mod service_account;
mod storage;
pub(crate) mod webhook;

use std::sync::Arc;

use serde_json::{Value, json};
use sluice_api::{
    decode,
    resource::{Resource, api_version},
    schema,
    status::Status,
};

use crate::{
    auth::{refusal, view::View},
    authz::{Authorizer, escalation},
    context::{Admit, Operation, RequestInfo, UserInfo},
    request::Query,
};

/// The chain of built-in plugins.
pub struct Admission {
    view: Arc<dyn View>,
    authorizer: Arc<Authorizer>,
    quota: quota::Quota,
}

impl Admission {
    pub fn new(view: Arc<dyn View>, authorizer: Arc<Authorizer>) -> Self {
        Self { view, authorizer, quota: quota::Quota::default() }
    }

    /// Fills in what the cluster decides. Returns warnings for the client.
    pub async fn mutate(&self, admit: &Admit<'_>, object: &mut Value) -> Result<Vec<String>, Status> {
        let view = &*self.view;
        namespace::check(view, admit)?;
        match (target(admit), admit.operation) {
            (("", "pods", ""), Operation::Create) => {
                limit_ranger::defaults(view, admit, object);
                service_account::mutate(view, admit, object).await?;
                pod::priority(view, admit, object)?;
                pod::tolerations(object);
                pod::runtime_class(view, admit, object)?;
            }
            (("", "pods", ""), Operation::Update) => pod::tolerations(object),
            (("", "nodes", ""), Operation::Create) => node::taint(object),
            (("", "persistentvolumeclaims", ""), Operation::Create) => {
                storage::default_class(view, object);
            }
            (("networking.k8s.io", "ingresses", ""), Operation::Create) => {
                storage::default_ingress_class(view, object);
            }
            (("certificates.k8s.io", "certificatesigningrequests", ""), Operation::Create) => {
                certificates::stamp_requester(admit, object);
            }
            _ => {}
        }
        policy::mutate(view, &self.authorizer, admit, object)?;
        let mutated = webhook::mutate(view, &self.authorizer, admit, object).await?;
        // What webhooks changed is looked at again by the policies that ask for it.
        if mutated.changed {
            policy::mutate_again(view, &self.authorizer, admit, object)?;
        }
        Ok(mutated.warnings)
    }

    /// Asks policies and webhooks about a stream into a pod or a proxied request; its options are
    /// the object they see.
    pub(crate) async fn connect(
        &self,
        info: &RequestInfo,
        user: &UserInfo,
        resource: &Resource,
        query: &Query,
    ) -> Result<(), Status> {
        let Some((group, version, kind)) = resource.subresource(&info.subresource).and_then(|s| s.kind) else {
            return Ok(());
        };
        let mut options = json!({"kind": kind, "apiVersion": api_version(group, version)});
        for flag in ["stdin", "stdout", "stderr", "tty"] {
            if let Some(value) = query.get(flag) {
                options[flag] = json!(matches!(value, "true" | "1"));
            }
        }
        for text in ["container", "path"] {
            if let Some(value) = query.get(text) {
                options[text] = json!(value);
            }
        }
        let command: Vec<&str> = query.all("command").collect();
        if !command.is_empty() {
            options["command"] = json!(command);
        }
        let attributes = info.attributes(user);
        let admit = Admit { attributes, resource, operation: Operation::Connect, old: None, dry_run: false };
        policy::validate(&*self.view, &self.authorizer, &admit, Some(&options))?;
        webhook::validate(&*self.view, &self.authorizer, &admit, Some(&options)).await?;
        Ok(())
    }

    /// Judges the object in its final form; `None` on delete.
    pub async fn validate(&self, admit: &Admit<'_>, object: Option<&Value>) -> Result<Vec<String>, Status> {
        let view = &*self.view;
        namespace::check_delete(admit)?;
        node::restrict(view, admit, object)?;
        let Some(object) = object else {
            let mut warnings = policy::validate(view, &self.authorizer, admit, None)?;
            warnings.extend(webhook::validate(view, &self.authorizer, admit, None).await?);
            return Ok(warnings);
        };
        match (target(admit), admit.operation) {
            (("", "pods", ""), Operation::Create) | (("", "pods", "resize"), Operation::Update) => {
                limit_ranger::check_pod(view, admit, object)?;
            }
            (("", "persistentvolumeclaims", ""), Operation::Create | Operation::Update) => {
                limit_ranger::check_claim(view, admit, object)?;
            }
            (("scheduling.k8s.io", "priorityclasses", ""), _) => {
                pod::check_class(view, admit, object)?;
            }
            (("certificates.k8s.io", "certificatesigningrequests", _), _) => {
                certificates::check(&self.authorizer, admit, object)?;
            }
            (("sluice.dev", "loadbalancerpools", ""), _) => balancer::check_pool(view, admit, object)?,
            (("rbac.authorization.k8s.io", _, ""), _) => {
                escalation::check(&self.authorizer, &admit.attributes, admit.old, object)?;
            }
            _ => {}
        }
        let mut warnings = pod_security::check(view, admit, object)?;
        warnings.extend(policy::validate(view, &self.authorizer, admit, Some(object))?);
        warnings.extend(webhook::validate(view, &self.authorizer, admit, Some(object)).await?);
        self.quota.check(view, admit, object)?;
        Ok(warnings)
    }
}

/// Gives what a webhook or a policy wrote the form of what a client sends: fields in order, no nulls.
fn canonical(admit: &Admit<'_>, object: &mut Value) -> Result<(), Status> {
    let decoded = match (&admit.resource.custom, schema::builtin().get(&admit.resource.schema)) {
        (Some(custom), _) => decode::custom(custom, object.take())?,
        (None, Some(schema)) => decode::strict(schema, object.take())?,
        (None, None) => return Ok(()),
    };
    *object = decoded.0;
    Ok(())
}

fn target<'a>(admit: &Admit<'a>) -> (&'a str, &'a str, &'a str) {
    let a = &admit.attributes;
    (a.group, a.resource, a.subresource)
}

/// `pods "web" is forbidden: <why>`; a name that is still to be generated is shown by its base.
fn forbid(admit: &Admit<'_>, object: Option<&Value>, why: impl AsRef<str>) -> Status {
    let a = &admit.attributes;
    let of = |field: &str| object.and_then(|o| o["metadata"][field].as_str());
    let name = [Some(a.name), of("name"), of("generateName")].into_iter().flatten().find(|n| !n.is_empty());
    refusal::forbid(a.group, a.resource, name.unwrap_or_default(), why.as_ref())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// The items of a list that may be absent. Indexing for writing would leave a null behind.
fn list_mut<'a>(value: &'a mut Value, field: &str) -> std::slice::IterMut<'a, Value> {
    let list = value.get_mut(field).and_then(Value::as_array_mut);
    list.map(Vec::as_mut_slice).unwrap_or_default().iter_mut()
}

/// Every container of a pod's spec, with the list it stands in.
fn containers(spec: &Value) -> impl Iterator<Item = (&'static str, &Value)> {
    ["initContainers", "containers"].into_iter().flat_map(|of| list(&spec[of]).iter().map(move |c| (of, c)))
}

#[cfg(test)]
mod tests;
