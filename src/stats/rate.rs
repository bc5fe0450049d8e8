//! How many a second, over the last ten seconds. Time is an argument.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Whole seconds looked back on; the second under way comes on top.
const WINDOW_SECONDS: u64 = 10;

/// A count for each second of the window.
#[derive(Debug, Default)]
pub(super) struct Rate(Mutex<[Second; WINDOW_SECONDS as usize + 1]>);

#[derive(Clone, Copy, Debug, Default)]
struct Second {
    number: u64,
    count: u64,
}

impl Rate {
    /// Adds `n` at the time `now` since the process began.
    pub(super) fn add(&self, now: Duration, n: u64) {
        let mut seconds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = now.as_secs();
        let second = &mut seconds[(number % (WINDOW_SECONDS + 1)) as usize];
        if second.number != number {
            *second = Second { number, count: 0 };
        }
        second.count += n;
    }

    /// The mean of the window, or of the process's life where that is shorter.
    pub(super) fn per_second(&self, now: Duration) -> f64 {
        let seconds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = now.as_secs().saturating_sub(WINDOW_SECONDS);
        let count: u64 = seconds
            .iter()
            .filter(|s| s.number >= oldest)
            .map(|s| s.count)
            .sum();
        let window = now.as_secs_f64() - oldest as f64;
        count as f64 / window.max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_the_mean_of_the_last_ten_seconds() {
        let rate = Rate::default();
        let at = Duration::from_secs_f64;
        rate.add(at(0.2), 10);
        assert!(
            (rate.per_second(at(0.5)) - 10.0).abs() < 0.01,
            "a young process counts as one second old"
        );
        for second in 1..=30 {
            rate.add(at(f64::from(second)), 50);
        }
        assert!((rate.per_second(at(30.9)) - 50.0).abs() < 1.0);
        assert!(rate.per_second(at(42.0)) < 0.01);
    }
}
