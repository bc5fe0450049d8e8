//! Harry it: random faults of applications, of Segment and of the daemon itself, all at once. In the end everything answered 200 has
//! arrived, the counters agree, and memory is where it was.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use segspool::stand_in::{Answer, Match, Options, Rule, StandIn};
use segspool::stats::Snapshot;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::chance::{Chance, setting};
use crate::support::{Poster, Relay, client, ids, spool, within};

const SECONDS: u64 = 10;
const APPLICATIONS: usize = 4;
const KEYS: [&str; 3] = ["KEY-ONE1", "KEY-TWO2", "KEY-SIX6"];
const SETTINGS: [(&str, &str); 5] = [
    ("QUEUE__VOLUME_BYTES", "1 MiB"),
    ("SEGMENT__MAX_BATCH_EVENTS", "500"),
    ("SEGMENT__TIMEOUT", "300ms"),
    ("RETRY__HOLD_PROBE", "100ms"),
    ("RETRY__MAX", "100ms"),
];
const REQUEST_EVENTS_MAX: u64 = 200;
/// All messageIds are remembered: in a long run fewer come a second.
const EVENTS_MAX: u64 = 3_000_000;
const EVENTS_A_SECOND_MAX: u64 = 20_000;
/// Memory may end higher than it was by this: an allocator is not exact.
const GROWTH_MAX: f64 = 8e6;

/// Where applications post, none while the daemon is gone; and whether they are to end.
#[derive(Clone, Default)]
struct Scene {
    ingest: Option<(Poster, String)>,
    is_over: bool,
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_arrives_whatever_fails_at_once_and_memory_stays_flat() {
    let seconds = setting("SECONDS").unwrap_or(SECONDS);
    let mut chance = Chance::new("chaos");
    let dir = spool();
    let segment = StandIn::start(Options::default()).await;
    let segment = Arc::new(segment.expect("a free port"));
    let url = segment.url();
    let (scene, seen) = watch::channel(Scene::default());
    let applications: Vec<_> = (0..APPLICATIONS)
        .map(|number| {
            let chance = chance.fork();
            tokio::spawn(application(number, chance, seen.clone(), pace(seconds)))
        })
        .collect();
    let faults = tokio::spawn(fail(Arc::clone(&segment), chance.fork(), seen.clone()));

    // In its first half the daemon dies again and again; in the second its memory is watched.
    let begun = Instant::now();
    let half = Duration::from_secs(seconds) / 2;
    let mut lives = 0;
    while begun.elapsed() < half {
        let mut relay = appear(dir.path(), &url, &scene).await;
        let until = Instant::now() + half / 20 + chance.within(half / 5);
        while Instant::now() < until {
            meddle(&relay, &mut chance).await;
        }
        scene.send_modify(|scene| scene.ingest = None);
        if chance.below(2) == 0 {
            relay.signal(Signal::TERM);
            sleep(chance.within(Duration::from_millis(300))).await;
        }
        relay.kill();
        lives += 1;
    }
    let relay = appear(dir.path(), &url, &scene).await;
    let (begun, mut memory) = (Instant::now(), Vec::new());
    while begun.elapsed() < half {
        meddle(&relay, &mut chance).await;
        memory.push((
            begun.elapsed().as_secs_f64(),
            relay.memory_bytes("VmRSS") as f64,
        ));
    }

    scene.send_modify(|scene| scene.is_over = true);
    let mut answered = Vec::new();
    for application in applications {
        answered.extend(within(application).await.expect("no panic"));
    }
    within(faults).await.expect("no panic");
    let stats = settle(&relay).await;

    let is_lost = |id: &&String| segment.times_delivered(id) == 0;
    let lost: Vec<_> = answered.iter().filter(is_lost).collect();
    let tally = segment.tally();
    println!(
        "chaos: {seconds} s, {} lives, {} events answered 200, {} lost, {} delivered more than once, {} answers of Segment, memory {:.1} MB at most, growing by {:.1} KB/s",
        lives + 1,
        answered.len(),
        lost.len(),
        tally.duplicate_events,
        tally.answers.values().sum::<u64>(),
        memory.iter().map(|(_, bytes)| *bytes).fold(0.0, f64::max) / 1e6,
        slope(&memory) / 1e3,
    );
    assert!(lost.is_empty(), "lost {lost:?}");
    assert!(tally.violations.is_empty(), "{:?}", tally.violations);
    for lane in &stats.lanes {
        assert!(lane.conservation().holds(), "{lane:?}");
    }
    let queue = stats.queue;
    assert_eq!((queue.lost_events, queue.quarantined_volumes), (0, 0));
    assert!(
        answered.len() as u64 > seconds * 100,
        "there was hardly any load"
    );
    let quarter = memory.len() / 4;
    let grown = mean(&memory[memory.len() - quarter..]) - mean(&memory[quarter..2 * quarter]);
    assert!(grown < GROWTH_MAX, "memory has grown by {grown} bytes");
}

async fn appear(dir: &std::path::Path, url: &str, scene: &watch::Sender<Scene>) -> Relay {
    let relay = Relay::start(dir, url, &SETTINGS).await;
    scene.send_modify(|scene| {
        scene.ingest = Some((relay.poster(), relay.addresses[0].clone()));
    });
    relay
}

/// What an operator may do at any time.
async fn meddle(relay: &Relay, chance: &mut Chance) {
    sleep(chance.within(Duration::from_millis(100))).await;
    let lane = chance.below(KEYS.len() as u64) as usize;
    match chance.below(6) {
        0 => relay.signal(Signal::HUP),
        1 => command(relay, lane, "pause").await,
        2 | 3 => command(relay, lane, "resume").await,
        4 => post(relay, "/dead-letters/replay?all=true").await,
        _ => {}
    }
}

/// Has a lane paused or resumed, where there is one.
async fn command(relay: &Relay, lane: usize, what: &str) {
    let stats = relay.stats().await;
    if let Some(lane) = stats.lanes.get(lane) {
        post(relay, &format!("/lanes/{}/{what}", lane.id)).await;
    }
}

async fn post(relay: &Relay, path: &str) {
    let reply = client().post(format!("{}{path}", relay.admin)).send().await;
    let status = reply.expect("an answer").status();
    assert!(status.is_success(), "{path}: {status}");
}

/// Lets everything come to its end now that nothing fails any more. What is left of the dead letters was rejected at the door.
async fn settle(relay: &Relay) -> Snapshot {
    let mut letters = u64::MAX;
    loop {
        let stats = relay.stats().await;
        for lane in &stats.lanes {
            post(relay, &format!("/lanes/{}/resume", lane.id)).await;
        }
        let stats = relay.until(|stats| stats.queue.events == 0).await;
        if stats.dead_letters.events == letters {
            return stats;
        }
        letters = stats.dead_letters.events;
        post(relay, "/dead-letters/replay?all=true").await;
    }
}

/// Segment, failing in all its ways until all is over. It is left well and up.
async fn fail(segment: Arc<StandIn>, mut chance: Chance, scene: watch::Receiver<Scene>) {
    while !scene.borrow().is_over {
        let key = KEYS[chance.below(KEYS.len() as u64) as usize];
        let lane = Match {
            write_key: Some(key.into()),
            ..Match::default()
        };
        let poison = Match {
            contains: Some(format!("-{}\"", chance.below(REQUEST_EVENTS_MAX))),
            ..Match::default()
        };
        let rule = match chance.below(11) {
            0 => Rule::always(Answer::status(500)),
            1 => Rule::always(Answer::status(502)),
            2 => Rule::always(Answer::rate_limited("0")),
            3 => Rule::always(Answer::Reset),
            4 => Rule::when(lane, Answer::Hang),
            5 => Rule::when(lane, Answer::status(401)),
            6 => Rule::when(lane, Answer::rate_limited("1")).times(2),
            7 => Rule::always(Answer::ResetAfterAccepting).times(3),
            8 => Rule::when(poison, Answer::status(400)).times(40),
            _ => Rule::when(lane, Answer::status(200)),
        };
        segment.set_rules(vec![rule]);
        sleep(chance.within(Duration::from_millis(300))).await;
        if chance.below(20) == 0 {
            segment.down().await;
            sleep(chance.within(Duration::from_millis(300))).await;
            segment.up().await.expect("the port is kept");
        }
    }
    segment.set_rules(Vec::new());
}

/// How long an application waits between two requests, at most.
fn pace(seconds: u64) -> Duration {
    let events_a_second = EVENTS_A_SECOND_MAX.min(EVENTS_MAX / seconds.max(1));
    let requests = events_a_second / (REQUEST_EVENTS_MAX / 2);
    Duration::from_secs(2 * APPLICATIONS as u64) / requests.max(1) as u32
}

/// Posts until all is over, well or badly. Returns what was answered 200.
async fn application(
    number: usize,
    mut chance: Chance,
    mut scene: watch::Receiver<Scene>,
    pace: Duration,
) -> Vec<String> {
    let mut answered = Vec::new();
    for request in 0u64.. {
        let there = scene.wait_for(|scene| scene.is_over || scene.ingest.is_some());
        let there = there.await.expect("the scene stays").clone();
        let Some((ingest, address)) = there.ingest.filter(|_| !there.is_over) else {
            break;
        };
        let key = KEYS[chance.below(KEYS.len() as u64) as usize];
        let events = match chance.below(3) {
            0 => 1,
            _ => 1 + chance.below(REQUEST_EVENTS_MAX) as usize,
        };
        match chance.below(12) {
            0 => break_off(&address, chance.below(200) as usize),
            1 => refuse(&ingest, key, &mut chance).await,
            _ => {
                let ids = ids(&format!("a{number}-r{request}"), 0..events);
                if ingest.try_track(key, &ids).await {
                    answered.extend(ids);
                }
            }
        }
        sleep(chance.within(pace)).await;
    }
    answered
}

/// An application that dies in the middle of a request.
fn break_off(address: &str, sent: usize) {
    let body = "x".repeat(1000);
    let request = format!(
        "POST /v1/batch HTTP/1.1\r\nhost: {address}\r\ncontent-length: 100000\r\n\r\n{body}"
    );
    // The daemon may be gone already.
    if let Ok(mut stream) = TcpStream::connect(address) {
        let _ = stream.write_all(&request.as_bytes()[..sent]);
    }
}

/// A body that cannot be taken.
async fn refuse(ingest: &Poster, key: &str, chance: &mut Chance) {
    let body = ["", "{", "[]", "{\"batch\":[{}]}", "\u{0}", "{\"batch\":7}"];
    let body = body[chance.below(body.len() as u64) as usize];
    if let Ok(reply) = ingest.post("/v1/batch", key, body).await {
        assert_eq!(reply.status(), 400, "{body}");
    }
}

/// By how much a series grows in a second, as least squares have it.
fn slope(series: &[(f64, f64)]) -> f64 {
    let count = series.len() as f64;
    let (x, y) = series.iter().fold((0.0, 0.0), |(x, y), at| {
        (x + at.0 / count, y + at.1 / count)
    });
    let (above, below) = series.iter().fold((0.0, 0.0), |(above, below), at| {
        (above + (at.0 - x) * (at.1 - y), below + (at.0 - x).powi(2))
    });
    above / below
}

fn mean(series: &[(f64, f64)]) -> f64 {
    series.iter().map(|(_, bytes)| bytes).sum::<f64>() / series.len() as f64
}
