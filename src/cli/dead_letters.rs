//! `segspool dead-letters`: what can never be delivered, and what becomes of it.

use std::io::{self, BufRead, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::admin::{self, Admin, AdminArgs, Failure, print, print_json, table};
use super::{EX_DATAERR, EX_USAGE, file};
use crate::server::LetterView;
use crate::words::counted;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List dead letters, without their events
    List {
        #[command(flatten)]
        which: Which,
        /// How many at most, up to 1,000
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        /// Go on behind this one
        #[arg(long, value_name = "ID")]
        after: Option<String>,
        /// As JSON, with the counts of each lane, code and status
        #[arg(long)]
        json: bool,
    },
    /// Show one dead letter with its event, as JSON
    Show {
        /// Its id
        id: String,
    },
    /// Write dead letters with their events, one JSON object a line
    ///
    /// A file is readable by its owner alone, since it holds what was to be sent.
    Export {
        #[command(flatten)]
        which: Which,
        /// Into a file, which must not exist, instead of standard output
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Send dead letters back through validation into their lanes, with their original messageIds
    ///
    /// What is rejected again stays, with its new reason, and the exit code is 65.
    Replay {
        #[command(flatten)]
        which: Changed,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete dead letters for ever
    Purge {
        #[command(flatten)]
        which: Changed,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// Which dead letters are meant. What is given must all hold.
#[derive(Debug, clap::Args)]
struct Which {
    /// This one
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Those of a lane
    #[arg(long, value_name = "ID")]
    lane: Option<String>,
    /// Those with this code, such as refused
    #[arg(long)]
    code: Option<String>,
    /// Those the destination answered with this status
    #[arg(long)]
    status: Option<u16>,
    /// Those buried at this time or later, such as 2026-11-23T14:00:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Those buried before this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

/// Which are to be changed: somebody has to say.
#[derive(Debug, clap::Args)]
struct Changed {
    #[command(flatten)]
    which: Which,
    /// All of them
    #[arg(long, conflicts_with_all = ["id", "lane", "code", "status", "since", "until"])]
    all: bool,
}

impl Which {
    fn pairs(&self) -> Vec<(&'static str, String)> {
        let status = self.status.map(|status| status.to_string());
        let pairs = [
            ("id", &self.id),
            ("lane", &self.lane),
            ("code", &self.code),
            ("status", &status),
            ("since", &self.since),
            ("until", &self.until),
        ];
        let given = pairs
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.clone()?)));
        given.collect()
    }
}

impl Changed {
    fn pairs(&self) -> Result<Vec<(&'static str, String)>, Failure> {
        let mut pairs = self.which.pairs();
        if self.all {
            pairs.push(("all", "true".into()));
        }
        if pairs.is_empty() {
            let message = "say which dead letters are meant, or --all";
            return Err(Failure::new(EX_USAGE, message));
        }
        Ok(pairs)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct List {
    total: u64,
    bytes: u64,
    groups: Vec<serde_json::Value>,
    letters: Vec<LetterView>,
    next: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Replayed {
    replayed: u64,
    failed_events: u64,
    failed: Vec<Failed>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Failed {
    id: String,
    code: String,
    message: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Purged {
    purged: u64,
}

pub(super) fn run(args: &Args) -> ExitCode {
    admin::run(&args.admin, async |admin| match &args.command {
        Command::List {
            which,
            limit,
            after,
            json,
        } => {
            let mut pairs = which.pairs();
            pairs.extend(limit.map(|limit| ("limit", limit.to_string())));
            pairs.extend(after.clone().map(|after| ("after", after)));
            list(&admin, &pairs, *json).await
        }
        Command::Show { id } => {
            let path = format!("/dead-letters/{}", in_path(id));
            let letter: LetterView = admin.ask(Method::GET, &path).await?;
            print_json(&letter)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Export { which, output } => {
            let path = with_query("/dead-letters/export", &which.pairs());
            export(&admin, &path, output.as_ref()).await
        }
        Command::Replay { which, json } => {
            let path = with_query("/dead-letters/replay", &which.pairs()?);
            replay(&admin, &path, *json).await
        }
        Command::Purge { which, yes, json } => {
            let path = with_query("/dead-letters", &which.pairs()?);
            if !*yes && !confirmed()? {
                return Err(Failure::new(EX_USAGE, "nothing was purged"));
            }
            let purged: Purged = admin.ask(Method::DELETE, &path).await?;
            match json {
                true => print_json(&purged)?,
                false => print(&format!("purged {}", counted(purged.purged, "dead letter")))?,
            }
            Ok(ExitCode::SUCCESS)
        }
    })
}

async fn list(
    admin: &Admin,
    pairs: &[(&'static str, String)],
    json: bool,
) -> Result<ExitCode, Failure> {
    let list: List = admin
        .ask(Method::GET, &with_query("/dead-letters", pairs))
        .await?;
    if json {
        print_json(&list)?;
        return Ok(ExitCode::SUCCESS);
    }
    if list.letters.is_empty() {
        print(&format!("none of {}", counted(list.total, "dead letter")))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = table([
        "ID", "LANE", "KEY", "CODE", "STATUS", "ATTEMPTS", "ACCEPTED", "BURIED",
    ]);
    for letter in &list.letters {
        table.add_row([
            letter.id.clone(),
            letter.lane.clone().unwrap_or_default(),
            letter.key.clone().unwrap_or_default(),
            letter.code.clone(),
            letter
                .status
                .map(|status| status.to_string())
                .unwrap_or_default(),
            letter.attempts.to_string(),
            letter.accepted_at.clone(),
            letter.buried_at.clone(),
        ]);
    }
    print(&table.to_string())?;
    match list.next {
        Some(next) => print(&format!(
            "{} of {}; go on with --after {next}",
            list.letters.len(),
            counted(list.total, "dead letter")
        ))?,
        None => print(&format!(
            "{} of {}",
            list.letters.len(),
            counted(list.total, "dead letter")
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn export(admin: &Admin, path: &str, output: Option<&PathBuf>) -> Result<ExitCode, Failure> {
    match output {
        Some(output) => {
            let mut file = BufWriter::new(file::create_for("--output", output)?);
            admin.copy(path, &mut file).await?;
            file.get_ref().sync_all()?;
        }
        None => admin.copy(path, &mut io::stdout()).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn replay(admin: &Admin, path: &str, json: bool) -> Result<ExitCode, Failure> {
    let replayed: Replayed = admin.ask(Method::POST, path).await?;
    if json {
        print_json(&replayed)?;
    } else {
        print(&format!(
            "replayed {}",
            counted(replayed.replayed, "dead letter")
        ))?;
        if replayed.failed_events > 0 {
            print(&format!("rejected again: {}", replayed.failed_events))?;
        }
        for failed in &replayed.failed {
            print(&format!(
                "{}  {}: {}",
                failed.id, failed.code, failed.message
            ))?;
        }
    }
    Ok(match replayed.failed_events {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::from(EX_DATAERR),
    })
}

/// Asks whoever sits there. Where nobody does, nobody has agreed.
fn confirmed() -> Result<bool, Failure> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        let message = "purging deletes for ever; say --yes if that is meant";
        return Err(Failure::new(EX_USAGE, message));
    }
    write!(io::stderr(), "Delete these dead letters for ever? [y/N] ")?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn with_query(path: &str, pairs: &[(&'static str, String)]) -> String {
    if pairs.is_empty() {
        return path.to_owned();
    }
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(pairs);
    format!("{path}?{}", query.finish())
}

/// What somebody typed, as one segment of a path: the daemon is to say that it is no id.
pub(super) fn in_path(id: &str) -> String {
    form_urlencoded::byte_serialize(id.as_bytes()).collect()
}
