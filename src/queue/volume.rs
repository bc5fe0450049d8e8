//! A volume: a slice of the spool, a sled database of its own in a numbered directory.
//!
//! It is written until it is full, then sealed: nothing in it changes any more, and a summary beside it tells what it
//! holds, so that a start counts the backlog without reading it. It is deleted whole once every event in it is settled; before
//! that, a smaller copy may take its place.
//! It is open only while it is written or read.
//!
//! Keys: `l` + lane id → the lane's name; `r` + lane id + position → a record's frame.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use super::Position;
use super::files;
use super::lane::Extent;
use super::name::{LaneId, LaneName};
use super::record::{Damaged, Header, Unpacked, unpack};
use super::reserve::Reserve;
use super::store::{Barrier, Changes, Store, StoreError, dir_bytes, is_let_go};
use crate::words::counted;

/// A volume's number: they only ever grow.
pub(super) type VolumeNumber = u64;

/// What a crash in the first commit, of which nothing was acknowledged, leaves at most: sled's own and one commit.
pub(super) const UNACKNOWLEDGED_BYTES_MAX: u64 = 1024 * 1024;

pub(super) const SUMMARY: &str = "summary";

/// What a volume holds, lane by lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Summary {
    pub(super) lanes: Vec<(LaneName, Extent)>,
    /// Whether lanes that had passed it were left out later.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_repacked: bool,
}

impl Summary {
    pub(super) fn events(&self) -> u64 {
        self.lanes.iter().map(|(_, extent)| extent.events).sum()
    }
}

/// What a volume holds.
#[derive(Debug, Default)]
struct Held {
    records: AtomicU64,
    events: AtomicU64,
    bytes: AtomicU64,
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
    /// What it holds, settled or not.
    held: Held,
    disk_bytes: AtomicU64,
}

impl Volume {
    /// The volume of that number in the directory of all volumes.
    pub(super) fn new(dir: &Path, number: VolumeNumber, sealed: bool) -> Volume {
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
            held: Held::default(),
        }
    }

    /// Where it lies.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where its summary lies.
    pub(super) fn summary_path(&self) -> PathBuf {
        self.dir.with_added_extension("summary")
    }

    /// What it holds, in a volume of an earlier process: by its summary, or read through and then sealed.
    pub(super) fn summary(
        &self,
        barrier: &Barrier,
        reserve: &Reserve,
    ) -> Result<Summary, StoreError> {
        if let Ok(Some(summary)) = files::load::<Summary>(&self.summary_path(), SUMMARY) {
            self.hold(&summary);
            return Ok(summary);
        }
        let store = reserve.with_room(|| self.open(barrier))?;
        let summary = self.survey_checked(&store)?;
        self.seal(&summary, reserve);
        Ok(summary)
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

    /// Lets nobody open its database as long as the guard lives.
    pub(super) fn keep_shut(&self) -> MutexGuard<'_, Weak<Store>> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// [`Volume::keep_shut`], unless somebody has it open, or sled has not let go of it yet.
    pub(super) fn shut(&self) -> io::Result<Option<MutexGuard<'_, Weak<Store>>>> {
        let slot = self.keep_shut();
        let is_shut = slot.strong_count() == 0 && is_let_go(&self.dir)?;
        Ok(is_shut.then_some(slot))
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

    /// How many of its events are not settled.
    pub(super) fn unsettled(&self) -> u64 {
        self.unsettled.load(Ordering::Acquire)
    }

    /// How many events it holds, settled or not.
    pub(super) fn held_events(&self) -> u64 {
        self.held.events.load(Ordering::Relaxed)
    }

    /// The events' bytes of a record in it, on average.
    pub(super) fn mean_record_bytes(&self) -> u64 {
        let records = self.held.records.load(Ordering::Relaxed);
        self.held.bytes.load(Ordering::Relaxed) / records.max(1)
    }

    /// Notes a record that was written to it.
    pub(super) fn hold_more(&self, extent: &Extent) {
        self.held
            .records
            .fetch_add(extent.records, Ordering::Relaxed);
        self.held.events.fetch_add(extent.events, Ordering::Relaxed);
        self.held.bytes.fetch_add(extent.bytes, Ordering::Relaxed);
    }

    /// Notes what it holds.
    pub(super) fn hold(&self, summary: &Summary) {
        let sum = |part: fn(&Extent) -> u64| summary.lanes.iter().map(|(_, e)| part(e)).sum();
        self.held
            .records
            .store(sum(|e| e.records), Ordering::Relaxed);
        self.held.events.store(sum(|e| e.events), Ordering::Relaxed);
        self.held.bytes.store(sum(|e| e.bytes), Ordering::Relaxed);
    }

    /// Whether every event in it is settled.
    pub(super) fn is_settled(&self) -> bool {
        self.unsettled() == 0
    }

    /// Whether it can be deleted: nothing more comes in, and all of it is settled.
    pub(super) fn is_drained(&self) -> bool {
        self.is_sealed() && self.is_settled()
    }

    /// Notes that it has been taken out of the spool.
    pub(super) fn mark_quarantined(&self) {
        self.quarantined.store(true, Ordering::Release);
    }

    /// Whether nothing more is published into it.
    pub(super) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
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
        self.set_disk_bytes(bytes);
        bytes
    }

    /// Notes what it takes on disk, where that is known without looking.
    pub(super) fn set_disk_bytes(&self, bytes: u64) {
        self.disk_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Ends its writing. The summary is a convenience of the next start: without it the volume is read through.
    pub(super) fn seal(&self, summary: &Summary, reserve: &Reserve) {
        let path = self.summary_path();
        let saved = reserve.with_room(|| Ok(files::save(&path, SUMMARY, summary)?));
        if let Err(error) = saved {
            warn!(volume = self.number, %error, "failed to write a volume's summary");
        }
        self.measure();
        self.hold(summary);
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
        self.frames(store, lane, from, last, |position, frame| {
            match unpack(frame) {
                Ok(unpacked) => visit(position, unpacked),
                Err(Damaged(why)) => {
                    error!(volume = self.number, %lane, position, why, "a record is damaged");
                    true
                }
            }
        })
    }

    /// Goes through a lane's records of these positions as they are stored, until `visit` returns false.
    pub(super) fn frames(
        &self,
        store: &Store,
        lane: LaneId,
        from: Position,
        last: Position,
        mut visit: impl FnMut(Position, &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        let (from, last) = (record_key(lane, from), record_key(lane, last));
        store.scan(&from[..]..=&last[..], |key, frame| {
            parse_record_key(key).is_none_or(|(_, position)| visit(position, frame))
        })
    }

    /// [`Volume::survey`], which must find something in a volume that was written to: sled opens many a damaged file as an
    /// empty database.
    fn survey_checked(&self, store: &Store) -> Result<Summary, StoreError> {
        let written = self.disk_bytes();
        let summary = self.survey(store)?;
        if summary.lanes.is_empty() && written > UNACKNOWLEDGED_BYTES_MAX {
            return Err(StoreError::Corrupt(format!(
                "nothing can be read of {}",
                counted(written, "byte")
            )));
        }
        Ok(summary)
    }

    /// Reads all of it and makes the summary that was never written.
    fn survey(&self, store: &Store) -> Result<Summary, StoreError> {
        let mut names = names(store)?;
        let mut extents: BTreeMap<LaneId, Extent> = BTreeMap::new();
        let (first, last) = ALL_RECORDS;
        store.scan(&first[..]..=&last[..], |key, frame| {
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
            is_repacked: false,
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

/// The names of the lanes in a volume.
pub(super) fn names(store: &Store) -> Result<BTreeMap<LaneId, LaneName>, StoreError> {
    let mut names = BTreeMap::new();
    let (first, last) = (lane_key(LaneId(0)), lane_key(LaneId(u64::MAX)));
    store.scan(&first[..]..=&last[..], |_, name| {
        if let Ok(name) = serde_json::from_slice::<LaneName>(name) {
            names.insert(name.id(), name);
        }
        true
    })?;
    Ok(names)
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

/// The lowest and the highest key that a record can have.
pub(super) const ALL_RECORDS: ([u8; 17], [u8; 17]) = {
    let (mut first, mut last) = ([0; 17], [0xff; 17]);
    (first[0], last[0]) = (b'r', b'r');
    (first, last)
};

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

pub(super) fn parse_record_key(key: &[u8]) -> Option<(LaneId, Position)> {
    let key: &[u8; 17] = key.try_into().ok()?;
    let number = |at: usize| {
        key[at..at + 8]
            .iter()
            .fold(0u64, |n, b| n << 8 | u64::from(*b))
    };
    (key[0] == b'r').then(|| (LaneId(number(1)), number(9)))
}
