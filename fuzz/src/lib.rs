//! What the fuzz targets assert.
//!
//! The modules they try are taken in as they lie in the relay's source. Those import nothing of the relay, and without the
//! rest of it the targets are built in a minute, their coverage is that of what they try, and nothing is made public for
//! them.

#[path = "../../src/event/mod.rs"]
pub mod event;
#[path = "../../src/queue/record.rs"]
#[allow(dead_code, reason = "the queue uses what the targets do not")]
mod record;

mod body;
mod fields;
mod frame;

pub use body::check_body;
pub use fields::check_fields;
pub use frame::check_frame;
