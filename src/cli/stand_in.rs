//! `segspool stand-in`: the pretend Segment alone.

use std::net::SocketAddr;
use std::process::ExitCode;

use super::{EX_OSERR, EX_UNAVAILABLE, EX_USAGE, complain};
use crate::stand_in::{Options, StandIn};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where it listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7350")]
    listen: SocketAddr,
    /// Let it listen on an address that is not loopback
    #[arg(long)]
    allow_remote: bool,
    /// Keep the events themselves, for GET /stand-in/events
    #[arg(long)]
    record: bool,
    /// The access token that its Profile API asks for; without it, any will do
    #[arg(long, value_name = "TOKEN")]
    profile_token: Option<String>,
    /// The secret that calls to /hook/NAME are signed with; without it, signatures are not looked at
    #[arg(long, value_name = "SECRET")]
    hook_secret: Option<String>,
    /// Take whatever comes, even beyond Segment's limits
    #[arg(long)]
    lenient: bool,
}

#[allow(
    clippy::print_stdout,
    reason = "the address is what whoever called it waits for"
)]
pub(super) fn run(args: &Args) -> ExitCode {
    if !args.allow_remote && !args.listen.ip().is_loopback() {
        complain(&format_args!(
            "--listen {}: other machines may reach that, and the stand-in lets everybody in; say --allow-remote if that is meant",
            args.listen
        ));
        return ExitCode::from(EX_USAGE);
    }
    let options = Options {
        listen: args.listen,
        allow_remote: args.allow_remote,
        strict: !args.lenient,
        record: args.record,
        profile_token: args.profile_token.clone(),
        hook_secret: args.hook_secret.clone(),
        ..Options::default()
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&error);
            return ExitCode::from(EX_OSERR);
        }
    };
    runtime.block_on(async {
        let stand_in = match StandIn::start(options).await {
            Ok(stand_in) => stand_in,
            Err(error) => {
                complain(&format_args!(
                    "failed to listen on {}: {error}",
                    args.listen
                ));
                return ExitCode::from(EX_UNAVAILABLE);
            }
        };
        println!("the stand-in for Segment listens on {}", stand_in.url());
        // An error says that signals cannot be had; then only a kill ends it.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        ExitCode::SUCCESS
    })
}
