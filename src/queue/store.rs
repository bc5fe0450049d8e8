//! A sled database used so that what it acknowledged survives a power cut. The only file that names sled.
//!
//! sled 0.34.7's `flush` ends in `sync_file_range`, which syncs neither the drive's cache nor the file's size, and files
//! it has just created have no durable name yet. So here:
//! - before opening, a snapshot that was never finished (`snap.*.generating`) is removed: sled would read it;
//! - after opening, every file is synced, then the directory, then its parents;
//! - a commit is `apply_batch`, `flush`, then the [`Barrier`] on our own descriptor of the file `db`, every time;
//! - a value is stored in parts so small that no page ever becomes a file in `blobs/`, which nobody would sync;
//! - no background thread flushes between our flush and our sync.
//!
//! sled writes an insertion down as it comes, but a whole leaf whenever it has taken ten, and two when it splits: by itself it
//! writes everything three times. So values do not lie under their keys. Their parts fill *slots*, numbered as they are filled, in
//! leaves that were split while they were empty ([`Slots`]), and are written once; under the key stands which slots they are:
//!
//! ```text
//! 'p' slot u32 → a part; empty where none has been put yet
//! 'v' key      → first slot u32 | length of the value u32
//! ```
//!
//! A database that failed once is never trusted again: the caller drops it and opens it anew. Opening runs on a thread of
//! its own, under a deadline and a panic guard, since a damaged file can make sled panic or loop; closing is guarded as well.
//! Nothing is ever removed from a volume; only the dead letters are.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::ops::{Deref, Range, RangeInclusive};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::warn;

use super::files;
use crate::words::counted;

/// What makes a commit durable: given the descriptor of the file `db`, it returns once the file's data is on stable storage.
/// A test may put its own in place of `fdatasync`, to hold it or to make it fail.
#[derive(Clone)]
pub struct Barrier(Arc<Wait>);

type Wait = dyn Fn(&File) -> io::Result<()> + Send + Sync;

impl Barrier {
    /// A barrier of one's own.
    pub fn new(wait: impl Fn(&File) -> io::Result<()> + Send + Sync + 'static) -> Barrier {
        Barrier(Arc::new(wait))
    }

    /// `fdatasync`.
    #[must_use]
    pub fn synced() -> Barrier {
        Barrier::new(File::sync_data)
    }

    /// None: the operating system writes when it likes.
    #[must_use]
    pub fn os() -> Barrier {
        Barrier::new(|_| Ok(()))
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Barrier")
    }
}

/// What sled is asked to keep of a database in memory. Records are read once and in order, so a cache has nothing to give.
const CACHE_BYTES: u64 = 1024 * 1024;
/// What a part may take. A leaf holds seventeen at most, twenty for a moment when two are merged: well below the 131,052 bytes from
/// which a page would go into `blobs/` (0.34.7, 512 KiB segments). And small, because sled's cache has 256 shards (src/lru.rs) and
/// keeps a page of each, however little [`CACHE_BYTES`] allows.
const PART_BYTES_MAX: usize = 3_400;
/// How often a part is looked up once it is written or read. A shard evicts only after 64 accesses (src/lru.rs), and the leaf of nine
/// parts that is met only as often as it must be stays in memory, and with it in the end a whole volume.
const CACHE_TOUCHES: usize = 6;
/// A volume of 128 MiB opens in well under a second; what takes this long is looping.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);
/// sled lets go of its lock a moment after the last handle is dropped (spacejam/sled#1289).
const LOCK_DEADLINE: Duration = Duration::from_secs(5);

/// An open database.
pub(super) struct Store {
    db: Db,
    /// Our own descriptor of `db`, for the barrier.
    file: File,
    dir: PathBuf,
    barrier: Barrier,
    /// None until something is written.
    slots: Mutex<Option<Slots>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

/// sled's handle. Dropping that syncs, and panics where the disk refuses. All that counts was synced by its commit, so such a panic
/// is caught: it would end the thread which goes on with another volume.
struct Db(Option<sled::Db>);

impl Deref for Db {
    type Target = sled::Db;

    fn deref(&self) -> &sled::Db {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        let closed = guarded(|| {
            drop(self.0.take());
            Ok(())
        });
        if let Err(error) = closed {
            warn!(%error, "failed to close a database in order; what was committed to it is safe");
        }
    }
}

/// Why a database did not open or answer.
#[derive(Debug)]
pub(super) enum StoreError {
    /// The disk or its permissions: the data may be whole, so it is left where it is.
    Io(io::Error),
    /// What is on the disk is not a database that can be read.
    Corrupt(String),
}

impl StoreError {
    /// Whether it passes as soon as there is room on the disk.
    pub(super) fn is_disk_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        match self {
            StoreError::Io(e) => matches!(e.kind(), StorageFull | QuotaExceeded),
            StoreError::Corrupt(_) => false,
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Io(e) => write!(f, "{e}"),
            StoreError::Corrupt(why) => write!(f, "corrupt: {why}"),
        }
    }
}

impl std::error::Error for StoreError {}

impl From<io::Error> for StoreError {
    fn from(e: io::Error) -> StoreError {
        use io::ErrorKind::{InvalidData, IsADirectory, NotADirectory, UnexpectedEof};
        if matches!(
            e.kind(),
            InvalidData | IsADirectory | NotADirectory | UnexpectedEof
        ) {
            StoreError::Corrupt(e.to_string())
        } else {
            StoreError::Io(e)
        }
    }
}

impl From<sled::Error> for StoreError {
    fn from(e: sled::Error) -> StoreError {
        match e {
            sled::Error::Io(e) => e.into(),
            sled::Error::Corruption { .. }
            | sled::Error::CollectionNotFound(_)
            | sled::Error::Unsupported(_)
            | sled::Error::ReportableBug(_) => StoreError::Corrupt(e.to_string()),
        }
    }
}

/// Values to commit together.
#[derive(Default)]
pub(super) struct Changes {
    list: Vec<Change>,
    bytes: usize,
}

enum Change {
    Put {
        key: sled::IVec,
        value: Vec<sled::IVec>,
    },
    Remove {
        key: sled::IVec,
    },
}

impl Changes {
    /// Stores `value` under `key`, in as many parts as it needs.
    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) {
        self.bytes += key.len() + value.len();
        self.list.push(Change::Put {
            key: value_key(key),
            value: value.chunks(PART_BYTES_MAX).map(sled::IVec::from).collect(),
        });
    }

    /// Removes what is stored under `key`, but for what these changes put there before.
    pub(super) fn remove(&mut self, key: &[u8]) {
        self.bytes += key.len();
        self.list.push(Change::Remove {
            key: value_key(key),
        });
    }

    /// What they take as stored, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Store {
    /// Opens the database in `dir`, creating it if need be, and makes its files and their names durable.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] for damaged files, a panic or a loop in sled, after a second try without its snapshots.
    pub(super) fn open(dir: &Path, barrier: &Barrier) -> Result<Store, StoreError> {
        remove_snapshots(dir, |name| name.ends_with(".generating"))?;
        match open_guarded(dir) {
            // sled rebuilds a snapshot from `db` and writes `conf` anew: without damaged ones it loses time, not data.
            Err(StoreError::Corrupt(_)) => {
                remove_snapshots(dir, |_| true)?;
                remove_if_there(&dir.join("conf"))?;
                open_guarded(dir)
            }
            opened => opened,
        }
        .and_then(|db| {
            // A new database would else have no bytes until its first commit, like one that was emptied.
            guarded(|| db.flush().map(|_| ()).map_err(StoreError::from))?;
            sync_all_files(dir)?;
            let file = File::open(dir.join("db"))?;
            Ok(Store {
                db,
                file,
                dir: dir.to_owned(),
                barrier: barrier.clone(),
                slots: Mutex::default(),
            })
        })
    }

    /// Takes `changes` in. They are durable after the next [`Store::commit`].
    ///
    /// # Errors
    /// As for [`Store::commit`].
    pub(super) fn apply(&self, changes: Changes) -> Result<(), StoreError> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        guarded(|| {
            let slots = match &mut *slots {
                Some(slots) => slots,
                none => none.insert(Slots::of(&self.db)?),
            };
            let first = slots.next;
            let mut batch = sled::Batch::default();
            for change in changes.list {
                match change {
                    Change::Put { key, value } => {
                        let place = Place {
                            first: slots.next,
                            bytes: value.iter().map(|part| part.len()).sum::<usize>() as u32,
                        };
                        for part in value {
                            batch.insert(&part_key(slots.take()?), part);
                        }
                        batch.insert(key, &place.encode());
                    }
                    Change::Remove { key } => {
                        if let Some(place) = self.db.get(&key)? {
                            for slot in Place::decode(&place)?.slots() {
                                batch.remove(&part_key(slot));
                            }
                        }
                        batch.remove(key);
                    }
                }
            }
            slots.make_ready(&self.db)?;
            self.db.apply_batch(batch)?;
            for slot in first..slots.next {
                self.touch(slot)?;
            }
            Ok(())
        })
    }

    /// Makes `changes` durable. Nothing of them counts as stored before this returned `Ok`. Returns [`Store::log_bytes`].
    ///
    /// # Errors
    /// Any: the store is then unfit for use, and must be dropped and opened anew.
    pub(super) fn commit(&self, changes: Changes) -> Result<u64, StoreError> {
        self.apply(changes)?;
        guarded(|| Ok(self.db.flush().map(|_| ())?))?;
        (self.barrier.0)(&self.file)?;
        Ok(self.log_bytes()?)
    }

    /// What the database's log, its file `db`, takes on disk, in bytes.
    ///
    /// # Errors
    /// Somebody has deleted it: nothing that goes there will be found again.
    pub(super) fn log_bytes(&self) -> io::Result<u64> {
        let metadata = self.file.metadata()?;
        match metadata.nlink() {
            0 => Err(io::ErrorKind::NotFound.into()),
            _ => Ok(metadata.blocks() * BLOCK_BYTES),
        }
    }

    /// Every value whose key lies in `keys`, in order, until `visit` returns false. All keys have the same length.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] where a value lacks a part.
    pub(super) fn scan(
        &self,
        keys: RangeInclusive<&[u8]>,
        visit: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        self.walk(keys, visit, Err)
    }

    /// [`Store::scan`] of all that can be read: a value that lacks a part is counted and passed over. Returns how many did.
    ///
    /// # Errors
    /// sled cannot read on. What it could read was visited.
    pub(super) fn scan_on(
        &self,
        keys: RangeInclusive<&[u8]>,
        mut visit: impl FnMut(&[u8], &[u8]),
    ) -> (u64, Result<(), StoreError>) {
        let mut torn = 0;
        let visit = |key: &[u8], value: &[u8]| {
            visit(key, value);
            true
        };
        let scanned = self.walk(keys, visit, |_| {
            torn += 1;
            Ok(())
        });
        (torn, scanned)
    }

    /// Every value whose key lies in `keys`, until `visit` returns false; `torn` says what to do about one that lacks a part.
    fn walk(
        &self,
        keys: RangeInclusive<&[u8]>,
        mut visit: impl FnMut(&[u8], &[u8]) -> bool,
        mut torn: impl FnMut(StoreError) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let keys = value_key(keys.start())..=value_key(keys.end());
        guarded(|| {
            let mut value = Vec::new();
            for entry in self.db.range(keys) {
                let (key, place) = entry?;
                let read = Place::decode(&place).and_then(|place| self.read(place, &mut value));
                match read {
                    Ok(()) if !visit(&key[1..], &value) => return Ok(()),
                    Ok(()) => {}
                    Err(StoreError::Corrupt(why)) => torn(StoreError::Corrupt(why))?,
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
    }

    /// Puts the value at `place` into `value`, in the place of what is there.
    fn read(&self, place: Place, value: &mut Vec<u8>) -> Result<(), StoreError> {
        value.clear();
        for slot in place.slots() {
            match self.db.get(part_key(slot))? {
                Some(part) if !part.is_empty() => value.extend_from_slice(&part),
                Some(_) | None => break,
            }
            self.touch(slot)?;
        }
        match value.len() == place.bytes as usize {
            true => Ok(()),
            false => Err(StoreError::Corrupt("a value lacks a part".into())),
        }
    }

    /// Has sled's cache let go of what was read or written before.
    fn touch(&self, slot: u32) -> Result<(), StoreError> {
        for _ in 0..CACHE_TOUCHES {
            self.db.contains_key(part_key(slot))?;
        }
        Ok(())
    }

    /// Every key that lies in `keys`, in order, until `visit` returns false. All keys have the same length.
    pub(super) fn scan_keys(
        &self,
        keys: RangeInclusive<&[u8]>,
        mut visit: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), StoreError> {
        let keys = value_key(keys.start())..=value_key(keys.end());
        guarded(|| {
            for key in self.db.range(keys).keys() {
                if !visit(&key?[1..]) {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Whether there is a value under `key`.
    pub(super) fn contains(&self, key: &[u8]) -> Result<bool, StoreError> {
        guarded(|| Ok(self.db.contains_key(value_key(key))?))
    }
}

/// Where a value's parts lie.
#[derive(Clone, Copy)]
struct Place {
    first: u32,
    bytes: u32,
}

impl Place {
    fn slots(self) -> Range<u32> {
        let parts = self.bytes.div_ceil(PART_BYTES_MAX as u32);
        self.first..self.first.saturating_add(parts)
    }

    fn encode(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.first.to_be_bytes());
        bytes[4..].copy_from_slice(&self.bytes.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Place, StoreError> {
        let bytes: [u8; 8] = bytes
            .try_into()
            .map_err(|_| StoreError::Corrupt("a value's place cannot be read".into()))?;
        let [a, b, c, d, e, f, g, h] = bytes;
        Ok(Place {
            first: u32::from_be_bytes([a, b, c, d]),
            bytes: u32::from_be_bytes([e, f, g, h]),
        })
    }
}

/// The slots of a store that is written to: empty values that wait to be filled, in the order of their numbers.
///
/// sled splits a leaf of seventeen keys when it meets it next, into nine and eight (0.34.7, src/node.rs), and writes a leaf anew with
/// its eleventh change, the leaf itself counted (src/pagecache/mod.rs). So once there are [`SLOTS_AHEAD`] slots behind it, a slot lies
/// in a leaf of nine that will never be split, and filling all nine makes ten: each part is written once.
struct Slots {
    /// The next one to be filled.
    next: u32,
    /// The first one that is not there yet.
    made: u32,
}

/// The last leaf holds at most seventeen keys, and what is in it may be split yet.
const SLOTS_AHEAD: u32 = 18;
/// So many are made at once.
const SLOTS_MADE: u32 = 64;

impl Slots {
    /// Goes on behind those that were made before.
    fn of(db: &sled::Db) -> Result<Slots, StoreError> {
        let made = match db.range(part_key(0)..=part_key(u32::MAX)).next_back() {
            None => 0,
            Some(last) => {
                let (key, _) = last?;
                let number = key[1..].try_into().map(u32::from_be_bytes);
                number.map_or(u32::MAX, |number| number.saturating_add(1))
            }
        };
        Ok(Slots { next: made, made })
    }

    /// The next one, to be filled once they are ready.
    fn take(&mut self) -> Result<u32, StoreError> {
        let slot = self.next;
        let full = || StoreError::Io(io::Error::other("a database has no slots left"));
        self.next = slot.checked_add(1).ok_or_else(full)?;
        Ok(slot)
    }

    /// Makes what is missing of those taken and of those ahead of them.
    fn make_ready(&mut self, db: &sled::Db) -> Result<(), StoreError> {
        if self.made >= self.next.saturating_add(SLOTS_AHEAD) {
            return Ok(());
        }
        let end = self.next.saturating_add(SLOTS_AHEAD + SLOTS_MADE);
        for slot in self.made..end {
            db.insert(part_key(slot), &[])?;
        }
        self.made = end;
        Ok(())
    }
}

/// What shows that a database's files are damaged, whatever sled makes of them: it opens many a damaged file as an empty database,
/// or as what came before the damage. None is no proof: what lies within a segment is not looked at.
///
/// # Errors
/// The files cannot be read.
pub(super) fn visible_damage(dir: &Path) -> io::Result<Option<String>> {
    let conf = dir.join("conf");
    if conf.exists() && !is_conf(&fs::read(conf)?) {
        return Ok(Some("its file conf is damaged".to_owned()));
    }
    let db = match File::open(dir.join("db")) {
        Ok(db) => db,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Ok(Some("its file db is gone".to_owned()));
        }
        Err(e) => return Err(e),
    };
    let bytes = db.metadata()?.len();
    if bytes == 0 {
        return Ok(Some("its file db is empty".to_owned()));
    }
    let (mut good, mut bad) = (0u64, 0u64);
    for at in (0..bytes).step_by(SEGMENT_BYTES) {
        let mut head = [0; SEGMENT_HEAD_BYTES];
        match db.read_exact_at(&mut head, at) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => bad += 1,
            Err(e) => return Err(e),
            // A segment that is not used.
            Ok(()) if head == [0; SEGMENT_HEAD_BYTES] => {}
            Ok(()) if is_segment_head(&head) => good += 1,
            Ok(()) => bad += 1,
        }
    }
    let all = bytes.div_ceil(SEGMENT_BYTES as u64);
    Ok(match (good, bad) {
        (0, _) => Some(format!(
            "nothing of its file db is sled's, in {}",
            counted(bytes, "byte")
        )),
        (_, 0) => None,
        _ => Some(format!(
            "of its file db {bad} of {} cannot be read",
            counted(all, "segment")
        )),
    })
}

/// sled's, of its default (0.34.7, src/config.rs).
const SEGMENT_BYTES: usize = 512 * 1024;
/// A checksum, the segment's place in the log, and what was stable when it was begun (0.34.7, src/pagecache/logger.rs).
const SEGMENT_HEAD_BYTES: usize = 20;

fn is_segment_head(head: &[u8; SEGMENT_HEAD_BYTES]) -> bool {
    let (sum, rest) = head.split_at(4);
    (!crc32fast::hash(rest)).to_le_bytes() == sum
}

fn is_conf(content: &[u8]) -> bool {
    let Some((text, sum)) = content.split_last_chunk::<4>() else {
        return false;
    };
    !text.is_empty() && crc32fast::hash(text).to_le_bytes() == *sum
}

/// Whether sled has let go of the database in `dir`: it does so a moment after the last handle is dropped.
///
/// # Errors
/// The file cannot be opened.
pub(super) fn is_let_go(dir: &Path) -> io::Result<bool> {
    match File::open(dir.join("db"))?.try_lock() {
        Ok(()) => Ok(true),
        Err(fs::TryLockError::WouldBlock) => Ok(false),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// What stat(2) counts in, whatever the file system's blocks are.
const BLOCK_BYTES: u64 = 512;

/// What the files of a directory take on disk, in bytes; what cannot be read counts nothing.
pub(super) fn dir_bytes(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(m) if m.is_dir() => dir_bytes(&entry.path()),
        Ok(m) => m.blocks() * BLOCK_BYTES,
        Err(_) => 0,
    });
    sizes.sum()
}

/// Parts sort before values, so that the last leaf of slots is never one with parts in it when a value comes behind it.
fn part_key(slot: u32) -> [u8; 5] {
    let mut key = [b'p'; 5];
    key[1..].copy_from_slice(&slot.to_be_bytes());
    key
}

fn value_key(key: &[u8]) -> sled::IVec {
    [b"v", key].concat().into()
}

/// Runs something of sled's; a panic in it is damage found late.
fn guarded<T>(run: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|panic| Err(StoreError::Corrupt(describe(&*panic))))
}

fn describe(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("sled panicked: {}", text.unwrap_or("no message"))
}

fn open_guarded(dir: &Path) -> Result<Db, StoreError> {
    let config = sled::Config::new()
        .path(dir)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(None);
    let (send, opened) = sync_channel(1);
    thread::Builder::new()
        .name("segspool-open".into())
        .spawn(move || {
            let deadline = Instant::now() + LOCK_DEADLINE;
            let result = loop {
                match guarded(|| Ok(Db(Some(config.open()?)))) {
                    Err(StoreError::Io(e)) if is_lock_held(&e) && Instant::now() < deadline => {
                        thread::sleep(Duration::from_millis(5));
                    }
                    result => break result,
                }
            };
            // Nobody waits any more when the deadline has passed; the database is then dropped here.
            let _ = send.send(result);
        })?;
    match opened.recv_timeout(OPEN_DEADLINE) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => {
            Err(StoreError::Corrupt("opening it takes for ever".into()))
        }
        Err(RecvTimeoutError::Disconnected) => {
            Err(StoreError::Corrupt("opening it ended its thread".into()))
        }
    }
}

fn is_lock_held(e: &io::Error) -> bool {
    e.to_string().contains("could not acquire lock")
}

fn remove_snapshots(dir: &Path, which: impl Fn(&str) -> bool) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        if name.starts_with("snap.") && which(name) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn sync_all_files(dir: &Path) -> io::Result<()> {
    for name in ["conf", "db", "blobs"] {
        let path = dir.join(name);
        if path.exists() {
            files::sync(&path)?;
        }
    }
    files::sync(dir)?;
    files::sync_parent(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_sled_would_open_as_an_empty_database_show_their_damage() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(dir.path(), &Barrier::os()).expect("opened");
        let damage = || visible_damage(dir.path()).expect("read");
        // As soon as it is open, and while it grows over several segments.
        assert_eq!(damage(), None);
        for n in 0..3u8 {
            let mut changes = Changes::default();
            for m in 0..250u8 {
                changes.put(&[n, m], &[m; 3000]);
            }
            store.commit(changes).expect("committed");
            assert_eq!(damage(), None);
        }
        drop(store);
        assert_eq!(damage(), None);
        let db = fs::read(dir.path().join("db")).expect("read");
        assert!(db.len() > 2 * SEGMENT_BYTES, "{}", db.len());
        let conf = fs::read(dir.path().join("conf")).expect("read");
        let mut overwritten = db.clone();
        overwritten[SEGMENT_BYTES..2 * SEGMENT_BYTES].fill(0xa5);
        let random: Vec<u8> = (0..db.len()).map(|n| (n * 7 % 251) as u8).collect();
        for (name, good, bad, said) in [
            ("db", &db, vec![], "its file db is empty"),
            ("db", &db, vec![0; db.len()], "nothing of its file db"),
            ("db", &db, random, "nothing of its file db"),
            ("db", &db, overwritten, "of its file db 1 of "),
            ("conf", &conf, vec![], "its file conf is damaged"),
            (
                "conf",
                &conf,
                b"random bytes".to_vec(),
                "its file conf is damaged",
            ),
        ] {
            fs::write(dir.path().join(name), bad).expect("written");
            let found = damage().expect("damage");
            assert!(found.starts_with(said), "{found}");
            fs::write(dir.path().join(name), good).expect("written");
            assert_eq!(damage(), None);
        }
        fs::remove_file(dir.path().join("db")).expect("removed");
        assert_eq!(damage().as_deref(), Some("its file db is gone"));
    }

    fn all(store: &Store) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut found = Vec::new();
        store
            .scan(&[0u8; 2]..=&[255u8; 2], |k, v| {
                found.push((k.to_vec(), v.to_vec()));
                true
            })
            .expect("scanned");
        found
    }

    #[test]
    fn values_of_any_length_come_back_whole_and_in_order_after_reopening() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("1");
        let values: Vec<_> = [0, 1, 6_800, 6_900, 7_000, 100_000]
            .iter()
            .enumerate()
            .map(|(i, len)| (vec![1, i as u8], vec![i as u8; *len]))
            .collect();
        let store = Store::open(&path, &Barrier::synced()).expect("opened");
        let mut changes = Changes::default();
        values.iter().for_each(|(k, v)| changes.put(k, v));
        store.commit(changes).expect("committed");
        assert_eq!(all(&store), values);
        drop(store);
        let store = Store::open(&path, &Barrier::synced()).expect("opened again at once");
        assert_eq!(all(&store), values);
        assert_eq!(
            fs::read_dir(path.join("blobs"))
                .expect("a directory")
                .count(),
            0
        );
    }

    #[test]
    fn what_is_removed_is_gone_with_all_its_parts_and_what_replaces_it_is_whole() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(&dir.path().join("1"), &Barrier::synced()).expect("opened");
        let (long, short) = (vec![7; 20_000], b"short".to_vec());
        let mut changes = Changes::default();
        changes.put(b"k1", &long);
        changes.put(b"k2", &long);
        store.commit(changes).expect("committed");
        let mut changes = Changes::default();
        changes.remove(b"k1");
        changes.remove(b"k2");
        changes.put(b"k2", &short);
        store.commit(changes).expect("committed");
        assert_eq!(all(&store), [(b"k2".to_vec(), short)]);
        let mut keys = Vec::new();
        store
            .scan_keys(&[0u8; 2]..=&[255u8; 2], |k| {
                keys.push(k.to_vec());
                true
            })
            .expect("scanned");
        assert_eq!(keys, [b"k2"]);
    }

    /// Values of some lengths that do not compress, by their numbers.
    fn value(number: u32) -> Vec<u8> {
        let bytes = [900, 3_400, 7_000, 30_000][number as usize % 4];
        let byte = |n: u32| (number.wrapping_add(n).wrapping_mul(2_654_435_761) >> 24) as u8;
        (0..bytes).map(byte).collect()
    }

    fn blobs(dir: &Path) -> usize {
        fs::read_dir(dir.join("blobs"))
            .expect("a directory")
            .count()
    }

    /// sled by itself makes nearly three times as much of them.
    #[test]
    fn what_is_put_is_written_once() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("1");
        let store = Store::open(&path, &Barrier::os()).expect("opened");
        let (mut bytes, mut log_bytes) = (0, 0);
        for number in 0..800u32 {
            let mut changes = Changes::default();
            changes.put(&number.to_be_bytes(), &value(number));
            bytes += changes.bytes() as u64;
            log_bytes = store.commit(changes).expect("committed");
        }
        assert!(log_bytes < bytes * 5 / 4, "{log_bytes} of {bytes}");
        assert_eq!(blobs(&path), 0);
    }

    #[test]
    fn whatever_is_put_removed_and_replaced_stays_whole_and_out_of_blobs() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("1");
        let mut store = Store::open(&path, &Barrier::os()).expect("opened");
        let mut there = std::collections::BTreeSet::new();
        for round in 0..40u32 {
            let mut changes = Changes::default();
            for number in round * 20..(round + 1) * 20 {
                changes.put(&number.to_be_bytes(), &value(number));
                there.insert(number);
            }
            for number in 0..round * 20 {
                // Leaves of slots become nearly empty, and are merged.
                match number.wrapping_mul(31).wrapping_add(round) % 7 {
                    0..=2 => {
                        changes.remove(&number.to_be_bytes());
                        there.remove(&number);
                    }
                    3 if there.contains(&number) => {
                        changes.remove(&number.to_be_bytes());
                        changes.put(&number.to_be_bytes(), &value(number));
                    }
                    _ => {}
                }
            }
            store.commit(changes).expect("committed");
            if round % 9 == 8 {
                drop(store);
                store = Store::open(&path, &Barrier::os()).expect("opened again");
            }
            let mut found = Vec::new();
            let all = &[0u8; 4][..]..=&[255u8; 4][..];
            let scanned = store.scan(all, |key, content| {
                let number = u32::from_be_bytes(key.try_into().expect("four bytes"));
                assert_eq!(content, value(number));
                found.push(number);
                true
            });
            scanned.expect("scanned");
            assert!(found.iter().eq(&there), "round {round}");
            assert_eq!(blobs(&path), 0);
        }
    }

    #[test]
    fn a_commit_whose_sync_fails_is_an_error() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let barrier = Barrier::new(|_| Err(io::Error::from_raw_os_error(5)));
        let store = Store::open(&dir.path().join("1"), &barrier).expect("opened");
        let mut changes = Changes::default();
        changes.put(b"k1", b"v");
        assert!(matches!(store.commit(changes), Err(StoreError::Io(_))));
    }

    #[test]
    fn a_snapshot_or_conf_that_is_unfinished_or_damaged_costs_nothing() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("1");
        let mut changes = Changes::default();
        changes.put(b"k1", b"value");
        Store::open(&path, &Barrier::synced())
            .expect("opened")
            .commit(changes)
            .expect("committed");
        drop(Store::open(&path, &Barrier::synced()).expect("opened"));
        fs::write(path.join("snap.00000000FFFFFFFF.generating"), b"half").expect("written");
        for entry in fs::read_dir(&path).expect("a directory").flatten() {
            if entry.file_name().to_string_lossy().starts_with("snap.") {
                fs::write(entry.path(), b"not a snapshot").expect("written");
            }
        }
        fs::write(path.join("conf"), b"nonsense").expect("written");
        let store = Store::open(&path, &Barrier::synced()).expect("opened");
        assert_eq!(all(&store), [(b"k1".to_vec(), b"value".to_vec())]);
    }

    #[test]
    fn a_database_that_cannot_be_read_is_called_corrupt() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("1");
        drop(Store::open(&path, &Barrier::synced()).expect("opened"));
        fs::remove_file(path.join("db")).expect("removed");
        fs::create_dir(path.join("db")).expect("a directory in place of the file");
        assert!(matches!(
            Store::open(&path, &Barrier::synced()),
            Err(StoreError::Corrupt(_))
        ));
    }
}
