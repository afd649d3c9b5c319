//! PersistentVolumes, their claims and classes. Source: upstream's `pkg/apis/core/validation` and
//! `pkg/apis/storage/validation`.

use serde_json::Value;

use super::{Errors, cursor::At, workload};
use crate::{names, quantity::Quantity, status::FieldError};

const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];

/// Where a PersistentVolume's data is: the fields of its spec that say so, and what each needs.
const SOURCES: &[(&str, &[&str])] = &[
    ("awsElasticBlockStore", &["volumeID"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("azureFile", &["secretName", "shareName"]),
    ("cephfs", &["monitors"]),
    ("cinder", &["volumeID"]),
    ("csi", &["driver", "volumeHandle"]),
    ("fc", &[]),
    ("flexVolume", &["driver"]),
    ("flocker", &[]),
    ("gcePersistentDisk", &["pdName"]),
    ("glusterfs", &["endpoints", "path"]),
    ("hostPath", &["path"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("local", &["path"]),
    ("nfs", &["server", "path"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("quobyte", &["registry", "volume"]),
    ("rbd", &["monitors", "image"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("storageos", &[]),
    ("vsphereVolume", &["volumePath"]),
];

pub(super) fn claim(object: At<'_>, errors: &mut Errors) {
    claim_spec(&object.field("spec"), errors);
}

pub(super) fn claim_spec(spec: &At<'_>, errors: &mut Errors) {
    let modes = spec.field("accessModes");
    modes.require_because("at least 1 access mode is required", errors);
    access_modes(&modes, errors);
    workload::label_selector(&spec.field("selector"), errors);
    let path = format!("{}[storage]", spec.field("resources").path);
    match spec.at("resources.requests").value.get("storage") {
        None => errors.push(FieldError::required(path, "")),
        Some(size) => positive(&At { value: size, path }, errors),
    }
    class_name(&spec.field("storageClassName"), errors);
    spec.field("volumeMode").one_of(VOLUME_MODES, errors);
    let source = spec.field("dataSource");
    if source.present() {
        for field in ["name", "kind"] {
            source.field(field).require(errors);
        }
        let (group, kind) = (source.field("apiGroup"), source.field("kind"));
        if group.is_empty() && !kind.is_empty() && kind.text() != "PersistentVolumeClaim" {
            let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            kind.invalid(detail, errors);
        }
    }
}

fn access_modes(modes: &At<'_>, errors: &mut Errors) {
    for mode in modes.items() {
        if !ACCESS_MODES.contains(&mode.text()) {
            errors.push(FieldError::not_supported(&modes.path, mode.value.clone(), ACCESS_MODES));
        }
    }
    let alone = modes.items().any(|mode| mode.text() == "ReadWriteOncePod");
    if alone && modes.items().count() > 1 {
        modes.forbid("may not use ReadWriteOncePod with other access modes", errors);
    }
}

fn positive(at: &At<'_>, errors: &mut Errors) {
    let size = Quantity::from_value(at.value);
    if size.is_none_or(|size| size.is_zero() || size.is_negative()) {
        at.invalid("must be greater than zero", errors);
    }
}

fn class_name(at: &At<'_>, errors: &mut Errors) {
    if !at.is_empty() {
        at.syntax(names::dns_subdomain, errors);
    }
}

/// A claim's spec is fixed but for its size once it is bound, and for what the binder fills in.
pub(super) fn claim_change(old: At<'_>, new: At<'_>, errors: &mut Errors) {
    const FIXED: &str = "spec is immutable after creation except resources.requests and volumeAttributesClassName for \
                         bound claims";
    let (before, after) = (old.field("spec"), new.field("spec"));
    let mut allowed = after.value.clone();
    let mut keep = |field: &str, may: bool| {
        if let (true, Value::Object(spec)) = (may, &mut allowed) {
            match before.value.get(field) {
                Some(value) => spec.insert(field.into(), value.clone()),
                None => spec.shift_remove(field),
            };
        }
    };
    let bound = old.at("status.phase").text() == "Bound";
    keep("volumeName", before.field("volumeName").is_empty());
    // A class may be given to a claim that had none when a default appears later.
    keep("storageClassName", !before.field("storageClassName").present());
    keep("volumeAttributesClassName", bound || before.field("volumeAttributesClassName").is_empty());
    if bound && let Some(requests) = allowed.pointer_mut("/resources/requests") {
        match before.value.pointer("/resources/requests/storage") {
            Some(size) => requests["storage"] = size.clone(),
            None => drop(requests.as_object_mut().map(|r| r.shift_remove("storage"))),
        }
    }
    if allowed != *before.value {
        errors.push(FieldError::forbidden(&after.path, FIXED));
    }
    let size = |at: &At<'_>, pointer: &str| at.value.pointer(pointer).and_then(Quantity::from_value);
    let request = "/spec/resources/requests/storage";
    let capacity = size(&old, "/status/capacity/storage");
    if let (Some(was), Some(is)) = (size(&old, request), size(&new, request))
        && is < was
        && capacity.is_none_or(|capacity| is <= capacity)
    {
        let path = "spec.resources.requests.storage";
        errors.push(FieldError::forbidden(path, "field can not be less than status.capacity"));
    }
    let (was, is) = (before.field("volumeMode"), after.field("volumeMode"));
    if was.value != is.value {
        is.immutable("field is immutable", errors);
    }
}

pub(super) fn volume(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    let modes = spec.field("accessModes");
    modes.require(errors);
    access_modes(&modes, errors);
    let capacity = spec.field("capacity");
    capacity.require(errors);
    if capacity.value.get("storage").is_none() || capacity.entries().count() > 1 {
        errors.push(FieldError::not_supported(&capacity.path, capacity.value.clone(), &["storage"]));
    }
    for (_, size) in capacity.entries() {
        positive(&size, errors);
    }
    let policy = spec.field("persistentVolumeReclaimPolicy");
    policy.one_of(&["Delete", "Recycle", "Retain"], errors);
    affinity(&spec.field("nodeAffinity"), errors);
    let mut sources = 0;
    for (name, needs) in SOURCES {
        let source = spec.field(name);
        if !source.present() {
            continue;
        }
        sources += 1;
        if sources > 1 {
            source.forbid("may not specify more than 1 volume type", errors);
            continue;
        }
        for field in *needs {
            source.field(field).require(errors);
        }
        match *name {
            "hostPath" if source.field("path").text() == "/" && policy.text() == "Recycle" => {
                policy.forbid("may not be 'recycle' for a hostPath mount of '/'", errors);
            }
            "local" if !spec.field("nodeAffinity").present() => {
                let path = object.at("metadata.annotations").path;
                errors.push(FieldError::required(path, "Local volume requires node affinity"));
            }
            "nfs" if !source.field("path").text().starts_with('/') => {
                source.field("path").invalid("must be an absolute path", errors);
            }
            _ => {}
        }
    }
    if sources == 0 {
        errors.push(FieldError::required(&spec.path, "must specify a volume type"));
    }
    class_name(&spec.field("storageClassName"), errors);
    spec.field("volumeMode").one_of(VOLUME_MODES, errors);
}

fn affinity(affinity: &At<'_>, errors: &mut Errors) {
    if !affinity.present() {
        return;
    }
    let required = affinity.field("required");
    if !required.present() {
        errors.push(FieldError::required(&required.path, "must specify required node constraints"));
    } else {
        let terms = required.field("nodeSelectorTerms");
        terms.require_because("must have at least one node selector term", errors);
    }
}

pub(super) fn volume_change(old: At<'_>, new: At<'_>, errors: &mut Errors) {
    let source = |at: &At<'_>| -> Vec<Value> {
        SOURCES.iter().map(|(name, _)| at.field("spec").field(name).value.clone()).collect()
    };
    if source(&old) != source(&new) {
        let detail = "spec.persistentvolumesource is immutable after creation";
        errors.push(FieldError::forbidden("spec.persistentvolumesource", detail));
    }
    let (before, after) = (old.at("spec.volumeMode"), new.at("spec.volumeMode"));
    if before.value != after.value {
        after.immutable("field is immutable", errors);
    }
    let (before, after) = (old.at("spec.nodeAffinity"), new.at("spec.nodeAffinity"));
    if before.present() && before.value != after.value {
        after.immutable("field is immutable", errors);
    }
}

pub(super) fn storage_class(object: At<'_>, errors: &mut Errors) {
    let provisioner = object.field("provisioner");
    if provisioner.require(errors) {
        for detail in names::qualified_name(&provisioner.text().to_lowercase()) {
            provisioner.invalid(detail, errors);
        }
    }
    object.field("reclaimPolicy").one_of(&["Delete", "Retain"], errors);
    let binding = object.field("volumeBindingMode");
    if binding.require(errors) {
        binding.one_of(&["Immediate", "WaitForFirstConsumer"], errors);
    }
    for (key, _) in object.field("parameters").entries() {
        if key.is_empty() {
            object.field("parameters").invalid("field can not be empty.", errors);
        }
    }
}

pub(super) fn storage_class_change(old: At<'_>, new: At<'_>, errors: &mut Errors) {
    for field in ["parameters", "provisioner", "reclaimPolicy"] {
        let (before, after) = (old.field(field), new.field(field));
        let same = before.value == after.value || (before.is_empty() && after.is_empty());
        if !same {
            after.forbid(&format!("updates to {field} are forbidden."), errors);
        }
    }
    let (before, after) = (old.field("volumeBindingMode"), new.field("volumeBindingMode"));
    if before.value != after.value {
        after.immutable("field is immutable", errors);
    }
}

pub(super) fn attachment(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    for field in ["attacher", "nodeName"] {
        spec.field(field).require(errors);
    }
    let source = spec.field("source");
    let (name, inline) = (source.field("persistentVolumeName"), source.field("inlineVolumeSpec"));
    match (name.present(), inline.present()) {
        (false, false) => {
            let detail = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
            errors.push(FieldError::required(&source.path, detail));
        }
        (true, true) => source.forbid("must specify exactly one of inlineVolumeSpec and persistentVolumeName", errors),
        _ => {}
    }
}

pub(super) fn attachment_change(old: At<'_>, new: At<'_>, errors: &mut Errors) {
    if old.field("spec").value != new.field("spec").value {
        new.field("spec").immutable("field is immutable", errors);
    }
}

pub(super) fn attributes_class(object: At<'_>, errors: &mut Errors) {
    object.field("driverName").require(errors);
    object.field("parameters").require_because("must contain at least one key/value pair", errors);
}

pub(super) fn attributes_class_change(old: At<'_>, new: At<'_>, errors: &mut Errors) {
    for field in ["driverName", "parameters"] {
        if old.field(field).value != new.field(field).value {
            new.field(field).forbid(&format!("updates to {field} are forbidden."), errors);
        }
    }
}

pub(super) fn csi_driver(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    spec.field("fsGroupPolicy").one_of(&["File", "None", "ReadWriteOnceWithFSType"], errors);
    for mode in spec.field("volumeLifecycleModes").items() {
        mode.one_of(&["Ephemeral", "Persistent"], errors);
    }
}

pub(super) fn csi_node(object: At<'_>, errors: &mut Errors) {
    let mut seen = std::collections::HashSet::new();
    for driver in object.at("spec.drivers").items() {
        driver.field("name").require(errors);
        driver.field("nodeID").require(errors);
        if !seen.insert(driver.field("name").text()) {
            errors.push(FieldError::duplicate(&driver.field("name").path, driver.field("name").value.clone()));
        }
    }
}

pub(super) fn csi_capacity(object: At<'_>, errors: &mut Errors) {
    let class = object.field("storageClassName");
    if class.require(errors) {
        class.syntax(names::dns_subdomain, errors);
    }
    workload::label_selector(&object.field("nodeTopology"), errors);
    for field in ["capacity", "maximumVolumeSize"] {
        let at = object.field(field);
        if Quantity::from_value(at.value).is_some_and(|q| q.is_negative()) {
            at.invalid("must be greater than or equal to 0", errors);
        }
    }
}
