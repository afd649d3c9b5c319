//! Between the versions of a resource whose objects share their storage: HorizontalPodAutoscalers
//! (`autoscaling/v1` and `v2`) and Events (core and `events.k8s.io`). Of custom resources the
//! `apiVersion` changes and what the other version does not know goes.

mod hpa;

use serde_json::{Map, Value, json};

use crate::resource::Resource;

/// The object in the version of `to`, which is another row of the same objects as `from`.
pub fn convert(from: &Resource, to: &Resource, mut object: Value) -> Value {
    if let Some(custom) = &to.custom {
        object["apiVersion"] = json!(to.api_version());
        custom.prune(&mut object);
        custom.defaults(&mut object);
        return object;
    }
    if (&from.group, &from.version) == (&to.group, &to.version) {
        return object;
    }
    if let Some(fields) = object.as_object_mut() {
        match (&*from.kind, &*to.group, &*to.version) {
            ("HorizontalPodAutoscaler", _, "v1") => hpa::to_v1(fields),
            ("HorizontalPodAutoscaler", _, "v2") => hpa::to_v2(fields),
            ("Event", "events.k8s.io", _) => EVENT_FIELDS.iter().for_each(|(core, new)| rename(fields, core, new)),
            ("Event", "", _) => EVENT_FIELDS.iter().for_each(|(core, new)| rename(fields, new, core)),
            _ => {}
        }
        fields.insert("apiVersion".into(), json!(to.api_version()));
    }
    object
}

/// What an Event's fields are called in the core group and in `events.k8s.io`.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("count", "deprecatedCount"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("involvedObject", "regarding"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
];

fn rename(fields: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = fields.shift_remove(from) {
        fields.insert(to.to_owned(), value);
    }
}

#[cfg(test)]
mod tests;
