//! `segspool doctor`: what is in a stopped spool, what is damaged, and every event of it that can be read. Changes nothing.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use serde_json::json;

use super::admin::{Failure, finish, print, print_json, table};
use super::{EX_CONFIG, EX_DATAERR, EX_IOERR, EX_NOINPUT, EX_TEMPFAIL, EX_USAGE};
use crate::ingest::SEGMENT;
use crate::queue::{Exam, OpenError, Salvaged, examine};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The exit code is 0 where nothing is damaged and 65 where something is. The daemon must be stopped: what it is writing is not \
read. Nothing in the spool is changed.")]
pub(super) struct Args {
    /// The spool: the daemon's data_dir
    data_dir: PathBuf,
    /// Write every event that waits, or lies in quarantine, to this file, each as a batch body on a line of its own, as
    /// `segspool import` takes it
    ///
    /// The events hold their write keys. What was to go to webhooks is written to FILE.webhooks, if there is any.
    #[arg(long, value_name = "FILE")]
    salvage: Option<PathBuf>,
    /// Salvage events that are settled as well, as far as they are still on disk
    #[arg(long, requires = "salvage")]
    all: bool,
    /// Where to make copies of the databases, one at a time
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    scratch: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> ExitCode {
    finish(async { look(args) })
}

fn look(args: &Args) -> Result<ExitCode, Failure> {
    let mut salvage = args.salvage.as_deref().map(Salvage::new).transpose()?;
    let bar = bar();
    let progress = |done: usize, all: usize| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    };
    let exam = examine(
        &args.data_dir,
        &args.scratch,
        progress,
        |salvaged| match &mut salvage {
            Some(salvage) if args.all || !salvaged.is_settled => salvage.write(&salvaged),
            _ => Ok(()),
        },
    );
    bar.finish_and_clear();
    let exam = exam.map_err(|error| failure(&args.data_dir, &error))?;
    let written = salvage.map(Salvage::finish).transpose()?;
    if args.json {
        print_json(&json!({ "spool": exam, "salvaged_events": written }))?;
    } else {
        show(&exam)?;
        if let (Some(written), Some(path)) = (written, &args.salvage) {
            print(&format!("{written} events written to {}", path.display()))?;
        }
    }
    Ok(ExitCode::from(if is_damaged(&exam) {
        EX_DATAERR
    } else {
        0
    }))
}

fn failure(data_dir: &Path, error: &OpenError) -> Failure {
    let dir = data_dir.display();
    match error {
        OpenError::InUse { .. } => {
            let message = format!("{error}; stop it first, or ask it with `segspool stats`");
            Failure::new(EX_TEMPFAIL, message)
        }
        OpenError::Format { .. } => Failure::new(EX_CONFIG, error.to_string()),
        OpenError::Io(e) if e.kind() == io::ErrorKind::NotFound => {
            let message = format!("{dir} is no spool: {e}. Name the daemon's data_dir");
            Failure::new(EX_NOINPUT, message)
        }
        OpenError::Io(e) => Failure::new(EX_IOERR, format!("failed to look at {dir}: {e}")),
    }
}

fn is_damaged(exam: &Exam) -> bool {
    exam.volumes.iter().any(|volume| volume.is_damaged())
        || exam.dead_letters.trouble.is_some()
        || exam.dead_letters.damaged_events > 0
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::no_length().with_style(
        ProgressStyle::with_template("{pos} of {len} volumes {bar:40}")
            .expect("the template has no errors"),
    );
    if !io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar
}

fn show(exam: &Exam) -> Result<(), Failure> {
    let mut volumes = table([
        "VOLUME", "STATE", "DISK", "RECORDS", "EVENTS", "WAITING", "DAMAGED", "MISSING", "GAPS",
        "TROUBLE",
    ]);
    for volume in &exam.volumes {
        let state = match (volume.in_quarantine, volume.is_sealed) {
            (true, _) => "quarantine",
            (false, true) => "sealed",
            (false, false) => "open",
        };
        volumes.add_row([
            volume.number.to_string(),
            state.to_owned(),
            ByteSize(volume.disk_bytes).to_string(),
            volume.records.to_string(),
            volume.events.to_string(),
            volume.waiting_events.to_string(),
            volume.damaged_records.to_string(),
            volume.missing_events.to_string(),
            volume.gaps.to_string(),
            volume.trouble.clone().unwrap_or_default(),
        ]);
    }
    let mut lanes = table([
        "LANE",
        "DESTINATION",
        "KEY",
        "WAITING",
        "BYTES",
        "SINCE",
        "QUARANTINE",
        "",
    ]);
    for lane in &exam.lanes {
        let since = lane.oldest_ms.map(Timestamp::from_millisecond);
        let since = since.and_then(Result::ok).map(|at| format!("{at:.0}"));
        lanes.add_row([
            lane.id.clone(),
            lane.destination.clone(),
            lane.key.clone(),
            lane.waiting_events.to_string(),
            ByteSize(lane.waiting_bytes).to_string(),
            since.unwrap_or_default(),
            lane.quarantined_events.to_string(),
            if lane.is_paused { "paused" } else { "" }.to_owned(),
        ]);
    }
    if exam.volumes.is_empty() {
        print("there are no volumes")?;
    } else {
        print(&volumes.to_string())?;
    }
    if !exam.lanes.is_empty() {
        print(&format!("\n{lanes}"))?;
    }
    let letters = &exam.dead_letters;
    print(&format!("\ndead letters: {}", letters.events))?;
    if letters.damaged_events > 0 {
        print(&format!(
            "dead letters that cannot be read: {}",
            letters.damaged_events
        ))?;
    }
    if let Some(trouble) = &letters.trouble {
        print(&format!("the dead letters cannot be read: {trouble}"))?;
    }
    if let Some(trouble) = &exam.cursors_trouble {
        print(&format!(
            "the cursors are not as they should be, so more may be sent again: {trouble}"
        ))?;
    }
    print(match is_damaged(exam) {
        false => "nothing is damaged",
        true => {
            "something is damaged; the daemon starts all the same and delivers what it can read"
        }
    })
}

/// The files that salvaged events are written to.
struct Salvage {
    events: BufWriter<File>,
    webhooks_path: PathBuf,
    webhooks: Option<BufWriter<File>>,
    written: u64,
}

impl Salvage {
    fn new(path: &Path) -> Result<Salvage, Failure> {
        Ok(Salvage {
            events: create(path).map_err(|error| {
                let message = format!("failed to make {}: {error}", path.display());
                Failure::new(EX_USAGE, message)
            })?,
            webhooks_path: path.with_added_extension("webhooks"),
            webhooks: None,
            written: 0,
        })
    }

    fn write(&mut self, salvaged: &Salvaged<'_>) -> io::Result<()> {
        self.written += 1;
        if salvaged.lane.destination == SEGMENT {
            return write_with_key(&mut self.events, salvaged);
        }
        let webhooks = match &mut self.webhooks {
            Some(webhooks) => webhooks,
            None => self.webhooks.insert(create(&self.webhooks_path)?),
        };
        webhooks.write_all(salvaged.event)?;
        webhooks.write_all(b"\n")
    }

    /// Returns how many events were written.
    fn finish(self) -> Result<u64, Failure> {
        for file in [Some(self.events), self.webhooks].into_iter().flatten() {
            let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.sync_all()?;
        }
        Ok(self.written)
    }
}

/// Writes an event as the body of a batch call with its lane's write key, which goes before any that the event names, so that it
/// can be posted again as it is.
fn write_with_key(to: &mut impl Write, salvaged: &Salvaged<'_>) -> io::Result<()> {
    let key = serde_json::Value::from(salvaged.lane.expose_key());
    write!(to, "{{\"writeKey\":{key},\"batch\":[")?;
    to.write_all(salvaged.event)?;
    to.write_all(b"]}\n")
}

/// A new file that only its owner can read.
fn create(path: &Path) -> io::Result<BufWriter<File>> {
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    Ok(BufWriter::new(file))
}
