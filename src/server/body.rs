//! Reading a request's body: decoded, under a cap, and under a bound over all requests.

use std::fmt;
use std::io::Read;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::body::{Body, Incoming};
use hyper::header::CONTENT_ENCODING;
use tokio::sync::{Semaphore, SemaphorePermit};

/// The bodies of all requests under way together, in KiB. Requests beyond it wait for their turn before they are read.
const IN_FLIGHT_KIB: usize = 32 * 1024;
/// A body of unknown or small size counts for this much, in KiB.
const LEAST_KIB: usize = 16;

/// A body that has not arrived by then is given up: it holds room that others wait for.
const DEADLINE: Duration = Duration::from_secs(60);

/// How much of an unwanted body is read, in bytes, before its connection may be reset: several times what any SDK sends.
const DISCARD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// And for how long: less than the 8 s after which the most impatient client gives up.
const DISCARD_MAX: Duration = Duration::from_secs(5);

/// Why a body did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyError {
    /// It is over the cap, as sent or as decoded.
    TooLarge { max: usize },
    /// The server is going away.
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
            BodyError::Busy => f.write_str("the server is going away"),
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

    /// Reads a body to its end and decodes it.
    pub(super) async fn read(
        &self,
        headers: &HeaderMap,
        body: &mut Incoming,
    ) -> Result<Held<'_>, BodyError> {
        let too_large = BodyError::TooLarge { max: self.max };
        let gzip = is_gzip(headers)?;
        let hint = body.size_hint();
        if hint.lower() > self.max as u64 {
            return Err(too_large);
        }
        // A declared size is what it says. What a chunked or packed body grows to is not known before: the whole cap.
        let expected = match hint.exact() {
            Some(bytes) if !gzip => bytes as usize,
            _ => self.max,
        };
        let room = expected.div_ceil(1024).clamp(LEAST_KIB, IN_FLIGHT_KIB) as u32;
        let room = self
            .in_flight
            .acquire_many(room)
            .await
            .map_err(|_| BodyError::Busy)?;
        let collected = tokio::time::timeout(DEADLINE, self.collect(body, hint.exact())).await;
        let bytes = collected.map_err(|_| BodyError::Slow)??;
        let bytes = if gzip { self.gunzip(&bytes)? } else { bytes };
        Ok(Held { bytes, _room: room })
    }

    async fn collect(&self, body: &mut Incoming, exact: Option<u64>) -> Result<Bytes, BodyError> {
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else {
                continue;
            };
            if exact == Some(data.len() as u64) {
                // It came in one piece: no copy.
                return Ok(data);
            }
            if bytes.len() + data.remaining() > self.max {
                return Err(BodyError::TooLarge { max: self.max });
            }
            if bytes.is_empty() {
                bytes.reserve(exact.map_or(data.len(), |exact| exact as usize));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes.freeze())
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
