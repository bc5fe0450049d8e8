//! `segspool demo`: the promise of this program, played through in half a minute on one machine.
//!
//! ```text
//! pretend applications ──▶ the relay, a child process ──▶ the stand-in for Segment
//!      `apps`                     `relay`                     `stand_in`
//! ```
//!
//! Segment goes down, the relay is killed in the middle of the outage and started again, Segment comes back. At the end
//! every event that an application was told is safe must have arrived: the account is a table, and the exit code.
//!
//! Needs no configuration, no network beyond loopback and no account. All it writes lies in one temporary directory, kept
//! only when something went wrong. However the demo ends, short of SIGKILL, it leaves no process behind.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command speaks to whoever called it"
)]

mod habits;

mod apps;
mod relay;

mod account;
mod show;

use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use reqwest::Client;
use tokio::signal::unix::{SignalKind, signal};

use super::{EX_OSERR, complain};
use crate::stand_in::{Options, StandIn};
use crate::words::counted;

use account::Account;
use apps::Apps;
use relay::{Installation, Relay};
use show::Show;

/// How often the relay is asked whether its queue is empty.
const DRAIN_POLL: Duration = Duration::from_millis(100);

/// What is waited for may take any time as long as it moves. No machine is so slow that nothing moves for this long.
const STALLED_AFTER: Duration = Duration::from_secs(30);

/// An answer from this machine takes less than this, or will not come at all.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What a shell reports for a command ended by Ctrl-C.
const INTERRUPTED: u8 = 130;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How many events the pretend applications post
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1_000..=10_000_000))]
    events: u64,
    /// How long the applications take over it, in seconds; longer if the machine can't keep up
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
}

/// Plays the demo. Succeeds only if nothing was lost and Segment had nothing to complain about.
pub(super) fn run(args: &Args) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(perform(args)),
        Err(error) => {
            complain(&error);
            ExitCode::from(EX_OSERR)
        }
    }
}

async fn perform(args: &Args) -> ExitCode {
    let temporary = match tempfile::Builder::new().prefix("segspool-demo-").tempdir() {
        Ok(temporary) => temporary,
        Err(error) => {
            complain(&format_args!(
                "failed to create a temporary directory: {error}"
            ));
            return ExitCode::from(EX_OSERR);
        }
    };
    let show = Show::begin(args.events);
    let played = tokio::select! {
        // First, because a Ctrl-C reaches the relay as well, and its end is then no failure.
        biased;
        interrupted = interruption() => interrupted.map(|()| None),
        played = play(args, temporary.path(), &show) => played.map(Some),
    };
    show.end();

    let failure = match played {
        Ok(Some(account)) => {
            println!("{}", account.table());
            match account.verdict() {
                Ok(()) => {
                    println!("Nothing was lost.");
                    return ExitCode::SUCCESS;
                }
                Err(failure) => failure,
            }
        }
        Ok(None) => {
            eprintln!("Interrupted. The relay has been ended, and nothing is left behind.");
            return ExitCode::from(INTERRUPTED);
        }
        Err(failure) => failure,
    };
    eprintln!(
        "The demo failed: {failure}\nThe relay's spool and log were kept in {}.",
        temporary.keep().display()
    );
    ExitCode::FAILURE
}

/// The script of the show. Dropping it ends everything it has started.
async fn play(args: &Args, dir: &Path, show: &Show) -> Result<Account, Failure> {
    let begun = Instant::now();
    show.say("Starting the relay, a stand-in for Segment and four applications.");
    let segment = StandIn::start(Options::default()).await.map_err(|error| {
        Failure(format!(
            "the stand-in for Segment failed to start: {error}."
        ))
    })?;
    let installation = Installation::create(dir, &segment.url())?;
    let relay = installation.start().await?;
    let mut apps = Apps::start(
        args.events,
        Duration::from_secs(args.seconds),
        &installation.ingest_url(),
    )?;

    let accepted = apps.accepted();
    let story = tell(args.events, relay, &segment, &installation, &mut apps, show);
    tokio::select! {
        never = show.follow(accepted, &segment) => never,
        told = story => told?,
    }

    // The story ends well only after every event was accepted.
    let ids = apps.message_ids();
    let lost = ids.filter(|id| segment.times_delivered(id) == 0).count() as u64;
    Ok(Account::new(
        args.events,
        lost,
        segment.tally(),
        begun.elapsed(),
    ))
}

/// The scenes, each as long as it takes the applications to post their next quarter.
async fn tell(
    events: u64,
    mut relay: Relay<'_>,
    segment: &StandIn,
    installation: &Installation,
    apps: &mut Apps,
    show: &Show,
) -> Result<(), Failure> {
    let accepted = apps.accepted();
    let say = |scene| {
        show.look(&accepted, segment);
        show.say(scene);
    };
    say("All is well: what applications post is at Segment a moment later.");
    relay.outlives(apps.reach(events / 4)).await?;

    say("Segment goes down. The relay goes on accepting, and stores it all.");
    segment.down().await;
    relay.outlives(apps.reach(events / 2)).await?;

    say("The relay is killed with SIGKILL, and started again.");
    relay.kill().await?;
    let mut relay = installation.start().await?;

    say("The relay is back. Its backlog still waits for Segment, and grows.");
    relay.outlives(apps.reach(events / 4 * 3)).await?;

    say("Segment comes back. The backlog drains while new events arrive.");
    segment.up().await.map_err(|error| {
        Failure(format!(
            "the stand-in for Segment failed to come back: {error}."
        ))
    })?;
    relay.outlives(apps.reach(events)).await?;

    say("The applications are done. The relay delivers what is left.");
    drained(&mut relay, installation).await?;

    say("The queue is empty. The relay is asked to stop.");
    relay.stop().await
}

/// Waits until the relay's queue is empty.
async fn drained(relay: &mut Relay<'_>, installation: &Installation) -> Result<(), Failure> {
    let mut left = u64::MAX;
    let mut moved = Instant::now();
    loop {
        let events = relay.outlives(installation.stats()).await?.queue.events;
        if events == 0 {
            return Ok(());
        }
        if events < left {
            left = events;
            moved = Instant::now();
        }
        if moved.elapsed() > STALLED_AFTER {
            return Err(Failure(format!(
                "the relay still holds {} and has delivered none for {STALLED_AFTER:?}.",
                counted(events, "event")
            )));
        }
        tokio::time::sleep(DRAIN_POLL).await;
    }
}

/// Ctrl-C, a polite kill, or the end of the terminal.
async fn interruption() -> Result<(), Failure> {
    let listen = |kind| {
        signal(kind).map_err(|error| Failure(format!("signals can't be received: {error}.")))
    };
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

/// A client that talks to this machine alone.
fn loopback_client() -> Result<Client, Failure> {
    // An error says that another part of the process has chosen one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .no_proxy()
        .timeout(ANSWER_WITHIN)
        // Nothing here speaks TLS, and a machine without certificates is good enough.
        .tls_certs_only([])
        .build()
        .map_err(|error| Failure(format!("an HTTP client can't be made: {error}.")))
}

/// What went wrong, in sentences. Completes "The demo failed: …".
#[derive(Debug, PartialEq, Eq)]
struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
