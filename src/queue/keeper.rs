//! The keeper: the thread that writes progress down and gives disk back.
//!
//! After events were settled it saves the cursors, at most ten times a second, then deletes the volumes of which nothing is
//! left. In this order: a volume is gone only after the cursors that have passed it are on disk.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::Shared;
use super::cursors::Cursors;
use super::store::StoreError;
use super::writer::{IDLE_BYTES, Order};

/// A crash re-sends at most what was settled in this time.
const SAVE_EVERY: Duration = Duration::from_millis(100);
/// A disk that did not take the cursors is tried again after this.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How the others reach the keeper.
#[derive(Debug, Default)]
pub(super) struct KeeperHandle {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    dirty: bool,
    stopping: bool,
}

impl KeeperHandle {
    /// Something was settled or sealed.
    pub(super) fn wake(&self) {
        self.set(|state| state.dirty = true);
    }

    /// Save once more and end.
    pub(super) fn stop(&self) {
        self.set(|state| state.stopping = true);
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

    /// Waits until there is something to save; false when it is time to end.
    fn wait(&self, not_before: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.stopping {
            let pause = not_before.saturating_duration_since(Instant::now());
            if state.dirty && pause.is_zero() {
                state.dirty = false;
                return true;
            }
            let pause = if state.dirty { pause } else { Duration::MAX };
            let waited = self.changed.wait_timeout(state, pause);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }
}

/// Works until it is stopped, and saves a last time then.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut not_before = Instant::now();
    while shared.keeper.wait(not_before) {
        let saved = save(shared);
        if !saved {
            shared.keeper.wake();
        }
        not_before = Instant::now() + if saved { SAVE_EVERY } else { RETRY_AFTER };
    }
    save(shared);
}

/// Saves the cursors and deletes what is drained. Returns whether the disk took it.
fn save(shared: &Shared) -> bool {
    let volumes = shared.volumes.all();
    // Before the cursors are taken: whatever is drained by now, the cursors have passed.
    let (drained, others): (Vec<_>, Vec<_>) = volumes.into_iter().partition(|v| v.is_drained());
    let lanes = shared.lanes.all();
    let cursors = Cursors {
        next_position: shared.next_position.load(Ordering::Relaxed),
        next_volume: shared.next_volume.load(Ordering::Relaxed),
        lanes: lanes
            .iter()
            .map(|lane| (lane.name().clone(), lane.cursor()))
            .collect(),
        paused: lanes
            .iter()
            .filter(|lane| lane.is_paused())
            .map(|lane| lane.name().clone())
            .collect(),
    };
    if let Err(error) = cursors.save(&shared.layout.cursors()) {
        warn!(%error, "failed to save the cursors");
        return false;
    }
    let saved = lanes.iter().zip(&cursors.lanes);
    shared
        .saved
        .set(saved.map(|(lane, (_, cursor))| (lane.id(), *cursor)));
    shared.dead_letters.cursors_saved();
    for volume in drained {
        if volume.is_damaged() {
            let why = StoreError::Corrupt("events are missing in it".into());
            shared.volumes.move_to_quarantine(&volume, &why);
            continue;
        }
        match shared.volumes.delete(&volume) {
            Ok(()) => debug!(volume = volume.number, "deleted a drained volume"),
            Err(error) => {
                warn!(volume = volume.number, %error, "failed to delete a drained volume")
            }
        }
    }
    if others
        .iter()
        .any(|v| v.is_settled() && v.disk_bytes() > IDLE_BYTES)
    {
        // When the writer is too busy to take it, it is not idle.
        let _ = shared.orders.try_send(Order::SealIfSettled);
    }
    true
}
