//! The thread that owns the dead letters' store: it buries, reads, removes, and gives disk back.
//!
//! sled gives no disk back by itself. So a store that has become empty, or takes several times what is in it, is written anew
//! beside the old one and put in its place. On disk: `dead-letters/`; while that goes on `dead-letters.new/`, not complete before it
//! has the right name, and `dead-letters.old/`, which is whole as long as it is there.
//!
//! So is a store that the disk has failed, before anything else is written to it: of a file whose sync failed, pages may never reach
//! the disk though they can be read, and what is synced behind them is lost with them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::letter::{DeadLetter, Filter, LetterId};
use super::tally::{Group, Tally, letter_bytes};
use super::{BuryError, Counts, Order, Portion, RecordPlace, Unavailable, now_ms};
use crate::queue::Position;
use crate::queue::cursors::SavedCursors;
use crate::queue::files;
use crate::queue::layout::Layout;
use crate::queue::name::{LaneId, LaneName};
use crate::queue::reserve::Reserve;
use crate::queue::store::{Barrier, Changes, Store, StoreError, dir_bytes};

/// As for the queue's commits.
const COMMIT_BYTES: usize = 192 * 1024;
/// Rejected events are kept only while the store holds less than this part of its bound: junk at the door must not use up the room
/// of accepted events.
const REJECTED_SHARE: u64 = 4;
/// A portion's letters, in bytes as stored.
const PORTION_BYTES: usize = 1024 * 1024;
/// What is looked at for a portion, in bytes as stored, before others get their turn.
const PORTION_SCANNED_BYTES: usize = 8 * 1024 * 1024;
/// What an empty store may take on disk before it is made anew.
const EMPTY_DISK_BYTES: u64 = 2 * 1024 * 1024;
/// What a store may take on disk whatever is in it.
const SPARSE_DISK_BYTES: u64 = 16 * 1024 * 1024;
/// A store that takes more than this many times what is in it is written anew.
const SPARSE_FACTOR: u64 = 4;

/// The thread's own state.
pub(super) struct Gravedigger {
    dir: PathBuf,
    quarantine: PathBuf,
    barrier: Barrier,
    max_bytes: u64,
    saved: Arc<SavedCursors>,
    reserve: Arc<Reserve>,
    counts: Arc<Counts>,
    store: Option<Store>,
    /// The disk has failed it since it was last written anew.
    suspect: bool,
    /// What was in the store when it was last written anew, or failed to be, and what it took on disk then, in bytes.
    rewritten: (u64, u64),
}

impl Gravedigger {
    pub(super) fn new(
        layout: &Layout,
        max_bytes: u64,
        barrier: Barrier,
        saved: Arc<SavedCursors>,
        reserve: Arc<Reserve>,
        counts: Arc<Counts>,
    ) -> Gravedigger {
        Gravedigger {
            dir: layout.dead_letters(),
            quarantine: layout.quarantine(),
            barrier,
            max_bytes,
            saved,
            reserve,
            counts,
            store: None,
            suspect: false,
            rewritten: (u64::MAX, 0),
        }
    }

    pub(super) fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        if let Err(error) = self.open() {
            self.fail(&error);
        }
        while let Some(order) = orders.blocking_recv() {
            match order {
                Order::Bury { letters, reply } => {
                    let _ = reply.send(self.bury(letters, self.max_bytes));
                }
                Order::KeepRejected { letters, bytes } => {
                    let count = letters.len() as u64;
                    // At a stop nobody waits for events that were never accepted, and the reserve is not for them.
                    let closing = self.counts.closing.load(Ordering::Relaxed);
                    let unwanted = closing || !self.reserve.is_there();
                    if unwanted || self.bury(letters, self.max_bytes / REJECTED_SHARE).is_err() {
                        self.counts.unkept.fetch_add(count, Ordering::Relaxed);
                    }
                    self.counts
                        .waiting_bytes
                        .fetch_sub(bytes, Ordering::Relaxed);
                }
                Order::Read {
                    after,
                    filter,
                    letters_max,
                    reply,
                } => {
                    let portion = self.work(|store, _| read(store, after, &filter, letters_max));
                    let _ = reply.send(portion);
                }
                Order::Buried { records, reply } => {
                    let _ = reply.send(self.work(|store, _| buried(store, &records)));
                }
                Order::HaveNoneOf { first, last, reply } => {
                    let _ = reply.send(self.work(|store, _| have_none_of(store, first, last)));
                }
                Order::Change {
                    removed,
                    changed,
                    reply,
                } => {
                    let saved = Arc::clone(&self.saved);
                    let done = self.write(|store, counts| {
                        let removed = remove(store, counts, &saved, &removed)?;
                        replace(store, counts, changed)?;
                        Ok(removed)
                    });
                    let _ = reply.send(done);
                    self.give_disk_back();
                }
                Order::Tidy => {
                    let saved = Arc::clone(&self.saved);
                    // What went wrong is logged; the graves are still there.
                    let _ = self.write(|store, counts| level_graves(store, counts, &saved));
                    self.give_disk_back();
                }
                Order::Close => break,
            }
        }
    }

    /// Buries letters if all of them together stay below `max_bytes`.
    fn bury(
        &mut self,
        letters: Vec<(LetterId, DeadLetter)>,
        max_bytes: u64,
    ) -> Result<(), BuryError> {
        let buried = self.write(|store, counts| bury(store, counts, letters, max_bytes));
        buried.unwrap_or(Err(BuryError::Storage))
    }

    /// Changes the open store, or the one that takes its place.
    fn write<T>(
        &mut self,
        work: impl FnOnce(&Store, &Counts) -> Result<T, StoreError>,
    ) -> Result<T, Unavailable> {
        if self.suspect {
            let written_anew = self.open().map(|_| ()).and_then(|()| self.rewrite());
            written_anew.map_err(|error| self.fail(&error))?;
        }
        self.work(work)
    }

    /// Does something with the open store.
    fn work<T>(
        &mut self,
        work: impl FnOnce(&Store, &Counts) -> Result<T, StoreError>,
    ) -> Result<T, Unavailable> {
        let counts = Arc::clone(&self.counts);
        let done = self.open().and_then(|store| work(store, &counts));
        done.map_err(|error| self.fail(&error))
    }

    /// Gives a store up that failed. It is opened anew the next time.
    fn fail(&mut self, error: &StoreError) -> Unavailable {
        self.store = None;
        // What a full disk did not take was never there. It is told once, and who needs this tries again.
        if error.is_disk_full() && self.reserve.give_up() {
            return Unavailable;
        }
        error!(%error, "failed to work on the dead letters");
        self.suspect |= !error.is_disk_full();
        Unavailable
    }

    /// The open store. Opening counts what it holds.
    fn open(&mut self) -> Result<&Store, StoreError> {
        if self.store.is_none() {
            clear_away(&self.dir)?;
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
        let mut tally = Tally::default();
        scan(&store, LetterId::ALL, |_, value| {
            if let Some(letter) = DeadLetter::decode_head(value) {
                tally.add(Group::of(&letter), value.len());
            }
            true
        })?;
        scan(&store, LetterId::GRAVES, |_, _| {
            tally.graves += 1;
            true
        })?;
        *self.counts.tally() = tally;
        Ok(store)
    }

    fn move_to_quarantine(&self, why: &str) -> Result<(), StoreError> {
        files::create_dir(&self.quarantine)?;
        let to = self.quarantine.join(format!("dead-letters.{}", now_ms()));
        fs::rename(&self.dir, &to)?;
        error!(why, moved_to = %to.display(), "the dead letters cannot be read; they are in quarantine");
        Ok(())
    }

    /// Writes the store anew if it takes far more disk than what is in it.
    fn give_disk_back(&mut self) {
        let disk = dir_bytes(&self.dir);
        let (live, is_empty) = {
            let tally = self.counts.tally();
            (tally.bytes, tally.events + tally.graves == 0)
        };
        let bound = match is_empty {
            true => EMPTY_DISK_BYTES,
            false => SPARSE_DISK_BYTES.max(SPARSE_FACTOR * live),
        };
        let (live_then, disk_then) = self.rewritten;
        // If that did not help enough, it does not until much has changed.
        let has_changed = live < live_then / 2 || disk > 2 * disk_then;
        if disk <= bound || !has_changed {
            return;
        }
        self.rewritten = match self.rewrite() {
            Ok(()) => {
                let after = dir_bytes(&self.dir);
                info!(before = disk, after, "the dead letters take less disk now");
                (live, after)
            }
            Err(error) => {
                warn!(%error, "failed to write the dead letters anew; they stay as they were");
                (live, disk)
            }
        };
    }

    /// A crash at any point leaves the old store or the new one, and both hold the same.
    fn rewrite(&mut self) -> Result<(), StoreError> {
        let (new, old) = (beside(&self.dir, "new"), beside(&self.dir, "old"));
        let Some(store) = &self.store else {
            return Ok(());
        };
        remove_dir(&new)?;
        let copied = Store::open(&new, &self.barrier).and_then(|to| copy(store, &to));
        if let Err(error) = copied {
            remove_dir(&new)?;
            return Err(error);
        }
        self.store = None;
        fs::rename(&self.dir, &old)?;
        fs::rename(&new, &self.dir)?;
        files::sync_parent(&self.dir)?;
        self.suspect = false;
        self.open()?;
        Ok(())
    }
}

/// Finishes or undoes what a crash interrupted: the old store counts until the new one has its name.
fn clear_away(dir: &Path) -> io::Result<()> {
    let (new, old) = (beside(dir, "new"), beside(dir, "old"));
    if !dir.exists() && old.exists() {
        fs::rename(&old, dir)?;
        files::sync_parent(dir)?;
    }
    remove_dir(&new)?;
    remove_dir(&old)
}

fn beside(dir: &Path, what: &str) -> PathBuf {
    dir.with_added_extension(what)
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

pub(super) fn scan(
    store: &Store,
    range: (LetterId, LetterId),
    mut visit: impl FnMut(LetterId, &[u8]) -> bool,
) -> Result<(), StoreError> {
    store.scan(&range.0.0[..]..=&range.1.0[..], |key, value| {
        // Nothing else is ever stored.
        key.try_into()
            .map(LetterId)
            .is_ok_and(|id| visit(id, value))
    })
}

/// What is stored under an id.
fn value(store: &Store, id: LetterId) -> Result<Option<Vec<u8>>, StoreError> {
    let mut found = None;
    scan(store, (id, id), |_, value| {
        found = Some(value.to_vec());
        false
    })?;
    Ok(found)
}

fn bury(
    store: &Store,
    counts: &Counts,
    letters: Vec<(LetterId, DeadLetter)>,
    max_bytes: u64,
) -> Result<Result<(), BuryError>, StoreError> {
    let letters: BTreeMap<_, _> = letters.into_iter().collect();
    let mut added = 0;
    for (id, letter) in &letters {
        if !store.contains(&id.0)? {
            added += letter_bytes(letter.encode().len());
        }
    }
    // All or nothing, so it is asked before anything is written.
    if added > 0 && counts.tally().bytes + added > max_bytes {
        return Ok(Err(BuryError::Full));
    }
    replace(store, counts, letters)?;
    Ok(Ok(()))
}

/// Writes letters, also over those that are there already: the sync that one of them came with may have failed.
fn replace(
    store: &Store,
    counts: &Counts,
    letters: impl IntoIterator<Item = (LetterId, DeadLetter)>,
) -> Result<(), StoreError> {
    let mut writing = Writing::new(store, counts);
    for (id, letter) in letters {
        if let Some(before) = value(store, id)? {
            writing.remove(id, before);
        }
        let stored = letter.encode();
        writing.changes.put(&id.0, &stored);
        writing.added.push((Group::of(&letter), stored.len()));
        writing.commit_if_large()?;
    }
    writing.commit()
}

/// Removes letters, and leaves graves where their lanes may read the events again after a crash.
fn remove(
    store: &Store,
    counts: &Counts,
    saved: &SavedCursors,
    ids: &[LetterId],
) -> Result<u64, StoreError> {
    let mut writing = Writing::new(store, counts);
    let mut removed = 0;
    for id in ids {
        let Some(before) = value(store, *id)? else {
            continue;
        };
        let lane = DeadLetter::decode_head(&before).and_then(|letter| letter.lane);
        writing.remove(*id, before);
        removed += 1;
        if let Some(lane) = lane.as_ref().map(LaneName::id)
            && may_be_read_again(*id, lane, saved)
        {
            let lane = lane.0.to_be_bytes();
            writing.changes.put(&id.grave().0, &lane);
            writing.graves += 1;
        }
        writing.commit_if_large()?;
    }
    writing.commit()?;
    Ok(removed)
}

/// Removes the graves that the cursors on disk have passed.
fn level_graves(store: &Store, counts: &Counts, saved: &SavedCursors) -> Result<(), StoreError> {
    let mut passed = Vec::new();
    scan(store, LetterId::GRAVES, |id, value| {
        let lane = value.try_into().map(u64::from_be_bytes).map(LaneId);
        if !lane.is_ok_and(|lane| may_be_read_again(id, lane, saved)) {
            passed.push(id);
        }
        true
    })?;
    let mut writing = Writing::new(store, counts);
    for id in passed {
        writing.changes.remove(&id.0);
        writing.graves -= 1;
        writing.commit_if_large()?;
    }
    writing.commit()
}

fn may_be_read_again(id: LetterId, lane: LaneId, saved: &SavedCursors) -> bool {
    id.place()
        .is_some_and(|(position, index)| !saved.have_passed(lane, position, index))
}

/// Changes on their way to the store, counted once they are there.
struct Writing<'a> {
    store: &'a Store,
    counts: &'a Counts,
    changes: Changes,
    added: Vec<(Group, usize)>,
    removed: Vec<(Group, usize)>,
    graves: i64,
}

impl<'a> Writing<'a> {
    fn new(store: &'a Store, counts: &'a Counts) -> Writing<'a> {
        Writing {
            store,
            counts,
            changes: Changes::default(),
            added: Vec::new(),
            removed: Vec::new(),
            graves: 0,
        }
    }

    fn remove(&mut self, id: LetterId, value: Vec<u8>) {
        self.changes.remove(&id.0);
        if let Some(letter) = DeadLetter::decode_head(&value) {
            self.removed.push((Group::of(&letter), value.len()));
        }
    }

    fn commit_if_large(&mut self) -> Result<(), StoreError> {
        if self.changes.bytes() < COMMIT_BYTES {
            return Ok(());
        }
        self.commit()
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        if self.changes.bytes() == 0 {
            return Ok(());
        }
        self.store.commit(std::mem::take(&mut self.changes))?;
        let mut tally = self.counts.tally();
        for (group, stored) in self.removed.drain(..) {
            tally.remove(&group, stored);
        }
        for (group, stored) in self.added.drain(..) {
            tally.add(group, stored);
        }
        tally.graves = tally.graves.saturating_add_signed(self.graves);
        self.graves = 0;
        Ok(())
    }
}

fn read(
    store: &Store,
    after: Option<LetterId>,
    filter: &Filter,
    letters_max: usize,
) -> Result<Portion, StoreError> {
    let range = filter.range(after);
    let mut portion = Portion::default();
    let (mut scanned, mut taken, mut more) = (0, 0, false);
    if range.0 > range.1 {
        return Ok(portion);
    }
    scan(store, range, |id, value| {
        more = portion.letters.len() >= letters_max
            || taken >= PORTION_BYTES
            || scanned >= PORTION_SCANNED_BYTES;
        if more {
            return false;
        }
        portion.next = Some(id);
        scanned += value.len();
        if let Some(letter) = DeadLetter::decode_head(value).filter(|l| filter.admits(id, l)) {
            taken += value.len();
            let event = DeadLetter::decode(value).map(|whole| whole.event);
            portion.letters.push((
                id,
                DeadLetter {
                    event: event.unwrap_or_default(),
                    ..letter
                },
            ));
        }
        true
    })?;
    portion.next = portion.next.filter(|_| more);
    Ok(portion)
}

pub(super) fn buried(store: &Store, records: &[RecordPlace]) -> Result<Vec<Vec<u32>>, StoreError> {
    let in_record = |(position, accepted_at_ms): &RecordPlace| {
        let mut places = Vec::new();
        let (first, last) = LetterId::of_record(*position);
        for (first, last) in [(first, last), (first.grave(), last.grave())] {
            store.scan_keys(&first.0[..]..=&last.0[..], |key| {
                let id = key.try_into().map(LetterId).ok();
                let id = id.filter(|id| id.accepted_at_ms() == *accepted_at_ms);
                places.extend(id.and_then(LetterId::place).map(|(_, index)| index));
                true
            })?;
        }
        places.sort_unstable();
        Ok(places)
    };
    records.iter().map(in_record).collect()
}

fn have_none_of(store: &Store, first: Position, last: Position) -> Result<bool, StoreError> {
    let (first, last) = (LetterId::of_record(first).0, LetterId::of_record(last).1);
    let mut none = true;
    for (first, last) in [(first, last), (first.grave(), last.grave())] {
        store.scan_keys(&first.0[..]..=&last.0[..], |_| {
            none = false;
            false
        })?;
    }
    Ok(none)
}

/// Copies letters and graves into an empty store.
fn copy(from: &Store, to: &Store) -> Result<(), StoreError> {
    let mut changes = Changes::default();
    let mut copied = Ok(());
    scan(from, (LetterId::ALL.0, LetterId::GRAVES.1), |id, value| {
        changes.put(&id.0, value);
        if changes.bytes() >= COMMIT_BYTES {
            copied = to.commit(std::mem::take(&mut changes)).map(|_| ());
        }
        copied.is_ok()
    })?;
    copied?;
    if changes.bytes() > 0 {
        to.commit(changes)?;
    }
    Ok(())
}
