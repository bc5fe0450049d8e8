//! The row of volumes on disk: finding them at a start, opening them to read, deleting them, setting damaged ones aside.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{error, info, warn};

use super::cursors::Cursors;
use super::files;
use super::reserve::Reserve;
use super::store::{Barrier, Store, StoreError};
use super::volume::{SUMMARY, Summary, Volume, VolumeNumber};

/// Sealed volumes kept open because a lane is reading them.
const OPEN_SEALED_MAX: usize = 2;

/// What the name of a copy ends in that is to take a volume's place.
pub(super) const REPACKED: &str = "repacked";

/// The volumes on disk.
#[derive(Debug)]
pub(super) struct Volumes {
    dir: PathBuf,
    quarantine: PathBuf,
    barrier: Barrier,
    reserve: Arc<Reserve>,
    by_number: Mutex<BTreeMap<VolumeNumber, Arc<Volume>>>,
    /// Sealed volumes' databases kept open, the one used last at the back.
    open: Mutex<VecDeque<(VolumeNumber, Arc<Store>)>>,
    quarantined: AtomicU64,
    /// What the copy being made takes, in bytes.
    copy_bytes: AtomicU64,
}

impl Volumes {
    /// The volumes of a spool, none of them known yet.
    pub(super) fn new(
        dir: PathBuf,
        quarantine: PathBuf,
        barrier: Barrier,
        reserve: Arc<Reserve>,
    ) -> io::Result<Volumes> {
        files::create_dir(&dir)?;
        files::create_dir(&quarantine)?;
        let quarantined = numbers_in(&quarantine)?.collect::<BTreeSet<_>>().len() as u64;
        Ok(Volumes {
            dir,
            quarantine,
            barrier,
            reserve,
            by_number: Mutex::default(),
            open: Mutex::default(),
            quarantined: AtomicU64::new(quarantined),
            copy_bytes: AtomicU64::new(0),
        })
    }

    /// Finds what an earlier process left: for each volume that can be read, what it holds. Clears half-deleted ones away, and
    /// moves what cannot be read to quarantine. Of the volumes that are gone though the `cursors` have not passed them, what their
    /// summaries say is found as well: it will be missed when it is read.
    ///
    /// # Errors
    /// Where the disk does not let it look, or a volume fails for a reason that may pass.
    pub(super) fn recover(&self, cursors: &Cursors) -> io::Result<Vec<(Arc<Volume>, Summary)>> {
        let mut numbers = Vec::new();
        let mut not_passed: BTreeSet<_> = cursors.volumes.iter().copied().collect();
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
                (Some(parsed), REPACKED) if path.is_dir() => {
                    if self.is_taking_its_place(parsed, cursors) {
                        fs::rename(&path, self.dir.join(number))?;
                        files::sync(&self.dir)?;
                        numbers.push(parsed);
                    } else {
                        fs::remove_dir_all(&path)?;
                    }
                }
                (Some(parsed), "summary")
                    if self.dir.join(number).is_dir()
                        || self.is_taking_its_place(parsed, cursors)
                        || cursors.volumes.contains(&parsed) => {}
                // It was sealed after the cursors were saved for the last time.
                (Some(parsed), "summary")
                    if cursors.next_volume <= parsed
                        && matches!(files::load::<Summary>(&path, SUMMARY), Ok(Some(_))) =>
                {
                    not_passed.insert(parsed);
                }
                (Some(_), "summary" | "summary.new") if path.is_file() => fs::remove_file(&path)?,
                _ => {
                    warn!(path = %path.display(), "a foreign file lies among the volumes; it is left alone")
                }
            }
        }
        numbers.sort_unstable();
        // A copy put in its place while the directory was read may have been met twice.
        numbers.dedup();
        let mut found = Vec::new();
        for number in numbers {
            found.extend(self.recover_one(number)?);
        }
        found.extend(self.gone(&not_passed)?);
        found.sort_unstable_by_key(|(volume, _)| volume.number);
        Ok(found)
    }

    /// What there is to know of the volumes not passed that are neither here nor in quarantine.
    fn gone(&self, not_passed: &BTreeSet<VolumeNumber>) -> io::Result<Vec<(Arc<Volume>, Summary)>> {
        let in_quarantine: Vec<_> = numbers_in(&self.quarantine)?.collect();
        let gone = |number: &&VolumeNumber| {
            self.get(**number).is_none() && !in_quarantine.contains(number)
        };
        let found = not_passed.iter().filter(gone).filter_map(|&number| {
            let volume = Volume::new(&self.dir, number, true);
            let summary = files::load::<Summary>(&volume.summary_path(), SUMMARY);
            let summary = summary.ok().flatten();
            error!(
                volume = number,
                events = summary.as_ref().map(Summary::events),
                "a volume is gone, and what it held is lost"
            );
            Some((Arc::new(volume), summary?))
        });
        Ok(found.collect())
    }

    /// Whether there is a copy that was to take the place of a volume which is gone. One that was deleted or went to quarantine while it
    /// was copied is not to come back.
    fn is_taking_its_place(&self, number: VolumeNumber, cursors: &Cursors) -> bool {
        let dir = self.dir.join(number.to_string());
        let is_wanted = cursors.volumes.contains(&number) || cursors.next_volume <= number;
        let in_quarantine = self.quarantine.join(number.to_string()).exists();
        let copy = dir.with_added_extension(REPACKED);
        copy.is_dir() && !dir.is_dir() && is_wanted && !in_quarantine
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
        let summary = match volume.summary(&self.barrier, &self.reserve) {
            Ok(summary) => summary,
            // Going on without it would let the cursors pass what it holds.
            Err(StoreError::Io(e)) => return Err(e),
            Err(corrupt) => {
                self.move_to_quarantine(&volume, &corrupt);
                return Ok(None);
            }
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

    /// What all of them take on disk, in bytes, as last measured, with the copy that is being made.
    pub(super) fn disk_bytes(&self) -> u64 {
        let copy = self.copy_bytes.load(Ordering::Relaxed);
        copy + self.map().values().map(|v| v.disk_bytes()).sum::<u64>()
    }

    /// Notes what the copy being made takes.
    pub(super) fn note_copy(&self, bytes: u64) {
        self.copy_bytes.store(bytes, Ordering::Relaxed);
    }

    /// A volume's database for copying: it does not stay open.
    pub(super) fn open_to_copy(&self, volume: &Volume) -> Result<Arc<Store>, StoreError> {
        volume.open(&self.barrier)
    }

    /// A volume's database for reading. A sealed one stays open for the next reader.
    pub(super) fn open_for_reading(&self, volume: &Volume) -> Result<Arc<Store>, StoreError> {
        let store = self.reserve.with_room(|| volume.open(&self.barrier))?;
        if volume.is_sealed() {
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
        let _shut = volume.keep_shut();
        let deleted = volume.dir().with_added_extension("deleted");
        fs::rename(volume.dir(), &deleted)?;
        files::sync(&self.dir)?;
        match fs::remove_file(volume.summary_path()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        fs::remove_dir_all(&deleted)?;
        files::sync(&self.dir)
    }

    /// Puts the copy in `dir`, which is durable, in a volume's place. Returns false where somebody is reading the volume, it has
    /// gone, or, now that nobody can begin to read it, the copy is not `still_fit`.
    ///
    /// # Errors
    /// The disk's. The volume is whole all the same.
    pub(super) fn replace(
        &self,
        volume: &Volume,
        dir: &Path,
        summary: &Summary,
        still_fit: impl FnOnce() -> bool,
    ) -> io::Result<bool> {
        self.close(volume);
        let Some(_shut) = volume.shut()? else {
            return Ok(false);
        };
        if self.get(volume.number).is_none() || volume.is_damaged() || !still_fit() {
            return Ok(false);
        }
        // True of both: nobody will look for what it leaves out, and nobody counts records.
        files::save(&volume.summary_path(), SUMMARY, summary)?;
        let old = volume.dir().with_added_extension("deleted");
        fs::rename(volume.dir(), &old)?;
        if let Err(error) = files::sync(&self.dir).and_then(|()| fs::rename(dir, volume.dir())) {
            fs::rename(&old, volume.dir())?;
            return Err(error);
        }
        self.note_copy(0);
        volume.measure();
        volume.hold(summary);
        files::sync(&self.dir)?;
        fs::remove_dir_all(&old)?;
        files::sync(&self.dir)?;
        Ok(true)
    }

    /// Takes a volume that cannot be read out of the spool. It stays on disk, in `quarantine/`, for whoever can read more of it.
    pub(super) fn move_to_quarantine(&self, volume: &Volume, why: &StoreError) {
        volume.mark_quarantined();
        self.map().remove(&volume.number);
        self.close(volume);
        let _shut = volume.keep_shut();
        let to = self.quarantine.join(volume.number.to_string());
        let moved = files::create_dir(&self.quarantine)
            .and_then(|()| fs::rename(volume.dir(), &to))
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
        if let Err(e) = fs::rename(volume.summary_path(), to.with_added_extension("summary")) {
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
pub(super) fn numbers_in(dir: &Path) -> io::Result<impl Iterator<Item = VolumeNumber>> {
    let entries = fs::read_dir(dir)?;
    Ok(entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        let name = name.to_str()?;
        parse_number(name.split_once('.').map_or(name, |(number, _)| number))
    }))
}
