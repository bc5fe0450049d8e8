//! Power cuts under load: a life of the daemon after another ends in one, at any change or sync, its start included.
//!
//! `SEGSPOOL_POWER_CUTS=<number>` makes them more. That the disk would show a loss is proved by disks that ignore what the daemon
//! asks of them: there events are lost.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::join_all;
use segspool::stand_in::{Answer, Match, Options, Rule, StandIn};

use crate::disk::{Dice, Disk, Kept};
use crate::mount::{Mount, Sync};
use crate::support::{Poster, Relay, ids, spool, within};
use crate::{can_mount, large_batch, letters};

const CUTS: usize = 60;
/// Some of those that ignore a sync have to be fatal.
const CUTS_OF_A_BAD_DISK: usize = 6;
/// Events a request, an application each: from a lone track to batches that together take more than a segment of sled's.
const REQUEST_EVENTS: [usize; 7] = [1, 10, 100, 400, 1200, 1200, 1200];
/// An event that Segment refuses has this in its messageId.
const REFUSED: &str = "refused";

#[tokio::test(flavor = "multi_thread")]
async fn every_event_answered_200_survives_power_cuts_at_any_moment() {
    if !can_mount() {
        return;
    }
    let cuts = std::env::var("SEGSPOOL_POWER_CUTS").ok();
    let cuts = cuts.map_or(CUTS, |cuts| cuts.parse().expect("a number of cuts"));
    let found = cut_again_and_again(cuts, |round| round % 3 != 1, |_| Sync::Done).await;
    found.print();
    assert!(
        found.answered > 100 * cuts,
        "there was hardly any load: {found:?}"
    );
    assert!(found.buried > 0, "{found:?}");
    assert!(found.rotations > 0, "{found:?}");
    assert!(cuts < CUTS || found.cut_while_starting > 0, "{found:?}");
    assert_eq!(found.lost, Vec::<String>::new(), "{found:?}");
    assert_eq!(found.did_not_start, Vec::<String>::new());
    assert_eq!(found.quarantined, Vec::<String>::new());
    assert_eq!(found.counted_as_lost, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_ignores_the_sync_of_data_loses_events_here() {
    if !can_mount() {
        return;
    }
    let found = cut_again_and_again(
        CUTS_OF_A_BAD_DISK,
        |_| false,
        |path| {
            if path.ends_with("db") {
                Sync::Ignored
            } else {
                Sync::Done
            }
        },
    )
    .await;
    found.print();
    assert!(!found.lost.is_empty(), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_ignores_the_sync_of_directories_loses_events_here() {
    if !can_mount() {
        return;
    }
    let found = cut_again_and_again(
        CUTS_OF_A_BAD_DISK,
        |_| false,
        |path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_directory =
                matches!(&*name, "" | "volumes" | "spool" | "dead-letters" | "blobs")
                    || name.bytes().all(|b| b.is_ascii_digit());
            if is_directory {
                Sync::Ignored
            } else {
                Sync::Done
            }
        },
    )
    .await;
    found.print();
    assert!(!found.lost.is_empty(), "{found:?}");
}

/// What a row of cuts has shown.
#[derive(Debug, Default)]
struct Found {
    cuts: usize,
    /// Before the daemon said that it runs.
    cut_while_starting: usize,
    answered: usize,
    lost: Vec<String>,
    buried: usize,
    /// Deliveries of what had been delivered already.
    duplicates: u64,
    rotations: usize,
    did_not_start: Vec<String>,
    quarantined: Vec<String>,
    counted_as_lost: u64,
    slowest_start_ms: u128,
}

impl Found {
    #[allow(
        clippy::print_stdout,
        reason = "the figures are for whoever runs it with --nocapture"
    )]
    fn print(&self) {
        println!(
            "{} power cuts, {} of them while it started: {} events answered 200, {} lost, {} delivered again, {} dead letters, \
             {} volumes sealed, slowest start {} ms",
            self.cuts,
            self.cut_while_starting,
            self.answered,
            self.lost.len(),
            self.duplicates,
            self.buried,
            self.rotations,
            self.slowest_start_ms,
        );
    }
}

/// Lives of a daemon on one disk, each of which ends in a cut, and a last one that delivers what is left.
async fn cut_again_and_again(
    cuts: usize,
    is_up: impl Fn(usize) -> bool,
    react: impl Fn(&Path) -> Sync + Send + Clone + 'static,
) -> Found {
    let (point, segment) = (spool(), StandIn::start(Options::default()).await);
    let segment = segment.expect("a free port");
    let refused = Match {
        contains: Some(REFUSED.into()),
        ..Match::default()
    };
    segment.set_rules(vec![Rule::when(refused, Answer::status(400))]);
    let data_dir = point.path().join("spool");
    // Small volumes, so that the power goes also while they are sealed, made and deleted.
    let settings = [
        ("QUEUE__VOLUME_BYTES", "1 MiB"),
        ("SEGMENT__MAX_BATCH_EVENTS", "250"),
        ("LOG__LEVEL", "debug"),
    ];
    let (mut disk, mut dice) = (Disk::new(), Dice(cuts as u64));
    let (mut found, mut answered) = (Found::default(), Vec::new());
    let mut up = true;
    for round in 0..cuts {
        turn(&segment, &mut up, is_up(round)).await;
        let power = power_of(round, &mut dice);
        let react = Box::new(react.clone());
        let mount = Mount::new(disk, point.path(), Some(power), react).expect("mounted before");
        let began = Instant::now();
        match Relay::try_start(&data_dir, &segment.url(), &settings).await {
            Ok(mut relay) => {
                found.slowest_start_ms = found.slowest_start_ms.max(began.elapsed().as_millis());
                let posting = tokio::spawn(post_until_refused(relay.poster(), round));
                within(mount.cut()).await;
                relay.kill();
                answered.extend(within(posting).await.expect("no panic"));
                found.rotations += relay.log().matches("\"sealed a volume\"").count();
            }
            Err(_) if mount.is_cut() => found.cut_while_starting += 1,
            Err(log) => found.did_not_start.push(log),
        }
        disk = mount.unmount();
        disk.cut(Kept::ALL[dice.below(Kept::ALL.len())], &mut dice);
        found.cuts += 1;
    }
    turn(&segment, &mut up, true).await;
    let mount = Mount::new(disk, point.path(), None, Box::new(react)).expect("mounted before");
    match Relay::try_start(&data_dir, &segment.url(), &settings).await {
        Ok(mut relay) => {
            let stats = relay.until(|stats| stats.queue.events == 0).await;
            found.counted_as_lost = stats.queue.lost_events;
            assert!(relay.stop().await.success(), "{}", relay.log());
        }
        Err(log) => found.did_not_start.push(log),
    }
    let letters = letters(&data_dir).await;
    found.quarantined = names_in(&data_dir.join("quarantine"));
    mount.unmount();
    found.answered = answered.len();
    found.buried = letters.len();
    found.duplicates = segment.tally().duplicate_events;
    let is_buried = |id: &str| letters.iter().any(|event| event.contains(id));
    found.lost = answered;
    found
        .lost
        .retain(|id| segment.times_delivered(id) == 0 && !(id.contains(REFUSED) && is_buried(id)));
    found
}

async fn turn(segment: &StandIn, up: &mut bool, wanted: bool) {
    match (*up, wanted) {
        (false, true) => segment.up().await.expect("the port is kept"),
        (true, false) => segment.down().await,
        (true, true) | (false, false) => {}
    }
    *up = wanted;
}

/// For how many changes and syncs the power suffices: some lives end while they start, others after volumes were sealed.
fn power_of(round: usize, dice: &mut Dice) -> u64 {
    let (from, to) = [(80, 400), (1, 60), (400, 1500), (40, 150)][round % 4];
    (from + dice.below(to - from)) as u64
}

/// Applications that post until one of their requests is not answered 200.
async fn post_until_refused(ingest: Poster, round: usize) -> Vec<String> {
    let ingest = Arc::new(ingest);
    let applications = REQUEST_EVENTS.into_iter().enumerate().map(|(n, events)| {
        let ingest = Arc::clone(&ingest);
        async move {
            let mut answered = Vec::new();
            for from in (0..).step_by(events) {
                let ids = ids(&format!("r{round}-a{n}"), from..from + events);
                // None begins with another, so that a letter's text shows which it is.
                let mut ids: Vec<_> = ids.into_iter().map(|id| format!("{id}.")).collect();
                if from / events % 7 == 3 {
                    ids[0].push_str(REFUSED);
                }
                let key = ["KEY-ONE", "KEY-TWO"][n % 2];
                let reply = ingest.post("/v1/batch", key, large_batch(&ids)).await;
                if !reply.is_ok_and(|reply| reply.status() == 200) {
                    break;
                }
                answered.extend(ids);
            }
            answered
        }
    });
    join_all(applications).await.concat()
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("a directory").flatten();
    let name = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    entries.map(name).collect()
}
