//! Where things lie under the data directory, who may use it, and in which format it is.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::files;
use super::ground;
use super::store::StoreError;

/// The version of everything under the data directory. A spool of another version is left alone.
const FORMAT: u32 = 2;

/// What lies in the data directory and is written to.
const LOCK: &str = "LOCK";
const VOLUMES: &str = "volumes";
const DEAD_LETTERS: &str = "dead-letters";
const QUARANTINE: &str = "quarantine";

/// An opened data directory. It is locked until this is dropped.
#[derive(Debug)]
pub(super) struct Layout {
    data_dir: PathBuf,
    _lock: File,
}

/// Why a spool was not opened. Completes "failed to open the spool: …".
#[derive(Debug)]
pub enum OpenError {
    /// Another process has it.
    InUse {
        /// The data directory.
        data_dir: PathBuf,
        /// What the other process wrote into the lock: its id.
        by: String,
    },
    /// Another version of segspool made it.
    Format {
        /// The data directory.
        data_dir: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The disk, or its permissions.
    Io(io::Error),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::InUse { data_dir, by } => {
                write!(
                    f,
                    "{} is in use by another segspool, process {by}",
                    data_dir.display()
                )
            }
            OpenError::Format { data_dir, found } => {
                write!(
                    f,
                    "{} has format {found}, and this version knows format {FORMAT} only",
                    data_dir.display()
                )
            }
            OpenError::Io(e) => write!(f, "{e}"),
        }
    }
}

impl std::error::Error for OpenError {}

impl From<io::Error> for OpenError {
    fn from(e: io::Error) -> OpenError {
        OpenError::Io(e)
    }
}

impl From<StoreError> for OpenError {
    fn from(e: StoreError) -> OpenError {
        match e {
            StoreError::Io(e) => OpenError::Io(e),
            StoreError::Corrupt(why) => {
                OpenError::Io(io::Error::new(io::ErrorKind::InvalidData, why))
            }
        }
    }
}

impl Layout {
    /// Makes the directory if need be, locks it and checks its format.
    pub(super) fn open(data_dir: &Path) -> Result<Layout, OpenError> {
        ground::check(data_dir, &[LOCK, VOLUMES, DEAD_LETTERS, QUARANTINE])?;
        files::create_dirs(data_dir)?;
        let lock = lock(data_dir)?;
        if check_format(data_dir)?.is_none() {
            write_format(&data_dir.join("format"))?;
        }
        ground::warn_of_risks(data_dir);
        Ok(Layout {
            data_dir: data_dir.to_owned(),
            _lock: lock,
        })
    }

    /// Locks a spool that is there, to look at it, and checks its format. Makes and changes nothing.
    ///
    /// # Errors
    /// As [`Layout::open`], and where there is no spool.
    pub(super) fn look_at(data_dir: &Path) -> Result<Layout, OpenError> {
        check_format(data_dir)?;
        let lock = File::open(data_dir.join(LOCK))?;
        Ok(Layout {
            _lock: locked(data_dir, lock)?,
            data_dir: data_dir.to_owned(),
        })
    }

    pub(super) fn cursors(&self) -> PathBuf {
        self.data_dir.join("cursors")
    }

    pub(super) fn reserve(&self) -> PathBuf {
        self.data_dir.join("reserve")
    }

    pub(super) fn volumes(&self) -> PathBuf {
        self.data_dir.join(VOLUMES)
    }

    pub(super) fn dead_letters(&self) -> PathBuf {
        self.data_dir.join(DEAD_LETTERS)
    }

    pub(super) fn quarantine(&self) -> PathBuf {
        self.data_dir.join(QUARANTINE)
    }
}

/// The format, which must be this version's; none where the file says none. No version leaves it like that: a crash or a bad disk
/// does, and it keeps nobody from what else is there.
fn check_format(data_dir: &Path) -> Result<Option<u32>, OpenError> {
    let content = match fs::read(data_dir.join("format")) {
        Ok(content) => String::from_utf8(content).unwrap_or_default(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    match content.trim_end().parse() {
        Ok(FORMAT) => Ok(Some(FORMAT)),
        Ok(found) => Err(OpenError::Format {
            data_dir: data_dir.to_owned(),
            found,
        }),
        Err(_) => {
            warn!(data_dir = %data_dir.display(), "the file that tells the spool's format is damaged; it is taken for this version's");
            Ok(None)
        }
    }
}

fn write_format(path: &Path) -> io::Result<()> {
    let unfinished = files::unfinished(path);
    fs::write(&unfinished, format!("{FORMAT}\n"))?;
    files::sync(&unfinished)?;
    fs::rename(&unfinished, path)?;
    files::sync_parent(path)
}

fn lock(data_dir: &Path) -> Result<File, OpenError> {
    let path = data_dir.join(LOCK);
    let lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    let mut lock = locked(data_dir, lock)?;
    // The number is only for the message below: a full disk does not keep the daemon from starting.
    let _ = lock.set_len(0);
    let _ = lock.rewind();
    let _ = writeln!(lock, "{}", std::process::id());
    Ok(lock)
}

fn locked(data_dir: &Path, mut lock: File) -> Result<File, OpenError> {
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            let mut by = String::new();
            let _ = lock.read_to_string(&mut by);
            Err(OpenError::InUse {
                data_dir: data_dir.to_owned(),
                by: by.trim().to_owned(),
            })
        }
        Err(TryLockError::Error(e)) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_told_who_has_the_spool() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let _first = Layout::open(dir.path()).expect("opened");
        let second = Layout::open(dir.path()).expect_err("in use");
        assert!(
            second
                .to_string()
                .ends_with(&format!("process {}", std::process::id())),
            "{second}"
        );
    }

    #[test]
    fn a_spool_of_another_format_is_left_alone() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        drop(Layout::open(dir.path()).expect("opened"));
        drop(Layout::open(dir.path()).expect("opened again"));
        for other in [FORMAT - 1, FORMAT + 1] {
            fs::write(dir.path().join("format"), format!("{other}\n")).expect("written");
            let opened = Layout::open(dir.path());
            assert!(matches!(opened, Err(OpenError::Format { found, .. }) if found == other));
        }
    }
}
