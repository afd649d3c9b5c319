//! Objects of a watch that may turn out unreadable: one of them must not keep the node from the others.

use std::borrow::Cow;
use std::collections::HashSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// An object, or as much as names it and why the rest cannot be read.
#[derive(Clone, Debug)]
pub struct Lenient<K> {
    object: K,
    fault: Option<String>,
}

impl<'de, K: Resource + DeserializeOwned + Default> Deserialize<'de> for Lenient<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let error = match K::deserialize(&value) {
            Ok(object) => return Ok(Lenient { object, fault: None }),
            Err(error) => error,
        };
        let mut object = K::default();
        *object.meta_mut() = ObjectMeta::deserialize(&value["metadata"]).unwrap_or_else(|_| {
            let text = |key: &str| value["metadata"][key].as_str().map(str::to_owned);
            ObjectMeta {
                name: text("name"),
                namespace: text("namespace"),
                uid: text("uid"),
                resource_version: text("resourceVersion"),
                ..ObjectMeta::default()
            }
        });
        Ok(Lenient { object, fault: Some(error.to_string()) })
    }
}

impl<K: Resource> Resource for Lenient<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(dt)
    }
    fn group(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::group(dt)
    }
    fn version(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::version(dt)
    }
    fn plural(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(dt)
    }
    fn meta(&self) -> &ObjectMeta {
        self.object.meta()
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.object.meta_mut()
    }
}

/// Tells unreadable objects from the others, and the log of each once.
#[derive(Debug, Default)]
pub struct Sieve(HashSet<String>);

impl Sieve {
    /// The object if it can be read, else only its metadata.
    ///
    /// # Errors
    /// The metadata of an object that cannot be read.
    pub fn pass<K: Resource<DynamicType = ()>>(&mut self, lenient: Lenient<K>) -> Result<K, Box<ObjectMeta>> {
        let Lenient { mut object, fault } = lenient;
        let uid = object.meta().uid.clone().unwrap_or_default();
        let Some(error) = fault else {
            self.0.remove(&uid);
            return Ok(object);
        };
        let meta = Box::new(std::mem::take(object.meta_mut()));
        if self.0.insert(uid) {
            let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
            tracing::warn!(kind = %K::kind(&()), namespace, name, error, "an object cannot be read; this node leaves it out");
        }
        Err(meta)
    }

    /// Forgets an object that is gone.
    pub fn forget(&mut self, meta: &ObjectMeta) {
        self.0.remove(meta.uid.as_deref().unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::Pod;

    #[test]
    fn an_unreadable_pod_leaves_the_others_of_its_list_readable() {
        let pod = |uid: &str, port: Value| {
            json!({"metadata": {"name": uid, "namespace": "ns", "uid": uid}, "spec": {
                "containers": [{"name": "a", "ports": [{"containerPort": port}]}],
            }})
        };
        let text = json!([pod("one", json!(80)), pod("two", json!("eighty")), pod("three", json!(81))]).to_string();
        let list: Vec<Lenient<Pod>> = serde_json::from_str(&text).unwrap_or_default();
        let mut sieve = Sieve::default();
        let names: Vec<Result<String, Option<String>>> = list
            .into_iter()
            .map(|l| sieve.pass(l).map(|pod| pod.name().to_owned()).map_err(|meta| meta.name))
            .collect();
        assert_eq!(names, [Ok("one".to_owned()), Err(Some("two".to_owned())), Ok("three".to_owned())]);
        assert_eq!(sieve.0, HashSet::from(["two".to_owned()]), "told once each");
        sieve.forget(&ObjectMeta { uid: Some("two".into()), ..ObjectMeta::default() });
        assert!(sieve.0.is_empty());

        let strange = json!({"metadata": {"name": "x", "uid": "u", "labels": 7}}).to_string();
        let strange: Option<Lenient<Pod>> = serde_json::from_str(&strange).ok();
        assert_eq!(strange.and_then(|l| sieve.pass(l).err()).and_then(|meta| meta.uid).as_deref(), Some("u"));
    }
}
