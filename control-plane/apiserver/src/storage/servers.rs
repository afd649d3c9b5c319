//! Which API servers there are: a key for each address, under a lease that its server keeps alive. Keys and values are as
//! upstream's lease reconciler has them, Endpoints of one address below `/registry/masterleases/`.

use std::net::SocketAddr;

use bytes::Bytes;
use serde_json::{Value, json};
use sluice_api::status::Status;
use sluice_store::{Error, Op, Txn, cache::CacheWatch};

use super::{Storage, StoredObject, encode, failed};
use crate::{limits, meta};

const SERVERS: &str = "/registry/masterleases/";

impl Storage {
    /// Says that a server is at these addresses, for [`limits::SERVER_TTL_SECONDS`] from now; the lease to renew.
    pub(crate) async fn enter(&self, at: &[SocketAddr]) -> Result<i64, Status> {
        let lease = self.engine.lease_grant(limits::SERVER_TTL_SECONDS).await.map_err(failed)?;
        let put = |address: &SocketAddr| {
            let key = Bytes::from(format!("{SERVERS}{}", address.ip()));
            Ok(Op::Put { key, value: encode(&record(*address))?, lease })
        };
        let success = at.iter().map(put).collect::<Result<_, Status>>()?;
        let written = self.engine.txn(Txn { success, ..Txn::default() }).await.map_err(failed)?;
        self.seen(written.revision).await;
        Ok(lease)
    }

    /// Starts the lease's time anew; false when it has ended.
    pub(crate) async fn stay(&self, lease: i64) -> Result<bool, Status> {
        match self.engine.lease_keep_alive(lease).await {
            Ok(()) => Ok(true),
            Err(Error::LeaseNotFound(_)) => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// Ends the lease, and with it the server's addresses; the cache has seen it when this returns.
    pub(crate) async fn leave(&self, lease: i64) -> Result<(), Status> {
        match self.engine.lease_revoke(lease).await {
            Ok(()) | Err(Error::LeaseNotFound(_)) => self.fresh().await.map(drop),
            Err(error) => Err(failed(error)),
        }
    }

    /// The addresses of all servers, sorted.
    pub(crate) fn servers(&self) -> Vec<SocketAddr> {
        let mut servers: Vec<SocketAddr> =
            self.snapshot(SERVERS, "").iter().filter_map(|(_, lease)| address(&lease.value())).collect();
        servers.sort_unstable();
        servers
    }

    /// Servers that come and go from now on.
    pub(crate) fn watch_servers(&self) -> Result<CacheWatch<StoredObject>, Status> {
        self.watch(SERVERS, "", 0)
    }
}

fn record(address: SocketAddr) -> Value {
    let mut object = json!({"kind": "Endpoints", "apiVersion": "v1",
        "metadata": {"name": address.ip().to_string()},
        "subsets": [{"addresses": [{"ip": address.ip()}], "ports": [{"name": "https", "port": address.port(), "protocol": "TCP"}]}]});
    meta::stamp(&mut object);
    object
}

fn address(record: &Value) -> Option<SocketAddr> {
    let subset = &record["subsets"][0];
    let ip = subset["addresses"][0]["ip"].as_str()?.parse().ok()?;
    let port = subset["ports"][0]["port"].as_u64()?.try_into().ok()?;
    Some(SocketAddr::new(ip, port))
}
