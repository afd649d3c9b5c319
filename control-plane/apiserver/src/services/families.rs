//! Which address families a Service has: what it says itself, what follows from its addresses, what it had before, and what
//! the cluster has. Upstream's `normalizeClusterIPs` and `initIPFamilyFields`. Pure.

use serde_json::{Value, json};
use sluice_api::{status::FieldError, strategy};

use super::complete::{is_external, kind};
use crate::meta;

const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// Brings `clusterIP` and `clusterIPs` together where a client set one of them alone.
pub(super) fn normalize(old: Option<&Value>, new: &mut Value) {
    let text = |object: &Value| object["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
    let (address, listed) = (text(new), list(new, "clusterIPs"));
    let Some(old) = old else {
        if !address.is_empty() && listed.is_empty() {
            new["spec"]["clusterIPs"] = json!([address]);
        }
        return;
    };
    let (before, before_listed) = (text(old), list(old, "clusterIPs"));
    if address == before {
        if listed.is_empty() && !before_listed.is_empty() {
            new["spec"]["clusterIPs"] = json!(before_listed);
        }
    } else if listed == before_listed {
        match address.is_empty() {
            true => drop(meta::map(&mut new["spec"]).shift_remove("clusterIPs")),
            false => new["spec"]["clusterIPs"] = json!([address]),
        }
    }
}

/// Fills in `ipFamilies` and `ipFamilyPolicy`; `cluster` are the cluster's families, the default one first.
pub(super) fn families(cluster: &[&str], old: Option<&Value>, object: &mut Value) -> Vec<FieldError> {
    if is_external(object) || old.is_some_and(|old| keeps_to_preference(old, object)) {
        return Vec::new();
    }
    let bare = object["spec"]["clusterIP"] == "None" && no_selector(object);
    if object["spec"]["ipFamilyPolicy"].is_null() {
        let before = old.map(|old| old["spec"]["ipFamilyPolicy"].clone()).filter(|policy| !policy.is_null());
        // Who fills in the endpoints decides; upstream asks for both families then.
        let usual = if bare { "RequireDualStack" } else { "SingleStack" };
        object["spec"]["ipFamilyPolicy"] = before.unwrap_or_else(|| usual.into());
    }
    let errors = strategy::service_addresses(object);
    if !errors.is_empty() {
        return errors;
    }
    let mut families = list(object, "ipFamilies");
    let mut addresses = list(object, "clusterIPs");
    let policy = object["spec"]["ipFamilyPolicy"].clone();
    let single = policy == "SingleStack";
    let mut errors = Vec::new();
    let refused = |why: &str| FieldError::invalid("spec.ipFamilyPolicy", policy.clone(), why);
    if let Some(old) = old {
        let (had_addresses, had_families) = (list(old, "clusterIPs"), list(old, "ipFamilies"));
        if single {
            // Nothing else was changed: what the policy says is meant.
            if addresses == had_addresses {
                addresses.truncate(1);
            }
            if families == had_families {
                families.truncate(1);
            }
        } else {
            let reduced = |now: &[String], before: &[String]| !now.is_empty() && now.len() < before.len();
            if reduced(&addresses, &had_addresses) {
                errors.push(refused("must be 'SingleStack' to release the secondary cluster IP"));
            }
            if reduced(&families, &had_families) {
                errors.push(refused("must be 'SingleStack' to release the secondary IP family"));
            }
        }
    }
    for (single, what) in [(addresses.len() == 2, "cluster IPs"), (families.len() == 2, "IP families")] {
        if single && policy == "SingleStack" {
            let why = format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified");
            errors.push(refused(&why));
        }
    }
    for (i, address) in addresses.iter().enumerate().skip(families.len()).filter(|(_, address)| *address != "None") {
        let family = if address.contains(':') { "IPv6" } else { "IPv4" };
        if cluster.contains(&family) {
            families.push(family.to_owned());
        } else {
            let why = format!("{family} is not configured on this cluster");
            errors.push(FieldError::invalid(format!("spec.clusterIPs[{i}]"), json!(addresses), why));
        }
    }
    if errors.is_empty() && !bare {
        if policy == "RequireDualStack" && cluster.len() < 2 {
            errors.push(refused("this cluster is not configured for dual-stack services"));
        }
        for (i, family) in families.iter().enumerate().filter(|(_, family)| !cluster.contains(&family.as_str())) {
            let field = format!("spec.ipFamilies[{i}]");
            errors.push(FieldError::invalid(field, family.clone(), "not configured on this cluster"));
        }
    }
    if !errors.is_empty() {
        return errors;
    }
    if families.is_empty() {
        families.extend(cluster.first().map(|family| (*family).to_owned()));
    }
    if !single && families.len() == 1 && (bare || cluster.len() == 2) {
        let other = FAMILIES.into_iter().find(|family| *family != families[0]);
        families.extend(other.map(str::to_owned));
    }
    let spec = meta::map(&mut object["spec"]);
    spec.insert("ipFamilies".into(), json!(families));
    if !addresses.is_empty() {
        spec.insert("clusterIPs".into(), json!(addresses));
    }
    Vec::new()
}

/// A Service that prefers two families keeps what it has when the cluster gains or loses one, until somebody touches these
/// fields.
fn keeps_to_preference(old: &Value, new: &Value) -> bool {
    let prefers = |object: &Value| object["spec"]["ipFamilyPolicy"] == "PreferDualStack";
    kind(old) == kind(new)
        && prefers(old)
        && prefers(new)
        && ["clusterIPs", "ipFamilies"].iter().all(|field| list(old, field) == list(new, field))
}

fn no_selector(object: &Value) -> bool {
    object["spec"]["selector"].as_object().is_none_or(serde_json::Map::is_empty)
}

fn list(object: &Value, field: &str) -> Vec<String> {
    meta::strings(&object["spec"][field]).into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const V4: &[&str] = &["IPv4"];
    const DUAL: &[&str] = &["IPv4", "IPv6"];
    const SIX_FIRST: &[&str] = &["IPv6", "IPv4"];

    fn told(errors: &[FieldError]) -> String {
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    /// Policy and families of a new Service, or what is wrong with it.
    fn new(cluster: &[&str], spec: &Value) -> String {
        let mut object = json!({"spec": spec});
        normalize(None, &mut object);
        match families(cluster, None, &mut object) {
            errors if errors.is_empty() => shown(&object),
            errors => told(&errors),
        }
    }

    fn shown(object: &Value) -> String {
        let families = list(object, "ipFamilies").join(",");
        format!("{} {families}", object["spec"]["ipFamilyPolicy"].as_str().unwrap_or_default())
    }

    #[test]
    fn new_services() {
        let selector = json!({"a": "b"});
        for (cluster, spec, expected) in [
            (V4, json!({}), "SingleStack IPv4"),
            (SIX_FIRST, json!({}), "SingleStack IPv6"),
            (V4, json!({"ipFamilyPolicy": "PreferDualStack"}), "PreferDualStack IPv4"),
            (DUAL, json!({"ipFamilyPolicy": "PreferDualStack"}), "PreferDualStack IPv4,IPv6"),
            (SIX_FIRST, json!({"ipFamilyPolicy": "RequireDualStack"}), "RequireDualStack IPv6,IPv4"),
            (DUAL, json!({"ipFamilies": ["IPv6"]}), "SingleStack IPv6"),
            (DUAL, json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}), "RequireDualStack IPv6,IPv4"),
            (DUAL, json!({"clusterIP": "fd00::1"}), "SingleStack IPv6"),
            (
                DUAL,
                json!({"ipFamilyPolicy": "PreferDualStack", "clusterIP": "fd00::1", "clusterIPs": ["fd00::1", "10.0.0.1"]}),
                "PreferDualStack IPv6,IPv4",
            ),
            (V4, json!({"clusterIP": "None"}), "RequireDualStack IPv4,IPv6"),
            (V4, json!({"clusterIP": "None", "ipFamilyPolicy": "SingleStack"}), "SingleStack IPv4"),
            (V4, json!({"clusterIP": "None", "ipFamilies": ["IPv6"]}), "RequireDualStack IPv6,IPv4"),
            (DUAL, json!({"clusterIP": "None", "selector": selector}), "SingleStack IPv4"),
            (V4, json!({"type": "ExternalName"}), " "),
            (
                V4,
                json!({"ipFamilyPolicy": "RequireDualStack"}),
                "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
            ),
            (
                V4,
                json!({"clusterIP": "None", "selector": selector, "ipFamilyPolicy": "RequireDualStack"}),
                "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
            ),
            (
                V4,
                json!({"ipFamilies": ["IPv6"]}),
                "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
            ),
            (
                V4,
                json!({"clusterIP": "fd00::1"}),
                "spec.clusterIPs[0]: Invalid value: [\"fd00::1\"]: IPv6 is not configured on this cluster",
            ),
            (
                DUAL,
                json!({"ipFamilies": ["IPv4", "IPv6"]}),
                "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when \
                 multiple IP families are specified",
            ),
            (
                DUAL,
                json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"]}),
                "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when \
                 multiple cluster IPs are specified",
            ),
            (
                DUAL,
                json!({"clusterIPs": ["10.0.0.1"]}),
                "spec.clusterIPs: Invalid value: [\"10.0.0.1\"]: must be empty when `clusterIP` is not specified",
            ),
        ] {
            assert_eq!(new(cluster, &spec), expected, "{cluster:?} {spec}");
        }
    }

    #[test]
    fn changed_services() {
        let one = json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"], "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]});
        let two = json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4", "IPv6"], "clusterIP": "10.0.0.1",
            "clusterIPs": ["10.0.0.1", "fd00::1"]});
        let lone = json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4"], "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]});
        for (cluster, before, change, expected) in [
            (DUAL, &one, json!({"ipFamilyPolicy": "PreferDualStack"}), "PreferDualStack IPv4,IPv6 10.0.0.1"),
            (DUAL, &one, json!({"ipFamilyPolicy": "RequireDualStack"}), "RequireDualStack IPv4,IPv6 10.0.0.1"),
            (V4, &one, json!({"ipFamilyPolicy": "PreferDualStack"}), "PreferDualStack IPv4 10.0.0.1"),
            (DUAL, &two, json!({"ipFamilyPolicy": "SingleStack"}), "SingleStack IPv4 10.0.0.1"),
            (DUAL, &two, json!({"ipFamilyPolicy": null}), "PreferDualStack IPv4,IPv6 10.0.0.1,fd00::1"),
            (DUAL, &two, json!({"ipFamilyPolicy": "RequireDualStack"}), "RequireDualStack IPv4,IPv6 10.0.0.1,fd00::1"),
            // The cluster got its second family, or lost it, after the Service was made.
            (DUAL, &lone, json!({}), "PreferDualStack IPv4 10.0.0.1"),
            (V4, &two, json!({}), "PreferDualStack IPv4,IPv6 10.0.0.1,fd00::1"),
            (DUAL, &two, json!({"clusterIPs": null}), "PreferDualStack IPv4,IPv6 10.0.0.1,fd00::1"),
            (
                DUAL,
                &two,
                json!({"ipFamilies": ["IPv4"], "clusterIPs": ["10.0.0.1"]}),
                "spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be 'SingleStack' to release the secondary cluster IP; \
                 spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be 'SingleStack' to release the secondary IP family",
            ),
            (
                DUAL,
                &two,
                json!({"ipFamilies": ["IPv4"], "clusterIPs": ["10.0.0.1"], "ipFamilyPolicy": "SingleStack"}),
                "SingleStack IPv4 10.0.0.1",
            ),
        ] {
            let old = json!({"spec": before});
            let mut object = old.clone();
            json_patch::merge(&mut object["spec"], &change);
            normalize(Some(&old), &mut object);
            let errors = families(cluster, Some(&old), &mut object);
            let got = match errors.is_empty() {
                true => format!("{} {}", shown(&object), list(&object, "clusterIPs").join(",")),
                false => told(&errors),
            };
            assert_eq!(got, expected, "{cluster:?} {before} {change}");
        }
    }

    #[test]
    fn one_field_follows_the_other() {
        let two = json!({"spec": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"]}});
        for (old, new, expected) in [
            (None, json!({"clusterIP": "None"}), json!(["None"])),
            (None, json!({"clusterIPs": ["10.0.0.1"]}), json!(["10.0.0.1"])),
            (Some(&two), json!({"clusterIP": "10.0.0.1"}), json!(["10.0.0.1", "fd00::1"])),
            (Some(&two), json!({"clusterIP": "10.0.0.2", "clusterIPs": ["10.0.0.1", "fd00::1"]}), json!(["10.0.0.2"])),
            (Some(&two), json!({"clusterIPs": ["10.0.0.1", "fd00::1"]}), Value::Null),
        ] {
            let mut object = json!({"spec": new});
            normalize(old, &mut object);
            assert_eq!(object["spec"]["clusterIPs"], expected, "{new}");
        }
    }
}
