//! A histogram that is added to from anywhere: bounds that are fixed at compile time, and atomic counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::Series;

/// Durations by length.
#[derive(Debug)]
pub struct Histogram {
    /// Upper bounds in seconds, in ascending order.
    bounds: &'static [f64],
    /// One more than there are bounds.
    counts: Box<[AtomicU64]>,
    nanoseconds: AtomicU64,
}

impl Histogram {
    /// An empty one with these upper bounds, in seconds and in ascending order.
    #[must_use]
    pub fn new(bounds: &'static [f64]) -> Histogram {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram { bounds, counts, nanoseconds: AtomicU64::new(0) }
    }

    /// Counts a duration.
    pub fn observe(&self, took: Duration) {
        let place = self.bounds.partition_point(|bound| *bound < took.as_secs_f64());
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Writes it as the series with these labels.
    pub fn write(&self, series: &mut Series<'_>, labels: &[&str]) {
        let counts: Vec<u64> = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let sum = Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed)).as_secs_f64();
        series.histogram(labels, self.bounds, &counts, sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Metric, Text};

    const METRIC: Metric = Metric::histogram("took_seconds", &[], "How long it took.");

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::new(&[0.001, 0.01]);
        for milliseconds in [1, 2, 10, 11] {
            histogram.observe(Duration::from_millis(milliseconds));
        }
        let mut text = Text::default();
        histogram.write(&mut text.metric(&METRIC), &[]);
        let text = text.finish();
        for line in
            ["_bucket{le=\"0.001\"} 1", "_bucket{le=\"0.01\"} 3", "_bucket{le=\"+Inf\"} 4", "_sum 0.024", "_count 4"]
        {
            assert!(text.contains(&format!("took_seconds{line}\n")), "{line} in\n{text}");
        }
    }
}
