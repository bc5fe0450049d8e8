//! `segspool stats`: what came, what waits and what went, once or live.

mod view;
mod watch;

use std::process::ExitCode;

use reqwest::Method;

use super::admin::{self, Admin, AdminArgs, Failure, print, print_json};
use super::lanes;
use crate::stats::Snapshot;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Live, until q or Ctrl-C is pressed
    #[arg(long, short)]
    watch: bool,
    /// As JSON: the body of GET /stats
    #[arg(long, conflicts_with = "watch")]
    json: bool,
    /// Only whether the daemon makes progress, as GET /healthz says: exit code 0 where it does. Takes no token
    #[arg(long, conflicts_with_all = ["watch", "json"])]
    health: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

pub(super) fn run(args: &Args) -> ExitCode {
    admin::run(&args.admin, async |admin| {
        if args.health {
            print(&admin.probe("/healthz").await?)?;
            Ok(ExitCode::SUCCESS)
        } else if args.watch {
            watch::watch(&admin).await
        } else {
            once(&admin, args.json).await
        }
    })
}

async fn once(admin: &Admin, json: bool) -> Result<ExitCode, Failure> {
    if json {
        // As the daemon says it, members of later versions included.
        let snapshot: serde_json::Value = admin.ask(Method::GET, "/stats").await?;
        print_json(&snapshot)?;
        return Ok(ExitCode::SUCCESS);
    }
    let snapshot: Snapshot = admin.ask(Method::GET, "/stats").await?;
    for (what, fact) in view::facts(&snapshot) {
        print(&format!("{what:<13}{fact}"))?;
    }
    if !snapshot.lanes.is_empty() {
        print(&format!("\n{}", lanes::in_table(&snapshot.lanes)))?;
    }
    Ok(ExitCode::SUCCESS)
}
