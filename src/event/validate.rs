//! Judges one event: would Segment keep it, or answer 200 and discard it?
//!
//! The rules and codes are those of Segment's list of discards and of its specification. Null counts as absent: real
//! senders write `"userId":null`. Where Segment does not say that it discards, the event passes: a `timestamp` that can't
//! be read, a `groupId` that is a number, a `context` that is no object. Left to Segment are tracking plans, consent
//! settings and whether the write key exists.

use super::decode::{RawEvent, write_key};
use super::kind::Kind;
use super::limits::MESSAGE_ID_CHARS_MAX;
use super::message::{Field, Message};
use super::rejection::{Code, Rejection};
use super::write_key::WriteKey;

/// An event that Segment would keep, if it is not too large once stamped.
#[derive(Debug)]
pub struct CheckedEvent<'a> {
    pub(super) kind: Kind,
    pub(super) message: Message<'a>,
}

impl CheckedEvent<'_> {
    /// What kind of event it is, by its path or its `type`.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The message's own `writeKey`, which also stays in the event. An empty one is as good as none.
    ///
    /// It is read only when asked for: a bad one costs nothing where the request brings a better one.
    ///
    /// # Errors
    /// [`Code::WriteKeyNotValid`].
    pub fn write_key(&self) -> Result<Option<WriteKey>, Rejection> {
        self.message
            .get(Field::WriteKey)
            .map_or(Ok(None), write_key)
    }

    /// Whether the sender's `messageId` has more than [`MESSAGE_ID_CHARS_MAX`] characters, so that parts of Segment will
    /// drop the event.
    pub fn message_id_is_long(&self) -> bool {
        self.message
            .get(Field::MessageId)
            .and_then(|id| id.text())
            .is_some_and(|id| {
                id.len() > MESSAGE_ID_CHARS_MAX && id.chars().count() > MESSAGE_ID_CHARS_MAX
            })
    }
}

/// Checks one event of a request.
///
/// # Errors
/// The first rule it breaks, as one of the [`Code`]s from [`Code::NotAnObject`] and [`Code::EventTooLarge`] down to
/// [`Code::MessageIdNotString`].
pub fn validate<'a>(raw: &RawEvent<'a>) -> Result<CheckedEvent<'a>, Rejection> {
    let message = Message::read(raw.json)?;
    let kind = kind(&message, raw.path)?;
    match kind {
        Kind::Track => {
            somebody(&message)?;
            event_name(&message)?;
            object(&message, Field::Properties, Code::PropertiesNotObject)?;
        }
        Kind::Page | Kind::Screen => {
            somebody(&message)?;
            not_empty(&message, Field::Name, Code::NameNotString)?;
            not_empty(&message, Field::Category, Code::CategoryNotString)?;
            object(&message, Field::Properties, Code::PropertiesNotObject)?;
        }
        Kind::Identify => {
            somebody(&message)?;
            object(&message, Field::Traits, Code::TraitsNotObject)?;
        }
        Kind::Group => {
            somebody(&message)?;
            defined(&message, Field::GroupId, Code::GroupIdNotDefined)?;
            object(&message, Field::Traits, Code::TraitsNotObject)?;
        }
        Kind::Alias => {
            defined(&message, Field::UserId, Code::UserIdNotDefined)?;
            string(&message, Field::UserId, Code::IdNotString)?;
            defined(&message, Field::PreviousId, Code::PreviousIdNotDefined)?;
        }
    }
    string(&message, Field::MessageId, Code::MessageIdNotString)?;
    Ok(CheckedEvent { kind, message })
}

fn kind(message: &Message<'_>, path: Option<Kind>) -> Result<Kind, Rejection> {
    let Some(named) = message.get(Field::Type) else {
        return path.ok_or_else(|| Rejection::new(Code::MissingType, "the event has no `type`"));
    };
    let Some(kind) = named.text().and_then(|name| Kind::from_name(&name)) else {
        return Err(Rejection::new(
            Code::InvalidType,
            "`type` is none of track, identify, page, screen, group and alias",
        ));
    };
    match path {
        Some(path) if path != kind => Err(Rejection::new(
            Code::TypeMismatch,
            format!("`type` says {kind}, the path says {path}"),
        )),
        Some(_) | None => Ok(kind),
    }
}

/// One id is enough, and an empty one does no harm beside it. Numbers are no ids, even beside a good one.
fn somebody(message: &Message<'_>) -> Result<(), Rejection> {
    string(message, Field::UserId, Code::IdNotString)?;
    string(message, Field::AnonymousId, Code::IdNotString)?;
    let user = message.get(Field::UserId);
    let anonymous = message.get(Field::AnonymousId);
    let mut ids = [user, anonymous].into_iter().flatten().peekable();
    if ids.peek().is_none() {
        return Err(Rejection::new(
            Code::NoUserAnonId,
            "the event has neither `userId` nor `anonymousId`",
        ));
    }
    if ids.all(|id| id.is_empty_string()) {
        return Err(Rejection::new(
            Code::IdNotString,
            "`userId` and `anonymousId` are empty or absent",
        ));
    }
    Ok(())
}

fn event_name(message: &Message<'_>) -> Result<(), Rejection> {
    defined(message, Field::Event, Code::EventNotDefined)?;
    string(message, Field::Event, Code::EventNotString)
}

/// A field that must be there, and not be empty.
fn defined(message: &Message<'_>, field: Field, code: Code) -> Result<(), Rejection> {
    match message.get(field) {
        Some(value) if !value.is_empty_string() => Ok(()),
        Some(_) | None => Err(broken(code, field, "is absent or empty")),
    }
}

/// A field that must be a string where it is there.
fn string(message: &Message<'_>, field: Field, code: Code) -> Result<(), Rejection> {
    match message.get(field) {
        Some(value) if !value.is_string() => Err(broken(code, field, "is not a string")),
        Some(_) | None => Ok(()),
    }
}

/// A field that must be a string and not empty where it is there.
fn not_empty(message: &Message<'_>, field: Field, code: Code) -> Result<(), Rejection> {
    string(message, field, code)?;
    match message.get(field) {
        Some(value) if value.is_empty_string() => Err(broken(code, field, "is empty")),
        Some(_) | None => Ok(()),
    }
}

/// A field that must be an object where it is there.
fn object(message: &Message<'_>, field: Field, code: Code) -> Result<(), Rejection> {
    match message.get(field) {
        Some(value) if !value.is_object() => Err(broken(code, field, "is not an object")),
        Some(_) | None => Ok(()),
    }
}

fn broken(code: Code, field: Field, how: &str) -> Rejection {
    Rejection::new(code, format!("`{}` {how}", field.name()))
}
