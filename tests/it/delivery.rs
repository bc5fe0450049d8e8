//! What delivery does with each answer of the destination.

use segspool::stand_in::{Answer, Match, Rule, StandIn};
use segspool::stats::LaneState;

use crate::support::{Relay, ids, segment, spool, within};

async fn start(rules: Vec<Rule>, settings: &[(&str, &str)]) -> (tempfile::TempDir, StandIn, Relay) {
    let dir = spool();
    let segment = segment().await;
    segment.set_rules(rules);
    let relay = Relay::start(dir.path(), &segment.url(), settings).await;
    (dir, segment, relay)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_poisoned_event_of_a_full_batch_is_buried_and_the_others_are_delivered_once() {
    let poison = Match {
        contains: Some("poison".into()),
        ..Match::default()
    };
    let (_dir, segment, relay) = start(vec![Rule::when(poison, Answer::status(400))], &[]).await;
    let mut sent = ids("e", 0..2499);
    sent.insert(1234, "poison".into());
    relay.track("KEY12345", &sent).await;
    let stats = relay.until(|stats| stats.queue.events == 0).await;
    assert_eq!(stats.dead_letters.events, 1);
    let tally = segment.tally();
    assert_eq!((tally.distinct_events, tally.duplicate_events), (2499, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_passing_fault_is_retried_until_the_events_are_delivered() {
    for answer in [
        Answer::status(500),
        Answer::status(502),
        Answer::status(429),
        Answer::status(408),
        Answer::status(410),
        Answer::status(460),
        Answer::status(529),
        Answer::status(302),
        Answer::Reset,
    ] {
        let (_dir, segment, relay) = start(vec![Rule::always(answer.clone()).times(3)], &[]).await;
        relay.track("KEY12345", &ids("e", 0..10)).await;
        let stats = relay.until(|stats| stats.queue.events == 0).await;
        assert_eq!(
            (
                stats.delivery.events,
                stats.delivery.retries,
                stats.dead_letters.events
            ),
            (10, 3, 0),
            "{answer:?}"
        );
        assert_eq!(segment.tally().duplicate_events, 0);
        assert_eq!(
            (stats.lanes[0].attempt, stats.lanes[0].reason.clone()),
            (0, None)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_hangs_is_given_up_after_the_timeout_and_tried_again() {
    let settings = [("SEGMENT__TIMEOUT", "200ms")];
    let (_dir, segment, relay) = start(vec![Rule::always(Answer::Hang).times(1)], &settings).await;
    relay.track("KEY12345", &ids("e", 0..10)).await;
    within(segment.until(|tally| tally.distinct_events == 10)).await;
    relay.until(|stats| stats.queue.events == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_is_asked_for_is_kept_and_does_not_count_as_a_failure() {
    let (_dir, segment, relay) =
        start(vec![Rule::always(Answer::rate_limited("1")).times(1)], &[]).await;
    let asked = std::time::Instant::now();
    relay.track("KEY12345", &ids("e", 0..10)).await;
    let limited = relay
        .until(|stats| {
            stats
                .lanes
                .first()
                .is_some_and(|l| l.state == LaneState::RateLimited)
        })
        .await;
    assert_eq!(limited.lanes[0].attempt, 0);
    within(segment.until(|tally| tally.distinct_events == 10)).await;
    assert!(asked.elapsed().as_secs_f64() >= 0.99, "it came back early");
    assert_eq!(segment.tally().retried_requests, 0, "X-Retry-Count");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_is_not_let_in_is_held_and_flows_again_by_itself() {
    for status in [401, 403, 404] {
        let (_dir, segment, relay) =
            start(vec![Rule::always(Answer::status(status)).times(2)], &[]).await;
        relay.track("KEY12345", &ids("e", 0..10)).await;
        let held = relay
            .until(|stats| {
                stats
                    .lanes
                    .first()
                    .is_some_and(|l| l.state == LaneState::Held)
            })
            .await;
        assert_eq!(held.lanes[0].last_status, Some(status));
        within(segment.until(|tally| tally.distinct_events == 10)).await;
        let stats = relay.until(|stats| stats.queue.events == 0).await;
        assert_eq!(stats.dead_letters.events, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_event_leaves_within_the_linger_without_further_traffic() {
    let (_dir, segment, relay) = start(Vec::new(), &[("SEGMENT__LINGER", "300ms")]).await;
    let posted = std::time::Instant::now();
    relay.track("KEY12345", &ids("e", 0..1)).await;
    within(segment.until(|tally| tally.distinct_events == 1)).await;
    assert!(
        posted.elapsed().as_millis() >= 290,
        "it did not wait for others"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sent_at_is_the_time_of_each_attempt_and_events_carry_none() {
    let (_dir, segment, relay) = start(
        vec![Rule::always(Answer::status(503)).times(1)],
        &[("RETRY__BASE", "1s"), ("RETRY__MAX", "1s")],
    )
    .await;
    let body = r#"{"userId":"u","event":"E","sentAt":"2020-01-01T00:00:00Z","timestamp":"2020-01-01T00:00:00.000Z"}"#;
    let accepted_at = jiff::Timestamp::now();
    assert_eq!(
        relay.post("/v1/track", "KEY12345", body).await.status(),
        200
    );
    within(segment.until(|tally| tally.events == 1)).await;
    let recorded = segment.events().remove(0);
    let sent_at: jiff::Timestamp = recorded.sent_at.expect("a sentAt").parse().expect("a time");
    assert!(
        sent_at.duration_since(accepted_at).as_secs_f64() >= 0.7,
        "it is the first attempt's"
    );
    assert!(!recorded.event.get().contains("sentAt"));
    assert!(
        recorded
            .event
            .get()
            .contains("\"timestamp\":\"2020-01-01T00:00:00.000Z\"")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_compressed_where_the_operator_asks_for_it() {
    let (_dir, segment, relay) = start(Vec::new(), &[("SEGMENT__GZIP", "true")]).await;
    relay.track("KEY12345", &ids("e", 0..100)).await;
    let tally = within(segment.until(|tally| tally.distinct_events == 100)).await;
    assert!(tally.violations.is_empty());
}
