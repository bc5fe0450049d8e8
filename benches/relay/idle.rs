//! A daemon with nothing to do: its memory, and how often it wakes up.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::Plan;
use crate::process::{Relay, Segment, free_address};

/// What starting leaves behind is over by then.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
const WATCHED_FOR: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Idle {
    pub(crate) memory_bytes: u64,
    pub(crate) wake_ups_per_second: f64,
    /// By the threads' names and numbers; those that slept through are left out.
    pub(crate) wake_ups: BTreeMap<String, u64>,
}

pub(crate) fn measure(plan: &Plan) -> Idle {
    let dir = tempfile::tempdir_in(&plan.dir).expect("target/bench/ can be written");
    let address = free_address();
    let _segment = Segment::start(address);
    let relay = Relay::start(&dir.path().join("idle"), address);
    let shorter = if plan.is_quick { 10 } else { 1 };
    thread::sleep(SETTLED_AFTER / shorter);

    let before = relay.process.sleeps();
    let begun = Instant::now();
    thread::sleep(WATCHED_FOR / shorter);
    let after = relay.process.sleeps();
    let seconds = begun.elapsed().as_secs_f64();

    let wake_ups = after.into_iter().filter_map(|(thread, sleeps)| {
        let slept = sleeps - before.get(&thread).copied().unwrap_or_default();
        (slept > 0).then_some((thread, slept))
    });
    let wake_ups: BTreeMap<_, _> = wake_ups.collect();
    Idle {
        memory_bytes: relay.process.memory_bytes(),
        wake_ups_per_second: wake_ups.values().sum::<u64>() as f64 / seconds,
        wake_ups,
    }
}
