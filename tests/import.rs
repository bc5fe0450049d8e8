//! A large file is imported, in spite of Ctrl-C, SIGTERM and kill -9, and Segment has every event: once, but for those of the one call
//! that was under way at the kill.

#![allow(
    clippy::print_stdout,
    reason = "the figures are for whoever runs it with --nocapture"
)]

#[path = "support/mod.rs"]
mod support;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use segspool::stand_in::{Options, StandIn};

use support::{Relay, spool, within};

/// What CI imports.
const LINES: u64 = 1_000_000;
/// What everybody else does.
const LINES_USUAL: u64 = 100_000;
/// Events of a call, which src/cli/import/portion.rs has.
const CALL_EVENTS_MAX: u64 = 1000;

fn lines() -> u64 {
    match std::env::var_os("SEGSPOOL_REQUIRE_CLIENTS") {
        Some(_) => LINES,
        None => LINES_USUAL,
    }
}

/// One event a line, every other one without a messageId.
fn write(file: &Path, lines: u64) {
    let mut file = BufWriter::new(File::create(file).expect("created"));
    for n in 0..lines {
        let id = match n % 2 {
            0 => format!(r#","messageId":"imported-{n}""#),
            _ => String::new(),
        };
        writeln!(
            file,
            r#"{{"type":"track","userId":"user-{}","event":"Order Completed","timestamp":"2025-11-23T14:00:00.000Z","properties":{{"n":{n},"total":19.95,"currency":"EUR"}}{id}}}"#,
            n % 977
        )
        .expect("written");
    }
    file.flush().expect("written");
}

fn start(relay: &Relay, file: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_segspool"));
    command
        .args([
            "import",
            "--ingest",
            &relay.ingest,
            "--write-key",
            "KEY-IMPORT",
        ])
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().expect("the program is there")
}

/// Waits for its end, and returns its exit code, if it has one, and what it said.
async fn end(import: Child) -> (Option<i32>, String) {
    let output = tokio::task::spawn_blocking(move || import.wait_with_output());
    let output = output.await.expect("no panic").expect("it was started");
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

/// The line at which it says that it goes on.
fn next_line(said: &str) -> u64 {
    let (_, behind) = said.split_once("goes on at line ").expect("it says so");
    let number = behind.split(' ').next().unwrap_or_default();
    number.replace(',', "").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_interrupted_and_killed_brings_every_event_and_repeats_at_most_one_call()
{
    let lines = lines();
    let (dir, files) = (spool(), spool());
    let segment = StandIn::start(Options::default())
        .await
        .expect("a free port");
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let file = files.path().join("events.ndjson");
    write(&file, lines);
    let begun = Instant::now();

    for (quarter, signal, code) in [(1, Signal::INT, Some(130)), (2, Signal::TERM, Some(143))] {
        let import = start(&relay, &file);
        let reached = lines * quarter / 4;
        relay
            .until(|stats| stats.ingest.accepted_events >= reached)
            .await;
        kill_process(Pid::from_child(&import), signal).expect("it runs");
        let (found, said) = end(import).await;
        assert_eq!(found, code, "{said}");
        let accepted = relay.stats().await.ingest.accepted_events;
        assert!((reached..lines).contains(&accepted), "{accepted}");
        assert_eq!(
            next_line(&said) - 1,
            accepted,
            "nothing is sent twice: {said}"
        );
    }

    let mut import = start(&relay, &file);
    relay
        .until(|stats| stats.ingest.accepted_events >= lines * 3 / 4)
        .await;
    import.kill().expect("it runs");
    import.wait().expect("it was started");

    let (code, said) = end(start(&relay, &file)).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("may have been accepted twice"), "{said}");
    let imported = begun.elapsed();
    let names = files.path().read_dir().expect("a directory").count();
    assert_eq!(names, 1, "only the file itself is left");

    let accepted = relay.stats().await.ingest.accepted_events;
    let repeated = accepted.checked_sub(lines).expect("none is lost");
    assert!(repeated <= CALL_EVENTS_MAX, "{repeated} were repeated");
    let tally = within(segment.until(|tally| tally.events >= accepted)).await;
    assert_eq!(
        (
            tally.distinct_events,
            tally.duplicate_events,
            tally.anonymous_events
        ),
        (lines, repeated, 0)
    );
    println!(
        "{lines} lines imported in {:.1} s with three interruptions, {repeated} events repeated, delivered {:.1} s after the beginning",
        imported.as_secs_f64(),
        begun.elapsed().as_secs_f64()
    );
}
