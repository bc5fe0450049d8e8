//! `segspool man`: the manual pages, from the same definitions as the arguments.

use std::path::PathBuf;
use std::process::ExitCode;

use clap_mangen::Man;

use super::admin::{self, Failure};
use super::{EX_CANTCREAT, EX_IOERR};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Write segspool.1 and a page for each command into this directory, which must exist
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &Args, command: clap::Command) -> ExitCode {
    admin::finish(async {
        match &args.out {
            Some(dir) => clap_mangen::generate_to(command, dir).map_err(|error| {
                let message = format!("failed to write to {}: {error}", dir.display());
                Failure::new(EX_CANTCREAT, message)
            })?,
            None => {
                let mut page = Vec::new();
                Man::new(command)
                    .render(&mut page)
                    .map_err(|error| Failure::new(EX_IOERR, error.to_string()))?;
                admin::write(&page)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}
