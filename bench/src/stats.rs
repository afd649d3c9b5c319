//! Figures about a set of measured values. Pure.

/// The value that at least `percent` (0 to 100) of the values do not exceed (nearest rank); `None` without values.
/// `sorted` ascends.
pub(crate) fn percentile(sorted: &[f64], percent: f64) -> Option<f64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

/// The values in ascending order.
pub(crate) fn sorted(values: &[f64]) -> Vec<f64> {
    let mut all = values.to_vec();
    all.sort_by(f64::total_cmp);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values() {
        let check = |values: &[f64], percent: f64, expected: Option<f64>| {
            assert_eq!(percentile(&sorted(values), percent), expected, "{values:?} {percent}");
        };
        check(&[], 50.0, None);
        check(&[7.0], 0.0, Some(7.0));
        check(&[7.0], 99.0, Some(7.0));
        check(&[3.0, 1.0, 2.0], 50.0, Some(2.0));
        check(&[4.0, 3.0, 2.0, 1.0], 50.0, Some(2.0));
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        check(&hundred, 99.0, Some(99.0));
        check(&hundred, 100.0, Some(100.0));
        let twenty: Vec<f64> = (1..=20).map(f64::from).collect();
        check(&twenty, 99.0, Some(20.0));
    }
}
