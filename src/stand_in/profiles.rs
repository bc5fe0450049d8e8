//! The Profile API: a few people and companies, always the same. Never knows what was posted.

use base64::Engine as _;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::{Request, StatusCode};
use serde_json::{Map, Value, json};

use super::Options;
use super::tracking::{Reply, json as json_reply};

/// Every path below it is a profile, or nothing.
pub(super) const PREFIX: &str = "/v1/spaces/";
/// Entries of a page, where the request names no other number.
const LIMIT: usize = 10;
/// And the most.
const LIMIT_MAX: usize = 100;
/// How many events and traits a profile has: more than a page of either.
const ENTRIES: usize = 25;

/// Answers a GET below [`PREFIX`].
pub(super) fn read(options: &Options, request: &Request<Incoming>) -> Reply {
    let authorization = request.headers().get(AUTHORIZATION);
    let authorization = authorization.and_then(|value| value.to_str().ok());
    let (path, query) = (request.uri().path(), request.uri().query());
    let (status, body) = answer(options, authorization, path, query.unwrap_or_default());
    let mut reply = json_reply(status, body.to_string());
    let id = uuid::Uuid::new_v4().to_string();
    let id = HeaderValue::from_str(&id).expect("hexadecimal digits fit into a header");
    reply.headers_mut().insert("request-id", id);
    reply
}

fn answer(
    options: &Options,
    authorization: Option<&str>,
    path: &str,
    query: &str,
) -> (StatusCode, Value) {
    let refusal = |status, code, message| {
        let error = json!({"error": {"code": code, "message": message}});
        (status, error)
    };
    let wanted = options.profile_token.as_deref();
    let borne = authorization.and_then(token);
    let is_let_in = borne.is_some_and(|borne| wanted.is_none_or(|wanted| borne == wanted));
    if !is_let_in {
        let message = "The token is missing or wrong.";
        return refusal(StatusCode::UNAUTHORIZED, "authentication_error", message);
    }
    let missing = || refusal(StatusCode::NOT_FOUND, "not_found", "Profile was not found.");
    let segments: Vec<_> = path.split('/').skip(3).collect();
    let [_space, "collections", collection, "profiles", id, resource] = segments[..] else {
        return missing();
    };
    let (users, accounts) = (["u1", "u2", "u3"], ["g1", "g2"]);
    let known = match (collection, id.split_once(':')) {
        ("users", Some(("user_id", value))) => users.contains(&value),
        ("accounts", Some(("group_id", value))) => accounts.contains(&value),
        _ => false,
    };
    if !known {
        return missing();
    }
    let Some(page) = Page::parse(query) else {
        let message = "limit is a number from 1 to 100, next is what a cursor said.";
        return refusal(StatusCode::BAD_REQUEST, "validation_error", message);
    };
    let body = match resource {
        "traits" => {
            let traits = page.of((0..ENTRIES).map(|n| (format!("trait_{n:02}"), json!(n))));
            json!({"traits": traits.into_iter().collect::<Map<_, _>>(), "cursor": page.cursor(path, ENTRIES)})
        }
        "events" => {
            let events = page.of((0..ENTRIES).map(|n| {
                json!({
                    "external_ids": [external_id(collection, id)],
                    "type": "track",
                    "event": "Order Completed",
                    "message_id": format!("{id}-{n}"),
                    "source_id": "src_1",
                    "timestamp": format!("2026-01-01T00:{:02}:00Z", 59 - n),
                    "properties": {"number": n},
                })
            }));
            json!({"data": events, "cursor": page.cursor(path, ENTRIES)})
        }
        "external_ids" => {
            json!({"data": [external_id(collection, id)], "cursor": page.cursor(path, 1)})
        }
        "metadata" => json!({"metadata": {
            "created_at": "2025-06-01T00:00:00Z",
            "updated_at": "2026-01-01T00:59:00Z",
            "expires_at": null,
            "first_source_id": "src_1",
            "last_source_id": "src_1",
        }}),
        "links" => json!({"data": [{
            "to_collection": "accounts",
            "external_ids": [external_id("accounts", "group_id:g1")],
        }]}),
        _ => return missing(),
    };
    (StatusCode::OK, body)
}

/// The user name of Basic credentials whose password is empty.
fn token(authorization: &str) -> Option<String> {
    let encoded = authorization.strip_prefix("Basic ")?;
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded);
    let decoded = String::from_utf8(decoded.ok()?).ok()?;
    let user = decoded.strip_suffix(':')?;
    (!user.is_empty()).then(|| user.to_owned())
}

fn external_id(collection: &str, id: &str) -> Value {
    let (id_type, value) = id.split_once(':').unwrap_or_default();
    json!({
        "source_id": "src_1",
        "collection": collection,
        "id": value,
        "type": id_type,
        "created_at": "2025-06-01T00:00:00Z",
        "encoding": "none",
    })
}

/// A part of a list.
struct Page {
    from: usize,
    limit: usize,
}

impl Page {
    fn parse(query: &str) -> Option<Page> {
        let mut page = Page {
            from: 0,
            limit: LIMIT,
        };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "limit" => page.limit = value.parse().ok()?,
                "next" => page.from = value.strip_prefix("from-")?.parse().ok()?,
                _ => {}
            }
        }
        (1..=LIMIT_MAX).contains(&page.limit).then_some(page)
    }

    fn of<T>(&self, entries: impl Iterator<Item = T>) -> Vec<T> {
        entries.skip(self.from).take(self.limit).collect()
    }

    /// Absolute, as the Profile API has it for some resources.
    fn cursor(&self, path: &str, entries: usize) -> Value {
        let end = self.from.saturating_add(self.limit);
        if end >= entries {
            return json!({"url": path, "has_more": false, "next": "", "limit": self.limit});
        }
        let (next, limit) = (format!("from-{end}"), self.limit);
        let url = format!("https://profiles.segment.com{path}?limit={limit}&next={next}");
        json!({"url": url, "has_more": true, "next": next, "limit": limit})
    }
}
