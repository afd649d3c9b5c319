//! A closed loop: some clients, each with one request under way, share a number of requests.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use anyhow::Result;
use futures::future::try_join_all;

use crate::cluster::Caller;

/// What came of a loop.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) seconds: f64,
    /// Of each request, in milliseconds.
    pub(super) latencies: Vec<f64>,
}

impl Done {
    /// Requests in a second.
    pub(super) fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss)]
        let requests = self.latencies.len() as f64;
        requests / self.seconds.max(f64::MIN_POSITIVE)
    }
}

/// Has each of the `requests` done by one of the callers, which run side by side on all threads. The first failure ends it.
pub(super) async fn run<F>(
    callers: &[Caller],
    requests: usize,
    one: impl Fn(Caller, usize) -> F + Clone + Send + Sync + 'static,
) -> Result<Done>
where
    F: Future<Output = Result<()>> + Send,
{
    let next = std::sync::Arc::new(AtomicUsize::new(0));
    let begun = Instant::now();
    let workers = callers.iter().map(|caller| {
        let (caller, next, one) = (caller.clone(), next.clone(), one.clone());
        let work = async move {
            let mut latencies = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= requests {
                    return anyhow::Ok(latencies);
                }
                let begun = Instant::now();
                one(caller.clone(), number).await?;
                latencies.push(begun.elapsed().as_secs_f64() * 1e3);
            }
        };
        let task = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(work));
        async move { task.await? }
    });
    let latencies = try_join_all(workers).await?.concat();
    Ok(Done { seconds: begun.elapsed().as_secs_f64(), latencies })
}
