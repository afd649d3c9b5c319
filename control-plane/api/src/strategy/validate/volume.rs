//! Volumes and their mounts.

use std::collections::HashSet;

use super::{Errors, cursor::At};
use crate::{names, status::FieldError};

/// Fields of a source that must not be empty.
const REQUIRED: &[(&str, &str)] = &[
    ("hostPath", "path"),
    ("secret", "secretName"),
    ("configMap", "name"),
    ("persistentVolumeClaim", "claimName"),
    ("nfs", "server"),
    ("nfs", "path"),
    ("csi", "driver"),
];

/// Checks the volumes and returns their names.
pub(super) fn volumes(list: At<'_>, errors: &mut Errors) -> HashSet<String> {
    let mut seen = HashSet::new();
    for volume in list.items() {
        let name = volume.field("name");
        if name.require(errors) {
            name.syntax(names::dns_label, errors);
            if !seen.insert(name.text().to_owned()) {
                errors.push(FieldError::duplicate(&name.path, name.text()));
            }
        }
        let sources = volume.value.as_object().into_iter().flatten();
        let sources: Vec<At<'_>> = sources
            .filter(|(key, value)| *key != "name" && !value.is_null())
            .map(|(key, _)| volume.field(key))
            .collect();
        if sources.is_empty() {
            errors.push(FieldError::required(&volume.path, "must specify a volume type"));
        }
        for extra in sources.iter().skip(1) {
            extra.forbid("may not specify more than 1 volume type", errors);
        }
        for (source, field) in REQUIRED {
            let source = volume.field(source);
            if source.present() {
                source.field(field).require(errors);
            }
        }
        let host = volume.at("hostPath.path");
        if host.text().split('/').any(|part| part == "..") {
            host.invalid("must not contain '..'", errors);
        }
        for source in ["secret", "configMap", "downwardAPI", "projected"] {
            mode(&volume.field(source).field("defaultMode"), errors);
            items(&volume.field(source), errors);
        }
        projected(&volume.field("projected"), errors);
    }
    seen
}

/// Checks mounts against the pod's volumes.
pub(super) fn mounts(list: At<'_>, volumes: &HashSet<String>, errors: &mut Errors) {
    let mut paths = HashSet::new();
    for mount in list.items() {
        let name = mount.field("name");
        if name.require(errors) && !volumes.contains(name.text()) {
            errors.push(FieldError::not_found(&name.path, name.text()));
        }
        let path = mount.field("mountPath");
        if path.require(errors) && !paths.insert(path.text().to_owned()) {
            path.invalid("must be unique", errors);
        }
        for field in ["subPath", "subPathExpr"] {
            relative(&mount.field(field), errors);
        }
        if !mount.field("subPath").is_empty() && !mount.field("subPathExpr").is_empty() {
            mount.field("subPathExpr").invalid("subPathExpr and subPath are mutually exclusive", errors);
        }
    }
}

fn projected(at: &At<'_>, errors: &mut Errors) {
    for source in at.field("sources").items() {
        let token = source.field("serviceAccountToken");
        if token.present() {
            token.field("path").require(errors);
            let seconds = token.field("expirationSeconds");
            if seconds.int().is_some_and(|seconds| seconds < 600) {
                seconds.invalid("may not specify a duration less than 10 minutes", errors);
            }
        }
        for kind in ["secret", "configMap", "downwardAPI"] {
            items(&source.field(kind), errors);
        }
    }
}

fn items(source: &At<'_>, errors: &mut Errors) {
    for item in source.field("items").items() {
        let path = item.field("path");
        if path.require(errors) {
            relative(&path, errors);
        }
        mode(&item.field("mode"), errors);
    }
}

fn mode(at: &At<'_>, errors: &mut Errors) {
    if at.int().is_some_and(|mode| !(0..=0o777).contains(&mode)) {
        at.invalid("must be a number between 0 and 0777 (octal), both inclusive", errors);
    }
}

fn relative(at: &At<'_>, errors: &mut Errors) {
    if at.text().starts_with('/') {
        at.invalid("must be a relative path", errors);
    }
    if at.text().split('/').any(|part| part == "..") {
        at.invalid("must not contain '..'", errors);
    }
}
