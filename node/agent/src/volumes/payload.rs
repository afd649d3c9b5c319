//! The files of configMap, secret, downwardAPI and projected volumes: from the volume and the objects it refers to,
//! to paths, bytes and modes. Pure, with upstream's error texts.

use std::collections::BTreeMap;

use crate::env::{KeyData, Objects};
use crate::fields::{self, Facts};
use crate::model::{ConfigMapSource, DownwardApi, KeyToPath, Pod, SecretSource, TokenProjection, Volume};

/// One file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Given to the user that all containers run as, as upstream does with tokens.
    pub private: bool,
}

/// Files by their path in the volume.
pub type Files = BTreeMap<String, File>;

/// Everything a payload is made from.
pub struct Inputs<'a> {
    pub pod: &'a Pod,
    pub facts: &'a Facts,
    pub objects: &'a dyn Objects,
    /// The current token for each token projection of the pod.
    pub token: &'a dyn Fn(&TokenProjection) -> Option<String>,
}

/// The files of a volume made of API objects, or why they cannot be made; `None` for other volumes.
pub fn files(volume: &Volume, inputs: &Inputs<'_>) -> Option<Result<Files, String>> {
    let mut out = Files::new();
    let result = if let Some(s) = &volume.config_map {
        config_map(s, s.default_mode.unwrap_or(0o644), inputs, &mut out)
    } else if let Some(s) = &volume.secret {
        secret(s, s.default_mode.unwrap_or(0o644), inputs, &mut out)
    } else if let Some(s) = &volume.downward_api {
        downward(s, s.default_mode.unwrap_or(0o644), inputs, &mut out)
    } else if let Some(p) = &volume.projected {
        let mode = p.default_mode.unwrap_or(0o644);
        p.sources.iter().try_for_each(|source| {
            if let Some(s) = &source.config_map {
                config_map(s, mode, inputs, &mut out)
            } else if let Some(s) = &source.secret {
                secret(s, mode, inputs, &mut out)
            } else if let Some(s) = &source.downward_api {
                downward(s, mode, inputs, &mut out)
            } else if let Some(s) = &source.service_account_token {
                token(s, mode, inputs, &mut out)
            } else {
                Err("a source of this projected volume is of a kind this node does not support".to_owned())
            }
        })
    } else {
        return None;
    };
    Some(result.map(|()| out))
}

/// Names of the objects a volume refers to: `(config maps, secrets)`.
pub fn references(volume: &Volume) -> (Vec<&str>, Vec<&str>) {
    let (mut maps, mut secrets) = (Vec::new(), Vec::new());
    maps.extend(volume.config_map.as_ref().map(|s| s.name.as_str()));
    secrets.extend(volume.secret.as_ref().map(|s| s.secret_name.as_str()));
    for source in volume.projected.iter().flat_map(|p| &p.sources) {
        maps.extend(source.config_map.as_ref().map(|s| s.name.as_str()));
        secrets.extend(source.secret.as_ref().map(|s| s.secret_name.as_str()));
    }
    (maps, secrets)
}

/// The token projections of a volume.
pub fn tokens(volume: &Volume) -> impl Iterator<Item = &TokenProjection> {
    volume.projected.iter().flat_map(|p| &p.sources).filter_map(|s| s.service_account_token.as_ref())
}

/// The uid that every container of the pod runs as, if they agree (upstream gives token files to it).
pub fn common_user(pod: &Pod) -> Option<u32> {
    let user = |c: &crate::model::Container| {
        c.security_context.as_ref().and_then(|s| s.run_as_user).or(pod.spec.security_context.run_as_user)
    };
    let mut users = pod.own_containers().map(user);
    let first = users.next().flatten()?;
    users.all(|u| u == Some(first)).then_some(first)
}

fn config_map(s: &ConfigMapSource, mode: u32, inputs: &Inputs<'_>, out: &mut Files) -> Result<(), String> {
    match inputs.objects.config_map(&s.name) {
        Some(data) => keys(&data, &s.items, mode, s.optional, "config", out),
        None if s.optional => Ok(()),
        None => Err(format!("configmap \"{}\" not found", s.name)),
    }
}

fn secret(s: &SecretSource, mode: u32, inputs: &Inputs<'_>, out: &mut Files) -> Result<(), String> {
    match inputs.objects.secret(&s.secret_name) {
        Some(data) => keys(&data, &s.items, mode, s.optional, "secret", out),
        None if s.optional => Ok(()),
        None => Err(format!("secret \"{}\" not found", s.secret_name)),
    }
}

fn keys(
    data: &KeyData,
    items: &[KeyToPath],
    mode: u32,
    optional: bool,
    kind: &str,
    out: &mut Files,
) -> Result<(), String> {
    if items.is_empty() {
        for (key, bytes) in data.data.iter().chain(&data.binary) {
            out.insert(key.clone(), File { data: bytes.clone(), mode, private: false });
        }
        return Ok(());
    }
    for item in items {
        let Some(bytes) = data.data.get(&item.key).or_else(|| data.binary.get(&item.key)) else {
            if optional {
                continue;
            }
            return Err(format!("references non-existent {kind} key: {}", item.key));
        };
        insert(out, &item.path, File { data: bytes.clone(), mode: item.mode.unwrap_or(mode), private: false })?;
    }
    Ok(())
}

fn downward(s: &DownwardApi, mode: u32, inputs: &Inputs<'_>, out: &mut Files) -> Result<(), String> {
    for item in &s.items {
        let text = if let Some(r) = &item.field_ref {
            fields::field(inputs.pod, inputs.facts, &r.field_path)?
        } else if let Some(r) = &item.resource_field_ref {
            let container = inputs.pod.container(&r.container_name);
            let container = container.ok_or_else(|| format!("container {} not found", r.container_name))?;
            fields::resource(container, inputs.facts, r)?
        } else {
            continue;
        };
        insert(out, &item.path, File { data: text.into_bytes(), mode: item.mode.unwrap_or(mode), private: false })?;
    }
    Ok(())
}

fn token(s: &TokenProjection, mode: u32, inputs: &Inputs<'_>, out: &mut Files) -> Result<(), String> {
    let token = (inputs.token)(s).ok_or("the service account token is not there yet")?;
    // Upstream: readable by its owner and the pod's group alone when there are such.
    let own = common_user(inputs.pod).is_some() || inputs.pod.spec.security_context.fs_group.is_some();
    let mode = if own { 0o600 } else { mode };
    insert(out, &s.path, File { data: token.into_bytes(), mode, private: true })
}

fn insert(out: &mut Files, path: &str, file: File) -> Result<(), String> {
    let bad = path.is_empty() || path.starts_with('/') || path.split('/').any(|p| p == "..") || path.starts_with("..");
    if bad {
        return Err(format!("invalid path \"{path}\": it has to stay inside the volume"));
    }
    out.insert(path.to_owned(), file);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    struct Fixed;

    impl Objects for Fixed {
        fn config_map(&self, name: &str) -> Option<Arc<KeyData>> {
            (name == "cm").then(|| {
                Arc::new(KeyData {
                    data: BTreeMap::from([("a".into(), b"1".to_vec()), ("b".into(), b"2".to_vec())]),
                    binary: BTreeMap::from([("bin".into(), vec![0xff])]),
                })
            })
        }
        fn secret(&self, name: &str) -> Option<Arc<KeyData>> {
            (name == "s").then(|| {
                Arc::new(KeyData { data: BTreeMap::from([("k".into(), b"v".to_vec())]), ..KeyData::default() })
            })
        }
    }

    /// Path, bytes, mode.
    type Expected = (&'static str, &'static [u8], u32);

    fn check(volume: serde_json::Value, expected: Result<&[Expected], &str>) {
        let volume: Volume = serde_json::from_value(volume).unwrap();
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "labels": {"x": "y"}}})).unwrap();
        let facts = Facts::default();
        let inputs = Inputs { pod: &pod, facts: &facts, objects: &Fixed, token: &|t| Some(format!("jwt:{}", t.path)) };
        let expected = expected
            .map(|l| {
                l.iter()
                    .map(|(p, d, m)| ((*p).to_owned(), File { data: d.to_vec(), mode: *m, private: *p == "token" }))
                    .collect()
            })
            .map_err(str::to_owned);
        assert_eq!(files(&volume, &inputs).unwrap(), expected, "{volume:?}");
    }

    #[test]
    fn table() {
        check(
            json!({"configMap": {"name": "cm"}}),
            Ok(&[("a", b"1", 0o644), ("b", b"2", 0o644), ("bin", &[0xff], 0o644)]),
        );
        check(
            json!({"configMap": {"name": "cm", "defaultMode": 256, "items": [{"key": "a", "path": "d/x"},
                {"key": "b", "path": "y", "mode": 511}]}}),
            Ok(&[("d/x", b"1", 0o400), ("y", b"2", 0o777)]),
        );
        check(
            json!({"configMap": {"name": "cm", "items": [{"key": "no", "path": "x"}]}}),
            Err("references non-existent config key: no"),
        );
        check(json!({"configMap": {"name": "no"}}), Err("configmap \"no\" not found"));
        check(json!({"configMap": {"name": "no", "optional": true}}), Ok(&[]));
        check(
            json!({"secret": {"secretName": "s", "items": [{"key": "no", "path": "x"}]}}),
            Err("references non-existent secret key: no"),
        );
        check(json!({"secret": {"secretName": "no"}}), Err("secret \"no\" not found"));
        check(
            json!({"downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]}}),
            Ok(&[("l", b"x=\"y\"", 0o644)]),
        );
        check(
            json!({"projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"path": "token"}}, {"configMap": {"name": "cm", "items": [{"key": "a", "path": "ca"}]}},
                {"secret": {"name": "s"}},
                {"downwardAPI": {"items": [{"path": "n", "fieldRef": {"fieldPath": "metadata.name"}}]}},
            ]}}),
            Ok(&[("ca", b"1", 0o644), ("k", b"v", 0o644), ("n", b"p", 0o644), ("token", b"jwt:token", 0o644)]),
        );
        check(
            json!({"configMap": {"name": "cm", "items": [{"key": "a", "path": "../x"}]}}),
            Err("invalid path \"../x\": it has to stay inside the volume"),
        );
    }
}
