//! `segspool check-config`: the settings that would hold, as a configuration file of their own, each with where it comes from. What
//! would keep a daemon from starting with them is found as far as that is possible without listening or writing anywhere.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::EX_CONFIG;
use super::admin::{self, Failure};
use super::serve;
use crate::config::{CREDENTIALS, Config, Setting, credential_name, credentials_handed_over};
use crate::daemon;

/// How far from the left a source stands, where what is before it leaves room.
const SOURCE_COLUMN: usize = 52;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Where systemd has handed over no credentials, as to whoever runs this in a shell, a secret that is named credential:NAME is looked for in \
/etc/segspool/credentials, which takes root, and that is said. The daemon goes by what systemd hands over alone.")]
pub(super) struct Args {
    /// The configuration file; without one, the defaults and SEGSPOOL_SECTION__KEY variables hold
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> ExitCode {
    admin::finish(async {
        let handed_over = credentials_handed_over();
        let credentials = handed_over.as_deref().unwrap_or(Path::new(CREDENTIALS));
        let loaded = serve::variables().and_then(|variables| {
            let variables = variables.into_iter();
            Config::load_explained(args.config.as_deref(), variables, Some(credentials))
        });
        let (config, settings) = loaded.map_err(|error| {
            let message = format!("failed to read the configuration: {error}");
            Failure::new(EX_CONFIG, message)
        })?;
        daemon::check(&config).map_err(|error| Failure::new(EX_CONFIG, error.to_string()))?;
        let mut page = page(&settings);
        if handed_over.is_none() && settings.iter().any(names_credential) {
            page.push_str(&format!(
                "\n# Credentials were looked for in {CREDENTIALS}: systemd hands them to the service, and not to this command.\n"
            ));
        }
        admin::write(page.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    })
}

fn names_credential(setting: &Setting) -> bool {
    setting.value.as_str().and_then(credential_name).is_some()
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
