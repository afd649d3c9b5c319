//! Sluice's scheduler: finds a node for every pod that has none.
//!
//! A pure planner ([`plan`]) works on a picture of the cluster ([`cluster`]) that is kept up to date change by change; a
//! thin driver ([`driver`]) feeds it from the API and binds through the API. Nothing here opens the store, and nothing but
//! the driver, the informers and the reporter does IO.

pub mod cluster;
mod domains;
mod driver;
mod filter;
mod informer;
pub mod leader;
mod limits;
pub mod matching;
pub mod node;
pub mod plan;
pub mod pod;
mod preempt;
pub mod queue;
pub mod reason;
mod report;
pub mod resources;
mod score;
pub mod wire;
mod wishes;

#[cfg(test)]
mod tests;

use kube::Client;
use tokio_util::sync::CancellationToken;

/// Name of the lease that schedulers elect their leader by.
pub const LEASE: &str = "kube-scheduler";

/// How the scheduler runs.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Seed for ties between equal nodes; by default a random one.
    pub seed: Option<u64>,
    /// With several schedulers: schedule only while elected. By default this is the only one.
    pub election: Option<leader::Election>,
}

/// Schedules pods that ask for `default-scheduler` until `shutdown`.
///
/// # Errors
/// None at present: an API server that cannot be reached is tried again for ever.
pub async fn run(client: Client, options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    let schedule = |shutdown: CancellationToken| {
        let (client, seed) = (client.clone(), options.seed.unwrap_or_else(rand::random));
        async move {
            driver::Driver::new(client, seed, shutdown.clone()).run(shutdown).await;
            Ok(())
        }
    };
    match &options.election {
        Some(election) => leader::lead(client.clone(), LEASE, election, shutdown, schedule).await,
        None => schedule(shutdown).await,
    }
}
