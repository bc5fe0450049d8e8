//! The ingest listener: applications post here as they would to Segment.

use std::sync::Arc;

use base64::Engine as _;
use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Request};
use tracing::debug;

use super::body::{self, Bodies};
use super::guard::Guard;
use super::listener::{Peer, Service};
use super::reply::{self, Error, Reply};
use super::routes::{self, Route};
use crate::event::{Code, Rejection, WriteKey};
use crate::ingest::{Call, Ingest};
use crate::stats::Stats;

/// What the ingest listener works with.
#[derive(Debug)]
pub(super) struct IngestListener {
    pub(super) ingest: Arc<Ingest>,
    pub(super) bodies: Bodies,
    pub(super) stats: Arc<Stats>,
    pub(super) guard: Guard,
}

impl Service for IngestListener {
    async fn serve(&self, _peer: Peer, request: Request<Incoming>) -> Reply {
        let (head, mut body) = request.into_parts();
        let origin = match self.guard.admit(&head.headers) {
            Ok(origin) => origin,
            Err(foreign) => return self.refuse(&Error::Foreign(foreign), &mut body).await,
        };
        let reply = match self.answer(&head, &mut body).await {
            Ok(reply) => reply,
            Err(error) => self.refuse(&error, &mut body).await,
        };
        match origin {
            Some(origin) => reply::shown_to(origin, reply),
            None => reply,
        }
    }
}

impl IngestListener {
    async fn answer(&self, head: &Parts, body: &mut Incoming) -> Result<Reply, Error> {
        let route = routes::ingest(head.uri.path()).ok_or(Error::NotFound)?;
        match head.method {
            Method::POST => {}
            Method::OPTIONS => return Ok(reply::preflight()),
            _ => {
                return Err(Error::Method {
                    allowed: "POST, OPTIONS",
                });
            }
        }
        self.stats.requests.add(1);
        match route {
            Route::Events(call) => self.accept(call, head, body).await,
            Route::ClientMetrics => {
                body::discard(body).await;
                Ok(reply::success())
            }
        }
    }

    async fn accept(&self, call: Call, head: &Parts, body: &mut Incoming) -> Result<Reply, Error> {
        let credentials = write_key(&head.headers).map_err(Error::Credentials)?;
        let body = self
            .bodies
            .read(&head.headers, body)
            .await
            .map_err(Error::Body)?;
        let accepted = self
            .ingest
            .accept(call, credentials, &body)
            .await
            .map_err(Error::Refused)?;
        Ok(reply::accepted(&accepted))
    }

    async fn refuse(&self, error: &Error, body: &mut Incoming) -> Reply {
        let reply = reply::error(error);
        if matches!(reply.status().as_u16(), 413 | 429 | 503) {
            self.stats.refused_requests.add(1);
        }
        debug!(
            status = reply.status().as_u16(),
            ?error,
            "a request was not accepted"
        );
        body::discard(body).await;
        reply
    }
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
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(credentials.trim())
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
