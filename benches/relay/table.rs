//! The systems side by side. In each row of the table they take turns, several times, so that the machine's mood hits all alike.

use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::Plan;
use crate::load::{Form, histogram};
use crate::process::{Load, Process, Relay, Segment, Usage, floor, free_address};

/// How often each system has its turn.
const TURNS: u32 = 3;
/// Before each turn, and not counted.
const WARM_UP: Duration = Duration::from_millis(500);
const CONNECTIONS: [usize; 2] = [32, 256];
/// No turn posts as many events: each has numbers of its own.
const NUMBERS_A_TURN: u64 = 1_000_000_000;
const LOOK_EVERY: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum System {
    Read,
    Synced,
    Accepting,
    Delivering,
}

/// One system under one load.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cell {
    pub(crate) form: Form,
    pub(crate) connections: usize,
    pub(crate) system: System,
    /// Where the system delivers, what was both accepted and delivered.
    pub(crate) events_per_second: f64,
    /// Parts of what `synced` reaches in the same row.
    pub(crate) ratio: f64,
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) p999_us: u64,
    pub(crate) cpu_us_per_event: f64,
    pub(crate) peak_memory_bytes: u64,
    pub(crate) written_bytes_per_event: f64,
    /// What the load took of the same processors.
    pub(crate) load_cpu_us_per_event: f64,
    /// What the stand-in took of them.
    pub(crate) segment_cpu_us_per_event: f64,
}

pub(crate) fn measure(plan: &Plan) -> Vec<Cell> {
    let mut cells = Vec::new();
    let mut first = 0;
    for form in [Form::Batches, Form::Singles] {
        for connections in CONNECTIONS {
            cells.extend(row(plan, form, connections, &mut first));
        }
    }
    cells
}

fn row(plan: &Plan, form: Form, connections: usize, first: &mut u64) -> Vec<Cell> {
    let dir = tempfile::tempdir_in(&plan.dir).expect("target/bench/ can be written");
    let mut subjects = [
        System::Read,
        System::Synced,
        System::Accepting,
        System::Delivering,
    ]
    .map(|system| Subject::start(system, dir.path()));
    for _ in 0..TURNS {
        for subject in &mut subjects {
            subject.turn(form, connections, *first, plan.measured / TURNS);
            *first += NUMBERS_A_TURN;
        }
    }
    let limit = subjects[1].events_per_second();
    let cells = subjects.iter().map(|subject| Cell {
        form,
        connections,
        ratio: subject.events_per_second() / limit,
        ..subject.cell()
    });
    cells.collect()
}

/// A system, and what was measured of it so far.
struct Subject {
    system: System,
    process: Process,
    address: SocketAddr,
    /// Where it delivers.
    delivery: Option<Delivery>,
    accepted: u64,
    delivered: u64,
    seconds: f64,
    usage: Usage,
    load_cpu_us: u64,
    segment_cpu_us: u64,
    latencies: Histogram<u64>,
}

struct Delivery {
    segment: Segment,
    posted_events: u64,
}

impl Subject {
    fn start(system: System, dir: &Path) -> Subject {
        let mut delivery = None;
        let (process, address) = match system {
            System::Read => floor(None),
            System::Synced => floor(Some(&dir.join("synced"))),
            System::Accepting => {
                let relay = Relay::start(&dir.join("accepting"), free_address());
                (relay.process, relay.ingest)
            }
            System::Delivering => {
                let address = free_address();
                delivery = Some(Delivery {
                    segment: Segment::start(address),
                    posted_events: 0,
                });
                let relay = Relay::start(&dir.join("delivering"), address);
                (relay.process, relay.ingest)
            }
        };
        Subject {
            system,
            process,
            address,
            delivery,
            accepted: 0,
            delivered: 0,
            seconds: 0.0,
            usage: Usage::default(),
            load_cpu_us: 0,
            segment_cpu_us: 0,
            latencies: histogram(),
        }
    }

    fn turn(&mut self, form: Form, connections: usize, first: u64, measured: Duration) {
        let duration = [
            ("--warm-up-ms", WARM_UP.as_millis() as u64),
            ("--measured-ms", measured.as_millis() as u64),
        ];
        let mut load = Load::start(self.address, form, connections, first, &duration);
        load.begin();
        let before = self.usages(&load);
        load.end();
        let after = self.usages(&load);
        let outcome = load.outcome();

        self.accepted += outcome.events;
        self.seconds += outcome.seconds;
        self.usage += after.own - before.own;
        self.load_cpu_us += after.load.cpu_us - before.load.cpu_us;
        self.segment_cpu_us += after.segment.cpu_us - before.segment.cpu_us;
        for (micros, count) in outcome.latencies {
            self.latencies.saturating_record_n(micros, count);
        }
        if let Some(delivery) = &mut self.delivery {
            self.delivered += after.delivered - before.delivered;
            delivery.posted_events += outcome.posted_events;
            delivery.until_delivered();
        }
    }

    fn usages(&self, load: &Load) -> Usages {
        let segment = self.delivery.as_ref().map(|delivery| &delivery.segment);
        Usages {
            own: self.process.usage(),
            load: load.process.usage(),
            segment: segment.map_or(Usage::default(), |segment| segment.process.usage()),
            delivered: segment.map_or(0, |segment| segment.tally().events),
        }
    }

    /// Events that have gone all the way. Those that were accepted in the warm-up and delivered later are not.
    fn events(&self) -> u64 {
        match self.delivery {
            Some(_) => self.accepted.min(self.delivered),
            None => self.accepted,
        }
    }

    fn events_per_second(&self) -> f64 {
        self.events() as f64 / self.seconds
    }

    fn cell(&self) -> Cell {
        let per_event = |amount: u64| amount as f64 / self.events() as f64;
        Cell {
            form: Form::Batches,
            connections: 0,
            ratio: 0.0,
            system: self.system,
            events_per_second: self.events_per_second(),
            p50_us: self.latencies.value_at_quantile(0.5),
            p99_us: self.latencies.value_at_quantile(0.99),
            p999_us: self.latencies.value_at_quantile(0.999),
            cpu_us_per_event: per_event(self.usage.cpu_us),
            peak_memory_bytes: self.process.peak_memory_bytes(),
            written_bytes_per_event: per_event(self.usage.written_bytes),
            load_cpu_us_per_event: per_event(self.load_cpu_us),
            segment_cpu_us_per_event: per_event(self.segment_cpu_us),
        }
    }
}

/// What all processes of a turn have taken at one moment.
struct Usages {
    own: Usage,
    load: Usage,
    segment: Usage,
    delivered: u64,
}

impl Delivery {
    /// Returns once Segment has every event, each once: nothing of this turn is left for the next.
    fn until_delivered(&self) {
        loop {
            let tally = self.segment.tally();
            assert_eq!(tally.duplicate_events, 0, "nothing is sent twice");
            if tally.events == self.posted_events {
                return;
            }
            thread::sleep(LOOK_EVERY);
        }
    }
}
