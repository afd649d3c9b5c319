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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;

    use super::*;
    use crate::{Op, Txn, embedded::Embedded};

    #[tokio::test]
    async fn compacts_to_what_it_saw_before_and_only_when_something_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let engine: DynEngine = Embedded::open(dir.path(), Default::default()).unwrap();
        let put = Txn {
            success: vec![Op::Put { key: Bytes::from_static(b"/a"), value: Bytes::new(), lease: 0 }],
            ..Txn::default()
        };
        let compacted = async || engine.status().await.unwrap().compacted;
        assert_eq!(step(&engine, None).await.unwrap(), 1);
        for _ in 0..4 {
            engine.txn(put.clone()).await.unwrap();
        }
        assert_eq!((step(&engine, Some(1)).await.unwrap(), compacted().await), (5, 1));
        assert_eq!((step(&engine, Some(5)).await.unwrap(), compacted().await), (5, 1));
        engine.txn(put).await.unwrap();
        assert_eq!((step(&engine, Some(5)).await.unwrap(), compacted().await), (6, 5));
        assert_eq!((step(&engine, Some(5)).await.unwrap(), compacted().await), (6, 5));
    }
}
