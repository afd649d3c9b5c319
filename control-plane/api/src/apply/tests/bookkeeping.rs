//! The list of managers itself: times, order, bounds, what clients write into it, names, and the
//! annotation of client-side apply.

use serde_json::{Value, json};

use super::{State, schema};
use crate::{
    apply::{manager_or_agent, managers::LAST_APPLIED, same_but_times, validate_manager},
    resource,
};

fn times(state: &State<'_>) -> Vec<(String, String)> {
    let list = state.object.as_ref().unwrap()["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    list.iter().map(|entry| (text(&entry["manager"]), text(&entry["time"])[17..19].to_owned())).collect()
}

fn at(state: &mut State<'_>, second: u32) {
    state.now = format!("2026-01-01T00:00:{second:02}Z");
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

#[test]
fn times_tell_when_a_manager_last_did_something() {
    let schema = schema();
    let mut state = State::custom(&schema);
    state.apply("a", json!({"text": "x"}));
    at(&mut state, 1);
    let before = state.object.clone();
    state.apply("a", json!({"text": "x"}));
    assert_eq!(state.object, before, "an apply that changes nothing leaves no trace");
    state.update("u", json!({"text": "x"}));
    assert_eq!(state.object, before, "nor does an update");
    state.update("u", json!({"text": "x", "number": 1}));
    at(&mut state, 2);
    state.apply("b", json!({"text": "x"}));
    assert_eq!(times(&state), pairs(&[("a", "00"), ("b", "02"), ("u", "01")]), "applies first, then by time");
    at(&mut state, 3);
    state.apply("a", json!({"text": "x", "flag": true}));
    assert_eq!(times(&state), pairs(&[("b", "02"), ("a", "03"), ("u", "01")]));
}

#[test]
fn old_updates_are_put_together() {
    let schema = schema();
    let mut state = State::custom(&schema);
    let mut map = serde_json::Map::new();
    for i in 0..14 {
        at(&mut state, i);
        map.insert(format!("k{i:02}"), "v".into());
        state.update(&format!("u{i:02}"), json!({"map": map}));
    }
    let owners = state.owners();
    assert_eq!(owners.len(), 10);
    assert_eq!(owners[0], "ancient-changes Update e.com/v1: .map .map.k00 .map.k01 .map.k02 .map.k03 .map.k04");
    assert_eq!(owners[1], "u05 Update e.com/v1: .map.k05");
    assert_eq!(times(&state)[0], ("ancient-changes".into(), "04".into()));
}

#[test]
fn clients_may_write_the_list() {
    let schema = schema();
    let entry = |manager: &str, operation: &str| {
        json!({"manager": manager, "operation": operation, "apiVersion": "e.com/v1", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:text": {}}})
    };
    let check = |list: Value, expected: &[&str]| {
        let mut state = State::custom(&schema);
        state.update("first", json!({"text": "x"}));
        state.update("u", json!({"metadata": {"managedFields": list}, "text": "x"}));
        assert_eq!(state.owners(), expected, "{list}");
    };
    check(json!([]), &[]);
    check(json!([{}]), &[]);
    check(json!(null), &["first Update e.com/v1: .text"]);
    check(json!([entry("mine", "Apply")]), &["mine Apply e.com/v1: .text"]);
    // However it is spelled, it is kept as the server writes it.
    let mut spelled = entry("mine", "Apply");
    spelled["fieldsV1"] = json!({"f:list": {"k:{ \"name\" : \"n\" }": {}}, "z:new": {}});
    let mut state = State::custom(&schema);
    state.update("first", json!({"list": [{"name": "n"}]}));
    state.update("u", json!({"metadata": {"managedFields": [spelled]}, "list": [{"name": "n"}]}));
    let list = &state.object.as_ref().unwrap()["metadata"]["managedFields"];
    assert_eq!(list[0]["fieldsV1"], json!({"f:list": {"k:{\"name\":\"n\"}": {}}}));
    // What cannot be read is as if it was not there.
    check(json!([entry("mine", "Steal")]), &["first Update e.com/v1: .text"]);
    check(json!([{"manager": "x", "operation": "Apply"}]), &["first Update e.com/v1: .text"]);
    // Once cleared, nobody is kept track of until the first apply.
    let mut state = State::custom(&schema);
    state.update("first", json!({"text": "x"}));
    state.update("u", json!({"metadata": {"managedFields": [{}]}, "text": "x"}));
    state.update("u", json!({"text": "y"}));
    assert!(state.owners().is_empty());
    assert_eq!(
        state.conflicts("a", json!({"text": "z"})),
        ["conflict with \"before-first-apply\" using e.com/v1: .text"]
    );
    state.apply("a", json!({"number": 1}));
    assert_eq!(state.owners(), ["a Apply e.com/v1: .number", "before-first-apply Update e.com/v1: .text"]);
    // A subresource does not write it.
    state.subresource = "status";
    state.update("u", json!({"metadata": {"managedFields": []}, "text": "y", "number": 1, "flag": true}));
    assert_eq!(state.owners().len(), 3);
}

#[test]
fn kubectl_takes_over_from_client_side_apply() {
    let map = resource::builtin().by_kind("", "v1", "ConfigMap").unwrap();
    let last = |data: &Value| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data}).to_string()
    };
    let start = |live: Value, applied: &Value| {
        let mut state = State::builtin(map, "v1");
        state.update(
            "kubectl-client-side-apply",
            json!({"metadata": {"annotations": {LAST_APPLIED: last(applied)}}, "data": live}),
        );
        state
    };
    let data = json!({"k": "v", "l": "w"});
    let mut state = start(data.clone(), &data);
    assert_eq!(state.conflicts("other", json!({"data": {"k": "new"}})).len(), 1, "only kubectl may");
    state.apply("kubectl", json!({"data": {"k": "new", "l": "w"}}));
    assert_eq!(state.fields(), json!({"data": {"k": "new", "l": "w"}}));
    // The annotation is kept in step.
    let annotation =
        state.object.as_ref().unwrap()["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap().to_owned();
    assert!(annotation.ends_with("}\n"));
    assert_eq!(serde_json::from_str::<Value>(&annotation).unwrap()["data"]["k"], "new");
    // What had been changed since is somebody else's.
    let mut state = start(json!({"k": "changed", "l": "w"}), &data);
    assert_eq!(
        state.conflicts("kubectl", json!({"data": {"k": "new", "l": "new"}})),
        ["conflict with \"kubectl-client-side-apply\" using v1: .data.k"]
    );
}

#[test]
fn managers_have_printable_names_of_bounded_length() {
    let check = |name: &str, expected: &[&str]| {
        let errors: Vec<String> = validate_manager("fieldManager", name).iter().map(ToString::to_string).collect();
        assert_eq!(errors, expected);
    };
    check("kubectl-client-side-apply", &[]);
    check("ü 1", &[]);
    check(&"x".repeat(129), &["fieldManager: Too long: may not be more than 128 bytes"]);
    check("a\u{1}", &["fieldManager: Invalid value: \"a\\x01\": invalid character U+0001 (at position 1)"]);
    check("a\n", &["fieldManager: Invalid value: \"a\\n\": invalid character U+000A (at position 1)"]);
    let agent = |manager: &str, agent: &str| manager_or_agent(manager, agent).into_owned();
    assert_eq!(agent("", "kubectl/v1.32.0 (linux/amd64)"), "kubectl");
    assert_eq!(agent("mine", "kubectl/v1.32.0"), "mine");
    assert_eq!(agent("", ""), "");
    assert_eq!(agent("", &"ö".repeat(100)).len(), 128);
    assert_eq!(agent("", "a\tb"), "ab");
    let mut state = State::builtin(resource::builtin().by_kind("", "v1", "ConfigMap").unwrap(), "v1");
    state.update("", json!({"data": {"k": "v"}}));
    assert_eq!(state.owners(), ["unknown Update v1: .data .data.k"]);
}

#[test]
fn only_times_do_not_make_a_change() {
    let a = json!({"metadata": {"name": "a", "managedFields": [{"manager": "m", "time": "1"}]}, "data": 1});
    let with = |pointer: &str, value: Value| {
        let mut b = a.clone();
        *b.pointer_mut(pointer).unwrap() = value;
        b
    };
    assert!(same_but_times(&a, &a));
    assert!(same_but_times(&a, &with("/metadata/managedFields/0/time", json!("2"))));
    assert!(!same_but_times(&a, &with("/metadata/managedFields/0/manager", json!("n"))));
    assert!(!same_but_times(&a, &with("/metadata/name", json!("b"))));
    assert!(!same_but_times(&a, &with("/data", json!(2))));
    assert!(!same_but_times(&a, &json!({"metadata": {"name": "a"}, "data": 1})));
}
