//! Where events rest: a durable queue of lanes on sled. It knows bytes, not events.
//!
//! ```text
//!  append ──▶ writer ──▶ records ──▶ the active volume ──seal──▶ sealed volumes ──drained──▶ deleted
//!             (group commit)              │ publish                │   ▲    │
//!                                         │                        ▼   └────┴── repacker, where little is left
//!                                       lanes ◀──read, settle── one reader a lane
//!                                         └──────▶ keeper ──▶ cursors
//! ```
//!
//! - **An append returns after the sync.** One thread commits what waits as a group: `apply_batch`, `flush`, `fdatasync`.
//! - **Volumes are immutable once sealed**, nothing is ever removed from one, and each is deleted whole, or replaced by a smaller
//!   copy. So disk comes back, and a damaged volume costs what is in it and nothing else.
//! - **A cursor never runs ahead.** It names the lowest event of its lane that is not settled. What is settled beyond it is
//!   saved with it. It may lag: a crash re-sends a moment's worth.
//! - **Depth is counted, never asked**, and memory does not grow with the backlog: an entry for each lane in each volume.
//!
//! On disk: `LOCK`, `format`, `reserve`, `cursors`, `volumes/<number>/`, `volumes/<number>.summary`, `dead-letters/` (with `.new` and `.old`
//! beside it while it is written anew), `quarantine/`. `store` alone names sled; another engine has only to offer commit and scan.

mod record;
mod store;

mod volume;
mod volumes;

mod cursors;
mod lane;
mod lanes;
mod load;
mod name;
mod unsettled;

mod capacity;
mod commits;
mod keeper;
mod parcel;
mod pulse;
mod reader;
mod recovery;
mod repack;
mod reserve;
mod room;
mod writer;

mod dead_letters;
mod exam;

pub(crate) mod files;
mod ground;
mod layout;

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tracing::{error, info};

pub use commits::CommitTimes;
pub use dead_letters::{
    BuryError, DeadLetter, DeadLetters, Filter, Group, LetterId, LettersExam, NotALetterId,
    Portion, Present, Unavailable,
};
pub use exam::{Exam, LaneExam, Salvaged, VolumeExam, examine};
pub use keeper::NotSaved;
pub use lane::{Depth, Hand, Lane, Record};
pub use layout::OpenError;
pub use load::Load;
pub use name::{LaneId, LaneName, WEBHOOK};
pub use pulse::{Pulse, Working};
pub use reader::{LaneReader, ReadError, Reading};
pub use record::Run;
pub use repack::Repacking;
pub use room::WhenFull;
pub use store::Barrier;

use capacity::Capacity;
use commits::Commits;
use cursors::{Cursors, SavedCursors};
use keeper::KeeperHandle;
use lanes::Lanes;
use layout::Layout;
use parcel::{Packers, Parcel};
use repack::{Repacker, RepackerHandle};
use reserve::Reserve;
use volume::VolumeNumber;
use volumes::Volumes;
use writer::{Order, Writer};

/// A record's place in the order of acceptance, over all lanes; never reused.
pub type Position = u64;

/// How safe is "stored"?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// On stable storage: `fdatasync` has returned.
    #[default]
    Synced,
    /// With the operating system: it survives the death of the process, not of the machine.
    Os,
}

impl Durability {
    /// The word for it in the configuration, in replies and in stats.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Durability::Synced => "synced",
            Durability::Os => "os",
        }
    }

    /// What a commit waits for.
    #[must_use]
    pub fn barrier(self) -> Barrier {
        match self {
            Durability::Synced => Barrier::synced(),
            Durability::Os => Barrier::os(),
        }
    }
}

/// The queue's settings: `[queue]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What a 200 means.
    pub durability: Durability,
    /// What the volumes may take on disk.
    pub max_bytes: ByteSize,
    /// What the file system must have left for others.
    pub min_free_disk: ByteSize,
    /// What happens to events that come when `max_bytes` is reached.
    pub when_full: WhenFull,
    /// What the dead letters may hold.
    pub dead_letter_max_bytes: ByteSize,
    /// When a volume is full and the next one begins. At least 1 MiB.
    pub volume_bytes: ByteSize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            durability: Durability::Synced,
            max_bytes: ByteSize::gib(8),
            min_free_disk: ByteSize::mib(512),
            when_full: WhenFull::Reject,
            dead_letter_max_bytes: ByteSize::gib(1),
            volume_bytes: ByteSize::mib(128),
        }
    }
}

/// Why events were not stored. None of the request's events counts as accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// The queue has reached a bound of the disk.
    Full,
    /// The disk itself has no room.
    DiskFull,
    /// The disk failed.
    Storage,
    /// The queue has been closed.
    Closed,
}

impl fmt::Display for AppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AppendError::Full => "failed to store events: the queue is full",
            AppendError::DiskFull => "failed to store events: the disk is full",
            AppendError::Storage => "failed to store events: the disk failed",
            AppendError::Closed => "failed to store events: the queue is closed",
        })
    }
}

impl std::error::Error for AppendError {}

/// What the volumes take on disk, and what they may come to take as long as others on their file system take no more.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// In bytes.
    pub used_bytes: u64,
    /// In bytes.
    pub bound_bytes: u64,
}

/// What the spool takes and has, at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// What the volumes take on disk, in bytes.
    pub disk_bytes: u64,
    /// What they may take, in bytes.
    pub max_bytes: u64,
    /// What the file system has left, in bytes.
    pub free_disk_bytes: u64,
    /// Volumes on disk, the active one included.
    pub volumes: u64,
    /// Volumes in quarantine.
    pub quarantined_volumes: u64,
    /// Volumes that a smaller copy has replaced, since the start.
    pub repacked_volumes: u64,
    /// What that gave back, in bytes.
    pub reclaimed_bytes: u64,
}

/// The queue: a handle that is cheap to clone.
#[derive(Clone, Debug)]
pub struct Queue {
    shared: Arc<Shared>,
}

/// What the threads and the handles share.
struct Shared {
    layout: Layout,
    lanes: Lanes,
    volumes: Volumes,
    capacity: Capacity,
    dead_letters: DeadLetters,
    saved: Arc<SavedCursors>,
    durability: Durability,
    when_full: WhenFull,
    volume_bytes: u64,
    /// Only the writer takes positions and volume numbers; the keeper writes down which have been taken.
    next_position: AtomicU64,
    next_volume: AtomicU64,
    orders: mpsc::Sender<Order>,
    packers: Packers,
    keeper: Arc<KeeperHandle>,
    reserve: Arc<Reserve>,
    repacker: RepackerHandle,
    pulse: Pulse,
    commits: Commits,
    threads: Mutex<Option<Threads>>,
    ended: watch::Sender<bool>,
    progress: Notify,
}

struct Threads {
    writer: JoinHandle<()>,
    keeper: JoinHandle<()>,
    repacker: JoinHandle<()>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("volumes", &self.volumes)
            .finish_non_exhaustive()
    }
}

/// Every lane there is, then every new one as it appears: for whoever delivers.
#[derive(Debug)]
pub struct NewLanes {
    shared: Arc<Shared>,
    announced: mpsc::UnboundedReceiver<Arc<Lane>>,
}

impl NewLanes {
    /// The next lane's reader; each lane has one. Never ends.
    pub async fn next(&mut self) -> LaneReader {
        // The sender lives in `shared`, which this holds.
        let lane = self
            .announced
            .recv()
            .await
            .expect("the lanes are not gone while they are held");
        LaneReader::new(Arc::clone(&self.shared), lane)
    }
}

impl Queue {
    /// Opens the spool in `data_dir`, making it if need be, takes up what an earlier process left, and starts the writer. Blocks on
    /// the disk. Must be closed with [`Queue::close`].
    ///
    /// # Errors
    /// Another process has it, its format is not known, or the disk does not let it work.
    pub fn open(data_dir: &Path, config: &Config) -> Result<(Queue, NewLanes), OpenError> {
        let barrier = config.durability.barrier();
        Queue::open_with(data_dir, config, barrier, Repacking::WhenWorthIt)
    }

    /// [`Queue::open`] with a barrier of one's own, which a test may hold or let fail, and with another policy of repacking.
    ///
    /// # Errors
    /// As [`Queue::open`].
    pub fn open_with(
        data_dir: &Path,
        config: &Config,
        barrier: Barrier,
        repacking: Repacking,
    ) -> Result<(Queue, NewLanes), OpenError> {
        let layout = Layout::open(data_dir)?;
        let cursors = Cursors::load(&layout.cursors());
        let keeper = Arc::new(KeeperHandle::default());
        let reserve = Arc::new(Reserve::open(layout.reserve(), Arc::clone(&keeper)));
        let volumes = Volumes::new(
            layout.volumes(),
            layout.quarantine(),
            barrier.clone(),
            Arc::clone(&reserve),
        )?;
        let found = volumes.recover(&cursors)?;

        let (announce, announced) = mpsc::unbounded_channel();
        let lanes = Lanes::new(announce);
        let recovered = recovery::take_up(&lanes, &cursors, &found);

        let saved = Arc::new(SavedCursors::new(
            lanes
                .all()
                .iter()
                .map(|lane| (lane.id(), lane.stand().cursor)),
            recovered.next_position,
        ));

        let (orders, received) = mpsc::channel(writer::WAITING_MAX);
        let ended = watch::Sender::new(false);
        let shared = Arc::new(Shared {
            capacity: Capacity::new(
                data_dir,
                config.max_bytes.as_u64(),
                config.min_free_disk.as_u64(),
                config.volume_bytes.as_u64(),
            ),
            dead_letters: DeadLetters::start(
                &layout,
                config.dead_letter_max_bytes.as_u64(),
                barrier,
                Arc::clone(&saved),
                Arc::clone(&reserve),
                EndGuard(ended.clone()),
            )?,
            saved,
            durability: config.durability,
            when_full: config.when_full,
            volume_bytes: config.volume_bytes.as_u64(),
            next_position: AtomicU64::new(recovered.next_position),
            next_volume: AtomicU64::new(recovered.next_volume.max(volumes.first_free()?)),
            orders,
            packers: Packers::default(),
            keeper,
            reserve,
            repacker: RepackerHandle::default(),
            pulse: Pulse::default(),
            commits: Commits::default(),
            threads: Mutex::default(),
            ended,
            progress: Notify::new(),
            layout,
            lanes,
            volumes,
        });
        info!(
            events = recovered.depth.events,
            bytes = recovered.depth.bytes,
            volumes = found.len(),
            "took up the backlog"
        );
        shared.start(received, repacking)?;
        shared.keeper.wake();
        Ok((
            Queue {
                shared: Arc::clone(&shared),
            },
            NewLanes { shared, announced },
        ))
    }

    /// The lane of that name, made if it is new; `None` where there are too many lanes already.
    #[must_use]
    pub fn lane(&self, name: &LaneName) -> Option<Arc<Lane>> {
        self.shared.lanes.lane(name)
    }

    /// All lanes, in no order.
    #[must_use]
    pub fn lanes(&self) -> Vec<Arc<Lane>> {
        self.shared.lanes.all()
    }

    /// The lane with that identity.
    #[must_use]
    pub fn find_lane(&self, id: LaneId) -> Option<Arc<Lane>> {
        self.shared.lanes.find(id)
    }

    /// Lets nothing of a lane be sent until it is resumed, in this process and those after it. Returns once that is on disk.
    ///
    /// # Errors
    /// The disk did not take it in time: it holds for this process.
    pub async fn pause(&self, lane: &Lane) -> Result<(), NotSaved> {
        lane.pause();
        self.shared.keeper.saved().await
    }

    /// Lets a lane be sent again, at once, whatever it was waiting for. Returns once that is on disk.
    ///
    /// # Errors
    /// As for [`Queue::pause`].
    pub async fn resume(&self, lane: &Lane) -> Result<(), NotSaved> {
        lane.resume();
        self.shared.keeper.saved().await
    }

    /// Stores events, in each lane in the order given, and returns once all of them are as durable as the queue makes them.
    ///
    /// # Errors
    /// Then none of them counts as accepted, though after a crash some may turn out to be stored.
    pub async fn append<L: Into<Load>>(
        &self,
        loads: Vec<(Arc<Lane>, L)>,
    ) -> Result<Durability, AppendError> {
        let (reply, answer) = oneshot::channel();
        let now_ms = now_ms();
        let parcel = |load| Parcel::of(load, &self.shared.packers, now_ms);
        let parcels = loads.into_iter();
        let parcels = parcels.map(|(lane, load)| (lane, parcel(load.into())));
        let order = Order::Append {
            parcels: parcels.collect(),
            reply,
        };
        self.shared
            .orders
            .send(order)
            .await
            .map_err(|_| AppendError::Closed)?;
        answer.await.map_err(|_| AppendError::Closed)??;
        Ok(self.shared.durability)
    }

    /// The dead letters.
    #[must_use]
    pub fn dead_letters(&self) -> &DeadLetters {
        &self.shared.dead_letters
    }

    /// What has come so far.
    #[must_use]
    pub fn present(&self) -> Present {
        Present {
            position: self.shared.next_position.load(Ordering::Relaxed),
            rejected_ms: dead_letters::now_ms(),
        }
    }

    /// How safe "stored" is here.
    #[must_use]
    pub fn durability(&self) -> Durability {
        self.shared.durability
    }

    /// What the volumes take and what they may come to take. Cheap.
    #[must_use]
    pub fn room(&self) -> Room {
        let used_bytes = self.shared.volumes.disk_bytes();
        Room {
            used_bytes,
            bound_bytes: self.shared.capacity.bound(used_bytes),
        }
    }

    /// What the spool takes and has just now.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let volumes = self.shared.volumes.all();
        let (repacked_volumes, reclaimed_bytes) = self.shared.repacker.totals();
        Usage {
            disk_bytes: self.shared.volumes.disk_bytes(),
            max_bytes: self.shared.capacity.max_bytes(),
            free_disk_bytes: self.shared.capacity.free_disk_bytes().unwrap_or_default(),
            volumes: volumes.len() as u64,
            quarantined_volumes: self.shared.volumes.quarantined(),
            repacked_volumes,
            reclaimed_bytes,
        }
    }

    /// Whether the last events were refused for want of room, and there is still none for them.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.shared
            .capacity
            .is_full(self.shared.volumes.disk_bytes())
    }

    /// Whether the disk itself is full, so that no events are accepted until there is room again.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        !self.shared.reserve.is_there()
    }

    /// How long the writer has been at its present group; zero when it waits for one.
    #[must_use]
    pub fn writer_busy_for(&self) -> Duration {
        self.shared.pulse.busy_for()
    }

    /// How long commits to disk took.
    #[must_use]
    pub fn commit_times(&self) -> CommitTimes {
        self.shared.commits.times()
    }

    /// Events accepted and not settled, over all lanes.
    #[must_use]
    pub fn depth(&self) -> Depth {
        let depths = self.shared.lanes.all().into_iter().map(|lane| lane.depth());
        depths.fold(Depth::default(), |a, b| Depth {
            events: a.events + b.events,
            bytes: a.bytes + b.bytes,
        })
    }

    /// Returns once every event is settled.
    pub async fn drained(&self) {
        loop {
            let mut settled = std::pin::pin!(self.shared.progress.notified());
            settled.as_mut().enable();
            if self.depth().events == 0 {
                return;
            }
            settled.await;
        }
    }

    /// Returns when one of its threads has ended, closed or dead.
    pub async fn ended(&self) {
        // The sender lives in `shared`.
        let _ = self.shared.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Stores what has been handed in, refuses what comes after, saves the cursors and ends the threads. A second call does nothing.
    pub async fn close(&self) {
        let threads = self
            .shared
            .threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(Threads {
            writer,
            keeper,
            repacker,
        }) = threads
        else {
            return;
        };
        // An error says that the writer has ended already.
        let _ = self.shared.orders.send(Order::Close).await;
        let shared = Arc::clone(&self.shared);
        let closing = tokio::task::spawn_blocking(move || {
            join(writer, "writer");
            shared.repacker.stop();
            join(repacker, "repacker");
            shared.keeper.stop();
            join(keeper, "keeper");
            shared.dead_letters.close();
            shared.volumes.close_all();
        });
        if closing.await.is_err() {
            error!("failed to close the queue in order");
        }
    }
}

impl Shared {
    /// So many events of these volumes have left the queue.
    fn settled(&self, parts: impl IntoIterator<Item = (VolumeNumber, u64)>) {
        for (volume, events) in parts {
            if let Some(volume) = self.volumes.get(volume) {
                volume.settle(events);
            }
        }
        self.keeper.wake();
        self.progress.notify_waiters();
    }

    fn start(
        self: &Arc<Self>,
        orders: mpsc::Receiver<Order>,
        repacking: Repacking,
    ) -> Result<(), OpenError> {
        let writer = Writer::new(Arc::clone(self), orders)?;
        let ended = EndGuard(self.ended.clone());
        let writer = thread::Builder::new()
            .name("segspool-writer".into())
            .spawn(move || {
                let _ended = ended;
                if let Err(error) = writer.run() {
                    error!(%error, "the writer has ended");
                }
            })?;
        let (shared, ended) = (Arc::clone(self), EndGuard(self.ended.clone()));
        let keeper = thread::Builder::new()
            .name("segspool-keeper".into())
            .spawn(move || {
                let _ended = ended;
                keeper::run(&shared);
            })?;
        let (repacker, ended) = (
            Repacker::new(Arc::clone(self), repacking),
            EndGuard(self.ended.clone()),
        );
        let repacker = thread::Builder::new()
            .name("segspool-repacker".into())
            .spawn(move || {
                let _ended = ended;
                repacker.run();
            })?;
        *self.threads.lock().unwrap_or_else(PoisonError::into_inner) = Some(Threads {
            writer,
            keeper,
            repacker,
        });
        Ok(())
    }
}

/// Tells, however a thread ends, that it has.
struct EndGuard(watch::Sender<bool>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

fn join(thread: JoinHandle<()>, name: &str) {
    if thread.join().is_err() {
        error!(thread = name, "a thread of the queue panicked");
    }
}

/// The time of acceptance, in Unix ms: it tells ages, and orders nothing.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |d| d.as_millis() as i64)
}
