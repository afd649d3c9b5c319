//! What a change of a pod's resources asks for, container by container. Pure.

use std::collections::BTreeMap;

use crate::model::{Container, Resources};
use crate::quantity;

/// A container's way from the resources it runs with to the ones it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// They are the same.
    Done,
    /// Its cgroup is changed while it runs.
    Update,
    /// Its resize policy wants it started again.
    Restart,
}

/// What has to be done for a container that runs with `has` and was given `given`.
pub(super) fn way(container: &Container, has: &Resources, given: &Resources) -> Way {
    let differs = |name: &str| {
        let amount = |map: &BTreeMap<String, String>| map.get(name).and_then(|q| quantity::milli(q));
        amount(&has.limits) != amount(&given.limits) || amount(&has.requests) != amount(&given.requests)
    };
    let changed: Vec<&str> = ["cpu", "memory"].into_iter().filter(|name| differs(name)).collect();
    let restarts = |name: &&str| {
        let policy = container.resize_policy.iter().find(|p| p.resource_name == **name);
        policy.is_some_and(|p| p.restart_policy == "RestartContainer")
    };
    match changed.iter().any(restarts) {
        _ if changed.is_empty() => Way::Done,
        true => Way::Restart,
        false => Way::Update,
    }
}

/// The limits that hold while some containers have the old ones and some the new.
pub(super) fn widest(a: &sluice_runtime::Resources, b: &sluice_runtime::Resources) -> sluice_runtime::Resources {
    let most = |a: Option<i64>, b: Option<i64>| match (a, b) {
        (Some(a), Some(b)) if a > 0 && b > 0 => Some(a.max(b)),
        _ => Some(-1),
    };
    sluice_runtime::Resources {
        cpu_shares: a.cpu_shares.max(b.cpu_shares),
        cpu_quota: most(a.cpu_quota, b.cpu_quota),
        cpu_period: Some(100_000),
        memory_limit: most(a.memory_limit, b.memory_limit),
        ..sluice_runtime::Resources::default()
    }
}

/// Limits for a cgroup that may have had others: what is not limited is said to be so.
pub(super) fn explicit(r: &sluice_runtime::Resources) -> sluice_runtime::Resources {
    sluice_runtime::Resources {
        cpu_quota: r.cpu_quota.or(Some(-1)),
        cpu_period: Some(100_000),
        memory_limit: r.memory_limit.or(Some(-1)),
        ..r.clone()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn ways() {
        let container: Container = serde_json::from_value(json!({
            "name": "a", "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}],
        }))
        .unwrap();
        let has = json!({"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "64Mi"}});
        for (given, expected) in [
            (json!({"requests": {"cpu": "0.1", "memory": "65536Ki"}, "limits": {"memory": "64Mi"}}), Way::Done),
            (json!({"requests": {"cpu": "200m", "memory": "64Mi"}, "limits": {"memory": "64Mi"}}), Way::Update),
            (json!({"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}}), Way::Restart),
            (json!({"requests": {"cpu": "100m", "memory": "64Mi"}}), Way::Restart),
        ] {
            let read = |v: &serde_json::Value| serde_json::from_value::<Resources>(v.clone()).unwrap();
            assert_eq!(way(&container, &read(&has), &read(&given)), expected, "{given}");
        }
    }

    #[test]
    fn between_two_limits_the_wider_holds() {
        let limits = |quota, memory| sluice_runtime::Resources {
            cpu_quota: quota,
            memory_limit: memory,
            ..sluice_runtime::Resources::default()
        };
        let both = widest(&limits(Some(5), None), &limits(Some(7), Some(9)));
        assert_eq!((both.cpu_quota, both.memory_limit), (Some(7), Some(-1)));
        assert_eq!(explicit(&limits(None, Some(9))).cpu_quota, Some(-1));
    }
}
