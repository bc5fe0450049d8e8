//! What a request brings to the writer for one lane: records that its events fill by themselves, and behind them events that are to
//! share one with those of other requests.
//!
//! Full records are packed where the request is served, on all processors, so that the writer's one thread has less to do. Gives no
//! positions: only the writer knows what comes first.

use std::sync::{Mutex, PoisonError};

use super::load::Load;
use super::record::{Frame, Packer, Run, fills_one, is_full};

/// Events on their way into a lane, in this order.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) full: Vec<Frame>,
    pub(super) rest: Load,
}

impl Parcel {
    /// Packs what fills records by itself.
    pub(super) fn of(load: Load, packers: &Packers, accepted_at_ms: i64) -> Parcel {
        let mut full = Vec::new();
        let packed = packers.with(|packer| {
            if fills_one(load.byte_len()) {
                full.push(packer.pack(load.iter(), accepted_at_ms));
                return load.len();
            }
            let (mut first, mut bytes) = (0, 0);
            for (index, event) in load.iter().enumerate() {
                if is_full(bytes, event.len()) {
                    let events = load.iter().skip(first).take(index - first);
                    full.push(packer.pack(events, accepted_at_ms));
                    (first, bytes) = (index, 0);
                }
                bytes += event.len();
            }
            first
        });
        let rest = match packed {
            Some(0) | None => load,
            Some(packed) => {
                let mut rest = Run::default();
                for event in load.iter().skip(packed) {
                    rest.push(event);
                }
                rest.into()
            }
        };
        Parcel { full, rest }
    }

    /// The events' bytes added up.
    pub(super) fn byte_len(&self) -> usize {
        let full: u64 = self.full.iter().map(|frame| frame.events_bytes).sum();
        full as usize + self.rest.byte_len()
    }
}

/// Packers that wait for the next request, as many as were at work at once.
#[derive(Default)]
pub(super) struct Packers(Mutex<Vec<Packer>>);

impl Packers {
    /// Lends one out; none where there is no memory for it.
    fn with<T>(&self, work: impl FnOnce(&mut Packer) -> T) -> Option<T> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = lock().pop();
        let mut packer = match waiting {
            Some(packer) => packer,
            None => Packer::new().ok()?,
        };
        let done = work(&mut packer);
        lock().push(packer);
        Some(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::record::unpack;

    #[test]
    fn full_records_and_the_rest_are_the_events_in_order() {
        for (count, bytes, records) in [
            (3, 100, 0),
            (100, 480, 0),
            (100, 600, 1),
            (109, 600, 1),
            (110, 600, 1),
            (400, 600, 4),
            (2, 40_000, 1),
            (3, 300_000, 2),
            (1, 300_000, 0),
        ] {
            let mut run = Run::default();
            for number in 0..count {
                let number = format!("{number:06}");
                run.push(number.repeat(bytes).get(..bytes).expect("ASCII").as_bytes());
            }
            let parcel = Parcel::of(run.clone().into(), &Packers::default(), 42);
            let case = format!("{count} events of {bytes} bytes");
            assert_eq!(parcel.full.len(), records, "{case}");
            assert_eq!(parcel.byte_len(), run.byte_len(), "{case}");
            let mut found = Vec::new();
            for frame in &parcel.full {
                let unpacked = unpack(&frame.bytes).expect("whole");
                assert_eq!(unpacked.accepted_at_ms, 42);
                assert_eq!(unpacked.ends.len() as u64, frame.events);
                found.extend_from_slice(&unpacked.bytes);
            }
            for event in parcel.rest.iter() {
                found.extend_from_slice(event);
            }
            assert_eq!(found, run.iter().collect::<Vec<_>>().concat(), "{case}");
        }
    }
}
