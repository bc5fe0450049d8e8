//! The configuration: the sum of the steps' own settings, from a TOML file and the environment.
//!
//! Every key can also be given as `SEGSPOOL_SECTION__KEY`; the environment wins. An unknown key, a wrong type and a value out
//! of range are errors that say where and what to do. No message shows a value that may be a secret.

mod reload;
mod webhook;

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use serde::Deserialize;
use toml::{Table, Value};

use crate::deliver::{self, RetryConfig, SegmentConfig, WEBHOOK_URLS_MAX, WebhookUrl};
use crate::event::limits::EVENT_BYTES_MAX;
use crate::event::{SharedSecret, WriteKey};
use crate::ingest::{Receiver, Rules};
use crate::profiles;
use crate::queue;
use crate::server::{AdminConfig, AdminToken, IngestConfig};

pub use webhook::{ReceiverConfig, WebhookConfig};

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the spool lies.
    pub data_dir: PathBuf,
    /// The ingest listener.
    pub ingest: IngestConfig,
    /// The admin listener.
    pub admin: AdminConfig,
    /// The queue.
    pub queue: queue::Config,
    /// The destination.
    pub segment: SegmentConfig,
    /// What happens when it fails.
    pub retry: RetryConfig,
    /// Profiles.
    pub profiles: profiles::Config,
    /// Other destinations.
    pub webhook: Vec<WebhookConfig>,
    /// The way in for events from Segment.
    pub receiver: ReceiverConfig,
    /// The end.
    pub shutdown: ShutdownConfig,
    /// The log.
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            data_dir: "/var/lib/segspool".into(),
            ingest: IngestConfig::default(),
            admin: AdminConfig::default(),
            queue: queue::Config::default(),
            segment: SegmentConfig::default(),
            retry: RetryConfig::default(),
            profiles: profiles::Config::default(),
            webhook: Vec::new(),
            receiver: ReceiverConfig::default(),
            shutdown: ShutdownConfig::default(),
            log: LogConfig::default(),
        }
    }
}

/// `[shutdown]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShutdownConfig {
    /// How long delivery goes on after a stop was asked for, as long as something waits.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub drain: Duration,
}

impl Default for ShutdownConfig {
    fn default() -> ShutdownConfig {
        ShutdownConfig {
            drain: Duration::from_secs(5),
        }
    }
}

/// `[log]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// What is logged.
    pub level: LogLevel,
    /// For people or for machines.
    pub format: LogFormat,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Someone must act.
    Error,
    /// Unusual, still working.
    Warn,
    /// The life of the process.
    #[default]
    Info,
    /// A batch.
    Debug,
    /// An event.
    Trace,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people and journald.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why there is no configuration. Completes "failed to read the configuration: …".
#[derive(Debug)]
pub enum Error {
    /// A file cannot be read.
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The configuration file is wrong.
    File {
        /// Which.
        path: PathBuf,
        /// The line, from 1, where it is known.
        line: Option<usize>,
        /// What is wrong.
        message: String,
    },
    /// A variable of the environment is wrong.
    Variable {
        /// Which.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// A value is out of its range.
    Range {
        /// Which, as `section.key`.
        key: &'static str,
        /// What it may be.
        rule: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Unreadable { path, error } => write!(f, "{}: {error}", path.display()),
            Error::File {
                path,
                line: Some(line),
                message,
            } => write!(f, "{}:{line}: {message}", path.display()),
            Error::File {
                path,
                line: None,
                message,
            } => write!(f, "{}: {message}", path.display()),
            Error::Variable { name, message } => {
                write!(f, "environment variable {name}: {message}")
            }
            Error::Range { key, rule } => write!(f, "{key} {rule}"),
        }
    }
}

impl std::error::Error for Error {}

const VARIABLE_PREFIX: &str = "SEGSPOOL_";
const TOKEN_RULE: &str = "a token is one line of printable ASCII without spaces, and not empty";

impl Config {
    /// Reads a file, or the defaults where there is none, and lays `variables` over it.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load(
        file: Option<&Path>,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Config, Error> {
        let mut table = match file {
            Some(path) => read_file(path)?,
            None => Table::new(),
        };
        for (name, value) in variables {
            if let Some(key) = name
                .strip_prefix(VARIABLE_PREFIX)
                .filter(|key| is_ours(key))
            {
                table = lay_over(table, key, &value)
                    .map_err(|message| Error::Variable { name, message })?;
            }
        }
        let mut config = Config::deserialize(table).map_err(|e| Error::File {
            path: file.unwrap_or(Path::new("")).to_owned(),
            line: None,
            message: e.message().to_owned(),
        })?;
        config.read_secrets()?;
        config.check()?;
        Ok(config)
    }

    /// Delivery's part.
    #[must_use]
    pub fn deliver(&self) -> deliver::Config {
        deliver::Config {
            segment: self.segment.clone(),
            retry: self.retry.clone(),
            webhooks: self.webhook.iter().map(WebhookConfig::deliver).collect(),
        }
    }

    /// Acceptance's part.
    #[must_use]
    pub fn rules(&self) -> Rules {
        let secret = &self.receiver.secret;
        let receiver = Receiver {
            secret: secret.clone(),
        };
        Rules {
            triggers: self.webhook.iter().map(WebhookConfig::trigger).collect(),
            receiver: self.receiver.enabled.then_some(receiver),
            ..self.ingest.rules()
        }
    }

    fn read_secrets(&mut self) -> Result<(), Error> {
        let wrong = |path: &Path, message: &str| Error::File {
            path: path.to_owned(),
            line: None,
            message: message.to_owned(),
        };
        if let Some(path) = &self.ingest.write_key_file {
            let key = WriteKey::new(&read_secret(path)?);
            let key = key.map_err(|rejection| wrong(path, rejection.message()))?;
            self.ingest.write_key = Some(key);
        }
        if let Some(path) = &self.admin.token_file {
            let token = AdminToken::new(&read_secret(path)?);
            self.admin.token = Some(token.ok_or_else(|| wrong(path, TOKEN_RULE))?);
        }
        let profiles = &mut self.profiles;
        for (path, token) in [
            (&profiles.token_file, &mut profiles.token),
            (&profiles.client_token_file, &mut profiles.client_token),
        ] {
            if let Some(path) = path {
                let read = profiles::Secret::new(&read_secret(path)?);
                *token = Some(read.ok_or_else(|| wrong(path, TOKEN_RULE))?);
            }
        }
        let webhooks = self.webhook.iter_mut();
        let shared = webhooks.map(|webhook| (&webhook.secret_file, &mut webhook.secret));
        let receiver = (&self.receiver.secret_file, &mut self.receiver.secret);
        for (path, secret) in shared.chain([receiver]) {
            if !path.as_os_str().is_empty() {
                let read = SharedSecret::new(read_secret(path)?);
                *secret = Some(read.ok_or_else(|| wrong(path, "the secret is empty"))?);
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Error> {
        let (ingest, queue) = (&self.ingest, &self.queue);
        let (segment, retry) = (&self.segment, &self.retry);
        let least_body = EVENT_BYTES_MAX + 1024;
        let tls = ingest.tls.as_ref();
        let oauth = segment.oauth.as_ref();
        let profiles = &self.profiles;
        let rules: [(bool, &'static str, String); 19] = [
            (
                !self.data_dir.as_os_str().is_empty(),
                "data_dir",
                "must not be empty".into(),
            ),
            (
                !retry.max_retry_after.is_zero(),
                "retry.max_retry_after",
                "must not be 0".into(),
            ),
            (
                !ingest.listen.is_empty(),
                "ingest.listen",
                "needs at least one address".into(),
            ),
            (
                tls.is_none_or(|tls| tls.cert.is_some() == tls.key.is_some()),
                "ingest.tls",
                "needs both cert and key, or neither".into(),
            ),
            (
                ingest.max_body >= ByteSize::kib(64) && ingest.max_body <= ByteSize::mib(32),
                "ingest.max_body",
                "must be between 64 KiB and 32 MiB".into(),
            ),
            (
                ingest.allowed_write_keys.is_empty()
                    || ingest
                        .write_key
                        .as_ref()
                        .is_none_or(|key| ingest.allowed_write_keys.contains(key)),
                "ingest.write_key",
                "must be one of ingest.allowed_write_keys, where these are given".into(),
            ),
            (
                queue.volume_bytes >= ByteSize::mib(1),
                "queue.volume_bytes",
                "must be at least 1 MiB".into(),
            ),
            (
                queue.max_bytes >= queue.volume_bytes,
                "queue.max_bytes",
                "must not be below queue.volume_bytes".into(),
            ),
            (
                segment.max_batch_bytes >= least_body,
                "segment.max_batch_bytes",
                format!("must be at least {least_body}: the largest event with its envelope"),
            ),
            (
                segment.max_batch_events >= 1,
                "segment.max_batch_events",
                "must be at least 1".into(),
            ),
            (
                (1..=32).contains(&segment.concurrency),
                "segment.concurrency",
                "must be between 1 and 32".into(),
            ),
            (
                !segment.timeout.is_zero(),
                "segment.timeout",
                "must not be 0".into(),
            ),
            (
                oauth.is_none_or(|oauth| !oauth.client_id.is_empty()),
                "segment.oauth.client_id",
                "must not be empty where segment.oauth is given".into(),
            ),
            (
                oauth.is_none_or(|oauth| !oauth.key_id.is_empty()),
                "segment.oauth.key_id",
                "must not be empty where segment.oauth is given".into(),
            ),
            (
                oauth.is_none_or(|oauth| !oauth.private_key_file.as_os_str().is_empty()),
                "segment.oauth.private_key_file",
                "must not be empty where segment.oauth is given".into(),
            ),
            (
                !retry.base.is_zero() && retry.base <= retry.max && !retry.hold_probe.is_zero(),
                "retry",
                "needs base above 0 and not above max, and hold_probe above 0".into(),
            ),
            (
                !profiles.timeout.is_zero(),
                "profiles.timeout",
                "must not be 0".into(),
            ),
            (
                profiles
                    .space_id
                    .as_deref()
                    .is_none_or(profiles::is_space_id),
                "profiles.space_id",
                "must be letters, digits, - and _".into(),
            ),
            (
                profiles.token_file.is_some() || profiles.client_token_file.is_none(),
                "profiles.client_token_file",
                "has no use without profiles.token_file".into(),
            ),
        ];
        match rules.into_iter().find(|(holds, ..)| !holds) {
            Some((_, key, rule)) => Err(Error::Range { key, rule }),
            None => self.check_webhooks(),
        }
    }

    fn check_webhooks(&self) -> Result<(), Error> {
        let (mut names, mut urls_of_all) = (HashSet::new(), 0);
        for webhook in &self.webhook {
            let (name, urls) = (&webhook.name, &webhook.urls);
            let distinct: HashSet<_> = urls.iter().map(WebhookUrl::expose).collect();
            urls_of_all += urls.len();
            let rule = if !names.insert(name) {
                format!("must not have the same name twice: {name}")
            } else if urls.is_empty() {
                format!("needs at least one URL: {name}")
            } else if distinct.len() < urls.len() {
                format!("must not have the same URL twice: {name}")
            } else if webhook.timeout.is_zero() {
                format!("needs a timeout above 0: {name}")
            } else if urls_of_all > WEBHOOK_URLS_MAX {
                format!("must not have more than {WEBHOOK_URLS_MAX} URLs altogether")
            } else {
                continue;
            };
            let key = "webhook";
            return Err(Error::Range { key, rule });
        }
        Ok(())
    }
}

/// What a file holds, without the white space around it.
fn read_secret(path: &Path) -> Result<String, Error> {
    let content = fs::read_to_string(path).map_err(|error| Error::Unreadable {
        path: path.to_owned(),
        error,
    })?;
    Ok(content.trim().to_owned())
}

fn read_file(path: &Path) -> Result<Table, Error> {
    let text = fs::read_to_string(path).map_err(|error| Error::Unreadable {
        path: path.to_owned(),
        error,
    })?;
    let wrong = |e: toml::de::Error| Error::File {
        path: path.to_owned(),
        line: e
            .span()
            .map(|span| text[..span.start].matches('\n').count() + 1),
        message: e.message().to_owned(),
    };
    // Only here, while the text is at hand, can an error name its line.
    toml::from_str::<Config>(&text).map_err(wrong)?;
    text.parse::<Table>().map_err(wrong)
}

/// A variable that begins like one of these and has a single underscore behind it is a slip, and becomes an error.
const SECTIONS: [&str; 9] = [
    "INGEST", "ADMIN", "QUEUE", "SEGMENT", "RETRY", "PROFILES", "RECEIVER", "SHUTDOWN", "LOG",
];

/// Whether a variable names a key. `SEGSPOOL_REQUIRE_CLIENTS` and the like are none of the daemon's business.
fn is_ours(key: &str) -> bool {
    let section = key.split('_').next().unwrap_or_default();
    key == "DATA_DIR" || key.contains("__") || SECTIONS.contains(&section)
}

/// The table with one key replaced. A value is read as TOML where that fits, else as a string.
fn lay_over(table: Table, key: &str, text: &str) -> Result<Table, String> {
    let path: Vec<String> = key.split("__").map(str::to_lowercase).collect();
    let as_string = Value::String(text.to_owned());
    let as_toml = format!("v = {text}")
        .parse::<Table>()
        .ok()
        .and_then(|mut t| t.remove("v"));
    let mut first_error = None;
    for value in as_toml.into_iter().chain([as_string]) {
        let mut tried = table.clone();
        put(&mut tried, &path, value)?;
        match Config::deserialize(tried.clone()) {
            Ok(_) => return Ok(tried),
            Err(e) => _ = first_error.get_or_insert(e.message().to_owned()),
        }
    }
    Err(first_error.unwrap_or_default())
}

fn put(table: &mut Table, path: &[String], value: Value) -> Result<(), String> {
    match path {
        [] => Ok(()),
        [key] => {
            table.insert(key.clone(), value);
            Ok(())
        }
        [section, rest @ ..] => {
            let inner = table
                .entry(section.clone())
                .or_insert_with(|| Value::Table(Table::new()));
            let inner = inner
                .as_table_mut()
                .ok_or_else(|| format!("`{section}` is not a section"))?;
            put(inner, rest, value)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::TlsConfig;

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, Error> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("config.toml");
        fs::write(&path, text).expect("written");
        let variables = variables
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::load(Some(&path), variables)
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(load("", &[]).expect("loaded"), Config::default());
        assert_eq!(
            Config::load(None, std::iter::empty()).expect("loaded"),
            Config::default()
        );
    }

    #[test]
    fn the_packaged_file_is_the_defaults() {
        let packaged = include_str!("../../packaging/config.toml");
        assert_eq!(load(packaged, &[]).expect("loaded"), Config::default());
    }

    #[test]
    fn sizes_and_durations_are_written_as_people_write_them() {
        let config = load(
            "[queue]\nmax_bytes = \"2 GiB\"\n[segment]\nlinger = \"250ms\"\nmax_batch_bytes = 480_000\n",
            &[],
        );
        let config = config.expect("loaded");
        assert_eq!(config.queue.max_bytes, ByteSize::gib(2));
        assert_eq!(config.segment.linger, Duration::from_millis(250));
        assert_eq!(config.segment.max_batch_bytes, 480_000);
    }

    #[test]
    fn the_default_write_key_is_one_of_those_allowed_and_none_is_shown() {
        let keys = "[ingest]\nclock_skew_over = \"10m\"\nallowed_write_keys = [\"aaaaaaAAAA\", \"bbbbbbBBBB\"]\n";
        let config = load(keys, &[]).expect("loaded");
        assert_eq!(config.ingest.allowed_write_keys.len(), 2);
        assert_eq!(
            config.ingest.clock_skew_over,
            Some(Duration::from_secs(600))
        );
        assert!(!format!("{config:?}").contains("bbbb"));
        for (key, expected) in [("bbbbbbBBBB", true), ("ccccccCCCC", false), ("", true)] {
            let loaded = load(keys, &[("SEGSPOOL_INGEST__WRITE_KEY", key)]);
            assert_eq!(loaded.is_ok(), expected, "{key}");
        }
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let variables = [
            ("SEGSPOOL_SEGMENT__LINGER", "2s"),
            ("SEGSPOOL_SEGMENT__GZIP", "true"),
            ("SEGSPOOL_INGEST__LISTEN", "[\"127.0.0.1:1\"]"),
            ("SEGSPOOL_INGEST__WRITE_KEY", "123456"),
            ("SEGSPOOL_INGEST__SOCKET_MODE", "600"),
            ("SEGSPOOL_DATA_DIR", "/tmp/x"),
            ("SEGSPOOL_REQUIRE_CLIENTS", "1"),
        ];
        let config = load(
            "data_dir = \"/y\"\n[segment]\nlinger = \"1s\"\n",
            &variables,
        )
        .expect("loaded");
        assert_eq!(config.segment.linger, Duration::from_secs(2));
        assert!(config.segment.gzip);
        assert_eq!(config.ingest.listen[0].to_string(), "127.0.0.1:1");
        assert_eq!(config.ingest.socket_mode.bits(), 0o600);
        assert_eq!(config.ingest.write_key.expect("a key").expose(), "123456");
        assert_eq!(config.data_dir, Path::new("/tmp/x"));
    }

    #[test]
    fn applications_post_where_the_operator_says() {
        let config = load(
            "[ingest]\nlisten = [\"[::1]:1\", \"unix:/run/a.sock\"]\nsocket_mode = \"0666\"\nsocket_group = \"www\"\n",
            &[],
        );
        let ingest = config.expect("loaded").ingest;
        let listen: Vec<_> = ingest.listen.iter().map(ToString::to_string).collect();
        assert_eq!(listen, ["[::1]:1", "unix:/run/a.sock"]);
        assert_eq!(ingest.socket_mode.bits(), 0o666);
        assert_eq!(ingest.socket_group.as_deref(), Some("www"));
        assert_eq!(ingest.tls, None);
    }

    #[test]
    fn tls_is_on_where_it_has_a_section_or_a_variable() {
        let tls = |text, variables: &[_]| load(text, variables).expect("loaded").ingest.tls;
        assert_eq!(tls("[ingest.tls]\n", &[]), Some(TlsConfig::default()));
        let listen = ("SEGSPOOL_INGEST__TLS__LISTEN", "127.0.0.1:9");
        let cert = ("SEGSPOOL_INGEST__TLS__CERT", "/cert");
        let key = ("SEGSPOOL_INGEST__TLS__KEY", "/key");
        let found = tls("", &[listen, cert, key]).expect("on");
        assert_eq!(found.listen.port(), 9);
        assert_eq!(found.cert.as_deref(), Some(Path::new("/cert")));
        assert_eq!(found.key.as_deref(), Some(Path::new("/key")));
    }

    #[test]
    fn a_webhook_needs_no_more_than_a_name_and_a_url_and_shows_neither_url_nor_headers() {
        let text = "[[webhook]]\nname = \"a\"\nurls = [\"http://host/t0ken\"]\n[webhook.headers]\nX-Key = \"s3cret\"\n\
            [[webhook]]\nname = \"b\"\nurls = [\"http://host/\"]\nmax_age = \"\"\n[receiver]\nenabled = true\n";
        let config = load(text, &[]).expect("loaded");
        let [first, second] = &config.webhook[..] else {
            panic!("two webhooks");
        };
        assert_eq!(first.timeout, Duration::from_secs(5));
        assert_eq!(first.max_age, Some(Duration::from_secs(4 * 3600)));
        assert_eq!(second.max_age, None);
        assert_eq!(config.rules().triggers.len(), 2);
        assert!(config.rules().receiver.is_some());
        let shown = format!("{config:?} {:?} {:?}", config.rules(), config.deliver());
        assert!(
            !shown.contains("t0ken") && !shown.contains("s3cret"),
            "{shown}"
        );
        assert_eq!(load("", &[]).expect("loaded").rules().receiver, None);
    }

    #[test]
    fn every_error_says_where_and_what() {
        for (text, variable, expected) in [
            (
                "\n[segment]\nspeed = 1\n",
                None,
                "config.toml:3: unknown field `speed`",
            ),
            ("[queue]\nmax_bytes = \"lots\"\n", None, "config.toml:2: "),
            ("[segment\n", None, "config.toml:1: "),
            (
                "[ingest]\nwrite_key = 5\n",
                None,
                "config.toml:2: a write key is a string",
            ),
            (
                "[ingest]\nwrite_key = \"a\"\nallowed_write_keys = [\"b\"]\n",
                None,
                "ingest.write_key must be one of ingest.allowed_write_keys",
            ),
            (
                "[ingest]\nallowed_write_keys = [\"\"]\n",
                None,
                "config.toml:2: the write key is empty",
            ),
            (
                "[ingest]\nallowed_write_keys = [5]\n",
                None,
                "config.toml:2: write keys are a list of strings",
            ),
            (
                "[ingest]\nclock_skew_over = \"soon\"\n",
                None,
                "config.toml:2: ",
            ),
            (
                "[ingest]\nlisten = [\n\"unix:ingest.sock\"]\n",
                None,
                "config.toml:2: `unix:ingest.sock` must name a socket by its absolute path",
            ),
            (
                "[ingest]\nlisten = []\n",
                None,
                "ingest.listen needs at least one address",
            ),
            (
                "[ingest]\nsocket_mode = \"0999\"\n",
                None,
                "config.toml:2: `0999` is no mode in octal",
            ),
            (
                "[ingest]\nsocket_mode = 660\n",
                None,
                "config.toml:2: a mode is a string in octal, such as \"0660\"",
            ),
            (
                "[ingest.tls]\ncert = \"/cert.pem\"\n",
                None,
                "ingest.tls needs both cert and key, or neither",
            ),
            (
                "",
                Some(("SEGSPOOL_INGEST__TLS__KEY", "/key.pem")),
                "ingest.tls needs both cert and key, or neither",
            ),
            (
                "[segment]\nconcurrency = 0\n",
                None,
                "segment.concurrency must be between 1 and 32",
            ),
            (
                "[segment.oauth]\n",
                None,
                "segment.oauth.client_id must not be empty where segment.oauth is given",
            ),
            (
                "[segment.oauth]\nclient_id = \"a\"\nkey_id = \"b\"\n",
                None,
                "segment.oauth.private_key_file must not be empty",
            ),
            (
                "",
                Some(("SEGSPOOL_SEGMENT__OAUTH__CLIENT_ID", "a")),
                "segment.oauth.key_id must not be empty",
            ),
            (
                "[segment.oauth]\nkey = 1\n",
                None,
                "config.toml:2: unknown field `key`",
            ),
            (
                "[queue]\nvolume_bytes = 1\n",
                None,
                "queue.volume_bytes must be at least 1 MiB",
            ),
            (
                "",
                Some(("SEGSPOOL_SEGMENT__SPEED", "1")),
                "environment variable SEGSPOOL_SEGMENT__SPEED: unknown field `speed`",
            ),
            (
                "",
                Some(("SEGSPOOL_SEGMENT__GZIP", "perhaps")),
                "environment variable SEGSPOOL_SEGMENT__GZIP: ",
            ),
            (
                "",
                Some(("SEGSPOOL_LOG_LEVEL", "debug")),
                "environment variable SEGSPOOL_LOG_LEVEL: unknown field `log_level`",
            ),
            (
                "[[webhook]]\nname = \"a\"\n\nurls = [\"nowhere\"]\n",
                None,
                "config.toml:4: a webhook's URL is not valid: ",
            ),
            (
                "[[webhook]]\nname = \"a\"\nurls = [\"ftp://host/\"]\n",
                None,
                "config.toml:3: a webhook's URL must begin with https:// or http://",
            ),
            (
                "[[webhook]]\nname = \"a\"\nurls = \"http://host/\"\n",
                None,
                "config.toml:3: invalid type",
            ),
            (
                "[[webhook]]\nname = \"a\"\nurls = [\"http://host/\"]\n[[webhook]]\nname = \"b\"\n",
                None,
                "config.toml:4: missing field `urls`",
            ),
            (
                "[[webhook]]\nname = \"A b\"\nurls = [\"http://host/\"]\n",
                None,
                "config.toml:2: a webhook's name is made of a to z, 0 to 9 and -",
            ),
            (
                "[[webhook]]\nname = \"a\"\nurls = [\"http://host/\"]\ntypes = [\"tracks\"]\n",
                None,
                "config.toml:4: `tracks` is none of track, identify, page, screen, group, alias and delete",
            ),
            (
                "[[webhook]]\nname = \"a\"\nurls = [\"http://host/\"]\nchannels = [\"web\"]\n",
                None,
                "config.toml:4: `web` is none of server, client, browser and mobile",
            ),
            (
                "[[webhook]]\nname = \"a\"\nurls = [\"http://host/\"]\nheaders = { Host = \"x\" }\n",
                None,
                "config.toml:4: the header `Host` is not for a webhook to set",
            ),
            (
                "[[webhook]]\nname = \"a\"\nurls = [\"http://host/\"]\nmax_age = \"long\"\n",
                None,
                "config.toml:4: ",
            ),
            (
                "[[webhook]]\nname = \"a\"\nurls = [\"http://host/\"]\nspeed = 1\n",
                None,
                "config.toml:4: unknown field `speed`",
            ),
            (
                "[[webhook]]\nname = \"a\"\nurls = [\"http://host/\"]\nsecret_file = \"/nowhere\"\n",
                None,
                "/nowhere: ",
            ),
            (
                "[[webhook]]\nname = \"a\"\nurls = []\n",
                None,
                "webhook needs at least one URL: a",
            ),
            (
                "[[webhook]]\nname = \"a\"\nurls = [\"http://host/\", \"http://host/\"]\n",
                None,
                "webhook must not have the same URL twice: a",
            ),
            (
                "[[webhook]]\nname = \"a\"\nurls = [\"http://host/\"]\n[[webhook]]\nname = \"a\"\nurls = [\"http://other/\"]\n",
                None,
                "webhook must not have the same name twice: a",
            ),
            (
                "",
                Some(("SEGSPOOL_RECEIVER_ENABLED", "true")),
                "environment variable SEGSPOOL_RECEIVER_ENABLED: unknown field",
            ),
            (
                "[ingest]\nwrite_key_file = \"/nowhere\"\n",
                None,
                "/nowhere: ",
            ),
            (
                "[profiles]\ntoken_file = \"/nowhere\"\n",
                None,
                "/nowhere: ",
            ),
            (
                "[profiles]\ntoken_file = \"/dev/null\"\n",
                None,
                "/dev/null: a token is one line",
            ),
            (
                "[profiles]\nclient_token_file = \"/etc/hostname\"\n",
                None,
                "profiles.client_token_file has no use without profiles.token_file",
            ),
            (
                "[profiles]\nspace_id = \"a/b\"\n",
                None,
                "profiles.space_id must be letters",
            ),
            (
                "[profiles]\ncache_ttl = \"soon\"\n",
                None,
                "config.toml:2: ",
            ),
            (
                "",
                Some(("SEGSPOOL_PROFILES__TIMEOUT", "0s")),
                "profiles.timeout must not be 0",
            ),
        ] {
            let error = load(text, variable.as_slice()).expect_err(text).to_string();
            assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        }
    }

    #[test]
    fn no_message_shows_a_key() {
        let long = "k".repeat(300);
        for (text, variable) in [
            (format!("[ingest]\nwrite_key = \"{long}\"\n"), None),
            (
                format!("[ingest]\nallowed_write_keys = [\"{long}\"]\n"),
                None,
            ),
            (
                String::new(),
                Some(("SEGSPOOL_INGEST__ALLOWED_WRITE_KEYS", long.as_str())),
            ),
            (
                String::new(),
                Some(("SEGSPOOL_INGEST__WRITE_KEY", long.as_str())),
            ),
        ] {
            let error = load(&text, variable.as_slice()).expect_err("too long");
            assert!(!format!("{error} {error:?}").contains("kkkk"));
        }
    }
}
