//! What every controller is given.

use std::sync::Arc;

use jiff::Timestamp;
use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::Options;
use crate::events::Recorder;

/// The client, the clock and the rest. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) events: Recorder,
    pub(crate) options: Arc<Options>,
    pub(crate) shutdown: CancellationToken,
}

impl Context {
    /// The time, by the injected clock.
    pub(crate) fn now(&self) -> Timestamp {
        (self.options.clock)()
    }
}
