//! Taint eviction: pods leave a node with NoExecute taints they do not tolerate, at once or when their toleration ends.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Taint, Toleration};
use kube::Client;
use serde_json::json;
use sluice_scheduler::matching;

use super::patch_strategic;
use crate::context::Context;
use crate::events::Recorder;
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::Store;
use crate::object::Object;
use crate::queue::Key;
use crate::rest;
use crate::types::{Node, Pod};

const NAME: &str = "taint-eviction-controller";

struct Controller {
    client: Client,
    context: Context,
    events: Recorder,
    nodes: Arc<Store<Node>>,
    pods: Arc<Store<Pod>>,
}

/// Starts the controller.
pub(crate) fn start(context: &Context, all: &Informers) {
    let mut wiring = Wiring::new();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        context: context.clone(),
        events: context.events.of(NAME),
        nodes: wiring.reads(&all.nodes),
        pods: wiring.reads(&all.pods),
    });
    let pods = controller.pods.clone();
    wiring.wakes(&all.nodes, move |old, new, queue| {
        let taints = |node: Option<&Arc<Node>>| node.map(|n| no_execute(&n.spec.taints)).unwrap_or_default();
        if let Some(node) = new.filter(|_| taints(old) != taints(new)) {
            pods.indexed(&format!("node/{}", node.name())).iter().for_each(|pod| queue.add(pod.key()));
        }
    });
    wiring.wakes(&all.pods, |old, new, queue| {
        let wishes = |pod: Option<&Arc<Pod>>| pod.map(|p| (p.spec.node_name.clone(), p.spec.tolerations.clone()));
        if let Some(pod) = new.filter(|pod| pod.spec.node_name.is_some() && wishes(old) != wishes(new)) {
            queue.add(pod.key());
        }
    });
    wiring.run(context, NAME, controller);
}

impl Reconcile for Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(pod) = self.pods.get(key).filter(|pod| pod.active()) else { return Ok(None) };
        let Some(node) = pod.spec.node_name.as_deref().and_then(|node| self.nodes.get(&Key::new("", node))) else {
            return Ok(None);
        };
        let now = self.context.now();
        let Some(at) = deadline(&no_execute(&node.spec.taints), &pod.spec.tolerations, now) else { return Ok(None) };
        let wait = at.as_second() - now.as_second();
        if wait > 0 {
            return Ok(Some(Duration::from_secs(wait.unsigned_abs())));
        }
        self.events.normal(&*pod, "TaintManagerEviction", format!("Marking for deletion Pod {key}"));
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": format!("{now:.0}"),
        });
        patch_strategic(&self.client, &*pod, json!({"conditions": [condition]})).await?;
        rest::delete(&self.client, &*pod).await?;
        Ok(None)
    }
}

fn no_execute(taints: &[Taint]) -> Vec<Taint> {
    taints.iter().filter(|t| t.effect == "NoExecute").cloned().collect()
}

/// When a pod has to leave; `None` when it may stay.
pub(super) fn deadline(taints: &[Taint], tolerations: &[Toleration], now: Timestamp) -> Option<Timestamp> {
    let ends = taints.iter().filter_map(|taint| {
        let matching: Vec<_> = tolerations.iter().filter(|t| matching::tolerates(t, taint)).collect();
        if matching.is_empty() {
            return Some(now);
        }
        let since = taint.time_added.as_ref().map_or(now, |t| t.0);
        // The shortest of the tolerations that end; those without an end hold for ever.
        let seconds = matching.iter().filter_map(|t| t.toleration_seconds).min()?;
        Some(since.checked_add(Duration::from_secs(seconds.max(0).unsigned_abs())).unwrap_or(Timestamp::MAX))
    });
    ends.min()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn deadlines() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let taint = |key: &str| Taint {
            key: key.into(),
            effect: "NoExecute".into(),
            value: None,
            time_added: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(1000))),
        };
        let tolerate = |key: &str, seconds: Option<i64>| Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some("NoExecute".into()),
            toleration_seconds: seconds,
            value: None,
        };
        let now = at(1100);
        for (taints, tolerations, expected) in [
            (vec![], vec![], None),
            (vec![taint("a")], vec![], Some(1100)),
            (vec![taint("a")], vec![tolerate("b", None)], Some(1100)),
            (vec![taint("a")], vec![tolerate("a", None)], None),
            (vec![taint("a")], vec![tolerate("a", Some(300))], Some(1300)),
            (vec![taint("a")], vec![tolerate("a", Some(300)), tolerate("a", Some(60))], Some(1060)),
            (vec![taint("a"), taint("b")], vec![tolerate("a", Some(300)), tolerate("b", None)], Some(1300)),
            (vec![taint("a"), taint("b")], vec![tolerate("a", Some(300))], Some(1100)),
        ] {
            assert_eq!(deadline(&taints, &tolerations, now).map(Timestamp::as_second), expected);
        }
    }
}
