//! NamespaceLifecycle: nothing is written into a namespace that is missing, nothing created in one
//! that is going, and the cluster's own namespaces stay.

use serde::Deserialize;
use sluice_api::status::{Cause, Status};

use super::forbid;
use crate::{
    auth::{refusal, view::View},
    context::{Admit, Operation},
    storage::StoredObject,
};

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Creates and updates.
pub(super) fn check(view: &dyn View, admit: &Admit<'_>) -> Result<(), Status> {
    let a = &admit.attributes;
    let is_namespace = a.group.is_empty() && a.resource == "namespaces";
    let review = matches!(a.group, "authorization.k8s.io" | "authentication.k8s.io");
    if a.namespace.is_empty() || is_namespace || review {
        return Ok(());
    }
    let Some(namespace) = view.get("", "namespaces", "", a.namespace) else {
        return Err(refusal::not_found("", "namespaces", a.namespace));
    };
    if admit.operation != Operation::Create || !going(&namespace) {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {} because it is being terminated", a.namespace);
    let mut status = forbid(admit, None, why);
    let details = status.details.get_or_insert_default();
    details.causes.push(Cause {
        reason: "NamespaceTerminating".into(),
        message: format!("namespace {} is being terminated", a.namespace),
        field: "metadata.namespace".into(),
    });
    Err(status)
}

fn going(namespace: &StoredObject) -> bool {
    #[derive(Deserialize)]
    struct Namespace {
        #[serde(default)]
        status: Status,
    }
    #[derive(Default, Deserialize)]
    struct Status {
        #[serde(default)]
        phase: Option<String>,
    }
    let phase = || namespace.parse::<Namespace>().ok()?.status.phase;
    namespace.deleting || phase().is_some_and(|phase| phase == "Terminating")
}

pub(super) fn check_delete(admit: &Admit<'_>) -> Result<(), Status> {
    let a = &admit.attributes;
    let immortal = admit.operation == Operation::Delete
        && a.group.is_empty()
        && a.resource == "namespaces"
        && IMMORTAL.contains(&a.name);
    if immortal {
        return Err(forbid(admit, None, "this namespace may not be deleted"));
    }
    Ok(())
}
