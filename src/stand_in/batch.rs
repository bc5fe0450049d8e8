//! What a body says, and what Segment would say to it. Pure: no I/O, no clock.

use std::borrow::Cow;
use std::io::Read;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::hook::HookCall;

/// Segment refuses a body above 500 KB; it does not say whether KB is 1000 or 1024, so the smaller is meant.
pub(super) const BODY_BYTES_MAX: usize = 500_000;

/// Segment takes no more events than this in one batch.
const EVENTS_MAX: usize = 2_500;

/// Segment refuses a larger event; SDKs read its 32 KB as 32 KiB and are not refused.
const EVENT_BYTES_MAX: usize = 32 * 1024;

/// More than any SDK sends in one body (4 MiB), and little enough to hold one for each connection.
pub(super) const READ_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A limit of Segment's that a batch broke, or what was wrong with a call to a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Violation {
    /// The body can't be decoded, is not JSON, or has no `batch`. Refused with 400.
    Unreadable,
    /// The decoded body is too large. Refused with 400.
    BodyTooLarge,
    /// Neither a Basic user name nor a `writeKey` in the envelope. Refused with 400.
    NoWriteKey,
    /// An event of more than 32 KiB. Refused with 400, the rest of the batch too.
    EventTooLarge,
    /// More than 2,500 events. Answered 200, and all of them thrown away.
    TooManyEvents,
    /// No event at all. Answered 200.
    EmptyBatch,
    /// No `sentAt` in the envelope. Accepted, though every time in it is then taken as it is.
    NoSentAt,
    /// A webhook's call without the signature of its body. Refused with 401.
    NotSigned,
    /// A webhook's call that is not one JSON object. Refused with 400.
    NotOneObject,
    /// A webhook's call whose `Content-Type` is not `application/json`. Refused with 400.
    NotJsonType,
}

/// How a call is taken when it is left to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reception {
    /// 200, and the events go on.
    Accept,
    /// 200, and the events go nowhere.
    Discard,
    /// This status with this plain text.
    Refuse(u16, &'static str),
}

impl Violation {
    pub(super) fn reception(self) -> Reception {
        match self {
            Self::BodyTooLarge | Self::EventTooLarge => {
                Reception::Refuse(400, "Exceed payload limit")
            }
            Self::Unreadable | Self::NoWriteKey | Self::NotOneObject | Self::NotJsonType => {
                Reception::Refuse(400, "Bad Request")
            }
            Self::NotSigned => Reception::Refuse(401, "Unauthorized"),
            Self::TooManyEvents | Self::EmptyBatch => Reception::Discard,
            Self::NoSentAt => Reception::Accept,
        }
    }
}

/// A call that was read, and is to be answered.
#[derive(Debug)]
pub(super) enum Call<'a> {
    Batch(Batch<'a>),
    Hook(HookCall<'a>),
}

impl<'a> Call<'a> {
    /// The webhook it is for; none for a batch.
    pub(super) fn hook(&self) -> Option<&'a str> {
        match self {
            Self::Batch(_) => None,
            Self::Hook(call) => Some(call.name),
        }
    }

    /// How many events it holds, or would hold.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Batch(batch) => batch.events.len(),
            Self::Hook(_) => 1,
        }
    }

    /// The decoded body.
    pub(super) fn body(&self) -> &'a [u8] {
        match self {
            Self::Batch(batch) => batch.text.as_bytes(),
            Self::Hook(call) => call.body,
        }
    }

    pub(super) fn write_key(&self) -> Option<&str> {
        match self {
            Self::Batch(batch) => batch.write_key.as_deref(),
            Self::Hook(_) => None,
        }
    }

    pub(super) fn sent_at(&self) -> Option<&str> {
        match self {
            Self::Batch(batch) => batch.sent_at.as_deref(),
            Self::Hook(_) => None,
        }
    }

    /// The events themselves.
    pub(super) fn events(&self) -> Cow<'_, [&'a RawValue]> {
        match self {
            Self::Batch(batch) => Cow::Borrowed(&batch.events),
            Self::Hook(call) => call.event().into_iter().collect(),
        }
    }
}

/// The decoded body of a batch call, and what was found in it.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    pub(super) text: &'a str,
    pub(super) write_key: Option<Cow<'a, str>>,
    pub(super) sent_at: Option<Cow<'a, str>>,
    pub(super) events: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    batch: Vec<&'a RawValue>,
    #[serde(borrow, rename = "writeKey")]
    write_key: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "sentAt")]
    sent_at: Option<Cow<'a, str>>,
}

impl<'a> Batch<'a> {
    /// Reads the envelope and finds where each event begins and ends. The Basic user name, when there is one, goes
    /// before the envelope's `writeKey`.
    pub(super) fn parse(text: &'a str, basic_user: Option<String>) -> Result<Self, Violation> {
        let envelope: Envelope<'a> =
            serde_json::from_str(text).map_err(|_not_a_batch| Violation::Unreadable)?;
        Ok(Self {
            text,
            write_key: basic_user
                .map(Cow::Owned)
                .or(envelope.write_key)
                .filter(|key| !key.is_empty()),
            sent_at: envelope.sent_at,
            events: envelope.batch,
        })
    }

    /// The limits it breaks, the one that decides the answer first.
    pub(super) fn violations(&self, body_bytes_max: usize) -> Vec<Violation> {
        let event_too_large = || {
            let mut events = self.events.iter();
            events.any(|event| event.get().len() > EVENT_BYTES_MAX)
        };
        [
            (Violation::BodyTooLarge, self.text.len() > body_bytes_max),
            (Violation::NoWriteKey, self.write_key.is_none()),
            (Violation::EventTooLarge, event_too_large()),
            (Violation::TooManyEvents, self.events.len() > EVENTS_MAX),
            (Violation::EmptyBatch, self.events.is_empty()),
            (Violation::NoSentAt, self.sent_at.is_none()),
        ]
        .into_iter()
        .filter_map(|(violation, broken)| broken.then_some(violation))
        .collect()
    }
}

/// The `messageId` of an event, if it has one that is a string.
pub(super) fn message_id(event: &RawValue) -> Option<Cow<'_, str>> {
    // Not an Option: serde copies a Cow inside one, and this is the busiest line of the stand-in.
    #[derive(Deserialize)]
    struct Event<'a> {
        #[serde(borrow, rename = "messageId")]
        message_id: Cow<'a, str>,
    }
    let event: Event<'_> = serde_json::from_str(event.get()).ok()?;
    Some(event.message_id)
}

/// The user name of a Basic `Authorization` header; the colon may be missing.
pub(super) fn basic_user(authorization: &str) -> Option<String> {
    let (scheme, credentials) = authorization.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = BASE64_STANDARD.decode(credentials.trim()).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let user = decoded.split(':').next()?;
    Some(user.to_owned()).filter(|user| !user.is_empty())
}

/// The body of a gzip-compressed request.
pub(super) fn gunzip(body: &[u8]) -> Result<Vec<u8>, Violation> {
    let mut decoded = Vec::new();
    let read = MultiGzDecoder::new(body)
        .take(READ_BYTES_MAX as u64 + 1)
        .read_to_end(&mut decoded);
    match read {
        Ok(bytes) if bytes > READ_BYTES_MAX => Err(Violation::BodyTooLarge),
        Ok(_) => Ok(decoded),
        Err(_not_gzip) => Err(Violation::Unreadable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(events: &[String]) -> String {
        let events = events.join(",");
        format!(r#"{{"writeKey":"k","sentAt":"now","batch":[{events}]}}"#)
    }

    fn event_of(bytes: usize) -> String {
        let filler = "x".repeat(bytes - r#"{"p":""}"#.len());
        format!(r#"{{"p":"{filler}"}}"#)
    }

    #[test]
    fn each_limit_of_segment_is_a_violation_only_beyond_it() {
        let cases = [
            (body(&[event_of(32 * 1024)]), vec![]),
            (
                body(&[event_of(32 * 1024 + 1)]),
                vec![Violation::EventTooLarge],
            ),
            (body(&vec!["{}".to_owned(); 2_500]), vec![]),
            (
                body(&vec!["{}".to_owned(); 2_501]),
                vec![Violation::TooManyEvents],
            ),
            (
                body(&vec![event_of(25_000); 21]),
                vec![Violation::BodyTooLarge],
            ),
            (body(&[]), vec![Violation::EmptyBatch]),
            (
                r#"{"batch":[{}],"sentAt":"now"}"#.into(),
                vec![Violation::NoWriteKey],
            ),
            (
                r#"{"batch":[{}],"sentAt":"now","writeKey":""}"#.into(),
                vec![Violation::NoWriteKey],
            ),
            (
                r#"{"batch":[{}],"writeKey":"k"}"#.into(),
                vec![Violation::NoSentAt],
            ),
            (
                r#"{"batch":[]}"#.into(),
                vec![
                    Violation::NoWriteKey,
                    Violation::EmptyBatch,
                    Violation::NoSentAt,
                ],
            ),
        ];
        for (text, expected) in cases {
            let batch = Batch::parse(&text, None).expect("this is a batch");
            assert_eq!(batch.violations(BODY_BYTES_MAX), expected);
        }
    }

    #[test]
    fn what_is_not_a_batch_is_unreadable() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"batch":{}}"#,
            r#"{"batch":[{]}"#,
            r#"{"batch":[]} x"#,
        ] {
            assert_eq!(
                Batch::parse(text, None).err(),
                Some(Violation::Unreadable),
                "{text}"
            );
        }
    }

    #[test]
    fn the_basic_user_name_goes_before_the_envelope() {
        let text = r#"{"writeKey":"envelope","batch":[]}"#;
        for (authorization, expected) in [
            ("Basic YmFzaWM6", "basic"),
            ("basic YmFzaWM=", "basic"),
            ("Basic Og==", "envelope"),
            ("Bearer YmFzaWM6", "envelope"),
            ("nonsense", "envelope"),
        ] {
            let batch = Batch::parse(text, basic_user(authorization)).expect("this is a batch");
            assert_eq!(
                batch.write_key.as_deref(),
                Some(expected),
                "{authorization}"
            );
        }
    }

    #[test]
    fn a_message_id_is_found_wherever_it_stands() {
        for (event, expected) in [
            (r#"{"messageId":"a","type":"track"}"#, Some("a")),
            (
                r#"{"properties":{"messageId":"inner"},"messageId":"ü\n"}"#,
                Some("ü\n"),
            ),
            (r#"{"properties":{"messageId":"inner"}}"#, None),
            (r#"{"messageId":null}"#, None),
            (r#"{"messageId":7}"#, None),
            ("17", None),
        ] {
            let event: &RawValue = serde_json::from_str(event).expect("this is JSON");
            assert_eq!(message_id(event).as_deref(), expected);
        }
    }

    #[test]
    fn a_small_body_cannot_unpack_into_an_endless_one() {
        let zeros = std::io::repeat(0).take(READ_BYTES_MAX as u64 + 1);
        let mut bomb = Vec::new();
        flate2::read::GzEncoder::new(zeros, flate2::Compression::fast())
            .read_to_end(&mut bomb)
            .expect("memory takes every byte");
        assert_eq!(gunzip(&bomb), Err(Violation::BodyTooLarge));
        assert_eq!(gunzip(b"not gzip"), Err(Violation::Unreadable));
    }
}
