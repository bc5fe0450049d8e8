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
    /// Nothing to send; or something, and a reason why it is not sent yet, such as a batch that is to fill.
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

impl LaneState {
    /// All of them.
    pub const ALL: [LaneState; 6] = [
        LaneState::Idle,
        LaneState::Sending,
        LaneState::BackingOff,
        LaneState::RateLimited,
        LaneState::Held,
        LaneState::Paused,
    ];

    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            LaneState::Idle => "idle",
            LaneState::Sending => "sending",
            LaneState::BackingOff => "backing_off",
            LaneState::RateLimited => "rate_limited",
            LaneState::Held => "held",
            LaneState::Paused => "paused",
        }
    }
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

impl Live {
    /// While no pause is under way, the calls tell what the lane is doing.
    fn settle_state(&mut self) {
        if self.retry_at.is_some() {
            return;
        }
        if self.in_flight_batches > 0 {
            self.at_ease(LaneState::Sending);
        } else if self.state == LaneState::Sending {
            self.at_ease(LaneState::Idle);
        }
    }

    /// It does what it is there for, which needs no reason.
    fn at_ease(&mut self, state: LaneState) {
        self.state = state;
        self.reason = None;
    }
}

impl LaneStats {
    /// How many calls are under way.
    pub fn in_flight(&self, batches: usize) {
        self.change(|live| {
            live.in_flight_batches = batches as u64;
            live.settle_state();
        });
    }

    /// The lane waits no longer: it calls again, or does so when its turn comes.
    pub fn pause_over(&self) {
        self.change(|live| {
            live.retry_at = None;
            live.settle_state();
        });
    }

    /// There is nothing to be sent.
    pub fn nothing_to_send(&self) {
        self.change(|live| {
            if live.in_flight_batches == 0 {
                live.at_ease(LaneState::Idle);
            }
        });
    }

    /// There is something to be sent, and for now nothing is: why.
    pub fn holds_back(&self, reason: &str) {
        self.change(|live| {
            if live.state == LaneState::Idle && live.in_flight_batches == 0 {
                live.reason = Some(reason.to_owned());
            }
        });
    }

    /// The destination took a batch.
    pub fn flowing(&self, status: u16) {
        self.change(|live| {
            live.at_ease(if live.in_flight_batches > 0 {
                LaneState::Sending
            } else {
                LaneState::Idle
            });
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
            reason: if live.paused {
                Some("paused by an operator".into())
            } else {
                live.reason.clone()
            },
            in_flight_batches: live.in_flight_batches,
            attempt: live.attempt,
            retry_in_seconds: live
                .retry_at
                .map(|at| at.saturating_duration_since(Instant::now()).as_secs_f64()),
            accepted_events: self.accepted_events.get(),
            delivered_events: self.delivered_events.get(),
            delivered_batches: batches,
            delivered_bytes: self.delivered_bytes.get(),
            retries: self.retries.get(),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(lane: &LaneStats) -> (LaneState, Option<String>, bool) {
        let seen = lane.snapshot(String::new(), String::new(), String::new());
        (seen.state, seen.reason, seen.retry_in_seconds.is_some())
    }

    /// It used to show `backing_off` until a call had succeeded, however long the next one took.
    #[test]
    fn a_lane_that_sends_again_is_sending_and_waits_again_after_the_next_failure() {
        let lane = LaneStats::default();
        let reason = || Some("answered 503".to_owned());
        lane.in_flight(1);
        lane.waiting(
            LaneState::BackingOff,
            "answered 503",
            1,
            Duration::from_secs(9),
        );
        lane.in_flight(0);
        assert_eq!(seen(&lane), (LaneState::BackingOff, reason(), true));
        lane.pause_over();
        assert_eq!(
            seen(&lane),
            (LaneState::BackingOff, reason(), false),
            "until its turn comes"
        );
        lane.in_flight(1);
        assert_eq!(seen(&lane), (LaneState::Sending, None, false));
        lane.waiting(LaneState::Held, "answered 401", 1, Duration::from_secs(9));
        lane.in_flight(0);
        assert_eq!(
            seen(&lane),
            (LaneState::Held, Some("answered 401".into()), true)
        );
        lane.paused(true);
        assert_eq!(seen(&lane).0, LaneState::Paused);
        lane.paused(false);
        lane.pause_over();
        lane.nothing_to_send();
        assert_eq!(seen(&lane), (LaneState::Idle, None, false));
    }

    #[test]
    fn calls_under_way_do_not_hide_that_the_lane_waits() {
        let lane = LaneStats::default();
        lane.in_flight(2);
        lane.waiting(LaneState::BackingOff, "reset", 1, Duration::from_secs(9));
        lane.in_flight(1);
        assert_eq!(seen(&lane).0, LaneState::BackingOff);
        lane.flowing(200);
        assert_eq!(seen(&lane), (LaneState::Sending, None, false));
    }
}
