//! One container of a pod spec.

use std::collections::HashSet;

use super::{Errors, cursor::At, volume};
use crate::{names, quantity::Quantity, status::FieldError};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const HANDLERS: [&str; 4] = ["exec", "grpc", "httpGet", "tcpSocket"];

pub(super) fn container(at: &At<'_>, volumes: &HashSet<String>, init: bool, host_network: bool, errors: &mut Errors) {
    let image = at.field("image");
    if image.require(errors) && image.text() != image.text().trim() {
        image.invalid("must not have leading or trailing whitespace", errors);
    }
    at.field("imagePullPolicy").one_of(&["Always", "IfNotPresent", "Never"], errors);
    at.field("terminationMessagePolicy").one_of(&["FallbackToLogsOnError", "File"], errors);
    ports(at.field("ports"), host_network, errors);
    environment(at, errors);
    volume::mounts(at.field("volumeMounts"), volumes, errors);
    resources(at.field("resources"), errors);
    let sidecar = init && at.field("restartPolicy").text() == "Always";
    if init && at.field("restartPolicy").present() {
        at.field("restartPolicy").one_of(&["Always", "Never", "OnFailure"], errors);
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = at.field(name);
        if !probe.present() {
            continue;
        }
        if init && !sidecar {
            probe.forbid("may not be set for init containers without restartPolicy=Always", errors);
        }
        self::probe(&probe, name, errors);
    }
    for name in ["postStart", "preStop"] {
        let hook = at.field("lifecycle").field(name);
        if hook.present() {
            handler(&hook, &["exec", "httpGet", "sleep", "tcpSocket"], errors);
        }
    }
    security(at.field("securityContext"), errors);
}

fn ports(list: At<'_>, host_network: bool, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for port in list.items() {
        let name = port.field("name");
        if !name.is_empty() {
            name.port_name(errors);
            if !seen.insert(name.text().to_owned()) {
                errors.push(FieldError::duplicate(&name.path, name.text()));
            }
        }
        let number = port.field("containerPort");
        if number.int().unwrap_or(0) == 0 {
            errors.push(FieldError::required(&number.path, ""));
        } else {
            number.port(errors);
        }
        let host = port.field("hostPort");
        if host.int().is_some_and(|number| number != 0) {
            host.port(errors);
            if host_network && host.value != number.value {
                host.invalid("must match `containerPort` when `hostNetwork` is true", errors);
            }
        }
        let protocol = port.field("protocol");
        if protocol.require(errors) {
            protocol.one_of(PROTOCOLS, errors);
        }
    }
}

fn environment(at: &At<'_>, errors: &mut Errors) {
    for variable in at.field("env").items() {
        let name = variable.field("name");
        if name.require(errors) && (name.text().contains('=') || !name.text().chars().all(|c| (' '..='~').contains(&c)))
        {
            let detail =
                "a valid environment variable name must consist only of printable ASCII characters other than '='";
            name.invalid(detail, errors);
        }
        let from = variable.field("valueFrom");
        if !from.present() {
            continue;
        }
        let sources = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
        let given = sources.iter().filter(|source| from.field(source).present()).count();
        if given == 0 {
            let all = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
            errors.push(FieldError::invalid(&from.path, "", all));
        } else if given > 1 {
            errors.push(FieldError::invalid(&from.path, "", "may not have more than one field specified at a time"));
        }
        if !variable.field("value").is_empty() {
            errors.push(FieldError::invalid(&from.path, "", "may not be specified when `value` is not empty"));
        }
        for source in ["configMapKeyRef", "secretKeyRef"] {
            let source = from.field(source);
            if source.present() {
                source.field("key").require(errors);
            }
        }
    }
    for source in at.field("envFrom").items() {
        if !source.field("configMapRef").present() && !source.field("secretRef").present() {
            errors.push(FieldError::invalid(&source.path, "", "must specify one of: `configMapRef` or `secretRef`"));
        }
    }
}

/// Requests and limits: quantities, not negative, requests at most limits.
pub(super) fn resources(at: At<'_>, errors: &mut Errors) {
    let limits = at.field("limits");
    for list in [limits.clone(), at.field("requests")] {
        for (name, value) in list.entries() {
            for detail in names::qualified_name(name) {
                errors.push(FieldError::invalid(&list.path, name, detail));
            }
            match Quantity::from_value(value.value) {
                None => value.invalid("must be a quantity (e.g. 100m, 1.5, 128Mi)", errors),
                Some(quantity) if quantity.is_negative() => {
                    value.invalid("must be greater than or equal to 0", errors);
                }
                Some(quantity) if name == "pods" || name.contains('/') => {
                    if !quantity.is_integer() {
                        value.invalid("must be an integer", errors);
                    }
                }
                Some(_) => {}
            }
        }
    }
    for (name, request) in at.field("requests").entries() {
        let Some(limit) = limits.value.get(name) else { continue };
        let (Some(wanted), Some(most)) = (Quantity::from_value(request.value), Quantity::from_value(limit)) else {
            continue;
        };
        let whole = name.contains('/') || name.starts_with("hugepages-");
        let field = at.field("requests").path;
        let shown = || request.value.as_str().map_or_else(|| request.value.to_string(), str::to_owned);
        if whole && wanted != most {
            errors.push(FieldError::invalid(field, shown(), format!("must be equal to {name} limit of {most}")));
        } else if wanted > most {
            let detail = format!("must be less than or equal to {name} limit of {most}");
            errors.push(FieldError::invalid(field, shown(), detail));
        }
    }
}

fn probe(at: &At<'_>, name: &str, errors: &mut Errors) {
    handler(at, &HANDLERS, errors);
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        at.field(field).at_least(0, errors);
    }
    let success = at.field("successThreshold");
    if name != "readinessProbe" && success.int().is_some_and(|times| times != 1) {
        success.invalid("must be 1", errors);
    }
    let grace = at.field("terminationGracePeriodSeconds");
    if grace.present() && name == "readinessProbe" {
        grace.invalid("must not be set for readinessProbes", errors);
    } else {
        grace.at_least(1, errors);
    }
}

fn handler(at: &At<'_>, allowed: &[&str], errors: &mut Errors) {
    let given: Vec<At<'_>> = allowed.iter().map(|name| at.field(name)).filter(At::present).collect();
    if given.is_empty() {
        errors.push(FieldError::required(&at.path, "must specify a handler type"));
    }
    for extra in given.iter().skip(1) {
        extra.forbid("may not specify more than 1 handler type", errors);
    }
    for one in &given {
        if one.path.ends_with("exec") {
            one.field("command").require(errors);
        } else if one.path.ends_with("sleep") {
            one.field("seconds").at_least(0, errors);
        } else {
            let port = one.field("port");
            if port.present() {
                port.port_or_name(errors);
            } else {
                errors.push(FieldError::required(&port.path, ""));
            }
        }
        if one.path.ends_with("httpGet") {
            one.field("path").require(errors);
            one.field("scheme").one_of(&["HTTP", "HTTPS"], errors);
        }
    }
}

fn security(at: At<'_>, errors: &mut Errors) {
    for field in ["runAsUser", "runAsGroup"] {
        let id = at.field(field);
        if id.int().is_some_and(|id| !(0..=i64::from(i32::MAX)).contains(&id)) {
            id.invalid("must be between 0 and 2147483647, inclusive", errors);
        }
    }
    let escalation = at.field("allowPrivilegeEscalation");
    if escalation.present() && !escalation.is_true() && at.field("privileged").is_true() {
        at.invalid("cannot set `allowPrivilegeEscalation` to false and `privileged` to true", errors);
    }
}
