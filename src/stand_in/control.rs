//! The stand-in's own endpoints: its tally read and cleared, its rules replaced, over HTTP.

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde::de::DeserializeOwned;

use super::desk::Desk;
use super::rules::{Answer, Rule};
use super::tracking::{Reply, json, whole};

/// Every path below it is control, never tracking.
pub(super) const PREFIX: &str = "/stand-in/";

/// A list of rules is short: this leaves room for thousands.
const BODY_BYTES_MAX: usize = 1024 * 1024;

pub(super) async fn control(desk: &Desk, request: Request<Incoming>) -> Reply {
    let method = request.method().as_str().to_owned();
    let path = request.uri().path().to_owned();
    match (
        method.as_str(),
        path.strip_prefix(PREFIX).unwrap_or_default(),
    ) {
        ("GET", "tally") => {
            let tally = serde_json::to_vec(&desk.tally()).expect("a tally has nothing JSON lacks");
            json(StatusCode::OK, tally)
        }
        ("DELETE", "tally") => {
            desk.clear_tally();
            done()
        }
        ("PUT", "rules") => match parse::<Vec<Rule>>(request).await {
            Ok(rules) => {
                desk.set_rules(rules);
                done()
            }
            Err(reason) => failed(StatusCode::BAD_REQUEST, &reason),
        },
        ("PUT", "answer") => match parse::<Answer>(request).await {
            Ok(answer) => {
                desk.set_rules(vec![Rule::always(answer)]);
                done()
            }
            Err(reason) => failed(StatusCode::BAD_REQUEST, &reason),
        },
        ("GET", "events") if desk.options().record => events(desk),
        ("GET", "events") => failed(StatusCode::NOT_FOUND, "events are not being recorded"),
        _ => failed(StatusCode::NOT_FOUND, "no such endpoint"),
    }
}

async fn parse<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, String> {
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| error.to_string())?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| error.to_string())
}

fn events(desk: &Desk) -> Reply {
    let mut lines = String::new();
    for event in desk.events() {
        let line = serde_json::to_string(&event).expect("an event has nothing JSON lacks");
        // JSON has line breaks only between its tokens, where a space says the same.
        lines.push_str(&line.replace(['\n', '\r'], " "));
        lines.push('\n');
    }
    whole(StatusCode::OK, "application/x-ndjson", Bytes::from(lines))
}

fn done() -> Reply {
    json(StatusCode::OK, r#"{"success":true}"#)
}

fn failed(status: StatusCode, reason: &str) -> Reply {
    let body = serde_json::json!({ "success": false, "error": reason });
    json(status, body.to_string())
}
