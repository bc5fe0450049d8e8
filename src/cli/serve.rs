//! `segspool serve`: the daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{EX_CONFIG, EX_IOERR, EX_OSERR, EX_SOFTWARE, EX_TEMPFAIL, EX_UNAVAILABLE, complain};
use crate::config::Config;
use crate::daemon::{self, Error};
use crate::queue::OpenError;
use crate::server::BindError;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file; without one, the defaults and SEGSPOOL_SECTION__KEY variables hold
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let file = args.config.clone();
    let load = move || {
        // A variable that is not text is none of ours.
        let variables = std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Config::load(file.as_deref(), variables)
    };
    let config = match load() {
        Ok(config) => config,
        Err(error) => {
            complain(&format_args!("failed to read the configuration: {error}"));
            return ExitCode::from(EX_CONFIG);
        }
    };
    let Err(error) = daemon::run(config, Box::new(load)) else {
        return ExitCode::SUCCESS;
    };
    complain(&error);
    ExitCode::from(match error {
        Error::System(_) => EX_OSERR,
        Error::Bind(BindError::Listen { .. }) => EX_UNAVAILABLE,
        Error::Bind(BindError::Tls(_)) => EX_CONFIG,
        Error::Open { error, .. } => match error {
            OpenError::InUse { .. } => EX_TEMPFAIL,
            OpenError::Format { .. } => EX_CONFIG,
            OpenError::Io(_) => EX_IOERR,
        },
        Error::Setup(_) | Error::Profiles(_) => EX_CONFIG,
        Error::Died(_) => EX_SOFTWARE,
    })
}
