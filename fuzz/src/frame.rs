//! What `queue::record` promises of the frames it reads back from a disk.

use crate::record::{Header, Packer, Run, Unpacked, unpack};

/// Where a frame keeps its checksum, which covers all else.
const CHECKSUM: std::ops::Range<usize> = 18..22;

/// Unpacks the bytes as they are and with a checksum that fits them, and panics on the first promise that is broken.
pub fn check_frame(bytes: &[u8]) {
    check_unpacked(bytes);

    let mut frame = bytes.to_vec();
    if frame.len() >= CHECKSUM.end {
        let header = crc32c::crc32c(&frame[..CHECKSUM.start]);
        let checksum = crc32c::crc32c_append(header, &frame[CHECKSUM.end..]);
        frame[CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
        check_unpacked(&frame);
    }
}

fn check_unpacked(frame: &[u8]) {
    let Ok(unpacked) = unpack(frame) else {
        return;
    };
    let header = Header::of(frame).expect("what unpacks has a header");
    assert_eq!(header.events as usize, unpacked.ends.len());
    assert_eq!(header.bytes, unpacked.bytes.len() as u64);
    assert_eq!(header.accepted_at_ms, unpacked.accepted_at_ms);

    let events = events(&unpacked);
    assert_eq!(
        events.concat(),
        &unpacked.bytes[..],
        "events fill their record"
    );
    let mut run = Run::default();
    events.iter().for_each(|event| run.push(event));
    let mut packer = Packer::new().expect("zstd can start");
    let packed = packer.pack(&mut run, unpacked.accepted_at_ms);
    assert!(run.is_empty());
    let again = unpack(&packed).expect("what was packed unpacks");
    assert_eq!(self::events(&again), events);
    assert_eq!(again.accepted_at_ms, unpacked.accepted_at_ms);
}

fn events(unpacked: &Unpacked) -> Vec<&[u8]> {
    let starts = std::iter::once(0).chain(unpacked.ends.iter().copied());
    starts
        .zip(&unpacked.ends)
        .map(|(start, end)| &unpacked.bytes[start as usize..*end as usize])
        .collect()
}
