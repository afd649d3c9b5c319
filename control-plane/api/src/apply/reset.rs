//! The fields that a write to an object or to one of its subresources does not take, and nobody comes
//! to own by it (upstream's `GetResetFields` of each kind's strategy), and those that are never owned.

use std::sync::LazyLock;

use super::set::Set;
use crate::resource::{Resource, builtin};

/// Metadata that the server writes or that names the object (upstream's `stripMetaManager`).
pub(super) fn stripped() -> &'static Set {
    static STRIPPED: LazyLock<Set> = LazyLock::new(|| {
        Set::of_fields(&[
            &["apiVersion"],
            &["kind"],
            &["metadata"],
            &["metadata", "name"],
            &["metadata", "namespace"],
            &["metadata", "creationTimestamp"],
            &["metadata", "selfLink"],
            &["metadata", "uid"],
            &["metadata", "clusterName"],
            &["metadata", "generation"],
            &["metadata", "managedFields"],
            &["metadata", "resourceVersion"],
        ])
    });
    &STRIPPED
}

/// What a write to `subresource` (`""`: the object itself) leaves as it is.
pub fn reset_fields(resource: &Resource, subresource: &str) -> Set {
    let custom = builtin().by_kind(&resource.group, &resource.version, &resource.kind).is_none();
    let whole_metadata = custom
        || matches!(
            &*resource.group,
            "apiextensions.k8s.io" | "apiregistration.k8s.io" | "flowcontrol.apiserver.k8s.io"
        )
        || resource.plural == "volumeattachments";
    match (subresource, &*resource.group, &*resource.kind) {
        ("", ..) if resource.subresources.status => Set::of_fields(&[&["status"]]),
        ("status", ..) if whole_metadata => Set::of_fields(&[&["metadata"], &["spec"]]),
        ("status", "apps", "Deployment") => Set::of_fields(&[&["spec"], &["metadata", "labels"]]),
        ("status", "", "Pod") => {
            Set::of_fields(&[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]])
        }
        ("status" | "approval", ..) => Set::of_fields(&[&["spec"]]),
        ("finalize" | "ephemeralcontainers" | "resize", ..) => Set::of_fields(&[&["status"]]),
        _ => Set::default(),
    }
}
