//! Selectable fields of stored objects: extracted once when an object enters the cache, so that no
//! field selector parses an object again. Which fields a kind has is its row's business
//! ([`Resource::selectable`]).

use std::{borrow::Cow, fmt, sync::LazyLock};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use sluice_api::{
    resource::{Resource, builtin},
    selector,
};

use crate::storage::StoredObject;

/// The stored rows with selectable fields, by prefix.
static SELECTABLE: LazyLock<Vec<(&str, Vec<Field>)>> = LazyLock::new(|| {
    builtin()
        .iter()
        .filter(|row| row.is_storage_version() && !row.selectable.is_empty())
        .map(|row| (row.store_prefix(), row.selectable.iter().map(|f| Field::new(f)).collect()))
        .collect()
});

/// One selectable field and the places it is read from, the first filled one winning.
struct Field {
    name: String,
    places: Vec<Vec<String>>,
}

impl Field {
    fn new(name: &str) -> Self {
        let places = match name {
            "source" => vec!["source.component", "reportingComponent"],
            other => vec![other],
        };
        let split = |place: &str| place.split('.').map(str::to_owned).collect();
        Self { name: name.to_owned(), places: places.into_iter().map(split).collect() }
    }
}

/// The values of the selectable fields of the object stored at `key`, in the row's order.
pub(crate) fn extract(key: &str, json: &[u8]) -> Box<[Box<str>]> {
    let Some((_, fields)) = SELECTABLE.iter().find(|(prefix, _)| key.starts_with(prefix)) else {
        return Box::default();
    };
    let places: Vec<&[String]> = fields.iter().flat_map(|f| &f.places).map(Vec::as_slice).collect();
    let mut found: Vec<Option<String>> = vec![None; places.len()];
    let seed = Paths { wanted: places.iter().enumerate().map(|(i, p)| (i, *p)).collect(), found: &mut found };
    // The object was parsed before; what cannot be read here counts as absent.
    let _ = seed.deserialize(&mut serde_json::Deserializer::from_slice(json));
    let mut found = found.into_iter();
    fields
        .iter()
        .map(|field| {
            let texts: Vec<Option<String>> = found.by_ref().take(field.places.len()).collect();
            let text = texts.into_iter().flatten().find(|t| !t.is_empty());
            text.unwrap_or_else(|| zero(&field.name).to_owned()).into()
        })
        .collect()
}

/// The field that nodes watch their pods by.
const NODE: &str = "spec.nodeName";

/// The field that [`StoredObject::tag`] reads, among those of the kind stored at `key`.
pub(crate) fn tagged_by(key: &str) -> Option<u8> {
    static PODS: LazyLock<Option<u8>> = LazyLock::new(|| {
        let at = builtin().by_path("", "v1", "pods")?.selectable.iter().position(|field| field == NODE)?;
        u8::try_from(at).ok()
    });
    if key.starts_with("/registry/pods/") { *PODS } else { None }
}

/// The one tag that all objects of a selection of `row` have, if it asks for one.
pub(crate) fn tag<'a>(fields: &'a selector::Fields, row: &Resource) -> Option<&'a str> {
    fields.required(if row.store_prefix() == "/registry/pods/" { NODE } else { "metadata.name" })
}

/// What an absent field is compared as: its type's zero value.
fn zero(field: &str) -> &'static str {
    match field {
        "spec.unschedulable" | "spec.hostNetwork" => "false",
        "status.replicas" | "status.successful" => "0",
        _ => "",
    }
}

/// Whether an object of `row`'s collection (`stored` is its storage row) matches.
pub(crate) fn matches(fields: &selector::Fields, stored: &Resource, object: &StoredObject) -> bool {
    // Definitions come and go, so the fields of their objects are not extracted beforehand.
    let custom = stored.custom.as_ref().filter(|c| !c.selectable().is_empty()).map(|_| object.value());
    fields.matches_with(|field| {
        if let Some(value) = &custom
            && !field.starts_with("metadata.")
        {
            return Cow::Owned(match value.pointer(&format!("/{}", field.replace('.', "/"))) {
                Some(serde_json::Value::String(text)) => text.clone(),
                Some(other) if !other.is_null() => other.to_string(),
                _ => String::new(),
            });
        }
        Cow::Borrowed(match field {
            "metadata.name" => &*object.name,
            "metadata.namespace" => &*object.namespace,
            field => stored
                .selectable
                .iter()
                .position(|f| f == field)
                .and_then(|i| object.fields.get(i))
                .map_or("", |text| &**text),
        })
    })
}

/// Walks a JSON text and keeps only the leaves at the wanted paths.
struct Paths<'a, 'p> {
    wanted: Vec<(usize, &'p [String])>,
    found: &'a mut Vec<Option<String>>,
}

impl Paths<'_, '_> {
    fn keep(&mut self, text: &str) {
        for (i, path) in &self.wanted {
            if path.is_empty() {
                self.found[*i] = Some(text.to_owned());
            }
        }
    }
}

impl<'de> DeserializeSeed<'de> for Paths<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Paths<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            let wanted: Vec<(usize, &[String])> = self
                .wanted
                .iter()
                .filter(|(_, path)| path.first().is_some_and(|first| *first == key))
                .map(|(i, path)| (*i, &path[1..]))
                .collect();
            if wanted.is_empty() {
                map.next_value::<IgnoredAny>()?;
            } else {
                map.next_value_seed(Paths { wanted, found: &mut *self.found })?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_str<E>(mut self, text: &str) -> Result<(), E> {
        self.keep(text);
        Ok(())
    }

    fn visit_bool<E>(mut self, value: bool) -> Result<(), E> {
        self.keep(if value { "true" } else { "false" });
        Ok(())
    }

    fn visit_u64<E>(mut self, value: u64) -> Result<(), E> {
        self.keep(&value.to_string());
        Ok(())
    }

    fn visit_i64<E>(mut self, value: i64) -> Result<(), E> {
        self.keep(&value.to_string());
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn stored(key: &str, json: &str) -> StoredObject {
        let mut object = StoredObject::decode(json.as_bytes(), 1, true).unwrap();
        object.fields = extract(key, &object.bytes);
        object
    }

    #[test]
    fn field_selectors_match_extracted_fields() {
        let pods = builtin().by_path("", "v1", "pods").unwrap();
        let pod = stored(
            "/registry/pods/n/a",
            r#"{"metadata":{"name":"a","namespace":"n"},"spec":{"containers":[{"nodeName":"no"}],"nodeName":"w1"},"status":{"phase":"Running"}}"#,
        );
        let check = |text: &str, expected: bool| {
            let fields = selector::Fields::parse(pods, text).unwrap();
            assert_eq!(matches(&fields, pods, &pod), expected, "{text}");
        };
        check("spec.nodeName=w1", true);
        check("spec.nodeName=w2", false);
        check("status.phase!=Failed,metadata.name=a", true);
        check("metadata.namespace=m", false);
        check("spec.hostNetwork=false", true);
        check("status.podIP=", true);
    }

    #[test]
    fn pods_are_watched_by_node_and_other_objects_by_name() {
        let pods = builtin().by_path("", "v1", "pods").unwrap();
        let maps = builtin().by_path("", "v1", "configmaps").unwrap();
        let mut pod = stored("/registry/pods/n/a", r#"{"metadata":{"name":"a"},"spec":{"nodeName":"w1"}}"#);
        pod.tagged_by = tagged_by("/registry/pods/n/a");
        assert_eq!(pod.tag(), "w1");
        let map = stored("/registry/configmaps/n/a", r#"{"metadata":{"name":"a"}}"#);
        assert_eq!((tagged_by("/registry/configmaps/n/a"), map.tag()), (None, "a"));
        let check = |row, text: &str, expected: Option<&str>| {
            let fields = selector::Fields::parse(row, text).unwrap();
            assert_eq!(tag(&fields, row), expected, "{text}");
        };
        check(pods, "spec.nodeName=w1,status.phase!=Failed", Some("w1"));
        check(pods, "metadata.name=a", None);
        check(maps, "metadata.name=a", Some("a"));
        check(maps, "metadata.namespace=n", None);
    }

    #[test]
    fn an_events_source_has_two_places() {
        let events = builtin().by_path("", "v1", "events").unwrap();
        let check = |json: &str, expected: bool| {
            let fields = selector::Fields::parse(events, "source=kubelet").unwrap();
            let event = stored("/registry/events/n/e", json);
            assert_eq!(matches(&fields, events, &event), expected);
        };
        check(r#"{"metadata":{},"source":{"component":"kubelet"}}"#, true);
        check(r#"{"metadata":{},"reportingComponent":"kubelet","source":{}}"#, true);
        check(r#"{"metadata":{},"reportingComponent":"other"}"#, false);
    }
}
