//! Records become batches: the largest calls that Segment's limits allow, from whatever runs of events were stored.
//!
//! Stored JSON is joined with commas, never parsed again. Pure: no I/O, no clock. A batch holds a lane's events in order, so it is
//! named by the range of their ordinals, by which they can be settled, or read again.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use jiff::Timestamp;

use crate::queue::Record;

/// What one call may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The whole body with its envelope, in bytes.
    pub body_bytes_max: usize,
    /// Events.
    pub events_max: usize,
}

/// What surrounds the events of a call.
#[derive(Clone, Debug)]
pub struct Envelope {
    before: &'static str,
    between: &'static str,
    after: String,
}

/// `2026-11-23T14:00:00.000Z`: a `sentAt` always takes as much.
const SENT_AT_BYTES: usize = 24;

impl Envelope {
    /// The envelope of Segment's Batch call: `{"batch":[…],"sentAt":"…","writeKey":"…"}`.
    #[must_use]
    pub fn segment(write_key: &str) -> Envelope {
        let key = serde_json::Value::from(write_key);
        Envelope {
            before: "{\"batch\":[",
            between: "],\"sentAt\":\"",
            after: format!("\",\"writeKey\":{key}}}"),
        }
    }

    /// What it adds to the events and the commas between them, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.before.len() + self.between.len() + SENT_AT_BYTES + self.after.len()
    }

    /// How long the body of a call with `batch` is, in bytes.
    #[must_use]
    pub fn body_bytes(&self, batch: &Batch) -> usize {
        self.bytes() + batch.bytes + batch.len() - 1
    }

    /// The body of a call made at `sent_at`.
    #[must_use]
    pub fn body(&self, batch: &Batch, sent_at: Timestamp) -> Bytes {
        let mut body = Vec::with_capacity(self.body_bytes(batch));
        body.extend_from_slice(self.before.as_bytes());
        let start = body.len();
        for event in batch.events() {
            if body.len() > start {
                body.push(b',');
            }
            body.extend_from_slice(event);
        }
        body.extend_from_slice(self.between.as_bytes());
        body.extend_from_slice(format!("{sent_at:.3}").as_bytes());
        body.extend_from_slice(self.after.as_bytes());
        body.into()
    }
}

/// The events of one call.
#[derive(Clone, Debug)]
pub struct Batch {
    runs: Vec<Slice>,
    /// The events' bytes added up.
    bytes: usize,
}

/// Neighbouring events of one record.
#[derive(Clone, Debug)]
struct Slice {
    record: Record,
    events: Range<usize>,
}

impl Slice {
    fn bytes(&self) -> usize {
        let end = |index: usize| {
            index
                .checked_sub(1)
                .map_or(0, |before| self.record.ends[before] as usize)
        };
        end(self.events.end) - end(self.events.start)
    }

    /// Cuts it before its event number `at`; both sides hold at least one.
    fn split(mut self, at: usize) -> (Slice, Slice) {
        let middle = self.events.start + at;
        let rest = Slice {
            record: self.record.clone(),
            events: middle..self.events.end,
        };
        self.events.end = middle;
        (self, rest)
    }
}

impl Batch {
    /// How many events it holds: at least one.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a batch is never empty")]
    pub fn len(&self) -> usize {
        self.runs.iter().map(|run| run.events.len()).sum()
    }

    /// The range of its events' ordinals. What is missing in between is settled already.
    #[must_use]
    pub fn ordinals(&self) -> Range<u64> {
        let (first, last) = (&self.runs[0], &self.runs[self.runs.len() - 1]);
        let start = first.record.first + first.events.start as u64;
        start..last.record.first + last.events.end as u64
    }

    /// When the first of its events was accepted, in Unix ms.
    #[must_use]
    pub fn accepted_at_ms(&self) -> i64 {
        self.runs[0].record.accepted_at_ms
    }

    /// The events in order.
    pub fn events(&self) -> impl Iterator<Item = &[u8]> {
        self.runs
            .iter()
            .flat_map(|run| run.events.clone().map(|index| run.record.event(index)))
    }

    fn of(runs: Vec<Slice>) -> Batch {
        let bytes = runs.iter().map(Slice::bytes).sum();
        Batch { runs, bytes }
    }
}

/// Holds records that were read until there is a batch of them.
#[derive(Debug)]
pub struct Assembler {
    limits: Limits,
    envelope_bytes: usize,
    waiting: VecDeque<Slice>,
    events: usize,
    bytes: usize,
}

impl Assembler {
    /// An empty one, for calls with an envelope of so many bytes.
    #[must_use]
    pub fn new(limits: Limits, envelope_bytes: usize) -> Assembler {
        Assembler {
            limits,
            envelope_bytes,
            waiting: VecDeque::new(),
            events: 0,
            bytes: 0,
        }
    }

    /// Takes a record in, behind those already there.
    pub fn push(&mut self, record: Record) {
        let slice = Slice {
            events: 0..record.len(),
            record,
        };
        if slice.events.is_empty() {
            return;
        }
        self.events += slice.events.len();
        self.bytes += slice.bytes();
        self.waiting.push_back(slice);
    }

    /// How many more bytes of events fill a batch, when `events` and `bytes` beyond those here could be read: 0 means a full one
    /// can be had.
    #[must_use]
    pub fn missing_bytes(&self, unread_events: u64, unread_bytes: u64) -> usize {
        let events = self.events as u64 + unread_events;
        let bytes = (self.bytes as u64 + unread_bytes).saturating_add(events.saturating_sub(1));
        let room = self.room() as u64;
        if events >= self.limits.events_max as u64 {
            0
        } else {
            room.saturating_sub(bytes) as usize
        }
    }

    /// Goes by other limits from now on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Forgets the records that are here, to be read again later, and returns the range of their events' ordinals; none where it is
    /// empty.
    pub fn put_down(&mut self) -> Option<Range<u64>> {
        let batch = Batch::of(self.waiting.drain(..).collect());
        (self.events, self.bytes) = (0, 0);
        (!batch.runs.is_empty()).then(|| batch.ordinals())
    }

    /// Events here.
    #[must_use]
    pub fn events(&self) -> usize {
        self.events
    }

    /// Their bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it holds no event.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events == 0
    }

    /// The largest batch that can be made of what is here; none where nothing is.
    pub fn take(&mut self) -> Option<Batch> {
        let room = self.room();
        let (mut runs, mut events, mut bytes) = (Vec::new(), 0, 0);
        while let Some(slice) = self.waiting.pop_front() {
            let fitting = slice
                .events
                .clone()
                .take_while(|index| {
                    let with_comma = slice.record.event(*index).len() + usize::from(events > 0);
                    // A lone event goes alone, whatever its size: the destination is to judge it.
                    let fits = events == 0
                        || (events < self.limits.events_max && bytes + with_comma <= room);
                    if fits {
                        events += 1;
                        bytes += with_comma;
                    }
                    fits
                })
                .count();
            if fitting == slice.events.len() {
                runs.push(slice);
                continue;
            }
            if fitting > 0 {
                let (taken, rest) = slice.split(fitting);
                runs.push(taken);
                self.waiting.push_front(rest);
            } else {
                self.waiting.push_front(slice);
            }
            break;
        }
        let batch = (events > 0).then(|| Batch::of(runs))?;
        self.events -= events;
        self.bytes -= batch.bytes;
        Some(batch)
    }

    /// What the events and the commas between them may take.
    fn room(&self) -> usize {
        self.limits
            .body_bytes_max
            .saturating_sub(self.envelope_bytes)
    }
}

#[cfg(test)]
mod tests;
