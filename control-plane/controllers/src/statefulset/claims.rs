//! A StatefulSet's volume claims: their names and bodies, and who owns them under its retention policy (KEP-1847). Pure.

use serde_json::{Value, json};

use super::plan;
use crate::object::Object;
use crate::types::{PersistentVolumeClaim, Pod, StatefulSet};

/// The claims of a pod.
pub(super) fn bodies(set: &StatefulSet, number: i32) -> Vec<Value> {
    let pod = format!("{}-{number}", set.name());
    let owners = (deletes(set, |r| &r.when_deleted)).then(|| json!([reference(set)]));
    let body = |template: &Value| {
        let mut labels = json!(set.spec.selector.match_labels.clone().unwrap_or_default());
        for (key, value) in template["metadata"]["labels"].as_object().into_iter().flatten() {
            labels[key] = value.clone();
        }
        let mut metadata = json!({"name": name(template, &pod), "namespace": set.ns(), "labels": labels,
            "annotations": template["metadata"]["annotations"]});
        if let Some(owners) = &owners {
            metadata["ownerReferences"] = owners.clone();
        }
        json!({"metadata": metadata, "spec": template["spec"]})
    };
    set.spec.volume_claim_templates.iter().map(body).collect()
}

/// The names of a pod's claims.
pub(super) fn names(set: &StatefulSet, pod: &str) -> Vec<String> {
    set.spec.volume_claim_templates.iter().map(|template| name(template, pod)).collect()
}

/// The name of a claim made from a template for a pod.
pub(super) fn name(template: &Value, pod: &str) -> String {
    format!("{}-{pod}", template["metadata"]["name"].as_str().unwrap_or_default())
}

/// The owners a pod's claim should have, if they differ from those it has. Only those this controller sets are touched:
/// the StatefulSet, and a pod that is scaled away.
pub(super) fn owners(set: &StatefulSet, pod: &Pod, claim: &PersistentVolumeClaim) -> Option<Vec<Value>> {
    let scaled_away = plan::ordinal(set, pod).is_none_or(|number| !plan::wanted(set).contains(&number));
    let by_pod = scaled_away && deletes(set, |r| &r.when_scaled);
    let by_set = deletes(set, |r| &r.when_deleted) && !by_pod;
    let old: Vec<Value> = claim.metadata.owner_references.iter().flatten().map(|owner| json!(owner)).collect();
    let has = |uid: &str| old.iter().any(|owner| owner["uid"] == uid);
    if (has(set.uid()), has(pod.uid())) == (by_set, by_pod) {
        return None;
    }
    let others = old.iter().filter(|owner| owner["uid"] != set.uid() && owner["uid"] != pod.uid()).cloned();
    let ours = by_set.then(|| reference(set)).into_iter().chain(by_pod.then(|| reference(pod)));
    Some(others.chain(ours).collect())
}

fn deletes(set: &StatefulSet, when: fn(&crate::types::Retention) -> &Option<String>) -> bool {
    when(&set.spec.persistent_volume_claim_retention_policy).as_deref() == Some("Delete")
}

fn reference<O: Object>(owner: &O) -> Value {
    let (version, kind) = (O::api_version(&()), O::kind(&()));
    json!({"apiVersion": version, "kind": kind, "name": owner.name(), "uid": owner.uid()})
}
