//! PATCH with an apply configuration: YAML or JSON that says what its manager wants of the object,
//! which is made when there is none.

use bytes::Bytes;
use http::Response;
use serde_json::{Value, json};
use sluice_api::{decode, status::Status};

use super::{
    Call,
    faces::Face,
    write::{Part, Tracked},
};
use crate::{body::Expected, context::Body, meta};

/// An apply configuration as it came.
struct Config {
    value: Value,
    /// Keys that are there twice, as upstream's YAML reader says it.
    duplicates: Option<String>,
}

impl Config {
    /// Reads a body. 400 for what is no YAML object.
    fn parse(bytes: &Bytes) -> Result<Self, Status> {
        let wrong = |why: &dyn std::fmt::Display| Status::bad_request(format!("error decoding YAML: {why}"));
        let json = bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{');
        if json && let Ok(parsed) = decode::parse(bytes) {
            let duplicates = (!parsed.duplicates.is_empty()).then(|| twice(bytes).unwrap_or_default());
            return Ok(Self { value: parsed.value, duplicates });
        }
        let options = serde_saphyr::options! {
            duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        };
        let value: Value = serde_saphyr::from_slice_with_options(bytes, options).map_err(|why| wrong(&why))?;
        if !value.is_object() {
            let what = if value.is_array() { "array" } else { "value" };
            return Err(wrong(&format!(
                "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {what} into Go value of type map[string]interface {{}}"
            )));
        }
        Ok(Self { value, duplicates: twice(bytes) })
    }
}

/// `line 11: key "foo" already set in map`, for the first key that is.
fn twice(bytes: &[u8]) -> Option<String> {
    let error = serde_saphyr::from_slice::<Value>(bytes).err()?;
    let serde_saphyr::Error::DuplicateMappingKey { key, location } = error.without_snippet() else { return None };
    let key = Value::from(key.as_deref().unwrap_or_default());
    Some(format!(
        "error converting YAML to JSON: yaml: unmarshal errors:\n  line {}: key {key} already set in map",
        location.line()
    ))
}

impl Call<'_> {
    /// Server-side apply to the object or to a subresource.
    pub(super) async fn applied(&self, face: &Face, bytes: &Bytes) -> Result<Response<Body>, Status> {
        let config = Config::parse(bytes)?;
        let resource = &self.view.resource;
        let version = resource.api_version();
        let own = Expected { api_version: &version, kind: &resource.kind };
        let expected = face.expected.map_or(own, |(api_version, kind)| Expected { api_version, kind });
        check_kind(&config.value, expected)?;
        let wanted = match face.expected {
            Some(_) => self.scale_config(&config.value, expected, own)?,
            None => config.value.clone(),
        };
        let change = |old: &Value| {
            let merged = self.finished_apply(self.merged(Some(old), &wanted)?, &config, own)?;
            if face.takes_all() {
                return Ok(merged);
            }
            let managers = merged["metadata"]["managedFields"].clone();
            let shown = if face.expected.is_some() { (face.show)(resource, &merged)? } else { merged };
            let mut new = (face.merge)(resource, old, shown)?;
            meta::set(&mut new, "managedFields", managers);
            Ok(new)
        };
        let create = || self.finished_apply(self.merged(None, &wanted)?, &config, own);
        let written = self.modify(face.part, Tracked::Already, change, Some(&create)).await?;
        let code = if written.created { 201 } else { 200 };
        self.face_response(code, face, written.object)
    }

    /// The merged object read like a submitted one, and what else was wrong with the configuration.
    fn finished_apply(&self, mut merged: Value, config: &Config, own: Expected<'_>) -> Result<Value, Status> {
        if let Some(why) = &config.duplicates {
            match self.query.text("fieldValidation") {
                "Strict" => return Err(Status::bad_request(format!("error strict decoding YAML: {why}"))),
                "Ignore" => {}
                _ => self.warn(vec![why.clone()]),
            }
        }
        if self.view.resource.namespaced && meta::namespace(&merged).is_empty() {
            meta::set(&mut merged, "namespace", self.namespace());
        }
        self.check_address(&merged)?;
        self.check_schema(merged, Vec::new(), own)
    }

    /// What a Scale says of its object.
    fn scale_config(&self, scale: &Value, expected: Expected<'_>, own: Expected<'_>) -> Result<Value, Status> {
        let scale = self.check_schema(scale.clone(), Vec::new(), expected)?;
        let mut metadata = scale["metadata"].clone();
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.retain(|field, _| matches!(field.as_str(), "name" | "namespace" | "uid" | "resourceVersion"));
        }
        let mut config = json!({"apiVersion": own.api_version, "kind": own.kind, "metadata": metadata});
        sluice_api::scale::apply(&self.view.resource, &mut config, &scale)?;
        Ok(config)
    }
}

/// The configuration is of the kind and version that the path is of.
fn check_kind(config: &Value, expected: Expected<'_>) -> Result<(), Status> {
    let text = |field: &str| config[field].as_str().unwrap_or_default();
    if text("apiVersion") == expected.api_version && text("kind") == expected.kind {
        return Ok(());
    }
    let (group, version) = sluice_api::resource::split_api_version(text("apiVersion"));
    Err(Status::bad_request(format!("invalid object type: {group}/{version}, Kind={}", text("kind"))))
}

impl Face {
    /// Whether it takes the object as it was submitted.
    fn takes_all(&self) -> bool {
        self.expected.is_none() && matches!(self.part, Part::Whole | Part::Status)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(text: &str) -> Result<Config, Status> {
        Config::parse(&Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn configurations_are_yaml_or_json() {
        let yaml = parse("\napiVersion: v1\nkind: ConfigMap\ndata:\n  a: \"1\"\n").unwrap();
        let json = parse(r#" {"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1"}}"#).unwrap();
        assert_eq!(yaml.value, json.value);
        assert!(yaml.duplicates.is_none() && json.duplicates.is_none());
        for bad in ["- a", "a: [", "\"text\"", ""] {
            let status = parse(bad).err().unwrap_or_else(|| panic!("{bad:?} is read"));
            assert!(status.code == 400 && status.message.starts_with("error decoding YAML: "), "{bad:?}: {status}");
        }
    }

    #[test]
    fn keys_that_are_there_twice_are_told_by_their_line() {
        let text = "\nkind: A\nspec:\n  unknown: u\n  foo: foo1\n  foo: foo2\n";
        let config = parse(text).unwrap();
        assert_eq!(config.value["spec"]["foo"], "foo2");
        assert_eq!(
            config.duplicates.unwrap(),
            "error converting YAML to JSON: yaml: unmarshal errors:\n  line 6: key \"foo\" already set in map"
        );
        let config = parse("{\"a\": 1,\n\"a\": 2}").unwrap();
        assert!(config.duplicates.unwrap().ends_with("line 2: key \"a\" already set in map"));
    }

    #[test]
    fn the_kind_has_to_be_the_paths() {
        let expected = Expected { api_version: "apps/v1", kind: "Deployment" };
        let check =
            |value: Value, message: &str| assert_eq!(check_kind(&value, expected).unwrap_err().message, message);
        check(json!({"apiVersion": "v1", "kind": "Pod"}), "invalid object type: /v1, Kind=Pod");
        check(json!({}), "invalid object type: /, Kind=");
        assert!(check_kind(&json!({"apiVersion": "apps/v1", "kind": "Deployment"}), expected).is_ok());
    }
}
