//! Sets, field sets, differences, merges and checks, as tables.

use serde_json::{Value, json};

use super::{paths, schema};
use crate::apply::{
    Element, Set, Type,
    check::check,
    compare, field_set,
    merge::{merge, reconciled, remove},
};

fn set(fields: Value) -> Set {
    Set::from_json(&fields).unwrap()
}

#[test]
fn fields_v1_is_read_and_written() {
    let check = |text: &str, expected: &str| {
        let read = Set::from_json(&serde_json::from_str(text).unwrap()).unwrap();
        assert_eq!(read.to_json().to_string(), expected);
    };
    let same = |text: &str| check(text, text);
    same(r#"{"f:a":{},"f:b":{".":{},"f:c":{}}}"#);
    same(r#"{"f:l":{"k:{\"name\":\"x\"}":{".":{},"f:v":{}},"v:\"s\"":{},"v:3":{},"i:0":{}}}"#
        .replace(r#""v:\"s\"":{},"v:3":{}"#, r#""v:3":{},"v:\"s\"":{}"#).as_str());
    // Keys sorted by name, numbers by value, fields before keys before values.
    check(
        r#"{"v:1":{},"k:{\"protocol\":\"TCP\", \"port\": 80}":{},"k:{\"port\":9,\"protocol\":\"TCP\"}":{},"f:x":{}}"#,
        r#"{"f:x":{},"k:{\"port\":9,\"protocol\":\"TCP\"}":{},"k:{\"port\":80,\"protocol\":\"TCP\"}":{},"v:1":{}}"#,
    );
    // What a newer version may know, and the same key in two spellings.
    check(r#"{"z:future":{"f:a":{}},"f:a":{}}"#, r#"{"f:a":{}}"#);
    check(
        r#"{"k:{\"n\":1}":{"f:a":{}},"k:{ \"n\":1}":{".":{},"f:b":{}}}"#,
        r#"{"k:{\"n\":1}":{".":{},"f:a":{},"f:b":{}}}"#,
    );
    check("{}", "{}");
    for bad in [r#"{"x":{}}"#, r#"{"k:{":{}}"#, r#"{"v:":{}}"#, r#"{"i:x":{}}"#, r#"{"fa":{}}"#, r#"{"f:a":1}"#] {
        assert!(Set::from_json(&serde_json::from_str(bad).unwrap()).is_err(), "{bad}");
    }
}

#[test]
fn sets_combine() {
    let a = set(json!({"f:a": {}, "f:b": {".": {}, "f:x": {}, "f:y": {}}, "f:c": {"f:z": {}}}));
    let b = set(json!({"f:b": {"f:x": {}}, "f:c": {}, "f:d": {}}));
    assert_eq!(paths(&a.union(&b)), [".a", ".b", ".b.x", ".b.y", ".c", ".c.z", ".d"]);
    assert_eq!(paths(&a.intersection(&b)), [".b.x"]);
    assert_eq!(paths(&a.difference(&b)), [".a", ".b", ".b.y", ".c.z"]);
    assert_eq!(paths(&a.recursive_difference(&b)), [".a", ".b", ".b.y"]);
    assert_eq!(a.len(), 5);
    assert!(a.intersection(&b).is_subset(&b) && !a.is_subset(&b));
    let path = |names: &[&str]| names.iter().map(|n| Element::field(n)).collect::<Vec<_>>();
    assert!(a.has(&path(&["b", "x"])) && !a.has(&path(&["c"])) && !a.has(&[]));
}

#[test]
fn a_value_names_its_fields() {
    let schema = schema();
    let check = |value: Value, expected: &[&str]| {
        assert_eq!(paths(&field_set(&value, Type::Custom(&schema)).unwrap()), expected, "{value}");
    };
    check(json!({"text": "x", "struct": {"inner": {"x": "1"}}}), &[".struct.inner.x", ".text"]);
    check(json!({"struct": {}}), &[".struct"]);
    check(json!({"struct": null, "text": null}), &[".struct", ".text"]);
    check(json!({"map": {"k": "v"}}), &[".map.k"]);
    check(json!({"map": {}}), &[".map"]);
    check(json!({"atomicMap": {"k": "v"}}), &[".atomicMap"]);
    check(json!({"plain": ["a"], "set": ["b", "a"]}), &[".plain", ".set[=\"a\"]", ".set[=\"b\"]"]);
    check(json!({"set": [], "list": []}), &[]);
    check(
        json!({"list": [{"name": "n", "value": "v", "tags": ["t"]}]}),
        &[".list[name=\"n\"]", ".list[name=\"n\"].name", ".list[name=\"n\"].tags[=\"t\"]", ".list[name=\"n\"].value"],
    );
    check(
        json!({"ports": [{"port": 80}, {"port": 80, "protocol": "UDP"}]}),
        &[
            ".ports[port=80,protocol=\"TCP\"]",
            ".ports[port=80,protocol=\"TCP\"].port",
            ".ports[port=80,protocol=\"UDP\"]",
            ".ports[port=80,protocol=\"UDP\"].port",
            ".ports[port=80,protocol=\"UDP\"].protocol",
        ],
    );
    check(json!({"free": {"a": {"b": [1]}}}), &[".free.a", ".free.a.b"]);
    // Of duplicates only the item itself is owned.
    check(json!({"list": [{"name": "n", "value": "1"}, {"name": "n", "value": "2"}]}), &[".list[name=\"n\"]"]);
}

#[test]
fn values_differ_field_by_field() {
    let schema = schema();
    let check = |old: Value, new: Value, written: &[&str], removed: &[&str]| {
        let diff = compare(&old, &new, Type::Custom(&schema)).unwrap();
        assert_eq!(paths(&diff.written), written, "{old} {new}");
        assert_eq!(paths(&diff.removed), removed, "{old} {new}");
    };
    check(json!({"text": "a"}), json!({"text": "a"}), &[], &[]);
    check(json!({"text": "a", "number": 1}), json!({"text": "b", "flag": true}), &[".flag", ".text"], &[".number"]);
    check(json!({}), json!({"struct": {"inner": {"x": "1"}}}), &[".struct", ".struct.inner", ".struct.inner.x"], &[]);
    check(json!({"struct": {"a": "1"}}), json!({"struct": {"b": "1"}}), &[".struct.b"], &[".struct.a"]);
    check(json!({"struct": {"a": "1"}}), json!({}), &[], &[".struct", ".struct.a"]);
    check(json!({"atomicMap": {"a": "1"}}), json!({"atomicMap": {"a": "2"}}), &[".atomicMap"], &[]);
    check(json!({"plain": ["a", "b"]}), json!({"plain": ["b", "a"]}), &[".plain"], &[]);
    check(json!({"set": ["a", "b"]}), json!({"set": ["b", "a"]}), &[], &[]);
    check(json!({"set": ["a", "b"]}), json!({"set": ["b", "c"]}), &[".set[=\"c\"]"], &[".set[=\"a\"]"]);
    check(json!({"map": {}}), json!({"map": null}), &[".map"], &[]);
    check(
        json!({"list": [{"name": "a", "value": "1"}, {"name": "b"}]}),
        json!({"list": [{"name": "c"}, {"name": "a", "value": "2"}]}),
        &[".list[name=\"a\"].value", ".list[name=\"c\"]", ".list[name=\"c\"].name"],
        &[".list[name=\"b\"]", ".list[name=\"b\"].name"],
    );
    // Duplicates come and go as one item.
    let one = json!({"list": [{"name": "a", "value": "1"}]});
    let two = json!({"list": [{"name": "a", "value": "1"}, {"name": "a", "value": "2"}]});
    check(
        one.clone(),
        two.clone(),
        &[".list[name=\"a\"]"],
        &[".list[name=\"a\"]", ".list[name=\"a\"].name", ".list[name=\"a\"].value"],
    );
    check(
        two,
        one,
        &[".list[name=\"a\"]", ".list[name=\"a\"].name", ".list[name=\"a\"].value"],
        &[".list[name=\"a\"]"],
    );
    // Of another kind than before.
    check(json!({"free": {"a": {"b": 1}}}), json!({"free": {"a": 1}}), &[".free.a"], &[".free.a.b"]);
    check(json!({"free": {"a": 1}}), json!({"free": {"a": {"b": 1}}}), &[".free.a", ".free.a.b"], &[]);
    check(json!({"mixed": 1}), json!({"mixed": "1"}), &[".mixed"], &[]);
}

#[test]
fn configurations_merge() {
    let schema = schema();
    let check = |live: Value, config: Value, expected: Value| {
        let merged = merge(&live, &config, Type::Custom(&schema)).unwrap();
        assert_eq!(merged.to_string(), expected.to_string(), "{live} {config}");
    };
    check(json!({"text": "a", "number": 1}), json!({"text": "b"}), json!({"text": "b", "number": 1}));
    check(json!({"struct": {"a": "1"}}), json!({"struct": {"b": "2"}}), json!({"struct": {"a": "1", "b": "2"}}));
    check(json!({"struct": {"a": "1"}}), json!({"struct": null}), json!({"struct": {"a": "1"}}));
    check(json!({"atomicMap": {"a": "1"}}), json!({"atomicMap": {"b": "2"}}), json!({"atomicMap": {"b": "2"}}));
    check(json!({"plain": ["a"]}), json!({"plain": ["b"]}), json!({"plain": ["b"]}));
    check(json!({"plain": ["a"]}), json!({"plain": []}), json!({"plain": []}));
    check(json!({"set": ["a"]}), json!({"set": []}), json!({"set": ["a"]}));
    check(json!({}), json!({"map": {}, "set": []}), json!({"map": {}, "set": []}));
    check(json!({"free": {"a": {"b": 1}}}), json!({"free": {"a": [1]}}), json!({"free": {"a": [1]}}));
    // The configuration's order, the object's own items where they stood.
    let sets = |live: &[&str], config: &[&str], expected: &[&str]| {
        check(json!({"set": live}), json!({"set": config}), json!({"set": expected}));
    };
    sets(&["a", "b", "c"], &["c", "a"], &["b", "c", "a"]);
    sets(&["a", "b", "c"], &["d"], &["a", "b", "c", "d"]);
    sets(&["a", "c"], &["a", "b", "c"], &["a", "b", "c"]);
    sets(&["1", "2", "3", "4"], &["4", "x", "1"], &["2", "3", "4", "x", "1"]);
    check(
        json!({"list": [{"name": "a", "value": "1"}, {"name": "b", "value": "2"}]}),
        json!({"list": [{"name": "b", "other": "o"}]}),
        json!({"list": [{"name": "a", "value": "1"}, {"name": "b", "value": "2", "other": "o"}]}),
    );
    check(
        json!({"ports": [{"port": 80, "protocol": "TCP", "name": "a"}]}),
        json!({"ports": [{"port": 80, "name": "b"}]}),
        json!({"ports": [{"port": 80, "protocol": "TCP", "name": "b"}]}),
    );
    let twice = json!({"set": ["a", "a"]});
    let error = merge(&json!({"set": ["b"]}), &twice, Type::Custom(&schema)).unwrap_err();
    assert_eq!(error.to_string(), ".set: duplicate entries for key [=\"a\"]");
}

#[test]
fn fields_are_removed() {
    let schema = schema();
    let check = |value: Value, gone: Value, expected: Value| {
        assert_eq!(remove(&value, &set(gone), Type::Custom(&schema)), expected);
    };
    check(json!({"text": "a", "number": 1}), json!({"f:text": {}}), json!({"number": 1}));
    check(
        json!({"set": ["a", "b"], "list": [{"name": "x", "value": "1"}]}),
        json!({"f:set": {"v:\"a\"": {}}, "f:list": {"k:{\"name\":\"x\"}": {"f:value": {}}}}),
        json!({"set": ["b"], "list": [{"name": "x"}]}),
    );
    check(
        json!({"struct": {"a": "1"}, "text": "t"}),
        json!({"f:struct": {"f:a": {}}}),
        json!({"struct": null, "text": "t"}),
    );
    check(json!({"struct": {"a": "1"}, "text": "t"}), json!({"f:struct": {}}), json!({"text": "t"}));
}

#[test]
fn ownership_below_moves_up_when_a_place_becomes_atomic() {
    let granular = json!({"type": "object", "properties": {"m": {"type": "object",
        "additionalProperties": {"type": "string"}}}});
    let mut atomic = granular.clone();
    atomic["properties"]["m"]["x-kubernetes-map-type"] = json!("atomic");
    let owned = set(json!({"f:m": {"f:a": {}, "f:b": {}}}));
    assert_eq!(reconciled(&owned, Type::Custom(&granular)), None);
    assert_eq!(reconciled(&owned, Type::Custom(&atomic)), Some(set(json!({"f:m": {}}))));
    assert_eq!(reconciled(&set(json!({"f:m": {}})), Type::Custom(&atomic)), None);
}

#[test]
fn what_does_not_fit_is_told_as_upstream_does() {
    let schema = schema();
    let check = |value: Value, expected: &[&str]| {
        let errors: Vec<String> = check(&value, Type::Custom(&schema)).iter().map(ToString::to_string).collect();
        assert_eq!(errors, expected, "{value}");
    };
    check(json!({"text": "a", "number": 1, "flag": true, "mixed": "50%", "free": {"x": [1, {"y": null}]}}), &[]);
    check(
        json!({"unknown": 1, "struct": {"z": 1}}),
        &[".unknown: field not declared in schema", ".struct.z: field not declared in schema"],
    );
    check(json!({"text": 1}), &[".text: expected string, got &value.valueUnstructured{Value:1}"]);
    check(json!({"number": "1"}), &[".number: expected numeric (int or float), got string"]);
    check(json!({"flag": "yes"}), &[".flag: expected boolean, got &{yes}"]);
    check(json!({"struct": [1]}), &[".struct: expected map, got &{[1]}"]);
    check(json!({"plain": {"a": 1}}), &[".plain: expected list, got &{map[a:1]}"]);
    check(json!({"set": ["a", "a"]}), &[".set: duplicate entries for key [=\"a\"]"]);
    check(json!({"plain": ["a", 2]}), &[".plain[1]: expected string, got &value.valueUnstructured{Value:2}"]);
    check(
        json!({"list": [{"value": "x"}]}),
        &[
            ".list: element 0: associative list with keys has an element that omits all key fields [\"name\"] (and doesn't have default values for any key fields)",
        ],
    );
    check(json!({"list": [{"name": "a", "x": 1}]}), &[".list[name=\"a\"].x: field not declared in schema"]);
    check(
        json!({"ports": [{"name": "a"}, {"protocol": "TCP"}]}),
        &[".ports: duplicate entries for key [protocol=\"TCP\"]"],
    );
}
