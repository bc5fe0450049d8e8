//! The configuration: the sum of the steps' own settings, from a TOML file and the environment.
//!
//! Every key can also be given as `SEGSPOOL_SECTION__KEY`; the environment wins. Webhooks are for the file
//! alone. An unknown key, a wrong type and a value out
//! of range are errors that say where and what to do. No message shows a value that may be a secret.

mod credential;
mod reload;
mod source;
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

pub use credential::{CREDENTIALS, credential_name, credentials_handed_over};
pub use source::{Setting, Source};
pub use webhook::{ReceiverConfig, WebhookConfig};

use source::Sources;

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
        /// Who has given it; none where it is a default.
        source: Option<Source>,
        /// Which, as `section.key`.
        key: &'static str,
        /// What it may be.
        rule: String,
    },
    /// A file that a setting names holds nothing that can be used.
    Named {
        /// Who has named it.
        source: Option<Source>,
        /// By which setting.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it. Never shows what it holds.
        message: String,
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
            Error::Range { source, key, rule } => write!(f, "{}{key} {rule}", behind(source)),
            Error::Named {
                source,
                key,
                path,
                message,
            } => write!(f, "{}{key}: {}: {message}", behind(source), path.display()),
        }
    }
}

/// A source with what stands between it and a message.
fn behind(source: &Option<Source>) -> String {
    source
        .as_ref()
        .map(|source| format!("{source}: "))
        .unwrap_or_default()
}

impl std::error::Error for Error {}

/// What the name of each of the daemon's variables begins with.
pub const VARIABLE_PREFIX: &str = "SEGSPOOL_";
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
        let credentials = credentials_handed_over();
        let loaded = Config::load_explained(file, variables, credentials.as_deref());
        loaded.map(|(config, _)| config)
    }

    /// As [`Config::load`], with every setting and where it comes from. What is named `credential:NAME` is looked for in `credentials`.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load_explained(
        file: Option<&Path>,
        variables: impl Iterator<Item = (String, String)>,
        credentials: Option<&Path>,
    ) -> Result<(Config, Vec<Setting>), Error> {
        let (mut table, mut sources) = match file {
            Some(path) => read_file(path)?,
            None => (Table::new(), Sources::default()),
        };
        for (name, value) in variables {
            let key = name.strip_prefix(VARIABLE_PREFIX);
            if let Some(key) = key.filter(|key| !is_of_others(key)) {
                sources.override_by(key);
                table = lay_over(table, key, &value)
                    .map_err(|message| Error::Variable { name, message })?;
            }
        }
        let settings = source::settings(&table, &sources);
        let mut config = Config::deserialize(table).map_err(|e| Error::File {
            path: file.unwrap_or(Path::new("")).to_owned(),
            line: None,
            message: e.message().to_owned(),
        })?;
        config.find_files(&sources, credentials)?;
        config.read_secrets(&sources, credentials)?;
        config.check().map_err(|broken| Error::Range {
            source: sources.find(&broken.at).cloned(),
            key: broken.key,
            rule: broken.rule,
        })?;
        Ok((config, settings))
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
        let receiver = Receiver {
            secret: self.receiver.secret.clone(),
            batches: self.receiver.batches,
        };
        Rules {
            triggers: self.webhook.iter().map(WebhookConfig::trigger).collect(),
            receiver: self.receiver.enabled.then_some(receiver),
            ..self.ingest.rules()
        }
    }

    /// Finds the credentials among the files that others read.
    fn find_files(&mut self, sources: &Sources, credentials: Option<&Path>) -> Result<(), Error> {
        let oauth = self.segment.oauth.as_mut().map(|oauth| {
            let key = "segment.oauth.private_key_file";
            (key, &mut oauth.private_key_file)
        });
        let tls = self.ingest.tls.as_mut().into_iter();
        let tls = tls.flat_map(|tls| {
            [
                ("ingest.tls.cert", &mut tls.cert),
                ("ingest.tls.key", &mut tls.key),
            ]
        });
        let tls = tls.filter_map(|(key, path)| Some((key, path.as_mut()?)));
        for (key, path) in oauth.into_iter().chain(tls) {
            *path = credential::file(path, credentials).map_err(|message| Error::Named {
                source: sources.find(key).cloned(),
                key,
                path: path.clone(),
                message,
            })?;
        }
        Ok(())
    }

    fn read_secrets(&mut self, sources: &Sources, credentials: Option<&Path>) -> Result<(), Error> {
        let wrong = |at: &str, key: &'static str, path: &Path, message: String| Error::Named {
            source: sources.find(at).cloned(),
            key,
            path: path.to_owned(),
            message,
        };
        let read = |at: &str, key: &'static str, path: &Path| {
            let file = credential::file(path, credentials);
            let file = file.map_err(|message| wrong(at, key, path, message))?;
            let content = fs::read_to_string(file);
            // The white space around it is an editor's.
            let content = content.map(|content| content.trim().to_owned());
            content.map_err(|error| wrong(at, key, path, error.to_string()))
        };
        if let Some(path) = &self.ingest.write_key_file {
            let name = "ingest.write_key_file";
            let key = WriteKey::new(&read(name, name, path)?);
            let key = key.map_err(|rejection| wrong(name, name, path, rejection.message().into()));
            self.ingest.write_key = Some(key?);
        }
        if let Some(path) = &self.admin.token_file {
            let name = "admin.token_file";
            let token = AdminToken::new(&read(name, name, path)?);
            let token = token.ok_or_else(|| wrong(name, name, path, TOKEN_RULE.into()));
            self.admin.token = Some(token?);
        }
        let profiles = &mut self.profiles;
        for (name, path, token) in [
            (
                "profiles.token_file",
                &profiles.token_file,
                &mut profiles.token,
            ),
            (
                "profiles.client_token_file",
                &profiles.client_token_file,
                &mut profiles.client_token,
            ),
        ] {
            if let Some(path) = path {
                let read = profiles::Secret::new(&read(name, name, path)?);
                let read = read.ok_or_else(|| wrong(name, name, path, TOKEN_RULE.into()));
                *token = Some(read?);
            }
        }
        let webhooks = self.webhook.iter_mut().enumerate();
        let shared = webhooks.map(|(index, webhook)| {
            let at = format!("webhook.{index}.secret_file");
            let (path, secret) = (&webhook.secret_file, &mut webhook.secret);
            (at, "webhook.secret_file", path, secret)
        });
        let name = "receiver.secret_file";
        let (path, secret) = (&self.receiver.secret_file, &mut self.receiver.secret);
        for (at, name, path, secret) in shared.chain([(name.to_owned(), name, path, secret)]) {
            if !path.as_os_str().is_empty() {
                let read = SharedSecret::new(read(&at, name, path)?);
                let read = read.ok_or_else(|| wrong(&at, name, path, "the secret is empty".into()));
                *secret = Some(read?);
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Broken> {
        let (ingest, queue) = (&self.ingest, &self.queue);
        let (segment, retry) = (&self.segment, &self.retry);
        let least_body = EVENT_BYTES_MAX + 1024;
        let tls = ingest.tls.as_ref();
        let oauth = segment.oauth.as_ref();
        let profiles = &self.profiles;
        let rules: [(bool, &'static str, String); 20] = [
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
                !retry.base.is_zero() && retry.base <= retry.max,
                "retry.base",
                "must be above 0 and not above retry.max".into(),
            ),
            (
                !retry.hold_probe.is_zero(),
                "retry.hold_probe",
                "must not be 0".into(),
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
            Some((_, key, rule)) => Err(Broken {
                at: key.into(),
                key,
                rule,
            }),
            None => self.check_webhooks(),
        }
    }

    fn check_webhooks(&self) -> Result<(), Broken> {
        let (mut names, mut urls_of_all) = (HashSet::new(), 0);
        let is_own = |url: &WebhookUrl| {
            let mut own = self.ingest.tcp_addresses();
            own.any(|address| url.leads_to(address))
        };
        for (index, webhook) in self.webhook.iter().enumerate() {
            let (name, urls) = (&webhook.name, &webhook.urls);
            let distinct: HashSet<_> = urls.iter().map(WebhookUrl::expose).collect();
            urls_of_all += urls.len();
            let rule = if !names.insert(name) {
                format!("must not have the same name twice: {name}")
            } else if urls.is_empty() {
                format!("needs at least one URL: {name}")
            } else if distinct.len() < urls.len() {
                format!("must not have the same URL twice: {name}")
            } else if urls.iter().any(is_own) {
                format!("must not post to an ingest address of this daemon: {name}")
            } else if webhook.timeout.is_zero() {
                format!("needs a timeout above 0: {name}")
            } else if webhook.max_age.is_some_and(|age| age.is_zero()) {
                format!("needs a max_age above 0, or none: {name}")
            } else if webhook.wants_nothing() {
                format!("lists `events`, which are tracks, and `types` without track: {name}")
            } else if urls_of_all > WEBHOOK_URLS_MAX {
                format!("must not have more than {WEBHOOK_URLS_MAX} URLs altogether")
            } else {
                continue;
            };
            return Err(Broken {
                at: format!("webhook.{index}"),
                key: "webhook",
                rule,
            });
        }
        Ok(())
    }
}

/// A rule that a setting breaks.
struct Broken {
    /// The setting with the number of its webhook, where it has one.
    at: String,
    key: &'static str,
    rule: String,
}

fn read_file(path: &Path) -> Result<(Table, Sources), Error> {
    let text = fs::read_to_string(path).map_err(|error| Error::Unreadable {
        path: path.to_owned(),
        error,
    })?;
    let wrong = |e: toml::de::Error| Error::File {
        path: path.to_owned(),
        line: e.span().map(|span| line_of(&text, span.start)),
        message: with_remedy(
            e.span().and_then(|span| key_at(&text, span.start)),
            e.message(),
        ),
    };
    // Only here, while the text is at hand, can an error name its line.
    toml::from_str::<Config>(&text).map_err(wrong)?;
    let table = text.parse::<Table>().map_err(wrong)?;
    Ok((table, Sources::of_file(path, &text)))
}

/// The line, from 1, of the byte at `offset`.
fn line_of(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}

/// The key of the line of the byte at `offset`, where it has one and that is not what is wrong.
fn key_at(text: &str, offset: usize) -> Option<&str> {
    let start = text[..offset].rfind('\n').map_or(0, |before| before + 1);
    let key = text[start..].split(['=', '\n']).next()?;
    let is_before = start + key.len() < offset;
    let key = key.trim();
    let is_key = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (is_before && !key.is_empty() && key.chars().all(is_key)).then_some(key)
}

/// What is wrong with a value. Where a library says it, which knows neither the key nor us, it is told with the key and how such a
/// value is written.
fn with_remedy(key: Option<&str>, message: &str) -> String {
    let remedies = [
        (
            "expected a sequence",
            "a list is written like [\"a\", \"b\"]",
        ),
        ("friendly", "a duration is written like \"10s\" or \"5m\""),
        (
            "duration string",
            "a duration is written in quotes, like \"10s\"",
        ),
        (
            "expected a string",
            "a text is written in quotes, like \"10s\"",
        ),
        (
            "must be quoted",
            "a text is written in quotes, like \"10s\"",
        ),
        ("expected a boolean", "it is true or false"),
    ];
    let message = message.trim_end().replace('\n', ": ");
    match remedies.iter().find(|(sign, _)| message.contains(sign)) {
        Some((_, remedy)) => {
            let key = key.map(|key| format!("{key}: ")).unwrap_or_default();
            format!("{key}{message}; {remedy}")
        }
        None => message,
    }
}

/// What begins as the daemon's variables do and is meant for others, who may hand it on to the daemon: the tests, which start one.
const OF_TESTS: [&str; 6] = [
    "BACKLOG_EVENTS",
    "POWER_CUTS",
    "REQUIRE_CLIENTS",
    "TORTURE_ROUNDS",
    "TORTURE_SECONDS",
    "TORTURE_SEED",
];
/// Or for other commands: the write key of an import.
const OF_COMMANDS: [&str; 1] = ["WRITE_KEY"];
/// And, where a service is called segspool, what Kubernetes and Docker tell of its addresses.
const OF_SERVICES: [&str; 3] = ["PORT", "SERVICE_HOST", "SERVICE_PORT"];
/// What cannot be said by a variable.
const WEBHOOK_RULE: &str =
    "webhooks are tables of the configuration file, [[webhook]], and have no variables";

/// Whether a variable is none of the daemon's business. Any other names a setting, or is a slip that must not pass unseen.
fn is_of_others(key: &str) -> bool {
    let is_of_service = |name: &str| {
        let rest = key.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    };
    OF_TESTS.contains(&key)
        || OF_COMMANDS.contains(&key)
        || OF_SERVICES.iter().any(|name| is_of_service(name))
}

/// The table with one key replaced. A value is read as TOML where that fits, else as a string.
fn lay_over(table: Table, key: &str, text: &str) -> Result<Table, String> {
    let path: Vec<String> = key.split("__").map(str::to_lowercase).collect();
    if key.starts_with("WEBHOOK") {
        return Err(WEBHOOK_RULE.to_owned());
    }
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
            Err(e) => _ = first_error.get_or_insert(with_remedy(None, e.message())),
        }
    }
    let message = first_error.unwrap_or_default();
    Err(match path.len() {
        1 => format!("{message}; a key of a section is named as SEGSPOOL_SECTION__KEY is"),
        _ => message,
    })
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
mod tests;
