//! How many requests a space may have in a second. Pure: time is an argument.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// What Segment grants a space. A token is one space's, so all its requests count together.
const REQUESTS_MAX: usize = 100;
/// In any span of this length.
const SPAN: Duration = Duration::from_secs(1);

/// When the last requests were made.
#[derive(Debug, Default)]
pub(super) struct Pace {
    taken: VecDeque<Instant>,
}

impl Pace {
    /// Whether one more may be made now; counts it if so.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        if self.taken.len() == REQUESTS_MAX {
            let oldest = self.taken.front();
            if oldest.is_some_and(|then| now.duration_since(*then) < SPAN) {
                return false;
            }
            self.taken.pop_front();
        }
        self.taken.push_back(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_second_has_more_than_a_hundred_requests() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let mut made = Vec::new();
        for ms in 0..3_000 {
            let now = start + Duration::from_millis(ms);
            if pace.take(now) {
                made.push(ms);
            }
        }
        assert_eq!(made.len(), 300);
        for from in 0..2_000 {
            let second = made.iter().filter(|ms| (from..from + 1_000).contains(*ms));
            assert!(second.count() <= 100, "from {from} ms on");
        }
    }
}
