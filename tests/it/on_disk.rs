//! What lies in a spool is what the documentation says, and its owner's alone.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::support::{Relay, client, ids, segment, spool};

/// The operator's umask was never in the daemon's hands, and neither is the mode in which sled makes its files.
#[tokio::test(flavor = "multi_thread")]
async fn every_file_of_a_spool_is_documented_and_its_owners_alone_whatever_the_umask() {
    let (dir, segment) = (spool(), segment().await);
    let data_dir = dir.path().join("made");
    segment.down().await;
    let settings = [
        ("INGEST__TLS__LISTEN", "127.0.0.1:0"),
        ("SHUTDOWN__DRAIN", "0s"),
    ];
    let careless = || {
        let mut command = Command::new("sh");
        let program = env!("CARGO_BIN_EXE_segspool");
        command.args(["-c", "umask 0; exec \"$0\" serve", program]);
        command
    };
    // The second finds volumes that were sealed, and opens them to read.
    for life in ["first", "second"] {
        let mut relay = Relay::start_by(careless(), &data_dir, &segment.url(), &settings).await;
        relay.track("KEY12345", &ids(life, 0..3)).await;
        let rejected = client().post(format!("{}/v1/track", relay.ingest));
        let rejected = rejected.basic_auth("KEY12345", Some("")).body("{}");
        let answer = rejected.send().await.expect("an answer");
        assert_eq!(answer.status(), 400);
        relay.until(|stats| stats.dead_letters.events > 0).await;
        relay.until(|stats| stats.lanes[0].attempt > 0).await;
        assert!(relay.stop().await.success(), "{}", relay.log());
    }
    let found = entries(&data_dir);
    let page = fs::read_to_string("docs/on-disk-format.md").expect("the page");
    let table = page.lines().filter(|line| line.starts_with("| `"));
    let documented: String = table.filter_map(|line| line.split(" | ").next()).collect();
    for (name, mode, is_dir) in &found {
        // A directory is named with what lies in it.
        let (end, expected) = if *is_dir { ("", 0o700) } else { ("`", 0o600) };
        assert!(documented.contains(&format!("`{name}{end}")), "{name}");
        assert_eq!(mode & 0o7777, expected, "{name}");
    }
    for name in [
        "cursors",
        "volumes/N.summary",
        "dead-letters/db",
        "tls/key.pem",
    ] {
        assert!(found.iter().any(|(found, ..)| found == name), "{found:?}");
    }
    let format = fs::read_to_string(data_dir.join("format")).expect("a number");
    assert!(page.contains(&format!("This is **format {}**", format.trim_end())));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_unfinished_is_gone_after_a_start_and_the_rest_is_delivered() {
    let (dir, segment) = (spool(), segment().await);
    let path = |name: &str| dir.path().join(name);
    segment.down().await;
    let settings = [("SHUTDOWN__DRAIN", "0s")];
    let mut relay = Relay::start(dir.path(), &segment.url(), &settings).await;
    relay.track("KEY12345", &ids("e", 0..5)).await;
    assert!(relay.stop().await.success(), "{}", relay.log());
    for unfinished in [
        "volumes/0.repacked",
        "volumes/7.deleted",
        "dead-letters.new",
        "dead-letters.old",
    ] {
        fs::create_dir(path(unfinished)).expect("made");
        fs::write(path(unfinished).join("db"), "half").expect("written");
    }
    for unfinished in [
        "cursors.new",
        "format.new",
        "volumes/0.summary.new",
        "volumes/7.summary",
    ] {
        fs::write(path(unfinished), "half").expect("written");
    }
    // It is written with the format.
    fs::remove_file(path("format")).expect("it was there");
    segment.up().await.expect("the port is kept");
    let mut relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    relay.until(|stats| stats.queue.events == 0).await;
    assert!(relay.stop().await.success(), "{}", relay.log());
    let tally = segment.tally();
    assert_eq!((tally.distinct_events, tally.duplicate_events), (5, 0));
    for (name, ..) in entries(dir.path()) {
        let unfinished = [".new", ".new/", ".old/", ".repacked/", ".deleted/"];
        let is_unfinished = unfinished.iter().any(|end| name.ends_with(end));
        assert!(!is_unfinished, "{name}");
    }
    assert!(!path("volumes/7.summary").exists());
}

/// The names in a spool as the documentation spells them, each with its mode and whether it is a directory.
fn entries(data_dir: &Path) -> Vec<(String, u32, bool)> {
    let mut found = Vec::new();
    let mut dirs = vec![data_dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            let metadata = fs::metadata(&path).expect("it is there");
            let name = path.strip_prefix(data_dir).expect("it lies there");
            let mut name = spelled(name.to_str().expect("text"));
            if metadata.is_dir() {
                name.push('/');
                dirs.push(path);
            }
            found.push((name, metadata.permissions().mode(), metadata.is_dir()));
        }
    }
    found
}

fn spelled(name: &str) -> String {
    let part = |part: &str| {
        let (first, rest) = part.split_once('.').unwrap_or((part, ""));
        if first.parse::<u64>().is_ok() {
            part.replacen(first, "N", 1)
        } else if first == "snap" {
            part.replacen(rest, "H", 1)
        } else {
            part.to_owned()
        }
    };
    name.split('/').map(part).collect::<Vec<_>>().join("/")
}
