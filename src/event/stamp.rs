//! Completes an event and writes the bytes that are stored, and sent as they are.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::decode::Envelope;
use super::json::{Json, Member};
use super::kind::Kind;
use super::limits::EVENT_BYTES_MAX;
use super::message::{Field, Message, write_object};
use super::rejection::Rejection;
use super::skew::Skew;
use super::validate::CheckedEvent;

/// What an event is given where its sender gave nothing. One serves all events of a request.
#[derive(Debug, Clone)]
pub struct Stamp {
    received: Timestamp,
    /// The same as JSON text, quotes included.
    now: String,
    skew_over: Option<Duration>,
    ids: Ids,
}

impl Stamp {
    /// For requests received at `now`. Times are written as RFC 3339 in UTC with milliseconds, new ids are random.
    pub fn at(now: Timestamp) -> Stamp {
        Stamp {
            received: now,
            now: format!("\"{now:.3}\""),
            skew_over: None,
            ids: Ids::New(Uuid::new_v4),
        }
    }

    /// The time of these requests.
    pub fn received(&self) -> Timestamp {
        self.received
    }

    /// Corrects the times of senders whose clock is off by more than `over`. Only for senders that have a clock of their
    /// own: by the same clock, `sentAt` tells no more than how long a request was on its way.
    #[must_use]
    pub fn correcting_clocks(self, over: Duration) -> Stamp {
        Stamp {
            skew_over: Some(over),
            ..self
        }
    }

    /// Takes new ids from elsewhere. They must never repeat: Segment drops an event whose id it has seen.
    #[must_use]
    pub fn with_new_id(self, new_id: fn() -> Uuid) -> Stamp {
        Stamp {
            ids: Ids::New(new_id),
            ..self
        }
    }

    /// Derives new ids from `seed`, one after another: who stamps the same events with it again gives them the same ids.
    #[must_use]
    pub fn with_ids_from(self, seed: Uuid) -> Stamp {
        Stamp {
            ids: Ids::Derived {
                seed,
                given: Arc::default(),
            },
            ..self
        }
    }
}

/// Where new ids come from.
#[derive(Debug, Clone)]
enum Ids {
    New(fn() -> Uuid),
    Derived { seed: Uuid, given: Arc<AtomicU64> },
}

impl Ids {
    fn next(&self) -> Uuid {
        match self {
            Ids::New(new) => new(),
            Ids::Derived { seed, given } => {
                let number = given.fetch_add(1, Ordering::Relaxed);
                Uuid::new_v5(seed, &number.to_be_bytes())
            }
        }
    }
}

/// A finished event: where in the buffer it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What kind of event it is.
    pub kind: Kind,
    /// Its bytes in the buffer it was stamped into: one JSON object, at most [`EVENT_BYTES_MAX`] long.
    pub bytes: Range<usize>,
}

/// Completes an event and appends it to `out` as one JSON object.
///
/// - `type` is the path's, where the message has none.
/// - `messageId` is new, where the message has none or an empty one: Segment would take all events with an empty id for
///   one.
/// - `timestamp` is `originalTimestamp`, which is all that some SDKs send, else the stamp's time.
/// - A sender's `timestamp` is moved by how far its clock is off, if the stamp corrects clocks and the envelope's `sentAt`,
///   or else the message's, shows that it is; `originalTimestamp` is then what was sent, where the message has none.
/// - `context` and `integrations` are joined with the envelope's, key by key; the message's key wins.
///
/// `out` may grow by up to [`EVENT_BYTES_MAX`] an event, most of it copied from one envelope: who stamps many events
/// bounds `out`.
///
/// # Errors
/// [`Code::EventTooLarge`](super::Code::EventTooLarge); `out` is then as it was.
pub fn stamp(
    event: CheckedEvent<'_>,
    envelope: &Envelope<'_>,
    stamp: &Stamp,
    out: &mut Vec<u8>,
) -> Result<Event, Rejection> {
    let new_id;
    let corrected;
    let context;
    let integrations;
    let CheckedEvent { kind, mut message } = event;

    if message.get(Field::Type).is_none() {
        message.set(Field::Type, Json::ours(kind.json()));
    }
    let sent_id = message.get(Field::MessageId);
    if sent_id.is_none_or(Json::is_empty_string) {
        new_id = format!("\"{}\"", stamp.ids.next());
        message.set(Field::MessageId, Json::ours(&new_id));
    }
    let own = message.get(Field::Timestamp);
    let original = message.get(Field::OriginalTimestamp);
    let sent = own.or(original.filter(|time| time.is_string() && !time.is_empty_string()));
    let sent_at = envelope.sent_at.or(message.sent_at());
    if let Some(time) = sent
        && let Some(moved) = skew(stamp, sent_at).and_then(|skew| skew.correct(time))
    {
        corrected = moved;
        message.set(Field::Timestamp, Json::ours(&corrected));
        if original.is_none() {
            message.set(Field::OriginalTimestamp, time);
        }
    } else if own.is_none() {
        message.set(Field::Timestamp, sent.unwrap_or(Json::ours(&stamp.now)));
    }
    if let Some(joined) = join(&message, Field::Context, envelope.context)? {
        context = joined;
        message.set(Field::Context, Json::ours(&context));
    }
    if let Some(joined) = join(&message, Field::Integrations, envelope.integrations)? {
        integrations = joined;
        message.set(Field::Integrations, Json::ours(&integrations));
    }

    let start = out.len();
    message.write(out);
    let bytes = out.len() - start;
    if bytes > EVENT_BYTES_MAX {
        out.truncate(start);
        return Err(Rejection::too_large(bytes));
    }
    Ok(Event {
        kind,
        bytes: start..out.len(),
    })
}

fn skew(stamp: &Stamp, sent_at: Option<Json<'_>>) -> Option<Skew> {
    Skew::of(sent_at?, stamp.received, stamp.skew_over?)
}

/// What `field` is to hold, if the envelope's object changes it.
fn join<'a>(
    message: &Message<'a>,
    field: Field,
    envelope: Option<Json<'a>>,
) -> Result<Option<Cow<'a, str>>, Rejection> {
    let Some(theirs) = envelope else {
        return Ok(None);
    };
    // Copied into every event of a request, a huge one would make the request grow a thousandfold.
    if theirs.as_str().len() > EVENT_BYTES_MAX {
        return Err(Rejection::too_large(theirs.as_str().len()));
    }
    let Some(own) = message.get(field) else {
        return Ok(Some(Cow::Borrowed(theirs.as_str())));
    };
    // One that is too long as it is needs no work: the event will be rejected for its size.
    if !own.is_object() || own.as_str().len() > EVENT_BYTES_MAX {
        return Ok(None);
    }

    // A key that no Unicode string can hold is compared as it is spelled.
    let name = |member: &Member<'a>| member.key.text().ok_or(member.key);
    let own_names: HashSet<_> = own.members().map(|member| name(&member)).collect();
    let mut added = theirs
        .members()
        .filter(|member| !own_names.contains(&name(member)))
        .peekable();
    if added.peek().is_none() {
        return Ok(None);
    }
    let mut joined = String::new();
    write_object(own.members().chain(added), |text| joined.push_str(text));
    Ok(Some(Cow::Owned(joined)))
}
