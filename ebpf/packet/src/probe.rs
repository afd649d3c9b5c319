//! TCP connections as the kernel's trace points tell of them: what a change of state means, and where a duration is counted.

use sluice_ebpf_common::probe::DURATION_BUCKETS;

/// The kernel's numbers of a connection's states (`include/net/tcp_states.h`).
pub mod state {
    /// Connected.
    pub const ESTABLISHED: i32 = 1;
    /// Asked for a connection.
    pub const SYN_SENT: i32 = 2;
    /// Was asked for one.
    pub const SYN_RECEIVED: i32 = 3;
    /// No connection.
    pub const CLOSED: i32 = 7;
    /// Waits to be asked.
    pub const LISTENING: i32 = 10;
}

/// What a change of state means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing that is counted.
    Nothing,
    /// It is there.
    Opened,
    /// Somebody else's is there.
    Accepted,
    /// It is not to be.
    Failed,
    /// A connection ended.
    Closed,
}

/// What it means that a socket goes from one state to another.
#[inline(always)]
pub const fn step(from: i32, to: i32) -> Step {
    match (from, to) {
        (state::SYN_SENT, state::ESTABLISHED) => Step::Opened,
        (state::SYN_RECEIVED, state::ESTABLISHED) => Step::Accepted,
        (state::SYN_SENT, state::CLOSED) => Step::Failed,
        (state::CLOSED | state::LISTENING | state::SYN_RECEIVED, _) => Step::Nothing,
        (_, state::CLOSED) => Step::Closed,
        _ => Step::Nothing,
    }
}

/// The bucket of a duration: the least `n` with 2ⁿ microseconds or more. With few branches: the verifier may follow each of them
/// with all that comes after it.
#[inline(always)]
pub const fn bucket(microseconds: u64) -> u32 {
    let place = u64::BITS - microseconds.saturating_sub(1).leading_zeros();
    // What took many hours shares the last bucket.
    let last = DURATION_BUCKETS as u32 - 1;
    if place > last { last } else { place }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_ends_with_its_power_of_two() {
        let table = [
            (0, 0),
            (1, 0),
            (2, 1),
            (3, 2),
            (4, 2),
            (5, 3),
            (16, 4),
            (17, 5),
            (1 << 20, 20),
            ((1 << 20) + 1, 21),
            (1 << 30, 30),
            ((1 << 30) + 1, 31),
            (u64::MAX, 31),
        ];
        for (microseconds, expected) in table {
            assert_eq!(bucket(microseconds), expected, "{microseconds}");
        }
        for microseconds in 2..10_000_u64 {
            let place = bucket(microseconds);
            assert!(microseconds <= 1 << place && microseconds > 1 << (place - 1), "{microseconds} {place}");
        }
    }

    #[test]
    fn a_connection_is_counted_once_at_each_end() {
        // As the kernel goes through them.
        let opener = [(7, 2), (2, 1), (1, 4), (4, 5), (5, 7)];
        let steps = [Step::Nothing, Step::Opened, Step::Nothing, Step::Nothing, Step::Closed];
        assert_eq!(opener.map(|(from, to)| step(from, to)), steps);
        let taker = [(3, 1), (1, 8), (8, 9), (9, 7)];
        assert_eq!(
            taker.map(|(from, to)| step(from, to)),
            [Step::Accepted, Step::Nothing, Step::Nothing, Step::Closed]
        );
        let listener = [(7, 10), (10, 7)];
        assert_eq!(listener.map(|(from, to)| step(from, to)), [Step::Nothing; 2]);
        assert_eq!([step(2, 7), step(3, 7), step(1, 7)], [Step::Failed, Step::Nothing, Step::Closed]);
    }
}
