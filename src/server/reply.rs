//! Every reply the server gives. The one place where what happened becomes an HTTP status.
//!
//! Success is exactly `200` with `{"success":true}`, because some SDKs take any other 2xx, or an empty body, for a failure and
//! post again. An error is a JSON object with `success`, `code`, `message` and `error`, because some SDKs retry for ever
//! where one of these is missing.

use std::io;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Either, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ALLOW,
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY,
    RETRY_AFTER, VARY, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::{Response, StatusCode};
use serde::Serialize;

use super::body::BodyError;
use super::guard::Foreign;
use crate::ingest::{Accepted, Refusal};
use crate::queue::{AppendError, Unavailable};
use crate::stats::Format;

/// A reply.
pub(super) type Reply = Response<Either<Full<Bytes>, UnsyncBoxBody<Bytes, io::Error>>>;

/// Which durability a 200 of the ingest listener stands for.
static DURABILITY: HeaderName = HeaderName::from_static("segspool-durability");
/// Keep a page apart from those that open it, and from those that would show it.
static CROSS_ORIGIN_OPENER_POLICY: HeaderName =
    HeaderName::from_static("cross-origin-opener-policy");
static CROSS_ORIGIN_RESOURCE_POLICY: HeaderName =
    HeaderName::from_static("cross-origin-resource-policy");
/// How long a sender is asked to wait when the queue is full: it drains at the destination's pace.
const FULL_RETRY_SECONDS: u16 = 30;
/// How long when the disk failed, or the daemon is about to be back.
const FAULT_RETRY_SECONDS: u16 = 5;

/// How long a browser may remember that it may post, in seconds: two hours, the most that Chromium grants.
const PREFLIGHT_SECONDS: &str = "7200";

/// A GIF of one pixel, which is transparent.
const PIXEL: &[u8] = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff\
    !\xf9\x04\x01\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;";

/// Why a request was not served, other than by its content.
#[derive(Debug)]
pub(super) enum Error {
    /// A browser sent it on behalf of a page that may not.
    Foreign(Foreign),
    /// No such path.
    NotFound,
    /// A change is not on disk yet.
    NotSaved(crate::queue::NotSaved),
    /// The path does not take this method.
    Method { allowed: &'static str },
    /// A webhook's own call has come back, or that of another daemon.
    Loop,
    /// The Authorization header holds no usable write key.
    Credentials(crate::event::Rejection),
    /// The body did not arrive.
    Body(BodyError),
    /// Its events were not taken.
    Refused(Refusal),
    /// It does not bear the operator's token.
    Unauthorized,
    /// A parameter is wrong, and how.
    Parameter(String),
    /// What it names is not there.
    NoSuch(&'static str),
    /// The dead letters cannot be read or changed.
    DeadLetters(Unavailable),
    /// As many watch as may.
    WatchersFull,
}

impl From<Unavailable> for Error {
    fn from(error: Unavailable) -> Error {
        Error::DeadLetters(error)
    }
}

/// The reply to events that were accepted, whole or in part.
pub(super) fn accepted(accepted: &Accepted) -> Reply {
    #[derive(Serialize)]
    struct Partial<'a> {
        success: bool,
        accepted: usize,
        rejected: Vec<Item<'a>>,
    }
    #[derive(Serialize)]
    struct Item<'a> {
        index: usize,
        code: &'static str,
        message: &'a str,
    }
    let mut reply = if accepted.rejected.is_empty() {
        success()
    } else {
        let items = accepted.rejected.iter().map(|item| Item {
            index: item.index,
            code: item.rejection.code().as_str(),
            message: item.rejection.message(),
        });
        json(
            StatusCode::OK,
            &Partial {
                success: true,
                accepted: accepted.accepted,
                rejected: items.collect(),
            },
        )
    };
    let durability = HeaderValue::from_static(accepted.durability.as_str());
    reply.headers_mut().insert(DURABILITY.clone(), durability);
    reply
}

/// The reply to a browser that asks before it posts.
pub(super) fn preflight(methods: &'static str) -> Reply {
    let mut reply = Response::new(Either::Left(Full::default()));
    *reply.status_mut() = StatusCode::NO_CONTENT;
    let headers = reply.headers_mut();
    headers.insert(ALLOW, HeaderValue::from_static(methods));
    headers.insert(
        ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("POST, GET, OPTIONS"),
    );
    // What analytics-next 1.84 sends, and what its users may add.
    let names = "authorization, content-type, x-retry-count";
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static(names),
    );
    headers.insert(
        ACCESS_CONTROL_MAX_AGE,
        HeaderValue::from_static(PREFLIGHT_SECONDS),
    );
    reply
}

/// Lets the pages of an origin read a reply.
pub(super) fn shown_to(origin: &HeaderValue, mut reply: Reply) -> Reply {
    let headers = reply.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    // With credentials a browser accepts no `*`, so the origin itself is named, and caches must know.
    headers.insert(
        ACCESS_CONTROL_ALLOW_CREDENTIALS,
        HeaderValue::from_static("true"),
    );
    headers.insert(
        ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("Retry-After"),
    );
    headers.insert(VARY, HeaderValue::from_static("Origin"));
    reply
}

/// `{"success":true}`
pub(super) fn success() -> Reply {
    with_type(
        StatusCode::OK,
        "application/json",
        Bytes::from_static(br#"{"success":true}"#),
    )
}

/// The reply to a pixel call, whatever became of its event: a transparent picture of one pixel.
pub(super) fn pixel() -> Reply {
    let mut reply = with_type(StatusCode::OK, "image/gif", Bytes::from_static(PIXEL));
    // From a cache it would count no second time.
    reply
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

/// The reply to what was not served.
pub(super) fn error(error: &Error) -> Reply {
    error_after(error, serde_json::Value::Null)
}

/// The reply to what was served in part: the error, and an object that says what was done before.
pub(super) fn error_after(error: &Error, done: serde_json::Value) -> Reply {
    let (status, code, retry_after) = match error {
        Error::Foreign(Foreign::Host) => (StatusCode::FORBIDDEN, "host_not_allowed", None),
        Error::Foreign(Foreign::Origin) => (StatusCode::FORBIDDEN, "origin_not_allowed", None),
        Error::NotFound => (StatusCode::NOT_FOUND, "not_found", None),
        Error::NotSaved(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "storage_fault",
            Some(FAULT_RETRY_SECONDS),
        ),
        Error::Method { .. } => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", None),
        // 508 would say it, and be tried again.
        Error::Loop => (StatusCode::BAD_REQUEST, "loop_detected", None),
        Error::Credentials(rejection) => (StatusCode::BAD_REQUEST, rejection.code().as_str(), None),
        Error::Body(BodyError::TooLarge { .. }) => {
            (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", None)
        }
        Error::Body(BodyError::Busy) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            Some(FAULT_RETRY_SECONDS),
        ),
        Error::Body(BodyError::Encoding) => (StatusCode::BAD_REQUEST, "encoding_not_known", None),
        Error::Body(BodyError::Gzip) => (StatusCode::BAD_REQUEST, "invalid_gzip", None),
        Error::Body(BodyError::Broken) => (StatusCode::BAD_REQUEST, "body_not_complete", None),
        Error::Body(BodyError::Slow) => (StatusCode::REQUEST_TIMEOUT, "body_too_slow", None),
        Error::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized", None),
        Error::Parameter(_) => (StatusCode::BAD_REQUEST, "invalid_parameter", None),
        // Not as a path that is none: who asks can tell a wrong id from a wrong address.
        Error::NoSuch(_) => (StatusCode::NOT_FOUND, "no_such", None),
        Error::DeadLetters(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "storage_fault",
            Some(FAULT_RETRY_SECONDS),
        ),
        Error::WatchersFull => (
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many_watchers",
            Some(FULL_RETRY_SECONDS),
        ),
        Error::Refused(refusal) => match refusal {
            Refusal::Rejected(rejection) => {
                (StatusCode::BAD_REQUEST, rejection.code().as_str(), None)
            }
            Refusal::NotSigned => (StatusCode::UNAUTHORIZED, "signature_not_valid", None),
            Refusal::PartlySigned => (StatusCode::UNAUTHORIZED, "batch_not_signed", None),
            Refusal::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "events_too_large", None),
            Refusal::TooManyLanes => (
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_write_keys",
                Some(FULL_RETRY_SECONDS),
            ),
            Refusal::Queue(AppendError::Full) => (
                StatusCode::TOO_MANY_REQUESTS,
                "queue_full",
                Some(FULL_RETRY_SECONDS),
            ),
            Refusal::Queue(AppendError::DiskFull) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "disk_full",
                Some(FULL_RETRY_SECONDS),
            ),
            Refusal::Queue(AppendError::Storage) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "storage_fault",
                Some(FAULT_RETRY_SECONDS),
            ),
            Refusal::Queue(AppendError::Closed) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "shutting_down",
                Some(FAULT_RETRY_SECONDS),
            ),
        },
    };
    let message = match error {
        Error::Foreign(Foreign::Host) => {
            "the Host header names neither this machine nor one of ingest.allowed_hosts".into()
        }
        Error::Foreign(Foreign::Origin) => {
            "pages from elsewhere may not call this; ingest.cors_origins lists those that may post events"
                .into()
        }
        Error::NotFound => {
            "there is no such path; events go to /v1/batch, /v1/track and their like on an ingest address, and \
             the dashboard, /stats, /metrics, /tail, /lanes and /dead-letters are on the admin address"
                .into()
        }
        Error::Method { allowed } => format!("this path takes {allowed}"),
        Error::Loop => {
            "a webhook of segspool posts here, so that its events would go round for ever; this path is for Segment's webhooks"
                .into()
        }
        Error::Credentials(rejection) | Error::Refused(Refusal::Rejected(rejection)) => {
            rejection.message().to_owned()
        }
        Error::Body(error) => error.to_string(),
        Error::Refused(refusal) => refusal.to_string(),
        Error::Unauthorized => {
            "this daemon wants the token of admin.token_file, as `Authorization: Bearer …`".into()
        }
        Error::Parameter(message) => message.clone(),
        Error::NoSuch(what) => format!("there is no such {what}"),
        Error::DeadLetters(error) => error.to_string(),
        Error::NotSaved(error) => error.to_string(),
        Error::WatchersFull => "as many streams are being watched as may be".into(),
    };
    let mut reply = failure(status, code, &message, done);
    if matches!(error, Error::Unauthorized) {
        let scheme = HeaderValue::from_static("Bearer");
        reply.headers_mut().insert(WWW_AUTHENTICATE, scheme);
    }
    if let Some(seconds) = retry_after {
        reply
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Error::Method { allowed } = error {
        reply
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static(allowed));
    }
    reply
}

/// An error in the form every SDK understands.
fn failure(status: StatusCode, code: &str, message: &str, done: serde_json::Value) -> Reply {
    #[derive(Serialize)]
    struct Failure<'a> {
        success: bool,
        code: &'a str,
        message: &'a str,
        error: &'a str,
        #[serde(flatten)]
        done: Option<serde_json::Value>,
    }
    json(
        status,
        &Failure {
            success: false,
            code,
            message,
            error: message,
            done: Some(done).filter(serde_json::Value::is_object),
        },
    )
}

/// A JSON reply.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Reply {
    let body = serde_json::to_vec(body).expect("a reply has no map with odd keys");
    with_type(status, "application/json", body.into())
}

/// A page for people, which a browser shows under this policy, keeps no copy of, and tells nobody else about.
pub(super) fn page(html: &'static str, policy: &'static str) -> Reply {
    let html = Bytes::from_static(html.as_bytes());
    let mut reply = with_type(StatusCode::OK, "text/html; charset=utf-8", html);
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, policy),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
        // Browsers that do not know frame-ancestors know this.
        (X_FRAME_OPTIONS, "DENY"),
        (CROSS_ORIGIN_OPENER_POLICY.clone(), "same-origin"),
        (CROSS_ORIGIN_RESOURCE_POLICY.clone(), "same-origin"),
    ] {
        reply
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    reply
}

/// A reply that is made while it is sent.
pub(super) fn stream(
    content_type: &'static str,
    pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> Reply {
    let body = StreamBody::new(pieces.map_ok(Frame::data)).boxed_unsync();
    let mut reply = Response::new(Either::Right(body));
    reply
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

/// The metrics.
pub(super) fn metrics(format: Format, shown: String) -> Reply {
    let mut reply = with_type(StatusCode::OK, format.content_type(), shown.into());
    reply
        .headers_mut()
        .insert(VARY, HeaderValue::from_static("Accept"));
    reply
}

/// Marks a reply that goes on for ever: it is for somebody who reads along, and for nobody else.
#[derive(Clone, Copy, Debug)]
pub(super) struct Live;

/// A reply of server-sent events.
pub(super) fn server_sent(pieces: impl Stream<Item = Bytes> + Send + 'static) -> Reply {
    let mut reply = stream("text/event-stream", pieces.map(Ok));
    let headers = reply.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply.extensions_mut().insert(Live);
    reply
}

/// A reply of one line of text.
pub(super) fn text(status: StatusCode, line: &str) -> Reply {
    with_type(
        status,
        "text/plain; charset=utf-8",
        format!("{line}\n").into(),
    )
}

fn with_type(status: StatusCode, content_type: &'static str, body: Bytes) -> Reply {
    let mut reply = Response::new(Either::Left(Full::new(body)));
    *reply.status_mut() = status;
    reply
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}
