//! Taking up what an earlier process left: the cursors laid over the volumes that were found. Pure, and so easy to test.

use std::collections::HashMap;
use std::sync::Arc;

use tracing::error;

use super::Position;
use super::cursors::{Cursor, Cursors, Island, Passed, Stand};
use super::lane::{Depth, Extent, Lane};
use super::lanes::Lanes;
use super::name::{LaneId, LaneName};
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
    let by_lane = stands(cursors, found);
    // The cursors may have moved on while the file was written; what is accepted now must lie behind each of them.
    for (_, stand) in &cursors.lanes {
        let ends = stand.beyond.iter().map(|island| island.end.0 + 1);
        let behind = ends.fold(stand.cursor.position, Position::max);
        recovered.next_position = recovered.next_position.max(behind);
    }
    let stand_of = |name: &LaneName| by_lane.get(&name.id()).cloned().unwrap_or_default();
    for name in &cursors.paused {
        if let Some(lane) = lanes.lane_or(name, || Lane::new(name.clone(), stand_of(name))) {
            lane.pause();
        }
    }
    for (volume, summary) in found {
        recovered.next_volume = recovered.next_volume.max(volume.number + 1);
        for (name, extent) in &summary.lanes {
            recovered.next_position = recovered.next_position.max(extent.last + 1);
            let (passed, left) = match by_lane.get(&name.id()) {
                Some(stand) => split(volume.number, extent, stand),
                None => split(volume.number, extent, &Stand::default()),
            };
            volume.add(left.events);
            let Some(lane) = lanes.lane_or(name, || Lane::new(name.clone(), stand_of(name))) else {
                error!(%name, "too many lanes; this one waits for a later start");
                continue;
            };
            if left.events > 0 {
                lane.recover(volume.number, extent, passed, left);
                recovered.depth.events += left.events;
                recovered.depth.bytes += left.bytes;
            }
        }
    }
    recovered
}

/// Where each lane stands, with those of its islands that lie in what it has in the volumes found. What is not known to be there
/// must not be taken off what waits: too little would be read then.
fn stands(cursors: &Cursors, found: &[(Arc<Volume>, Summary)]) -> HashMap<LaneId, Stand> {
    let mut extents = HashMap::new();
    for (volume, summary) in found {
        for (name, extent) in &summary.lanes {
            extents.insert((volume.number, name.id()), extent);
        }
    }
    let stand_of = |(name, stand): &(LaneName, Stand)| {
        let mut stand = stand.clone();
        let place = stand.cursor.place();
        stand.beyond.retain(|island| {
            let extent = extents.get(&(island.volume, name.id()));
            let is_within = |e: &&Extent| e.first <= island.first.0 && island.end.0 <= e.last;
            island.first >= place && extent.is_some_and(is_within)
        });
        (name.id(), stand)
    };
    cursors.lanes.iter().map(stand_of).collect()
}

/// How much of an extent lies before the cursor, and how much of it is not settled.
pub(super) fn split(volume: VolumeNumber, extent: &Extent, stand: &Stand) -> (Passed, Depth) {
    let passed = passed(extent, &stand.cursor);
    let take = |left: Depth, events, bytes| Depth {
        events: left.events.saturating_sub(events),
        bytes: left.bytes.saturating_sub(bytes),
    };
    let all = Depth {
        events: extent.events,
        bytes: extent.bytes,
    };
    let islands = stand.beyond.iter().filter(|i| i.volume == volume);
    let left = islands.fold(
        take(all, passed.events, passed.bytes),
        |left, island: &Island| take(left, island.events, island.bytes),
    );
    (passed, left)
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
    use crate::queue::cursors::Place;

    #[test]
    fn islands_that_lie_in_what_was_found_are_settled_and_no_others() {
        let name = LaneName::new("webhook", "w");
        let extent = Extent {
            first: 10,
            last: 20,
            records: 3,
            events: 30,
            bytes: 300,
            accepted_at_ms: 0,
        };
        let dir = tempfile::tempdir().expect("a temporary directory");
        let summary = Summary {
            lanes: vec![(name.clone(), extent)],
            is_repacked: false,
        };
        let found = [(Arc::new(Volume::new(dir.path(), 4, true)), summary)];
        let cursor = Cursor {
            position: 10,
            events: 5,
            passed: Passed {
                events: 5,
                bytes: 50,
            },
        };
        let cases: [(VolumeNumber, Place, Place, u64); 5] = [
            (4, (10, 6), (20, 1), 22),
            (4, (10, 4), (20, 1), 25),
            (4, (15, 0), (21, 1), 25),
            (3, (10, 6), (20, 1), 25),
            (5, (10, 6), (20, 1), 25),
        ];
        for (volume, first, end, left) in cases {
            let island = Island {
                volume,
                first,
                end,
                events: 3,
                bytes: 30,
            };
            let stand = Stand {
                cursor,
                beyond: vec![island],
            };
            let cursors = Cursors {
                lanes: vec![(name.clone(), stand)],
                ..Cursors::default()
            };
            let (announce, _announced) = tokio::sync::mpsc::unbounded_channel();
            let lanes = Lanes::new(announce);
            let recovered = take_up(&lanes, &cursors, &found);
            assert_eq!(recovered.depth.events, left, "{first:?}..{end:?}");
            assert_eq!(recovered.depth.bytes, left * 10);
            assert!(recovered.next_position > end.0);
            let lane = lanes.find(name.id()).expect("it has been taken up");
            assert_eq!(lane.recovered_events(), left);
            assert_eq!(lane.stand().beyond.is_empty(), left == 25);
        }
    }

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
