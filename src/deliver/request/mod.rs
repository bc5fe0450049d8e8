//! One call to a destination, and its answer. The only file here that names reqwest.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Client, Response, Url};

use super::Config;

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
    /// No answer came, or none in time: the destination may have taken the events or not.
    Unanswered {
        /// What went wrong, without URL or key.
        error: String,
    },
}

/// Of an answer's body no more than this is read: it is shown to an operator.
const ANSWER_BYTES_MAX: usize = 1024;
/// A connection at rest is closed before load balancers commonly close theirs at 60 s, so that a call seldom meets a dead one.
const IDLE_CONNECTION_MAX: Duration = Duration::from_secs(45);

/// Makes calls to Segment's Batch endpoint. Cheap to clone: the connections are shared.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    client: Client,
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
    /// The endpoint is no URL, or the system has no usable TLS roots.
    pub(super) fn new(config: &Config) -> Result<Sender, SetupError> {
        let endpoint = config.segment.endpoint.trim_end_matches('/');
        let wrong = |why: &dyn std::fmt::Display| SetupError(format!("segment.endpoint {why}"));
        let url = Url::parse(&format!("{endpoint}/v1/batch")).map_err(|e| wrong(&e))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong(&"must begin with https:// or http://"));
        }
        // An error says that another part of the process has chosen one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("segspool/", env!("CARGO_PKG_VERSION")))
            .timeout(config.segment.timeout)
            .pool_idle_timeout(IDLE_CONNECTION_MAX)
            // A redirected POST would arrive as a GET; and a key is not to follow a stranger's word.
            .redirect(reqwest::redirect::Policy::none());
        // Plain HTTP needs no roots, which a bare container may not have.
        let client = if url.scheme() == "http" {
            client.tls_certs_only([])
        } else {
            client
        };
        let client = client.build().map_err(|e| SetupError(describe(e)))?;
        Ok(Sender {
            client,
            url,
            gzip: config.segment.gzip,
            retry_after_max: config.retry.max_retry_after,
        })
    }

    /// Posts a body with a write key. `attempts` says how often its events were sent before.
    pub(super) async fn send(&self, write_key: &str, body: Bytes, attempts: u32) -> Answer {
        let mut request = self
            .client
            .post(self.url.clone())
            .basic_auth(write_key, Some(""))
            .header(CONTENT_TYPE, "application/json");
        if attempts > 0 {
            request = request.header("X-Retry-Count", attempts);
        }
        let request = if self.gzip {
            request.header(CONTENT_ENCODING, "gzip").body(gzip(&body))
        } else {
            request.body(body)
        };
        match request.send().await {
            Ok(response) => self.read(response).await,
            Err(error) => Answer::Unanswered {
                error: describe(error),
            },
        }
    }

    async fn read(&self, mut response: Response) -> Answer {
        let status = response.status().as_u16();
        let retry_after = pause(response.headers(), Timestamp::now())
            .map(|pause| pause.min(self.retry_after_max));
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
}

/// How long an answer asks to be left alone: `Retry-After` in seconds or as a date, else `X-RateLimit-Reset` in seconds. What
/// cannot be read, lies in the past or is 0 asks for nothing.
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
    text(RETRY_AFTER.as_str())
        .and_then(|text| seconds(text).or_else(|| date(text)))
        .or_else(|| text("X-RateLimit-Reset").and_then(seconds))
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
