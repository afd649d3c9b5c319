//! Every bound of this crate.

use std::time::Duration;

/// Bytes kept of each stream of a short command (probe, hook).
pub const EXEC_SYNC_OUTPUT: usize = 16 * 1024;
/// Layers of one image downloaded at the same time.
pub const PULL_PARALLEL: usize = 3;
/// Longest line written in one piece; longer ones are cut and marked `P`.
pub const LOG_LINE: usize = 16 * 1024;
/// Bytes in one log file before it is rotated.
pub const LOG_FILE: u64 = 10 * 1024 * 1024;
/// Log files kept per container, the active one included.
pub const LOG_FILES: usize = 5;
/// Events held for a receiver that is slow; more and it is told to resync.
pub const EVENTS: usize = 1024;
/// Longest a call to containerd may take, but for those that unpack or wait. Upstream's kubelet waits as long.
pub const CALL: Duration = Duration::from_secs(120);
/// Longest to wait for a private containerd to answer.
pub const DAEMON_START: Duration = Duration::from_secs(30);
/// A private containerd that has its socket but does not answer is asked again so often.
pub const DAEMON_ASK: Duration = Duration::from_millis(500);
/// Pause before a private containerd that has ended is started again; doubles up to the second value.
pub const RESTART_FIRST: Duration = Duration::from_millis(100);
/// See [`RESTART_FIRST`].
pub const RESTART_MAX: Duration = Duration::from_secs(30);
/// A life of this length makes the next pause the shortest again.
pub const RESTART_RESET: Duration = Duration::from_secs(60);
/// Longest a private containerd may take to end by itself.
pub const DAEMON_STOP: Duration = Duration::from_secs(10);
/// Largest message accepted from containerd.
pub const MESSAGE: usize = 64 * 1024 * 1024;
/// Largest manifest, index or configuration of an image.
pub const IMAGE_JSON: u64 = 4 * 1024 * 1024;
/// Bytes sent to the content store in one message.
pub const CONTENT_CHUNK: usize = 1024 * 1024;
/// Image configurations kept in memory.
pub const IMAGE_CACHE: usize = 256;
/// Bytes of documents in one image archive.
pub const ARCHIVE_JSON: u64 = 64 * 1024 * 1024;
/// Life of the lease that protects a download, should we die before its end.
pub const LEASE: Duration = Duration::from_secs(24 * 3600);
/// Bytes read of an image's `/etc/passwd` and `/etc/group`.
pub const USER_FILE: u64 = 1024 * 1024;
/// Longest pause between attempts to reach a containerd that has gone.
pub const RECONNECT: Duration = Duration::from_secs(2);
/// How long a program that does not catch its stop signal is looked at, whether it comes to catch it.
pub const DEAF: Duration = Duration::from_secs(5);
/// First pause between the looks; doubles up to the second value.
pub const DEAF_FIRST: Duration = Duration::from_millis(5);
/// See [`DEAF_FIRST`].
pub const DEAF_PAUSE: Duration = Duration::from_millis(100);
/// First pause before a logger that could not be started is started again; doubles up to [`RECONNECT`].
pub const LOGGER_FIRST: Duration = Duration::from_millis(100);
/// First pause before the end of a container that could not be written down is written again; doubles up to
/// [`RECONNECT`].
pub const SETTLE_FIRST: Duration = Duration::from_millis(50);
/// How long an ended container's end waits to be announced for its task, and so its log, to be done with.
pub const TASK_DELETED: Duration = Duration::from_secs(10);
/// How long a shim may take to let an ended task go before the shim is ended: longer than the 12 s that it gives a logger.
pub const TASK_STUCK: Duration = Duration::from_secs(20);
/// How long after its first process's end a container's end may be untold by its shim.
pub const END_UNTOLD: Duration = Duration::from_secs(10);
/// How long after its container was removed a shim may stay: longer than the 5 s that it gives its last events.
pub const SHIM_END: Duration = Duration::from_secs(10);
/// Bytes held for an attached client that is slow; more and it is cut off.
pub const ATTACH_QUEUE: usize = 1024 * 1024;
/// Clients attached to one container.
pub const ATTACHED: usize = 16;
/// How long the output of an ended command is still waited for when something it left behind holds it open.
pub const EXEC_DRAIN: Duration = Duration::from_secs(2);
/// Bytes on their way to one attached client.
pub const ATTACH_CHUNK: usize = 64 * 1024;
/// Bytes the logger reads at once.
pub const LOG_READ: usize = 64 * 1024;
/// How long the logger of an ended container waits for an attached client to take the rest.
pub const ATTACH_END: Duration = Duration::from_secs(2);
/// How long the echo of our own event may take before it is sent again.
pub const SUBSCRIBED: Duration = Duration::from_millis(20);
/// Times that a broken download is taken up again.
pub const PULL_ATTEMPTS: u32 = 5;
/// Longest to wait for a registry to accept a connection.
pub const REGISTRY_CONNECT: Duration = Duration::from_secs(30);
/// Longest that a registry may say nothing.
pub const REGISTRY_SILENCE: Duration = Duration::from_secs(60);
/// Bytes of a log read or sent at once.
pub const LOG_CHUNK: usize = 32 * 1024;
