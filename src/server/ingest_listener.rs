//! The ingest listener: applications post here as they would to Segment.

use std::sync::Arc;

use base64::Engine as _;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue, USER_AGENT};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Request};
use tokio::sync::watch;
use tracing::debug;

use super::body::{self, Bodies, BodyError};
use super::guard::Guard;
use super::listener::{Peer, Service};
use super::profiles::ProfileDesk;
use super::reply::{self, Error, Reply};
use super::routes::{self, Route};
use crate::event::{Code, Kind, Rejection, WriteKey};
use crate::ingest::{Accepted, Call, Clock, Ingest, Receiver};
use crate::profiles::is_profile_path;
use crate::stats::Stats;

/// What the `User-Agent` of every daemon's calls begins with.
const OWN_AGENT: &[u8] = concat!(env!("CARGO_PKG_NAME"), "/").as_bytes();
/// The header in which Segment signs what its webhooks post.
static SIGNATURE: HeaderName = HeaderName::from_static("x-signature");

/// What the ingest listener works with.
#[derive(Debug)]
pub(super) struct IngestListener {
    pub(super) ingest: Arc<Ingest>,
    pub(super) bodies: Bodies,
    pub(super) profiles: ProfileDesk,
    pub(super) stats: Arc<Stats>,
    pub(super) guard: watch::Receiver<Guard>,
}

impl Service for IngestListener {
    async fn serve(&self, peer: Peer, request: Request<Incoming>) -> Reply {
        let (head, mut body) = request.into_parts();
        if is_profile_path(head.uri.path()) {
            let guard = self.guard.borrow().without_origins();
            let reply = self.profiles.serve(&guard, &head).await;
            if !body::is_kept(&head.headers, &body) {
                body::discard(&mut body).await;
            }
            return reply;
        }
        let admitted = self.guard.borrow().admit(&head.headers);
        let origin = match admitted {
            Ok(origin) => origin,
            Err(foreign) => {
                return self
                    .refuse(&Error::Foreign(foreign), &head, &mut body)
                    .await;
            }
        };
        let reply = match self.answer(peer, &head, &mut body).await {
            Ok(reply) => reply,
            Err(error) => self.refuse(&error, &head, &mut body).await,
        };
        match origin {
            Some(origin) => reply::shown_to(origin, reply),
            None => reply,
        }
    }
}

impl IngestListener {
    async fn answer(&self, peer: Peer, head: &Parts, body: &mut Incoming) -> Result<Reply, Error> {
        let route = routes::ingest(head.uri.path()).ok_or(Error::NotFound)?;
        if route == Route::Received && self.ingest.receiver().is_none() {
            return Err(Error::NotFound);
        }
        match (&head.method, route) {
            (&Method::POST, _) | (&Method::GET, Route::Pixel(_)) => {}
            (&Method::OPTIONS, Route::Events(_) | Route::Pixel(_) | Route::ClientMetrics) => {
                return Ok(reply::preflight(route.methods()));
            }
            _ => {
                return Err(Error::Method {
                    allowed: route.methods(),
                });
            }
        }
        self.stats.requests.add(1);
        match route {
            Route::Events(call) => {
                let accepted = self.accept(call, peer, head, body).await?;
                Ok(reply::accepted(&accepted))
            }
            Route::Received => {
                if is_from_a_relay(&head.headers) {
                    return Err(Error::Loop);
                }
                let receiver = self.ingest.receiver().ok_or(Error::NotFound)?;
                let accepted = self.receive(&receiver, head, body).await?;
                Ok(reply::accepted(&accepted))
            }
            Route::Pixel(kind) => Ok(self.pixel(kind, peer, head, body).await),
            Route::ClientMetrics => {
                self.stats.client_metrics.add(1);
                body::discard(body).await;
                Ok(reply::success())
            }
        }
    }

    /// Whoever asks for a picture gets one, for nobody would see anything else. What went wrong is counted.
    async fn pixel(&self, kind: Kind, peer: Peer, head: &Parts, body: &mut Incoming) -> Reply {
        if let Err(error) = self.accept(Call::Pixel(kind), peer, head, body).await {
            let untold = match &error {
                Error::Credentials(_) => true,
                Error::Body(error) => {
                    !matches!(error, BodyError::TooLarge { .. } | BodyError::Busy)
                }
                // What is refused is counted with other refusals, and what is rejected was counted when it was.
                Error::Refused(_)
                | Error::Foreign(_)
                | Error::NotFound
                | Error::Method { .. }
                | Error::Loop
                | Error::Unauthorized
                | Error::Parameter(_)
                | Error::NoSuch(_)
                | Error::NotSaved(_)
                | Error::DeadLetters(_)
                | Error::WatchersFull => false,
            };
            self.stats.rejected_events.add(u64::from(untold));
            self.refuse(&error, head, body).await;
        }
        reply::pixel()
    }

    async fn accept(
        &self,
        call: Call,
        peer: Peer,
        head: &Parts,
        body: &mut Incoming,
    ) -> Result<Accepted, Error> {
        let credentials = write_key(&head.headers).map_err(Error::Credentials)?;
        let clock = match peer {
            Peer::Local => Clock::Shared,
            Peer::Remote => Clock::Foreign,
        };
        let (prepared, room) = match (call, query(head)) {
            (Call::Pixel(_), Some(query)) => {
                body::discard(body).await;
                let content = query.as_bytes();
                (self.ingest.prepare(call, clock, credentials, content), None)
            }
            (Call::Pixel(_) | Call::Single(_) | Call::Batch, _) => {
                let held = self.bodies.read(&head.headers, body).await;
                let held = held.map_err(Error::Body)?;
                let storing = self.bodies.storing(&held).await.map_err(Error::Body)?;
                let prepared = self.ingest.prepare(call, clock, credentials, &held);
                // Its events take as much as it did, until they are stored.
                (prepared, Some((held.into_room(), storing)))
            }
        };
        let accepted = self.ingest.store(prepared.map_err(Error::Refused)?).await;
        drop(room);
        accepted.map_err(Error::Refused)
    }

    async fn receive(
        &self,
        receiver: &Receiver,
        head: &Parts,
        body: &mut Incoming,
    ) -> Result<Accepted, Error> {
        let content = self.bodies.read(&head.headers, body).await;
        let content = content.map_err(Error::Body)?;
        let signature = head.headers.get(&SIGNATURE);
        let signature = signature.and_then(|value| value.to_str().ok());
        let accepted = self.ingest.receive(receiver, signature, &content).await;
        accepted.map_err(Error::Refused)
    }

    async fn refuse(&self, error: &Error, head: &Parts, body: &mut Incoming) -> Reply {
        let reply = reply::error(error);
        if matches!(reply.status().as_u16(), 413 | 429 | 503) {
            self.stats.refused_requests.add(1);
        }
        debug!(
            status = reply.status().as_u16(),
            ?error,
            "a request was not accepted"
        );
        // Of a body that stalled or broke, nothing more comes; and one that was never asked for stays where it is.
        let comes = !matches!(error, Error::Body(BodyError::Slow | BodyError::Broken));
        if comes && !body::is_kept(&head.headers, body) {
            body::discard(body).await;
        }
        reply
    }
}

/// Whether a webhook of this daemon, or of another, posts: its events may come back, round however many corners, for ever.
fn is_from_a_relay(headers: &HeaderMap) -> bool {
    let agent = headers.get(USER_AGENT).map(HeaderValue::as_bytes);
    agent.is_some_and(|agent| agent.starts_with(OWN_AGENT))
}

/// The query, if it holds anything.
fn query(head: &Parts) -> Option<&str> {
    let query = head.uri.query()?.trim_matches('&');
    (!query.is_empty()).then_some(query)
}

/// The write key of a Basic Authorization header: its user name. Another scheme, such as a client's Bearer token, names none, and
/// is not kept.
fn write_key(headers: &HeaderMap) -> Result<Option<WriteKey>, Rejection> {
    let Some(value) = headers.get(AUTHORIZATION) else {
        return Ok(None);
    };
    let Some((scheme, credentials)) = value
        .to_str()
        .ok()
        .and_then(|value| value.trim().split_once(' '))
    else {
        return Ok(None);
    };
    if !scheme.eq_ignore_ascii_case("basic") {
        return Ok(None);
    }
    // Some leave out the padding.
    let decoded = base64::engine::general_purpose::STANDARD_NO_PAD
        .decode(credentials.trim().trim_end_matches('='))
        .ok();
    let decoded = decoded
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| {
            Rejection::new(
                Code::WriteKeyNotValid,
                "the Authorization header is not valid Basic",
            )
        })?;
    if decoded.is_empty() || decoded == ":" {
        return Ok(None);
    }
    WriteKey::from_basic(&decoded).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_write_key_is_the_basic_user_name() {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        for (value, expected) in [
            (format!("Basic {}", encode("KEY:")), Ok(Some("KEY"))),
            (format!("basic {}", encode("KEY")), Ok(Some("KEY"))),
            (format!("Basic {}", encode("KEY:password")), Ok(Some("KEY"))),
            ("Basic S0VZMTo".to_owned(), Ok(Some("KEY1"))),
            (format!("Basic {}", encode(":")), Ok(None)),
            ("Bearer token".to_owned(), Ok(None)),
            ("Basic".to_owned(), Ok(None)),
            ("Basic !!".to_owned(), Err(())),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().expect("a header"));
            let found = write_key(&headers);
            let found = found
                .as_ref()
                .map(|key| key.as_ref().map(WriteKey::expose))
                .map_err(|_| ());
            assert_eq!(found, expected, "{value}");
        }
        assert_eq!(write_key(&HeaderMap::new()), Ok(None));
    }
}
