//! How far an import has come, in a small file beside the one that is imported. It holds nothing of what that holds.
//!
//! It is there from before the first call until the end, and is replaced after each call, atomically and durably: whatever ends the
//! process, at most the call that was under way is made again.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::portion::Place;
use crate::queue::files;

/// What the file's first line calls it.
const WHAT: &str = "import";
/// How much of a file's beginning tells it from others, in bytes.
const HEAD_BYTES: u64 = 64 * 1024;
/// What messageIds are derived in.
const NAMESPACE: Uuid = Uuid::from_u128(0x6ab7_0d0e_84b2_4a5f_9a1e_3f6d_5c27_91d4);

/// What a file is known by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    pub(super) size: u64,
    modified: (i64, i64),
    head_crc32c: u32,
}

impl Identity {
    /// That of an open file, which is then at its beginning.
    pub(super) fn of(file: &mut File) -> io::Result<Identity> {
        let metadata = file.metadata()?;
        let mut head = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.by_ref().take(HEAD_BYTES).read_to_end(&mut head)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: modified(&metadata),
            head_crc32c: crc32c::crc32c(&head),
        })
    }

    /// Whether the file is as it was, as far as that shows without reading it.
    pub(super) fn still_holds(&self, metadata: &Metadata) -> bool {
        metadata.size() == self.size && modified(metadata) == self.modified
    }

    /// What the messageIds of its events are made from. It is the same for a copy that kept its time, wherever that lies.
    pub(super) fn seed(&self) -> Uuid {
        let (seconds, nanoseconds) = self.modified;
        let name = format!("{} {seconds} {nanoseconds} {}", self.size, self.head_crc32c);
        Uuid::new_v5(&NAMESPACE, name.as_bytes())
    }
}

fn modified(metadata: &Metadata) -> (i64, i64) {
    (metadata.mtime(), metadata.mtime_nsec())
}

/// How far an import has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// Everything before it is done.
    pub(super) next: Place,
    /// Events that the daemon has accepted.
    pub(super) accepted: u64,
    /// Lines, and events of batches, that were rejected.
    pub(super) rejected: u64,
    /// The file with those, and how long it is.
    pub(super) rejects: String,
    pub(super) rejected_bytes: u64,
    /// Whether a call may have been made since.
    pub(super) under_way: bool,
}

impl State {
    /// Nothing is done yet. What will be rejected goes to the file at `rejects`.
    pub(super) fn new(rejects: &Path) -> State {
        State {
            next: Place::START,
            accepted: 0,
            rejected: 0,
            rejects: rejects.to_string_lossy().into_owned(),
            rejected_bytes: 0,
            under_way: false,
        }
    }

    /// Whether the file at `rejects` is the import's own, which it may cut where it goes on.
    pub(super) fn has_made(&self, rejects: &Path) -> bool {
        self.rejects == rejects.to_string_lossy()
    }
}

/// Where it is kept, and of which file.
#[derive(Clone, Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    of: Identity,
}

/// Why an import cannot go on from where it was.
#[derive(Debug)]
pub(super) enum LoadError {
    /// The file is not the one of which so much was imported.
    Changed,
    Io(io::Error),
}

#[derive(Serialize, Deserialize)]
struct Saved {
    file: Identity,
    #[serde(flatten)]
    state: State,
}

impl StateFile {
    pub(super) fn new(path: &Path, of: Identity) -> io::Result<StateFile> {
        Ok(StateFile {
            path: std::path::absolute(path)?,
            of,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How far the import of this file has come; none where it has not begun.
    pub(super) fn load(&self) -> Result<Option<State>, LoadError> {
        match files::load(&self.path, WHAT).map_err(LoadError::Io)? {
            Some(Saved { file, .. }) if file != self.of => Err(LoadError::Changed),
            saved => Ok(saved.map(|saved: Saved| saved.state)),
        }
    }

    pub(super) fn save(&self, state: &State) -> io::Result<()> {
        let saved = Saved {
            file: self.of.clone(),
            state: state.clone(),
        };
        files::save(&self.path, WHAT, &saved)
    }

    /// The import is over.
    pub(super) fn remove(&self) -> io::Result<()> {
        fs::remove_file(&self.path)?;
        files::sync_parent(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn a_file_is_another_once_its_size_its_time_or_its_beginning_has_changed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("events.ndjson");
        let then = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789);
        let write = |text: &str, time: SystemTime| {
            let mut file = File::options()
                .write(true)
                .read(true)
                .create(true)
                .truncate(true)
                .open(&path)
                .expect("opened");
            file.write_all(text.as_bytes()).expect("written");
            file.set_modified(time).expect("set");
            Identity::of(&mut file).expect("read")
        };
        let first = write("one\n", then);
        assert_eq!(first, write("one\n", then));
        for (text, time) in [
            ("one\ntwo\n", then),
            ("two\n", then),
            ("one\n", then + Duration::from_nanos(1)),
        ] {
            let other = write(text, time);
            assert_ne!(first, other);
            assert_ne!(first.seed(), other.seed());
        }
    }
}
