//! The members of an etcd cluster, each with a client of its own. All requests go to one of them until it does not answer:
//! then it is the next one's turn. A channel that is balanced over all of them would ask a member that is away again and again.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use etcd_client::{Client, ConnectOptions};

#[derive(Clone)]
pub(super) struct Members {
    clients: Arc<[Client]>,
    /// Whose turn it is, counted on without end.
    turn: Arc<AtomicUsize>,
}

impl Members {
    /// Makes the clients; they connect when they are asked. Several servers begin with different members.
    pub(super) async fn connect(endpoints: &[String], options: &ConnectOptions) -> Result<Members, etcd_client::Error> {
        let mut clients = Vec::new();
        for endpoint in endpoints {
            clients.push(Client::connect([endpoint], Some(options.clone())).await?);
        }
        if clients.is_empty() {
            return Err(etcd_client::Error::InvalidArgs("there is none".to_owned()));
        }
        let first = RandomState::new().hash_one(()) as usize % clients.len();
        Ok(Members { clients: clients.into(), turn: Arc::new(AtomicUsize::new(first)) })
    }

    pub(super) fn count(&self) -> usize {
        self.clients.len()
    }

    /// The turn, and the member that it is.
    pub(super) fn current(&self) -> (usize, Client) {
        let turn = self.turn.load(Ordering::Relaxed);
        (turn, self.clients[turn % self.clients.len()].clone())
    }

    /// Ends a turn, if nobody did before.
    pub(super) fn pass(&self, turn: usize) {
        let next = turn.wrapping_add(1);
        if self.turn.compare_exchange(turn, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() && self.count() > 1 {
            tracing::warn!("a member of etcd does not answer, the next one is asked");
        }
    }
}
