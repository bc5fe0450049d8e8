//! What the tail is told of events: who they belong to, and what they say of themselves. Never a payload.

use crate::event::Facts;
use crate::queue::LaneName;
use crate::stats::{Label, Source, What};

/// What happens to events of a lane.
#[must_use]
pub fn source(what: What, lane: Option<&LaneName>) -> Source {
    Source {
        what,
        lane: lane.map(|lane| lane.id().to_string()),
        key: lane.map(LaneName::masked_key),
    }
}

/// What an event says of itself; nothing where it is no JSON object.
#[must_use]
pub fn label(event: &[u8]) -> Label {
    let Some(facts) = Facts::of(event) else {
        return Label::default();
    };
    Label {
        kind: facts.kind.map(String::from),
        event: facts.event.map(String::from),
        message_id: facts.message_id.map(String::from),
    }
}
