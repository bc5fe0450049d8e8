//! The snapshot, put together from what the queue holds and what the steps have counted.

use jiff::Timestamp;

use super::AdminListener;
use crate::queue::Lane;
use crate::stats::{
    DeadLettersSnapshot, DeliverySnapshot, IngestSnapshot, LaneSnapshot, LaneState, QueueSnapshot,
    Rates, Snapshot,
};

impl AdminListener {
    /// Everything at this moment.
    pub(super) fn snapshot(&self) -> Snapshot {
        let (lanes, rates) = (self.lanes(), self.stats.rates());
        let (queue, delivery) = (self.queue_snapshot(&lanes), self.delivery(&lanes, &rates));
        let dead_letters = self.queue.dead_letters();
        Snapshot {
            version: env!("CARGO_PKG_VERSION").into(),
            state: self.phase.borrow().as_str().into(),
            uptime_seconds: self.stats.started.elapsed().as_secs_f64(),
            durability: self.queue.durability().as_str().into(),
            ingest: IngestSnapshot {
                accepting: self.why_not_accepting().is_none(),
                requests: self.stats.requests.get(),
                accepted_events: self.stats.accepted_events.get(),
                accepted_bytes: self.stats.accepted_bytes.get(),
                rejected_events: self.stats.rejected_events.get(),
                refused_requests: self.stats.refused_requests.get(),
                long_message_ids: self.stats.long_message_ids.get(),
                received_events: self.stats.received_events.get(),
                client_metrics: self.stats.client_metrics.get(),
                events_per_second: rates.accepted,
                events_per_second_5m: rates.accepted_5m,
            },
            queue,
            delivery,
            dead_letters: DeadLettersSnapshot {
                events: dead_letters.events(),
                bytes: dead_letters.bytes(),
                unkept_events: dead_letters.unkept(),
            },
            profiles: self.stats.profiles.snapshot(),
            lanes,
        }
    }

    /// Every lane, the one with most events first.
    pub(super) fn lanes(&self) -> Vec<LaneSnapshot> {
        let lanes = self.queue.lanes();
        let mut lanes: Vec<_> = lanes.iter().map(|lane| self.lane(lane)).collect();
        lanes.sort_by(|a, b| b.events.cmp(&a.events).then_with(|| a.id.cmp(&b.id)));
        lanes
    }

    /// One lane.
    pub(super) fn lane(&self, lane: &Lane) -> LaneSnapshot {
        let now_ms = Timestamp::now().as_millisecond();
        let id = lane.id().to_string();
        let stats = self.stats.lane(&id);
        let depth = lane.depth();
        let name = lane.name();
        let snapshot = stats.snapshot(id, name.destination.clone(), name.masked_key());
        LaneSnapshot {
            events: depth.events,
            bytes: depth.bytes,
            oldest_age_seconds: lane
                .oldest_ms()
                .map_or(0.0, |then| (now_ms - then).max(0) as f64 / 1000.0),
            recovered_events: lane.recovered_events(),
            lost_events: lane.lost_events(),
            dropped_events: lane.dropped_events() + snapshot.dropped_events,
            ..snapshot
        }
    }

    fn queue_snapshot(&self, lanes: &[LaneSnapshot]) -> QueueSnapshot {
        let usage = self.queue.usage();
        QueueSnapshot {
            events: lanes.iter().map(|lane| lane.events).sum(),
            bytes: lanes.iter().map(|lane| lane.bytes).sum(),
            disk_bytes: usage.disk_bytes,
            disk_is_full: self.queue.is_disk_full(),
            max_bytes: usage.max_bytes,
            free_disk_bytes: usage.free_disk_bytes,
            volumes: usage.volumes,
            quarantined_volumes: usage.quarantined_volumes,
            repacked_volumes: usage.repacked_volumes,
            reclaimed_bytes: usage.reclaimed_bytes,
            oldest_age_seconds: lanes
                .iter()
                .map(|lane| lane.oldest_age_seconds)
                .fold(0.0, f64::max),
            recovered_events: lanes.iter().map(|lane| lane.recovered_events).sum(),
            dropped_events: lanes.iter().map(|lane| lane.dropped_events).sum(),
            lost_events: lanes.iter().map(|lane| lane.lost_events).sum(),
        }
    }

    fn delivery(&self, lanes: &[LaneSnapshot], rates: &Rates) -> DeliverySnapshot {
        let waiting: u64 = lanes.iter().map(|lane| lane.events).sum();
        let needs_somebody = |lane: &LaneSnapshot| {
            lane.events > 0 && matches!(lane.state, LaneState::Held | LaneState::Paused)
        };
        let drains = waiting > 0 && rates.shrinking > 0.0 && !lanes.iter().any(needs_somebody);
        DeliverySnapshot {
            events: lanes.iter().map(|lane| lane.delivered_events).sum(),
            batches: lanes.iter().map(|lane| lane.delivered_batches).sum(),
            bytes: self.stats.delivered_bytes(),
            retries: self.stats.retries(),
            events_per_second: rates.delivered,
            events_per_second_5m: rates.delivered_5m,
            drain_eta_seconds: drains.then(|| waiting as f64 / rates.shrinking),
        }
    }
}
