//! How long a lane waits after failures in a row: exponential, with jitter, capped, without end. The only user of the crate
//! `backoff`, so that it can be replaced in an hour (RUSTSEC-2025-0012: it is no longer maintained).

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;

/// Twice as long each time, as every Segment SDK of 2026 does.
const FACTOR: f64 = 2.0;
/// Up to a fifth less or more, so that lanes that failed together do not come back together.
const JITTER: f64 = 0.2;

/// The waits of one lane.
#[derive(Debug)]
pub(super) struct Backoff {
    waits: ExponentialBackoff,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits from about `base` up to `max`.
    pub(super) fn new(base: Duration, max: Duration) -> Backoff {
        let mut waits = ExponentialBackoff {
            initial_interval: base,
            multiplier: FACTOR,
            randomization_factor: JITTER,
            max_interval: max,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        waits.reset();
        Backoff {
            waits,
            max,
            failures: 0,
        }
    }

    /// How long to wait after that many failures in a row.
    pub(super) fn wait(base: Duration, max: Duration, failures: u32) -> Duration {
        let mut backoff = Backoff::new(base, max);
        // More doublings than any setting takes from its base to its cap.
        let waits = (0..failures.clamp(1, 64)).map(|_| backoff.fail());
        waits.last().unwrap_or(max)
    }

    /// Another failure: how long to wait now.
    pub(super) fn fail(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.waits.next_backoff().unwrap_or(self.max).min(self.max)
    }

    /// A success: the next failure is the first again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
        self.waits.reset();
    }

    /// Failures in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_the_base_to_the_cap_and_never_end() {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
        for round in 0..2 {
            for (n, expected) in [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
                .into_iter()
                .enumerate()
            {
                let wait = backoff.fail().as_secs_f64();
                assert!(
                    (expected * 0.79..=expected * 1.21).contains(&wait),
                    "round {round}: {n}: {wait}"
                );
                assert!(wait <= 60.0);
            }
            (0..1_000).for_each(|_| assert!(backoff.fail() >= Duration::from_secs(40)));
            backoff.reset();
        }
    }
}
