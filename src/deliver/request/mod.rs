//! One call to a destination, and its answer. This folder alone, of delivery, names reqwest.
//!
//! `connections` are kept and opened anew; `oauth` fetches the tokens that may stand in for a write key; `webhook` calls URLs other
//! than Segment's.

mod connections;
mod oauth;
mod webhook;

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Response, Url};

use super::Config;

pub use webhook::{WebhookHeaders, WebhookUrl};

pub(super) use webhook::Hook;

use connections::Connections;
use oauth::{Token, Tokens};

/// What became of a call.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// The destination answered.
    Answered {
        /// The HTTP status.
        status: u16,
        /// How long it asked to be left alone.
        retry_after: Option<Duration>,
        /// The start of the body, as text.
        body: String,
    },
    /// It refused the call, and may have refused no more than its token, which the next call has no longer.
    TokenRefused {
        /// The HTTP status.
        status: u16,
    },
    /// No answer came, or none in time: the destination may have taken the events or not.
    Unanswered {
        /// What went wrong, without URL or key.
        error: String,
    },
    /// The call was not made: there is no token for it.
    Unsent {
        /// Why not.
        error: String,
        /// Whether the credentials were refused, so that somebody has to act.
        refused: bool,
        /// How long the token endpoint asked to be left alone.
        retry_after: Option<Duration>,
    },
}

/// What lets a call in: a token, or else the lane's own write key.
#[derive(Debug)]
pub(super) struct Pass(Option<Token>);

/// Of an answer's body no more than this is read: it is shown to an operator.
const ANSWER_BYTES_MAX: usize = 1024;
/// A reset at a number of seconds above this is a date in seconds since 1970,
const RESET_DATE: u64 = 1_000_000_000;
/// and above this one in milliseconds.
const RESET_DATE_MS: u64 = 100_000_000_000;

/// Makes calls to Segment's Batch endpoint.
#[derive(Debug)]
pub(super) struct Sender {
    connections: Connections,
    tokens: Option<Tokens>,
    url: Url,
    gzip: bool,
    retry_after_max: Duration,
}

/// Why delivery cannot begin. Completes "failed to set delivery up: …".
#[derive(Debug)]
pub struct SetupError(String);

impl std::fmt::Display for SetupError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "failed to set delivery up: {}", self.0)
    }
}

impl std::error::Error for SetupError {}

impl Sender {
    /// A sender for the destination of `config`.
    ///
    /// # Errors
    /// An endpoint is no URL, the key file of OAuth holds no key, or the system has no usable TLS roots.
    pub(super) fn new(config: &Config) -> Result<Sender, SetupError> {
        let (segment, retry_after_max) = (&config.segment, config.retry.max_retry_after);
        let endpoint = segment.endpoint.trim_end_matches('/');
        let url = http_url("segment.endpoint", &format!("{endpoint}/v1/batch"))?;
        let tokens = segment
            .oauth
            .as_ref()
            .map(|oauth| Tokens::new(oauth, segment.timeout, retry_after_max));
        Ok(Sender {
            connections: Connections::new(&url, segment.timeout)?,
            tokens: tokens.transpose()?,
            url,
            gzip: segment.gzip,
            retry_after_max,
        })
    }

    /// What lets the next call in. May take as long as a call, where a token has to be fetched.
    ///
    /// # Errors
    /// There is no token: what that means for the call.
    pub(super) async fn pass(&self) -> Result<Pass, Answer> {
        let Some(tokens) = &self.tokens else {
            return Ok(Pass(None));
        };
        let unsent = |failure: oauth::Failure| Answer::Unsent {
            error: failure.reason,
            refused: failure.refused,
            retry_after: failure.after,
        };
        let token = tokens.token().await.map_err(unsent)?;
        Ok(Pass(Some(token)))
    }

    /// Posts a body of the lane with this write key. `attempts` says how often its events were sent before.
    pub(super) async fn send(
        &self,
        pass: &Pass,
        write_key: &str,
        body: Bytes,
        attempts: u32,
    ) -> Answer {
        let lease = self.connections.lease();
        let request = lease.client.post(self.url.clone());
        let mut request = match &pass.0 {
            None => request.basic_auth(write_key, Some("")),
            Some(token) => request.bearer_auth(token.expose()),
        }
        .header(CONTENT_TYPE, "application/json");
        if attempts > 0 {
            request = request.header("X-Retry-Count", attempts);
        }
        let request = if self.gzip {
            request.header(CONTENT_ENCODING, "gzip").body(gzip(&body))
        } else {
            request.body(body)
        };
        let answer = match request.send().await {
            Ok(response) => read(response, self.retry_after_max).await,
            Err(error) => Answer::Unanswered {
                error: describe(error),
            },
        };
        if speaks_of_a_broken_server(&answer) {
            self.connections.failed(&lease);
        }
        self.blame_token(pass, answer)
    }

    /// Drops a token that may be why a call was refused.
    fn blame_token(&self, pass: &Pass, answer: Answer) -> Answer {
        match (&self.tokens, &pass.0, &answer) {
            (Some(tokens), Some(token), &Answer::Answered { status, .. })
                if matches!(status, 400 | 401 | 403 | 511) && tokens.refuse(token) =>
            {
                Answer::TokenRefused { status }
            }
            _ => answer,
        }
    }
}

async fn read(mut response: Response, retry_after_max: Duration) -> Answer {
    let status = response.status().as_u16();
    let retry_after =
        pause(response.headers(), Timestamp::now()).map(|pause| pause.min(retry_after_max));
    let mut body = Vec::new();
    // A 2xx counts by its status, whatever becomes of the body; elsewhere the body is only to be shown.
    while let Ok(Some(chunk)) = response.chunk().await {
        let room = ANSWER_BYTES_MAX - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() == ANSWER_BYTES_MAX {
            break;
        }
    }
    Answer::Answered {
        status,
        retry_after,
        body: String::from_utf8_lossy(&body).into_owned(),
    }
}

/// Whether another connection might lead to a better server.
fn speaks_of_a_broken_server(answer: &Answer) -> bool {
    match answer {
        Answer::Answered { status, .. } => *status >= 500,
        Answer::Unanswered { .. } => true,
        Answer::TokenRefused { .. } | Answer::Unsent { .. } => false,
    }
}

/// The URL that the setting `key` gives.
fn http_url(key: &str, text: &str) -> Result<Url, SetupError> {
    let wrong = |why: &dyn std::fmt::Display| SetupError(format!("{key} {why}"));
    let url = Url::parse(text).map_err(|e| wrong(&e))?;
    if matches!(url.scheme(), "http" | "https") {
        Ok(url)
    } else {
        Err(wrong(&"must begin with https:// or http://"))
    }
}

/// How long an answer asks to be left alone: `Retry-After` in seconds or as a date, else `X-RateLimit-Reset` in seconds or, as the
/// token endpoint has it, as the time in milliseconds since 1970. What cannot be read, lies in the past or is 0 asks for nothing.
fn pause(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::trim)
    };
    let seconds = |text: &str| text.parse::<u64>().ok().map(Duration::from_secs);
    let date = |text: &str| {
        let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
        Duration::try_from(at.duration_since(now)).ok()
    };
    let reset = |text: &str| {
        let number = text.parse::<u64>().ok()?;
        let now_ms = u64::try_from(now.as_millisecond()).unwrap_or_default();
        Some(match number {
            RESET_DATE_MS.. => Duration::from_millis(number.saturating_sub(now_ms)),
            RESET_DATE.. => Duration::from_millis((number * 1_000).saturating_sub(now_ms)),
            _ => Duration::from_secs(number),
        })
    };
    text(RETRY_AFTER.as_str())
        .and_then(|text| seconds(text).or_else(|| date(text)))
        .or_else(|| text("X-RateLimit-Reset").and_then(reset))
        .filter(|pause| !pause.is_zero())
}

fn gzip(body: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(
        Vec::with_capacity(body.len() / 4),
        flate2::Compression::fast(),
    );
    encoder
        .write_all(body)
        .and_then(|()| encoder.finish())
        .expect("writing to memory does not fail")
}

/// The whole chain of causes; reqwest's own text ends where it gets interesting.
fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_read_from_every_form_and_garbage_asks_for_none() {
        let now: Timestamp = "2026-11-23T14:00:00Z".parse().expect("a timestamp");
        let reset = "X-RateLimit-Reset";
        for (headers, expected) in [
            (&[("Retry-After", "7")][..], Some(7)),
            (&[("Retry-After", " 7 ")], Some(7)),
            (
                &[("Retry-After", "Mon, 23 Nov 2026 14:00:30 GMT")],
                Some(30),
            ),
            (&[("Retry-After", "Mon, 23 Nov 2026 13:00:00 GMT")], None),
            (&[("Retry-After", "0")], None),
            (&[("Retry-After", "-5")], None),
            (&[("Retry-After", "soon")], None),
            (&[("Retry-After", "1e3")], None),
            (&[("Retry-After", "99999999999999999999999")], None),
            (&[("Retry-After", "18446744073709551615")], Some(u64::MAX)),
            (&[(reset, "9")], Some(9)),
            (&[(reset, "-9")], None),
            (&[(reset, "1795442460")], Some(60)),
            (&[(reset, "1795442460000")], Some(60)),
            (&[(reset, "1795442340000")], None),
            (&[("Retry-After", "soon"), (reset, "9")], Some(9)),
            (&[("Retry-After", "3"), (reset, "9")], Some(3)),
            (&[], None),
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(*name, value.parse().expect("a header"));
            }
            assert_eq!(
                pause(&map, now),
                expected.map(Duration::from_secs),
                "{headers:?}"
            );
        }
    }
}
