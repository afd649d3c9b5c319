//! ControllerRevisions: the history of a DaemonSet's or StatefulSet's template, for `kubectl rollout history` and `undo`.

use std::sync::Arc;

use kube::Client;
use serde_json::{Value, json};

use crate::deployment::hash;
use crate::informer::{Kind, Store};
use crate::object::Object;
use crate::rest;
use crate::types::{ControllerRevision, Template};

/// Label that tells revisions and their pods apart.
pub(crate) const HASH_LABEL: &str = "controller-revision-hash";

/// The revision of the owner's current template and all older ones, newest last.
pub(crate) struct History {
    /// Hash of the current one: the value of its pods' revision label.
    pub(crate) hash: String,
    old: Vec<Arc<ControllerRevision>>,
}

/// Makes sure that the current template has the newest revision, named `<owner>-<hash>`.
///
/// # Errors
/// The API's answer to a write.
pub(crate) async fn current<O: Kind>(
    client: &Client,
    store: &Store<ControllerRevision>,
    owner: &O,
    template: &Template,
) -> kube::Result<History> {
    let mut data = template.value();
    let hash = hash::template_hash(&data, None);
    data["$patch"] = json!("replace");
    let data = json!({"spec": {"template": data}});
    let mut all = store.indexed(&format!("owner/{}", owner.uid()));
    all.sort_by_key(|revision| revision.revision);
    let newest = all.last().map_or(0, |revision| revision.revision);
    let same = |revision: &Arc<ControllerRevision>| hash::same_template(&revision.data.value(), &data);
    match all.iter().position(same) {
        None => create(client, owner, &data, &hash, newest + 1).await?,
        Some(at) => {
            let known = all.remove(at);
            if known.revision < newest {
                // An old template is the current one again.
                rest::patch(client, &*known, json!({"revision": newest + 1})).await?;
            }
            let hash = known.labels().get(HASH_LABEL).cloned().unwrap_or(hash);
            return Ok(History { hash, old: all });
        }
    }
    Ok(History { hash, old: all })
}

async fn create<O: Kind>(client: &Client, owner: &O, data: &Value, hash: &str, revision: i64) -> kube::Result<()> {
    let mut labels: Value = data["spec"]["template"]["metadata"]["labels"].clone();
    labels[HASH_LABEL] = json!(hash);
    let body = json!({
        "metadata": {
            "name": format!("{}-{hash}", owner.name()), "namespace": owner.ns(), "labels": labels,
            "ownerReferences": [owner.as_controller()],
        },
        "data": data, "revision": revision,
    });
    match rest::create::<ControllerRevision>(client, owner.ns(), body).await {
        // Ours, a moment ago: the informer has not shown it yet.
        Err(error) if !rest::is(&error, 409) => Err(error),
        _ => Ok(()),
    }
}

impl History {
    /// Deletes the oldest revisions beyond `limit` that no pod is of.
    ///
    /// # Errors
    /// The API's answer to a write.
    pub(crate) async fn trim(&self, client: &Client, limit: i32, live: &[String]) -> kube::Result<()> {
        let unused = |r: &&Arc<ControllerRevision>| r.labels().get(HASH_LABEL).is_none_or(|hash| !live.contains(hash));
        let unused: Vec<_> = self.old.iter().filter(unused).collect();
        let surplus = unused.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        for revision in unused.into_iter().take(surplus) {
            rest::delete(client, &**revision).await?;
        }
        Ok(())
    }
}
