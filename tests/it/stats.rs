//! What an operator sees of the daemon: the snapshot, and the stream of it.

use reqwest::Method;
use segspool::stand_in::{Answer, Rule};
use segspool::stats::{LaneSnapshot, LaneState, Snapshot};

use crate::support::{Relay, client, ids, segment, spool};

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

    let stats = relay.until(|stats| stats.queue.events == 0).await;
    let stats = match lane(&stats).expect("a lane").state {
        LaneState::Idle => stats,
        _ => relay.until(state(LaneState::Idle)).await,
    };
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
