//! `segspool doctor`: a stopped spool is looked at and stays as it is; what is damaged is told; what can be read is salvaged.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use segspool::stand_in::Answer;
use serde_json::Value;
use tempfile::TempDir;

use crate::dead_letters::text;
use crate::support::{Relay, ids, segment, spool, within};

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
        assert_eq!(waiting("…TWO"), Some(20));
        // A crash may come before the cursor is saved.
        let one = waiting("…ONE").expect("a number");
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
        Some(73)
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

/// A remedy for a volume in quarantine that salvaged what waits as well would have had all of that delivered twice.
#[tokio::test(flavor = "multi_thread")]
async fn what_lies_in_quarantine_can_be_salvaged_without_what_the_daemon_still_delivers() {
    let (dir, out) = (spool(), spool());
    backlog(dir.path(), async |relay| {
        relay.stop().await;
    })
    .await;
    let volume = volume(dir.path());
    let quarantine = dir.path().join("quarantine");
    let name = volume.file_name().expect("a number");
    fs::rename(&volume, quarantine.join(name)).expect("moved");
    let summary = volume.with_extension("summary");
    let moved = quarantine.join(summary.file_name().expect("a name"));
    fs::rename(&summary, moved).expect("moved");

    let segment = segment().await;
    segment.down().await;
    let mut relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    relay.track("KEY-ONE", &ids("waits", 0..15)).await;
    relay.stop().await;
    let file = out.path().join("events.ndjson");
    let path = file.to_str().expect("text");
    let (code, exam) = examine(dir.path(), &["--salvage", path, "--quarantine-only"]);
    assert_eq!(code, 65, "{exam}");
    let salvaged = fs::read_to_string(&file).expect("text");
    let named = |id: &String| format!("\"messageId\":\"{id}\"");
    for id in ids("one", 0..30).iter().chain(&ids("two", 0..20)) {
        assert_eq!(salvaged.matches(&named(id)).count(), 1, "{id}");
    }
    assert!(!salvaged.contains("\"waits"), "{salvaged}");

    let dir = dir.path().to_str().expect("text");
    for args in [
        &[dir, "--quarantine-only"][..],
        &[dir, "--salvage", path, "--quarantine-only", "--all"],
    ] {
        assert_eq!(doctor(args).status.code(), Some(64), "{args:?}");
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

/// A copy of a spool, to be damaged.
fn copied(from: &Path) -> TempDir {
    let to = spool();
    copy_all(from, to.path());
    to
}

fn copy_all(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let to = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            fs::create_dir(&to).expect("made");
            copy_all(&path, &to);
        } else {
            fs::copy(&path, &to).expect("copied");
        }
    }
}

/// The directory of the only volume.
fn volume(dir: &Path) -> PathBuf {
    let entries = fs::read_dir(dir.join("volumes")).expect("a folder");
    let mut paths = entries.map(|entry| entry.expect("an entry").path());
    paths.find(|path| path.is_dir()).expect("a volume")
}

/// Overwrites every file below with what is nobody's.
fn scramble(dir: &Path) {
    for (path, content) in files(dir) {
        let noise: Vec<u8> = (0..content.len()).map(|n| (n * 7 % 251) as u8).collect();
        fs::write(path, noise).expect("written");
    }
}

fn empty(path: &Path) {
    assert!(path.is_file(), "{}", path.display());
    fs::write(path, "").expect("written");
}

type Damage = fn(&Path);

/// Waits until the daemon has noted down that its volume is there.
async fn volume_is_noted(dir: &Path) {
    within(async {
        loop {
            let cursors = fs::read_to_string(dir.join("cursors")).unwrap_or_default();
            let volumes = cursors.split_once("\"volumes\":[");
            if volumes.is_some_and(|(_, rest)| !rest.starts_with(']')) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_spool_is_never_called_sound() {
    let cases: [(&str, Damage); 8] = [
        ("the volume is gone", |dir| {
            fs::remove_dir_all(volume(dir)).expect("removed");
        }),
        ("the volume is empty", |dir| empty(&volume(dir).join("db"))),
        ("the volume is noise", |dir| scramble(&volume(dir))),
        ("all is noise", |dir| {
            let cursors: Vec<u8> = vec![0xa5; 300];
            for name in ["cursors", "cursors.previous"] {
                fs::write(dir.join(name), &cursors).expect("written");
            }
            scramble(&dir.join("volumes"));
        }),
        ("the cursors are noise", |dir| {
            fs::write(dir.join("cursors"), "noise").expect("written");
        }),
        ("the dead letters are empty", |dir| {
            empty(&dir.join("dead-letters/db"));
        }),
        ("the dead letters are noise", |dir| {
            scramble(&dir.join("dead-letters"));
        }),
        ("the dead letters are gone", |dir| {
            fs::remove_dir_all(dir.join("dead-letters")).expect("removed");
        }),
    ];
    for is_killed in [false, true] {
        let made = spool();
        backlog(made.path(), async |relay| {
            volume_is_noted(made.path()).await;
            if is_killed {
                relay.kill();
            } else {
                relay.stop().await;
            }
        })
        .await;
        assert_eq!(examine(made.path(), &[]).0, 0);
        for (case, damage) in cases {
            let dir = copied(made.path());
            damage(dir.path());
            let (code, exam) = examine(dir.path(), &[]);
            assert_eq!(code, 65, "{case}, killed: {is_killed}: {exam}");
            if case == "the volume is gone" {
                let volume = &exam["spool"]["volumes"][0];
                assert_eq!(volume["is_gone"], true, "{exam}");
                let missing = volume["missing_events"].as_u64();
                assert_eq!(missing, Some(if is_killed { 0 } else { 50 }), "{exam}");
            }
            let told = doctor(&[dir.path().to_str().expect("text")]);
            let told = text(&told.stdout);
            assert!(told.contains("something is damaged"), "{case}: {told}");
            assert!(!told.contains("nothing is"), "{case}: {told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_known_of_a_volume_that_was_never_sealed_is_said() {
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
        let (code, exam) = examine(dir.path(), &[]);
        let unchecked = exam["spool"]["unchecked_volumes"].as_array();
        assert_eq!(unchecked.map(Vec::is_empty), Some(!is_killed), "{exam}");
        let told = doctor(&[dir.path().to_str().expect("text")]);
        let told = text(&told.stdout);
        let note = "was never sealed: what it held is not known, so what is missing from it cannot be counted";
        assert_eq!(told.contains(note), is_killed, "{told}");
        assert!(told.ends_with("nothing is known to be damaged\n"), "{told}");
        assert_eq!(code, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_was_never_used_or_is_drained_is_sound_and_lists_no_lane() {
    for is_used in [false, true] {
        let (dir, segment) = (spool(), segment().await);
        segment.answer(Answer::Ok);
        let mut relay = Relay::start(dir.path(), &segment.url(), &[]).await;
        if is_used {
            relay.track("KEY-ONE", &ids("gone", 0..10)).await;
            relay.until(|stats| stats.delivery.events == 10).await;
        }
        relay.stop().await;
        // As after a start that was killed before it wrote any.
        if !is_used {
            for name in ["cursors", "cursors.previous"] {
                let _may_not_be_there = fs::remove_file(dir.path().join(name));
            }
        }
        let output = doctor(&[dir.path().to_str().expect("text")]);
        let told = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{told}");
        assert!(!told.contains("cursors"), "{told}");
        assert!(told.contains("nothing waits"), "{told}");
        assert!(!told.contains("…ONE"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_is_refused_in_a_line_that_names_it_and_the_way_out() {
    let (dir, segment, out) = (spool(), segment().await, spool());
    let mut relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    relay.stop().await;
    let before = files(dir.path());
    let inside = dir.path().join("volumes/../out.ndjson");
    let file = out.path().join("file");
    fs::write(&file, "mine").expect("written");
    let (inside, file) = (inside.to_str().expect("text"), file.to_str().expect("text"));
    let spool = dir.path().to_str().expect("text");
    for (args, code, said) in [
        (
            vec![spool, "--salvage", inside],
            64,
            "would lie in the spool itself",
        ),
        (
            vec![spool, "--salvage", file],
            73,
            "Name a new file with --salvage",
        ),
        (
            vec![spool, "--salvage", "/nonexistent/out.ndjson"],
            73,
            "Name a new file with --salvage",
        ),
        (
            vec![spool, "--scratch", "/nonexistent/scratch"],
            73,
            "in /nonexistent/scratch: ",
        ),
        (vec![file], 66, "is no spool"),
    ] {
        let output = doctor(&args);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {told}");
        assert!(
            told.contains(said) && told.lines().count() == 1,
            "{args:?}: {told}"
        );
    }
    assert_eq!(before, files(dir.path()));
    assert_eq!(fs::read_to_string(file).expect("text"), "mine");
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
