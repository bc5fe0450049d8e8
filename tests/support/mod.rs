//! What the integration tests share: the daemon as a process of its own, and applications that post to it.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod secrets;
pub(crate) mod server;
pub(crate) mod watch;
pub(crate) mod wire;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::Response;
use segspool::stand_in::{Options, StandIn};
use segspool::stats::Snapshot;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// Nothing a test waits for takes longer, on the slowest machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The daemon, as a child process that is killed when this is dropped.
pub(crate) struct Relay {
    child: Child,
    pub(crate) ingest: String,
    /// Every address of the ingest listener, as it says them itself.
    pub(crate) addresses: Vec<String>,
    /// Where it is served over TLS.
    pub(crate) ingest_tls: Option<String>,
    pub(crate) admin: String,
    poster: Poster,
    given: secrets::Given,
    log: Arc<Mutex<Vec<String>>>,
}

impl Relay {
    /// Starts a daemon on free ports with its spool in `data_dir` and Segment at `endpoint`; `settings` are variables of
    /// the environment without their prefix, such as `("SEGMENT__LINGER", "50ms")`. Returns once it is running.
    pub(crate) async fn start(data_dir: &Path, endpoint: &str, settings: &[(&str, &str)]) -> Relay {
        let mut command = Command::new(env!("CARGO_BIN_EXE_segspool"));
        command.arg("serve");
        Relay::start_by(command, data_dir, endpoint, settings).await
    }

    /// As [`Relay::start`], by a command of one's own.
    pub(crate) async fn start_by(
        command: Command,
        data_dir: &Path,
        endpoint: &str,
        settings: &[(&str, &str)],
    ) -> Relay {
        Relay::spawn(with_settings(command, data_dir, endpoint, settings)).await
    }

    /// As [`Relay::start`], of a daemon that may end before it runs: then, what it has logged.
    pub(crate) async fn try_start(
        data_dir: &Path,
        endpoint: &str,
        settings: &[(&str, &str)],
    ) -> Result<Relay, String> {
        Relay::try_spawn(Relay::command(data_dir, endpoint, settings)).await
    }

    /// The command by which [`Relay::start`] starts it, for a daemon that may never be running.
    pub(crate) fn command(data_dir: &Path, endpoint: &str, settings: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_segspool"));
        command.arg("serve").stdin(Stdio::null());
        without_proxy(&mut command);
        with_settings(command, data_dir, endpoint, settings)
    }

    /// Starts a daemon by a command of one's own, which must log JSON.
    pub(crate) async fn spawn(command: Command) -> Relay {
        let started = Relay::try_spawn(command).await;
        started.unwrap_or_else(|log| panic!("the daemon did not start: {log}"))
    }

    async fn try_spawn(mut command: Command) -> Result<Relay, String> {
        without_proxy(&mut command);
        let given = secrets::Given::to(&command);
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the daemon's program is there");
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut lines = follow(&mut child, Arc::clone(&log));
        let running = async {
            while let Some(line) = lines.recv().await {
                let line: Value = serde_json::from_str(&line).unwrap_or_default();
                if line["message"] == "segspool is running" {
                    return Some(line);
                }
            }
            None
        };
        let Some(running) = within(running).await else {
            child.wait().expect("it can be waited for");
            let log = log.lock().expect("no panic under this lock");
            return Err(log.join("\n"));
        };
        let addresses = running["ingest"].as_str().expect("addresses").split(", ");
        let addresses: Vec<_> = addresses.map(str::to_owned).collect();
        let ingest = format!("http://{}", addresses[0]);
        Ok(Relay {
            child,
            ingest: ingest.clone(),
            addresses,
            ingest_tls: running["ingest_tls"].as_str().map(str::to_owned),
            admin: format!("http://{}", running["admin"].as_str().expect("an address")),
            poster: Poster {
                ingest,
                client: client(),
                secrets: Arc::new(Mutex::new(given.secrets())),
            },
            given,
            log,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("the daemon was running");
        self.child.wait().expect("it can be waited for");
    }

    /// Searches whatever it tells an operator for secrets. What a daemon that is gone or too busy does not tell is not searched.
    fn search_for_secrets(&self) {
        self.gather_secrets();
        for path in ["/stats", "/metrics", "/lanes", "/dead-letters", "/nowhere"] {
            let Ok(told) = self.tells(path) else { return };
            self.poster.assert_no_secret_in(&told, path);
        }
    }

    /// The settings may have changed since it started.
    fn gather_secrets(&self) {
        let mut secrets = self
            .poster
            .secrets
            .lock()
            .expect("no panic under this lock");
        secrets.extend(self.given.secrets());
    }

    /// What it answers on its admin listener, head and body.
    fn tells(&self, path: &str) -> std::io::Result<String> {
        let address = self.admin.trim_start_matches("http://");
        let token = self.given.admin_token();
        let authorization = token.map(|token| format!("authorization: Bearer {token}\r\n"));
        let authorization = authorization.unwrap_or_default();
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: {address}\r\n{authorization}connection: close\r\n\r\n"
        )?;
        let mut told = String::new();
        stream.read_to_string(&mut told)?;
        Ok(told)
    }

    /// Asks it to stop and waits until it has.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        self.search_for_secrets();
        self.signal(rustix::process::Signal::TERM);
        self.exit().await
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("the daemon was running");
    }

    /// Waits until it has ended.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        within(async {
            loop {
                if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    /// Everything it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.log
            .lock()
            .expect("no panic under this lock")
            .join("\n")
    }

    pub(crate) async fn stats(&self) -> Snapshot {
        let reply = self
            .poster
            .client
            .get(format!("{}/stats", self.admin))
            .send()
            .await
            .expect("stats");
        let stats = reply.text().await.expect("a body");
        self.poster.assert_no_secret_in(&stats, "/stats");
        serde_json::from_str(&stats).expect("a snapshot")
    }

    /// Asks for the snapshot until it is as wished.
    pub(crate) async fn until(&self, reached: impl Fn(&Snapshot) -> bool) -> Snapshot {
        let begun = std::time::Instant::now();
        loop {
            let stats = within(self.stats()).await;
            if reached(&stats) {
                return stats;
            }
            assert!(begun.elapsed() < PATIENCE, "it took too long: {stats:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Posts a body to a path with a write key.
    pub(crate) async fn post(
        &self,
        path: &str,
        key: &str,
        body: impl Into<reqwest::Body>,
    ) -> Response {
        self.poster.post(path, key, body).await.expect("an answer")
    }

    /// Posts a batch of tracks with these messageIds, which must be accepted.
    pub(crate) async fn track(&self, key: &str, ids: &[String]) {
        assert!(
            self.poster.try_track(key, ids).await,
            "not accepted: {}",
            self.log()
        );
    }

    /// What posts to it, also after it is gone.
    pub(crate) fn poster(&self) -> Poster {
        self.poster.clone()
    }

    /// What `/proc` says of it under `field`, such as `VmHWM`, in bytes.
    pub(crate) fn memory_bytes(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .expect("a living process");
        let line = status
            .lines()
            .find(|line| line.starts_with(field))
            .expect("the field");
        let kib: u64 = line
            .split_whitespace()
            .nth(1)
            .and_then(|n| n.parse().ok())
            .expect("a number");
        kib * 1024
    }
}

/// An application.
#[derive(Clone)]
pub(crate) struct Poster {
    ingest: String,
    client: reqwest::Client,
    /// The write keys that it has used, and what else the daemon must not show.
    secrets: Arc<Mutex<BTreeSet<String>>>,
}

impl Poster {
    /// Nothing that the daemon tells shows a secret.
    fn assert_no_secret_in(&self, told: &str, whence: &str) {
        let secrets = self.secrets.lock().expect("no panic under this lock");
        let shown = secrets.iter().find(|secret| told.contains(&***secret));
        assert!(shown.is_none(), "{shown:?} is shown by {whence}: {told}");
    }

    pub(crate) async fn post(
        &self,
        path: &str,
        key: &str,
        body: impl Into<reqwest::Body>,
    ) -> reqwest::Result<Response> {
        let url = format!("{}{path}", self.ingest);
        if key.len() >= secrets::CHARS_MIN {
            let mut secrets = self.secrets.lock().expect("no panic under this lock");
            secrets.insert(key.to_owned());
        }
        self.client
            .post(url)
            .basic_auth(key, Some(""))
            .body(body)
            .send()
            .await
    }

    /// Posts a batch of tracks with these messageIds; true if it was accepted.
    pub(crate) async fn try_track(&self, key: &str, ids: &[String]) -> bool {
        matches!(self.post("/v1/batch", key, batch(ids)).await, Ok(reply) if reply.status() == 200)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let searched = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            if !std::thread::panicking() {
                self.search_for_secrets();
            }
        }));
        // Whatever was found, no daemon is left behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Err(found) = searched {
            std::panic::resume_unwind(found);
        }
        if !std::thread::panicking() {
            let log = self.log();
            self.poster.assert_no_secret_in(&log, "the log");
            // Of an event nothing is logged either.
            assert!(!log.contains("messageId"), "{log}");
        }
    }
}

/// Tells a daemon where its spool and Segment are, and to be quick.
fn with_settings(
    mut command: Command,
    data_dir: &Path,
    endpoint: &str,
    settings: &[(&str, &str)],
) -> Command {
    command
        .env("SEGSPOOL_DATA_DIR", data_dir)
        .env("SEGSPOOL_INGEST__LISTEN", "[\"127.0.0.1:0\"]")
        .env("SEGSPOOL_ADMIN__LISTEN", "127.0.0.1:0")
        .env("SEGSPOOL_SEGMENT__ENDPOINT", endpoint)
        .env("SEGSPOOL_SEGMENT__LINGER", "20ms")
        .env("SEGSPOOL_RETRY__BASE", "20ms")
        .env("SEGSPOOL_RETRY__MAX", "200ms")
        .env("SEGSPOOL_RETRY__HOLD_PROBE", "200ms")
        .env("SEGSPOOL_QUEUE__MIN_FREE_DISK", "1 MiB")
        .env("SEGSPOOL_LOG__FORMAT", "json")
        .envs(
            settings
                .iter()
                .map(|(key, value)| (format!("SEGSPOOL_{key}"), value)),
        );
    command
}

/// Keeps the machine's proxies from a process, other than those that it is given by name.
fn without_proxy(command: &mut Command) {
    let given: Vec<_> = command
        .get_envs()
        .map(|(name, _)| name.to_owned())
        .collect();
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
        for name in [name.to_owned(), name.to_lowercase()] {
            if !given.iter().any(|given| *given == *name) {
                command.env_remove(name);
            }
        }
    }
}

/// Reads the daemon's log line by line, keeping all and handing each on.
fn follow(child: &mut Child, log: Arc<Mutex<Vec<String>>>) -> mpsc::UnboundedReceiver<String> {
    let stderr = child.stderr.take().expect("standard error is piped");
    let (send, lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            log.lock()
                .expect("no panic under this lock")
                .push(line.clone());
            let _ = send.send(line);
        }
    });
    lines
}

/// A pretend Segment that keeps what it gets.
pub(crate) async fn segment() -> StandIn {
    let options = Options {
        record: true,
        ..Options::default()
    };
    StandIn::start(options).await.expect("a free port")
}

/// Says that a test is skipped for want of `what`, unless it must not be: `SEGSPOOL_REQUIRE_CLIENTS=1`.
pub(crate) fn skip(what: &str, remedy: &str) {
    let required = std::env::var_os("SEGSPOOL_REQUIRE_CLIENTS").is_some_and(|value| value == "1");
    assert!(!required, "{what}: {remedy}");
    // Not eprintln!: the test passes, and what passing tests print is not shown.
    let mut stderr = std::io::stderr();
    let _unheard = writeln!(stderr, "SKIPPED: {what}: {remedy}");
}

/// A place for a spool.
pub(crate) fn spool() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

pub(crate) fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .no_proxy()
        .timeout(PATIENCE)
        .build()
        .expect("a client")
}

/// A future that must end while anybody is patient.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it took too long")
}

/// The messageIds `<prefix>-<from>`, `<prefix>-<from + 1>`, …
pub(crate) fn ids(prefix: &str, range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("{prefix}-{n}")).collect()
}

/// A batch body of one track for each messageId.
pub(crate) fn batch(ids: &[String]) -> String {
    let events = ids.iter().map(|id| {
        json!({"type": "track", "userId": "u", "event": "Test", "messageId": id, "properties": {"n": id}})
    });
    json!({"batch": events.collect::<Vec<_>>(), "sentAt": "2026-01-01T00:00:00Z"}).to_string()
}

/// A body as one gzip stream.
pub(crate) fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(body).expect("to memory");
    encoder.finish().expect("to memory")
}

/// Text of which no compression leaves less than six tenths.
pub(crate) fn noise(seed: u64, len: usize) -> String {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let digits = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from_digit((state >> 40) as u32 % 36, 36).unwrap_or('x')
    });
    digits.take(len).collect()
}
