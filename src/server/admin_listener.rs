//! The admin listener: what an operator sees.
//!
//! | endpoint | what |
//! |---|---|
//! | `GET /stats` | the snapshot |
//! | `GET /healthz` | 200 while the writer makes progress, else 503 |
//! | `GET /readyz` | 200 while events are accepted, else 503 |

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use jiff::Timestamp;
use tokio::sync::watch;

use super::Phase;
use super::guard::Guard;
use super::listener::{Peer, Service};
use super::reply::{self, Error, Reply};
use crate::queue::{Lane, Queue};
use crate::stats::{
    DeadLettersSnapshot, DeliverySnapshot, IngestSnapshot, LaneSnapshot, QueueSnapshot, Snapshot,
    Stats,
};

/// A group takes milliseconds to commit; a writer that has been at one for this long is stuck.
const WRITER_STUCK: Duration = Duration::from_secs(30);

/// What the admin listener works with.
#[derive(Debug)]
pub(super) struct AdminListener {
    pub(super) queue: Queue,
    pub(super) stats: Arc<Stats>,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) guard: Guard,
}

impl Service for AdminListener {
    async fn serve(&self, _peer: Peer, request: Request<Incoming>) -> Reply {
        if let Err(foreign) = self.guard.admit(request.headers()) {
            return reply::error(&Error::Foreign(foreign));
        }
        let (method, path) = (request.method(), request.uri().path());
        match path {
            "/stats" | "/healthz" | "/readyz" if method != Method::GET => {
                reply::error(&Error::Method { allowed: "GET" })
            }
            "/stats" => reply::json(StatusCode::OK, &self.snapshot()),
            "/healthz" => self.health(),
            "/readyz" => self.readiness(),
            _ => reply::error(&Error::NotFound),
        }
    }
}

impl AdminListener {
    fn health(&self) -> Reply {
        let busy = self.queue.writer_busy_for();
        if busy < WRITER_STUCK {
            reply::text(StatusCode::OK, "ok")
        } else {
            let line = format!("the writer has been stuck for {} s", busy.as_secs());
            reply::text(StatusCode::SERVICE_UNAVAILABLE, &line)
        }
    }

    fn readiness(&self) -> Reply {
        let phase = *self.phase.borrow();
        match phase {
            Phase::Running if self.queue.is_full() => {
                reply::text(StatusCode::SERVICE_UNAVAILABLE, "the queue is full")
            }
            Phase::Running => reply::text(StatusCode::OK, "ok"),
            Phase::Draining | Phase::Stopped => {
                reply::text(StatusCode::SERVICE_UNAVAILABLE, phase.as_str())
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        let now_ms = Timestamp::now().as_millisecond();
        let mut lanes: Vec<_> = self
            .queue
            .lanes()
            .iter()
            .map(|lane| self.lane(lane, now_ms))
            .collect();
        lanes.sort_by(|a, b| b.events.cmp(&a.events).then_with(|| a.id.cmp(&b.id)));
        let (queue, delivery) = (self.queue_snapshot(&lanes), self.delivery(&lanes));
        let dead_letters = self.queue.dead_letters();
        Snapshot {
            version: env!("CARGO_PKG_VERSION").into(),
            state: self.phase.borrow().as_str().into(),
            uptime_seconds: self.stats.started.elapsed().as_secs_f64(),
            durability: self.queue.durability().as_str().into(),
            ingest: IngestSnapshot {
                requests: self.stats.requests.get(),
                accepted_events: self.stats.accepted_events.get(),
                accepted_bytes: self.stats.accepted_bytes.get(),
                rejected_events: self.stats.rejected_events.get(),
                refused_requests: self.stats.refused_requests.get(),
                long_message_ids: self.stats.long_message_ids.get(),
                client_metrics: self.stats.client_metrics.get(),
            },
            queue,
            delivery,
            dead_letters: DeadLettersSnapshot {
                events: dead_letters.events(),
                bytes: dead_letters.bytes(),
            },
            lanes,
        }
    }

    fn lane(&self, lane: &Lane, now_ms: i64) -> LaneSnapshot {
        let id = lane.id().to_string();
        let stats = self.stats.lane(&id);
        let depth = lane.depth();
        LaneSnapshot {
            events: depth.events,
            bytes: depth.bytes,
            oldest_age_seconds: lane
                .oldest_ms()
                .map_or(0.0, |then| (now_ms - then).max(0) as f64 / 1000.0),
            recovered_events: lane.recovered_events(),
            lost_events: lane.lost_events(),
            ..stats.snapshot(
                id,
                lane.name().destination.clone(),
                lane.name().masked_key(),
            )
        }
    }

    fn queue_snapshot(&self, lanes: &[LaneSnapshot]) -> QueueSnapshot {
        let usage = self.queue.usage();
        QueueSnapshot {
            events: lanes.iter().map(|lane| lane.events).sum(),
            bytes: lanes.iter().map(|lane| lane.bytes).sum(),
            disk_bytes: usage.disk_bytes,
            max_bytes: usage.max_bytes,
            free_disk_bytes: usage.free_disk_bytes,
            volumes: usage.volumes,
            quarantined_volumes: usage.quarantined_volumes,
            oldest_age_seconds: lanes
                .iter()
                .map(|lane| lane.oldest_age_seconds)
                .fold(0.0, f64::max),
            recovered_events: lanes.iter().map(|lane| lane.recovered_events).sum(),
            dropped_events: lanes.iter().map(|lane| lane.dropped_events).sum(),
            lost_events: lanes.iter().map(|lane| lane.lost_events).sum(),
        }
    }

    fn delivery(&self, lanes: &[LaneSnapshot]) -> DeliverySnapshot {
        let waiting: u64 = lanes.iter().map(|lane| lane.events).sum();
        let per_second = self.stats.delivered_per_second();
        DeliverySnapshot {
            events: lanes.iter().map(|lane| lane.delivered_events).sum(),
            batches: lanes.iter().map(|lane| lane.delivered_batches).sum(),
            bytes: self.stats.delivered_bytes(),
            retries: self.stats.retries(),
            events_per_second: per_second,
            drain_eta_seconds: (waiting > 0 && per_second > 0.0)
                .then(|| waiting as f64 / per_second),
        }
    }
}
