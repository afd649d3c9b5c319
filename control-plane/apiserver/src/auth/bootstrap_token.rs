//! Bootstrap tokens (`abcdef.0123456789abcdef`), kept as Secrets in kube-system: what a joining
//! node shows until it has a certificate.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::view::View;
use crate::context::UserInfo;

const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const GROUP: &str = "system:bootstrappers";

#[derive(Deserialize)]
struct Secret {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    data: std::collections::BTreeMap<String, String>,
}

/// True for a string in the form of a bootstrap token.
pub fn looks_like(token: &str) -> bool {
    split(token).is_some()
}

/// The user of a bootstrap token: `system:bootstrap:<id>` in `system:bootstrappers` and the
/// Secret's extra groups.
///
/// # Errors
/// The reason in words.
pub fn authenticate(view: &dyn View, token: &str, now: jiff::Timestamp) -> Result<UserInfo, String> {
    let (id, secret) = split(token).ok_or("not a bootstrap token")?;
    let name = format!("bootstrap-token-{id}");
    let stored = view.get("", "secrets", "kube-system", &name).ok_or_else(|| format!("no bootstrap token {id}"))?;
    if stored.deleting {
        return Err(format!("bootstrap token {id} is being deleted"));
    }
    let held: Secret = stored.parse().map_err(|e| e.to_string())?;
    let field = |key: &str| {
        let bytes = BASE64.decode(held.data.get(key)?).ok()?;
        String::from_utf8(bytes).ok()
    };
    if held.kind != SECRET_TYPE
        || field("token-id").as_deref() != Some(id)
        || !same(secret, &field("token-secret").unwrap_or_default())
    {
        return Err(format!("bootstrap token {id} does not match"));
    }
    if let Some(expiration) = field("expiration") {
        // A date that cannot be read counts as past, as upstream does.
        let live = expiration.parse::<jiff::Timestamp>().is_ok_and(|at| now < at);
        if !live {
            return Err(format!("bootstrap token {id} has expired"));
        }
    }
    if field("usage-bootstrap-authentication").as_deref() != Some("true") {
        return Err(format!("bootstrap token {id} is not for authentication"));
    }
    let mut groups = vec![GROUP.to_owned()];
    for group in field("auth-extra-groups").unwrap_or_default().split(',').filter(|g| !g.is_empty()) {
        if !group.starts_with("system:bootstrappers:") {
            return Err(format!("bootstrap token {id} names the group {group}"));
        }
        groups.push(group.to_owned());
    }
    Ok(UserInfo { username: format!("system:bootstrap:{id}"), groups, ..UserInfo::default() })
}

fn split(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |s: &str| s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some((id, secret))
}

/// Compares digests, so the time taken says nothing about how much of a guess was right.
fn same(a: &str, b: &str) -> bool {
    Sha256::digest(a) == Sha256::digest(b)
}
