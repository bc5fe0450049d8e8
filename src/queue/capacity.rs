//! Whether there is room: for the spool under its bound, and for everything else on its file system.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{info, warn};

use super::AppendError;

/// The bounds of the disk.
#[derive(Debug)]
pub(super) struct Capacity {
    data_dir: PathBuf,
    max_bytes: u64,
    min_free_disk: u64,
    /// What the last group that was not let in would have taken, in bytes; 0 if none was refused since the last that was.
    refused_bytes: AtomicU64,
}

impl Capacity {
    pub(super) fn new(data_dir: &Path, max_bytes: u64, min_free_disk: u64) -> Capacity {
        Capacity {
            data_dir: data_dir.to_owned(),
            max_bytes,
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
        self.max_bytes.min(used.saturating_add(left))
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
        if used + bytes > self.max_bytes {
            Some("queue.max_bytes")
        } else if self.free_disk_bytes().is_none_or(has_left) {
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
        let capacity = Capacity::new(dir.path(), 1_000, 0);
        assert!(!capacity.is_full(1_000), "nothing was refused");
        assert_eq!(capacity.admit(900, 200), Err(AppendError::Full));
        assert!(capacity.is_full(900));
        assert!(!capacity.is_full(800));
        assert_eq!(capacity.admit(800, 200), Ok(()));
        assert!(!capacity.is_full(1_000));
    }
}
