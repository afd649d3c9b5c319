//! Pods and pod templates.

use std::collections::HashSet;

use super::{Errors, container, cursor::At, meta, volume};
use crate::{names, status::FieldError};

pub(super) fn pod(pod: At<'_>, errors: &mut Errors) {
    spec(pod.field("spec"), errors);
}

/// `metadata` and `spec` of a template.
pub(super) fn template(template: At<'_>, errors: &mut Errors) {
    meta::labels(template.at("metadata.labels"), errors);
    spec(template.field("spec"), errors);
}

pub(super) fn spec(spec: At<'_>, errors: &mut Errors) {
    let volumes = volume::volumes(spec.field("volumes"), errors);
    containers(&spec, &volumes, errors);
    let restart = spec.field("restartPolicy");
    if restart.require(errors) {
        restart.one_of(&["Always", "OnFailure", "Never"], errors);
    }
    spec.field("dnsPolicy").one_of(&["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"], errors);
    spec.field("terminationGracePeriodSeconds").at_least(0, errors);
    let deadline = spec.field("activeDeadlineSeconds");
    if deadline.int().is_some_and(|seconds| !(1..=i64::from(i32::MAX)).contains(&seconds)) {
        deadline.invalid("must be between 1 and 2147483647, inclusive", errors);
    }
    meta::labels(spec.field("nodeSelector"), errors);
    for name in ["serviceAccountName", "nodeName", "priorityClassName"] {
        let at = spec.field(name);
        if !at.is_empty() {
            at.syntax(names::dns_subdomain, errors);
        }
    }
    for name in ["hostname", "subdomain"] {
        let at = spec.field(name);
        if !at.is_empty() {
            at.syntax(names::dns_label, errors);
        }
    }
    for toleration in spec.field("tolerations").items() {
        self::toleration(&toleration, errors);
    }
    for alias in spec.field("hostAliases").items() {
        alias.field("ip").ip(errors);
        for name in alias.field("hostnames").items() {
            name.syntax(names::dns_subdomain, errors);
        }
    }
    for spread in spec.field("topologySpreadConstraints").items() {
        let skew = spread.field("maxSkew");
        if skew.int().unwrap_or(0) <= 0 {
            skew.invalid_number("must be greater than zero", errors);
        }
        spread.field("topologyKey").require_because("can not be empty", errors);
        let when = spread.field("whenUnsatisfiable");
        if when.require(errors) {
            when.one_of(&["DoNotSchedule", "ScheduleAnyway"], errors);
        }
    }
    node_affinity(spec.at("affinity.nodeAffinity"), errors);
    dns_config(&spec, errors);
    sysctls(&spec, errors);
    let mut gates = HashSet::new();
    for gate in spec.field("schedulingGates").items().map(|gate| gate.field("name")) {
        gate.syntax(names::qualified_name, errors);
        if !gates.insert(gate.text().to_owned()) {
            errors.push(FieldError::duplicate(&gate.path, gate.text()));
        }
    }
}

fn containers(spec: &At<'_>, volumes: &HashSet<String>, errors: &mut Errors) {
    let list = spec.field("containers");
    if list.is_empty() {
        errors.push(FieldError::required(&list.path, ""));
    }
    let host_network = spec.field("hostNetwork").is_true();
    let mut seen = HashSet::new();
    for (field, init) in [("initContainers", true), ("containers", false), ("ephemeralContainers", false)] {
        for at in spec.field(field).items() {
            let name = at.field("name");
            if name.require(errors) {
                name.syntax(names::dns_label, errors);
                if !seen.insert(name.text().to_owned()) {
                    errors.push(FieldError::duplicate(&name.path, name.text()));
                }
            }
            container::container(&at, volumes, init, host_network, errors);
        }
    }
    let mut ports = HashSet::new();
    for port in list.items().flat_map(|container| container.field("ports").items().collect::<Vec<_>>()) {
        let Some(number) = port.field("hostPort").int().filter(|number| *number > 0) else { continue };
        let key = format!("{}/{}/{number}", port.field("protocol").text(), port.field("hostIP").text());
        if !ports.insert(key.clone()) {
            errors.push(FieldError::duplicate(port.field("hostPort").path, key));
        }
    }
}

fn toleration(at: &At<'_>, errors: &mut Errors) {
    let (key, operator) = (at.field("key"), at.field("operator"));
    if !key.is_empty() {
        key.syntax(names::qualified_name, errors);
    } else if operator.text() != "Exists" {
        operator.invalid(
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            errors,
        );
    }
    operator.one_of(&["Equal", "Exists"], errors);
    if operator.text() == "Exists" && !at.field("value").is_empty() {
        at.field("value").invalid("value must be empty when `operator` is 'Exists'", errors);
    }
    at.field("effect").one_of(&["NoSchedule", "PreferNoSchedule", "NoExecute"], errors);
    if at.field("tolerationSeconds").present() && at.field("effect").text() != "NoExecute" {
        at.field("effect").invalid("effect must be 'NoExecute' when `tolerationSeconds` is set", errors);
    }
}

fn node_affinity(affinity: At<'_>, errors: &mut Errors) {
    let required = affinity.field("requiredDuringSchedulingIgnoredDuringExecution");
    if required.present() {
        required.field("nodeSelectorTerms").require_because("must have at least one node selector term", errors);
    }
    let terms = required.field("nodeSelectorTerms").items();
    let preferred = affinity.field("preferredDuringSchedulingIgnoredDuringExecution").items().map(|term| {
        let weight = term.field("weight");
        (weight.int().is_none_or(|w| !(1..=100).contains(&w)).then_some(weight), term.field("preference"))
    });
    let mut all: Vec<At<'_>> = terms.collect();
    for (bad_weight, term) in preferred {
        if let Some(weight) = bad_weight {
            weight.invalid_number("must be in the range 1-100", errors);
        }
        all.push(term);
    }
    for expression in all.iter().flat_map(|term| term.field("matchExpressions").items().collect::<Vec<_>>()) {
        let operator = expression.field("operator");
        expression.field("key").syntax(names::qualified_name, errors);
        match operator.text() {
            "In" | "NotIn" => {
                expression
                    .field("values")
                    .require_because("must be specified when `operator` is 'In' or 'NotIn'", errors);
            }
            "Exists" | "DoesNotExist" if !expression.field("values").is_empty() => {
                expression
                    .field("values")
                    .forbid("may not be specified when `operator` is 'Exists' or 'DoesNotExist'", errors);
            }
            "Gt" | "Lt" if expression.field("values").items().count() != 1 => {
                expression
                    .field("values")
                    .require_because("must be specified single value when `operator` is 'Lt' or 'Gt'", errors);
            }
            "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            _ => operator.invalid("not a valid selector operator", errors),
        }
    }
}

/// The names of kernel parameters, and that none belongs to a namespace which the pod shares with the node.
fn sysctls(spec: &At<'_>, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for name in spec.at("securityContext.sysctls").items().map(|sysctl| sysctl.field("name")) {
        let text = name.text();
        if !name.require(errors) {
            continue;
        }
        if names::is_sysctl(text) {
            if !seen.insert(text) {
                errors.push(FieldError::duplicate(&name.path, text));
            }
        } else {
            let (max, pattern) = (names::MAX_SYSCTL, names::SYSCTL);
            name.invalid(format!("must have at most {max} characters and match regex {pattern}"), errors);
        }
        let dotted = text.replace('/', ".");
        let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| dotted.starts_with(prefix));
        if dotted.starts_with("net.") && spec.field("hostNetwork").is_true() {
            name.invalid("may not be specified when 'hostNetwork' is true", errors);
        } else if (ipc || dotted == "kernel.sem") && spec.field("hostIPC").is_true() {
            name.invalid("may not be specified when 'hostIPC' is true", errors);
        }
    }
}

fn dns_config(spec: &At<'_>, errors: &mut Errors) {
    let config = spec.field("dnsConfig");
    if spec.field("dnsPolicy").text() == "None" {
        if !config.present() {
            errors.push(FieldError::required(&config.path, "must provide `dnsConfig` when `dnsPolicy` is None"));
        } else if config.field("nameservers").is_empty() {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.push(FieldError::required(config.field("nameservers").path, detail));
        }
    }
    for address in config.field("nameservers").items() {
        address.ip(errors);
    }
}
