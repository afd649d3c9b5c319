//! ConfigMaps, Secrets, Nodes, Leases.

use base64::Engine as _;
use std::collections::HashSet;

use super::{Errors, cursor::At};
use crate::{names, status::FieldError};

/// All data of a ConfigMap or Secret together, in bytes.
const MAX_DATA: usize = 1024 * 1024;

pub(super) fn config_map(object: At<'_>, errors: &mut Errors) {
    let (data, binary) = (object.field("data"), object.field("binaryData"));
    let mut size = 0;
    for (key, value) in data.entries() {
        config_key(&value, key, errors);
        size += value.text().len();
        if binary.value.get(key).is_some() {
            errors.push(FieldError::invalid(&value.path, key, "duplicate of key present in binaryData"));
        }
    }
    for (key, value) in binary.entries() {
        config_key(&value, key, errors);
        size += decoded_len(&value, errors);
    }
    if size > MAX_DATA {
        errors.push(FieldError::too_long("", MAX_DATA));
    }
}

pub(super) fn secret(object: At<'_>, errors: &mut Errors) {
    let data = object.field("data");
    let mut size = 0;
    for (key, value) in data.entries() {
        config_key(&value, key, errors);
        size += decoded_len(&value, errors);
    }
    if size > MAX_DATA {
        errors.push(FieldError::too_long(&data.path, MAX_DATA));
    }
    let required: &[&str] = match object.field("type").text() {
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        _ => &[],
    };
    for key in required.iter().filter(|key| data.value.get(**key).is_none()) {
        errors.push(FieldError::required(format!("data[{key}]"), ""));
    }
    if object.field("type").text() == "kubernetes.io/basic-auth"
        && !["username", "password"].iter().any(|key| data.value.get(*key).is_some())
    {
        errors.push(FieldError::required("data[username]", ""));
        errors.push(FieldError::required("data[password]", ""));
    }
    if object.field("type").text() == "kubernetes.io/service-account-token" {
        let path = "metadata.annotations[kubernetes.io/service-account.name]";
        let name = object.at("metadata.annotations").value.get("kubernetes.io/service-account.name");
        if name.is_none() {
            errors.push(FieldError::required(path, ""));
        }
    }
}

fn config_key(at: &At<'_>, key: &str, errors: &mut Errors) {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let detail = match key {
        _ if key.len() > names::MAX_SUBDOMAIN => names::max_len_error(names::MAX_SUBDOMAIN),
        _ if key.is_empty() || !key.chars().all(allowed) => {
            let rule = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
            names::regex_error(rule, "[-._a-zA-Z0-9]+", &["key.name", "KEY_NAME", "key-name"])
        }
        "." => "must not be '.'".into(),
        ".." => "must not be '..'".into(),
        _ if key.starts_with("..") => "must not start with '..'".into(),
        _ => return,
    };
    errors.push(FieldError::invalid(&at.path, key, detail));
}

fn decoded_len(at: &At<'_>, errors: &mut Errors) -> usize {
    match base64::engine::general_purpose::STANDARD.decode(at.text()) {
        Ok(bytes) => bytes.len(),
        Err(_) => {
            at.invalid("must be base64", errors);
            0
        }
    }
}

pub(super) fn node(object: At<'_>, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for taint in object.at("spec.taints").items() {
        let (key, value, effect) = (taint.field("key"), taint.field("value"), taint.field("effect"));
        key.syntax(names::qualified_name, errors);
        value.syntax(names::label_value, errors);
        if effect.require(errors) {
            effect.one_of(&["NoSchedule", "PreferNoSchedule", "NoExecute"], errors);
        }
        if !seen.insert((key.text(), effect.text())) {
            errors.push(FieldError::duplicate(&taint.path, taint.value.clone()));
        }
    }
}

pub(super) fn lease(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    for (field, min) in [("leaseDurationSeconds", 1), ("leaseTransitions", 0)] {
        spec.field(field).at_least(min, errors);
    }
}
