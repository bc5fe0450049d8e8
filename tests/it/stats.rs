//! What an operator sees of the daemon: the snapshot, and the stream of it.

use std::time::{Duration, Instant};

use reqwest::Method;
use segspool::stand_in::{Answer, Rule};
use segspool::stats::{History, LaneSnapshot, LaneState, Snapshot};

use crate::support::watch::Watcher;
use crate::support::{Relay, client, ids, segment, spool, within};

fn lane(stats: &Snapshot) -> Option<&LaneSnapshot> {
    stats.lanes.first()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_shows_what_it_does_while_it_fails_sends_again_and_succeeds() {
    let (dir, segment) = (spool(), segment().await);
    segment.set_rules(vec![
        Rule::always(Answer::status(503)).times(1),
        Rule::always(Answer::Hang).times(1),
    ]);
    let settings = [
        ("RETRY__BASE", "1s"),
        ("RETRY__MAX", "1s"),
        ("SEGMENT__TIMEOUT", "2s"),
    ];
    let relay = Relay::start(dir.path(), &segment.url(), &settings).await;
    relay.track("KEY-ONE", &ids("e", 0..3)).await;
    let state = |wanted: LaneState| {
        move |stats: &Snapshot| lane(stats).is_some_and(|lane| lane.state == wanted)
    };
    let stats = relay.until(state(LaneState::BackingOff)).await;
    let waiting = lane(&stats).expect("a lane");
    assert_eq!(waiting.reason.as_deref(), Some("answered 503"));
    assert!(waiting.retry_in_seconds.is_some());

    // The call that hangs: it sends, and has nothing to wait for.
    let stats = relay.until(state(LaneState::Sending)).await;
    let sending = lane(&stats).expect("a lane");
    assert_eq!((sending.in_flight_batches, sending.attempt), (1, 1));
    assert_eq!((&sending.reason, sending.retry_in_seconds), (&None, None));
    assert_eq!(sending.last_error.as_deref(), Some("answered 503"));

    let stats = relay.until(state(LaneState::Idle)).await;
    assert_eq!(stats.delivery.events, 3);
    let idle = lane(&stats).expect("a lane");
    assert_eq!((&idle.reason, &idle.last_error), (&None, &None));
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_and_the_time_to_drain_follow_what_comes_and_goes() {
    let (dir, segment) = (spool(), segment().await);
    segment.down().await;
    let mut relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    relay.track("KEY-ONE", &ids("e", 0..2000)).await;
    let stats = relay
        .until(|stats| lane(stats).is_some_and(|lane| lane.attempt > 0))
        .await;
    assert!(stats.ingest.events_per_second > 100.0);
    assert!(stats.ingest.events_per_second_5m > 100.0);
    assert_eq!(stats.delivery.events_per_second, 0.0);
    assert_eq!(stats.delivery.drain_eta_seconds, None, "it only grows");
    assert!(relay.stop().await.success());

    segment.up().await.expect("the port is kept");
    let settings = [("SEGMENT__MAX_EVENTS_PER_SECOND", "100")];
    let relay = Relay::start(dir.path(), &segment.url(), &settings).await;
    let stats = relay
        .until(|stats| stats.delivery.drain_eta_seconds.is_some())
        .await;
    let pace = stats.delivery.events_per_second;
    assert!((10.0..=300.0).contains(&pace), "{pace}");
    assert!(stats.delivery.events_per_second_5m > 10.0);
    let eta = stats.delivery.drain_eta_seconds.expect("seconds");
    let expected = stats.queue.events as f64 / pace;
    assert!(
        (eta / expected - 1.0).abs() < 0.1,
        "{eta} is not {expected}"
    );

    let id = &lane(&stats).expect("a lane").id;
    let pause = format!("{}/lanes/{id}/pause", relay.admin);
    client().post(pause).send().await.expect("an answer");
    let stats = relay.stats().await;
    let paused = lane(&stats).expect("a lane");
    assert_eq!(paused.state, LaneState::Paused);
    assert_eq!(paused.reason.as_deref(), Some("paused by an operator"));
    assert_eq!(
        stats.delivery.drain_eta_seconds, None,
        "it waits for somebody"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn head_is_answered_as_get_without_a_body() {
    let (dir, segment) = (spool(), segment().await);
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let client = client();
    for path in ["/stats", "/healthz", "/readyz", "/lanes", "/dead-letters"] {
        let url = format!("{}{path}", relay.admin);
        let got = client.get(&url).send().await.expect("an answer");
        let head = client.head(&url).send().await.expect("an answer");
        assert_eq!(head.status(), got.status(), "{path}");
        let content_type = |reply: &reqwest::Response| reply.headers()["content-type"].clone();
        assert_eq!(content_type(&head), content_type(&got), "{path}");
        assert!(head.bytes().await.expect("a body").is_empty(), "{path}");
    }
    let refused = client
        .request(Method::PUT, format!("{}/stats", relay.admin))
        .send()
        .await
        .expect("an answer");
    assert_eq!(refused.status(), 405);
    assert_eq!(refused.headers()["allow"], "GET, HEAD");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_begins_with_the_past_and_the_present_and_goes_on_every_second() {
    let (dir, segment) = (spool(), segment().await);
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    relay.track("KEY-ONE", &ids("e", 0..50)).await;
    // By then a whole point of the history is over.
    relay.until(|stats| stats.uptime_seconds > 5.5).await;
    let asked = Instant::now();
    let mut watcher = Watcher::open(&relay, "/stats/stream")
        .await
        .expect("opened");
    let (name, history) = watcher.next().await.expect("the past");
    assert_eq!(name, "history");
    let history: History = serde_json::from_value(history).expect("a history");
    let accepted: f64 = history
        .points
        .iter()
        .map(|point| point.accepted_per_second * history.interval_seconds as f64)
        .sum();
    assert!((accepted - 50.0).abs() < 0.01, "{history:?}");
    let (name, now) = watcher.next().await.expect("the present");
    let snapshot = |data| serde_json::from_value::<Snapshot>(data).expect("a snapshot");
    assert_eq!(
        (name.as_str(), snapshot(now).ingest.accepted_events),
        ("", 50)
    );
    assert!(asked.elapsed() < Duration::from_millis(900), "at once");

    relay.track("KEY-ONE", &ids("f", 0..50)).await;
    let mut last = snapshot(watcher.next().await.expect("the next second").1);
    while last.delivery.events < 100 {
        let next = snapshot(watcher.next().await.expect("the next second").1);
        let between = next.uptime_seconds - last.uptime_seconds;
        assert!((0.2..=5.0).contains(&between), "{between}");
        last = next;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_may_watch_and_no_more() {
    let (dir, segment) = (spool(), segment().await);
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let mut watchers = Vec::new();
    let refused = loop {
        let path = ["/stats/stream", "/tail"][watchers.len() % 2];
        match Watcher::open(&relay, path).await {
            Ok(watcher) => watchers.push(watcher),
            Err(refused) => break refused,
        }
    };
    assert_eq!((watchers.len(), refused.status().as_u16()), (32, 503));
    assert!(refused.headers().contains_key("retry-after"));
    drop(watchers.pop());
    within(async { while Watcher::open(&relay, "/tail").await.is_err() {} }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_with_the_daemon_and_do_not_hold_it_up() {
    let (dir, segment) = (spool(), segment().await);
    let mut relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let mut stats = Watcher::open(&relay, "/stats/stream")
        .await
        .expect("opened");
    let mut tail = Watcher::open(&relay, "/tail").await.expect("opened");
    let stopping = Instant::now();
    assert!(relay.stop().await.success());
    assert!(stopping.elapsed() < Duration::from_secs(4));
    while stats.next().await.is_some() {}
    while tail.next().await.is_some() {}
    assert!(!relay.log().contains("cut off"));
}
