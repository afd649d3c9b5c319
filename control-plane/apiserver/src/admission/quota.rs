//! ResourceQuota: refuses what would take a namespace over a quota's `hard` limits.
//!
//! Usage is counted from the cached objects at each write, so it needs no controller to be
//! right. What was admitted and is not in the cache yet is reserved for a moment, so that requests
//! side by side do not pass one limit together. `status.used` is written elsewhere, by the same
//! rules (`sluice_api::quota`).

use std::{collections::HashMap, time::Instant};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::Value;
use sluice_api::{
    quantity::Quantity,
    quota::{self, Usage},
    status::Status,
};

use super::{forbid, text};
use crate::{
    auth::view::View,
    context::{Admit, Operation},
    limits,
};

/// Admitted objects that the cache may not have yet, by uid.
#[derive(Default)]
pub(super) struct Quota {
    reserved: Mutex<HashMap<String, Reservation>>,
}

struct Reservation {
    prefix: String,
    namespace: String,
    object: Value,
    at: Instant,
}

/// One limit that a write would break.
struct Exceeded<'a> {
    key: &'a str,
    wanted: Quantity,
    used: Quantity,
    most: Quantity,
}

/// Kinds whose changes can take more of a quota, not only their creation.
const GROWING: [&str; 3] = ["pods", "services", "persistentvolumeclaims"];

impl Quota {
    pub(super) fn check(&self, view: &dyn View, admit: &Admit<'_>, object: &Value) -> Result<(), Status> {
        let a = &admit.attributes;
        let grows = a.group.is_empty() && GROWING.contains(&a.resource);
        let counts = match admit.operation {
            Operation::Create => a.subresource.is_empty(),
            Operation::Update => grows && matches!(a.subresource, "" | "resize"),
            _ => false,
        };
        if !counts || a.namespace.is_empty() {
            return Ok(());
        }
        let quotas = view.list("", "resourcequotas", a.namespace);
        if quotas.is_empty() {
            return Ok(());
        }
        let prefix = admit.resource.store_prefix();
        let stored = view.list_at(prefix, a.namespace);
        let mut reserved = self.reserved.lock();
        let here = |r: &Reservation| r.prefix == prefix && r.namespace == a.namespace;
        reserved.retain(|uid, r| {
            r.at.elapsed() < limits::QUOTA_RESERVATION && !(here(r) && stored.iter().any(|o| *o.uid == **uid))
        });
        let uid = text(&object["metadata"], "uid");
        let mut others: Vec<Value> = stored.iter().map(|o| o.value()).collect();
        // A write that is tried again has reserved its own already.
        let besides = reserved.iter().filter(|(of, r)| here(r) && *of != uid);
        others.extend(besides.map(|(_, r)| r.object.clone()));
        for quota in &quotas {
            judge(&quota.value(), admit, object, &others)?;
        }
        let new = admit.operation == Operation::Create && !admit.dry_run && !uid.is_empty();
        if new && reserved.len() < limits::QUOTA_RESERVATIONS {
            let reservation = Reservation {
                prefix: prefix.into(),
                namespace: a.namespace.into(),
                object: object.clone(),
                at: Instant::now(),
            };
            reserved.insert(uid.to_owned(), reservation);
        }
        Ok(())
    }
}

fn judge(quota: &Value, admit: &Admit<'_>, object: &Value, others: &[Value]) -> Result<(), Status> {
    let a = &admit.attributes;
    let (name, spec) = (text(&quota["metadata"], "name"), &quota["spec"]);
    let hard = &spec["hard"];
    let now = Timestamp::now();
    let counts = |o: &Value| quota::in_scope(spec, a.group, a.resource, o);
    let usage = |o: &Value| quota::usage(a.group, a.resource, o, now);
    if !counts(object) {
        return Ok(());
    }
    let mut wanted = usage(object);
    // A change takes only what it takes more than before.
    if let Some(old) = admit.old.filter(|old| counts(old)) {
        let before: Usage = usage(old).into_iter().map(|(key, amount)| (key, -amount)).collect();
        quota::add(&mut wanted, before);
    }
    if admit.operation == Operation::Create && a.group.is_empty() && a.resource == "pods" {
        let unset = unspecified(hard, object);
        if !unset.is_empty() {
            let why = format!("failed quota: {name}: must specify {}", unset.join("; "));
            return Err(forbid(admit, Some(object), why));
        }
    }
    let mut used = Usage::new();
    for other in others.iter().filter(|o| counts(o)) {
        quota::add(&mut used, usage(other));
    }
    let mut exceeded: Vec<Exceeded<'_>> = hard
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, most)| {
            let wanted = *wanted.get(key).filter(|w| !w.is_zero() && !w.is_negative())?;
            let used = used.get(key).copied().unwrap_or(Quantity::of(0));
            let most = Quantity::from_value(most)?;
            (used + wanted > most).then_some(Exceeded { key, wanted, used, most })
        })
        .collect();
    if exceeded.is_empty() {
        return Ok(());
    }
    exceeded.sort_by_key(|e| e.key);
    let show = |of: fn(&Exceeded<'_>) -> Quantity| -> String {
        exceeded.iter().map(|e| format!("{}={}", e.key, of(e))).collect::<Vec<_>>().join(",")
    };
    let why = format!(
        "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
        show(|e| e.wanted),
        show(|e| e.used),
        show(|e| e.most)
    );
    Err(forbid(admit, Some(object), why))
}

/// `limits.cpu for: a,b`: compute resources under quota that containers leave open.
fn unspecified(hard: &Value, pod: &Value) -> Vec<String> {
    const COMPUTE: [&str; 2] = ["cpu", "memory"];
    let mut out = Vec::new();
    for key in hard.as_object().into_iter().flatten().map(|(key, _)| key.as_str()) {
        let (field, plain) = match key.split_once('.') {
            Some(("requests", rest)) => ("requests", rest),
            Some(("limits", rest)) => ("limits", rest),
            _ => ("requests", key),
        };
        if !COMPUTE.contains(&plain) {
            continue;
        }
        let open: Vec<&str> = super::containers(&pod["spec"])
            .filter(|(_, c)| c["resources"][field][plain].is_null())
            .map(|(_, c)| text(c, "name"))
            .collect();
        if !open.is_empty() {
            out.push(format!("{key} for: {}", open.join(",")));
        }
    }
    out.sort();
    out
}
