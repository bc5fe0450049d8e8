//! Small files and directories that must survive a power cut: written whole, checksummed, replaced atomically.
//!
//! A checked file is one line of header (`segspool <what> 1 crc32c=<hex>`) and a JSON body, so that an operator can read it
//! with `cat`. It is written under another name, synced, renamed over the old one, and then its directory is synced: a
//! reader finds the old file or the new one, never half of one. Never locks, and never decides what a bad file means.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Writes `body` as the checked file `path`, atomically and durably. `what` names the kind of file in its header.
///
/// # Errors
/// Any I/O error; the old file is then still in place.
pub(crate) fn save<T: Serialize>(path: &Path, what: &str, body: &T) -> io::Result<()> {
    let body = serde_json::to_vec(body)?;
    let unfinished = unfinished(path);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)?;
    writeln!(file, "{}", header(what, &body))?;
    file.write_all(&body)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    sync_parent(path)
}

/// Reads a checked file. `Ok(None)` when there is none.
///
/// # Errors
/// `InvalidData` for a file that is not what [`save`] wrote; any other I/O error as it came.
pub(crate) fn load<T: DeserializeOwned>(path: &Path, what: &str) -> io::Result<Option<T>> {
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let damaged = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{what}: {why}"));
    let Some(end) = content.iter().position(|b| *b == b'\n') else {
        return Err(damaged("no header"));
    };
    let body = &content[end + 1..];
    if content[..end] != *header(what, body).as_bytes() {
        return Err(damaged("the checksum does not match"));
    }
    serde_json::from_slice(body)
        .map(Some)
        .map_err(|e| damaged(&e.to_string()))
}

/// The name under which the next version of a checked file is written.
pub(super) fn unfinished(path: &Path) -> PathBuf {
    path.with_added_extension("new")
}

/// Creates `dir`, readable by its owner only, unless it exists, and syncs its parent, which must be there: what somebody has deleted
/// under a running daemon is not to come back without its lock.
pub(super) fn create_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new().mode(0o700).create(dir)?;
    sync_parent(dir)
}

/// The same, with what is missing above it.
pub(super) fn create_dirs(dir: &Path) -> io::Result<()> {
    let above = dir.ancestors().filter(|dir| *dir != Path::new(""));
    let mut missing: Vec<_> = above.take_while(|dir| !dir.is_dir()).collect();
    missing.reverse();
    missing.into_iter().try_for_each(create_dir)
}

/// Syncs a file or a directory by its path.
pub(super) fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Syncs the directory that holds the name `path`.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), sync)
}

fn header(what: &str, body: &[u8]) -> String {
    format!("segspool {what} 1 crc32c={:08x}", crc32c::crc32c(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checked_file_is_read_back_as_it_was_saved() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("cursors");
        assert_eq!(load::<Vec<u32>>(&path, "cursors").expect("none"), None);
        save(&path, "cursors", &vec![1, 2, 3]).expect("saved");
        save(&path, "cursors", &vec![4]).expect("replaced");
        assert_eq!(load(&path, "cursors").expect("read"), Some(vec![4]));
        assert!(!unfinished(&path).exists());
    }

    #[test]
    fn any_flipped_bit_or_missing_byte_is_noticed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("cursors");
        save(&path, "cursors", &"a value").expect("saved");
        let good = fs::read(&path).expect("read");
        for at in 0..good.len() {
            let mut flipped = good.clone();
            flipped[at] ^= 1;
            for bad in [&flipped[..], &good[..at]] {
                fs::write(&path, bad).expect("written");
                assert!(load::<String>(&path, "cursors").is_err(), "byte {at}");
            }
        }
        fs::write(&path, good).expect("written");
        assert!(
            load::<String>(&path, "summary").is_err(),
            "another kind of file"
        );
    }
}
