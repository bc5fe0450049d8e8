//! The snapshot: the body of `GET /stats`, for the daemon that writes it and the commands that read it.

use serde::{Deserialize, Serialize};

use super::LaneState;

/// Everything at one moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// The daemon's version.
    pub version: String,
    /// The phase of its life.
    pub state: String,
    /// How long it has lived, in seconds.
    pub uptime_seconds: f64,
    /// What a 200 means: `synced` or `os`.
    pub durability: String,
    /// What came.
    pub ingest: IngestSnapshot,
    /// What waits.
    pub queue: QueueSnapshot,
    /// What went.
    pub delivery: DeliverySnapshot,
    /// What can never go.
    pub dead_letters: DeadLettersSnapshot,
    /// Profiles that were asked for.
    #[serde(default)]
    pub profiles: ProfilesSnapshot,
    /// Each lane, the one with most events first.
    pub lanes: Vec<LaneSnapshot>,
}

/// What came.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct IngestSnapshot {
    /// Whether events are accepted at present: not while the queue is full, nor once the daemon stops.
    #[serde(default)]
    pub accepting: bool,
    /// Requests that reached an ingest route.
    pub requests: u64,
    /// Events answered 200 on their way to Segment. A webhook's copies count in its lanes alone.
    pub accepted_events: u64,
    /// Their bytes as stored, before compression.
    pub accepted_bytes: u64,
    /// Events that can never be accepted.
    pub rejected_events: u64,
    /// Requests answered 413, 429 or 503, or with a pixel in place of such an answer.
    pub refused_requests: u64,
    /// Accepted events with a messageId so long that parts of Segment drop them.
    #[serde(default)]
    pub long_message_ids: u64,
    /// Events that Segment's webhooks have posted.
    #[serde(default)]
    pub received_events: u64,
    /// Reports of analytics.js on itself, which are discarded.
    #[serde(default)]
    pub client_metrics: u64,
    /// Events accepted a second, over the last ten seconds.
    #[serde(default)]
    pub events_per_second: f64,
    /// The same over the last five minutes.
    #[serde(default)]
    pub events_per_second_5m: f64,
}

/// What waits.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct QueueSnapshot {
    /// Events not settled.
    pub events: u64,
    /// Their bytes as JSON.
    pub bytes: u64,
    /// What the volumes take on disk, in bytes.
    pub disk_bytes: u64,
    /// Whether the disk itself is full, so that nothing is accepted whatever they may take.
    #[serde(default)]
    pub disk_is_full: bool,
    /// What they may take, in bytes.
    pub max_bytes: u64,
    /// What the file system has left, in bytes.
    pub free_disk_bytes: u64,
    /// Volumes on disk.
    pub volumes: u64,
    /// Volumes that could not be read.
    pub quarantined_volumes: u64,
    /// Volumes that a smaller copy has replaced, since the start.
    #[serde(default)]
    pub repacked_volumes: u64,
    /// What that gave back, in bytes.
    #[serde(default)]
    pub reclaimed_bytes: u64,
    /// The age of the oldest event, in seconds; 0 when there is none.
    pub oldest_age_seconds: f64,
    /// Events that waited when the process started.
    pub recovered_events: u64,
    /// Events dropped by a policy the operator turned on.
    pub dropped_events: u64,
    /// Accepted events that the disk did not give back.
    pub lost_events: u64,
}

/// What went.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct DeliverySnapshot {
    /// Events that destinations took.
    pub events: u64,
    /// Calls that destinations took.
    pub batches: u64,
    /// The bodies of these calls, in bytes.
    pub bytes: u64,
    /// Calls that were repeated.
    pub retries: u64,
    /// Events a second over the last ten seconds.
    pub events_per_second: f64,
    /// The same over the last five minutes.
    #[serde(default)]
    pub events_per_second_5m: f64,
    /// When the queue will be empty, in seconds, if it goes on shrinking as over the last ten; what comes meanwhile is reckoned
    /// with. None where nothing waits, where it does not shrink, and where a lane with events is held or paused: somebody has to
    /// act first.
    pub drain_eta_seconds: Option<f64>,
}

/// The last ten minutes, for charts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct History {
    /// How much time a point stands for, in seconds.
    pub interval_seconds: u64,
    /// The oldest first; fewer while the process is young.
    pub points: Vec<Point>,
}

/// A stretch of time.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Point {
    /// How long ago it ended.
    pub seconds_ago: f64,
    /// Events accepted a second.
    pub accepted_per_second: f64,
    /// Events delivered a second.
    pub delivered_per_second: f64,
    /// Events that waited at its end.
    pub queue_events: u64,
}

/// What can never go.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct DeadLettersSnapshot {
    /// Letters kept.
    pub events: u64,
    /// What they take, in bytes.
    pub bytes: u64,
    /// Rejected events that there was no room for: they were told to their senders, and not kept.
    #[serde(default)]
    pub unkept_events: u64,
}

/// Profiles that were asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfilesSnapshot {
    /// Requests for them.
    pub requests: u64,
    /// Those answered with a status of 400 or above.
    pub errors: u64,
    /// Those answered from the cache while it was fresh.
    pub cache_hits: u64,
    /// Those answered from the cache because there was no other answer.
    pub stale_answers: u64,
}

/// One lane.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LaneSnapshot {
    /// Its identity in URLs and logs.
    pub id: String,
    /// The kind of destination.
    pub destination: String,
    /// The last four characters of its key.
    pub key: String,
    /// What it is doing.
    pub state: LaneState,
    /// Why it waits, where it does.
    pub reason: Option<String>,
    /// Events not settled, in flight or not.
    pub events: u64,
    /// Their bytes as JSON.
    pub bytes: u64,
    /// The age of its oldest event, in seconds; 0 when there is none.
    pub oldest_age_seconds: f64,
    /// Calls under way.
    pub in_flight_batches: u64,
    /// Failures in a row.
    pub attempt: u32,
    /// When it tries again, in seconds; none where it does not wait for that.
    pub retry_in_seconds: Option<f64>,
    /// Events answered 200 by this process.
    pub accepted_events: u64,
    /// Events that waited when the process started.
    pub recovered_events: u64,
    /// Events the destination took.
    pub delivered_events: u64,
    /// Calls the destination took.
    pub delivered_batches: u64,
    /// The bodies of these calls, in bytes.
    #[serde(default)]
    pub delivered_bytes: u64,
    /// Their mean body, in bytes.
    pub mean_batch_bytes: u64,
    /// Calls that were repeated.
    #[serde(default)]
    pub retries: u64,
    /// Events the destination refused for good.
    pub dead_letter_events: u64,
    /// Events dropped by a policy the operator turned on.
    pub dropped_events: u64,
    /// Accepted events that the disk did not give back.
    pub lost_events: u64,
    /// The status of the last answer.
    pub last_status: Option<u16>,
    /// What was wrong with the last call that failed, unless one has succeeded since.
    pub last_error: Option<String>,
}

/// The conservation law of one lane: what came is what went and what waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conservation {
    /// Accepted by this process, or found when it started.
    pub came: u64,
    /// Delivered, dead letters, dropped, or lost to the disk.
    pub went: u64,
    /// Queued.
    pub waits: u64,
}

impl Conservation {
    /// Whether it holds. It does at any quiet moment: no request and no call under way.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.came == self.went + self.waits
    }
}

impl LaneSnapshot {
    /// The lane's law.
    #[must_use]
    pub fn conservation(&self) -> Conservation {
        Conservation {
            came: self.accepted_events + self.recovered_events,
            went: self.delivered_events
                + self.dead_letter_events
                + self.dropped_events
                + self.lost_events,
            waits: self.events,
        }
    }
}
