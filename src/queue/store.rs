//! A sled database used so that what it acknowledged survives a power cut. The only file that names sled.
//!
//! sled 0.34.7's `flush` ends in `sync_file_range`, which syncs neither the drive's cache nor the file's size, and files
//! it has just created have no durable name yet. So here:
//! - before opening, a snapshot that was never finished (`snap.*.generating`) is removed: sled would read it;
//! - after opening, every file is synced, then the directory, then its parents;
//! - a commit is `apply_batch`, `flush`, then the [`Barrier`] on our own descriptor of the file `db`, every time;
//! - a value is stored in parts below 7 KiB, so that no page ever becomes a file in `blobs/`, which nobody would sync;
//! - no background thread flushes between our flush and our sync.
//!
//! A database that failed once is never trusted again: the caller drops it and opens it anew. Opening runs on a thread of
//! its own, under a deadline and a panic guard, since a damaged file can make sled panic or loop; closing is guarded as well.
//! Nothing is ever removed from a volume; only the dead letters are.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::ops::{Deref, RangeInclusive};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
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
/// What a stored part with its key may take. sled keeps sixteen to a leaf: well below the 131,052 bytes from which a page
/// would go into `blobs/` (0.34.7, 512 KiB segments), and small, because sled's cache has 256 shards (src/lru.rs) and keeps
/// a page of each, however little [`CACHE_BYTES`] allows.
const PART_BYTES_MAX: usize = 3_400;
/// How often a part is looked up when it is read. A shard evicts only after 64 accesses (src/lru.rs), and a reader that sees each
/// page once let a whole volume pile up in memory: a backlog of 1,000,000 events took 118 MB, and 58 MB like this.
const CACHE_TOUCHES: usize = 8;
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
    batch: sled::Batch,
    bytes: usize,
}

impl Changes {
    /// Stores `value` under `key`, in as many parts as it needs.
    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) {
        let (room, parts) = (part_room(key), parts(key, value));
        for part in 0..parts {
            let end = value.len().min((part + 1) * room);
            self.batch
                .insert(part_key(key, part as u32), &value[part * room..end]);
        }
        self.bytes += value.len() + parts * (key.len() + PART_KEY_BYTES);
    }

    /// Removes what is stored under `key`: `value`, in its parts.
    pub(super) fn remove(&mut self, key: &[u8], value: &[u8]) {
        let parts = parts(key, value);
        for part in 0..parts {
            self.batch.remove(part_key(key, part as u32));
        }
        self.bytes += parts * (key.len() + PART_KEY_BYTES);
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
            })
        })
    }

    /// Takes `changes` in. They are durable after the next [`Store::commit`].
    ///
    /// # Errors
    /// As for [`Store::commit`].
    pub(super) fn apply(&self, changes: Changes) -> Result<(), StoreError> {
        guarded(|| Ok(self.db.apply_batch(changes.batch)?))
    }

    /// Makes `changes` durable. Nothing of them counts as stored before this returned `Ok`.
    ///
    /// # Errors
    /// Any: the store is then unfit for use, and must be dropped and opened anew.
    pub(super) fn commit(&self, changes: Changes) -> Result<(), StoreError> {
        guarded(|| {
            self.db.apply_batch(changes.batch)?;
            self.db.flush()?;
            Ok(())
        })?;
        (self.barrier.0)(&self.file)?;
        if self.file.metadata()?.nlink() == 0 {
            // Whoever deleted it: nothing that goes there will be found again.
            return Err(io::Error::from(io::ErrorKind::NotFound).into());
        }
        Ok(())
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

    /// [`Store::scan`] of all that can be read: a part that stands alone is counted and passed over. Returns how many did.
    ///
    /// # Errors
    /// sled cannot read on. What it could read was visited.
    pub(super) fn scan_on(
        &self,
        keys: RangeInclusive<&[u8]>,
        mut visit: impl FnMut(&[u8], &[u8]),
    ) -> (u64, Result<(), StoreError>) {
        let mut alone = 0;
        let visit = |key: &[u8], value: &[u8]| {
            visit(key, value);
            true
        };
        let scanned = self.walk(keys, visit, |_| {
            alone += 1;
            Ok(())
        });
        (alone, scanned)
    }

    /// Every value whose key lies in `keys`, until `visit` returns false; `alone` says what to do about a part without those before.
    fn walk(
        &self,
        keys: RangeInclusive<&[u8]>,
        mut visit: impl FnMut(&[u8], &[u8]) -> bool,
        mut alone: impl FnMut(StoreError) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let (from, to) = (part_key(keys.start(), 0), part_key(keys.end(), u32::MAX));
        guarded(|| {
            let mut whole = Whole::default();
            for entry in self.db.range(from..=to) {
                let (key, part) = entry?;
                for _ in 0..CACHE_TOUCHES {
                    self.db.contains_key(&key)?;
                }
                let at = key.len().saturating_sub(PART_KEY_BYTES);
                let (key, number) = key.split_at(at);
                let number = u32::from_be_bytes(number.try_into().unwrap_or([0xff; 4]));
                if number == 0 && !whole.is_empty() && !whole.give(&mut visit) {
                    return Ok(());
                }
                if let Err(error) = whole.take(key, number, &part) {
                    alone(error)?;
                }
            }
            if !whole.is_empty() {
                whole.give(&mut visit);
            }
            Ok(())
        })
    }

    /// Every key that lies in `keys`, in order. All keys have the same length.
    pub(super) fn scan_keys(
        &self,
        keys: RangeInclusive<&[u8]>,
        mut visit: impl FnMut(&[u8]),
    ) -> Result<(), StoreError> {
        let (from, to) = (part_key(keys.start(), 0), part_key(keys.end(), u32::MAX));
        guarded(|| {
            for key in self.db.range(from..=to).keys() {
                if let Some(key) = key?.strip_suffix(&[0; PART_KEY_BYTES]) {
                    visit(key);
                }
            }
            Ok(())
        })
    }

    /// Whether there is a value under `key`.
    pub(super) fn contains(&self, key: &[u8]) -> Result<bool, StoreError> {
        guarded(|| Ok(self.db.contains_key(part_key(key, 0))?))
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

/// What the files of a directory take on disk, in bytes; what cannot be read counts nothing.
pub(super) fn dir_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(m) if m.is_dir() => dir_bytes(&entry.path()),
        Ok(m) => m.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

/// A value being put together from its parts.
#[derive(Default)]
struct Whole {
    key: Vec<u8>,
    value: Vec<u8>,
    next: u32,
}

impl Whole {
    fn is_empty(&self) -> bool {
        self.next == 0
    }

    fn take(&mut self, key: &[u8], number: u32, part: &[u8]) -> Result<(), StoreError> {
        if number == 0 {
            self.key.clear();
            self.key.extend_from_slice(key);
            self.value.clear();
        }
        if number != 0 && (number != self.next || self.key != key) {
            return Err(StoreError::Corrupt(format!(
                "part {number} of a value stands alone"
            )));
        }
        self.value.extend_from_slice(part);
        self.next = number + 1;
        Ok(())
    }

    fn give(&self, visit: &mut impl FnMut(&[u8], &[u8]) -> bool) -> bool {
        visit(&self.key, &self.value)
    }
}

const PART_KEY_BYTES: usize = 4;

/// What a part holds of a value.
fn part_room(key: &[u8]) -> usize {
    PART_BYTES_MAX - key.len() - PART_KEY_BYTES
}

/// In how many parts a value is stored.
fn parts(key: &[u8], value: &[u8]) -> usize {
    value.len().div_ceil(part_room(key)).max(1)
}

fn part_key(key: &[u8], part: u32) -> Vec<u8> {
    [key, &part.to_be_bytes()].concat()
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
        changes.remove(b"k1", &long);
        changes.remove(b"k2", &long);
        changes.put(b"k2", &short);
        store.commit(changes).expect("committed");
        assert_eq!(all(&store), [(b"k2".to_vec(), short)]);
        let mut keys = Vec::new();
        store
            .scan_keys(&[0u8; 2]..=&[255u8; 2], |k| keys.push(k.to_vec()))
            .expect("scanned");
        assert_eq!(keys, [b"k2"]);
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
