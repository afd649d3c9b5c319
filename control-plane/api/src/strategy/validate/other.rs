//! Kinds with a few rules each: events, certificates, flow control, aggregation, revisions.
//! Source: upstream's `pkg/apis/{core,certificates,flowcontrol}/validation` and kube-aggregator's.

use super::{Errors, cursor::At};
use crate::{names, status::FieldError};

const MAX_NOTE: usize = 1024;

/// The usages that a certificate may be asked for.
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

pub(super) fn core_event(object: At<'_>, errors: &mut Errors) {
    let (of, own) = (object.at("involvedObject.namespace"), object.at("metadata.namespace"));
    let fits = if of.is_empty() { matches!(own.text(), "default" | "kube-system") } else { of.text() == own.text() };
    if !fits {
        errors.push(FieldError::invalid(&of.path, of.text(), "does not match event.namespace"));
    }
}

pub(super) fn event(object: At<'_>, errors: &mut Errors) {
    let (of, own) = (object.at("regarding.namespace"), object.at("metadata.namespace"));
    let fits = if of.is_empty() { matches!(own.text(), "default" | "kube-system") } else { of.text() == own.text() };
    if !fits {
        errors.push(FieldError::invalid("involvedObject.namespace", of.text(), "does not match event.namespace"));
    }
    // What the core group's clients wrote has no time of the new kind and none of its rules.
    if object.field("eventTime").is_empty() {
        errors.push(FieldError::required("eventTime", ""));
        return;
    }
    let controller = object.field("reportingController");
    if controller.require(errors) {
        controller.syntax(names::qualified_name, errors);
    }
    for field in ["reportingInstance", "action", "reason"] {
        let at = object.field(field);
        at.require(errors);
        if at.text().len() > 128 {
            at.invalid("can have at most 128 characters", errors);
        }
    }
    let note = object.field("note");
    if note.text().len() > MAX_NOTE {
        errors.push(FieldError::invalid("message", note.text(), "can have at most 1024 characters"));
    }
    let kind = object.field("type");
    if !matches!(kind.text(), "Normal" | "Warning") {
        errors.push(FieldError::invalid("type", "", format!("has invalid value: {}", kind.text())));
    }
    let series = object.field("series");
    if series.present() {
        if series.field("count").int().is_none_or(|n| n < 2) {
            errors.push(FieldError::invalid("series.count", "", "should be at least 2"));
        }
        series.field("lastObservedTime").require(errors);
    }
}

pub(super) fn certificate_request(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    let usages = spec.field("usages");
    usages.require_because("usages", errors);
    let mut seen = std::collections::HashSet::new();
    for usage in usages.items() {
        usage.one_of(USAGES, errors);
        if !seen.insert(usage.text()) {
            errors.push(FieldError::duplicate(&usage.path, usage.value.clone()));
        }
    }
    let request = spec.field("request");
    if request.require(errors) && !is_request(request.text()) {
        request.invalid("PEM block type must be CERTIFICATE REQUEST", errors);
    }
    let signer = spec.field("signerName");
    if signer.require(errors) {
        let parts = signer.text().split_once('/');
        match parts {
            Some((domain, path)) if !path.contains('/') => {
                if !domain.contains('.') {
                    signer.invalid("should be a domain with at least two segments separated by dots", errors);
                }
                for detail in names::dns_subdomain(domain).into_iter().chain(names::dns_subdomain(path)) {
                    signer.invalid(detail, errors);
                }
            }
            _ => signer
                .invalid("must be a fully qualified domain and path of the form 'example.com/signer-name'", errors),
        }
    }
    let seconds = spec.field("expirationSeconds");
    if seconds.int().is_some_and(|n| n < 600) {
        seconds.invalid("may not specify a duration less than 600 seconds (10 minutes)", errors);
    }
}

fn is_request(base64: &str) -> bool {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(base64).unwrap_or_default();
    String::from_utf8_lossy(&bytes).contains("-----BEGIN CERTIFICATE REQUEST-----")
}

pub(super) fn flow_schema(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    let precedence = spec.field("matchingPrecedence");
    match precedence.int() {
        Some(n) if n <= 0 => precedence.invalid("must be a positive value", errors),
        Some(n) if n > 10_000 => precedence.invalid("must not be greater than 10000", errors),
        _ => {}
    }
    let level = spec.at("priorityLevelConfiguration.name");
    if level.require_because("must reference a priority level", errors) {
        level.syntax(names::dns_subdomain, errors);
    }
    let method = spec.at("distinguisherMethod.type");
    method.one_of(&["ByNamespace", "ByUser"], errors);
    for rule in spec.field("rules").items() {
        rule.field("subjects").require_because("subjects must contain at least one value", errors);
        for subject in rule.field("subjects").items() {
            let kind = subject.field("kind");
            match kind.text() {
                "Group" => drop(subject.at("group.name").require(errors)),
                "User" => drop(subject.at("user.name").require(errors)),
                "ServiceAccount" => {
                    subject.at("serviceAccount.name").require(errors);
                    subject
                        .at("serviceAccount.namespace")
                        .require_because("must specify namespace for service account", errors);
                }
                _ => {
                    let known = ["Group", "ServiceAccount", "User"];
                    errors.push(FieldError::not_supported(&kind.path, kind.text(), &known));
                }
            }
        }
        let (resources, others) = (rule.field("resourceRules"), rule.field("nonResourceRules"));
        if resources.is_empty() && others.is_empty() {
            let detail = "at least one of resourceRules and nonResourceRules has to be non-empty";
            errors.push(FieldError::required(&rule.path, detail));
        }
        for resource in resources.items() {
            for field in ["verbs", "apiGroups", "resources"] {
                resource.field(field).require(errors);
            }
            if !resource.field("clusterScope").is_true() && resource.field("namespaces").is_empty() {
                let detail = "resource rules that are not cluster scoped must supply at least one namespace";
                errors.push(FieldError::required(resource.field("namespaces").path, detail));
            }
        }
        for other in others.items() {
            for field in ["verbs", "nonResourceURLs"] {
                other.field(field).require(errors);
            }
        }
    }
}

pub(super) fn priority_level(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    let kind = spec.field("type");
    match kind.text() {
        "Limited" => {
            if spec.field("exempt").present() {
                spec.field("exempt").forbid("must be nil if the type is Limited", errors);
            }
            if !spec.field("limited").present() {
                let path = spec.field("limited").path;
                errors.push(FieldError::required(path, "must not be empty when type is Limited"));
            }
        }
        "Exempt" => {
            if spec.field("limited").present() {
                spec.field("limited").forbid("must be nil if the type is not Limited", errors);
            }
        }
        _ => errors.push(FieldError::not_supported(&kind.path, kind.text(), &["Exempt", "Limited"])),
    }
}

pub(super) fn api_service(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    let (group, version) = (spec.field("group"), spec.field("version"));
    let wanted = format!("{}.{}", version.text(), group.text());
    let name = object.at("metadata.name");
    if name.text() != wanted {
        name.invalid(format!("must be `spec.version+\".\"+spec.group`: {wanted:?}"), errors);
    }
    if !(group.is_empty() && version.text() == "v1") {
        if group.require(errors) {
            group.syntax(names::dns_subdomain, errors);
        }
        if version.require(errors) {
            version.syntax(names::dns_1035_label, errors);
        }
    }
    for (field, most) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
        let at = spec.field(field);
        let number = at.int().unwrap_or(0);
        if !(1..=most).contains(&number) {
            let detail = format!("must be positive and less than {most}");
            errors.push(FieldError::invalid(&at.path, number, detail));
        }
    }
    let service = spec.field("service");
    if !service.present() {
        for (field, what) in [("caBundle", "local APIServices may not have a caBundle")] {
            if !spec.field(field).is_empty() {
                spec.field(field).invalid(what, errors);
            }
        }
        return;
    }
    for field in ["namespace", "name"] {
        service.field(field).require(errors);
    }
    if spec.field("insecureSkipTLSVerify").is_true() && !spec.field("caBundle").is_empty() {
        spec.field("insecureSkipTLSVerify").invalid("may not be true if caBundle is present", errors);
    }
}

pub(super) fn controller_revision(object: At<'_>, errors: &mut Errors) {
    if !object.field("data").present() {
        errors.push(FieldError::required("data", "data is mandatory"));
    }
    object.field("revision").at_least(0, errors);
}

pub(super) fn controller_revision_change(old: At<'_>, new: At<'_>, errors: &mut Errors) {
    if old.field("data").value != new.field("data").value {
        new.field("data").immutable("field is immutable", errors);
    }
}
