//! A sled database used so that what it acknowledged survives a power cut. Nothing but this and its folder names sled.
//!
//! sled 0.34.7's `flush` ends in `sync_file_range`, which syncs neither the drive's cache nor the file's size, and files
//! it has just created have no durable name yet. So here:
//! - before opening, a snapshot that was never finished (`snap.*.generating`) is removed: sled would read it;
//! - after opening, every file is synced, then the directory, then its parents;
//! - a commit is `apply_batch`, `flush`, then the [`Barrier`] on our own descriptor of the file `db`, every time;
//! - a value is stored in parts so small that no page ever becomes a file in `blobs/`, which nobody would sync;
//! - no background thread flushes between our flush and our sync.
//!
//! Values do not lie under their keys but in [`slots`]; what shows that files are damaged is told by [`damage`].
//!
//! A database that failed once is never trusted again: the caller drops it and opens it anew. Opening runs on a thread of
//! its own, under a deadline and a panic guard, since a damaged file can make sled panic or loop; closing is guarded as well.
//! Nothing is ever removed from a volume; only the dead letters are.

mod damage;
mod slots;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::ops::{Deref, RangeInclusive};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use sled::IVec;
use tracing::warn;

use super::files;
use slots::{Place, Slots, touch};

pub(super) use damage::visible_damage;

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
    Put { key: IVec, parts: Vec<IVec> },
    Remove { key: IVec },
}

impl Changes {
    /// Stores `value` under `key`, in as many parts as it needs.
    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) {
        self.bytes += key.len() + value.len();
        self.list.push(Change::Put {
            key: value_key(key),
            parts: slots::parts(value),
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
                    Change::Put { key, parts } => {
                        let place = slots.fill(parts, &mut batch)?;
                        batch.insert(key, &place.encode());
                    }
                    Change::Remove { key } => {
                        if let Some(place) = self.db.get(&key)? {
                            Place::decode(&place)?.clear(&mut batch);
                        }
                        batch.remove(key);
                    }
                }
            }
            slots.make_ready(&self.db)?;
            self.db.apply_batch(batch)?;
            touch(&self.db, first..slots.next)
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
                let read = Place::decode(&place).and_then(|place| place.read(&self.db, &mut value));
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

fn value_key(key: &[u8]) -> IVec {
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
