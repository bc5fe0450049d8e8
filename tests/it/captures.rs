//! Requests that real SDKs sent, replayed byte for byte: their answer satisfies whoever sent them, and Segment gets what
//! they said. `tests/fixtures/captures/README.md` says what a capture holds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use segspool::stand_in::{RecordedEvent, StandIn};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::support::wire::{Answer, Wire};
use crate::support::{Relay, gzip, segment, spool, within};

const CAPTURES: [&str; 15] = [
    "analytics-go-3.x-01.json",
    "analytics-next-1.84.3-batching-01.json",
    "analytics-next-1.84.3-standard-01.json",
    "analytics-node-6.2.0-legacy-01.json",
    "chromium156-analytics-next-1.84.3-cors-01.json",
    "chromium156-analytics-next-1.84.3-cors-02.json",
    "retry-segment-analytics-node-3.1.0-02.json",
    "rudder-sdk-node-3.0.13-01.json",
    "rust-segment-0.2.6-01.json",
    "rust-segment-0.2.6-02.json",
    "rust-segment-0.2.6-07.json",
    "segment-analytics-node-3.1.0-01.json",
    "segment-analytics-python-2.2.3-01.json",
    "segment-analytics-python-2.4.0-01.json",
    "segment-analytics-python-2.4.0-gzip-01.json",
];

/// What an event may be given on its way, where it had none.
const MAY_BE_ADDED: [&str; 5] = ["type", "messageId", "timestamp", "context", "integrations"];

#[test]
fn every_capture_in_the_folder_is_replayed() {
    let files = std::fs::read_dir(folder()).expect("the folder is there");
    let mut found: Vec<_> = files
        .map(|file| file.expect("a file").file_name())
        .filter(|name| name != "README.md")
        .collect();
    found.sort();
    assert_eq!(found, CAPTURES);
}

/// The bytes of packed bodies were not kept: they are packed again here, and alone among the headers the value of their
/// Content-Length follows.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_sdk_sent_satisfies_it_and_reaches_segment_as_it_was() {
    let dir = spool();
    let segment = segment().await;
    let origins = ("INGEST__CORS_ORIGINS", r#"["http://localhost:18081"]"#);
    let relay = Relay::start(dir.path(), &segment.url(), &[origins]).await;
    for name in CAPTURES {
        let text = std::fs::read_to_string(folder().join(name)).expect("a capture");
        let capture: Capture = serde_json::from_str(&text).expect("a capture");
        let before = segment.tally().events;
        let mut wire = Wire::connect(&relay);
        wire.send(capture.request());
        let answer = wire.answer().expect("an answer");
        if capture.method == "OPTIONS" {
            capture.assert_may_post(&answer);
        } else {
            capture.assert_satisfied(&answer);
            capture.assert_arrived(name, before, &segment).await;
        }
    }
    assert!(segment.tally().violations.is_empty());
    let stats = relay.stats().await;
    assert_eq!(stats.ingest.rejected_events, 0);
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/captures")
}

#[derive(Deserialize)]
struct Capture {
    method: String,
    path: String,
    http_version: String,
    headers: Vec<(String, String)>,
    body_bytes_on_wire: usize,
    body_text: String,
}

impl Capture {
    fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(header, _)| header.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The request as it was on the wire.
    fn request(&self) -> Vec<u8> {
        let packed = self.header("content-encoding").is_some();
        let body = if packed {
            assert_eq!(self.header("content-encoding"), Some("gzip"));
            gzip(self.body_text.as_bytes())
        } else {
            assert_eq!(self.body_text.len(), self.body_bytes_on_wire);
            self.body_text.clone().into_bytes()
        };
        let mut request = format!("{} {} {}\r\n", self.method, self.path, self.http_version);
        for (name, value) in &self.headers {
            let again = body.len().to_string();
            let value = match packed && name.eq_ignore_ascii_case("content-length") {
                true => &again,
                false => value,
            };
            request += &format!("{name}: {value}\r\n");
        }
        let mut request = (request + "\r\n").into_bytes();
        request.extend(body);
        request
    }

    /// What a browser must read before it posts.
    fn assert_may_post(&self, answer: &Answer) {
        assert!((200..300).contains(&answer.status), "{answer:?}");
        self.assert_shown(answer);
        let lists = |header: &str, wanted: &str| {
            let listed = answer.header(header).expect(header);
            listed
                .split(',')
                .any(|one| one.trim().eq_ignore_ascii_case(wanted))
        };
        let asked = |header: &str| self.header(header).expect("the browser asks");
        let method = asked("access-control-request-method");
        assert!(lists("access-control-allow-methods", method), "{answer:?}");
        for name in asked("access-control-request-headers").split(',') {
            assert!(
                lists("access-control-allow-headers", name.trim()),
                "{answer:?}"
            );
        }
    }

    /// The one answer that every SDK takes for a success: some ask for exactly 200, some for a body that is a JSON object.
    fn assert_satisfied(&self, answer: &Answer) {
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json(), json!({"success": true}));
        self.assert_shown(answer);
    }

    /// A page gets to see an answer only if its origin is named.
    fn assert_shown(&self, answer: &Answer) {
        let origin = self.header("origin");
        assert_eq!(answer.header("access-control-allow-origin"), origin);
    }

    /// Of what the stand-in holds, all that came after the first `before` events is this capture's.
    async fn assert_arrived(&self, name: &str, before: u64, segment: &StandIn) {
        let envelope: Members = serde_json::from_str(&self.body_text).expect("an object");
        let sent: Vec<Members> = match envelope.get("batch") {
            Some(batch) => serde_json::from_str(batch.get()).expect("a list of objects"),
            None => vec![serde_json::from_str(&self.body_text).expect("an object")],
        };
        // A single call has no envelope.
        let envelope = envelope.contains_key("batch").then_some(envelope);
        within(segment.until(|tally| tally.events == before + sent.len() as u64)).await;
        let arrived = segment.take_events();
        assert_eq!(arrived.len(), sent.len());
        for (sent, arrived) in sent.iter().zip(&arrived) {
            assert_eq!(arrived.write_key, "WRITEKEY_TEST", "{name}");
            self.assert_same(name, envelope.as_ref(), sent, arrived);
        }
    }

    fn assert_same(
        &self,
        name: &str,
        envelope: Option<&Members>,
        sent: &Members,
        recorded: &RecordedEvent,
    ) {
        let text = recorded.event.get();
        let arrived: Members = serde_json::from_str(text).expect("an object");
        let merged = |member: &str| envelope.is_some_and(|e| given(e, member).is_some());
        for (member, value) in sent {
            if member == "sentAt" || merged(member) {
                continue;
            }
            let found = arrived.get(member).map(|value| value.get());
            assert_eq!(found, Some(value.get()), "{name}: {member}");
        }
        for member in arrived.keys().filter(|member| !sent.contains_key(*member)) {
            assert!(
                MAY_BE_ADDED.contains(&member.as_str()),
                "{name}: {member} was added"
            );
        }
        assert!(!arrived.contains_key("sentAt"), "{name}: {text}");

        let said = |member: &str| -> Value {
            arrived.get(member).map_or(Value::Null, |value| {
                serde_json::from_str(value.get()).expect("JSON")
            })
        };
        assert_eq!(said("type"), self.kind(sent), "{name}");
        assert!(said("messageId").as_str().is_some_and(|id| !id.is_empty()));
        let time = said("timestamp");
        let time = time.as_str().expect("a time");
        assert!(time.parse::<Timestamp>().is_ok(), "{name}: {time}");
        if let (None, Some(original)) = (given(sent, "timestamp"), given(sent, "originalTimestamp"))
        {
            assert_eq!(said("timestamp"), original, "{name}");
        }
        for member in ["context", "integrations"] {
            let mut expected = envelope
                .and_then(|envelope| given(envelope, member))
                .unwrap_or_default();
            match (given(sent, member), &mut expected) {
                (Some(Value::Object(own)), Value::Object(both)) => both.extend(own),
                (Some(own), expected) => *expected = own,
                (None, _) => {}
            }
            assert_eq!(said(member), expected, "{name}: {member}");
        }
    }

    /// The event's own type, or that of the path.
    fn kind(&self, sent: &Members) -> Value {
        given(sent, "type").unwrap_or_else(|| {
            let last = self.path.rsplit('/').next();
            last.expect("a path has a last part").into()
        })
    }
}

/// The members of an object, in their own words.
type Members = BTreeMap<String, Box<RawValue>>;

/// A member that is there, and more than null.
fn given(members: &Members, name: &str) -> Option<Value> {
    let value = members.get(name)?;
    Some(serde_json::from_str(value.get()).expect("JSON")).filter(|value: &Value| !value.is_null())
}
