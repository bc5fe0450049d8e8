//! What a durable 200 costs, and what segspool makes of it: systems side by side in one run, on one machine, under one load.
//!
//! | system | what |
//! |---|---|
//! | (a) `read` | a hyper server that reads the body and answers |
//! | (b) `synced` | the same, and the raw body is appended to one file and synced, with all that came meanwhile, before the answer: the limit of a durable 200 |
//! | (c) `accepting` | segspool, while Segment is down |
//! | (d) `delivering` | segspool, and Segment's stand-in takes what it delivers |
//!
//! Each is a process of its own, and so is the load. Then an idle daemon, and a backlog: how it grows, what a `kill -9` costs, how
//! it drains. The report holds the figures against those that are to be reached, and is in `target/bench/relay.json` too.
//!
//! Figures of two runs are not compared: the machine's mood is in them. Those of one run are, since its systems take turns.
//! Not measured: TLS, gzip, webhooks, many write keys, a network, and a disk of another kind than that below `target/`. The load, the
//! stand-in and the system share the processors, as applications and segspool do.

#![allow(
    clippy::print_stdout,
    reason = "the figures are for whoever runs it, and its processes tell each other theirs"
)]

mod backlog;
mod events;
mod floor;
mod idle;
mod load;
mod process;
mod report;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, ValueEnum};

use report::Report;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measures segspool beside what it cannot beat.
#[derive(Debug, Parser)]
struct Args {
    /// What to run [default: table, idle and backlog]
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// How long each system is measured in each row of the table
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// How many events wait in the backlog
    #[arg(long, default_value_t = 5_000_000)]
    backlog_events: u64,
    /// How many events are posted one by one over one connection
    #[arg(long, default_value_t = 1_000_000)]
    singles_events: u64,
    /// Only show that it works: the figures mean nothing
    #[arg(long)]
    quick: bool,
    /// What cargo says when figures are wanted; without it this is a test
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The systems side by side
    Table,
    /// A daemon with nothing to do
    Idle,
    /// A backlog through an outage, a `kill -9` and the drain
    Backlog,
    /// Events posted one by one over one connection while Segment is down, and what they take on disk at rest
    Singles,
}

const QUICK_SECONDS: f64 = 0.3;
const QUICK_EVENTS: u64 = 20_000;

/// What is to be run, and how long.
#[derive(Clone, Debug)]
struct Plan {
    parts: Vec<Part>,
    /// Where spools and files of the run lie, and the report.
    dir: PathBuf,
    measured: Duration,
    backlog_events: u64,
    singles_events: u64,
    is_quick: bool,
}

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some(floor::ROLE) => floor::main(),
        Some(load::ROLE) => load::main(),
        _ => measure(&Args::parse().plan()),
    }
}

impl Args {
    fn plan(self) -> Plan {
        let is_quick = self.quick || !self.bench;
        let limit = if is_quick { QUICK_EVENTS } else { u64::MAX };
        let seconds = if is_quick {
            QUICK_SECONDS
        } else {
            self.seconds
        };
        let parts = match self.parts.is_empty() {
            true => vec![Part::Table, Part::Idle, Part::Backlog],
            false => self.parts,
        };
        Plan {
            parts,
            dir: bench_dir(),
            measured: Duration::from_secs_f64(seconds),
            backlog_events: self.backlog_events.min(limit),
            singles_events: self.singles_events.min(limit),
            is_quick,
        }
    }
}

/// Beside the program that is measured, so that it is on a disk wherever the build is.
fn bench_dir() -> PathBuf {
    let program = Path::new(process::SEGSPOOL);
    let target = program.ancestors().nth(2);
    target.expect("it lies in target/<profile>/").join("bench")
}

fn measure(plan: &Plan) {
    fs::create_dir_all(&plan.dir).expect("target/ can be written");
    let mut report = Report::of_this_machine(plan);
    if plan.parts.contains(&Part::Table) {
        report.table = table::measure(plan);
        report.print_table();
    }
    if plan.parts.contains(&Part::Idle) {
        report.idle = Some(idle::measure(plan));
    }
    if plan.parts.contains(&Part::Backlog) {
        report.backlog = Some(backlog::measure(plan));
        report.print_backlog();
    }
    if plan.parts.contains(&Part::Singles) {
        report.singles = Some(backlog::measure_singles(plan));
    }
    report.print_goals();
    report.save(&plan.dir.join("relay.json"));
}
