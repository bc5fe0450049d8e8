//! What an operator sees in a terminal: `segspool stats`, live in tmux as well, and `segspool tail`.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::dead_letters::{segspool, text};
use crate::support::{Relay, ids, segment, skip, spool, within};

const KEY: &str = "KEY12345";

#[tokio::test(flavor = "multi_thread")]
async fn stats_are_shown_as_a_table_and_as_json() {
    let (dir, segment) = (spool(), segment().await);
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    relay.track(KEY, &ids("e", 0..3)).await;
    relay.until(|stats| stats.delivery.events == 3).await;
    let output = segspool(&relay.admin, &["stats"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    let row = |name: &str| {
        let line = shown
            .lines()
            .find(|line| line.trim_start().starts_with(name));
        line.unwrap_or_else(|| panic!("{name}: {shown}"))
    };
    assert!(row("daemon").contains("running"), "{shown}");
    assert!(row("accepted").contains("3 events"), "{shown}");
    assert!(row("delivered").contains("3 events in 1 call,"), "{shown}");
    assert!(row("done").contains("nothing waits"), "{shown}");
    assert!(shown.contains("…2345"), "{shown}");
    assert!(!shown.contains(KEY), "{shown}");

    let output = segspool(&relay.admin, &["stats", "--json"]);
    let stats: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(stats["delivery"]["events"], 3);

    let output = segspool(&relay.admin, &["stats", "--watch"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(
        said.contains("needs a terminal") && said.lines().count() == 1,
        "{said}"
    );
}

/// The health check of a container: no shell there, no curl, and no token.
#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_by_the_exit_code() {
    let (dir, segment) = (spool(), segment().await);
    let token_file = dir.path().join("token");
    fs::write(&token_file, "letmein").expect("written");
    let settings = [("ADMIN__TOKEN_FILE", token_file.to_str().expect("text"))];
    let mut relay = Relay::start(dir.path(), &segment.url(), &settings).await;
    let health = |admin: &str| {
        let output = segspool(admin, &["stats", "--health"]);
        let said = text(&output.stdout).to_owned() + text(&output.stderr);
        (output.status.code(), said)
    };
    assert_eq!(health(&relay.admin), (Some(0), "ok\n".to_owned()));
    assert!(relay.stop().await.success(), "{}", relay.log());
    let (code, said) = health(&relay.admin);
    assert!(
        code == Some(69) && said.contains("no daemon answers"),
        "{said}"
    );

    for (answer, code, expected) in [
        ("503 Service Unavailable", 75, "the writer has been stuck"),
        ("404 Not Found", 76, "is no daemon's admin listener"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let body = "the writer has been stuck for 31 s\n";
        let answer = format!(
            "HTTP/1.1 {answer}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answering = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let _ = stream.read(&mut [0; 1024]).expect("a request");
            stream.write_all(answer.as_bytes()).expect("sent");
        });
        let (ended_with, said) = health(&url);
        assert!(
            ended_with == Some(code) && said.contains(expected),
            "{said}"
        );
        answering.join().expect("no panic");
    }
}

/// A terminal of 110 columns and 30 lines in which a command runs, on a tmux server of its own.
struct Terminal {
    socket: String,
}

impl Terminal {
    fn start(dir: &std::path::Path, command: &str) -> Terminal {
        let socket = dir.join("tmux").display().to_string();
        let terminal = Terminal { socket };
        // What it ended with stays to be read.
        let command = format!("{command}; echo ended with $?; exec cat");
        let size = ["-x", "110", "-y", "30"];
        let started = terminal.tmux(&[&["new-session", "-d"][..], &size, &[&command]].concat());
        assert!(started.status.success(), "{}", text(&started.stderr));
        terminal
    }

    fn tmux(&self, args: &[&str]) -> Output {
        let mut tmux = Command::new("tmux");
        tmux.args(["-f", "/dev/null", "-S", &self.socket])
            .args(args);
        tmux.env("LC_ALL", "C.UTF-8").output().expect("tmux runs")
    }

    /// Waits until the screen is as wished, and returns it.
    async fn until(&self, wished: impl Fn(&str) -> bool) -> String {
        within(async {
            loop {
                let screen = self.tmux(&["capture-pane", "-p"]).stdout;
                if wished(text(&screen)) {
                    return text(&screen).to_owned();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_view_moves_as_the_daemon_works_says_when_it_is_gone_and_ends_when_told() {
    if Command::new("tmux").arg("-V").output().is_err() {
        return skip("tmux is not there", "install Debian's tmux");
    }
    let (dir, segment, own) = (spool(), segment().await, spool());
    let mut relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let program = env!("CARGO_BIN_EXE_segspool");
    let command = format!("{program} stats --watch --admin {}", relay.admin);
    let terminal = Terminal::start(own.path(), &command);
    let empty = terminal
        .until(|screen| screen.contains("nothing waits"))
        .await;
    for part in [
        "daemon",
        "accepted/s",
        "delivered/s",
        "waiting",
        "LANE",
        "q or Ctrl-C",
    ] {
        assert!(empty.contains(part), "{part}: {empty}");
    }
    relay.track(KEY, &ids("e", 0..7)).await;
    let moved = |screen: &str| screen.contains("7 events in 1 call,") && screen.contains("…2345");
    terminal.until(moved).await;

    segment.answer(segspool::stand_in::Answer::status(401));
    relay.track(KEY, &ids("f", 0..5)).await;
    let held = |screen: &str| screen.contains("held") && screen.contains("answered 401");
    let screen = terminal.until(held).await;
    assert!(screen.contains("not until somebody acts"), "{screen}");

    relay.stop().await;
    let gone = |screen: &str| screen.contains("NO NEWS");
    terminal.until(gone).await;
    terminal.tmux(&["send-keys", "q"]);
    let ended = terminal.until(|screen| screen.contains("ended with")).await;
    assert!(ended.contains("ended with 0"), "{ended}");
    assert!(
        !ended.contains("NO NEWS"),
        "the screen of before is back: {ended}"
    );
}

/// `segspool tail` at work.
struct Tailing {
    child: Child,
    lines: UnboundedReceiver<String>,
}

impl Tailing {
    fn start(relay: &Relay, args: &[&str]) -> Tailing {
        let mut command = Command::new(env!("CARGO_BIN_EXE_segspool"));
        command
            .arg("tail")
            .args(args)
            .args(["--admin", &relay.admin]);
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program is there");
        let stdout = child.stdout.take().expect("it is piped");
        let (send, lines) = unbounded_channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let _unheard = send.send(line.expect("text"));
            }
        });
        Tailing { child, lines }
    }

    async fn next(&mut self) -> String {
        within(self.lines.recv()).await.expect("it goes on")
    }

    /// Waits until it has ended by itself.
    async fn end(&mut self) -> ExitStatus {
        within(async { while self.lines.recv().await.is_some() {} }).await;
        self.child.wait().expect("it is our child")
    }
}

impl Drop for Tailing {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _waited = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tail_shows_what_happens_to_each_event_and_what_was_asked_for_alone() {
    let (dir, segment) = (spool(), segment().await);
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let mut all = Tailing::start(&relay, &[]);
    let mut some = Tailing::start(
        &relay,
        &["--json", "--what", "accepted", "--event", "Wanted"],
    );
    // Nobody says when they have begun to listen: events are sent until both have seen one.
    let track = |name: &str, id: usize| {
        format!(
            r#"{{"userId":"u","event":"{name}","messageId":"m-{id}","properties":{{"secret":"s3cret"}}}}"#
        )
    };
    let post = async {
        for n in 0.. {
            relay.post("/v1/track", KEY, track("Other", n)).await;
            relay.post("/v1/track", KEY, track("Wanted", n)).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let (line, json) = tokio::select! {
        seen = async { (all.next().await, some.next().await) } => seen,
        () = post => unreachable!("it never ends"),
    };
    assert!(
        line.contains("accepted") || line.contains("delivered"),
        "{line}"
    );
    assert!(
        line.contains("…2345") && line.contains("track") && line.contains("m-"),
        "{line}"
    );
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        (&json["what"], &json["event"]),
        (&"accepted".into(), &"Wanted".into())
    );
    assert!(!format!("{line}{json}").contains("s3cret"));

    let pid = Pid::from_child(&some.child);
    kill_process(pid, Signal::TERM).expect("it runs");
    assert!(!some.end().await.success());

    let output = segspool(&relay.admin, &["tail", "--lane", "xyz"]);
    assert_eq!(output.status.code(), Some(64), "{}", text(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tail_ends_with_the_daemon_and_says_so() {
    let (dir, segment) = (spool(), segment().await);
    let mut relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let mut tail = Tailing::start(&relay, &["--what", "accepted"]);
    let post = async {
        for n in 0.. {
            relay.track(KEY, &ids("e", n..n + 1)).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        _ = tail.next() => {}
        () = post => unreachable!("it never ends"),
    }
    relay.stop().await;
    assert_eq!(tail.end().await.code(), Some(75));
}
