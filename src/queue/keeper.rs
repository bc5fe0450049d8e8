//! The keeper: the thread that writes progress down and gives disk back.
//!
//! After events were settled it saves the cursors, at most ten times a second, then deletes the volumes of which nothing is
//! left. In this order: a volume is gone only after the cursors that have passed it are on disk.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{debug, warn};

use super::Shared;
use super::cursors::Cursors;
use super::store::StoreError;
use super::writer::{IDLE_BYTES, Order};

/// A crash re-sends at most what was settled in this time.
const SAVE_EVERY: Duration = Duration::from_millis(100);
/// A disk that did not take the cursors is tried again after this.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Who waits for a save waits no longer than this.
const SAVED_WITHIN: Duration = Duration::from_secs(5);

/// How the others reach the keeper.
#[derive(Debug, Default)]
pub(super) struct KeeperHandle {
    state: Mutex<State>,
    changed: Condvar,
    /// The number of the last save that the disk took.
    saved: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    dirty: bool,
    stopping: bool,
    /// How many saves have begun.
    begun: u64,
}

/// What was to be on disk is not there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotSaved;

impl fmt::Display for NotSaved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failed to write it to disk in time; it holds for this process")
    }
}

impl std::error::Error for NotSaved {}

impl KeeperHandle {
    /// Something was settled or sealed.
    pub(super) fn wake(&self) {
        self.set(|state| state.dirty = true);
    }

    /// Returns once a save has ended that began after this was called.
    ///
    /// # Errors
    /// None did in time.
    pub(super) async fn saved(&self) -> Result<(), NotSaved> {
        let mut saved = self.saved.subscribe();
        let mut wanted = 0;
        self.set(|state| {
            state.dirty = true;
            wanted = state.begun + 1;
        });
        let waiting = saved.wait_for(|saved| *saved >= wanted);
        match tokio::time::timeout(SAVED_WITHIN, waiting).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(NotSaved),
        }
    }

    /// Save once more and end.
    pub(super) fn stop(&self) {
        self.set(|state| state.stopping = true);
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

    /// Waits until there is something to save, and returns the number of that save; none when it is time to end.
    fn wait(&self, not_before: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.stopping {
            let pause = not_before.saturating_duration_since(Instant::now());
            if state.dirty && pause.is_zero() {
                state.dirty = false;
                state.begun += 1;
                return Some(state.begun);
            }
            let pause = if state.dirty { pause } else { Duration::MAX };
            let waited = self.changed.wait_timeout(state, pause);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        None
    }
}

/// Works until it is stopped, and saves a last time then.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut not_before = Instant::now();
    while let Some(number) = shared.keeper.wait(not_before) {
        let saved = save(shared);
        if saved {
            shared.keeper.saved.send_replace(number);
        } else {
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
            .map(|lane| (lane.name().clone(), lane.stand()))
            .collect(),
        paused: lanes
            .iter()
            .filter(|lane| lane.is_paused())
            .map(|lane| lane.name().clone())
            .collect(),
        volumes: others.iter().map(|volume| volume.number).collect(),
    };
    if let Err(error) = cursors.save(&shared.layout.cursors()) {
        warn!(%error, "failed to save the cursors");
        return false;
    }
    let saved = lanes.iter().zip(&cursors.lanes);
    shared
        .saved
        .set(saved.map(|(lane, (_, stand))| (lane.id(), stand.cursor)));
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
