//! Ingresses, NetworkPolicies, Endpoints and their relatives. Source: upstream's
//! `pkg/apis/networking/validation` and, for Endpoints, `pkg/apis/core/validation`.

use std::net::IpAddr;

use serde_json::Value;

use super::{Errors, cursor::At, service::PROTOCOLS, workload};
use crate::{names, status::FieldError};

pub(super) fn ingress(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    let (rules, backend) = (spec.field("rules"), spec.field("defaultBackend"));
    if rules.is_empty() && !backend.present() {
        let detail = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid(&spec.path, Value::Array(Vec::new()), detail));
    }
    if backend.present() {
        self::backend(&backend, errors);
    }
    for rule in rules.items() {
        let host = rule.field("host");
        if !host.is_empty() {
            if host.text().parse::<IpAddr>().is_ok() {
                host.invalid("must be a DNS name, not an IP address", errors);
            }
            self::host(&host, errors);
        }
        if rule.field("http").present() {
            let paths = rule.at("http.paths");
            paths.require(errors);
            for path in paths.items() {
                ingress_path(&path, errors);
            }
        }
    }
    for tls in spec.field("tls").items() {
        for host in tls.field("hosts").items() {
            self::host(&host, errors);
        }
        let secret = tls.field("secretName");
        if !secret.is_empty() {
            secret.syntax(names::dns_subdomain, errors);
        }
    }
    let class = spec.field("ingressClassName");
    if class.present() {
        class.syntax(names::dns_subdomain, errors);
    }
}

/// A DNS name, perhaps with `*` as its first label.
fn host(at: &At<'_>, errors: &mut Errors) {
    match at.text().strip_prefix("*.") {
        Some(rest) if names::dns_subdomain(rest).is_empty() => {}
        None if !at.text().contains('*') => at.syntax(names::dns_subdomain, errors),
        _ => {
            let rule = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which \
                        must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric \
                        character";
            let pattern = r"\*\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
            at.invalid(names::regex_error(rule, pattern, &["*.example.com"]), errors);
        }
    }
}

fn ingress_path(at: &At<'_>, errors: &mut Errors) {
    let (path, kind) = (at.field("path"), at.field("pathType"));
    match kind.value {
        Value::Null => errors.push(FieldError::required(&kind.path, "pathType must be specified")),
        _ => match kind.text() {
            "Exact" | "Prefix" => {
                if !path.text().starts_with('/') {
                    errors.push(FieldError::invalid(&path.path, path.text(), "must be an absolute path"));
                }
                if !path.is_empty() {
                    for bad in ["//", "/./", "/../", "%2f", "%2F"] {
                        if path.text().contains(bad) {
                            path.invalid(format!("must not contain '{bad}'"), errors);
                        }
                    }
                    for bad in ["/..", "/."] {
                        if path.text().ends_with(bad) {
                            path.invalid(format!("cannot end with '{bad}'"), errors);
                        }
                    }
                }
            }
            "ImplementationSpecific" => {
                if !path.is_empty() && !path.text().starts_with('/') {
                    path.invalid("must be an absolute path", errors);
                }
            }
            _ => kind.one_of(&["Exact", "ImplementationSpecific", "Prefix"], errors),
        },
    }
    backend(&at.field("backend"), errors);
}

fn backend(at: &At<'_>, errors: &mut Errors) {
    let (resource, service) = (at.field("resource"), at.field("service"));
    match (resource.present(), service.present()) {
        (true, true) => {
            errors.push(FieldError::invalid(&at.path, "", "cannot set both resource and service backends"));
        }
        (true, false) => {
            resource.field("kind").require_because("kind is required", errors);
            resource.field("name").require_because("name is required", errors);
        }
        (false, true) => {
            let name = service.field("name");
            if name.require(errors) {
                name.syntax(names::dns_1035_label, errors);
            }
            let (port, number) = (service.at("port.name"), service.at("port.number"));
            match (!port.is_empty(), number.int().is_some_and(|n| n != 0)) {
                (true, true) => {
                    errors.push(FieldError::invalid(&at.path, "", "cannot set both port name & port number"));
                }
                (true, false) => port.port_name(errors),
                (false, true) => number.port(errors),
                (false, false) => errors.push(FieldError::required(&at.path, "port name or number is required")),
            }
        }
        (false, false) => {
            errors.push(FieldError::invalid(&at.path, "", "resource or service backend is required"));
        }
    }
}

pub(super) fn ingress_class(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    let controller = spec.field("controller");
    if controller.text().len() > 250 {
        errors.push(FieldError::too_long(&controller.path, 250));
    } else if controller.require(errors) {
        let good = controller
            .text()
            .split_once('/')
            .is_some_and(|(domain, path)| names::dns_subdomain(domain).is_empty() && !path.is_empty());
        if !good {
            controller.invalid("must be a domain-prefixed path (such as \"acme.io/foo\")", errors);
        }
    }
    let parameters = spec.field("parameters");
    if !parameters.present() {
        return;
    }
    for field in ["kind", "name"] {
        let detail = format!("{field} is required");
        parameters.field(field).require_because(&detail, errors);
    }
    let (scope, namespace) = (parameters.field("scope"), parameters.field("namespace"));
    match scope.text() {
        "" => errors.push(FieldError::required(&scope.path, "")),
        "Cluster" if !namespace.is_empty() => namespace.forbid("`parameters.scope` is set to 'Cluster'", errors),
        "Namespace" if namespace.is_empty() => {
            errors.push(FieldError::required(&namespace.path, "`parameters.scope` is set to 'Namespace'"));
        }
        "Namespace" => namespace.syntax(names::dns_label, errors),
        _ => scope.one_of(&["Cluster", "Namespace"], errors),
    }
}

pub(super) fn network_policy(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    workload::label_selector(&spec.field("podSelector"), errors);
    for (list, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.field(list).items() {
            for port in rule.field("ports").items() {
                policy_port(&port, errors);
            }
            for peer in rule.field(peers).items() {
                policy_peer(&peer, errors);
            }
        }
    }
    let types = spec.field("policyTypes");
    if types.items().count() > 2 {
        types.invalid("may not specify more than two policyTypes", errors);
    } else {
        for kind in types.items() {
            if !matches!(kind.text(), "Ingress" | "Egress") {
                errors.push(FieldError::not_supported(&kind.path, kind.value.clone(), &["Egress", "Ingress"]));
            }
        }
    }
}

fn policy_port(at: &At<'_>, errors: &mut Errors) {
    at.field("protocol").one_of(PROTOCOLS, errors);
    let (port, end) = (at.field("port"), at.field("endPort"));
    port.port_or_name(errors);
    if !end.present() {
        return;
    }
    match port.value {
        Value::Null => errors.push(FieldError::required(&port.path, "must be specified when `endPort` is specified")),
        Value::String(_) => end.invalid("may not be specified when `port` is non-numeric", errors),
        _ => {
            if end.int() < port.int() {
                end.invalid("must be greater than or equal to `port`", errors);
            }
            end.port(errors);
        }
    }
}

fn policy_peer(at: &At<'_>, errors: &mut Errors) {
    let block = at.field("ipBlock");
    let mut peers = 0;
    for selector in ["podSelector", "namespaceSelector"] {
        let selector = at.field(selector);
        if selector.present() {
            peers += 1;
            workload::label_selector(&selector, errors);
        }
    }
    if block.present() {
        if peers > 0 {
            at.forbid("may not specify both ipBlock and another peer", errors);
        }
        peers += 1;
        let cidr = block.field("cidr");
        if cidr.require(errors) {
            let outer = cidr_of(&cidr, errors);
            for except in block.field("except").items() {
                let inner = cidr_of(&except, errors);
                if let (Some(outer), Some(inner)) = (outer, inner)
                    && !(contains(outer, inner) && inner.1 > outer.1)
                {
                    except.invalid("must be a strict subset of `cidr`", errors);
                }
            }
        }
    }
    if peers == 0 {
        errors.push(FieldError::required(&at.path, "must specify a peer"));
    }
}

/// An address and its prefix length, or an error.
pub(super) fn cidr_of(at: &At<'_>, errors: &mut Errors) -> Option<(IpAddr, u32)> {
    let parsed = parse_cidr(at.text());
    if parsed.is_none() {
        at.invalid("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)", errors);
    }
    parsed
}

fn parse_cidr(text: &str) -> Option<(IpAddr, u32)> {
    let (ip, bits) = text.split_once('/')?;
    let (ip, bits): (IpAddr, u32) = (ip.parse().ok()?, bits.parse().ok()?);
    (bits <= if ip.is_ipv4() { 32 } else { 128 }).then_some((ip, bits))
}

fn contains(outer: (IpAddr, u32), inner: (IpAddr, u32)) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 4),
        IpAddr::V6(v6) => (v6.to_bits(), 6),
    };
    let ((a, family), (b, other)) = (bits(outer.0), bits(inner.0));
    let mask = if outer.1 == 0 { 0 } else { u128::MAX << (128 - outer.1) };
    family == other && (a & mask) == (b & mask)
}

pub(super) fn endpoints(object: At<'_>, errors: &mut Errors) {
    for subset in object.field("subsets").items() {
        let (ready, not_ready) = (subset.field("addresses"), subset.field("notReadyAddresses"));
        if ready.is_empty() && not_ready.is_empty() {
            errors.push(FieldError::required(&subset.path, "must specify `addresses` or `notReadyAddresses`"));
        }
        for address in ready.items().chain(not_ready.items()) {
            let ip = address.field("ip");
            ip.ip(errors);
            if let Ok(parsed) = ip.text().parse::<IpAddr>()
                && let Some(detail) = special(parsed)
            {
                ip.invalid(detail, errors);
            }
            let host = address.field("hostname");
            if !host.is_empty() {
                host.syntax(names::dns_label, errors);
            }
        }
        let ports = subset.field("ports");
        let several = ports.items().count() > 1;
        for port in ports.items() {
            let name = port.field("name");
            if !name.is_empty() {
                name.syntax(names::dns_label, errors);
            } else if several {
                errors.push(FieldError::required(&name.path, ""));
            }
            let number = port.field("port");
            if number.int().is_none_or(|n| !(1..=65535).contains(&n)) {
                errors.push(FieldError::invalid(
                    &number.path,
                    number.int().unwrap_or(0),
                    "must be between 1 and 65535, inclusive",
                ));
            }
            let protocol = port.field("protocol");
            if protocol.require(errors) {
                protocol.one_of(PROTOCOLS, errors);
            }
        }
    }
}

fn special(ip: IpAddr) -> Option<&'static str> {
    Some(match ip {
        _ if ip.is_unspecified() => "may not be unspecified (0.0.0.0 or ::)",
        _ if ip.is_loopback() => "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        IpAddr::V4(v4) if v4.is_link_local() => "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
        }
        IpAddr::V4(v4) if v4.octets()[..3] == [224, 0, 0] => {
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
        }
        _ => return None,
    })
}
