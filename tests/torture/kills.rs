//! Kill it: lives end by SIGKILL at all sorts of moments, with Segment up and down, and every event answered 200 arrives.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rustix::process::Signal;
use segspool::queue::examine;
use segspool::stand_in::{Answer, Match, Options, Rule, StandIn};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::chance::{Chance, setting};
use crate::support::{Poster, Relay, ids, within};

const ROUNDS: usize = 30;
const APPLICATIONS: usize = 4;
/// Events a request: from a lone track to a batch that makes several records.
const REQUEST_EVENTS: [usize; APPLICATIONS] = [1, 10, 100, 700];
const KEYS: [&str; 2] = ["KEY-ONE1", "KEY-TWO2"];
/// Small volumes, so that lives also end while volumes are sealed, made, repacked and deleted.
const SETTINGS: [(&str, &str); 2] = [
    ("QUEUE__VOLUME_BYTES", "1 MiB"),
    ("SEGMENT__MAX_BATCH_EVENTS", "500"),
];
/// Segment refuses an event with this in its messageId, so that it becomes a dead letter.
const POISON: &str = "poison";
/// The daemon saves its cursors ten times a second, and a busy disk takes a while to do it.
const UNSAVED: Duration = Duration::from_millis(300);
/// Calls of a lane under way at once, by default.
const CONCURRENCY: u64 = 4;
/// A start shorter than this has not grown.
const START_FLOOR: Duration = Duration::from_millis(300);

/// What the daemon is at when it is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// It takes events, delivers and buries.
    Load,
    /// It has been started, and may not be listening yet.
    Opening,
    /// It posts its dead letters again.
    Replaying,
    /// It was asked to stop.
    Draining,
}

const MOMENTS: [Moment; 6] = [
    Moment::Load,
    Moment::Opening,
    Moment::Load,
    Moment::Replaying,
    Moment::Load,
    Moment::Draining,
];

/// What is known of all lives together.
#[derive(Default)]
struct Lives {
    answered: Vec<String>,
    starts: Vec<Duration>,
    /// How many events may have been delivered twice.
    repeatable: u64,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_answered_200_arrives_wherever_the_daemon_is_killed() {
    let rounds = setting("ROUNDS").unwrap_or(ROUNDS);
    let mut chance = Chance::new("kills");
    let dir = TempDir::new().expect("a temporary directory");
    let segment = StandIn::start(Options::default()).await;
    let segment = Arc::new(segment.expect("a free port"));
    segment.set_rules(vec![Rule::when(poisoned(), Answer::status(400))]);
    let delivered = Delivered::watch(&segment);
    let mut lives = Lives::default();
    let mut up = true;
    for round in 0..rounds {
        if (round % 3 != 1) != up {
            up = !up;
            if up {
                segment.up().await.expect("the port is kept")
            } else {
                segment.down().await
            }
        }
        let moment = MOMENTS[round % MOMENTS.len()];
        let begun = Instant::now();
        life(moment, round, dir.path(), &segment, &mut chance, &mut lives).await;
        let in_flight = CONCURRENCY * 500 * KEYS.len() as u64;
        lives.repeatable += delivered.lately(begun) + in_flight;
    }
    if !up {
        segment.up().await.expect("the port is kept");
    }
    let Lives {
        answered,
        starts,
        repeatable,
    } = lives;

    let mut relay = Relay::start(dir.path(), &segment.url(), &SETTINGS).await;
    let stats = relay.until(|stats| stats.queue.events == 0).await;
    for lane in &stats.lanes {
        assert!(lane.conservation().holds(), "{lane:?}");
    }
    let letters = stats.dead_letters.events;
    assert!(relay.stop().await.success());
    let scratch = TempDir::new().expect("a temporary directory");
    let exam = examine(dir.path(), scratch.path(), |_, _| (), |_| Ok(())).expect("a spool");
    assert!(!exam.is_damaged(), "{exam:?}");
    assert_eq!(exam.dead_letters.events, letters, "a recount on disk");
    assert_nothing_left(dir.path());

    // What was buried is safe, too.
    segment.set_rules(Vec::new());
    let mut relay = Relay::start(dir.path(), &segment.url(), &SETTINGS).await;
    replay(&relay).await.expect("an answer");
    let stats = relay
        .until(|stats| stats.queue.events == 0 && stats.dead_letters.events == 0)
        .await;
    assert!(relay.stop().await.success());

    let is_lost = |id: &&String| segment.times_delivered(id) == 0;
    let lost: Vec<_> = answered.iter().filter(is_lost).collect();
    let tally = segment.tally();
    let (early, late) = (
        median(&starts[..starts.len() / 3]),
        median(&starts[starts.len() * 2 / 3..]),
    );
    println!(
        "kills: {rounds} lives, {} events answered 200, {} lost, {letters} buried, {} delivered more than once (at most {repeatable}), listening after {early:?} at first, {late:?} at last",
        answered.len(),
        lost.len(),
        tally.duplicate_events,
    );
    assert!(answered.len() > rounds * 300, "there was hardly any load");
    assert!(letters > 0, "nothing was buried");
    assert!(lost.is_empty(), "lost {lost:?}");
    assert!(tally.duplicate_events <= repeatable);
    assert!(tally.violations.is_empty(), "{:?}", tally.violations);
    let queue = stats.queue;
    assert_eq!((queue.lost_events, queue.quarantined_volumes), (0, 0));
    assert!(
        late < early.max(START_FLOOR) * 2,
        "starting takes longer and longer"
    );
}

fn poisoned() -> Match {
    Match {
        contains: Some(POISON.into()),
        ..Match::default()
    }
}

/// One life, from the start to the kill.
async fn life(
    moment: Moment,
    round: usize,
    dir: &Path,
    segment: &StandIn,
    chance: &mut Chance,
    lives: &mut Lives,
) {
    if matches!(moment, Moment::Opening) {
        let mut child = Relay::command(dir, &segment.url(), &SETTINGS)
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("the daemon's program is there");
        // What it is at after a moment like this, nobody knows: that is the point.
        tokio::time::sleep(chance.within(Duration::from_millis(60))).await;
        child.kill().expect("it was running");
        child.wait().expect("it can be waited for");
        return;
    }
    let begun = Instant::now();
    let mut relay = Relay::start(dir, &segment.url(), &SETTINGS).await;
    lives.starts.push(begun.elapsed());
    let count = Arc::new(watch::Sender::new(0));
    let mut reached = count.subscribe();
    let applications = tokio::spawn(post_until_gone(relay.poster(), round, count));
    let length = [0, 1, 2, 5, 17, 40, 90][round % 7] + chance.below(60) as usize;
    let waited = within(reached.wait_for(|count| *count >= length)).await;
    drop(waited.expect("the applications go on"));
    match moment {
        Moment::Load | Moment::Opening => {}
        Moment::Replaying => {
            let wait = chance.within(Duration::from_millis(40));
            // Whether it answers in time does not matter.
            let _ = tokio::time::timeout(wait, replay(&relay)).await;
        }
        Moment::Draining => {
            relay.signal(Signal::TERM);
            tokio::time::sleep(chance.within(Duration::from_millis(60))).await;
        }
    }
    relay.kill();
    let answered = within(applications).await.expect("no panic");
    lives.answered.extend(answered);
}

async fn replay(relay: &Relay) -> reqwest::Result<reqwest::Response> {
    let url = format!("{}/dead-letters/replay?all=true", relay.admin);
    crate::support::client().post(url).send().await
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
                let mut ids = ids(&format!("r{round}-a{n}"), from..from + events);
                if events == 100 {
                    ids[0].push_str(POISON);
                }
                if !ingest.try_track(KEYS[n % 2], &ids).await {
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

/// Nothing but what a spool is made of lies in a drained one.
fn assert_nothing_left(dir: &Path) {
    let names = |dir: &Path| -> BTreeSet<String> {
        let entries = std::fs::read_dir(dir).expect("a directory");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        names
            .map(|name| name.to_string_lossy().into_owned())
            .collect()
    };
    let left = names(dir);
    let spool = [
        "LOCK",
        "cursors",
        "cursors.previous",
        "dead-letters",
        "format",
        "quarantine",
        "reserve",
        "volumes",
    ];
    assert_eq!(left, spool.map(str::to_owned).into(), "the data directory");
    for empty in ["volumes", "quarantine"] {
        assert_eq!(names(&dir.join(empty)), BTreeSet::new(), "{empty}");
    }
    let unfinished = |name: &String| name.ends_with(".generating") || name.ends_with(".new");
    let letters = names(&dir.join("dead-letters"));
    assert!(!letters.iter().any(unfinished), "{letters:?}");
}

/// How much Segment has taken, and when.
struct Delivered {
    counts: Arc<Mutex<Vec<(Instant, u64)>>>,
}

impl Delivered {
    fn watch(segment: &Arc<StandIn>) -> Delivered {
        let counts = Arc::<Mutex<Vec<_>>>::default();
        let (seen, segment) = (Arc::clone(&counts), Arc::clone(segment));
        tokio::spawn(async move {
            let mut count = 0;
            loop {
                count = segment.until(|tally| tally.events > count).await.events;
                seen.lock().expect("no panic").push((Instant::now(), count));
            }
        });
        Delivered { counts }
    }

    /// How many events it has taken in the last moment of a life that began then.
    fn lately(&self, begun: Instant) -> u64 {
        let counts = self.counts.lock().expect("no panic");
        let now = counts.last().map_or(0, |(_, count)| *count);
        let since = begun.max(Instant::now() - UNSAVED);
        let before = counts.iter().rfind(|(at, _)| *at < since);
        now - before.map_or(0, |(_, count)| *count)
    }
}

fn median(of: &[Duration]) -> Duration {
    let mut sorted = of.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}
