//! Judges what the token endpoint's answer means. Pure: no I/O, no clock.

use std::time::Duration;

use serde::Deserialize;
use zeroize::Zeroizing;

/// What an answer means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Grant {
    /// A token, good for so long.
    Token {
        /// The token.
        secret: Secret,
        /// How long it is good for.
        life: Duration,
    },
    /// It may give one later; `after` is how long it asked for.
    Later {
        /// How long it asked to be left alone.
        after: Option<Duration>,
    },
    /// It does not know this client, or not by this key.
    Refused {
        /// The code of OAuth that says why.
        code: Option<String>,
    },
}

/// A token. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(Zeroizing<String>);

impl Secret {
    /// The token itself, for the header of a call.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// OAuth recommends that the life of a token is told, and does not say what holds otherwise. Segment's shortest is a day.
const LIFE_UNTOLD: Duration = Duration::from_secs(60 * 60);
/// What is told to live shorter would have a token fetched for nearly every call.
const LIFE_MIN: Duration = Duration::from_secs(1);
/// Segment's longest.
const LIFE_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// OAuth's own codes are shorter.
const CODE_BYTES_MAX: usize = 40;

#[derive(Deserialize)]
struct Granted {
    access_token: String,
    expires_in: Option<f64>,
}

#[derive(Deserialize)]
struct Denied {
    error: String,
}

/// What an answer with this status and body means, that asked for this pause.
pub(super) fn grant(status: u16, body: &[u8], pause: Option<Duration>) -> Grant {
    match status {
        200..=299 => token(body).unwrap_or(Grant::Later { after: pause }),
        408 | 429 => Grant::Later { after: pause },
        400..=499 => Grant::Refused { code: code(body) },
        // A fault of the server, or something that stands before it and may go away again.
        _ => Grant::Later { after: pause },
    }
}

fn token(body: &[u8]) -> Option<Grant> {
    let granted: Granted = serde_json::from_slice(body).ok()?;
    let told = granted.expires_in.map(|seconds| {
        let seconds = seconds.clamp(LIFE_MIN.as_secs_f64(), LIFE_MAX.as_secs_f64());
        Duration::from_secs_f64(seconds)
    });
    // Anything else would be no header, or more than one.
    let is_token = !granted.access_token.is_empty()
        && granted.access_token.bytes().all(|b| b.is_ascii_graphic());
    is_token.then(|| Grant::Token {
        secret: Secret(Zeroizing::new(granted.access_token)),
        life: told.unwrap_or(LIFE_UNTOLD),
    })
}

/// Only what is clearly a code is shown: the rest of an answer might repeat what was asked.
fn code(body: &[u8]) -> Option<String> {
    let denied: Denied = serde_json::from_slice(body).ok()?;
    let is_code = denied.error.len() <= CODE_BYTES_MAX
        && denied
            .error
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b == b'_');
    is_code.then_some(denied.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(seconds: u64) -> Grant {
        Grant::Token {
            secret: Secret(Zeroizing::new("abc".into())),
            life: Duration::from_secs(seconds),
        }
    }

    #[test]
    fn a_token_lives_as_long_as_is_told_within_reason() {
        for (body, expected) in [
            (
                r#"{"access_token":"abc","expires_in":86400}"#,
                granted(86_400),
            ),
            (
                r#"{"access_token":"abc","expires_in":60.0,"token_type":"Bearer"}"#,
                granted(60),
            ),
            (r#"{"access_token":"abc"}"#, granted(3_600)),
            (
                r#"{"access_token":"abc","expires_in":null}"#,
                granted(3_600),
            ),
            (r#"{"access_token":"abc","expires_in":0}"#, granted(1)),
            (r#"{"access_token":"abc","expires_in":-5}"#, granted(1)),
            (
                r#"{"access_token":"abc","expires_in":1e300}"#,
                granted(2_592_000),
            ),
        ] {
            assert_eq!(grant(200, body.as_bytes(), None), expected, "{body}");
        }
    }

    #[test]
    fn what_holds_no_token_is_asked_for_again_later() {
        for body in [
            "",
            "<html>",
            "{}",
            r#"{"access_token":5}"#,
            r#"{"access_token":""}"#,
            r#"{"access_token":"a\r\nX-Evil: b"}"#,
            r#"{"access_token":"é"}"#,
            r#"{"access_token":"abc","expires_in":"soon"}"#,
        ] {
            let later = Grant::Later { after: None };
            assert_eq!(grant(200, body.as_bytes(), None), later, "{body}");
        }
    }

    #[test]
    fn every_other_status_is_a_refusal_or_passes() {
        let pause = Some(Duration::from_secs(7));
        for status in [302, 408, 429, 500, 501, 503, 511, 599, 999] {
            let later = Grant::Later { after: pause };
            assert_eq!(grant(status, b"", pause), later, "{status}");
        }
        for status in [400, 401, 403, 404, 415, 422] {
            let refused = Grant::Refused { code: None };
            assert_eq!(grant(status, b"", pause), refused, "{status}");
        }
    }

    #[test]
    fn a_refusal_tells_its_code_and_nothing_else() {
        for (body, expected) in [
            (
                r#"{"error":"invalid_client","error_description":"x"}"#,
                Some("invalid_client"),
            ),
            (r#"{"error":"eyJhbGciOi.J9"}"#, None),
            (r#"{"error":{}}"#, None),
            ("Bad Request", None),
        ] {
            let code = expected.map(str::to_owned);
            assert_eq!(grant(400, body.as_bytes(), None), Grant::Refused { code });
        }
    }
}
