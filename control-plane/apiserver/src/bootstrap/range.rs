//! The default ServiceCIDR, made from the configuration. Like upstream's, it follows the configuration in one way alone: it
//! gains its second range. Anything else would take addresses away that Services have, so it is only told.

use serde_json::{Value, json};
use sluice_api::{
    resource::{Resource, builtin},
    status::Status,
};

use super::objects::{Cluster, Item, key, present};
use crate::{
    meta,
    services::DEFAULT_RANGE,
    storage::{Storage, StoredObject},
};

/// As it is first made.
pub(super) fn default(cluster: &Cluster) -> Item {
    let cidrs: Vec<&str> = cluster.service_cidr.split(',').map(str::trim).collect();
    let object = json!({"metadata": {"name": DEFAULT_RANGE}, "spec": {"cidrs": cidrs}, "status": ready()});
    ("networking.k8s.io", "servicecidrs", object)
}

fn ready() -> Value {
    json!({"conditions": [{"type": "Ready", "status": "True", "reason": "",
        "message": "Kubernetes default Service CIDR is ready", "lastTransitionTime": meta::now()}]})
}

/// What is to be done about a default ServiceCIDR that is there.
#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    Write(Value),
    /// The event's message.
    Tell(String),
}

/// Upstream's `kubernetes-service-cidr-controller`.
fn plan(mut stored: Value, wanted: &Value) -> Plan {
    let (has, wants) = (meta::strings(&stored["spec"]["cidrs"]), meta::strings(&wanted["spec"]["cidrs"]));
    if has.len() == 1 && wants.len() == 2 && has[0] == wants[0] {
        stored["spec"]["cidrs"] = json!(wants);
        return Plan::Write(stored);
    }
    if meta::deleting(&stored) {
        return Plan::Nothing;
    }
    if has != wants {
        let list = |cidrs: &[&str]| cidrs.join(" ");
        return Plan::Tell(format!(
            "The default ServiceCIDR [{}] does not match the controller flag configurations [{}]",
            list(&has),
            list(&wants)
        ));
    }
    let conditions = stored["status"]["conditions"].as_array();
    match conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready") {
        true => Plan::Nothing,
        false => {
            stored["status"] = ready();
            Plan::Write(stored)
        }
    }
}

/// Makes it where it is missing, and sees to it where it is there.
pub(super) async fn kept(storage: &Storage, row: &Resource, object: Value) -> Result<(), Status> {
    let (_, name) = key(&object);
    let Some(stored) = storage.get(row.store_prefix(), "", name) else {
        return present(storage, row, object).await;
    };
    match plan(stored.value(), &object) {
        Plan::Nothing => Ok(()),
        Plan::Write(object) => storage.update(row, object).await.map(drop),
        Plan::Tell(message) => {
            tracing::warn!("{message}: addresses are still given from the ServiceCIDR");
            tell(storage, &stored, message).await
        }
    }
}

async fn tell(storage: &Storage, range: &StoredObject, message: String) -> Result<(), Status> {
    const COMPONENT: &str = "kubernetes-service-cidr-controller";
    let Some(events) = builtin().by_path("", "v1", "events") else { return Ok(()) };
    let now = meta::now();
    let event = json!({
        "metadata": {"namespace": "default", "name": format!("{DEFAULT_RANGE}.{}", meta::new_uid())},
        "involvedObject": {"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "name": DEFAULT_RANGE,
            "uid": range.uid, "resourceVersion": range.revision.to_string()},
        "type": "Warning", "reason": "KubernetesDefaultServiceCIDRInconsistent", "message": message,
        "source": {"component": COMPONENT}, "reportingComponent": COMPONENT, "reportingInstance": "",
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    });
    storage.create(events, event).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_range_is_kept() {
        let range = |cidrs: &[&str], status: Value| json!({"spec": {"cidrs": cidrs}, "status": status});
        let check = |has: &[&str], wants: &[&str], expected: &str| {
            let ready = json!({"conditions": [{"type": "Ready", "status": "False"}]});
            let got = match plan(range(has, ready), &range(wants, Value::Null)) {
                Plan::Nothing => String::new(),
                Plan::Write(object) => object["spec"]["cidrs"].to_string(),
                Plan::Tell(message) => message,
            };
            assert_eq!(got, expected, "{has:?} {wants:?}");
        };
        let (four, six, other) = ("10.96.0.0/16", "fd00::/108", "10.97.0.0/16");
        check(&[four], &[four], "");
        check(&[four, six], &[four, six], "");
        check(&[four], &[four, six], "[\"10.96.0.0/16\",\"fd00::/108\"]");
        let told = |has: &str, wants: &str| {
            format!("The default ServiceCIDR [{has}] does not match the controller flag configurations [{wants}]")
        };
        check(&[four], &[other], &told(four, other));
        check(&[four, six], &[four], &told("10.96.0.0/16 fd00::/108", four));
        check(&[four], &[six, four], &told(four, "fd00::/108 10.96.0.0/16"));

        let Plan::Write(object) = plan(range(&[four], Value::Null), &range(&[four], Value::Null)) else {
            panic!("nobody says that it is ready");
        };
        assert_eq!(object["status"]["conditions"][0]["status"], "True");
        let mut leaving = range(&[four], Value::Null);
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(plan(leaving, &range(&[other], Value::Null)), Plan::Nothing);
    }
}
