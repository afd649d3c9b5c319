//! Custom resources whose definition has a webhook convert between its versions: asks it about what is read and written in
//! another version than it is stored in. Upstream: apiextensions-apiserver's `pkg/apiserver/conversion`.
//!
//! A converted object is a [`StoredObject`] of the same revision in the served version, so that readers need not know.

use std::sync::Arc;

use serde::Deserialize as _;
use serde_json::{Map, Value, json};
use sluice_api::{resource::Resource, status::Status};

use crate::{
    admission::webhook::{self, ClientConfig},
    limits, meta,
    storage::{Storage, StoredObject},
    view::{View, encode},
};

/// Stored objects in the version that the view serves, each as it is where it has that already.
///
/// # Errors
/// 500 in upstream's words when the webhook cannot be asked or its answer is none.
pub(crate) async fn served(
    storage: &Storage,
    view: &View,
    mut objects: Vec<Arc<StoredObject>>,
) -> Result<Vec<Arc<StoredObject>>, Status> {
    let Some(hook) = hook(&view.resource) else { return Ok(objects) };
    let mut from = 0;
    while from < objects.len() {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while from < objects.len() && bytes < limits::CONVERSION_BYTES {
            if !view.is_stored(&objects[from]) {
                bytes += objects[from].bytes.len();
                batch.push(from);
            }
            from += 1;
        }
        let values = batch.iter().map(|at| objects[*at].value()).collect();
        for (at, value) in batch.iter().zip(ask(storage, &view.resource, hook, values).await?) {
            objects[*at] = Arc::new(carried(&objects[*at], value)?);
        }
    }
    Ok(objects)
}

/// One stored object in the version that the view serves.
///
/// # Errors
/// As of [`served`].
pub(crate) async fn one(
    storage: &Storage,
    view: &View,
    object: Arc<StoredObject>,
) -> Result<Arc<StoredObject>, Status> {
    if hook(&view.resource).is_none() || view.is_stored(&object) {
        return Ok(object);
    }
    let mut all = served(storage, view, vec![object]).await?;
    all.pop().ok_or_else(|| Status::internal("a converted object is missing"))
}

/// An object of the served version in the one that is stored.
///
/// # Errors
/// As of [`served`].
pub(crate) async fn stored(storage: &Storage, view: &View, object: Value) -> Result<Value, Status> {
    match hook(&view.resource) {
        Some(hook) if !view.resource.is_storage_version() => {
            let mut all = ask(storage, &view.stored, hook, vec![object]).await?;
            all.pop().ok_or_else(|| Status::internal("a converted object is missing"))
        }
        _ => Ok(view.to_stored(object)),
    }
}

fn hook(resource: &Resource) -> Option<&Value> {
    resource.custom.as_ref()?.conversion()
}

/// Has the webhook convert objects of one kind to the version of `to`.
async fn ask(storage: &Storage, to: &Resource, hook: &Value, objects: Vec<Value>) -> Result<Vec<Value>, Status> {
    let Some(first) = objects.first() else { return Ok(objects) };
    let kind = format!("{}, Kind={}", first["apiVersion"].as_str().unwrap_or_default(), to.kind);
    let failed = |why: String| Status::new(500, "", format!("conversion webhook for {kind} {why}"));
    let config = ClientConfig::deserialize(&hook["clientConfig"]).map_err(|e| failed(format!("failed: {e}")))?;
    let versions = meta::strings(&hook["conversionReviewVersions"]);
    let Some(version) = versions.into_iter().find(|v| matches!(*v, "v1" | "v1beta1")) else {
        return Err(Status::new(500, "", "no supported conversion review versions"));
    };
    let uid = webhook::uid();
    let review = json!({
        "kind": "ConversionReview",
        "apiVersion": format!("apiextensions.k8s.io/{version}"),
        "request": {"uid": uid, "desiredAPIVersion": to.api_version(), "objects": objects},
    });
    let answer = webhook::post(storage, &config, limits::WEBHOOK_MOST_SECONDS, &review).await;
    let converted =
        answer.and_then(|answer| read(&uid, version, &answer)).map_err(|why| failed(format!("failed: {why}")))?;
    if converted.len() != objects.len() {
        return Err(failed(format!("returned {} objects, expected {}", converted.len(), objects.len())));
    }
    objects
        .into_iter()
        .zip(converted)
        .map(|(original, converted)| checked(to, original, converted).map_err(&failed))
        .collect()
}

/// The objects of an answer.
fn read(uid: &str, version: &str, answer: &[u8]) -> Result<Vec<Value>, String> {
    let mut answer: Value = serde_json::from_slice(answer).map_err(|e| format!("the answer is not JSON: {e}"))?;
    let (kind, of) = (&answer["kind"], &answer["apiVersion"]);
    // Answers of v1beta1 are not looked at so closely, as upstream.
    if version == "v1" && (kind != "ConversionReview" || of != "apiextensions.k8s.io/v1") {
        let got = format!("{}, Kind={}", of.as_str().unwrap_or_default(), kind.as_str().unwrap_or_default());
        return Err(format!("expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got {got}"));
    }
    let response = answer["response"].take();
    if response.is_null() {
        return Err("no response provided".into());
    }
    if version == "v1" && response["uid"] != uid {
        let got = response["uid"].as_str().unwrap_or_default();
        return Err(format!("expected response.uid={uid:?}, got {got:?}"));
    }
    let result = &response["result"];
    let text = |field: &str| result[field].as_str().unwrap_or_default();
    match (text("status"), text("message")) {
        ("Success", _) => {}
        (status, "") => return Err(format!("response.result.status was '{status}', not 'Success'")),
        (_, message) => return Err(message.to_owned()),
    }
    Ok(response["convertedObjects"].as_array().cloned().unwrap_or_default())
}

/// A converted object with the metadata of the original, but for labels and annotations: those the webhook may change.
fn checked(to: &Resource, mut original: Value, mut converted: Value) -> Result<Value, String> {
    let (expected, got) = (to.api_version(), converted["apiVersion"].as_str().unwrap_or_default());
    if got != expected {
        let why = format!("invalid groupVersion (expected {expected}, received {got})");
        return Err(format!("returned invalid object at index 0: {why}"));
    }
    let got = converted["kind"].as_str().unwrap_or_default();
    if got != &*to.kind {
        let why = format!("invalid kind (expected {}, received {got})", to.kind);
        return Err(format!("returned invalid object at index 0: {why}"));
    }
    for (field, called) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let (was, is) = (meta::text(&original, field), meta::text(&converted, field));
        if was != is {
            return Err(format!("returned invalid object: must have the same {called}: {was} != {is}"));
        }
    }
    let given = match converted["metadata"].take() {
        Value::Object(given) => given,
        Value::Null => return Err("returned invalid metadata: missing metadata in converted object".into()),
        _ => return Err("returned invalid metadata: invalid metadata in converted object".into()),
    };
    let mut metadata = original["metadata"].take();
    for field in ["labels", "annotations"] {
        let Some(value) = given.get(field).filter(|value| !value.is_null()) else {
            meta::map(&mut metadata).shift_remove(field);
            continue;
        };
        if !value.as_object().is_some_and(|map| map.values().all(Value::is_string)) {
            return Err(format!("returned invalid metadata: invalid metadata.{field} in converted object"));
        }
        metadata[field] = value.clone();
    }
    // Version and kind first, as in every other object.
    let mut object = Map::new();
    object.insert("apiVersion".into(), json!(expected));
    object.insert("kind".into(), json!(to.kind));
    object.insert("metadata".into(), metadata);
    if let Value::Object(rest) = converted {
        object.extend(rest.into_iter().filter(|(key, _)| !matches!(key.as_str(), "apiVersion" | "kind" | "metadata")));
    }
    let mut object = Value::Object(object);
    if let Some(custom) = &to.custom {
        custom.prune(&mut object);
        custom.defaults(&mut object);
    }
    Ok(object)
}

/// The converted value as the state of `object` that it is.
fn carried(object: &StoredObject, mut value: Value) -> Result<StoredObject, Status> {
    meta::clear(&mut value, &["resourceVersion"]);
    object.with_value(&encode(&value)).map_err(Status::internal)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn answers_that_do_not_hold() {
        let answer = |response: Value| {
            let review =
                json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": response});
            read("u", "v1", review.to_string().as_bytes())
        };
        let good = json!({"uid": "u", "result": {"status": "Success"}, "convertedObjects": [1]});
        assert_eq!(answer(good).unwrap(), [json!(1)]);
        let check = |response: Value, expected: &str| assert_eq!(answer(response).unwrap_err(), expected);
        check(Value::Null, "no response provided");
        check(json!({"uid": "v"}), "expected response.uid=\"u\", got \"v\"");
        check(json!({"uid": "u", "result": {"status": "Failed", "message": "no"}}), "no");
        check(
            json!({"uid": "u", "result": {"status": "Failed"}}),
            "response.result.status was 'Failed', not 'Success'",
        );
        let other = json!({"kind": "X", "apiVersion": "v1"}).to_string();
        let why = "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got v1, Kind=X";
        assert_eq!(read("u", "v1", other.as_bytes()).unwrap_err(), why);
    }
}
