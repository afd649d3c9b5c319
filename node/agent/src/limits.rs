//! Every limit of the node daemon, in one place. Reaching one is counted or said where it is enforced.

use std::time::Duration;

/// Pods one node accepts (upstream's `maxPods`).
pub const MAX_PODS: usize = 110;
/// Messages waiting for one pod's worker.
pub const WORKER_QUEUE: usize = 64;
/// Events waiting to be written to the API server; further ones are dropped and counted.
pub const EVENT_QUEUE: usize = 1024;
/// Series remembered by the event recorder, to count repetitions instead of writing new objects.
pub const EVENT_SERIES: usize = 1024;
/// Longest event message (the API server refuses more than 1024 bytes).
pub const EVENT_MESSAGE: usize = 1024;
/// Image pulls under way at once on a node.
pub const PARALLEL_PULLS: usize = 4;
/// Container creations under way at once on a node.
pub const PARALLEL_STARTS: usize = 16;
/// First and longest delay of a crash loop, and the run time after which it is forgotten.
pub const CRASH_BACKOFF_FIRST: Duration = Duration::from_secs(10);
/// See [`CRASH_BACKOFF_FIRST`].
pub const CRASH_BACKOFF_MAX: Duration = Duration::from_secs(300);
/// See [`CRASH_BACKOFF_FIRST`].
pub const CRASH_BACKOFF_RESET: Duration = Duration::from_secs(600);
/// First and longest delay between attempts to pull an image.
pub const PULL_BACKOFF_FIRST: Duration = Duration::from_secs(10);
/// See [`PULL_BACKOFF_FIRST`].
pub const PULL_BACKOFF_MAX: Duration = Duration::from_secs(300);
/// Delay before a failed set-up of the pod (network, volumes) is tried again; doubles up to the second value.
pub const SETUP_RETRY_FIRST: Duration = Duration::from_secs(1);
/// See [`SETUP_RETRY_FIRST`].
pub const SETUP_RETRY_MAX: Duration = Duration::from_secs(60);
/// Grace given to a pod whose deletion names none.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(30);
/// Least time a container gets between its stop signal and SIGKILL (upstream's minimum).
pub const MIN_GRACE: Duration = Duration::from_secs(2);
/// Longest termination message kept, in bytes; and from the log, in bytes and lines.
pub const TERMINATION_MESSAGE: usize = 4096;
/// See [`TERMINATION_MESSAGE`].
pub const TERMINATION_LOG: usize = 2048;
/// See [`TERMINATION_MESSAGE`].
pub const TERMINATION_LOG_LINES: usize = 80;
/// Most of a probe's answer that is read (upstream: 10 KiB).
pub const PROBE_BODY: usize = 10 * 1024;
/// Redirects an HTTP probe follows.
pub const PROBE_REDIRECTS: usize = 10;
/// Longest host name of a pod.
pub const HOSTNAME: usize = 63;
/// Search domains and nameservers written to a pod's resolv.conf.
pub const DNS_SEARCHES: usize = 32;
/// See [`DNS_SEARCHES`].
pub const DNS_NAMESERVERS: usize = 3;
/// Images listed in the Node's status (upstream's `nodeStatusMaxImages`).
pub const NODE_IMAGES: usize = 50;
/// Life of the node's lease and how often it is renewed.
pub const LEASE_DURATION: Duration = Duration::from_secs(40);
/// See [`LEASE_DURATION`].
pub const LEASE_RENEW: Duration = Duration::from_secs(10);
/// How long a node that starts again is taken for ready, if it was, until its pod network is.
pub const NETWORK_MADE: Duration = LEASE_DURATION;
/// How far a node's clock may be from the server's: as much as certificates are dated back.
pub const CLOCK_SKEW: Duration = Duration::from_secs(300);
/// How long a node that knows several API servers waits for a connection to one, and for its answer, before it turns to
/// the next.
pub const SERVER_CONNECT: Duration = Duration::from_secs(3);
/// See [`SERVER_CONNECT`].
pub const SERVER_ANSWER: Duration = Duration::from_secs(10);
/// The Node's status is written at least this often.
pub const NODE_STATUS: Duration = Duration::from_secs(300);
/// Requests the node's HTTPS API serves at once.
pub const API_CONNECTIONS: usize = 256;
/// Answers of SubjectAccessReview and their life.
pub const AUTHZ_CACHE: usize = 256;
/// See [`AUTHZ_CACHE`].
pub const AUTHZ_TTL: Duration = Duration::from_secs(30);
/// Longest log line served as one piece.
pub const LOG_LINE: usize = 256 * 1024;
/// A log file's first bytes, by which its type is told (Go's file server reads as many).
pub const SNIFFED: u64 = 512;
/// A log file is sent in pieces of so many bytes.
pub const FILE_CHUNK: u64 = 64 * 1024;
/// Largest message taken from a streaming client.
pub const STREAM_MESSAGE: usize = 1024 * 1024;
/// Messages waiting in each direction of a streaming client.
pub const STREAM_QUEUE: usize = 8;
/// SPDY frames waiting for a client, and those kept until it has opened its streams.
pub const SPDY_QUEUE: usize = 32;
/// How long a client of exec or attach may take to open its streams (upstream's default).
pub const STREAMS_OPENED: Duration = Duration::from_secs(30);
/// Longest size of a terminal, in bytes of JSON.
pub const TERMINAL_SIZE: usize = 1024;
/// Streams one port-forward connection may hold.
pub const PORT_FORWARD_STREAMS: usize = 256;
/// Life asked for a pod's service-account token when the volume names none.
pub const TOKEN_SECONDS: i64 = 3600;
/// Wait before a failed write of a pod's status is tried again.
pub const STATUS_RETRY: Duration = Duration::from_secs(2);
/// How long `ErrImagePull` is shown before it turns into `ImagePullBackOff`.
pub const PULL_ERROR_SHOWN: Duration = Duration::from_secs(3);
/// Wait before a container whose configuration could not be made is tried again without a change of its objects.
pub const CONFIG_RETRY: Duration = Duration::from_secs(60);
/// Memory that is kept free: below it the node is under memory pressure and evicts.
pub const EVICTION_MEMORY: u64 = 100 * 1024 * 1024;
/// Parts of a hundred of the disk and of its inodes that are kept free, and of the process numbers.
pub const EVICTION_DISK: u64 = 10;
/// See [`EVICTION_DISK`].
pub const EVICTION_INODES: u64 = 5;
/// See [`EVICTION_DISK`].
pub const EVICTION_PIDS: u64 = 1;
/// Bytes and inodes of the disk that are enough for pods, however large it is.
pub const DISK_ENOUGH: u64 = 2 << 30;
/// See [`DISK_ENOUGH`].
pub const INODES_ENOUGH: u64 = 100_000;
/// Bytes of the disk that are enough for images.
pub const IMAGES_ENOUGH: u64 = 4 << 30;
/// How long a pressure condition is shown after the pressure has gone (upstream's `evictionPressureTransitionPeriod`).
pub const PRESSURE_SHOWN: Duration = Duration::from_secs(300);
/// Unused images are collected from so many parts of a hundred of the disk in use (upstream's defaults)…
pub const IMAGES_HIGH: u64 = 85;
/// …down to so many.
pub const IMAGES_LOW: u64 = 80;
/// An image younger than this is left alone.
pub const IMAGES_AGE: Duration = Duration::from_secs(120);
/// How often the disk's fill is looked at for images.
pub const IMAGES_PERIOD: Duration = Duration::from_secs(300);
/// Time a client of the node's API gets for its TLS handshake.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// Wait before a resize that failed is tried again.
pub const RESIZE_RETRY: Duration = Duration::from_secs(10);
/// Longest header block of a SPDY stream, unpacked.
pub const SPDY_HEADERS: usize = 64 * 1024;
/// Wait before the way of the node's own sockets to Services by packet is tried again.
pub const HOME_RETRY: Duration = Duration::from_secs(10);
