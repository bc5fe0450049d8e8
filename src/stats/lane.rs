//! What one lane has done and is doing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Counter;
use super::snapshot::LaneSnapshot;

/// What a lane is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LaneState {
    /// Nothing to send, or waiting for a batch to fill.
    #[default]
    Idle,
    /// A call is under way.
    Sending,
    /// A call failed; it is tried again by itself.
    BackingOff,
    /// The destination asked for a pause.
    RateLimited,
    /// The destination does not let this lane in. Somebody has to act; it is probed slowly.
    Held,
    /// An operator paused it.
    Paused,
}

/// The counters of one lane, and its state.
#[derive(Debug, Default)]
pub struct LaneStats {
    /// Events answered 200.
    pub accepted_events: Counter,
    /// Events that the destination took.
    pub delivered_events: Counter,
    /// Calls that the destination took.
    pub delivered_batches: Counter,
    /// The bodies of these calls, in bytes.
    pub delivered_bytes: Counter,
    /// Events the destination refused for good, now dead letters.
    pub dead_letter_events: Counter,
    /// Events dropped because the lane has had its share of the spool.
    pub dropped_events: Counter,
    /// Calls that were repeated.
    pub retries: Counter,
    drops: AtomicBool,
    live: Mutex<Live>,
}

#[derive(Debug, Default)]
struct Live {
    state: LaneState,
    /// Whether an operator has paused it, whatever it is doing otherwise.
    paused: bool,
    reason: Option<String>,
    in_flight_batches: u64,
    attempt: u32,
    retry_at: Option<Instant>,
    last_status: Option<u16>,
    last_error: Option<String>,
}

impl LaneStats {
    /// How many calls are under way.
    pub fn in_flight(&self, batches: usize) {
        self.change(|live| {
            live.in_flight_batches = batches as u64;
            if batches > 0 && live.retry_at.is_none() {
                live.state = LaneState::Sending;
            } else if batches == 0 && live.state == LaneState::Sending {
                live.state = LaneState::Idle;
            }
        });
    }

    /// The destination took a batch.
    pub fn flowing(&self, status: u16) {
        self.change(|live| {
            live.state = if live.in_flight_batches > 0 {
                LaneState::Sending
            } else {
                LaneState::Idle
            };
            live.reason = None;
            live.attempt = 0;
            live.retry_at = None;
            live.last_status = Some(status);
            live.last_error = None;
        });
    }

    /// The lane waits, and why. `attempt` counts the failures in a row.
    pub fn waiting(&self, state: LaneState, reason: &str, attempt: u32, retry_in: Duration) {
        self.change(|live| {
            live.state = state;
            live.reason = Some(reason.to_owned());
            live.attempt = attempt;
            live.retry_at = Some(Instant::now() + retry_in);
        });
    }

    /// An operator has paused the lane, or lets it go on.
    pub fn paused(&self, paused: bool) {
        self.change(|live| live.paused = paused);
    }

    /// A call did not do: the answer's status, where there was one, and what was wrong.
    pub fn failed(&self, status: Option<u16>, error: &str) {
        self.change(|live| {
            live.last_status = status.or(live.last_status);
            live.last_error = Some(error.to_owned());
        });
    }

    /// Whether what is accepted for the lane is dropped from now on. Returns whether it was until now.
    pub fn drops(&self, drops: bool) -> bool {
        self.drops.swap(drops, Ordering::Relaxed)
    }

    /// What the lane is doing just now, paused or not.
    #[must_use]
    pub fn state(&self) -> LaneState {
        self.live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .state
    }

    /// What is counted here of a lane's snapshot; what waits is the queue's to add.
    #[must_use]
    pub fn snapshot(&self, id: String, destination: String, key: String) -> LaneSnapshot {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let batches = self.delivered_batches.get();
        LaneSnapshot {
            id,
            destination,
            key,
            state: if live.paused {
                LaneState::Paused
            } else {
                live.state
            },
            reason: live.reason.clone(),
            in_flight_batches: live.in_flight_batches,
            attempt: live.attempt,
            retry_in_seconds: live
                .retry_at
                .map(|at| at.saturating_duration_since(Instant::now()).as_secs_f64()),
            accepted_events: self.accepted_events.get(),
            delivered_events: self.delivered_events.get(),
            delivered_batches: batches,
            mean_batch_bytes: self.delivered_bytes.get().checked_div(batches).unwrap_or(0),
            dead_letter_events: self.dead_letter_events.get(),
            dropped_events: self.dropped_events.get(),
            last_status: live.last_status,
            last_error: live.last_error.clone(),
            ..LaneSnapshot::default()
        }
    }

    fn change(&self, change: impl FnOnce(&mut Live)) {
        change(&mut self.live.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
