//! One call to the Profile API, and its answer. The only file of profiles that names reqwest.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Client, Response, Url};

use super::{Answer, Secret};

/// The largest body that is passed on: many times what a page of 200 traits or 100 events takes.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A connection at rest is closed before load balancers commonly close theirs at 60 s, so that a call seldom meets a dead one.
const IDLE_CONNECTION_MAX: Duration = Duration::from_secs(45);

/// The Profile API.
#[derive(Debug)]
pub(super) struct Upstream {
    client: Client,
    endpoint: String,
    token: Secret,
}

/// Why a call has no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The connection was not made, or broke. Another may do better.
    Connection(String),
    /// What came is not to be passed on, and why.
    Unusable(&'static str),
}

/// Why profiles cannot be read. Completes "failed to set profiles up: …".
#[derive(Debug)]
pub struct SetupError(String);

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed to set profiles up: {}", self.0)
    }
}

impl std::error::Error for SetupError {}

impl Upstream {
    /// The Profile API at `endpoint`, which lets in by `token`.
    ///
    /// # Errors
    /// The endpoint is no URL, or the system has no usable TLS roots.
    pub(super) fn new(endpoint: &str, token: Secret) -> Result<Upstream, SetupError> {
        let wrong = |why: &dyn fmt::Display| SetupError(format!("profiles.endpoint {why}"));
        let url = Url::parse(endpoint).map_err(|e| wrong(&e))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong(&"must begin with https:// or http://"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong(&"must end with its path"));
        }
        // An error says that another part of the process has chosen one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("segspool/", env!("CARGO_PKG_VERSION")))
            .pool_idle_timeout(IDLE_CONNECTION_MAX)
            // What is asked again is counted, so it is asked again in one place alone.
            .retry(reqwest::retry::never())
            // The token is not to follow a stranger's word.
            .redirect(reqwest::redirect::Policy::none());
        // Plain HTTP needs no roots, which a bare container may not have.
        let client = if url.scheme() == "http" {
            client.tls_certs_only([])
        } else {
            client
        };
        Ok(Upstream {
            client: client.build().map_err(|e| SetupError(describe(e)))?,
            endpoint: url.as_str().trim_end_matches('/').to_owned(),
            token,
        })
    }

    /// Asks for a path with its query.
    pub(super) async fn get(&self, target: &str) -> Result<Answer, Failure> {
        let request = self
            .client
            .get(format!("{}{target}", self.endpoint))
            .basic_auth(self.token.expose(), Some(""));
        let response = request.send().await.map_err(broken)?;
        if response.status().is_redirection() {
            return Err(Failure::Unusable("is a redirect"));
        }
        let headers = response.headers();
        Ok(Answer {
            status: response.status().as_u16(),
            content_type: text(headers, CONTENT_TYPE.as_str()),
            request_id: text(headers, "Request-Id"),
            retry_after: text(headers, RETRY_AFTER.as_str()),
            body: read(response).await?,
        })
    }
}

async fn read(mut response: Response) -> Result<Bytes, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if body.len() + chunk.len() > BODY_BYTES_MAX {
            return Err(Failure::Unusable("is larger than 8 MiB"));
        }
        body.extend_from_slice(&chunk);
    }
    // Without the room to grow: it may be kept for long, and counts as it is.
    Ok(body.into_boxed_slice().into())
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    Some(value.to_owned())
}

fn broken(error: reqwest::Error) -> Failure {
    Failure::Connection(describe(error))
}

/// The whole chain of causes, without the URL, which names somebody.
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
