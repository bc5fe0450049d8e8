//! The loop of one lane: wait, fill, send, judge, settle.
//!
//! Batches leave in order of acceptance. While all goes well up to `concurrency` calls are under way; after a failure, and while
//! a refused batch is searched for the event at fault, one at a time. What is to be sent again goes before what was never sent, so
//! that with a concurrency of 1 the order holds throughout.
//!
//! A lane keeps events in memory only while a call is made of them: what waits, for whatever reason, waits on disk.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info, warn};

use super::backoff::Backoff;
use super::destination::Destination;
use super::portion::{Again, Portion};
use super::request::Answer;
use super::verdict::{Verdict, verdict};
use super::{Context, Settings};
use crate::batch::{Assembler, Batch};
use crate::ingest::{label, source};
use crate::queue::{BuryError, DeadLetter, Hand, LaneReader, ReadError, Record};
use crate::stats::{LaneState, LaneStats, Sighting, What};

/// Segment removes an event that it has seen before for at least this long; a later one may be counted twice.
const DEDUP_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);

/// A call that has ended.
struct Called {
    portion: Portion,
    events: usize,
    body_bytes: usize,
    /// What is told of the events, should they be delivered.
    sightings: Vec<Sighting>,
    took: Duration,
    answer: Answer,
}

type Call = BoxFuture<'static, Called>;

/// Events that were read for a batch to come, and put back until then.
#[derive(Debug)]
struct Aside {
    ordinals: Range<u64>,
    events: usize,
    bytes: usize,
}

pub(super) struct LaneLoop {
    context: Arc<Context>,
    settings: Arc<Settings>,
    reader: LaneReader,
    stats: Arc<LaneStats>,
    destination: Arc<Destination>,
    hand: Hand,
    assembler: Assembler,
    /// What the next batch of events never sent begins with.
    aside: Option<Aside>,
    /// To be sent again.
    again: Again,
    backoff: Backoff,
    /// No call before this: the destination is in trouble.
    pause_until: Option<Instant>,
    /// No call before this: the operator set a pace.
    pace_until: Option<Instant>,
    /// What the last failure made of the lane: one call at a time until one succeeds.
    trouble: Option<LaneState>,
    /// A call has succeeded: until then, too, one at a time.
    proven: bool,
    /// A refused batch is being searched for the event at fault: one at a time, since each answer saves calls.
    searching: bool,
    /// When the events that wait for a batch to fill were first seen.
    lingering_since: Option<Instant>,
}

impl LaneLoop {
    pub(super) fn new(context: Arc<Context>, reader: LaneReader) -> LaneLoop {
        let lane = reader.lane();
        let settings = Arc::clone(&context.settings.borrow());
        let destination = Arc::new(Destination::of(lane.name(), &settings));
        let retry = &settings.config.retry;
        LaneLoop {
            stats: context.stats.lane(&lane.id().to_string()),
            hand: Hand::default(),
            assembler: Assembler::new(destination.limits(), destination.envelope_bytes()),
            destination,
            aside: None,
            again: Again::default(),
            backoff: Backoff::new(retry.base, retry.max),
            pause_until: None,
            pace_until: None,
            trouble: None,
            proven: false,
            searching: false,
            lingering_since: None,
            settings,
            reader,
            context,
        }
    }

    /// Runs as long as the process delivers.
    pub(super) async fn run(mut self) {
        let mut calls: FuturesUnordered<Call> = FuturesUnordered::new();
        let mut hand = self.reader.lane().hand();
        let mut settings = self.context.settings.subscribe();
        self.obey(*hand.borrow_and_update());
        loop {
            self.stats.in_flight(calls.len());
            let may_call =
                self.pause_until.is_none() && !self.hand.paused && calls.len() < self.calls_max();
            tokio::select! {
                Some(called) = calls.next() => self.judge(called).await,
                () = passed(self.pause_until), if self.pause_until.is_some() => self.end_pause(),
                Ok(()) = hand.changed() => self.obey(*hand.borrow_and_update()),
                Ok(()) = settings.changed() => {
                    let settings = Arc::clone(&settings.borrow_and_update());
                    self.go_by(settings);
                }
                slot = self.slot_for_batch(), if may_call => {
                    if let Some((portion, batch)) = self.next_batch().await {
                        calls.push(self.call(portion, batch, slot));
                    }
                }
            }
        }
    }

    fn calls_max(&self) -> usize {
        if self.trouble.is_some() || !self.proven || self.searching {
            1
        } else {
            self.destination.concurrency()
        }
    }

    /// Does what an operator wants.
    fn obey(&mut self, hand: Hand) {
        self.stats.paused(hand.paused);
        if hand.resumed != self.hand.resumed {
            self.end_pause();
        }
        if hand.paused != self.hand.paused {
            let lane = self.reader.lane().id();
            info!(%lane, paused = hand.paused, "an operator has paused or resumed a lane");
        }
        self.hand = hand;
    }

    /// Goes by other settings from now on. What the lane waits for may be mended with them.
    fn go_by(&mut self, settings: Arc<Settings>) {
        let retry = &settings.config.retry;
        if self.settings.config.retry != *retry {
            self.backoff = Backoff::new(retry.base, retry.max);
        }
        let is_mended = self.settings.config.segment != settings.config.segment;
        self.destination = Arc::new(Destination::of(self.reader.lane().name(), &settings));
        self.assembler.set_limits(self.destination.limits());
        self.settings = settings;
        if is_mended || self.trouble == Some(LaneState::Held) {
            self.end_pause();
        }
    }

    fn end_pause(&mut self) {
        self.pause_until = None;
        self.stats.pause_over();
    }

    /// Waits until a batch should go, and then for a slot for its call.
    async fn slot_for_batch(&mut self) -> OwnedSemaphorePermit {
        passed(self.pace_until).await;
        self.batch_due().await;
        let is_suspect = self.trouble.is_some();
        let slots: Arc<Semaphore> = Arc::clone(self.destination.slots(&self.context, is_suspect));
        if let Ok(slot) = Arc::clone(&slots).try_acquire_owned() {
            return slot;
        }
        self.put_aside();
        slots
            .acquire_owned()
            .await
            .expect("the slots are never closed")
    }

    /// Returns once a batch should go: one is to be sent again, a full one can be had, or events have lingered long enough.
    async fn batch_due(&mut self) {
        while self.again.is_empty() {
            let unread = self.reader.unread();
            let (mut events, mut bytes) = (unread.events, unread.bytes);
            if let Some(aside) = &self.aside {
                events += aside.events as u64;
                bytes += aside.bytes as u64;
            }
            if events == 0 && self.assembler.is_empty() {
                self.lingering_since = None;
                self.stats.nothing_to_send();
                self.reader.published().await;
                continue;
            }
            if self.assembler.missing_bytes(events, bytes) == 0 {
                return;
            }
            let since = *self.lingering_since.get_or_insert_with(Instant::now);
            let mut hurry = self.context.hurry.subscribe();
            tokio::select! {
                () = self.reader.published() => {}
                _ = hurry.wait_for(|hurry| *hurry) => return,
                () = sleep_until(since + self.destination.linger()) => return,
            }
        }
    }

    /// The batch that goes next. None where nothing is left to send, or the disk does not give it: the lane then pauses.
    async fn next_batch(&mut self) -> Option<(Portion, Batch)> {
        self.lingering_since = None;
        let next = match self.repeat().await {
            Ok(None) => self.fill().await,
            repeated => repeated,
        };
        match next {
            Ok(next) => next,
            Err(error) => {
                error!(lane = %self.reader.lane().id(), %error, "a lane cannot be read");
                self.back_off(LaneState::BackingOff, "the disk cannot be read");
                None
            }
        }
    }

    /// What was sent before and has to be sent again.
    async fn repeat(&mut self) -> Result<Option<(Portion, Batch)>, ReadError> {
        while let Some(mut portion) = self.again.pop() {
            let records = match self.reader.read_again(portion.ordinals.clone()).await {
                Ok(records) => records,
                Err(error) => {
                    self.again.insert(portion);
                    return Err(error);
                }
            };
            let (limits, envelope) = (self.destination.limits(), self.destination.envelope_bytes());
            let mut assembler = Assembler::new(limits, envelope);
            for record in self.without_expired(records).await {
                assembler.push(record);
            }
            // None: nothing is left of it, the disk or its age has settled it.
            let Some(batch) = assembler.take() else {
                continue;
            };
            let end = batch.ordinals().end;
            if !assembler.is_empty() {
                // The limits have become narrower since it was first sent.
                let (first, rest) = portion.split(end);
                self.again.insert(rest);
                portion = first;
            }
            return Ok(Some((portion, batch)));
        }
        Ok(None)
    }

    /// What was never sent, as much of it as fits.
    async fn fill(&mut self) -> Result<Option<(Portion, Batch)>, ReadError> {
        if let Some(aside) = self.aside.take() {
            match self.reader.read_again(aside.ordinals.clone()).await {
                Ok(records) => self.take_in(records).await,
                Err(error) => {
                    self.aside = Some(aside);
                    return Err(error);
                }
            }
        }
        loop {
            let missing = self.assembler.missing_bytes(0, 0);
            if missing == 0 {
                break;
            }
            let reading = self.reader.read(missing).await?;
            for ordinals in reading.buried {
                let events = ordinals.end - ordinals.start;
                self.context.stats.buried(&self.stats, events);
                self.reader.settle(ordinals);
            }
            let records = reading.records;
            if records.is_empty() {
                break;
            }
            self.take_in(records).await;
            if self.assembler.is_empty() {
                // All of it was too old. There may be much more of that: let the loop turn.
                return Ok(None);
            }
        }
        let batch = self.assembler.take();
        Ok(batch.map(|batch| (Portion::new(batch.ordinals()), batch)))
    }

    async fn take_in(&mut self, records: Vec<Record>) {
        for record in self.without_expired(records).await {
            self.assembler.push(record);
        }
    }

    /// Puts back what was read for a batch to come, so that it takes no memory while the lane waits.
    fn put_aside(&mut self) {
        let (events, bytes) = (self.assembler.events(), self.assembler.bytes());
        if let Some(ordinals) = self.assembler.put_down() {
            // Only `fill` reads, and it takes up first what lies aside.
            self.aside = Some(Aside {
                ordinals,
                events,
                bytes,
            });
        }
    }

    /// One call, from the body to the answer.
    fn call(&mut self, portion: Portion, batch: Batch, slot: OwnedSemaphorePermit) -> Call {
        let (events, now) = (batch.len(), Timestamp::now());
        if portion.attempts > 0 {
            self.stats.retries.add(1);
        }
        let is_late = portion.unanswered_ms.is_some_and(|then| is_late(then, now));
        if is_late && self.destination.deduplicates() {
            warn!(
                lane = %self.reader.lane().id(), events,
                "events are sent again more than 24 h after a call that got no answer; if it did arrive, Segment may count them twice"
            );
        }
        let pace = self.destination.events_a_second();
        if pace > 0 {
            let from = self
                .pace_until
                .map_or(Instant::now(), |until| until.max(Instant::now()));
            self.pace_until = Some(from + Duration::from_secs(1) * events as u32 / pace);
        }
        let sightings = self.sift(What::Delivered, batch.events());
        let destination = Arc::clone(&self.destination);
        Box::pin(async move {
            let _slot = slot;
            let body_bytes = destination.body_bytes(&batch);
            let begun = Instant::now();
            let answer = destination.call(batch, portion.attempts).await;
            Called {
                portion,
                events,
                body_bytes,
                sightings,
                took: begun.elapsed(),
                answer,
            }
        })
    }

    /// Does with a batch what its answer means.
    async fn judge(&mut self, called: Called) {
        let lane = self.reader.lane().id();
        let Called {
            mut portion,
            events,
            body_bytes,
            sightings,
            took,
            answer,
        } = called;
        let (status, error) = match &answer {
            Answer::Answered { status, .. } => (Some(*status), format!("answered {status}")),
            Answer::TokenRefused { status } => {
                (Some(*status), format!("answered {status} to a token"))
            }
            Answer::Unanswered { error } => {
                let now = Timestamp::now().as_millisecond();
                portion.unanswered_ms.get_or_insert(now);
                (None, error.clone())
            }
            Answer::Unsent { error, .. } => (None, error.clone()),
        };
        let verdict = verdict(&answer);
        // Neither a call that was never made nor one that was put off counts.
        let put_off = matches!(verdict, Verdict::Retry { after: Some(_) });
        if !put_off && !matches!(answer, Answer::Unsent { .. }) {
            portion.attempts += 1;
        }
        if !matches!(answer, Answer::Unsent { .. }) {
            let destination = self.destination.kind_name();
            self.context.stats.called(destination, took);
        }
        if verdict != Verdict::Delivered {
            self.stats.failed(status, &error);
        }
        match verdict {
            Verdict::Delivered => {
                debug!(%lane, events, attempts = portion.attempts, "delivered a batch");
                self.tell(sightings, None, status);
                self.settle_delivered(portion, events, body_bytes, status.unwrap_or_default());
            }
            Verdict::Retry { after } => {
                self.again.insert(portion);
                match after {
                    Some(pause) => self.pause(LaneState::RateLimited, &error, pause),
                    None => self.back_off(LaneState::BackingOff, &error),
                }
            }
            Verdict::Again => {
                debug!(%lane, events, error, "a token was refused; the events are sent again with another");
                self.again.insert(portion);
            }
            Verdict::Hold => {
                self.again.insert(portion);
                let probe = self.settings.config.retry.hold_probe;
                self.pause(LaneState::Held, &error, probe);
            }
            Verdict::Refused => match portion.halve() {
                Ok(halves) => {
                    debug!(%lane, events, error, "refused a batch; its halves follow");
                    self.searching = true;
                    // A batch that was too large need hold no event at fault.
                    self.again.insert_halves(halves, status != Some(413));
                }
                Err(event) => self.bury_refused(event, answer).await,
            },
        }
        self.searching &= !self.again.is_empty();
    }

    fn settle_delivered(
        &mut self,
        portion: Portion,
        events: usize,
        body_bytes: usize,
        status: u16,
    ) {
        if let Some(sibling) = &portion.sibling {
            self.again.blame(sibling);
        }
        self.context
            .stats
            .delivered(&self.stats, events as u64, body_bytes as u64);
        // Where another call of this lane has failed since this one began, its pause stands.
        if self.pause_until.is_none() {
            self.flow_again(status);
        }
        // Last, so that whoever sees the queue empty sees the rest counted.
        self.reader.settle(portion.ordinals);
    }

    fn flow_again(&mut self, status: u16) {
        if self.trouble.take().is_some() {
            info!(lane = %self.reader.lane().id(), failures = self.backoff.failures(), "a lane delivers again");
        }
        self.proven = true;
        self.backoff.reset();
        self.stats.flowing(status);
    }

    /// Makes an event that was refused on its own a dead letter. It leaves its lane only once it is safe there.
    async fn bury_refused(&mut self, event: Portion, answer: Answer) {
        let (status, body) = match answer {
            Answer::Answered { status, body, .. } => (Some(status), body),
            Answer::TokenRefused { .. } | Answer::Unanswered { .. } | Answer::Unsent { .. } => {
                (None, String::new())
            }
        };
        let letter = DeadLetter {
            code: "refused".into(),
            reason: "the destination refused the event".into(),
            status,
            answer: body,
            attempts: event.attempts,
            ..self.letter()
        };
        let buried = match self.reader.read_again(event.ordinals.clone()).await {
            Ok(records) => self
                .bury(&records, &letter)
                .await
                .map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let lane = self.reader.lane().id();
        match buried {
            Ok(()) => {
                warn!(%lane, ?status, "an event was refused for good; it is a dead letter now");
            }
            Err(error) => {
                error!(%lane, error, "a refused event stays in its lane");
                self.again.insert(event);
                self.back_off(LaneState::BackingOff, &error);
            }
        }
    }

    /// Makes dead letters of the events that are older than the operator wants any to become, and returns the others. What cannot
    /// be buried is still good to be delivered.
    async fn without_expired(&mut self, records: Vec<Record>) -> Vec<Record> {
        let (Some(max_age), setting) = self.destination.max_age() else {
            return records;
        };
        let oldest = Timestamp::now().as_millisecond() - max_age.as_millis() as i64;
        let (expired, mut fresh): (Vec<_>, Vec<_>) =
            records.into_iter().partition(|r| r.accepted_at_ms < oldest);
        if expired.is_empty() {
            return fresh;
        }
        let letter = DeadLetter {
            code: "expired".into(),
            reason: format!("the event is older than {setting}"),
            ..self.letter()
        };
        let lane = self.reader.lane().id();
        let events: usize = expired.iter().map(Record::len).sum();
        match self.bury(&expired, &letter).await {
            Ok(()) => {
                warn!(%lane, events, setting, "events are older than a setting allows; they are dead letters now");
            }
            Err(error) => {
                error!(%lane, %error, setting, "events older than a setting allows stay in their lane");
                fresh.splice(..0, expired);
            }
        }
        fresh
    }

    /// A dead letter of this lane, to be filled in.
    fn letter(&self) -> DeadLetter {
        DeadLetter {
            lane: Some(self.reader.lane().name().clone()),
            buried_at_ms: Timestamp::now().as_millisecond(),
            ..DeadLetter::default()
        }
    }

    /// Makes a dead letter like this one of every event, counts and settles them.
    async fn bury(&self, records: &[Record], letter: &DeadLetter) -> Result<(), BuryError> {
        let letters = records.iter().flat_map(|record| {
            (0..record.len()).map(|index| {
                let letter = DeadLetter {
                    accepted_at_ms: record.accepted_at_ms,
                    event: record.event(index).to_vec(),
                    ..letter.clone()
                };
                (record.position, record.skipped + index as u32, letter)
            })
        });
        let dead_letters = self.context.queue.dead_letters();
        dead_letters.bury(letters.collect()).await?;
        for record in records {
            let events = (0..record.len()).map(|index| record.event(index));
            let reason = format!("{}: {}", letter.code, letter.reason);
            self.tell(
                self.sift(What::Refused, events),
                Some(reason),
                letter.status,
            );
            let events = record.len() as u64;
            self.context.stats.buried(&self.stats, events);
            self.reader.settle(record.first..record.first + events);
        }
        Ok(())
    }

    /// What the tail is to be told of these events; nothing while nobody listens.
    fn sift<'a>(&self, what: What, events: impl Iterator<Item = &'a [u8]>) -> Vec<Sighting> {
        let tail = &self.context.stats.tail;
        if !tail.is_heard() {
            return Vec::new();
        }
        let source = source(what, Some(self.reader.lane().name()));
        let now = Timestamp::now();
        events
            .filter_map(|event| tail.sift(&source, now, event.len(), || label(event)))
            .collect()
    }

    fn tell(&self, sightings: Vec<Sighting>, reason: Option<String>, status: Option<u16>) {
        let now = Timestamp::now();
        for sighting in sightings {
            let sighting = Sighting {
                reason: reason.clone(),
                status,
                ..sighting
            };
            self.context.stats.tail.tell(sighting, now);
        }
    }

    /// Waits as long as failures in a row demand. Calls that fail together count once.
    fn back_off(&mut self, state: LaneState, reason: &str) {
        if self.pause_until.is_none() {
            let wait = self.backoff.fail();
            self.pause(state, reason, wait);
        }
    }

    fn pause(&mut self, state: LaneState, reason: &str, wait: Duration) {
        let lane = self.reader.lane().id();
        let attempt = self.backoff.failures();
        if self.trouble.replace(state) != Some(state) {
            if state == LaneState::Held {
                error!(%lane, reason, "a lane is held; its key, OAuth credentials or endpoint, or its webhook's URL or headers, need attention");
            } else {
                warn!(%lane, reason, ?wait, "delivery failed, backing off");
            }
        }
        self.put_aside();
        // Calls under way together may be asked for different pauses: the longest holds.
        let until = Instant::now() + wait;
        self.pause_until = Some(self.pause_until.map_or(until, |before| before.max(until)));
        self.stats.waiting(state, reason, attempt, wait);
    }
}

/// Whether a call made now comes too late for Segment to know what a call at `then_ms` brought.
fn is_late(then_ms: i64, now: Timestamp) -> bool {
    now.as_millisecond() - then_ms > DEDUP_WINDOW.as_millis() as i64
}

async fn passed(until: Option<Instant>) {
    if let Some(until) = until {
        sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_late_once_segment_may_have_forgotten_the_one_before() {
        let now: Timestamp = "2026-11-23T14:00:00Z".parse().expect("a timestamp");
        let ago = |hours: i64| now.as_millisecond() - hours * 3_600_000;
        for (then, expected) in [
            (ago(0), false),
            (ago(24), false),
            (ago(25), true),
            (ago(-1), false),
        ] {
            assert_eq!(is_late(then, now), expected, "{then}");
        }
    }
}
