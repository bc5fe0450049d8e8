//! The loop of one lane: wait, fill, send, judge, settle.
//!
//! Batches leave in order of acceptance. While all goes well up to `concurrency` calls are under way; after a failure one
//! at a time, until one succeeds. What is to be sent again stands before what was never sent, so that with a concurrency of 1
//! the order holds throughout. Halves and retries are made of the same events: the queue is not read twice.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info, warn};

use super::Context;
use super::backoff::Backoff;
use super::request::Answer;
use super::verdict::{Verdict, verdict};
use crate::batch::{Assembler, Batch, Envelope};
use crate::queue::{DeadLetter, LaneReader};
use crate::stats::{LaneState, LaneStats};

/// A call's events and what became of them.
type Call = BoxFuture<'static, (Batch, Answer)>;

pub(super) struct LaneLoop {
    context: Arc<Context>,
    reader: LaneReader,
    stats: Arc<LaneStats>,
    envelope: Arc<Envelope>,
    assembler: Assembler,
    /// To be sent again, the oldest events first.
    again: VecDeque<Batch>,
    backoff: Backoff,
    /// No call before this.
    pause_until: Option<Instant>,
    /// The last call failed: one at a time until one succeeds.
    suspect: bool,
    /// A call has succeeded: until then, too, one at a time.
    proven: bool,
    /// When the events that wait for a batch to fill were first seen.
    lingering_since: Option<Instant>,
}

impl LaneLoop {
    pub(super) fn new(context: Arc<Context>, reader: LaneReader) -> LaneLoop {
        let lane = reader.lane();
        let envelope = Envelope::segment(lane.name().expose_key());
        LaneLoop {
            stats: context.stats.lane(&lane.id().to_string()),
            assembler: Assembler::new(context.config.segment.limits(), envelope.bytes()),
            envelope: Arc::new(envelope),
            again: VecDeque::new(),
            backoff: Backoff::new(context.config.retry.base, context.config.retry.max),
            pause_until: None,
            suspect: false,
            proven: false,
            lingering_since: None,
            reader,
            context,
        }
    }

    /// Runs as long as the process delivers.
    pub(super) async fn run(mut self) {
        let mut calls: FuturesUnordered<Call> = FuturesUnordered::new();
        loop {
            self.stats.in_flight(calls.len());
            let may_call = self.pause_until.is_none() && calls.len() < self.calls_max();
            tokio::select! {
                Some((batch, answer)) = calls.next() => self.judge(batch, answer).await,
                () = pause_ended(self.pause_until), if self.pause_until.is_some() => self.pause_until = None,
                slot = self.slot_for_batch(), if may_call => {
                    if let Some(batch) = self.next_batch().await {
                        calls.push(self.call(batch, slot));
                    }
                }
            }
        }
    }

    fn calls_max(&self) -> usize {
        if self.suspect || !self.proven {
            1
        } else {
            self.context.config.segment.concurrency
        }
    }

    /// Waits until a batch should go, and then for a slot for its call. Nothing is read before: what waits for a slot waits on
    /// disk, however many lanes there are.
    async fn slot_for_batch(&mut self) -> OwnedSemaphorePermit {
        self.batch_due().await;
        let slots = if self.suspect {
            &self.context.suspect_slots
        } else {
            &self.context.slots
        };
        let slot = Arc::clone(slots).acquire_owned().await;
        slot.expect("the slots are never closed")
    }

    /// Returns once a batch should go: one is to be sent again, a full one can be had, or events have lingered long enough.
    async fn batch_due(&mut self) {
        while self.again.is_empty() {
            let unread = self.reader.unread();
            if unread.events == 0 && self.assembler.is_empty() {
                self.lingering_since = None;
                self.reader.published().await;
                continue;
            }
            if self.assembler.missing_bytes(unread.events, unread.bytes) == 0 {
                return;
            }
            let since = *self.lingering_since.get_or_insert_with(Instant::now);
            let mut hurry = self.context.hurry.subscribe();
            tokio::select! {
                () = self.reader.published() => {}
                _ = hurry.wait_for(|hurry| *hurry) => return,
                () = sleep_until(since + self.context.config.segment.linger) => return,
            }
        }
    }

    /// The batch that goes next. None where the disk does not give it: the lane then pauses.
    async fn next_batch(&mut self) -> Option<Batch> {
        self.lingering_since = None;
        if let Some(batch) = self.again.pop_front() {
            return Some(batch);
        }
        loop {
            let missing = self.assembler.missing_bytes(0, 0);
            if missing == 0 {
                break;
            }
            match self.reader.read(missing).await {
                Ok(reading) => {
                    for ordinals in reading.buried {
                        let events = ordinals.end - ordinals.start;
                        self.stats.dead_letter_events.add(events);
                        self.reader.settle(ordinals);
                    }
                    if reading.records.is_empty() {
                        break;
                    }
                    reading
                        .records
                        .into_iter()
                        .for_each(|record| self.assembler.push(record));
                }
                Err(error) => {
                    error!(lane = %self.reader.lane().id(), %error, "a lane cannot be read");
                    self.back_off(LaneState::BackingOff, "the disk cannot be read");
                    break;
                }
            }
        }
        self.assembler.take()
    }

    /// One call, from the body to the answer.
    fn call(&self, batch: Batch, slot: OwnedSemaphorePermit) -> Call {
        let context = Arc::clone(&self.context);
        let envelope = Arc::clone(&self.envelope);
        let name = self.reader.lane().name().clone();
        if batch.attempts > 0 {
            self.stats.retries.add(1);
        }
        Box::pin(async move {
            let _slot = slot;
            // At every attempt anew: Segment takes the time between sentAt and its own receipt for the sender's clock error.
            let body = envelope.body(&batch, Timestamp::now());
            let answer = context
                .sender
                .send(name.expose_key(), body, batch.attempts)
                .await;
            (batch, answer)
        })
    }

    /// Does with a batch what its answer means.
    async fn judge(&mut self, mut batch: Batch, answer: Answer) {
        let lane = self.reader.lane().id();
        batch.attempts += 1;
        let (status, error) = match &answer {
            Answer::Answered { status, .. } => (Some(*status), format!("answered {status}")),
            Answer::Unanswered { error } => (None, error.clone()),
        };
        match verdict(&answer) {
            Verdict::Delivered => {
                debug!(%lane, events = batch.len(), attempts = batch.attempts, "delivered a batch");
                self.settle_delivered(&batch, status.unwrap_or_default());
            }
            Verdict::Retry { after } => {
                self.stats.failed(status, &error);
                self.send_again(batch);
                match after {
                    Some(pause) => self.pause(LaneState::RateLimited, &error, pause),
                    None => self.back_off(LaneState::BackingOff, &error),
                }
            }
            Verdict::Hold => {
                self.stats.failed(status, &error);
                self.send_again(batch);
                self.pause(
                    LaneState::Held,
                    &error,
                    self.context.config.retry.hold_probe,
                );
            }
            Verdict::Refused => {
                self.stats.failed(status, &error);
                match batch.halve() {
                    Ok((first, second)) => {
                        debug!(%lane, events = first.len() + second.len(), error, "refused a batch; its halves follow");
                        self.send_again(first);
                        self.send_again(second);
                    }
                    Err(event) => self.bury(event, answer).await,
                }
            }
        }
    }

    /// Puts a batch among those to be sent again, in order of acceptance.
    fn send_again(&mut self, batch: Batch) {
        let start = batch.ordinals().start;
        let at = self
            .again
            .partition_point(|other| other.ordinals().start < start);
        self.again.insert(at, batch);
    }

    fn settle_delivered(&mut self, batch: &Batch, status: u16) {
        let bytes = self.envelope.body_bytes(batch);
        self.context
            .stats
            .delivered(&self.stats, batch.len() as u64, bytes as u64);
        // Where another call of this lane has failed since this one began, its pause stands.
        if self.pause_until.is_none() {
            self.flow_again(status);
        }
        // Last, so that whoever sees the queue empty sees the rest counted.
        self.reader.settle(batch.ordinals());
    }

    fn flow_again(&mut self, status: u16) {
        if self.suspect {
            info!(lane = %self.reader.lane().id(), failures = self.backoff.failures(), "a lane delivers again");
        }
        self.suspect = false;
        self.proven = true;
        self.backoff.reset();
        self.stats.flowing(status);
    }

    /// Makes the one event of `event` a dead letter. It leaves its lane only once it is safe there.
    async fn bury(&mut self, event: Batch, answer: Answer) {
        let lane = self.reader.lane();
        let place = event.place();
        let (status, body) = match answer {
            Answer::Answered { status, body, .. } => (Some(status), body),
            Answer::Unanswered { .. } => (None, String::new()),
        };
        let letter = DeadLetter {
            lane: Some(lane.name().clone()),
            call: None,
            code: "refused".into(),
            reason: "the destination refused the event".into(),
            status,
            answer: body,
            attempts: event.attempts,
            accepted_at_ms: place.accepted_at_ms,
            buried_at_ms: Timestamp::now().as_millisecond(),
            event: event.events().flatten().copied().collect(),
        };
        match self
            .context
            .queue
            .dead_letters()
            .bury(vec![(place.position, place.index, letter)])
            .await
        {
            Ok(()) => {
                warn!(lane = %lane.id(), ?status, "an event was refused for good; it is a dead letter now");
                self.stats.dead_letter_events.add(1);
                self.reader.settle(event.ordinals());
            }
            Err(error) => {
                error!(lane = %lane.id(), %error, "a refused event stays in its lane");
                self.send_again(event);
                self.back_off(LaneState::BackingOff, &error.to_string());
            }
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
        if !self.suspect || self.stats.state() != state {
            if state == LaneState::Held {
                error!(%lane, reason, "a lane is held; its key or endpoint needs attention");
            } else {
                warn!(%lane, reason, ?wait, "delivery failed, backing off");
            }
        }
        self.suspect = true;
        // Calls under way together may be asked for different pauses: the longest holds.
        let until = Instant::now() + wait;
        self.pause_until = Some(self.pause_until.map_or(until, |before| before.max(until)));
        self.stats.waiting(state, reason, attempt, wait);
    }
}

async fn pause_ended(until: Option<Instant>) {
    if let Some(until) = until {
        sleep_until(until).await;
    }
}
