//! `segspool doctor`: a stopped spool is looked at and stays as it is; what is damaged is told; what can be read is salvaged.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use segspool::stand_in::Answer;
use serde_json::Value;

use crate::dead_letters::text;
use crate::support::{Relay, ids, segment, spool};

fn doctor(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_segspool"));
    let output = command.arg("doctor").args(args).output();
    output.expect("the program is there")
}

fn examine(dir: &Path, more: &[&str]) -> (i32, Value) {
    let dir = dir.to_str().expect("text");
    let output = doctor(&[&[dir, "--json"], more].concat());
    let code = output.status.code().expect("it ended by itself");
    let exam = serde_json::from_slice(&output.stdout);
    let exam = exam.unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
    (code, exam)
}

/// Every file of a folder with its content.
fn files(dir: &Path) -> BTreeSet<(PathBuf, Vec<u8>)> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let content = fs::read(&path).expect("a file");
            found.insert((path, content));
        }
    }
    found
}

/// A spool in which 30 events of one key and 20 of another wait, one of the first in two delivered, after `end` has ended its daemon.
async fn backlog(dir: &Path, end: impl AsyncFnOnce(&mut Relay)) {
    let segment = segment().await;
    segment.answer(Answer::Ok);
    let mut relay = Relay::start(dir, &segment.url(), &[]).await;
    relay.track("KEY-ONE", &ids("gone", 0..10)).await;
    relay.until(|stats| stats.delivery.events == 10).await;
    segment.down().await;
    // A single event first, so that the cursor lies before it when it is saved.
    relay.track("KEY-ONE", &ids("one", 0..30)).await;
    relay.track("KEY-TWO", &ids("two", 0..20)).await;
    assert_eq!(relay.post("/v1/track", "KEY-ONE", "{}").await.status(), 400);
    relay.until(|stats| stats.dead_letters.events == 1).await;
    end(&mut relay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_in_a_stopped_spool_is_told_and_nothing_in_it_changes() {
    for is_killed in [false, true] {
        let dir = spool();
        backlog(dir.path(), async |relay| {
            if is_killed {
                relay.kill();
            } else {
                relay.stop().await;
            }
        })
        .await;
        let before = files(dir.path());
        let (code, exam) = examine(dir.path(), &[]);
        assert_eq!(code, 0, "{exam}");
        assert_eq!(before, files(dir.path()));
        let lanes = exam["spool"]["lanes"].as_array().expect("lanes");
        let waiting = |key: &str| {
            let lane = lanes.iter().find(|lane| lane["key"] == key);
            lane.expect("the lane")["waiting_events"].as_u64()
        };
        assert_eq!(waiting("…-TWO"), Some(20));
        // A crash may come before the cursor is saved.
        let one = waiting("…-ONE").expect("a number");
        assert!(one == 30 || (is_killed && one == 40), "{one}");
        let letters = &exam["spool"]["dead_letters"];
        assert_eq!(letters["events"], 1, "{letters}");
        let volumes = exam["spool"]["volumes"].as_array().expect("volumes");
        let sum = |what: &str| volumes.iter().filter_map(|v| v[what].as_u64()).sum::<u64>();
        assert_eq!(sum("waiting_events"), one + 20);
        assert_eq!(
            (sum("gaps"), sum("missing_events"), sum("damaged_records")),
            (0, 0, 0)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_salvaged_can_be_posted_again_and_arrives_under_its_own_ids_and_key() {
    let (dir, out) = (spool(), spool());
    backlog(dir.path(), async |relay| {
        relay.stop().await;
    })
    .await;
    let file = out.path().join("events.ndjson");
    let path = file.to_str().expect("text");
    let (code, exam) = examine(dir.path(), &["--salvage", path]);
    assert_eq!((code, &exam["salvaged_events"]), (0, &50.into()));
    let mode = fs::metadata(&file).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(
        doctor(&[dir.path().to_str().expect("text"), "--salvage", path])
            .status
            .code(),
        Some(64)
    );

    let (other, segment) = (spool(), segment().await);
    let relay = Relay::start(other.path(), &segment.url(), &[]).await;
    for line in fs::read_to_string(&file).expect("text").lines() {
        let reply = relay.post("/v1/batch", "", line.to_owned()).await;
        assert_eq!(reply.status(), 200, "{line}");
    }
    relay.until(|stats| stats.delivery.events == 50).await;
    let tally = segment.tally();
    assert_eq!(
        (tally.distinct_events, tally.write_keys["KEY-TWO"].events),
        (50, 20)
    );
    for id in ids("one", 0..30).iter().chain(&ids("two", 0..20)) {
        assert_eq!(segment.times_delivered(id), 1, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_told_and_what_lies_around_it_is_salvaged() {
    let (dir, out) = (spool(), spool());
    backlog(dir.path(), async |relay| {
        relay.stop().await;
    })
    .await;
    let volumes = dir.path().join("volumes");
    let summary = fs::read_dir(&volumes)
        .expect("a folder")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|e| e == "summary"))
        .expect("a stop seals");
    let volume = summary.with_extension("");
    // A volume in quarantine: nothing of it is delivered, all of it can be salvaged.
    let quarantine = dir.path().join("quarantine");
    let name = volume.file_name().expect("a number");
    fs::rename(&volume, quarantine.join(name)).expect("moved");
    let moved = quarantine.join(summary.file_name().expect("a name"));
    fs::rename(&summary, &moved).expect("moved");
    let path = out.path().join("quarantined.ndjson");
    let (code, exam) = examine(dir.path(), &["--salvage", path.to_str().expect("text")]);
    assert_eq!(code, 65);
    let exams = &exam["spool"]["volumes"];
    assert_eq!(exams[0]["in_quarantine"], true, "{exams}");
    assert!(exam["salvaged_events"].as_u64() >= Some(50), "{exam}");

    // And now it is cut short.
    let db = quarantine.join(name).join("db");
    let whole = fs::read(&db).expect("a file");
    fs::write(&db, &whole[..whole.len() / 2]).expect("written");
    let (code, exam) = examine(dir.path(), &[]);
    let found = &exam["spool"]["volumes"][0];
    assert_eq!(code, 65);
    assert!(
        found["missing_events"].as_u64() > Some(0) || found["trouble"].is_string(),
        "{found}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_stopped_spool_is_told_so() {
    let (dir, segment, empty) = (spool(), segment().await, spool());
    let _relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    for (dir, code, message) in [
        (dir.path(), 75, "is in use by another segspool"),
        (empty.path(), 66, "is no spool"),
        (Path::new("/nonexistent/spool"), 66, "is no spool"),
    ] {
        let output = doctor(&[dir.to_str().expect("text")]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(
            said.contains(message) && said.lines().count() == 1,
            "{said}"
        );
    }
    assert_eq!(fs::read_dir(empty.path()).expect("a folder").count(), 0);
}
