//! What a lane has read and not yet settled, and so where its cursor stands. Pure: no clock, no disk, no lock.
//!
//! Events a lane reads are numbered from 0 as they are read, over the life of the process; such a number is an
//! *ordinal*. Batches settle in any order; the cursor is the lowest event not settled, so a crash re-sends what was settled
//! beyond it and loses nothing. Settling twice counts once.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use super::Position;
use super::cursors::{Cursor, Passed};

/// A record that was read, from its first event not settled when it was read.
#[derive(Debug)]
struct ReadRecord<V> {
    position: Position,
    volume: V,
    accepted_at_ms: i64,
    /// The ordinal of its first event.
    first: u64,
    /// How many of its events had been settled before it was read.
    skipped: u32,
    /// Where each event ends, in bytes, from the first one on.
    ends: Box<[u32]>,
}

impl<V> ReadRecord<V> {
    fn end(&self) -> u64 {
        self.first + self.ends.len() as u64
    }

    /// The bytes of the events with these ordinals, all of them in this record.
    fn bytes(&self, ordinals: Range<u64>) -> u64 {
        let before = |ordinal: u64| match ordinal - self.first {
            0 => 0,
            n => u64::from(self.ends[n as usize - 1]),
        };
        before(ordinals.end) - before(ordinals.start)
    }
}

/// A part of what a call to [`Unsettled::settle`] settled: so many events of one volume.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Settled<V> {
    pub(super) volume: V,
    pub(super) events: u64,
    pub(super) bytes: u64,
}

/// Neighbouring events of one stored record.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stretch<V> {
    pub(super) volume: V,
    pub(super) position: Position,
    pub(super) ordinals: Range<u64>,
    /// The place of the first of them in the stored record.
    pub(super) index: u32,
}

/// The events of one lane between its cursor and how far it has read. `V` names a volume.
#[derive(Debug)]
pub(super) struct Unsettled<V> {
    records: VecDeque<ReadRecord<V>>,
    /// Every event with a lower ordinal is settled.
    head: u64,
    /// The ordinal that the next event to be read gets.
    next: u64,
    /// Settled runs of events beyond `head`: first ordinal → the one after the last.
    beyond: BTreeMap<u64, u64>,
    /// The cursor, as long as no record is waiting here.
    resting: Cursor,
    passed_in: Option<V>,
}

impl<V: Copy + PartialEq> Unsettled<V> {
    /// Nothing read yet; the lane stands at `cursor`.
    pub(super) fn new(cursor: Cursor) -> Unsettled<V> {
        Unsettled {
            records: VecDeque::new(),
            head: 0,
            next: 0,
            beyond: BTreeMap::new(),
            resting: cursor,
            passed_in: None,
        }
    }

    /// Says in which volume the cursor lies, so that what it has passed there goes on being counted.
    pub(super) fn stands_in(&mut self, volume: V) {
        self.passed_in = Some(volume);
    }

    /// Notes that a record was read, without its first `skipped` events, and returns the ordinal of the first that remains.
    /// `ends` tells where each remaining event ends.
    pub(super) fn read(
        &mut self,
        position: Position,
        volume: V,
        accepted_at_ms: i64,
        skipped: u32,
        ends: &[u32],
    ) -> u64 {
        let first = self.next;
        self.next += ends.len() as u64;
        self.records.push_back(ReadRecord {
            position,
            volume,
            accepted_at_ms,
            first,
            skipped,
            ends: ends.into(),
        });
        first
    }

    /// Settles the events with these ordinals and moves the cursor as far as it goes. Returns what was settled just now, volume
    /// by volume; events settled before or never read count nothing.
    pub(super) fn settle(&mut self, ordinals: Range<u64>) -> Vec<Settled<V>> {
        let mut settled: Vec<Settled<V>> = Vec::new();
        for fresh in self.mark(ordinals.start.max(self.head)..ordinals.end.min(self.next)) {
            let from = self.records.partition_point(|r| r.end() <= fresh.start);
            for record in self
                .records
                .range(from..)
                .take_while(|r| r.first < fresh.end)
            {
                let part = record.first.max(fresh.start)..record.end().min(fresh.end);
                let (events, bytes) = (part.end - part.start, record.bytes(part));
                match settled.last_mut() {
                    Some(last) if last.volume == record.volume => {
                        last.events += events;
                        last.bytes += bytes;
                    }
                    _ => settled.push(Settled {
                        volume: record.volume,
                        events,
                        bytes,
                    }),
                }
            }
        }
        self.advance();
        settled
    }

    /// Where the lane stands: every event before it is settled.
    pub(super) fn cursor(&self) -> Cursor {
        match self.records.front() {
            Some(record) => Cursor {
                position: record.position,
                events: record.skipped + (self.head - record.first) as u32,
                // Nothing of a volume just reached is passed, even where its first record could not be read.
                passed: if self.passed_in == Some(record.volume) {
                    self.resting.passed
                } else {
                    Passed::default()
                },
            },
            None => self.resting,
        }
    }

    /// When the oldest event read and not settled was accepted, in Unix ms.
    pub(super) fn oldest_ms(&self) -> Option<i64> {
        self.records.front().map(|record| record.accepted_at_ms)
    }

    /// Where those events with these ordinals lie that are not settled, in order.
    pub(super) fn find(&self, ordinals: Range<u64>) -> Vec<Stretch<V>> {
        let mut found = Vec::new();
        for open in self.open(ordinals.start.max(self.head)..ordinals.end.min(self.next)) {
            let from = self.records.partition_point(|r| r.end() <= open.start);
            let records = self.records.range(from..);
            for record in records.take_while(|r| r.first < open.end) {
                let ordinals = record.first.max(open.start)..record.end().min(open.end);
                found.push(Stretch {
                    volume: record.volume,
                    position: record.position,
                    index: record.skipped + (ordinals.start - record.first) as u32,
                    ordinals,
                });
            }
        }
        found
    }

    /// The parts of a range that are not settled.
    fn open(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut open = Vec::new();
        let mut at = range.start;
        for (&start, &end) in self.beyond.range(..range.end) {
            if start > at {
                open.push(at..start);
            }
            at = at.max(end);
        }
        if at < range.end {
            open.push(at..range.end);
        }
        open
    }

    /// Marks a range settled and returns the parts of it that were not.
    fn mark(&mut self, range: Range<u64>) -> Vec<Range<u64>> {
        if range.is_empty() {
            return Vec::new();
        }
        let (mut start, mut end) = (range.start, range.end);
        let mut fresh = Vec::new();
        let mut at = range.start;
        if let Some((&s, &e)) = self.beyond.range(..=range.start).next_back()
            && e >= range.start
        {
            start = s;
            at = at.max(e);
            end = end.max(e);
        }
        let touched: Vec<_> = self
            .beyond
            .range(start..=range.end)
            .map(|(s, e)| (*s, *e))
            .collect();
        for (s, e) in touched {
            if s > at {
                fresh.push(at..s);
            }
            at = at.max(e);
            end = end.max(e);
            self.beyond.remove(&s);
        }
        if at < range.end {
            fresh.push(at..range.end);
        }
        self.beyond.insert(start, end);
        fresh
    }

    fn advance(&mut self) {
        let Some((&start, &end)) = self.beyond.first_key_value() else {
            return;
        };
        if start > self.head {
            return;
        }
        self.beyond.remove(&start);
        while let Some(record) = self.records.front() {
            let reached = record.end().min(end);
            if reached == self.head && reached < record.end() {
                return;
            }
            if self.passed_in != Some(record.volume) {
                self.passed_in = Some(record.volume);
                self.resting.passed = Passed::default();
            }
            self.resting.passed.events += reached - self.head;
            self.resting.passed.bytes += record.bytes(self.head..reached);
            self.head = reached;
            if reached < record.end() {
                return;
            }
            self.resting.position = record.position + 1;
            self.resting.events = 0;
            self.records.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane() -> Unsettled<u64> {
        let mut lane = Unsettled::new(Cursor::default());
        assert_eq!(lane.read(10, 1, 100, 0, &[5, 10, 15]), 0);
        assert_eq!(lane.read(12, 1, 200, 0, &[7]), 3);
        assert_eq!(lane.read(20, 2, 300, 0, &[1, 2]), 4);
        lane
    }

    fn at(lane: &Unsettled<u64>) -> (Position, u32, u64, u64) {
        let c = lane.cursor();
        (c.position, c.events, c.passed.events, c.passed.bytes)
    }

    #[test]
    fn the_cursor_is_the_lowest_event_not_settled() {
        let mut lane = lane();
        assert_eq!(at(&lane), (10, 0, 0, 0));
        assert_eq!(
            lane.settle(2..4),
            [Settled {
                volume: 1,
                events: 2,
                bytes: 12
            }]
        );
        assert_eq!(at(&lane), (10, 0, 0, 0));
        assert_eq!(lane.oldest_ms(), Some(100));
        assert_eq!(
            lane.settle(0..1),
            [Settled {
                volume: 1,
                events: 1,
                bytes: 5
            }]
        );
        assert_eq!(at(&lane), (10, 1, 1, 5));
        assert_eq!(
            lane.settle(1..2),
            [Settled {
                volume: 1,
                events: 1,
                bytes: 5
            }]
        );
        assert_eq!(at(&lane), (20, 0, 0, 0));
        assert_eq!(
            lane.settle(4..6),
            [Settled {
                volume: 2,
                events: 2,
                bytes: 2
            }]
        );
        assert_eq!(at(&lane), (21, 0, 2, 2));
        assert_eq!(lane.oldest_ms(), None);
    }

    /// Such a cursor lies behind the first record of its volume, which could not be read. It once claimed what was passed in
    /// the volume before, and the next start took the rest of this one for settled.
    #[test]
    fn a_cursor_in_a_volume_just_reached_has_passed_nothing_of_it() {
        let mut lane = lane();
        lane.settle(0..4);
        assert_eq!(at(&lane), (20, 0, 0, 0));
    }

    #[test]
    fn events_are_found_again_until_they_are_settled() {
        let mut lane = lane();
        lane.settle(1..3);
        let stretch = |volume, position, ordinals, index| Stretch {
            volume,
            position,
            ordinals,
            index,
        };
        assert_eq!(
            lane.find(0..5),
            [
                stretch(1, 10, 0..1, 0),
                stretch(1, 12, 3..4, 0),
                stretch(2, 20, 4..5, 0)
            ]
        );
        lane.settle(0..5);
        assert_eq!(lane.find(0..99), [stretch(2, 20, 5..6, 1)]);
        lane.settle(5..6);
        assert!(lane.find(0..99).is_empty());
    }

    #[test]
    fn settling_twice_counts_once() {
        let mut lane = lane();
        lane.settle(1..3);
        assert_eq!(lane.settle(0..6).iter().map(|s| s.events).sum::<u64>(), 4);
        assert!(lane.settle(0..6).is_empty());
        assert!(lane.settle(0..99).is_empty());
    }

    #[test]
    fn a_lane_that_starts_within_a_record_goes_on_counting_there() {
        let cursor = Cursor {
            position: 10,
            events: 2,
            passed: Passed {
                events: 9,
                bytes: 90,
            },
        };
        let mut lane = Unsettled::new(cursor);
        lane.stands_in(1);
        lane.read(10, 1, 0, 2, &[5, 10]);
        assert_eq!(at(&lane), (10, 2, 9, 90));
        lane.settle(0..1);
        assert_eq!(at(&lane), (10, 3, 10, 95));
        lane.settle(1..2);
        assert_eq!(at(&lane), (11, 0, 11, 100));
    }

    proptest::proptest! {
        #[test]
        fn any_order_of_settling_agrees_with_a_plain_set(ranges in proptest::collection::vec((0u64..40, 0u64..12), 0..30)) {
            let mut lane = Unsettled::new(Cursor::default());
            for record in 0..10 {
                lane.read(record, record / 4, 0, 0, &[1, 2, 3, 4]);
            }
            let mut model = std::collections::BTreeSet::new();
            for (start, len) in ranges {
                let fresh = (start..(start + len).min(40)).filter(|o| model.insert(*o)).count() as u64;
                let settled = lane.settle(start..start + len);
                assert_eq!(settled.iter().map(|s| s.events).sum::<u64>(), fresh);
                assert_eq!(settled.iter().map(|s| s.bytes).sum::<u64>(), fresh);
                let head = (0..40).find(|o| !model.contains(o)).unwrap_or(40);
                let cursor = lane.cursor();
                assert_eq!(cursor.position * 4 + u64::from(cursor.events), head);
                let found = lane.find(0..u64::MAX);
                assert!(found.iter().all(|s| s.position * 4 + u64::from(s.index) == s.ordinals.start));
                let found = found.into_iter().flat_map(|s| s.ordinals);
                assert!(found.eq((0..40).filter(|o| !model.contains(o))));
            }
        }
    }
}
