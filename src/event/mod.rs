//! What travels: the events of a request, from the body's bytes to the bytes that are stored.
//!
//! ```text
//! body ──decode──▶ Envelope { RawEvent, … } ──validate──▶ CheckedEvent ──stamp──▶ Event
//!        400: the whole request                 │ rejected: this event alone │
//! ```
//!
//! Three steps, each a pure function. Nothing here reads a clock, a disk or a socket; time and new ids are arguments.
//!
//! - [`decode_batch`] and [`decode_single`] split a body into its events; [`decode_pixel`] makes such a body from the
//!   fields of a pixel call. Only what makes the body as a whole unreadable is an error here: an item that is wrong in
//!   itself never costs its neighbours.
//! - [`validate()`] asks whether Segment would keep the event. Segment answers 200 to events it then discards, so what it
//!   would discard is found here, while the sender can still be told. Where the facts leave a doubt, the event is kept.
//! - [`stamp()`] writes the JSON object that is stored and later sent as it is. It adds only what is absent (`messageId`,
//!   `timestamp`, `type`, the envelope's `context` and `integrations`) and leaves out `sentAt`, which would be wrong by
//!   the time of delivery. Where asked to, it corrects the `timestamp` of a sender whose clock is off.
//!
//! Beside them, [`Facts`] are what a webhook chooses an accepted event by, and [`SharedSecret`] signs what it is sent.
//!
//! All else is forwarded byte for byte, because no parser agrees with every other: keys and values stay the text they
//! came as, whatever the length of a number, the escapes in a string or the depth of a value. Only the white space
//! between an event's own members goes. A member this module reads, given twice, is sent once, with the value that came
//! last: what was validated is what Segment sees. Stamping what was stamped changes nothing.
//!
//! No recursion follows the input, no input panics, and no `Debug`, `Display` or [`Rejection`] shows a payload or a whole
//! write key.

mod decode;
mod kind;
mod pixel;
mod write_key;

mod validate;

mod skew;
mod stamp;

mod facts;
mod secret;

pub mod limits;
mod rejection;

mod json;
mod message;

#[cfg(test)]
mod tests;

pub use decode::{Envelope, RawEvent, decode_batch, decode_event, decode_received, decode_single};
pub use facts::{Channel, Facts};
pub use kind::Kind;
pub use pixel::decode_pixel;
pub use rejection::{Code, Rejection};
pub use secret::SharedSecret;
pub use stamp::{Event, Stamp, stamp};
pub use validate::{CheckedEvent, validate};
pub use write_key::WriteKey;
