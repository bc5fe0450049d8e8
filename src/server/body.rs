//! Reading a request's body: decoded, under a cap, and under a bound over all requests.

use std::fmt;
use std::io::Read;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH, EXPECT};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// What the bodies of all requests under way share, in KiB. A body that finds no room here waits for its turn, in which it may
/// grow to its cap, packed and unpacked: bodies that arrive together never wait for each other with nobody able to finish.
const SHARED_KIB: usize = 8 * 1024;
/// What those of them share that have arrived and are being stored, in KiB: enough to keep the writer busy. More would only take the
/// processors from delivery, while the events wait.
const STORING_KIB: usize = 3 * 1024;
/// The least that a body counts for, in KiB.
const LEAST_KIB: usize = 16;

/// A body of which nothing arrives for this long is given up: it holds room that others wait for.
const PROGRESS_WITHIN: Duration = Duration::from_secs(10);
/// A body is given up that arrives more slowly than this, in bytes a second, once it has had [`HEAD_START`]: one byte at a time would
/// hold its connection for ever. A line of the slowest kind in use brings several times as much.
const PACE_LEAST: u32 = 4096;
/// For a sender's pause or two.
const HEAD_START: Duration = Duration::from_secs(20);
/// A body whose turn it is must be there within this: others wait for the next turn.
const TURN_WITHIN: Duration = Duration::from_secs(2);
/// A body that finds no room for this long is refused: clients give up after 8 to 15 s.
const ROOM_WITHIN: Duration = Duration::from_secs(4);
/// How much of an unwanted body is read, in bytes, before its connection may be reset: several times what any SDK sends.
const DISCARD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// And for how long: less than the 8 s after which the most impatient client gives up.
const DISCARD_MAX: Duration = Duration::from_secs(5);

/// Why a body did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyError {
    /// It is over the cap, as sent or as decoded.
    TooLarge { max: usize },
    /// Other bodies took all the room for too long.
    Busy,
    /// It has an encoding other than gzip.
    Encoding,
    /// It is no whole gzip stream.
    Gzip,
    /// The connection broke, or its framing is wrong.
    Broken,
    /// It took too long.
    Slow,
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BodyError::TooLarge { max } => {
                write!(f, "the body is larger than {max} bytes when decoded")
            }
            BodyError::Busy => f.write_str("too many bodies are under way"),
            BodyError::Encoding => f.write_str("Content-Encoding is neither gzip nor identity"),
            BodyError::Gzip => {
                f.write_str("Content-Encoding says gzip, but the body is no whole gzip stream")
            }
            BodyError::Broken => f.write_str("the body did not arrive whole"),
            BodyError::Slow => f.write_str("the body did not arrive in time"),
        }
    }
}

/// Reads bodies.
#[derive(Debug)]
pub(super) struct Bodies {
    max: usize,
    shared: Semaphore,
    turn: Semaphore,
    storing: Semaphore,
}

/// A body that counts against the bound for as long as it lives.
#[derive(Debug)]
pub(super) struct Held<'a> {
    bytes: Bytes,
    room: Room<'a>,
}

impl<'a> Held<'a> {
    /// Lets go of the body, and still counts for as much.
    pub(super) fn into_room(self) -> Room<'a> {
        self.room
    }
}

impl std::ops::Deref for Held<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Bodies {
    /// For bodies of up to `max` bytes when decoded.
    pub(super) fn new(max: usize) -> Bodies {
        Bodies {
            max,
            shared: Semaphore::new(SHARED_KIB),
            turn: Semaphore::new(1),
            storing: Semaphore::new(STORING_KIB),
        }
    }

    /// Waits until a body that has arrived may be stored; it counts for as long as the permit lives.
    pub(super) async fn storing(&self, body: &Held<'_>) -> Result<SemaphorePermit<'_>, BodyError> {
        // A body that takes more than there is has all of it.
        let kib = kib(body.len()).clamp(LEAST_KIB, STORING_KIB);
        let permit = self.storing.acquire_many(kib as u32).await;
        permit.map_err(|_| BodyError::Busy)
    }

    /// Reads a body to its end and decodes it. It takes its room as its bytes arrive, so that a sender who stalls holds up nobody.
    pub(super) async fn read(
        &self,
        headers: &HeaderMap,
        body: &mut Incoming,
    ) -> Result<Held<'_>, BodyError> {
        let gzip = is_gzip(headers)?;
        if body.size_hint().lower() > self.max as u64 {
            return Err(BodyError::TooLarge { max: self.max });
        }
        let mut room = Room::default();
        room.add(self, LEAST_KIB).await?;
        let packed = self.collect(body, &mut room).await?;
        if !gzip {
            return Ok(Held {
                bytes: packed,
                room,
            });
        }
        // What it grows to is not known before: the whole cap, for as long as it takes to unpack what is already here.
        let packed_kib = room.shared_kib();
        room.add(self, kib(self.max)).await?;
        let bytes = self.gunzip(&packed)?;
        drop(packed);
        room.shrink(kib(bytes.len()).max(packed_kib));
        Ok(Held { bytes, room })
    }

    async fn collect<'a>(
        &'a self,
        body: &mut Incoming,
        room: &mut Room<'a>,
    ) -> Result<Bytes, BodyError> {
        let exact = body.size_hint().exact();
        let begun = Instant::now();
        let mut bytes = BytesMut::new();
        loop {
            let until = room.progress_until().min(begun + allowance(bytes.len()));
            let frame = tokio::time::timeout_at(until, body.frame()).await;
            let Some(frame) = frame.map_err(|_| room.late())? else {
                return Ok(bytes.freeze());
            };
            let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else {
                continue;
            };
            let len = bytes.len() + data.len();
            if len > self.max {
                return Err(BodyError::TooLarge { max: self.max });
            }
            room.add(self, kib(len).saturating_sub(room.shared_kib()))
                .await?;
            if exact == Some(data.len() as u64) {
                // It came in one piece: no copy.
                return Ok(data);
            }
            if bytes.is_empty() {
                // All at once where the length is known: growing by halves would take half as much again. Only what is written to is
                // memory in earnest.
                bytes.reserve(exact.map_or(0, |len| len as usize));
            }
            bytes.extend_from_slice(&data);
        }
    }

    fn gunzip(&self, packed: &[u8]) -> Result<Bytes, BodyError> {
        let mut bytes = Vec::new();
        // One byte beyond the cap tells a bomb from a body that just fits.
        let mut decoder = flate2::bufread::MultiGzDecoder::new(packed).take(self.max as u64 + 1);
        decoder
            .read_to_end(&mut bytes)
            .map_err(|_| BodyError::Gzip)?;
        if bytes.len() > self.max {
            return Err(BodyError::TooLarge { max: self.max });
        }
        Ok(bytes.into())
    }
}

/// What a body counts for: its part of what all share, and its turn, once it had to wait for that.
#[derive(Debug, Default)]
pub(super) struct Room<'a> {
    shared: Option<SemaphorePermit<'a>>,
    turn: Option<Turn<'a>>,
}

#[derive(Debug)]
struct Turn<'a> {
    _turn: SemaphorePermit<'a>,
    ends: Instant,
}

impl<'a> Room<'a> {
    /// Adds so many KiB, as soon as there are, unless it is this body's turn.
    async fn add(&mut self, bodies: &'a Bodies, kib: usize) -> Result<(), BodyError> {
        if self.turn.is_some() || kib == 0 {
            return Ok(());
        }
        let taking = async {
            tokio::select! {
                biased;
                shared = bodies.shared.acquire_many(kib as u32) => shared.map(|shared| match &mut self.shared {
                    Some(held) => held.merge(shared),
                    None => self.shared = Some(shared),
                }),
                turn = bodies.turn.acquire() => turn.map(|turn| {
                    let ends = Instant::now() + TURN_WITHIN;
                    self.turn = Some(Turn { _turn: turn, ends });
                }),
            }
        };
        tokio::time::timeout(ROOM_WITHIN, taking)
            .await
            .map_err(|_| BodyError::Busy)?
            .map_err(|_| BodyError::Busy)
    }

    /// Gives back what it shares beyond so many KiB.
    fn shrink(&mut self, kib: usize) {
        let spare = self.shared_kib().saturating_sub(kib);
        if let Some(shared) = &mut self.shared {
            drop(shared.split(spare));
        }
    }

    fn shared_kib(&self) -> usize {
        self.shared.as_ref().map_or(0, SemaphorePermit::num_permits)
    }

    /// What a body is that was not there by then: in its turn it is in the way of others, and may well be welcome later.
    fn late(&self) -> BodyError {
        match self.turn {
            Some(_) => BodyError::Busy,
            None => BodyError::Slow,
        }
    }

    /// By when the next piece of the body must be there.
    fn progress_until(&self) -> Instant {
        let ends = Instant::now() + PROGRESS_WITHIN;
        self.turn.as_ref().map_or(ends, |turn| turn.ends)
    }
}

/// Reads what is left of a body that nobody wants, within bounds. A connection closed with unread data is reset, and the sender,
/// still writing, would never see its answer and try again.
pub(super) async fn discard(body: &mut Incoming) {
    let reading = async {
        let mut left = DISCARD_BYTES_MAX;
        while left > 0
            && let Some(Ok(frame)) = body.frame().await
        {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        }
    };
    // However far it came, the answer goes out now.
    let _ = tokio::time::timeout(DISCARD_MAX, reading).await;
}

/// Whether a sender keeps the body until it is asked for, and has not been asked. Reading asks.
pub(super) fn is_kept(headers: &HeaderMap, body: &Incoming) -> bool {
    let waits = headers
        .get(EXPECT)
        .is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let whole = headers
        .get(CONTENT_LENGTH)
        .and_then(|len| len.to_str().ok()?.parse().ok());
    waits && whole.is_some() && whole == body.size_hint().exact()
}

/// How long a body may have taken of which so many bytes are here.
fn allowance(bytes: usize) -> Duration {
    HEAD_START + Duration::from_secs(bytes as u64) / PACE_LEAST
}

fn kib(bytes: usize) -> usize {
    bytes.div_ceil(1024)
}

fn is_gzip(headers: &HeaderMap) -> Result<bool, BodyError> {
    let Some(encoding) = headers.get(CONTENT_ENCODING) else {
        return Ok(false);
    };
    match encoding.to_str().map(str::trim) {
        Ok("") => Ok(false),
        Ok(name) if name.eq_ignore_ascii_case("identity") => Ok(false),
        Ok(name) if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") => {
            Ok(true)
        }
        _ => Err(BodyError::Encoding),
    }
}
