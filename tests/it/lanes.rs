//! An operator's hand on the lanes, over the admin listener and by the command line.

use std::time::Instant;

use reqwest::Method;
use segspool::stand_in::{Answer, Rule};
use segspool::stats::{LaneSnapshot, LaneState};
use serde_json::Value;

use crate::dead_letters::{segspool, text};
use crate::support::{Relay, client, ids, segment, spool, within};

async fn hand(relay: &Relay, path: &str) -> (u16, Value) {
    let reply = client()
        .request(Method::POST, format!("{}{path}", relay.admin))
        .send()
        .await;
    let reply = reply.expect("an answer");
    let status = reply.status().as_u16();
    let body = reply.bytes().await.expect("a body");
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_lane_sends_nothing_and_a_resumed_one_everything() {
    let (dir, segment) = (spool(), segment().await);
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    relay.track("KEY-ONE", &ids("first", 0..1)).await;
    let stats = relay.until(|stats| stats.delivery.events == 1).await;
    let id = &stats.lanes[0].id;
    let (status, lane) = hand(&relay, &format!("/lanes/{id}/pause")).await;
    let lane: LaneSnapshot = serde_json::from_value(lane).expect("a lane");
    assert_eq!((status, &lane.id, lane.state), (200, id, LaneState::Paused));

    relay.track("KEY-ONE", &ids("paused", 0..1)).await;
    relay.track("KEY-TWO", &ids("other", 0..1)).await;
    within(segment.until(|tally| tally.distinct_events == 2)).await;
    assert_eq!(segment.times_delivered("paused-0"), 0);
    let listed = client()
        .get(format!("{}/lanes", relay.admin))
        .send()
        .await
        .expect("an answer");
    let listed: Value =
        serde_json::from_slice(&listed.bytes().await.expect("a body")).expect("JSON");
    assert_eq!(listed["lanes"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        (&listed["lanes"][0]["id"], &listed["lanes"][0]["state"]),
        (&Value::from(&**id), &"paused".into())
    );

    assert_eq!(hand(&relay, &format!("/lanes/{id}/resume")).await.0, 200);
    within(segment.until(|tally| tally.distinct_events == 3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_outlives_a_restart_whether_something_waits_or_not() {
    let (dir, segment) = (spool(), segment().await);
    let mut relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    relay.track("KEY-FULL", &ids("first", 0..1)).await;
    relay.track("KEY-IDLE", &ids("second", 0..1)).await;
    let stats = relay.until(|stats| stats.delivery.events == 2).await;
    for lane in &stats.lanes {
        assert_eq!(
            hand(&relay, &format!("/lanes/{}/pause", lane.id)).await.0,
            200
        );
    }
    relay.track("KEY-FULL", &ids("waiting", 0..1)).await;
    // What was answered holds, however the process ends.
    relay.kill();

    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    relay.track("KEY-IDLE", &ids("late", 0..1)).await;
    // Another lane's event has come through: these have had their chance.
    relay.track("KEY-THREE", &ids("third", 0..1)).await;
    within(segment.until(|tally| tally.distinct_events == 3)).await;
    // Segment has counted the third a moment before the relay settles it.
    let stats = relay.until(|stats| stats.queue.events == 2).await;
    for lane in stats.lanes.iter().filter(|lane| lane.events > 0) {
        assert_eq!(lane.state, LaneState::Paused);
        assert_eq!(
            hand(&relay, &format!("/lanes/{}/resume", lane.id)).await.0,
            200
        );
    }
    within(segment.until(|tally| tally.distinct_events == 5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_lane_that_is_resumed_is_probed_at_once() {
    let (dir, segment) = (spool(), segment().await);
    segment.set_rules(vec![Rule::always(Answer::status(401)).times(1)]);
    let settings = [("RETRY__HOLD_PROBE", "1h")];
    let relay = Relay::start(dir.path(), &segment.url(), &settings).await;
    relay.track("KEY-ONE", &ids("e", 0..3)).await;
    let held = |lane: &LaneSnapshot| lane.state == LaneState::Held;
    let stats = relay
        .until(|stats| stats.lanes.first().is_some_and(held))
        .await;
    let resumed = Instant::now();
    let output = segspool(&relay.admin, &["lanes", "resume", &stats.lanes[0].id]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    within(segment.until(|tally| tally.distinct_events == 3)).await;
    assert!(resumed.elapsed().as_secs() < 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_lane_is_told_so() {
    let (dir, segment) = (spool(), segment().await);
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    for (path, expected) in [
        ("/lanes/0000000000000000/pause", 404),
        ("/lanes/0000000000000000/resume", 404),
        ("/lanes/xyz/pause", 400),
        ("/lanes/0000000000000000/stop", 404),
        ("/lanes", 405),
    ] {
        assert_eq!(hand(&relay, path).await.0, expected, "{path}");
    }
    let get = client().get(format!("{}/lanes/0000000000000000/pause", relay.admin));
    assert_eq!(get.send().await.expect("an answer").status(), 405);
    for (args, expected) in [
        (&["lanes", "list"][..], 0),
        (&["lanes", "pause", "0000000000000000"], 66),
        (&["lanes", "pause", "x/y"], 64),
    ] {
        let output = segspool(&relay.admin, args);
        assert_eq!(output.status.code(), Some(expected), "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_lists_and_pauses_lanes() {
    let (dir, segment) = (spool(), segment().await);
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    relay.track("KEY12345", &ids("e", 0..3)).await;
    let stats = relay.until(|stats| stats.delivery.events == 3).await;
    let id = &stats.lanes[0].id;
    let paused = segspool(&relay.admin, &["lanes", "pause", id]);
    assert!(
        text(&paused.stdout).contains("paused"),
        "{}",
        text(&paused.stdout)
    );
    let list = segspool(&relay.admin, &["lanes", "list"]);
    let list = text(&list.stdout);
    assert!(
        list.contains(id) && list.contains("…2345") && list.contains("paused"),
        "{list}"
    );
    assert!(!list.contains("KEY12345"));
    let json = segspool(&relay.admin, &["lanes", "list", "--json"]);
    let json: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json["lanes"][0]["delivered_events"], 3);
}
