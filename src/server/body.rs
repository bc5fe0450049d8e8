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

/// The bodies of all requests under way together, in KiB. What arrives beyond it waits for its turn.
const IN_FLIGHT_KIB: usize = 32 * 1024;
/// The least that a body counts for, in KiB.
const LEAST_KIB: usize = 16;

/// A body of which nothing arrives for this long is given up: it holds room that others wait for.
const PROGRESS_WITHIN: Duration = Duration::from_secs(10);
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
    in_flight: Semaphore,
}

/// A body that counts against the bound for as long as it lives.
#[derive(Debug)]
pub(super) struct Held<'a> {
    bytes: Bytes,
    _room: SemaphorePermit<'a>,
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
            in_flight: Semaphore::new(IN_FLIGHT_KIB),
        }
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
        let mut room = self.room(LEAST_KIB).await?;
        let packed = self.collect(body, &mut room).await?;
        if !gzip {
            return Ok(Held {
                bytes: packed,
                _room: room,
            });
        }
        // What it grows to is not known before: the whole cap, for as long as it takes to unpack what is already here.
        let mut unpacking = self.room(kib(self.max)).await?;
        let bytes = self.gunzip(&packed)?;
        let spare = unpacking.num_permits().saturating_sub(kib(bytes.len()));
        drop(unpacking.split(spare));
        Ok(Held {
            bytes,
            _room: unpacking,
        })
    }

    async fn collect<'a>(
        &'a self,
        body: &mut Incoming,
        room: &mut SemaphorePermit<'a>,
    ) -> Result<Bytes, BodyError> {
        let exact = body.size_hint().exact();
        let mut bytes = BytesMut::new();
        loop {
            let frame = tokio::time::timeout(PROGRESS_WITHIN, body.frame()).await;
            let Some(frame) = frame.map_err(|_| BodyError::Slow)? else {
                return Ok(bytes.freeze());
            };
            let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else {
                continue;
            };
            let len = bytes.len() + data.len();
            if len > self.max {
                return Err(BodyError::TooLarge { max: self.max });
            }
            let missing = kib(len).saturating_sub(room.num_permits());
            if missing > 0 {
                room.merge(self.room(missing).await?);
            }
            if exact == Some(data.len() as u64) {
                // It came in one piece: no copy.
                return Ok(data);
            }
            bytes.extend_from_slice(&data);
        }
    }

    /// Room for so many KiB, as soon as there is.
    async fn room(&self, kib: usize) -> Result<SemaphorePermit<'_>, BodyError> {
        let taking = self.in_flight.acquire_many(kib as u32);
        let taken = tokio::time::timeout(ROOM_WITHIN, taking).await;
        taken
            .map_err(|_| BodyError::Busy)?
            .map_err(|_| BodyError::Busy)
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
