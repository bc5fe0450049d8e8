//! The command line: one file a command. Exit codes follow sysexits(3).

mod admin;
mod check_config;
mod completions;
mod dead_letters;
mod demo;
mod doctor;
mod events;
mod file;
mod import;
mod lanes;
mod man;
mod profile;
mod serve;
mod stand_in;
mod stats;
mod tail;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// A durable local spool for Segment events.
///
/// Applications post to it as they would to Segment. It stores every event on disk before it answers, coalesces the
/// events into Batch calls, and retries until they are delivered.
#[derive(Debug, Parser)]
#[command(name = "segspool", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Serve(serve::Args),
    /// Print the settings as they would hold, each with where it comes from
    ///
    /// Secrets are not shown. The exit code is 78 if a daemon would not start with these settings, as far as that shows without
    /// listening or writing anywhere.
    CheckConfig(check_config::Args),
    /// List, show, export, replay or purge what can never be delivered
    DeadLetters(dead_letters::Args),
    /// List the lanes, pause or resume one
    Lanes(lanes::Args),
    /// Have the running daemon accept events from a file, one JSON object a line
    ///
    /// A line is one event, as it would be posted to /v1/track and its like with its type, or a batch body of an SDK.
    ///
    /// The daemon sets the pace. What cannot be imported is written to FILE.rejected, with line number and reason, and the exit code
    /// is then 65. After Ctrl-C, kill or a crash the same command goes on where it was: FILE.import-state knows. An event without a
    /// messageId gets one made from the file and its line, so that what is sent again is known as the same.
    Import(import::Args),
    /// Print what Segment knows of a user
    Profile(profile::Args),
    /// Show what came, what waits and what went
    Stats(stats::Args),
    /// Show events as they are accepted, delivered, refused and rejected
    ///
    /// A sample of at most 100 a second. Payloads are not shown.
    Tail(tail::Args),
    /// Look at a stopped spool: what waits, and what is damaged
    Doctor(doctor::Args),
    /// Watch it lose nothing while Segment goes down and the relay is killed
    Demo(demo::Args),
    /// Run a pretend Segment that counts what it gets and fails on demand
    ///
    /// It counts every messageId it gets, in batches and, one a call, at http://127.0.0.1:7350/hook/NAME, whatever the name. While it
    /// runs, `curl` makes it fail and shows the counts:
    ///
    ///   curl -X PUT http://127.0.0.1:7350/stand-in/answer -d '{"status":{"code":503}}'
    ///   curl -X PUT http://127.0.0.1:7350/stand-in/answer -d '"ok"'
    ///   curl http://127.0.0.1:7350/stand-in/tally
    ///   curl -X PUT http://127.0.0.1:7350/stand-in/rules -d '[{"when":{"hook":"NAME"},"answer":"hang"}]'
    #[command(verbatim_doc_comment)]
    StandIn(stand_in::Args),
    /// Print what completes this command line in a shell
    ///
    /// Bash, for instance, reads it from /usr/share/bash-completion/completions/segspool.
    Completions(completions::Args),
    /// Print the manual page, or write those of all commands into a directory
    Man(man::Args),
}

/// `EX_USAGE`: the command line is wrong.
const EX_USAGE: u8 = 64;
/// `EX_DATAERR`: some of what was given was rejected, or is something else altogether.
const EX_DATAERR: u8 = 65;
/// `EX_NOINPUT`: what was named is not there.
const EX_NOINPUT: u8 = 66;
/// `EX_UNAVAILABLE`: an address cannot be had, or no daemon answers there.
const EX_UNAVAILABLE: u8 = 69;
/// `EX_SOFTWARE`: a part of the process died.
const EX_SOFTWARE: u8 = 70;
/// `EX_OSERR`: the operating system did not let it begin.
const EX_OSERR: u8 = 71;
/// `EX_CANTCREAT`: a file cannot be made.
const EX_CANTCREAT: u8 = 73;
/// `EX_IOERR`: the disk failed.
const EX_IOERR: u8 = 74;
/// `EX_TEMPFAIL`: another process has the spool, or the daemon cannot do it now; later it may.
const EX_TEMPFAIL: u8 = 75;
/// `EX_PROTOCOL`: the daemon's answer is not one of ours.
const EX_PROTOCOL: u8 = 76;
/// `EX_NOPERM`: the daemon does not let whoever asks in.
const EX_NOPERM: u8 = 77;
/// `EX_CONFIG`: the configuration is wrong.
const EX_CONFIG: u8 = 78;

/// Does what the command line asks for.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // What cannot be printed cannot be reported either.
            let _ = e.print();
            return if e.use_stderr() {
                ExitCode::from(EX_USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::CheckConfig(args) => check_config::run(&args),
        Command::DeadLetters(args) => dead_letters::run(&args),
        Command::Lanes(args) => lanes::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Tail(args) => tail::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::StandIn(args) => stand_in::run(&args),
        Command::Completions(args) => completions::run(&args, Cli::command()),
        Command::Man(args) => man::run(&args, Cli::command()),
    }
}

/// Says on standard error what went wrong.
#[allow(clippy::print_stderr, reason = "a command speaks to whoever called it")]
fn complain(what: &dyn std::fmt::Display) {
    eprintln!("segspool: {what}");
}
