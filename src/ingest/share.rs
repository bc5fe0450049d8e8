//! How much of the spool webhooks may take. What waits for an endpoint that is gone must not keep Segment's events out.

use std::sync::Arc;

use tracing::{info, warn};

use super::{Ingest, SEGMENT};
use crate::queue::{LaneName, Load};
use crate::stats::LaneStats;

/// Once the spool has filled up to one part in this, webhooks get no more than their small share.
const SPOOL_PARTS: u64 = 2;
/// The small share: what a webhook's lane may hold at any time, as JSON, is one part in this of what the spool may take. All
/// lanes that there may be take no more than half of it so.
const LANE_PARTS: u64 = 64;

/// Copies of events that were left out, by lane.
#[derive(Debug, Default)]
#[must_use]
pub(super) struct LeftOut(Vec<(Arc<LaneStats>, u64)>);

impl LeftOut {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Counts them as accepted and dropped. To be called once the rest is stored: a request that is not taken comes again.
    pub(super) fn count(self) {
        for (lane, events) in self.0 {
            lane.accepted_events.add(events);
            lane.dropped_events.add(events);
        }
    }
}

impl Ingest {
    /// Takes out what is for webhooks that have had their share of the spool.
    pub(super) fn leave_out(
        &self,
        mut loads: Vec<(LaneName, Load)>,
    ) -> (Vec<(LaneName, Load)>, LeftOut) {
        let mut left_out = LeftOut::default();
        if loads.iter().all(|(name, _)| name.destination == SEGMENT) {
            return (loads, left_out);
        }
        let room = self.queue.room();
        let is_tight = room.used_bytes > room.bound_bytes / SPOOL_PARTS;
        loads.retain(|(name, load)| {
            if name.destination == SEGMENT || load.is_empty() {
                return true;
            }
            let waiting = self.queue.find_lane(name.id());
            let waiting = waiting.map_or(0, |lane| lane.depth().bytes);
            let drops = is_tight && waiting > room.bound_bytes / LANE_PARTS;
            let (id, stats) = (name.id(), self.stats.lane(&name.id().to_string()));
            match (stats.drops(drops), drops) {
                (false, true) => {
                    warn!(lane = %id, waiting_bytes = waiting, "a webhook's lane holds more than its share of a spool that is half full; what else it would get is dropped");
                }
                (true, false) => info!(lane = %id, "a webhook's lane takes events again"),
                (true, true) | (false, false) => {}
            }
            if drops {
                left_out.0.push((stats, load.len() as u64));
            }
            !drops
        });
        (loads, left_out)
    }
}
