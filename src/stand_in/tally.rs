//! What was delivered, and what was wrong with it. Pure: no I/O, no clock.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::batch::{BODY_BYTES_MAX, Call, Violation};

/// Enough for any test that compares payloads, and some 600 MB of ordinary events.
const RECORDED_EVENTS_MAX: usize = 1_000_000;

/// What a stand-in has counted since it was started or its tally cleared. An event is delivered when its call was
/// accepted: answered 2xx, or reset right after accepting. Calls to webhooks count below `hooks` and nowhere else.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Batch calls read in full, whatever their answer.
    pub requests: u64,
    /// Calls among them that carried `X-Retry-Count`.
    pub retried_requests: u64,
    /// The highest `X-Retry-Count` seen.
    pub retry_count_max: u32,
    /// Batches delivered.
    pub batches: u64,
    /// Events delivered, duplicates included.
    pub events: u64,
    /// Different `messageId`s among the delivered events.
    pub distinct_events: u64,
    /// Delivered events whose `messageId` had been delivered before.
    pub duplicate_events: u64,
    /// Delivered events without a `messageId`; neither distinct nor duplicates.
    pub anonymous_events: u64,
    /// Decoded bytes of the delivered batches' bodies.
    pub body_bytes: u64,
    /// How full the delivered batches were: their mean body, in parts of Segment's 500,000 bytes.
    pub mean_fill: f64,
    /// Events answered and thrown away because their batch broke a limit.
    pub rejected_events: u64,
    /// Batches that got no answer and were not accepted: reset, or left hanging until the client went away.
    pub unanswered_batches: u64,
    /// Events in those batches.
    pub unanswered_events: u64,
    /// Batches hanging at this moment.
    pub hanging_batches: u64,
    /// Answers given, by status or by the name of the fault.
    pub answers: BTreeMap<String, u64>,
    /// Limits broken, and how often. Empty unless strict.
    pub violations: BTreeMap<Violation, u64>,
    /// The deliveries by write key.
    pub write_keys: BTreeMap<String, KeyTally>,
    /// Delivered events that should have been recorded, but for the limit of a million.
    pub unrecorded_events: u64,
    /// The calls to webhooks by name.
    pub hooks: BTreeMap<String, HookTally>,
}

/// What one webhook was called with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookTally {
    /// Calls read in full, whatever their answer.
    pub requests: u64,
    /// Events delivered, duplicates included.
    pub events: u64,
    /// Different `messageId`s among the delivered events.
    pub distinct_events: u64,
    /// Delivered events whose `messageId` had been delivered to this webhook before.
    pub duplicate_events: u64,
    /// Delivered events without a `messageId`; neither distinct nor duplicates.
    pub anonymous_events: u64,
    /// Calls that got no answer and were not accepted: reset, or left hanging until the client went away.
    pub unanswered_requests: u64,
    /// Calls hanging at this moment.
    pub hanging_requests: u64,
    /// Answers given, by status or by the name of the fault.
    pub answers: BTreeMap<String, u64>,
    /// What was wrong with calls, and how often. Empty unless strict.
    pub violations: BTreeMap<Violation, u64>,
}

/// What was delivered for one write key. A `messageId` delivered for another key before is a duplicate here, as it is
/// to Segment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyTally {
    /// Batches delivered.
    pub batches: u64,
    /// Events delivered, duplicates included.
    pub events: u64,
    /// `messageId`s delivered for the first time.
    pub distinct_events: u64,
    /// Events whose `messageId` had been delivered before.
    pub duplicate_events: u64,
}

/// A delivered event, exactly as it was in the body.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RecordedEvent {
    /// Its place in the order of delivery, from 0.
    pub arrival: u64,
    /// The webhook that it was posted to; none for an event of a batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
    /// The write key of its batch; empty if it had none.
    pub write_key: String,
    /// The `sentAt` of its batch.
    pub sent_at: Option<String>,
    /// Its JSON, not a byte changed.
    pub event: Box<RawValue>,
}

/// The books behind a [`Tally`].
#[derive(Default)]
pub(super) struct Counts {
    tally: Tally,
    // A hash stands for each id: 64 bits confuse two of five million ids once in a million runs.
    deliveries: HashMap<u64, u32>,
    recorded: Vec<RecordedEvent>,
    arrivals: u64,
}

impl Counts {
    /// Counts a batch call.
    pub(super) fn request(&mut self, retry_count: Option<u32>, violations: &[Violation]) {
        self.tally.requests += 1;
        if let Some(retry_count) = retry_count {
            self.tally.retried_requests += 1;
            self.tally.retry_count_max = self.tally.retry_count_max.max(retry_count);
        }
        for violation in violations {
            *self.tally.violations.entry(*violation).or_default() += 1;
        }
    }

    /// Counts a call to a webhook.
    pub(super) fn hook_request(&mut self, name: &str, violations: &[Violation]) {
        let hook = self.hook(name);
        hook.requests += 1;
        for violation in violations {
            *hook.violations.entry(*violation).or_default() += 1;
        }
    }

    /// Counts the answer to a batch call, or to a call to this webhook.
    pub(super) fn answer(&mut self, hook: Option<&str>, name: String) {
        let answers = match hook {
            None => &mut self.tally.answers,
            Some(hook) => &mut self.hook(hook).answers,
        };
        *answers.entry(name).or_default() += 1;
    }

    /// Counts an accepted call; `ids` are the hashes of its events' `messageId`s, and of its webhook's name, if it is for one.
    pub(super) fn deliver(&mut self, call: &Call<'_>, ids: &[Option<u64>]) {
        let events = ids.len() as u64;
        let mut distinct = 0;
        let mut duplicates = 0;
        for id in ids.iter().flatten() {
            let times = self.deliveries.entry(*id).or_default();
            *times = times.saturating_add(1);
            if *times == 1 {
                distinct += 1;
            } else {
                duplicates += 1;
            }
        }
        self.arrivals += events;

        if let Some(name) = call.hook() {
            let hook = self.hook(name);
            hook.events += events;
            hook.distinct_events += distinct;
            hook.duplicate_events += duplicates;
            hook.anonymous_events += events - distinct - duplicates;
            return;
        }
        self.tally.batches += 1;
        self.tally.events += events;
        self.tally.distinct_events += distinct;
        self.tally.duplicate_events += duplicates;
        self.tally.anonymous_events += events - distinct - duplicates;
        self.tally.body_bytes += call.body().len() as u64;

        let write_key = call.write_key().unwrap_or_default();
        let key = self
            .tally
            .write_keys
            .entry(write_key.to_owned())
            .or_default();
        key.batches += 1;
        key.events += events;
        key.distinct_events += distinct;
        key.duplicate_events += duplicates;
    }

    /// Keeps the events of a call about to be delivered.
    pub(super) fn record(&mut self, call: &Call<'_>) {
        let room = RECORDED_EVENTS_MAX - self.recorded.len();
        let events = call.events();
        let kept = events.iter().take(room);
        let recorded = kept
            .zip(self.arrivals..)
            .map(|(event, arrival)| RecordedEvent {
                arrival,
                hook: call.hook().map(str::to_owned),
                write_key: call.write_key().unwrap_or_default().to_owned(),
                sent_at: call.sent_at().map(str::to_owned),
                event: (*event).to_owned(),
            });
        self.recorded.extend(recorded);
        self.tally.unrecorded_events += events.len().saturating_sub(room) as u64;
    }

    pub(super) fn reject(&mut self, events: usize) {
        self.tally.rejected_events += events as u64;
    }

    pub(super) fn leave_unanswered(&mut self, call: &Call<'_>) {
        match call.hook() {
            None => {
                self.tally.unanswered_batches += 1;
                self.tally.unanswered_events += call.len() as u64;
            }
            Some(name) => self.hook(name).unanswered_requests += 1,
        }
    }

    pub(super) fn hold(&mut self, hook: Option<&str>) {
        *self.hanging(hook) += 1;
    }

    pub(super) fn let_go(&mut self, hook: Option<&str>) {
        *self.hanging(hook) -= 1;
    }

    fn hanging(&mut self, hook: Option<&str>) -> &mut u64 {
        match hook {
            None => &mut self.tally.hanging_batches,
            Some(name) => &mut self.hook(name).hanging_requests,
        }
    }

    fn hook(&mut self, name: &str) -> &mut HookTally {
        self.tally.hooks.entry(name.to_owned()).or_default()
    }

    /// Forgets everything but what is still hanging.
    pub(super) fn clear(&mut self) {
        let Tally {
            hanging_batches,
            hooks,
            ..
        } = std::mem::take(self).tally;
        self.tally.hanging_batches = hanging_batches;
        for (name, hook) in hooks {
            if hook.hanging_requests > 0 {
                self.hook(&name).hanging_requests = hook.hanging_requests;
            }
        }
    }

    pub(super) fn tally(&self) -> Tally {
        let mut tally = self.tally.clone();
        if tally.batches > 0 {
            let mean = tally.body_bytes as f64 / tally.batches as f64;
            tally.mean_fill = mean / BODY_BYTES_MAX as f64;
        }
        tally
    }

    pub(super) fn times_delivered(&self, id: u64) -> u32 {
        self.deliveries.get(&id).copied().unwrap_or_default()
    }

    pub(super) fn events(&self) -> &[RecordedEvent] {
        &self.recorded
    }

    pub(super) fn take_events(&mut self) -> Vec<RecordedEvent> {
        std::mem::take(&mut self.recorded)
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::Batch;
    use super::*;

    #[test]
    fn an_id_is_distinct_once_and_a_duplicate_ever_after() {
        let text = r#"{"writeKey":"k","batch":[1,2,3]}"#;
        let batch = Call::Batch(Batch::parse(text, None).expect("this is a batch"));
        let mut counts = Counts::default();
        counts.deliver(&batch, &[Some(7), Some(7), None]);
        counts.deliver(&batch, &[Some(8), Some(7), Some(9)]);

        let tally = counts.tally();
        assert_eq!(tally.events, 6);
        assert_eq!(tally.distinct_events, 3);
        assert_eq!(tally.duplicate_events, 2);
        assert_eq!(tally.anonymous_events, 1);
        assert_eq!(tally.body_bytes, 2 * text.len() as u64);
        assert_eq!(tally.mean_fill, text.len() as f64 / 500_000.0);
        assert_eq!(counts.times_delivered(7), 3);
        assert_eq!(counts.times_delivered(1), 0);
    }

    #[test]
    fn clearing_keeps_count_of_what_still_hangs() {
        let mut counts = Counts::default();
        counts.request(Some(3), &[Violation::NoSentAt]);
        counts.hook_request("orders", &[Violation::NotSigned]);
        counts.hook_request("other", &[]);
        counts.hold(None);
        counts.hold(Some("orders"));
        counts.clear();
        let mut expected = Tally {
            hanging_batches: 1,
            ..Tally::default()
        };
        let hanging = HookTally {
            hanging_requests: 1,
            ..HookTally::default()
        };
        expected.hooks.insert("orders".into(), hanging);
        assert_eq!(counts.tally(), expected);
        counts.let_go(None);
        counts.let_go(Some("orders"));
        assert_eq!(counts.tally().hanging_batches, 0);
        assert_eq!(counts.tally().hooks["orders"], HookTally::default());
    }
}
