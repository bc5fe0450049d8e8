//! The tail: what happens to single events, as an operator sees it. Never a payload.

use segspool::stand_in::{Answer, Rule};
use segspool::stats::{Sighting, TOLD_A_SECOND_MAX, What};
use serde_json::{Value, json};

use crate::support::watch::Watcher;
use crate::support::{Relay, ids, segment, spool};

async fn next(watcher: &mut Watcher) -> Sighting {
    let (name, sighting) = watcher.next().await.expect("it goes on");
    assert_eq!(name, "");
    serde_json::from_value(sighting).expect("a sighting")
}

fn order(event: &str) -> String {
    json!({"type": "track", "userId": "user-7", "event": event, "messageId": "m-1",
        "properties": {"card": "hush-hush"}})
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_told_of_as_it_is_accepted_and_delivered_without_what_it_holds() {
    let (dir, segment) = (spool(), segment().await);
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let mut watcher = Watcher::open(&relay, "/tail").await.expect("opened");
    relay
        .post("/v1/track", "KEY-SECRET-ab12", order("Order Completed"))
        .await;
    let (accepted, delivered) = (next(&mut watcher).await, next(&mut watcher).await);
    let lane = relay.stats().await.lanes[0].id.clone();
    for (sighting, what, status) in [
        (&accepted, What::Accepted, None),
        (&delivered, What::Delivered, Some(200)),
    ] {
        let expected = Sighting {
            time: sighting.time,
            what,
            lane: Some(lane.clone()),
            key: Some("…ab12".into()),
            kind: Some("track".into()),
            event: Some("Order Completed".into()),
            message_id: Some("m-1".into()),
            bytes: sighting.bytes,
            reason: None,
            status,
        };
        assert_eq!(*sighting, expected);
        assert!((100..400).contains(&sighting.bytes), "{}", sighting.bytes);
    }
    assert!(accepted.time <= delivered.time);
    for secret in ["hush", "user-7", "SECRET"] {
        assert!(!watcher.seen.contains(secret), "{}", watcher.seen);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_or_rejected_is_told_of_with_the_reason() {
    let (dir, segment) = (spool(), segment().await);
    segment.set_rules(vec![Rule::always(Answer::status(400))]);
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let mut refused = Watcher::open(&relay, "/tail?what=refused")
        .await
        .expect("opened");
    let mut rejected = Watcher::open(&relay, "/tail?what=rejected")
        .await
        .expect("opened");
    relay.post("/v1/track", "KEY-ab12", order("Poison")).await;
    let nobody = json!({"type": "track", "event": "Nobody", "messageId": "m-2"});
    relay
        .post("/v1/track", "KEY-ab12", nobody.to_string())
        .await;
    relay.post("/v1/batch", "KEY-ab12", "no JSON").await;

    let told = next(&mut refused).await;
    assert_eq!(
        (told.event.as_deref(), told.status),
        (Some("Poison"), Some(400))
    );
    let reason = told.reason.expect("a reason");
    assert!(reason.starts_with("refused: "), "{reason}");

    let told = next(&mut rejected).await;
    assert_eq!(
        (
            told.event.as_deref(),
            told.message_id.as_deref(),
            told.status
        ),
        (Some("Nobody"), Some("m-2"), None)
    );
    assert_eq!(told.key.as_deref(), Some("…ab12"));
    let reason = told.reason.expect("a reason");
    assert!(reason.starts_with("no_user_anon_id: "), "{reason}");
    let told = next(&mut rejected).await;
    assert_eq!(
        (told.what, told.kind, told.bytes),
        (What::Rejected, None, 7)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_lets_pass_what_it_names_and_a_misspelt_one_is_an_error() {
    let (dir, segment) = (spool(), segment().await);
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    relay.post("/v1/track", "KEY-ONE", order("First")).await;
    let stats = relay.until(|stats| stats.delivery.events == 1).await;
    let lane = &stats.lanes[0].id;
    let mut watchers = Vec::new();
    for (query, expected) in [
        (format!("lane={lane}&what=accepted"), "Wanted"),
        (
            "type=track&event=Wanted&what=delivered".to_owned(),
            "Wanted",
        ),
        ("type=page&what=accepted".to_owned(), "page"),
    ] {
        let path = format!("/tail?{query}");
        let watcher = Watcher::open(&relay, &path).await.expect("opened");
        watchers.push((watcher, query, expected));
    }
    let page = json!({"type": "page", "userId": "u", "name": "Home"}).to_string();
    relay.post("/v1/track", "KEY-TWO", order("Other")).await;
    relay.post("/v1/page", "KEY-TWO", page).await;
    relay.post("/v1/track", "KEY-ONE", order("Wanted")).await;
    for (watcher, query, expected) in &mut watchers {
        let told = next(watcher).await;
        let found = told.event.or(told.kind);
        assert_eq!(found.as_deref(), Some(*expected), "{query}");
    }
    for query in [
        "lane=7",
        "what=lost",
        "tpye=track",
        "type=a&type=b",
        "event=",
    ] {
        let refused = Watcher::open(&relay, &format!("/tail?{query}")).await;
        let refused = refused.err().expect(query);
        assert_eq!(refused.status(), 400, "{query}");
        let body = refused.bytes().await.expect("a body");
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body["code"], "invalid_parameter");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_a_sample_is_told_and_the_rest_is_counted() {
    const EVENTS: u64 = 20_000;
    let (dir, segment) = (spool(), segment().await);
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let mut watcher = Watcher::open(&relay, "/tail").await.expect("opened");
    let before = relay.stats().await.uptime_seconds;
    for number in 0..EVENTS / 1_000 {
        relay
            .track("KEY-ONE", &ids(&format!("e{number}"), 0..1_000))
            .await;
    }
    let (mut told, mut skipped) = (0, 0);
    while told + skipped < 2 * EVENTS {
        let (name, data) = watcher.next().await.expect("it goes on");
        match name.as_str() {
            "skipped" => skipped += data["events"].as_u64().expect("a number"),
            _ => told += 1,
        }
    }
    assert_eq!(told + skipped, 2 * EVENTS, "accepted, and delivered");
    let seconds = relay.stats().await.uptime_seconds - before;
    let told_max = (seconds as u64 + 2) * u64::from(TOLD_A_SECOND_MAX);
    assert!((1..=told_max).contains(&told), "{told} in {seconds} s");
}
