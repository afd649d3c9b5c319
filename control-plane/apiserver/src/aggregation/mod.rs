//! Versions of groups that other servers serve, as APIServices name them: which there are, whether they can be asked
//! ([`follow()`]), and how they show in discovery. Requests for them are passed on by `connect`.
//!
//! What this server has itself stays its own: an APIService of a built-in version changes nothing.

mod discovery;
mod follow;

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ClientConfig;
use serde_json::Value;
use tokio::sync::Notify;

use crate::{admission::webhook::ServiceRef, context::RequestInfo};

pub(crate) use follow::follow;

/// One version of a group that a Service in the cluster serves.
#[derive(Clone)]
pub(crate) struct Extension {
    /// The APIService's name.
    pub(crate) name: String,
    pub(crate) group: String,
    pub(crate) version: String,
    group_priority: i64,
    version_priority: i64,
    pub(crate) service: ServiceRef,
    /// How it is dialled; the reason where the APIService does not say it well.
    pub(crate) tls: Result<Arc<ClientConfig>, String>,
    /// What it serves, as of when it last could be asked.
    resources: Option<Value>,
    /// Whether its last check went well.
    pub(crate) available: bool,
}

/// All of them, the first of a group first, and those of a group by the order of its versions.
#[derive(Default)]
pub(crate) struct Extensions {
    all: ArcSwap<Vec<Arc<Extension>>>,
    /// Told when one could not be reached.
    doubted: Notify,
}

impl Extensions {
    /// Who serves what the request asks for: its objects, the version's discovery or its OpenAPI document.
    pub(crate) fn serving(&self, info: &RequestInfo) -> Option<Arc<Extension>> {
        let all = self.all.load();
        if all.is_empty() {
            return None;
        }
        let mut segments = info.path.trim_matches('/').split('/').peekable();
        let (first, second) = (segments.next()?, segments.next()?);
        let (group, version) = match (first, second) {
            ("apis", group) => (group, segments.next()?),
            ("openapi", "v3") if segments.next() == Some("apis") => (segments.next()?, segments.next()?),
            _ => return None,
        };
        all.iter().find(|e| e.group == group && e.version == version).cloned()
    }

    /// Has the servers checked again.
    pub(crate) fn doubt(&self) {
        self.doubted.notify_one();
    }
}
