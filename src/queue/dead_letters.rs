//! Dead letters: events that can never be delivered, kept with their reason until an operator decides.
//!
//! A store of its own on sled, written by a thread of its own, so that a client with a bug or a destination that refuses
//! everything never delays what can be delivered. An event refused by its destination waits here for its sync before it
//! leaves its lane. A request's rejected events are kept on a best effort: they were never accepted.
//!
//! Key: the letter's id. Value: the letter as JSON, a line feed, the event's bytes.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};

use super::layout::Layout;
use super::name::LaneName;
use super::store::{Barrier, Changes, Store, StoreError};
use super::{OpenError, Position};

/// Orders that may wait for the thread; rejected events beyond that are counted and not kept.
const WAITING_MAX: usize = 256;
/// As for the queue's commits.
const COMMIT_BYTES: usize = 192 * 1024;
/// Of a rejected event no more than this is kept: it may be anything.
const REJECTED_BYTES_MAX: usize = 64 * 1024;
/// Of one request no more rejected events than these are kept: they show the bug as well as thousands would.
const REJECTED_LETTERS_MAX: usize = 100;
/// Rejected events that wait for the thread, in bytes.
const WAITING_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Rejected events are kept only while the store holds less than this part of its bound: junk at the door must not use up the room
/// of accepted events.
const REJECTED_SHARE: u64 = 4;
/// What an empty sled database and a letter's key and header take is not counted against the bound; this much a letter is.
const LETTER_OVERHEAD_BYTES: u64 = 256;

/// A dead letter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The lane it would have left by, or left; none where the request named no write key.
    pub lane: Option<LaneName>,
    /// Why, as a code.
    pub code: String,
    /// Why, in words.
    pub reason: String,
    /// The destination's answer, where there was one.
    pub status: Option<u16>,
    /// The start of the answer's body.
    pub answer: String,
    /// How often it was sent.
    pub attempts: u32,
    /// When it was accepted, or rejected, in Unix ms.
    pub accepted_at_ms: i64,
    /// When it was buried, in Unix ms.
    pub buried_at_ms: i64,
    /// The event's own bytes.
    #[serde(skip)]
    pub event: Vec<u8>,
}

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

/// A handle on the dead letters.
#[derive(Debug)]
pub struct DeadLetters {
    orders: mpsc::Sender<Order>,
    counts: Arc<Counts>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Counts {
    events: AtomicU64,
    bytes: AtomicU64,
    unkept: AtomicU64,
    /// Bytes of rejected events that wait for the thread.
    waiting_bytes: AtomicU64,
    closing: AtomicBool,
    /// Tells letters of one millisecond apart.
    next: AtomicU64,
}

type Reply = oneshot::Sender<Result<(), BuryError>>;

#[derive(Debug)]
enum Order {
    Bury {
        letters: Vec<(Id, DeadLetter)>,
        reply: Reply,
    },
    KeepRejected {
        letters: Vec<(Id, DeadLetter)>,
        bytes: u64,
    },
    All {
        reply: oneshot::Sender<Vec<DeadLetter>>,
    },
    Close,
}

/// A letter's key. An event refused by its destination has the place it was accepted at, so that burying it again after a crash
/// changes nothing.
type Id = [u8; 21];

/// The time tells events apart that were given the same place, as may happen after the cursors were lost.
fn id(kind: u8, position: u64, index: u32, ms: i64) -> Id {
    let mut id = [kind; 21];
    id[1..9].copy_from_slice(&position.to_be_bytes());
    id[9..13].copy_from_slice(&index.to_be_bytes());
    id[13..].copy_from_slice(&ms.to_be_bytes());
    id
}

impl DeadLetters {
    /// Opens the store and starts its thread. What cannot be read is moved to quarantine.
    pub(super) fn start(
        layout: &Layout,
        max_bytes: u64,
        barrier: Barrier,
    ) -> Result<DeadLetters, OpenError> {
        let (orders, received) = mpsc::channel(WAITING_MAX);
        let counts = Arc::new(Counts::default());
        let gravedigger = Gravedigger {
            dir: layout.dead_letters(),
            quarantine: layout.quarantine(),
            barrier,
            max_bytes,
            counts: Arc::clone(&counts),
            store: None,
        };
        let thread = thread::Builder::new()
            .name("segspool-dead".into())
            .spawn(move || gravedigger.run(received))?;
        Ok(DeadLetters {
            orders,
            counts,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Buries events, by their places in their lane. Returns once they are durable here; only then may they leave their lane.
    ///
    /// # Errors
    /// Not all of them are buried.
    pub async fn bury(&self, letters: Vec<(Position, u32, DeadLetter)>) -> Result<(), BuryError> {
        let (reply, answer) = oneshot::channel();
        let letters = letters.into_iter().map(|(position, index, letter)| {
            (id(b'e', position, index, letter.accepted_at_ms), letter)
        });
        let order = Order::Bury {
            letters: letters.collect(),
            reply,
        };
        self.orders
            .send(order)
            .await
            .map_err(|_| BuryError::Storage)?;
        answer.await.map_err(|_| BuryError::Storage)?
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
            (
                id(
                    b'r',
                    now_ms().unsigned_abs(),
                    n as u32,
                    letter.accepted_at_ms,
                ),
                letter,
            )
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

    /// Every letter. For tests and small stores: it reads all of it into memory.
    pub async fn all(&self) -> Vec<DeadLetter> {
        let (reply, answer) = oneshot::channel();
        let _ = self.orders.send(Order::All { reply }).await;
        answer.await.unwrap_or_default()
    }

    /// How many letters there are.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.counts.events.load(Ordering::Relaxed)
    }

    /// What they take, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.counts.bytes.load(Ordering::Relaxed)
    }

    /// How many rejected events could not be kept.
    #[must_use]
    pub fn unkept(&self) -> u64 {
        self.counts.unkept.load(Ordering::Relaxed)
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
}

/// The thread's own state.
struct Gravedigger {
    dir: PathBuf,
    quarantine: PathBuf,
    barrier: Barrier,
    max_bytes: u64,
    counts: Arc<Counts>,
    store: Option<Store>,
}

impl Gravedigger {
    fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        if let Err(error) = self.open() {
            warn!(%error, "failed to open the dead letters");
        }
        while let Some(order) = orders.blocking_recv() {
            match order {
                Order::Bury { letters, reply } => {
                    let _ = reply.send(self.bury(letters, self.max_bytes));
                }
                Order::KeepRejected { letters, bytes } => {
                    let count = letters.len() as u64;
                    // At a stop nobody waits for events that were never accepted.
                    let closing = self.counts.closing.load(Ordering::Relaxed);
                    if closing || self.bury(letters, self.max_bytes / REJECTED_SHARE).is_err() {
                        self.counts.unkept.fetch_add(count, Ordering::Relaxed);
                    }
                    self.counts
                        .waiting_bytes
                        .fetch_sub(bytes, Ordering::Relaxed);
                }
                Order::All { reply } => {
                    let _ = reply.send(self.all());
                }
                Order::Close => break,
            }
        }
    }

    /// Buries letters as long as all of them together stay below `max_bytes`.
    fn bury(&mut self, letters: Vec<(Id, DeadLetter)>, max_bytes: u64) -> Result<(), BuryError> {
        let buried = self.try_bury(letters, max_bytes);
        if buried == Err(BuryError::Storage) {
            // A store that failed is opened anew for the next letter.
            self.store = None;
        }
        buried
    }

    fn try_bury(
        &mut self,
        letters: Vec<(Id, DeadLetter)>,
        max_bytes: u64,
    ) -> Result<(), BuryError> {
        let counts = Arc::clone(&self.counts);
        let failed = |error: StoreError| {
            error!(%error, "failed to store a dead letter");
            BuryError::Storage
        };
        let store = self.open().map_err(failed)?;
        let mut changes = Changes::default();
        let (mut events, mut bytes) = (0, 0);
        for (id, letter) in letters {
            let value = encode(&letter);
            // A letter that is there already is written again, since the sync it came with may have failed; it counts once.
            if !store.contains(&id).map_err(failed)? {
                events += 1;
                bytes += value.len() as u64 + LETTER_OVERHEAD_BYTES;
            }
            if counts.bytes.load(Ordering::Relaxed) + bytes > max_bytes {
                return Err(BuryError::Full);
            }
            changes.put(&id, &value);
            if changes.bytes() >= COMMIT_BYTES {
                store.commit(std::mem::take(&mut changes)).map_err(failed)?;
            }
        }
        if changes.bytes() > 0 {
            store.commit(changes).map_err(failed)?;
        }
        counts.events.fetch_add(events, Ordering::Relaxed);
        counts.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn all(&mut self) -> Vec<DeadLetter> {
        let mut letters = Vec::new();
        let scanned = self.open().and_then(|store| {
            store.scan(&ALL.0[..]..=&ALL.1[..], |_, value| {
                letters.extend(decode(value));
                true
            })
        });
        if let Err(error) = scanned {
            error!(%error, "failed to read the dead letters");
        }
        letters
    }

    /// The open store. Opening counts what it holds.
    fn open(&mut self) -> Result<&Store, StoreError> {
        if self.store.is_none() {
            let store = match self.open_and_count() {
                Err(StoreError::Corrupt(why)) => {
                    self.move_to_quarantine(&why)?;
                    self.open_and_count()?
                }
                opened => opened?,
            };
            self.store = Some(store);
        }
        Ok(self.store.as_ref().expect("it was put there just now"))
    }

    fn open_and_count(&self) -> Result<Store, StoreError> {
        let store = Store::open(&self.dir, &self.barrier)?;
        let (mut events, mut bytes) = (0, 0);
        store.scan(&ALL.0[..]..=&ALL.1[..], |_, value| {
            events += 1;
            bytes += value.len() as u64 + LETTER_OVERHEAD_BYTES;
            true
        })?;
        self.counts.events.store(events, Ordering::Relaxed);
        self.counts.bytes.store(bytes, Ordering::Relaxed);
        Ok(store)
    }

    fn move_to_quarantine(&self, why: &str) -> Result<(), StoreError> {
        super::files::create_dir(&self.quarantine)?;
        let to = self.quarantine.join(format!("dead-letters.{}", now_ms()));
        fs::rename(&self.dir, &to)?;
        error!(why, moved_to = %to.display(), "the dead letters cannot be read; they are in quarantine");
        Ok(())
    }
}

const ALL: (Id, Id) = ([0; 21], [0xff; 21]);

fn encode(letter: &DeadLetter) -> Vec<u8> {
    let mut value = serde_json::to_vec(letter).expect("a letter has no map with odd keys");
    value.push(b'\n');
    value.extend_from_slice(&letter.event);
    value
}

fn decode(value: &[u8]) -> Option<DeadLetter> {
    let end = value.iter().position(|b| *b == b'\n')?;
    let letter: DeadLetter = serde_json::from_slice(&value[..end]).ok()?;
    Some(DeadLetter {
        event: value[end + 1..].to_vec(),
        ..letter
    })
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |d| d.as_millis() as i64)
}
