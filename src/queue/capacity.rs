//! Whether there is room: for the spool under its bound, and for everything else on its file system.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::{info, warn};

use super::AppendError;

/// The bounds of the disk.
#[derive(Debug)]
pub(super) struct Capacity {
    data_dir: PathBuf,
    max_bytes: u64,
    min_free_disk: u64,
    /// Whether the last group was let in, so that a change is logged once.
    full: AtomicBool,
}

impl Capacity {
    pub(super) fn new(data_dir: &Path, max_bytes: u64, min_free_disk: u64) -> Capacity {
        Capacity {
            data_dir: data_dir.to_owned(),
            max_bytes,
            min_free_disk,
            full: AtomicBool::new(false),
        }
    }

    /// Whether the last group was refused for want of room.
    pub(super) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// What the volumes may take, in bytes.
    pub(super) fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// What the volumes may come to take where they take `used`, in bytes: their own bound, or what the file system has left.
    pub(super) fn bound(&self, used: u64) -> u64 {
        let free = self.free_disk_bytes().unwrap_or(u64::MAX);
        let left = free.saturating_sub(self.min_free_disk);
        self.max_bytes.min(used.saturating_add(left))
    }

    /// Lets a group in that takes `bytes` as stored where the volumes take `used`, or says that the queue is full.
    pub(super) fn admit(&self, used: u64, bytes: u64) -> Result<(), AppendError> {
        let bound = if used + bytes > self.max_bytes {
            Some("queue.max_bytes")
        } else if self
            .free_disk_bytes()
            .is_some_and(|free| free < self.min_free_disk + bytes)
        {
            Some("queue.min_free_disk")
        } else {
            None
        };
        let was_full = self.full.swap(bound.is_some(), Ordering::Relaxed);
        match bound {
            Some(bound) => {
                if !was_full {
                    warn!(
                        bound,
                        used_bytes = used,
                        "the queue is full; events are refused until it drains"
                    );
                }
                Err(AppendError::Full)
            }
            None => {
                if was_full {
                    info!(used_bytes = used, "the queue takes events again");
                }
                Ok(())
            }
        }
    }

    /// What the file system of the spool has left for us, in bytes; none where it does not say.
    pub(super) fn free_disk_bytes(&self) -> Option<u64> {
        match rustix::fs::statvfs(&self.data_dir) {
            Ok(stat) => Some(stat.f_bavail.saturating_mul(stat.f_frsize)),
            Err(error) => {
                warn!(%error, "failed to ask the file system for its free space");
                None
            }
        }
    }
}
