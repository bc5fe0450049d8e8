//! A backlog: it grows while Segment is down, its daemon is killed and started again, Segment comes back, and it drains. And what events
//! that were posted one by one take on disk.

use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::Plan;
use crate::events::EVENT_BYTES;
use crate::load::Form;
use crate::process::{Load, Relay, Segment, Tally, disk_bytes_of, free_address};

const CONNECTIONS: usize = 32;
/// How often it is looked for what nobody tells. It is the error of the times below.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Looking costs the stand-in and the daemon time, so a drain is looked at less often.
const LOOK_AT_DRAIN_EVERY: Duration = Duration::from_millis(50);
/// The disk is at rest when it has not changed for so long: the repacker waits for five seconds before it has a volume sealed, and for
/// five more before it copies that.
const REST: Duration = Duration::from_secs(12);
/// Housekeeping that takes longer is not waited for.
const REST_WITHIN: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Backlog {
    pub(crate) events: u64,
    pub(crate) raw_bytes: u64,
    pub(crate) accepted_per_second: f64,
    pub(crate) on_the_way: Vec<Moment>,
    /// Of the daemon that took the events.
    pub(crate) peak_memory_bytes: u64,
    pub(crate) disk_bytes: u64,
    /// From the start after the kill until it listens.
    pub(crate) listening_seconds: f64,
    /// What it had by then.
    pub(crate) listening_memory_bytes: u64,
    /// From the moment when Segment listens again until it has events.
    pub(crate) first_delivery_seconds: f64,
    /// From the first delivery to the last.
    pub(crate) drained_per_second: f64,
    pub(crate) duplicate_events: u64,
    pub(crate) mean_fill: f64,
    /// Of the daemon that delivered them.
    pub(crate) drain_peak_memory_bytes: u64,
    pub(crate) disk_afterwards_bytes: u64,
}

/// What was there once so many events waited.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Moment {
    pub(crate) events: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) disk_bytes: u64,
}

pub(crate) fn measure(plan: &Plan) -> Backlog {
    let dir = tempfile::tempdir_in(&plan.dir).expect("target/bench/ can be written");
    let spool = dir.path().join("backlog");
    let segment = free_address();
    let mut backlog = grow(
        &spool,
        segment,
        Form::Batches,
        CONNECTIONS,
        plan.backlog_events,
    );

    let begun = Instant::now();
    let relay = Relay::start(&spool, segment);
    backlog.listening_seconds = begun.elapsed().as_secs_f64();
    backlog.listening_memory_bytes = relay.process.memory_bytes();
    assert_eq!(relay.queued_events(), backlog.events, "nothing is lost");

    drain(&mut backlog, &relay, segment);
    let at_rest = if plan.is_quick { Duration::ZERO } else { REST };
    backlog.disk_afterwards_bytes = disk_bytes_at_rest(&spool, at_rest);
    backlog
}

/// Events that were posted one by one over one connection while Segment is down.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Singles {
    pub(crate) events: u64,
    pub(crate) raw_bytes: u64,
    pub(crate) accepted_per_second: f64,
    pub(crate) peak_memory_bytes: u64,
    pub(crate) disk_bytes_at_once: u64,
    pub(crate) disk_bytes_at_rest: u64,
}

pub(crate) fn measure_singles(plan: &Plan) -> Singles {
    let dir = tempfile::tempdir_in(&plan.dir).expect("target/bench/ can be written");
    let spool = dir.path().join("singles");
    let events = plan.singles_events;
    let relay = Relay::start(&spool, free_address());
    let mut load = Load::start(relay.ingest, Form::Singles, 1, 0, &[("--events", events)]);
    load.begin();
    while load.next_step().is_some() {}
    let outcome = load.outcome();
    let disk_bytes_at_once = disk_bytes_of(&spool);
    let at_rest = if plan.is_quick { Duration::ZERO } else { REST };
    Singles {
        events,
        raw_bytes: events * EVENT_BYTES as u64,
        accepted_per_second: outcome.events as f64 / outcome.seconds,
        disk_bytes_at_once,
        disk_bytes_at_rest: disk_bytes_at_rest(&spool, at_rest),
        peak_memory_bytes: relay.process.peak_memory_bytes(),
    }
}

/// Posts events to a daemon that cannot deliver them, and kills it.
fn grow(spool: &Path, segment: SocketAddr, form: Form, connections: usize, events: u64) -> Backlog {
    let mut relay = Relay::start(spool, segment);
    let mut load = Load::start(relay.ingest, form, connections, 0, &[("--events", events)]);
    load.begin();
    let mut on_the_way = Vec::new();
    while let Some(events) = load.next_step() {
        on_the_way.push(Moment {
            events,
            memory_bytes: relay.process.memory_bytes(),
            disk_bytes: disk_bytes_of(spool),
        });
    }
    let outcome = load.outcome();
    assert_eq!(relay.queued_events(), outcome.posted_events);
    let peak_memory_bytes = relay.process.peak_memory_bytes();
    relay.process.kill();
    Backlog {
        events: outcome.posted_events,
        raw_bytes: outcome.posted_events * EVENT_BYTES as u64,
        accepted_per_second: outcome.events as f64 / outcome.seconds,
        on_the_way,
        peak_memory_bytes,
        disk_bytes: disk_bytes_of(spool),
        ..Backlog::default()
    }
}

/// Lets Segment come back, and the daemon deliver all it has.
fn drain(backlog: &mut Backlog, relay: &Relay, address: SocketAddr) {
    let segment = Segment::start(address);
    let back = Instant::now();
    let first = tally_when(&segment, LOOK_EVERY, |tally| tally.events > 0);
    let delivering = Instant::now();
    let events = backlog.events;
    let all = tally_when(&segment, LOOK_AT_DRAIN_EVERY, |tally| {
        tally.events - tally.duplicate_events == events
    });
    backlog.first_delivery_seconds = (delivering - back).as_secs_f64();
    backlog.drained_per_second =
        (all.events - first.events) as f64 / delivering.elapsed().as_secs_f64();
    backlog.duplicate_events = all.duplicate_events;
    backlog.mean_fill = all.mean_fill;
    backlog.drain_peak_memory_bytes = relay.process.peak_memory_bytes();
}

fn tally_when(segment: &Segment, every: Duration, reached: impl Fn(&Tally) -> bool) -> Tally {
    loop {
        let tally = segment.tally();
        if reached(&tally) {
            return tally;
        }
        thread::sleep(every);
    }
}

/// What a spool takes once its housekeeping has nothing more to do.
fn disk_bytes_at_rest(spool: &Path, rest: Duration) -> u64 {
    let begun = Instant::now();
    let (mut found, mut since) = (disk_bytes_of(spool), begun);
    while since.elapsed() < rest && begun.elapsed() < REST_WITHIN {
        thread::sleep(LOOK_AT_DRAIN_EVERY);
        let now = disk_bytes_of(spool);
        if now != found {
            (found, since) = (now, Instant::now());
        }
    }
    found
}
