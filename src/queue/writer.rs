//! The group-commit writer: one thread through which everything enters the queue.
//!
//! It takes every request that waits, builds records lane by lane, commits them, and answers all of them. While one commit
//! syncs, the next group gathers; no timer makes a lone request wait. An answer is given after the barrier has returned
//! for every record of the request, never before.
//!
//! A volume that failed to commit is finished: its answers are errors, it is sealed as it was before, and the next group
//! begins a new one. [`FAILURES_MAX`] failures in a row end the thread, and with it the process; a full disk does not count.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error, info};

use super::lane::{Extent, Lane};
use super::load::Load;
use super::name::LaneId;
use super::record::{Packer, Run};
use super::store::{Changes, Store, StoreError};
use super::volume::{Summary, Volume, put_name, put_record};
use super::{AppendError, Shared};

/// Requests that may wait for the next group. Their bodies are bounded by the listener; this bounds their number.
pub(super) const WAITING_MAX: usize = 4096;
/// A group closes once it has this many bytes of events; what waits beyond it makes the next group.
const GROUP_BYTES: usize = 4 * 1024 * 1024;
/// One commit stays well below sled's segment of 512 KiB as stored: larger ones have not survived every power cut.
const COMMIT_BYTES: usize = 192 * 1024;
/// An active volume that is settled and takes more disk than this is sealed early, so that an idle spool is small.
pub(super) const IDLE_BYTES: u64 = 4 * 1024 * 1024;
const FAILURES_MAX: u32 = 3;
/// Buffers of up to 64 KiB kept for the next group's lanes.
const SPARE_RUNS_MAX: usize = 16;

/// What the writer is asked for.
pub(super) enum Order {
    /// Store these events and answer once they are durable.
    Append {
        loads: Vec<(Arc<Lane>, Load)>,
        reply: oneshot::Sender<Result<(), AppendError>>,
    },
    /// Seal the active volume if all of it is settled.
    SealIfSettled,
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
                Some(Order::Append { loads, reply }) => {
                    let closing = self.write_group(loads, reply)?;
                    if closing {
                        break;
                    }
                }
                Some(Order::SealIfSettled) => self.seal_if_settled(),
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
        loads: Vec<(Arc<Lane>, Load)>,
        reply: Reply,
    ) -> Result<bool, StoreError> {
        let mut group = Group::default();
        let (mut closing, mut sealing) = (false, false);
        group.add(self, loads, reply);
        while group.bytes < GROUP_BYTES && !closing {
            match self.orders.try_recv() {
                Ok(Order::Append { loads, reply }) => group.add(self, loads, reply),
                Ok(Order::SealIfSettled) => sealing = true,
                Ok(Order::Close) => closing = true,
                Err(_) => break,
            }
        }
        group.pack_the_rest(self);
        let used = self.shared.volumes.disk_bytes();
        let answer = match self.shared.capacity.admit(used, group.stored_bytes()) {
            Ok(()) => self.store(&group.packed),
            Err(full) => {
                // Only sealed volumes give their disk back.
                self.seal();
                Err(full)
            }
        };
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

    fn pack(&mut self, lane: &Arc<Lane>, run: &mut Run) -> Packed {
        let position = self.shared.next_position.fetch_add(1, Ordering::Relaxed);
        let extent = Extent {
            first: position,
            last: position,
            records: 1,
            events: run.len() as u64,
            bytes: run.byte_len() as u64,
            accepted_at_ms: now_ms(),
        };
        Packed {
            lane: Arc::clone(lane),
            extent,
            frame: self.packer.pack(run, extent.accepted_at_ms),
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
            Err(error) => {
                error!(%error, "failed to store events; the next ones go to a new volume");
                if !error.is_disk_full() {
                    self.failures += 1;
                }
                self.retire();
                Err(AppendError::Storage)
            }
        }
    }

    fn commit(&mut self, packed: &[Packed]) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        let active = self.active()?;
        let commit = |store: &Store, changes| {
            let begun = Instant::now();
            store.commit(changes)?;
            shared.commits.add(begun.elapsed());
            Ok::<_, StoreError>(())
        };
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
                commit(&active.store, std::mem::take(&mut changes))?;
            }
        }
        if changes.bytes() > 0 {
            commit(&active.store, changes)?;
        }
        if active.volume.is_quarantined() {
            return Err(StoreError::Corrupt("a reader could not read it".into()));
        }
        active.volume.measure();
        active.publish(packed);
        Ok(())
    }

    /// The active volume; makes one where there is none that can be written.
    fn active(&mut self) -> Result<&mut Active, StoreError> {
        self.active.take_if(|a| a.volume.is_quarantined());
        if self.active.is_none() {
            let number = self.shared.next_volume.fetch_add(1, Ordering::Relaxed);
            let (volume, store) = self.shared.volumes.create(number)?;
            debug!(volume = number, "a new volume");
            // Who looks for it later has to know that there was one.
            self.shared.keeper.wake();
            self.active = Some(Active {
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

    /// Ends the active volume's writing; the next group begins a new one.
    fn seal(&mut self) {
        let Some(active) = self.active.take_if(|a| !a.volume.is_quarantined()) else {
            return;
        };
        active.volume.seal(&active.summary());
        info!(
            volume = active.volume.number,
            lanes = active.extents.len(),
            "sealed a volume"
        );
        if !active.volume.is_settled() {
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
        active.volume.seal(&active.summary());
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
            lane.publish(self.volume.number, extent);
        }
    }

    fn summary(&self) -> Summary {
        Summary {
            lanes: self
                .extents
                .values()
                .map(|(lane, extent)| (lane.name().clone(), *extent))
                .collect(),
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
    fn add(&mut self, writer: &mut Writer, loads: Vec<(Arc<Lane>, Load)>, reply: Reply) {
        self.replies.push(reply);
        for (lane, load) in loads {
            self.bytes += load.byte_len();
            let (_, open) = self
                .open
                .entry(lane.id())
                .or_insert_with(|| (Arc::clone(&lane), writer.spare.pop().unwrap_or_default()));
            for event in load.iter() {
                if open.is_full_for(event.len()) {
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

/// The time of acceptance, in Unix ms: it tells ages, and orders nothing.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |d| d.as_millis() as i64)
}
