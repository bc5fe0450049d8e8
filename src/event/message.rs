//! One event as the list of its members, in their order and in their own words.

use super::json::{Json, Member};
use super::limits::EVENT_MEMBERS_MAX;
use super::rejection::{Code, Rejection};

/// Real events have 8 to 14 members; room for that many is asked for at once.
const MEMBERS_USUAL: usize = 16;

/// The members of one event and where among them the known ones are. `sentAt` stands apart: it is read and never written.
#[derive(Debug)]
pub(super) struct Message<'a> {
    members: Vec<Member<'a>>,
    places: [Option<usize>; Field::COUNT],
    sent_at: Option<Json<'a>>,
}

impl<'a> Message<'a> {
    /// # Errors
    /// [`Code::NotAnObject`], and [`Code::EventTooLarge`] if it has more members than fit.
    pub(super) fn read(json: Json<'a>) -> Result<Message<'a>, Rejection> {
        if !json.is_object() {
            return Err(Rejection::new(
                Code::NotAnObject,
                "the event is not a JSON object",
            ));
        }
        let mut message = Message {
            members: Vec::with_capacity(MEMBERS_USUAL),
            places: [None; Field::COUNT],
            sent_at: None,
        };
        for member in json.members() {
            match Field::of(member.key) {
                // By the time of delivery it would shift the event's time by as long as the event has waited.
                Some(Field::SentAt) => message.sent_at = Some(member.value),
                Some(field) => message.put(field, member),
                None => message.members.push(member),
            }
            if message.members.len() > EVENT_MEMBERS_MAX {
                return Err(Rejection::too_large(json.as_str().len()));
            }
        }
        Ok(message)
    }

    /// The value of a known member, unless it is absent or null, which is the same to Segment.
    pub(super) fn get(&self, field: Field) -> Option<Json<'a>> {
        let member = self.members.get(self.places[field as usize]?)?;
        (!member.value.is_null()).then_some(member.value)
    }

    /// When the sender says that it sent the event, by its own clock.
    pub(super) fn sent_at(&self) -> Option<Json<'a>> {
        self.sent_at.filter(|sent_at| !sent_at.is_null())
    }

    /// Gives a known member a value: in its place if it has one, else at the end.
    pub(super) fn set(&mut self, field: Field, value: Json<'a>) {
        let key = Json::ours(field.key());
        self.put(field, Member { key, value });
    }

    /// Appends the event as one JSON object.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        write_object(self.members.iter().copied(), |text| {
            out.extend_from_slice(text.as_bytes());
        });
    }

    fn put(&mut self, field: Field, member: Member<'a>) {
        let place = &mut self.places[field as usize];
        match place.and_then(|place| self.members.get_mut(place)) {
            Some(held) => held.value = member.value,
            None => {
                *place = Some(self.members.len());
                self.members.push(member);
            }
        }
    }
}

/// Emits an object of these members, piece by piece.
pub(super) fn write_object<'a>(
    members: impl IntoIterator<Item = Member<'a>>,
    mut emit: impl FnMut(&str),
) {
    let mut separator = "{";
    for member in members {
        emit(separator);
        emit(member.key.as_str());
        emit(":");
        emit(member.value.as_str());
        separator = ",";
    }
    emit(if separator == "{" { "{}" } else { "}" });
}

macro_rules! fields {
    ($($field:ident $name:literal,)*) => {
        /// The members that this module reads.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Field {
            $($field,)*
        }

        impl Field {
            const COUNT: usize = [$($name),*].len();

            pub(super) const fn name(self) -> &'static str {
                match self {
                    $(Field::$field => $name,)*
                }
            }

            /// The name as JSON text, quotes included.
            const fn key(self) -> &'static str {
                match self {
                    $(Field::$field => concat!('"', $name, '"'),)*
                }
            }

            fn named(name: &str) -> Option<Field> {
                match name {
                    $($name => Some(Field::$field),)*
                    _ => None,
                }
            }
        }
    };
}

fields! {
    Type "type",
    MessageId "messageId",
    UserId "userId",
    AnonymousId "anonymousId",
    PreviousId "previousId",
    GroupId "groupId",
    Event "event",
    Name "name",
    Category "category",
    Properties "properties",
    Traits "traits",
    Context "context",
    Integrations "integrations",
    Timestamp "timestamp",
    OriginalTimestamp "originalTimestamp",
    SentAt "sentAt",
    WriteKey "writeKey",
}

impl Field {
    /// The field that a key means, which may be spelled with escapes.
    pub(super) fn of(key: Json<'_>) -> Option<Field> {
        Field::named(&key.text()?)
    }
}
