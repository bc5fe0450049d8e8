//! The loop of one lane: wait, fill, send, judge, settle.
//!
//! Batches leave in order of acceptance. While all goes well up to `concurrency` calls are under way; after a failure, and while
//! a refused batch is searched for the event at fault, one at a time. What is to be sent again goes before what was never sent, so
//! that with a concurrency of 1 the order holds throughout. A webhook promises no order and takes one event a call: there an event
//! that fails lets others pass, and waits by itself once they have shown that it is the event's fault.
//!
//! A lane keeps events in memory only while calls are made of them, and those of one call more: what waits, for whatever reason, waits
//! on disk.

mod bury;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, OptionFuture};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
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
use crate::queue::{Hand, LaneReader, ReadError, Reading, Record};
use crate::stats::{LaneState, LaneStats, Sighting, What};

/// Segment removes an event that it has seen before for at least this long; a later one may be counted twice.
const DEDUP_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);
/// After how many calls in vain a destination is thought to take none at all.
const IN_VAIN_MIN: u32 = 3;
/// How many different events may fail one after another at a destination that answers, before the lane waits: they may have the
/// fault in common, and those behind them be good.
const FAULTS_IN_A_ROW_MAX: u32 = 8;
/// How many events that let others pass may wait by themselves. Each costs memory; with more, the lane waits for them.
const PASSED_MAX: usize = 1024;

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

type Read = BoxFuture<'static, Result<Reading, ReadError>>;

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
    /// Calls that the destination took.
    delivered: u64,
    /// Calls in a row that it did not take, but for events that are known to be at fault.
    in_vain: u32,
    /// How many events have failed for the first time since the lane last delivered or waited.
    faults_in_a_row: u32,
    /// What was wrong with the last of those that wait by themselves.
    fault: String,
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
            delivered: 0,
            in_vain: 0,
            faults_in_a_row: 0,
            fault: String::new(),
            settings,
            reader,
            context,
        }
    }

    /// Runs as long as the process delivers.
    pub(super) async fn run(mut self) {
        let mut calls: FuturesUnordered<Call> = FuturesUnordered::new();
        let mut ahead: Option<Read> = None;
        let mut hand = self.reader.lane().hand();
        let mut settings = self.context.settings.subscribe();
        self.obey(*hand.borrow_and_update());
        loop {
            self.stats.in_flight(calls.len());
            // One read at a time, or their events would change places.
            let may_call = self.pause_until.is_none()
                && !self.hand.paused
                && ahead.is_none()
                && calls.len() < self.calls_max();
            tokio::select! {
                Some(called) = calls.next() => {
                    let _working = self.context.pulse.work();
                    self.judge(called).await;
                }
                reading = OptionFuture::from(ahead.as_mut()), if ahead.is_some() => {
                    let _working = self.context.pulse.work();
                    ahead = None;
                    if let Some(reading) = reading {
                        self.end_ahead(reading).await;
                    }
                }
                () = passed(self.pause_until), if self.pause_until.is_some() => self.end_pause(),
                Ok(()) = hand.changed() => self.obey(*hand.borrow_and_update()),
                Ok(()) = settings.changed() => {
                    let settings = Arc::clone(&settings.borrow_and_update());
                    self.go_by(settings);
                }
                slot = self.slot_for_batch(), if may_call => {
                    let _working = self.context.pulse.work();
                    if let Some((portion, batch)) = self.next_batch().await {
                        calls.push(self.call(portion, batch, slot));
                        if ahead.is_none() {
                            ahead = self.read_ahead();
                        }
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
            self.again.wait_no_more();
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
        let destination = Arc::new(Destination::of(self.reader.lane().name(), &settings));
        let is_mended = self.destination != destination;
        self.destination = destination;
        self.assembler.set_limits(self.destination.limits());
        self.settings = settings;
        if is_mended || self.trouble == Some(LaneState::Held) {
            self.end_pause();
            self.again.wait_no_more();
        }
    }

    fn end_pause(&mut self) {
        self.pause_until = None;
        self.stats.pause_over();
    }

    /// Waits until a batch should go, and then for a slot for its call.
    async fn slot_for_batch(&mut self) -> OwnedSemaphorePermit {
        if self.pace_until.is_some_and(|until| until > Instant::now()) {
            self.stats
                .holds_back("keeping to segment.max_events_per_second");
        }
        passed(self.pace_until).await;
        self.batch_due().await;
        let is_suspect = self.trouble.is_some();
        let slots: Arc<Semaphore> = Arc::clone(self.destination.slots(&self.context, is_suspect));
        if let Ok(slot) = Arc::clone(&slots).try_acquire_owned() {
            return slot;
        }
        self.put_aside();
        self.stats
            .holds_back("waiting for other lanes' calls to end");
        slots
            .acquire_owned()
            .await
            .expect("the slots are never closed")
    }

    /// Returns once a batch should go: one is to be sent again, a full one can be had, or events have lingered long enough.
    async fn batch_due(&mut self) {
        loop {
            let now = Instant::now();
            let ready_at = self.again.ready_at(now);
            if ready_at.is_some_and(|at| at <= now) {
                return;
            }
            if self.again.len() >= PASSED_MAX {
                self.show_fault(ready_at);
                passed(ready_at).await;
                continue;
            }
            let unread = self.reader.unread();
            let (mut events, mut bytes) = (unread.events, unread.bytes);
            if let Some(aside) = &self.aside {
                events += aside.events as u64;
                bytes += aside.bytes as u64;
            }
            if events == 0 && self.assembler.is_empty() {
                self.lingering_since = None;
                match ready_at {
                    Some(_) => self.show_fault(ready_at),
                    None => self.stats.nothing_to_send(),
                }
                tokio::select! {
                    () = self.reader.published() => {}
                    () = passed(ready_at), if ready_at.is_some() => {}
                }
                continue;
            }
            if self.assembler.missing_bytes(events, bytes) == 0 {
                return;
            }
            let since = *self.lingering_since.get_or_insert_with(Instant::now);
            self.stats.holds_back("waiting for a batch to fill");
            let mut hurry = self.context.hurry.subscribe();
            tokio::select! {
                () = self.reader.published() => {}
                _ = hurry.wait_for(|hurry| *hurry) => return,
                () = sleep_until(since + self.destination.linger()) => return,
            }
        }
    }

    /// Says for what a lane waits that has nothing to send but events that wait by themselves.
    fn show_fault(&self, ready_at: Option<Instant>) {
        if let Some(at) = ready_at {
            let wait = at.saturating_duration_since(Instant::now());
            let attempt = self.again.attempts_max();
            self.stats
                .waiting(LaneState::BackingOff, &self.fault, attempt, wait);
        }
    }

    /// The batch that goes next. None where nothing is left to send, or the disk does not give it: the lane then pauses.
    async fn next_batch(&mut self) -> Option<(Portion, Batch)> {
        self.lingering_since = None;
        if let Err(error) = self.bury_old().await {
            return self.unreadable(&error);
        }
        // What has failed is no good for finding out whether the destination is well again, where others may pass.
        let lets_pass = self.trouble.is_some() && !self.destination.keeps_order();
        let next = if lets_pass && self.again.len() < PASSED_MAX {
            match self.fill().await {
                Ok(None) => self.repeat().await,
                filled => filled,
            }
        } else {
            match self.repeat().await {
                Ok(None) => self.fill().await,
                repeated => repeated,
            }
        };
        match next {
            Ok(next) => next,
            Err(error) => self.unreadable(&error),
        }
    }

    fn unreadable<T>(&mut self, error: &ReadError) -> Option<T> {
        error!(lane = %self.reader.lane().id(), %error, "a lane cannot be read");
        self.back_off(LaneState::BackingOff, "the disk cannot be read");
        None
    }

    /// What was sent before and has to be sent again.
    async fn repeat(&mut self) -> Result<Option<(Portion, Batch)>, ReadError> {
        while let Some(mut portion) = self.again.pop(Instant::now()) {
            let records = match self.reader.read_again(portion.ordinals.clone()).await {
                Ok(records) => records,
                Err(error) => {
                    self.again.insert(portion);
                    return Err(error);
                }
            };
            let (limits, envelope) = (self.destination.limits(), self.destination.envelope_bytes());
            let mut assembler = Assembler::new(limits, envelope);
            for record in self.without_expired(records, Some(portion.attempts)).await {
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
            if !self.take_up(reading).await {
                break;
            }
            if self.assembler.is_empty() {
                // All of it was too old. There may be much more of that: let the loop turn.
                return Ok(None);
            }
        }
        let batch = self.assembler.take();
        Ok(batch.map(|batch| {
            let portion = Portion::new(batch.ordinals(), batch.accepted_at_ms());
            (portion, batch)
        }))
    }

    /// Begins to read the next batch while calls are under way, if there is a full one: reading waits for a thread and for the disk, and
    /// the next call need not wait for both.
    fn read_ahead(&self) -> Option<Read> {
        let unread = self.reader.unread();
        let missing = self.assembler.missing_bytes(0, 0);
        let is_there = self.assembler.missing_bytes(unread.events, unread.bytes) == 0;
        let may = self.calls_max() > 1 && self.aside.is_none() && missing > 0 && is_there;
        may.then(|| self.reader.read(missing).boxed())
    }

    /// Takes up what was read ahead. Where the lane must wait meanwhile, it waits on disk with the rest.
    async fn end_ahead(&mut self, reading: Result<Reading, ReadError>) {
        match reading {
            Ok(reading) => {
                self.take_up(reading).await;
            }
            // Nothing was skipped: whoever reads next sees it too.
            Err(error) => debug!(lane = %self.reader.lane().id(), %error, "failed to read ahead"),
        }
        if self.aside.is_some() || self.pause_until.is_some() || self.hand.paused {
            self.put_aside();
        }
    }

    /// Takes up what was read. Returns false where that is no record.
    async fn take_up(&mut self, reading: Reading) -> bool {
        for ordinals in reading.buried {
            let events = ordinals.end - ordinals.start;
            self.context.stats.buried(&self.stats, events);
            self.reader.settle(ordinals);
        }
        let is_any = !reading.records.is_empty();
        self.take_in(reading.records).await;
        is_any
    }

    async fn take_in(&mut self, records: Vec<Record>) {
        for record in self.without_expired(records, None).await {
            self.assembler.push(record);
        }
    }

    /// Puts back what was read for a batch to come, so that it takes no memory while the lane waits.
    fn put_aside(&mut self) {
        let (events, bytes) = (self.assembler.events(), self.assembler.bytes());
        if let Some(ordinals) = self.assembler.put_down() {
            // Nothing is read past it but what was being read by then, which follows it.
            let before = self.aside.take();
            let start = before.as_ref().map_or(ordinals.start, |b| b.ordinals.start);
            self.aside = Some(Aside {
                ordinals: start..ordinals.end,
                events: events + before.as_ref().map_or(0, |b| b.events),
                bytes: bytes + before.as_ref().map_or(0, |b| b.bytes),
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
            Verdict::Retry { after: Some(pause) } => {
                if !self.set_apart(portion, &answer, Some(pause), &error) {
                    self.pause(LaneState::RateLimited, &error, pause);
                }
            }
            Verdict::Retry { after: None } => {
                if !self.set_apart(portion, &answer, None, &error) {
                    self.back_off(LaneState::BackingOff, &error);
                }
            }
            Verdict::Again => {
                debug!(%lane, events, error, "a token was refused; the events are sent again with another");
                self.again.insert(portion);
            }
            Verdict::Hold => {
                if !self.set_apart(portion, &answer, None, &error) {
                    let probe = self.settings.config.retry.hold_probe;
                    self.pause(LaneState::Held, &error, probe);
                }
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

    /// Keeps what failed to be sent again. Returns whether it waits by itself and the lane goes on: others were delivered since it
    /// failed before, so the fault is its own, or it fails for the first time, and the next ones will tell. A pause that was asked
    /// for is the lane's, unless the fault is the event's.
    fn set_apart(
        &mut self,
        mut portion: Portion,
        answer: &Answer,
        pause: Option<Duration>,
        error: &str,
    ) -> bool {
        let mut is_apart = false;
        if !self.destination.keeps_order() && !matches!(answer, Answer::Unsent { .. }) {
            let before = portion.failed_after.replace(self.delivered);
            let is_at_fault = before.is_some_and(|before| before < self.delivered);
            let faults_max = match answer {
                Answer::Answered { .. } | Answer::TokenRefused { .. } => FAULTS_IN_A_ROW_MAX,
                // It may be that nobody is there.
                Answer::Unanswered { .. } | Answer::Unsent { .. } => u32::from(self.proven),
            };
            let may_be_at_fault =
                before.is_none() && pause.is_none() && self.faults_in_a_row < faults_max;
            is_apart = is_at_fault || may_be_at_fault;
            self.in_vain += u32::from(!is_at_fault);
            self.faults_in_a_row += u32::from(!is_at_fault);
            let retry = &self.settings.config.retry;
            let wait = Backoff::wait(retry.base, retry.max, portion.attempts);
            portion.not_before = Some(Instant::now() + pause.unwrap_or(wait));
            error.clone_into(&mut self.fault);
        }
        self.again.insert(portion);
        is_apart
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
        self.delivered += 1;
        self.in_vain = 0;
        self.faults_in_a_row = 0;
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
        self.faults_in_a_row = 0;
        self.put_aside();
        // Calls under way together may be asked for different pauses: the longest holds.
        let until = Instant::now() + wait;
        self.pause_until = Some(self.pause_until.map_or(until, |before| before.max(until)));
        self.stats.waiting(state, reason, attempt, wait);
    }
}

/// When that was accepted, in Unix ms, which reaches this age now.
fn oldest_ms(max_age: Duration) -> i64 {
    Timestamp::now().as_millisecond() - max_age.as_millis() as i64
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
