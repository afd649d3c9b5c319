//! What the store needs besides requests: compaction of old history, and the lease under which
//! events expire.

use sluice_api::status::Status;
use sluice_store::{DynEngine, Error, Revision};
use tokio::{sync::Mutex, time::Instant};

use crate::limits;

/// Keeps [`limits::HISTORY`] of history: what was the newest revision one period ago becomes the
/// oldest. An idle store is left alone.
pub(super) async fn compact(engine: DynEngine) {
    let mut last: Revision = 0;
    let mut compacted: Revision = 0;
    loop {
        tokio::time::sleep(limits::HISTORY).await;
        if last > compacted {
            match engine.compact(last).await {
                Ok(()) | Err(Error::Compacted { .. }) => compacted = last,
                Err(error) => tracing::warn!(%error, revision = last, "history was not compacted"),
            }
        }
        match engine.revision().await {
            Ok(revision) => last = revision,
            Err(error) => tracing::warn!(%error, "the store's revision could not be read"),
        }
    }
}

/// The lease of the events written now. Events close in time share one.
#[derive(Default)]
pub(super) struct EventLease(Mutex<Option<(i64, Instant)>>);

impl EventLease {
    /// A lease that lasts for at least [`limits::EVENT_TTL_SECONDS`] from now.
    pub(super) async fn current(&self, engine: &DynEngine) -> Result<i64, Status> {
        let mut current = self.0.lock().await;
        if let Some((lease, granted)) = *current
            && granted.elapsed() < limits::EVENT_LEASE_SHARED
        {
            return Ok(lease);
        }
        let ttl = limits::EVENT_TTL_SECONDS + limits::EVENT_LEASE_SHARED.as_secs() as i64;
        let lease = engine.lease_grant(ttl).await.map_err(super::failed)?;
        *current = Some((lease, Instant::now()));
        Ok(lease)
    }
}
