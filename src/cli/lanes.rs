//! `segspool lanes`: what the lanes do, and an operator's hand on one.

use std::process::ExitCode;

use comfy_table::Table;
use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::admin::{self, Admin, AdminArgs, Failure, print, print_json, table};
use crate::stats::LaneSnapshot;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the lanes, the one with most events first
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Send nothing of a lane until it is resumed, also after a restart
    Pause {
        /// The lane's id
        id: String,
    },
    /// Let a lane go on at once, whatever it was waiting for
    Resume {
        /// The lane's id
        id: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Lanes {
    lanes: Vec<LaneSnapshot>,
}

pub(super) fn run(args: &Args) -> ExitCode {
    admin::run(&args.admin, async |admin| match &args.command {
        Command::List { json } => list(&admin, *json).await,
        Command::Pause { id } => hand(&admin, id, "pause").await,
        Command::Resume { id } => hand(&admin, id, "resume").await,
    })
}

async fn list(admin: &Admin, json: bool) -> Result<ExitCode, Failure> {
    let lanes: Lanes = admin.ask(Method::GET, "/lanes").await?;
    if json {
        print_json(&lanes)?;
    } else if lanes.lanes.is_empty() {
        print("there are no lanes")?;
    } else {
        show(&lanes.lanes)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn hand(admin: &Admin, id: &str, hand: &str) -> Result<ExitCode, Failure> {
    let path = format!("/lanes/{}/{hand}", super::dead_letters::in_path(id));
    let lane: LaneSnapshot = admin.ask(Method::POST, &path).await?;
    show(&[lane])?;
    Ok(ExitCode::SUCCESS)
}

fn show(lanes: &[LaneSnapshot]) -> Result<(), Failure> {
    print(&in_table(lanes).to_string())
}

/// The lanes, a line each.
pub(super) fn in_table(lanes: &[LaneSnapshot]) -> Table {
    let mut table = table([
        "ID",
        "DESTINATION",
        "KEY",
        "STATE",
        "EVENTS",
        "DELIVERED",
        "WHY",
    ]);
    for lane in lanes {
        table.add_row([
            lane.id.clone(),
            lane.destination.clone(),
            lane.key.clone(),
            lane.state.name().to_owned(),
            lane.events.to_string(),
            lane.delivered_events.to_string(),
            lane.reason.clone().unwrap_or_default(),
        ]);
    }
    table
}
