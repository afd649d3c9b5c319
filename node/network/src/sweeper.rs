//! Removes the links of ended pods behind everybody's back: the kernel takes tens of milliseconds for it, most of them
//! waiting, and as long for thirty links as for one. What a daemon that dies leaves behind goes with its namespace, which
//! nobody pins any more.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::direct::Direct;

/// The task; it ends with this value.
pub(crate) struct Sweeper {
    asked: Arc<Notify>,
    _ends: DropGuard,
}

impl Sweeper {
    /// Needs a connection of its own: others must not wait for its requests.
    pub(crate) fn start(direct: Direct) -> Self {
        let (asked, ends) = (Arc::new(Notify::new()), CancellationToken::new());
        tokio::spawn(sweep(direct, Arc::clone(&asked), ends.clone()));
        Self { asked, _ends: ends.drop_guard() }
    }

    /// There is a link to be removed.
    pub(crate) fn ask(&self) {
        self.asked.notify_one();
    }
}

async fn sweep(direct: Direct, asked: Arc<Notify>, ends: CancellationToken) {
    let direct = Arc::new(Mutex::new(direct));
    loop {
        tokio::select! {
            () = ends.cancelled() => return,
            () = asked.notified() => {}
        }
        let direct = Arc::clone(&direct);
        match tokio::task::spawn_blocking(move || direct.lock().sweep()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "links of ended pods stay until the next pod ends"),
            // The runtime is shutting down.
            Err(_) => return,
        }
    }
}
