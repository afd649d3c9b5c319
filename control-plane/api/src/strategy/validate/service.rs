//! Services and EndpointSlices.

use std::collections::HashSet;

use super::{Errors, cursor::At, meta};
use crate::{names, status::FieldError};

pub(super) const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const FAMILIES: &[&str] = &["IPv4", "IPv6"];
/// Upstream's limits of an EndpointSlice.
const MAX_ENDPOINTS: usize = 1000;
const MAX_PORTS: usize = 20_000;
const MAX_ADDRESSES: usize = 100;

pub(super) fn service(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    let kind = spec.field("type");
    kind.one_of(&["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], errors);
    let headless = spec.field("clusterIP").text() == "None";
    let external_name = kind.text() == "ExternalName";
    let ports = spec.field("ports");
    if ports.is_empty() && !headless && !external_name {
        errors.push(FieldError::required(&ports.path, ""));
    }
    if headless && matches!(kind.text(), "NodePort" | "LoadBalancer") {
        let detail = format!("may not be set to 'None' for {} services", kind.text());
        spec.at("clusterIPs").items().next().unwrap_or(spec.field("clusterIP")).invalid(detail, errors);
    }
    if external_name {
        let name = spec.field("externalName");
        if name.require(errors) {
            for detail in names::dns_subdomain(name.text().trim_end_matches('.')) {
                name.invalid(detail, errors);
            }
        }
        for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if !spec.field(field).is_empty() {
                spec.field(field).forbid("may not be set for ExternalName services", errors);
            }
        }
    }
    service_ports(&spec, errors);
    meta::labels(spec.field("selector"), errors);
    spec.field("sessionAffinity").one_of(&["ClientIP", "None"], errors);
    let timeout = spec.at("sessionAffinityConfig.clientIP.timeoutSeconds");
    if timeout.int().is_some_and(|seconds| !(1..=86400).contains(&seconds)) {
        timeout.invalid("must be greater than 0 and less than 86400", errors);
    }
    spec.field("internalTrafficPolicy").one_of(&["Cluster", "Local"], errors);
    spec.field("externalTrafficPolicy").one_of(&["Cluster", "Local"], errors);
    addresses(&spec, errors);
    for address in spec.field("externalIPs").items() {
        address.ip(errors);
        let loopback =
            address.text().parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified());
        if loopback {
            address.invalid("may not be in the loopback range (127.0.0.0/8, ::1/128)", errors);
        }
    }
}

/// What the fields that name addresses and families have to say together, whatever the cluster has: upstream's
/// `ValidateServiceClusterIPsRelatedFields`.
pub(super) fn addresses(spec: &At<'_>, errors: &mut Errors) {
    if spec.field("type").text() == "ExternalName" {
        return;
    }
    let (listed, families) = (spec.field("clusterIPs"), spec.field("ipFamilies"));
    let ips: Vec<At<'_>> = listed.items().collect();
    match (spec.field("clusterIP").text(), ips.first()) {
        ("", Some(_)) => listed.invalid("must be empty when `clusterIP` is not specified", errors),
        ("", None) => {}
        (_, None) => errors.push(FieldError::required(&listed.path, "")),
        (one, Some(first)) if first.text() != one => listed.invalid("first value must match `clusterIP`", errors),
        _ => {}
    }
    let mut seen = HashSet::new();
    for family in families.items() {
        family.one_of(FAMILIES, errors);
        if !seen.insert(family.text()) {
            errors.push(FieldError::duplicate(&family.path, family.text()));
        }
    }
    spec.field("ipFamilyPolicy").one_of(&["PreferDualStack", "RequireDualStack", "SingleStack"], errors);
    let before = errors.len();
    for (i, ip) in ips.iter().enumerate() {
        match (i, ip.text()) {
            (0, "None") if ips.len() > 1 => listed.invalid("'None' must be the first and only value", errors),
            (0, "None") => {}
            _ => ip.ip(errors),
        }
    }
    let wrong = errors.len() > before;
    if ips.len() > 2 {
        listed.invalid("may only hold up to 2 values", errors);
    }
    if wrong || ips.first().is_some_and(|ip| ip.text() == "None") {
        return;
    }
    let of = |ip: &At<'_>| if ip.text().contains(':') { "IPv6" } else { "IPv4" };
    if ips.len() > 1 && ips.iter().all(|ip| of(ip) == of(&ips[0])) {
        listed.invalid("may specify no more than one IP for each IP family", errors);
    }
    for ((i, ip), family) in ips.iter().enumerate().zip(families.items()) {
        if FAMILIES.contains(&family.text()) && of(ip) != family.text() {
            ip.invalid(format!("expected an {} value as indicated by `ipFamilies[{i}]`", family.text()), errors);
        }
    }
}

fn service_ports(spec: &At<'_>, errors: &mut Errors) {
    let ports: Vec<At<'_>> = spec.field("ports").items().collect();
    let (mut seen, mut numbers, mut node_ports) = (HashSet::new(), HashSet::new(), HashSet::new());
    for port in &ports {
        let name = port.field("name");
        if name.is_empty() {
            if ports.len() > 1 {
                errors.push(FieldError::required(&name.path, ""));
            }
        } else {
            name.syntax(names::dns_label, errors);
            if !seen.insert(name.text()) {
                errors.push(FieldError::duplicate(&name.path, name.text()));
            }
        }
        let number = port.field("port");
        if number.int().unwrap_or(0) == 0 {
            number.invalid_number("must be between 1 and 65535, inclusive", errors);
        } else {
            number.port(errors);
        }
        let protocol = port.field("protocol");
        if protocol.require(errors) {
            protocol.one_of(PROTOCOLS, errors);
        }
        port.field("targetPort").port_or_name(errors);
        if !numbers.insert((protocol.text(), number.int())) {
            errors.push(FieldError::duplicate(&port.path, port.value.clone()));
        }
        let node = port.field("nodePort");
        if let Some(number) = node.int().filter(|number| *number != 0) {
            if matches!(spec.field("type").text(), "ClusterIP" | "ExternalName") {
                let detail = format!("may not be used when `type` is '{}'", spec.field("type").text());
                errors.push(FieldError::forbidden(&node.path, detail));
            }
            if !node_ports.insert((protocol.text(), number)) {
                errors.push(FieldError::duplicate(&node.path, node.value.clone()));
            }
        }
    }
}

pub(super) fn endpoint_slice(object: At<'_>, errors: &mut Errors) {
    let kind = object.field("addressType");
    if kind.require(errors) {
        kind.one_of(&["FQDN", "IPv4", "IPv6"], errors);
    }
    let endpoints = object.field("endpoints");
    let count = endpoints.items().count();
    if count > MAX_ENDPOINTS {
        errors.push(FieldError::too_many(&endpoints.path, count, MAX_ENDPOINTS));
    }
    for endpoint in endpoints.items() {
        let addresses = endpoint.field("addresses");
        let count = addresses.items().count();
        if count == 0 {
            errors.push(FieldError::required(&addresses.path, "must contain at least 1 address"));
        } else if count > MAX_ADDRESSES {
            errors.push(FieldError::too_many(&addresses.path, count, MAX_ADDRESSES));
        }
        for address in addresses.items() {
            slice_address(&address, kind.text(), errors);
        }
        let host = endpoint.field("hostname");
        if host.present() {
            host.syntax(names::dns_label, errors);
        }
    }
    let ports = object.field("ports");
    let count = ports.items().count();
    if count > MAX_PORTS {
        errors.push(FieldError::too_many(&ports.path, count, MAX_PORTS));
    }
    let mut seen = HashSet::new();
    for port in ports.items() {
        let name = port.field("name");
        if !seen.insert(name.text()) {
            errors.push(FieldError::duplicate(&name.path, name.text()));
        }
        if !name.is_empty() {
            name.syntax(names::dns_label, errors);
        }
        port.field("protocol").one_of(PROTOCOLS, errors);
        port.field("port").port(errors);
    }
}

fn slice_address(at: &At<'_>, kind: &str, errors: &mut Errors) {
    use std::net::IpAddr;
    let ip = at.text().parse::<IpAddr>();
    match (kind, &ip) {
        ("IPv4", Ok(IpAddr::V4(_))) | ("IPv6", Ok(IpAddr::V6(_))) => {}
        ("IPv4", _) => at.invalid("must be a valid IPv4 address", errors),
        ("IPv6", _) => at.invalid("must be a valid IPv6 address", errors),
        _ => {
            at.syntax(names::dns_subdomain, errors);
            return;
        }
    }
    let Ok(ip) = ip else { return };
    let detail = match ip {
        _ if ip.is_unspecified() => "may not be unspecified (0.0.0.0 or ::)",
        _ if ip.is_loopback() => "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        IpAddr::V4(v4) if v4.is_link_local() => "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        _ => return,
    };
    at.invalid(detail, errors);
}
