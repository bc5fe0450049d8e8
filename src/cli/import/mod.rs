//! `segspool import`: events from a file of lines, through the running daemon, at the pace it accepts.
//!
//! ```text
//! lines ─▶ portion ─▶ call ─▶ answer ─▶ what was rejected is on disk ─▶ how far it came is on disk
//! ```
//! One call at a time, and no step begins before the one left of it is over, but that the next portion is read beside the call. So,
//! whatever ends the process, at most the events of one call are sent again, and these with the same messageIds. A Ctrl-C lets the
//! call under way end, and then nothing is sent twice.
//!
//! Never writes to the file that it reads.

mod lines;
mod portion;

mod daemon;

mod rejects;
mod state;

mod show;

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use indicatif::HumanCount;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

use super::admin::{self, Failure, print};
use super::{
    EX_CANTCREAT, EX_DATAERR, EX_IOERR, EX_NOINPUT, EX_OSERR, EX_SOFTWARE, EX_TEMPFAIL, EX_USAGE,
    complain,
};
use crate::event::WriteKey;
use crate::words::counted;

use daemon::{Answer, Daemon, Outcome};
use portion::{CALL_EVENTS_MAX, Options, Place, Portion, ReadError};
use rejects::Rejects;
use show::Show;
use state::{Identity, LoadError, State, StateFile};

/// What may be said in place of --write-key.
const WRITE_KEY_VARIABLE: &str = "SEGSPOOL_WRITE_KEY";
/// A daemon that is being started anew is back long before.
const UNANSWERED_MAX: Duration = Duration::from_secs(60);
/// Between two calls of which the first was not answered.
const UNANSWERED_PAUSE: Duration = Duration::from_millis(500);
/// What is read of a file at once, in bytes.
const READ_BYTES: usize = 256 * 1024;
/// Portions that are ready before the call they are for: one is enough to keep the calls going.
const READ_AHEAD: usize = 1;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The file, or - for standard input, which cannot be gone on with
    file: PathBuf,
    /// The daemon's ingest listener
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7346")]
    ingest: String,
    /// The write key of events that have none; SEGSPOOL_WRITE_KEY in the environment does the same
    #[arg(long, value_name = "KEY", conflicts_with = "write_key_file")]
    write_key: Option<String>,
    /// A file that holds that key, which then no list of processes shows
    #[arg(long, value_name = "FILE")]
    write_key_file: Option<PathBuf>,
    /// Where to write what is rejected, instead of FILE.rejected, or stdin.rejected for standard input
    #[arg(long, value_name = "FILE")]
    rejected: Option<PathBuf>,
    /// Where to remember how far it has come, instead of FILE.import-state
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> ExitCode {
    admin::finish(async {
        let key = write_key(args)?;
        let daemon = Daemon::at(&args.ingest)?;
        let interrupts = Interrupts::listen()
            .map_err(|error| Failure::new(EX_OSERR, format!("failed to start: {error}")))?;
        let source = match args.file.as_os_str() == "-" {
            true => Source::stdin(args)?,
            false => Source::open(args)?,
        };
        source.import(key, daemon, interrupts).await
    })
}

fn write_key(args: &Args) -> Result<Option<WriteKey>, Failure> {
    let text = match (&args.write_key, &args.write_key_file) {
        (Some(key), _) => Some(key.clone()),
        (None, Some(path)) => Some(admin::read_secret(path)?),
        (None, None) => std::env::var(WRITE_KEY_VARIABLE)
            .ok()
            .filter(|key| !key.is_empty()),
    };
    let key = text.map(|text| WriteKey::new(&text)).transpose();
    key.map_err(|rejection| Failure::new(EX_USAGE, rejection.message()))
}

/// What is imported, and how far that has come.
struct Source {
    /// In words.
    name: String,
    reader: Box<dyn BufRead + Send>,
    seed: Uuid,
    file: Option<(File, Identity)>,
    ledger: Ledger,
}

impl Source {
    /// Standard input: nothing is known of it but what comes.
    fn stdin(args: &Args) -> Result<Source, Failure> {
        let path = args.rejected.clone();
        let path = std::path::absolute(path.unwrap_or_else(|| "stdin.rejected".into()))?;
        Ok(Source {
            name: "standard input".into(),
            reader: Box::new(BufReader::with_capacity(READ_BYTES, io::stdin())),
            seed: Uuid::new_v4(),
            file: None,
            ledger: Ledger {
                rejects: begin_rejects(&path)?,
                state_file: None,
                state: State::new(&path),
            },
        })
    }

    /// A file, at its beginning or where an earlier import of it has ended.
    fn open(args: &Args) -> Result<Source, Failure> {
        let path = &args.file;
        let name = path.display().to_string();
        let unreadable =
            |error: io::Error| Failure::new(EX_NOINPUT, format!("failed to read {name}: {error}"));
        // First, since to open a pipe is to wait for who writes to it.
        if !path.metadata().map_err(unreadable)?.is_file() {
            let message = format!(
                "{name} is no regular file; what a pipe holds is imported by `segspool import -`"
            );
            return Err(Failure::new(EX_NOINPUT, message));
        }
        let mut file = File::open(path).map_err(unreadable)?;
        // The lock goes with the process, however that ends.
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = format!("another import of {name} is under way; wait for its end");
                return Err(Failure::new(EX_TEMPFAIL, message));
            }
            Err(TryLockError::Error(error)) => return Err(unreadable(error)),
        }
        let identity = Identity::of(&mut file).map_err(unreadable)?;
        let beside = |ending: &str| {
            let mut path = OsString::from(path);
            path.push(ending);
            PathBuf::from(path)
        };
        let state_path = args.state.clone();
        let rejects_path = args.rejected.clone();
        let ledger = Ledger::open(
            &name,
            &state_path.unwrap_or_else(|| beside(".import-state")),
            &rejects_path.unwrap_or_else(|| beside(".rejected")),
            identity.clone(),
        )?;
        let at = ledger.state.next.offset;
        file.seek(SeekFrom::Start(at)).map_err(unreadable)?;
        let rest = file.try_clone().map_err(unreadable)?;
        // What is appended from now on is another import's.
        let rest = rest.take(identity.size.saturating_sub(at));
        Ok(Source {
            name,
            reader: Box::new(BufReader::with_capacity(READ_BYTES, rest)),
            seed: identity.seed(),
            file: Some((file, identity)),
            ledger,
        })
    }

    async fn import(
        self,
        key: Option<WriteKey>,
        daemon: Daemon,
        interrupts: Interrupts,
    ) -> Result<ExitCode, Failure> {
        let state = &self.ledger.state;
        let (begun_at, was_under_way) = (state.next, state.under_way);
        if begun_at != Place::START {
            complain(&format_args!(
                "going on at line {} of {}",
                HumanCount(begun_at.line),
                self.name
            ));
        }
        let options = Options {
            seed: self.seed,
            key,
            from: begun_at,
        };
        let size = self.file.as_ref().map(|(_, identity)| identity.size);
        let mut import = Import {
            daemon,
            interrupts,
            interrupted: None,
            show: Show::begin(begun_at.offset, size),
            ledger: self.ledger,
            doubtful: if was_under_way {
                CALL_EVENTS_MAX as u64
            } else {
                0
            },
            in_doubt: false,
            met: false,
        };
        let done = import.run(self.reader, options).await;
        let Import {
            show,
            ledger,
            doubtful,
            in_doubt,
            ..
        } = import;
        let (events, rate, elapsed) = (show.events(), show.rate(), show.elapsed());
        // From here on nothing disturbs the bar.
        drop(show);
        if doubtful > 0 {
            complain(&format_args!(
                "up to {} may have been accepted twice, with the same messageIds, since a call's answer was never seen",
                counted(doubtful, "event")
            ));
        }
        match done {
            Ok(()) => {}
            Err(stop) => return ledger.stopped(stop, in_doubt, &self.name),
        }
        let state = ledger.state.clone();
        let rejects = ledger.finished()?;
        let mut line = format!(
            "imported {} from {} in {:.1} s, {} a second",
            counted(events, "event"),
            self.name,
            elapsed.as_secs_f64(),
            HumanCount(rate)
        );
        if state.accepted > events {
            let all = HumanCount(state.accepted);
            line.push_str(&format!("; {all} with what was imported before"));
        }
        print(&line)?;
        let mut code = ExitCode::SUCCESS;
        if state.rejected > 0 {
            complain(&format_args!(
                "{} {} rejected; {} says which and why",
                HumanCount(state.rejected),
                if state.rejected == 1 { "was" } else { "were" },
                rejects.path().display()
            ));
            code = ExitCode::from(EX_DATAERR);
        }
        if let Some((file, identity)) = &self.file
            && !identity.still_holds(&file.metadata()?)
        {
            complain(&format_args!(
                "{} has changed while it was read; what was appended was not imported",
                self.name
            ));
            code = ExitCode::from(EX_DATAERR);
        }
        Ok(code)
    }
}

/// Why an import ended before its end.
enum Stop {
    Interrupted(Interrupt),
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Failed(failure)
    }
}

/// An import under way.
struct Import {
    daemon: Daemon,
    interrupts: Interrupts,
    interrupted: Option<Interrupt>,
    show: Show,
    ledger: Ledger,
    /// Events that may have been accepted twice.
    doubtful: u64,
    /// Whether the last call's answer was never seen.
    in_doubt: bool,
    /// Whether the daemon has answered before.
    met: bool,
}

impl Import {
    async fn run(&mut self, reader: Box<dyn BufRead + Send>, options: Options) -> Result<(), Stop> {
        let (mut portions, reading) = read_beside(reader, options)?;
        loop {
            let portion = tokio::select! {
                biased;
                interrupt = self.interrupts.next() => return Err(Stop::Interrupted(interrupt)),
                portion = portions.recv() => portion,
            };
            let Some(portion) = portion else { break };
            self.deliver(portion).await?;
        }
        match reading.join() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error @ ReadError::NotNdjson { .. })) => {
                Err(Failure::new(EX_DATAERR, format!("nothing was imported: {error}")).into())
            }
            Ok(Err(ReadError::Io(error))) => {
                Err(Failure::new(EX_IOERR, format!("failed to read on: {error}")).into())
            }
            // The panic itself has said what happened.
            Err(_) => Err(Failure::new(EX_SOFTWARE, "failed to read on").into()),
        }
    }

    /// Has the daemon accept a portion, in as many calls as that takes.
    async fn deliver(&mut self, portion: Portion) -> Result<(), Stop> {
        let mut waiting = vec![portion];
        while let Some(mut portion) = waiting.pop() {
            match self.answer(&portion).await? {
                Answer::Accepted { rejected } => {
                    for item in rejected {
                        portion.reject(item.index, &item.code, &item.message);
                    }
                }
                Answer::Rejected { code, message } => {
                    if self.ledger.state.accepted == 0 && is_about_keys(&code) {
                        let message = format!("{message}; --write-key-file FILE gives another");
                        return Err(Failure::new(EX_USAGE, message).into());
                    }
                    for index in 0..portion.len() {
                        portion.reject(index, &code, &message);
                    }
                }
                Answer::TooLarge { code, message } => match portion.halve() {
                    Ok((first, second)) => {
                        waiting.extend([second, first]);
                        continue;
                    }
                    Err(whole) => {
                        portion = whole;
                        portion.reject(0, &code, &message);
                    }
                },
            }
            let accepted = self.ledger.settle(&portion)?;
            self.show.done(portion.end.offset, accepted);
            if let Some(interrupt) = self.interrupted {
                return Err(Stop::Interrupted(interrupt));
            }
        }
        Ok(())
    }

    /// Calls until there is an answer.
    async fn answer(&mut self, portion: &Portion) -> Result<Answer, Stop> {
        if portion.len() == 0 {
            let rejected = Vec::new();
            return Ok(Answer::Accepted { rejected });
        }
        let mut unanswered_since = None;
        loop {
            let (wait, why) = match self.call(portion).await? {
                Outcome::Settled(answer) => {
                    self.in_doubt = false;
                    self.met = true;
                    return Ok(answer);
                }
                Outcome::Later { after, message } => {
                    self.met = true;
                    unanswered_since = None;
                    (after, message)
                }
                Outcome::Unanswered { unsent, failure } => {
                    if !unsent {
                        self.in_doubt = true;
                        self.doubtful += portion.len() as u64;
                    }
                    let since = *unanswered_since.get_or_insert_with(Instant::now);
                    if !self.met || since.elapsed() >= UNANSWERED_MAX {
                        return Err(failure.into());
                    }
                    (UNANSWERED_PAUSE, failure.to_string())
                }
            };
            self.show.waits(&why, wait);
            if let Some(interrupt) = self.interrupted {
                return Err(Stop::Interrupted(interrupt));
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                interrupt = self.interrupts.next() => return Err(Stop::Interrupted(interrupt)),
            }
        }
    }

    /// Makes one call. The first interrupt lets it end, the second one does not.
    async fn call(&mut self, portion: &Portion) -> Result<Outcome, Stop> {
        let call = self.daemon.call(portion);
        tokio::pin!(call);
        loop {
            tokio::select! {
                outcome = &mut call => return Ok(outcome?),
                interrupt = self.interrupts.next() => {
                    if self.interrupted.replace(interrupt).is_some() {
                        self.in_doubt = true;
                        self.doubtful += portion.len() as u64;
                        return Err(Stop::Interrupted(interrupt));
                    }
                }
            }
        }
    }
}

type Reading = JoinHandle<Result<(), ReadError>>;

/// Reads in a thread of its own, which ends once nobody takes what it has read. Without the end of the thread there is no end of the
/// file: it may have died.
fn read_beside(
    reader: Box<dyn BufRead + Send>,
    options: Options,
) -> Result<(mpsc::Receiver<Portion>, Reading), Failure> {
    let (send, portions) = mpsc::channel(READ_AHEAD);
    let reading = thread::Builder::new()
        .name("segspool-import".into())
        .spawn(move || {
            portion::read(reader, options, |portion| {
                match send.blocking_send(portion) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                }
            })
        });
    let reading = reading.map_err(|error| Failure::new(EX_OSERR, error.to_string()))?;
    Ok((portions, reading))
}

/// Whether a code says that something is wrong with the key rather than with the event.
fn is_about_keys(code: &str) -> bool {
    matches!(code, "write_key_not_defined" | "write_key_not_allowed")
}

/// What is remembered of an import, on disk where there is a file to go on with.
struct Ledger {
    state_file: Option<StateFile>,
    state: State,
    rejects: Rejects,
}

impl Ledger {
    fn open(
        name: &str,
        state_path: &Path,
        rejects_path: &Path,
        identity: Identity,
    ) -> Result<Ledger, Failure> {
        let rejects_path = &std::path::absolute(rejects_path)?;
        let state_file = StateFile::new(state_path, identity)?;
        let shown = state_file.path().display();
        let loaded = state_file.load().map_err(|error| match error {
            LoadError::Changed => Failure::new(
                EX_NOINPUT,
                format!("{name} is not the file of which a part was imported; remove {shown} to import it from its beginning"),
            ),
            LoadError::Io(error) => Failure::new(
                EX_IOERR,
                format!("failed to read {shown}: {error}; remove it to import {name} from its beginning"),
            ),
        })?;
        let (state, rejects) = match loaded {
            Some(state) if state.has_made(rejects_path) => {
                let rejects = Rejects::go_on(rejects_path, state.rejected_bytes);
                let rejects = rejects.map_err(|error| not_written(rejects_path, &error))?;
                (state, rejects)
            }
            // It begins; or what is rejected from now on goes elsewhere, where another file would be somebody else's.
            loaded => {
                let rejects = begin_rejects(rejects_path)?;
                let new = State::new(rejects_path);
                let state = match loaded {
                    None => new,
                    Some(state) => State {
                        rejects: new.rejects,
                        rejected_bytes: 0,
                        ..state
                    },
                };
                state_file.save(&state).map_err(|error| {
                    let message = format!(
                        "failed to write {shown}: {error}; name a file elsewhere with --state FILE"
                    );
                    Failure::new(EX_CANTCREAT, message)
                })?;
                (state, rejects)
            }
        };
        Ok(Ledger {
            state_file: Some(state_file),
            state,
            rejects,
        })
    }

    /// Remembers that a portion is done, and returns how many of its events were accepted.
    fn settle(&mut self, portion: &Portion) -> Result<u64, Failure> {
        let rejects = &mut self.rejects;
        let written = rejects.write(&portion.rejected);
        written.map_err(|error| not_written(rejects.path(), &error))?;
        let accepted = portion.accepted() as u64;
        self.state.next = portion.end;
        self.state.accepted += accepted;
        self.state.rejected += portion.rejected.len() as u64;
        self.state.rejected_bytes = rejects.bytes();
        self.state.under_way = true;
        self.save()?;
        Ok(accepted)
    }

    fn save(&self) -> Result<(), Failure> {
        let Some(state_file) = &self.state_file else {
            return Ok(());
        };
        state_file.save(&self.state).map_err(|error| {
            let path = state_file.path().display();
            Failure::new(EX_IOERR, format!("failed to write {path}: {error}"))
        })
    }

    /// Nothing is left to be remembered.
    fn finished(self) -> Result<Rejects, Failure> {
        if let Some(state_file) = &self.state_file {
            state_file.remove()?;
        }
        Ok(self.rejects)
    }

    /// Leaves things so that the same command goes on, and says so.
    fn stopped(mut self, stop: Stop, in_doubt: bool, name: &str) -> Result<ExitCode, Failure> {
        let line = HumanCount(self.state.next.line);
        let how_on = match &self.state_file {
            Some(state_file) if self.state.next == Place::START => {
                state_file.remove()?;
                "nothing was imported".to_owned()
            }
            Some(_) => {
                self.state.under_way = in_doubt;
                self.save()?;
                format!("the same command goes on at line {line} of {name}")
            }
            None => format!("what came before line {line} of {name} is imported"),
        };
        match stop {
            Stop::Interrupted(interrupt) => {
                complain(&format_args!("interrupted; {how_on}"));
                Ok(ExitCode::from(interrupt.exit_code()))
            }
            Stop::Failed(failure) if self.state.next == Place::START => Err(failure),
            Stop::Failed(failure) => Err(failure.and(&how_on)),
        }
    }
}

fn begin_rejects(path: &Path) -> Result<Rejects, Failure> {
    Rejects::begin(path).map_err(|_| {
        let path = path.display();
        let message = format!(
            "{path} is there from an earlier import; move it away, or name another file with --rejected FILE"
        );
        Failure::new(EX_CANTCREAT, message)
    })
}

fn not_written(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    let message =
        format!("failed to write {path}: {error}; name a file elsewhere with --rejected FILE");
    Failure::new(EX_CANTCREAT, message)
}

/// Ctrl-C, or a polite kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Interrupt(SignalKind);

impl Interrupt {
    /// As a shell reports it for a command that a signal has ended.
    fn exit_code(self) -> u8 {
        128 + u8::try_from(self.0.as_raw_value()).unwrap_or_default()
    }
}

struct Interrupts {
    int: Signal,
    term: Signal,
}

impl Interrupts {
    fn listen() -> io::Result<Interrupts> {
        Ok(Interrupts {
            int: signal(SignalKind::interrupt())?,
            term: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> Interrupt {
        tokio::select! {
            _ = self.int.recv() => Interrupt(SignalKind::interrupt()),
            _ = self.term.recv() => Interrupt(SignalKind::terminate()),
        }
    }
}
