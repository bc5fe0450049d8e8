//! Whether there is room: for the spool under its bound, and for everything else on its file system.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{info, warn};

use super::AppendError;

/// Of `max_bytes` no more than one in so many is kept for copies.
const COPIES_SHARE: u64 = 8;

/// The bounds of the disk.
#[derive(Debug)]
pub(super) struct Capacity {
    data_dir: PathBuf,
    max_bytes: u64,
    /// What is kept of it for the copies that repacking makes.
    for_copies: u64,
    min_free_disk: u64,
    /// What the last group that was not let in would have taken, in bytes; 0 if none was refused since the last that was.
    refused_bytes: AtomicU64,
}

impl Capacity {
    /// Volumes are about as large as `volume_bytes`; room for a copy of one is kept.
    pub(super) fn new(
        data_dir: &Path,
        max_bytes: u64,
        min_free_disk: u64,
        volume_bytes: u64,
    ) -> Capacity {
        Capacity {
            data_dir: data_dir.to_owned(),
            max_bytes,
            for_copies: volume_bytes.min(max_bytes / COPIES_SHARE),
            min_free_disk,
            refused_bytes: AtomicU64::new(0),
        }
    }

    /// Whether the last group was refused for want of room, and would be again where the volumes take `used`.
    pub(super) fn is_full(&self, used: u64) -> bool {
        let refused = self.refused_bytes.load(Ordering::Relaxed);
        refused > 0 && self.reached(used, refused).is_some()
    }

    /// What the volumes may take, in bytes.
    pub(super) fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// What the volumes may come to take where they take `used`, in bytes: their own bound, or what the file system has left.
    pub(super) fn bound(&self, used: u64) -> u64 {
        let free = self.free_disk_bytes().unwrap_or(u64::MAX);
        let left = free.saturating_sub(self.min_free_disk);
        self.for_events().min(used.saturating_add(left))
    }

    /// What events may fill of `max_bytes`.
    fn for_events(&self) -> u64 {
        self.max_bytes - self.for_copies
    }

    /// Whether a group of `bytes` would be let in where the volumes take `used`.
    pub(super) fn has_room(&self, used: u64, bytes: u64) -> bool {
        self.reached(used, bytes).is_none()
    }

    /// The same, whatever others have left of the disk.
    pub(super) fn has_room_of_its_own(&self, used: u64, bytes: u64) -> bool {
        used + bytes <= self.for_events()
    }

    /// Whether there is room for a copy of `bytes` where the volumes take `used`. It may take from what is to be left for others:
    /// it gives back more in a moment.
    pub(super) fn has_room_for_copy(&self, used: u64, bytes: u64) -> bool {
        let has_left = |free| free >= bytes.saturating_mul(2);
        used + bytes <= self.max_bytes && self.free_disk_bytes().is_none_or(has_left)
    }

    /// Lets a group in that takes `bytes` as stored where the volumes take `used`, or says that the queue is full.
    pub(super) fn admit(&self, used: u64, bytes: u64) -> Result<(), AppendError> {
        let bound = self.reached(used, bytes);
        let refused = bound.map_or(0, |_| bytes.max(1));
        let was_full = self.refused_bytes.swap(refused, Ordering::Relaxed) > 0;
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

    /// The setting that keeps `bytes` more out where the volumes take `used`.
    fn reached(&self, used: u64, bytes: u64) -> Option<&'static str> {
        let has_left = |free| free >= self.min_free_disk + bytes;
        if !self.has_room_of_its_own(used, bytes) {
            Some("queue.max_bytes")
        } else if self.min_free_disk == 0 || self.free_disk_bytes().is_none_or(has_left) {
            None
        } else {
            Some("queue.min_free_disk")
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody sends to a daemon that says it is full: it must find out by itself that it is not.
    #[test]
    fn it_is_full_until_what_was_refused_would_fit() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let capacity = Capacity::new(dir.path(), 1_000, 0, 0);
        assert!(!capacity.is_full(1_000), "nothing was refused");
        assert_eq!(capacity.admit(900, 200), Err(AppendError::Full));
        assert!(capacity.is_full(900));
        assert!(!capacity.is_full(800));
        assert_eq!(capacity.admit(800, 200), Ok(()));
        assert!(!capacity.is_full(1_000));
    }
}
