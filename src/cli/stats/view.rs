//! A snapshot in words. Pure.

use std::time::Duration;

use bytesize::ByteSize;
use indicatif::{HumanCount, HumanDuration};

use crate::stats::{LaneSnapshot, LaneState, Snapshot};
use crate::words::counted;

/// What there is to say of a daemon as a whole, the most pressing first.
pub(super) fn facts(snapshot: &Snapshot) -> Vec<(&'static str, String)> {
    let Snapshot {
        ingest,
        queue,
        delivery,
        dead_letters,
        ..
    } = snapshot;
    let mut facts = vec![
        (
            "daemon",
            format!(
                "segspool {}, {}, {}, up {}; a 200 means {}",
                snapshot.version,
                snapshot.state,
                accepting(snapshot),
                for_seconds(snapshot.uptime_seconds),
                snapshot.durability,
            ),
        ),
        (
            "accepted",
            format!(
                "{}, {:.1}/s now, {:.1}/s over 5 min",
                counted(ingest.accepted_events, "event"),
                ingest.events_per_second,
                ingest.events_per_second_5m,
            ),
        ),
        (
            "waiting",
            format!(
                "{} ({}), the oldest for {}",
                counted(queue.events, "event"),
                ByteSize(queue.bytes),
                for_seconds(queue.oldest_age_seconds),
            ),
        ),
        (
            "delivered",
            format!(
                "{} in {}, {:.1}/s now, {:.1}/s over 5 min, {}",
                counted(delivery.events, "event"),
                counted(delivery.batches, "call"),
                delivery.events_per_second,
                delivery.events_per_second_5m,
                match delivery.retries {
                    1 => "1 retry".to_owned(),
                    retries => format!("{} retries", HumanCount(retries)),
                },
            ),
        ),
        ("done", done(snapshot)),
        (
            "disk",
            format!(
                "{} of {} in {}; {} free",
                ByteSize(queue.disk_bytes),
                ByteSize(queue.max_bytes),
                counted(queue.volumes, "volume"),
                ByteSize(queue.free_disk_bytes),
            ),
        ),
        (
            "dead letters",
            format!(
                "{} ({})",
                HumanCount(dead_letters.events),
                ByteSize(dead_letters.bytes)
            ),
        ),
    ];
    for (what, count, meaning) in [
        (
            "rejected",
            ingest.rejected_events,
            "events that can never be accepted",
        ),
        (
            "refused",
            ingest.refused_requests,
            "requests that may be accepted later",
        ),
        (
            "dropped",
            queue.dropped_events,
            "events, by a rule of the configuration",
        ),
        (
            "LOST",
            queue.lost_events,
            "events that the disk did not give back",
        ),
        (
            "QUARANTINE",
            queue.quarantined_volumes,
            "volumes that cannot be read",
        ),
    ] {
        if count > 0 {
            facts.push((what, format!("{} {meaning}", HumanCount(count))));
        }
    }
    facts
}

/// The same at one glance, for a small terminal: does it accept, how much waits, when is it done.
pub(super) fn glance(snapshot: &Snapshot) -> [String; 3] {
    let queue = &snapshot.queue;
    let waiting = match queue.events {
        0 => "nothing waits".to_owned(),
        events => {
            let age = for_seconds(queue.oldest_age_seconds);
            format!("{} for {age}", counted(events, "event"))
        }
    };
    [
        format!("{}, {}", snapshot.state, accepting(snapshot)),
        format!("waiting  {waiting}"),
        format!("done     {}", done(snapshot)),
    ]
}

fn accepting(snapshot: &Snapshot) -> &'static str {
    if snapshot.ingest.accepting {
        "accepting"
    } else if snapshot.queue.disk_is_full {
        "NOT ACCEPTING: the disk is full"
    } else {
        "NOT ACCEPTING"
    }
}

/// When all will be delivered, or what stands against it.
fn done(snapshot: &Snapshot) -> String {
    let stuck = |lane: &&LaneSnapshot| {
        lane.events > 0 && matches!(lane.state, LaneState::Held | LaneState::Paused)
    };
    let stuck = snapshot.lanes.iter().filter(stuck).count() as u64;
    match (snapshot.delivery.drain_eta_seconds, snapshot.queue.events) {
        (_, 0) => "nothing waits".to_owned(),
        (Some(seconds), _) => format!("in {}", for_seconds(seconds)),
        (None, _) if stuck > 0 => {
            let (lanes, are) = (
                counted(stuck, "lane"),
                if stuck == 1 { "is" } else { "are" },
            );
            format!("not until somebody acts: {lanes} {are} held or paused")
        }
        (None, _) => "not in sight: no less waits than ten seconds ago".to_owned(),
    }
}

/// `2 minutes`
pub(super) fn for_seconds(seconds: f64) -> String {
    let duration = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    HumanDuration(duration).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_when_all_is_done_or_why_not() {
        let lane = |state| LaneSnapshot {
            events: 5,
            state,
            ..LaneSnapshot::default()
        };
        for (events, eta, state, expected) in [
            (0, None, LaneState::Idle, "nothing waits"),
            (5, Some(120.0), LaneState::Sending, "in 2 minutes"),
            (
                5,
                None,
                LaneState::Held,
                "not until somebody acts: 1 lane is held or paused",
            ),
            (
                5,
                None,
                LaneState::BackingOff,
                "not in sight: no less waits than ten seconds ago",
            ),
        ] {
            let mut snapshot = Snapshot::default();
            snapshot.queue.events = events;
            snapshot.delivery.drain_eta_seconds = eta;
            snapshot.lanes = vec![lane(state)];
            assert_eq!(done(&snapshot), expected);
        }
    }
}
