//! Tokens of OAuth 2.0, an alternative to the write key: fetched with a signed assertion, kept, and shared by all lanes.
//!
//! One fetch at a time, for which those wait that have no token; at half of a token's life the next one is fetched beside the
//! calls, which go on with the old one for as long as that is good. `assertion` proves who asks, `grant` judges the answer, `cache`
//! keeps what came of it. No token, assertion or key is ever logged or part of an error.

mod assertion;
mod cache;
mod grant;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::{CONTENT_TYPE, DATE, HeaderMap};
use reqwest::{Response, Url};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::connections::Connections;
use super::{SetupError, describe, http_url, pause};
use crate::deliver::OauthConfig;

use assertion::Issuer;
use cache::{AtHand, Cache};
use grant::{Grant, grant};

pub(super) use cache::{Failure, Token};

/// A token's answer is a few hundred bytes; what is longer is none.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Where the clocks differ by more, in seconds, that may be why an assertion was refused.
const SKEW_TOLERATED: i64 = 5;

/// Has a token for every call.
#[derive(Clone, Debug)]
pub(super) struct Tokens(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    connections: Connections,
    endpoint: Url,
    scope: String,
    issuer: Issuer,
    pause_max: Duration,
    state: Mutex<State>,
    fetching: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct State {
    cache: Cache,
    /// How far the token endpoint's clock is ahead of ours, in seconds.
    skew: i64,
}

impl Tokens {
    /// Tokens as `config` says, where a fetch may take as long as `timeout`, and no pause is longer than `pause_max`.
    ///
    /// # Errors
    /// The token endpoint is no URL, the key file holds no key, or the system has no usable TLS roots.
    pub(super) fn new(
        config: &OauthConfig,
        timeout: Duration,
        pause_max: Duration,
    ) -> Result<Tokens, SetupError> {
        let endpoint = http_url("segment.oauth.token_endpoint", &config.token_endpoint)?;
        let issuer = Issuer::new(
            &config.client_id,
            &config.key_id,
            // The server as such, without the path: so do Segment's SDKs.
            endpoint.origin().ascii_serialization(),
            &config.private_key_file,
        )?;
        Ok(Tokens(Arc::new(Shared {
            connections: Connections::new(&endpoint, timeout)?,
            endpoint,
            scope: config.scope.clone(),
            issuer,
            pause_max,
            state: Mutex::default(),
            fetching: Arc::default(),
        })))
    }

    /// A token that is good now.
    pub(super) async fn token(&self) -> Result<Token, Failure> {
        match self.at_hand() {
            AtHand::Fresh(token) => return Ok(token),
            AtHand::Aging(token) => {
                self.fetch_beside();
                return Ok(token);
            }
            AtHand::Failed(failure) => return Err(failure),
            AtHand::Nothing => {}
        }
        let _fetching = self.0.fetching.lock().await;
        match self.at_hand() {
            AtHand::Fresh(token) | AtHand::Aging(token) => Ok(token),
            AtHand::Failed(failure) => Err(failure),
            AtHand::Nothing => self.0.fetch().await,
        }
    }

    /// Takes to heart that a call with this token was refused. True if the next call gets another one.
    pub(super) fn refuse(&self, token: &Token) -> bool {
        self.0.state().cache.refuse(token, Instant::now())
    }

    fn at_hand(&self) -> AtHand {
        self.0.state().cache.at_hand(Instant::now())
    }

    fn fetch_beside(&self) {
        let Ok(fetching) = Arc::clone(&self.0.fetching).try_lock_owned() else {
            return;
        };
        let tokens = self.clone();
        tokio::spawn(async move {
            let _fetching = fetching;
            // Another fetch may have ended in between.
            if matches!(tokens.at_hand(), AtHand::Aging(_)) {
                let _ = tokens.0.fetch().await;
            }
        });
    }
}

impl Token {
    /// The token itself, for the header of a call.
    pub(super) fn expose(&self) -> &str {
        self.secret.expose()
    }
}

impl Shared {
    /// Fetches a token, and keeps what became of that.
    async fn fetch(&self) -> Result<Token, Failure> {
        let before = self.state().skew;
        let mut fetched = self.ask(before).await;
        let after = self.state().skew;
        let refused = matches!(&fetched, Err(failure) if failure.refused);
        if refused && (after - before).abs() > SKEW_TOLERATED {
            warn!(
                seconds = after,
                "this machine's clock differs from the token endpoint's, by which an assertion is corrected"
            );
            fetched = self.ask(after).await;
        }
        let mut state = self.state();
        let now = Instant::now();
        match fetched {
            Ok((secret, life)) => {
                debug!(?life, "fetched an OAuth token");
                Ok(state.cache.keep(secret, life, now))
            }
            Err(failure) => {
                warn!(reason = failure.reason, "there is no new OAuth token");
                state.cache.fail(failure.clone(), now);
                Err(failure)
            }
        }
    }

    /// Asks for a token once, and notes how the server's clock goes.
    async fn ask(&self, skew: i64) -> Result<(grant::Secret, Duration), Failure> {
        let passing = |what: String, after| Failure {
            reason: format!("failed to fetch an OAuth token: {what}"),
            refused: false,
            after,
        };
        let now = Timestamp::now().as_second() + skew;
        let Some(assertion) = self.issuer.assertion(now) else {
            return Err(passing("the private key does not sign".into(), None));
        };
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "client_credentials")
            .append_pair(
                "client_assertion_type",
                "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            )
            .append_pair("client_assertion", &assertion)
            .append_pair("scope", &self.scope)
            .finish();
        let lease = self.connections.lease();
        let request = lease
            .client
            .post(self.endpoint.clone())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form);
        let answered = async {
            let response = request.send().await?;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            Ok((status, headers, read(response).await?))
        };
        let (status, headers, body) = match answered.await {
            Ok(answered) => answered,
            Err(error) => {
                self.connections.failed(&lease);
                return Err(passing(describe(error), None));
            }
        };
        if status >= 500 {
            self.connections.failed(&lease);
        }
        let now = Timestamp::now();
        if let Some(date) = date(&headers) {
            self.state().skew = date.as_second() - now.as_second();
        }
        let after = pause(&headers, now).map(|pause| pause.min(self.pause_max));
        match grant(status, &body, after) {
            Grant::Token { secret, life } => Ok((secret, life)),
            Grant::Later { after } if status < 300 => {
                Err(passing(format!("answered {status} without a token"), after))
            }
            Grant::Later { after } => Err(passing(format!("answered {status}"), after)),
            Grant::Refused { code } => {
                let code = code.map(|code| format!(" {code}")).unwrap_or_default();
                Err(Failure {
                    reason: format!("the OAuth credentials are refused: answered {status}{code}"),
                    refused: true,
                    after: None,
                })
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }
}

/// The body, as far as it may be one.
async fn read(mut response: Response) -> reqwest::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            break;
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn date(headers: &HeaderMap) -> Option<Timestamp> {
    let text = headers.get(DATE)?.to_str().ok()?;
    Some(jiff::fmt::rfc2822::parse(text).ok()?.timestamp())
}
