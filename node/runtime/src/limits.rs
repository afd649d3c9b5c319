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
/// Longest a call to containerd may take.
pub const CALL: Duration = Duration::from_secs(120);
/// Longest to wait for a private containerd to answer.
pub const DAEMON_START: Duration = Duration::from_secs(30);
