#![allow(clippy::unwrap_used)]
use serde_json::{Value, json};

use super::*;

/// A definition around a schema.
fn around(schema: Value) -> Value {
    json!({"metadata": {"name": "as.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "as", "singular": "a", "kind": "A", "listKind": "AList"}, "conversion": {"strategy": "None"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}})
}

fn custom(schema: Value) -> Arc<Custom> {
    let definition = around(schema);
    Custom::new(&definition, &definition["spec"]["versions"][0])
}

fn below_spec(spec: Value) -> Value {
    json!({"type": "object", "properties": {"spec": spec}})
}

fn texts(errors: Vec<FieldError>) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn unknown_fields_are_pruned() {
    let check = |schema: Value, mut given: Value, expected: Value, told: &[&str]| {
        let messages = custom(schema).prune(&mut given);
        assert_eq!((given, messages), (expected, told.iter().map(|t| (*t).to_owned()).collect()));
    };
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true,
        "properties": {"closed": {"type": "object", "properties": {"a": {"type": "string"}}}}});
    let schema = below_spec(json!({"type": "object", "properties": {"a": {"type": "string"}, "open": open,
        "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"a": {"type": "string"}}}},
        "list": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}},
        "pod": {"type": "object", "x-kubernetes-embedded-resource": true}}}));
    check(
        schema,
        json!({"apiVersion": "x", "kind": "A", "metadata": {"name": "n", "labels": {}}, "other": 1, "spec": {
            "a": "", "b": 1, "open": {"x": {"y": 1}, "closed": {"b": 1}}, "map": {"k": {"a": "", "b": 1}},
            "list": [{"b": 1}], "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {}}}}),
        json!({"apiVersion": "x", "kind": "A", "metadata": {"name": "n", "labels": {}}, "spec": {
            "a": "", "open": {"x": {"y": 1}, "closed": {}}, "map": {"k": {"a": ""}}, "list": [{}],
            "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}}}),
        &[
            "unknown field \"other\"",
            "unknown field \"spec.b\"",
            "unknown field \"spec.open.closed.b\"",
            "unknown field \"spec.map.k.b\"",
            "unknown field \"spec.list[0].b\"",
            "unknown field \"spec.pod.spec\"",
        ],
    );
}

#[test]
fn defaults_are_filled_in() {
    let schema = below_spec(json!({"type": "object", "default": {}, "properties": {
        "n": {"type": "integer", "default": 3}, "m": {"type": "integer", "nullable": true, "default": 4},
        "plain": {"type": "string"},
        "list": {"type": "array", "items": {"type": "object", "properties": {"p": {"type": "string", "default": "TCP"}}}}}}));
    let check = |mut given: Value, expected: Value| {
        custom(schema.clone()).defaults(&mut given);
        assert_eq!(given, expected);
    };
    check(json!({}), json!({"spec": {"m": 4, "n": 3}}));
    check(json!({"spec": {"n": null, "m": null, "plain": null}}), json!({"spec": {"n": 3, "m": null}}));
    check(json!({"spec": {"n": 1, "m": 1, "list": [{}]}}), json!({"spec": {"n": 1, "m": 1, "list": [{"p": "TCP"}]}}));
}

#[test]
fn values_are_checked_in_upstreams_words() {
    let check = |schema: Value, value: Value, expected: &[&str]| {
        let schema = below_spec(json!({"type": "object", "properties": {"x": schema}}));
        let errors = custom(schema).validate(&json!({"spec": {"x": value}}), None);
        assert_eq!(texts(errors), expected);
    };
    let string = |more: Value| {
        let mut schema = json!({"type": "string"});
        schema.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        schema
    };
    check(
        string(json!({})),
        json!(1),
        &["spec.x: Invalid value: \"integer\": spec.x in body must be of type string: \"integer\""],
    );
    check(string(json!({"nullable": true})), json!(null), &[]);
    check(
        string(json!({"pattern": "^a+$"})),
        json!("b"),
        &["spec.x: Invalid value: \"b\": spec.x in body should match '^a+$'"],
    );
    check(
        string(json!({"enum": ["a", "b"]})),
        json!("c"),
        &["spec.x: Unsupported value: \"c\": supported values: \"a\", \"b\""],
    );
    check(string(json!({"maxLength": 2})), json!("abc"), &["spec.x: Too long: may not be more than 2 bytes"]);
    check(
        string(json!({"minLength": 2})),
        json!("a"),
        &["spec.x: Invalid value: \"a\": spec.x in body should be at least 2 chars long"],
    );
    check(
        string(json!({"format": "date-time"})),
        json!("x"),
        &["spec.x: Invalid value: \"x\": spec.x in body must be of type date-time: \"x\""],
    );
    check(
        json!({"type": "integer", "minimum": 1}),
        json!(0),
        &["spec.x: Invalid value: 0: spec.x in body should be greater than or equal to 1"],
    );
    check(
        json!({"type": "integer", "maximum": 5, "exclusiveMaximum": true}),
        json!(5),
        &["spec.x: Invalid value: 5: spec.x in body should be less than 5"],
    );
    check(
        json!({"type": "integer"}),
        json!(1.5),
        &["spec.x: Invalid value: \"number\": spec.x in body must be of type integer: \"number\""],
    );
    check(json!({"x-kubernetes-int-or-string": true}), json!("5%"), &[]);
    check(
        json!({"x-kubernetes-int-or-string": true}),
        json!(true),
        &["spec.x: Invalid value: \"boolean\": spec.x in body must be of type integer,string: \"boolean\""],
    );
    check(
        json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}}),
        json!({}),
        &["spec.x.a: Required value"],
    );
    check(
        json!({"type": "array", "items": {"type": "string"}, "maxItems": 1}),
        json!(["a", "b"]),
        &["spec.x: Too many: 2: must have at most 1 item"],
    );
    check(
        json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}),
        json!(["a", "a"]),
        &["spec.x[1]: Duplicate value: \"a\""],
    );
    check(
        json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "properties": {"k": {"type": "string"}}}}),
        json!([{"k": "a"}, {"k": "a"}]),
        &["spec.x[1]: Duplicate value: {\"k\":\"a\"}"],
    );
    check(
        json!({"type": "integer", "oneOf": [{"minimum": 5}, {"maximum": 3}]}),
        json!(4),
        &["spec.x: Invalid value: 4: \"spec.x\" must validate one and only one schema (oneOf). Found none valid"],
    );
    check(
        json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}),
        json!({"kind": "Pod"}),
        &["spec.x.apiVersion: Required value: must not be empty"],
    );
}

#[test]
fn rules_hold_for_objects_and_for_changes() {
    let rule = |rule: Value| {
        json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"},
            "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer",
                    "x-kubernetes-validations": [{"rule": "self >= oldSelf", "message": "only up"}]}}}}},
            "x-kubernetes-validations": [rule]})
    };
    let check = |given: Value, old: Option<Value>, object: Value, expected: &[&str]| {
        let custom = custom(below_spec(rule(given)));
        let whole = |spec: Value| json!({"spec": spec});
        let old = old.map(whole);
        assert_eq!(texts(custom.validate(&whole(object), old.as_ref())), expected);
    };
    let less = json!({"rule": "self.a < self.b"});
    check(less.clone(), None, json!({"a": 1, "b": 2}), &[]);
    check(
        less.clone(),
        None,
        json!({"a": 3, "b": 2}),
        &["spec: Invalid value: \"object\": failed rule: self.a < self.b"],
    );
    check(
        less,
        None,
        json!({"a": 3}),
        &["spec: Invalid value: \"object\": no such key: b evaluating rule: self.a < self.b"],
    );
    check(
        json!({"rule": "self.a < self.b", "message": "a below b", "reason": "FieldValueForbidden", "fieldPath": ".a"}),
        None,
        json!({"a": 3, "b": 2}),
        &["spec.a: Forbidden: a below b"],
    );
    check(
        json!({"rule": "self.a < 2", "messageExpression": "'a is ' + string(self.a)"}),
        None,
        json!({"a": 3}),
        &["spec: Invalid value: \"object\": a is 3"],
    );
    let fixed = json!({"rule": "self.a == oldSelf.a", "message": "a is fixed"});
    check(fixed.clone(), None, json!({"a": 3}), &[]);
    check(fixed, Some(json!({"a": 1})), json!({"a": 3}), &["spec: Invalid value: \"object\": a is fixed"]);
    check(
        json!({"rule": "true"}),
        Some(json!({"list": [{"k": "x", "v": 1}, {"k": "y", "v": 5}]})),
        json!({"list": [{"k": "y", "v": 4}, {"k": "x", "v": 2}]}),
        &["spec.list[0].v: Invalid value: \"integer\": only up"],
    );
    check(
        json!({"rule": "oldSelf.hasValue() || self.a == 1", "optionalOldSelf": true}),
        None,
        json!({"a": 2}),
        &["spec: Invalid value: \"object\": failed rule: oldSelf.hasValue() || self.a == 1"],
    );
}

#[test]
fn definitions_are_checked() {
    let check = |change: &dyn Fn(&mut Value), expected: &[&str]| {
        let mut object = around(json!({"type": "object", "properties": {"spec": {"type": "object"}}}));
        change(&mut object);
        let found = texts(definition(&object));
        let same = found.len() == expected.len() && found.iter().zip(expected).all(|(f, e)| f.starts_with(e));
        assert!(same, "{found:#?}");
    };
    let at = "spec.versions[0].schema.openAPIV3Schema";
    let spec = |schema: Value| {
        move |object: &mut Value| {
            object["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = schema.clone();
        }
    };
    check(&|_| (), &[]);
    check(
        &|o| o["metadata"]["name"] = json!("x"),
        &["metadata.name: Invalid value: \"x\": must be spec.names.plural+\".\"+spec.group"],
    );
    check(
        &|o| o["spec"]["scope"] = json!("Some"),
        &["spec.scope: Unsupported value: \"Some\": supported values: \"Cluster\", \"Namespaced\""],
    );
    check(&|o| o["spec"]["versions"][0]["storage"] = json!(false), &["spec.versions: Invalid value"]);
    check(
        &|o| o["spec"]["names"]["listKind"] = json!("A"),
        &["spec.names.listKind: Invalid value: \"A\": kind and listKind may not be the same"],
    );
    check(
        &|o| {
            o["spec"]["versions"][0].as_object_mut().unwrap().remove("schema");
        },
        &["spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required"],
    );
    check(
        &spec(json!({"properties": {}})),
        &[&format!("{at}.properties[spec].type: Required value: must not be empty for specified object fields")],
    );
    check(
        &spec(json!({"type": "array"})),
        &[&format!("{at}.properties[spec].items: Required value: must be specified")],
    );
    check(
        &spec(json!({"type": "integer", "default": "x"})),
        &[&format!("{at}.properties[spec].default: Invalid value")],
    );
    check(
        &spec(json!({"type": "object", "anyOf": [{"type": "object"}]})),
        &[&format!("{at}.properties[spec].anyOf[0].type: Forbidden: must be empty to be structural")],
    );
    check(
        &spec(json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.z == 1"}]})),
        &[&format!(
            "{at}.properties[spec].x-kubernetes-validations[0].rule: Invalid value: \"self.z == 1\": compilation failed: ERROR: <input>:1:5: undefined field 'z'"
        )],
    );
    check(
        &spec(json!({"type": "object", "x-kubernetes-validations": [{"rule": "self = = 1"}]})),
        &[&format!(
            "{at}.properties[spec].x-kubernetes-validations[0].rule: Invalid value: \"self = = 1\": compilation failed: ERROR: <input>:1:6: Syntax error"
        )],
    );
    let list = json!({"type": "array", "items": {"type": "array", "items": {"type": "string"}}});
    check(
        &spec(
            json!({"type": "object", "properties": {"l": list}, "x-kubernetes-validations": [{"rule": "self.l.all(x, x.all(y, self.l.all(z, z == x)))"}]}),
        ),
        &[
            &format!(
                "{at}.properties[spec].x-kubernetes-validations[0].rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x"
            ),
            &format!("{at}: Forbidden: x-kubernetes-validations estimated cost total"),
        ],
    );
    check(
        &|o| o["spec"]["versions"][0]["subresources"] = json!({"scale": {"specReplicasPath": ".spec.replicas"}}),
        &["spec.versions[0].subresources.scale.statusReplicasPath: Required value"],
    );
    check(
        &|o| o["spec"]["group"] = json!("a.k8s.io"),
        &[
            "metadata.name: Invalid value",
            "metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval annotation",
        ],
    );
}
