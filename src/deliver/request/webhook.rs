//! Calls to the URL of a webhook, and the settings that only such a call needs. No error and no `Debug` shows a URL or a header's
//! value: both may hold a token.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use reqwest::Url;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Deserializer, de::Error as _};

use super::connections::Connections;
use super::{Answer, SetupError, describe, read, speaks_of_a_broken_server};
use crate::event::SharedSecret;

/// What no header of the operator's may say, because the call itself does.
const OWN_HEADERS: [&str; 7] = [
    "connection",
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
    "user-agent",
    SIGNATURE,
];
/// The header that holds the body's signature.
const SIGNATURE: &str = "x-signature";

/// The URL of a webhook.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookUrl {
    text: String,
    url: Url,
}

impl WebhookUrl {
    /// The URL as the operator wrote it, for the name of its lane and nothing else.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Whether it leads to a server of this machine that listens on `address`.
    #[must_use]
    pub fn leads_to(&self, address: SocketAddr) -> bool {
        if self.url.port_or_known_default() != Some(address.port()) {
            return false;
        }
        let host = self.url.host_str().unwrap_or_default();
        let listens_on = address.ip();
        // An IPv6 address stands in brackets.
        match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(ip) => ip == listens_on || (listens_on.is_unspecified() && ip.is_loopback()),
            Err(_name) => {
                host == "localhost" && (listens_on.is_loopback() || listens_on.is_unspecified())
            }
        }
    }
}

impl fmt::Debug for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookUrl(…)")
    }
}

impl<'de> Deserialize<'de> for WebhookUrl {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<WebhookUrl, D::Error> {
        let text = String::deserialize(from)
            .map_err(|_| D::Error::custom("a webhook's URLs are strings"))?;
        let url = Url::parse(&text)
            .map_err(|e| D::Error::custom(format!("a webhook's URL is not valid: {e}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            let rule = "a webhook's URL must begin with https:// or http://";
            return Err(D::Error::custom(rule));
        }
        Ok(WebhookUrl { text, url })
    }
}

/// What a webhook's calls say besides.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct WebhookHeaders(HeaderMap);

impl fmt::Debug for WebhookHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl<'de> Deserialize<'de> for WebhookHeaders {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<WebhookHeaders, D::Error> {
        let table = BTreeMap::<String, String>::deserialize(from)
            .map_err(|_| D::Error::custom("a webhook's headers are a table of strings"))?;
        let mut headers = HeaderMap::new();
        for (name, value) in table {
            let wrong = |how| D::Error::custom(format!("the header `{name}` {how}"));
            let key: HeaderName = name
                .parse()
                .map_err(|_| wrong("has a name that no header can have"))?;
            if OWN_HEADERS.contains(&key.as_str()) {
                return Err(wrong("is not for a webhook to set"));
            }
            let mut value: HeaderValue = value
                .parse()
                .map_err(|_| wrong("has a value that fits into no header"))?;
            value.set_sensitive(true);
            headers.insert(key, value);
        }
        Ok(WebhookHeaders(headers))
    }
}

/// Makes calls to one URL.
#[derive(Debug)]
pub(in crate::deliver) struct Hook {
    connections: Connections,
    url: WebhookUrl,
    headers: WebhookHeaders,
    secret: Option<SharedSecret>,
    retry_after_max: Duration,
}

impl Hook {
    /// # Errors
    /// The system has no usable TLS roots.
    pub(in crate::deliver) fn new(
        url: &WebhookUrl,
        headers: &WebhookHeaders,
        secret: Option<&SharedSecret>,
        timeout: Duration,
        retry_after_max: Duration,
    ) -> Result<Hook, SetupError> {
        Ok(Hook {
            connections: Connections::new(&url.url, timeout)?,
            url: url.clone(),
            headers: headers.clone(),
            secret: secret.cloned(),
            retry_after_max,
        })
    }

    /// Posts one event.
    pub(in crate::deliver) async fn send(&self, event: Bytes) -> Answer {
        let lease = self.connections.lease();
        let mut request = lease
            .client
            .post(self.url.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .headers(self.headers.0.clone());
        if let Some(secret) = &self.secret {
            request = request.header(SIGNATURE, secret.sign(&event));
        }
        let answer = match request.body(event).send().await {
            Ok(response) => read(response, self.retry_after_max).await,
            Err(error) => Answer::Unanswered {
                error: describe(error),
            },
        };
        if speaks_of_a_broken_server(&answer) {
            self.connections.failed(&lease);
        }
        answer
    }
}
