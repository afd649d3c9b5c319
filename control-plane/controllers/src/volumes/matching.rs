//! Which volume a claim gets, and a volume's phase. Pure.

use std::sync::Arc;

use kube::core::{Selector, SelectorExt};
use sluice_api::quantity::Quantity;

use crate::object::Object;
use crate::types::{PersistentVolume, PersistentVolumeClaim};

/// The volume reserved for the claim, or else the smallest that will do.
pub(super) fn best(claim: &PersistentVolumeClaim, all: Vec<Arc<PersistentVolume>>) -> Option<Arc<PersistentVolume>> {
    let selector = claim.spec.selector.clone().map(Selector::try_from).transpose().ok()?;
    let wanted = Quantity::parse(claim.spec.resources.requests.get("storage").map_or("0", String::as_str))?;
    let size = |volume: &PersistentVolume| {
        Quantity::parse(volume.spec.capacity.get("storage").map_or("0", String::as_str)).unwrap_or(Quantity::of(0))
    };
    let class = |name: &Option<String>| name.clone().unwrap_or_default();
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".into());
    let fits = |volume: &&Arc<PersistentVolume>| {
        let spec = &volume.spec;
        !volume.deleting()
            && free_for(volume, claim)
            && size(volume) >= wanted
            && class(&spec.storage_class_name) == class(&claim.spec.storage_class_name)
            && mode(&spec.volume_mode) == mode(&claim.spec.volume_mode)
            && claim.spec.access_modes.iter().all(|wanted| spec.access_modes.contains(wanted))
            && selector.as_ref().is_none_or(|s| s.matches(volume.labels()))
    };
    let order = |volume: &&Arc<PersistentVolume>| {
        (volume.spec.claim_ref.is_none(), size(volume).value(), volume.name().to_owned())
    };
    all.iter().filter(fits).min_by_key(order).cloned()
}

/// Nobody else has the volume.
pub(super) fn free_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    volume.spec.claim_ref.as_ref().is_none_or(|reference| {
        (reference.namespace.as_str(), reference.name.as_str()) == (claim.ns(), claim.name())
            && (reference.uid.is_empty() || reference.uid == claim.uid())
    })
}

/// A volume's phase; `claim` is the one that its reference names, if it exists.
pub(super) fn phase(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> &'static str {
    match (&volume.spec.claim_ref, claim) {
        (None, _) => "Available",
        (Some(reference), _) if reference.uid.is_empty() => "Available",
        (Some(reference), Some(claim)) if claim.uid() == reference.uid => "Bound",
        _ => "Released",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn volume(name: &str, size: &str, extra: Value) -> Arc<PersistentVolume> {
        let mut value = json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"]}});
        json_patch::merge(&mut value["spec"], &extra);
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn the_smallest_that_will_do() {
        let claim: PersistentVolumeClaim =
            serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "n", "uid": "u"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}}}))
            .unwrap();
        let reserved = |name: &str, uid: &str| json!({"claimRef": {"namespace": "n", "name": name, "uid": uid}});
        let mut all = vec![
            volume("small", "1Gi", json!({})),
            volume("large", "9Gi", json!({})),
            volume("right", "3Gi", json!({})),
            volume("classy", "2Gi", json!({"storageClassName": "fast"})),
            volume("block", "2Gi", json!({"volumeMode": "Block"})),
            volume("shared", "2Gi", json!({"accessModes": ["ReadOnlyMany"]})),
            volume("taken", "2Gi", reserved("other", "x")),
            volume("before", "2Gi", reserved("c", "of-an-earlier-one")),
        ];
        assert_eq!(best(&claim, all.clone()).unwrap().name(), "right");
        all.push(volume("reserved", "5Gi", reserved("c", "")));
        assert_eq!(best(&claim, all).unwrap().name(), "reserved");
        assert_eq!(best(&claim, vec![volume("small", "1Gi", json!({}))]).map(|v| v.name().to_owned()), None);
        for (reference, claim, expected) in [
            (json!({}), None, "Available"),
            (reserved("c", ""), Some(&claim), "Available"),
            (reserved("c", "u"), Some(&claim), "Bound"),
            (reserved("c", "u"), None, "Released"),
            (reserved("c", "old"), Some(&claim), "Released"),
        ] {
            assert_eq!(phase(&volume("v", "1Gi", reference.clone()), claim), expected, "{reference}");
        }
    }
}
