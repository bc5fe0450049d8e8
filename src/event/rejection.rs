//! Why an event, or a whole request, is not accepted.

use std::borrow::Cow;
use std::fmt;

use super::limits::EVENT_BYTES_MAX;

/// A refusal that is final: the same bytes will be refused again.
///
/// Its message names the field and the rule, never a value from the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    code: Code,
    message: Cow<'static, str>,
}

impl Rejection {
    /// A rejection for the reason `code`, said in one sentence without a full stop and without any value from the payload.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Rejection {
        Rejection {
            code,
            message: message.into(),
        }
    }

    pub(super) fn too_large(bytes: usize) -> Rejection {
        Rejection::new(
            Code::EventTooLarge,
            format!(
                "the event is {bytes} bytes long, more than the {EVENT_BYTES_MAX} that Segment takes"
            ),
        )
    }

    /// The reason, for machines.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The reason, for people: one sentence without a full stop.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Rejection {}

/// The reason for a [`Rejection`], in Segment's own words where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The body is not UTF-8 or not JSON. Ours.
    InvalidJson,
    /// The body, or an item of the batch, is not a JSON object. Ours.
    NotAnObject,
    /// The body of a batch call has no `batch`. Ours.
    BatchNotDefined,
    /// `batch` is not an array. Ours.
    BatchNotArray,
    /// `batch` has no items.
    EmptyBatch,
    /// `batch` has more items than [`REQUEST_EVENTS_MAX`](super::limits::REQUEST_EVENTS_MAX). Ours.
    TooManyEvents,
    /// A pixel call's `data` is not base64, or a field's name has too many parts. Ours.
    PixelNotValid,
    /// A write key is empty, too long, not a string or has control characters. Ours.
    WriteKeyNotValid,
    /// Neither the request nor the configuration names a write key. Ours.
    WriteKeyNotDefined,
    /// The write key is none of those that may be used. Ours.
    WriteKeyNotAllowed,
    /// The event is longer than [`EVENT_BYTES_MAX`]. Ours.
    EventTooLarge,
    /// Neither the message nor the path says what kind of event it is.
    MissingType,
    /// `type` is none of the six kinds.
    InvalidType,
    /// `type` contradicts the path. Ours.
    TypeMismatch,
    /// Neither `userId` nor `anonymousId` is given.
    NoUserAnonId,
    /// `userId` or `anonymousId` is not a string, or the only one given is empty.
    IdNotString,
    /// An alias has no `userId`. Ours.
    UserIdNotDefined,
    /// An alias has no `previousId`. Ours.
    PreviousIdNotDefined,
    /// A group has no `groupId`. Ours.
    GroupIdNotDefined,
    /// A track has no `event`.
    EventNotDefined,
    /// `event` of a track is not a string.
    EventNotString,
    /// `name` of a page or screen is empty or not a string.
    NameNotString,
    /// `category` of a page or screen is empty or not a string.
    CategoryNotString,
    /// `properties` of a track, page or screen is not an object.
    PropertiesNotObject,
    /// `traits` of an identify or group is not an object.
    TraitsNotObject,
    /// `messageId` is not a string. Ours.
    MessageIdNotString,
}

impl Code {
    /// The code as replies, metrics and dead letters spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Code::InvalidJson => "invalid_json",
            Code::NotAnObject => "not_an_object",
            Code::BatchNotDefined => "batch_not_defined",
            Code::BatchNotArray => "batch_not_array",
            Code::EmptyBatch => "empty_batch",
            Code::TooManyEvents => "too_many_events",
            Code::PixelNotValid => "pixel_not_valid",
            Code::WriteKeyNotValid => "write_key_not_valid",
            Code::WriteKeyNotDefined => "write_key_not_defined",
            Code::WriteKeyNotAllowed => "write_key_not_allowed",
            Code::EventTooLarge => "event_too_large",
            Code::MissingType => "missing_type",
            Code::InvalidType => "invalid_type",
            Code::TypeMismatch => "type_mismatch",
            Code::NoUserAnonId => "no_user_anon_id",
            Code::IdNotString => "id_not_string",
            Code::UserIdNotDefined => "user_id_not_defined",
            Code::PreviousIdNotDefined => "previous_id_not_defined",
            Code::GroupIdNotDefined => "group_id_not_defined",
            Code::EventNotDefined => "event_not_defined",
            Code::EventNotString => "event_not_string",
            Code::NameNotString => "name_not_string",
            Code::CategoryNotString => "category_not_string",
            Code::PropertiesNotObject => "properties_not_object",
            Code::TraitsNotObject => "traits_not_object",
            Code::MessageIdNotString => "message_id_not_string",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
