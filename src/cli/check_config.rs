//! `segspool check-config`: the settings that would hold, as a configuration file of their own, each with where it comes from. What
//! would keep a daemon from starting with them is found as far as that is possible without listening or writing anywhere.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use super::EX_CONFIG;
use super::admin::{self, Failure};
use super::serve;
use crate::config::{Config, Setting};
use crate::daemon;

/// How far from the left a source stands, where what is before it leaves room.
const SOURCE_COLUMN: usize = 52;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file; without one, the defaults and SEGSPOOL_SECTION__KEY variables hold
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> ExitCode {
    admin::finish(async {
        let loaded = serve::variables().and_then(|variables| {
            Config::load_explained(args.config.as_deref(), variables.into_iter())
        });
        let (config, settings) = loaded.map_err(|error| {
            let message = format!("failed to read the configuration: {error}");
            Failure::new(EX_CONFIG, message)
        })?;
        daemon::check(&config).map_err(|error| Failure::new(EX_CONFIG, error.to_string()))?;
        admin::write(page(&settings).as_bytes())?;
        Ok(ExitCode::SUCCESS)
    })
}

fn page(settings: &[Setting]) -> String {
    let mut page = String::new();
    let mut section = "";
    // The number of a webhook shows only in that its keys begin anew.
    let mut last_key = "";
    for setting in settings {
        if setting.section != section || setting.key.as_str() <= last_key {
            page.push_str(&format!("\n{}\n", setting.section));
        }
        (section, last_key) = (&setting.section, &setting.key);
        let line = format!("{} = {}", setting.key, setting.value);
        // Writing to a String does not fail.
        let _ = writeln!(page, "{line:SOURCE_COLUMN$}# {}", setting.source);
    }
    page
}
