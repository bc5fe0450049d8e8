//! A record: a run of events of one lane as stored: compressed, checksummed, one position.
//!
//! ```text
//! version u8 = 1 | codec u8 (0 plain, 1 zstd) | events u32 | raw bytes u32 | accepted at, Unix ms i64 | crc32c u32 | payload
//! payload, unpacked: the length of each event, u32, then the events one after another
//! ```
//! Numbers are little-endian. The checksum covers the header before it and the payload as stored. Decoding trusts
//! nothing: whatever the bytes are, it answers with a record or an error, and allocates no more than [`RAW_BYTES_MAX`].

use std::cell::RefCell;

use bytes::Bytes;

/// A record is closed once it holds this much: above 32 KiB zstd gains little, below it loses much.
const FULL_BYTES: usize = 48 * 1024;
/// No record grows over this by taking another event in; a single larger event has a record to itself.
const TARGET_BYTES_MAX: usize = 64 * 1024;
/// What a frame may claim to unpack to. A lone event never comes near it; a damaged length might.
const RAW_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Fastest level: 7 times smaller at 620 MB/s on analytics JSON.
const ZSTD_LEVEL: i32 = 1;

const VERSION: u8 = 1;
const CODEC_PLAIN: u8 = 0;
const CODEC_ZSTD: u8 = 1;
const HEADER_BYTES: usize = 22;
const CHECKSUM_AT: usize = 18;

/// Several events, one after another in one buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Run {
    /// Adds one event. An event over 4 GiB cannot be held and is cut; the ingest listener's caps stay far below.
    pub fn push(&mut self, event: &[u8]) {
        self.bytes.extend_from_slice(event);
        self.close_event();
    }

    /// The buffer itself, to write one event into; [`Run::close_event`] ends it.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Makes all that was written to the buffer since the last event one event.
    pub fn close_event(&mut self) {
        self.ends
            .push(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX));
    }

    /// How many events there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The events' bytes added up.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// The event at `index`; none where there are no more than that.
    #[must_use]
    pub fn event(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.bytes.get(start as usize..end as usize)
    }

    /// The events in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> + Clone {
        (0..self.len()).filter_map(|index| self.event(index))
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }
}

/// Whether a record with events of so many bytes takes no further one of `more`.
pub(super) fn is_full(bytes: usize, more: usize) -> bool {
    bytes > 0 && (bytes >= FULL_BYTES || bytes + more > TARGET_BYTES_MAX)
}

/// Whether events of so many bytes fill a record by themselves.
pub(super) fn fills_one(bytes: usize) -> bool {
    (FULL_BYTES..=TARGET_BYTES_MAX).contains(&bytes)
}

/// A record that has no position yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) events: u64,
    /// Of the events, added up.
    pub(super) events_bytes: u64,
    pub(super) accepted_at_ms: i64,
    /// As stored.
    pub(super) bytes: Vec<u8>,
}

/// Packs events into frames, keeping its compressor and buffers from one to the next.
pub(super) struct Packer {
    zstd: zstd::bulk::Compressor<'static>,
    raw: Vec<u8>,
}

impl Packer {
    pub(super) fn new() -> std::io::Result<Packer> {
        Ok(Packer {
            zstd: zstd::bulk::Compressor::new(ZSTD_LEVEL)?,
            raw: Vec::new(),
        })
    }

    /// Packs events into one frame. What zstd does not make smaller is stored plain.
    pub(super) fn pack<'a>(
        &mut self,
        events: impl Iterator<Item = &'a [u8]> + Clone,
        accepted_at_ms: i64,
    ) -> Frame {
        self.raw.clear();
        let (mut count, mut events_bytes) = (0_u32, 0);
        for event in events.clone() {
            count += 1;
            events_bytes += event.len() as u64;
            self.raw
                .extend_from_slice(&(event.len() as u32).to_le_bytes());
        }
        for event in events {
            self.raw.extend_from_slice(event);
        }

        let packed = self.zstd.compress(&self.raw).ok();
        let (codec, payload) = match &packed {
            Some(packed) if packed.len() < self.raw.len() => (CODEC_ZSTD, packed),
            _ => (CODEC_PLAIN, &self.raw),
        };
        let mut frame = Vec::with_capacity(HEADER_BYTES + payload.len());
        frame.push(VERSION);
        frame.push(codec);
        frame.extend_from_slice(&count.to_le_bytes());
        frame.extend_from_slice(&(self.raw.len() as u32).to_le_bytes());
        frame.extend_from_slice(&accepted_at_ms.to_le_bytes());
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&frame), payload);
        frame.extend_from_slice(&checksum.to_le_bytes());
        frame.extend_from_slice(payload);
        Frame {
            events: u64::from(count),
            events_bytes,
            accepted_at_ms,
            bytes: frame,
        }
    }
}

/// What a frame's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) events: u32,
    /// The events' bytes added up.
    pub(super) bytes: u64,
    pub(super) accepted_at_ms: i64,
    codec: u8,
    raw_len: usize,
}

impl Header {
    /// Reads the header of a whole frame after checking all of it against its checksum.
    pub(super) fn of(frame: &[u8]) -> Result<Header, Damaged> {
        if frame.len() < HEADER_BYTES {
            return Err(Damaged("it is cut short"));
        }
        let stored = u32::from_le_bytes(array(&frame[CHECKSUM_AT..]));
        let payload = &frame[HEADER_BYTES..];
        if stored != crc32c::crc32c_append(crc32c::crc32c(&frame[..CHECKSUM_AT]), payload) {
            return Err(Damaged("its checksum does not match"));
        }
        if frame[0] != VERSION {
            return Err(Damaged("its version is not known"));
        }
        let events = u32::from_le_bytes(array(&frame[2..]));
        let raw_len = u32::from_le_bytes(array(&frame[6..])) as usize;
        let Some(bytes) = raw_len.checked_sub(events as usize * 4) else {
            return Err(Damaged("it claims more events than it has bytes"));
        };
        if raw_len > RAW_BYTES_MAX || (frame[1] == CODEC_PLAIN && raw_len != payload.len()) {
            return Err(Damaged("its length is wrong"));
        }
        Ok(Header {
            events,
            bytes: bytes as u64,
            accepted_at_ms: i64::from_le_bytes(array(&frame[10..])),
            codec: frame[1],
            raw_len,
        })
    }
}

/// A frame that is not what [`Packer::pack`] wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damaged(pub(super) &'static str);

/// The events of one frame. Cheap to clone: the bytes are shared.
#[derive(Clone, Debug)]
pub(super) struct Unpacked {
    pub(super) accepted_at_ms: i64,
    pub(super) bytes: Bytes,
    /// Where each event ends in `bytes`.
    pub(super) ends: Vec<u32>,
}

impl Unpacked {
    /// The events in order.
    pub(super) fn events(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |end| {
            let event = &self.bytes[start..*end as usize];
            start = *end as usize;
            event
        })
    }

    /// A part of the events, with their ends counted from its own beginning. None where there are not so many.
    pub(super) fn part(mut self, events: std::ops::Range<usize>) -> Option<Unpacked> {
        let end = |index: usize| match index.checked_sub(1) {
            None => Some(0),
            Some(before) => self.ends.get(before).copied(),
        };
        let (from, to) = (end(events.start)?, end(events.end)?);
        self.bytes = self.bytes.slice(from as usize..to as usize);
        self.ends.truncate(events.end);
        self.ends.drain(..events.start);
        self.ends.iter_mut().for_each(|end| *end -= from);
        Some(self)
    }
}

thread_local! {
    /// Making one for each frame would take longer than unpacking it.
    static UNPACKER: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Unpacks a frame.
pub(super) fn unpack(frame: &[u8]) -> Result<Unpacked, Damaged> {
    let header = Header::of(frame)?;
    let payload = &frame[HEADER_BYTES..];
    let raw = match header.codec {
        CODEC_PLAIN => payload.to_vec(),
        CODEC_ZSTD => UNPACKER
            .with_borrow_mut(|unpacker| {
                let unpacker = match unpacker {
                    Some(unpacker) => unpacker,
                    none => none.insert(zstd::bulk::Decompressor::new()?),
                };
                unpacker.decompress(payload, header.raw_len)
            })
            .map_err(|_| Damaged("its payload does not unpack"))?,
        _ => return Err(Damaged("its codec is not known")),
    };
    if raw.len() != header.raw_len {
        return Err(Damaged("its payload unpacks to another length"));
    }
    let (lengths, events) = raw.split_at(header.events as usize * 4);
    let mut end = 0u64;
    let mut ends = Vec::with_capacity(header.events as usize);
    for length in lengths.chunks_exact(4) {
        end += u64::from(u32::from_le_bytes(array(length)));
        if end > events.len() as u64 {
            return Err(Damaged("an event ends behind its record"));
        }
        ends.push(end as u32);
    }
    if end != events.len() as u64 {
        return Err(Damaged("its events do not fill it"));
    }
    let start = lengths.len();
    Ok(Unpacked {
        accepted_at_ms: header.accepted_at_ms,
        bytes: Bytes::from(raw).slice(start..),
        ends,
    })
}

/// The first `N` bytes of a slice that the caller has measured.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes[..N]
        .try_into()
        .expect("a slice of N bytes makes an array of N bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(events: &[&str]) -> Run {
        let mut run = Run::default();
        events.iter().for_each(|e| run.push(e.as_bytes()));
        run
    }

    #[test]
    fn a_record_is_unpacked_as_it_was_packed() {
        let long = "x".repeat(5000);
        for events in [
            &["{}", "", "{\"a\":1}"][..],
            &[long.as_str(); 10],
            &["\u{1}\u{7f}é"],
            &[],
        ] {
            let run = run(events);
            let frame = Packer::new().expect("zstd").pack(run.iter(), 42).bytes;
            let header = Header::of(&frame).expect("a header");
            assert_eq!(
                (header.events as usize, header.bytes as usize),
                (run.len(), run.byte_len())
            );
            let unpacked = unpack(&frame).expect("a record");
            assert_eq!(unpacked.accepted_at_ms, 42);
            assert_eq!(
                (&unpacked.bytes[..], &unpacked.ends),
                (&run.bytes[..], &run.ends)
            );
        }
    }

    #[test]
    fn the_example_in_the_documentation_is_what_is_stored() {
        let page = include_str!("../../docs/on-disk-format.md");
        let event = "{\"type\":\"track\"}";
        let frame = Packer::new()
            .expect("zstd")
            .pack(run(&[event]).iter(), 1_700_000_000_000)
            .bytes;
        let digits: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        let written: String = page.split_whitespace().collect();
        assert!(
            page.contains(event) && written.contains(&digits),
            "{digits}"
        );
        for (at, bytes, what) in [
            (CHECKSUM_AT, HEADER_BYTES - CHECKSUM_AT, "CRC-32C"),
            (10, CHECKSUM_AT - 10, "when it was accepted, i64"),
        ] {
            let row = format!("| {at} | {bytes} | {what}");
            assert!(page.contains(&row), "{row}");
        }
        let longest = format!("{} MiB at most", RAW_BYTES_MAX / 1024 / 1024);
        assert!(page.contains(&longest), "{longest}");
    }

    #[test]
    fn a_frame_with_any_flipped_bit_or_missing_byte_is_an_error() {
        let frame = Packer::new()
            .expect("zstd")
            .pack(run(&["{\"a\":1}", "{\"b\":2}"]).iter(), 7)
            .bytes;
        for at in 0..frame.len() {
            assert!(unpack(&frame[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut flipped = frame.clone();
                flipped[at] ^= 1 << bit;
                assert!(unpack(&flipped).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_unpacking_panic(mut bytes: Vec<u8>) {
            let _ = unpack(&bytes);
            // The same bytes behind a checksum that matches, so that what lies behind that check is reached too.
            if bytes.len() >= HEADER_BYTES {
                bytes[0] = VERSION;
                bytes[1] &= 1;
                let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..CHECKSUM_AT]), &bytes[HEADER_BYTES..]);
                bytes[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
                let _ = unpack(&bytes);
            }
        }
    }
}
