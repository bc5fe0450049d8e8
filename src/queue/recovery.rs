//! Taking up what an earlier process left: the cursors laid over the volumes that were found. Pure, and so easy to test.

use std::collections::HashMap;
use std::sync::Arc;

use tracing::error;

use super::Position;
use super::cursors::{Cursor, Cursors, Passed};
use super::lane::{Depth, Extent, Lane};
use super::lanes::Lanes;
use super::name::LaneId;
use super::volume::{Summary, Volume, VolumeNumber};

/// What was taken up, and from where to go on.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    pub(super) depth: Depth,
    pub(super) next_position: Position,
    pub(super) next_volume: VolumeNumber,
}

/// Makes every lane of which a volume holds something, and counts what of it is not settled. `found` is in the order of volumes.
pub(super) fn take_up(
    lanes: &Lanes,
    cursors: &Cursors,
    found: &[(Arc<Volume>, Summary)],
) -> Recovered {
    let mut recovered = Recovered {
        next_position: cursors.next_position,
        next_volume: cursors.next_volume,
        ..Recovered::default()
    };
    let by_lane: HashMap<LaneId, Cursor> = cursors
        .lanes
        .iter()
        .map(|(name, cursor)| (name.id(), *cursor))
        .collect();
    // The cursors may have moved on while the file was written; what is accepted now must lie behind each of them.
    for cursor in by_lane.values() {
        recovered.next_position = recovered.next_position.max(cursor.position);
    }
    for name in &cursors.paused {
        let cursor = by_lane.get(&name.id()).copied().unwrap_or_default();
        if let Some(lane) = lanes.lane_or(name, || Lane::new(name.clone(), cursor)) {
            lane.pause();
        }
    }
    for (volume, summary) in found {
        recovered.next_volume = recovered.next_volume.max(volume.number + 1);
        for (name, extent) in &summary.lanes {
            recovered.next_position = recovered.next_position.max(extent.last + 1);
            let cursor = by_lane.get(&name.id()).copied().unwrap_or_default();
            let passed = passed(extent, &cursor);
            let left = Depth {
                events: extent.events.saturating_sub(passed.events),
                bytes: extent.bytes.saturating_sub(passed.bytes),
            };
            volume.add(left.events);
            let Some(lane) = lanes.lane_or(name, || Lane::new(name.clone(), cursor)) else {
                error!(%name, "too many lanes; this one waits for a later start");
                continue;
            };
            if left.events > 0 {
                lane.recover(volume.number, extent, left.events, left.bytes);
                recovered.depth.events += left.events;
                recovered.depth.bytes += left.bytes;
            }
        }
    }
    recovered
}

/// How much of an extent lies before the cursor.
fn passed(extent: &Extent, cursor: &Cursor) -> Passed {
    if cursor.position > extent.last {
        Passed {
            events: extent.events,
            bytes: extent.bytes,
        }
    } else if cursor.position > extent.first
        || (cursor.position == extent.first && cursor.events > 0)
    {
        cursor.passed
    } else {
        Passed::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_before_the_cursor_is_settled_and_nothing_else() {
        let extent = Extent {
            first: 10,
            last: 20,
            records: 3,
            events: 30,
            bytes: 300,
            accepted_at_ms: 0,
        };
        let within = Passed {
            events: 12,
            bytes: 120,
        };
        let all = Passed {
            events: 30,
            bytes: 300,
        };
        for (position, events, expected) in [
            (0, 0, Passed::default()),
            (10, 0, Passed::default()),
            (10, 1, within),
            (15, 0, within),
            (20, 3, within),
            (21, 0, all),
        ] {
            assert_eq!(
                passed(
                    &extent,
                    &Cursor {
                        position,
                        events,
                        passed: within
                    }
                ),
                expected,
                "{position} {events}"
            );
        }
    }
}
