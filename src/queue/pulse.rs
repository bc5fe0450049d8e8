//! Whether work gets on: how long what is under way has been going on. Judges nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Counts pieces of work, each of which is to end soon, and knows since when each is under way.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<Mutex<UnderWay>>);

/// By the order in which they began.
#[derive(Debug, Default)]
struct UnderWay {
    next: u64,
    since: BTreeMap<u64, Instant>,
}

/// A piece of work, which ends when this is dropped.
#[derive(Debug)]
pub struct Working {
    pulse: Pulse,
    number: u64,
}

impl Pulse {
    /// Begins a piece of work.
    #[must_use]
    pub fn work(&self) -> Working {
        let mut under_way = self.lock();
        let number = under_way.next;
        under_way.next += 1;
        under_way.since.insert(number, Instant::now());
        Working {
            pulse: self.clone(),
            number,
        }
    }

    /// How long the oldest piece of work has been under way; zero where there is none.
    #[must_use]
    pub fn busy_for(&self) -> Duration {
        let oldest = self.lock().since.first_key_value().map(|(_, since)| *since);
        oldest.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.pulse.lock().since.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_work_under_way_counts() {
        let pulse = Pulse::default();
        assert_eq!(pulse.busy_for(), Duration::ZERO);
        let first = pulse.work();
        while pulse.busy_for() < Duration::from_millis(2) {
            std::hint::spin_loop();
        }
        let second = pulse.work();
        assert!(pulse.busy_for() >= Duration::from_millis(2));
        let begun = Instant::now();
        drop(first);
        let (second_for, at_most) = (pulse.busy_for(), begun.elapsed() + Duration::from_millis(2));
        assert!(second_for < at_most + Duration::from_secs(60) && second_for > Duration::ZERO);
        drop(second);
        assert_eq!(pulse.busy_for(), Duration::ZERO);
    }
}
