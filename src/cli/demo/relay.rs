//! The relay as a child process: started, waited for, killed, stopped. What it is told and where it is reached outlive it.

use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use reqwest::{Client, Response, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpSocket;
use tokio::signal::unix::{self, SignalKind};
use tokio::time::{sleep, timeout};

use crate::stats::Snapshot;

use super::{Failure, STALLED_AFTER, loopback_client};

/// How often a relay that is starting is asked whether it is ready.
const READY_POLL: Duration = Duration::from_millis(20);
/// Of the relay's log this much is shown.
const LOG_LINES_MAX: usize = 30;

/// What the caller's environment may hold that would change the relay, by how the names begin: its own settings, a
/// service manager's sockets and watchdog, and proxies, which can't reach a stand-in on loopback.
const FOREIGN_VARIABLES: [&str; 9] = [
    "SEGSPOOL_",
    "RUST_LOG",
    "NOTIFY_SOCKET",
    "WATCHDOG_",
    "LISTEN_",
    "http_proxy",
    "HTTP_PROXY",
    "all_proxy",
    "ALL_PROXY",
];

/// Everything of the relay that stays when its process ends: configuration, spool, log and addresses.
#[derive(Debug)]
pub(super) struct Installation {
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    ingest: Port,
    admin: Port,
    client: Client,
}

impl Installation {
    /// Chooses two free ports, and writes the configuration into `dir`.
    pub(super) fn create(dir: &Path, segment_url: &str) -> Result<Installation, Failure> {
        let failed = |error| Failure(format!("the relay can't be set up: {error}."));
        let installation = Installation {
            program: std::env::current_exe().map_err(failed)?,
            config: dir.join("config.toml"),
            log: dir.join("relay.log"),
            ingest: Port::reserve().map_err(failed)?,
            admin: Port::reserve().map_err(failed)?,
            client: loopback_client()?,
        };
        let config = installation.configuration(&dir.join("spool"), segment_url);
        fs::write(&installation.config, config).map_err(failed)?;
        Ok(installation)
    }

    /// Batches leave sooner and are tried again sooner than by default, because the whole show is over in half a minute;
    /// and a small temporary file system is room enough.
    fn configuration(&self, data_dir: &Path, segment_url: &str) -> String {
        // A string of JSON is a string of TOML.
        let data_dir = serde_json::Value::from(data_dir.to_string_lossy());
        let (ingest, admin) = (self.ingest.address, self.admin.address);
        format!(
            r#"data_dir = {data_dir}
[ingest]
listen = ["{ingest}"]
[admin]
listen = "{admin}"
[queue]
min_free_disk = "16 MiB"
[segment]
endpoint = "{segment_url}"
linger = "250ms"
[retry]
base = "100ms"
max = "1s"
"#
        )
    }

    /// Where applications post to, as a base URL.
    pub(super) fn ingest_url(&self) -> String {
        format!("http://{}", self.ingest.address)
    }

    /// Starts the relay, and returns once it is ready.
    pub(super) async fn start(&self) -> Result<Relay<'_>, Failure> {
        let failed = |error: io::Error| Failure(format!("the relay can't be started: {error}."));
        let mut relay = Relay {
            // Before there is a process, so that its end can't be missed.
            ends: unix::signal(SignalKind::child()).map_err(failed)?,
            process: self.spawn().map_err(failed)?,
            installation: self,
        };
        let ready = timeout(STALLED_AFTER, self.until_ready());
        let unready = |_elapsed| {
            self.blame(&format!(
                "the relay was not ready within {STALLED_AFTER:?} of its start."
            ))
        };
        relay
            .outlives(async { ready.await.map_err(unready) })
            .await?;
        Ok(relay)
    }

    fn spawn(&self) -> io::Result<Child> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        command.arg("serve").arg("--config").arg(&self.config);
        command.stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        let names = std::env::vars_os().map(|(name, _value)| name);
        let foreign = names.filter(|name| {
            let mut prefixes = FOREIGN_VARIABLES.iter();
            prefixes.any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
        });
        for name in foreign {
            command.env_remove(name);
        }
        command.spawn()
    }

    async fn until_ready(&self) {
        loop {
            // Refused connections are what a start looks like from outside.
            let answer = self.ask("/readyz").await;
            if answer.is_ok_and(|answer| answer.status() == StatusCode::OK) {
                return;
            }
            sleep(READY_POLL).await;
        }
    }

    /// What the relay counts.
    pub(super) async fn stats(&self) -> Result<Snapshot, Failure> {
        let failed =
            |error: &dyn Error| self.blame(&format!("the relay's stats can't be read: {error}."));
        let answer = self.ask("/stats").await.map_err(|error| failed(&error))?;
        let body = answer.bytes().await.map_err(|error| failed(&error))?;
        serde_json::from_slice(&body).map_err(|error| failed(&error))
    }

    async fn ask(&self, path: &str) -> reqwest::Result<Response> {
        let url = format!("http://{}{path}", self.admin.address);
        self.client.get(url).send().await
    }

    /// A failure that is the relay's: the sentence and the end of the relay's log.
    fn blame(&self, sentence: &str) -> Failure {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let shown = lines[lines.len().saturating_sub(LOG_LINES_MAX)..].join("\n  ");
        if shown.is_empty() {
            return Failure(format!("{sentence} It wrote no log."));
        }
        Failure(format!("{sentence} Its log ends with\n  {shown}"))
    }
}

/// A running relay. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Relay<'a> {
    process: Child,
    ends: unix::Signal,
    installation: &'a Installation,
}

impl Relay<'_> {
    /// Does `work`, which has failed once the relay's process ends.
    pub(super) async fn outlives<T>(
        &mut self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            done = work => done,
            status = self.ended() => {
                let sentence = format!("the relay ended by itself ({}).", status?);
                Err(self.installation.blame(&sentence))
            }
        }
    }

    /// Kills it with SIGKILL, which leaves it no moment to save anything.
    pub(super) async fn kill(mut self) -> Result<(), Failure> {
        self.process
            .kill()
            .map_err(|error| Failure(format!("the relay can't be killed: {error}.")))?;
        self.ended().await.map(|_killed| ())
    }

    /// Asks it to stop with SIGTERM, and returns once it has.
    pub(super) async fn stop(mut self) -> Result<(), Failure> {
        kill_process(Pid::from_child(&self.process), Signal::TERM)
            .map_err(|error| Failure(format!("the relay can't be asked to stop: {error}.")))?;
        let sentence = match timeout(STALLED_AFTER, self.ended()).await {
            Ok(status) => {
                let status = status?;
                if status.success() {
                    return Ok(());
                }
                format!("the relay did not stop as it should ({status}).")
            }
            Err(_elapsed) => format!("the relay did not stop within {STALLED_AFTER:?} of SIGTERM."),
        };
        Err(self.installation.blame(&sentence))
    }

    async fn ended(&mut self) -> Result<ExitStatus, Failure> {
        loop {
            let status = self
                .process
                .try_wait()
                .map_err(|error| Failure(format!("the relay can't be watched: {error}.")))?;
            if let Some(status) = status {
                return Ok(status);
            }
            self.ends.recv().await;
        }
    }
}

impl Drop for Relay<'_> {
    fn drop(&mut self) {
        // Both do nothing to a process that has ended, and nobody is left to be told of anything else.
        let _killed = self.process.kill();
        let _status = self.process.wait();
    }
}

/// A port that stays the relay's while no relay runs.
#[derive(Debug)]
struct Port {
    address: SocketAddr,
    // Bound and never listening, so that connections are refused and the relay can still listen; and so that no other
    // process is given the port, nor an application that would then be talking to itself.
    _reserved: TcpSocket,
}

impl Port {
    fn reserve() -> io::Result<Port> {
        let socket = TcpSocket::new_v4()?;
        // Only then may the relay bind it as well.
        socket.set_reuseaddr(true)?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        Ok(Port {
            address: socket.local_addr()?,
            _reserved: socket,
        })
    }
}
