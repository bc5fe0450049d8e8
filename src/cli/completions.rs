//! `segspool completions`: what completes the command line in a shell, from the same definitions as its arguments.

use std::process::ExitCode;

use clap_complete::Shell;

use super::admin;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// For which shell
    shell: Shell,
}

pub(super) fn run(args: &Args, mut command: clap::Command) -> ExitCode {
    admin::finish(async {
        let mut script = Vec::new();
        clap_complete::generate(args.shell, &mut command, "segspool", &mut script);
        admin::write(&script)?;
        Ok(ExitCode::SUCCESS)
    })
}
