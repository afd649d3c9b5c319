//! What every namespace starts with: the `default` ServiceAccount and the ConfigMap `kube-root-ca.crt` with the bundle that
//! pods verify the API server with. Both are put back when someone removes or changes them.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use serde_json::json;

use crate::context::Context;
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::Store;
use crate::object::Object;
use crate::queue::Key;
use crate::rest;
use crate::types::{ConfigMap, Namespace, ServiceAccount};

/// Name of the account pods get that name none.
const DEFAULT: &str = "default";
/// Name of the published bundle.
pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";
const ROOT_CA_KEY: &str = "ca.crt";
const DESCRIPTION: (&str, &str) = (
    "kubernetes.io/description",
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal \
     service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.",
);

struct Controller {
    client: Client,
    bundle: String,
    namespaces: Arc<Store<Namespace>>,
    accounts: Arc<Store<ServiceAccount>>,
    maps: Arc<Store<ConfigMap>>,
}

/// Starts the controller.
pub(crate) fn start(context: &Context, all: &Informers) {
    let mut wiring = Wiring::new();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        bundle: context.options.ca_bundle.clone(),
        namespaces: wiring.drives(&all.namespaces),
        accounts: wiring.reads(&all.accounts),
        maps: wiring.reads(&all.bundles),
    });
    wiring.wakes(&all.accounts, |old, new, queue| {
        if let (Some(account), None) = (old, new)
            && account.name() == DEFAULT
        {
            queue.add(Key::new("", account.ns()));
        }
    });
    wiring.wakes(&all.bundles, |old, new, queue| {
        if let Some(map) = new.or(old) {
            queue.add(Key::new("", map.ns()));
        }
    });
    wiring.run(context, "namespace-content-controller", controller);
}

impl Reconcile for Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        if self.namespaces.get(key).is_none_or(|namespace| namespace.deleting()) {
            return Ok(None);
        }
        let namespace = &*key.name;
        if self.accounts.get(&Key::new(namespace, DEFAULT)).is_none() {
            let body = json!({"metadata": {"name": DEFAULT, "namespace": namespace}});
            tolerate(rest::create::<ServiceAccount>(&self.client, namespace, body).await.map(|_| ()))?;
        }
        let data = json!({ROOT_CA_KEY: self.bundle});
        match self.maps.get(&Key::new(namespace, ROOT_CA)) {
            None => {
                let annotations = json!({DESCRIPTION.0: DESCRIPTION.1});
                let metadata = json!({"name": ROOT_CA, "namespace": namespace, "annotations": annotations});
                let body = json!({"metadata": metadata, "data": data});
                tolerate(rest::create::<ConfigMap>(&self.client, namespace, body).await.map(|_| ()))?;
            }
            Some(map) if map.data.len() != 1 || map.data.get(ROOT_CA_KEY) != Some(&self.bundle) => {
                let mut wanted = data;
                for stray in map.data.keys().filter(|key| *key != ROOT_CA_KEY) {
                    wanted[stray] = json!(null);
                }
                rest::patch(&self.client, &*map, json!({"data": wanted})).await?;
            }
            Some(_) => {}
        }
        Ok(None)
    }
}

/// Someone was faster, or the namespace goes away: both fine.
fn tolerate(result: kube::Result<()>) -> kube::Result<()> {
    result.or_else(|error| {
        if rest::is(&error, 409) || rest::namespace_terminating(&error) || rest::is(&error, 404) {
            Ok(())
        } else {
            Err(error)
        }
    })
}
