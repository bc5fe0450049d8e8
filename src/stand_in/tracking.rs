//! One call, of a batch or to a webhook: read, held against the limits, answered by the rules or as whom it is for would.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER,
};
use hyper::{Request, Response, StatusCode};
use tokio::time::Interval;
use tracing::{debug, warn};

use super::batch::{Batch, Call, READ_BYTES_MAX, Reception, Violation, basic_user, gunzip};
use super::desk::Desk;
use super::hook::HookCall;
use super::rules::Answer;
use super::serve::{Door, Reset};

/// What a connection sends back: a body all at once, or a byte now and then.
pub(super) type Reply = Response<Either<Full<Bytes>, Drip>>;

const SUCCESS: &str = r#"{"success": true}"#;

/// Answers a batch call, or asks for its connection to be reset.
pub(super) async fn take_batch(
    desk: &Desk,
    door: &Door,
    request: Request<Incoming>,
) -> Result<Reply, Reset> {
    let (head, body) = request.into_parts();
    let retry_count = header(&head.headers, "x-retry-count").and_then(|count| count.parse().ok());
    let body = match read(&head.headers, body).await {
        Ok(body) => body,
        Err(Unread::ClientGone) => return Err(Reset),
        Err(Unread::Refused(violation)) => return Ok(refuse(desk, retry_count, violation)),
    };
    let user = header(&head.headers, AUTHORIZATION.as_str()).and_then(basic_user);
    let parsed = str::from_utf8(&body)
        .map_err(|_not_text| Violation::Unreadable)
        .and_then(|text| Batch::parse(text, user));
    let batch = match parsed {
        Ok(batch) => batch,
        Err(violation) => return Ok(refuse(desk, retry_count, violation)),
    };

    let violations = violations(desk, &batch);
    desk.count_request(retry_count, &violations);
    let reception = violations
        .first()
        .map_or(Reception::Accept, |violation| violation.reception());
    answer(desk, door, &Call::Batch(batch), reception).await
}

/// Answers a call to the webhook `name`, or asks for its connection to be reset.
pub(super) async fn take_hook(
    desk: &Desk,
    door: &Door,
    request: Request<Incoming>,
    name: &str,
) -> Result<Reply, Reset> {
    let (head, body) = request.into_parts();
    let body = match read(&head.headers, body).await {
        Ok(body) => body,
        Err(Unread::ClientGone) => return Err(Reset),
        Err(Unread::Refused(violation)) => {
            let counted = noted(desk, || vec![violation]);
            desk.count_hook_request(name, &counted);
            let reply = left_to_itself(violation.reception());
            desk.turn_away(Some(name), status(&reply));
            return Ok(reply);
        }
    };
    let call = HookCall {
        name,
        body: &body,
        content_type: header(&head.headers, CONTENT_TYPE.as_str()),
        signature: header(&head.headers, "x-signature"),
    };
    let secret = desk.options().hook_secret.as_deref();
    let violations = noted(desk, || call.violations(secret));
    if !violations.is_empty() {
        debug!(?violations, "something was wrong with a call to a webhook");
    }
    desk.count_hook_request(name, &violations);
    let reception = call.reception(&violations);
    answer(desk, door, &Call::Hook(call), reception).await
}

/// Answers a call by the rules, or as it would be without any.
async fn answer(
    desk: &Desk,
    door: &Door,
    call: &Call<'_>,
    reception: Reception,
) -> Result<Reply, Reset> {
    loop {
        let (answer, mut rules_changed) = desk.pick(call);
        match answer {
            Answer::Ok => {
                let reply = left_to_itself(reception);
                desk.settle(call, reception, status(&reply));
                return Ok(reply);
            }
            Answer::Status {
                code,
                retry_after,
                rate_limit_reset,
                body,
            } => {
                let reply = of_choice(code, retry_after, rate_limit_reset, body);
                if reply.status().is_success() {
                    desk.settle(call, reception, status(&reply));
                } else {
                    desk.turn_away(call.hook(), status(&reply));
                }
                return Ok(reply);
            }
            Answer::Hang => {
                let held = desk.hold(call);
                rules_changed
                    .changed()
                    .await
                    .expect("the desk lives as long as its connections");
                held.release();
            }
            Answer::Reset => {
                desk.leave_unanswered(call, "reset");
                return Err(Reset);
            }
            Answer::ResetAfterAccepting => {
                desk.settle(call, reception, "reset_after_accepting".to_owned());
                return Err(Reset);
            }
            Answer::Drip { every_ms } => {
                desk.settle(call, reception, "drip".to_owned());
                return Ok(Response::new(Either::Right(Drip::new(every_ms))));
            }
            Answer::RefuseConnections { for_ms } => {
                desk.leave_unanswered(call, "refuse_connections");
                door.close_for(Duration::from_millis(for_ms)).await;
                return Err(Reset);
            }
        }
    }
}

enum Unread {
    ClientGone,
    Refused(Violation),
}

async fn read(headers: &HeaderMap, body: Incoming) -> Result<Bytes, Unread> {
    let body = match Limited::new(body, READ_BYTES_MAX).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Err(Unread::Refused(Violation::BodyTooLarge));
        }
        Err(_incomplete) => return Err(Unread::ClientGone),
    };
    let gzip = header(headers, CONTENT_ENCODING.as_str())
        .is_some_and(|encoding| encoding.eq_ignore_ascii_case("gzip"));
    if !gzip {
        return Ok(body);
    }
    gunzip(&body).map(Bytes::from).map_err(Unread::Refused)
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn violations(desk: &Desk, batch: &Batch<'_>) -> Vec<Violation> {
    let violations = noted(desk, || batch.violations(desk.options().body_bytes_max));
    if !violations.is_empty() {
        let (bytes, events) = (batch.text.len(), batch.events.len());
        debug!(?violations, bytes, events, "a batch broke a limit");
    }
    violations
}

/// What is found to be wrong; nobody looks, unless strict.
fn noted(desk: &Desk, find: impl FnOnce() -> Vec<Violation>) -> Vec<Violation> {
    if desk.options().strict {
        find()
    } else {
        Vec::new()
    }
}

/// Answers a call whose events could not be found, whatever the rules.
fn refuse(desk: &Desk, retry_count: Option<u32>, violation: Violation) -> Reply {
    debug!(?violation, "a batch could not be read");
    let reply = left_to_itself(violation.reception());
    desk.count_request(retry_count, &noted(desk, || vec![violation]));
    desk.turn_away(None, status(&reply));
    reply
}

/// The answer of whom a call is for, where no rule decides.
fn left_to_itself(reception: Reception) -> Reply {
    match reception {
        Reception::Accept | Reception::Discard => json(StatusCode::OK, SUCCESS),
        Reception::Refuse(code, reason) => plain_text(
            StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_REQUEST),
            reason,
        ),
    }
}

fn of_choice(
    code: u16,
    retry_after: Option<String>,
    rate_limit_reset: Option<String>,
    body: Option<String>,
) -> Reply {
    let mut reply = Response::builder().status(code);
    if let Some(retry_after) = retry_after {
        reply = reply.header(RETRY_AFTER, retry_after);
    }
    if let Some(rate_limit_reset) = rate_limit_reset {
        reply = reply.header("x-ratelimit-reset", rate_limit_reset);
    }
    let success = (200..300).contains(&code);
    let content_type = if success {
        "application/json"
    } else {
        "text/plain"
    };
    let usual = || {
        let status = StatusCode::from_u16(code).ok()?;
        if success {
            Some(SUCCESS)
        } else {
            status.canonical_reason()
        }
    };
    let body = body.unwrap_or_else(|| usual().unwrap_or_default().to_owned());
    reply
        .header(CONTENT_TYPE, content_type)
        .body(Either::Left(Full::from(body)))
        .unwrap_or_else(|error| {
            warn!(%error, "a rule asks for an answer that HTTP does not have");
            plain_text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the rule asks for an answer that HTTP does not have",
            )
        })
}

pub(super) fn json(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    whole(status, "application/json", body.into())
}

pub(super) fn plain_text(status: StatusCode, body: &'static str) -> Reply {
    whole(status, "text/plain", Bytes::from_static(body.as_bytes()))
}

pub(super) fn whole(status: StatusCode, content_type: &'static str, body: Bytes) -> Reply {
    let mut reply = Response::new(Either::Left(Full::new(body)));
    *reply.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    reply.headers_mut().insert(CONTENT_TYPE, content_type);
    reply
}

fn status(reply: &Reply) -> String {
    reply.status().as_str().to_owned()
}

/// Segment's success, one byte at a time.
pub(super) struct Drip {
    rest: &'static [u8],
    pauses: Interval,
}

impl Drip {
    fn new(every_ms: u64) -> Self {
        // An interval of no length does not exist.
        let every = Duration::from_millis(every_ms.max(1));
        Self {
            rest: SUCCESS.as_bytes(),
            pauses: tokio::time::interval_at(tokio::time::Instant::now() + every, every),
        }
    }
}

impl Body for Drip {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some((byte, rest)) = self.rest.split_at_checked(1) else {
            return Poll::Ready(None);
        };
        std::task::ready!(self.pauses.poll_tick(context));
        self.rest = rest;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(byte)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
