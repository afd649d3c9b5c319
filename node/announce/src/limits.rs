//! Every bound of this crate.

use std::time::Duration;

/// Time between two looks at a node that stands before this one.
pub(crate) const PROBE: Duration = Duration::from_millis(500);

/// A node that left so many looks in a row without an answer is dead: after two seconds at most.
pub(crate) const MISSES: u32 = 3;

/// A node whose kernel answers but that left so many questions for an address of its own in a row without an answer has no
/// daemon: five seconds, longer than one needs to start anew.
pub(crate) const SILENCES: u32 = 10;

/// When an address that was taken over is made known, counted from the takeover: receivers may miss any one of these.
pub(crate) const BURST: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// Who stands in for a dead node says so again this often: if that node lives after all, it hears it and objects.
pub(crate) const REMIND: Duration = Duration::from_secs(5);

/// An address that somebody else claims is defended at most this often (RFC 5227, section 2.4, allows one in ten seconds
/// against hosts; here the others are nodes that heed it).
pub(crate) const DEFEND: Duration = Duration::from_secs(1);

/// Frames heard and not yet looked at; more are dropped, as the network may.
pub(crate) const FRAMES: usize = 1_024;

/// The longest frame that is looked at: neighbour discovery with its options.
pub(crate) const FRAME: usize = 256;

/// First delay before the API is told again who announces an address, when it could not be; it doubles ...
pub(crate) const TELL_MIN: Duration = Duration::from_millis(500);

/// ... up to this.
pub(crate) const TELL_MAX: Duration = Duration::from_secs(30);
