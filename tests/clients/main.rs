//! Real SDKs against the real daemon, with nothing changed but their host: what an application hands to its SDK is what
//! Segment gets, each event once.
//!
//! A client is a script in `tests/clients/<language>/`. It takes the relay's URL and a write key, sends what that
//! folder's `calls` file says, flushes, and prints what must arrive, one JSON object a line; it fails if its SDK
//! reports an error. `tests/clients/install` installs the SDKs. Where that was not done a test says so and passes,
//! unless `SEGSPOOL_REQUIRE_CLIENTS=1`.

#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use jiff::Timestamp;
use segspool::stand_in::{Options, RecordedEvent, StandIn};
use serde_json::value::RawValue;
use support::{Relay, within};
use tempfile::TempDir;

const WRITE_KEY: &str = "clients-test-key";

#[tokio::test(flavor = "multi_thread")]
async fn what_segment_analytics_python_sends_arrives() {
    arrives(Language::Python, "segment_analytics_python.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_segment_analytics_node_sends_arrives() {
    arrives(Language::Node, "segment-analytics-node.mjs").await;
}

async fn arrives(language: Language, script: &str) {
    if !language.is_installed() {
        skip(script);
        return;
    }
    let began = Timestamp::now();
    let options = Options {
        record: true,
        ..Options::default()
    };
    let segment = StandIn::start(options)
        .await
        .expect("a free loopback port can be had");
    let spool = TempDir::new().expect("there is room for a temporary directory");
    let mut relay = Relay::start(spool.path(), &segment.url(), &[]).await;

    let printed = language.run(script, &relay.ingest).await;
    let printed: Vec<Object> = printed
        .lines()
        .map(|line| object(serde_json::from_str(line).expect("a client prints JSON lines")))
        .collect();
    assert!(!printed.is_empty(), "{script} printed nothing");

    let all = printed.len() as u64;
    within(segment.until(|tally| tally.events >= all)).await;
    // What would still come, a duplicate say, comes before the relay is gone.
    assert!(relay.stop().await.success(), "{}", relay.log());

    let tally = segment.tally();
    assert_eq!(tally.events, all, "{tally:?}");
    assert_eq!(tally.distinct_events, all, "{tally:?}");
    assert!(tally.violations.is_empty(), "{tally:?}");
    let delivered = segment.take_events();
    for event in &delivered {
        assert_eq!(event.write_key, WRITE_KEY);
        let sent_at = event.sent_at.as_deref().expect("this would be a violation");
        let sent_at: Timestamp = sent_at.parse().expect("sentAt is a time");
        assert!(began <= sent_at && sent_at <= Timestamp::now(), "{sent_at}");
    }
    compare(&printed, &delivered);
}

/// Every printed event arrived, whole, as one of those delivered. There are as many of these, so nothing else did.
fn compare(printed: &[Object], delivered: &[RecordedEvent]) {
    let delivered: Vec<Object> = delivered
        .iter()
        .map(|recorded| object(&recorded.event))
        .collect();
    for event in &delivered {
        assert!(!event.contains_key("sentAt"), "{event:?}");
    }
    for wanted in printed {
        let arrivals = delivered.iter().filter(|event| holds(event, wanted));
        let arrivals = arrivals.count();
        assert_eq!(arrivals, 1, "{}", what_is_wrong(wanted, &delivered));
    }
}

fn holds(event: &Object, wanted: &Object) -> bool {
    wanted
        .iter()
        .all(|(name, value)| event.get(name) == Some(value))
}

fn what_is_wrong(wanted: &Object, delivered: &[Object]) -> String {
    let id = |event: &Object| event.get("messageId").cloned();
    let Some(nearest) = delivered.iter().find(|event| id(event) == id(wanted)) else {
        return format!("did not arrive once: {wanted:?}");
    };
    let mut wrong = format!("{:?} arrived with", id(wanted));
    for (name, value) in wanted {
        let arrived = nearest.get(name);
        if arrived != Some(value) {
            write!(wrong, "\n{name}: {arrived:?}\ninstead of {value:?}")
                .expect("a String can be written to");
        }
    }
    wrong
}

type Object = BTreeMap<String, Json>;

/// JSON whose numbers are compared as they are spelled, since f64 makes different ones equal.
#[derive(Clone, Debug, PartialEq)]
enum Json {
    Object(Object),
    Array(Vec<Json>),
    String(String),
    /// A number, `true`, `false`, `null`, or a string that no Unicode text can hold.
    Spelled(String),
}

fn json(raw: &RawValue) -> Json {
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'{') => Json::Object(object(raw)),
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).expect("this is an array");
            Json::Array(items.into_iter().map(json).collect())
        }
        Some(b'"') => serde_json::from_str(text).map_or_else(
            |_lone_surrogate| Json::Spelled(text.to_owned()),
            Json::String,
        ),
        _ => Json::Spelled(text.to_owned()),
    }
}

fn object(raw: &RawValue) -> Object {
    let members: BTreeMap<String, &RawValue> =
        serde_json::from_str(raw.get()).expect("this is an object");
    let members = members.into_iter();
    members.map(|(name, raw)| (name, json(raw))).collect()
}

#[derive(Clone, Copy, Debug)]
enum Language {
    Python,
    Node,
}

impl Language {
    /// Whether `tests/clients/install` was run, and its pins are still those of the tree.
    fn is_installed(self) -> bool {
        let pins = match self {
            Self::Python => "requirements.txt",
            Self::Node => "package-lock.json",
        };
        let installed = fs::read(self.installed_in().join(pins));
        let wanted = fs::read(self.scripts_in().join(pins)).expect("the pins are in the tree");
        installed.is_ok_and(|installed| installed == wanted)
    }

    /// Runs a client to its end and returns what it printed.
    async fn run(self, script: &str, relay_url: &str) -> String {
        let mut command = match self {
            Self::Python => {
                let mut python = Command::new(self.installed_in().join("bin/python"));
                // No compiled files in the tree.
                python.arg("-B");
                python
            }
            Self::Node => Command::new("node"),
        };
        let scratch = TempDir::new().expect("there is room for a temporary directory");
        let printed = scratch.path().join("printed");
        command
            .arg(self.scripts_in().join(script))
            .args([relay_url, WRITE_KEY])
            .current_dir(self.installed_in())
            .env("NO_PROXY", "*")
            .stdin(Stdio::null())
            // A file takes any amount without being read meanwhile.
            .stdout(File::create(&printed).expect("the directory is new"));
        let child = command.spawn().expect("the client's language is installed");
        let status = within(Process(child).end()).await;
        assert!(status.success(), "{script}: {status}");
        fs::read_to_string(&printed).expect("clients print UTF-8")
    }

    fn scripts_in(self) -> PathBuf {
        let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
        clients.join(self.folder())
    }

    fn installed_in(self) -> PathBuf {
        // Cargo's target folder is only told by way of a folder in it.
        let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
        scratch.with_file_name("clients").join(self.folder())
    }

    fn folder(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Node => "node",
        }
    }
}

fn skip(script: &str) {
    let required = std::env::var_os("SEGSPOOL_REQUIRE_CLIENTS").is_some_and(|value| value == "1");
    assert!(!required, "{script}: run tests/clients/install first");
    // Not eprintln!: the test passes, and what passing tests print is not shown.
    let mut stderr = io::stderr();
    let _unheard = writeln!(stderr, "SKIPPED: {script}: run tests/clients/install first");
}

/// A child process that does not outlive its test.
struct Process(Child);

impl Process {
    async fn end(&mut self) -> ExitStatus {
        loop {
            if let Some(status) = self.0.try_wait().expect("it can be waited for") {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _already_gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}
