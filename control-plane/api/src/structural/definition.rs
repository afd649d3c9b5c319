//! What a CustomResourceDefinition has to be. Source: apiextensions-apiserver's
//! `pkg/apis/apiextensions/validation` and `pkg/apiserver/schema`.

use std::collections::HashSet;

use serde_json::Value;

use super::{
    schema::{Kind, Schema},
    structure::structure,
};
use crate::{
    cel::{self, limits},
    names,
    status::FieldError,
};

type Errors = Vec<FieldError>;

/// What a printer column may hold.
const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const REASONS: [&str; 4] = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

/// Every broken rule of a new definition with its defaults.
pub fn definition(object: &Value) -> Errors {
    let mut errors = Vec::new();
    let spec = &object["spec"];
    let text = |value: &'_ Value| value.as_str().unwrap_or_default().to_owned();
    let (group, plural) = (text(&spec["group"]), text(&spec["names"]["plural"]));
    let name = text(&object["metadata"]["name"]);
    let wanted = format!("{plural}.{group}");
    if name != wanted {
        let detail = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid("metadata.name", name, detail));
    }
    if group.is_empty() {
        errors.push(FieldError::required("spec.group", ""));
    } else {
        let broken = names::dns_subdomain(&group);
        if broken.is_empty() && group.split('.').count() < 2 {
            errors.push(FieldError::invalid("spec.group", group.clone(), "should be a domain with at least one dot"));
        }
        errors.extend(broken.into_iter().map(|why| FieldError::invalid("spec.group", group.clone(), why)));
    }
    if is_protected(&group) {
        protected(object, &group, &mut errors);
    }
    match spec["scope"].as_str() {
        None | Some("") => errors.push(FieldError::required("spec.scope", "")),
        Some("Cluster" | "Namespaced") => {}
        Some(other) => errors.push(FieldError::not_supported("spec.scope", other, &["Cluster", "Namespaced"])),
    }
    self::names(&spec["names"], "spec.names", &mut errors);
    versions(spec, &mut errors);
    conversion(spec, &mut errors);
    if spec["preserveUnknownFields"] == true {
        errors.push(FieldError::invalid(
            "spec.preserveUnknownFields",
            true,
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in \
             spec.versions[*].schema instead",
        ));
    }
    errors
}

fn is_protected(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"].iter().any(|own| group == *own || group.ends_with(&format!(".{own}")))
}

/// Groups of the community need an approval.
fn protected(object: &Value, group: &str, errors: &mut Errors) {
    const KEY: &str = "api-approved.kubernetes.io";
    let approval = object["metadata"]["annotations"][KEY].as_str().unwrap_or_default();
    let path = format!("metadata.annotations[{KEY}]");
    if approval.is_empty() {
        let detail = format!(
            "protected groups must have approval annotation \"{KEY}\", see https://github.com/kubernetes/enhancements/pull/1111"
        );
        errors.push(FieldError::required(path, detail));
    } else if !(approval.starts_with("unapproved") || approval.contains("://")) {
        let detail = format!(
            "protected groups must have approval annotation \"{KEY}\" with either a URL or a reason starting with \
             \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111 ({group})"
        );
        errors.push(FieldError::invalid(path, approval, detail));
    }
}

fn names(names: &Value, path: &str, errors: &mut Errors) {
    let label = |field: &str, required: bool, errors: &mut Errors| {
        let text = names[field].as_str().unwrap_or_default();
        let at = format!("{path}.{field}");
        if text.is_empty() {
            if required {
                errors.push(FieldError::required(at, ""));
            }
            return;
        }
        for why in crate::names::dns_1035_label(&text.to_lowercase()) {
            errors.push(FieldError::invalid(at.clone(), text, why));
        }
        if matches!(field, "plural" | "singular") && text != text.to_lowercase() {
            let why = crate::names::dns_1035_label(text).into_iter().next().unwrap_or_default();
            errors.push(FieldError::invalid(at, text, why));
        }
    };
    for (field, required) in [("plural", true), ("singular", false), ("kind", true), ("listKind", false)] {
        label(field, required, errors);
    }
    if let (Some(kind), Some(list)) = (names["kind"].as_str(), names["listKind"].as_str())
        && kind == list
        && !kind.is_empty()
    {
        let at = format!("{path}.listKind");
        errors.push(FieldError::invalid(at, list, "kind and listKind may not be the same"));
    }
    for field in ["shortNames", "categories"] {
        for (i, name) in names[field].as_array().into_iter().flatten().enumerate() {
            let text = name.as_str().unwrap_or_default();
            for why in crate::names::dns_1035_label(text) {
                errors.push(FieldError::invalid(format!("{path}.{field}[{i}]"), text, why));
            }
        }
    }
}

fn versions(spec: &Value, errors: &mut Errors) {
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut seen = HashSet::new();
    let mut stored = 0;
    for (i, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{i}]");
        let name = version["name"].as_str().unwrap_or_default();
        for why in crate::names::dns_1035_label(name) {
            errors.push(FieldError::invalid(format!("{path}.name"), name, why));
        }
        if !seen.insert(name) {
            errors.push(FieldError::invalid(format!("{path}.name"), name, "must be unique"));
        }
        stored += usize::from(version["storage"] == true);
        let schema = &version["schema"]["openAPIV3Schema"];
        if schema.is_null() {
            errors.push(FieldError::required(format!("{path}.schema.openAPIV3Schema"), "schemas are required"));
        } else {
            self::schema(schema, &format!("{path}.schema.openAPIV3Schema"), errors);
        }
        subresources(&version["subresources"], &format!("{path}.subresources"), errors);
        columns(&version["additionalPrinterColumns"], &format!("{path}.additionalPrinterColumns"), errors);
        selectable(version, &path, errors);
    }
    if stored != 1 {
        let value = spec["versions"].clone();
        let detail = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid("spec.versions", value, detail));
    }
}

fn conversion(spec: &Value, errors: &mut Errors) {
    let conversion = &spec["conversion"];
    let hook = &conversion["webhook"];
    match conversion["strategy"].as_str() {
        None | Some("") => errors.push(FieldError::required("spec.conversion.strategy", "")),
        Some("None") => {
            if !hook.is_null() {
                let detail = "should not be set when strategy is not set to Webhook";
                errors.push(FieldError::forbidden("spec.conversion.webhook", detail));
            }
        }
        Some("Webhook") => {
            let config = &hook["clientConfig"];
            if config.is_null() {
                let detail = "required when strategy is set to Webhook";
                errors.push(FieldError::required("spec.conversion.webhook.clientConfig", detail));
            } else if config["url"].is_string() == config["service"].is_object() {
                let detail = "exactly one of url or service is required";
                errors.push(FieldError::required("spec.conversion.webhook.clientConfig", detail));
            }
            let versions = hook["conversionReviewVersions"].as_array().filter(|v| !v.is_empty());
            match versions {
                None => {
                    errors.push(FieldError::required("spec.conversion.webhook.conversionReviewVersions", ""));
                }
                Some(versions) if !versions.iter().any(|v| v == "v1" || v == "v1beta1") => {
                    let detail = "must include at least one of v1, v1beta1";
                    let path = "spec.conversion.webhook.conversionReviewVersions";
                    errors.push(FieldError::invalid(path, hook["conversionReviewVersions"].clone(), detail));
                }
                Some(_) => {}
            }
        }
        Some(other) => {
            errors.push(FieldError::not_supported("spec.conversion.strategy", other, &["None", "Webhook"]));
        }
    }
}

fn subresources(value: &Value, path: &str, errors: &mut Errors) {
    let scale = &value["scale"];
    if !scale.is_object() {
        return;
    }
    for (field, root, required) in [
        ("specReplicasPath", ".spec.", true),
        ("statusReplicasPath", ".status.", true),
        ("labelSelectorPath", "", false),
    ] {
        let text = scale[field].as_str().unwrap_or_default();
        let at = format!("{path}.scale.{field}");
        if text.is_empty() {
            if required {
                errors.push(FieldError::required(at, ""));
            }
            continue;
        }
        if text.contains(['[', ']']) || !text.starts_with('.') {
            errors.push(FieldError::invalid(at, text, "should be a simple json path without array notation"));
        } else if !root.is_empty() && !text.starts_with(root) {
            let why = format!("should be a json path under {}", root.trim_end_matches('.'));
            errors.push(FieldError::invalid(at, text, why));
        } else if root.is_empty() && !text.starts_with(".spec.") && !text.starts_with(".status.") {
            errors.push(FieldError::invalid(at, text, "should be a json path under either .spec or .status"));
        }
    }
}

fn columns(value: &Value, path: &str, errors: &mut Errors) {
    for (i, column) in value.as_array().into_iter().flatten().enumerate() {
        let path = format!("{path}[{i}]");
        if column["name"].as_str().unwrap_or_default().is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        }
        match column["type"].as_str().unwrap_or_default() {
            "" => {
                let detail = format!("must be one of {}", COLUMN_TYPES.join(","));
                errors.push(FieldError::required(format!("{path}.type"), detail));
            }
            kind if COLUMN_TYPES.contains(&kind) => {}
            kind => {
                let detail = format!("must be one of {}", COLUMN_TYPES.join(","));
                errors.push(FieldError::invalid(format!("{path}.type"), kind, detail));
            }
        }
        let format = column["format"].as_str().unwrap_or_default();
        let formats = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
        if !format.is_empty() && !formats.contains(&format) {
            let detail = format!("must be one of {}", formats.join(","));
            errors.push(FieldError::invalid(format!("{path}.format"), format, detail));
        }
        if column["jsonPath"].as_str().unwrap_or_default().is_empty() {
            errors.push(FieldError::required(format!("{path}.jsonPath"), ""));
        }
    }
}

fn selectable(version: &Value, path: &str, errors: &mut Errors) {
    let fields = version["selectableFields"].as_array().map(Vec::as_slice).unwrap_or_default();
    if fields.len() > 8 {
        errors.push(FieldError::too_many(format!("{path}.selectableFields"), fields.len(), 8));
    }
    let mut seen = HashSet::new();
    for (i, field) in fields.iter().enumerate() {
        let at = format!("{path}.selectableFields[{i}].jsonPath");
        let text = field["jsonPath"].as_str().unwrap_or_default();
        if text.is_empty() {
            errors.push(FieldError::required(at, ""));
            continue;
        }
        if !seen.insert(text) {
            errors.push(FieldError::duplicate(at, text));
            continue;
        }
        if text.starts_with(".metadata") {
            errors.push(FieldError::invalid(at, text, "must not point to fields in metadata"));
            continue;
        }
        let mut node = &version["schema"]["openAPIV3Schema"];
        for part in text.trim_start_matches('.').split('.') {
            node = &node["properties"][part];
        }
        match node["type"].as_str() {
            Some("string" | "integer" | "boolean") => {}
            None => errors.push(FieldError::invalid(at, text, "field does not exist")),
            Some(_) => {
                errors.push(FieldError::invalid(at, text, "must point to a field of type string, boolean or integer"));
            }
        }
    }
}

/// A schema has to be structural, with valid defaults and rules.
fn schema(value: &Value, path: &str, errors: &mut Errors) {
    let before = errors.len();
    if value["type"] != "object" {
        match value["type"].as_str() {
            None | Some("") => {
                errors.push(FieldError::required(format!("{path}.type"), "must not be empty at the root"))
            }
            Some(other) => {
                errors.push(FieldError::invalid(format!("{path}.type"), other, "must be object at the root"));
            }
        }
    }
    if value["nullable"] == true {
        errors.push(FieldError::forbidden(format!("{path}.nullable"), "nullable cannot be true at the root"));
    }
    structure(value, path, true, errors);
    if errors.len() > before {
        return;
    }
    let compiled = Schema::root(value);
    let mut total = 0u64;
    rules(value, &compiled, path, 1, true, &mut total, errors);
    if total > limits::SCHEMA_ESTIMATE {
        let factor = total as f64 / limits::SCHEMA_ESTIMATE as f64;
        let detail = format!(
            "x-kubernetes-validations estimated cost total for entire OpenAPIv3 schema exceeds budget by factor of \
             {} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and \
             strings are declared)",
            factor_text(factor)
        );
        errors.push(FieldError::forbidden(path, detail));
    }
}

fn factor_text(factor: f64) -> String {
    if factor > 100.0 { "more than 100x".to_owned() } else { format!("{factor:.1}x") }
}

/// The CEL rules of a schema, and what they may cost together: `times` is how often the place may
/// occur in one object.
fn rules(value: &Value, schema: &Schema, path: &str, times: u64, root: bool, total: &mut u64, errors: &mut Errors) {
    for (i, rule) in value["x-kubernetes-validations"].as_array().into_iter().flatten().enumerate() {
        let at = |field: &str| format!("{path}.x-kubernetes-validations[{i}].{field}");
        self::rule(rule, schema, &at, times, total, errors);
    }
    for (name, property) in value["properties"].as_object().into_iter().flatten() {
        if root && matches!(name.as_str(), "metadata" | "apiVersion" | "kind") {
            continue;
        }
        if let Some(inner) = schema.properties.get(name) {
            rules(property, inner, &format!("{path}.properties[{name}]"), times, false, total, errors);
        }
    }
    let below = || times.saturating_mul(schema.most_occurrences());
    if let Some(inner) = schema.items() {
        rules(&value["items"], inner, &format!("{path}.items"), below(), false, total, errors);
    }
    if let Some(inner) = schema.additional() {
        rules(
            &value["additionalProperties"],
            inner,
            &format!("{path}.additionalProperties"),
            below(),
            false,
            total,
            errors,
        );
    }
}

fn rule(rule: &Value, schema: &Schema, at: &dyn Fn(&str) -> String, times: u64, total: &mut u64, errors: &mut Errors) {
    let text = |field: &str| rule[field].as_str().unwrap_or_default();
    let source = text("rule");
    if source.trim().is_empty() {
        errors.push(FieldError::required(at("rule"), "rule is not specified"));
        return;
    }
    let message = text("message");
    if !message.is_empty() && message.trim().is_empty() {
        errors.push(FieldError::invalid(at("message"), message, "message must be non-empty if specified"));
    } else if message.contains('\n') {
        errors.push(FieldError::invalid(at("message"), message, "message must not contain line breaks"));
    } else if source.contains('\n') && message.is_empty() && text("messageExpression").is_empty() {
        let detail = "message must be specified if rule contains line breaks";
        errors.push(FieldError::required(at("message"), detail));
    }
    let reason = text("reason");
    if !reason.is_empty() && !REASONS.contains(&reason) {
        errors.push(FieldError::not_supported(at("reason"), reason, &REASONS));
    }
    if schema.kind() == Kind::Any && !schema.is_open() {
        return;
    }
    let optional = rule["optionalOldSelf"] == true;
    let variables = [("self", Some(schema)), ("oldSelf", (!optional).then_some(schema))];
    let mut check = |field: &str, source: &str, wanted: &str, errors: &mut Errors| {
        let parsed = cel::Program::parse(source).and_then(|program| cel::check(&program, &variables));
        match parsed {
            Err(error) => {
                errors.push(FieldError::invalid(at(field), source, format!("compilation failed: {error}")));
            }
            Ok(estimate) if (wanted == "bool" && !estimate.bool) || (wanted == "string" && !estimate.text) => {
                let detail = match wanted {
                    "bool" => "cel expression must evaluate to a bool",
                    _ => "messageExpression must evaluate to a string",
                };
                errors.push(FieldError::invalid(at(field), source, detail));
            }
            Ok(estimate) => {
                let cost = estimate.cost.saturating_mul(times);
                *total = total.saturating_add(cost);
                if cost > limits::RULE_ESTIMATE {
                    let factor = cost as f64 / limits::RULE_ESTIMATE as f64;
                    let detail = format!(
                        "estimated rule cost exceeds budget by factor of {} (try simplifying the rule, or adding \
                         maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)",
                        factor_text(factor)
                    );
                    errors.push(FieldError::forbidden(at(field), detail));
                }
            }
        }
    };
    check("rule", source, "bool", errors);
    if rule["messageExpression"].is_string() {
        check("messageExpression", text("messageExpression"), "string", errors);
    }
}

/// What of a definition no update changes.
pub fn definition_change(old: &Value, new: &Value) -> Errors {
    let mut errors = Vec::new();
    let established = old["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Established" && c["status"] == "True");
    let (before, after) = (&old["spec"], &new["spec"]);
    let mut same = |pointer: &str| {
        let (was, is) = (before.pointer(pointer), after.pointer(pointer));
        if was != is {
            let path = format!("spec{}", pointer.replace('/', "."));
            errors.push(FieldError::invalid(path, is.cloned().unwrap_or_default(), "field is immutable"));
        }
    };
    same("/group");
    if established {
        same("/scope");
        same("/names/kind");
    }
    same("/names/plural");
    let versions: Vec<&str> =
        after["versions"].as_array().into_iter().flatten().filter_map(|v| v["name"].as_str()).collect();
    for (i, stored) in new["status"]["storedVersions"].as_array().into_iter().flatten().enumerate() {
        let name = stored.as_str().unwrap_or_default();
        if !versions.contains(&name) {
            let detail = "missing from spec.versions; v1 was previously a storage version, and must remain in \
                          spec.versions until a storage migration ensures no data remains persisted in v1 and removes \
                          v1 from status.storedVersions"
                .replace("v1", name);
            errors.push(FieldError::invalid(format!("status.storedVersions[{i}]"), name, detail));
        }
    }
    errors
}
