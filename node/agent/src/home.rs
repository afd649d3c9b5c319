//! Leads the node's own sockets to the services that they reach by packet (SCTP): the link and its routes are the pod network's,
//! the programs on it the data plane's.

use anyhow::{Context, Result};
use sluice_dataplane::{ByPacket, Dataplane, HOME_MAC};
use sluice_network::Network;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::limits::HOME_RETRY;

/// Follows what the data plane says, once the node has its pod ranges, until the data plane is gone.
pub(crate) async fn lead(network: Network, dataplane: Dataplane, mut ready: watch::Receiver<bool>) {
    if ready.wait_for(|ready| *ready).await.is_err() {
        return;
    }
    let mut told = dataplane.by_packet();
    let mut begun = false;
    loop {
        let now = told.borrow_and_update().clone();
        let known = now != ByPacket::Unknown;
        match follow(&network, &dataplane, now, begun).await {
            Ok(()) => begun |= known,
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "this node's own SCTP sockets do not reach Services");
                match timeout(HOME_RETRY, told.changed()).await {
                    Ok(Err(_)) => return,
                    _ => continue,
                }
            }
        }
        if told.changed().await.is_err() {
            return;
        }
    }
}

/// Before anything was done (`begun`), what an earlier daemon left goes if nothing needs it. Later on the link stays: connections
/// may use it.
async fn follow(network: &Network, dataplane: &Dataplane, now: ByPacket, begun: bool) -> Result<()> {
    let addresses = match now {
        ByPacket::Unknown => return Ok(()),
        ByPacket::Nothing if begun => Default::default(),
        ByPacket::Nothing => {
            let dataplane = dataplane.clone();
            tokio::task::spawn_blocking(move || dataplane.leave_home()).await??;
            return Ok(network.remove_home().await?);
        }
        ByPacket::Services(addresses) => {
            let home = network.ensure_home(HOME_MAC).await?;
            let dataplane = dataplane.clone();
            tokio::task::spawn_blocking(move || dataplane.set_home(home))
                .await?
                .context("the programs of the home link")?;
            addresses
        }
    };
    Ok(network.lead_home(&addresses).await?)
}
