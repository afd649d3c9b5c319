//! Managers that apply and update one after the other.

use serde_json::json;

use super::{State, schema};
use crate::apply::Type;

#[test]
fn fields_that_are_no_longer_applied_go() {
    let schema = schema();
    let mut state = State::custom(&schema);
    state.apply(
        "a",
        json!({"text": "x", "number": 1, "map": {"k": "v", "l": "w"}, "set": ["1", "2"],
        "list": [{"name": "n", "value": "v"}, {"name": "m"}], "struct": {"inner": {"x": "1"}}}),
    );
    state.apply("a", json!({"text": "x", "map": {"k": "v"}, "set": ["2"], "list": [{"name": "n"}]}));
    assert_eq!(state.fields(), json!({"text": "x", "map": {"k": "v"}, "set": ["2"], "list": [{"name": "n"}]}));
    state.apply("a", json!({"number": 1}));
    assert_eq!(state.fields(), json!({"number": 1}));
    assert_eq!(state.owners(), ["a Apply e.com/v1: .number"]);
}

#[test]
fn fields_that_others_own_stay() {
    let schema = schema();
    let mut state = State::custom(&schema);
    state.apply("a", json!({"text": "x", "list": [{"name": "n", "value": "1"}], "set": ["s", "t"]}));
    state.apply("b", json!({"list": [{"name": "n"}], "set": ["s"]}));
    state.apply("a", json!({"text": "x"}));
    // `b` keeps the item, `a`'s field in it goes.
    assert_eq!(state.fields(), json!({"text": "x", "list": [{"name": "n"}], "set": ["s"]}));
    assert_eq!(
        state.owners(),
        ["a Apply e.com/v1: .text", "b Apply e.com/v1: .list[name=\"n\"] .list[name=\"n\"].name .set[=\"s\"]",]
    );
}

#[test]
fn an_item_goes_with_its_owner_whatever_an_update_added_to_it() {
    let schema = schema();
    let mut state = State::custom(&schema);
    state.apply("a", json!({"list": [{"name": "n", "value": "1"}]}));
    state.update("u", json!({"list": [{"name": "n", "value": "1", "other": "o"}]}));
    state.apply("a", json!({"text": "x"}));
    assert_eq!(state.fields(), json!({"text": "x"}));
    assert_eq!(state.owners(), ["a Apply e.com/v1: .text"]);
}

#[test]
fn fields_that_nobody_owns_stay() {
    let schema = schema();
    let mut state = State::custom(&schema);
    state.apply("a", json!({"struct": {"a": "1"}, "list": [{"name": "n", "value": "1"}]}));
    // As defaults and admission do: written without a manager.
    let object = state.object.as_mut().unwrap();
    object["number"] = json!(7);
    object["struct"]["b"] = json!("default");
    object["list"][0]["other"] = json!("default");
    state.apply("a", json!({"struct": {"a": "2"}, "list": [{"name": "n"}]}));
    assert_eq!(
        state.fields(),
        json!({"struct": {"a": "2", "b": "default"}, "list": [{"name": "n", "other": "default"}], "number": 7})
    );
}

#[test]
fn conflicts_name_the_manager_and_the_field() {
    let schema = schema();
    let mut state = State::custom(&schema);
    state.apply("a", json!({"text": "x", "number": 1, "list": [{"name": "n", "value": "v"}]}));
    assert_eq!(state.conflicts("b", json!({"text": "y"})), ["conflict with \"a\": .text"]);
    let status = state.try_apply("b", json!({"text": "y"}), false).unwrap_err();
    assert_eq!(status.message, "Apply failed with 1 conflict: conflict with \"a\": .text");
    state.update("kubectl-edit", json!({"text": "x", "number": 2, "list": [{"name": "n", "value": "v"}]}));
    let status = state
        .try_apply("b", json!({"text": "y", "number": 3, "list": [{"name": "n", "value": "w"}]}), false)
        .unwrap_err();
    assert_eq!(
        status.message,
        "Apply failed with 3 conflicts: conflicts with \"a\":\n- .list[name=\"n\"].value\n- .text\nconflicts with \"kubectl-edit\" using e.com/v1:\n- .number"
    );
    // Nothing changed by the refusals.
    assert_eq!(state.fields()["number"], 2);
}

#[test]
fn the_same_value_is_shared() {
    let schema = schema();
    let mut state = State::custom(&schema);
    state.apply("a", json!({"text": "x"}));
    state.apply("b", json!({"text": "x"}));
    assert_eq!(state.owners(), ["a Apply e.com/v1: .text", "b Apply e.com/v1: .text"]);
    // Either may leave without taking the field along.
    state.apply("a", json!({}));
    assert_eq!(state.fields(), json!({"text": "x"}));
    assert_eq!(state.owners(), ["b Apply e.com/v1: .text"]);
    state.apply("b", json!({}));
    assert_eq!(state.fields(), json!({}));
}

#[test]
fn force_takes_over() {
    let schema = schema();
    let mut state = State::custom(&schema);
    state.apply("a", json!({"text": "x", "number": 1}));
    state.force("b", json!({"text": "y"}));
    assert_eq!(state.fields(), json!({"text": "y", "number": 1}));
    assert_eq!(state.owners(), ["a Apply e.com/v1: .number", "b Apply e.com/v1: .text"]);
    // `a` had lost it: leaving it out does nothing.
    state.apply("a", json!({"number": 1}));
    assert_eq!(state.fields(), json!({"text": "y", "number": 1}));
}

#[test]
fn a_manager_under_a_new_name_takes_over_by_force() {
    let schema = schema();
    let mut state = State::custom(&schema);
    state.apply("old", json!({"text": "x", "number": 1}));
    state.force("new", json!({"text": "y"}));
    // The old name's fields stay until it lets go of them.
    assert_eq!(state.fields(), json!({"text": "y", "number": 1}));
    state.apply("old", json!({}));
    assert_eq!(state.fields(), json!({"text": "y"}));
}

#[test]
fn updates_take_what_they_change() {
    let schema = schema();
    let mut state = State::custom(&schema);
    state.apply("a", json!({"text": "x", "number": 1, "map": {"k": "v"}}));
    state.update("u", json!({"text": "y", "map": {"k": "v", "l": "w"}}));
    assert_eq!(state.owners(), ["a Apply e.com/v1: .map.k", "u Update e.com/v1: .map.l .text"]);
    // An update that removes takes the field from its owner, who may bring it back.
    state.apply("a", json!({"number": 1, "map": {"k": "v"}}));
    assert_eq!(state.fields(), json!({"text": "y", "map": {"k": "v", "l": "w"}, "number": 1}));
    // A second update adds to the first.
    state.update("u", json!({"text": "z", "map": {"k": "v", "l": "w"}, "number": 2}));
    assert_eq!(state.owners(), ["a Apply e.com/v1: .map.k", "u Update e.com/v1: .map.l .number .text"]);
}

#[test]
fn atomic_places_are_owned_whole() {
    let schema = schema();
    let mut state = State::custom(&schema);
    state.apply("a", json!({"plain": ["1"], "atomicMap": {"k": "v"}}));
    assert_eq!(
        state.conflicts("b", json!({"plain": ["1", "2"], "atomicMap": {"l": "w"}})),
        ["conflict with \"a\": .atomicMap", "conflict with \"a\": .plain"]
    );
    state.force("b", json!({"plain": ["2"]}));
    assert_eq!(state.fields(), json!({"plain": ["2"], "atomicMap": {"k": "v"}}));
    state.apply("a", json!({}));
    assert_eq!(state.fields(), json!({"plain": ["2"]}));
}

#[test]
fn keys_with_defaults_find_their_item() {
    let schema = schema();
    let mut state = State::custom(&schema);
    state.apply("a", json!({"ports": [{"port": 80, "name": "http"}, {"port": 80, "protocol": "UDP", "name": "quic"}]}));
    // The default is filled in by the server.
    state.object.as_mut().unwrap()["ports"][0]["protocol"] = json!("TCP");
    state.apply("a", json!({"ports": [{"port": 80, "name": "web"}]}));
    assert_eq!(state.fields(), json!({"ports": [{"port": 80, "name": "web", "protocol": "TCP"}]}));
    state.apply("a", json!({}));
    assert_eq!(state.fields(), json!({}));
}

#[test]
fn nested_maps_go_level_by_level() {
    let schema = schema();
    let mut state = State::custom(&schema);
    state.apply("a", json!({"struct": {"inner": {"x": "1"}}}));
    state.apply("b", json!({"struct": {"inner": {"y": "2"}}}));
    state.apply("a", json!({}));
    assert_eq!(state.fields(), json!({"struct": {"inner": {"y": "2"}}}));
    state.apply("b", json!({}));
    assert_eq!(state.fields(), json!({}));
}

#[test]
fn without_a_schema_maps_are_granular_and_lists_atomic() {
    let nothing = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    for ty in [Type::CustomObject(None), Type::CustomObject(Some(&nothing))] {
        let mut state = State::of(ty, "e.com/v1");
        state.apply("a", json!({"spec": {"a": {"x": 1}, "l": [{"n": 1}]}}));
        state.apply("b", json!({"spec": {"a": {"y": 2}}}));
        assert_eq!(state.conflicts("b", json!({"spec": {"l": []}})), ["conflict with \"a\": .spec.l"]);
        state.apply("a", json!({"spec": {"l": [{"n": 1}]}}));
        assert_eq!(state.fields(), json!({"spec": {"a": {"y": 2}, "l": [{"n": 1}]}}));
    }
}

#[test]
fn managers_of_other_versions_keep_their_fields() {
    let schema = schema();
    let mut state = State::custom(&schema);
    let ty = state.kind.0[0].1;
    state.kind.0.push(("e.com/v2", ty));
    state.apply("a", json!({"text": "x", "number": 1}));
    state.version = "e.com/v2";
    assert_eq!(state.conflicts("b", json!({"text": "y"})), ["conflict with \"a\": .text"]);
    state.update("u", json!({"text": "x", "number": 2}));
    assert_eq!(state.owners(), ["a Apply e.com/v1: .text", "u Update e.com/v2: .number"]);
    // The same manager in the new version: its entry moves along, what it leaves out goes.
    state.apply("a", json!({"flag": true}));
    assert_eq!(state.fields(), json!({"number": 2, "flag": true}));
    assert_eq!(state.owners(), ["a Apply e.com/v2: .flag", "u Update e.com/v2: .number"]);
    // A version that is gone takes its managers along.
    state.kind.0.remove(0);
    state.version = "e.com/v2";
    state.apply("b", json!({"text": "y"}));
    assert_eq!(state.owners().len(), 3);
}
