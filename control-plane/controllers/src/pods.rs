//! Creating and deleting pods for an owner, as every workload controller does: in batches, with events, and remembering what
//! the informer has still to show.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Client;
use kube::core::{Selector, SelectorExt};
use serde_json::Value;

use crate::context::Context;
use crate::events::Recorder;
use crate::expectations::Expectations;
use crate::harness::Wiring;
use crate::informer::{Informer, Kind, Store};
use crate::limits;
use crate::object::Object;
use crate::queue::Key;
use crate::rest;
use crate::types::{Pod, Template};

/// Writes pods for the owners of one controller.
pub(crate) struct PodControl {
    client: Client,
    pub(crate) events: Recorder,
    pub(crate) expectations: Expectations,
}

impl PodControl {
    /// For the controller of this name.
    pub(crate) fn new(context: &Context, name: &'static str) -> Arc<Self> {
        let events = context.events.of(name);
        Arc::new(Self { client: context.client.clone(), events, expectations: Expectations::default() })
    }

    /// Makes an owner of kind `O` due whenever one of its pods changes.
    pub(crate) fn follow<O: Kind>(self: &Arc<Self>, wiring: &Wiring, pods: &Informer<Pod>) {
        let control = self.clone();
        wiring.wakes(pods, move |old, new, queue| {
            for pod in [old, new].into_iter().flatten() {
                let Some(owner) = owner_of::<O>(pod) else { continue };
                if old.is_none() {
                    control.expectations.created(&owner, 1);
                }
                if new.is_none_or(|pod| pod.deleting()) {
                    control.expectations.deleted(&owner, pod.uid());
                }
                queue.add(owner);
            }
        });
    }

    /// Creates pods in batches that double, so that a failure that hits all of them costs one attempt and not hundreds.
    ///
    /// # Errors
    /// The API's answer to the first that failed; a namespace that goes away is none.
    pub(crate) async fn create<O: Kind>(&self, key: &Key, owner: &O, mut bodies: Vec<Value>) -> kube::Result<()> {
        self.expectations.expect_creations(key, bodies.len());
        let mut batch = limits::SLOW_START_BATCH;
        while !bodies.is_empty() {
            let now = bodies.split_off(bodies.len().saturating_sub(batch));
            let results: Vec<kube::Result<Pod>> = stream::iter(now)
                .map(|body| rest::create::<Pod>(&self.client, owner.ns(), body))
                .buffer_unordered(limits::WRITES_IN_FLIGHT)
                .collect()
                .await;
            let mut failure = None;
            for result in results {
                match result {
                    Ok(pod) => self.events.normal(owner, "SuccessfulCreate", format!("Created pod: {}", pod.name())),
                    Err(error) => {
                        self.expectations.created(key, 1);
                        if !rest::namespace_terminating(&error) {
                            self.events.warning(
                                owner,
                                "FailedCreate",
                                format!("Error creating: {}", rest::words(&error)),
                            );
                        }
                        failure = Some(error);
                    }
                }
            }
            if let Some(error) = failure {
                self.expectations.created(key, bodies.len());
                return if rest::namespace_terminating(&error) { Ok(()) } else { Err(error) };
            }
            batch *= 2;
        }
        Ok(())
    }

    /// Deletes pods.
    ///
    /// # Errors
    /// The API's answer to one that failed.
    pub(crate) async fn delete<O: Kind>(&self, key: &Key, owner: &O, victims: Vec<Arc<Pod>>) -> kube::Result<()> {
        self.expectations.expect_deletions(key, victims.iter().map(|pod| pod.uid().to_owned()));
        let results: Vec<(Arc<Pod>, kube::Result<()>)> = stream::iter(victims)
            .map(|pod| async move {
                let result = rest::delete(&self.client, &*pod).await;
                (pod, result)
            })
            .buffer_unordered(limits::WRITES_IN_FLIGHT)
            .collect()
            .await;
        let mut outcome = Ok(());
        for (pod, result) in results {
            match result {
                Ok(()) => self.events.normal(owner, "SuccessfulDelete", format!("Deleted pod: {}", pod.name())),
                Err(error) => {
                    self.expectations.deleted(key, pod.uid());
                    self.events.warning(owner, "FailedDelete", format!("Error deleting: {}", rest::words(&error)));
                    outcome = Err(error);
                }
            }
        }
        outcome
    }
}

/// Makes owners due whose selector matches a pod that nobody owns: they may adopt it.
pub(crate) fn adopters<O: Kind>(
    wiring: &Wiring,
    pods: &Informer<Pod>,
    owners: &Arc<Store<O>>,
    selector: fn(&O) -> Option<Selector>,
) {
    let owners = owners.clone();
    wiring.wakes(pods, move |old, new, queue| {
        let Some(pod) = new.filter(|pod| pod.controller().is_none() && !pod.deleting()) else { return };
        if old.is_some_and(|old| old.labels() == pod.labels() && old.controller().is_none()) {
            return;
        }
        for owner in owners.namespace(pod.ns()) {
            if selector(&owner).is_some_and(|s| s.matches(pod.labels())) {
                queue.add(owner.key());
            }
        }
    });
}

/// A label selector as its owner means it; `None` when it is invalid or selects everything.
pub(crate) fn selector(selector: &LabelSelector) -> Option<Selector> {
    Selector::try_from(selector.clone()).ok().filter(|s| !s.selects_all())
}

/// Time until the next ready pod becomes available.
pub(crate) fn next_available(pods: &[Arc<Pod>], min_ready: i64, now: Timestamp) -> Option<Duration> {
    pods.iter()
        .filter(|pod| pod.active() && pod.ready() && !pod.available(min_ready, now))
        .filter_map(|pod| pod.ready_since())
        .map(|since| Duration::from_secs((since.as_second() + min_ready - now.as_second()).max(1).unsigned_abs()))
        .min()
}

/// The body of a new pod from a template.
pub(crate) fn body(template: &Template, owner_name: &str, owner: Value) -> Value {
    let template = template.value();
    let meta = &template["metadata"];
    let mut metadata = serde_json::json!({"generateName": format!("{owner_name}-"), "ownerReferences": [owner]});
    for field in ["labels", "annotations", "finalizers"] {
        if !meta[field].is_null() {
            metadata[field] = meta[field].clone();
        }
    }
    serde_json::json!({"metadata": metadata, "spec": template["spec"]})
}

/// The owner of kind `O` that controls a pod.
pub(crate) fn owner_of<O: Kind>(pod: &Pod) -> Option<Key> {
    let owner = pod.controller()?;
    (owner.kind == O::kind(&()) && owner.api_version == O::api_version(&())).then(|| Key::new(pod.ns(), &owner.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_come_from_the_template() {
        let template =
            Template::from_value(&json!({"metadata": {"labels": {"a": "b"}, "name": "ignored"}, "spec": {"x": 1}}));
        let body = body(&template, "r", json!({"uid": "u"}));
        let metadata = json!({"generateName": "r-", "ownerReferences": [{"uid": "u"}], "labels": {"a": "b"}});
        assert_eq!(body, json!({"metadata": metadata, "spec": {"x": 1}}));
    }
}
