//! The secrets that a daemon is given, gathered from its settings by their names, so that no test has to remember what to search for.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use toml::Value;

/// A shorter one might be part of a word.
pub(crate) const CHARS_MIN: usize = 7;

/// The settings that a daemon was started with.
#[derive(Debug)]
pub(crate) struct Given {
    variables: Vec<(String, String)>,
    config: Option<PathBuf>,
}

impl Given {
    pub(crate) fn to(command: &Command) -> Given {
        let text = |text: &std::ffi::OsStr| text.to_str().map(str::to_owned);
        let variables = command.get_envs();
        let variables = variables.filter_map(|(name, value)| Some((text(name)?, text(value?)?)));
        let mut args = command.get_args().map(OsString::from);
        let config = args.find(|arg| arg == "--config").and(args.next());
        Given {
            variables: variables.collect(),
            config: config.map(PathBuf::from),
        }
    }

    /// What its admin listener asks for, if the settings are in the environment.
    pub(crate) fn admin_token(&self) -> Option<String> {
        let mut variables = self.variables.iter();
        let (_, path) = variables.find(|(name, _)| name == "SEGSPOOL_ADMIN__TOKEN_FILE")?;
        in_file(Path::new(path)).into_iter().next()
    }

    /// Every secret among them as it is now, in the files that they name as well.
    pub(crate) fn secrets(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for (name, value) in &self.variables {
            let name = name.to_lowercase();
            if name.ends_with("_proxy") {
                gather("url", &Value::from(value.as_str()), &mut found);
            }
            if let Some(name) = name.strip_prefix("segspool_") {
                let name = name.rsplit("__").next().unwrap_or(name);
                // A list is written as in TOML.
                let list = toml::from_str::<toml::Table>(&format!("list = {value}"));
                let list = list.ok().and_then(|mut table| table.remove("list"));
                let list = list.filter(Value::is_array);
                let value = list.unwrap_or_else(|| Value::from(value.as_str()));
                gather(name, &value, &mut found);
            }
        }
        let config = self.config.as_ref();
        let config = config.and_then(|path| std::fs::read_to_string(path).ok());
        let mut names = BTreeSet::new();
        if let Some(table) = config.and_then(|text| toml::from_str::<toml::Table>(&text).ok()) {
            // A webhook's name is shown, and a test may call its path the same.
            let webhooks = table.get("webhook").and_then(Value::as_array);
            let shown = webhooks
                .into_iter()
                .flatten()
                .filter_map(|w| w["name"].as_str());
            names.extend(shown.map(str::to_owned));
            gather("", &Value::Table(table), &mut found);
        }
        found.retain(|secret| secret.chars().count() >= CHARS_MIN && !names.contains(secret));
        found
    }
}

/// Gathers the secrets of a setting of that name.
fn gather(name: &str, value: &Value, found: &mut BTreeSet<String>) {
    if let Value::Table(table) = value {
        for (inner, value) in table {
            // Whatever a header is called.
            let inner = if name == "headers" { "secret" } else { inner };
            gather(inner, value, found);
        }
    } else if let Value::Array(values) = value {
        let name = name.strip_suffix('s').unwrap_or(name);
        for value in values {
            gather(name, value, found);
        }
    } else if let Value::String(text) = value {
        match name {
            "url" => found.extend(beyond_the_host(text)),
            "key" => found.extend(in_file(Path::new(text))),
            _ if name.ends_with("_file") => found.extend(in_file(Path::new(text))),
            _ if ["secret", "token", "write_key"]
                .iter()
                .any(|end| name.ends_with(end)) =>
            {
                found.insert(text.clone());
            }
            _ => {}
        }
    }
}

/// What a file holds, line by line: of a PEM file each line is a part of the secret.
fn in_file(path: &Path) -> Vec<String> {
    let content = std::fs::read_to_string(path).unwrap_or_default();
    let lines = content.lines().map(str::trim);
    let lines = lines.filter(|line| !line.starts_with("-----"));
    lines.map(str::to_owned).collect()
}

/// What a URL has besides its scheme and host: the password before, the path and query behind.
fn beyond_the_host(url: &str) -> Vec<String> {
    let (_, rest) = url.split_once("://").unwrap_or(("", url));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let login = authority.rsplit_once('@').map(|(login, _)| login);
    let password = login
        .and_then(|login| login.split_once(':'))
        .map(|(_, p)| p);
    let query = path.split_once('?').map(|(_, query)| query);
    let parts = [password, Some(path), query].into_iter().flatten();
    parts.map(str::to_owned).collect()
}
