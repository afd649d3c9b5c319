//! ControllerRevisions: the history of a DaemonSet's or StatefulSet's template, for `kubectl rollout history` and `undo`.

use std::sync::Arc;

use kube::Client;
use serde_json::{Value, json};

use crate::deployment::hash;
use crate::informer::{Kind, Store};
use crate::object::Object;
use crate::rest;
use crate::types::{ControllerRevision, Template};

/// Label that tells revisions' pods apart, and a DaemonSet's revisions themselves.
pub(crate) const HASH_LABEL: &str = "controller-revision-hash";
/// The same on a StatefulSet's revisions.
pub(crate) const STATEFUL_HASH_LABEL: &str = "controller.kubernetes.io/hash";

/// The revision of the owner's current template and all others, newest last.
pub(crate) struct History {
    /// Hash of the current one.
    pub(crate) hash: String,
    others: Vec<Arc<ControllerRevision>>,
}

/// Makes sure that the current template has the newest revision, named `<owner>-<hash>`. `label` carries the hash on it.
///
/// # Errors
/// The API's answer to a write.
pub(crate) async fn current<O: Kind>(
    client: &Client,
    store: &Store<ControllerRevision>,
    owner: &O,
    template: &Template,
    label: &str,
) -> kube::Result<History> {
    let mut data = template.value();
    let hash = hash::template_hash(&data, None);
    data["$patch"] = json!("replace");
    let data = json!({"spec": {"template": data}});
    let mut all = store.indexed(&format!("owner/{}", owner.uid()));
    all.sort_by(|a, b| (a.revision, a.name()).cmp(&(b.revision, b.name())));
    let newest = all.last().map_or(0, |revision| revision.revision);
    // Of several with the same template the newest counts.
    let same = all.iter().rposition(|revision| hash::same_template(&revision.data.value(), &data));
    let Some(known) = same.map(|at| all.remove(at)) else {
        create(client, owner, &data, &hash, label, newest + 1).await?;
        return Ok(History { hash, others: all });
    };
    if known.revision < newest {
        // An old template is the current one again.
        rest::patch(client, &*known, json!({"revision": newest + 1})).await?;
    }
    let prefix = format!("{}-", owner.name());
    let named = known.labels().get(label).map(String::as_str).or_else(|| known.name().strip_prefix(&prefix));
    Ok(History { hash: named.unwrap_or(&hash).to_owned(), others: all })
}

async fn create<O: Kind>(
    client: &Client,
    owner: &O,
    data: &Value,
    hash: &str,
    label: &str,
    revision: i64,
) -> kube::Result<()> {
    let mut labels: Value = data["spec"]["template"]["metadata"]["labels"].clone();
    labels[label] = json!(hash);
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
    /// Deletes the oldest revisions beyond `limit` whose hash (or name) is not among the `live` ones.
    ///
    /// # Errors
    /// The API's answer to a write.
    pub(crate) async fn trim(&self, client: &Client, limit: i32, live: &[String]) -> kube::Result<()> {
        let lives = |r: &Arc<ControllerRevision>| {
            let hash = r.labels().get(HASH_LABEL).map_or(r.name(), String::as_str);
            live.iter().any(|known| known == hash || known == r.name())
        };
        let unused: Vec<_> = self.others.iter().filter(|r| !lives(r)).collect();
        let surplus = unused.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        for revision in unused.into_iter().take(surplus) {
            rest::delete(client, &**revision).await?;
        }
        Ok(())
    }
}
