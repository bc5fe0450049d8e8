//! The cursors: how far each lane has come. One small checked file, replaced atomically, the previous one kept.
//!
//! It may lag behind: a crash re-sends what was settled since it was last saved, with the same messageIds. It is never
//! ahead: an event before a cursor has been settled.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::Position;
use super::files;
use super::name::LaneName;
use super::volume::VolumeNumber;

const WHAT: &str = "cursors";

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

/// What the file holds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Cursors {
    /// Positions and volume numbers below these have been used, though nothing on disk may show it any more.
    pub(super) next_position: Position,
    pub(super) next_volume: VolumeNumber,
    pub(super) lanes: Vec<(LaneName, Cursor)>,
    /// The lanes that an operator has paused.
    #[serde(default)]
    pub(super) paused: Vec<LaneName>,
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

fn previous(path: &Path) -> std::path::PathBuf {
    path.with_added_extension("previous")
}

#[cfg(test)]
mod tests {
    use super::*;

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
