//! Leader election by a Lease (KEP-589's `coordination.k8s.io` leases, as upstream's components use them): of several
//! processes with the same work one does it. A candidate watches the lease and takes it when its holder lets go of it, or
//! has not renewed it for a while by the candidate's own clock; the holder stops before that while has passed.

use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::limits;

/// Namespace of the components' leases.
const NAMESPACE: &str = "kube-system";

/// How a process stands for election.
#[derive(Clone, Debug)]
pub struct Election {
    /// Tells this process from all others, those before it on the same machine included.
    pub identity: String,
    /// A holder that has not renewed for so long has lost its lease.
    pub duration: Duration,
    /// Time between renewals; much shorter than `duration`.
    pub renew: Duration,
}

impl Election {
    /// Terms under which another process takes over in under two seconds.
    pub fn new(identity: impl Into<String>) -> Self {
        Self { identity: identity.into(), duration: limits::LEASE_DURATION, renew: limits::LEASE_RENEW }
    }
}

/// Does `work` whenever this process holds the lease `name`, until `shutdown`; then lets go of the lease at once. The token
/// given to `work` is cancelled when the lease is lost; `work` may be started again later.
///
/// # Errors
/// What `work` ended with while the lease was held. An API server that cannot be reached is tried again for ever.
pub async fn lead<F, Fut>(
    client: Client,
    name: &str,
    election: &Election,
    shutdown: CancellationToken,
    work: F,
) -> anyhow::Result<()>
where
    F: Fn(CancellationToken) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let candidate = Candidate { leases: Api::namespaced(client, NAMESPACE), name, election };
    while let Some(mut held) = shutdown.run_until_cancelled(candidate.acquire()).await {
        tracing::info!(lease = name, identity = election.identity, "leading");
        let turn = shutdown.child_token();
        let mut working = std::pin::pin!(work(turn.clone()));
        let (outcome, kept) = tokio::select! {
            outcome = &mut working => (Some(outcome), true),
            kept = candidate.hold(&mut held, &shutdown) => (None, kept),
        };
        turn.cancel();
        let outcome = match outcome {
            Some(outcome) => outcome,
            None => working.await,
        };
        if kept {
            candidate.release(held).await;
        } else {
            tracing::warn!(lease = name, "no longer leading: the lease could not be renewed in time");
        }
        outcome?;
        if shutdown.is_cancelled() {
            break;
        }
    }
    Ok(())
}

struct Candidate<'a> {
    leases: Api<Lease>,
    name: &'a str,
    election: &'a Election,
}

impl Candidate<'_> {
    /// Waits until the lease is free and takes it.
    async fn acquire(&self) -> Lease {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut changes = std::pin::pin!(watch(self.leases.clone(), config).default_backoff());
        let mut seen: Option<Lease> = None;
        // When the lease is free; unknown until it was looked for.
        let mut free: Option<Instant> = None;
        loop {
            let deadline = free;
            let expired = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                change = changes.next() => match change {
                    Some(Ok(Event::Apply(lease) | Event::InitApply(lease))) => {
                        let news = seen.as_ref().is_none_or(|seen| seen.spec != lease.spec);
                        if news || free.is_none() {
                            let held = holder(&lease).is_some_and(|holder| holder != self.election.identity);
                            free = Some(Instant::now() + if held { self.election.duration } else { Duration::ZERO });
                        }
                        seen = Some(lease);
                    }
                    Some(Ok(Event::InitDone)) if seen.is_none() => free = Some(Instant::now()),
                    Some(Ok(Event::Delete(_))) => (seen, free) = (None, Some(Instant::now())),
                    Some(Ok(Event::Init | Event::InitDone)) => {}
                    Some(Err(error)) => tracing::debug!(lease = self.name, %error, "watch interrupted; it is resumed"),
                    // The watch is resumed for ever.
                    None => return std::future::pending().await,
                },
                () = expired => match self.take(seen.as_ref()).await {
                    Ok(held) => return held,
                    Err(error) => {
                        // Somebody was faster: the watch tells. Or the API server is away.
                        tracing::debug!(lease = self.name, %error, "cannot take the lease");
                        free = Some(Instant::now() + self.election.renew);
                    }
                }
            }
        }
    }

    async fn take(&self, seen: Option<&Lease>) -> kube::Result<Lease> {
        let now = MicroTime(Timestamp::now());
        let before = seen.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let changed = before.holder_identity.as_deref() != Some(&self.election.identity);
        let spec = LeaseSpec {
            holder_identity: Some(self.election.identity.clone()),
            lease_duration_seconds: Some(whole_seconds(self.election.duration)),
            acquire_time: if changed { Some(now.clone()) } else { before.acquire_time },
            renew_time: Some(now),
            lease_transitions: Some(before.lease_transitions.map_or(0, |n| n + i32::from(changed))),
            ..Default::default()
        };
        match seen {
            Some(lease) => self.put(Lease { spec: Some(spec), ..lease.clone() }).await,
            None => {
                let metadata = ObjectMeta { name: Some(self.name.into()), ..Default::default() };
                self.leases.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await
            }
        }
    }

    /// Renews the lease until it is lost (false) or `shutdown`. `held` is the lease as last written.
    async fn hold(&self, held: &mut Lease, shutdown: &CancellationToken) -> bool {
        let mut renewed = Instant::now();
        // Before others may take it, with a margin for what they and we are late.
        let margin = self.election.duration.saturating_sub(self.election.renew);
        loop {
            if shutdown.run_until_cancelled(tokio::time::sleep(self.election.renew)).await.is_none() {
                return true;
            }
            let started = Instant::now();
            let deadline = renewed + margin;
            match tokio::time::timeout_at(deadline, self.renew(held)).await {
                Ok(Ok(lease)) => (*held, renewed) = (lease, started),
                // Changed by somebody else: either it is theirs now, or our own write was not answered.
                Ok(Err(error)) if conflict(&error) => match self.leases.get_opt(self.name).await {
                    Ok(Some(lease)) if holder(&lease) == Some(&self.election.identity) => *held = lease,
                    _ => return false,
                },
                Ok(Err(error)) if started < deadline => {
                    tracing::debug!(lease = self.name, %error, "cannot renew the lease yet");
                }
                _ => return false,
            }
        }
    }

    async fn renew(&self, held: &Lease) -> kube::Result<Lease> {
        let mut spec = held.spec.clone().unwrap_or_default();
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        self.put(Lease { spec: Some(spec), ..held.clone() }).await
    }

    /// Lets go: whoever waits need not wait for the end of the term.
    async fn release(&self, held: Lease) {
        match tokio::time::timeout(self.election.duration, self.given_back(held)).await {
            Ok(Ok(())) => tracing::info!(lease = self.name, "let go of the lease"),
            Ok(Err(error)) => tracing::debug!(lease = self.name, %error, "cannot let go of the lease; it runs out"),
            Err(_) => tracing::debug!(lease = self.name, "no answer on letting go of the lease; it runs out"),
        }
    }

    async fn given_back(&self, held: Lease) -> kube::Result<()> {
        let free = |lease: Lease| {
            let mut spec = lease.spec.unwrap_or_default();
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
            Lease { spec: Some(spec), ..lease }
        };
        let error = match self.put(free(held)).await {
            Err(error) if conflict(&error) => error,
            put => return put.map(drop),
        };
        // A renewal was under way when the work ended, and nobody waited for its answer.
        match self.leases.get_opt(self.name).await? {
            Some(lease) if holder(&lease) == Some(&self.election.identity) => self.put(free(lease)).await.map(drop),
            _ => Err(error),
        }
    }

    async fn put(&self, lease: Lease) -> kube::Result<Lease> {
        self.leases.replace(self.name, &PostParams::default(), &lease).await
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

fn conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

fn whole_seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis().div_ceil(1000)).unwrap_or(i32::MAX)
}
