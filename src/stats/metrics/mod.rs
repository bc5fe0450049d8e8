//! The metrics, as monitoring reads them. What they are is said here; how each text format spells them is left to libraries.
//!
//! All numbers come from one snapshot. Labels are bounded in number: [`LANES_NAMED_MAX`] lanes have series of their own, the first
//! that are met, and where many are met at once those with most events; the others are added up as `other`. A lane that has its own
//! series keeps them for as long as the process lives: were it to join the others later, or they to lose one, a counter of theirs
//! would jump, and every rate with it.

mod openmetrics;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use super::{Durations, LaneSnapshot, LaneState, Snapshot};

/// Lanes with series of their own. Each has about 15 of them.
pub const LANES_NAMED_MAX: usize = 100;
/// What all lanes beyond them are called.
const OTHER: &str = "other";

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus 0.0.4.
    Text,
}

impl Format {
    /// Its Content-Type.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// What the metrics are made of.
#[derive(Clone, Debug)]
pub struct Readings<'a> {
    /// Everything at one moment.
    pub snapshot: &'a Snapshot,
    /// When the process began.
    pub started_at: Timestamp,
    /// How long calls took, by the kind of destination.
    pub calls: BTreeMap<&'static str, Durations>,
    /// How long commits to disk took.
    pub commits: Durations,
}

/// Shows metrics, and remembers which lanes have series of their own.
#[derive(Debug, Default)]
pub struct Metrics {
    named: Mutex<BTreeSet<String>>,
}

impl Metrics {
    /// The metrics in this format.
    #[must_use]
    pub fn show(&self, readings: &Readings<'_>, format: Format) -> String {
        let groups = self.groups(&readings.snapshot.lanes);
        let families = families(readings, &groups);
        match format {
            Format::OpenMetrics => openmetrics::show(families),
            Format::Text => text::show(&families),
        }
    }

    fn groups<'a>(&self, lanes: &'a [LaneSnapshot]) -> Vec<Group<'a>> {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut groups, mut others) = (Vec::new(), BTreeMap::<_, Group<'_>>::new());
        for lane in lanes {
            if named.len() < LANES_NAMED_MAX && !named.contains(&lane.id) {
                named.insert(lane.id.clone());
            }
            if named.contains(&lane.id) {
                groups.push(Group {
                    name: &lane.id,
                    lanes: vec![lane],
                });
            } else {
                let others = others.entry(&lane.destination).or_insert(Group {
                    name: OTHER,
                    lanes: Vec::new(),
                });
                others.lanes.push(lane);
            }
        }
        groups.extend(others.into_values());
        groups
    }
}

/// A lane, or the others of one kind of destination.
struct Group<'a> {
    name: &'a str,
    /// At least one.
    lanes: Vec<&'a LaneSnapshot>,
}

impl Group<'_> {
    fn labels(&self) -> Labels {
        vec![
            ("lane", self.name.to_owned()),
            ("destination", self.lanes[0].destination.clone()),
        ]
    }

    fn is_one_lane(&self) -> bool {
        self.name != OTHER
    }
}

type Labels = Vec<(&'static str, String)>;

/// A metric, with a sample for each set of labels.
#[derive(Debug)]
struct Family {
    /// Without the `_total` of a counter.
    name: &'static str,
    help: &'static str,
    kind: Kind,
    samples: Vec<(Labels, Value)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Debug)]
enum Value {
    Number(f64),
    Durations(Durations),
}

impl Family {
    /// A counter or gauge without labels.
    fn one(kind: Kind, name: &'static str, value: impl Count, help: &'static str) -> Family {
        Family {
            name,
            help,
            kind,
            samples: vec![(Vec::new(), Value::Number(value.number()))],
        }
    }
}

/// Numbers of a snapshot. Those above 2^53 are shown rounded, as every reader of the formats would take them.
trait Count {
    fn number(self) -> f64;
}

impl Count for u64 {
    fn number(self) -> f64 {
        self as f64
    }
}

impl Count for f64 {
    fn number(self) -> f64 {
        self
    }
}

fn families(readings: &Readings<'_>, groups: &[Group<'_>]) -> Vec<Family> {
    let mut families = of_process(readings);
    families.extend(of_ingest(readings.snapshot));
    families.extend(of_queue(readings));
    families.extend(of_delivery(readings, groups));
    families.extend(of_lanes(&readings.snapshot.lanes, groups));
    families.extend(of_dead_letters(readings.snapshot));
    families.extend(of_profiles(readings.snapshot));
    // One without a sample, such as a lane's where there is no lane yet, is left out.
    families.retain(|family| !family.samples.is_empty());
    families
}

fn of_process(readings: &Readings<'_>) -> Vec<Family> {
    let version = readings.snapshot.version.clone();
    let started = readings.started_at.as_millisecond() as f64 / 1000.0;
    let durability = readings.snapshot.durability.clone();
    vec![
        Family {
            name: "segspool_build_info",
            help: "The version that runs, and how safe stored events are",
            kind: Kind::Gauge,
            samples: vec![(
                vec![("version", version), ("durability", durability)],
                Value::Number(1.0),
            )],
        },
        Family::one(
            Kind::Gauge,
            "process_start_time_seconds",
            started,
            "When the process began, in seconds since 1970",
        ),
    ]
}

fn of_ingest(snapshot: &Snapshot) -> Vec<Family> {
    let ingest = &snapshot.ingest;
    let accepting = Family::one(
        Kind::Gauge,
        "segspool_ingest_accepting",
        u64::from(ingest.accepting),
        "1 while events are accepted; 0 while the queue or the disk is full, and once the daemon stops",
    );
    let counters = [
        (
            "segspool_ingest_requests",
            ingest.requests,
            "Requests that reached an ingest route",
        ),
        (
            "segspool_ingest_events",
            ingest.accepted_events,
            "Events answered 200 on their way to Segment",
        ),
        (
            "segspool_ingest_bytes",
            ingest.accepted_bytes,
            "Their bytes as JSON, before compression",
        ),
        (
            "segspool_ingest_rejected_events",
            ingest.rejected_events,
            "Events that can never be accepted, told so to their sender",
        ),
        (
            "segspool_ingest_refused_requests",
            ingest.refused_requests,
            "Requests answered 413, 429 or 503: their events were not taken",
        ),
        (
            "segspool_ingest_long_message_ids",
            ingest.long_message_ids,
            "Accepted events with a messageId so long that parts of Segment drop them",
        ),
        (
            "segspool_ingest_received_events",
            ingest.received_events,
            "Events that Segment's own webhooks have posted",
        ),
        (
            "segspool_ingest_client_metrics",
            ingest.client_metrics,
            "Reports of analytics.js on itself, which are discarded",
        ),
    ]
    .map(|(name, value, help)| Family::one(Kind::Counter, name, value, help));
    [accepting].into_iter().chain(counters).collect()
}

fn of_queue(readings: &Readings<'_>) -> Vec<Family> {
    let queue = &readings.snapshot.queue;
    let gauges = [
        (
            "segspool_queue_events",
            queue.events.number(),
            "Events accepted and not settled",
        ),
        (
            "segspool_queue_bytes",
            queue.bytes.number(),
            "Their bytes as JSON, before compression",
        ),
        (
            "segspool_queue_disk_bytes",
            queue.disk_bytes.number(),
            "What the queue takes on disk",
        ),
        (
            "segspool_queue_max_bytes",
            queue.max_bytes.number(),
            "What the queue may take on disk",
        ),
        (
            "segspool_queue_free_disk_bytes",
            queue.free_disk_bytes.number(),
            "What the file system of the queue has left",
        ),
        (
            "segspool_queue_disk_full",
            u64::from(queue.disk_is_full).number(),
            "1 while the disk itself is full, so that nothing is accepted however little the queue takes",
        ),
        (
            "segspool_queue_volumes",
            queue.volumes.number(),
            "Volumes on disk",
        ),
        (
            "segspool_queue_quarantined_volumes",
            queue.quarantined_volumes.number(),
            "Volumes that could not be read",
        ),
        (
            "segspool_queue_oldest_event_age_seconds",
            queue.oldest_age_seconds,
            "The age of the oldest event that waits",
        ),
        (
            "segspool_queue_recovered_events",
            queue.recovered_events.number(),
            "Events that waited when the process started",
        ),
    ];
    let counters = [
        (
            "segspool_queue_dropped_events",
            queue.dropped_events,
            "Events dropped by a policy that the operator turned on",
        ),
        (
            "segspool_queue_lost_events",
            queue.lost_events,
            "Accepted events that the disk did not give back",
        ),
        (
            "segspool_queue_repacked_volumes",
            queue.repacked_volumes,
            "Volumes that a smaller copy has replaced",
        ),
        (
            "segspool_queue_reclaimed_bytes",
            queue.reclaimed_bytes,
            "What repacking volumes has given back",
        ),
    ];
    let mut families: Vec<_> = gauges
        .map(|(name, value, help)| Family::one(Kind::Gauge, name, value, help))
        .into();
    families
        .extend(counters.map(|(name, value, help)| Family::one(Kind::Counter, name, value, help)));
    families.push(Family {
        name: "segspool_sync_duration_seconds",
        help: "How long commits to disk took, their sync included",
        kind: Kind::Histogram,
        samples: vec![(Vec::new(), Value::Durations(readings.commits.clone()))],
    });
    families
}

fn of_delivery(readings: &Readings<'_>, groups: &[Group<'_>]) -> Vec<Family> {
    let counter = |name, help, count: fn(&LaneSnapshot) -> u64| {
        by_lane(Kind::Counter, name, help, groups, |lanes| {
            lanes.iter().map(|lane| count(lane)).sum::<u64>().number()
        })
    };
    let durations = readings.calls.iter().map(|(destination, durations)| {
        let labels = vec![("destination", (*destination).to_owned())];
        (labels, Value::Durations(durations.clone()))
    });
    vec![
        counter(
            "segspool_delivery_events",
            "Events that destinations took",
            |lane| lane.delivered_events,
        ),
        counter(
            "segspool_delivery_batches",
            "Calls that destinations took",
            |lane| lane.delivered_batches,
        ),
        counter(
            "segspool_delivery_bytes",
            "The bodies of these calls",
            |lane| lane.delivered_bytes,
        ),
        counter(
            "segspool_delivery_retries",
            "Calls that were repeated",
            |lane| lane.retries,
        ),
        counter(
            "segspool_delivery_refused_events",
            "Events that left their lane as dead letters",
            |lane| lane.dead_letter_events,
        ),
        Family {
            name: "segspool_delivery_duration_seconds",
            help: "How long calls to destinations took, answered or not",
            kind: Kind::Histogram,
            samples: durations.collect(),
        },
    ]
}

fn of_lanes(lanes: &[LaneSnapshot], groups: &[Group<'_>]) -> Vec<Family> {
    let number = |state| lanes.iter().filter(|lane| lane.state == state).count();
    let by_state = LaneState::ALL.map(|state| {
        let labels = vec![("state", state.name().to_owned())];
        (labels, Value::Number(number(state) as f64))
    });
    let named = || groups.iter().filter(|group| group.is_one_lane());
    let keys = named().map(|group| {
        let mut labels = group.labels();
        labels.push(("key", group.lanes[0].key.clone()));
        (labels, Value::Number(1.0))
    });
    let states = named().flat_map(|group| {
        LaneState::ALL.map(|state| {
            let mut labels = group.labels();
            labels.push(("state", state.name().to_owned()));
            let is_so = u64::from(group.lanes[0].state == state);
            (labels, Value::Number(is_so.number()))
        })
    });
    let gauge = |name, help, value: fn(&[&LaneSnapshot]) -> f64| {
        by_lane(Kind::Gauge, name, help, groups, value)
    };
    vec![
        Family {
            name: "segspool_lanes",
            help: "Lanes by what they are doing",
            kind: Kind::Gauge,
            samples: by_state.into(),
        },
        Family {
            name: "segspool_lane_info",
            help: "The last four characters of a lane's key",
            kind: Kind::Gauge,
            samples: keys.collect(),
        },
        Family {
            name: "segspool_lane_state",
            help: "1 for what a lane is doing, 0 for what it is not",
            kind: Kind::Gauge,
            samples: states.collect(),
        },
        by_lane(
            Kind::Counter,
            "segspool_lane_accepted_events",
            "Events that entered a lane",
            groups,
            |lanes| sum(lanes, |lane| lane.accepted_events),
        ),
        gauge(
            "segspool_lane_queue_events",
            "Events of a lane that wait",
            |lanes| sum(lanes, |lane| lane.events),
        ),
        gauge(
            "segspool_lane_queue_bytes",
            "Their bytes as JSON",
            |lanes| sum(lanes, |lane| lane.bytes),
        ),
        gauge(
            "segspool_lane_oldest_event_age_seconds",
            "The age of the oldest event that waits in a lane",
            |lanes| {
                let ages = lanes.iter().map(|lane| lane.oldest_age_seconds);
                ages.fold(0.0, f64::max)
            },
        ),
        gauge(
            "segspool_lane_in_flight_batches",
            "Calls of a lane under way",
            |lanes| sum(lanes, |lane| lane.in_flight_batches),
        ),
        gauge(
            "segspool_lane_failures_in_row",
            "Calls of a lane that failed since one succeeded",
            |lanes| sum(lanes, |lane| lane.attempt.into()),
        ),
    ]
}

fn of_dead_letters(snapshot: &Snapshot) -> Vec<Family> {
    let letters = &snapshot.dead_letters;
    vec![
        Family::one(
            Kind::Gauge,
            "segspool_dead_letters",
            letters.events,
            "Dead letters kept",
        ),
        Family::one(
            Kind::Gauge,
            "segspool_dead_letters_bytes",
            letters.bytes,
            "What they take",
        ),
        Family::one(
            Kind::Counter,
            "segspool_dead_letters_unkept_events",
            letters.unkept_events,
            "Rejected events that there was no room for",
        ),
    ]
}

fn of_profiles(snapshot: &Snapshot) -> Vec<Family> {
    let profiles = &snapshot.profiles;
    [
        (
            "segspool_profiles_requests",
            profiles.requests,
            "Requests for profiles",
        ),
        (
            "segspool_profiles_errors",
            profiles.errors,
            "Those answered with a status of 400 or above",
        ),
        (
            "segspool_profiles_cache_hits",
            profiles.cache_hits,
            "Those answered from the cache while it was fresh",
        ),
        (
            "segspool_profiles_stale_answers",
            profiles.stale_answers,
            "Those answered from the cache because there was no other answer",
        ),
    ]
    .map(|(name, value, help)| Family::one(Kind::Counter, name, value, help))
    .into()
}

fn by_lane(
    kind: Kind,
    name: &'static str,
    help: &'static str,
    groups: &[Group<'_>],
    value: impl Fn(&[&LaneSnapshot]) -> f64,
) -> Family {
    let samples = groups
        .iter()
        .map(|group| (group.labels(), Value::Number(value(&group.lanes))));
    Family {
        name,
        help,
        kind,
        samples: samples.collect(),
    }
}

fn sum(lanes: &[&LaneSnapshot], count: impl Fn(&LaneSnapshot) -> u64) -> f64 {
    lanes.iter().map(|lane| count(lane)).sum::<u64>().number()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(number: usize, delivered_events: u64) -> LaneSnapshot {
        LaneSnapshot {
            id: format!("{number:016x}"),
            destination: "segment".into(),
            delivered_events,
            ..LaneSnapshot::default()
        }
    }

    fn delivered(shown: &str) -> BTreeMap<String, f64> {
        let lines = shown
            .lines()
            .filter(|line| line.starts_with("segspool_delivery_events_total{"));
        lines
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(series, value)| (series.to_owned(), value.parse().expect("a number")))
            .collect()
    }

    fn show(metrics: &Metrics, lanes: Vec<LaneSnapshot>, format: Format) -> String {
        let snapshot = Snapshot {
            lanes,
            ..Snapshot::default()
        };
        let readings = Readings {
            snapshot: &snapshot,
            started_at: Timestamp::UNIX_EPOCH,
            calls: BTreeMap::new(),
            commits: Durations::default(),
        };
        metrics.show(&readings, format)
    }

    #[test]
    fn the_series_of_lanes_are_bounded_and_none_of_their_counters_ever_falls() {
        for format in [Format::Text, Format::OpenMetrics] {
            let metrics = Metrics::default();
            let few: Vec<_> = (0..60).map(|n| lane(n, 5)).collect();
            assert_eq!(delivered(&show(&metrics, few.clone(), format)).len(), 60);
            // Later ones come first: they have more to do.
            let mut many: Vec<_> = (60..1000).map(|n| lane(n, 7)).collect();
            many.extend(few);
            let before = delivered(&show(&metrics, many.clone(), format));
            assert_eq!(before.len(), LANES_NAMED_MAX + 1);
            let total = |shown: &BTreeMap<String, f64>| shown.values().sum::<f64>();
            assert_eq!(total(&before), 60.0 * 5.0 + 940.0 * 7.0);
            many.reverse();
            many.push(lane(2000, 1));
            let after = delivered(&show(&metrics, many, format));
            assert!(before.keys().eq(after.keys()));
            assert!(before.iter().all(|(series, value)| after[series] >= *value));
            assert_eq!(total(&after), total(&before) + 1.0);
        }
    }
}
