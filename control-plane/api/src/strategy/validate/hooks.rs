//! Webhook configurations and admission policies. Source: upstream's
//! `pkg/apis/admissionregistration/validation`.

use std::collections::HashSet;

use super::{Errors, cursor::At, workload};
use crate::{cel, names, status::FieldError};

/// The most match conditions, variables or validations of one webhook or policy.
const MAX_CONDITIONS: usize = 64;

pub(super) fn mutating(object: At<'_>, errors: &mut Errors) {
    webhooks(&object, errors);
    for hook in object.field("webhooks").items() {
        hook.field("reinvocationPolicy").one_of(&["IfNeeded", "Never"], errors);
    }
}

pub(super) fn validating(object: At<'_>, errors: &mut Errors) {
    webhooks(&object, errors);
}

fn webhooks(object: &At<'_>, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for hook in object.field("webhooks").items() {
        let name = hook.field("name");
        if name.require(errors) {
            let broken = names::dns_subdomain(name.text());
            if broken.is_empty() && name.text().split('.').count() < 3 {
                name.invalid("should be a domain with at least three segments separated by dots", errors);
            }
            for detail in broken {
                name.invalid(detail, errors);
            }
        }
        if !seen.insert(name.text()) {
            errors.push(FieldError::duplicate(&name.path, name.value.clone()));
        }
        for rule in hook.field("rules").items() {
            self::rule(&rule, true, errors);
        }
        hook.field("failurePolicy").one_of(&["Fail", "Ignore"], errors);
        hook.field("matchPolicy").one_of(&["Equivalent", "Exact"], errors);
        let effects = hook.field("sideEffects");
        if effects.require_because("must specify one of None, NoneOnDryRun", errors) {
            effects.one_of(&["None", "NoneOnDryRun"], errors);
        }
        let timeout = hook.field("timeoutSeconds");
        if timeout.int().is_some_and(|n| !(1..=30).contains(&n)) {
            timeout.invalid("the timeout value must be between 1 and 30 seconds", errors);
        }
        for selector in ["namespaceSelector", "objectSelector"] {
            workload::label_selector(&hook.field(selector), errors);
        }
        client_config(&hook.field("clientConfig"), errors);
        let versions = hook.field("admissionReviewVersions");
        if versions.require_because("must specify one of v1, v1beta1", errors)
            && !versions.items().any(|v| matches!(v.text(), "v1" | "v1beta1"))
        {
            versions.invalid("must include at least one of v1, v1beta1", errors);
        }
        match_conditions(&hook.field("matchConditions"), errors);
    }
}

pub(super) fn client_config(config: &At<'_>, errors: &mut Errors) {
    let (url, service) = (config.field("url"), config.field("service"));
    if url.present() == service.present() {
        errors.push(FieldError::required(&config.path, "exactly one of url or service is required"));
    }
    if url.present() {
        let form = "desired format: https://host[/path]";
        let (scheme, rest) = url.text().split_once("://").unwrap_or(("", url.text()));
        if scheme != "https" {
            let detail = format!("'https' is the only allowed URL scheme; {form}");
            errors.push(FieldError::invalid(&url.path, scheme, detail));
        }
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if host.is_empty() {
            errors.push(FieldError::invalid(&url.path, "", format!("host must be specified; {form}")));
        }
        if host.contains('@') {
            url.invalid("user information is not permitted in the URL", errors);
        }
        for (mark, what) in
            [('#', "fragments are not permitted in the URL"), ('?', "query parameters are not permitted in the URL")]
        {
            if rest.contains(mark) {
                url.invalid(what, errors);
            }
        }
    }
    if service.present() {
        for field in ["name", "namespace"] {
            service.field(field).require_because(&format!("service {field} is required"), errors);
        }
        let port = service.field("port");
        if port.int().is_some_and(|n| !(1..=65535).contains(&n)) {
            port.invalid("port is not valid: must be between 1 and 65535, inclusive", errors);
        }
        let path = service.field("path");
        if path.present() && !path.text().starts_with('/') {
            path.invalid("must start with a '/'", errors);
        }
    }
}

fn rule(rule: &At<'_>, subresources: bool, errors: &mut Errors) {
    let operations = rule.field("operations");
    operations.require(errors);
    let all = operations.items().any(|o| o.text() == "*");
    if all && operations.items().count() > 1 {
        operations.invalid("if '*' is present, must not specify other operations", errors);
    }
    for operation in operations.items() {
        operation.one_of(&["*", "CONNECT", "CREATE", "DELETE", "UPDATE"], errors);
    }
    for (field, what) in [("apiGroups", "groups"), ("apiVersions", "versions")] {
        let at = rule.field(field);
        at.require(errors);
        if at.items().any(|v| v.text() == "*") && at.items().count() > 1 {
            at.invalid(format!("if '*' is present, must not specify other API {what}"), errors);
        }
        for value in at.items().filter(|v| field == "apiVersions" && v.text().is_empty()) {
            errors.push(FieldError::required(value.path, ""));
        }
    }
    let resources = rule.field("resources");
    resources.require(errors);
    for resource in resources.items() {
        if resource.is_empty() {
            errors.push(FieldError::required(&resource.path, ""));
        }
        if !subresources && resource.text().contains('/') {
            resource.invalid("must not contain subresources", errors);
        }
    }
    let whole = resources.items().any(|r| r.text() == "*/*");
    if whole && resources.items().count() > 1 {
        resources.invalid("if '*/*' is present, must not specify other resources", errors);
    }
    let star = resources.items().any(|r| r.text() == "*");
    if star && resources.items().filter(|r| !r.text().contains('/')).count() > 1 {
        let detail = "if '*' is present, must not specify other resources without subresources";
        resources.invalid(detail, errors);
    }
    rule.field("scope").one_of(&["*", "Cluster", "Namespaced"], errors);
}

fn match_conditions(conditions: &At<'_>, errors: &mut Errors) {
    let count = conditions.items().count();
    if count > MAX_CONDITIONS {
        errors.push(FieldError::too_many(&conditions.path, count, MAX_CONDITIONS));
    }
    let mut seen = HashSet::new();
    for condition in conditions.items() {
        let name = condition.field("name");
        if name.require(errors) {
            name.syntax(names::qualified_name, errors);
            if !seen.insert(name.text()) {
                errors.push(FieldError::duplicate(&name.path, name.value.clone()));
            }
        }
        expression(&condition.field("expression"), "", errors);
    }
}

fn expression(at: &At<'_>, detail: &str, errors: &mut Errors) {
    if at.text().trim().is_empty() {
        errors.push(FieldError::required(&at.path, detail));
    } else if let Err(error) = cel::Program::parse(at.text()) {
        at.invalid(format!("compilation failed: {error}"), errors);
    }
}

fn match_resources(at: &At<'_>, required: bool, errors: &mut Errors) {
    if !at.present() {
        if required {
            errors.push(FieldError::required(&at.path, ""));
        }
        return;
    }
    let rules = at.field("resourceRules");
    if required {
        rules.require(errors);
    }
    for rules in [rules, at.field("excludeResourceRules")] {
        for rule in rules.items() {
            self::rule(&rule, true, errors);
        }
    }
    at.field("matchPolicy").one_of(&["Equivalent", "Exact"], errors);
    for selector in ["namespaceSelector", "objectSelector"] {
        workload::label_selector(&at.field(selector), errors);
    }
}

fn policy_frame(spec: &At<'_>, errors: &mut Errors) {
    let failure = spec.field("failurePolicy");
    if failure.require(errors) {
        failure.one_of(&["Fail", "Ignore"], errors);
    }
    let kind = spec.field("paramKind");
    if kind.present() {
        for field in ["apiVersion", "kind"] {
            kind.field(field).require(errors);
        }
    }
    match_resources(&spec.field("matchConstraints"), true, errors);
    match_conditions(&spec.field("matchConditions"), errors);
    let mut seen = HashSet::new();
    for variable in spec.field("variables").items() {
        let name = variable.field("name");
        if name.text().trim().is_empty() {
            errors.push(FieldError::required(&name.path, "name is not specified"));
        } else if !cel::is_identifier(name.text()) {
            name.invalid("name is not a valid CEL identifier", errors);
        }
        if !seen.insert(name.text()) {
            errors.push(FieldError::duplicate(&name.path, name.value.clone()));
        }
        expression(&variable.field("expression"), "expression is not specified", errors);
    }
}

pub(super) fn validating_policy(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    policy_frame(&spec, errors);
    let (validations, annotations) = (spec.field("validations"), spec.field("auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        for at in [&validations, &annotations] {
            errors.push(FieldError::required(&at.path, "validations or auditAnnotations must be specified"));
        }
    }
    for validation in validations.items() {
        expression(&validation.field("expression"), "expression is not specified", errors);
        let message = validation.field("message");
        if message.present() {
            if message.text().trim().is_empty() {
                message.invalid("message must be non-empty if specified", errors);
            } else if message.text().contains('\n') {
                message.invalid("message must not contain line breaks", errors);
            }
        }
        let computed = validation.field("messageExpression");
        if computed.present() {
            expression(&computed, "must be non-empty if specified", errors);
        }
        let reason = validation.field("reason");
        reason.one_of(&["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"], errors);
    }
    for annotation in annotations.items() {
        let key = annotation.field("key");
        if key.require(errors) {
            key.syntax(names::qualified_name, errors);
        }
        expression(&annotation.field("valueExpression"), "", errors);
    }
}

pub(super) fn mutating_policy(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    policy_frame(&spec, errors);
    let mutations = spec.field("mutations");
    mutations.require_because("mutations must contain at least one item", errors);
    for mutation in mutations.items() {
        let kind = mutation.field("patchType");
        let (apply, patch) = (mutation.field("applyConfiguration"), mutation.field("jsonPatch"));
        match kind.text() {
            "ApplyConfiguration" => {
                if !apply.present() {
                    let detail = "must be specified when patchType is ApplyConfiguration";
                    errors.push(FieldError::required(&apply.path, detail));
                } else {
                    expression(&apply.field("expression"), "", errors);
                }
                if patch.present() {
                    patch.invalid("must not be specified when patchType is ApplyConfiguration", errors);
                }
            }
            "JSONPatch" => {
                if !patch.present() {
                    errors.push(FieldError::required(&patch.path, "must be specified when patchType is JSONPatch"));
                } else {
                    expression(&patch.field("expression"), "", errors);
                }
                if apply.present() {
                    apply.invalid("must not be specified when patchType is JSONPatch", errors);
                }
            }
            "" => errors.push(FieldError::required(&kind.path, "")),
            _ => kind.one_of(&["ApplyConfiguration", "JSONPatch"], errors),
        }
    }
    let again = spec.field("reinvocationPolicy");
    if again.require(errors) {
        again.one_of(&["IfNeeded", "Never"], errors);
    }
}

pub(super) fn mutating_binding(object: At<'_>, errors: &mut Errors) {
    binding(&object.field("spec"), errors);
}

pub(super) fn validating_binding(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    binding(&spec, errors);
    let actions = spec.field("validationActions");
    actions.require(errors);
    let mut seen = HashSet::new();
    for action in actions.items() {
        action.one_of(&["Audit", "Deny", "Warn"], errors);
        if !seen.insert(action.text()) {
            errors.push(FieldError::duplicate(&action.path, action.value.clone()));
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        let detail = "must not contain both Deny and Warn (repeating the same validation failure information in the \
                      API response and headers serves no purpose)";
        actions.invalid(detail, errors);
    }
}

fn binding(spec: &At<'_>, errors: &mut Errors) {
    spec.field("policyName").require(errors);
    let params = spec.field("paramRef");
    if params.present() {
        let (name, selector) = (params.field("name"), params.field("selector"));
        match (!name.is_empty(), selector.present()) {
            (true, true) => {
                name.forbid("name and selector are mutually exclusive", errors);
            }
            (false, false) => {
                errors.push(FieldError::required(&params.path, "one of name or selector must be specified"))
            }
            _ => {}
        }
        workload::label_selector(&selector, errors);
        let action = params.field("parameterNotFoundAction");
        if action.require(errors) {
            action.one_of(&["Allow", "Deny"], errors);
        }
    }
    match_resources(&spec.field("matchResources"), false, errors);
}
