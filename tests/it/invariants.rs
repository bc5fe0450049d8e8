//! The invariants of the design, each proved by a test that bears its name.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};

use futures_util::FutureExt;
use segspool::ingest::{Ingest, Rules};
use segspool::queue::{self, Barrier, Queue, Repacking};
use segspool::server::{Activation, AdminConfig, IngestConfig, Phase, Server};
use segspool::stand_in::{Answer, Match, Rule};
use segspool::stats::{LaneState, Snapshot, Stats};
use tokio::sync::{mpsc, watch};

use crate::support::{Relay, client, ids, segment, spool, within};

/// The server and the queue in this process, with a barrier of the test's own. Nothing delivers.
struct Accepting {
    url: String,
    queue: Queue,
    _phase: watch::Sender<Phase>,
    _dir: tempfile::TempDir,
}

impl Accepting {
    async fn start(barrier: Barrier) -> Accepting {
        let dir = spool();
        let loopback: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let ingest = IngestConfig {
            listen: vec![loopback.into()],
            ..IngestConfig::default()
        };
        let admin = AdminConfig {
            listen: loopback,
            ..AdminConfig::default()
        };
        let server = Server::bind(&ingest, &admin, dir.path(), Activation::default())
            .await
            .expect("free ports");
        let (path, config) = (dir.path().join("spool"), queue::Config::default());
        let opening = tokio::task::spawn_blocking(move || {
            Queue::open_with(&path, &config, barrier, Repacking::WhenWorthIt)
        });
        let (queue, _) = opening.await.expect("no panic").expect("opened");
        let stats = Arc::new(Stats::default());
        let phase = watch::Sender::new(Phase::Running);
        let url = format!("http://{}", server.ingest_addresses()[0]);
        let ingest = Ingest::new(Rules::default(), queue.clone(), Arc::clone(&stats));
        let _serving = server.serve(Arc::new(ingest), queue.clone(), stats, phase.subscribe());
        Accepting {
            url,
            queue,
            _phase: phase,
            _dir: dir,
        }
    }

    fn post(&self, id: &str) -> impl Future<Output = reqwest::Response> + use<> {
        let request = client()
            .post(format!("{}/v1/track", self.url))
            .basic_auth("KEY12345", Some(""));
        let body = format!(r#"{{"userId":"u","event":"E","messageId":"{id}"}}"#);
        async move { request.body(body).send().await.expect("an answer") }
    }
}

/// A barrier at which every sync waits until it is let through with a result.
#[allow(clippy::type_complexity, reason = "it is said once")]
fn gate() -> (
    Barrier,
    mpsc::UnboundedReceiver<Sender<std::io::Result<()>>>,
) {
    let (arrive, arrivals) = mpsc::unbounded_channel();
    let arrive = Mutex::new(arrive);
    let barrier = Barrier::new(move |_| {
        let (let_through, result) = channel();
        let _ = arrive
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send(let_through);
        result.recv().unwrap_or(Ok(()))
    });
    (barrier, arrivals)
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_1_no_200_leaves_before_the_sync_of_its_events_has_returned() {
    let (barrier, mut syncs) = gate();
    let accepting = Accepting::start(barrier).await;
    let mut first = tokio::spawn(accepting.post("first"));
    let held = within(syncs.recv()).await.expect("the first event's sync");

    // The sync of the first event is under way and held. A second request comes and goes through everything but the sync, as its
    // rejection, which needs none, shows; whatever the first is to be answered would have been on its way long before.
    let rejected = client()
        .post(format!("{}/v1/track", accepting.url))
        .body("{}")
        .send()
        .await
        .expect("an answer");
    assert_eq!(rejected.status(), 400);
    assert!(
        (&mut first).now_or_never().is_none(),
        "answered before its sync returned"
    );
    assert_eq!(
        accepting.queue.depth().events,
        0,
        "published before its sync returned"
    );

    held.send(Ok(())).expect("the writer waits");
    let reply = within(first).await.expect("no panic");
    assert_eq!(
        (
            reply.status().as_u16(),
            reply.headers()["segspool-durability"].as_bytes()
        ),
        (200, &b"synced"[..])
    );
    assert_eq!(accepting.queue.depth().events, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_1_events_whose_sync_fails_are_answered_503_and_never_counted() {
    let (barrier, mut syncs) = gate();
    let accepting = Accepting::start(barrier).await;
    let first = tokio::spawn(accepting.post("first"));
    let held = within(syncs.recv()).await.expect("the first event's sync");
    held.send(Err(std::io::Error::from_raw_os_error(5)))
        .expect("the writer waits");
    let reply = within(first).await.expect("no panic");
    assert_eq!(reply.status(), 503);
    assert!(reply.headers().contains_key("retry-after"));
    assert_eq!(accepting.queue.depth().events, 0);

    // The next one goes to a new volume.
    let second = tokio::spawn(accepting.post("second"));
    let held = within(syncs.recv()).await.expect("the second event's sync");
    held.send(Ok(())).expect("the writer waits");
    assert_eq!(within(second).await.expect("no panic").status(), 200);
    assert_eq!(accepting.queue.depth().events, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_2_an_accepted_event_is_delivered_or_a_dead_letter_with_its_reason() {
    let (dir, segment) = (spool(), segment().await);
    let poison = Match {
        contains: Some("poison".into()),
        ..Match::default()
    };
    segment.set_rules(vec![Rule::when(poison, Answer::status(400))]);
    let mut relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let mut sent = ids("good", 0..500);
    sent.insert(137, "poison".into());
    relay.track("KEY12345", &sent).await;

    let stats = relay
        .until(|stats| stats.queue.events == 0 && stats.ingest.accepted_events == 501)
        .await;
    assert_eq!(
        (
            stats.delivery.events,
            stats.lanes[0].dead_letter_events,
            stats.dead_letters.events
        ),
        (500, 1, 1)
    );
    assert!(
        ids("good", 0..500)
            .iter()
            .all(|id| segment.times_delivered(id) == 1)
    );
    assert_eq!(segment.times_delivered("poison"), 0);
    assert_eq!(segment.tally().duplicate_events, 0);

    assert!(relay.stop().await.success());
    let letters = dead_letters(dir.path()).await;
    assert_eq!(
        (letters.len(), letters[0].status, letters[0].code.as_str()),
        (1, Some(400), "refused")
    );
    assert!(String::from_utf8_lossy(&letters[0].event).contains("poison"));
}

async fn dead_letters(data_dir: &std::path::Path) -> Vec<queue::DeadLetter> {
    let (data_dir, config) = (data_dir.to_owned(), queue::Config::default());
    let opening = tokio::task::spawn_blocking(move || Queue::open(&data_dir, &config));
    let (queue, _) = opening.await.expect("no panic").expect("opened");
    let letters = queue.dead_letters().all().await;
    queue.close().await;
    letters
}

fn assert_conserved(stats: &Snapshot) {
    for lane in &stats.lanes {
        let law = lane.conservation();
        assert!(law.holds(), "{law:?} of {lane:?}");
    }
    let accepted: u64 = stats.lanes.iter().map(|lane| lane.accepted_events).sum();
    assert_eq!(accepted, stats.ingest.accepted_events);
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_3_per_lane_what_came_is_what_went_and_what_waits() {
    let (dir, segment) = (spool(), segment().await);
    let refused = Match {
        contains: Some("refuse".into()),
        ..Match::default()
    };
    let rules = vec![
        Rule::when(refused, Answer::status(400)),
        Rule::always(Answer::status(503)).times(3),
    ];
    segment.set_rules(rules);
    let mut came = 0;
    for life in 0..3 {
        let mut relay = Relay::start(dir.path(), &segment.url(), &[]).await;
        let recovered = relay.stats().await.queue.recovered_events;
        for (lane, key) in ["KEY-ONE", "KEY-TWO"].into_iter().enumerate() {
            let mut sent = ids(&format!("{life}-{lane}"), 0..200 + 50 * life);
            sent[17] = format!("refuse-{life}-{lane}");
            relay.track(key, &sent).await;
            came += sent.len() as u64;
        }
        if life == 1 {
            // What this life accepts is left to the next one.
            segment.down().await;
            relay.track("KEY-ONE", &ids("late", 0..77)).await;
            came += 77;
            // Quiet: both lanes wait for their next try with nothing in flight.
            let quiet = |s: &Snapshot| s.lanes.iter().all(|l| l.in_flight_batches == 0);
            assert_conserved(&relay.until(quiet).await);
            assert!(relay.stop().await.success());
            segment.up().await.expect("the port is kept");
            continue;
        }
        let stats = relay.until(|stats| stats.queue.events == 0).await;
        assert_conserved(&stats);
        if life == 2 {
            assert!(recovered > 0, "the second life left something");
        }
        assert!(relay.stop().await.success());
    }
    let tally = segment.tally();
    assert_eq!(
        tally.distinct_events + dead_letters(dir.path()).await.len() as u64,
        came
    );
    assert!(tally.violations.is_empty(), "{:?}", tally.violations);
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_4_duplicates_are_what_was_in_flight_and_carry_their_message_id() {
    let (dir, segment) = (spool(), segment().await);
    segment.set_rules(vec![Rule::always(Answer::ResetAfterAccepting).times(2)]);
    let settings = [
        ("SEGMENT__CONCURRENCY", "1"),
        ("SEGMENT__MAX_BATCH_EVENTS", "50"),
    ];
    let mut relay = Relay::start(dir.path(), &segment.url(), &settings).await;
    relay.track("KEY12345", &ids("e", 0..500)).await;
    relay.until(|stats| stats.queue.events == 0).await;
    let tally = segment.tally();
    assert_eq!((tally.distinct_events, tally.anonymous_events), (500, 0));
    assert_eq!(
        tally.duplicate_events, 100,
        "two calls of fifty were taken and not answered"
    );
    assert!(
        tally.retry_count_max >= 1,
        "the destination is told that it is a retry"
    );

    // A crash with calls in flight that hang: they are sent again, the rest once.
    segment.answer(Answer::Hang);
    relay.track("KEY12345", &ids("f", 0..200)).await;
    within(segment.until(|tally| tally.hanging_batches == 1)).await;
    relay.kill();
    segment.answer(Answer::Ok);
    let relay = Relay::start(dir.path(), &segment.url(), &settings).await;
    relay.until(|stats| stats.queue.events == 0).await;
    let again = segment.tally();
    assert_eq!(again.distinct_events, 700);
    // What hung may have been counted when the rules changed; what was settled just before the kill may come again.
    assert!(
        again.duplicate_events - tally.duplicate_events <= 500 + 50,
        "{again:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_7_one_lanes_trouble_never_delays_another_lane_nor_the_200() {
    let (dir, segment) = (spool(), segment().await);
    let for_key = |key: &str| Match {
        write_key: Some(key.into()),
        ..Match::default()
    };
    segment.set_rules(vec![
        Rule::when(for_key("HANGING"), Answer::Hang),
        Rule::when(for_key("FORBIDDEN"), Answer::status(401)),
        Rule::when(for_key("FAILING"), Answer::status(503)),
        Rule::when(for_key("LIMITED"), Answer::rate_limited("3600")),
    ]);
    let relay = Relay::start(dir.path(), &segment.url(), &[("SEGMENT__TIMEOUT", "300s")]).await;
    for key in ["HANGING", "FORBIDDEN", "FAILING", "LIMITED"] {
        relay.track(key, &ids(key, 0..3000)).await;
    }
    within(segment.until(|tally| tally.hanging_batches >= 1 && tally.answers.len() >= 3)).await;
    relay.track("FLOWING", &ids("flowing", 0..3000)).await;
    within(segment.until(|tally| tally.distinct_events == 3000)).await;

    let stats = relay
        .until(|stats| {
            let held = stats.lanes.iter().any(|lane| lane.state == LaneState::Held);
            held && stats.delivery.events == 3000
        })
        .await;
    assert_eq!(
        stats.queue.events,
        4 * 3000,
        "no lane in trouble lost an event"
    );
    let limited = stats
        .lanes
        .iter()
        .find(|lane| lane.state == LaneState::RateLimited)
        .expect("a limited lane");
    let wait = limited.retry_in_seconds.expect("it waits");
    assert!(
        (200.0..=300.0).contains(&wait),
        "the pause is capped at retry.max_retry_after: {wait}"
    );

    // Healed, everything arrives once.
    segment.set_rules(Vec::new());
    within(segment.until(|tally| tally.distinct_events >= 4 * 3000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_8_with_concurrency_1_a_lane_delivers_in_order_of_acceptance() {
    let (dir, segment) = (spool(), segment().await);
    let poison = Match {
        contains: Some("poison".into()),
        ..Match::default()
    };
    segment.set_rules(vec![
        Rule::always(Answer::status(503)).times(2),
        Rule::when(poison, Answer::status(413)),
        Rule::when(
            Match {
                over_events: Some(60),
                ..Match::default()
            },
            Answer::status(413),
        ),
        Rule::when(
            Match {
                contains: Some("n-333\"".into()),
                ..Match::default()
            },
            Answer::Reset,
        )
        .times(1),
    ]);
    let settings = [("SEGMENT__CONCURRENCY", "1")];
    let mut relay = Relay::start(dir.path(), &segment.url(), &settings).await;
    let sent = ids("n", 0..1000);
    for chunk in sent[..600].chunks(37) {
        relay.track("KEY12345", chunk).await;
    }
    relay.track("KEY12345", &["poison".into()]).await;
    relay.until(|stats| stats.delivery.events >= 100).await;
    assert!(relay.stop().await.success());
    let relay = Relay::start(dir.path(), &segment.url(), &settings).await;
    for chunk in sent[600..].chunks(37) {
        relay.track("KEY12345", chunk).await;
    }
    relay.until(|stats| stats.queue.events == 0).await;

    let mut arrived: Vec<String> = Vec::new();
    for recorded in segment.events() {
        let event: serde_json::Value =
            serde_json::from_str(recorded.event.get()).expect("an event");
        let id = event["messageId"].as_str().expect("an id").to_owned();
        // At the stop a call under way is dropped, so a stretch may come again; each event's first arrival is in order.
        if !arrived.contains(&id) {
            arrived.push(id);
        }
    }
    assert_eq!(arrived, sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_9_no_key_and_no_payload_reaches_a_log_a_reply_or_the_stats() {
    let (dir, segment) = (spool(), segment().await);
    let key = "SECRETKEYab12";
    segment.set_rules(vec![
        Rule::always(Answer::status(401)).times(1),
        Rule::always(Answer::Reset).times(1),
        Rule::always(Answer::status(400)).times(3),
    ]);
    let settings = [("LOG__LEVEL", "trace"), ("INGEST__WRITE_KEY", key)];
    let mut relay = Relay::start(dir.path(), &segment.url(), &settings).await;
    let mut replies = String::new();
    for (path, body) in [
        (
            "/v1/batch",
            r#"{"batch":[{"type":"track","userId":"PRIVATE","event":"PRIVATE"},{"type":"PRIVATE"}]}"#,
        ),
        ("/v1/track", r#"{"userId":"PRIVATE","event":"PRIVATE"}"#),
        ("/v1/track", r#"{"userId":"PRIVATE","event":{"PRIVATE":1}}"#),
        ("/v1/track", r#"{"PRIVATE":"#),
        ("/v1/PRIVATE", "{}"),
    ] {
        let reply = relay.post(path, key, body).await;
        replies += &format!(
            "{:?} {}",
            reply.headers().clone(),
            reply.text().await.expect("a body")
        );
    }
    let unwritable = format!("Basic {key}");
    let refused = client()
        .post(format!("{}/v1/track", relay.ingest))
        .header("authorization", &unwritable);
    replies += &refused
        .body("{}")
        .send()
        .await
        .expect("an answer")
        .text()
        .await
        .expect("a body");
    let stats = relay
        .until(|stats| stats.queue.events == 0 && stats.ingest.accepted_events == 2)
        .await;
    replies += &serde_json::to_string(&stats).expect("a snapshot");
    assert!(relay.stop().await.success());
    let log = relay.log();
    assert!(
        log.contains("held") && log.contains("backing off"),
        "there was something to log"
    );
    for text in [&log, &replies] {
        for secret in ["SECRET", "PRIVATE"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
    assert!(
        replies.contains("…ab12"),
        "a key is shown by its last four characters"
    );
}
