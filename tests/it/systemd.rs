//! The daemon under systemd's protocols: what it says of itself, the watchdog, and the sockets it is handed.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use segspool::stand_in::Answer;
use serde_json::json;

use crate::support::{PATIENCE, Relay, ids, segment, spool, within};

/// What stands for systemd: the socket that the daemon reports to.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    fn new(dir: &Path) -> Manager {
        let socket = UnixDatagram::bind(dir.join("notify")).expect("a socket");
        let manager = Manager { socket };
        manager.be_patient();
        manager
    }

    /// A daemon that reports here.
    async fn start(&self, dir: &Path, endpoint: &str, watchdog: Option<Duration>) -> Relay {
        let mut command = Command::new(env!("CARGO_BIN_EXE_segspool"));
        command
            .arg("serve")
            .env("NOTIFY_SOCKET", dir.join("notify"));
        if let Some(granted) = watchdog {
            command.env("WATCHDOG_USEC", granted.as_micros().to_string());
        }
        let settings = [("SHUTDOWN__DRAIN", "60s")];
        Relay::start_by(command, &dir.join("spool"), endpoint, &settings).await
    }

    /// The next message, a line for each thing said.
    fn next(&self) -> Vec<String> {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).expect("a message");
        let text = std::str::from_utf8(&message[..length]).expect("text");
        text.lines().map(str::to_owned).collect()
    }

    /// Reads on until something of that beginning is said, and returns it.
    fn until(&self, beginning: &str) -> String {
        loop {
            let said = self.next().into_iter();
            if let Some(line) = said.into_iter().find(|line| line.starts_with(beginning)) {
                return line;
            }
        }
    }

    /// Whether nothing of that beginning is said for so long.
    fn is_silent(&self, beginning: &str, time: Duration) -> bool {
        let end = std::time::Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return true;
            }
            self.socket.set_read_timeout(Some(left)).expect("above 0");
            let mut message = [0; 4096];
            let Ok(length) = self.socket.recv(&mut message) else {
                continue;
            };
            if message[..length].starts_with(beginning.as_bytes()) {
                return false;
            }
        }
    }

    fn be_patient(&self) {
        let set = self.socket.set_read_timeout(Some(PATIENCE));
        set.expect("a time above 0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told_of_the_start_a_reload_and_the_stop_in_order() {
    let (dir, segment) = (spool(), segment().await);
    let manager = Manager::new(dir.path());
    let mut relay = manager.start(dir.path(), &segment.url(), None).await;
    assert_eq!(manager.next(), ["READY=1"]);
    assert_eq!(manager.next(), ["STATUS=Accepting; nothing waits"]);

    relay.signal(Signal::HUP);
    let reloading = manager.next();
    assert_eq!(reloading[0], "RELOADING=1");
    assert!(reloading[1].starts_with("MONOTONIC_USEC="), "{reloading:?}");
    assert_eq!(manager.next(), ["READY=1"]);

    segment.answer(Answer::status(401));
    relay.track("KEY12345", &ids("e", 0..3)).await;
    let trouble = manager.until("STATUS=Accepting; 3 events wait");
    assert!(trouble.contains("segment …2345 held: "), "{trouble}");
    assert!(!trouble.contains("KEY12345"), "{trouble}");

    relay.signal(Signal::TERM);
    manager.until("STOPPING=1");
    // A stop takes as long as shutdown.drain says, whatever TimeoutStopSec is.
    manager.until("EXTEND_TIMEOUT_USEC=");
    manager.until("STATUS=Stopping: delivering what waits; 3 events wait");
    segment.answer(Answer::Ok);
    assert!(relay.exit().await.success(), "{}", relay.log());
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::print_stdout, reason = "a test that is skipped says so")]
async fn the_watchdog_is_fed_only_while_the_writer_and_delivery_get_on() {
    const GRANTED: Duration = Duration::from_millis(800);
    // What hangs is a sync: that of a volume, for the writer, and that of the dead letters, for delivery.
    for stuck in ["the writer", "delivery"] {
        let (dir, segment) = (spool(), segment().await);
        let manager = Arc::new(Manager::new(dir.path()));
        let mut relay = manager
            .start(dir.path(), &segment.url(), Some(GRANTED))
            .await;
        for _ in 0..3 {
            manager.until("WATCHDOG=1");
        }
        let of_delivery = stuck == "delivery";
        if of_delivery {
            segment.answer(Answer::status(503));
            relay.track("KEY12345", &ids("refused", 0..1)).await;
        }
        let Some(mut strace) = hold_up_syncs(&relay) else {
            println!("SKIPPED: strace is not installed, or may not attach to a process here");
            return;
        };
        let posted = async {
            if of_delivery {
                segment.answer(Answer::status(400));
            } else {
                relay.track("KEY12345", &ids("e", 0..1)).await;
            }
        };
        let watching = tokio::task::spawn_blocking({
            let manager = Arc::clone(&manager);
            move || {
                let words = manager.until(&format!("STATUS=Stuck: {stuck} "));
                assert!(words.contains("at the same work for"), "{words}");
                assert!(
                    manager.is_silent("WATCHDOG=1", GRANTED * 2),
                    "the watchdog is fed while {stuck} is stuck"
                );
                manager.be_patient();
                strace.kill().expect("it was running");
                strace.wait().expect("it can be waited for");
            }
        });
        let ((), watched) = tokio::join!(posted, watching);
        watched.expect("no panic");
        // As soon as it gets on again, so it says.
        manager.until("WATCHDOG=1");
        relay.until(|stats| stats.queue.events == 0).await;
        assert!(relay.stop().await.success(), "{}", relay.log());
    }
}

/// Holds up each sync of the daemon, from now on and for longer than the test takes.
fn hold_up_syncs(relay: &Relay) -> Option<Child> {
    let mut strace = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync"])
        .args(["-e", "inject=fdatasync:delay_enter=100000000"])
        .args(["-p", &relay.pid().to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let threads = format!("/proc/{}/task", relay.pid());
    loop {
        let tasks = std::fs::read_dir(&threads).expect("the daemon runs");
        let untraced = tasks.filter_map(Result::ok).filter(|task| {
            let status = std::fs::read_to_string(task.path().join("status"));
            status.is_ok_and(|status| status.contains("TracerPid:\t0"))
        });
        if untraced.count() == 0 {
            return Some(strace);
        }
        if strace.try_wait().expect("it can be waited for").is_some() {
            return None;
        }
        thread::yield_now();
    }
}

const REQUESTS: usize = 1000;
const RESTARTS: usize = 10;

/// Holds the sockets, as a socket unit does, and starts the daemon on them again whenever it has ended.
const SUPERVISOR: &str = r#"
while [ ! -e "$HOME/over" ]; do
    ( echo "$BASHPID" > "$HOME/pid"; LISTEN_PID=$BASHPID exec "$SEGSPOOL" serve ) || exit 1
done
"#;

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::print_stdout, reason = "a test that is skipped says so")]
async fn ten_restarts_behind_sockets_of_systemd_refuse_none_of_1000_requests_and_lose_none() {
    let (dir, segment) = (spool(), segment().await);
    let unix = dir.path().join("ingest.sock");
    let address = free_address();
    let Some(supervisor) = activate(dir.path(), address, &unix, &segment.url()) else {
        println!("SKIPPED: systemd-socket-activate is not installed");
        return;
    };
    let (answered, answers) = mpsc::channel();
    // Half of them by TCP, half by the Unix socket, each on a connection of its own.
    for poster in 0..4 {
        let (answered, unix) = (answered.clone(), unix.clone());
        thread::spawn(move || {
            for n in (0..REQUESTS).filter(|n| n % 4 == poster) {
                let answer = if n % 2 == 0 {
                    TcpStream::connect(address).and_then(|stream| post(stream, n))
                } else {
                    UnixStream::connect(&unix).and_then(|stream| post(stream, n))
                };
                // Nobody listens any more where the test has failed.
                let _ = answered.send(answer);
            }
        });
    }
    drop(answered);
    let collecting = tokio::task::spawn_blocking({
        let home = dir.path().to_owned();
        move || {
            let mut restarted = BTreeSet::new();
            for (count, answer) in (1..).zip(answers) {
                let answer = answer.expect("no request is refused");
                assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
                if count % (REQUESTS / (RESTARTS + 1)) == 0 && restarted.len() < RESTARTS {
                    restarted.insert(end(&home));
                }
            }
            std::fs::write(home.join("over"), "").expect("it can be written");
            end(&home);
            restarted.len()
        }
    });
    let restarts = within(collecting).await.expect("no panic");
    assert_eq!(restarts, RESTARTS, "as many processes were ended");
    let ended = tokio::task::spawn_blocking(move || supervisor.wait_with_output());
    let output = within(ended).await.expect("no panic").expect("an output");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let relay = Relay::start(&dir.path().join("spool"), &segment.url(), &[]).await;
    relay.until(|stats| stats.queue.events == 0).await;
    assert_eq!(segment.tally().distinct_events, REQUESTS as u64);
}

/// Has systemd's own program listen, and the supervisor started with the first connection.
fn activate(home: &Path, address: SocketAddr, unix: &Path, endpoint: &str) -> Option<Child> {
    let mut command = Command::new("systemd-socket-activate");
    command.arg(format!("--listen={address}"));
    command.arg(format!("--listen={}", unix.display()));
    command.arg("--fdname=ingest:ingest");
    for (name, value) in [
        ("HOME", home.to_str().expect("text")),
        ("SEGSPOOL", env!("CARGO_BIN_EXE_segspool")),
        (
            "SEGSPOOL_DATA_DIR",
            home.join("spool").to_str().expect("text"),
        ),
        ("SEGSPOOL_ADMIN__LISTEN", "127.0.0.1:0"),
        ("SEGSPOOL_SEGMENT__ENDPOINT", endpoint),
        ("SEGSPOOL_SEGMENT__LINGER", "20ms"),
        ("SEGSPOOL_QUEUE__MIN_FREE_DISK", "1 MiB"),
    ] {
        command.arg(format!("--setenv={name}={value}"));
    }
    command.args(["/bin/bash", "-c", SUPERVISOR]);
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().ok()?;
    // It listens once its sockets are there; a connection before that is refused.
    while !unix.exists() {
        thread::yield_now();
    }
    Some(child)
}

/// Ends the daemon that runs now, and returns its process.
fn end(home: &Path) -> i32 {
    let pid = std::fs::read_to_string(home.join("pid")).expect("the supervisor has written it");
    let pid: i32 = pid.trim().parse().expect("a number");
    kill_process(Pid::from_raw(pid).expect("above 0"), Signal::TERM).expect("it runs");
    pid
}

/// One event on a connection of its own. Returns the whole answer.
fn post(mut stream: impl Read + Write, n: usize) -> std::io::Result<String> {
    let event =
        json!({"writeKey": "KEY12345", "userId": "u", "event": "E", "messageId": format!("m{n}")});
    let event = event.to_string();
    let length = event.len();
    write!(
        stream,
        "POST /v1/track HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{event}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address")
}

#[test]
fn a_socket_that_cannot_be_used_is_named_with_the_reason() {
    let dir = spool();
    for (names, expected) in [
        (
            "ingest:ingest-tls",
            "the socket `ingest-tls` that systemd handed over: a Unix socket cannot be used for it",
        ),
        (
            "admin:admin",
            "the socket `admin` that systemd handed over: a Unix socket cannot be used for it",
        ),
    ] {
        let unix = dir.path().join(names);
        let mut command = Command::new("systemd-socket-activate");
        command
            .arg(format!("--listen={}", free_address()))
            .arg(format!("--listen={}", unix.display()))
            .arg(format!("--fdname={names}"))
            .arg(format!(
                "--setenv=SEGSPOOL_DATA_DIR={}",
                dir.path().display()
            ))
            .args([env!("CARGO_BIN_EXE_segspool"), "serve"])
            .stderr(Stdio::piped());
        let Ok(child) = command.spawn() else {
            return;
        };
        while !unix.exists() {
            thread::yield_now();
        }
        let _first = UnixStream::connect(&unix).expect("it listens");
        let output = child.wait_with_output().expect("an output");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}
