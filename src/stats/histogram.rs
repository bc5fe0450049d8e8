//! How long something took, counted in buckets. Counting never blocks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often something took how long.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Durations {
    /// Each bucket's upper bound in seconds, the last one's being infinite, and how many fell into this bucket alone.
    pub buckets: Vec<(f64, u64)>,
    /// All of them added up, in seconds.
    pub sum_seconds: f64,
}

impl Durations {
    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }
}

/// Counts durations in buckets with these upper bounds, in seconds, and one above them all.
#[derive(Debug)]
pub(super) struct Histogram {
    bounds: &'static [f64],
    counts: Box<[AtomicU64]>,
    sum_micros: AtomicU64,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [f64]) -> Histogram {
        Histogram {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum_micros: AtomicU64::new(0),
        }
    }

    pub(super) fn add(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = took.as_micros() as u64;
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }

    pub(super) fn durations(&self) -> Durations {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let counts = self.counts.iter().map(|c| c.load(Ordering::Relaxed));
        Durations {
            buckets: bounds.zip(counts).collect(),
            sum_seconds: self.sum_micros.load(Ordering::Relaxed) as f64 / 1e6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_in_the_bucket_whose_bound_it_does_not_exceed() {
        let histogram = Histogram::new(&[0.1, 1.0]);
        for millis in [1, 100, 101, 1000, 1001, 60_000] {
            histogram.add(Duration::from_millis(millis));
        }
        let expected = Durations {
            buckets: vec![(0.1, 2), (1.0, 2), (f64::INFINITY, 2)],
            sum_seconds: 62.203,
        };
        assert_eq!(histogram.durations(), expected);
        assert_eq!(expected.count(), 6);
    }
}
