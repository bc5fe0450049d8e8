//! The report: tables to read, the figures against those that are to be reached, and all of it as JSON.

use std::fs;
use std::path::Path;
use std::thread::available_parallelism;

use comfy_table::{CellAlignment, Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use crate::Plan;
use crate::backlog::{Backlog, Singles};
use crate::idle::Idle;
use crate::load::Form;
use crate::table::{Cell, System};

/// On one of these a sync costs nothing, and nothing that is measured means anything.
const TMPFS_MAGIC: i64 = 0x0102_1994;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    date: Timestamp,
    machine: Machine,
    /// Then the figures mean nothing.
    is_quick: bool,
    pub(crate) table: Vec<Cell>,
    pub(crate) idle: Option<Idle>,
    pub(crate) backlog: Option<Backlog>,
    pub(crate) singles: Option<Singles>,
    goals: Vec<Goal>,
}

#[derive(Clone, Debug, Serialize)]
struct Machine {
    system: String,
    processors: usize,
    processor: String,
    /// Of the minute before the run.
    load_average: f64,
}

/// A figure that is to be reached.
#[derive(Clone, Debug, Serialize)]
struct Goal {
    what: &'static str,
    bound: Bound,
    measured: f64,
    is_reached: bool,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    fn new(what: &'static str, bound: Bound, measured: f64) -> Goal {
        let is_reached = match bound {
            Bound::AtLeast(least) => measured >= least,
            Bound::AtMost(most) => measured <= most,
        };
        Goal {
            what,
            bound,
            measured,
            is_reached,
        }
    }
}

impl Report {
    pub(crate) fn of_this_machine(plan: &Plan) -> Report {
        let found = rustix::fs::statfs(&plan.dir).expect("it was made just now");
        if found.f_type as i64 == TMPFS_MAGIC {
            println!(
                "{} is no disk: the figures mean nothing",
                plan.dir.display()
            );
        }
        Report {
            date: Timestamp::now(),
            machine: Machine::this(),
            is_quick: plan.is_quick,
            table: Vec::new(),
            idle: None,
            backlog: None,
            singles: None,
            goals: Vec::new(),
        }
    }

    pub(crate) fn print_table(&self) {
        let mut table = table(&[
            "load",
            "connections",
            "system",
            "events/s",
            "of (b)",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "CPU µs/event",
            "peak MB",
            "written B/event",
        ]);
        for cell in &self.table {
            let milliseconds = |micros: u64| format!("{:.2}", micros as f64 / 1e3);
            table.add_row([
                match cell.form {
                    Form::Batches => "batches of 100".to_owned(),
                    Form::Singles => "single posts".to_owned(),
                },
                cell.connections.to_string(),
                match cell.system {
                    System::Read => "(a) read",
                    System::Synced => "(b) synced",
                    System::Accepting => "(c) accepting",
                    System::Delivering => "(d) delivering",
                }
                .to_owned(),
                format!("{:.0}", cell.events_per_second),
                format!("{:.2}", cell.ratio),
                milliseconds(cell.p50_us),
                milliseconds(cell.p99_us),
                milliseconds(cell.p999_us),
                format!("{:.2}", cell.cpu_us_per_event),
                megabytes(cell.peak_memory_bytes),
                format!("{:.0}", cell.written_bytes_per_event),
            ]);
        }
        print(table, 3);
    }

    pub(crate) fn print_backlog(&self) {
        let Some(backlog) = &self.backlog else { return };
        let mut growth = table(&["events waiting", "memory MB", "disk MB", "disk of raw"]);
        for moment in &backlog.on_the_way {
            let raw = backlog.raw_bytes as f64 * moment.events as f64 / backlog.events as f64;
            growth.add_row([
                moment.events.to_string(),
                megabytes(moment.memory_bytes),
                megabytes(moment.disk_bytes),
                format!("{:.3}", moment.disk_bytes as f64 / raw),
            ]);
        }
        print(growth, 0);
    }

    /// Also says it where a goal was not measured: by leaving it out.
    pub(crate) fn print_goals(&mut self) {
        self.goals = self.reckon();
        let mut table = table(&["figure to reach", "bound", "measured", "reached"]);
        for goal in &self.goals {
            table.add_row([
                goal.what.to_owned(),
                match goal.bound {
                    Bound::AtLeast(least) => format!("≥ {least}"),
                    Bound::AtMost(most) => format!("≤ {most}"),
                },
                format!("{:.3}", goal.measured),
                if goal.is_reached { "yes" } else { "NO" }.to_owned(),
            ]);
        }
        print(table, 1);
        if self.is_quick {
            println!("a short form: the figures mean nothing");
        }
    }

    pub(crate) fn save(&self, file: &Path) {
        let json = serde_json::to_vec_pretty(self).expect("a report is JSON");
        fs::write(file, json).expect("target/bench/ can be written");
        println!("{}", file.display());
    }

    fn reckon(&self) -> Vec<Goal> {
        let mut goals = self.of_table();
        if let Some(backlog) = &self.backlog {
            goals.extend(of_backlog(backlog));
        }
        if let Some(singles) = &self.singles {
            goals.push(Goal::new(
                "posted one by one: disk at rest, of raw bytes",
                Bound::AtMost(0.3),
                singles.disk_bytes_at_rest as f64 / singles.raw_bytes as f64,
            ));
        }
        if let Some(idle) = &self.idle {
            let wake_ups = idle.wake_ups_per_second;
            goals.push(Goal::new(
                "idle: wake-ups a second",
                Bound::AtMost(0.0),
                wake_ups,
            ));
            let memory = idle.memory_bytes as f64 / 1e6;
            goals.push(Goal::new("idle: memory, MB", Bound::AtMost(20.0), memory));
        }
        goals
    }

    /// The worst of the rows that a goal is about.
    fn of_table(&self) -> Vec<Goal> {
        if self.table.is_empty() {
            return Vec::new();
        }
        let (accepting, delivering) = (System::Accepting, System::Delivering);
        let of = |form, system, figure: fn(&Cell) -> f64| {
            let cells = self.table.iter();
            let cells = cells.filter(move |cell| (cell.form, cell.system) == (form, system));
            cells.map(figure)
        };
        let least = |form, system, figure| of(form, system, figure).fold(f64::INFINITY, f64::min);
        let most = |form, system, figure| of(form, system, figure).fold(0.0, f64::max);
        let few = |system| {
            let mut cells = self.table.iter();
            let cell = cells.find(|cell| (cell.form, cell.system) == (Form::Singles, system));
            cell.expect("the first row of single posts has every system")
        };
        let p99 = |system| few(system).p99_us as f64 / few(System::Synced).p99_us as f64;
        let cpu = |cell: &Cell| cell.cpu_us_per_event;
        let memory = |cell: &Cell| cell.peak_memory_bytes as f64 / 1e6;
        let all = [Form::Batches, Form::Singles];
        let peaks =
            all.map(|form| most(form, accepting, memory).max(most(form, delivering, memory)));
        vec![
            Goal::new(
                "batches, accepted: events/s of (b)",
                Bound::AtLeast(0.65),
                least(Form::Batches, accepting, |cell| cell.ratio),
            ),
            Goal::new(
                "batches, accepted and delivered: events/s of (b)",
                Bound::AtLeast(0.45),
                least(Form::Batches, delivering, |cell| cell.ratio),
            ),
            Goal::new(
                "single posts, 32 connections, accepted: events/s of (b)",
                Bound::AtLeast(0.8),
                few(accepting).ratio,
            ),
            Goal::new(
                "single posts, 32 connections, accepted: p99 of (b)'s",
                Bound::AtMost(1.5),
                p99(accepting),
            ),
            Goal::new(
                "single posts, 32 connections, delivered too: events/s of (b)",
                Bound::AtLeast(0.8),
                few(delivering).ratio,
            ),
            Goal::new(
                "single posts, 32 connections, delivered too: p99 of (b)'s",
                Bound::AtMost(1.5),
                p99(delivering),
            ),
            Goal::new(
                "batches, accepted and delivered: CPU µs an event",
                Bound::AtMost(5.0),
                most(Form::Batches, delivering, cpu),
            ),
            Goal::new(
                "single posts, accepted and delivered: CPU µs an event",
                Bound::AtMost(40.0),
                most(Form::Singles, delivering, cpu),
            ),
            Goal::new(
                "under load: peak memory, MB",
                Bound::AtMost(64.0),
                peaks[0].max(peaks[1]),
            ),
        ]
    }
}

fn of_backlog(backlog: &Backlog) -> [Goal; 7] {
    let peak = backlog
        .peak_memory_bytes
        .max(backlog.drain_peak_memory_bytes);
    [
        Goal::new(
            "backlog: peak memory, MB",
            Bound::AtMost(80.0),
            peak as f64 / 1e6,
        ),
        Goal::new(
            "backlog: disk, of raw bytes",
            Bound::AtMost(0.22),
            backlog.disk_bytes as f64 / backlog.raw_bytes as f64,
        ),
        Goal::new(
            "backlog: listening after kill -9, s",
            Bound::AtMost(0.5),
            backlog.listening_seconds,
        ),
        Goal::new(
            "backlog: first delivery after Segment is back, s",
            Bound::AtMost(1.0),
            backlog.first_delivery_seconds,
        ),
        Goal::new(
            "backlog: drained events/s",
            Bound::AtLeast(200_000.0),
            backlog.drained_per_second,
        ),
        Goal::new(
            "backlog: fill of the batches",
            Bound::AtLeast(0.98),
            backlog.mean_fill,
        ),
        Goal::new(
            "backlog: disk after the drain, MB",
            Bound::AtMost(8.0),
            backlog.disk_afterwards_bytes as f64 / 1e6,
        ),
    ]
}

impl Machine {
    fn this() -> Machine {
        let system = rustix::system::uname();
        let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let mut lines = processors.lines();
        let model = lines.find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().and_then(|load| load.parse().ok());
        Machine {
            system: format!(
                "{} {} {}",
                text(system.sysname()),
                text(system.release()),
                text(system.machine())
            ),
            processors: available_parallelism().map_or(0, usize::from),
            processor: model.map_or_else(String::new, |(_, model)| model.to_owned()),
            load_average: load.unwrap_or_default(),
        }
    }
}

fn table(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(columns);
    table
}

/// Prints a table whose columns from number `figures` on are figures.
fn print(mut table: Table, figures: usize) {
    for column in table.column_iter_mut().skip(figures) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}
