//! `[profiles]`. Off by default: only a token turns profiles on.

use std::path::PathBuf;
use std::time::Duration;

use serde::de::IntoDeserializer as _;
use serde::{Deserialize, Deserializer};

use super::Secret;

/// `[profiles]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The Profile API, without `/v1`.
    pub endpoint: String,
    /// The space that the short form of a path stands for.
    #[serde(deserialize_with = "text_or_none")]
    pub space_id: Option<String>,
    /// A file with the space's access token. Profiles are off without it.
    #[serde(deserialize_with = "path_or_none")]
    pub token_file: Option<PathBuf>,
    /// The token itself, once the file has been read.
    #[serde(skip)]
    pub token: Option<Secret>,
    /// A file with a token that local clients must bear.
    #[serde(deserialize_with = "path_or_none")]
    pub client_token_file: Option<PathBuf>,
    /// That token, once the file has been read.
    #[serde(skip)]
    pub client_token: Option<Secret>,
    /// How long an answer is used again; never without it.
    #[serde(deserialize_with = "duration_or_none")]
    pub cache_ttl: Option<Duration>,
    /// How long a request may take, its retry included.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub timeout: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            endpoint: "https://profiles.segment.com".into(),
            space_id: None,
            token_file: None,
            token: None,
            client_token_file: None,
            client_token: None,
            cache_ttl: None,
            timeout: Duration::from_secs(10),
        }
    }
}

/// An empty text is none.
fn text_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(from)?;
    Ok((!text.is_empty()).then_some(text))
}

/// An empty path is none.
fn path_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
    Ok(text_or_none(from)?.map(PathBuf::from))
}

/// An empty duration is none.
fn duration_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let Some(text) = text_or_none(from)? else {
        return Ok(None);
    };
    let text = text.as_str().into_deserializer();
    jiff::fmt::serde::unsigned_duration::friendly::compact::required::deserialize(text).map(Some)
}
