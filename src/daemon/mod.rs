//! The life of the process: what starts in which order, what a signal does, and how it ends.
//!
//! ```text
//! Starting ─▶ Running ──SIGTERM──▶ Draining ──drained, or after shutdown.drain──▶ Stopped
//! ```
//! Start: listeners are bound, the spool is opened, delivery and the listeners begin. Stop: the ingest listeners close
//! and finish what is under way, delivery goes on for a while, then calls under way are dropped (their events stay), the
//! queue is closed, the admin listener goes last. A second signal ends the process at once; the spool survives that.
//! SIGHUP makes it go by a changed configuration, as far as a running process can. A part that dies ends the process: it never lives on half dead.

mod logging;
mod notify;
mod reload;
mod report;
mod signals;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::config::Config;
use crate::deliver::{Deliver, SetupError};
use crate::ingest::Ingest;
use crate::profiles::{self, Profiles};
use crate::queue::{OpenError, Queue};
use crate::server::{Activation, BindError, Phase, Server};
use crate::stats::Stats;

use logging::Level;
pub use reload::Load;
use reload::Reload;
use report::Report;
use signals::{Signal, Signals};

/// Why the daemon did not start, or ended other than by a signal.
#[derive(Debug)]
pub enum Error {
    /// The operating system did not let it begin.
    System(std::io::Error),
    /// There is a listener that cannot be made.
    Bind(BindError),
    /// The spool cannot be used.
    Open {
        /// Where it lies.
        data_dir: PathBuf,
        /// Why not.
        error: OpenError,
    },
    /// Delivery cannot begin.
    Setup(SetupError),
    /// Profiles cannot be read.
    Profiles(profiles::SetupError),
    /// A part of it died.
    Died(&'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::System(e) => write!(f, "failed to start: {e}"),
            Error::Bind(e) => write!(f, "{e}"),
            Error::Open { data_dir, error } => {
                write!(
                    f,
                    "failed to open the spool in {}: {error}",
                    data_dir.display()
                )
            }
            Error::Setup(e) => write!(f, "{e}"),
            Error::Profiles(e) => write!(f, "{e}"),
            Error::Died(part) => write!(f, "{part} has died"),
        }
    }
}

impl std::error::Error for Error {}

/// Threads that wait for the disk, for delivery above all. More would wait for the same disk.
const BLOCKING_THREADS_MAX: usize = 16;

/// Runs the daemon until a signal ends it. `load` reads the configuration anew when SIGHUP asks for it.
///
/// Delivery has a thread of its own. Among the connections' tasks it would wait for its turn behind each of hundreds of requests, so
/// that the backlog grew just when there is most to deliver.
///
/// # Errors
/// It did not start, or a part of it died.
pub fn run(config: Config, load: Load) -> Result<(), Error> {
    let level = logging::start(config.log);
    // Whatever is created is the owner's alone, sled's files included.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    raise_open_files_limit();
    // Before there are other threads.
    let activation = Activation::take();
    let signals = Signals::listen().map_err(Error::System)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()
        .map_err(Error::System)?;
    let delivery = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("segspool-deliver")
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()
        .map_err(Error::System)?;
    let ended = runtime.block_on(live(
        config,
        activation,
        load,
        level,
        signals,
        delivery.handle(),
    ));
    delivery.shutdown_background();
    ended
}

/// Finds what would keep [`run`] from starting, as far as that shows without listening or writing anywhere.
///
/// # Errors
/// A certificate, a key, an endpoint or a group cannot be used.
pub fn check(config: &Config) -> Result<(), Error> {
    config.ingest.check().map_err(Error::Bind)?;
    config.deliver().check().map_err(Error::Setup)?;
    Profiles::new(&config.profiles, Arc::default()).map_err(Error::Profiles)?;
    Ok(())
}

async fn live(
    mut config: Config,
    activation: Result<Activation, BindError>,
    load: Load,
    level: Level,
    mut signals: Signals,
    delivery: &Handle,
) -> Result<(), Error> {
    let activation = activation.map_err(Error::Bind)?;
    let server = Server::bind(&config.ingest, &config.admin, &config.data_dir, activation)
        .await
        .map_err(Error::Bind)?;
    if config.admin.token.is_none() && !config.admin.listen.ip().is_loopback() {
        warn!(
            admin = %config.admin.listen,
            "the admin listener lets everybody who can reach it read and delete dead letters; set admin.token_file"
        );
    }
    let (queue, new_lanes) = open_queue(&config).await?;
    let stats = Arc::new(Stats::default());
    let deliver = Deliver::new(
        &config.deliver(),
        queue.clone(),
        new_lanes,
        Arc::clone(&stats),
    )
    .map_err(Error::Setup)?;
    let profiles = Profiles::new(&config.profiles, Arc::clone(&stats)).map_err(Error::Profiles)?;
    let server = server.with(profiles);
    let rules = config.rules();
    let ingest = Arc::new(Ingest::new(rules, queue.clone(), Arc::clone(&stats)));
    let reload = Reload {
        load,
        level,
        retune: deliver.retune(),
        ingest: Arc::clone(&ingest),
        doorkeeper: server.doorkeeper(),
    };

    let ingest_addresses: Vec<_> = server
        .ingest_addresses()
        .iter()
        .map(ToString::to_string)
        .collect();
    info!(
        version = env!("CARGO_PKG_VERSION"),
        ingest = ingest_addresses.join(", "),
        ingest_tls = server.tls_address().map(tracing::field::display),
        admin = %server.admin_address(),
        data_dir = %config.data_dir.display(),
        backlog_events = queue.depth().events,
        durability = queue.durability().as_str(),
        "segspool is running"
    );
    let hurry = deliver.hurry();
    let phase = watch::Sender::new(Phase::Running);
    let report = Report {
        queue: queue.clone(),
        stats: Arc::clone(&stats),
        delivery: deliver.pulse(),
        phase: phase.subscribe(),
    };
    let mut serving = server.serve(ingest, queue.clone(), stats, phase.subscribe());
    let mut delivering = delivery.spawn(deliver.run());
    notify::ready();
    let mut reporting = tokio::spawn(report.run());

    let ended = loop {
        break tokio::select! {
            signal = signals.next() => match signal {
                Some(Signal::Reload) => {
                    reload.run(&mut config);
                    continue;
                }
                Some(Signal::Stop(signal)) => {
                    info!(signal, "stopping");
                    Ok(())
                }
                None => Err(Error::Died("listening for signals")),
            },
            () = queue.ended() => Err(Error::Died("the queue")),
            _ = &mut delivering => Err(Error::Died("delivery")),
            part = serving.ended() => Err(Error::Died(part)),
            _ = &mut reporting => Err(Error::Died("the report to systemd")),
        };
    };
    notify::stopping();
    phase.send_replace(Phase::Draining);
    if ended.is_ok() {
        hurry.up();
        serving.ingest_ended().await;
        drain(&config, &queue).await;
    }
    delivering.abort();
    queue.close().await;
    phase.send_replace(Phase::Stopped);
    if ended.is_ok() {
        serving.admin_ended().await;
        info!(backlog_events = queue.depth().events, "stopped");
    }
    ended
}

/// The limit that a process begins with is often 1024, for the sake of programs that cannot count further. Each connection takes one.
fn raise_open_files_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => debug!(
            from = limit.current,
            to = limit.maximum,
            "raised the limit of open files"
        ),
        Err(error) => {
            warn!(%error, limit = limit.current, "failed to raise the limit of open files")
        }
    }
}

async fn open_queue(config: &Config) -> Result<(Queue, crate::queue::NewLanes), Error> {
    let (data_dir, settings) = (config.data_dir.clone(), config.queue.clone());
    let opening = tokio::task::spawn_blocking(move || Queue::open(&data_dir, &settings));
    match opening.await {
        Ok(opened) => opened.map_err(|error| Error::Open {
            data_dir: config.data_dir.clone(),
            error,
        }),
        Err(_) => Err(Error::Died("opening the spool")),
    }
}

/// Lets delivery go on until nothing waits, for as long as the configuration grants.
async fn drain(config: &Config, queue: &Queue) {
    let drained = tokio::time::timeout(config.shutdown.drain, queue.drained()).await;
    if drained.is_err() {
        warn!(
            backlog_events = queue.depth().events,
            "stopping with a backlog; it is delivered after the next start"
        );
    }
}
