//! What a lane has sent and has to send again: ranges of ordinals, never the events themselves. Pure.
//!
//! However many lanes are in trouble, and for however long, their events wait on disk.

use std::collections::VecDeque;
use std::ops::Range;

use tokio::time::Instant;

/// Neighbouring events of a lane that go together, as often as it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Portion {
    /// The events.
    pub(super) ordinals: Range<u64>,
    /// When the first of them was accepted, in Unix ms.
    pub(super) accepted_at_ms: i64,
    /// How often they were sent.
    pub(super) attempts: u32,
    /// When they were first sent without getting an answer, in Unix ms: from then on they may have arrived.
    pub(super) unanswered_ms: Option<i64>,
    /// The other half of a batch that was refused: if this one is delivered, the event at fault is there.
    pub(super) sibling: Option<Range<u64>>,
    /// Not to be sent before this, though the lane may go on with others.
    pub(super) not_before: Option<Instant>,
    /// What the lane had delivered when these were last sent in vain, in calls.
    pub(super) failed_after: Option<u64>,
}

impl Portion {
    /// Events that were never sent.
    pub(super) fn new(ordinals: Range<u64>, accepted_at_ms: i64) -> Portion {
        Portion {
            ordinals,
            accepted_at_ms,
            attempts: 0,
            unanswered_ms: None,
            sibling: None,
            not_before: None,
            failed_after: None,
        }
    }

    /// Cuts it before an ordinal that lies within it.
    pub(super) fn split(self, at: u64) -> (Portion, Portion) {
        let part = |ordinals| Portion {
            ordinals,
            sibling: None,
            ..self
        };
        let Range { start, end } = self.ordinals;
        (part(start..at), part(at..end))
    }

    /// Cuts it into two of about as many events.
    ///
    /// # Errors
    /// The portion itself, where it is a single event.
    pub(super) fn halve(self) -> Result<(Portion, Portion), Portion> {
        let len = self.ordinals.end - self.ordinals.start;
        if len < 2 {
            return Err(self);
        }
        let middle = self.ordinals.start + len / 2;
        Ok(self.split(middle))
    }
}

/// What is to be sent again: what may be sent at any time first, and of that the oldest, so that a lane with a concurrency of 1
/// keeps its order.
#[derive(Clone, Debug, Default)]
pub(super) struct Again(VecDeque<Portion>);

impl Again {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// How often the one that was sent most often was.
    pub(super) fn attempts_max(&self) -> u32 {
        let attempts = self.0.iter().map(|p| p.attempts);
        attempts.max().unwrap_or_default()
    }

    /// When the next one may be sent; none where there is none.
    pub(super) fn ready_at(&self, now: Instant) -> Option<Instant> {
        let times = self.0.iter().map(|p| p.not_before.unwrap_or(now));
        times.min()
    }

    /// One that was accepted before `oldest_ms`, whatever it waits for.
    pub(super) fn pop_old(&mut self, oldest_ms: i64) -> Option<Portion> {
        let at = self.0.iter().position(|p| p.accepted_at_ms < oldest_ms)?;
        self.0.remove(at)
    }

    /// The next one of those that may be sent now.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Portion> {
        let (at, next) = self
            .0
            .iter()
            .enumerate()
            .min_by_key(|(_, p)| p.not_before)?;
        if next.not_before.is_some_and(|then| then > now) {
            return None;
        }
        self.0.remove(at)
    }

    /// Lets everything be sent at once.
    pub(super) fn wait_no_more(&mut self) {
        for portion in &mut self.0 {
            portion.not_before = None;
        }
    }

    pub(super) fn insert(&mut self, portion: Portion) {
        let start = portion.ordinals.start;
        let at = self.0.partition_point(|p| p.ordinals.start < start);
        self.0.insert(at, portion);
    }

    /// Puts the halves of a refused batch in its place. `blamed` says whether the one at fault is in one of them for sure: where it
    /// turns out not to be in the first, the second need not be sent to know.
    pub(super) fn insert_halves(&mut self, (mut first, second): (Portion, Portion), blamed: bool) {
        if blamed {
            first.sibling = Some(second.ordinals.clone());
        }
        self.insert(first);
        self.insert(second);
    }

    /// A half was delivered: the event at fault is in its sibling, which is halved without being sent.
    pub(super) fn blame(&mut self, sibling: &Range<u64>) {
        let Some(at) = self.0.iter().position(|p| p.ordinals == *sibling) else {
            return;
        };
        let Some(portion) = self.0.remove(at) else {
            return;
        };
        match portion.halve() {
            Ok(halves) => self.insert_halves(halves, true),
            Err(single) => self.insert(single),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Finds the poisoned events of `0..n` as a lane does, and returns them with the number of calls it took.
    fn search(n: u64, poisoned: &[u64]) -> (Vec<u64>, u64) {
        let mut again = Again::default();
        again.insert(Portion::new(0..n, 0));
        let (mut found, mut delivered, mut calls) = (Vec::new(), 0, 0);
        while let Some(portion) = again.pop(Instant::now()) {
            calls += 1;
            let len = portion.ordinals.end - portion.ordinals.start;
            if poisoned.iter().any(|p| portion.ordinals.contains(p)) {
                match portion.halve() {
                    Ok(halves) => again.insert_halves(halves, true),
                    Err(single) => found.push(single.ordinals.start),
                }
            } else {
                delivered += len;
                if let Some(sibling) = portion.sibling {
                    again.blame(&sibling);
                }
            }
        }
        assert_eq!(delivered + found.len() as u64, n, "each event once");
        (found, calls)
    }

    #[test]
    fn poisoned_events_are_found_in_no_more_than_two_calls_a_halving() {
        for n in [1u64, 2, 3, 5, 100, 2499, 2500] {
            let bound = |k: usize| (2.0 * k as f64 * (n as f64).log2() + 2.0) as u64;
            for poison in 0..n {
                let (found, calls) = search(n, &[poison]);
                assert_eq!(found, [poison]);
                assert!(calls <= bound(1), "{poison} of {n}: {calls} > {}", bound(1));
            }
            for step in 1..n / 5 {
                let poisoned: Vec<u64> = (0..5).map(|i| i * step).collect();
                let (found, calls) = search(n, &poisoned);
                assert_eq!(found, poisoned);
                assert!(calls <= bound(5), "{poisoned:?} of {n}: {calls}");
            }
        }
    }

    #[test]
    fn what_was_sent_first_is_sent_again_first() {
        let mut again = Again::default();
        for start in [30, 10, 20] {
            again.insert(Portion::new(start..start + 5, 0));
        }
        let now = Instant::now();
        let order = std::iter::from_fn(|| again.pop(now)).map(|p| p.ordinals.start);
        assert!(order.eq([10, 20, 30]));
    }

    #[test]
    fn what_is_to_wait_by_itself_lets_others_pass() {
        let (mut again, now) = (Again::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        for (start, not_before) in [(10, Some(at(9))), (20, Some(at(5))), (30, None)] {
            let portion = Portion::new(start..start + 1, start as i64);
            again.insert(Portion {
                not_before,
                ..portion
            });
        }
        let old = again.clone().pop_old(15).map(|p| p.ordinals.start);
        assert_eq!(old, Some(10), "it need not be sent");
        assert!(again.clone().pop_old(10).is_none());
        let mut pop = |now| again.pop(now).map(|p| p.ordinals.start);
        assert_eq!(pop(at(6)), Some(30));
        assert_eq!(pop(at(4)), None);
        assert_eq!(pop(at(10)), Some(20), "the one that has waited longest");
        assert_eq!(again.ready_at(now), Some(at(9)));
    }
}
