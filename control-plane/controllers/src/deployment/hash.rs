//! The pod-template-hash and the comparison of templates.

use serde_json::Value;

/// The label that tells revisions' pods apart.
pub(crate) const HASH_LABEL: &str = "pod-template-hash";
/// Letters without vowels and look-alikes, so that no hash is a word (as upstream).
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// The hash of a template; `collisions` makes another one of it.
pub(crate) fn template_hash(template: &Value, collisions: Option<i32>) -> String {
    let mut hash = Fnv::new();
    feed(&mut hash, &normal(template));
    if let Some(collisions) = collisions {
        hash.write(&collisions.to_le_bytes());
    }
    hash.0.to_string().bytes().map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()])).collect()
}

/// Whether two templates mean the same, the hash label aside and however they were written: clients that decode into
/// their own types (kubectl does for `rollout undo`) add and drop what means nothing.
pub(crate) fn same_template(a: &Value, b: &Value) -> bool {
    normal(a) == normal(b)
}

/// Objects that mean nothing when empty; of others, such as `emptyDir`, being there is the meaning.
const EMPTY_OBJECTS: [&str; 10] = [
    "annotations",
    "labels",
    "limits",
    "matchLabels",
    "metadata",
    "nodeSelector",
    "overhead",
    "requests",
    "resources",
    "status",
];
/// Fields whose absence means `false` or 0; of others, such as `automountServiceAccountToken`, it means something else.
const ZEROES: [&str; 9] =
    ["hostIPC", "hostNetwork", "hostPID", "hostPort", "initialDelaySeconds", "readOnly", "stdin", "stdinOnce", "tty"];
/// Texts that mean something when empty.
const EMPTY_TEXTS: [&str; 3] = ["runtimeClassName", "storageClassName", "volumeAttributesClassName"];

fn normal(template: &Value) -> Value {
    let mut template = template.clone();
    for labels in ["/metadata/labels", "/spec/template/metadata/labels"] {
        if let Some(labels) = template.pointer_mut(labels).and_then(Value::as_object_mut) {
            labels.shift_remove(HASH_LABEL);
        }
    }
    prune(&mut template);
    template
}

/// Removes what means the same as not being there.
fn prune(value: &mut Value) {
    match value {
        Value::Object(map) => map.retain(|key, value| {
            prune(value);
            let key = key.as_str();
            !match value {
                Value::Null => true,
                Value::Array(items) => items.is_empty(),
                Value::Object(fields) => fields.is_empty() && EMPTY_OBJECTS.contains(&key),
                Value::String(text) => text.is_empty() && !EMPTY_TEXTS.contains(&key),
                Value::Bool(flag) => !*flag && ZEROES.contains(&key),
                Value::Number(number) => number.as_i64() == Some(0) && ZEROES.contains(&key),
            }
        }),
        Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}

struct Fnv(u32);

impl Fnv {
    fn new() -> Self {
        Self(0x811c_9dc5)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }
}

/// Feeds a value with its keys sorted: the same template hashes the same however it was written.
fn feed(hash: &mut Fnv, value: &Value) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<_> = map.iter().filter(|(_, v)| !v.is_null()).collect();
            keys.sort_by_key(|(key, _)| *key);
            hash.write(b"{");
            for (key, value) in keys {
                hash.write(key.as_bytes());
                hash.write(b":");
                feed(hash, value);
            }
            hash.write(b"}");
        }
        Value::Array(items) => {
            hash.write(b"[");
            items.iter().for_each(|item| feed(hash, item));
            hash.write(b"]");
        }
        other => hash.write(other.to_string().as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn equal_templates_hash_equal() {
        let a = json!({"metadata": {"labels": {"x": "y"}, "creationTimestamp": null}, "spec": {"a": 1, "b": [true]}});
        let b = json!({"spec": {"b": [true], "a": 1}, "metadata": {"labels": {"x": "y", "pod-template-hash": "q"}}});
        let c = json!({"spec": {"b": [false], "a": 1}, "metadata": {"labels": {"x": "y"}}});
        assert!(same_template(&a, &b));
        assert!(!same_template(&a, &c));
        // As kubectl writes a template it has decoded.
        let written = json!({"metadata": {"labels": {"x": "y"}}, "spec": {"containers": [{"name": "c", "tty": false,
            "volumeMounts": [], "ports": [{"containerPort": 1, "hostPort": 0}]}], "hostname": ""}});
        let decoded = json!({"metadata": {"creationTimestamp": null, "labels": {"x": "y"}, "annotations": {}},
            "spec": {"containers": [{"name": "c", "resources": {}, "ports": [{"containerPort": 1}]}]}});
        assert!(same_template(&written, &decoded));
        assert_eq!(template_hash(&written, None), template_hash(&decoded, None));
        for (a, b) in [
            (json!({"spec": {"automountServiceAccountToken": false}}), json!({"spec": {}})),
            (json!({"spec": {"terminationGracePeriodSeconds": 0}}), json!({"spec": {}})),
        ] {
            assert!(!same_template(&a, &b));
        }
        // An empty object that was there is not the same as none.
        assert!(!same_template(&json!({"spec": {"volume": {"emptyDir": {}}}}), &json!({"spec": {"volume": {}}})));
        let hash = template_hash(&a, None);
        assert_eq!(
            hash,
            template_hash(&json!({"spec": {"b": [true], "a": 1}, "metadata": {"labels": {"x": "y"}}}), None)
        );
        assert_ne!(hash, template_hash(&a, Some(1)));
        assert_ne!(hash, template_hash(&c, None));
        assert!(hash.bytes().all(|b| ALPHABET.contains(&b)) && hash.len() <= 10);
    }
}
