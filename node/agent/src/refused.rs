//! Says on a Service that this node's data plane has no room for it: an event, once for each reason.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client};
use tokio::sync::watch;

use crate::events::Recorder;

/// In the style of upstream's proxy, whose events on Services begin with `FailedTo` (`FailedToStartServiceHealthcheck`).
const REASON: &str = "FailedToProgramService";

/// Records an event for every Service that begins to be refused, until the data plane is gone.
pub(crate) async fn tell(client: Client, recorder: Recorder, mut refused: watch::Receiver<Vec<String>>) {
    let mut told: BTreeSet<String> = BTreeSet::new();
    loop {
        let now: BTreeSet<String> = refused.borrow_and_update().iter().cloned().collect();
        for (namespace, name, message) in now.difference(&told).filter_map(|sentence| parts(sentence)) {
            // A pod with host ports is named alike, and what was deleted meanwhile needs no event.
            match Api::<Service>::namespaced(client.clone(), namespace).get_metadata_opt(name).await {
                Ok(Some(service)) => recorder.service(&service.metadata, true, REASON, message),
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, namespace, name, "event not written"),
            }
        }
        told = now;
        if refused.changed().await.is_err() {
            return;
        }
    }
}

/// Namespace, name and what an event says, of `namespace/name:port: reason`.
fn parts(sentence: &str) -> Option<(&str, &str, &str)> {
    let (namespace, rest) = sentence.split_once('/')?;
    let (name, message) = rest.split_once(':')?;
    Some((namespace, name, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_name_their_service() {
        let cases = [
            (
                "shop/web:http: the frontend map is full (8)",
                Some(("shop", "web", "http: the frontend map is full (8)")),
            ),
            ("shop/dns:53/udp: no service id is free (4)", Some(("shop", "dns", "53/udp: no service id is free (4)"))),
            ("and 7 more like these", None),
        ];
        for (sentence, expected) in cases {
            assert_eq!(parts(sentence), expected, "{sentence}");
        }
    }
}
