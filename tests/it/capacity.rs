//! The bound of the disk: what a lane in trouble may keep of it, and what happens when it is reached.

use segspool::stand_in::{Answer, Match, Rule};
use serde_json::json;

use crate::support::{Relay, noise, segment, spool, within};

const MIB: u64 = 1024 * 1024;
const MAX_BYTES: u64 = 16 * MIB;
const FLOWING: &str = "lane-flowing";
const HELD: &str = "lane-held";

/// What a request of the flowing lane holds, and how much it is.
const EVENTS: u64 = 20;
const EVENT_BYTES: usize = 20_000;

fn batch(name: &str, request: u64, events: u64, bytes: usize) -> String {
    let event = |n: u64| {
        let noise = noise(request * EVENTS + n, bytes);
        json!({"type":"track","userId":"u","event":"E","messageId":format!("{name}-{request}-{n}"),"properties":{"noise":noise}})
    };
    json!({ "batch": (0..events).map(event).collect::<Vec<_>>() }).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_is_held_for_ever_keeps_no_more_disk_than_its_own_events_need() {
    let (dir, segment) = (spool(), segment().await);
    let held = Match {
        write_key: Some(HELD.into()),
        ..Match::default()
    };
    segment.set_rules(vec![Rule::when(held, Answer::status(401))]);
    let max_bytes = MAX_BYTES.to_string();
    let settings = [
        ("QUEUE__MAX_BYTES", &max_bytes[..]),
        ("QUEUE__VOLUME_BYTES", "1 MiB"),
        ("RETRY__HOLD_PROBE", "1h"),
    ];
    let mut relay = Relay::start(dir.path(), &segment.url(), &settings).await;

    let (mut requests, mut held_events, mut stored_bytes, mut most) = (0, 0, 0, 0);
    while stored_bytes < 10 * MAX_BYTES {
        let body = batch("f", requests, EVENTS, EVENT_BYTES);
        let status = relay.post("/v1/batch", FLOWING, body).await.status();
        assert_eq!(status, 200, "request {requests}: {}", relay.log());
        if requests % 4 == 0 {
            let body = batch("h", requests, 1, 8_000);
            let status = relay.post("/v1/batch", HELD, body).await.status();
            assert_eq!(status, 200, "request {requests}: {}", relay.log());
            held_events += 1;
        }
        requests += 1;
        // It keeps up with an ordinary load.
        let stats = relay
            .until(|stats| stats.queue.events - held_events < 3 * EVENTS)
            .await;
        most = most.max(stats.queue.disk_bytes);
        stored_bytes = stats.delivery.bytes * 6 / 10;
    }
    let stats = relay.until(|stats| stats.queue.events == held_events).await;
    assert!(most <= MAX_BYTES, "{most} bytes");
    assert_eq!(stats.ingest.refused_requests, 0);
    assert!(stats.queue.repacked_volumes > 0);

    segment.set_rules(Vec::new());
    relay.stop().await;
    let relay = Relay::start(dir.path(), &segment.url(), &settings).await;
    within(segment.until(|tally| tally.distinct_events == requests * EVENTS + held_events)).await;
    let stats = relay.until(|stats| stats.queue.events == 0).await;
    assert_eq!((stats.queue.lost_events, stats.dead_letters.events), (0, 0));
    assert_eq!(segment.tally().duplicate_events, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_drops_its_oldest_events_and_counts_them_where_the_operator_wants_it() {
    let (dir, segment) = (spool(), segment().await);
    segment.set_rules(vec![Rule::always(Answer::status(500))]);
    let settings = [
        ("QUEUE__MAX_BYTES", "8 MiB"),
        ("QUEUE__VOLUME_BYTES", "1 MiB"),
        ("QUEUE__WHEN_FULL", "drop_oldest"),
        ("RETRY__BASE", "20ms"),
        ("RETRY__MAX", "50ms"),
        ("SEGMENT__CONCURRENCY", "1"),
    ];
    let relay = Relay::start(dir.path(), &segment.url(), &settings).await;
    let requests = 60;
    for request in 0..requests {
        let body = batch("f", request, EVENTS, EVENT_BYTES);
        let status = relay.post("/v1/batch", FLOWING, body).await.status();
        assert_eq!(status, 200, "request {request}: {}", relay.log());
        let stats = relay.stats().await;
        assert!(stats.queue.disk_bytes <= 8 * MIB, "{stats:?}");
        assert!(
            stats.lanes[0].conservation().holds(),
            "{:?}",
            stats.lanes[0]
        );
    }
    let dropped = relay.stats().await.queue.dropped_events;
    assert!(dropped > requests * EVENTS / 2, "{dropped} events");
    assert!(relay.log().contains("its oldest events are dropped"));

    segment.set_rules(Vec::new());
    let stats = relay.until(|stats| stats.queue.events == 0).await;
    let tally = segment.tally();
    assert_eq!(
        tally.distinct_events,
        requests * EVENTS - stats.queue.dropped_events
    );
    assert_eq!((tally.duplicate_events, stats.queue.lost_events), (0, 0));
    assert!(stats.queue.dropped_events <= dropped);
    assert!(
        stats.lanes[0].conservation().holds(),
        "{:?}",
        stats.lanes[0]
    );
    assert_eq!(stats.ingest.refused_requests, 0);
}
