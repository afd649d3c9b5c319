//! Deletes bootstrap tokens when they expire.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;

use crate::context::Context;
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::Store;
use crate::object::Object;
use crate::queue::Key;
use crate::rest;
use crate::types::Secret;

/// Selects bootstrap tokens among the secrets.
pub(crate) const FIELDS: &str = "type=bootstrap.kubernetes.io/token";

struct Controller {
    client: Client,
    context: Context,
    tokens: Arc<Store<Secret>>,
}

/// Starts the controller.
pub(crate) fn start(context: &Context, all: &Informers) {
    let mut wiring = Wiring::new();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        context: context.clone(),
        tokens: wiring.drives(&all.tokens),
    });
    wiring.run(context, "token-cleaner", controller);
}

impl Reconcile for Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(token) = self.tokens.get(key).filter(|token| token.ns() == "kube-system") else {
            return Ok(None);
        };
        match left(&token, self.context.now()) {
            Some(Duration::ZERO) => {
                rest::delete(&self.client, &*token).await?;
                Ok(None)
            }
            left => Ok(left),
        }
    }
}

/// Time until a token expires; `None` for those that never do, zero when it has or when its expiration cannot be read.
fn left(token: &Secret, now: Timestamp) -> Option<Duration> {
    let text = String::from_utf8_lossy(&token.data.get("expiration")?.0).into_owned();
    let Ok(at) = text.trim().parse::<Timestamp>() else { return Some(Duration::ZERO) };
    let left = at.duration_since(now);
    Some(if left.is_positive() { left.unsigned_abs() } else { Duration::ZERO })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn expiry() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (expiration, expected) in [
            (None, None),
            (Some("2026-01-01T01:00:00Z"), Some(3600)),
            (Some("2025-12-31T23:59:59+00:00"), Some(0)),
            (Some("soon"), Some(0)),
        ] {
            let data = expiration.map(|e| ("expiration".to_owned(), ByteString(e.into()))).into_iter().collect();
            let token = Secret { data, ..Default::default() };
            assert_eq!(left(&token, now).map(|d| d.as_secs()), expected);
        }
    }
}
