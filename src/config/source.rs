//! Where each setting comes from, and all settings as an operator may see them. No secret is shown: of a write key the last four
//! characters, of a webhook's URL its host, of its headers their names.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::VARIABLE_PREFIX;
use crate::event::WriteKey;

/// Every setting with its default, for people and for [`settings`] alike.
const DEFAULTS: &str = include_str!("../../packaging/config.toml");
/// What a section that is not there by default holds once it is; of `webhook`, each of them.
const OPTIONAL_DEFAULTS: &str = r#"
[ingest.tls]
listen = "127.0.0.1:7348"
cert = ""
key = ""
[segment.oauth]
client_id = ""
key_id = ""
private_key_file = ""
token_endpoint = "https://oauth2.segment.io/token"
scope = "tracking_api:write"
[webhook]
types = []
events = []
channels = []
ignore_users = []
secret_file = ""
headers = {}
timeout = "5s"
max_age = "4h"
"#;

/// A table whose keys are no settings.
const HEADERS: &str = "headers";
/// What is shown in place of a secret.
const HIDDEN: &str = "…";

/// Where a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody has said anything.
    Default,
    /// The configuration file.
    File {
        /// Which.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// The environment.
    Variable {
        /// Which variable.
        name: String,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File { path, line } => write!(f, "{}:{line}", path.display()),
            Source::Variable { name } => write!(f, "environment variable {name}"),
        }
    }
}

/// One setting.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// Its section as it is headed in a file, such as `[ingest]`; empty where it has none.
    pub section: String,
    /// What it is called there.
    pub key: String,
    /// Its value, without secrets.
    pub value: Value,
    /// Who says so.
    pub source: Source,
}

/// Who has given which setting, by its full name: `segment.linger`, or `webhook.0.name`.
#[derive(Clone, Debug, Default)]
pub(super) struct Sources(BTreeMap<String, Source>);

impl Sources {
    /// Those of a file with this text, which is known to be well-formed.
    pub(super) fn of_file(path: &Path, text: &str) -> Sources {
        let mut sources = Sources::default();
        if let Ok(table) = DeTable::parse(text) {
            sources.take(table.get_ref(), "", path, text);
        }
        sources
    }

    /// A variable overrides a setting.
    pub(super) fn override_by(&mut self, key: &str) {
        let name = format!("{VARIABLE_PREFIX}{key}");
        let path = key.to_lowercase().replace("__", ".");
        self.0.insert(path, Source::Variable { name });
    }

    /// Where a setting, or its section, was given; none where it is a default.
    pub(super) fn find(&self, path: &str) -> Option<&Source> {
        let exact = self.0.get(path);
        exact.or_else(|| {
            let within = format!("{path}.");
            let within = self.0.iter().filter(|(key, _)| key.starts_with(&within));
            within
                .map(|(_, source)| source)
                .min_by_key(|source| match source {
                    Source::File { line, .. } => *line,
                    Source::Default | Source::Variable { .. } => usize::MAX,
                })
        })
    }

    fn take(&mut self, table: &DeTable<'_>, prefix: &str, path: &Path, text: &str) {
        for (key, value) in table {
            let name = format!("{prefix}{}", key.get_ref());
            let within = format!("{name}.");
            match value.get_ref() {
                DeValue::Table(table) if key.get_ref() != HEADERS => {
                    self.take(table, &within, path, text);
                }
                DeValue::Array(items) if items.iter().any(is_table) => {
                    for (index, item) in items.iter().enumerate() {
                        if let DeValue::Table(table) = item.get_ref() {
                            self.take(table, &format!("{within}{index}."), path, text);
                        }
                    }
                }
                DeValue::Table(_)
                | DeValue::Array(_)
                | DeValue::String(_)
                | DeValue::Integer(_)
                | DeValue::Float(_)
                | DeValue::Boolean(_)
                | DeValue::Datetime(_) => {
                    let source = Source::File {
                        path: path.to_owned(),
                        line: super::line_of(text, key.span().start),
                    };
                    self.0.insert(name, source);
                }
            }
        }
    }
}

fn is_table(value: &Spanned<DeValue<'_>>) -> bool {
    matches!(value.get_ref(), DeValue::Table(_))
}

/// Every setting, whether given in `table` or not.
pub(super) fn settings(table: &Table, sources: &Sources) -> Vec<Setting> {
    let mut all = parsed(DEFAULTS);
    let optional = parsed(OPTIONAL_DEFAULTS);
    for section in ["ingest", "segment"] {
        for (name, defaults) in optional[section].as_table().into_iter().flatten() {
            let given = table.get(section).and_then(|section| section.get(name));
            if given.is_some()
                && let Some(section) = all.get_mut(section).and_then(Value::as_table_mut)
            {
                section.insert(name.clone(), defaults.clone());
            }
        }
    }
    lay_over(&mut all, table);
    let of_webhook = optional["webhook"].as_table().cloned().unwrap_or_default();
    for webhook in all
        .get_mut("webhook")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Value::Table(given) = webhook {
            let mut whole = of_webhook.clone();
            lay_over(&mut whole, given);
            *given = whole;
        }
    }
    let mut found = Vec::new();
    list(&all, "", &Heading::None, sources, &mut found);
    found
}

fn parsed(text: &str) -> Table {
    text.parse().expect("it is TOML, as the tests know")
}

fn lay_over(under: &mut Table, over: &Table) {
    for (key, value) in over {
        match (under.get_mut(key), value) {
            (Some(Value::Table(under)), Value::Table(over)) if key != HEADERS => {
                lay_over(under, over);
            }
            _ => _ = under.insert(key.clone(), value.clone()),
        }
    }
}

/// How a section is headed.
enum Heading {
    None,
    Table(String),
    Item(String),
}

impl fmt::Display for Heading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Heading::None => Ok(()),
            Heading::Table(name) => write!(f, "[{name}]"),
            Heading::Item(name) => write!(f, "[[{name}]]"),
        }
    }
}

/// First what a section holds itself, then the sections in it.
fn list(
    table: &Table,
    prefix: &str,
    heading: &Heading,
    sources: &Sources,
    found: &mut Vec<Setting>,
) {
    let mut sections = Vec::new();
    for (key, value) in table {
        let path = format!("{prefix}{key}");
        match value {
            Value::Table(inner) if key != HEADERS => {
                sections.push((inner, path.clone(), Heading::Table(path)));
            }
            Value::Array(items) if items.iter().any(Value::is_table) => {
                let items = items.iter().filter_map(Value::as_table).enumerate();
                sections.extend(items.map(|(index, item)| {
                    (item, format!("{path}.{index}"), Heading::Item(path.clone()))
                }));
            }
            Value::Table(_)
            | Value::Array(_)
            | Value::String(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_) => found.push(Setting {
                section: heading.to_string(),
                key: key.clone(),
                value: shown(&path, key, value),
                source: sources.find(&path).cloned().unwrap_or(Source::Default),
            }),
        }
    }
    for (inner, path, heading) in sections {
        list(inner, &format!("{path}."), &heading, sources, found);
    }
}

/// A value as anybody may see it.
fn shown(path: &str, key: &str, value: &Value) -> Value {
    let is_webhook = path.starts_with("webhook.");
    match (value, key) {
        (Value::String(text), "write_key") if !text.is_empty() => key_shown(text),
        (Value::Array(keys), "allowed_write_keys") => {
            let keys = keys.iter().filter_map(Value::as_str);
            Value::Array(keys.map(key_shown).collect())
        }
        (Value::Array(urls), "urls") if is_webhook => {
            let urls = urls.iter().filter_map(Value::as_str);
            Value::Array(urls.map(|url| host_of(url).into()).collect())
        }
        (Value::Table(headers), HEADERS) => {
            let names = headers.keys().cloned();
            Value::Table(names.map(|name| (name, HIDDEN.into())).collect())
        }
        (Value::String(text), _) if text.contains("://") => without_credentials(text).into(),
        (Value::String(text), _) if !text.is_empty() && names_a_secret(key) => HIDDEN.into(),
        _ => value.clone(),
    }
}

fn key_shown(text: &str) -> Value {
    WriteKey::new(text).map_or(HIDDEN.into(), |key| key.to_string().into())
}

/// What is called like this and is neither a file nor an address is hidden, whatever it turns out to be.
fn names_a_secret(key: &str) -> bool {
    let named = ["secret", "token", "password"]
        .iter()
        .any(|word| key.contains(word));
    named && !key.ends_with("_file") && !key.ends_with("_endpoint")
}

/// Where a URL leads, without what may be a token: who calls, the path and the query.
fn host_of(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return HIDDEN.into();
    };
    let end = rest.find(['/', '\\', '?', '#']).unwrap_or(rest.len());
    let (authority, behind) = rest.split_at(end);
    let host = authority.rsplit('@').next().unwrap_or_default();
    let behind = if behind.len() > 1 { "/…" } else { "" };
    format!("{scheme}://{host}{behind}")
}

/// An address without a name and password in it.
fn without_credentials(url: &str) -> String {
    let (address, query) = match url.split_once('?') {
        Some((address, _)) => (address, "?…"),
        None => (url, ""),
    };
    match address.split_once("://") {
        Some((scheme, rest)) if rest.contains('@') => {
            let host = rest.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{HIDDEN}@{host}{query}")
        }
        _ => format!("{address}{query}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    /// The names that a section knows, as its own error lists them.
    fn known(section: &str, given: &str) -> Vec<String> {
        let text = format!("{section}\n{given}\nno_such_setting = 1\n");
        let error = toml::from_str::<Config>(&text).expect_err("there is none");
        let (_, names) = error.message().split_once("expected ").expect("a list");
        let mut names: Vec<_> = names
            .split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect();
        names.sort();
        names
    }

    #[test]
    fn every_setting_that_there_is_is_shown() {
        let given =
            "[ingest.tls]\n[segment.oauth]\n[[webhook]]\nname = \"a\"\nurls = [\"http://a/\"]\n";
        let shown = settings(&parsed(given), &Sources::of_file(Path::new("c"), given));
        for (section, needed) in [
            ("[ingest]", ""),
            ("[ingest.tls]", ""),
            ("[admin]", ""),
            ("[queue]", ""),
            ("[segment]", ""),
            ("[segment.oauth]", ""),
            ("[retry]", ""),
            ("[profiles]", ""),
            ("[[webhook]]", "name = \"a\"\nurls = []"),
            ("[receiver]", ""),
            ("[shutdown]", ""),
            ("[log]", ""),
        ] {
            let mut names: Vec<_> = shown
                .iter()
                .filter(|setting| setting.section == section)
                .map(|setting| setting.key.clone())
                .collect();
            names.sort();
            let mut known = known(section, needed);
            known.retain(|name| name != "tls" && name != "oauth");
            assert_eq!(
                names, known,
                "{section}: packaging/config.toml, or the defaults here"
            );
        }
    }

    #[test]
    fn the_defaults_of_optional_sections_are_those_that_hold() {
        let load = |text: &str| toml::from_str::<Config>(text).expect("it is a configuration");
        let needed = "name = \"a\"\nurls = [\"http://a/\"]\n";
        let with = OPTIONAL_DEFAULTS.replace("[webhook]", &format!("[[webhook]]\n{needed}"));
        let without = format!("[ingest.tls]\n[segment.oauth]\n[[webhook]]\n{needed}");
        assert_eq!(load(&with), load(&without));
    }

    #[test]
    fn what_is_given_twice_is_shown_with_who_wins_and_no_secret_with_either() {
        let text = "data_dir = \"/x\"\n[ingest]\n\nwrite_key = \"secret-ab12\"\nallowed_write_keys = [\n\"secret-ab12\"]\n\
            [segment]\nendpoint = \"https://me:secret@host/p?secret\"\nlinger = \"2s\"\n[[webhook]]\nname = \"a\"\n\
            urls = [\"https://me:secret@host:1/secret\", \"http://host/\"]\n[webhook.headers]\nX-Key = \"secret\"\n";
        let mut sources = Sources::of_file(Path::new("c.toml"), text);
        sources.override_by("SEGMENT__LINGER");
        let found = settings(&parsed(text), &sources);
        let line = |section: &str, key: &str| {
            let setting = found.iter().find(|s| s.section == section && s.key == key);
            let setting = setting.unwrap_or_else(|| panic!("{section} {key}"));
            format!("{} # {}", setting.value, setting.source)
        };
        for (section, key, expected) in [
            ("", "data_dir", "\"/x\" # c.toml:1"),
            ("[ingest]", "write_key", "\"…ab12\" # c.toml:4"),
            ("[ingest]", "allowed_write_keys", "[\"…ab12\"] # c.toml:5"),
            ("[ingest]", "max_body", "\"8 MiB\" # default"),
            ("[segment]", "endpoint", "\"https://…@host/p?…\" # c.toml:8"),
            (
                "[segment]",
                "linger",
                "\"2s\" # environment variable SEGSPOOL_SEGMENT__LINGER",
            ),
            (
                "[[webhook]]",
                "urls",
                "[\"https://host:1/…\", \"http://host\"] # c.toml:12",
            ),
            ("[[webhook]]", "headers", "{ X-Key = \"…\" } # c.toml:13"),
            ("[[webhook]]", "timeout", "\"5s\" # default"),
        ] {
            assert_eq!(line(section, key), expected);
        }
        assert!(!format!("{found:?}").contains("secret\""));
        assert!(!format!("{found:?}").contains("/secret"));
        assert_eq!(
            shown("x.bot_token", "bot_token", &"secret".into()),
            "…".into()
        );
    }
}
