//! SIGHUP: a changed configuration is taken up as far as a running process can, and a wrong one changes nothing.

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use segspool::stand_in::Answer;
use segspool::stats::LaneState;

use crate::support::{Relay, ids, segment, spool, within};

/// A daemon that goes by a file, beside which only what a test must fix is set.
async fn start(dir: &Path, settings: &str) -> Relay {
    write(dir, settings);
    let mut command = Command::new(env!("CARGO_BIN_EXE_segspool"));
    command
        .args(["serve", "--config"])
        .arg(dir.join("config.toml"))
        .env("SEGSPOOL_DATA_DIR", dir.join("spool"))
        .env("SEGSPOOL_ADMIN__LISTEN", "127.0.0.1:0")
        .env("SEGSPOOL_LOG__FORMAT", "json");
    Relay::spawn(command).await
}

fn write(dir: &Path, settings: &str) {
    std::fs::write(dir.join("config.toml"), settings).expect("written");
}

/// Waits for a line of the log.
async fn logged(relay: &Relay, text: &str) {
    within(async {
        while !relay.log().contains(text) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
}

fn settings(endpoint: &str, ingest: &str, more: &str) -> String {
    format!(
        "[ingest]\nlisten = [\"127.0.0.1:0\"]\n{ingest}\n[segment]\nendpoint = \"{endpoint}\"\nlinger = \"10ms\"\n\
         [retry]\nhold_probe = \"1h\"\n{more}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_lane_tries_again_at_once_and_goes_by_what_has_changed() {
    let (dir, old, new) = (spool(), segment().await, segment().await);
    old.answer(Answer::status(401));
    let relay = start(dir.path(), &settings(&old.url(), "", "")).await;
    relay.track("KEY12345", &ids("e", 0..10)).await;
    let held = |stats: &segspool::stats::Snapshot| {
        stats.lanes.iter().any(|lane| lane.state == LaneState::Held)
    };
    relay.until(held).await;

    let allowed =
        "allowed_write_keys = [\"KEY12345\"]\ncors_origins = [\"https://shop.example.test\"]";
    write(
        dir.path(),
        &settings(&new.url(), allowed, "[log]\nlevel = \"debug\""),
    );
    relay.signal(Signal::HUP);
    within(new.until(|tally| tally.distinct_events == 10)).await;
    assert_eq!(old.tally().events, 0);
    relay.track("KEY12345", &ids("f", 0..10)).await;
    logged(&relay, "delivered a batch").await;
    let other = relay.post("/v1/track", "OTHER123", r#"{"userId":"u","event":"E"}"#);
    assert_eq!(other.await.status(), 400, "its key is not allowed any more");
    let page = crate::support::client()
        .post(format!("{}/v1/track", relay.ingest))
        .header("Origin", "https://shop.example.test")
        .basic_auth("KEY12345", Some(""))
        .body(r#"{"userId":"u","event":"E"}"#)
        .send();
    assert_eq!(page.await.expect("an answer").status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_restart_is_named_and_a_wrong_configuration_changes_nothing() {
    let (dir, segment) = (spool(), segment().await);
    let good = settings(&segment.url(), "", "");
    let relay = start(dir.path(), &good).await;
    write(dir.path(), &format!("{good}[segment]\n"));
    relay.signal(Signal::HUP);
    logged(&relay, "the configuration stays as it was").await;
    write(dir.path(), &good.replace("http://", "ftp://"));
    relay.signal(Signal::HUP);
    logged(&relay, "segment.endpoint must begin with").await;
    relay.track("KEY12345", &ids("e", 0..10)).await;
    within(segment.until(|tally| tally.distinct_events == 10)).await;

    let moved = good.replace("127.0.0.1:0", "127.0.0.1:1") + "[queue]\nmax_bytes = \"1 GiB\"\n";
    write(dir.path(), &moved);
    relay.signal(Signal::HUP);
    logged(&relay, "ingest.listen, queue").await;
    relay.track("KEY12345", &ids("f", 0..10)).await;
    within(segment.until(|tally| tally.distinct_events == 20)).await;
}
