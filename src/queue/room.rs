//! Making room for a group that does not fit: first without losing anything, then, where the operator wants it, by dropping the
//! oldest events. It gives disk back; whether there is room then, `capacity.rs` says.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::Shared;
use super::volume::Volume;

/// What happens to events that come while the queue has reached `queue.max_bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// They are refused until there is room: the sender may keep them.
    #[default]
    Reject,
    /// They are stored, and the oldest events that wait are dropped, a volume at a time.
    DropOldest,
}

impl Shared {
    /// Gives disk back until `bytes` fit, or no more can be given back. Blocks.
    pub(super) fn make_room(&self, bytes: u64) {
        while !self.has_room(bytes) && (self.relieve() || self.drop_oldest(bytes)) {}
    }

    fn has_room(&self, bytes: u64) -> bool {
        self.capacity.has_room(self.volumes.disk_bytes(), bytes)
    }

    /// Waits for what gives disk back without losing anything. Returns whether it did.
    fn relieve(&self) -> bool {
        let before = self.volumes.disk_bytes();
        if self.volumes.all().iter().any(|volume| volume.is_drained()) {
            self.keeper.wait_saved();
        } else {
            self.repacker.relieve();
        }
        self.volumes.disk_bytes() < before
    }

    /// Drops all that waits in the oldest sealed volume, where that is wanted and helps: what others take of the disk costs no event.
    /// Returns whether it gave disk back.
    fn drop_oldest(&self, bytes: u64) -> bool {
        let before = self.volumes.disk_bytes();
        let is_wanted = self.when_full == WhenFull::DropOldest;
        if !is_wanted || self.capacity.has_room_of_its_own(before, bytes) {
            return false;
        }
        let volumes = self.volumes.all();
        let waits = |volume: &&Arc<Volume>| volume.is_sealed() && !volume.is_settled();
        let Some(volume) = volumes.iter().find(waits) else {
            return false;
        };
        let lanes = self.lanes.all();
        let dropped = lanes.iter().map(|lane| lane.drop_volume(volume.number));
        let dropped: u64 = dropped.sum();
        self.settled([(volume.number, dropped)]);
        warn!(
            volume = volume.number,
            events = dropped,
            "the queue is full; its oldest events are dropped, as queue.when_full says"
        );
        // The cursors first, then the volume.
        self.keeper.wait_saved();
        self.volumes.disk_bytes() < before
    }
}
