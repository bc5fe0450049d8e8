//! Dead letters: events that can never be delivered, kept with their reason until an operator decides.
//!
//! A store of its own on sled, written by a thread of its own (`gravedigger`), so that a client with a bug or a destination that
//! refuses everything never delays what can be delivered. An event refused by its destination waits here for its sync before it
//! leaves its lane. A request's rejected events are kept on a best effort: they were never accepted.
//!
//! **An event is in its lane or here, never in both, also after a crash.** The cursors are saved a moment after an event was
//! buried, so the next process may read it from its lane again: whoever reads a lane asks here which of the events are buried, and
//! leaves those out. A letter that is removed before the cursor on disk has passed its event leaves an empty *grave*, a key
//! without a value, which tells the same; the grave goes once the cursor has passed.
//!
//! Key: the letter's [`LetterId`]. Value: the letter as JSON, a line feed, the event's bytes. A grave's value: its lane's id.

mod exam;
mod gravedigger;
mod letter;
mod tally;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::SystemTime;

use tokio::sync::{mpsc, oneshot};
use tracing::error;

pub(super) use exam::Buried;
pub use exam::LettersExam;
pub use letter::{DeadLetter, Filter, LetterId, NotALetterId, Present};
pub use tally::Group;

use super::cursors::SavedCursors;
use super::layout::Layout;
use super::reserve::Reserve;
use super::store::Barrier;
use super::{EndGuard, OpenError, Position};
use gravedigger::Gravedigger;
use tally::Tally;

/// Orders that may wait for the thread; rejected events beyond that are counted and not kept.
const WAITING_MAX: usize = 256;
/// Of a rejected event no more than this is kept: it may be anything.
const REJECTED_BYTES_MAX: usize = 64 * 1024;
/// Of one request no more rejected events than these are kept: they show the bug as well as thousands would.
const REJECTED_LETTERS_MAX: usize = 100;
/// Rejected events that wait for the thread, in bytes.
const WAITING_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Why a refused event was not buried. It is still in its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuryError {
    /// The dead letters have reached their bound.
    Full,
    /// The disk failed.
    Storage,
}

impl fmt::Display for BuryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BuryError::Full => "failed to bury an event: the dead letters are full",
            BuryError::Storage => "failed to bury an event: the disk failed",
        })
    }
}

impl std::error::Error for BuryError {}

/// The dead letters could not be read or changed: the disk failed, or they are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unavailable;

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failed to work on the dead letters: the disk failed, or the daemon stops")
    }
}

impl std::error::Error for Unavailable {}

/// Some letters, and whether there are more.
#[derive(Debug, Default)]
pub struct Portion {
    /// The letters, in the order of their ids.
    pub letters: Vec<(LetterId, DeadLetter)>,
    /// Behind which to go on; none at the end. A portion may be empty and not the last.
    pub next: Option<LetterId>,
}

/// A handle on the dead letters.
#[derive(Debug)]
pub struct DeadLetters {
    orders: mpsc::Sender<Order>,
    counts: Arc<Counts>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Counts {
    tally: Mutex<Tally>,
    unkept: AtomicU64,
    /// Bytes of rejected events that wait for the thread.
    waiting_bytes: AtomicU64,
    closing: AtomicBool,
    /// Tells letters of one millisecond apart.
    next: AtomicU64,
}

impl Counts {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An event's record and when that was accepted, in Unix ms; several events may share one.
type RecordPlace = (Position, i64);

#[derive(Debug)]
enum Order {
    Bury {
        letters: Vec<(LetterId, DeadLetter)>,
        reply: oneshot::Sender<Result<(), BuryError>>,
    },
    KeepRejected {
        letters: Vec<(LetterId, DeadLetter)>,
        bytes: u64,
    },
    Read {
        after: Option<LetterId>,
        filter: Filter,
        letters_max: usize,
        reply: oneshot::Sender<Result<Portion, Unavailable>>,
    },
    /// Which events of these records are, or were, dead letters.
    Buried {
        records: Vec<RecordPlace>,
        reply: oneshot::Sender<Result<Vec<Vec<u32>>, Unavailable>>,
    },
    /// Whether no event of these records is, or was, a dead letter.
    HaveNoneOf {
        first: Position,
        last: Position,
        reply: oneshot::Sender<Result<bool, Unavailable>>,
    },
    Change {
        removed: Vec<LetterId>,
        changed: Vec<(LetterId, DeadLetter)>,
        reply: oneshot::Sender<Result<u64, Unavailable>>,
    },
    /// The cursors were saved: graves may go.
    Tidy,
    Close,
}

impl DeadLetters {
    /// Opens the store and starts its thread. What cannot be read is moved to quarantine. `ended` tells of the thread's end.
    pub(super) fn start(
        layout: &Layout,
        max_bytes: u64,
        barrier: Barrier,
        saved: Arc<SavedCursors>,
        reserve: Arc<Reserve>,
        ended: EndGuard,
    ) -> Result<DeadLetters, OpenError> {
        let (orders, received) = mpsc::channel(WAITING_MAX);
        let counts = Arc::new(Counts::default());
        let gravedigger = Gravedigger::new(
            layout,
            max_bytes,
            barrier,
            saved,
            reserve,
            Arc::clone(&counts),
        );
        let thread = thread::Builder::new()
            .name("segspool-dead".into())
            .spawn(move || {
                let _ended = ended;
                gravedigger.run(received);
            })?;
        Ok(DeadLetters {
            orders,
            counts,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Buries events of a lane, each with its record's position and its place in the record: all of them, or none if there is no
    /// room. Returns once they are durable here; only then may they leave their lane.
    ///
    /// # Errors
    /// None of them may leave its lane.
    pub async fn bury(&self, events: Vec<(Position, u32, DeadLetter)>) -> Result<(), BuryError> {
        let letters = events.into_iter().map(|(position, index, letter)| {
            let id = LetterId::of_event(position, index, letter.accepted_at_ms);
            (id, letter)
        });
        let (reply, answer) = oneshot::channel();
        let letters = letters.collect();
        self.order(Order::Bury { letters, reply }, answer)
            .await
            .unwrap_or(Err(BuryError::Storage))
    }

    /// Keeps events that were rejected at the door, without making anybody wait: as many as there is room for, in memory now and
    /// in their share of the store later. The others are counted.
    pub fn keep_rejected(&self, mut letters: Vec<DeadLetter>) {
        let count = letters.len();
        letters.truncate(REJECTED_LETTERS_MAX);
        for letter in &mut letters {
            letter.event.truncate(REJECTED_BYTES_MAX);
            // The rest may be megabytes, which nobody counts while the letter waits.
            letter.event.shrink_to_fit();
        }
        let bytes: usize = letters.iter().map(|letter| letter.event.len()).sum();
        let waiting = self
            .counts
            .waiting_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
        let kept = letters.len();
        let letters = letters.into_iter().map(|letter| {
            let n = self.counts.next.fetch_add(1, Ordering::Relaxed);
            let id = LetterId::of_rejected(now_ms(), n as u32, letter.accepted_at_ms);
            (id, letter)
        });
        let order = Order::KeepRejected {
            letters: letters.collect(),
            bytes: bytes as u64,
        };
        let mut unkept = count - kept;
        if waiting + bytes as u64 > WAITING_BYTES_MAX || self.orders.try_send(order).is_err() {
            self.counts
                .waiting_bytes
                .fetch_sub(bytes as u64, Ordering::Relaxed);
            unkept = count;
        }
        self.counts
            .unkept
            .fetch_add(unkept as u64, Ordering::Relaxed);
    }

    /// The letters that are meant, up to `letters_max` of them, in the order of their ids from behind `after` on. Each portion is
    /// bounded in memory and in how long it keeps others waiting.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn read(
        &self,
        after: Option<LetterId>,
        filter: &Filter,
        letters_max: usize,
    ) -> Result<Portion, Unavailable> {
        let (reply, answer) = oneshot::channel();
        let order = Order::Read {
            after,
            filter: filter.clone(),
            letters_max,
            reply,
        };
        self.order(order, answer).await.unwrap_or(Err(Unavailable))
    }

    /// Every letter. For tests and small stores: it reads all of it into memory.
    pub async fn all(&self) -> Vec<DeadLetter> {
        let (mut letters, mut after) = (Vec::new(), None);
        while let Ok(portion) = self.read(after, &Filter::default(), usize::MAX).await {
            letters.extend(portion.letters.into_iter().map(|(_, letter)| letter));
            after = portion.next;
            if after.is_none() {
                break;
            }
        }
        letters
    }

    /// Removes letters and changes others, durably, and says how many were removed. One that is not there stays so.
    ///
    /// # Errors
    /// It is not known which of them were changed.
    pub async fn change(
        &self,
        removed: Vec<LetterId>,
        changed: Vec<(LetterId, DeadLetter)>,
    ) -> Result<u64, Unavailable> {
        let (reply, answer) = oneshot::channel();
        let order = Order::Change {
            removed,
            changed,
            reply,
        };
        self.order(order, answer).await.unwrap_or(Err(Unavailable))
    }

    /// How many letters there are.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.counts.tally().events
    }

    /// What they take, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.counts.tally().bytes
    }

    /// How many letters there are of each kind; where there are very many kinds, of the first of them.
    #[must_use]
    pub fn groups(&self) -> Vec<(Group, u64)> {
        self.counts.tally().groups()
    }

    /// How many rejected events could not be kept.
    #[must_use]
    pub fn unkept(&self) -> u64 {
        self.counts.unkept.load(Ordering::Relaxed)
    }

    /// Which events of these records are, or were, dead letters: of each record the places of some. Blocks.
    pub(super) fn buried(&self, records: Vec<RecordPlace>) -> Result<Vec<Vec<u32>>, Unavailable> {
        let (reply, answer) = oneshot::channel();
        let order = Order::Buried { records, reply };
        self.orders.blocking_send(order).map_err(|_| Unavailable)?;
        answer.blocking_recv().unwrap_or(Err(Unavailable))
    }

    /// Whether no event of the records from `first` to `last` is, or was, a dead letter. Blocks.
    pub(super) fn have_none_of(
        &self,
        first: Position,
        last: Position,
    ) -> Result<bool, Unavailable> {
        let (reply, answer) = oneshot::channel();
        let order = Order::HaveNoneOf { first, last, reply };
        self.orders.blocking_send(order).map_err(|_| Unavailable)?;
        answer.blocking_recv().unwrap_or(Err(Unavailable))
    }

    /// The cursors were saved. Never waits.
    pub(super) fn cursors_saved(&self) {
        if self.counts.tally().graves > 0 {
            // A thread that has too much to do is told again the next time.
            let _ = self.orders.try_send(Order::Tidy);
        }
    }

    /// Stores what has been handed in and ends the thread. Blocks.
    pub(super) fn close(&self) {
        self.counts.closing.store(true, Ordering::Relaxed);
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let _ = self.orders.blocking_send(Order::Close);
        if thread.is_some_and(|t| t.join().is_err()) {
            error!("the dead letters' thread panicked");
        }
    }

    /// Hands an order in and waits for the answer; none where the thread has ended.
    async fn order<T>(&self, order: Order, answer: oneshot::Receiver<T>) -> Option<T> {
        self.orders.send(order).await.ok()?;
        answer.await.ok()
    }
}

pub(super) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |d| d.as_millis() as i64)
}
