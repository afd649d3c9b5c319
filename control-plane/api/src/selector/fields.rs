//! Field selectors: `metadata.name=a,status.phase!=Running`, over the fields that a resource lets
//! select ([`Resource::selectable`]), with upstream's syntax and errors (`apimachinery/pkg/fields`).

use std::borrow::Cow;

use serde_json::Value;

use crate::{
    resource::Resource,
    status::{Status, quote},
};

/// All of these terms; none: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    field: String,
    value: String,
    equal: bool,
}

impl Fields {
    /// Parses the text form for a resource. `BadRequest` for wrong syntax and unknown fields.
    pub fn parse(res: &Resource, text: &str) -> Result<Self, Status> {
        let mut terms = Vec::new();
        for part in split(text).into_iter().filter(|p| !p.is_empty()) {
            let Some((field, value, equal)) = operator(part) else {
                let message = format!("invalid selector: '{text}'; can't understand '{part}'");
                return Err(Status::bad_request(message));
            };
            let value = unescape(value).map_err(Status::bad_request)?;
            let field = canonical(res, field)?;
            terms.push(Term { field, value, equal });
        }
        Ok(Self { terms })
    }

    /// Whether every object matches.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that `field` must have, if the selector says so: lets the server read one object
    /// instead of a collection (`metadata.name`) or choose an index (`spec.nodeName`).
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.equal && t.field == field).map(|t| &*t.value)
    }

    /// Matches an object.
    pub fn matches(&self, object: &Value) -> bool {
        self.matches_with(|field| text_at(object, field))
    }

    /// Matches by a lookup of the selectable fields' text (absent: empty, or the type's zero value
    /// for booleans and numbers).
    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Cow<'a, str>) -> bool {
        self.terms.iter().all(|t| (get(&t.field) == t.value) == t.equal)
    }
}

/// The text that a selectable field of an object is compared by.
fn text_at<'a>(object: &'a Value, field: &str) -> Cow<'a, str> {
    let at = |path: &str| path.split('.').try_fold(object, |value, key| value.get(key));
    // Both versions of Event keep one of two places.
    let value = match field {
        "source" => at("source.component").or_else(|| at("reportingComponent")),
        field => at(field),
    };
    match value {
        Some(Value::String(text)) => Cow::Borrowed(text),
        Some(Value::Bool(b)) => Cow::Borrowed(if *b { "true" } else { "false" }),
        Some(Value::Number(n)) => Cow::Owned(n.to_string()),
        _ => Cow::Borrowed(match field {
            "spec.unschedulable" | "spec.hostNetwork" => "false",
            "status.replicas" | "status.successful" => "0",
            _ => "",
        }),
    }
}

fn canonical(res: &Resource, field: &str) -> Result<String, Status> {
    let common = field == "metadata.name" || (field == "metadata.namespace" && res.namespaced);
    if common || res.selectable.iter().any(|s| s == field) {
        return Ok(match (&*res.group, &*res.plural, field) {
            ("", "pods", "spec.host") => "spec.nodeName".to_owned(),
            ("events.k8s.io", "events", "reportingController") => "reportingComponent".to_owned(),
            // Objects are matched in the form in which they are stored, a core Event.
            ("events.k8s.io", "events", field) => match field.strip_prefix("regarding.") {
                Some(rest) => format!("involvedObject.{rest}"),
                None => field.to_owned(),
            },
            (_, _, field) => field.to_owned(),
        });
    }
    Err(Status::bad_request(if res.selectable.is_empty() {
        let known = "\"metadata.name\", \"metadata.namespace\"";
        format!("{} is not a known field selector: only {known}", quote(field))
    } else {
        format!("field label not supported: {field}")
    }))
}

/// The terms between unescaped commas.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// Field, value and whether they are to be equal.
fn operator(term: &str) -> Option<(&str, &str, bool)> {
    let at = term.find(['=', '!'])?;
    let (field, rest) = term.split_at(at);
    let ops = [("!=", false), ("==", true), ("=", true)];
    ops.into_iter().find_map(|(op, equal)| Some((field, rest.strip_prefix(op)?, equal)))
}

fn unescape(value: &str) -> Result<String, String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                other => {
                    let sequence: String = ['\\'].into_iter().chain(other).collect();
                    return Err(format!("invalid field selector: invalid escape sequence: {sequence}"));
                }
            },
            ',' | '=' => return Err(format!("invalid field selector: unescaped character in value: {c}")),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::resource::builtin;

    fn res(api_version: &str, kind: &str) -> &'static Resource {
        builtin().by_type(api_version, kind).unwrap()
    }

    #[test]
    fn selectors_match() {
        let pod = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"nodeName": "w1"},
                         "status": {"phase": "Running"}});
        let check = |selector: &str, want: bool| {
            let fields = Fields::parse(res("v1", "Pod"), selector).unwrap();
            assert_eq!(fields.matches(&pod), want, "{selector}");
        };
        for selector in [
            "",
            "metadata.name=a",
            "metadata.name==a,spec.nodeName=w1",
            "spec.host=w1",
            "status.phase!=Failed",
            "spec.hostNetwork=false",
            "status.podIP=",
            "metadata.name!=a\\,b",
        ] {
            check(selector, true);
        }
        for selector in ["metadata.name=b", "spec.nodeName!=w1", "metadata.namespace=x", "spec.hostNetwork=true"] {
            check(selector, false);
        }
        let fields = Fields::parse(res("v1", "Pod"), "metadata.name=a,status.phase!=b").unwrap();
        assert_eq!((fields.required("metadata.name"), fields.required("status.phase")), (Some("a"), None));
    }

    #[test]
    fn events_of_both_groups_match_the_stored_form() {
        let event = json!({"metadata": {}, "involvedObject": {"name": "p"}, "reportingComponent": "kubelet"});
        let check = |api: &str, selector: &str, want: bool| {
            let fields = Fields::parse(res(api, "Event"), selector).unwrap();
            assert_eq!(fields.matches(&event), want, "{selector}");
        };
        check("v1", "involvedObject.name=p", true);
        check("v1", "source=kubelet", true);
        check("events.k8s.io/v1", "regarding.name=p,reportingController=kubelet", true);
        check("events.k8s.io/v1", "regarding.name=q", false);
    }

    #[test]
    fn errors_are_upstreams() {
        let check = |api: &str, kind: &str, selector: &str, message: &str| {
            let status = Fields::parse(res(api, kind), selector).unwrap_err();
            assert_eq!((status.code, &*status.message), (400, message));
        };
        check("v1", "Pod", "spec.x=1", "field label not supported: spec.x");
        check(
            "apps/v1",
            "Deployment",
            "spec.x=1",
            "\"spec.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
        );
        check("v1", "Pod", "a", "invalid selector: 'a'; can't understand 'a'");
        check("v1", "Pod", "metadata.name=a=b", "invalid field selector: unescaped character in value: =");
        check("v1", "Pod", "metadata.name=a\\b", "invalid field selector: invalid escape sequence: \\b");
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "[a-z!=,.\\\\é]{0,20}|metadata.name!?=\\PC{0,20}") {
            let _ = Fields::parse(res("v1", "Pod"), &text);
        }

        /// Any value can be asked for, once it is escaped.
        #[test]
        fn escaped_values_match_themselves(name in "\\PC{0,20}") {
            let escaped = name.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            let fields = Fields::parse(res("v1", "Pod"), &format!("metadata.name={escaped}")).unwrap();
            let pod = json!({"metadata": {"name": name}});
            prop_assert!(fields.matches(&pod));
        }
    }
}
