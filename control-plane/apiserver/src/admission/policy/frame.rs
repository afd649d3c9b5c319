//! What expressions see of a write: `object`, `oldObject`, `request`, `params`, `namespaceObject`,
//! `variables`, `authorizer`.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};
use sluice_api::cel::{Budget, Key, Map, Program, Val, limits};

use super::{
    super::{list, text},
    authorizer::Asker,
};
use crate::{
    auth::view::View,
    authz::Authorizer,
    context::{Admit, Operation},
};

/// One write, ready for expressions about it.
pub(in crate::admission) struct Frame<'a> {
    object: &'a Value,
    old: &'a Value,
    request: Value,
    namespace: Value,
    authorizer: Asker,
}

/// `admission.k8s.io/v1 AdmissionRequest` without the objects and the uid.
pub(in crate::admission) fn request(admit: &Admit<'_>) -> Value {
    let (a, row) = (&admit.attributes, admit.resource);
    // What a stream is asked with has a kind of its own.
    let stream = row.subresource(a.subresource).filter(|_| admit.operation == Operation::Connect).and_then(|s| s.kind);
    let kind = match stream {
        Some((group, version, kind)) => json!({"group": group, "version": version, "kind": kind}),
        None => json!({"group": a.group, "version": a.version, "kind": row.kind}),
    };
    let resource = json!({"group": a.group, "version": a.version, "resource": a.resource});
    let options = match admit.operation.as_str() {
        "CREATE" => json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"}),
        "UPDATE" => json!({"kind": "UpdateOptions", "apiVersion": "meta.k8s.io/v1"}),
        "DELETE" => json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"}),
        _ => Value::Null,
    };
    let mut request = json!({"uid": "", "kind": kind, "resource": resource, "requestKind": kind,
        "requestResource": resource, "name": a.name, "namespace": a.namespace,
        "operation": admit.operation.as_str(), "userInfo": a.user, "dryRun": admit.dry_run, "options": options});
    if !a.subresource.is_empty() {
        request["subResource"] = json!(a.subresource);
        request["requestSubResource"] = json!(a.subresource);
    }
    request
}

type Given<'g> = [(&'g str, &'g Value)];

impl<'a> Frame<'a> {
    pub(in crate::admission) fn new(
        view: &dyn View,
        authorizer: &Arc<Authorizer>,
        admit: &Admit<'a>,
        object: Option<&'a Value>,
    ) -> Self {
        let a = &admit.attributes;
        let own = a.group.is_empty() && a.resource == "namespaces";
        let namespace = match a.namespace {
            _ if own => object.or(admit.old).cloned(),
            "" => None,
            name => view.get("", "namespaces", "", name).map(|n| n.value()),
        };
        Self {
            object: object.unwrap_or(&Value::Null),
            old: admit.old.unwrap_or(&Value::Null),
            request: request(admit),
            namespace: namespace.unwrap_or_default(),
            authorizer: Asker::new(Arc::clone(authorizer), a),
        }
    }

    fn variables<'s>(&'s self, given: &Given<'s>) -> Vec<(&'s str, Val<'s>)> {
        let mut all = vec![
            ("object", Val::json(self.object, None)),
            ("oldObject", Val::json(self.old, None)),
            ("request", Val::json(&self.request, None)),
            ("namespaceObject", Val::json(&self.namespace, None)),
            ("authorizer", Val::Foreign(Arc::new(self.authorizer.clone()))),
        ];
        all.push(("params", Val::Null));
        all.extend(given.iter().map(|(name, value)| (*name, Val::json(value, None))));
        all
    }

    /// Adds the policy's own `variables`; one that fails says so when it is used.
    fn with_own<'s>(&'s self, spec: &'s Value, given: &Given<'s>, budget: &Budget) -> Vec<(&'s str, Val<'s>)> {
        let mut all = self.variables(given);
        let mut own: BTreeMap<Key, Val<'s>> = BTreeMap::new();
        for variable in list(&spec["variables"]) {
            all.push(("variables", Val::Map(Map::Made(Arc::new(own.clone())))));
            let value = evaluate(text(variable, "expression"), &all, budget);
            all.pop();
            own.insert(Key::Text(text(variable, "name").into()), value.unwrap_or_else(|why| Val::Failed(why.into())));
        }
        all.push(("variables", Val::Map(Map::Made(Arc::new(own)))));
        all
    }

    /// Whether all match conditions hold. One that does not hold outweighs those that fail.
    pub(in crate::admission) fn conditions(&self, conditions: &Value, given: &Given<'_>) -> Result<bool, String> {
        let budget = Budget::new(limits::OBJECT_COST / 4);
        let variables = self.variables(given);
        let mut failed = None;
        for condition in list(conditions) {
            match evaluate(text(condition, "expression"), &variables, &budget) {
                Ok(Val::Bool(true)) => {}
                Ok(_) => return Ok(false),
                Err(why) => failed = failed.or(Some(why)),
            }
        }
        failed.map_or(Ok(true), Err)
    }

    /// What the policy's validations find: message and reason of each that does not hold, or why it
    /// cannot be told.
    pub(super) fn validations(&self, spec: &Value, given: &Given<'_>) -> Vec<Result<(String, String), String>> {
        let budget = Budget::new(limits::OBJECT_COST);
        let variables = self.with_own(spec, given, &budget);
        let mut out = Vec::new();
        for validation in list(&spec["validations"]) {
            let expression = text(validation, "expression");
            match evaluate(expression, &variables, &budget) {
                Ok(Val::Bool(true)) => {}
                Ok(_) => {
                    let computed = match text(validation, "messageExpression") {
                        "" => None,
                        source => evaluate(source, &variables, &budget).ok(),
                    };
                    let message = match (computed, text(validation, "message")) {
                        (Some(Val::Text(text)), _) if !text.trim().is_empty() && !text.contains('\n') => {
                            text.trim().to_owned()
                        }
                        (_, "") => format!("failed expression: {}", expression.trim()),
                        (_, message) => message.trim().to_owned(),
                    };
                    out.push(Ok((message, text(validation, "reason").to_owned())));
                }
                Err(why) => out.push(Err(format!("expression '{expression}' resulted in error: {why}"))),
            }
        }
        out
    }

    /// The value of one expression of a policy.
    pub(super) fn value(&self, spec: &Value, expression: &str, given: &Given<'_>) -> Result<Value, String> {
        let budget = Budget::new(limits::OBJECT_COST);
        let variables = self.with_own(spec, given, &budget);
        let made = evaluate(expression, &variables, &budget)
            .map_err(|why| format!("expression '{expression}' resulted in error: {why}"))?;
        made.to_json().ok_or_else(|| format!("expression '{expression}' does not make an object"))
    }
}

fn evaluate<'s>(source: &str, variables: &[(&str, Val<'s>)], budget: &Budget) -> Result<Val<'s>, String> {
    let program = Program::parse(source).map_err(|e| format!("compilation failed: {e}"))?;
    program.eval(variables, budget).map_err(|e| e.to_string())
}
