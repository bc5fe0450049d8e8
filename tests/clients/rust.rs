//! The `segment` crate as an application uses it: its single sends and its batcher.
//!
//! It is linked into the test rather than run as a script, being a crate. It gives an event neither a messageId nor a
//! library, and single sends not even a timestamp or a type: these are the relay's to add.

use segment::message::{Alias, BatchMessage, Group, Identify, Message, Page, Screen, Track, User};
use segment::{AutoBatcher, Batcher, Client, HttpClient};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

const COUNTED: u32 = 50;

/// More than one batch holds, by their size.
const LARGE: u32 = 20;
const LARGE_BYTES: usize = 30_000;

const USER: &str = "пользователь-1@example.test";

/// Sends every call by itself; returns what must arrive.
pub(crate) async fn send_each(host: &str, write_key: &str) -> Vec<Value> {
    let client = client(host);
    let mut wanted = Vec::new();
    for (message, arrives) in calls() {
        let sent = client.send(write_key.to_owned(), alone(message)).await;
        sent.expect("the relay takes it");
        wanted.push(arrives);
    }
    wanted
}

/// Sends every call in batches, whose context is that of each event; returns what must arrive.
pub(crate) async fn send_batches(host: &str, write_key: &str) -> Vec<Value> {
    let app = json!({"name": "лавка", "build": u64::MAX});
    let batcher = Batcher::new(Some(json!({"app": app})));
    let mut batcher = AutoBatcher::new(client(host), batcher, write_key.to_owned());
    let mut wanted = Vec::new();
    for (message, mut arrives) in calls() {
        let pushed = batcher.push(message).await;
        pushed.expect("the relay takes it");
        arrives["context"]["app"] = app.clone();
        wanted.push(arrives);
    }
    batcher.flush().await.expect("the relay takes it");
    wanted
}

fn client(host: &str) -> HttpClient {
    let client = segment_reqwest::Client::builder().no_proxy().build();
    HttpClient::new(client.expect("it needs no TLS"), host.to_owned())
}

fn alone(message: BatchMessage) -> Message {
    match message {
        BatchMessage::Identify(identify) => identify.into(),
        BatchMessage::Track(track) => track.into(),
        BatchMessage::Page(page) => page.into(),
        BatchMessage::Screen(screen) => screen.into(),
        BatchMessage::Group(group) => group.into(),
        BatchMessage::Alias(alias) => alias.into(),
    }
}

/// Each call, and what must arrive of it.
fn calls() -> Vec<(BatchMessage, Value)> {
    let mut calls = kinds();
    for number in 0..COUNTED {
        calls.push(track("Counted", json!({"number": number})));
    }
    let text = "x".repeat(LARGE_BYTES);
    for number in 0..LARGE {
        calls.push(track("Large", json!({"number": number, "text": text})));
    }
    calls
}

fn kinds() -> Vec<(BatchMessage, Value)> {
    let rich = json!({
        "text": "Grüße, 世界 👩‍🚀 \u{200f}\u{2028} \"quoted\" \\ back / slash \t tab \0 nul \u{1f}",
        "ключ": "a key that is not ASCII",
        "": "a key without a name",
        "null": null,
        "yes": true,
        "no": false,
        "beyond_i64": u64::MAX,
        "least": i64::MIN,
        "tenth": 0.1,
        "tiny": 5e-324,
        "huge": 1e22,
        "minus_zero": -0.0,
        "nested": {"list": [1, [2, [3, {"deep": [null, {}, []]}]]], "empty": {}},
    });
    let user = || User::UserId {
        user_id: USER.into(),
    };
    let anonymous = || User::AnonymousId {
        anonymous_id: "anonymous-1".into(),
    };
    let context = json!({"ip": "203.0.113.7", "campaign": {"name": "spring"}});
    let integrations = json!({"All": false, "Mixpanel": {"groups": ["a"]}});
    let long_ago =
        OffsetDateTime::UNIX_EPOCH + time::Duration::nanoseconds(1_577_836_800_250_000_001);
    vec![
        (
            Identify {
                user: user(),
                traits: rich.clone(),
                ..Identify::default()
            }
            .into(),
            json!({"type": "identify", "userId": USER, "traits": rich}),
        ),
        (
            Identify {
                user: anonymous(),
                traits: json!({}),
                extra: extra(json!({"userId": null})),
                ..Identify::default()
            }
            .into(),
            json!({"type": "identify", "userId": null, "anonymousId": "anonymous-1", "traits": {}}),
        ),
        track("Order Completed ✔", rich.clone()),
        (
            Track {
                user: User::Both {
                    user_id: USER.into(),
                    anonymous_id: "anonymous-1".into(),
                },
                event: "Long Ago".into(),
                properties: json!({}),
                timestamp: Some(long_ago),
                context: Some(context.clone()),
                integrations: Some(integrations.clone()),
                extra: extra(json!({"messageId": "given-by-the-application-1", "unknown": [1]})),
            }
            .into(),
            json!({
                "type": "track",
                "userId": USER,
                "anonymousId": "anonymous-1",
                "event": "Long Ago",
                "properties": {},
                "timestamp": "2020-01-01T00:00:00.250000001Z",
                "context": context,
                "integrations": integrations,
                "messageId": "given-by-the-application-1",
                "unknown": [1],
            }),
        ),
        (
            Page {
                user: user(),
                name: "Start".into(),
                properties: json!({"url": "http://example.test/?a=1&b=%20"}),
                ..Page::default()
            }
            .into(),
            json!({
                "type": "page",
                "userId": USER,
                "name": "Start",
                "properties": {"url": "http://example.test/?a=1&b=%20"},
            }),
        ),
        (
            Screen {
                user: anonymous(),
                name: "Cart".into(),
                properties: rich.clone(),
                ..Screen::default()
            }
            .into(),
            json!({"type": "screen", "anonymousId": "anonymous-1", "name": "Cart", "properties": rich}),
        ),
        (
            Group {
                user: user(),
                group_id: "group-1".into(),
                traits: rich.clone(),
                ..Group::default()
            }
            .into(),
            json!({"type": "group", "userId": USER, "groupId": "group-1", "traits": rich}),
        ),
        (
            Alias {
                user: user(),
                previous_id: "anonymous-1".into(),
                ..Alias::default()
            }
            .into(),
            json!({"type": "alias", "userId": USER, "previousId": "anonymous-1"}),
        ),
    ]
}

fn track(event: &str, properties: Value) -> (BatchMessage, Value) {
    let arrives =
        json!({"type": "track", "userId": USER, "event": event, "properties": properties});
    let track = Track {
        user: User::UserId {
            user_id: USER.into(),
        },
        event: event.into(),
        properties,
        ..Track::default()
    };
    (track.into(), arrives)
}

fn extra(members: Value) -> Map<String, Value> {
    let Value::Object(members) = members else {
        panic!("these are no members: {members}");
    };
    members
}
