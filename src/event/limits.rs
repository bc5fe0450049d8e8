//! Every limit an event or a request body has, with its unit and its reason.
//!
//! The size of a whole body is not among them: who reads the body bounds it.

/// Bytes of one event as stored, after stamping.
///
/// Segment says 32 KB without saying whether KB is 1000 or 1024, and most of its SDKs let 32 * 1024 pass.
pub const EVENT_BYTES_MAX: usize = 32_768;

/// Bytes of one event that Segment's webhooks post: it was an event of at most 32 KB, to which Segment has added what it knows.
pub const RECEIVED_BYTES_MAX: usize = 2 * EVENT_BYTES_MAX;

/// Members of one event. The smallest member takes five bytes (`"":1,`), so an event with more is above
/// [`EVENT_BYTES_MAX`]; knowing it early bounds the memory that a hostile event can ask for.
pub const EVENT_MEMBERS_MAX: usize = EVENT_BYTES_MAX / 5;

/// Parts of a dotted name in a pixel call. Real ones have two or three; the message they make is written recursively.
pub const PIXEL_DEPTH_MAX: usize = 32;

/// Events in one request.
///
/// Segment takes 2,500 in a call; a relay takes larger requests and splits them. This is above what 8 MiB of real events
/// hold, and bounds the memory that a body of `[1,1,1,…` can ask for.
pub const REQUEST_EVENTS_MAX: usize = 50_000;

/// Characters of a `messageId` that every part of Segment accepts: it asks for fewer than 100, and Unify silently drops
/// longer ones. A longer one is kept, because a changed id would defeat deduplication, but can be asked about.
pub const MESSAGE_ID_CHARS_MAX: usize = 99;

/// Bytes of a write key. Segment's have 32; the rest is room for other makes of the same API.
pub const WRITE_KEY_BYTES_MAX: usize = 256;
