//! Growing pauses between attempts to reach an engine that is away.

use std::time::Duration;

use crate::limits;

#[derive(Default)]
pub(crate) struct Backoff {
    last: Option<Duration>,
}

impl Backoff {
    /// Sleeps, twice as long as the last time, up to the limit.
    pub(crate) async fn wait(&mut self) {
        let (first, longest) = limits::BACKOFF;
        let pause = self.last.map_or(first, |last| (last * 2).min(longest));
        self.last = Some(pause);
        tokio::time::sleep(pause).await;
    }

    /// The engine answered.
    pub(crate) fn reset(&mut self) {
        self.last = None;
    }
}
