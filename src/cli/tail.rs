//! `segspool tail`: events as they are accepted, delivered, refused and rejected, for as long as somebody watches.

use std::process::ExitCode;

use clap::ValueEnum;
use form_urlencoded::Serializer;
use serde::Deserialize;

use super::admin::{self, Admin, AdminArgs, Failure, broken, print};
use super::events::Events;
use super::{EX_TEMPFAIL, complain};
use crate::stats::{Sighting, What};
use crate::words::counted;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only those of this lane
    #[arg(long, value_name = "ID")]
    lane: Option<String>,
    /// Only those of this type
    #[arg(long, value_enum)]
    r#type: Option<Type>,
    /// Only tracks of this name
    #[arg(long, value_name = "NAME")]
    event: Option<String>,
    /// Only those to which this happens
    #[arg(long, value_enum)]
    what: Option<Happening>,
    /// As JSON, one object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Happening {
    Accepted,
    Delivered,
    Refused,
    Rejected,
}

impl Happening {
    fn what(self) -> What {
        match self {
            Happening::Accepted => What::Accepted,
            Happening::Delivered => What::Delivered,
            Happening::Refused => What::Refused,
            Happening::Rejected => What::Rejected,
        }
    }
}

/// What an event may be. A delete is only ever received.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Type {
    Track,
    Identify,
    Page,
    Screen,
    Group,
    Alias,
    Delete,
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Type::Track => "track",
            Type::Identify => "identify",
            Type::Page => "page",
            Type::Screen => "screen",
            Type::Group => "group",
            Type::Alias => "alias",
            Type::Delete => "delete",
        }
    }
}

pub(super) fn run(args: &Args) -> ExitCode {
    admin::run(&args.admin, async |admin| tail(&admin, args).await)
}

async fn tail(admin: &Admin, args: &Args) -> Result<ExitCode, Failure> {
    let what = args.what.map(|happening| happening.what().name());
    let filters = [
        ("lane", args.lane.as_deref()),
        ("type", args.r#type.map(Type::name)),
        ("event", args.event.as_deref()),
        ("what", what),
    ];
    let mut query = Serializer::new(String::new());
    for (name, value) in filters {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    let mut events = Events::of(admin.open(&format!("/tail?{}", query.finish())).await?);
    while let Some(event) = events.next().await? {
        match (&*event.name, args.json) {
            ("", true) => print(&event.data)?,
            ("", false) => print(&line(&parse(&event.data)?))?,
            ("skipped", _) => {
                let Skipped { events } = parse(&event.data)?;
                let were = if events == 1 { "was" } else { "were" };
                complain(&format_args!(
                    "{} {were} left out",
                    counted(events, "event")
                ));
            }
            _ => {}
        }
    }
    Err(Failure::new(EX_TEMPFAIL, "the daemon has stopped"))
}

#[derive(Deserialize)]
struct Skipped {
    events: u64,
}

fn parse<'a, T: Deserialize<'a>>(data: &'a str) -> Result<T, Failure> {
    serde_json::from_str(data).map_err(|error| broken(&error))
}

/// One line for people. What a client chose is shown without its control characters.
fn line(seen: &Sighting) -> String {
    let text = |text: &Option<String>| text.as_deref().unwrap_or("-").escape_debug().to_string();
    let mut line = format!(
        "{:.3} {:<9} {:<9} {:<9} {} {}",
        seen.time,
        seen.what.name(),
        text(&seen.key),
        text(&seen.kind),
        text(&seen.event),
        text(&seen.message_id),
    );
    if let Some(status) = seen.status {
        line.push_str(&format!(" {status}"));
    }
    if let Some(reason) = &seen.reason {
        line.push_str(&format!(" ({})", reason.escape_debug()));
    }
    line
}
