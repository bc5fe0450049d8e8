//! What a webhook's filters ask of an event. Pure, and says nothing where the event says nothing.

use std::borrow::Cow;

use jiff::Timestamp;

use super::json::Json;

/// Where an event was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// On a server.
    Server,
    /// On a user's device, in a page or in an app.
    Client,
    /// In a page.
    Browser,
    /// In an app.
    Mobile,
}

impl Channel {
    /// All of them.
    pub const ALL: [Channel; 4] = [
        Channel::Server,
        Channel::Client,
        Channel::Browser,
        Channel::Mobile,
    ];

    /// The channel of that name. Case counts.
    pub fn from_name(name: &str) -> Option<Channel> {
        Channel::ALL
            .into_iter()
            .find(|channel| channel.name() == name)
    }

    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Channel::Server => "server",
            Channel::Client => "client",
            Channel::Browser => "browser",
            Channel::Mobile => "mobile",
        }
    }

    /// Whether an event of the channel `other` may be one of this: a client is a page or an app, and nobody says which.
    pub fn covers(self, other: Channel) -> bool {
        self == other
            || match (self, other) {
                (Channel::Client, other) => other != Channel::Server,
                (own, Channel::Client) => own != Channel::Server,
                (Channel::Server | Channel::Browser | Channel::Mobile, _) => false,
            }
    }

    /// The channel of what a library sends.
    fn of_library(name: &str) -> Channel {
        match name.strip_prefix("@segment/").unwrap_or(name) {
            "analytics.js" => Channel::Browser,
            "analytics-swift"
            | "analytics-ios"
            | "analytics-android"
            | "analytics-kotlin"
            | "analytics-react-native" => Channel::Mobile,
            _ => Channel::Server,
        }
    }
}

/// What an event says of itself, as far as anybody may choose by it.
#[derive(Debug)]
pub struct Facts<'a> {
    /// Its `type`.
    pub kind: Option<Cow<'a, str>>,
    /// The name of a track.
    pub event: Option<Cow<'a, str>>,
    /// Its `messageId`.
    pub message_id: Option<Cow<'a, str>>,
    /// Who did it.
    pub user_id: Option<Cow<'a, str>>,
    /// Where it was made: its own or its context's `channel`, or else what its library tells. None where it names a channel that
    /// nobody knows.
    pub channel: Option<Channel>,
    json: Json<'a>,
    has_received_at: bool,
}

impl<'a> Facts<'a> {
    /// The facts of an event; none where it is no JSON object.
    pub fn of(event: &'a [u8]) -> Option<Facts<'a>> {
        let json: Json<'a> = serde_json::from_slice(event).ok()?;
        json.is_object().then(|| Facts::read(json))
    }

    fn read(json: Json<'a>) -> Facts<'a> {
        let mut facts = Facts {
            kind: None,
            event: None,
            message_id: None,
            user_id: None,
            channel: None,
            json,
            has_received_at: false,
        };
        let (mut own_channel, mut context) = (None, None);
        for member in json.members() {
            // Given twice, the last counts.
            match member.key.text().as_deref() {
                Some("type") => facts.kind = member.value.text(),
                Some("event") => facts.event = member.value.text(),
                Some("messageId") => facts.message_id = member.value.text(),
                Some("userId") => facts.user_id = member.value.text(),
                Some("channel") => own_channel = name(member.value),
                Some("context") => context = Some(member.value),
                Some("receivedAt") => facts.has_received_at = true,
                _ => {}
            }
        }
        facts.channel = channel(own_channel, context);
        facts
    }

    /// Appends the event as it is, and `receivedAt` behind its members where it has none.
    pub fn write(&self, received: Timestamp, out: &mut Vec<u8>) {
        let event = self.json.as_str();
        let Some(open) = event.strip_suffix('}').filter(|_| !self.has_received_at) else {
            out.extend_from_slice(event.as_bytes());
            return;
        };
        let comma = if self.json.members().next().is_some() {
            ","
        } else {
            ""
        };
        out.extend_from_slice(open.as_bytes());
        out.extend_from_slice(format!("{comma}\"receivedAt\":\"{received:.3}\"}}").as_bytes());
    }
}

fn channel<'a>(own: Option<Cow<'a, str>>, context: Option<Json<'a>>) -> Option<Channel> {
    let of_context = || member(context?, "channel").and_then(name);
    if let Some(named) = own.or_else(of_context) {
        return Channel::from_name(&named);
    }
    let library = context.and_then(|context| member(context, "library"));
    let library = library
        .and_then(|library| member(library, "name"))
        .and_then(name);
    Some(library.map_or(Channel::Server, |name| Channel::of_library(&name)))
}

/// The value of an object's member, the last where there are several.
fn member<'a>(object: Json<'a>, key: &str) -> Option<Json<'a>> {
    let members = object.members();
    let found = members.filter(|member| member.key.text().as_deref() == Some(key));
    found.last().map(|member| member.value)
}

/// A string that is not empty.
fn name(value: Json<'_>) -> Option<Cow<'_, str>> {
    value.text().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_what_the_event_says_or_else_what_its_library_tells() {
        for (event, expected) in [
            (r"{}", Some("server")),
            (r#"{"channel":"mobile"}"#, Some("mobile")),
            (r#"{"channel":"client"}"#, Some("client")),
            (r#"{"channel":"fridge"}"#, None),
            (
                r#"{"channel":"server","context":{"channel":"mobile"}}"#,
                Some("server"),
            ),
            (
                r#"{"channel":"","context":{"channel":"mobile"}}"#,
                Some("mobile"),
            ),
            (
                r#"{"channel":null,"context":{"library":{"name":"analytics.js"}}}"#,
                Some("browser"),
            ),
            (
                r#"{"context":{"library":{"name":"analytics-kotlin"}}}"#,
                Some("mobile"),
            ),
            (
                r#"{"context":{"library":{"name":"@segment/analytics-react-native"}}}"#,
                Some("mobile"),
            ),
            (
                r#"{"context":{"library":{"name":"analytics-python"}}}"#,
                Some("server"),
            ),
            (r#"{"context":"none","channel":7}"#, Some("server")),
        ] {
            let facts = Facts::of(event.as_bytes()).expect("an object");
            assert_eq!(facts.channel.map(Channel::name), expected, "{event}");
        }
    }

    #[test]
    fn a_client_is_a_page_or_an_app() {
        let name = |channel: &Channel| channel.name();
        for (filter, expected) in [
            (Channel::Server, &["server"][..]),
            (Channel::Client, &["client", "browser", "mobile"]),
            (Channel::Browser, &["client", "browser"]),
            (Channel::Mobile, &["client", "mobile"]),
        ] {
            let all = Channel::ALL.iter();
            let covered: Vec<_> = all.filter(|c| filter.covers(**c)).map(name).collect();
            assert_eq!(covered, expected, "{}", filter.name());
        }
    }

    #[test]
    fn an_event_is_given_the_time_of_its_receipt_once() {
        let received: Timestamp = "2026-11-23T14:00:00Z".parse().expect("a timestamp");
        for (event, expected) in [
            (r"{}", r#"{"receivedAt":"2026-11-23T14:00:00.000Z"}"#),
            (
                r#"{"a": "}" }"#,
                r#"{"a": "}" ,"receivedAt":"2026-11-23T14:00:00.000Z"}"#,
            ),
            (r#"{"receivedAt":"then"}"#, r#"{"receivedAt":"then"}"#),
        ] {
            let mut out = Vec::new();
            let facts = Facts::of(event.as_bytes()).expect("an object");
            facts.write(received, &mut out);
            assert_eq!(String::from_utf8(out).expect("text"), expected);
        }
        for other in ["", "[]", "7", "{", "\u{0}"] {
            assert!(Facts::of(other.as_bytes()).is_none(), "{other}");
        }
    }
}
