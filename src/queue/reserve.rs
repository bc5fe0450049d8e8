//! The reserve: a file that keeps a little room on the disk for what must be possible when it is full: saving cursors, without which
//! nothing is deleted, burying, sealing, and opening a volume to read it or to take it up.
//!
//! Who first finds the disk full gives it up. As long as it is gone no events are accepted, so that they do not use up its room; the
//! keeper takes it back when there is enough for it and for events, and then they are accepted again. A file system that cannot
//! set room aside has none, and is asked for its free space instead. Never deletes anything else.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;
use tracing::{error, info, warn};

use super::keeper::KeeperHandle;
use super::store::StoreError;

/// The cursors of many lanes, twice, and the first segments of dead letters written anew.
const RESERVE_BYTES: u64 = 4 * 1024 * 1024;
/// What must be free beside it before events are accepted again: a whole group and the volume that it begins.
const RESUME_BYTES: u64 = 5 * 1024 * 1024;

/// The reserve, there or given up.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    is_there: AtomicBool,
    keeper: Arc<KeeperHandle>,
}

impl Reserve {
    /// Sets the room aside, unless an earlier process did. Where there is none the disk is full from the start.
    pub(super) fn open(path: PathBuf, keeper: Arc<KeeperHandle>) -> Reserve {
        let reserve = Reserve {
            path,
            is_there: AtomicBool::new(true),
            keeper,
        };
        if !reserve.is_whole() && reserve.allocate().is_err_and(is_disk_full) {
            reserve.give_up();
        }
        reserve
    }

    /// Whether the disk was not found full since there was last enough room.
    pub(super) fn is_there(&self) -> bool {
        self.is_there.load(Ordering::Acquire)
    }

    /// Does something that takes a little room; where the disk is full, once more in the room of the reserve.
    pub(super) fn with_room<T>(
        &self,
        mut work: impl FnMut() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match work() {
            Err(error) if error.is_disk_full() && self.give_up() => work(),
            done => done,
        }
    }

    /// Gives the room to whoever needs it. Returns whether there was any.
    pub(super) fn give_up(&self) -> bool {
        if !self.is_there.swap(false, Ordering::AcqRel) {
            return false;
        }
        self.remove();
        error!("the disk is full; no events are accepted until there is room again");
        self.keeper.wake();
        true
    }

    /// Takes the room back where there is enough. Returns whether the reserve is there.
    pub(super) fn take_back(&self) -> bool {
        if self.is_there() {
            return true;
        }
        // Any other fault shows where it counts: as events are stored.
        if self.allocate().is_err_and(is_disk_full) {
            return false;
        }
        self.is_there.store(true, Ordering::Release);
        info!("there is room on the disk again; events are accepted");
        true
    }

    fn is_whole(&self) -> bool {
        let taken = fs::metadata(&self.path).map(|file| file.blocks() * 512);
        taken.is_ok_and(|taken| taken >= RESERVE_BYTES)
    }

    /// Sets aside what is to be kept and what is to be free beside it, and gives the latter back.
    fn allocate(&self) -> io::Result<()> {
        let bytes = RESERVE_BYTES + RESUME_BYTES;
        let parent = self.path.parent().unwrap_or(&self.path);
        let free = statvfs(parent)?;
        if free.f_bavail.saturating_mul(free.f_frsize) < bytes {
            return Err(Errno::NOSPC.into());
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.path)?;
        match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => file.set_len(RESERVE_BYTES),
            Err(Errno::OPNOTSUPP) => {
                self.remove();
                Ok(())
            }
            Err(error) => {
                self.remove();
                Err(error.into())
            }
        }
    }

    fn remove(&self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(%error, "failed to give the reserve up");
            }
            _ => {}
        }
    }
}

fn is_disk_full(error: io::Error) -> bool {
    StoreError::Io(error).is_disk_full()
}
