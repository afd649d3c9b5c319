//! Drops old history on a schedule: what is older than the interval, as upstream's API server does.
//! Several API servers may run it on one etcd: each compacts only to what it saw an interval ago.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::{DynEngine, Error, Revision};

/// Runs until `shutdown`, compacting every `interval` to the newest revision of one interval before.
pub async fn run(engine: DynEngine, interval: Duration, shutdown: CancellationToken) {
    let mut seen: Option<Revision> = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        match step(&engine, seen).await {
            Ok(newest) => seen = Some(newest),
            Err(error) => tracing::warn!(%error, "compacting the store failed, trying again later"),
        }
    }
}

/// Compacts to `seen` when the store has moved on since; returns the newest revision.
async fn step(engine: &DynEngine, seen: Option<Revision>) -> Result<Revision, Error> {
    let newest = engine.revision().await?;
    if let Some(seen) = seen
        && seen < newest
    {
        match engine.compact(seen).await {
            // Another API server was faster.
            Ok(()) | Err(Error::Compacted { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(newest)
}
