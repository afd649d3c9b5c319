//! Every bound of the controllers in one place.

use std::time::Duration;

/// Node ports (upstream's default, and the API server's).
pub(crate) const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;
/// First delay before a failed key is tried again.
pub(crate) const RETRY_MIN: Duration = Duration::from_millis(5);
/// Longest such delay (upstream lets it grow to 1000 s; a minute keeps a repaired cluster from waiting).
pub(crate) const RETRY_MAX: Duration = Duration::from_secs(60);
/// Keys one controller works on at once.
pub(crate) const WORKERS: usize = 8;
/// Objects read per page of a list.
pub(crate) const LIST_PAGE: u32 = 500;
/// Pods created or deleted in one go for one owner (upstream's BurstReplicas).
pub(crate) const BURST_REPLICAS: usize = 500;
/// First batch when pods are created slowly to see whether it works; it doubles.
pub(crate) const SLOW_START_BATCH: usize = 1;
/// Writes one controller has under way for one key.
pub(crate) const WRITES_IN_FLIGHT: usize = 32;
/// After this time creations and deletions not seen by the informer are forgotten.
pub(crate) const EXPECTATIONS: Duration = Duration::from_secs(300);
/// Events waiting to be written; more are dropped and said.
pub(crate) const EVENTS_QUEUED: usize = 1024;
/// Recently written events remembered to count repetitions.
pub(crate) const EVENTS_REMEMBERED: usize = 4096;
/// Endpoints in one slice (upstream's default).
pub(crate) const ENDPOINTS_PER_SLICE: usize = 100;
/// Addresses in one Endpoints object (upstream's truncation).
pub(crate) const ENDPOINTS_ADDRESSES: usize = 1000;
/// Objects the garbage collector keeps a deletion attempt for at once.
pub(crate) const GC_WORKERS: usize = 20;
/// A daemon's pod that finished again on a node is replaced after this time, which doubles ...
pub(crate) const DAEMON_BACKOFF_MIN: Duration = Duration::from_secs(1);
/// ... up to this (upstream's).
pub(crate) const DAEMON_BACKOFF_MAX: Duration = Duration::from_secs(900);
/// Objects that come within this time are counted for a quota together.
pub(crate) const QUOTA_SETTLE: Duration = Duration::from_millis(100);
/// Start times of a CronJob looked back over one by one; more are counted by their distance.
pub(crate) const CRON_STARTS: usize = 100;
/// Finished pods kept in the whole cluster.
pub(crate) const TERMINATED_PODS: usize = 12_500;
/// Certificates signed are valid for a year at most.
pub(crate) const CERTIFICATE_DAYS: i64 = 365;
/// Nodes of a zone tainted for eviction one after the other, so far apart (upstream's node-eviction-rate 0.1/s).
pub(crate) const EVICTION_INTERVAL: Duration = Duration::from_secs(10);
/// The same in a large zone of which most nodes are lost (upstream's secondary rate 0.01/s).
pub(crate) const EVICTION_INTERVAL_DISRUPTED: Duration = Duration::from_secs(100);
/// Zones up to this size stop evictions while most of their nodes are lost.
pub(crate) const LARGE_ZONE: usize = 50;
/// A pod whose node is gone is deleted after this time (upstream's quarantine).
pub(crate) const ORPHAN_QUARANTINE: Duration = Duration::from_secs(40);
/// Nodes that stand by for one address of a load balancer, the one that announces it among them.
pub(crate) const ANNOUNCING_NODES: usize = 4;
/// How long a ServiceCIDR that nobody needs stays after its deletion: until every API server has heard of it (upstream's).
pub(crate) const RANGE_GRACE: Duration = Duration::from_secs(10);
/// How long an IPAddress waits for the Service that it was made for (upstream's: a request's longest time).
pub(crate) const ADDRESS_GRACE: Duration = Duration::from_secs(60);
/// How long the token in a Secret is good: the longest that the API gives, as upstream's never end.
pub(crate) const SECRET_TOKEN_SECONDS: i64 = 1 << 32;
