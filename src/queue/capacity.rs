//! Whether there is room: for the spool under its bound, and for everything else on its file system.

use std::path::PathBuf;

use tracing::warn;

use super::{AppendError, Shared};

/// The bounds of the disk.
#[derive(Debug)]
pub(super) struct Capacity {
    pub(super) data_dir: PathBuf,
    pub(super) max_bytes: u64,
    pub(super) min_free_disk: u64,
}

impl Capacity {
    /// Lets a group in that takes `bytes` as stored, or says that the queue is full.
    pub(super) fn admit(&self, shared: &Shared, bytes: u64) -> Result<(), AppendError> {
        if shared.volumes.disk_bytes() + bytes > self.max_bytes {
            return Err(AppendError::Full);
        }
        if self
            .free_disk_bytes()
            .is_some_and(|free| free < self.min_free_disk + bytes)
        {
            return Err(AppendError::Full);
        }
        Ok(())
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
