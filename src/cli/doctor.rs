//! `segspool doctor`: what is in a stopped spool, what is damaged, and every event of it that can be read. Changes nothing.

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use serde_json::json;

use super::admin::{Failure, finish, print, print_json, table};
use super::{
    EX_CANTCREAT, EX_CONFIG, EX_DATAERR, EX_IOERR, EX_NOINPUT, EX_TEMPFAIL, EX_USAGE, file,
};
use crate::ingest::SEGMENT;
use crate::queue::{Exam, OpenError, Salvaged, VolumeExam, examine};
use crate::words::counted;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The exit code is 0 where nothing is known to be damaged and 65 where something is. What was never sealed, since the daemon was killed, \
has nothing that it could be held against: that is said. The daemon must be stopped: what it is writing is not \
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
    /// Salvage only what lies in quarantine, since the daemon delivers the rest itself
    ///
    /// Some of it may have been delivered before its volume was put there: nobody knows.
    #[arg(long, requires = "salvage", conflicts_with = "all")]
    quarantine_only: bool,
    /// Where to make copies of the databases, one at a time
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    scratch: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Whether an event is to be written.
    fn wants(&self, salvaged: &Salvaged<'_>) -> bool {
        match self.quarantine_only {
            true => salvaged.in_quarantine,
            false => self.all || !salvaged.is_settled,
        }
    }
}

pub(super) fn run(args: &Args) -> ExitCode {
    finish(async { look(args) })
}

fn look(args: &Args) -> Result<ExitCode, Failure> {
    check_scratch(&args.scratch)?;
    let salvage = args.salvage.as_deref();
    let salvage = salvage.map(|path| Salvage::new(path, &args.data_dir));
    let mut salvage = salvage.transpose()?;
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
            Some(salvage) if args.wants(&salvaged) => salvage.write(&salvaged),
            _ => Ok(()),
        },
    );
    bar.finish_and_clear();
    let exam = match exam {
        Ok(exam) => exam,
        Err(error) => {
            if let Some(salvage) = salvage {
                salvage.undo();
            }
            return Err(failure(&args.data_dir, &error));
        }
    };
    let written = salvage.map(Salvage::finish).transpose()?;
    if args.json {
        print_json(&json!({ "spool": exam, "salvaged_events": written }))?;
    } else {
        show(&exam)?;
        if let (Some(written), Some(path)) = (written, &args.salvage) {
            let written = counted(written, "event");
            print(&format!("{written} written to {}", path.display()))?;
        }
    }
    Ok(ExitCode::from(if exam.is_damaged() {
        EX_DATAERR
    } else {
        0
    }))
}

/// The copies can be made.
fn check_scratch(dir: &Path) -> Result<(), Failure> {
    let made = tempfile::tempdir_in(dir);
    made.map(drop).map_err(|error| {
        let (dir, why) = (dir.display(), error.kind());
        let message =
            format!("failed to make copies in {dir}: {why}. Name another directory with --scratch");
        Failure::new(EX_CANTCREAT, message)
    })
}

fn failure(data_dir: &Path, error: &OpenError) -> Failure {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    let dir = data_dir.display();
    match error {
        OpenError::InUse { .. } => {
            let message = format!("{error}; stop it first, or ask it with `segspool stats`");
            Failure::new(EX_TEMPFAIL, message)
        }
        OpenError::Format { .. } => Failure::new(EX_CONFIG, error.to_string()),
        OpenError::Io(e) if matches!(e.kind(), NotFound | NotADirectory) => {
            let message = format!("{dir} is no spool: {e}. Name the daemon's data_dir");
            Failure::new(EX_NOINPUT, message)
        }
        OpenError::Io(e) if e.kind() == PermissionDenied => {
            let message = format!("failed to look at {dir}: {e}. Run it as the spool's owner");
            Failure::new(EX_NOINPUT, message)
        }
        OpenError::Io(e) => Failure::new(EX_IOERR, format!("failed to look at {dir}: {e}")),
    }
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
        let state = match volume {
            VolumeExam { is_gone: true, .. } => "gone",
            VolumeExam {
                in_quarantine: true,
                ..
            } => "quarantine",
            VolumeExam {
                is_sealed: true, ..
            } => "sealed",
            _ => "open",
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
            trouble(exam, volume),
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
    let lanes_to_show = exam
        .lanes
        .iter()
        .filter(|lane| lane.waiting_events > 0 || lane.quarantined_events > 0 || lane.is_paused);
    for lane in lanes_to_show {
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
    if lanes.row_iter().next().is_some() {
        print(&format!("\n{lanes}"))?;
    } else {
        print("\nnothing waits")?;
    }
    for number in &exam.unchecked_volumes {
        print(&format!(
            "volume {number} was never sealed: what it held is not known, so what is missing from it cannot be counted"
        ))?;
    }
    let letters = &exam.dead_letters;
    print(&format!(
        "dead letters: {}; nothing else counts them, so what is missing of them cannot be told",
        letters.events
    ))?;
    if letters.damaged_events > 0 {
        print(&format!(
            "dead letters that cannot be read: {}",
            letters.damaged_events
        ))?;
    }
    if let Some(trouble) = &letters.trouble {
        print(&format!("the dead letters are damaged: {trouble}"))?;
    }
    if letters.quarantined_stores > 0 {
        let stores = counted(letters.quarantined_stores, "store");
        print(&format!("in quarantine: {stores} of dead letters"))?;
    }
    if let Some(trouble) = &exam.cursors_trouble {
        print(&format!(
            "the cursors are not as they should be, so more may be sent again: {trouble}"
        ))?;
    }
    print(match exam.is_damaged() {
        false => "nothing is known to be damaged",
        true => {
            "something is damaged; the daemon starts all the same and delivers what it can read"
        }
    })
}

/// What is wrong with a volume, or cannot be known of it.
fn trouble(exam: &Exam, volume: &VolumeExam) -> String {
    match &volume.trouble {
        Some(trouble) => trouble.clone(),
        None if exam.unchecked_volumes.contains(&volume.number) => "never sealed".to_owned(),
        None => String::new(),
    }
}

/// The files that salvaged events are written to.
struct Salvage {
    path: PathBuf,
    events: BufWriter<File>,
    webhooks_path: PathBuf,
    webhooks: Option<BufWriter<File>>,
    written: u64,
}

impl Salvage {
    fn new(path: &Path, data_dir: &Path) -> Result<Salvage, Failure> {
        if lies_in(path, data_dir) {
            let path = path.display();
            let message = format!("{path} would lie in the spool itself. Name a file elsewhere");
            return Err(Failure::new(EX_USAGE, message));
        }
        Ok(Salvage {
            path: path.to_owned(),
            events: BufWriter::new(file::create_for("--salvage", path)?),
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
            None => {
                let file = file::create(&self.webhooks_path)?;
                self.webhooks.insert(BufWriter::new(file))
            }
        };
        webhooks.write_all(salvaged.event)?;
        webhooks.write_all(b"\n")
    }

    /// Leaves nothing behind where there was no spool to salvage from.
    fn undo(self) {
        if self.written == 0 {
            // An empty file is in nobody's way but that of the next try, which says so.
            let _ = fs::remove_file(&self.path);
        }
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

/// Whether a file of that name would lie somewhere below `dir`, by whatever way it is named.
fn lies_in(path: &Path, dir: &Path) -> bool {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let found = parent
        .canonicalize()
        .and_then(|p| Ok((p, dir.canonicalize()?)));
    found.is_ok_and(|(parent, dir)| parent.starts_with(dir))
}

/// Writes an event as the body of a batch call with its lane's write key, which goes before any that the event names, so that it
/// can be posted again as it is.
fn write_with_key(to: &mut impl Write, salvaged: &Salvaged<'_>) -> io::Result<()> {
    let key = serde_json::Value::from(salvaged.lane.expose_key());
    write!(to, "{{\"writeKey\":{key},\"batch\":[")?;
    to.write_all(salvaged.event)?;
    to.write_all(b"]}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spool_that_cannot_be_looked_at_is_no_failure_of_the_disk_and_the_way_out_is_named() {
        use io::ErrorKind::{NotADirectory, NotFound, Other, PermissionDenied};
        for (kind, code, said) in [
            (NotFound, EX_NOINPUT, "Name the daemon's data_dir"),
            (NotADirectory, EX_NOINPUT, "Name the daemon's data_dir"),
            (PermissionDenied, EX_NOINPUT, "Run it as the spool's owner"),
            (Other, EX_IOERR, "failed to look at /spool"),
        ] {
            let failure = failure(Path::new("/spool"), &OpenError::Io(kind.into()));
            assert_eq!(failure.code(), code, "{failure}");
            assert!(failure.to_string().contains(said), "{failure}");
        }
    }
}
