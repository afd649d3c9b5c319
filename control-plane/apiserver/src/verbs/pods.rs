//! The subresources that only pods have: binding and eviction.

use std::sync::Arc;

use http::Response;
use serde_json::{Value, json};
use sluice_api::{
    resource::builtin,
    selector::Labels,
    status::{Cause, Details, Status},
};

use super::{
    Call,
    deletion::DeleteOptions,
    write::{Part, Tracked},
};
use crate::{
    context::Body,
    limits, meta, respond,
    storage::{Along, StoredObject},
    view::{View, encode},
};

impl Call<'_> {
    /// The same call about pods.
    pub(super) fn pods(&self) -> Self {
        let mut call = self.within(&self.namespace);
        if let Some(pods) = builtin().by_path("", "v1", "pods") {
            call.view = View { resource: Arc::clone(pods), stored: Arc::clone(pods), columns: None };
        }
        call
    }

    /// `pods/binding`: gives a pod its node.
    pub(super) async fn bind(&self, binding: &Value) -> Result<Response<Body>, Status> {
        let target = &binding["target"];
        let node = target["name"].as_str().unwrap_or_default();
        let named = meta::name(binding);
        if !named.is_empty() && named != self.name() {
            return Err(Status::bad_request(format!(
                "the name of the object ({named}) does not match the name on the URL ({})",
                self.name()
            )));
        }
        if !matches!(target["kind"].as_str(), None | Some("" | "Node" | "Minion")) {
            return Err(Status::bad_request("must be 'Node' or 'Minion'"));
        }
        if node.is_empty() {
            return Err(Status::bad_request("target.name: Required value"));
        }
        let conflict = |why: String| {
            let mut status = Status::conflict_because(&self.view.resource, self.name(), why);
            status.message = status.message.replacen("pods ", "pods/binding ", 1);
            status
        };
        let change = |pod: &Value| -> Result<Value, Status> {
            let name = self.name();
            if meta::deleting(pod) {
                return Err(conflict(format!("pod {name} is being deleted, cannot be assigned to a host")));
            }
            if let Some(other) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
                return Err(conflict(format!("pod {name} is already assigned to node {}", Value::from(other))));
            }
            let uid = meta::text(binding, "uid");
            if !uid.is_empty() && uid != meta::text(pod, "uid") {
                return Err(conflict(format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    meta::text(pod, "uid")
                )));
            }
            if pod["spec"]["schedulingGates"].as_array().is_some_and(|g| !g.is_empty()) {
                return Err(conflict(format!("pod {name} has non-empty .spec.schedulingGates")));
            }
            let mut pod = pod.clone();
            if let Some(annotations) = binding["metadata"]["annotations"].as_object() {
                let own = meta::map(meta::of(&mut pod).entry("annotations").or_insert(Value::Null));
                own.extend(annotations.clone());
            }
            pod["spec"]["nodeName"] = node.into();
            set_scheduled(&mut pod);
            Ok(pod)
        };
        self.modify(Part::Kept, Tracked::Already, change, None).await?;
        Ok(respond::object(201, encode(&done(201)), self.form))
    }

    /// `pods/eviction`: a delete that PodDisruptionBudgets may refuse.
    pub(super) async fn evict(&self, eviction: &Value) -> Result<Response<Body>, Status> {
        let named = meta::name(eviction);
        if !named.is_empty() && named != self.name() {
            return Err(Status::bad_request(format!("name in URL does not match name in Eviction object: {named}")));
        }
        let options = DeleteOptions::parse(&eviction["deleteOptions"])?;
        let pod = self.read(self.name(), None).await?;
        let value = pod.value();
        let over = matches!(value["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending"));
        if !over && !pod.deleting {
            self.spend_disruption(&pod, &value).await?;
        }
        let call = Self { dry_run: self.dry_run || options.dry_run, ..self.within(&self.namespace) };
        call.delete_one(self.name(), &options).await?;
        Ok(respond::object(201, encode(&done(201)), self.form))
    }

    /// Takes one disruption from the pod's budget, if it has one; 429 when there is none left.
    async fn spend_disruption(&self, pod: &StoredObject, value: &Value) -> Result<(), Status> {
        let Some(budgets) = builtin().by_path("policy", "v1", "poddisruptionbudgets") else {
            return Ok(());
        };
        for _ in 0..limits::WRITE_ATTEMPTS {
            let all = self.core.storage.list(budgets.store_prefix(), &pod.namespace);
            let mut matching = all.items.iter().filter(|budget| {
                let selector = Labels::from_object(&budget.value()["spec"]["selector"]);
                selector.is_ok_and(|s| s.matches(|key| pod.label(key)))
            });
            let Some(budget) = matching.next() else {
                return Ok(());
            };
            if matching.next().is_some() {
                return Err(Status::internal(
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
            let Some(spent) = spend(budget, &pod.name, value)? else {
                return Ok(());
            };
            let storage = &self.core.storage;
            let written = async || storage.replace(budgets, &spent, budget.revision, Along::default()).await;
            if self.dry_run || written().await?.is_some() {
                return Ok(());
            }
            self.core.storage.fresh().await?;
        }
        Err(Status::conflict(budgets, &pod.name))
    }
}

/// The budget with one disruption less; `None` where the pod may go without one (upstream's
/// `unhealthyPodEvictionPolicy`).
fn spend(budget: &StoredObject, pod: &str, value: &Value) -> Result<Option<Value>, Status> {
    let mut new = budget.value();
    let number = |field: &str| new["status"][field].as_i64().unwrap_or(0);
    let (healthy, desired, allowed) =
        (number("currentHealthy"), number("desiredHealthy"), number("disruptionsAllowed"));
    let refused = |why: String| {
        let cause = Cause { reason: "DisruptionBudget".into(), message: why, field: String::new() };
        let details = Details { causes: vec![cause], ..Details::default() };
        let message = "Cannot evict pod as it would violate the pod's disruption budget.";
        Err(Status::too_many_requests(message, 0).with_details(details))
    };
    if !ready(value) {
        let always = new["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
        if always || (healthy >= desired && desired > 0) {
            return Ok(None);
        }
    }
    let observed = number("observedGeneration");
    if observed < new["metadata"]["generation"].as_i64().unwrap_or(0) {
        return refused(format!("The disruption budget {} is still being processed by the server.", budget.name));
    }
    if allowed <= 0 {
        return refused(format!(
            "The disruption budget {} needs {desired} healthy pods and has {healthy} currently",
            budget.name
        ));
    }
    new["status"]["disruptionsAllowed"] = (allowed - 1).into();
    let disrupted = meta::map(&mut new["status"]).entry("disruptedPods").or_insert_with(|| json!({}));
    meta::map(disrupted).insert(pod.to_owned(), meta::now().into());
    Ok(Some(new))
}

fn ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// The `PodScheduled` condition that goes with a node.
fn set_scheduled(pod: &mut Value) {
    let scheduled = json!({
        "type": "PodScheduled",
        "status": "True",
        "lastProbeTime": null,
        "lastTransitionTime": meta::now(),
    });
    let status = meta::map(&mut pod["status"]);
    match status.entry("conditions").or_insert_with(|| json!([])) {
        Value::Array(conditions) => {
            conditions.retain(|c| c["type"] != "PodScheduled");
            conditions.push(scheduled);
        }
        other => *other = json!([scheduled]),
    }
}

fn done(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code})
}
