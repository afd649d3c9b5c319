//! `Impersonate-*` headers: acting as someone else, each part allowed by the `impersonate` verb.

use std::collections::BTreeMap;

use http::HeaderMap;
use sluice_api::status::Status;

use super::{ANONYMOUS, AUTHENTICATED, MASTERS, UNAUTHENTICATED, refusal};
use crate::{
    authz::Authorizer,
    context::{Attributes, Decision, UserInfo},
    request::unescape,
};

const EXTRA: &str = "impersonate-extra-";

/// The user to act as: `user` itself without the headers.
///
/// # Errors
/// 403 when the user may not impersonate one of the parts, 400 for headers without a user.
pub fn apply(user: UserInfo, headers: &HeaderMap, authorizer: &Authorizer) -> Result<UserInfo, Status> {
    let Some(mut wanted) = requested(headers)? else {
        return Ok(user);
    };
    let ask = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        let attributes = Attributes {
            user: &user,
            verb: "impersonate",
            group,
            version: "v1",
            resource,
            subresource,
            namespace,
            name,
            path: "",
            is_resource: true,
        };
        match authorizer.authorize(&attributes) {
            Decision::Allow => Ok(()),
            Decision::Deny(why) => Err(refusal::forbidden(&attributes, &why)),
        }
    };
    let account = service_account(&wanted.username);
    match account {
        Some((namespace, name)) => ask("", "serviceaccounts", "", namespace, name)?,
        None => ask("", "users", "", "", &wanted.username)?,
    }
    for group in &wanted.groups {
        ask("", "groups", "", "", group)?;
    }
    for (key, values) in &wanted.extra {
        for value in values {
            ask("authentication.k8s.io", "userextras", key, "", value)?;
        }
    }
    if !wanted.uid.is_empty() {
        ask("authentication.k8s.io", "uids", "", "", &wanted.uid)?;
    }
    if let (Some((namespace, _)), true) = (account, wanted.groups.is_empty()) {
        wanted.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
    }
    let implied = if wanted.username == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
    if !wanted.in_group(AUTHENTICATED) && !wanted.in_group(UNAUTHENTICATED) {
        wanted.groups.push(implied.into());
    }
    tracing::debug!(by = user.username, r#as = wanted.username, masters = wanted.in_group(MASTERS), "impersonation");
    Ok(wanted)
}

fn requested(headers: &HeaderMap) -> Result<Option<UserInfo>, Status> {
    let text = |name: &str| -> Vec<String> {
        headers
            .get_all(name)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .filter(|v| !v.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for key in headers.keys() {
        if let Some(name) = key.as_str().strip_prefix(EXTRA) {
            extra.insert(unescape(name, false), text(key.as_str()));
        }
    }
    let (users, groups, uid) = (text("impersonate-user"), text("impersonate-group"), text("impersonate-uid"));
    match users.into_iter().next() {
        Some(username) => {
            Ok(Some(UserInfo { username, uid: uid.into_iter().next().unwrap_or_default(), groups, extra }))
        }
        None if groups.is_empty() && uid.is_empty() && extra.is_empty() => Ok(None),
        None => {
            Err(Status::bad_request("requested impersonation of groups, a uid or extras without impersonating a user"))
        }
    }
}

/// `system:serviceaccount:<namespace>:<name>`.
pub fn service_account(username: &str) -> Option<(&str, &str)> {
    username
        .strip_prefix("system:serviceaccount:")?
        .split_once(':')
        .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
}
