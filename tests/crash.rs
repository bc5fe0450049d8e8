//! Kill it: thirty lives end by SIGKILL under load, with Segment up and down, and every event answered 200 arrives.

#![allow(
    clippy::print_stdout,
    reason = "the figures are for whoever runs it with --nocapture"
)]

#[path = "support/mod.rs"]
mod support;

use std::sync::Arc;

use futures_util::future::join_all;
use rustix::process::Signal;
use segspool::stand_in::{Options, StandIn};
use tokio::sync::watch;

use support::{Poster, Relay, ids, within};

const ROUNDS: usize = 30;
const APPLICATIONS: usize = 4;
/// Events a request: from a lone track to a batch that makes several records.
const REQUEST_EVENTS: [usize; APPLICATIONS] = [1, 10, 100, 700];

/// When a life ends, counted in requests answered 200, so that it ends at all sorts of places whatever the machine's pace.
fn life_of(round: usize) -> usize {
    [0, 1, 2, 5, 17, 40, 90][round % 7] + round
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_answered_200_arrives_though_the_daemon_is_killed_thirty_times() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let segment = StandIn::start(Options::default())
        .await
        .expect("a free port");
    // Small volumes, so that lives also end while volumes are sealed, made and deleted.
    let settings = [
        ("QUEUE__VOLUME_BYTES", "1 MiB"),
        ("SEGMENT__MAX_BATCH_EVENTS", "500"),
    ];
    let mut answered: Vec<String> = Vec::new();
    let mut up = true;
    for round in 0..ROUNDS {
        if (round % 3 != 1) != up {
            up = !up;
            if up {
                segment.up().await.expect("the port is kept")
            } else {
                segment.down().await
            }
        }
        let mut relay = Relay::start(dir.path(), &segment.url(), &settings).await;
        let count = Arc::new(watch::Sender::new(0));
        let mut reached = count.subscribe();
        let applications = tokio::spawn(post_until_gone(relay.poster(), round, count));
        within(reached.wait_for(|count| *count >= life_of(round)))
            .await
            .expect("the applications go on");
        if round % 5 == 4 {
            // It is on its way out when it is killed.
            relay.signal(Signal::TERM);
        }
        relay.kill();
        answered.extend(within(applications).await.expect("no panic"));
    }
    if !up {
        segment.up().await.expect("the port is kept");
    }
    let mut relay = Relay::start(dir.path(), &segment.url(), &settings).await;
    let stats = relay.until(|stats| stats.queue.events == 0).await;
    assert!(relay.stop().await.success());

    let lost: Vec<_> = answered
        .iter()
        .filter(|id| segment.times_delivered(id) == 0)
        .collect();
    let tally = segment.tally();
    println!(
        "{ROUNDS} kills: {} events answered 200, {} lost, {} delivered more than once, {} recovered at the last start",
        answered.len(),
        lost.len(),
        tally.duplicate_events,
        stats.queue.recovered_events,
    );
    assert!(
        answered.len() > 10_000,
        "there was hardly any load: {}",
        answered.len()
    );
    assert!(lost.is_empty(), "lost {lost:?}");
    assert!(tally.violations.is_empty(), "{:?}", tally.violations);
    assert_eq!(
        (stats.queue.lost_events, stats.queue.quarantined_volumes),
        (0, 0)
    );
    assert_eq!(
        std::fs::read_dir(dir.path().join("volumes"))
            .expect("a directory")
            .count(),
        0,
        "the disk came back"
    );
}

/// Applications that post until the daemon is gone.
async fn post_until_gone(
    ingest: Poster,
    round: usize,
    count: Arc<watch::Sender<usize>>,
) -> Vec<String> {
    let applications = REQUEST_EVENTS.into_iter().enumerate().map(|(n, events)| {
        let (ingest, count) = (ingest.clone(), Arc::clone(&count));
        async move {
            let mut answered = Vec::new();
            for from in (0..).step_by(events) {
                let ids = ids(&format!("r{round}-a{n}"), from..from + events);
                if !ingest.try_track(["KEY-ONE", "KEY-TWO"][n % 2], &ids).await {
                    break;
                }
                answered.extend(ids);
                count.send_modify(|count| *count += 1);
            }
            answered
        }
    });
    join_all(applications).await.concat()
}
