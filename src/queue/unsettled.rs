//! What a lane has read and not yet settled, and so where its cursor stands. Pure: no clock, no disk, no lock.
//!
//! Events a lane reads are numbered from 0 as they are read, over the life of the process; such a number is an
//! *ordinal*. Batches settle in any order; the cursor is the lowest event not settled, and what is settled beyond it are islands.
//! Those of an earlier process are kept until they are read again, and count as settled then. Settling twice counts once.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use super::Position;
use super::cursors::{Cursor, Island, Passed, Place, Stand};
use super::volume::VolumeNumber;

/// How many islands of a lane are saved: each takes about a hundred bytes of every save. A webhook's loop lets 1024 events wait by
/// themselves, so this is enough for it; what lies beyond would be sent again.
const ISLANDS_MAX: usize = 1280;

/// A record that was read, from its first event not settled when it was read.
#[derive(Debug)]
struct ReadRecord {
    position: Position,
    volume: VolumeNumber,
    accepted_at_ms: i64,
    /// The ordinal of its first event.
    first: u64,
    /// How many of its events had been settled before it was read.
    skipped: u32,
    /// Where each event ends, in bytes, from the first one on.
    ends: Box<[u32]>,
    /// The bytes of all events with a lower ordinal than its first one.
    bytes_before: u64,
}

impl ReadRecord {
    fn end(&self) -> u64 {
        self.first + self.ends.len() as u64
    }

    /// The bytes of all events with a lower ordinal than this one, which lies in this record or just behind it.
    fn bytes_before(&self, ordinal: u64) -> u64 {
        self.bytes_before + self.bytes(self.first..ordinal)
    }

    /// Where the event with this ordinal lies, which is in this record or would be just behind it.
    fn place(&self, ordinal: u64) -> Place {
        let index = self.skipped + (ordinal - self.first) as u32;
        (self.position, index)
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
pub(super) struct Settled {
    pub(super) volume: VolumeNumber,
    pub(super) events: u64,
    pub(super) bytes: u64,
}

/// Neighbouring events of one stored record.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) volume: VolumeNumber,
    pub(super) position: Position,
    pub(super) ordinals: Range<u64>,
    /// The place of the first of them in the stored record.
    pub(super) index: u32,
}

/// The events of one lane between its cursor and how far it has read.
#[derive(Debug)]
pub(super) struct Unsettled {
    records: VecDeque<ReadRecord>,
    /// Every event with a lower ordinal is settled.
    head: u64,
    /// The ordinal that the next event to be read gets.
    next: u64,
    /// Settled runs of events beyond `head`: first ordinal → the one after the last.
    beyond: BTreeMap<u64, u64>,
    /// The bytes of all events read.
    bytes_read: u64,
    /// What an earlier process settled and this one has not read again, in order.
    kept: Vec<Island>,
    /// The cursor, as long as no record is waiting here.
    resting: Cursor,
    passed_in: Option<VolumeNumber>,
}

impl Unsettled {
    /// Nothing read yet; an earlier process left the lane at `stand`.
    pub(super) fn new(stand: Stand) -> Unsettled {
        Unsettled {
            records: VecDeque::new(),
            head: 0,
            next: 0,
            beyond: BTreeMap::new(),
            bytes_read: 0,
            kept: stand.beyond,
            resting: stand.cursor,
            passed_in: None,
        }
    }

    /// Says in which volume the cursor lies, so that what it has passed there goes on being counted.
    pub(super) fn stands_in(&mut self, volume: VolumeNumber) {
        self.passed_in = Some(volume);
    }

    /// Notes that a record was read, without its first `skipped` events. `ends` tells where each remaining event ends. Returns
    /// the ordinal of the first that remains, and those of all that are not settled.
    pub(super) fn read(
        &mut self,
        position: Position,
        volume: VolumeNumber,
        accepted_at_ms: i64,
        skipped: u32,
        ends: &[u32],
    ) -> (u64, Vec<Range<u64>>) {
        let first = self.next;
        self.next += ends.len() as u64;
        self.records.push_back(ReadRecord {
            position,
            volume,
            accepted_at_ms,
            first,
            skipped,
            ends: ends.into(),
            bytes_before: self.bytes_read,
        });
        self.bytes_read += ends.last().copied().map_or(0, u64::from);
        self.take_up_kept(volume, position);
        (first, self.open(first.max(self.head)..self.next))
    }

    /// Settles what an earlier process has settled of the record read last. It was never counted as waiting.
    fn take_up_kept(&mut self, volume: VolumeNumber, position: Position) {
        let Some(record) = self.records.back() else {
            return;
        };
        let len = record.ends.len() as u32;
        let ordinal = |index: u32| {
            let index = index.saturating_sub(record.skipped).min(len);
            record.first + u64::from(index)
        };
        let from = self.kept.partition_point(|i| i.end.0 < position);
        let mut settled = Vec::new();
        for island in &mut self.kept[from..] {
            let Some(indexes) = island.within(volume, position) else {
                break;
            };
            let part = ordinal(indexes.start)..ordinal(indexes.end);
            island.events = island.events.saturating_sub(part.end - part.start);
            island.bytes = island.bytes.saturating_sub(record.bytes(part.clone()));
            island.first = (position + 1, 0);
            settled.push(part);
        }
        self.kept.retain(|i| i.first < i.end);
        for part in settled {
            self.mark(part);
        }
        self.advance();
    }

    /// Settles the events with these ordinals and moves the cursor as far as it goes. Returns what was settled just now, volume
    /// by volume; events settled before or never read count nothing.
    pub(super) fn settle(&mut self, ordinals: Range<u64>) -> Vec<Settled> {
        let mut settled: Vec<Settled> = Vec::new();
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

    /// The cursor, and what is settled beyond it: read by this process or kept from an earlier one.
    pub(super) fn stand(&mut self) -> Stand {
        let cursor = self.cursor();
        self.kept.retain(|island| island.first >= cursor.place());
        let mut beyond = self.kept.clone();
        for (first, end) in self.beyond.iter().take(ISLANDS_MAX) {
            self.add_islands(*first..*end, &mut beyond);
        }
        beyond.sort_unstable_by_key(|island| island.first);
        beyond.truncate(ISLANDS_MAX);
        Stand { cursor, beyond }
    }

    /// Adds the islands, one a volume, that these events make.
    fn add_islands(&self, ordinals: Range<u64>, islands: &mut Vec<Island>) {
        let mut start = ordinals.start;
        let mut from = self.records.partition_point(|r| r.end() <= start);
        while let Some(first) = self.records.get(from).filter(|_| start < ordinals.end) {
            let behind = self
                .records
                .partition_point(|r| r.volume <= first.volume && r.first < ordinals.end);
            let last = &self.records[behind - 1];
            let end = last.end().min(ordinals.end);
            islands.push(Island {
                volume: first.volume,
                first: first.place(start),
                end: last.place(end),
                events: end - start,
                bytes: last.bytes_before(end) - first.bytes_before(start),
            });
            (start, from) = (end, behind);
        }
    }

    /// When the oldest event read and not settled was accepted, in Unix ms.
    pub(super) fn oldest_ms(&self) -> Option<i64> {
        self.records.front().map(|record| record.accepted_at_ms)
    }

    /// Where those events with these ordinals lie that are not settled, in order.
    pub(super) fn find(&self, ordinals: Range<u64>) -> Vec<Stretch> {
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

    /// The ordinals of what was read of a volume and is not behind the cursor.
    pub(super) fn ordinals_in(&self, volume: VolumeNumber) -> Range<u64> {
        let from = self.records.partition_point(|r| r.volume < volume);
        let behind = self.records.partition_point(|r| r.volume <= volume);
        match (from < behind, self.records.get(from)) {
            (true, Some(first)) => first.first.max(self.head)..self.records[behind - 1].end(),
            _ => 0..0,
        }
    }

    /// The parts of a range that are not settled.
    pub(super) fn open(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut open = Vec::new();
        if range.is_empty() {
            return open;
        }
        let mut at = range.start;
        let before = self.beyond.range(..=at).next_back();
        let from = before.map_or(at, |(start, _)| *start);
        for (&start, &end) in self.beyond.range(from..range.end) {
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
#[allow(
    clippy::single_range_in_vec_init,
    reason = "one range of ordinals is meant, not its numbers"
)]
mod tests {
    use super::*;

    fn lane() -> Unsettled {
        let mut lane = Unsettled::new(Stand::default());
        assert_eq!(lane.read(10, 1, 100, 0, &[5, 10, 15]).0, 0);
        assert_eq!(lane.read(12, 1, 200, 0, &[7]).0, 3);
        assert_eq!(lane.read(20, 2, 300, 0, &[1, 2]).0, 4);
        lane
    }

    fn at(lane: &Unsettled) -> (Position, u32, u64, u64) {
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
        let mut lane = Unsettled::new(Stand {
            cursor,
            ..Stand::default()
        });
        lane.stands_in(1);
        lane.read(10, 1, 0, 2, &[5, 10]);
        assert_eq!(at(&lane), (10, 2, 9, 90));
        lane.settle(0..1);
        assert_eq!(at(&lane), (10, 3, 10, 95));
        lane.settle(1..2);
        assert_eq!(at(&lane), (11, 0, 11, 100));
    }

    /// Ten records of four events, five in each volume; `settled` beyond the first one.
    fn ten_records(stand: Stand, settled: Range<u64>) -> Unsettled {
        let mut lane = Unsettled::new(stand);
        for record in 0..10 {
            lane.read(record, record / 5, 0, 0, &[1, 2, 3, 4]);
        }
        lane.settle(settled);
        lane
    }

    fn island(volume: u64, first: Place, end: Place, events: u64) -> Island {
        Island {
            volume,
            first,
            end,
            events,
            bytes: events,
        }
    }

    #[test]
    fn what_is_settled_beyond_the_cursor_is_an_island_in_each_volume() {
        let stand = ten_records(Stand::default(), 2..30).stand();
        assert_eq!(stand.cursor, Cursor::default());
        let expected = [island(0, (0, 2), (4, 4), 18), island(1, (5, 0), (7, 2), 10)];
        assert_eq!(stand.beyond, expected);
    }

    #[test]
    fn an_island_is_left_out_when_it_is_read_again_and_kept_until_the_cursor_has_passed_it() {
        let left = ten_records(Stand::default(), 2..30).stand();
        let mut lane = Unsettled::new(left.clone());
        assert_eq!(lane.stand(), left, "nothing has been read again");
        assert_eq!(lane.read(0, 0, 0, 0, &[1, 2, 3, 4]), (0, vec![0..2]));
        let islands = |lane: &mut Unsettled| {
            let islands = lane.stand().beyond;
            islands.iter().map(|i| i.events).sum::<u64>()
        };
        assert_eq!(islands(&mut lane), 28, "some has been read again");
        for record in 1..7 {
            let (first, open) = lane.read(record, record / 5, 0, 0, &[1, 2, 3, 4]);
            assert_eq!((first, open), (record * 4, Vec::new()));
        }
        assert_eq!(lane.read(7, 1, 0, 0, &[1, 2, 3, 4]), (28, vec![30..32]));
        assert_eq!(lane.stand(), left, "all of it has been read again");
        let settled = lane.settle(0..32);
        assert_eq!(settled.iter().map(|s| s.events).sum::<u64>(), 4);
        assert_eq!(at(&lane), (8, 0, 12, 12));
        assert!(lane.stand().beyond.is_empty());
    }

    #[test]
    fn an_island_counts_for_the_record_of_its_own_volume_only() {
        let stand = Stand {
            beyond: vec![island(7, (3, 0), (4, 4), 8)],
            ..Stand::default()
        };
        let mut lane = Unsettled::new(stand);
        assert_eq!(lane.read(3, 8, 0, 0, &[1, 2]), (0, vec![0..2]));
    }

    #[test]
    fn so_many_islands_are_saved_and_no_more() {
        let mut lane = Unsettled::new(Stand::default());
        let ordinals = 0..4 * ISLANDS_MAX as u64;
        for position in ordinals.clone() {
            lane.read(position, 0, 0, 0, &[1]);
        }
        for odd in ordinals.skip(1).step_by(2) {
            lane.settle(odd..odd + 1);
        }
        let beyond = lane.stand().beyond;
        assert_eq!(beyond.len(), ISLANDS_MAX);
        assert_eq!(beyond[0].first, (1, 0));
    }

    proptest::proptest! {
        #[test]
        fn any_order_of_settling_agrees_with_a_plain_set(ranges in proptest::collection::vec((0u64..40, 0u64..12), 0..30)) {
            let mut lane = Unsettled::new(Stand::default());
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

                // Another process reads exactly what is not settled, and it too would save the same.
                let stand = lane.stand();
                let mut next = Unsettled::new(stand.clone());
                let Cursor { position: from, events: skip, .. } = stand.cursor;
                let mut read = Vec::new();
                for record in from..10 {
                    let skipped = if record == from { skip } else { 0 };
                    let ends: Vec<_> = (1..=4 - skipped).collect();
                    let (first, open) = next.read(record, record / 4, 0, skipped, &ends);
                    let place = |o| record * 4 + u64::from(skipped) + o - first;
                    read.extend(open.into_iter().flatten().map(place));
                }
                assert!(read.into_iter().eq((0..40).filter(|o| !model.contains(o))));
                assert_eq!(next.stand().beyond, stand.beyond);
            }
        }
    }
}
