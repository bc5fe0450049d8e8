//! Volumes: slices of the spool, each a sled database of its own in a numbered directory.
//!
//! A volume is written until it is full, then sealed: nothing in it changes any more, and a summary beside it tells what it
//! holds, so that a start counts the backlog without reading it. It is deleted whole once every event in it is settled.
//! Only the volumes being written or read are open.
//!
//! Keys: `l` + lane id → the lane's name; `r` + lane id + position → a record's frame.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use super::Position;
use super::files;
use super::lane::{Extent, LaneId, LaneName};
use super::record::{Damaged, Header, Unpacked, unpack};
use super::store::{Barrier, Changes, Store, StoreError, dir_bytes};

/// A volume's number: they only ever grow.
pub(super) type VolumeNumber = u64;

/// Sealed volumes kept open because a lane is reading them. Each costs its sled cache, 8 MiB at most.
const OPEN_SEALED_MAX: usize = 2;

/// What a crash in the first commit, of which nothing was acknowledged, leaves at most: sled's own and one commit.
const UNACKNOWLEDGED_BYTES_MAX: u64 = 1024 * 1024;

const SUMMARY: &str = "summary";

/// What a volume holds, lane by lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Summary {
    pub(super) lanes: Vec<(LaneName, Extent)>,
}

/// One volume.
#[derive(Debug)]
pub(super) struct Volume {
    pub(super) number: VolumeNumber,
    dir: PathBuf,
    /// The database, as long as somebody has it open. The lock is held while it opens, so that it is opened once.
    store: Mutex<Weak<Store>>,
    /// Nothing is published into it any more.
    sealed: AtomicBool,
    /// A reader could not read it: it is in quarantine, even if it was being written.
    quarantined: AtomicBool,
    /// Events are missing in it: it is kept, in quarantine, when what could be read is settled.
    damaged: AtomicBool,
    /// How many of its events are not settled.
    unsettled: AtomicU64,
    disk_bytes: AtomicU64,
}

impl Volume {
    fn new(dir: &Path, number: VolumeNumber, sealed: bool) -> Volume {
        let dir = dir.join(number.to_string());
        Volume {
            number,
            disk_bytes: AtomicU64::new(dir_bytes(&dir)),
            dir,
            store: Mutex::new(Weak::new()),
            sealed: AtomicBool::new(sealed),
            quarantined: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
            unsettled: AtomicU64::new(0),
        }
    }

    /// Opens its database, or shares it with those who have it open.
    pub(super) fn open(&self, barrier: &Barrier) -> Result<Arc<Store>, StoreError> {
        let mut slot = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = slot.upgrade() {
            return Ok(store);
        }
        let store = Arc::new(Store::open(&self.dir, barrier)?);
        *slot = Arc::downgrade(&store);
        Ok(store)
    }

    /// Lets nobody share the database that is open now: it has failed.
    pub(super) fn disown_store(&self) {
        *self.store.lock().unwrap_or_else(PoisonError::into_inner) = Weak::new();
    }

    pub(super) fn add(&self, events: u64) {
        self.unsettled.fetch_add(events, Ordering::AcqRel);
    }

    pub(super) fn settle(&self, events: u64) {
        let left = |unsettled: u64| Some(unsettled.saturating_sub(events));
        let _ = self
            .unsettled
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, left);
    }

    /// Whether every event in it is settled.
    pub(super) fn is_settled(&self) -> bool {
        self.unsettled.load(Ordering::Acquire) == 0
    }

    /// Whether it can be deleted: nothing more comes in, and all of it is settled.
    pub(super) fn is_drained(&self) -> bool {
        self.sealed.load(Ordering::Acquire) && self.is_settled()
    }

    /// Whether it has been taken out of the spool: what is written to it is lost.
    pub(super) fn is_quarantined(&self) -> bool {
        self.quarantined.load(Ordering::Acquire)
    }

    /// Notes that events are missing in it.
    pub(super) fn mark_damaged(&self) {
        self.damaged.store(true, Ordering::Release);
    }

    /// Whether events are missing in it.
    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Acquire)
    }

    /// What it takes on disk, in bytes, as last measured.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.disk_bytes.load(Ordering::Relaxed)
    }

    /// Measures what it takes on disk.
    pub(super) fn measure(&self) -> u64 {
        let bytes = dir_bytes(&self.dir);
        self.disk_bytes.store(bytes, Ordering::Relaxed);
        bytes
    }

    /// Ends its writing. The summary is a convenience of the next start: without it the volume is read through.
    pub(super) fn seal(&self, summary: &Summary) {
        if let Err(error) = files::save(&summary_path(&self.dir), SUMMARY, summary) {
            warn!(volume = self.number, %error, "failed to write a volume's summary");
        }
        self.measure();
        self.sealed.store(true, Ordering::Release);
    }

    /// Reads a lane's records of these positions until `visit` returns false. A damaged record is reported and passed over.
    pub(super) fn read(
        &self,
        store: &Store,
        lane: LaneId,
        from: Position,
        last: Position,
        mut visit: impl FnMut(Position, Unpacked) -> bool,
    ) -> Result<(), StoreError> {
        let (from, last) = (record_key(lane, from), record_key(lane, last));
        store.scan(&from[..]..=&last[..], |key, frame| {
            let Some((_, position)) = parse_record_key(key) else {
                return true;
            };
            match unpack(frame) {
                Ok(unpacked) => visit(position, unpacked),
                Err(Damaged(why)) => {
                    error!(volume = self.number, %lane, position, why, "a record is damaged");
                    true
                }
            }
        })
    }

    /// [`Volume::survey`], which must find something in a volume that was written to: sled opens many a damaged file as an
    /// empty database.
    fn survey_checked(&self, store: &Store) -> Result<Summary, StoreError> {
        let written = self.disk_bytes();
        let summary = self.survey(store)?;
        if summary.lanes.is_empty() && written > UNACKNOWLEDGED_BYTES_MAX {
            return Err(StoreError::Corrupt(format!(
                "nothing can be read of {written} bytes"
            )));
        }
        Ok(summary)
    }

    /// Reads all of it and makes the summary that was never written.
    pub(super) fn survey(&self, store: &Store) -> Result<Summary, StoreError> {
        let mut names = BTreeMap::new();
        store.scan(
            &lane_key(LaneId(0))[..]..=&lane_key(LaneId(u64::MAX))[..],
            |_, name| {
                if let Ok(name) = serde_json::from_slice::<LaneName>(name) {
                    names.insert(name.id(), name);
                }
                true
            },
        )?;
        let mut extents: BTreeMap<LaneId, Extent> = BTreeMap::new();
        let all = record_key(LaneId(0), 0)..=record_key(LaneId(u64::MAX), u64::MAX);
        store.scan(&all.start()[..]..=&all.end()[..], |key, frame| {
            let Some((lane, position)) = parse_record_key(key) else {
                return true;
            };
            match Header::of(frame) {
                Ok(header) => add_extent(&mut extents, lane, Extent::of(position, &header)),
                Err(Damaged(why)) => {
                    error!(volume = self.number, %lane, position, why, "a record is damaged");
                }
            }
            true
        })?;
        let lanes = extents.into_iter().filter_map(|(lane, extent)| {
            let name = names.remove(&lane);
            if name.is_none() {
                error!(volume = self.number, %lane, events = extent.events, "a lane's name is missing");
            }
            Some((name?, extent))
        });
        Ok(Summary {
            lanes: lanes.collect(),
        })
    }
}

impl Extent {
    /// The extent of one record.
    pub(super) fn of(position: Position, header: &Header) -> Extent {
        Extent {
            first: position,
            last: position,
            records: 1,
            events: u64::from(header.events),
            bytes: header.bytes,
            accepted_at_ms: header.accepted_at_ms,
        }
    }
}

/// Notes another record of a lane.
pub(super) fn add_extent(extents: &mut BTreeMap<LaneId, Extent>, lane: LaneId, extent: Extent) {
    extents
        .entry(lane)
        .and_modify(|e| e.extend(&extent))
        .or_insert(extent);
}

/// Stores a lane's name, so that a volume can be understood alone.
pub(super) fn put_name(changes: &mut Changes, name: &LaneName) -> io::Result<()> {
    changes.put(&lane_key(name.id()), &serde_json::to_vec(name)?);
    Ok(())
}

/// Stores a record's frame.
pub(super) fn put_record(changes: &mut Changes, lane: LaneId, position: Position, frame: &[u8]) {
    changes.put(&record_key(lane, position), frame);
}

/// The volumes on disk.
#[derive(Debug)]
pub(super) struct Volumes {
    dir: PathBuf,
    quarantine: PathBuf,
    barrier: Barrier,
    by_number: Mutex<BTreeMap<VolumeNumber, Arc<Volume>>>,
    /// Sealed volumes' databases kept open, the one used last at the back.
    open: Mutex<VecDeque<(VolumeNumber, Arc<Store>)>>,
    quarantined: AtomicU64,
}

impl Volumes {
    /// The volumes of a spool, none of them known yet.
    pub(super) fn new(dir: PathBuf, quarantine: PathBuf, barrier: Barrier) -> io::Result<Volumes> {
        files::create_dir(&dir)?;
        files::create_dir(&quarantine)?;
        let quarantined = numbers_in(&quarantine)?.collect::<BTreeSet<_>>().len() as u64;
        Ok(Volumes {
            dir,
            quarantine,
            barrier,
            by_number: Mutex::default(),
            open: Mutex::default(),
            quarantined: AtomicU64::new(quarantined),
        })
    }

    /// Finds what an earlier process left: for each volume that can be read, what it holds. Clears half-deleted ones away, and
    /// moves what cannot be read to quarantine.
    ///
    /// # Errors
    /// Where the disk does not let it look, or a volume fails for a reason that may pass.
    pub(super) fn recover(&self) -> io::Result<Vec<(Arc<Volume>, Summary)>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .and_then(|n| n.to_str())
                .unwrap_or_default();
            let (number, kind) = name.split_once('.').unwrap_or((name, ""));
            match (parse_number(number), kind) {
                (Some(number), "") if path.is_dir() => numbers.push(number),
                (Some(_), "deleted") if path.is_dir() => fs::remove_dir_all(&path)?,
                (Some(_), "summary") if self.dir.join(number).is_dir() => {}
                (Some(_), "summary" | "summary.new") if path.is_file() => fs::remove_file(&path)?,
                _ => {
                    warn!(path = %path.display(), "a foreign file lies among the volumes; it is left alone")
                }
            }
        }
        numbers.sort_unstable();
        let mut found = Vec::new();
        for number in numbers {
            found.extend(self.recover_one(number)?);
        }
        Ok(found)
    }

    /// The first number that nothing bears, here or in quarantine. A number is not given twice, even where the cursors that
    /// know which were are lost.
    ///
    /// # Errors
    /// Where the disk does not let it look.
    pub(super) fn first_free(&self) -> io::Result<VolumeNumber> {
        let used = numbers_in(&self.dir)?.chain(numbers_in(&self.quarantine)?);
        Ok(used.max().map_or(0, |number| number + 1))
    }

    fn recover_one(&self, number: VolumeNumber) -> io::Result<Option<(Arc<Volume>, Summary)>> {
        let volume = Arc::new(Volume::new(&self.dir, number, true));
        let summary = match files::load(&summary_path(&volume.dir), SUMMARY) {
            Ok(Some(summary)) => summary,
            Ok(None) | Err(_) => match volume
                .open(&self.barrier)
                .and_then(|store| volume.survey_checked(&store))
            {
                Ok(summary) => {
                    volume.seal(&summary);
                    summary
                }
                Err(StoreError::Io(e)) => return Err(e),
                Err(corrupt) => {
                    self.move_to_quarantine(&volume, &corrupt);
                    return Ok(None);
                }
            },
        };
        self.map().insert(number, Arc::clone(&volume));
        Ok(Some((volume, summary)))
    }

    /// Makes a new volume and opens it for writing.
    pub(super) fn create(
        &self,
        number: VolumeNumber,
    ) -> Result<(Arc<Volume>, Arc<Store>), StoreError> {
        let dir = self.dir.join(number.to_string());
        files::create_dir(&dir)?;
        let volume = Arc::new(Volume::new(&self.dir, number, false));
        let store = volume.open(&self.barrier).inspect_err(|_| {
            // It holds nothing, and the next attempt has another number.
            let _ = fs::remove_dir_all(&dir);
        })?;
        volume.measure();
        self.map().insert(number, Arc::clone(&volume));
        Ok((volume, store))
    }

    /// The volume of that number, unless it is gone.
    pub(super) fn get(&self, number: VolumeNumber) -> Option<Arc<Volume>> {
        self.map().get(&number).cloned()
    }

    /// All of them, oldest first.
    pub(super) fn all(&self) -> Vec<Arc<Volume>> {
        self.map().values().cloned().collect()
    }

    /// How many lie in quarantine.
    pub(super) fn quarantined(&self) -> u64 {
        self.quarantined.load(Ordering::Relaxed)
    }

    /// What all of them take on disk, in bytes, as last measured.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.map().values().map(|v| v.disk_bytes()).sum()
    }

    /// A volume's database for reading. A sealed one stays open for the next reader.
    pub(super) fn open_for_reading(&self, volume: &Volume) -> Result<Arc<Store>, StoreError> {
        let store = volume.open(&self.barrier)?;
        if volume.sealed.load(Ordering::Acquire) {
            self.keep_open(volume, Arc::clone(&store));
        }
        Ok(store)
    }

    /// Keeps a sealed volume's database open for its next reader, and closes the one that has rested longest.
    pub(super) fn keep_open(&self, volume: &Volume, store: Arc<Store>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(number, _)| *number != volume.number);
        open.push_back((volume.number, store));
        let closed = if open.len() > OPEN_SEALED_MAX {
            open.pop_front()
        } else {
            None
        };
        // Closing a database takes a while: not under this lock.
        drop(open);
        drop(closed);
    }

    /// Closes a volume's database as soon as nobody reads it.
    pub(super) fn close(&self, volume: &Volume) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let at = open.iter().position(|(number, _)| *number == volume.number);
        let closed = at.and_then(|at| open.remove(at));
        drop(open);
        drop(closed);
    }

    /// Closes every database kept open.
    pub(super) fn close_all(&self) {
        let closed = std::mem::take(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner));
        drop(closed);
    }

    /// Deletes a drained volume: first its name disappears, so that a crash leaves nothing that could be read by half.
    ///
    /// # Errors
    /// The disk's. What is left is cleared away at the next start.
    pub(super) fn delete(&self, volume: &Volume) -> io::Result<()> {
        self.map().remove(&volume.number);
        self.close(volume);
        let deleted = volume.dir.with_added_extension("deleted");
        fs::rename(&volume.dir, &deleted)?;
        files::sync(&self.dir)?;
        match fs::remove_file(summary_path(&volume.dir)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        fs::remove_dir_all(&deleted)?;
        files::sync(&self.dir)
    }

    /// Takes a volume that cannot be read out of the spool. It stays on disk, in `quarantine/`, for whoever can read more of it.
    pub(super) fn move_to_quarantine(&self, volume: &Volume, why: &StoreError) {
        volume.quarantined.store(true, Ordering::Release);
        self.map().remove(&volume.number);
        self.close(volume);
        let to = self.quarantine.join(volume.number.to_string());
        let moved = files::create_dir(&self.quarantine)
            .and_then(|()| fs::rename(&volume.dir, &to))
            .and_then(|()| files::sync(&self.quarantine))
            .and_then(|()| files::sync(&self.dir));
        match moved {
            Ok(()) => {
                self.quarantined.fetch_add(1, Ordering::Relaxed);
                error!(volume = volume.number, %why, moved_to = %to.display(), "a volume cannot be read; it is in quarantine")
            }
            // Another lane's reader was faster.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return,
            Err(e) => {
                error!(volume = volume.number, %why, error = %e, "a volume cannot be read, nor moved to quarantine")
            }
        }
        // The summary goes with it: it tells what the volume held.
        if let Err(e) = fs::rename(summary_path(&volume.dir), summary_path(&to)) {
            info!(volume = volume.number, error = %e, "the volume in quarantine has no summary");
        }
    }

    fn map(&self) -> MutexGuard<'_, BTreeMap<VolumeNumber, Arc<Volume>>> {
        self.by_number
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number that a name says, written as we write it. The last one is not used: there is none after it.
fn parse_number(name: &str) -> Option<VolumeNumber> {
    let number = name.parse::<VolumeNumber>().ok()?;
    (number != VolumeNumber::MAX && name == number.to_string()).then_some(number)
}

/// The numbers that the names in `dir` bear, some of them more than once.
fn numbers_in(dir: &Path) -> io::Result<impl Iterator<Item = VolumeNumber>> {
    let entries = fs::read_dir(dir)?;
    Ok(entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        let name = name.to_str()?;
        parse_number(name.split_once('.').map_or(name, |(number, _)| number))
    }))
}

fn summary_path(dir: &Path) -> PathBuf {
    dir.with_added_extension("summary")
}

fn lane_key(lane: LaneId) -> [u8; 9] {
    let mut key = [b'l'; 9];
    key[1..].copy_from_slice(&lane.0.to_be_bytes());
    key
}

fn record_key(lane: LaneId, position: Position) -> [u8; 17] {
    let mut key = [b'r'; 17];
    key[1..9].copy_from_slice(&lane.0.to_be_bytes());
    key[9..].copy_from_slice(&position.to_be_bytes());
    key
}

fn parse_record_key(key: &[u8]) -> Option<(LaneId, Position)> {
    let key: &[u8; 17] = key.try_into().ok()?;
    let number = |at: usize| {
        key[at..at + 8]
            .iter()
            .fold(0u64, |n, b| n << 8 | u64::from(*b))
    };
    (key[0] == b'r').then(|| (LaneId(number(1)), number(9)))
}
