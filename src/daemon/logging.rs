//! The log: to standard error, for people and journald or for machines.

use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;
use tracing::warn;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt, reload};

use crate::config::{LogConfig, LogFormat, LogLevel};

/// Changes how much is logged.
#[derive(Debug)]
pub(super) struct Level(reload::Handle<Targets, tracing_subscriber::Registry>);

impl Level {
    pub(super) fn set(&self, level: LogLevel) {
        if let Err(error) = self.0.reload(filter(level)) {
            warn!(%error, "failed to change the level of the log");
        }
    }
}

fn filter(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // Libraries speak up only when something is wrong; their words are about their own workings.
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("segspool", level)
}

/// Begins to log. A second call in one process changes nothing.
pub(super) fn start(config: LogConfig) -> Level {
    let (filter, handle) = reload::Layer::new(filter(config.level));
    let layer = fmt::layer()
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal());
    let registry = tracing_subscriber::registry().with(filter);
    let _ = match config.format {
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
        // journald stamps each line itself.
        LogFormat::Text if std::env::var_os("JOURNAL_STREAM").is_some() => {
            registry.with(layer.without_time()).try_init()
        }
        LogFormat::Text => registry.with(layer).try_init(),
    };
    Level(handle)
}
