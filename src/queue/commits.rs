//! How long commits take, sync included: what the disk is like, for whoever watches it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets, in seconds. A good SSD syncs in a fraction of a millisecond, a disk that turns in ten, and one that
/// is about to fail takes seconds.
const BOUNDS: [f64; 14] = [
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];

/// Commits by how long they took.
#[derive(Debug, Default)]
pub(super) struct Commits {
    /// One more than there are bounds.
    counts: [AtomicU64; BOUNDS.len() + 1],
    sum_micros: AtomicU64,
}

/// How often commits took how long.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CommitTimes {
    /// Each bucket's upper bound in seconds, the last one's being infinite, and how many fell into this bucket alone.
    pub buckets: Vec<(f64, u64)>,
    /// All of them added up, in seconds.
    pub sum_seconds: f64,
}

impl Commits {
    pub(super) fn add(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = took.as_micros() as u64;
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }

    pub(super) fn times(&self) -> CommitTimes {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        let counts = self.counts.iter().map(|c| c.load(Ordering::Relaxed));
        CommitTimes {
            buckets: bounds.zip(counts).collect(),
            sum_seconds: self.sum_micros.load(Ordering::Relaxed) as f64 / 1e6,
        }
    }
}
