//! ServiceAccount: every pod runs as an account that exists, with its token mounted and its pull
//! secrets used (upstream's `plugin/pkg/admission/serviceaccount`).

use rand::seq::IndexedRandom as _;
use serde::Deserialize;
use serde_json::{Value, json};
use sluice_api::status::Status;

use super::{forbid, list, list_mut, text};
use crate::{auth::view::View, context::Admit, limits};

const DEFAULT: &str = "default";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME: &str = "kube-api-access";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What an account has to say about its pods.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Account {
    automount_service_account_token: Option<bool>,
    image_pull_secrets: Value,
}

pub(super) async fn mutate(view: &dyn View, admit: &Admit<'_>, pod: &mut Value) -> Result<(), Status> {
    if !pod["metadata"]["annotations"][MIRROR].is_null() {
        if !text(&pod["spec"], "serviceAccountName").is_empty() {
            return Err(forbid(admit, Some(pod), "a mirror pod may not reference service accounts"));
        }
        return Ok(());
    }
    let name = match text(&pod["spec"], "serviceAccountName") {
        "" => DEFAULT.to_owned(),
        name => name.to_owned(),
    };
    pod["spec"]["serviceAccountName"] = json!(name);
    pod["spec"]["serviceAccount"] = json!(name);
    let namespace = admit.attributes.namespace;
    let mut account = view.get("", "serviceaccounts", namespace, &name);
    if account.is_none() && name == DEFAULT {
        // The account of a new namespace is on its way from its controller.
        account = view.appears("", "serviceaccounts", namespace, &name, limits::DEFAULT_ACCOUNT_WAIT).await;
    }
    let Some(account) = account else {
        let why = format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found");
        return Err(forbid(admit, Some(pod), why));
    };
    let account: Account = account.parse().map_err(Status::internal)?;
    let asked = pod["spec"]["automountServiceAccountToken"].as_bool();
    let automount = asked.or(account.automount_service_account_token).unwrap_or(true);
    if automount {
        mount_token(&mut pod["spec"]);
    }
    if list(&pod["spec"]["imagePullSecrets"]).is_empty() && !list(&account.image_pull_secrets).is_empty() {
        pod["spec"]["imagePullSecrets"] = account.image_pull_secrets;
    }
    Ok(())
}

/// Mounts the token volume where nothing else is mounted, and adds it when a container needs it.
fn mount_token(spec: &mut Value) {
    let own = list(&spec["volumes"])
        .iter()
        .map(|v| text(v, "name"))
        .find(|name| name.starts_with("kube-api-access-"))
        .map(str::to_owned);
    let volume = own.clone().unwrap_or_else(|| format!("{VOLUME}-{}", suffix()));
    let mut used = false;
    for kind in ["initContainers", "containers"] {
        for container in list_mut(spec, kind) {
            let taken = list(&container["volumeMounts"]).iter().any(|mount| text(mount, "mountPath") == MOUNT_PATH);
            if !taken {
                push(
                    &mut container["volumeMounts"],
                    json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}),
                );
                used = true;
            }
        }
    }
    if used && own.is_none() {
        push(&mut spec["volumes"], token_volume(&volume));
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": limits::TOKEN_PROJECTED_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace",
            "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}

fn push(list: &mut Value, item: Value) {
    match list {
        Value::Array(items) => items.push(item),
        other => *other = Value::Array(vec![item]),
    }
}

/// Five of the characters that upstream generates names from.
fn suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rng = rand::rng();
    (0..5).filter_map(|_| ALPHABET.choose(&mut rng).copied().map(char::from)).collect()
}
