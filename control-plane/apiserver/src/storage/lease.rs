//! The lease under which events expire.

use sluice_api::status::Status;
use sluice_store::DynEngine;
use tokio::{sync::Mutex, time::Instant};

use crate::limits;

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
