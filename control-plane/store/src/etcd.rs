//! The etcd engine: the same contract against an etcd cluster, for several API servers.
//!
//! Works with etcd 3.4 and newer. Reads are linearizable; large ranges are read in pages of one
//! revision; a watch survives reconnects. A write whose answer was lost is reported as unavailable,
//! never repeated: the caller cannot know whether it happened.

mod convert;
mod members;
mod watch;

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use etcd_client::{Certificate, Client, ConnectOptions, GetOptions, Identity, TlsOptions};
use members::Members;
use tonic::transport::Endpoint;

use crate::{
    Engine, Error, Range, RangeResult, Revision, Status, Txn, TxnResult, Watch, WatchStream, backoff::Backoff, check,
    limits,
};

/// How to reach etcd over TLS: all PEM.
#[derive(Clone)]
pub struct Tls {
    /// The authority that signed etcd's server certificate.
    pub ca: Vec<u8>,
    /// Our certificate and key, when etcd asks for one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name to check etcd's certificate for, when not the endpoint's.
    pub server_name: Option<String>,
}

/// A client of one etcd cluster.
pub struct Etcd {
    members: Members,
    seen: Arc<Seen>,
}

/// What etcd's answers told in passing, to fill in the details its errors leave out.
#[derive(Default)]
struct Seen {
    revision: AtomicI64,
    compacted: AtomicI64,
}

impl Tls {
    fn options(self) -> TlsOptions {
        let mut options = TlsOptions::new().ca_certificate(Certificate::from_pem(self.ca));
        if let Some((certificate, key)) = self.identity {
            options = options.identity(Identity::from_pem(certificate, key));
        }
        match self.server_name {
            Some(name) => options.domain_name(name),
            None => options,
        }
    }
}

impl Etcd {
    /// Connects to the cluster at `endpoints` (`http://` or `https://` URLs).
    ///
    /// # Errors
    /// [`Error::Invalid`] for a malformed endpoint or certificate; [`Error::Unavailable`] when none
    /// of them answers within the time limit.
    pub async fn connect(endpoints: &[String], tls: Option<Tls>) -> Result<Arc<Etcd>, Error> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(limits::ETCD_CONNECT_TIMEOUT)
            .with_keep_alive(limits::ETCD_KEEP_ALIVE.0, limits::ETCD_KEEP_ALIVE.1)
            .with_keep_alive_while_idle(true)
            // A member cut off from its cluster then ends its watches instead of going silent.
            .with_require_leader(true);
        let tls = tls.map(Tls::options);
        if let Some(tls) = &tls {
            options = options.with_tls(tls.clone());
        }
        let members = Members::connect(endpoints, &options).await;
        let etcd = Arc::new(Etcd {
            members: members.map_err(|e| Error::Invalid(format!("etcd endpoints: {e}")))?,
            seen: Arc::default(),
        });
        let mut answer = etcd.newest(limits::ETCD_CONNECT_TIMEOUT).await;
        for _ in 1..etcd.members.count() {
            if let Err(Error::Unavailable(_)) = answer {
                answer = etcd.newest(limits::ETCD_CONNECT_TIMEOUT).await;
            }
        }
        match answer {
            Err(Error::Unavailable(unknown)) => {
                let why = diagnose(endpoints, tls).await.unwrap_or(unknown);
                return Err(Error::Unavailable(format!("etcd at {}: {why}", endpoints.join(", "))));
            }
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        Ok(etcd)
    }

    /// Asks the member whose turn it is and maps its error; `requested` is the revision it is about. The next member is asked
    /// when nothing was done, as no connection came about or the member had no leader. One that keeps others waiting is passed
    /// over by those who come later.
    async fn call<T, F>(&self, requested: Revision, limit: Duration, ask: impl Fn(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut others = self.members.count();
        loop {
            let (member, client) = self.members.current();
            let mut answer = pin!(tokio::time::timeout(limit, ask(client)));
            let answer = match tokio::time::timeout(limits::ETCD_SLOW, &mut answer).await {
                Ok(answer) => answer,
                Err(_) => {
                    self.members.pass(member);
                    answer.await
                }
            };
            let (undone, error) = match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => (convert::undone(&error), convert::error(error, requested, &self.seen)),
                Err(_) => (false, unanswered(limit)),
            };
            if matches!(error, Error::Unavailable(_)) {
                self.members.pass(member);
            }
            if !undone || others == 0 {
                return Err(error);
            }
            others -= 1;
        }
    }

    /// Repeats a read for a while when etcd is away, as during an election: reading twice does no harm. A member that says
    /// nothing is left for the next one sooner than for a write, and later each time, as the answer may only be large.
    async fn patiently<T, F: Future<Output = Result<T, Error>>>(
        &self,
        read: impl Fn(Duration) -> F,
    ) -> Result<T, Error> {
        let give_up = Instant::now() + limits::ETCD_READ_PATIENCE;
        let mut backoff = Backoff::default();
        let mut limit = limits::ETCD_FIRST_READ;
        loop {
            match read(limit).await {
                Err(Error::Unavailable(_)) if Instant::now() < give_up => backoff.wait().await,
                answer => return answer,
            }
            limit = (limit * 2).min(limits::ETCD_TIMEOUT);
        }
    }

    async fn get(&self, range: &Range) -> Result<RangeResult, Error> {
        let ask = |client: Client| {
            let options = convert::get_options(range);
            async move { kv(&client).get(&range.key[..], Some(options)).await }
        };
        let result = self
            .patiently(|limit| async move {
                let mut answer = self.call(range.revision, limit, ask).await?;
                convert::range_result(&mut answer)
            })
            .await?;
        self.seen.revision(result.revision);
        Ok(result)
    }

    /// Reads a range of any size: pages, all at the revision of the first, smaller ones where values
    /// are too large for one message.
    async fn get_paged(&self, mut range: Range) -> Result<RangeResult, Error> {
        let wanted = match range.limit {
            0 => i64::MAX,
            limit => limit,
        };
        let mut page = limits::RANGE_PAGE;
        let mut whole: Option<RangeResult> = None;
        loop {
            let have = whole.as_ref().map_or(0, |w| w.kvs.len() as i64);
            range.limit = page.min(wanted - have);
            let mut part = match self.get(&range).await {
                Err(Error::TooLarge(_)) if page > 1 => {
                    page = (page / 4).max(1);
                    continue;
                }
                other => other?,
            };
            range.revision = if range.revision > 0 { range.revision } else { part.revision };
            if let Some(last) = part.kvs.last() {
                let mut next = last.key.to_vec();
                next.push(0);
                range.key = next.into();
            }
            let more = part.more;
            let whole = match &mut whole {
                None => whole.insert(part),
                Some(whole) => {
                    whole.kvs.append(&mut part.kvs);
                    whole
                }
            };
            if !more || whole.kvs.len() as i64 >= wanted {
                whole.more = more;
                return Ok(whole.clone());
            }
        }
    }

    /// The newest revision: the header of a linearizable read of nothing.
    async fn newest(&self, limit: Duration) -> Result<Revision, Error> {
        let nothing = || Some(GetOptions::new().with_count_only());
        let answer = self.call(0, limit, |client| async move { kv(&client).get("\0", nothing()).await }).await?;
        convert::revision(answer.header())
    }
}

fn kv(client: &Client) -> etcd_client::KvClient {
    client.kv_client().max_decoding_message_size(limits::ETCD_MESSAGE_BYTES)
}

#[async_trait]
impl Engine for Etcd {
    async fn range(&self, range: Range) -> Result<RangeResult, Error> {
        check::range(&range)?;
        let small = range.limit > 0 && range.limit <= limits::RANGE_PAGE;
        if range.end.is_empty() || range.count_only || small {
            match self.get(&range).await {
                Err(Error::TooLarge(_)) if !range.end.is_empty() => {}
                other => return other,
            }
        }
        self.get_paged(range).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult, Error> {
        check::txn(&txn)?;
        let request = convert::txn(txn);
        let ask = |client: Client| {
            let request = request.clone();
            async move { kv(&client).txn(request).await }
        };
        let answer = self.call(0, limits::ETCD_TIMEOUT, ask).await?;
        let result = convert::txn_result(&answer)?;
        self.seen.revision(result.revision);
        Ok(result)
    }

    async fn watch(&self, watch: Watch) -> Result<WatchStream, Error> {
        self.patiently(|_| watch::open(self.members.clone(), Arc::clone(&self.seen), watch.clone())).await
    }

    async fn revision(&self) -> Result<Revision, Error> {
        let revision = self.patiently(|limit| self.newest(limit)).await?;
        self.seen.revision(revision);
        Ok(revision)
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let ask = |client: Client| async move { kv(&client).compact(revision, None).await };
        self.call(revision, limits::ETCD_TIMEOUT, ask).await?;
        self.seen.compacted(revision);
        Ok(())
    }

    async fn lease_grant(&self, ttl: i64) -> Result<i64, Error> {
        let ask = |client: Client| async move { client.lease_client().grant(ttl, None).await };
        Ok(self.call(0, limits::ETCD_TIMEOUT, ask).await?.id())
    }

    async fn lease_keep_alive(&self, lease: i64) -> Result<(), Error> {
        let ask = |client: Client| async move { client.lease_client().keep_alive(lease).await };
        let answer = self.call(0, limits::ETCD_TIMEOUT, ask).await;
        answer.map(|_| ()).map_err(|e| convert::lease_error(e, lease))
    }

    async fn lease_revoke(&self, lease: i64) -> Result<(), Error> {
        let ask = |client: Client| async move { client.lease_client().revoke(lease).await };
        let answer = self.call(0, limits::ETCD_TIMEOUT, ask).await;
        answer.map(|_| ()).map_err(|e| convert::lease_error(e, lease))
    }

    async fn status(&self) -> Result<Status, Error> {
        let revision = self.revision().await?;
        let ask = |client: Client| async move { client.maintenance_client().status().await };
        let status = self.call(0, limits::ETCD_TIMEOUT, ask).await?;
        Ok(Status {
            engine: "etcd",
            version: status.version().to_owned(),
            revision,
            compacted: self.seen.compacted.load(Ordering::Relaxed),
            size_bytes: status.db_size().unsigned_abs(),
        })
    }
}

impl Seen {
    fn revision(&self, revision: Revision) {
        self.revision.fetch_max(revision, Ordering::Relaxed);
    }

    fn compacted(&self, revision: Revision) {
        self.compacted.fetch_max(revision, Ordering::Relaxed);
    }
}

/// Why no connection comes about: the client's balanced channel tries for ever and keeps it to itself.
async fn diagnose(endpoints: &[String], tls: Option<TlsOptions>) -> Option<String> {
    let url = endpoints.first()?;
    let mut endpoint = Endpoint::from_shared(url.clone()).ok()?.connect_timeout(limits::ETCD_CONNECT_TIMEOUT);
    if let Some(tls) = tls {
        endpoint = endpoint.tls_config(tls).ok()?;
    }
    let error = endpoint.connect().await.err()?;
    let mut reasons = Vec::new();
    let mut next: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = next {
        let reason = error.to_string();
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
        next = error.source();
    }
    Some(reasons.join(": "))
}

fn unanswered(limit: Duration) -> Error {
    Error::Unavailable(format!("etcd has not answered within {limit:?}"))
}
