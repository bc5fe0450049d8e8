//! Splits a request body into its events and what surrounds them. Looks at no event's content.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;

use super::json::Json;
use super::kind::Kind;
use super::limits::REQUEST_EVENTS_MAX;
use super::rejection::{Code, Rejection};
use super::write_key::WriteKey;

/// One request: its events, and what surrounds them and counts for each.
///
/// Borrows from the body. All else that an envelope may hold (`messageId`, `timestamp`, `sequence`, …) is ignored.
#[derive(Debug, Default)]
pub struct Envelope<'a> {
    /// The events in the order they came, at most [`REQUEST_EVENTS_MAX`].
    pub events: Vec<RawEvent<'a>>,
    pub(super) write_key: Option<Json<'a>>,
    pub(super) context: Option<Json<'a>>,
    pub(super) integrations: Option<Json<'a>>,
    pub(super) sent_at: Option<Json<'a>>,
}

impl Envelope<'_> {
    /// The envelope's own key. An empty one is as good as none.
    ///
    /// It is read only when asked for: a bad one costs nothing where the request brings a better one.
    ///
    /// # Errors
    /// [`Code::WriteKeyNotValid`].
    pub fn write_key(&self) -> Result<Option<WriteKey>, Rejection> {
        self.write_key.map_or(Ok(None), write_key)
    }
}

/// One item of a request: well-formed JSON, of which nothing else is known yet.
#[derive(Debug, Clone, Copy)]
pub struct RawEvent<'a> {
    pub(super) json: Json<'a>,
    pub(super) path: Option<Kind>,
}

impl<'a> RawEvent<'a> {
    /// The item as it came, byte for byte.
    pub fn json(&self) -> &'a str {
        self.json.as_str()
    }
}

/// Reads the body of a batch call: `{"batch":[…],"writeKey":…,"context":…,"integrations":…}`.
///
/// # Errors
/// [`Code::InvalidJson`], [`Code::NotAnObject`], [`Code::BatchNotDefined`], [`Code::BatchNotArray`],
/// [`Code::EmptyBatch`] and [`Code::TooManyEvents`]: nothing of the request can be taken.
pub fn decode_batch(body: &[u8]) -> Result<Envelope<'_>, Rejection> {
    let text = text(body)?;
    let parts: Parts<'_> = serde_json::from_str(text).map_err(|error| match error.classify() {
        Category::Syntax | Category::Eof | Category::Io => invalid_json(&error),
        Category::Data if text.trim_start().starts_with('{') => {
            Rejection::new(Code::BatchNotArray, "`batch` is not an array")
        }
        Category::Data => Rejection::new(Code::NotAnObject, "the body is not a JSON object"),
    })?;

    let Some(items) = parts.batch else {
        return Err(Rejection::new(
            Code::BatchNotDefined,
            "the body has no `batch`",
        ));
    };
    Ok(Envelope {
        events: items.checked("`batch`")?,
        write_key: parts.write_key,
        context: parts.context.filter(|context| context.is_object()),
        integrations: parts
            .integrations
            .filter(|integrations| integrations.is_object()),
        sent_at: parts
            .sent_at
            .filter(|sent_at| !sent_at.is_null() && !sent_at.is_empty_string()),
    })
}

/// Reads the body of a call for one event, whose kind the path gives.
///
/// # Errors
/// [`Code::InvalidJson`]. Whether it is an object and agrees with the path is for [`validate`](super::validate()).
pub fn decode_single(kind: Kind, body: &[u8]) -> Result<Envelope<'_>, Rejection> {
    decode_event(Some(kind), body)
}

/// Reads one event, of the kind that a path gave, or that it names by itself.
///
/// # Errors
/// As [`decode_single`].
pub fn decode_event(path: Option<Kind>, body: &[u8]) -> Result<Envelope<'_>, Rejection> {
    let json = serde_json::from_str(text(body)?).map_err(|error| invalid_json(&error))?;
    Ok(Envelope {
        events: vec![RawEvent { json, path }],
        ..Envelope::default()
    })
}

/// Reads what Segment's own webhooks post: one event, or an array of them.
///
/// # Errors
/// [`Code::InvalidJson`], [`Code::EmptyBatch`] and [`Code::TooManyEvents`].
pub fn decode_received(body: &[u8]) -> Result<Envelope<'_>, Rejection> {
    let text = text(body)?;
    if !text.trim_start().starts_with('[') {
        return decode_event(None, body);
    }
    let items: Items<'_> = serde_json::from_str(text).map_err(|error| invalid_json(&error))?;
    Ok(Envelope {
        events: items.checked("the array")?,
        ..Envelope::default()
    })
}

/// Reads the value of a `writeKey` member, where an empty string means that there is none.
pub(super) fn write_key(json: Json<'_>) -> Result<Option<WriteKey>, Rejection> {
    if json.is_null() || json.is_empty_string() {
        return Ok(None);
    }
    let Some(key) = json.text() else {
        return Err(Rejection::new(
            Code::WriteKeyNotValid,
            "`writeKey` is not a string",
        ));
    };
    WriteKey::new(&key).map(Some)
}

fn text(body: &[u8]) -> Result<&str, Rejection> {
    str::from_utf8(body).map_err(|error| {
        let at = error.valid_up_to();
        Rejection::new(
            Code::InvalidJson,
            format!("the body is not UTF-8 from byte {at} on"),
        )
    })
}

/// Only for errors of syntax, whose text never quotes the payload.
fn invalid_json(error: &serde_json::Error) -> Rejection {
    Rejection::new(Code::InvalidJson, format!("the body is not JSON: {error}"))
}

/// The members of a batch body that count. Given twice, the last counts.
#[derive(Default)]
struct Parts<'a> {
    batch: Option<Items<'a>>,
    write_key: Option<Json<'a>>,
    context: Option<Json<'a>>,
    integrations: Option<Json<'a>>,
    sent_at: Option<Json<'a>>,
}

impl<'de> Deserialize<'de> for Parts<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PartsVisitor;

        impl<'de> Visitor<'de> for PartsVisitor {
            type Value = Parts<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parts<'de>, A::Error> {
                let mut parts = Parts::default();
                // A key is taken raw because some keys that JSON allows are no Unicode strings.
                while let Some(key) = map.next_key::<Json<'_>>()? {
                    match key.text().as_deref() {
                        Some("batch") => parts.batch = map.next_value()?,
                        Some("writeKey") => parts.write_key = Some(map.next_value()?),
                        Some("context") => parts.context = Some(map.next_value()?),
                        Some("integrations") => parts.integrations = Some(map.next_value()?),
                        Some("sentAt") => parts.sent_at = Some(map.next_value()?),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(parts)
            }
        }

        deserializer.deserialize_map(PartsVisitor)
    }
}

/// The items of `batch`: all are counted, as many kept as can be taken.
struct Items<'a> {
    events: Vec<RawEvent<'a>>,
    count: usize,
}

impl<'a> Items<'a> {
    /// The events, where there are some and not too many.
    fn checked(self, whole: &str) -> Result<Vec<RawEvent<'a>>, Rejection> {
        let Items { events, count } = self;
        match count {
            0 => Err(Rejection::new(
                Code::EmptyBatch,
                format!("{whole} is empty"),
            )),
            1..=REQUEST_EVENTS_MAX => Ok(events),
            _ => Err(Rejection::new(
                Code::TooManyEvents,
                format!("{whole} has {count} events, more than {REQUEST_EVENTS_MAX}"),
            )),
        }
    }
}

impl<'de> Deserialize<'de> for Items<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ItemsVisitor;

        impl<'de> Visitor<'de> for ItemsVisitor {
            type Value = Items<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Items<'de>, A::Error> {
                let mut events = Vec::new();
                let mut count = 0;
                while let Some(json) = seq.next_element()? {
                    count += 1;
                    if count <= REQUEST_EVENTS_MAX {
                        events.push(RawEvent { json, path: None });
                    }
                }
                Ok(Items { events, count })
            }
        }

        deserializer.deserialize_seq(ItemsVisitor)
    }
}
