//! Which writes are nothing but a sign of life: a Lease whose `renewTime` moves on. To lose the last
//! of them in a crash does no harm (the lease is a little older then), so they need not wait for the
//! disk. Who holds a lease, and since when, does.

use serde_json::Value;
use sluice_api::resource::Resource;

use super::StoredObject;

const LEASES: &str = "/registry/leases/";

/// True if `after` differs from `before` in nothing but the time of a renewal.
pub(super) fn is_one(resource: &Resource, before: Option<&StoredObject>, after: &Value) -> bool {
    resource.store_prefix() == LEASES && before.is_some_and(|before| rest(before.value()) == rest(after.clone()))
}

/// The lease without what a renewal changes.
fn rest(mut lease: Value) -> Value {
    for (place, fields) in [("spec", &["renewTime"][..]), ("metadata", &["managedFields", "resourceVersion"])] {
        if let Some(map) = lease.get_mut(place).and_then(Value::as_object_mut) {
            fields.iter().for_each(|field| drop(map.shift_remove(*field)));
        }
    }
    lease
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_later_renewal_is_a_heartbeat() {
        let leases = sluice_api::resource::builtin().by_type("coordination.k8s.io/v1", "Lease").unwrap();
        let maps = sluice_api::resource::builtin().by_type("v1", "ConfigMap").unwrap();
        let lease = |holder: &str, renewed: &str, label: &str| {
            json!({
                "metadata": {"name": "a", "labels": {"l": label}, "managedFields": [{"time": renewed}]},
                "spec": {"holderIdentity": holder, "renewTime": renewed},
            })
        };
        let before = StoredObject::decode(lease("n1", "1", "").to_string().as_bytes(), 7, false).unwrap();
        let check = |resource: &Resource, after: Value, expected: bool| {
            assert_eq!(is_one(resource, Some(&before), &after), expected, "{after}");
        };
        check(leases, lease("n1", "2", ""), true);
        check(leases, lease("n2", "2", ""), false);
        check(leases, lease("n1", "2", "new"), false);
        check(maps, lease("n1", "2", ""), false);
        assert!(!is_one(leases, None, &lease("n1", "2", "")));
    }
}
