//! A dead letter, its identity, how it is stored, and which letters somebody asks for. Pure.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::queue::Position;
use crate::queue::name::{LaneId, LaneName};

/// A dead letter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The lane it would have left by, or left; none where the request named no write key.
    pub lane: Option<LaneName>,
    /// The call whose body it was, as its path names it; none for an event that was taken out of its request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<String>,
    /// Why, as a code.
    pub code: String,
    /// Why, in words.
    pub reason: String,
    /// The destination's answer, where there was one.
    pub status: Option<u16>,
    /// The start of the answer's body.
    pub answer: String,
    /// How often it was sent.
    pub attempts: u32,
    /// When it was accepted, or rejected, in Unix ms.
    pub accepted_at_ms: i64,
    /// When it was buried, in Unix ms.
    pub buried_at_ms: i64,
    /// The event's own bytes.
    #[serde(skip)]
    pub event: Vec<u8>,
}

impl DeadLetter {
    /// The letter as it is stored: itself as JSON, a line feed, the event's bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut value = serde_json::to_vec(self).expect("a letter has no map with odd keys");
        value.push(b'\n');
        value.extend_from_slice(&self.event);
        value
    }

    /// Reads what [`DeadLetter::encode`] wrote.
    pub(super) fn decode(value: &[u8]) -> Option<DeadLetter> {
        let (letter, event) = split(value)?;
        Some(DeadLetter {
            event: event.to_vec(),
            ..serde_json::from_slice(letter).ok()?
        })
    }

    /// Reads all but the event's bytes.
    pub(super) fn decode_head(value: &[u8]) -> Option<DeadLetter> {
        serde_json::from_slice(split(value)?.0).ok()
    }
}

/// JSON text as we write it has no line feed, so the first one ends it.
fn split(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = value.iter().position(|b| *b == b'\n')?;
    Some((&value[..end], &value[end + 1..]))
}

/// A letter's identity, and its key. An event that comes from a lane has the place it was accepted at, so that burying it again
/// after a crash changes nothing. Shown as 42 hexadecimal digits; in their order the letters are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LetterId(pub(super) [u8; LetterId::BYTES]);

/// Text that is no [`LetterId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotALetterId;

impl fmt::Display for NotALetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the id of a dead letter is 42 hexadecimal digits")
    }
}

impl std::error::Error for NotALetterId {}

impl LetterId {
    pub(super) const BYTES: usize = 21;
    const EVENT: u8 = b'e';
    const REJECTED: u8 = b'r';
    const GRAVE: u8 = b'x';

    /// Every letter.
    pub(super) const ALL: (LetterId, LetterId) = (
        LetterId::first_of(LetterId::EVENT),
        LetterId::last_of(LetterId::REJECTED),
    );
    /// Every empty grave.
    pub(super) const GRAVES: (LetterId, LetterId) = (
        LetterId::first_of(LetterId::GRAVE),
        LetterId::last_of(LetterId::GRAVE),
    );

    const fn first_of(kind: u8) -> LetterId {
        let mut id = [0; LetterId::BYTES];
        id[0] = kind;
        LetterId(id)
    }

    const fn last_of(kind: u8) -> LetterId {
        let mut id = [0xff; LetterId::BYTES];
        id[0] = kind;
        LetterId(id)
    }

    fn new(kind: u8, place: u64, index: u32, ms: i64) -> LetterId {
        let mut id = [kind; LetterId::BYTES];
        id[1..9].copy_from_slice(&place.to_be_bytes());
        id[9..13].copy_from_slice(&index.to_be_bytes());
        id[13..].copy_from_slice(&ms.to_be_bytes());
        LetterId(id)
    }

    /// That of an event of a lane. The time tells events apart that were given the same place, as may happen after the cursors
    /// were lost.
    pub(super) fn of_event(position: Position, index: u32, accepted_at_ms: i64) -> LetterId {
        LetterId::new(LetterId::EVENT, position, index, accepted_at_ms)
    }

    /// Whether its event was once accepted, and left its lane dead.
    #[must_use]
    pub fn was_accepted(self) -> bool {
        self.0[0] == LetterId::EVENT
    }

    /// That of the `n`th event rejected by this process.
    pub(super) fn of_rejected(now_ms: i64, n: u32, accepted_at_ms: i64) -> LetterId {
        LetterId::new(LetterId::REJECTED, now_ms.unsigned_abs(), n, accepted_at_ms)
    }

    /// The first and the last that an event of the record at `position` can have.
    pub(super) fn of_record(position: Position) -> (LetterId, LetterId) {
        (
            LetterId::new(LetterId::EVENT, position, 0, 0),
            LetterId::new(LetterId::EVENT, position, u32::MAX, -1),
        )
    }

    /// Where the event lay in its lane, if it comes from one.
    pub(super) fn place(self) -> Option<(Position, u32)> {
        let at = |range: std::ops::Range<usize>| self.0[range].iter();
        let number = |bytes: std::slice::Iter<'_, u8>| bytes.fold(0, |n, b| n << 8 | u64::from(*b));
        (self.0[0] != LetterId::REJECTED).then(|| (number(at(1..9)), number(at(9..13)) as u32))
    }

    /// The position of an event of a lane, or when an event was rejected, in Unix ms.
    fn leading(self) -> u64 {
        let number = self.0[1..9].try_into();
        u64::from_be_bytes(number.expect("eight bytes follow"))
    }

    /// When the event was accepted, in Unix ms.
    pub(super) fn accepted_at_ms(self) -> i64 {
        let ms = self.0[13..].try_into();
        i64::from_be_bytes(ms.expect("eight bytes follow"))
    }

    /// The key of the grave that this letter leaves empty.
    pub(super) fn grave(self) -> LetterId {
        let mut id = self;
        id.0[0] = LetterId::GRAVE;
        id
    }

    /// The lowest one above this.
    pub(super) fn next(self) -> LetterId {
        let mut id = self;
        for byte in id.0.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                break;
            }
        }
        id
    }
}

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for LetterId {
    type Err = NotALetterId;

    fn from_str(text: &str) -> Result<LetterId, NotALetterId> {
        let mut id = [0; LetterId::BYTES];
        if text.len() != 2 * id.len() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NotALetterId);
        }
        for (at, byte) in id.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| NotALetterId)?;
        }
        match id[0] {
            LetterId::EVENT | LetterId::REJECTED => Ok(LetterId(id)),
            _ => Err(NotALetterId),
        }
    }
}

/// Which letters are meant. What is not set does not matter; the default means all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// This very one.
    pub id: Option<LetterId>,
    /// Those of a lane.
    pub lane: Option<LaneId>,
    /// Those with a code.
    pub code: Option<String>,
    /// Those with a status.
    pub status: Option<u16>,
    /// Those buried at this time or later, in Unix ms.
    pub since_ms: Option<i64>,
    /// Those buried before this time, in Unix ms.
    pub until_ms: Option<i64>,
    /// Not those that came after this.
    pub before: Option<Present>,
}

/// What has come so far: the bounds of a change that goes on while more comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Present {
    /// Events accepted before this position.
    pub position: Position,
    /// Events rejected up to this time, in Unix ms.
    pub rejected_ms: i64,
}

impl Present {
    fn includes(self, id: LetterId) -> bool {
        match id.place() {
            Some((position, _)) => position < self.position,
            None => id.leading() <= self.rejected_ms.unsigned_abs(),
        }
    }
}

impl Filter {
    /// The range of keys in which those lie that are meant, from behind `after` on.
    pub(super) fn range(&self, after: Option<LetterId>) -> (LetterId, LetterId) {
        let (first, last) = match self.id {
            Some(id) => (id, id),
            None => LetterId::ALL,
        };
        (after.map_or(first, |after| first.max(after.next())), last)
    }

    /// Whether a letter is meant.
    pub(super) fn admits(&self, id: LetterId, letter: &DeadLetter) -> bool {
        let lane = || letter.lane.as_ref().map(LaneName::id);
        self.lane.is_none_or(|wanted| lane() == Some(wanted))
            && self.code.as_ref().is_none_or(|code| *code == letter.code)
            && self.status.is_none_or(|s| letter.status == Some(s))
            && self.since_ms.is_none_or(|ms| letter.buried_at_ms >= ms)
            && self.until_ms.is_none_or(|ms| letter.buried_at_ms < ms)
            && self.before.is_none_or(|present| present.includes(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn present(position: Position, rejected_ms: i64) -> Present {
        Present {
            position,
            rejected_ms,
        }
    }

    fn letter() -> DeadLetter {
        DeadLetter {
            lane: Some(LaneName::new("segment", "KEY12345")),
            call: Some("track".into()),
            code: "refused".into(),
            reason: "because".into(),
            status: Some(400),
            answer: "no\nway".into(),
            attempts: 2,
            accepted_at_ms: 10,
            buried_at_ms: 20,
            event: b"{\n}\n".to_vec(),
        }
    }

    #[test]
    fn a_letter_is_read_back_as_it_was_stored() {
        let letter = letter();
        assert_eq!(DeadLetter::decode(&letter.encode()), Some(letter.clone()));
        let head = DeadLetter::decode_head(&letter.encode()).expect("a letter");
        assert_eq!((head.code, head.event), (letter.code, Vec::new()));
        assert_eq!(DeadLetter::decode(b""), None);
    }

    #[test]
    fn a_letter_stored_before_calls_were_kept_is_still_read() {
        let old = br#"{"lane":{"destination":"segment","key":"K"},"code":"c","reason":"r","status":null,"answer":"","attempts":0,"accepted_at_ms":1,"buried_at_ms":2}
{}"#;
        let letter = DeadLetter::decode(old).expect("a letter");
        assert_eq!((letter.call, &letter.event[..]), (None, &b"{}"[..]));
    }

    #[test]
    fn an_id_is_text_and_back_and_other_text_is_none() {
        for id in [
            LetterId::of_event(7, 3, 1_700_000_000_000),
            LetterId::of_rejected(1_700_000_000_000, 9, -5),
        ] {
            assert_eq!(id.to_string().parse(), Ok(id));
            assert!(id.next() > id && id.next().to_string() != id.to_string());
        }
        let id = LetterId::of_event(7, 3, -4);
        assert_eq!((id.place(), id.accepted_at_ms()), (Some((7, 3)), -4));
        let grave = id.grave().to_string();
        let id = id.to_string();
        for text in [
            "",
            "e",
            &id[1..],
            &format!("{id}0"),
            &grave,
            &"é".repeat(21),
        ] {
            assert_eq!(text.parse::<LetterId>(), Err(NotALetterId), "{text}");
        }
    }

    #[test]
    fn a_filter_admits_what_agrees_with_all_that_is_set() {
        let (id, letter) = (LetterId::of_event(7, 0, 10), letter());
        let lane = letter.lane.as_ref().map(LaneName::id);
        let other = Some(LaneName::new("segment", "other").id());
        let all = Filter::default();
        for (filter, admits) in [
            (all.clone(), true),
            (
                Filter {
                    lane,
                    ..all.clone()
                },
                true,
            ),
            (
                Filter {
                    lane: other,
                    ..all.clone()
                },
                false,
            ),
            (
                Filter {
                    code: Some("refused".into()),
                    ..all.clone()
                },
                true,
            ),
            (
                Filter {
                    code: Some("other".into()),
                    ..all.clone()
                },
                false,
            ),
            (
                Filter {
                    status: Some(400),
                    lane,
                    ..all.clone()
                },
                true,
            ),
            (
                Filter {
                    status: Some(413),
                    lane,
                    ..all.clone()
                },
                false,
            ),
            (
                Filter {
                    since_ms: Some(20),
                    ..all.clone()
                },
                true,
            ),
            (
                Filter {
                    since_ms: Some(21),
                    ..all.clone()
                },
                false,
            ),
            (
                Filter {
                    until_ms: Some(21),
                    ..all.clone()
                },
                true,
            ),
            (
                Filter {
                    until_ms: Some(20),
                    ..all.clone()
                },
                false,
            ),
            (
                Filter {
                    before: Some(present(8, 0)),
                    ..all.clone()
                },
                true,
            ),
            (
                Filter {
                    before: Some(present(7, 0)),
                    ..all.clone()
                },
                false,
            ),
        ] {
            assert_eq!(filter.admits(id, &letter), admits, "{filter:?}");
        }
        let rejected = LetterId::of_rejected(5, 1, 1);
        for (ms, admits) in [(4, false), (5, true), (6, true)] {
            let filter = Filter {
                before: Some(present(0, ms)),
                ..all.clone()
            };
            assert_eq!(filter.admits(rejected, &letter), admits, "{ms}");
        }
    }
}
