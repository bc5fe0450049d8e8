//! `segspool profile`: what Segment knows of a user, by way of the daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use reqwest::{Response, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use super::admin::{self, Failure, print, print_json, table};
use super::{EX_NOINPUT, EX_NOPERM, EX_PROTOCOL, EX_TEMPFAIL, EX_USAGE, complain};

/// The profile of a user in the space of profiles.space_id.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Whose, as type:value, such as user_id:u1 or email:jane@example.com
    id: String,
    /// What of it
    #[arg(value_enum, default_value_t = Resource::Traits)]
    resource: Resource,
    /// Entries of a page; without it, as many as Segment likes
    #[arg(long, value_name = "NUMBER")]
    limit: Option<u32>,
    /// The page that another one named as the next
    #[arg(long, value_name = "TOKEN")]
    next: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// The daemon's ingest listener
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7346")]
    ingest: String,
    /// A file with the token that the daemon asks its clients for
    #[arg(long, value_name = "FILE")]
    client_token_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Resource {
    Traits,
    Events,
    #[value(alias = "external_ids")]
    ExternalIds,
    #[value(alias = "properties")]
    Metadata,
    Links,
}

impl Resource {
    fn as_str(self) -> &'static str {
        match self {
            Resource::Traits => "traits",
            Resource::Events => "events",
            Resource::ExternalIds => "external_ids",
            Resource::Metadata => "metadata",
            Resource::Links => "links",
        }
    }
}

pub(super) fn run(args: &Args) -> ExitCode {
    admin::finish(async {
        let profile = read(args).await?;
        if args.json {
            print_json(&profile)?;
        } else {
            show(args.resource, &profile)?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn read(args: &Args) -> Result<Value, Failure> {
    let ingest = &*admin::base_url("--ingest", "http://127.0.0.1:7346", &args.ingest)?;
    let id: String =
        percent_encoding::utf8_percent_encode(&args.id, percent_encoding::NON_ALPHANUMERIC)
            .collect();
    let mut query = form_urlencoded::Serializer::new(String::new());
    if let Some(limit) = args.limit {
        query.append_pair("limit", &limit.to_string());
    }
    if let Some(next) = &args.next {
        query.append_pair("next", next);
    }
    let (resource, query) = (args.resource.as_str(), query.finish());
    let mut request = admin::client()?.get(format!("{ingest}/v1/profiles/{id}/{resource}?{query}"));
    if let Some(path) = &args.client_token_file {
        request = request.bearer_auth(admin::read_token(path)?);
    }
    let answer = request
        .send()
        .await
        .map_err(|error| admin::unreachable(&error.without_url(), ingest, "--ingest URL"))?;
    if !answer.status().is_success() {
        return Err(refused(answer, ingest).await);
    }
    if answer
        .headers()
        .get("segspool-cache")
        .is_some_and(|value| value == "stale")
    {
        complain(&"the Profile API does not answer; this is what it said before");
    }
    let body = answer.bytes().await.map_err(|error| admin::gone(&error))?;
    serde_json::from_slice(&body).map_err(|error| admin::broken(&error))
}

async fn refused(answer: Response, ingest: &str) -> Failure {
    #[derive(Deserialize)]
    struct Refusal {
        error: Reason,
    }
    #[derive(Deserialize)]
    struct Reason {
        message: String,
    }
    let status = answer.status();
    let code = match status {
        StatusCode::BAD_REQUEST => EX_USAGE,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => EX_NOPERM,
        StatusCode::NOT_FOUND => EX_NOINPUT,
        StatusCode::TOO_MANY_REQUESTS => EX_TEMPFAIL,
        _ if status.is_server_error() => EX_TEMPFAIL,
        _ => EX_PROTOCOL,
    };
    let body = answer.bytes().await.unwrap_or_default();
    match serde_json::from_slice::<Refusal>(&body) {
        Ok(refusal) => Failure::new(code, refusal.error.message),
        Err(_) => admin::stranger(ingest, status, "ingest listener", "--ingest URL"),
    }
}

fn show(resource: Resource, profile: &Value) -> Result<(), Failure> {
    let entries = |name: &str| profile[name].as_array().cloned().unwrap_or_default();
    let table = match resource {
        Resource::Traits | Resource::Metadata => {
            let mut table = table(["NAME", "VALUE"]);
            let values = profile[resource.as_str()].as_object();
            for (name, value) in values.into_iter().flatten() {
                table.add_row([name.clone(), text(value)]);
            }
            table
        }
        Resource::Events => {
            let mut table = table(["TIME", "EVENT", "MESSAGE ID", "PROPERTIES"]);
            for event in entries("data") {
                let names = ["timestamp", "event", "message_id", "properties"];
                table.add_row(names.map(|name| text(&event[name])));
            }
            table
        }
        Resource::ExternalIds => {
            let mut table = table(["TYPE", "ID", "COLLECTION", "SINCE"]);
            for id in entries("data") {
                let names = ["type", "id", "collection", "created_at"];
                table.add_row(names.map(|name| text(&id[name])));
            }
            table
        }
        Resource::Links => {
            let mut table = table(["COLLECTION", "TYPE", "ID"]);
            for link in entries("data") {
                for id in link["external_ids"].as_array().into_iter().flatten() {
                    let row = [&link["to_collection"], &id["type"], &id["id"]];
                    table.add_row(row.map(text));
                }
            }
            table
        }
    };
    print(&table.to_string())?;
    if profile["cursor"]["has_more"] == true {
        complain(&format_args!(
            "there is more, with --next {}",
            text(&profile["cursor"]["next"])
        ));
    }
    Ok(())
}

/// A value in a table: text as it is, and what is not there as nothing.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.chars().filter(|c| !c.is_control()).collect(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}
