//! Namespace deletion: deletes everything in a terminating namespace, says what holds it up, and removes the `kubernetes`
//! finalizer when it is empty.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use kube::Resource;
use kube::api::{DeleteParams, ListParams, PostParams, PropagationPolicy};
use kube::core::{DynamicObject, ObjectList, PartialObjectMeta};
use serde_json::{Value, json};

use crate::context::Context;
use crate::discovery::{self, Served};
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::Store;
use crate::object::Object;
use crate::queue::{Key, Queue};
use crate::rest;
use crate::types::{Namespace, NodeCondition};

const FINALIZER: &str = "kubernetes";
const PODS: &str = "pods.";

/// What is left of one resource.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rest {
    resource: String,
    count: usize,
    /// Longest grace period of what is left, in seconds.
    grace: i64,
    finalizers: Vec<String>,
}

struct Controller {
    client: Client,
    context: Context,
    namespaces: Arc<Store<Namespace>>,
}

/// Starts the controller; the queue it returns takes namespaces whose content changed.
pub(crate) fn start(context: &Context, all: &Informers) -> Queue<Key> {
    let mut wiring = Wiring::new();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        context: context.clone(),
        namespaces: wiring.drives(&all.namespaces),
    });
    let queue = wiring.queue();
    wiring.run(context, "namespace-controller", controller);
    queue
}

impl Reconcile for Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(namespace) = self.namespaces.get(key).filter(|n| n.deleting()) else { return Ok(None) };
        if !namespace.spec.finalizers.iter().any(|f| f == FINALIZER) {
            return Ok(None);
        }
        let mut failures = Vec::new();
        let mut left = Vec::new();
        // Read afresh: a custom resource may have been defined a moment ago.
        let all = discovery::read(&self.client).await?;
        let mut served: Vec<&Served> = all.served.values().filter(|served| served.namespaced).collect();
        // Pods go first: what they need (Secrets, NetworkPolicies) outlives them (KEP-5080).
        served.sort_by_key(|served| served.id() != PODS);
        for served in served {
            if served.id() != PODS && left.iter().any(|rest: &Rest| rest.resource == PODS) {
                break;
            }
            match self.empty(&key.name, served).await {
                Ok(rest) => left.extend(rest),
                Err(error) => failures.push(format!("{}: {}", served.id(), rest::words(&error))),
            }
        }
        let unknown = undiscovered(&all.stale);
        let now = self.context.now();
        let conditions = conditions(&namespace.status.conditions, unknown.as_deref(), &failures, &left, now);
        if !same(&namespace.status.conditions, &conditions) {
            let status = json!({"conditions": conditions, "phase": "Terminating"});
            rest::patch_status(&self.client, &*namespace, status).await?;
        }
        failures.extend(unknown);
        if !failures.is_empty() {
            anyhow::bail!("cannot empty namespace {}: {}", key.name, failures.join("; "));
        }
        if left.is_empty() {
            self.finalize(&namespace).await?;
            return Ok(None);
        }
        // The garbage collector's watches wake us when something goes; this is for what they do not see.
        let grace = left.iter().map(|rest| rest.grace).max().unwrap_or(0);
        Ok(Some(Duration::from_secs(grace.clamp(4, 14).unsigned_abs() / 2 + 1)))
    }
}

impl Controller {
    /// Deletes all objects of a resource and says what is left.
    async fn empty(&self, namespace: &str, served: &Served) -> kube::Result<Option<Rest>> {
        let url = DynamicObject::url_path(&served.resource, Some(namespace));
        let all: ObjectList<PartialObjectMeta<DynamicObject>> = self.list(&url).await?;
        if all.items.is_empty() {
            return Ok(None);
        }
        let policy = DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..Default::default() };
        if all.items.iter().any(|o| o.metadata.deletion_timestamp.is_none()) {
            if served.deletes_collections {
                let request = kube::core::Request::new(&url)
                    .delete_collection(&policy, &ListParams::default())
                    .map_err(kube::Error::BuildRequest)?;
                self.client.request::<Value>(request).await?;
            } else {
                for object in &all.items {
                    let request = kube::core::Request::new(&url)
                        .delete(object.metadata.name.as_deref().unwrap_or_default(), &policy)
                        .map_err(kube::Error::BuildRequest)?;
                    match self.client.request::<Value>(request).await {
                        Err(error) if !rest::is(&error, 404) => return Err(error),
                        _ => {}
                    }
                }
            }
        }
        let left: ObjectList<PartialObjectMeta<DynamicObject>> = self.list(&url).await?;
        Ok(rest_of(served, &left.items))
    }

    async fn list(&self, url: &str) -> kube::Result<ObjectList<PartialObjectMeta<DynamicObject>>> {
        let request =
            kube::core::Request::new(url).list_metadata(&ListParams::default()).map_err(kube::Error::BuildRequest)?;
        match self.client.request(request).await {
            // A resource that is not there (any more) has no objects.
            Err(error) if rest::is(&error, 404) || rest::is(&error, 405) => {
                Ok(ObjectList { types: Default::default(), metadata: Default::default(), items: Vec::new() })
            }
            other => other,
        }
    }

    async fn finalize(&self, namespace: &Namespace) -> anyhow::Result<()> {
        let finalizers: Vec<_> = namespace.spec.finalizers.iter().filter(|f| *f != FINALIZER).collect();
        // Only the metadata that identifies it is needed: the subresource changes the finalizers alone.
        let body = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": namespace.name(), "uid": namespace.uid(), "resourceVersion": namespace.meta_version()},
            "spec": {"finalizers": finalizers},
        });
        let request = kube::core::Request::new(Namespace::url_path(&(), None))
            .replace_subresource("finalize", namespace.name(), &PostParams::default(), body.to_string().into_bytes())
            .map_err(kube::Error::BuildRequest)?;
        match self.client.request::<Value>(request).await {
            Err(error) if !rest::is(&error, 404) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn rest_of(served: &Served, items: &[PartialObjectMeta<DynamicObject>]) -> Option<Rest> {
    if items.is_empty() {
        return None;
    }
    let grace = items.iter().filter_map(|o| o.metadata.deletion_grace_period_seconds).max().unwrap_or(0);
    let mut finalizers: Vec<String> =
        items.iter().flat_map(|o| o.metadata.finalizers.clone().unwrap_or_default()).collect();
    finalizers.sort();
    Some(Rest { resource: served.id(), count: items.len(), grace, finalizers })
}

/// What upstream says of groups whose servers do not answer.
fn undiscovered(stale: &[String]) -> Option<String> {
    let each: Vec<String> = stale.iter().map(|of| format!("{of}: stale GroupVersion discovery: {of}")).collect();
    (!each.is_empty()).then(|| {
        let (count, each) = (each.len(), each.join(", "));
        format!(
            "Discovery failed for some groups, {count} failing: unable to retrieve the complete list of server APIs: {each}"
        )
    })
}

/// The conditions upstream sets while a namespace is emptied.
fn conditions(
    old: &[NodeCondition],
    unknown: Option<&str>,
    failures: &[String],
    left: &[Rest],
    now: Timestamp,
) -> Value {
    let mut holding: Vec<(String, usize)> = Vec::new();
    for finalizer in left.iter().flat_map(|rest| &rest.finalizers) {
        match holding.iter_mut().find(|(name, _)| name == finalizer) {
            Some((_, count)) => *count += 1,
            None => holding.push((finalizer.clone(), 1)),
        }
    }
    let remaining: Vec<_> = left.iter().map(|r| format!("{} has {} resource instances", r.resource, r.count)).collect();
    let held: Vec<_> = holding.iter().map(|(name, n)| format!("{name} in {n} resource instances")).collect();
    let rows = [
        match unknown {
            Some(message) => ("NamespaceDeletionDiscoveryFailure", true, "DiscoveryFailed", message.to_owned()),
            None => {
                let message = "All resources successfully discovered".to_owned();
                ("NamespaceDeletionDiscoveryFailure", false, "ResourcesDiscovered", message)
            }
        },
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed".to_owned(),
        ),
        if failures.is_empty() {
            let message = "All content successfully deleted, may be waiting on finalization";
            ("NamespaceDeletionContentFailure", false, "ContentDeleted", message.to_owned())
        } else {
            let message =
                format!("Failed to delete all resource types, {} remaining: {}", failures.len(), failures.join(", "));
            ("NamespaceDeletionContentFailure", true, "ContentDeletionFailed", message)
        },
        if remaining.is_empty() {
            ("NamespaceContentRemaining", false, "ContentRemoved", "All content successfully removed".to_owned())
        } else {
            (
                "NamespaceContentRemaining",
                true,
                "SomeResourcesRemain",
                format!("Some resources are remaining: {}", remaining.join(", ")),
            )
        },
        if held.is_empty() {
            (
                "NamespaceFinalizersRemaining",
                false,
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished".to_owned(),
            )
        } else {
            let message = format!("Some content in the namespace has finalizers remaining: {}", held.join(", "));
            ("NamespaceFinalizersRemaining", true, "SomeFinalizersRemain", message)
        },
    ];
    let rows = rows.map(|(kind, holds, reason, message)| {
        let status = if holds { "True" } else { "False" };
        let before = old.iter().find(|c| c.kind == kind && c.status == status);
        let since = before.and_then(|c| c.last_transition_time.as_ref()).map_or(now, |t| t.0);
        json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": format!("{since:.0}")})
    });
    json!(rows)
}

fn same(old: &[NodeCondition], new: &Value) -> bool {
    let rows = new.as_array().map(Vec::as_slice).unwrap_or_default();
    rows.len() == old.len()
        && rows.iter().all(|row| {
            old.iter().any(|c| row["type"] == c.kind && row["status"] == c.status && row["message"] == c.message)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_holds_it_up() {
        let left = [
            Rest { resource: "pods.".into(), count: 2, grace: 30, finalizers: vec![] },
            Rest {
                resource: "widgets.example.com".into(),
                count: 1,
                grace: 0,
                finalizers: vec!["example.com/x".into()],
            },
        ];
        let got = conditions(&[], None, &[], &left, Timestamp::UNIX_EPOCH);
        assert_eq!(
            got[3]["message"],
            "Some resources are remaining: pods. has 2 resource instances, widgets.example.com has 1 resource instances"
        );
        assert_eq!(
            got[4]["message"],
            "Some content in the namespace has finalizers remaining: example.com/x in 1 resource instances"
        );
        assert_eq!((&got[2]["status"], &got[4]["status"]), (&json!("False"), &json!("True")));
        let unknown = undiscovered(&["a/v1".into()]);
        let failed = conditions(&[], unknown.as_deref(), &["a: no".into()], &[], Timestamp::UNIX_EPOCH);
        assert_eq!((&failed[0]["status"], &failed[0]["reason"]), (&json!("True"), &json!("DiscoveryFailed")));
        assert_eq!(
            failed[0]["message"],
            "Discovery failed for some groups, 1 failing: unable to retrieve the complete list of server APIs: a/v1: stale \
             GroupVersion discovery: a/v1"
        );
        assert_eq!(failed[2]["reason"], "ContentDeletionFailed");
        assert_eq!(failed[3]["reason"], "ContentRemoved");
    }
}
