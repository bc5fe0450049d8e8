//! `[[webhook]]` and `[receiver]`: what acceptance and delivery are told of webhooks.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::{self, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::deliver::{self, WebhookHeaders, WebhookUrl};
use crate::event::{Channel, Kind, SharedSecret};
use crate::ingest::{Trigger, Wanted, webhook_lane};

/// A type that is no kind of event that applications send, and that Segment's webhooks may post.
const DELETE: &str = "delete";

/// `[[webhook]]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    /// What it is called in logs, and what its lanes go by.
    #[serde(deserialize_with = "name")]
    pub name: String,
    /// Where events are posted; each URL is a lane of its own.
    #[serde(deserialize_with = "urls")]
    pub urls: Vec<WebhookUrl>,
    /// Types of events; empty for all.
    #[serde(default, deserialize_with = "types")]
    pub types: HashSet<String>,
    /// Names of tracks; empty for all events.
    #[serde(default)]
    pub events: HashSet<String>,
    /// Where events were made; empty for anywhere.
    #[serde(default, deserialize_with = "channels")]
    pub channels: Vec<Channel>,
    /// Whose events are left out, by `userId`.
    #[serde(default)]
    pub ignore_users: HashSet<String>,
    /// A file with the secret that bodies are signed with.
    #[serde(default)]
    pub secret_file: PathBuf,
    /// The secret itself, once the file has been read.
    #[serde(skip)]
    pub secret: Option<SharedSecret>,
    /// What each call says besides.
    #[serde(default)]
    pub headers: WebhookHeaders,
    /// How long a call may take.
    #[serde(
        default = "timeout",
        with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required"
    )]
    pub timeout: Duration,
    /// Events that have waited longer become dead letters; none for ever.
    #[serde(default = "max_age", with = "deliver::duration_or_none")]
    pub max_age: Option<Duration>,
}

impl WebhookConfig {
    /// Whether no event can pass its filters: only tracks have the names that `events` lists.
    pub(super) fn wants_nothing(&self) -> bool {
        let tracks = self.types.is_empty() || self.types.contains(Kind::Track.name());
        !self.events.is_empty() && !tracks
    }

    /// What of it concerns acceptance.
    #[must_use]
    pub fn trigger(&self) -> Trigger {
        let lane = |url: &WebhookUrl| webhook_lane(&self.name, url.expose());
        Trigger {
            wanted: Wanted {
                types: self.types.clone(),
                events: self.events.clone(),
                channels: self.channels.clone(),
                ignored_users: self.ignore_users.clone(),
            },
            lanes: self.urls.iter().map(lane).collect(),
        }
    }

    /// What of it concerns delivery.
    #[must_use]
    pub fn deliver(&self) -> deliver::WebhookConfig {
        deliver::WebhookConfig {
            name: self.name.clone(),
            urls: self.urls.clone(),
            headers: self.headers.clone(),
            secret: self.secret.clone(),
            timeout: self.timeout,
            max_age: self.max_age,
        }
    }
}

/// `[receiver]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReceiverConfig {
    /// Whether events from Segment are received.
    pub enabled: bool,
    /// A file with the secret that Segment signs with; without it anybody may post.
    pub secret_file: PathBuf,
    /// The secret itself, once the file has been read.
    #[serde(skip)]
    pub secret: Option<SharedSecret>,
    /// Whether several events at a time are taken though there is a secret, which signs the first alone.
    pub batches: bool,
}

fn timeout() -> Duration {
    deliver::WEBHOOK_TIMEOUT
}

fn max_age() -> Option<Duration> {
    Some(deliver::WEBHOOK_MAX_AGE)
}

fn name<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let name = String::deserialize(from)?;
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if name.is_empty() || !name.bytes().all(fits) {
        let rule = "a webhook's name is made of a to z, 0 to 9 and -, and not empty";
        return Err(D::Error::custom(rule));
    }
    Ok(name)
}

/// A list of URLs. Where there is one without its brackets, the error does not show it: it may hold a token.
fn urls<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<WebhookUrl>, D::Error> {
    struct Urls;

    impl<'de> Visitor<'de> for Urls {
        type Value = Vec<WebhookUrl>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of URLs")
        }

        fn visit_str<E: de::Error>(self, _: &str) -> Result<Self::Value, E> {
            Err(E::custom("`urls` is a list of URLs"))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut urls = Vec::new();
            while let Some(url) = list.next_element()? {
                urls.push(url);
            }
            Ok(urls)
        }
    }
    from.deserialize_any(Urls)
}

fn types<'de, D: Deserializer<'de>>(from: D) -> Result<HashSet<String>, D::Error> {
    let types = HashSet::<String>::deserialize(from)?;
    let is_known = |name: &&String| Kind::from_name(name).is_some() || *name == DELETE;
    match types.iter().find(|name| !is_known(name)) {
        Some(unknown) => Err(D::Error::custom(format!(
            "`{unknown}` is none of track, identify, page, screen, group, alias and {DELETE}"
        ))),
        None => Ok(types),
    }
}

fn channels<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Channel>, D::Error> {
    let channels = Vec::<String>::deserialize(from)?.into_iter().map(|name| {
        Channel::from_name(&name).ok_or_else(|| {
            D::Error::custom(format!(
                "`{name}` is none of server, client, browser and mobile"
            ))
        })
    });
    channels.collect()
}
