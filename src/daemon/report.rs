//! What systemd hears while the process runs: that it gets on, how it goes in words, and that a stop still makes progress.
//!
//! The watchdog is fed only while the writer and the delivery loops get on, so that systemd ends a process that lives on half dead.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{error, info};

use super::notify;
use crate::queue::{Depth, Lane, Pulse, Queue};
use crate::server::Phase;
use crate::stats::{LaneState, Stats};

/// How often the words are looked at.
const STATUS_EVERY: Duration = Duration::from_secs(5);
/// The watchdog is fed this often in the time that systemd grants.
const FEEDS: u32 = 4;
/// What has not ended after this part of the time that systemd grants is stuck.
const STUCK_AFTER: u32 = 2;
/// A stop is given this much time from each report on; it ends earlier, or reports again.
const STOP_EXTENSION: Duration = Duration::from_secs(15);
/// How many lanes in trouble are named.
const NAMED_MAX: usize = 3;

pub(super) struct Report {
    pub(super) queue: Queue,
    pub(super) stats: Arc<Stats>,
    /// Whether delivery gets on.
    pub(super) delivery: Pulse,
    pub(super) phase: watch::Receiver<Phase>,
}

impl Report {
    /// Reports for as long as the process runs. Where nobody listens, it only waits.
    pub(super) async fn run(self) {
        if !notify::is_heard() {
            return std::future::pending().await;
        }
        let watchdog = notify::watchdog();
        let every = watchdog.map_or(STATUS_EVERY, |granted| (granted / FEEDS).min(STATUS_EVERY));
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut phase = self.phase.clone();
        let (mut said, mut said_at, mut was_stuck) = (String::new(), None, false);
        loop {
            let mut changed = false;
            tokio::select! {
                _ = ticks.tick() => {}
                Ok(()) = phase.changed() => changed = true,
            }
            let stuck = watchdog.and_then(|granted| self.stuck(granted / STUCK_AFTER));
            match &stuck {
                Some(what) if !was_stuck => {
                    error!(%what, "no more signs of life are given to systemd until it gets on");
                }
                None if was_stuck => info!("it gets on again"),
                Some(_) | None => {}
            }
            was_stuck = stuck.is_some();
            if stuck.is_none() {
                if watchdog.is_some() {
                    notify::alive();
                }
                if *self.phase.borrow() > Phase::Running {
                    notify::extend(STOP_EXTENSION);
                }
            }
            let is_due = said_at.is_none_or(|at: Instant| at.elapsed() >= STATUS_EVERY);
            if changed || stuck.is_some() || is_due {
                said_at = Some(Instant::now());
                let words = stuck.unwrap_or_else(|| self.words());
                if words != said {
                    notify::status(&words);
                    said = words;
                }
            }
        }
    }

    /// What has been at the same piece of work for longer than `limit`.
    fn stuck(&self, limit: Duration) -> Option<String> {
        let workers = [
            ("the writer", self.queue.writer_busy_for()),
            ("delivery", self.delivery.busy_for()),
        ];
        let stuck = workers.into_iter().find(|(_, busy)| *busy > limit);
        stuck.map(|(who, busy)| format!("Stuck: {who} has been at the same work for {busy:.1?}"))
    }

    /// How it goes, in one line.
    fn words(&self) -> String {
        let phase = *self.phase.borrow();
        let phase = match phase {
            Phase::Running if self.queue.is_disk_full() => "The disk is full, accepting nothing",
            Phase::Running if self.queue.is_full() => "Full, accepting nothing",
            Phase::Running => "Accepting",
            Phase::Draining => "Stopping: delivering what waits",
            Phase::Stopped => "Stopping",
        };
        let lanes = self.queue.lanes();
        let troubles = lanes.iter().filter_map(|lane| self.trouble(lane));
        words(phase, self.queue.depth(), troubles)
    }

    fn trouble(&self, lane: &Lane) -> Option<String> {
        let id = lane.id().to_string();
        let name = lane.name();
        let snapshot =
            self.stats
                .lane(&id)
                .snapshot(id, name.destination.clone(), name.masked_key());
        let is_in_trouble = match snapshot.state {
            LaneState::Idle | LaneState::Sending => false,
            LaneState::BackingOff
            | LaneState::RateLimited
            | LaneState::Held
            | LaneState::Paused => true,
        };
        let state = snapshot.state.name().replace('_', " ");
        let reason = snapshot.reason.unwrap_or_default();
        is_in_trouble.then(|| {
            format!(
                "{} {} {state}: {reason}",
                snapshot.destination, snapshot.key
            )
        })
    }
}

fn words(phase: &str, depth: Depth, troubles: impl Iterator<Item = String>) -> String {
    let mut words = match depth.events {
        0 => format!("{phase}; nothing waits"),
        1 => format!("{phase}; 1 event waits ({})", ByteSize(depth.bytes)),
        events => format!("{phase}; {events} events wait ({})", ByteSize(depth.bytes)),
    };
    let mut unnamed = 0;
    for (index, trouble) in troubles.enumerate() {
        if index < NAMED_MAX {
            // One line, whatever a destination has answered.
            let trouble = trouble.replace(char::is_control, " ");
            let _ = write!(words, "; {trouble}");
        } else {
            unnamed += 1;
        }
    }
    match unnamed {
        0 => {}
        1 => words.push_str("; 1 more lane is in trouble"),
        more => {
            let _ = write!(words, "; {more} more lanes are in trouble");
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_say_what_waits_and_name_a_few_lanes_in_trouble() {
        let depth = |events, bytes| Depth { events, bytes };
        let lanes = |n: usize| (0..n).map(|n| format!("segment …key{n} held: 401\nUnauthorized"));
        for (depth, lanes, expected) in [
            (depth(0, 0), lanes(0), "Accepting; nothing waits"),
            (depth(1, 600), lanes(0), "Accepting; 1 event waits (600 B)"),
            (
                depth(2_000, 1_258_291),
                lanes(1),
                "Accepting; 2000 events wait (1.2 MiB); segment …key0 held: 401 Unauthorized",
            ),
            (
                depth(0, 0),
                lanes(4),
                "Accepting; nothing waits; segment …key0 held: 401 Unauthorized; segment …key1 held: 401 Unauthorized; \
                 segment …key2 held: 401 Unauthorized; 1 more lane is in trouble",
            ),
        ] {
            assert_eq!(words("Accepting", depth, lanes), expected);
        }
    }
}
