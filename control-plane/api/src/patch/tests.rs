#![allow(clippy::unwrap_used)]
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::schema::builtin;

fn strategic_on(schema: &str, original: Value, patch: Value) -> Result<Value, Status> {
    strategic(builtin().get(schema), &original, patch)
}

const POD: &str = "io.k8s.api.core.v1.PodSpec";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Compares the text: the order of items and of fields counts.
fn check(schema: &str, original: Value, patch: Value, want: Value) {
    let got = strategic_on(schema, original, patch.clone()).unwrap();
    assert_eq!(got, want, "patch {patch}");
}

#[test]
fn json_patches_apply_or_say_why_not() {
    let doc = || json!({"a": {"b": [1, 2]}});
    let check = |patch: Value, want: Value| assert_eq!(json(&doc(), patch).unwrap(), want);
    check(json!([{"op": "add", "path": "/a/b/-", "value": 3}]), json!({"a": {"b": [1, 2, 3]}}));
    check(json!([{"op": "remove", "path": "/a/b/0"}]), json!({"a": {"b": [2]}}));
    check(
        json!([{"op": "test", "path": "/a/b/0", "value": 1}, {"op": "replace", "path": "/a", "value": 5}]),
        json!({"a": 5}),
    );
    check(json!([{"op": "move", "from": "/a/b", "path": "/c"}]), json!({"a": {}, "c": [1, 2]}));
    // Upstream's own suite adds a label this way.
    check(json!([{"op": "add", "path": "/x"}]), json!({"a": {"b": [1, 2]}, "x": null}));
    check(json!([{"op": "replace", "path": "/a"}, {"op": "test", "path": "/a"}]), json!({"a": null}));
    let fails = |patch: Value, code: u16| assert_eq!(json(&doc(), patch).unwrap_err().code, code);
    fails(json!([{"op": "test", "path": "/a/b/0", "value": 2}]), 422);
    let status = json(&doc(), json!([{"op": "test", "path": "/a/b/0", "value": 2}])).unwrap_err();
    assert_eq!(status.message, "the server rejected our request due to an error in our request");
    assert!(status.details.unwrap().causes.is_empty(), "kubectl would print them instead of the message");
    fails(json!([{"op": "remove", "path": "/x"}]), 422);
    fails(json!({"op": "remove"}), 400);
    fails(json!([{"op": "nope", "path": "/a"}]), 400);
    fails(json!([{"path": "/a"}]), 400);
    fails(json!([{"op": "move", "path": "/a"}]), 400);
    let many: Vec<Value> = vec![json!({"op": "add", "path": "/x", "value": 1}); limits::JSON_PATCH_OPERATIONS + 1];
    fails(Value::Array(many), 413);
    let doubling: Vec<Value> = (0..100).map(|i| json!({"op": "copy", "from": "", "path": format!("/x{i}")})).collect();
    fails(Value::Array(doubling), 413);
}

#[test]
fn merge_patches_follow_the_rfc() {
    let check = |doc: Value, patch: Value, want: Value| assert_eq!(merge(&doc, &patch).unwrap(), want);
    check(json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"}));
    check(json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"}));
    check(json!({"a": [1]}), json!({"a": "c"}), json!({"a": "c"}));
    check(json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}}));
    check(json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}}));
    assert_eq!(merge(&json!({}), &json!([])).unwrap_err().code, 400);
}

#[test]
fn maps_merge_and_nulls_delete() {
    check(
        META,
        json!({"labels": {"a": "1", "b": "2"}}),
        json!({"labels": {"b": null, "c": "3"}}),
        json!({"labels": {"a": "1", "c": "3"}}),
    );
    check(META, json!({"labels": {"a": "1"}}), json!({"labels": null, "name": "x"}), json!({"name": "x"}));
    check(META, json!({}), json!({"labels": {"a": null, "b": "1"}}), json!({"labels": {"b": "1"}}));
    check(
        META,
        json!({"labels": {"a": "1"}}),
        json!({"labels": {"$patch": "replace", "b": "2"}}),
        json!({"labels": {"b": "2"}}),
    );
    check(META, json!({"labels": {"a": "1"}}), json!({"labels": {"$patch": "delete"}}), json!({"labels": {}}));
    check(META, json!({}), json!({"labels": {"$patch": "delete"}}), json!({}));
}

#[test]
fn lists_of_objects_merge_by_key() {
    let two = || json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}]});
    check(
        POD,
        two(),
        json!({"containers": [{"name": "b", "image": "3"}]}),
        json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "3"}]}),
    );
    check(
        POD,
        two(),
        json!({"containers": [{"name": "c", "image": "3"}]}),
        json!({"containers": [{"name": "c", "image": "3"}, {"name": "a", "image": "1"}, {"name": "b", "image": "2"}]}),
    );
    check(
        POD,
        two(),
        json!({"containers": [{"name": "a", "$patch": "delete"}]}),
        json!({"containers": [{"name": "b", "image": "2"}]}),
    );
    check(
        POD,
        two(),
        json!({"containers": [{"$patch": "replace"}, {"name": "c", "image": null}]}),
        json!({"containers": [{"name": "c"}]}),
    );
    check(
        POD,
        json!({}),
        json!({"containers": [{"name": "a", "$patch": "delete"}, {"name": "b"}]}),
        json!({"containers": [{"name": "b"}]}),
    );
    // Nested: environment by name, ports by number, values that are not in the patch stay.
    check(
        POD,
        json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}], "ports": [{"containerPort": 80}]}]}),
        json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "2"}, {"name": "Y", "value": "3"}],
                               "ports": [{"containerPort": 80, "protocol": "TCP"}]}]}),
        json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "2"}, {"name": "Y", "value": "3"}],
                               "ports": [{"containerPort": 80, "protocol": "TCP"}]}]}),
    );
    // Atomic lists are replaced.
    check(
        POD,
        json!({"containers": [{"name": "a", "args": ["x", "y"]}]}),
        json!({"containers": [{"name": "a", "args": ["z"]}]}),
        json!({"containers": [{"name": "a", "args": ["z"]}]}),
    );
}

#[test]
fn primitive_lists_merge_as_sets() {
    let f = |items: &[&str]| json!({"finalizers": items});
    check(META, f(&["a", "b"]), f(&["b", "c"]), f(&["a", "b", "c"]));
    check(META, f(&["a", "b", "c"]), json!({"$deleteFromPrimitiveList/finalizers": ["b"]}), f(&["a", "c"]));
    check(META, json!({}), json!({"$deleteFromPrimitiveList/finalizers": ["b"]}), json!({}));
    check(
        META,
        f(&["a", "b"]),
        json!({"$setElementOrder/finalizers": ["c", "a"], "$deleteFromPrimitiveList/finalizers": ["b"],
               "finalizers": ["c"]}),
        f(&["c", "a"]),
    );
}

#[test]
fn element_order_is_set() {
    let names = |names: &[&str]| -> Value {
        let items: Vec<Value> = names.iter().map(|n| json!({"name": n})).collect();
        json!({"containers": items})
    };
    let order = |names: &[&str]| -> Vec<Value> { names.iter().map(|n| json!({"name": n})).collect() };
    check(
        POD,
        names(&["a", "b", "c"]),
        json!({"$setElementOrder/containers": order(&["c", "a", "b"])}),
        names(&["c", "a", "b"]),
    );
    // Items that only the server has keep their place before what followed them.
    check(
        POD,
        names(&["a", "s", "b"]),
        json!({"$setElementOrder/containers": order(&["n", "a", "b"]), "containers": [{"name": "n"}]}),
        names(&["n", "a", "s", "b"]),
    );
    check(
        POD,
        names(&["a", "b"]),
        json!({"$setElementOrder/containers": order(&["b"]), "containers": [{"name": "a", "$patch": "delete"}]}),
        names(&["b"]),
    );
    check(
        POD,
        json!({}),
        json!({"$setElementOrder/containers": order(&["a"]), "containers": [{"name": "a"}]}),
        names(&["a"]),
    );
    check(POD, json!({}), json!({"$setElementOrder/containers": order(&["a"])}), json!({}));
    let wrong = json!({"$setElementOrder/containers": order(&["a"]), "containers": [{"name": "b"}]});
    assert_eq!(strategic_on(POD, json!({}), wrong).unwrap_err().code, 400);
}

#[test]
fn retain_keys_drops_what_is_not_named() {
    let deployment = "io.k8s.api.apps.v1.DeploymentSpec";
    check(
        deployment,
        json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}),
        json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}),
        json!({"strategy": {"type": "Recreate"}}),
    );
    check(
        POD,
        json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
        json!({"volumes": [{"$retainKeys": ["name", "hostPath"], "name": "v", "hostPath": {"path": "/x"}}]}),
        json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}),
    );
    let wrong = json!({"strategy": {"$retainKeys": ["type"], "rollingUpdate": {}}});
    let status = strategic_on(deployment, json!({"strategy": {}}), wrong).unwrap_err();
    assert_eq!(
        (status.code, &*status.message),
        (422, "the server rejected our request due to an error in our request")
    );
}

#[test]
fn a_replace_strategy_replaces_the_whole() {
    check(
        "io.k8s.api.policy.v1.PodDisruptionBudgetSpec",
        json!({"selector": {"matchLabels": {"a": "1"}}}),
        json!({"selector": {"matchLabels": {"b": "2"}}}),
        json!({"selector": {"matchLabels": {"b": "2"}}}),
    );
}

#[test]
fn wrong_patches_are_refused() {
    let check = |schema: &str, original: Value, patch: Value, code: u16, message: &str| {
        let status = strategic_on(schema, original, patch).unwrap_err();
        assert!(status.details.is_none_or(|details| details.causes.is_empty()), "upstream gives no causes");
        assert_eq!((status.code, status.message.as_str()), (code, message));
    };
    check(
        POD,
        json!({"containers": []}),
        json!({"containers": [{"image": "x"}]}),
        500,
        "map: map[image:x] does not contain declared merge key: name",
    );
    check(
        META,
        json!({"labels": {}}),
        json!({"labels": {"$patch": "x"}}),
        500,
        "unknown patch type: x in map: map[$patch:x]",
    );
    check(
        META,
        json!({}),
        json!({"$deleteFromPrimitiveList/finalizers": "x"}),
        400,
        "invalid patch format of primitive list",
    );
    check(META, json!({}), json!([]), 400, "invalid JSON document");
    check(
        "a.custom.Kind",
        json!({}),
        json!({}),
        415,
        "the body of the request was in an unknown format - accepted media types include: \
         application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
    );
}

/// JSON of the shapes that patches meet, with the names that mean something.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..3i64).prop_map(Value::from),
        prop_oneof!["a", "delete", "replace", "merge"].prop_map(Value::from),
    ];
    let key = prop_oneof![
        Just("name"),
        Just("containers"),
        Just("env"),
        Just("volumes"),
        Just("finalizers"),
        Just("labels"),
        Just("metadata"),
        Just("spec"),
        Just("$patch"),
        Just("$retainKeys"),
        Just("$setElementOrder/containers"),
        Just("$deleteFromPrimitiveList/finalizers"),
        Just("$setElementOrder/finalizers"),
        Just("x"),
    ];
    leaf.prop_recursive(5, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..5)
                .prop_map(|pairs| Value::Object(pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}

/// The merge patch that makes `to` of `from`.
fn difference(from: &Value, to: &Value) -> Value {
    let (Some(old), Some(new)) = (from.as_object(), to.as_object()) else { return to.clone() };
    let mut patch = serde_json::Map::new();
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in new.iter().filter(|(key, value)| old.get(*key) != Some(value)) {
        patch.insert(key.clone(), difference(old.get(key).unwrap_or(&Value::Null), value));
    }
    Value::Object(patch)
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect()
        }
        other => other,
    }
}

proptest! {
    #[test]
    fn a_difference_merges_to_its_target(from in any_json(), to in any_json()) {
        let wrap = |v| json!({"x": without_nulls(v)});
        let (from, to) = (wrap(from), wrap(to));
        let to = without_nulls(to);
        prop_assert_eq!(merge(&from, &difference(&from, &to)).unwrap(), to);
    }

    #[test]
    fn strategic_merge_never_panics(original in any_json(), patch in any_json()) {
        for schema in [POD, META, "io.k8s.api.core.v1.Pod"] {
            let _ = strategic_on(schema, original.clone(), patch.clone());
        }
    }

    #[test]
    fn an_empty_strategic_patch_changes_nothing(original in any_json()) {
        if original.is_object() {
            prop_assert_eq!(strategic_on(POD, original.clone(), json!({})).unwrap(), original);
        }
    }
}
