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
    /// The values of its `receivedAt`.
    received_at: Vec<Json<'a>>,
    keeps_received_at: bool,
}

impl<'a> Facts<'a> {
    /// The facts of an event of an application; none where it is no JSON object.
    pub fn of(event: &'a [u8]) -> Option<Facts<'a>> {
        let json: Json<'a> = serde_json::from_slice(event).ok()?;
        json.is_object().then(|| Facts::read(json))
    }

    /// The facts of an event that Segment posts; none where it is no JSON object. Segment's `receivedAt` is when Segment got it.
    pub fn of_received(event: &'a [u8]) -> Option<Facts<'a>> {
        let facts = Facts::of(event)?;
        let keeps_received_at = !facts.received_at.is_empty();
        Some(Facts {
            keeps_received_at,
            ..facts
        })
    }

    fn read(json: Json<'a>) -> Facts<'a> {
        let mut facts = Facts {
            kind: None,
            event: None,
            message_id: None,
            user_id: None,
            channel: None,
            json,
            received_at: Vec::new(),
            keeps_received_at: false,
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
                Some("receivedAt") => facts.received_at.push(member.value),
                _ => {}
            }
        }
        facts.channel = channel(own_channel, context);
        facts
    }

    /// Appends the event with the time of its receipt as `receivedAt`, in place of what an application may call so, else behind its
    /// members.
    pub fn write(&self, received: Timestamp, out: &mut Vec<u8>) {
        let event = self.json.as_str();
        if self.keeps_received_at {
            out.extend_from_slice(event.as_bytes());
            return;
        }
        let stamp = format!("\"{received:.3}\"");
        let mut written = 0;
        for value in self.received_at.iter().map(|value| value.as_str()) {
            // Each is a part of the event's own text.
            let at = value.as_ptr().addr() - event.as_ptr().addr();
            out.extend_from_slice(&event.as_bytes()[written..at]);
            out.extend_from_slice(stamp.as_bytes());
            written = at + value.len();
        }
        let rest = &event[written..];
        let Some(open) = rest.strip_suffix('}').filter(|_| written == 0) else {
            out.extend_from_slice(rest.as_bytes());
            return;
        };
        let comma = if self.json.members().next().is_some() {
            ","
        } else {
            ""
        };
        out.extend_from_slice(open.as_bytes());
        out.extend_from_slice(format!("{comma}\"receivedAt\":{stamp}}}").as_bytes());
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
    fn an_event_is_given_the_time_of_its_receipt_in_place_of_what_an_application_says() {
        let received: Timestamp = "2026-11-23T14:00:00Z".parse().expect("a timestamp");
        for (event, expected) in [
            (r"{}", r#"{"receivedAt":NOW}"#),
            (r#"{"a": "}" }"#, r#"{"a": "}" ,"receivedAt":NOW}"#),
            (r#"{"receivedAt":"then"}"#, r#"{"receivedAt":NOW}"#),
            (
                r#"{"a":{"receivedAt":1}, "receivedAt" : {"b":[2]} ,"c":"receivedAt"}"#,
                r#"{"a":{"receivedAt":1}, "receivedAt" : NOW ,"c":"receivedAt"}"#,
            ),
            (
                r#"{"receivedAt":null,"ü":1,"received\u0041t":"then"}"#,
                r#"{"receivedAt":NOW,"ü":1,"received\u0041t":NOW}"#,
            ),
        ] {
            let mut out = Vec::new();
            let facts = Facts::of(event.as_bytes()).expect("an object");
            facts.write(received, &mut out);
            let expected = expected.replace("NOW", "\"2026-11-23T14:00:00.000Z\"");
            assert_eq!(String::from_utf8(out).expect("text"), expected);
        }
        for other in ["", "[]", "7", "{", "\u{0}"] {
            assert!(Facts::of(other.as_bytes()).is_none(), "{other}");
            assert!(Facts::of_received(other.as_bytes()).is_none(), "{other}");
        }
    }

    #[test]
    fn what_segment_says_of_its_own_receipt_stays() {
        let received: Timestamp = "2026-11-23T14:00:00Z".parse().expect("a timestamp");
        for (event, expected) in [
            (r#"{"receivedAt": "then"}"#, r#"{"receivedAt": "then"}"#),
            (r"{}", r#"{"receivedAt":"2026-11-23T14:00:00.000Z"}"#),
        ] {
            let mut out = Vec::new();
            let facts = Facts::of_received(event.as_bytes()).expect("an object");
            facts.write(received, &mut out);
            assert_eq!(String::from_utf8(out).expect("text"), expected);
        }
    }
}
