//! Repacking: the thread that gives back the disk which a lane in trouble keeps from the others, or which many small records waste.
//!
//! A volume is deleted whole, so one lane that is held pins all that the others have been delivered of. And a record of one event takes
//! several times what the event takes in a full one. Where little of a sealed volume still waits, or its records are small, a copy is
//! made that takes its place under the same number:
//!
//! - It lacks the lanes which have passed the volume. A lane is left out only once the cursors *on disk* have passed all it has in the
//!   volume, so no later process can miss it.
//! - Neighbouring small records of a lane become full ones, at the position of the last of each. Only behind what the lane has read, and
//!   where nothing is settled and no dead letter, so that nobody knows an event by its place in a record that is gone.
//! - What else is kept is kept as it is stored: same records, same positions.
//!
//! A volume of small records that is still being written, but has rested, is sealed for it.
//!
//! A crash at any moment leaves the volume whole. The copy, `<number>.repacked/`, is durable before anything else changes; the
//! new summary is true of the old volume too; then the old one moves to `<number>.deleted/` and the copy
//! into its place. A start that finds a copy and no volume puts it there, and removes any other.
//!
//! Never waits for a reader: a volume that is being read is tried again later. Never touches a damaged one.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::files;
use super::lane::{Depth, Extent};
use super::name::{LaneId, LaneName};
use super::record::{Damaged, Header, Packer, Run, Unpacked, is_full, unpack};
use super::store::{Barrier, Changes, Store, StoreError, dir_bytes};
use super::volume::{SUMMARY, Summary, Volume, VolumeNumber, put_name, put_record};
use super::volumes::REPACKED;
use super::writer::{COMMIT_BYTES, IDLE_BYTES, Order};
use super::{Position, Shared};

/// A backlog that drains is left alone: only where nothing of a volume was settled for so long is it worth copying.
const REST: Duration = Duration::from_secs(5);
/// What could not be done, because of a reader or for want of room, is tried again after this.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// What the disk did not let it do is tried again after this.
const FAILED_RETRY_AFTER: Duration = Duration::from_secs(30);
/// What an empty database and its directory take, and the loss at the end of the last segment.
const COPY_OVERHEAD: u64 = 64 * 1024;
/// Less than this is not worth a copy.
const RECLAIM_MIN: u64 = 512 * 1024;
/// Records that hold fewer bytes of events than this, on average, are small: a quarter of a full one.
const SMALL_RECORD_BYTES: u64 = 12 * 1024;
/// What small records are expected to take once they are full ones, as a part of their events' bytes. Analytics JSON takes a sixth.
const FULL_RECORDS_SHARE: u64 = 5;
/// Records that were accepted within this time, in ms, may become one. It counts as accepted when the last of them was, so
/// `retry.max_age` may come so much late.
const MERGED_WITHIN_MS: u64 = 60_000;
/// Who waits for room waits no longer than this for one volume.
const RELIEVED_WITHIN: Duration = Duration::from_secs(10);

/// When volumes are repacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repacking {
    /// Where it gives back much for little: half of a volume that has rested, or less as the disk fills.
    WhenWorthIt,
    /// At once and for any gain: for tests.
    Always,
}

/// How the others reach the repacker.
#[derive(Debug, Default)]
pub(super) struct RepackerHandle {
    state: Mutex<State>,
    changed: Condvar,
    repacked_volumes: AtomicU64,
    reclaimed_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    woken: bool,
    stopping: bool,
    /// Somebody cannot go on for want of room.
    is_room_wanted: bool,
    /// How many rounds have begun, and how many have ended.
    begun: u64,
    ended: u64,
}

impl RepackerHandle {
    /// Cursors were saved, so that more may be left out.
    pub(super) fn wake(&self) {
        self.set(|state| state.woken = true);
    }

    /// Finish what is under way, and end.
    pub(super) fn stop(&self) {
        self.set(|state| state.stopping = true);
    }

    /// Blocks until a round has ended that began after this was called, and knew that room is wanted.
    pub(super) fn relieve(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_room_wanted = true;
        let wanted = state.begun + 1;
        self.changed.notify_all();
        let is_open = |state: &mut State| state.ended < wanted && !state.stopping;
        let waited = self
            .changed
            .wait_timeout_while(state, RELIEVED_WITHIN, is_open);
        drop(waited);
    }

    /// Volumes repacked, and the bytes that gave back, since the start.
    pub(super) fn totals(&self) -> (u64, u64) {
        (
            self.repacked_volumes.load(Ordering::Relaxed),
            self.reclaimed_bytes.load(Ordering::Relaxed),
        )
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    fn is_stopping(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.stopping
    }

    /// Waits until there may be something to do; none when it is time to end.
    fn next_round(&self, at: Option<Instant>) -> Option<Round> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.stopping {
                return None;
            }
            let left = at.map(|at| at.saturating_duration_since(Instant::now()));
            if state.woken || state.is_room_wanted || left == Some(Duration::ZERO) {
                state.woken = false;
                state.begun += 1;
                return Some(match std::mem::take(&mut state.is_room_wanted) {
                    true => Round::RoomIsWanted,
                    false => Round::Routine,
                });
            }
            let waited = self
                .changed
                .wait_timeout(state, left.unwrap_or(Duration::MAX));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Why it looks at the volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    Routine,
    /// Somebody waits until one volume has been repacked.
    RoomIsWanted,
}

/// The repacker's own state.
pub(super) struct Repacker {
    shared: Arc<Shared>,
    repacking: Repacking,
    /// What is known of the volumes that may be worth it.
    seen: HashMap<VolumeNumber, Seen>,
}

/// A volume that may be worth repacking.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// How many wait in it, or, while it is written, how many it holds.
    events: u64,
    next: Next,
}

/// When a volume is to be looked at, as long as the number of its events stays what it is.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// When it has rested, or at once where the disk is filling.
    RestedAt(Instant),
    At(Instant),
    /// When the disk is filling.
    UnderPressure,
    Never,
}

/// What became of a volume.
#[derive(Debug)]
enum Outcome {
    /// It takes so many bytes less.
    Reclaimed(u64),
    /// There is too little to gain.
    NotWorthIt,
    /// The cursors are not saved yet, a reader has it, or there is no room for the copy.
    NotNow,
}

impl Repacker {
    pub(super) fn new(shared: Arc<Shared>, repacking: Repacking) -> Repacker {
        Repacker {
            shared,
            repacking,
            seen: HashMap::new(),
        }
    }

    /// Works until it is stopped. It sleeps where no volume is waiting for it.
    pub(super) fn run(mut self) {
        let mut next = None;
        while let Some(round) = self.shared.repacker.next_round(next) {
            next = self.look(round);
            self.shared.repacker.set(|state| state.ended = state.begun);
        }
    }

    /// Looks at every volume, and repacks those that are worth it. Returns when to look again though nothing happened.
    fn look(&mut self, round: Round) -> Option<Instant> {
        let shared = Arc::clone(&self.shared);
        let mut volumes = shared.volumes.all();
        volumes.retain(|v| !v.is_settled() && !v.is_damaged());
        // The one of which least is left needs least room for its copy.
        volumes.sort_by_key(|v| v.unsettled());
        self.seen
            .retain(|number, _| volumes.iter().any(|v| v.number == *number));
        let (sealed, active): (Vec<_>, Vec<_>) = volumes.into_iter().partition(|v| v.is_sealed());
        let mut next = Vec::new();
        for volume in active {
            next.extend(self.seal_if_rested(&volume));
        }
        for volume in sealed {
            let is_pressed = round == Round::RoomIsWanted || self.is_pressed();
            let worth = self.worth(is_pressed);
            let unsettled = volume.unsettled();
            let is_small = volume.mean_record_bytes() < worth.small_record_bytes;
            if unsettled > worth.left_at_most(volume.held_events()) && !is_small {
                self.seen.remove(&volume.number);
                continue;
            }
            let due = self.due(&volume, unsettled, is_pressed);
            let due = match due {
                Some(at) if at <= Instant::now() && !shared.repacker.is_stopping() => {
                    let outcome = repack(&shared, &volume, &worth);
                    let is_relieved = matches!(outcome, Ok(Outcome::Reclaimed(_)));
                    let next = self.note(&volume, unsettled, is_pressed, outcome);
                    if is_relieved && round == Round::RoomIsWanted {
                        // Whoever waits can go on; then it is the others' turn.
                        shared.repacker.wake();
                        return None;
                    }
                    next
                }
                due => due,
            };
            next.extend(due);
        }
        next.into_iter().min()
    }

    /// Has a volume sealed that takes much for its small records, and that nothing has been added to for a while. Returns when to look
    /// whether that is so.
    fn seal_if_rested(&mut self, volume: &Volume) -> Option<Instant> {
        if volume.disk_bytes() <= IDLE_BYTES || volume.mean_record_bytes() >= SMALL_RECORD_BYTES {
            // The writer wakes this thread when it has become large.
            return None;
        }
        let due = self.due(volume, volume.held_events(), false)?;
        if due <= Instant::now() {
            // When the writer is too busy to take it, it has not rested.
            let _ = self.shared.orders.try_send(Order::Seal(volume.number));
            self.seen.remove(&volume.number);
            return Some(Instant::now() + REST);
        }
        Some(due)
    }

    fn is_pressed(&self) -> bool {
        let used = self.shared.volumes.disk_bytes();
        used / 3 > self.shared.capacity.bound(used) / 4
    }

    fn worth(&self, is_pressed: bool) -> Worth {
        match self.repacking {
            Repacking::Always => Worth::ANY,
            Repacking::WhenWorthIt if is_pressed => Worth::UNDER_PRESSURE,
            Repacking::WhenWorthIt => Worth::AT_REST,
        }
    }

    /// When a volume with so many events is to be judged; never, as far as that is known.
    fn due(&mut self, volume: &Volume, events: u64, is_pressed: bool) -> Option<Instant> {
        let fresh = Seen {
            events,
            next: Next::RestedAt(Instant::now() + REST),
        };
        let seen = self.seen.entry(volume.number).or_insert(fresh);
        if seen.events != events {
            *seen = fresh;
        }
        let is_hurried = is_pressed || self.repacking == Repacking::Always;
        match seen.next {
            Next::RestedAt(_) | Next::UnderPressure if is_hurried => Some(Instant::now()),
            Next::RestedAt(at) | Next::At(at) => Some(at),
            Next::UnderPressure | Next::Never => None,
        }
    }

    /// Remembers what became of a volume; returns when it is to be tried again, if nothing happens.
    fn note(
        &mut self,
        volume: &Volume,
        unsettled: u64,
        is_pressed: bool,
        outcome: Result<Outcome, StoreError>,
    ) -> Option<Instant> {
        let again = Instant::now() + RETRY_AFTER;
        let next = match outcome {
            Ok(Outcome::Reclaimed(bytes)) => {
                let handle = &self.shared.repacker;
                handle.repacked_volumes.fetch_add(1, Ordering::Relaxed);
                handle.reclaimed_bytes.fetch_add(bytes, Ordering::Relaxed);
                info!(
                    volume = volume.number,
                    reclaimed_bytes = bytes,
                    "repacked a volume"
                );
                Next::Never
            }
            Ok(Outcome::NotWorthIt) if is_pressed => Next::Never,
            Ok(Outcome::NotWorthIt) => Next::UnderPressure,
            Ok(Outcome::NotNow) => Next::At(again),
            Err(StoreError::Io(error)) => {
                warn!(volume = volume.number, %error, "failed to repack a volume; it is tried again");
                Next::At(Instant::now() + FAILED_RETRY_AFTER)
            }
            Err(StoreError::Corrupt(why)) => {
                warn!(volume = volume.number, why, "a volume cannot be repacked");
                Next::Never
            }
        };
        let events = unsettled;
        self.seen.insert(volume.number, Seen { events, next });
        match next {
            Next::At(at) => Some(at),
            Next::RestedAt(_) | Next::UnderPressure | Next::Never => None,
        }
    }
}

/// What a copy must give back.
struct Worth {
    /// The share of what a volume takes, in eighths.
    eighths: u64,
    bytes: u64,
    /// Records below this become full ones.
    small_record_bytes: u64,
}

impl Worth {
    const AT_REST: Worth = Worth {
        eighths: 4,
        bytes: RECLAIM_MIN,
        small_record_bytes: SMALL_RECORD_BYTES,
    };
    const UNDER_PRESSURE: Worth = Worth {
        eighths: 1,
        ..Worth::AT_REST
    };
    const ANY: Worth = Worth {
        eighths: 0,
        bytes: 0,
        small_record_bytes: u64::MAX,
    };

    /// How many of a volume's events may be waiting.
    fn left_at_most(&self, held_events: u64) -> u64 {
        held_events / 8 * (8 - self.eighths) + held_events % 8
    }

    fn is_reached(&self, disk_bytes: u64, reclaimed: u64) -> bool {
        reclaimed >= self.bytes && reclaimed >= disk_bytes / 8 * self.eighths
    }
}

/// Puts a copy in a volume's place that lacks the lanes which have passed it, and has full records in the place of small ones.
fn repack(shared: &Shared, volume: &Volume, worth: &Worth) -> Result<Outcome, StoreError> {
    let Some(summary) = files::load::<Summary>(&volume.summary_path(), SUMMARY)? else {
        // Writing it failed when the volume was sealed.
        return Ok(Outcome::NotWorthIt);
    };
    let has_passed = |(name, extent): &(LaneName, Extent)| {
        let lane = shared.lanes.find(name.id());
        lane.is_some_and(|lane| lane.cursor().position > extent.last)
    };
    let (passed, kept): (Vec<_>, Vec<_>) = summary.lanes.into_iter().partition(has_passed);
    let kept = kept.into_iter().map(|(name, extent)| Kept {
        merged: Some(extent)
            .filter(|extent| extent.mean_record_bytes() < worth.small_record_bytes)
            .and_then(|extent| unknown(shared, volume, &name, &extent)),
        name,
        extent,
    });
    let kept: Vec<_> = kept.collect();
    if passed.is_empty() && kept.iter().all(|lane| lane.merged.is_none()) {
        return Ok(Outcome::NotWorthIt);
    }
    let disk_bytes = volume.measure();
    let all: u64 = kept.iter().map(|lane| lane.extent.bytes).sum::<u64>() + bytes(&passed);
    let expected = kept.iter().map(|lane| lane.expected_bytes(disk_bytes, all));
    let copy_bytes = COPY_OVERHEAD + expected.sum::<u64>();
    if !worth.is_reached(disk_bytes, disk_bytes.saturating_sub(copy_bytes)) {
        return Ok(Outcome::NotWorthIt);
    }
    let is_saved = |(name, extent): &(LaneName, Extent)| {
        // The index does not matter: nothing of its last record may be read again.
        shared.saved.have_passed(name.id(), extent.last, u32::MAX)
    };
    if !passed.iter().all(is_saved) || !has_room(shared, copy_bytes) {
        return Ok(Outcome::NotNow);
    }
    let Some(mut copy) = Copy::of(shared, volume, &kept)? else {
        return Ok(Outcome::NotWorthIt);
    };
    // Of small records that cannot be merged, or that do not compress, more than was expected is left.
    if !worth.is_reached(disk_bytes, disk_bytes.saturating_sub(dir_bytes(&copy.dir))) {
        return Ok(Outcome::NotWorthIt);
    }
    let summary = Summary {
        lanes: std::mem::take(&mut copy.lanes),
        is_repacked: true,
    };
    let still_fits = || {
        let mut merged = kept.iter().filter(|lane| lane.merged.is_some());
        merged.all(|lane| unknown(shared, volume, &lane.name, &lane.extent) == lane.merged)
    };
    if !shared
        .volumes
        .replace(volume, &copy.dir, &summary, still_fits)?
    {
        return Ok(Outcome::NotNow);
    }
    Ok(Outcome::Reclaimed(
        disk_bytes.saturating_sub(volume.disk_bytes()),
    ))
}

/// A lane that stays in the copy.
struct Kept {
    name: LaneName,
    extent: Extent,
    /// What of its small records becomes full ones.
    merged: Option<Unknown>,
}

impl Kept {
    /// What it is expected to take in the copy, of a volume that takes `disk_bytes` for `all` bytes of events.
    fn expected_bytes(&self, disk_bytes: u64, all: u64) -> u64 {
        let as_it_is = |bytes| share(disk_bytes, bytes, all);
        let merged = self.merged.map_or(0, |merged| merged.depth.bytes);
        let kept = self.extent.bytes.saturating_sub(merged);
        as_it_is(kept) + as_it_is(merged).min(merged / FULL_RECORDS_SHARE)
    }
}

/// Events of a lane in a volume that nobody knows by their places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Unknown {
    /// The position from which on they lie.
    from: Position,
    depth: Depth,
}

/// Those of a lane's events in a volume of which none was read, settled or buried.
fn unknown(shared: &Shared, volume: &Volume, name: &LaneName, extent: &Extent) -> Option<Unknown> {
    let lane = shared.lanes.find(name.id())?;
    let (read_to, depth) = lane.unread_in(volume.number)?;
    let from = read_to.max(extent.first);
    let none_is_buried = shared.dead_letters.have_none_of(from, extent.last);
    (depth.events > 0 && none_is_buried == Ok(true)).then_some(Unknown { from, depth })
}

fn has_room(shared: &Shared, copy_bytes: u64) -> bool {
    let used = shared.volumes.disk_bytes();
    shared.capacity.has_room_for_copy(used, copy_bytes)
}

/// A copy being made. It is gone when it is dropped, unless it has taken its volume's place.
struct Copy<'a> {
    shared: &'a Shared,
    dir: PathBuf,
    lanes: Vec<(LaneName, Extent)>,
}

impl Copy<'_> {
    /// Copies these lanes, durably whatever durability the queue promises: the original will be gone. None where the queue is closed
    /// meanwhile, or a lane's records cannot be merged.
    fn of<'a>(
        shared: &'a Shared,
        volume: &Volume,
        lanes: &[Kept],
    ) -> Result<Option<Copy<'a>>, StoreError> {
        let mut copy = Copy {
            shared,
            dir: volume.dir().with_added_extension(REPACKED),
            lanes: Vec::new(),
        };
        copy.remove()?;
        files::create_dir(&copy.dir)?;
        let from = shared.volumes.open_to_copy(volume)?;
        let to = Store::open(&copy.dir, &Barrier::synced())?;
        for lane in lanes {
            let Some(extent) = copy.lane(volume, &from, &to, lane)? else {
                return Ok(None);
            };
            copy.lanes.push((lane.name.clone(), extent));
        }
        Ok(Some(copy))
    }

    /// Copies one lane. Returns what it has in the copy; none as for [`Copy::of`].
    fn lane(
        &self,
        volume: &Volume,
        from: &Store,
        to: &Store,
        lane: &Kept,
    ) -> Result<Option<Extent>, StoreError> {
        let extent = &lane.extent;
        let mut writing = Writing::new(lane.name.id(), lane.merged)?;
        put_name(&mut writing.changes, &lane.name)?;
        let (mut result, stopping) = (Ok(()), || self.shared.repacker.is_stopping());
        volume.frames(
            from,
            lane.name.id(),
            extent.first,
            extent.last,
            |position, frame| {
                result = match writing.add(position, frame) {
                    Ok(()) if writing.changes.bytes() >= COMMIT_BYTES => {
                        self.commit(to, std::mem::take(&mut writing.changes))
                    }
                    added => added,
                };
                result.is_ok() && !stopping()
            },
        )?;
        result?;
        if stopping() {
            return Ok(None);
        }
        writing.end_record();
        self.commit(to, std::mem::take(&mut writing.changes))?;
        if (writing.events, writing.bytes) != (extent.events, extent.bytes) {
            return Err(corrupt("it does not hold what its summary says"));
        }
        if writing
            .merging
            .is_some_and(|m| m.events != m.of.depth.events)
        {
            // Some of it was settled by an earlier process.
            return Ok(None);
        }
        Ok(Some(Extent {
            records: writing.records,
            ..*extent
        }))
    }

    fn commit(&self, to: &Store, changes: Changes) -> Result<(), StoreError> {
        to.commit(changes)?;
        self.shared.volumes.note_copy(dir_bytes(&self.dir));
        Ok(())
    }

    fn remove(&self) -> io::Result<()> {
        self.shared.volumes.note_copy(0);
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            warn!(path = %self.dir.display(), %error, "failed to remove an unfinished copy; the next start does");
        }
    }
}

/// A lane on its way into the copy.
struct Writing {
    lane: LaneId,
    changes: Changes,
    records: u64,
    events: u64,
    bytes: u64,
    /// Where small records become full ones.
    merging: Option<Merging>,
}

/// The record that small ones become.
struct Merging {
    of: Unknown,
    /// How many events were found of it.
    events: u64,
    packer: Packer,
    run: Run,
    /// Of the last of them: who has passed it has passed them all.
    position: Position,
    /// When the first and the last of them were accepted, in Unix ms.
    accepted_at_ms: (i64, i64),
}

impl Writing {
    fn new(lane: LaneId, merged: Option<Unknown>) -> io::Result<Writing> {
        let merging = |of| {
            Ok::<_, io::Error>(Merging {
                of,
                events: 0,
                packer: Packer::new()?,
                run: Run::default(),
                position: 0,
                accepted_at_ms: (0, 0),
            })
        };
        Ok(Writing {
            lane,
            changes: Changes::default(),
            records: 0,
            events: 0,
            bytes: 0,
            merging: merged.map(merging).transpose()?,
        })
    }

    /// Adds a record of the original.
    fn add(&mut self, position: Position, frame: &[u8]) -> Result<(), StoreError> {
        let header = Header::of(frame).map_err(|Damaged(why)| corrupt(why))?;
        self.events += u64::from(header.events);
        self.bytes += header.bytes;
        let Some(merging) = self.merging.as_ref().filter(|m| position >= m.of.from) else {
            put_record(&mut self.changes, self.lane, position, frame);
            self.records += 1;
            return Ok(());
        };
        let unpacked = unpack(frame).map_err(|Damaged(why)| corrupt(why))?;
        let waited = unpacked.accepted_at_ms.abs_diff(merging.accepted_at_ms.0);
        if is_full(merging.run.byte_len(), unpacked.bytes.len()) || waited > MERGED_WITHIN_MS {
            self.end_record();
        }
        if let Some(merging) = &mut self.merging {
            merging.add(position, &unpacked);
        }
        Ok(())
    }

    /// Puts the record down that small ones have become.
    fn end_record(&mut self) {
        let merging = self.merging.as_mut().filter(|m| !m.run.is_empty());
        let Some(merging) = merging else { return };
        let (position, (_, accepted_at_ms)) = (merging.position, merging.accepted_at_ms);
        let frame = merging.packer.pack(merging.run.iter(), accepted_at_ms);
        merging.run.clear();
        put_record(&mut self.changes, self.lane, position, &frame.bytes);
        self.records += 1;
    }
}

impl Merging {
    fn add(&mut self, position: Position, record: &Unpacked) {
        self.position = position;
        if self.run.is_empty() {
            self.accepted_at_ms.0 = record.accepted_at_ms;
        }
        self.accepted_at_ms.1 = record.accepted_at_ms;
        self.events += record.ends.len() as u64;
        record.events().for_each(|event| self.run.push(event));
    }
}

fn corrupt(why: &str) -> StoreError {
    StoreError::Corrupt(why.to_owned())
}

fn bytes(lanes: &[(LaneName, Extent)]) -> u64 {
    lanes.iter().map(|(_, extent)| extent.bytes).sum()
}

/// `part` of `all`, of `whole`.
fn share(whole: u64, part: u64, all: u64) -> u64 {
    let share = u128::from(whole) * u128::from(part) / u128::from(all.max(1));
    u64::try_from(share).unwrap_or(whole)
}
