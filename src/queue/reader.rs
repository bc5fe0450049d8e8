//! Reading a lane: its records in order of acceptance, and settling them. One reader a lane.

use std::ops::Range;
use std::sync::Arc;

use tracing::{error, warn};

use super::Shared;
use super::lane::{Depth, Lane, Record};
use super::record::Unpacked;
use super::store::StoreError;
use super::unsettled::Stretch;

/// Reads one lane. Reading goes ahead of settling; what was read and never settled is read again by the next process.
#[derive(Debug)]
pub struct LaneReader {
    shared: Arc<Shared>,
    lane: Arc<Lane>,
}

/// What was read.
#[derive(Debug, Default)]
pub struct Reading {
    /// The records, without the events that are buried, and without those that an earlier process settled.
    pub records: Vec<Record>,
    /// The ordinals of events that an earlier process has made dead letters, and could not settle before it died. They are to be
    /// counted, and settled at once.
    pub buried: Vec<Range<u64>>,
}

/// The disk did not let the reader read, for a reason that may pass. Nothing was skipped.
#[derive(Debug)]
pub struct ReadError(StoreError);

impl std::fmt::Display for ReadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "failed to read the queue: {}", self.0)
    }
}

impl std::error::Error for ReadError {}

impl LaneReader {
    pub(super) fn new(shared: Arc<Shared>, lane: Arc<Lane>) -> LaneReader {
        LaneReader { shared, lane }
    }

    /// The lane it reads.
    #[must_use]
    pub fn lane(&self) -> &Arc<Lane> {
        &self.lane
    }

    /// What is there to be read.
    #[must_use]
    pub fn unread(&self) -> Depth {
        self.lane.unread()
    }

    /// Returns when something more has been published since it last returned.
    pub async fn published(&self) {
        self.lane.published.notified().await;
    }

    /// Reads on, from now on, and must be awaited to its end before the next: what it has read is not read again. Records of at least
    /// `bytes_min` bytes of events together, fewer where the lane has no more.
    ///
    /// # Errors
    /// [`ReadError`] where the disk fails for a reason that may pass.
    pub fn read(
        &self,
        bytes_min: usize,
    ) -> impl Future<Output = Result<Reading, ReadError>> + Send + use<> {
        let (shared, lane) = (Arc::clone(&self.shared), Arc::clone(&self.lane));
        let reading = tokio::task::spawn_blocking(move || read(&shared, &lane, bytes_min));
        // It panics only if reading did, and ends only with the runtime.
        async { reading.await.expect("reading ends with a result") }
    }

    /// Reads events again that were read before, as far as they are not settled.
    ///
    /// # Errors
    /// [`ReadError`] where the disk fails for a reason that may pass.
    pub async fn read_again(&self, ordinals: Range<u64>) -> Result<Vec<Record>, ReadError> {
        let (shared, lane) = (Arc::clone(&self.shared), Arc::clone(&self.lane));
        let reading = tokio::task::spawn_blocking(move || read_again(&shared, &lane, ordinals));
        // It panics only if reading did, and ends only with the runtime.
        reading.await.expect("reading ends with a result")
    }

    /// Settles events by their ordinals: they were delivered, or are safe as dead letters. Settling twice counts once.
    pub fn settle(&self, ordinals: Range<u64>) {
        let settled = self.lane.settle(ordinals);
        self.shared
            .settled(settled.iter().map(|part| (part.volume, part.events)));
    }
}

fn read(shared: &Shared, lane: &Lane, bytes_min: usize) -> Result<Reading, ReadError> {
    let mut reading = Reading::default();
    let mut bytes = 0;
    while bytes < bytes_min
        && let Some(span) = lane.next_span()
    {
        let Some(volume) = shared.volumes.get(span.volume) else {
            // Another lane's reader found it unreadable.
            give_up(shared, lane, span.volume, u64::MAX);
            continue;
        };
        let mut records: Vec<Record> = Vec::new();
        let scanned = shared.volumes.open_for_reading(&volume).and_then(|store| {
            let mut complete = true;
            volume.read(
                &store,
                lane.id(),
                span.from,
                span.last,
                |position, unpacked| {
                    for record in lane.note_read(span.volume, position, unpacked) {
                        bytes += record.bytes.len();
                        records.push(record);
                    }
                    complete = bytes < bytes_min || position == span.last;
                    bytes < bytes_min
                },
            )?;
            Ok(complete)
        });
        let is_first = reading.records.is_empty() && reading.buried.is_empty();
        let nothing_read = is_first && records.is_empty();
        bytes -= leave_out_buried(shared, lane, records, &mut reading);
        match scanned {
            Ok(false) => {}
            Ok(true) => give_up(shared, lane, span.volume, span.last),
            Err(StoreError::Io(e)) if nothing_read => {
                return Err(ReadError(StoreError::Io(e)));
            }
            Err(StoreError::Io(error)) => {
                warn!(lane = %lane.id(), %error, "failed to read on");
                break;
            }
            Err(corrupt) => {
                shared.volumes.move_to_quarantine(&volume, &corrupt);
                give_up(shared, lane, span.volume, u64::MAX);
            }
        }
    }
    Ok(reading)
}

/// Adds to `reading` what of the records is still to be delivered. An event of an earlier process may be a dead letter already:
/// its letter was durable before its lane's cursor was. Returns how many bytes were left out.
fn leave_out_buried(
    shared: &Shared,
    lane: &Lane,
    records: Vec<Record>,
    reading: &mut Reading,
) -> usize {
    let recovered = records
        .iter()
        .filter(|record| shared.saved.is_recovered(record.position));
    let places: Vec<_> = recovered
        .map(|record| (record.position, record.accepted_at_ms))
        .collect();
    let buried = match places.len() {
        0 => Ok(Vec::new()),
        _ => shared.dead_letters.buried(places),
    };
    let buried = buried.unwrap_or_else(|error| {
        warn!(lane = %lane.id(), %error, "events that are dead letters already may be sent again");
        Vec::new()
    });
    let mut buried = buried.into_iter();
    let mut left_out = 0;
    for record in records {
        let indexes = match shared.saved.is_recovered(record.position) {
            true => buried.next().unwrap_or_default(),
            false => Vec::new(),
        };
        let end = record.skipped + record.len() as u32;
        let mut rest = Some(record);
        for index in indexes {
            let Some(record) = rest.take_if(|r| (r.skipped..end).contains(&index)) else {
                continue;
            };
            let (before, event, after) = record.cut_out((index - record.skipped) as usize);
            left_out += event.bytes.len();
            reading.buried.push(event.first..event.first + 1);
            reading.records.extend(before);
            rest = after;
        }
        reading.records.extend(rest);
    }
    left_out
}

fn read_again(
    shared: &Shared,
    lane: &Lane,
    ordinals: Range<u64>,
) -> Result<Vec<Record>, ReadError> {
    let mut records = Vec::new();
    for stretch in lane.find(ordinals) {
        let Some(volume) = shared.volumes.get(stretch.volume) else {
            lose(shared, lane, &stretch);
            continue;
        };
        let found = shared.volumes.open_for_reading(&volume).and_then(|store| {
            let mut found = None;
            let at = stretch.position;
            volume.read(&store, lane.id(), at, at, |_, unpacked| {
                found = part(&stretch, unpacked);
                false
            })?;
            Ok(found)
        });
        match found {
            Ok(Some(record)) => records.push(record),
            Ok(None) => lose(shared, lane, &stretch),
            Err(StoreError::Io(error)) => return Err(ReadError(StoreError::Io(error))),
            Err(corrupt) => {
                shared.volumes.move_to_quarantine(&volume, &corrupt);
                lose(shared, lane, &stretch);
            }
        }
    }
    Ok(records)
}

/// The events of a stretch, where the stored record has them.
fn part(stretch: &Stretch, unpacked: Unpacked) -> Option<Record> {
    let start = stretch.index as usize;
    let len = (stretch.ordinals.end - stretch.ordinals.start) as usize;
    let Unpacked {
        accepted_at_ms,
        bytes,
        ends,
    } = unpacked.part(start..start + len)?;
    Some(Record {
        position: stretch.position,
        accepted_at_ms,
        first: stretch.ordinals.start,
        skipped: stretch.index,
        bytes,
        ends,
    })
}

/// Counts as lost what was read once and is not there any more, and leaves the queue as if it had been settled.
fn lose(shared: &Shared, lane: &Lane, stretch: &Stretch) {
    if let Some(volume) = shared.volumes.get(stretch.volume) {
        volume.mark_damaged();
    }
    let lost = lane.lose(stretch.ordinals.clone());
    let events: u64 = lost.iter().map(|part| part.events).sum();
    error!(lane = %lane.id(), volume = stretch.volume, events, "events were lost with what cannot be read again");
    shared.settled(lost.iter().map(|part| (part.volume, part.events)));
}

/// Counts as lost what is missing of a volume, and leaves the queue as if it had been settled: nobody else will.
fn give_up(shared: &Shared, lane: &Lane, volume: u64, through: u64) {
    let missing = lane.give_up(volume, through);
    if missing == 0 {
        return;
    }
    if let Some(volume) = shared.volumes.get(volume) {
        volume.mark_damaged();
    }
    error!(lane = %lane.id(), volume, events = missing, "events were lost with what cannot be read");
    shared.settled([(volume, missing)]);
}
