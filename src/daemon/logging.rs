//! The log: to standard error, for people and journald or for machines.

use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogConfig, LogFormat, LogLevel};

/// Begins to log. A second call in one process changes nothing.
pub(super) fn start(config: LogConfig) {
    let level = match config.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // Libraries speak up only when something is wrong; their words are about their own workings.
    let filter = Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("segspool", level);
    let layer = fmt::layer()
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal());
    let registry = tracing_subscriber::registry();
    let _ = match config.format {
        LogFormat::Json => registry
            .with(layer.json().flatten_event(true))
            .with(filter)
            .try_init(),
        // journald stamps each line itself.
        LogFormat::Text if std::env::var_os("JOURNAL_STREAM").is_some() => {
            registry.with(layer.without_time()).with(filter).try_init()
        }
        LogFormat::Text => registry.with(layer).with(filter).try_init(),
    };
}
