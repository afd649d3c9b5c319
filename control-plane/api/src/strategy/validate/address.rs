//! IPAddresses and ServiceCIDRs.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Errors, cursor::At, networking::cidr_of};
use crate::{names, status::FieldError};

pub(super) fn ip_address(object: At<'_>, errors: &mut Errors) {
    let parent = object.at("spec.parentRef");
    if !parent.present() {
        parent.require(errors);
        return;
    }
    // The group of Services is the empty one.
    let group = parent.field("group");
    if !group.is_empty() {
        group.syntax(names::dns_subdomain, errors);
    }
    for (field, required) in [("resource", true), ("name", true), ("namespace", false)] {
        let field = parent.field(field);
        if !field.is_empty() {
            field.syntax(names::path_segment, errors);
        } else if required {
            field.require(errors);
        }
    }
}

/// What is wrong with the name of an IPAddress: two names of one address would be two objects.
pub(super) fn name(text: &str) -> Vec<String> {
    match text.parse::<IpAddr>() {
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()],
        Ok(ip) if ip.to_string() != text => vec![format!("must be in canonical form (\"{ip}\")")],
        Ok(_) => Vec::new(),
    }
}

pub(super) fn service_cidr(object: At<'_>, errors: &mut Errors) {
    let cidrs = object.at("spec.cidrs");
    if !cidrs.require_because("at least one CIDR required", errors) {
        return;
    }
    // Upstream tells the whole specification.
    let refused = |detail: &str| FieldError::invalid(&cidrs.path, json!({"CIDRs": cidrs.value}), detail);
    let families: Vec<Option<bool>> = cidrs.items().map(|cidr| cidr_of(&cidr, &mut Vec::new()).map(is_v4)).collect();
    match families[..] {
        [_] => {}
        [Some(one), Some(other)] if one != other => {}
        [_, _] => {
            let one_each = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
            errors.push(refused(one_each));
            return;
        }
        _ => {
            errors.push(refused("may only hold up to 2 values"));
            return;
        }
    }
    for cidr in cidrs.items() {
        if let Some((address, prefix)) = cidr_of(&cidr, errors) {
            let canonical = format!("{}/{prefix}", network(address, prefix));
            if canonical != cidr.text() {
                cidr.invalid(format!("must be in canonical form (\"{canonical}\")"), errors);
            }
        }
    }
}

fn is_v4((address, _): (IpAddr, u32)) -> bool {
    address.is_ipv4()
}

/// The address without its host bits.
fn network(address: IpAddr, prefix: u32) -> IpAddr {
    match address {
        IpAddr::V4(ip) => {
            std::net::Ipv4Addr::from_bits(ip.to_bits() & !u32::MAX.checked_shr(prefix).unwrap_or(0)).into()
        }
        IpAddr::V6(ip) => {
            std::net::Ipv6Addr::from_bits(ip.to_bits() & !u128::MAX.checked_shr(prefix).unwrap_or(0)).into()
        }
    }
}

/// The ranges stay; a ServiceCIDR of one family may gain one of the other, behind its own.
pub(super) fn service_cidr_change(old: At<'_>, new: At<'_>, errors: &mut Errors) {
    const IMMUTABLE: &str = "field is immutable";
    let (before, after) = (old.at("spec.cidrs"), new.at("spec.cidrs"));
    let (had, has): (Vec<_>, Vec<_>) = (before.items().collect(), after.items().collect());
    if had.len() != has.len() && (had.len(), has.len()) != (1, 2) {
        let value: Value = has.iter().map(|cidr| cidr.value.clone()).collect();
        errors.push(FieldError::invalid(&after.path, value, IMMUTABLE));
        return;
    }
    for (_, has) in had.iter().zip(&has).filter(|(had, has)| had.value != has.value) {
        has.invalid(IMMUTABLE, errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        resource::builtin,
        strategy::{validate_create, validate_update},
    };

    fn told(errors: &[FieldError]) -> String {
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    fn errors(kind: &str, object: &Value) -> String {
        let row = builtin().by_kind("networking.k8s.io", "v1", kind);
        row.map_or_else(|| "no such kind".into(), |row| told(&validate_create(row, object)))
    }

    #[test]
    fn addresses() {
        let service = json!({"resource": "services", "namespace": "n", "name": "s"});
        let check = |name: &str, change: Value, expected: &str| {
            let mut parent = service.clone();
            json_patch::merge(&mut parent, &change);
            let object = json!({"metadata": {"name": name}, "spec": {"parentRef": parent}});
            assert_eq!(errors("IPAddress", &object), expected, "{object}");
        };
        let same = json!({});
        check("10.96.0.1", same.clone(), "");
        check("2001:db8::1", same.clone(), "");
        check("10.96.0.1", json!({"group": "mygroup", "resource": "myresources", "namespace": null}), "");
        let no_address = |name: &str| {
            format!(
                "metadata.name: Invalid value: \"{name}\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
            )
        };
        check("a", same.clone(), &no_address("a"));
        check("10.096.0.1", same.clone(), &no_address("10.096.0.1"));
        check(
            "2001:DB8::1",
            same.clone(),
            "metadata.name: Invalid value: \"2001:DB8::1\": must be in canonical form (\"2001:db8::1\")",
        );
        check("10.96.0.1", json!({"name": ""}), "spec.parentRef.name: Required value");
        check("10.96.0.1", json!({"resource": ""}), "spec.parentRef.resource: Required value");
        check("10.96.0.1", json!({"name": "a/b"}), "spec.parentRef.name: Invalid value: \"a/b\": may not contain '/'");
        check(
            "10.96.0.1",
            json!({"namespace": ".."}),
            "spec.parentRef.namespace: Invalid value: \"..\": may not be '..'",
        );
        assert_eq!(
            errors("IPAddress", &json!({"metadata": {"name": "10.96.0.1"}, "spec": {}})),
            "spec.parentRef: Required value"
        );
    }

    #[test]
    fn ranges() {
        let check = |cidrs: &[&str], expected: &str| {
            let object = json!({"metadata": {"name": "a"}, "spec": {"cidrs": cidrs}});
            assert_eq!(errors("ServiceCIDR", &object), expected, "{object}");
        };
        check(&["10.0.0.0/16"], "");
        check(&["fd00::/108", "10.0.0.0/16"], "");
        check(&[], "spec.cidrs: Required value: at least one CIDR required");
        check(
            &["10.0.0.0/16", "fd00::/108", "fd01::/108"],
            "spec.cidrs: Invalid value: {\"CIDRs\":[\"10.0.0.0/16\",\"fd00::/108\",\"fd01::/108\"]}: may only hold up to 2 values",
        );
        check(
            &["10.0.0.0/16", "10.1.0.0/16"],
            "spec.cidrs: Invalid value: {\"CIDRs\":[\"10.0.0.0/16\",\"10.1.0.0/16\"]}: may specify no more than one IP for \
             each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
        );
        check(
            &["10.0.0.0"],
            "spec.cidrs[0]: Invalid value: \"10.0.0.0\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        );
        check(
            &["10.0.7.0/16"],
            "spec.cidrs[0]: Invalid value: \"10.0.7.0/16\": must be in canonical form (\"10.0.0.0/16\")",
        );
        check(&["FD00::/64"], "spec.cidrs[0]: Invalid value: \"FD00::/64\": must be in canonical form (\"fd00::/64\")");
        check(&["0.0.0.0/0"], "");
    }

    #[test]
    fn ranges_stay() {
        let object =
            |cidrs: &[&str]| json!({"metadata": {"name": "a", "resourceVersion": "1"}, "spec": {"cidrs": cidrs}});
        let check = |old: &[&str], new: &[&str], expected: &str| {
            let row = builtin().by_kind("networking.k8s.io", "v1", "ServiceCIDR");
            let got = row.map(|row| told(&validate_update(row, &object(old), &object(new))));
            assert_eq!(got.as_deref(), Some(expected), "{old:?} {new:?}");
        };
        let (four, six, other) = ("10.0.0.0/16", "fd00::/108", "10.1.0.0/16");
        check(&[four], &[four], "");
        check(&[four], &[four, six], "");
        check(&[four], &[other], "spec.cidrs[0]: Invalid value: \"10.1.0.0/16\": field is immutable");
        check(&[four], &[six, four], "spec.cidrs[0]: Invalid value: \"fd00::/108\": field is immutable");
        check(&[four, six], &[four], "spec.cidrs: Invalid value: [\"10.0.0.0/16\"]: field is immutable");
    }
}
