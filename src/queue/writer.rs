//! The group-commit writer: one thread through which everything enters the queue.
//!
//! It takes every request that waits, builds records lane by lane, commits them, and answers all of them. While one commit
//! syncs, the next group gathers; no timer makes a lone request wait. An answer is given after the barrier has returned
//! for every record of the request, never before.
//!
//! A volume that failed to commit is finished: its answers are errors, it is sealed as it was before, and the next group
//! begins a new one. [`FAILURES_MAX`] failures in a row end the thread, and with it the process; a full disk does not count, and
//! nothing is tried on it until there is room again.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error, info};

use super::lane::{Extent, Lane};
use super::name::LaneId;
use super::parcel::Parcel;
use super::record::{Frame, Packer, Run, is_full};
use super::store::{Changes, Store, StoreError};
use super::volume::{Summary, Volume, VolumeNumber, put_name, put_record};
use super::{AppendError, Shared, now_ms};

/// Requests that may wait for the next group. Their bodies are bounded by the listener; this bounds their number.
pub(super) const WAITING_MAX: usize = 4096;
/// A group closes once it has this many bytes of events; what waits beyond it makes the next group.
const GROUP_BYTES: usize = 4 * 1024 * 1024;
/// What is applied at once stays well below sled's segment of 512 KiB as stored: larger batches have not survived every power cut.
pub(super) const COMMIT_BYTES: usize = 192 * 1024;
/// An active volume that is settled and takes more disk than this is sealed early, so that an idle spool is small.
pub(super) const IDLE_BYTES: u64 = 4 * 1024 * 1024;
/// What a new volume takes before anything is in it, at most: sled's first segment and its small files.
const EMPTY_VOLUME_BYTES: u64 = 640 * 1024;
const FAILURES_MAX: u32 = 3;
/// Buffers of up to 64 KiB kept for the next group's lanes.
const SPARE_RUNS_MAX: usize = 16;

/// What the writer is asked for.
pub(super) enum Order {
    /// Store these events and answer once they are durable.
    Append {
        parcels: Vec<(Arc<Lane>, Parcel)>,
        reply: oneshot::Sender<Result<(), AppendError>>,
    },
    /// Seal the active volume if all of it is settled.
    SealIfSettled,
    /// Seal the active volume if it is that one.
    Seal(VolumeNumber),
    /// Seal the active volume and end.
    Close,
}

/// The writer's own state.
pub(super) struct Writer {
    shared: Arc<Shared>,
    orders: mpsc::Receiver<Order>,
    packer: Packer,
    active: Option<Active>,
    failures: u32,
    /// Run buffers kept from group to group.
    spare: Vec<Run>,
}

/// The volume being written.
struct Active {
    volume: Arc<Volume>,
    store: Arc<Store>,
    /// What its directory takes besides the database's log.
    other_bytes: u64,
    extents: BTreeMap<LaneId, (Arc<Lane>, Extent)>,
}

/// A record ready to be stored.
struct Packed {
    lane: Arc<Lane>,
    extent: Extent,
    frame: Vec<u8>,
}

type Reply = oneshot::Sender<Result<(), AppendError>>;

impl Writer {
    /// A writer. It makes its first volume with its first group, so that a full disk does not keep the backlog from
    /// draining.
    ///
    /// # Errors
    /// Where there is no memory for a compressor.
    pub(super) fn new(
        shared: Arc<Shared>,
        orders: mpsc::Receiver<Order>,
    ) -> Result<Writer, StoreError> {
        Ok(Writer {
            packer: Packer::new()?,
            shared,
            orders,
            active: None,
            failures: 0,
            spare: Vec::new(),
        })
    }

    /// Works until it is told to close or nobody can ask any more.
    ///
    /// # Errors
    /// After [`FAILURES_MAX`] failures in a row.
    pub(super) fn run(mut self) -> Result<(), StoreError> {
        loop {
            let first = self.orders.blocking_recv();
            let _working = self.shared.pulse.work();
            match first {
                Some(Order::Append { parcels, reply }) => {
                    let closing = self.write_group(parcels, reply)?;
                    if closing {
                        break;
                    }
                }
                Some(Order::SealIfSettled) => self.seal_if_settled(),
                Some(Order::Seal(number)) => self.seal_if(number),
                Some(Order::Close) | None => break,
            }
        }
        self.orders.close();
        while let Ok(order) = self.orders.try_recv() {
            if let Order::Append { reply, .. } = order {
                let _ = reply.send(Err(AppendError::Closed));
            }
        }
        self.seal();
        Ok(())
    }

    /// Gathers what waits behind the first request, stores all of it and answers. Returns whether the queue is to close.
    fn write_group(
        &mut self,
        parcels: Vec<(Arc<Lane>, Parcel)>,
        reply: Reply,
    ) -> Result<bool, StoreError> {
        let mut group = Group::default();
        let (mut closing, mut sealing) = (false, false);
        group.add(self, parcels, reply);
        while group.bytes < GROUP_BYTES && !closing {
            match self.orders.try_recv() {
                Ok(Order::Append { parcels, reply }) => group.add(self, parcels, reply),
                Ok(Order::SealIfSettled) => sealing = true,
                // It is written to: let it rest first.
                Ok(Order::Seal(_)) => {}
                Ok(Order::Close) => closing = true,
                Err(_) => break,
            }
        }
        group.pack_the_rest(self);
        let answer = self
            .make_room(group.stored_bytes())
            .and_then(|()| self.store(&group.packed));
        for reply in group.replies {
            // A client that went away before the answer still has its events stored, once.
            let _ = reply.send(answer);
        }
        if self.failures >= FAILURES_MAX {
            return Err(StoreError::Io(io::Error::other(
                "three volumes in a row failed",
            )));
        }
        if answer.is_ok() {
            self.seal_if_full();
        }
        if sealing {
            self.seal_if_settled();
        }
        Ok(closing)
    }

    /// Lets a group in that takes `bytes` as stored, or says that the queue is full.
    fn make_room(&mut self, bytes: u64) -> Result<(), AppendError> {
        let shared = Arc::clone(&self.shared);
        if !shared.reserve.is_there() {
            // Only sealed volumes give their disk back.
            self.seal();
            return Err(AppendError::DiskFull);
        }
        let mut needed = self.needed(bytes);
        if !shared
            .capacity
            .has_room(shared.volumes.disk_bytes(), needed)
        {
            // Only sealed volumes give their disk back.
            self.seal();
            needed = self.needed(bytes);
            shared.make_room(needed);
        }
        shared.capacity.admit(shared.volumes.disk_bytes(), needed)
    }

    /// What a group of `bytes` takes, with the volume that it may begin.
    fn needed(&self, bytes: u64) -> u64 {
        match self.active {
            Some(_) => bytes,
            None => bytes + EMPTY_VOLUME_BYTES,
        }
    }

    fn pack(&mut self, lane: &Arc<Lane>, run: &mut Run) -> Packed {
        let frame = self.packer.pack(run.iter(), now_ms());
        run.clear();
        self.place(lane, frame)
    }

    /// Gives a record the next position.
    fn place(&mut self, lane: &Arc<Lane>, frame: Frame) -> Packed {
        let position = self.shared.next_position.fetch_add(1, Ordering::Relaxed);
        let extent = Extent {
            first: position,
            last: position,
            records: 1,
            events: frame.events,
            bytes: frame.events_bytes,
            accepted_at_ms: frame.accepted_at_ms,
        };
        Packed {
            lane: Arc::clone(lane),
            extent,
            frame: frame.bytes,
        }
    }

    /// Makes records durable, then publishes them to their lanes.
    fn store(&mut self, packed: &[Packed]) -> Result<(), AppendError> {
        let stored = self.commit(packed);
        match stored {
            Ok(()) => {
                self.failures = 0;
                Ok(())
            }
            Err(error) if error.is_disk_full() => {
                self.shared.reserve.give_up();
                self.retire();
                Err(AppendError::DiskFull)
            }
            Err(error) => {
                error!(%error, "failed to store events; the next ones go to a new volume");
                self.failures += 1;
                self.retire();
                Err(AppendError::Storage)
            }
        }
    }

    fn commit(&mut self, packed: &[Packed]) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        let active = self.active()?;
        let begun = Instant::now();
        let mut changes = Changes::default();
        let mut named = BTreeMap::new();
        for record in packed {
            if !active.extents.contains_key(&record.lane.id())
                && named.insert(record.lane.id(), ()).is_none()
            {
                put_name(&mut changes, record.lane.name())?;
            }
            put_record(
                &mut changes,
                record.lane.id(),
                record.extent.first,
                &record.frame,
            );
            if changes.bytes() >= COMMIT_BYTES {
                active.store.apply(std::mem::take(&mut changes))?;
            }
        }
        let db_bytes = active.store.commit(changes)?;
        shared.commits.add(begun.elapsed());
        if active.volume.is_quarantined() {
            return Err(StoreError::Corrupt("a reader could not read it".into()));
        }
        let before = active.volume.disk_bytes();
        active.volume.set_disk_bytes(active.other_bytes + db_bytes);
        active.publish(packed);
        if before <= IDLE_BYTES && active.volume.disk_bytes() > IDLE_BYTES {
            // From now on it may be worth sealing when it rests.
            shared.repacker.wake();
        }
        Ok(())
    }

    /// The active volume; makes one where there is none that can be written.
    fn active(&mut self) -> Result<&mut Active, StoreError> {
        self.active.take_if(|a| a.volume.is_quarantined());
        if self.active.is_none() {
            let number = self.shared.next_volume.load(Ordering::Relaxed);
            let created = self.shared.volumes.create(number);
            // Not before it is known: cursors that say its number was used and do not name it have passed it.
            self.shared.next_volume.fetch_add(1, Ordering::Release);
            let (volume, store) = created?;
            debug!(volume = number, "a new volume");
            // Who looks for it later has to know that there was one.
            self.shared.keeper.wake();
            self.active = Some(Active {
                other_bytes: volume.disk_bytes().saturating_sub(store.log_bytes()?),
                volume,
                store,
                extents: BTreeMap::new(),
            });
        }
        Ok(self.active.as_mut().expect("it was put there just now"))
    }

    fn seal_if_full(&mut self) {
        let Some(active) = &self.active else { return };
        if active.volume.disk_bytes() >= self.shared.volume_bytes {
            self.seal();
        }
    }

    fn seal_if_settled(&mut self) {
        let Some(active) = &self.active else { return };
        if active.volume.is_settled() && active.volume.measure() > IDLE_BYTES {
            self.seal();
        }
    }

    fn seal_if(&mut self, number: VolumeNumber) {
        if self
            .active
            .as_ref()
            .is_some_and(|a| a.volume.number == number)
        {
            self.seal();
        }
    }

    /// Ends the active volume's writing; the next group begins a new one.
    fn seal(&mut self) {
        let Some(active) = self.active.take_if(|a| !a.volume.is_quarantined()) else {
            return;
        };
        active.volume.seal(&active.summary(), &self.shared.reserve);
        info!(
            volume = active.volume.number,
            lanes = active.extents.len(),
            "sealed a volume"
        );
        if active.is_read() {
            // Its readers go on where they are, in the same open database.
            self.shared.volumes.keep_open(&active.volume, active.store);
        }
        self.shared.keeper.wake();
    }

    /// Ends a volume that failed. What was published of it stays to be read, from a database opened anew.
    fn retire(&mut self) {
        let Some(active) = self.active.take() else {
            return;
        };
        if active.volume.is_quarantined() {
            return;
        }
        active.volume.disown_store();
        active.volume.seal(&active.summary(), &self.shared.reserve);
        self.shared.keeper.wake();
    }
}

impl Active {
    fn publish(&mut self, packed: &[Packed]) {
        for Packed { lane, extent, .. } in packed {
            self.extents
                .entry(lane.id())
                .and_modify(|(_, e)| e.extend(extent))
                .or_insert_with(|| (Arc::clone(lane), *extent));
            self.volume.add(extent.events);
            self.volume.hold_more(extent);
            lane.publish(self.volume.number, extent);
        }
    }

    /// Whether a lane reads on in it, not in an earlier one. An open database takes memory that a backlog has no use for.
    fn is_read(&self) -> bool {
        let number = self.volume.number;
        let reads = |(lane, _): &(Arc<Lane>, Extent)| {
            lane.next_span().is_some_and(|span| span.volume == number)
        };
        self.extents.values().any(reads)
    }

    fn summary(&self) -> Summary {
        Summary {
            lanes: self
                .extents
                .values()
                .map(|(lane, extent)| (lane.name().clone(), *extent))
                .collect(),
            is_repacked: false,
        }
    }
}

/// The requests that one commit answers.
#[derive(Default)]
struct Group {
    bytes: usize,
    open: HashMap<LaneId, (Arc<Lane>, Run)>,
    packed: Vec<Packed>,
    replies: Vec<Reply>,
}

impl Group {
    fn add(&mut self, writer: &mut Writer, parcels: Vec<(Arc<Lane>, Parcel)>, reply: Reply) {
        self.replies.push(reply);
        for (lane, parcel) in parcels {
            self.bytes += parcel.byte_len();
            let (_, open) = self
                .open
                .entry(lane.id())
                .or_insert_with(|| (Arc::clone(&lane), writer.spare.pop().unwrap_or_default()));
            for frame in parcel.full {
                if !open.is_empty() {
                    self.packed.push(writer.pack(&lane, open));
                }
                self.packed.push(writer.place(&lane, frame));
            }
            for event in parcel.rest.iter() {
                if is_full(open.byte_len(), event.len()) {
                    self.packed.push(writer.pack(&lane, open));
                }
                open.push(event);
            }
        }
    }

    fn pack_the_rest(&mut self, writer: &mut Writer) {
        for (_, (lane, mut run)) in self.open.drain() {
            if !run.is_empty() {
                self.packed.push(writer.pack(&lane, &mut run));
            }
            if writer.spare.len() < SPARE_RUNS_MAX {
                writer.spare.push(run);
            }
        }
    }

    fn stored_bytes(&self) -> u64 {
        self.packed
            .iter()
            .map(|record| record.frame.len() as u64)
            .sum()
    }
}
