//! When the packets of a pod with an egress limit leave: each as much later than the one before as that one takes at the pod's
//! rate. What would have to wait for too long does not wait at all. Arithmetic alone: no clock, no maps.

/// Longest that a packet may wait, in nanoseconds.
pub const HORIZON: u64 = 2_000_000_000;

const NANOSECONDS: u64 = 1_000_000_000;

/// What becomes of a packet of a pod whose next one may leave at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The pod has sent nothing for a while: at once, and what it has not used is gone.
    Idle,
    /// At that time.
    Waits,
    /// Not at all.
    Late,
}

/// Clocks are compared by their distance, so that they may begin anew at zero.
#[inline(always)]
pub const fn turn(now: u64, next: u64) -> Turn {
    let wait = next.wrapping_sub(now);
    if wait as i64 <= 0 {
        Turn::Idle
    } else if wait > HORIZON {
        Turn::Late
    } else {
        Turn::Waits
    }
}

/// Nanoseconds that so many bytes take at a rate in bytes per second, which is not 0.
#[inline(always)]
pub const fn takes(bytes: u32, rate: u64) -> u64 {
    // Less than 2^32 times less than 2^30.
    match (bytes as u64 * NANOSECONDS).checked_div(rate) {
        Some(time) => time,
        None => 0,
    }
}
