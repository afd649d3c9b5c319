//! Every bound of the API server, in one place.

use std::time::Duration;

/// The largest request body (upstream's `MaxRequestBodyBytes`).
pub const BODY_BYTES: usize = 3 * 1024 * 1024;
/// How much of a body that is no object its refusal shows, in bytes; upstream's.
pub(crate) const BODY_SUMMARY: usize = 30;
/// The most a set of headers may take.
pub const HEADER_BYTES: usize = 64 * 1024;
/// How long a client may take to send its headers.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// The most that is read of a body that nobody wants, to keep its connection (Go's 256 KiB), and for
/// how long.
pub const DRAIN_BYTES: usize = 256 * 1024;
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a TLS handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Open connections; more wait in the listener's backlog.
pub const CONNECTIONS: usize = 4096;
/// HTTP/2 streams of one connection (upstream's 100 plus room for many watches).
pub const STREAMS: u32 = 1000;
/// How often a quiet HTTP/2 connection is pinged, and how long its answer may take.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Requests that only read, running at once (upstream's `--max-requests-inflight`).
pub const READING: usize = 400;
/// Requests that write, running at once (upstream's `--max-mutating-requests-inflight`).
pub const WRITING: usize = 200;
/// Requests that may wait for a place, and how long; then they are turned away.
pub const WAITING: usize = 4096;
pub const WAITING_TIMEOUT: Duration = Duration::from_secs(15);
/// Watches and streams open at once.
pub const LONG_RUNNING: usize = 16_384;
/// What a client that was turned away is told to wait, in seconds.
pub const RETRY_AFTER_SECONDS: u32 = 1;
/// A request that is not a watch or a stream ends after this.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long open requests may run on after the shutdown began.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// How long a read waits for a revision that the cache has not seen.
pub const FRESH_TIMEOUT: Duration = Duration::from_secs(3);
/// The pause before an object of the cluster's own is made again when that failed.
pub const OWN_RETRY: Duration = Duration::from_secs(1);
/// How long a server that says nothing more stays an endpoint of the `kubernetes` Service, in seconds, and how often it
/// says that it is there (upstream's).
pub const SERVER_TTL_SECONDS: i64 = 15;
pub const SERVER_RENEWAL: Duration = Duration::from_secs(10);
/// How long a server that ends waits for the store to take it out of these endpoints.
pub const SERVER_LEAVES: Duration = Duration::from_secs(2);
/// Attempts of a write that lost its race, where the server may repeat it.
pub const WRITE_ATTEMPTS: usize = 8;
/// Deletions of one collection that run side by side, so that they share the store's commits.
pub const COLLECTION_DELETES: usize = 32;
/// Locks that writers of one object share; two objects rarely have the same one.
pub const WRITE_LOCKS: usize = 1024;
/// Attempts to find a free name for `generateName` (upstream's `maxNameGenerationCreateAttempts`).
pub const GENERATE_NAME_ATTEMPTS: usize = 8;
/// The longest base of a generated name, so that base and suffix stay within 63 characters.
pub const GENERATE_NAME_BASE: usize = 58;
/// A watch without a timeout of its own ends after this and up to as much again.
pub const WATCH_MIN: Duration = Duration::from_secs(30 * 60);
/// How often a quiet watch gets a bookmark, if it asked for them.
pub const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// How long before its end a watch gets a last bookmark.
pub const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);
/// A LIST is sent in pieces of about this size.
pub const LIST_CHUNK: usize = 64 * 1024;
/// Keys read from the engine at once for a page of an older revision.
pub const PAGE_READ: i64 = 500;
/// History that paging and watches can go back to, before it is compacted.
pub const HISTORY: Duration = Duration::from_secs(5 * 60);
/// How long an event is kept (upstream's `--event-ttl`), in seconds.
pub const EVENT_TTL_SECONDS: i64 = 3600;
/// Events that were written within this time share one lease.
pub const EVENT_LEASE_SHARED: Duration = Duration::from_secs(5 * 60);
/// Label sets of one metric; further ones are counted together.
pub const METRIC_SERIES: usize = 2048;
/// How soon a CustomResourceDefinition that waits for its objects to go is looked at again.
pub const CRD_RETRY: Duration = Duration::from_secs(2);
/// Attempts of a write whose address or port another request took.
pub const ALLOCATION_ATTEMPTS: usize = 32;
/// Notes that node ports share: a transaction renews no more than these, whatever a Service has.
pub const PORT_NOTES: u16 = 64;
/// Node ports handed out and accepted.
pub const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

// Certificates and tokens.

/// The cluster authority's life.
pub const AUTHORITY_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A leaf certificate's life; it is renewed when a third of it is left.
pub const LEAF_TTL: Duration = Duration::from_secs(365 * 24 * 3600);
/// How far in the past certificates start, for clocks that run behind.
pub const CLOCK_SKEW: Duration = Duration::from_secs(300);
/// The longest pause between two looks at the certificates' ends.
pub const RENEWAL_CHECK: Duration = Duration::from_secs(24 * 3600);
/// The pause after a renewal that failed.
pub const RENEWAL_RETRY: Duration = Duration::from_secs(60);
/// The longest bearer token that is looked at.
pub const TOKEN_BYTES: usize = 16 * 1024;
/// Tolerance for clocks in token times (upstream's).
pub const TOKEN_LEEWAY_SECONDS: i64 = 60;
/// How long after its deletion time an object still vouches for a token (upstream's).
pub const DELETED_LEEWAY_SECONDS: i64 = 60;
/// Remembered token signatures.
pub const VERIFIED_TOKENS: usize = 8192;
/// Bootstrap objects written side by side.
pub const BOOTSTRAP_WRITES: usize = 64;
/// TokenRequest lifetimes: by default, the least, the most (upstream's).
pub const TOKEN_DEFAULT_SECONDS: i64 = 3600;
pub const TOKEN_LEAST_SECONDS: i64 = 600;
pub const TOKEN_MOST_SECONDS: i64 = 1 << 32;
/// What the projected volume of every pod asks for, and what it really gets (upstream's).
pub const TOKEN_PROJECTED_SECONDS: i64 = 3607;
pub const TOKEN_EXTENDED_SECONDS: i64 = 365 * 24 * 3600;

// Streams to nodes and pods.

/// Proxied streams open at once.
pub const PROXIED_STREAMS: usize = 4096;
/// How long dialling a node or a backend may take.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes in flight per direction of a proxied stream.
pub const COPY_BUFFER: usize = 32 * 1024;
/// A tag of a proxied page may have so many bytes; a longer one is passed on as it is.
pub const PROXY_TAG: usize = 64 * 1024;
/// The most that is read of a backend's error message.
pub const BACKEND_ERROR_BYTES: usize = 50_000;

// Admission.

/// How long a pod's creation waits for the default ServiceAccount of a new namespace.
pub const DEFAULT_ACCOUNT_WAIT: Duration = Duration::from_secs(2);
/// How long an admitted object counts against quotas before the cache has it, and how many do.
pub const QUOTA_RESERVATION: Duration = Duration::from_secs(10);
pub const QUOTA_RESERVATIONS: usize = 10_000;
/// How long a webhook may take by default and at most (upstream's), in seconds.
pub const WEBHOOK_TIMEOUT_SECONDS: u64 = 10;
pub const WEBHOOK_MOST_SECONDS: u64 = 30;
/// How long an extension server may take to say what it serves, and how long until one that could not is asked again, at first
/// and at most.
pub const EXTENSION_CHECK: Duration = Duration::from_secs(5);
pub const EXTENSION_RETRY: Duration = Duration::from_millis(500);
pub const EXTENSION_MOST_RETRY: Duration = Duration::from_secs(30);
/// Objects sent to a conversion webhook at once, by their size.
pub const CONVERSION_BYTES: usize = 1 << 20;
/// Warnings taken from one webhook, and their length.
pub const WEBHOOK_WARNINGS: usize = 16;
pub const WEBHOOK_WARNING_CHARS: usize = 256;
