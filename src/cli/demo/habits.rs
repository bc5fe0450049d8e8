//! What the pretend applications post: requests as the SDKs make them. Pure: no I/O, no clock.

use std::io::Write;
use std::ops::Range;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use serde_json::{Value, json};

/// The source of the shop's servers.
const SERVER_KEY: &str = "demo-server-key";
/// The source of the shop's website.
const WEBSITE_KEY: &str = "demo-website-key";
/// Few enough that users come back.
const USERS: u64 = 997;
/// A visitor of the website looks at so many pages and then signs in.
const PAGES_A_VISIT: u64 = 4;

/// One application for each way in which SDKs post. Those that post single events get few of them: each waits for the
/// disk before its next.
pub(super) const CAST: [Habit; 4] = [
    Habit {
        name: "orders",
        percent: 64,
        events_a_request: 50,
        form: Form::Batch,
    },
    Habit {
        name: "stock",
        percent: 32,
        events_a_request: 100,
        form: Form::GzipBatch,
    },
    Habit {
        name: "till",
        percent: 2,
        events_a_request: 1,
        form: Form::Track,
    },
    Habit {
        name: "website",
        percent: 2,
        events_a_request: 1,
        form: Form::Browser,
    },
];

/// What an application posts, and how.
#[derive(Debug)]
pub(super) struct Habit {
    pub(super) name: &'static str,
    /// Its share of all events.
    pub(super) percent: u64,
    pub(super) events_a_request: u64,
    form: Form,
}

/// The shape of a request.
#[derive(Debug)]
enum Form {
    /// A batch, as from most libraries for servers.
    Batch,
    /// The same, compressed.
    GzipBatch,
    /// A single call, its type in the path alone, as from the plain HTTP API.
    Track,
    /// Single calls as text, the key in the body as well, as from a browser.
    Browser,
}

/// A request ready to be posted, as often as it takes.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) path: &'static str,
    pub(super) write_key: &'static str,
    pub(super) content_type: &'static str,
    pub(super) gzip: bool,
    pub(super) body: Bytes,
}

impl Habit {
    /// The `messageId` of its n-th event.
    pub(super) fn message_id(&self, n: u64) -> String {
        format!("demo-{}-{n}", self.name)
    }

    /// The request for these of its events: one of them, unless it posts batches.
    pub(super) fn request(&self, events: Range<u64>, now: Timestamp) -> Request {
        let n = events.start;
        match self.form {
            Form::Batch => json_request("/v1/batch", &self.batch(events, now)),
            Form::GzipBatch => gzipped(json_request("/v1/batch", &self.batch(events, now))),
            Form::Track => json_request("/v1/track", &self.track(n, now)),
            Form::Browser if (n + 1).is_multiple_of(PAGES_A_VISIT + 1) => {
                text_request("/v1/identify", &self.identify(n, now))
            }
            Form::Browser => text_request("/v1/page", &self.page(n, now)),
        }
    }

    fn batch(&self, events: Range<u64>, now: Timestamp) -> Value {
        let tracks = events.map(|n| {
            let mut track = self.track(n, now);
            track["type"] = "track".into();
            track
        });
        json!({
            "batch": tracks.collect::<Vec<Value>>(),
            "sentAt": now.to_string(),
            "context": { "library": { "name": "segspool-demo", "version": env!("CARGO_PKG_VERSION") } },
        })
    }

    fn track(&self, n: u64, now: Timestamp) -> Value {
        let order = format!("{}-{n}", self.name);
        json!({
            "messageId": self.message_id(n),
            "timestamp": now.to_string(),
            "userId": user(n),
            "event": "Order Completed",
            "properties": {
                "order_id": order,
                "currency": "EUR",
                "total": 12.5 + (n % 400) as f64 / 4.0,
                "products": [
                    { "product_id": format!("P{}", n % 83), "name": "Coffee, whole beans", "price": 12.5, "quantity": 1 },
                    { "product_id": format!("P{}", n % 61), "name": "Filter papers", "price": 0.25, "quantity": n % 400 },
                ],
            },
        })
    }

    fn identify(&self, n: u64, now: Timestamp) -> Value {
        json!({
            "type": "identify",
            "messageId": self.message_id(n),
            "timestamp": now.to_string(),
            "sentAt": now.to_string(),
            "writeKey": WEBSITE_KEY,
            "anonymousId": visitor(n),
            "userId": user(n / (PAGES_A_VISIT + 1)),
            "traits": { "plan": "free", "newsletter": n.is_multiple_of(2) },
        })
    }

    fn page(&self, n: u64, now: Timestamp) -> Value {
        json!({
            "type": "page",
            "messageId": self.message_id(n),
            "timestamp": now.to_string(),
            "sentAt": now.to_string(),
            "writeKey": WEBSITE_KEY,
            "anonymousId": visitor(n),
            "userId": null,
            "name": "Product",
            "properties": { "path": format!("/products/{}", n % 83), "title": "Coffee", "referrer": "" },
        })
    }
}

fn user(n: u64) -> String {
    format!("user-{}", n % USERS)
}

/// The visitor that a website's n-th event belongs to.
fn visitor(n: u64) -> String {
    format!("visitor-{}", n / (PAGES_A_VISIT + 1))
}

fn json_request(path: &'static str, body: &Value) -> Request {
    Request {
        path,
        write_key: SERVER_KEY,
        content_type: "application/json",
        gzip: false,
        body: body.to_string().into(),
    }
}

fn text_request(path: &'static str, body: &Value) -> Request {
    Request {
        path,
        write_key: WEBSITE_KEY,
        content_type: "text/plain",
        gzip: false,
        body: body.to_string().into(),
    }
}

fn gzipped(request: Request) -> Request {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let body = encoder
        .write_all(&request.body)
        .and_then(|()| encoder.finish());
    Request {
        gzip: true,
        body: body.expect("memory takes every byte").into(),
        ..request
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Kind, decode_batch, decode_single, validate};

    #[test]
    fn every_application_posts_events_that_segment_would_keep_under_the_ids_it_counts() {
        for habit in &CAST {
            for n in 0..2 * PAGES_A_VISIT {
                let events = n..n + habit.events_a_request;
                let request = habit.request(events.clone(), Timestamp::UNIX_EPOCH);
                let mut body = Vec::new();
                if request.gzip {
                    let mut decoder = flate2::read::GzDecoder::new(request.body.as_ref());
                    std::io::Read::read_to_end(&mut decoder, &mut body).expect("this is gzip");
                } else {
                    body.extend_from_slice(&request.body);
                }
                let call = request.path.rsplit('/').next().expect("it has a path");
                let envelope = match Kind::from_path(call) {
                    Some(kind) => decode_single(kind, &body),
                    None => decode_batch(&body),
                };
                let envelope = envelope.expect("this is a request");
                assert_eq!(envelope.events.len() as u64, habit.events_a_request);
                for (event, n) in envelope.events.iter().zip(events) {
                    validate(event).expect("Segment would keep it");
                    let event: Value = serde_json::from_str(event.json()).expect("this is JSON");
                    assert_eq!(event["messageId"], habit.message_id(n));
                }
            }
        }
    }
}
