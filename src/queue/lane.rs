//! A lane: the FIFO for one destination. What waits in it, how far it has been read, how far it is settled.
//!
//! The writer publishes what has become durable, one delivery loop reads and settles; both hold the lane's lock for a few
//! lines only. Depth is counted here, never asked of the disk. A lane knows nothing of calls, answers or retries.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use super::Position;
use super::cursors::{Cursor, Passed, Stand};
use super::name::{LaneId, LaneName};
use super::record::Unpacked;
use super::unsettled::{Settled, Stretch, Unsettled};
use super::volume::VolumeNumber;

/// Of how many stretches a lane remembers that they were dropped after they were read. It has no more calls under way.
const DROPPED_MAX: usize = 64;

/// How much waits: events accepted and not settled, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// How many events.
    pub events: u64,
    /// Their bytes as JSON, before compression.
    pub bytes: u64,
}

/// The records of one lane in one volume, taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Extent {
    pub(super) first: Position,
    pub(super) last: Position,
    pub(super) records: u64,
    pub(super) events: u64,
    pub(super) bytes: u64,
    /// When its first record was accepted, in Unix ms.
    pub(super) accepted_at_ms: i64,
}

impl Extent {
    /// Takes a later part of the same lane in.
    pub(super) fn extend(&mut self, later: &Extent) {
        self.last = later.last;
        self.records += later.records;
        self.events += later.events;
        self.bytes += later.bytes;
    }
}

impl Extent {
    /// The events' bytes of a record, on average.
    pub(super) fn mean_record_bytes(&self) -> u64 {
        self.bytes / self.records.max(1)
    }
}

/// A record as a delivery loop gets it: only the events that were not settled before.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its place in the order of acceptance.
    pub position: Position,
    /// When it was accepted, in Unix ms.
    pub accepted_at_ms: i64,
    /// The ordinal of its first event; the others follow one by one. Settling names events by their ordinals.
    pub first: u64,
    /// How many events of the stored record lie before the first one here.
    pub skipped: u32,
    /// The events, one after another.
    pub bytes: Bytes,
    /// Where each event ends in `bytes`.
    pub ends: Vec<u32>,
}

impl Record {
    /// How many events it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The bytes of the event at `index`, which is below [`Record::len`].
    #[must_use]
    pub fn event(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start as usize..self.ends[index] as usize]
    }

    /// The event at `index`, which is below [`Record::len`], as a record of its own, between those before and behind it.
    pub(super) fn cut_out(&self, index: usize) -> (Option<Record>, Record, Option<Record>) {
        let (before, after) = (self.part(0..index), self.part(index + 1..self.len()));
        (
            (!before.is_empty()).then_some(before),
            self.part(index..index + 1),
            (!after.is_empty()).then_some(after),
        )
    }

    fn part(&self, events: Range<usize>) -> Record {
        let end_of = |n: usize| n.checked_sub(1).map_or(0, |last| self.ends[last]);
        let (start, end) = (end_of(events.start), end_of(events.end));
        Record {
            position: self.position,
            accepted_at_ms: self.accepted_at_ms,
            first: self.first + events.start as u64,
            skipped: self.skipped + events.start as u32,
            bytes: self.bytes.slice(start as usize..end as usize),
            ends: self.ends[events].iter().map(|end| end - start).collect(),
        }
    }
}

/// What an operator has decided for a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hand {
    /// Nothing of it is to be sent.
    pub paused: bool,
    /// How often it was told to go on, whatever it was waiting for.
    pub resumed: u64,
}

/// A lane. Everything in it belongs to the queue; others hold it as a ticket for [`Queue::append`](super::Queue::append).
pub struct Lane {
    id: LaneId,
    name: LaneName,
    state: Mutex<State>,
    hand: watch::Sender<Hand>,
    pub(super) published: Notify,
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane")
            .field("id", &self.id)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

struct State {
    /// What the volumes hold of this lane, from the one being read on.
    extents: VecDeque<Unread>,
    /// The position from which the next record is read, and how many of its events are settled if it is the very one.
    read_to: Position,
    skip: u32,
    unsettled: Unsettled,
    depth: Depth,
    recovered_events: u64,
    lost_events: u64,
    dropped_events: u64,
    /// Nothing before this is read any more: it was dropped.
    dropped_below: Position,
    /// The ordinals of what was dropped after it was read. A call under way may deliver it all the same.
    dropped: VecDeque<Range<u64>>,
}

/// An extent of which `events` and `bytes` have not been read yet.
struct Unread {
    volume: VolumeNumber,
    last: Position,
    events: u64,
    bytes: u64,
    accepted_at_ms: i64,
}

/// Where the next unread record lies.
pub(super) struct Span {
    pub(super) volume: VolumeNumber,
    pub(super) from: Position,
    pub(super) last: Position,
}

impl Lane {
    pub(super) fn new(name: LaneName, stand: Stand) -> Lane {
        Lane {
            id: name.id(),
            name,
            state: Mutex::new(State {
                extents: VecDeque::new(),
                read_to: stand.cursor.position,
                skip: stand.cursor.events,
                unsettled: Unsettled::new(stand),
                depth: Depth::default(),
                recovered_events: 0,
                lost_events: 0,
                dropped_events: 0,
                dropped_below: 0,
                dropped: VecDeque::new(),
            }),
            hand: watch::Sender::default(),
            published: Notify::new(),
        }
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> LaneId {
        self.id
    }

    /// What it is for.
    #[must_use]
    pub fn name(&self) -> &LaneName {
        &self.name
    }

    /// How much waits in it, in flight or not.
    #[must_use]
    pub fn depth(&self) -> Depth {
        self.state().depth
    }

    /// How many events it held when the process started.
    #[must_use]
    pub fn recovered_events(&self) -> u64 {
        self.state().recovered_events
    }

    /// How many accepted events could not be read back from the disk.
    #[must_use]
    pub fn lost_events(&self) -> u64 {
        self.state().lost_events
    }

    /// How many accepted events were dropped because the queue was full.
    #[must_use]
    pub fn dropped_events(&self) -> u64 {
        self.state().dropped_events
    }

    /// When its oldest event was accepted, in Unix ms; none when it is empty.
    #[must_use]
    pub fn oldest_ms(&self) -> Option<i64> {
        let state = self.state();
        let unread = || {
            state
                .extents
                .iter()
                .find(|e| e.events > 0)
                .map(|e| e.accepted_at_ms)
        };
        state.unsettled.oldest_ms().or_else(unread)
    }

    /// What an operator has decided for it, now and from now on.
    #[must_use]
    pub fn hand(&self) -> watch::Receiver<Hand> {
        self.hand.subscribe()
    }

    /// Whether an operator has paused it.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.hand.borrow().paused
    }

    pub(super) fn pause(&self) {
        self.hand.send_modify(|hand| hand.paused = true);
    }

    pub(super) fn resume(&self) {
        self.hand.send_modify(|hand| {
            hand.paused = false;
            hand.resumed += 1;
        });
    }

    /// How far it is settled.
    pub(super) fn cursor(&self) -> Cursor {
        self.state().unsettled.cursor()
    }

    pub(super) fn stand(&self) -> Stand {
        self.state().unsettled.stand()
    }

    /// Adds what a volume of an earlier process holds: of `extent`, `passed` lies before the cursor and `left` is not settled.
    pub(super) fn recover(
        &self,
        volume: VolumeNumber,
        extent: &Extent,
        passed: Passed,
        left: Depth,
    ) {
        let mut state = self.state();
        if passed.events > 0 {
            state.unsettled.stands_in(volume);
        }
        state.recovered_events += left.events;
        state.add(
            volume,
            &Extent {
                events: left.events,
                bytes: left.bytes,
                ..*extent
            },
        );
    }

    /// Adds what has just become durable.
    pub(super) fn publish(&self, volume: VolumeNumber, extent: &Extent) {
        self.state().add(volume, extent);
        self.published.notify_one();
    }

    /// What it has not read of a volume, and from which position on. None where that begins within a record.
    pub(super) fn unread_in(&self, volume: VolumeNumber) -> Option<(Position, Depth)> {
        let state = self.state();
        let extent = state.extents.iter().find(|e| e.volume == volume)?;
        let unread = Depth {
            events: extent.events,
            bytes: extent.bytes,
        };
        (state.skip == 0).then_some((state.read_to, unread))
    }

    /// What has not been read yet.
    pub(super) fn unread(&self) -> Depth {
        let state = self.state();
        let add = |depth: Depth, e: &Unread| Depth {
            events: depth.events + e.events,
            bytes: depth.bytes + e.bytes,
        };
        state.extents.iter().fold(Depth::default(), add)
    }

    /// Where to read next.
    pub(super) fn next_span(&self) -> Option<Span> {
        let mut state = self.state();
        while let Some(extent) = state.extents.front() {
            if extent.events > 0 && extent.last >= state.read_to {
                return Some(Span {
                    volume: extent.volume,
                    from: state.read_to,
                    last: extent.last,
                });
            }
            if state.extents.len() == 1 {
                return None;
            }
            state.extents.pop_front();
        }
        None
    }

    /// Notes that the record at `position` was read and returns those stretches of it that are not settled.
    pub(super) fn note_read(
        &self,
        volume: VolumeNumber,
        position: Position,
        unpacked: Unpacked,
    ) -> Vec<Record> {
        let mut state = self.state();
        if position < state.dropped_below {
            return Vec::new();
        }
        let mut skipped = 0;
        if position == state.read_to {
            skipped = state.skip.min(unpacked.ends.len() as u32);
        }
        let len = unpacked.ends.len();
        let Unpacked {
            accepted_at_ms,
            bytes,
            ends,
        } = unpacked
            .part(skipped as usize..len)
            .expect("no more is skipped than there is");
        state.skip = 0;
        state.read_to = position + 1;
        let (first, open) = state
            .unsettled
            .read(position, volume, accepted_at_ms, skipped, &ends);
        let record = Record {
            position,
            accepted_at_ms,
            first,
            skipped,
            bytes,
            ends,
        };
        let index = |ordinal: u64| (ordinal - first) as usize;
        let parts = open
            .into_iter()
            .map(|part| record.part(index(part.start)..index(part.end)));
        let parts: Vec<_> = parts.collect();
        if let Some(extent) = state.extents.front_mut() {
            for part in &parts {
                extent.events = extent.events.saturating_sub(part.len() as u64);
                extent.bytes = extent.bytes.saturating_sub(part.bytes.len() as u64);
            }
        }
        parts
    }

    /// Where those of these events lie that are not settled.
    pub(super) fn find(&self, ordinals: Range<u64>) -> Vec<Stretch> {
        self.state().unsettled.find(ordinals)
    }

    /// Counts events as lost that were read once and can be read no more. Returns how many of each volume.
    pub(super) fn lose(&self, ordinals: Range<u64>) -> Vec<Settled> {
        let settled = self.settle(ordinals);
        self.state().lost_events += settled.iter().map(|part| part.events).sum::<u64>();
        settled
    }

    /// Settles events by their ordinals; returns how many of each volume were settled just now.
    pub(super) fn settle(&self, ordinals: Range<u64>) -> Vec<Settled> {
        let mut state = self.state();
        state.undrop(&ordinals);
        state.settle(ordinals)
    }

    /// Drops what waits in a volume, read or not, whatever becomes of a call under way. Returns how many events that is.
    pub(super) fn drop_volume(&self, volume: VolumeNumber) -> u64 {
        let mut state = self.state();
        let read = state.unsettled.ordinals_in(volume);
        let open = state.unsettled.open(read.clone());
        state.dropped.extend(open);
        let beyond = state.dropped.len().saturating_sub(DROPPED_MAX);
        state.dropped.drain(..beyond);
        let settled = state.settle(read);
        let mut events: u64 = settled.iter().map(|part| part.events).sum();
        if let Some(at) = state.extents.iter().position(|e| e.volume == volume) {
            let last = state.extents[at].last;
            state.read_to = state.read_to.max(last + 1);
            state.skip = 0;
            events += state.forget(at);
            state.dropped_below = state.read_to;
        }
        state.dropped_events += events;
        events
    }

    /// Gives up what is unread of a volume up to the position `through`: it is not there, or cannot be read. Returns how many
    /// events that is. Where more was published behind `through` meanwhile, the missing ones are counted when that is read.
    pub(super) fn give_up(&self, volume: VolumeNumber, through: Position) -> u64 {
        let mut state = self.state();
        let Some(at) = state.extents.iter().position(|e| e.volume == volume) else {
            return 0;
        };
        let last = state.extents[at].last;
        state.read_to = state.read_to.max(through.min(last) + 1);
        state.skip = 0;
        if last > through {
            return 0;
        }
        let events = state.forget(at);
        state.lost_events += events;
        events
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn settle(&mut self, ordinals: Range<u64>) -> Vec<Settled> {
        let settled = self.unsettled.settle(ordinals);
        for part in &settled {
            self.depth.events = self.depth.events.saturating_sub(part.events);
            self.depth.bytes = self.depth.bytes.saturating_sub(part.bytes);
        }
        settled
    }

    /// These events were dropped while they were under way, and came to another end after all.
    fn undrop(&mut self, ordinals: &Range<u64>) {
        let mut left = VecDeque::new();
        for dropped in self.dropped.drain(..) {
            let start = ordinals.start.clamp(dropped.start, dropped.end);
            let end = ordinals.end.clamp(start, dropped.end);
            self.dropped_events -= end - start;
            let parts = [dropped.start..start, end..dropped.end];
            left.extend(parts.into_iter().filter(|part| !part.is_empty()));
        }
        self.dropped = left;
    }

    /// Counts what is unread of an extent no more. Returns how many events that is.
    fn forget(&mut self, at: usize) -> u64 {
        let extent = &mut self.extents[at];
        let (events, bytes) = (
            std::mem::take(&mut extent.events),
            std::mem::take(&mut extent.bytes),
        );
        self.depth.events = self.depth.events.saturating_sub(events);
        self.depth.bytes = self.depth.bytes.saturating_sub(bytes);
        events
    }

    fn add(&mut self, volume: VolumeNumber, extent: &Extent) {
        self.depth.events += extent.events;
        self.depth.bytes += extent.bytes;
        match self.extents.back_mut() {
            Some(last) if last.volume == volume => {
                if last.events == 0 {
                    last.accepted_at_ms = extent.accepted_at_ms;
                }
                last.last = extent.last;
                last.events += extent.events;
                last.bytes += extent.bytes;
            }
            _ => self.extents.push_back(Unread {
                volume,
                last: extent.last,
                events: extent.events,
                bytes: extent.bytes,
                accepted_at_ms: extent.accepted_at_ms,
            }),
        }
    }
}
