//! What holds for any sequence of applies and updates by any managers.

use proptest::{collection::vec, option, prelude::*};
use serde_json::{Map, Value, json};

use super::{State, paths, schema};
use crate::apply::{Managers, Set, Type, compare, field_set, managers::Operation, merge::merge};

/// A value for each field of the schema, or none.
fn object() -> impl Strategy<Value = Value> {
    let text = "[abc]";
    let strings = || {
        vec(text, 0..3).prop_map(|mut list| {
            list.sort();
            list.dedup();
            json!(list)
        })
    };
    let map = || proptest::collection::btree_map("[klm]", text, 0..3).prop_map(|map| json!(map));
    let items =
        proptest::collection::btree_map("[nop]", (option::of(text), option::of(strings())), 0..3).prop_map(|items| {
            let item = |(name, (value, tags)): (String, (Option<String>, Option<Value>))| {
                let mut item = json!({"name": name});
                if let Some(value) = value {
                    item["value"] = value.into();
                }
                if let Some(tags) = tags {
                    item["tags"] = tags;
                }
                item
            };
            Value::Array(items.into_iter().map(item).collect())
        });
    let inner = (option::of(text), option::of(map())).prop_map(|(a, inner)| {
        let mut out = Map::new();
        out.extend(a.map(|a| ("a".to_owned(), a.into())));
        out.extend(inner.map(|_| ("inner".to_owned(), json!({"x": "1"}))));
        Value::Object(out)
    });
    (
        option::of(text),
        option::of(map()),
        option::of(map()),
        option::of(strings()),
        option::of(strings()),
        option::of(items),
        option::of(inner),
    )
        .prop_map(|(text, map, atomic, set, plain, list, inner)| {
            let mut out = Map::new();
            out.extend(text.map(|v| ("text".to_owned(), v.into())));
            for (name, value) in
                [("map", map), ("atomicMap", atomic), ("set", set), ("plain", plain), ("list", list), ("struct", inner)]
            {
                out.extend(value.map(|v| (name.to_owned(), v)));
            }
            Value::Object(out)
        })
}

#[derive(Clone, Debug)]
enum Step {
    Apply(usize, Value),
    Update(usize, Value),
    /// Written by nobody, as by defaults.
    Default,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..3usize, object()).prop_map(|(m, v)| Step::Apply(m, v)),
        2 => (0..2usize, object()).prop_map(|(m, v)| Step::Update(m, v)),
        1 => Just(Step::Default),
    ];
    vec(step, 1..8)
}

fn owned(object: &Value) -> Set {
    Managers::of(object).unwrap().0.values().fold(Set::default(), |all, entry| all.union(&entry.set))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn applies_and_updates_keep_their_promises(steps in steps()) {
        let schema = schema();
        let ty = Type::CustomObject(Some(&schema));
        let mut state = State::custom(&schema);
        for step in steps {
            match step {
                Step::Apply(manager, mut config) => {
                    // One field always, so that the object is never without managers.
                    config["flag"] = json!(true);
                    let manager = format!("a{manager}");
                    let before = state.object.clone();
                    state.force(&manager, config.clone());
                    let object = state.object.clone().unwrap();
                    // Everything applied is there.
                    let config = state.named(config);
                    prop_assert!(compare(&merge(&object, &config, ty).unwrap(), &object, ty).unwrap().is_empty());
                    // Again changes nothing, with or without force.
                    state.apply(&manager, serde_json::from_value(without_meta(&config)).unwrap());
                    prop_assert_eq!(state.object.as_ref(), Some(&object));
                    // Its entry is what it named, nothing more.
                    let managers = Managers::of(&object).unwrap();
                    let own = managers.0.iter().find(|(id, _)| id.manager == manager && id.operation == Operation::Apply);
                    let named = field_set(&without_meta(&config), ty).unwrap();
                    prop_assert_eq!(own.map(|(_, entry)| entry.set.clone()).unwrap_or_default(), named);
                    // Only what it owned before may be gone.
                    if let Some(before) = before {
                        let had = Managers::of(&before).unwrap();
                        let had = had.0.iter().find(|(id, _)| id.manager == manager && id.operation == Operation::Apply);
                        let had = had.map(|(_, entry)| entry.set.clone()).unwrap_or_default();
                        let others = owned_by_others(&before, &manager);
                        let diff = compare(&without_meta(&before), &without_meta(&object), ty).unwrap();
                        for path in diff.removed.paths() {
                            // A place that it alone owned goes with all that is below it.
                            let alone = (1..=path.len()).any(|n| had.has(&path[..n]) && !others.has(&path[..n]));
                            let emptied = had.paths().iter().any(|p| p.starts_with(&path));
                            prop_assert!(alone || emptied, "not its own to remove: {:?}", path);
                        }
                    }
                }
                Step::Update(manager, fields) => {
                    let before = state.object.clone();
                    state.update(&format!("u{manager}"), fields);
                    // What changed is the updater's alone.
                    if let Some(before) = before.filter(|before| !owned(before).is_empty()) {
                        let object = state.object.clone().unwrap();
                        let written = compare(&without_meta(&before), &without_meta(&object), ty).unwrap().written;
                        let others = owned_by_others(&object, &format!("u{manager}"));
                        prop_assert!(others.intersection(&written).is_empty());
                        prop_assert!(written.is_subset(&owned(&object)));
                    }
                }
                Step::Default => {
                    if let Some(object) = state.object.as_mut() {
                        object["number"] = json!(7);
                    }
                }
            }
            let Some(object) = state.object.as_ref() else { continue };
            // Nobody owns what is not there, and no list is ever unreadable.
            let all = compare(&json!({}), &without_meta(object), ty).unwrap().written;
            prop_assert!(owned(object).is_subset(&all), "{:?} not in {:?}", paths(&owned(object)), paths(&all));
        }
    }

    #[test]
    fn sets_survive_their_json(a in object(), b in object()) {
        let schema = schema();
        let ty = Type::Custom(&schema);
        let (a, b) = (field_set(&a, ty).unwrap(), field_set(&b, ty).unwrap());
        prop_assert_eq!(&Set::from_json(&a.to_json()).unwrap(), &a);
        prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)), a.clone());
        prop_assert_eq!(a.union(&b).len(), a.len() + b.len() - a.intersection(&b).len());
    }

    #[test]
    fn a_created_object_is_covered(object in object()) {
        let schema = schema();
        let mut state = State::custom(&schema);
        state.update("u", object.clone());
        let all = field_set(&object, Type::Custom(&schema)).unwrap();
        prop_assert!(all.is_subset(&owned(state.object.as_ref().unwrap())));
    }
}

fn owned_by_others(object: &Value, manager: &str) -> Set {
    let managers = Managers::of(object).unwrap();
    let others = managers.0.iter().filter(|(id, _)| id.manager != manager);
    others.fold(Set::default(), |all, (_, entry)| all.union(&entry.set))
}

fn without_meta(object: &Value) -> Value {
    let mut object = object.clone();
    for field in ["apiVersion", "kind", "metadata"] {
        object.as_object_mut().unwrap().shift_remove(field);
    }
    object
}
