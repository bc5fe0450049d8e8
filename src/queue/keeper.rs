//! The keeper: the thread that writes progress down and gives disk back.
//!
//! After events were settled it saves the cursors, at most ten times a second, then deletes the volumes of which nothing is
//! left. In this order: a volume is gone only after the cursors that have passed it are on disk. After a full disk it takes the
//! reserve back as soon as there is room.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{debug, warn};

use super::Shared;
use super::cursors::Cursors;
use super::store::StoreError;
use super::volume::Volume;
use super::writer::{IDLE_BYTES, Order};

/// A crash re-sends at most what was settled in this time.
const SAVE_EVERY: Duration = Duration::from_millis(100);
/// A disk that did not take the cursors is tried again after this.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A full disk is asked for room again after this.
const LOOK_AFTER: Duration = Duration::from_secs(1);

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

/// What it is time for.
enum Work {
    /// The save of this number.
    Save(u64),
    /// To see whether a full disk has room again.
    Look,
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

    /// [`KeeperHandle::saved`] for a thread. What was drained by then has been deleted.
    pub(super) fn wait_saved(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.dirty = true;
        let wanted = state.begun + 1;
        self.changed.notify_all();
        let is_awaited = |state: &mut State| !state.stopping && *self.saved.borrow() < wanted;
        let waited = self
            .changed
            .wait_timeout_while(state, SAVED_WITHIN, is_awaited);
        drop(waited);
    }

    /// The save with this number has ended well.
    fn note_saved(&self, number: u64) {
        self.saved.send_replace(number);
        self.set(|_| ());
    }

    /// Save once more and end.
    pub(super) fn stop(&self) {
        self.set(|state| state.stopping = true);
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Waits until there is something to save, or it is time to look for room; none when it is time to end.
    fn wait(&self, not_before: Instant, look_at: Option<Instant>) -> Option<Work> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.stopping {
            let pause = not_before.saturating_duration_since(Instant::now());
            if state.dirty && pause.is_zero() {
                state.dirty = false;
                state.begun += 1;
                return Some(Work::Save(state.begun));
            }
            let look_in = look_at.map(|at| at.saturating_duration_since(Instant::now()));
            if look_in.is_some_and(|pause| pause.is_zero()) {
                return Some(Work::Look);
            }
            let look_in = look_in.unwrap_or(Duration::MAX);
            let pause = if state.dirty {
                pause.min(look_in)
            } else {
                look_in
            };
            let waited = self.changed.wait_timeout(state, pause);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        None
    }
}

/// Works until it is stopped, and saves a last time then.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut not_before = Instant::now();
    let mut look_at = None;
    while let Some(work) = shared.keeper.wait(not_before, look_at) {
        if let Work::Save(number) = work {
            let saved = save(shared);
            if saved {
                shared.keeper.note_saved(number);
            } else {
                shared.keeper.wake();
            }
            not_before = Instant::now() + if saved { SAVE_EVERY } else { RETRY_AFTER };
        }
        let is_there = shared.reserve.take_back();
        look_at = (!is_there).then(|| Instant::now() + LOOK_AFTER);
    }
    save(shared);
}

/// Saves the cursors and deletes what is drained. Returns whether the disk took it.
fn save(shared: &Shared) -> bool {
    // Before the volumes are listed: a number that has been used by now is among them, or its volume has gone.
    let next_volume = shared.next_volume.load(Ordering::Acquire);
    let volumes = shared.volumes.all();
    // Before the cursors are taken: whatever is drained by now, the cursors have passed.
    let is_done = |v: &Arc<Volume>| v.is_drained() && v.number < next_volume;
    let (drained, others): (Vec<_>, Vec<_>) = volumes.into_iter().partition(is_done);
    let lanes = shared.lanes.all();
    let cursors = Cursors {
        next_position: shared.next_position.load(Ordering::Relaxed),
        next_volume,
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
    let path = shared.layout.cursors();
    if let Err(error) = shared.reserve.with_room(|| Ok(cursors.save(&path)?)) {
        warn!(%error, "failed to save the cursors");
        return false;
    }
    let saved = lanes.iter().zip(&cursors.lanes);
    shared
        .saved
        .set(saved.map(|(lane, (_, stand))| (lane.id(), stand.cursor)));
    shared.dead_letters.cursors_saved();
    shared.repacker.wake();
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
