//! Where the parts of values lie, so that sled writes each of them once.
//!
//! sled writes an insertion down as it comes, but a whole leaf whenever it has taken ten, and two when it splits: by itself it
//! writes everything three times. So values do not lie under their keys. Their parts fill *slots*, numbered as they are filled, in
//! leaves that were split while they were empty ([`Slots`]), and are written once; under the key stands which slots they are:
//!
//! ```text
//! 'p' slot u32 → a part; empty where none has been put yet
//! 'v' key      → first slot u32 | length of the value u32
//! ```
//!
//! Knows sled's leaves and its cache, and nothing of files or syncs.

use std::io;
use std::ops::Range;

use sled::{Batch, Db, IVec};

use super::StoreError;

/// What a part may take. A leaf holds seventeen at most, twenty for a moment when two are merged: well below the 131,052 bytes from
/// which a page would go into `blobs/` (0.34.7, 512 KiB segments). And small, because sled's cache has 256 shards (src/lru.rs) and
/// keeps a page of each, however little it is allowed.
const PART_BYTES_MAX: usize = 3_400;
/// How often a part is looked up once it is written or read. A shard evicts only after 64 accesses (src/lru.rs), and the leaf of nine
/// parts that is met only as often as it must be stays in memory, and with it in the end a whole volume.
const CACHE_TOUCHES: usize = 6;

/// A value in its parts, in order.
pub(super) fn parts(value: &[u8]) -> Vec<IVec> {
    value.chunks(PART_BYTES_MAX).map(IVec::from).collect()
}

/// Where a value's parts lie.
#[derive(Clone, Copy)]
pub(super) struct Place {
    first: u32,
    bytes: u32,
}

impl Place {
    /// Puts the value that lies here into `value`, in the place of what is there.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] where it lacks a part.
    pub(super) fn read(self, db: &Db, value: &mut Vec<u8>) -> Result<(), StoreError> {
        value.clear();
        for slot in self.slots() {
            match db.get(part_key(slot))? {
                Some(part) if !part.is_empty() => value.extend_from_slice(&part),
                Some(_) | None => break,
            }
            touch(db, slot..slot + 1)?;
        }
        match value.len() == self.bytes as usize {
            true => Ok(()),
            false => Err(StoreError::Corrupt("a value lacks a part".into())),
        }
    }

    /// Has `batch` remove the value that lies here.
    pub(super) fn clear(self, batch: &mut Batch) {
        for slot in self.slots() {
            batch.remove(&part_key(slot));
        }
    }

    fn slots(self) -> Range<u32> {
        let parts = self.bytes.div_ceil(PART_BYTES_MAX as u32);
        self.first..self.first.saturating_add(parts)
    }

    /// As it stands under the value's key.
    pub(super) fn encode(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.first.to_be_bytes());
        bytes[4..].copy_from_slice(&self.bytes.to_be_bytes());
        bytes
    }

    /// What [`Place::encode`] made.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] for anything else.
    pub(super) fn decode(bytes: &[u8]) -> Result<Place, StoreError> {
        let bytes: [u8; 8] = bytes
            .try_into()
            .map_err(|_| StoreError::Corrupt("a value's place cannot be read".into()))?;
        let [a, b, c, d, e, f, g, h] = bytes;
        Ok(Place {
            first: u32::from_be_bytes([a, b, c, d]),
            bytes: u32::from_be_bytes([e, f, g, h]),
        })
    }
}

/// The slots of a store that is written to: empty values that wait to be filled, in the order of their numbers.
///
/// sled splits a leaf of seventeen keys when it meets it next, into nine and eight (0.34.7, src/node.rs), and writes a leaf anew with
/// its eleventh change, the leaf itself counted (src/pagecache/mod.rs). So once there are [`SLOTS_AHEAD`] slots behind it, a slot lies
/// in a leaf of nine that will never be split, and filling all nine makes ten: each part is written once.
pub(super) struct Slots {
    /// The next one to be filled.
    pub(super) next: u32,
    /// The first one that is not there yet.
    made: u32,
}

/// The last leaf holds at most seventeen keys, and what is in it may be split yet.
const SLOTS_AHEAD: u32 = 18;
/// So many are made at once.
const SLOTS_MADE: u32 = 64;

impl Slots {
    /// Goes on behind those that were made before.
    pub(super) fn of(db: &Db) -> Result<Slots, StoreError> {
        let made = match db.range(part_key(0)..=part_key(u32::MAX)).next_back() {
            None => 0,
            Some(last) => {
                let (key, _) = last?;
                let number = key[1..].try_into().map(u32::from_be_bytes);
                number.map_or(u32::MAX, |number| number.saturating_add(1))
            }
        };
        Ok(Slots { next: made, made })
    }

    /// Has `batch` fill the next ones with a value's parts. They must be ready before it is applied.
    ///
    /// # Errors
    /// There are no numbers left.
    pub(super) fn fill(
        &mut self,
        parts: Vec<IVec>,
        batch: &mut Batch,
    ) -> Result<Place, StoreError> {
        let place = Place {
            first: self.next,
            bytes: parts.iter().map(|part| part.len()).sum::<usize>() as u32,
        };
        for part in parts {
            batch.insert(&part_key(self.next), part);
            let full = || StoreError::Io(io::Error::other("a database has no slots left"));
            self.next = self.next.checked_add(1).ok_or_else(full)?;
        }
        Ok(place)
    }

    /// Makes what is missing of those taken and of those ahead of them.
    pub(super) fn make_ready(&mut self, db: &Db) -> Result<(), StoreError> {
        if self.made >= self.next.saturating_add(SLOTS_AHEAD) {
            return Ok(());
        }
        let end = self.next.saturating_add(SLOTS_AHEAD + SLOTS_MADE);
        for slot in self.made..end {
            db.insert(part_key(slot), &[])?;
        }
        self.made = end;
        Ok(())
    }
}

/// Has sled's cache let go of what was put or read before these slots.
pub(super) fn touch(db: &Db, slots: Range<u32>) -> Result<(), StoreError> {
    for slot in slots {
        for _ in 0..CACHE_TOUCHES {
            db.contains_key(part_key(slot))?;
        }
    }
    Ok(())
}

/// Parts sort before values, so that the last leaf of slots is never one with parts in it when a value comes behind it.
fn part_key(slot: u32) -> [u8; 5] {
    let mut key = [b'p'; 5];
    key[1..].copy_from_slice(&slot.to_be_bytes());
    key
}
