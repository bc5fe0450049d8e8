//! The cursors: how far each lane has come. One small checked file, replaced atomically, the previous one kept.
//!
//! A lane may have settled events beyond its cursor too, when an event that fails lets others pass: these islands are saved with
//! it, so that a start does not send them again.
//!
//! The file may lag behind: a crash re-sends what was settled since it was last saved, with the same messageIds. It is never
//! ahead: an event before a cursor, or in an island, has been settled.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::Position;
use super::files;
use super::name::{LaneId, LaneName};
use super::volume::VolumeNumber;

pub(super) const WHAT: &str = "cursors";

/// How far a lane has come: every event before it is settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cursor {
    /// The record it lies in, or before.
    pub(super) position: Position,
    /// How many events of that record are settled.
    pub(super) events: u32,
    /// What lies before it in its volume, so that the rest of the volume can be counted without reading it.
    pub(super) passed: Passed,
}

/// What a lane has settled of the volume its cursor lies in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Passed {
    pub(super) events: u64,
    pub(super) bytes: u64,
}

impl Cursor {
    /// The place of the first event that it has not passed.
    pub(super) fn place(&self) -> Place {
        (self.position, self.events)
    }
}

/// An event's record, and its index there.
pub(super) type Place = (Position, u32);

/// Settled events of one volume, one after another, beyond the cursor of their lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Island {
    pub(super) volume: VolumeNumber,
    pub(super) first: Place,
    /// The place behind the last one, in the same record.
    pub(super) end: Place,
    /// How much they are, so that the rest of the volume can be counted without reading it.
    pub(super) events: u64,
    pub(super) bytes: u64,
}

impl Island {
    /// The indexes of those of its events that lie in this record; none where the record lies elsewhere.
    pub(super) fn within(&self, volume: VolumeNumber, position: Position) -> Option<Range<u32>> {
        let is_there = self.volume == volume && (self.first.0..=self.end.0).contains(&position);
        is_there.then(|| {
            let start = if self.first.0 == position {
                self.first.1
            } else {
                0
            };
            let end = if self.end.0 == position {
                self.end.1
            } else {
                u32::MAX
            };
            start..end
        })
    }
}

/// All that a lane has settled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stand {
    #[serde(flatten)]
    pub(super) cursor: Cursor,
    /// In order. Without them, as in the file of an earlier version, more is sent again than need be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) beyond: Vec<Island>,
}

/// What the file holds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Cursors {
    /// Positions and volume numbers below these have been used, though nothing on disk may show it any more.
    pub(super) next_position: Position,
    pub(super) next_volume: VolumeNumber,
    pub(super) lanes: Vec<(LaneName, Stand)>,
    /// The lanes that an operator has paused.
    #[serde(default)]
    pub(super) paused: Vec<LaneName>,
    /// Volumes that hold what is not settled, or are still written: until the file is saved anew each of them is on disk, or in
    /// quarantine. There may be newer ones.
    #[serde(default)]
    pub(super) volumes: Vec<VolumeNumber>,
}

impl Cursors {
    /// Writes the file; the one that was there becomes the previous one.
    pub(super) fn save(&self, path: &Path) -> io::Result<()> {
        match fs::rename(path, previous(path)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        files::save(path, WHAT, self)
    }

    /// Reads the file, or the previous one where that cannot be read, or starts from nothing: everything is then sent again.
    pub(super) fn load(path: &Path) -> Cursors {
        for path in [path, &previous(path)] {
            match files::load(path, WHAT) {
                Ok(Some(cursors)) => return cursors,
                Ok(None) => {}
                Err(error) => warn!(path = %path.display(), %error, "the cursors cannot be read"),
            }
        }
        Cursors::default()
    }
}

/// The cursors as they are on disk: what the next process is sure to start from, should this one die now.
#[derive(Debug)]
pub(super) struct SavedCursors {
    lanes: Mutex<HashMap<LaneId, Cursor>>,
    /// Positions below this were used by earlier processes.
    recovered_below: Position,
}

impl SavedCursors {
    /// The cursors that the lanes of an earlier process were taken up with.
    pub(super) fn new(
        lanes: impl Iterator<Item = (LaneId, Cursor)>,
        recovered_below: Position,
    ) -> SavedCursors {
        SavedCursors {
            lanes: Mutex::new(lanes.collect()),
            recovered_below,
        }
    }

    /// These have been saved.
    pub(super) fn set(&self, lanes: impl Iterator<Item = (LaneId, Cursor)>) {
        let lanes: HashMap<_, _> = lanes.collect();
        *self.lanes.lock().unwrap_or_else(PoisonError::into_inner) = lanes;
    }

    /// Whether no later process will read this event of a lane again. Of one in an island it does not say so: the previous
    /// cursors, should they be needed, may lack the island.
    pub(super) fn have_passed(&self, lane: LaneId, position: Position, index: u32) -> bool {
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        match lanes.get(&lane) {
            Some(cursor) => {
                cursor.position > position || (cursor.position == position && cursor.events > index)
            }
            // Of a lane that was not taken up no volume holds anything of an earlier process.
            None => position < self.recovered_below,
        }
    }

    /// Whether an earlier process may have settled events of the record at this position.
    pub(super) fn is_recovered(&self, position: Position) -> bool {
        position < self.recovered_below
    }
}

pub(super) fn previous(path: &Path) -> std::path::PathBuf {
    path.with_added_extension("previous")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_passed_once_the_saved_cursor_is_behind_it() {
        let lane = |key| LaneName::new("segment", key).id();
        let cursor = Cursor {
            position: 10,
            events: 3,
            ..Cursor::default()
        };
        let saved = SavedCursors::new([(lane("a"), cursor)].into_iter(), 100);
        for (key, position, index, passed) in [
            ("a", 9, 7, true),
            ("a", 10, 2, true),
            ("a", 10, 3, false),
            ("a", 11, 0, false),
            ("gone", 99, 0, true),
            ("new", 100, 0, false),
        ] {
            assert_eq!(
                saved.have_passed(lane(key), position, index),
                passed,
                "{key} {position} {index}"
            );
        }
    }

    #[test]
    fn damaged_cursors_fall_back_on_the_previous_ones() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("cursors");
        let at = |next_position| Cursors {
            next_position,
            ..Cursors::default()
        };
        assert_eq!(Cursors::load(&path).next_position, 0);
        at(1).save(&path).expect("saved");
        at(2).save(&path).expect("saved");
        assert_eq!(Cursors::load(&path).next_position, 2);
        fs::write(&path, b"half a fi").expect("written");
        assert_eq!(Cursors::load(&path).next_position, 1);
        fs::remove_file(&path).expect("removed");
        assert_eq!(Cursors::load(&path).next_position, 1);
    }
}
