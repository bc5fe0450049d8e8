//! Replies about profiles: the Profile API's own, and errors in its form, `{"error":{"code","message"}}`, so that its clients
//! understand them.

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::header::{
    AGE, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WARNING,
    WWW_AUTHENTICATE,
};
use hyper::{Response, StatusCode};
use serde_json::json;

use super::Error;
use crate::profiles::{self, AddressError, Answer, Origin};
use crate::server::guard::Foreign;
use crate::server::reply::{self, Reply};

/// Segment's name for a request, by which its support finds it.
static REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
/// Whether an answer comes from the cache.
static CACHE: HeaderName = HeaderName::from_static("segspool-cache");
/// After this many seconds a space has requests again.
const PACE_SECONDS: u16 = 1;

/// What the Profile API answered, with `body` for its body.
pub(super) fn relayed(answer: &Answer, body: Bytes, origin: Origin) -> Reply {
    let mut reply = Response::new(Either::Left(Full::new(body)));
    *reply.status_mut() =
        StatusCode::from_u16(answer.status).expect("it was a status when it came");
    let headers = reply.headers_mut();
    for (name, value) in [
        (&CONTENT_TYPE, &answer.content_type),
        (&REQUEST_ID, &answer.request_id),
        (&RETRY_AFTER, &answer.retry_after),
    ] {
        // What came in a header fits into one.
        let value = value.as_deref().and_then(|v| HeaderValue::from_str(v).ok());
        value.map(|value| headers.insert(name, value));
    }
    // Nobody between us and the client is to keep a person's data.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let (cache, age) = match origin {
        Origin::Upstream => ("miss", None),
        Origin::Cache(age) => ("hit", Some(age)),
        Origin::Stale(age) => ("stale", Some(age)),
    };
    headers.insert(&CACHE, HeaderValue::from_static(cache));
    if let Some(age) = age {
        headers.insert(AGE, HeaderValue::from(age.as_secs()));
    }
    if matches!(origin, Origin::Stale(_)) {
        let stale = HeaderValue::from_static("110 - \"Response is Stale\"");
        headers.insert(WARNING, stale);
    }
    reply
}

/// The reply to what was not served.
pub(super) fn error(error: &Error) -> Reply {
    let (status, code) = match error {
        Error::Foreign(Foreign::Host) => (StatusCode::FORBIDDEN, "host_not_allowed"),
        Error::Foreign(Foreign::Origin) => (StatusCode::FORBIDDEN, "origin_not_allowed"),
        Error::Off => (StatusCode::NOT_FOUND, "profiles_off"),
        Error::Unauthorized => (StatusCode::UNAUTHORIZED, "authentication_error"),
        Error::Method => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
        Error::Address(AddressError::Id(_) | AddressError::Space) => {
            (StatusCode::BAD_REQUEST, "invalid_request_error")
        }
        Error::Address(
            AddressError::Path
            | AddressError::Resource
            | AddressError::Collection
            | AddressError::NoSpace,
        ) => (StatusCode::NOT_FOUND, "not_found"),
        Error::Read(profiles::Error::TooFast) => {
            (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error")
        }
        Error::Read(profiles::Error::TimedOut) => (StatusCode::GATEWAY_TIMEOUT, "timeout"),
        Error::Read(profiles::Error::Unanswered(_)) => (StatusCode::BAD_GATEWAY, "unreachable"),
        Error::Read(profiles::Error::Unusable(_)) => (StatusCode::BAD_GATEWAY, "invalid_answer"),
    };
    let message = match error {
        Error::Foreign(Foreign::Host) => {
            "the Host header names neither this machine nor one of ingest.allowed_hosts".into()
        }
        Error::Foreign(Foreign::Origin) => "profiles are not for pages in a browser".into(),
        Error::Off => "profiles are off; to turn them on, give profiles.token_file a file with the \
                       space's access token, and profiles.space_id its id"
            .into(),
        Error::Unauthorized => {
            "this daemon wants the token of profiles.client_token_file, as `Authorization: Bearer …`"
                .into()
        }
        Error::Method => "profiles can only be read, by GET".into(),
        Error::Address(error) => error.to_string(),
        Error::Read(error) => error.to_string(),
    };
    let mut reply = reply::json(
        status,
        &json!({"error": {"code": code, "message": message}}),
    );
    let headers = reply.headers_mut();
    match error {
        Error::Unauthorized => {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        Error::Method => {
            headers.insert(ALLOW, HeaderValue::from_static("GET"));
        }
        Error::Read(profiles::Error::TooFast) => {
            headers.insert(RETRY_AFTER, HeaderValue::from(PACE_SECONDS));
        }
        Error::Foreign(_) | Error::Off | Error::Address(_) | Error::Read(_) => {}
    }
    reply
}
