//! Accepts a request's events: decode, validate, stamp, append to the lane of each, and to those of the webhooks that want it,
//! count.
//!
//! The answer is given once every accepted event is as durable as the queue makes it. A bad event never costs its
//! neighbours: it is told to the sender, and kept as a dead letter so that a fire-and-forget client's bug can be seen.
//! Knows nothing of HTTP.

mod receive;
mod replay;
mod share;
mod sight;
mod trigger;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;

use crate::event::{
    Code, Envelope, Facts, Kind, RawEvent, Rejection, Stamp, WriteKey, decode_batch, decode_pixel,
    decode_single, stamp, validate,
};
use crate::queue::{AppendError, DeadLetter, Durability, Lane, LaneName, Load, Queue, Run};
use crate::stats::{Sighting, Stats, What};

pub use receive::Receiver;
pub use replay::{Replayed, Stopped};
pub use sight::{label, source};
pub use trigger::{Trigger, Wanted, webhook_lane};

use trigger::Copies;

/// The kind of lane that leads to Segment.
pub const SEGMENT: &str = "segment";
/// What one request's events may grow to when the envelope's context is copied into each, and each is copied for webhooks, in
/// bytes. A request that stays under the listener's cap reaches this only by design.
const STAMPED_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What a request's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// One message of the kind that the path names.
    Single(Kind),
    /// The fields of a pixel call: one message of the kind that the path names.
    Pixel(Kind),
    /// A batch.
    Batch,
}

impl Call {
    /// What its path calls it.
    fn name(self) -> String {
        match self {
            Call::Single(kind) => kind.name().into(),
            Call::Pixel(kind) => format!("{PIXEL}{kind}"),
            Call::Batch => BATCH.into(),
        }
    }

    /// How a dead letter remembers an item of it: an item of a batch says by itself what it is.
    fn of_item(self) -> Option<Call> {
        match self {
            Call::Single(kind) | Call::Pixel(kind) => Some(Call::Single(kind)),
            Call::Batch => None,
        }
    }
}

/// What the paths of pixel calls begin with.
const PIXEL: &str = "pixel/";
/// What the path of a batch is.
const BATCH: &str = "batch";

/// Which clock a request's times are by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// This machine's.
    Shared,
    /// Another one, which may be off.
    Foreign,
}

/// What the operator says of write keys, clocks and webhooks.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The write key of requests that carry none.
    pub write_key: Option<WriteKey>,
    /// The write keys that may be used; empty: any. They are looked up by hash and not in constant time: a write key is no
    /// proof of who one is, every page that sends to Segment shows its own.
    pub allowed_write_keys: HashSet<WriteKey>,
    /// How far a foreign clock may be off before the times by it are corrected; none: they never are.
    pub clock_skew_over: Option<Duration>,
    /// Who else gets what is accepted.
    pub triggers: Vec<Trigger>,
    /// Whether and how events from Segment are received.
    pub receiver: Option<Receiver>,
}

impl Rules {
    fn allow(&self, key: &WriteKey) -> Result<(), Rejection> {
        let allowed = &self.allowed_write_keys;
        if allowed.is_empty() || allowed.contains(key) {
            return Ok(());
        }
        Err(Rejection::new(
            Code::WriteKeyNotAllowed,
            "the write key is none of ingest.allowed_write_keys",
        ))
    }
}

/// What became of a request of which at least one event was accepted.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// How many events.
    pub accepted: usize,
    /// The events that were not.
    pub rejected: Vec<RejectedItem>,
    /// How safe the accepted ones are.
    pub durability: Durability,
}

/// An event that can never be accepted.
#[derive(Clone, Debug)]
pub struct RejectedItem {
    /// Its place in the batch, from 0.
    pub index: usize,
    /// Why.
    pub rejection: Rejection,
}

/// Why nothing of a request was accepted.
#[derive(Clone, Debug)]
pub enum Refusal {
    /// It can never be.
    Rejected(Rejection),
    /// Its events grow over a bound in memory.
    TooLarge,
    /// It is not signed with the secret that was agreed on.
    NotSigned,
    /// Only the first of its events is signed.
    PartlySigned,
    /// There are too many lanes for another write key.
    TooManyLanes,
    /// The queue did not take it; it may later.
    Queue(AppendError),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Rejected(rejection) => write!(f, "{rejection}"),
            Refusal::TooLarge => {
                f.write_str("the events are too large with their envelope's context")
            }
            Refusal::NotSigned => {
                f.write_str("X-Signature is not that of the body by receiver.secret_file")
            }
            Refusal::PartlySigned => f.write_str(
                "of several events X-Signature is that of the first alone; receiver.batches = true takes the others on trust",
            ),
            Refusal::TooManyLanes => f.write_str("there are too many different write keys"),
            Refusal::Queue(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for Refusal {}

/// The way in. Cheap to share.
#[derive(Debug)]
pub struct Ingest {
    queue: Queue,
    stats: Arc<Stats>,
    rules: RwLock<Arc<Rules>>,
    now: fn() -> Timestamp,
}

impl Ingest {
    /// The way into `queue`.
    #[must_use]
    pub fn new(rules: Rules, queue: Queue, stats: Arc<Stats>) -> Ingest {
        Ingest {
            queue,
            stats,
            rules: RwLock::new(Arc::new(rules)),
            now: Timestamp::now,
        }
    }

    /// Goes by other rules from the next request on.
    pub fn go_by(&self, rules: Rules) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }

    fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes the time from elsewhere.
    #[must_use]
    pub fn with_now(self, now: fn() -> Timestamp) -> Ingest {
        Ingest { now, ..self }
    }

    /// Accepts the events of a body: [`Ingest::prepare`], then [`Ingest::store`].
    ///
    /// # Errors
    /// A [`Refusal`]: then no event of the request was accepted.
    pub async fn accept(
        &self,
        call: Call,
        clock: Clock,
        credentials: Option<WriteKey>,
        body: &[u8],
    ) -> Result<Accepted, Refusal> {
        let prepared = self.prepare(call, clock, credentials, body)?;
        self.store(prepared).await
    }

    /// Decodes, validates and stamps the events of a body, which is not needed afterwards. `credentials` is the write key of the
    /// request's header, where it has one.
    ///
    /// # Errors
    /// A [`Refusal`]: then no event of the request can be accepted.
    pub fn prepare(
        &self,
        call: Call,
        clock: Clock,
        credentials: Option<WriteKey>,
        body: &[u8],
    ) -> Result<Prepared, Refusal> {
        let message;
        let decoded = match call {
            Call::Single(kind) => decode_single(kind, body),
            Call::Pixel(kind) => match decode_pixel(body) {
                Ok(decoded) => {
                    message = decoded;
                    decode_single(kind, &message)
                }
                Err(rejection) => Err(rejection),
            },
            Call::Batch => decode_batch(body),
        };
        let rejected = |rejection| {
            let key = credentials.as_ref();
            let lane = key
                .filter(|key| self.rules().allow(key).is_ok())
                .map(lane_of);
            self.reject(vec![self.letter(lane, Some(call), &rejection, body)]);
            Refusal::Rejected(rejection)
        };
        let envelope = decoded.map_err(rejected)?;
        let key = match &credentials {
            Some(key) => Some(key.clone()),
            None => envelope.write_key().map_err(rejected)?,
        };
        let stamping = self.stamping(clock, (self.now)());
        let prepared = self.sort(call, &envelope, key, &stamping)?;
        if prepared.accepted == 0 {
            self.reject(prepared.letters);
            let first = prepared.rejected.into_iter().next();
            let first = first.expect("a request without events was rejected when it was decoded");
            return Err(Refusal::Rejected(first.rejection));
        }
        Ok(prepared)
    }

    /// Stores what was prepared, and returns once that is as durable as the queue makes it.
    ///
    /// # Errors
    /// A [`Refusal`]: then no event of the request was accepted.
    pub async fn store(&self, mut prepared: Prepared) -> Result<Accepted, Refusal> {
        let (letters, rejected) = (
            std::mem::take(&mut prepared.letters),
            std::mem::take(&mut prepared.rejected),
        );
        let (accepted, long_message_ids) = (prepared.accepted, prepared.long_message_ids);
        let (loads, left_out) = self.leave_out(prepared.loads());
        let durability = self.append(loads).await?;
        left_out.count();
        self.stats.long_message_ids.add(long_message_ids);
        // Only now: a request that was not taken comes again, with the same bad events.
        self.reject(letters);
        Ok(Accepted {
            accepted,
            rejected,
            durability,
        })
    }

    /// Validates and stamps every event and sorts them by lane. Changes nothing.
    fn sort(
        &self,
        call: Call,
        envelope: &Envelope<'_>,
        key: Option<WriteKey>,
        stamping: &Stamp,
    ) -> Result<Prepared, Refusal> {
        let mut prepared = self.prepared();
        for (index, raw) in envelope.events.iter().enumerate() {
            let result = self.prepare_one(raw, key.as_ref(), envelope, stamping, &mut prepared);
            if let Err(Unfit { lane, rejection }) = result {
                let json = raw.json().as_bytes();
                let letter = self.letter(lane, call.of_item(), &rejection, json);
                prepared.letters.push(letter);
                prepared.rejected.push(RejectedItem { index, rejection });
            }
            if prepared.bytes + prepared.copies.bytes() > STAMPED_BYTES_MAX {
                return Err(Refusal::TooLarge);
            }
        }
        Ok(prepared)
    }

    fn stamping(&self, clock: Clock, now: Timestamp) -> Stamp {
        let stamping = Stamp::at(now);
        match (clock, self.rules().clock_skew_over) {
            (Clock::Foreign, Some(over)) => stamping.correcting_clocks(over),
            (Clock::Foreign, None) | (Clock::Shared, _) => stamping,
        }
    }

    fn prepared(&self) -> Prepared {
        Prepared {
            rules: self.rules(),
            ..Prepared::default()
        }
    }

    fn prepare_one(
        &self,
        raw: &RawEvent<'_>,
        key: Option<&WriteKey>,
        envelope: &Envelope<'_>,
        stamping: &Stamp,
        prepared: &mut Prepared,
    ) -> Result<(), Unfit> {
        let rules = Arc::clone(&prepared.rules);
        // First, because an event with a key that may not be used has no lane of ours.
        if let Some(key) = key {
            rules.allow(key)?;
        }
        let event = validate(raw).map_err(|rejection| Unfit {
            lane: key.map(lane_of),
            rejection,
        })?;
        // Header, envelope, message, configuration: the first that has one.
        let key = match key {
            Some(key) => Some(key.clone()),
            None => event.write_key()?.or_else(|| rules.write_key.clone()),
        };
        let key = key.ok_or_else(|| {
            Rejection::new(
                Code::WriteKeyNotDefined,
                "neither the Authorization header nor `writeKey` names a write key",
            )
        })?;
        rules.allow(&key)?;
        let id_is_long = event.message_id_is_long();
        let run = prepared.lanes.entry(key.clone()).or_default();
        let before = run.byte_len();
        let stamped =
            stamp(event, envelope, stamping, run.buffer()).map_err(|rejection| Unfit {
                lane: Some(lane_of(&key)),
                rejection,
            })?;
        run.close_event();
        if !rules.triggers.is_empty()
            && let Some(facts) = Facts::of(&run.buffer()[stamped.bytes])
        {
            prepared
                .copies
                .add(&rules.triggers, &facts, stamping.received());
        }
        prepared.bytes += run.byte_len() - before;
        prepared.accepted += 1;
        prepared.long_message_ids += u64::from(id_is_long);
        Ok(())
    }

    async fn append(
        &self,
        by_lane: impl IntoIterator<Item = (LaneName, Load)>,
    ) -> Result<Durability, Refusal> {
        let mut loads: Vec<(Arc<Lane>, Load)> = Vec::new();
        let (mut counts, mut sightings) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        for (name, load) in by_lane.into_iter().filter(|(_, load)| !load.is_empty()) {
            let lane = self.queue.lane(&name).ok_or(Refusal::TooManyLanes)?;
            // Over all lanes an event counts once, and not once more for each webhook that wants it.
            let once = name.destination == SEGMENT;
            bytes += if once { load.byte_len() } else { 0 };
            if self.stats.tail.is_heard() {
                let (source, now) = (source(What::Accepted, Some(&name)), (self.now)());
                let sift = |event: &[u8]| {
                    let tail = &self.stats.tail;
                    tail.sift(&source, now, event.len(), || label(event))
                };
                sightings.extend(load.iter().filter_map(sift));
            }
            let stats = self.stats.lane(&lane.id().to_string());
            counts.push((stats, load.len() as u64, once));
            loads.push((lane, load));
        }
        if loads.is_empty() {
            return Ok(self.queue.durability());
        }
        let (queue, stats, now) = (self.queue.clone(), Arc::clone(&self.stats), self.now);
        // A task of its own: a client that goes away before its answer ends this one, and its events would be stored but not counted.
        let appending = tokio::spawn(async move {
            let durability = queue.append(loads).await?;
            for (lane, events, once) in counts {
                stats.accepted(&lane, events, once);
            }
            stats.accepted_bytes.add(bytes as u64);
            for sighting in sightings {
                stats.tail.tell(sighting, now());
            }
            Ok(durability)
        });
        let appended = appending.await.unwrap_or(Err(AppendError::Closed));
        appended.map_err(Refusal::Queue)
    }

    fn reject(&self, letters: Vec<DeadLetter>) {
        if !letters.is_empty() {
            self.stats.rejected_events.add(letters.len() as u64);
            for letter in &letters {
                let lane = letter.lane.as_ref();
                self.tell_rejected(lane, &letter.code, &letter.reason, &letter.event);
            }
            self.queue.dead_letters().keep_rejected(letters);
        }
    }

    fn tell_rejected(&self, lane: Option<&LaneName>, code: &str, reason: &str, event: &[u8]) {
        let (tail, now) = (&self.stats.tail, (self.now)());
        if !tail.is_heard() {
            return;
        }
        let source = source(What::Rejected, lane);
        if let Some(sighting) = tail.sift(&source, now, event.len(), || label(event)) {
            let reason = Some(format!("{code}: {reason}"));
            tail.tell(Sighting { reason, ..sighting }, now);
        }
    }

    /// A rejected event, or, with its `call`, a whole body.
    fn letter(
        &self,
        lane: Option<LaneName>,
        call: Option<Call>,
        rejection: &Rejection,
        event: &[u8],
    ) -> DeadLetter {
        let now = (self.now)().as_millisecond();
        DeadLetter {
            lane,
            call: call.map(Call::name),
            code: rejection.code().as_str().into(),
            reason: rejection.message().into(),
            accepted_at_ms: now,
            buried_at_ms: now,
            event: event.to_vec(),
            ..DeadLetter::default()
        }
    }
}

/// A request's events on their way to their lanes.
#[derive(Debug, Default)]
#[must_use]
pub struct Prepared {
    rules: Arc<Rules>,
    lanes: HashMap<WriteKey, Run>,
    copies: Copies,
    accepted: usize,
    long_message_ids: u64,
    bytes: usize,
    rejected: Vec<RejectedItem>,
    letters: Vec<DeadLetter>,
}

impl Prepared {
    /// The events, and their copies, by the lanes they go to.
    fn loads(self) -> Vec<(LaneName, Load)> {
        let own = self.lanes.into_iter();
        own.map(|(key, run)| (lane_of(&key), run.into()))
            .chain(self.copies.loads(&self.rules.triggers))
            .collect()
    }
}

/// An event that cannot be accepted, and the lane it was meant for, where that is known.
struct Unfit {
    lane: Option<LaneName>,
    rejection: Rejection,
}

impl From<Rejection> for Unfit {
    fn from(rejection: Rejection) -> Unfit {
        Unfit {
            lane: None,
            rejection,
        }
    }
}

fn lane_of(key: &WriteKey) -> LaneName {
    LaneName::new(SEGMENT, key.expose())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::queue::Config;

    #[tokio::test]
    async fn only_the_times_of_a_foreign_clock_are_corrected_and_only_if_the_operator_wants_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().to_owned();
        let opening = tokio::task::spawn_blocking(move || Queue::open(&path, &Config::default()));
        let (queue, _new_lanes) = opening.await.expect("no panic").expect("opened");
        let now = Timestamp::now();
        let sent = now - Duration::from_secs(3600);
        let body = format!(
            r#"{{"type":"track","userId":"u","event":"E","timestamp":"{sent:.3}","sentAt":"{sent:.3}"}}"#
        );
        let ten_minutes = Some(Duration::from_secs(600));
        let day = Some(Duration::from_secs(86_400));
        for (clock, clock_skew_over, is_corrected) in [
            (Clock::Foreign, ten_minutes, true),
            (Clock::Foreign, day, false),
            (Clock::Foreign, None, false),
            (Clock::Shared, ten_minutes, false),
        ] {
            let rules = Rules {
                clock_skew_over,
                ..Rules::default()
            };
            let ingest = Ingest::new(rules, queue.clone(), Arc::default());
            let envelope = decode_single(Kind::Track, body.as_bytes()).expect("JSON");
            let key = WriteKey::new("KEY12345").ok();
            let stamping = ingest.stamping(clock, now);
            let call = Call::Single(Kind::Track);
            let prepared = ingest.sort(call, &envelope, key, &stamping);
            let prepared = prepared.expect("prepared");
            let run = prepared.lanes.values().next().expect("a lane");
            let event: Value =
                serde_json::from_slice(run.iter().next().expect("an event")).expect("JSON");
            let stored: Timestamp = event["timestamp"]
                .as_str()
                .and_then(|time| time.parse().ok())
                .expect("a time");
            let moved = stored.duration_since(sent).as_secs();
            assert_eq!(moved >= 3599, is_corrected, "{clock:?} {clock_skew_over:?}");
            assert_eq!(event.get("originalTimestamp").is_some(), is_corrected);
            assert_eq!(event.get("sentAt"), None);
        }
        queue.close().await;
    }
}
