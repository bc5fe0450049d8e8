//! `segspool import`: what it sends, what it rejects, how it waits, and what it says when it cannot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::dead_letters::text;
use crate::support::server::{Reaction, Server, answer};
use crate::support::{Relay, segment, spool, within};

/// The command, which needs no daemon's environment.
pub(crate) fn import(ingest: &str, file: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_segspool"));
    command
        .args(["import", "--ingest", ingest])
        .arg(file)
        .args(args)
        .stdin(Stdio::null())
        .env_remove("SEGSPOOL_WRITE_KEY");
    command.output().expect("the program is there")
}

fn lines_in(dir: &Path, lines: &[Value]) -> PathBuf {
    let lines: Vec<_> = lines.iter().map(Value::to_string).collect();
    let file = dir.join("events.ndjson");
    fs::write(&file, lines.join("\n") + "\n").expect("written");
    file
}

fn track(n: usize) -> Value {
    json!({"type": "track", "userId": "u", "event": "Imported", "properties": {"n": n}})
}

/// What a daemon answers to events that it has accepted.
fn success() -> Reaction {
    answer(
        200,
        "segspool-durability: synced\r\n",
        r#"{"success":true}"#,
    )
}

fn with(mut event: Value, member: &str, value: &str) -> Value {
    event[member] = value.into();
    event
}

/// What lies beside a file, but for the file itself.
fn beside(file: &Path) -> Vec<String> {
    let dir = file.parent().expect("a directory");
    let names = fs::read_dir(dir).expect("a directory").flatten();
    let mut names: Vec<_> = names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("events.ndjson."))
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn events_and_batch_bodies_arrive_with_their_keys_contexts_and_times() {
    let (dir, segment) = (spool(), segment().await);
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let own = with(track(1), "writeKey", "KEY-OWN");
    let old = with(track(2), "timestamp", "2020-02-02T02:02:02.000Z");
    let batch = json!({
        "batch": [with(track(3), "messageId", "m-3"), with(track(4), "messageId", "m-4")],
        "writeKey": "KEY-BATCH", "context": {"ip": "192.0.2.1"}, "sentAt": "2020-02-02T02:02:03Z"
    });
    let files = spool();
    let file = lines_in(files.path(), &[track(0), own, old, batch]);
    let before = fs::read(&file).expect("read");
    let output = import(&relay.ingest, &file, &["--write-key", "KEY-GIVEN"]);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!((output.status.code(), err), (Some(0), ""), "{out}");
    assert!(out.starts_with("imported 5 events from "), "{out}");
    assert_eq!(fs::read(&file).expect("read"), before);
    assert_eq!(beside(&file), [""; 0]);

    within(segment.until(|tally| tally.distinct_events == 5)).await;
    let mut events: Vec<(u64, String, Value)> = segment
        .events()
        .iter()
        .map(|recorded| {
            let event: Value = serde_json::from_str(recorded.event.get()).expect("JSON");
            let n = event["properties"]["n"].as_u64().expect("a number");
            (n, recorded.write_key.clone(), event)
        })
        .collect();
    events.sort_by_key(|(n, ..)| *n);
    let keys: Vec<_> = events.iter().map(|(_, key, _)| &**key).collect();
    assert_eq!(
        keys,
        [
            "KEY-GIVEN",
            "KEY-OWN",
            "KEY-GIVEN",
            "KEY-BATCH",
            "KEY-BATCH"
        ]
    );
    assert_eq!(events[2].2["timestamp"], "2020-02-02T02:02:02.000Z");
    assert_eq!(events[3].2["context"]["ip"], "192.0.2.1");
    assert_eq!(events[4].2["messageId"], "m-4");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_rejected_here_or_by_the_daemon_is_written_with_its_line_and_costs_nothing_else() {
    let (dir, segment) = (spool(), segment().await);
    let settings = [("INGEST__ALLOWED_WRITE_KEYS", "[\"KEY-GIVEN\"]")];
    let relay = Relay::start(dir.path(), &segment.url(), &settings).await;
    let foreign = with(track(1), "writeKey", "KEY-OTHER");
    let batch = json!({"batch": [track(2), {"type": "track"}], "writeKey": "KEY-GIVEN"});
    let lines = [
        with(track(0), "writeKey", "KEY-GIVEN"),
        foreign.clone(),
        with(track(1), "writeKey", "KEY-GIVEN"),
        json!("text"),
        batch,
        json!({"batch": [foreign], "writeKey": "KEY-OTHER"}),
    ];
    let files = spool();
    let file = lines_in(files.path(), &lines);
    let output = import(&relay.ingest, &file, &[]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(65), "{err}");
    assert!(
        err.contains("4 were rejected; ") && err.contains("events.ndjson.rejected says"),
        "{err}"
    );
    assert_eq!(beside(&file), ["events.ndjson.rejected"]);
    let rejected = fs::read_to_string(files.path().join("events.ndjson.rejected")).expect("read");
    let rejected: Vec<Value> = rejected
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let found: Vec<_> = rejected
        .iter()
        .map(|r| (r["line"].as_u64(), r["item"].as_u64(), r["code"].as_str()))
        .collect();
    assert_eq!(
        found,
        [
            (Some(2), None, Some("write_key_not_allowed")),
            (Some(4), None, Some("not_an_object")),
            (Some(5), Some(1), Some("no_user_anon_id")),
            (Some(6), Some(0), Some("write_key_not_allowed")),
        ]
    );
    assert_eq!(rejected[1]["text"], "\"text\"");
    assert!(rejected.iter().all(|r| r["message"].is_string()));
    within(segment.until(|tally| tally.distinct_events == 3)).await;

    // What was rejected before is not written over.
    let again = import(&relay.ingest, &file, &[]);
    assert_eq!(again.status.code(), Some(73));
    assert!(text(&again.stderr).contains("--rejected FILE"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_too_large_for_the_daemon_is_halved_until_it_fits() {
    let (dir, segment) = (spool(), segment().await);
    let settings = [
        ("INGEST__MAX_BODY", "64 KiB"),
        ("INGEST__WRITE_KEY", "KEY-HERE"),
    ];
    let relay = Relay::start(dir.path(), &segment.url(), &settings).await;
    let lines: Vec<_> = (0..3000).map(track).collect();
    let files = spool();
    let file = lines_in(files.path(), &lines);
    let output = import(&relay.ingest, &file, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let tally = within(segment.until(|tally| tally.distinct_events == 3000)).await;
    assert_eq!(tally.duplicate_events, 0);
}

/// Events of one call, by their ids.
fn calls(server: &Server) -> Vec<Vec<String>> {
    server.asked().iter().map(|request| request.ids()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_daemon_is_waited_for_as_long_as_it_says() {
    let count = AtomicUsize::new(0);
    let server = Server::start(move |_| match count.fetch_add(1, Ordering::Relaxed) {
        1 => answer(
            429,
            "retry-after: 1\r\n",
            r#"{"code":"queue_full","message":"the queue is full"}"#,
        ),
        2 => answer(503, "", r#"{"code":"busy","message":"too many bodies"}"#),
        _ => success(),
    })
    .await;
    let files = spool();
    let file = lines_in(files.path(), &[track(0), track(1)]);
    let begun = Instant::now();
    let output = import(&format!("http://{}", server.address), &file, &[]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{err}");
    assert_eq!(err, "segspool: waiting for the daemon: the queue is full\n");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let calls = calls(&server);
    assert_eq!(calls.len(), 4);
    assert!(calls[1] == calls[2] && calls[2] == calls[3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_an_answer_is_made_again_with_the_same_ids_and_that_is_said() {
    let count = AtomicUsize::new(0);
    let server = Server::start(move |_| match count.fetch_add(1, Ordering::Relaxed) {
        1 => Reaction::SayAndClose(String::new()),
        _ => success(),
    })
    .await;
    let url = format!("http://{}", server.address);
    let files = spool();
    let file = lines_in(files.path(), &[track(0), track(1), track(2)]);
    let output = import(&url, &file, &[]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{err}");
    assert!(
        err.contains("up to 2 events may have been accepted twice"),
        "{err}"
    );
    let first = calls(&server);
    assert_eq!(first.len(), 3);
    assert_eq!(first[1], first[2]);

    // So is the whole file, where somebody imports it again.
    assert_eq!(import(&url, &file, &[]).status.code(), Some(0));
    assert_eq!(calls(&server)[3..], [first[0].clone(), first[1].clone()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_goes_on_where_a_failure_has_ended_it_and_with_no_other_file() {
    let count = AtomicUsize::new(0);
    let server = Server::start(move |_| match count.fetch_add(1, Ordering::Relaxed) {
        2 => answer(500, "", "broken"),
        _ => success(),
    })
    .await;
    let url = format!("http://{}", server.address);
    let files = spool();
    // A call of one event, one of a thousand with a bad line among them, and one that fails.
    let mut lines: Vec<_> = (0..1500).map(track).collect();
    lines[500] = json!("bad");
    let file = lines_in(files.path(), &lines);
    let output = import(&url, &file, &[]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(76), "{err}");
    assert!(
        err.contains("the same command goes on at line 1,003 of "),
        "{err}"
    );
    assert_eq!(
        beside(&file),
        ["events.ndjson.import-state", "events.ndjson.rejected"]
    );
    let state = fs::read_to_string(files.path().join("events.ndjson.import-state"));
    assert!(!state.expect("text").contains("Imported"));

    let times = fs::metadata(&file).and_then(|m| m.modified());
    let before = fs::read(&file).expect("read");
    fs::write(&file, [&before[..], b"{}\n"].concat()).expect("written");
    let changed = import(&url, &file, &[]);
    let err = text(&changed.stderr);
    assert_eq!(changed.status.code(), Some(66), "{err}");
    assert!(
        err.contains("is not the file of which a part was imported; remove "),
        "{err}"
    );
    assert_eq!(calls(&server).len(), 3);
    fs::write(&file, &before).expect("written");
    let opened = fs::File::options().write(true).open(&file);
    opened
        .and_then(|file| file.set_modified(times.expect("a time")))
        .expect("set");

    // What it goes on with is its own file, and nobody else's.
    let others = files.path().join("others.txt");
    fs::write(&others, "somebody's").expect("written");
    let named = ["--rejected", others.to_str().expect("text")];
    assert_eq!(import(&url, &file, &named).status.code(), Some(73));
    assert_eq!(fs::read(&others).expect("read"), b"somebody's");

    // As if a kill had come after something was rejected and before that was remembered.
    let rejected = files.path().join("events.ndjson.rejected");
    let written = fs::read(&rejected).expect("read");
    fs::write(&rejected, [&written[..], b"{\"line\":1200"].concat()).expect("written");
    let output = import(&url, &file, &[]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(65), "{err}");
    assert!(err.contains("going on at line 1,003 of "), "{err}");
    assert_eq!(fs::read(&rejected).expect("read"), written);
    assert_eq!(beside(&file), ["events.ndjson.rejected"]);
    let sizes: Vec<_> = calls(&server).iter().map(Vec::len).collect();
    assert_eq!(sizes, [1, 1000, 498, 1, 497]);
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_input_is_imported_with_what_the_environment_says() {
    let (dir, segment) = (spool(), segment().await);
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let files = spool();
    let file = lines_in(files.path(), &[track(0), json!(5), track(1)]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_segspool"));
    command
        .args(["import", "-", "--ingest", &relay.ingest])
        .current_dir(files.path())
        .stdin(fs::File::open(&file).expect("opened"))
        .env("SEGSPOOL_WRITE_KEY", "KEY-GIVEN");
    let output = command.output().expect("the program is there");
    assert_eq!(output.status.code(), Some(65), "{}", text(&output.stderr));
    assert!(files.path().join("stdin.rejected").exists());
    let tally = within(segment.until(|tally| tally.distinct_events == 2)).await;
    assert!(tally.write_keys.contains_key("KEY-GIVEN"));
}
