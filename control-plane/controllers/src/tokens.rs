//! Deletes bootstrap tokens when they expire.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;

use crate::context::Context;
use crate::informer::{Informer, Store};
use crate::object::Object;
use crate::queue::{self, Key, Queue};
use crate::rest;
use crate::types::Secret;

/// Selects bootstrap tokens among the secrets.
pub(crate) const FIELDS: &str = "type=bootstrap.kubernetes.io/token";

struct Controller {
    client: Client,
    context: Context,
    tokens: Arc<Store<Secret>>,
    queue: Queue<Key>,
}

/// Starts the controller. `tokens` holds only bootstrap tokens.
pub(crate) fn start(context: &Context, tokens: &Informer<Secret>) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        context: context.clone(),
        tokens: tokens.store.clone(),
        queue: Queue::default(),
    });
    let queue = controller.queue.clone();
    tokens.on_change(move |_, new| {
        if let Some(token) = new.filter(|token| token.ns() == "kube-system") {
            queue.add(token.key());
        }
    });
    let (queue, shutdown) = (controller.queue.clone(), context.shutdown.clone());
    tokio::spawn(async move {
        queue::work("token-cleaner", queue, 1, shutdown, |key| {
            let controller = controller.clone();
            async move { controller.sync(&key).await }
        })
        .await;
    });
}

impl Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<()> {
        let Some(token) = self.tokens.get(key) else { return Ok(()) };
        match left(&token, self.context.now()) {
            None => {}
            Some(Duration::ZERO) => rest::delete(&self.client, &*token).await?,
            Some(left) => self.queue.add_after(key.clone(), left),
        }
        Ok(())
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
