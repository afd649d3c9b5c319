//! Departure times, without a clock.

use crate::pace::{HORIZON, Turn, takes, turn};

const SECOND: u64 = 1_000_000_000;

#[test]
fn a_packet_waits_for_its_turn() {
    for (now, next, expected) in [
        // Never sent before.
        (5 * SECOND, 0, Turn::Idle),
        (5 * SECOND, 5 * SECOND, Turn::Idle),
        (5 * SECOND, 5 * SECOND + 1, Turn::Waits),
        (5 * SECOND, 5 * SECOND + HORIZON, Turn::Waits),
        (5 * SECOND, 5 * SECOND + HORIZON + 1, Turn::Late),
        (5 * SECOND, 500 * SECOND, Turn::Late),
        // A clock that begins anew.
        (u64::MAX, 0, Turn::Waits),
        (u64::MAX - 9, HORIZON, Turn::Late),
        (u64::MAX - 9, HORIZON - 10, Turn::Waits),
        (3, u64::MAX, Turn::Idle),
        (0, u64::MAX, Turn::Idle),
        (0, 0, Turn::Idle),
    ] {
        assert_eq!(turn(now, next), expected, "{now} {next}");
    }
}

#[test]
fn bytes_take_their_time() {
    for (bytes, rate, expected) in [
        (0, 125, 0),
        (1_250, 1_250_000, 1_000_000),
        (64 << 10, 125, 524_288 * 1_000_000),
        (u32::MAX, 1, u64::from(u32::MAX) * SECOND),
        (1_500, 125_000_000_000_000, 0),
        (1_500, u64::MAX, 0),
        // Nobody's.
        (1_500, 0, 0),
    ] {
        assert_eq!(takes(bytes, rate), expected, "{bytes} {rate}");
    }
}

/// What a pod sends in any stretch of time is at most what its rate lets through, and one packet more.
#[test]
fn a_pod_that_sends_all_the_time_keeps_its_rate() {
    for (rate, bytes, each) in [(1_250_000, 1_500, 1_000), (125_000_000, 64 << 10, 50_000), (1_000, 100, 7_000_000)] {
        // The clock begins anew on the way.
        let begin = u64::MAX - SECOND;
        let (mut now, mut next, mut left) = (begin, begin, 0_u64);
        let mut last = now;
        while now.wrapping_sub(begin) < 4 * SECOND {
            match turn(now, next) {
                Turn::Late => {}
                other => {
                    let at = if other == Turn::Idle { now } else { next };
                    assert!(at.wrapping_sub(last) as i64 >= 0, "in order");
                    (last, next) = (at, at.wrapping_add(takes(bytes, rate)));
                    left += u64::from(bytes);
                }
            }
            now = now.wrapping_add(each);
        }
        let time = last.wrapping_sub(begin);
        let most = u128::from(rate) * u128::from(time) / u128::from(SECOND) + 2 * u128::from(bytes);
        assert!(u128::from(left) <= most, "{left} of {most} at {rate}");
        assert!(u128::from(left) * 10 >= most * 9, "{left} of {most} at {rate}");
    }
}
