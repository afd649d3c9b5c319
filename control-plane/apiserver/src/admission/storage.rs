//! DefaultStorageClass and DefaultIngressClass: the class marked as default, newest first.

use serde_json::{Value, json};

use super::text;
use crate::auth::view::View;

pub(super) fn default_class(view: &dyn View, claim: &mut Value) {
    let spec = &claim["spec"];
    let legacy = &claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"];
    if !spec["storageClassName"].is_null() || !legacy.is_null() {
        return;
    }
    let marks = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    if let Some(name) = newest(view, "storage.k8s.io", "storageclasses", &marks) {
        claim["spec"]["storageClassName"] = json!(name);
    }
}

pub(super) fn default_ingress_class(view: &dyn View, ingress: &mut Value) {
    let legacy = &ingress["metadata"]["annotations"]["kubernetes.io/ingress.class"];
    if !ingress["spec"]["ingressClassName"].is_null() || !legacy.is_null() {
        return;
    }
    let marks = ["ingressclass.kubernetes.io/is-default-class"];
    if let Some(name) = newest(view, "networking.k8s.io", "ingressclasses", &marks) {
        ingress["spec"]["ingressClassName"] = json!(name);
    }
}

fn newest(view: &dyn View, group: &str, plural: &str, marks: &[&str]) -> Option<String> {
    view.list(group, plural, "")
        .iter()
        .map(|class| class.value())
        .filter(|class| marks.iter().any(|mark| class["metadata"]["annotations"][*mark] == "true"))
        .max_by(|a, b| {
            let age = |c: &Value| text(&c["metadata"], "creationTimestamp").to_owned();
            let name = |c: &Value| text(&c["metadata"], "name").to_owned();
            age(a).cmp(&age(b)).then_with(|| name(b).cmp(&name(a)))
        })
        .map(|class| text(&class["metadata"], "name").to_owned())
}
