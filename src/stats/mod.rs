//! What happened: counters that every step adds to, and the snapshot that operators read.
//!
//! Counting never blocks and never fails. The queue counts what waits by itself; here is what came, what went, and what each
//! lane is doing. At any quiet moment, per lane: accepted + recovered = delivered + dead letters + dropped + lost + queued
//! ([`Conservation`]). Nothing here holds a write key, a token or a payload.

mod histogram;
mod history;
mod lane;
mod metrics;
mod snapshot;
mod tail;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

pub use histogram::Durations;
pub use history::Rates;
pub use lane::{LaneState, LaneStats};
pub use metrics::{Format, LANES_NAMED_MAX, Metrics, Readings};
pub use snapshot::{
    Conservation, DeadLettersSnapshot, DeliverySnapshot, History, IngestSnapshot, LaneSnapshot,
    Point, ProfilesSnapshot, QueueSnapshot, Snapshot,
};
pub use tail::{
    LOOKS_A_SECOND_MAX, Label, Listening, Sighting, Source, TOLD_A_SECOND_MAX, Tail, Wanted, What,
};

use histogram::Histogram;
use history::{Flow, Recent};

/// Upper bounds of how long calls take, in seconds. Segment answers in a few hundredths; `segment.timeout` is 10 s, unless the operator
/// says otherwise.
const CALL_BOUNDS: [f64; 12] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// A count that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The count so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is counted of profiles.
#[derive(Debug, Default)]
pub struct ProfileStats {
    /// Requests for them.
    pub requests: Counter,
    /// Those answered with a status of 400 or above.
    pub errors: Counter,
    /// Those answered from the cache while it was fresh.
    pub cache_hits: Counter,
    /// Those answered from the cache because there was no other answer.
    pub stale_answers: Counter,
}

impl ProfileStats {
    /// The counts so far.
    #[must_use]
    pub fn snapshot(&self) -> ProfilesSnapshot {
        ProfilesSnapshot {
            requests: self.requests.get(),
            errors: self.errors.get(),
            cache_hits: self.cache_hits.get(),
            stale_answers: self.stale_answers.get(),
        }
    }
}

/// The counters of one process.
#[derive(Debug)]
pub struct Stats {
    /// When the process began.
    pub started: Instant,
    /// The same by the clock on the wall.
    pub started_at: Timestamp,
    /// Requests that reached an ingest route.
    pub requests: Counter,
    /// Events answered 200 on their way to Segment. A webhook's copies count in its lanes alone.
    pub accepted_events: Counter,
    /// Their bytes as stored, before compression.
    pub accepted_bytes: Counter,
    /// Events that can never be accepted, told so to their sender.
    pub rejected_events: Counter,
    /// Requests answered 413, 429 or 503, or with a pixel in place of such an answer: their events were not taken.
    pub refused_requests: Counter,
    /// Accepted events with a messageId so long that parts of Segment drop them.
    pub long_message_ids: Counter,
    /// Events that Segment's webhooks have posted.
    pub received_events: Counter,
    /// Reports of analytics.js on itself, which are discarded.
    pub client_metrics: Counter,
    /// What is counted of profiles.
    pub profiles: ProfileStats,
    /// Where single events are told of.
    pub tail: Tail,
    recent: Recent,
    /// By the kind of destination, of which there are few.
    calls: Mutex<BTreeMap<&'static str, Histogram>>,
    lanes: Mutex<BTreeMap<String, Arc<LaneStats>>>,
}

impl Default for Stats {
    fn default() -> Stats {
        Stats {
            started: Instant::now(),
            started_at: Timestamp::now(),
            requests: Counter::default(),
            accepted_events: Counter::default(),
            accepted_bytes: Counter::default(),
            rejected_events: Counter::default(),
            refused_requests: Counter::default(),
            long_message_ids: Counter::default(),
            received_events: Counter::default(),
            client_metrics: Counter::default(),
            profiles: ProfileStats::default(),
            tail: Tail::default(),
            recent: Recent::default(),
            calls: Mutex::default(),
            lanes: Mutex::default(),
        }
    }
}

impl Stats {
    /// The counters of the lane with this id.
    #[must_use]
    pub fn lane(&self, id: &str) -> Arc<LaneStats> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get(id) {
            return Arc::clone(lane);
        }
        Arc::clone(lanes.entry(id.to_owned()).or_default())
    }

    /// Counts events that were accepted into a lane. `once` is false for a webhook's copies: over all lanes an event counts once.
    pub fn accepted(&self, lane: &LaneStats, events: u64, once: bool) {
        let accepted = if once { events } else { 0 };
        lane.accepted_events.add(events);
        self.accepted_events.add(accepted);
        self.happened(Flow {
            accepted,
            entered: events,
            ..Flow::default()
        });
    }

    /// Counts a batch that its destination took.
    pub fn delivered(&self, lane: &LaneStats, events: u64, body_bytes: u64) {
        lane.delivered_events.add(events);
        lane.delivered_batches.add(1);
        lane.delivered_bytes.add(body_bytes);
        self.happened(Flow {
            delivered: events,
            ..Flow::default()
        });
    }

    /// Counts events of a lane that are dead letters now.
    pub fn buried(&self, lane: &LaneStats, events: u64) {
        lane.dead_letter_events.add(events);
        self.happened(Flow {
            buried: events,
            ..Flow::default()
        });
    }

    /// Counts how long a call to a kind of destination took, whatever came of it.
    pub fn called(&self, destination: &'static str, took: Duration) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let histogram = calls
            .entry(destination)
            .or_insert_with(|| Histogram::new(&CALL_BOUNDS));
        histogram.add(took);
    }

    /// How long calls took, by the kind of destination.
    #[must_use]
    pub fn calls(&self) -> BTreeMap<&'static str, Durations> {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let durations = calls.iter();
        durations
            .map(|(destination, histogram)| (*destination, histogram.durations()))
            .collect()
    }

    fn happened(&self, flow: Flow) {
        self.recent.add(self.started.elapsed(), flow);
    }

    /// The bodies of all calls that destinations took, in bytes.
    #[must_use]
    pub fn delivered_bytes(&self) -> u64 {
        self.sum(|lane| &lane.delivered_bytes)
    }

    /// Calls that were repeated.
    #[must_use]
    pub fn retries(&self) -> u64 {
        self.sum(|lane| &lane.retries)
    }

    /// How fast events come and go.
    #[must_use]
    pub fn rates(&self) -> Rates {
        self.recent.rates(self.started.elapsed())
    }

    /// The last ten minutes, when `queued` events wait now.
    #[must_use]
    pub fn history(&self, queued: u64) -> History {
        self.recent.points(self.started.elapsed(), queued)
    }

    fn sum(&self, counter: impl Fn(&LaneStats) -> &Counter) -> u64 {
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.values().map(|lane| counter(lane).get()).sum()
    }
}
