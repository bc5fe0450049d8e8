//! `segspool demo` from outside: its table, its exit code, and what it leaves behind.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::tempdir;

/// How often the relay's log is looked at. The demo itself bounds how long its relay may take to start.
const POLL: Duration = Duration::from_millis(20);

fn demo(temporary: &Path, seconds: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_segspool"))
        .args(["demo", "--events", "1000", "--seconds", seconds])
        .env("TMPDIR", temporary)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the demo starts")
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).expect("a directory").count()
}

#[test]
fn the_demo_loses_nothing_and_leaves_nothing_behind() {
    let temporary = tempdir().expect("a temporary directory");
    let played = demo(temporary.path(), "1").wait_with_output();
    let played = played.expect("the demo ends");
    let said = String::from_utf8_lossy(&played.stderr);
    let table = String::from_utf8_lossy(&played.stdout);
    assert!(played.status.success(), "{table}{said}");
    assert!(table.ends_with("Nothing was lost.\n"), "{table}");
    assert!(said.contains("killed with SIGKILL"), "{said}");
    assert_eq!(entries(temporary.path()), 0);
}

#[test]
fn an_interrupted_demo_takes_the_relay_with_it() {
    let temporary = tempdir().expect("a temporary directory");
    let mut demo = demo(temporary.path(), "60");
    // The relay's address, once it listens.
    let log = loop {
        let found = fs::read_dir(temporary.path())
            .expect("a directory")
            .flatten()
            .filter_map(|dir| fs::read_to_string(dir.path().join("relay.log")).ok())
            .find(|log| log.contains("segspool is running"));
        if let Some(log) = found {
            break log;
        }
        let ended = demo.try_wait().expect("a child");
        assert_eq!(ended, None, "the demo ended before the relay was ready");
        thread::sleep(POLL);
    };
    let (_, address) = log.split_once("admin=").expect("it says where it listens");
    let address = address.split_whitespace().next().expect("an address");
    assert!(TcpStream::connect(address).is_ok());

    kill_process(Pid::from_child(&demo), Signal::INT).expect("it runs");
    let ended = demo.wait_with_output().expect("the demo ends");
    assert_eq!(ended.status.code(), Some(130));
    assert!(TcpStream::connect(address).is_err());
    assert_eq!(entries(temporary.path()), 0);
}
