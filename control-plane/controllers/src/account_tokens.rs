//! Fills Secrets of type `kubernetes.io/service-account-token` with a token of the account they name, the cluster's CA
//! bundle and their namespace, and removes them when the account goes (upstream's `serviceaccount/tokens_controller.go`).
//!
//! Tokens come from the API, bound to the Secret: one is good until Secret or account is gone.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kube::Client;
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::context::Context;
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::Store;
use crate::limits;
use crate::object::Object;
use crate::queue::Key;
use crate::rest;
use crate::types::{Secret, ServiceAccount};

/// Selects the Secrets that are filled.
pub(crate) const FIELDS: &str = "type=kubernetes.io/service-account-token";
const NAME: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";

struct Controller {
    client: Client,
    bundle: String,
    secrets: Arc<Store<Secret>>,
    accounts: Arc<Store<ServiceAccount>>,
}

/// What a Secret needs.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Nothing,
    /// Its account is not there.
    Remove,
    /// With a token; without, what it holds stays.
    Fill {
        token: bool,
    },
}

/// Starts the controller.
pub(crate) fn start(context: &Context, all: &Informers) {
    let mut wiring = Wiring::new();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        bundle: context.options.ca_bundle.clone(),
        secrets: wiring.drives(&all.account_tokens),
        accounts: wiring.reads(&all.accounts),
    });
    let secrets = controller.secrets.clone();
    wiring.wakes(&all.accounts, move |old, new, queue| {
        // An account that only changes keeps its tokens.
        if let (Some(account), None) | (None, Some(account)) = (old, new) {
            let index = format!("{}/{}", account.ns(), account.name());
            secrets.indexed(&index).iter().for_each(|secret| queue.add(secret.key()));
        }
    });
    wiring.run(context, "tokens-controller", controller);
}

/// Under which a Secret is found: namespace and name of its account.
pub(crate) fn index(secret: &Secret) -> Option<String> {
    secret.annotations().get(NAME).map(|name| format!("{}/{name}", secret.ns()))
}

fn plan(secret: &Secret, account: Option<&ServiceAccount>, bundle: &str) -> Action {
    if secret.deleting() {
        return Action::Nothing;
    }
    let named = secret.annotations().get(UID).map_or("", String::as_str);
    let Some(account) = account.filter(|account| named.is_empty() || named == account.uid()) else {
        return Action::Remove;
    };
    let holds = |key: &str, wanted: &str| secret.data.get(key).is_some_and(|data| data.0 == wanted.as_bytes());
    let token = secret.data.get("token").is_none_or(|data| data.0.is_empty());
    let rest = holds("ca.crt", bundle) && holds("namespace", secret.ns()) && named == account.uid();
    if token || !rest { Action::Fill { token } } else { Action::Nothing }
}

impl Reconcile for Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(secret) = self.secrets.get(key) else { return Ok(None) };
        let Some(name) = secret.annotations().get(NAME).filter(|name| !name.is_empty()) else { return Ok(None) };
        let mut account = self.accounts.get(&Key::new(secret.ns(), name));
        if plan(&secret, account.as_deref(), &self.bundle) == Action::Remove {
            // Both may have been made a moment ago.
            account = rest::fresh(&self.client, secret.ns(), name).await?.map(Arc::new);
        }
        match (plan(&secret, account.as_deref(), &self.bundle), account) {
            (Action::Remove, _) => rest::delete(&self.client, &*secret).await?,
            (Action::Fill { token }, Some(account)) => self.fill(&secret, &account, token).await?,
            _ => {}
        }
        Ok(None)
    }
}

impl Controller {
    async fn fill(&self, secret: &Secret, account: &ServiceAccount, token: bool) -> anyhow::Result<()> {
        let token = if token { Some(self.token(secret, account).await?) } else { None };
        let path = format!("/api/v1/namespaces/{}/secrets", secret.ns());
        let get = kube::core::Request::new(&path).get(secret.name(), &kube::api::GetParams::default())?;
        let mut newest: Value = match self.client.request(get).await {
            Err(error) if rest::is(&error, 404) => return Ok(()),
            found => found?,
        };
        let metadata = &newest["metadata"];
        if metadata["uid"] != secret.uid() || metadata["resourceVersion"] != secret.meta_version() {
            // The change comes by the watch, and with it another look.
            return Ok(());
        }
        newest["metadata"]["annotations"][UID] = json!(account.uid());
        newest["data"]["ca.crt"] = json!(BASE64.encode(&self.bundle));
        newest["data"]["namespace"] = json!(BASE64.encode(secret.ns()));
        if let Some(token) = token {
            newest["data"]["token"] = json!(BASE64.encode(token));
        }
        let put =
            kube::core::Request::new(path).replace(secret.name(), &PostParams::default(), newest.to_string().into())?;
        match self.client.request::<Value>(put).await {
            Err(error) if rest::is(&error, 404) || rest::is(&error, 409) => Ok(()),
            written => Ok(written.map(drop)?),
        }
    }

    async fn token(&self, secret: &Secret, account: &ServiceAccount) -> anyhow::Result<String> {
        let bound = json!({"apiVersion": "v1", "kind": "Secret", "name": secret.name(), "uid": secret.uid()});
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": limits::SECRET_TOKEN_SECONDS, "boundObjectRef": bound},
        });
        let path = format!("/api/v1/namespaces/{}/serviceaccounts", secret.ns());
        let request = kube::core::Request::new(path);
        let request =
            request.create_subresource("token", account.name(), &PostParams::default(), body.to_string().into())?;
        let answer: Value = self.client.request(request).await?;
        answer["status"]["token"].as_str().map(str::to_owned).context("the API server answered without a token")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_secret_needs() {
        let account: ServiceAccount =
            serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "n", "uid": "u"}})).unwrap();
        let check = |uid: &str, data: Value, account: Option<&ServiceAccount>, expected: Action| {
            let annotations = json!({NAME: "web", UID: uid});
            let secret = json!({"metadata": {"name": "s", "namespace": "n", "annotations": annotations}, "data": data});
            let secret: Secret = serde_json::from_value(secret).unwrap();
            assert_eq!(plan(&secret, account, "PEM"), expected, "{secret:?}");
        };
        let of = |text: &str| json!(BASE64.encode(text));
        let full = json!({"token": of("t"), "ca.crt": of("PEM"), "namespace": of("n")});
        check("u", full.clone(), Some(&account), Action::Nothing);
        check("", full.clone(), Some(&account), Action::Fill { token: false });
        check("", json!({}), Some(&account), Action::Fill { token: true });
        let old = json!({"token": of("t"), "ca.crt": of("OLD"), "namespace": of("n")});
        check("u", old, Some(&account), Action::Fill { token: false });
        let emptied = json!({"token": "", "ca.crt": of("PEM"), "namespace": of("n")});
        check("u", emptied, Some(&account), Action::Fill { token: true });
        check("another", full.clone(), Some(&account), Action::Remove);
        check("u", full, None, Action::Remove);
    }
}
