//! Real SDKs against the real daemon, with nothing changed but their host: what an application hands to its SDK is what
//! Segment gets, each event once.
//!
//! A client is a script in a folder beside this file. It takes the relay's URL and a write key, sends what the `calls` file
//! of its language says, flushes, and prints what must arrive, one JSON object a line; it fails if its SDK reports an error.
//! A page in Chromium is driven by such a script too, and so is segspool's own page, the dashboard. The Rust SDK is linked in.
//! `tests/clients/install` installs the others. Where that was not done a test says so and passes, unless `SEGSPOOL_REQUIRE_CLIENTS=1`.

mod compare;
mod dashboard;
mod rust;
#[path = "../support/mod.rs"]
mod support;

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use compare::{compare, lines};
use jiff::Timestamp;
use segspool::stand_in::StandIn;
use serde_json::Value;
use support::{Relay, segment, skip, spool, within};
use tempfile::TempDir;

const WRITE_KEY: &str = "clients-test-key";

const CHROMIUM: &str = "/usr/bin/chromium";

#[tokio::test(flavor = "multi_thread")]
async fn what_segment_analytics_python_sends_arrives() {
    arrives(Language::Python, "segment_analytics_python.py", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_segment_analytics_python_compresses_arrives() {
    arrives(Language::Python, "segment_analytics_python.py", &["gzip"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rudder_sdk_python_sends_arrives() {
    arrives(Language::Python, "rudder_sdk_python.py", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_segment_analytics_node_sends_arrives() {
    arrives(Language::Node, "segment-analytics-node.mjs", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_analytics_node_sends_arrives() {
    arrives(Language::Node, "analytics-node.mjs", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rudder_sdk_node_sends_arrives() {
    arrives(Language::Node, "rudder-sdk-node.mjs", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_segment_crate_sends_one_by_one_arrives() {
    let mut way = Way::new(&[]).await;
    let wanted = rust::send_each(&way.relay.ingest, WRITE_KEY).await;
    way.carried(&printed(&wanted)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_segment_crate_sends_in_batches_arrives() {
    let mut way = Way::new(&[]).await;
    let wanted = rust::send_batches(&way.relay.ingest, WRITE_KEY).await;
    way.carried(&printed(&wanted)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_analytics_next_sends_from_a_page_of_a_listed_origin_arrives() {
    arrives_from_a_page("standard").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_analytics_next_sends_in_batches_from_a_page_of_a_listed_origin_arrives() {
    arrives_from_a_page("batching").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_beacon_from_a_page_of_a_listed_origin_arrives() {
    arrives_from_a_page("beacon").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_arrives_from_a_page_of_an_origin_that_is_not_listed() {
    let page = Page::new("unlisted");
    if !Language::Page.is_installed_for(page.mode) {
        return;
    }
    let mut way = Way::new(&[]).await;
    // It sees to it that the page is answered 403.
    let printed = page.run(&way.relay.ingest).await;
    assert_eq!(printed, "", "nothing is to arrive");
    assert_eq!(way.relay.stats().await.ingest.accepted_events, 0);
    assert!(way.relay.stop().await.success(), "{}", way.relay.log());
    assert_eq!(way.segment.tally().requests, 0);
}

async fn arrives(language: Language, script: &str, more: &[&str]) {
    if !language.is_installed_for(script) {
        return;
    }
    let mut way = Way::new(&[]).await;
    let arguments = [&[way.relay.ingest.as_str(), WRITE_KEY], more].concat();
    let printed = language.run(script, &arguments, Stdio::null()).await;
    way.carried(&printed).await;
}

async fn arrives_from_a_page(mode: &'static str) {
    let page = Page::new(mode);
    if !Language::Page.is_installed_for(mode) {
        return;
    }
    let listed = format!("[\"{}\"]", page.origin);
    let mut way = Way::new(&[("INGEST__CORS_ORIGINS", &listed)]).await;
    let printed = page.run(&way.relay.ingest).await;
    way.carried(&printed).await;
}

fn printed(wanted: &[Value]) -> String {
    let lines: Vec<String> = wanted.iter().map(Value::to_string).collect();
    lines.join("\n")
}

/// A relay, and the Segment behind it.
struct Way {
    began: Timestamp,
    segment: StandIn,
    relay: Relay,
    spool: TempDir,
}

impl Way {
    async fn new(settings: &[(&str, &str)]) -> Self {
        let began = Timestamp::now();
        let segment = segment().await;
        let spool = spool();
        let relay = Relay::start(spool.path(), &segment.url(), settings).await;
        Self {
            began,
            segment,
            relay,
            spool,
        }
    }

    /// Everything that a client printed arrives, once, and nothing else does.
    async fn carried(&mut self, printed: &str) {
        let printed = lines(printed);
        assert!(!printed.is_empty(), "the client printed nothing");
        let all = printed.len() as u64;
        within(self.segment.until(|tally| tally.events >= all)).await;
        // What would still come, a duplicate say, comes before the relay is gone.
        assert!(self.relay.stop().await.success(), "{}", self.relay.log());

        let tally = self.segment.tally();
        assert_eq!(tally.events, all, "{tally:?}");
        assert_eq!(tally.distinct_events, all, "{tally:?}");
        assert!(tally.violations.is_empty(), "{tally:?}");
        let delivered = self.segment.take_events();
        for event in &delivered {
            assert_eq!(event.write_key, WRITE_KEY);
            let sent_at = event.sent_at.as_deref().expect("this would be a violation");
            let sent_at: Timestamp = sent_at.parse().expect("sentAt is a time");
            assert!(
                self.began <= sent_at && sent_at <= Timestamp::now(),
                "{sent_at}"
            );
        }
        compare(&printed, &delivered);
    }
}

/// A page in a browser, which it opens to do what `mode` says.
struct Page {
    mode: &'static str,
    origin: String,
    socket: TcpListener,
}

impl Page {
    /// Binds the page's socket, so that its origin is known before there is a page.
    fn new(mode: &'static str) -> Self {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = socket.local_addr().expect("it is bound");
        Self {
            mode,
            origin: format!("http://{address}"),
            socket,
        }
    }

    async fn run(self, relay_url: &str) -> String {
        let arguments = [relay_url, WRITE_KEY, CHROMIUM, self.mode];
        let socket = OwnedFd::from(self.socket).into();
        Language::Page
            .run("analytics-next.mjs", &arguments, socket)
            .await
    }
}

#[derive(Clone, Copy, Debug)]
enum Language {
    Python,
    Node,
    /// JavaScript that a script of Node.js has Chromium run.
    Page,
}

impl Language {
    /// Whether `tests/clients/install` was run, and its pins are still those of the tree. If not, says that `client` is
    /// skipped.
    fn is_installed_for(self, client: &str) -> bool {
        let pins = match self {
            Self::Python => "python/requirements.txt",
            Self::Node | Self::Page => "node/package-lock.json",
        };
        let name = Path::new(pins).file_name().expect("it is a file");
        let installed = fs::read(self.installed_in().join(name));
        let wanted = fs::read(sources().join(pins)).expect("the pins are in the tree");
        if !installed.is_ok_and(|installed| installed == wanted) {
            skip(client, "run tests/clients/install first");
            return false;
        }
        if matches!(self, Self::Page) && !Path::new(CHROMIUM).exists() {
            skip(client, "install Chromium first");
            return false;
        }
        true
    }

    /// Runs a client to its end and returns what it printed.
    async fn run(self, script: &str, arguments: &[&str], stdin: Stdio) -> String {
        let mut command = match self {
            Self::Python => {
                let mut python = Command::new(self.installed_in().join("bin/python"));
                // No compiled files in the tree.
                python.arg("-B");
                python
            }
            Self::Node | Self::Page => Command::new("node"),
        };
        let folder = match self {
            Self::Python => "python",
            Self::Node => "node",
            Self::Page => "browser",
        };
        let scratch = TempDir::new().expect("there is room for a temporary directory");
        let printed = scratch.path().join("printed");
        command
            .arg(sources().join(folder).join(script))
            .args(arguments)
            .current_dir(self.installed_in())
            .env("NO_PROXY", "*")
            .stdin(stdin)
            // A file takes any amount without being read meanwhile.
            .stdout(File::create(&printed).expect("the directory is new"));
        let child = command.spawn().expect("the client's language is installed");
        let status = within(Process(child).end()).await;
        assert!(status.success(), "{script}: {status}");
        fs::read_to_string(&printed).expect("clients print UTF-8")
    }

    fn installed_in(self) -> PathBuf {
        let folder = match self {
            Self::Python => "python",
            Self::Node | Self::Page => "node",
        };
        // Cargo's target folder is only told by way of a folder in it.
        let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
        scratch.with_file_name("clients").join(folder)
    }
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
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
