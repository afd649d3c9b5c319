//! Every bound of this crate in one place.

use std::time::Duration;

/// Seconds a resolver may keep an answer about the cluster (upstream's CoreDNS default).
pub(crate) const TTL: u32 = 5;
/// Largest UDP answer whatever the client offers, in bytes: fits any path unfragmented.
pub(crate) const UDP_ANSWER: usize = 1232;
/// Largest UDP answer to a client without EDNS, in bytes (RFC 1035, 4.2.1).
pub(crate) const UDP_ANSWER_PLAIN: usize = 512;
/// Largest request read from a UDP socket, in bytes.
pub(crate) const UDP_REQUEST: usize = 4096;
/// Tasks that read one UDP socket.
pub(crate) const UDP_READERS: usize = 2;
/// TCP connections open at once, and how long one may stay idle.
pub(crate) const TCP_CONNECTIONS: usize = 256;
pub(crate) const TCP_IDLE: Duration = Duration::from_secs(10);
/// Questions to upstream servers in flight at once; more are refused.
pub(crate) const FORWARDS: usize = 512;
/// How long one upstream server may take, how often the list is tried, and how long altogether.
pub(crate) const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
pub(crate) const UPSTREAM_ROUNDS: usize = 2;
pub(crate) const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);
/// Upstream servers used.
pub(crate) const UPSTREAMS: usize = 8;
/// Upstream answers kept, and for how many seconds at most (found, not found).
pub(crate) const CACHE_ENTRIES: usize = 4096;
pub(crate) const CACHE_TTL: u32 = 30;
pub(crate) const CACHE_TTL_NEGATIVE: u32 = 30;
/// Addresses added to an SRV answer for the names it points to.
pub(crate) const ADDITIONALS: usize = 64;
/// Links of a CNAME chain followed.
pub(crate) const CNAME_LINKS: usize = 8;
/// TCP connections waiting to be accepted.
pub(crate) const TCP_BACKLOG: i32 = 128;
/// How long questions wait at the start until everything is known; after that, what is not known yet is answered with SERVFAIL.
pub(crate) const LOADING: Duration = Duration::from_secs(3);
/// Pause after a failed accept.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
