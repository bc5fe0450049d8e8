//! Looks at a stopped spool: what is in it, what waits, what is damaged or missing. Changes nothing: every database is read in a copy,
//! one at a time, and the spool is locked meanwhile.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Position;
use super::cursors::{self, Cursors, Stand};
use super::dead_letters::{Buried, LettersExam};
use super::files;
use super::lane::Extent;
use super::layout::{Layout, OpenError};
use super::name::{LaneId, LaneName};
use super::record::{Header, Unpacked, unpack};
use super::recovery::split;
use super::store::{Barrier, Store, dir_bytes, visible_damage};
use super::volume::{
    ALL_RECORDS, SUMMARY, Summary, UNACKNOWLEDGED_BYTES_MAX, VolumeNumber, add_extent, names,
    parse_record_key,
};
use super::volumes::numbers_in;
use crate::words::counted;

/// What a stopped spool is.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Exam {
    /// The volumes, oldest first, and then those in quarantine.
    pub volumes: Vec<VolumeExam>,
    /// The lanes that have something in a volume, or were paused.
    pub lanes: Vec<LaneExam>,
    /// The dead letters.
    pub dead_letters: LettersExam,
    /// What is wrong with the file of cursors: with an older one, or none, more is sent again than need be.
    pub cursors_trouble: Option<String>,
    /// Whether that is damage. A crash may leave the previous cursors alone.
    pub are_cursors_damaged: bool,
    /// Volumes that were never sealed and show no damage: what they held is not known, so what is missing from them cannot be counted.
    pub unchecked_volumes: Vec<u64>,
}

impl Exam {
    /// Whether something of the spool is known to be lost or damaged.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.are_cursors_damaged
            || self.dead_letters.is_damaged()
            || self.volumes.iter().any(VolumeExam::is_damaged)
    }
}

/// One volume.
#[derive(Clone, Debug, Default, Serialize)]
pub struct VolumeExam {
    /// Its number.
    pub number: u64,
    /// Whether its directory is gone, though something in it was not settled.
    pub is_gone: bool,
    /// Whether it is in quarantine: nothing of it is delivered any more.
    pub in_quarantine: bool,
    /// Whether it was sealed: nothing was written to it any more, and its summary says what it held.
    pub is_sealed: bool,
    /// What it takes on disk, in bytes.
    pub disk_bytes: u64,
    /// Records whose checksum matches.
    pub records: u64,
    /// Their events.
    pub events: u64,
    /// The events' bytes as JSON.
    pub bytes: u64,
    /// The events that are not settled. In quarantine, all of them: nobody knows.
    pub waiting_events: u64,
    /// Records that are there and cannot be read.
    pub damaged_records: u64,
    /// Events that the summary knows and that cannot be read.
    pub missing_events: u64,
    /// Positions between the first record and the last at which there is none. In a sealed volume they are missing events, or belong
    /// to a request that was answered with an error.
    pub gaps: u64,
    /// Why no more of it can be read.
    pub trouble: Option<String>,
}

impl VolumeExam {
    /// Whether something of it is lost.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.in_quarantine
            || self.is_gone
            || self.trouble.is_some()
            || self.damaged_records > 0
            || self.missing_events > 0
    }
}

/// One lane.
#[derive(Clone, Debug, Serialize)]
pub struct LaneExam {
    /// Its identity.
    pub id: String,
    /// The kind of destination.
    pub destination: String,
    /// Its key, masked.
    pub key: String,
    /// Whether an operator has paused it.
    pub is_paused: bool,
    /// Events that wait to be delivered.
    pub waiting_events: u64,
    /// Their bytes as JSON.
    pub waiting_bytes: u64,
    /// When the oldest of them was accepted, in Unix ms.
    pub oldest_ms: Option<i64>,
    /// Its events in quarantine, settled or not.
    pub quarantined_events: u64,
}

/// An event that can be read.
#[derive(Debug)]
pub struct Salvaged<'a> {
    /// Whose it is.
    pub lane: &'a LaneName,
    /// Whether it is settled: delivered, or a dead letter.
    pub is_settled: bool,
    /// Whether it lies in quarantine, where nobody knows whether it is settled.
    pub in_quarantine: bool,
    /// Its bytes.
    pub event: &'a [u8],
}

/// Reads the whole spool in `data_dir`. Copies are made in `scratch`, as large as the largest volume. Each event that can be read is
/// handed to `take`; `progress` is told how many volumes of how many have been read.
///
/// # Errors
/// There is no spool, a process has it, its format is not known, or the disk does not let it be read or copied; or what `take` says.
pub fn examine(
    data_dir: &Path,
    scratch: &Path,
    mut progress: impl FnMut(usize, usize),
    mut take: impl FnMut(Salvaged<'_>) -> io::Result<()>,
) -> Result<Exam, OpenError> {
    let layout = Layout::look_at(data_dir)?;
    let mut volumes = Vec::new();
    for (dir, in_quarantine) in [(layout.volumes(), false), (layout.quarantine(), true)] {
        for number in volumes_in(&dir)? {
            volumes.push((dir.join(number.to_string()), number, in_quarantine));
        }
    }
    let (cursors_trouble, are_cursors_damaged) = check_cursors(&layout, volumes.is_empty());
    let cursors = Cursors::load(&layout.cursors());
    let letters_dir = LettersExam::dir(&layout.dead_letters());
    let letters = copy(&letters_dir, scratch, "dead-letters")?;
    let (buried, mut dead_letters) = match &letters {
        Some(copy) => Buried::open(copy.path(), visible_damage(&letters_dir)?),
        None => Default::default(),
    };
    if letters.is_none() && layout.cursors().exists() {
        // Every start makes it.
        dead_letters.trouble = Some("their directory is gone".to_owned());
    }
    dead_letters.quarantined_stores = LettersExam::quarantined(&layout.quarantine())?;
    let mut examiner = Examiner {
        cursors: cursors
            .lanes
            .into_iter()
            .map(|(n, c)| (n.id(), (n, c)))
            .collect(),
        known_volumes: cursors.volumes.into_iter().collect(),
        lanes: BTreeMap::new(),
        buried,
        take: &mut take,
    };
    for name in &cursors.paused {
        examiner.lane(name).is_paused = true;
    }
    let gone = examiner.gone(&layout, &volumes)?;
    let mut exams = Vec::new();
    for (dir, number, in_quarantine) in &volumes {
        progress(exams.len(), volumes.len());
        exams.push(examiner.volume(dir, *number, *in_quarantine, scratch)?);
    }
    progress(exams.len(), volumes.len());
    exams.extend(gone);
    exams.sort_by_key(|exam| (exam.in_quarantine, exam.number));
    let unchecked = exams.iter().filter(|e| !e.is_sealed && !e.is_damaged());
    Ok(Exam {
        unchecked_volumes: unchecked.map(|exam| exam.number).collect(),
        volumes: exams,
        lanes: examiner.lanes.into_values().collect(),
        dead_letters,
        cursors_trouble,
        are_cursors_damaged,
    })
}

struct Examiner<'a> {
    cursors: HashMap<LaneId, (LaneName, Stand)>,
    /// The volumes that the cursors say are there.
    known_volumes: BTreeSet<VolumeNumber>,
    lanes: BTreeMap<LaneId, LaneExam>,
    buried: Buried,
    take: &'a mut dyn FnMut(Salvaged<'_>) -> io::Result<()>,
}

impl Examiner<'_> {
    fn lane(&mut self, name: &LaneName) -> &mut LaneExam {
        let id = name.id();
        self.lanes.entry(id).or_insert_with(|| LaneExam {
            id: id.to_string(),
            destination: name.destination.clone(),
            key: name.masked_key(),
            is_paused: false,
            waiting_events: 0,
            waiting_bytes: 0,
            oldest_ms: None,
            quarantined_events: 0,
        })
    }

    /// The volumes that are not there, though they must be: by the cursors, or by their own summaries.
    fn gone(
        &self,
        layout: &Layout,
        there: &[(PathBuf, VolumeNumber, bool)],
    ) -> io::Result<Vec<VolumeExam>> {
        let mut numbers = self.known_volumes.clone();
        numbers.extend(numbers_or_none(&layout.volumes())?);
        for (_, number, _) in there {
            numbers.remove(number);
        }
        let exams = numbers.into_iter().filter_map(|number| {
            let path = layout.volumes().join(format!("{number}.summary"));
            let summary = files::load::<Summary>(&path, SUMMARY).ok().flatten();
            let missing_events = summary.iter().flat_map(|summary| &summary.lanes);
            let missing_events = missing_events.map(|(name, extent)| {
                let none = Stand::default();
                let stand = self.cursors.get(&name.id()).map_or(&none, |(_, s)| s);
                split(number, extent, stand).1.events
            });
            let missing_events = missing_events.sum();
            // A crash may leave a summary behind when its volume is deleted, and all of that is settled.
            let is_gone = missing_events > 0 || self.known_volumes.contains(&number);
            is_gone.then(|| VolumeExam {
                number,
                is_gone,
                is_sealed: summary.is_some(),
                missing_events,
                trouble: Some(match summary {
                    Some(_) => "its directory is gone".to_owned(),
                    None => "its directory is gone; what it held is not known".to_owned(),
                }),
                ..VolumeExam::default()
            })
        });
        Ok(exams.collect())
    }

    fn volume(
        &mut self,
        dir: &Path,
        number: VolumeNumber,
        in_quarantine: bool,
        scratch: &Path,
    ) -> Result<VolumeExam, OpenError> {
        let summary = files::load::<Summary>(&dir.with_added_extension("summary"), SUMMARY);
        let mut exam = VolumeExam {
            number,
            in_quarantine,
            is_sealed: matches!(summary, Ok(Some(_))),
            disk_bytes: dir_bytes(dir),
            ..VolumeExam::default()
        };
        let summary = summary.unwrap_or_else(|error| {
            exam.trouble = Some(format!("its summary cannot be read: {error}"));
            None
        });
        let damage = visible_damage(dir)?;
        // A crash while a volume is made leaves files without content, and nothing that was accepted.
        if exam.is_sealed || self.known_volumes.contains(&number) || holds_content(dir) {
            exam.trouble = exam.trouble.or(damage);
        }
        let copy = copy(dir, scratch, &number.to_string())?;
        let mut found = BTreeMap::new();
        if let Some(copy) = &copy {
            match Store::open(copy.path(), &Barrier::os()) {
                Ok(store) => found = self.records(&store, &summary, &mut exam)?,
                Err(error) => exam.trouble = Some(error.to_string()),
            }
        }
        // As a start judges it.
        if !exam.is_sealed && exam.records == 0 && exam.disk_bytes > UNACKNOWLEDGED_BYTES_MAX {
            let why = format!(
                "nothing can be read of {}",
                counted(exam.disk_bytes, "byte")
            );
            exam.trouble.get_or_insert(why);
        }
        for (name, known) in summary.iter().flat_map(|summary| &summary.lanes) {
            let read = found.get(&name.id()).map_or(0, |e: &Extent| e.events);
            exam.missing_events += known.events.saturating_sub(read);
        }
        let first = found.values().map(|e| e.first).min();
        let last = found.values().map(|e| e.last).max();
        let places = first.zip(last).map_or(0, |(first, last)| last - first + 1);
        if summary.is_none_or(|summary| !summary.is_repacked) {
            exam.gaps = places.saturating_sub(exam.records + exam.damaged_records);
        }
        Ok(exam)
    }

    /// Reads every record of a volume. Returns what each lane has in it.
    fn records(
        &mut self,
        store: &Store,
        summary: &Option<Summary>,
        exam: &mut VolumeExam,
    ) -> io::Result<BTreeMap<LaneId, Extent>> {
        let mut names = names(store).unwrap_or_default();
        for (id, (name, _)) in &self.cursors {
            names.insert(*id, name.clone());
        }
        for (name, _) in summary.iter().flat_map(|summary| &summary.lanes) {
            names.insert(name.id(), name.clone());
        }
        let (mut found, mut taken) = (BTreeMap::new(), Ok(()));
        let (first, last) = ALL_RECORDS;
        let (alone, scanned) = store.scan_on(&first[..]..=&last[..], |key, frame| {
            let place = parse_record_key(key);
            let name = place.and_then(|(lane, _)| names.get(&lane));
            let unpacked = Header::of(frame).and_then(|header| Ok((header, unpack(frame)?)));
            let (Some((lane, position)), Some(name), Ok((header, record))) =
                (place, name, unpacked)
            else {
                exam.damaged_records += 1;
                return;
            };
            add_extent(&mut found, lane, Extent::of(position, &header));
            exam.records += 1;
            exam.events += u64::from(header.events);
            exam.bytes += header.bytes;
            if taken.is_ok() {
                taken = self.record(name, position, &record, exam);
            }
        });
        exam.damaged_records += alone;
        if let Err(error) = scanned {
            exam.trouble = Some(error.to_string());
        }
        taken.map(|()| found)
    }

    fn record(
        &mut self,
        name: &LaneName,
        position: Position,
        record: &Unpacked,
        exam: &mut VolumeExam,
    ) -> io::Result<()> {
        let none = Stand::default();
        let stand = self.cursors.get(&name.id());
        let Stand { cursor, beyond } = stand.map_or(&none, |(_, stand)| stand);
        let islands = beyond
            .iter()
            .filter_map(|island| island.within(exam.number, position));
        let islands: Vec<_> = islands.collect();
        let settled = match position.cmp(&cursor.position) {
            std::cmp::Ordering::Less => u32::MAX,
            std::cmp::Ordering::Equal => cursor.events,
            std::cmp::Ordering::Greater => 0,
        };
        let buried = self.buried.of_record(position, record.accepted_at_ms);
        let mut start = 0;
        for (index, end) in (0u32..).zip(&record.ends) {
            let event = &record.bytes[start as usize..*end as usize];
            start = *end;
            let is_settled = !exam.in_quarantine
                && (index < settled
                    || islands.iter().any(|island| island.contains(&index))
                    || buried.contains(&index));
            let lane = self.lane(name);
            if exam.in_quarantine {
                lane.quarantined_events += 1;
            } else if !is_settled {
                lane.waiting_events += 1;
                lane.waiting_bytes += event.len() as u64;
                let before = lane.oldest_ms.unwrap_or(i64::MAX);
                lane.oldest_ms = Some(before.min(record.accepted_at_ms));
            }
            exam.waiting_events += u64::from(!is_settled);
            (self.take)(Salvaged {
                lane: name,
                is_settled,
                in_quarantine: exam.in_quarantine,
                event,
            })?;
        }
        Ok(())
    }
}

/// What is wrong with the cursors, and whether that is damage.
fn check_cursors(layout: &Layout, no_volumes: bool) -> (Option<String>, bool) {
    let load = |path: &Path| files::load::<Cursors>(path, cursors::WHAT);
    match load(&layout.cursors()) {
        Ok(Some(_)) => (None, false),
        Err(error) => (Some(error.to_string()), true),
        Ok(None) => match load(&cursors::previous(&layout.cursors())) {
            Ok(Some(_)) => (Some("there are only the previous ones".to_owned()), false),
            Err(error) => (Some(error.to_string()), true),
            // A spool that was never used.
            Ok(None) if no_volumes => (None, false),
            Ok(None) => (Some("there are none".to_owned()), true),
        },
    }
}

/// The numbers of the volumes in a directory, in order; none where there is no such directory.
fn volumes_in(dir: &Path) -> io::Result<Vec<VolumeNumber>> {
    let mut numbers = numbers_or_none(dir)?;
    numbers.retain(|number| dir.join(number.to_string()).is_dir());
    Ok(numbers.into_iter().collect())
}

/// The numbers that the names in a directory bear; none where there is no such directory.
fn numbers_or_none(dir: &Path) -> io::Result<BTreeSet<VolumeNumber>> {
    match numbers_in(dir) {
        Ok(numbers) => Ok(numbers.collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

/// Whether something was written to a database.
fn holds_content(dir: &Path) -> bool {
    fs::metadata(dir.join("db")).is_ok_and(|db| db.len() > 0)
}

/// A copy of a database, which is gone when it is dropped; none where there is no database.
fn copy(dir: &Path, scratch: &Path, name: &str) -> io::Result<Option<tempfile::TempDir>> {
    if !dir.is_dir() {
        return Ok(None);
    }
    let prefix = format!("segspool-{name}-");
    let to = tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir_in(scratch)?;
    copy_all(dir, to.path())?;
    Ok(Some(to))
}

fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir(&to)?;
            copy_all(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
