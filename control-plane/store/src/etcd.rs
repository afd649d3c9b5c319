//! The etcd engine: the same contract against an etcd cluster, for several API servers.
//!
//! Works with etcd 3.4 and newer. Reads are linearizable; large ranges are read in pages of one
//! revision; a watch survives reconnects. A write whose answer was lost is reported as unavailable,
//! never repeated: the caller cannot know whether it happened.

mod convert;
mod watch;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use etcd_client::{Certificate, Client, ConnectOptions, GetOptions, Identity, TlsOptions};
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
    client: Client,
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
        let client = Client::connect(endpoints, Some(options)).await;
        let etcd = Arc::new(Etcd {
            client: client.map_err(|e| Error::Invalid(format!("etcd endpoints: {e}")))?,
            seen: Arc::default(),
        });
        if let Err(error) = etcd.newest().await {
            let Error::Unavailable(mut why) = error else {
                return Err(error);
            };
            if let Some(reason) = diagnose(endpoints, tls).await {
                why = reason;
            }
            return Err(Error::Unavailable(format!("etcd at {}: {why}", endpoints.join(", "))));
        }
        Ok(etcd)
    }

    /// Waits for one answer and maps its error; `requested` is the revision it was about.
    async fn call<T>(
        &self,
        requested: Revision,
        answer: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(limits::ETCD_TIMEOUT, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(e)) => Err(convert::error(e, requested, &self.seen)),
            Err(_) => Err(unanswered(limits::ETCD_TIMEOUT)),
        }
    }

    /// Asks again, which another member may answer, as long as no connection came about: nothing was sent then. The client
    /// asks a member that is away in its turn, once for every attempt to connect to it.
    async fn connected<T, F>(&self, ask: impl Fn() -> F) -> Result<T, etcd_client::Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        for _ in 1..limits::ETCD_ATTEMPTS {
            match ask().await {
                Err(error) if convert::unsent(&error) => {}
                answer => return answer,
            }
        }
        ask().await
    }

    /// Repeats a read for a while when etcd is away, as during an election: reading twice does no harm.
    async fn patiently<T, F: Future<Output = Result<T, Error>>>(&self, read: impl Fn() -> F) -> Result<T, Error> {
        let give_up = Instant::now() + limits::ETCD_READ_PATIENCE;
        let mut backoff = Backoff::default();
        loop {
            match read().await {
                Err(Error::Unavailable(_)) if Instant::now() < give_up => backoff.wait().await,
                answer => return answer,
            }
        }
    }

    async fn get(&self, range: &Range) -> Result<RangeResult, Error> {
        let result = self
            .patiently(|| async {
                let mut kv = self.kv();
                let options = convert::get_options(range);
                let mut answer = self.call(range.revision, kv.get(&range.key[..], Some(options))).await?;
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
    async fn newest(&self) -> Result<Revision, Error> {
        let ask = || {
            let mut kv = self.kv();
            async move { kv.get("\0", Some(GetOptions::new().with_count_only())).await }
        };
        let answer = self.call(0, self.connected(ask)).await?;
        convert::revision(answer.header())
    }

    fn kv(&self) -> etcd_client::KvClient {
        let client = self.client.kv_client();
        client.max_decoding_message_size(limits::ETCD_MESSAGE_BYTES)
    }
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
        let ask = || {
            let (mut kv, request) = (self.kv(), request.clone());
            async move { kv.txn(request).await }
        };
        let answer = self.call(0, self.connected(ask)).await?;
        let result = convert::txn_result(&answer)?;
        self.seen.revision(result.revision);
        Ok(result)
    }

    async fn watch(&self, watch: Watch) -> Result<WatchStream, Error> {
        let open = watch::open(self.client.clone(), Arc::clone(&self.seen), watch);
        match tokio::time::timeout(limits::ETCD_TIMEOUT, open).await {
            Ok(opened) => opened,
            Err(_) => Err(unanswered(limits::ETCD_TIMEOUT)),
        }
    }

    async fn revision(&self) -> Result<Revision, Error> {
        let revision = self.patiently(|| self.newest()).await?;
        self.seen.revision(revision);
        Ok(revision)
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let mut kv = self.kv();
        self.call(revision, kv.compact(revision, None)).await?;
        self.seen.compacted(revision);
        Ok(())
    }

    async fn lease_grant(&self, ttl: i64) -> Result<i64, Error> {
        let ask = || {
            let mut lease = self.client.lease_client();
            async move { lease.grant(ttl, None).await }
        };
        Ok(self.call(0, self.connected(ask)).await?.id())
    }

    async fn lease_keep_alive(&self, lease: i64) -> Result<(), Error> {
        let mut client = self.client.lease_client();
        let answer = self.call(0, client.keep_alive(lease)).await;
        answer.map(|_| ()).map_err(|e| convert::lease_error(e, lease))
    }

    async fn lease_revoke(&self, lease: i64) -> Result<(), Error> {
        let mut client = self.client.lease_client();
        let answer = self.call(0, client.revoke(lease)).await;
        answer.map(|_| ()).map_err(|e| convert::lease_error(e, lease))
    }

    async fn status(&self) -> Result<Status, Error> {
        let revision = self.revision().await?;
        let mut maintenance = self.client.maintenance_client();
        let status = self.call(0, maintenance.status()).await?;
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
