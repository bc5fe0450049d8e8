//! The hot path step by step, in memory: what one event costs in decoding, validating and stamping, in packing a record and
//! unpacking it, and in the body of a batch. Never a socket, a disk or a lock: `relay` measures those.
//!
//! ```sh
//! cargo bench --bench hot_path                    # times
//! cargo bench --bench hot_path -- instructions    # instructions an event, counted by callgrind: the same on a busy machine
//! ```

#![allow(clippy::print_stdout, reason = "the figures are for whoever runs it")]

#[path = "relay/events.rs"]
#[allow(dead_code, reason = "the other bench uses the rest")]
mod events;
// Records are the queue's alone, so their file is taken in as it is, and nothing of it is made public.
#[path = "../src/queue/record.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "it is written for the queue, which uses the rest"
)]
mod record;

use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use comfy_table::{CellAlignment, Table, presets};
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use jiff::Timestamp;
use segspool::batch::{Assembler, Envelope, Limits};
use segspool::event::{Kind, Stamp, decode_batch, decode_single, stamp, validate};
use segspool::queue::{Record, Run};

use events::{BATCH_EVENTS, EVENT_BYTES, Events};
use record::Packer;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// As many as a record holds once it is full.
const RECORD_EVENTS: usize = 82;
/// As many records as a full batch takes, and a part of the last one stays behind.
const RECORDS: usize = 11;
const LIMITS: Limits = Limits {
    body_bytes_max: 500_000,
    events_max: 2500,
};
/// Callgrind counts a step once for so many rounds and once for twice as many: what differs is the step's own.
const ROUNDS: usize = 20;

fn main() {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("instructions") => print_instructions(),
        Some("repeat") => {
            let step = arguments.next().expect("a step");
            let rounds = arguments.next().expect("a number of rounds");
            Step::named(&step).repeat(rounds.parse().expect("a number"));
        }
        _ => divan::main(),
    }
}

#[divan::bench]
fn accept_batch(bencher: Bencher<'_, '_>) {
    Step::AcceptBatch.bench(bencher);
}

#[divan::bench]
fn accept_single(bencher: Bencher<'_, '_>) {
    Step::AcceptSingle.bench(bencher);
}

#[divan::bench]
fn pack_record(bencher: Bencher<'_, '_>) {
    Step::PackRecord.bench(bencher);
}

#[divan::bench]
fn unpack_record(bencher: Bencher<'_, '_>) {
    Step::UnpackRecord.bench(bencher);
}

#[divan::bench]
fn assemble_batch(bencher: Bencher<'_, '_>) {
    Step::AssembleBatch.bench(bencher);
}

/// A step of the way of an event.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Decode, validate and stamp a batch of 100.
    AcceptBatch,
    /// The same for a single post.
    AcceptSingle,
    /// Compress and checksum a full record.
    PackRecord,
    /// Check and unpack it.
    UnpackRecord,
    /// Join the events of records into one call's body.
    AssembleBatch,
}

impl Step {
    const ALL: [Step; 5] = [
        Step::AcceptBatch,
        Step::AcceptSingle,
        Step::PackRecord,
        Step::UnpackRecord,
        Step::AssembleBatch,
    ];

    fn name(self) -> &'static str {
        match self {
            Step::AcceptBatch => "accept_batch",
            Step::AcceptSingle => "accept_single",
            Step::PackRecord => "pack_record",
            Step::UnpackRecord => "unpack_record",
            Step::AssembleBatch => "assemble_batch",
        }
    }

    fn named(name: &str) -> Step {
        let found = Step::ALL.into_iter().find(|step| step.name() == name);
        found.expect("a step's name")
    }

    fn bench(self, bencher: Bencher<'_, '_>) {
        let mut work = self.work();
        let events = work();
        bencher
            .counter(ItemsCount::new(events))
            .bench_local(move || black_box(work()));
    }

    /// Does the step so many times, and returns how many events that were.
    fn repeat(self, rounds: usize) -> usize {
        let mut work = self.work();
        (0..rounds).map(|_| black_box(work())).sum()
    }

    /// What the step does, with all that it needs; returns how many events it was done for.
    fn work(self) -> Box<dyn FnMut() -> usize> {
        match self {
            Step::AcceptBatch => {
                let body = body();
                Box::new(move || accept(black_box(&body), None))
            }
            Step::AcceptSingle => {
                let body = run(1).event(0).expect("one event").to_vec();
                Box::new(move || accept(black_box(&body), Some(Kind::Track)))
            }
            Step::PackRecord => {
                let mut packer = Packer::new().expect("memory for a compressor");
                let events = run(RECORD_EVENTS);
                Box::new(move || {
                    black_box(packer.pack(events.iter(), 0));
                    RECORD_EVENTS
                })
            }
            Step::UnpackRecord => {
                let mut packer = Packer::new().expect("memory for a compressor");
                let frame = packer.pack(run(RECORD_EVENTS).iter(), 0);
                Box::new(move || {
                    let unpacked = record::unpack(black_box(&frame.bytes));
                    unpacked.expect("it was packed").ends.len()
                })
            }
            Step::AssembleBatch => {
                let records: Vec<_> = (0..RECORDS).map(stored).collect();
                let envelope = Envelope::segment("KEY");
                Box::new(move || {
                    let mut assembler = Assembler::new(LIMITS, envelope.bytes());
                    records
                        .iter()
                        .for_each(|record| assembler.push(record.clone()));
                    let batch = assembler.take().expect("a batch");
                    black_box(envelope.body(&batch, Timestamp::UNIX_EPOCH));
                    batch.len()
                })
            }
        }
    }
}

fn accept(body: &[u8], path: Option<Kind>) -> usize {
    let envelope = match path {
        Some(kind) => decode_single(kind, body),
        None => decode_batch(body),
    };
    let envelope = envelope.expect("a good body");
    let stamping = Stamp::at(Timestamp::UNIX_EPOCH);
    let mut run = Run::default();
    for raw in &envelope.events {
        let event = validate(raw).expect("a good event");
        stamp(event, &envelope, &stamping, run.buffer()).expect("it is small");
        run.close_event();
    }
    black_box(&run).len()
}

fn run(events: usize) -> Run {
    let (mut source, mut run) = (Events::new(1), Run::default());
    for _ in 0..events {
        source.write(run.buffer());
        run.close_event();
    }
    run
}

fn body() -> Vec<u8> {
    let run = run(BATCH_EVENTS);
    let events: Vec<_> = run.iter().collect();
    [b"{\"batch\":[".as_slice(), &events.join(&b','), b"]}"].concat()
}

/// A record as a delivery loop reads it.
fn stored(number: usize) -> Record {
    let events: Vec<_> = run(RECORD_EVENTS).iter().collect::<Vec<_>>().concat();
    Record {
        position: number as u64,
        accepted_at_ms: 0,
        first: (number * RECORD_EVENTS) as u64,
        skipped: 0,
        bytes: Bytes::from(events),
        ends: (1..=RECORD_EVENTS)
            .map(|n| (n * EVENT_BYTES) as u32)
            .collect(),
    }
}

fn print_instructions() {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["step", "instructions an event"]);
    for step in Step::ALL {
        let once = instructions(step, ROUNDS);
        let twice = instructions(step, 2 * ROUNDS);
        let events = step.repeat(ROUNDS) as u64;
        let each = (twice - once) / events;
        table.add_row([step.name().to_owned(), each.to_string()]);
    }
    let counts = table.column_mut(1).expect("there are two columns");
    counts.set_cell_alignment(CellAlignment::Right);
    println!("{table}");
}

/// What callgrind counts in a process that repeats a step, its start and end included.
fn instructions(step: Step, rounds: usize) -> u64 {
    let program = std::env::current_exe().expect("this program's own path");
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("callgrind.out");
    let mut command = Command::new("valgrind");
    command.args(["--quiet", "--tool=callgrind"]);
    command.arg(format!("--callgrind-out-file={}", out.display()));
    command.arg(program);
    command.args(["repeat", step.name(), &rounds.to_string()]);
    let status = command.status().expect("valgrind is installed");
    assert!(status.success(), "valgrind ends well: {status}");
    let counted = std::fs::read_to_string(&out).expect("callgrind has written its counts");
    let totals = counted
        .lines()
        .find_map(|line| line.strip_prefix("totals: "));
    let totals = totals.expect("callgrind writes the total");
    totals.trim().parse().expect("a number")
}
