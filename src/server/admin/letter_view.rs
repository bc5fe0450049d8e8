//! A dead letter as an operator sees it: a JSON object, for the daemon that writes it and the commands that read it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::queue::{DeadLetter, LetterId};

/// A dead letter. Its key is masked; its event is there only where it was asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LetterView {
    /// Its identity.
    pub id: String,
    /// The lane's identity; none where the request named no write key.
    pub lane: Option<String>,
    /// The kind of destination.
    pub destination: Option<String>,
    /// The last four characters of the lane's key.
    pub key: Option<String>,
    /// The call whose body it was; none for an event that was taken out of its request.
    pub call: Option<String>,
    /// Why it died, as a code.
    pub code: String,
    /// Why, in words.
    pub reason: String,
    /// The destination's answer, where there was one.
    pub status: Option<u16>,
    /// The start of the answer's body.
    pub answer: String,
    /// How often it was sent.
    pub attempts: u32,
    /// When it was accepted, or rejected.
    pub accepted_at: String,
    /// When it was buried.
    pub buried_at: String,
    /// How long its event is.
    pub event_bytes: usize,
    /// The event, where it is JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<Box<RawValue>>,
    /// The event, where it is not JSON, as far as it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_text: Option<String>,
}

impl LetterView {
    /// A letter without its event.
    pub(super) fn head(id: LetterId, letter: &DeadLetter) -> LetterView {
        let lane = letter.lane.as_ref();
        LetterView {
            id: id.to_string(),
            lane: lane.map(|lane| lane.id().to_string()),
            destination: lane.map(|lane| lane.destination.clone()),
            key: lane.map(|lane| lane.masked_key()),
            call: letter.call.clone(),
            code: letter.code.clone(),
            reason: letter.reason.clone(),
            status: letter.status,
            answer: letter.answer.clone(),
            attempts: letter.attempts,
            accepted_at: time(letter.accepted_at_ms),
            buried_at: time(letter.buried_at_ms),
            event_bytes: letter.event.len(),
            event: None,
            event_text: None,
        }
    }

    /// A letter with its event, on one line.
    pub(super) fn whole(id: LetterId, letter: &DeadLetter) -> LetterView {
        let json = std::str::from_utf8(&letter.event).ok().and_then(|text| {
            // Outside of strings, where alone they may stand, line ends mean as much as spaces.
            RawValue::from_string(text.replace(['\n', '\r'], " ").trim().to_owned()).ok()
        });
        LetterView {
            event_text: json
                .is_none()
                .then(|| String::from_utf8_lossy(&letter.event).into_owned()),
            event: json,
            ..LetterView::head(id, letter)
        }
    }
}

/// RFC 3339; a time that no calendar has is shown as the first one.
fn time(ms: i64) -> String {
    let time = Timestamp::from_millisecond(ms).unwrap_or_default();
    format!("{time:.3}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_shown_as_json_on_one_line_or_as_text() {
        let id: LetterId = "65".repeat(21).parse().expect("an id");
        for (event, shown) in [
            (&b"{\n \"a\":\r\n1}\n"[..], r#""event":{  "a":  1}"#),
            (b"{\"a\":", r#""event_text":"{\"a\":""#),
            (b"\xff\n", "\"event_text\":\"\u{fffd}\\n\""),
            (b"", r#""event_text":"""#),
        ] {
            let letter = DeadLetter {
                event: event.to_vec(),
                ..DeadLetter::default()
            };
            let view = LetterView::whole(id, &letter);
            let json = serde_json::to_string(&view).expect("JSON");
            assert!(json.contains(shown), "{json} lacks {shown}");
            assert!(!json.contains('\n'));
            assert_eq!(view.accepted_at, "1970-01-01T00:00:00.000Z");
        }
    }
}
