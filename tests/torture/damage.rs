//! Damage it: every file of a spool emptied, cut, zeroed, with a bit flipped here and there, or gone, and every volume gone. The daemon starts each time,
//! delivers all that is undamaged, and counts what was lost.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use segspool::queue::examine;
use segspool::stand_in::{Answer, Match, Options, Rule, StandIn};
use segspool::stats::Snapshot;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::chance::{Chance, setting};
use crate::support::{Relay, client, noise, segment, spool};

const KEYS: [&str; 2] = ["KEY-ONE1", "KEY-TWO2"];
const SETTINGS: [(&str, &str); 1] = [("QUEUE__VOLUME_BYTES", "1 MiB")];
/// In the short form one case in so many is tried.
const SHORT_FORM: usize = 5;

/// What is done to a file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Emptied,
    Halved,
    Zeroed,
    /// A bit in so many thousandths of it.
    Flipped(u64),
    Gone,
}

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Of this volume, which was sealed: what it held is known.
    Sealed(u64),
    /// Of the volume that was being written: what it held is known to nobody.
    Active(u64),
    /// Of the store of dead letters.
    Letters,
    /// Anything else can be had from the rest.
    Other,
}

/// A spool as a daemon that was killed has left it, and what is in it.
struct Left {
    dir: TempDir,
    /// The messageIds that wait, by volume.
    waiting: BTreeMap<u64, BTreeSet<String>>,
    letters: u64,
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_file_is_damaged_the_daemon_starts_and_delivers_the_rest() {
    let mut chance = Chance::new("damage");
    let left = left_behind().await;
    assert!(left.waiting.len() >= 4, "{} volumes", left.waiting.len());
    let segment = StandIn::start(Options::default())
        .await
        .expect("a free port");

    let mut cases = Vec::new();
    for number in left.waiting.keys() {
        cases.push((PathBuf::from(format!("volumes/{number}")), Damage::Gone));
    }
    for file in files(left.dir.path()) {
        let at = chance.below(1000);
        for damage in [
            Damage::Emptied,
            Damage::Halved,
            Damage::Zeroed,
            Damage::Flipped(0),
            Damage::Flipped(at),
            Damage::Flipped(999),
            Damage::Gone,
        ] {
            cases.push((file.clone(), damage));
        }
    }
    let all = cases.len();
    if setting::<usize>("ROUNDS").is_none() {
        let from = chance.below(SHORT_FORM as u64) as usize;
        cases = cases.into_iter().skip(from).step_by(SHORT_FORM).collect();
    }
    let tried = cases.len();
    let (mut lost_events, mut uncounted) = (0, 0);
    for (file, damage) in cases {
        let (lost, counted) = survive(&left, &segment, &file, damage).await;
        lost_events += lost;
        uncounted += lost - counted;
    }
    println!(
        "damage: {tried} of {all} cases, {lost_events} events lost with damaged volumes, {uncounted} of them uncounted, all of those in the volume being written"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_gone_is_counted_though_the_cursors_were_never_told_of_it() {
    let left = left_behind().await;
    let segment = segment().await;
    let sealed = |number: &&u64| {
        left.dir
            .path()
            .join(format!("volumes/{number}.summary"))
            .exists()
    };
    let last_sealed = left.waiting.keys().rfind(sealed).expect("a sealed one");
    // As if the daemon had been killed before it saved them for the first time.
    for name in ["cursors", "cursors.previous"] {
        let path = left.dir.path().join(name);
        assert!(!path.exists() || fs::remove_file(path).is_ok());
    }
    let gone = PathBuf::from(format!("volumes/{last_sealed}"));
    let (lost, counted) = survive(&left, &segment, &gone, Damage::Gone).await;
    assert_eq!(lost, left.waiting[last_sealed].len() as u64);
    assert_eq!(counted, lost);
}

/// Starts a daemon on a damaged copy. Returns how many events are lost, and how many of them it counts.
async fn survive(left: &Left, segment: &StandIn, file: &Path, damage: Damage) -> (u64, u64) {
    let case = format!("{} {damage:?}", file.display());
    let dir = spool();
    copy(left.dir.path(), dir.path());
    if !inflict(&dir.path().join(file), damage) {
        return (0, 0);
    }
    segment.clear_tally();
    let mut relay = Relay::start(dir.path(), &segment.url(), &SETTINGS).await;
    // It works as ever.
    relay.track(KEYS[0], &["afterwards".to_owned()]).await;
    let stats = relay.until(|stats| stats.queue.events == 0).await;
    assert_eq!(segment.times_delivered("afterwards"), 1, "{case}");
    for lane in &stats.lanes {
        assert!(lane.conservation().holds(), "{case}: {lane:?}");
    }

    let mut lost = 0;
    for (volume, ids) in &left.waiting {
        let missing = ids.iter().filter(|id| segment.times_delivered(id) == 0);
        let missing = missing.count() as u64;
        let is_its_own = match kind(left, file) {
            Kind::Sealed(damaged) | Kind::Active(damaged) => damaged == *volume,
            Kind::Letters | Kind::Other => false,
        };
        assert!(
            missing == 0 || is_its_own,
            "{case}: {missing} events of volume {volume}"
        );
        lost += missing;
    }
    let case = format!("{case}\n{}", relay.log());
    judge(&case, kind(left, file), left, lost, &stats);
    let is_sealed = matches!(kind(left, file), Kind::Sealed(_));
    let is_whole_volume = left.dir.path().join(file).is_dir();
    if is_sealed && is_whole_volume {
        assert_eq!(relay.log().matches("a volume is gone").count(), 1, "{case}");
    }
    if lost > 0 && is_sealed && !is_whole_volume {
        // What is left of it is kept for whoever can read more.
        relay
            .until(|stats| stats.queue.quarantined_volumes == 1)
            .await;
    }
    assert!(relay.stop().await.success(), "{case}");
    (lost, stats.queue.lost_events)
}

/// Whether what is lost is counted.
fn judge(case: &str, kind: Kind, left: &Left, lost: u64, stats: &Snapshot) {
    let counted = stats.queue.lost_events;
    match kind {
        Kind::Sealed(_) => assert_eq!(lost, counted, "{case}"),
        Kind::Active(_) => assert!(counted <= lost, "{case}"),
        Kind::Letters => assert!(stats.dead_letters.events <= left.letters, "{case}"),
        Kind::Other => assert_eq!(counted, 0, "{case}"),
    }
    if kind != Kind::Letters {
        assert_eq!(stats.dead_letters.events, left.letters, "{case}");
    }
}

/// Makes a spool: some of it delivered, some buried, four volumes waiting, and the daemon killed.
async fn left_behind() -> Left {
    let (dir, segment) = (spool(), segment().await);
    let poisoned = Match {
        contains: Some("poison".into()),
        ..Match::default()
    };
    segment.set_rules(vec![Rule::when(poisoned, Answer::status(400))]);
    let mut relay = Relay::start(dir.path(), &segment.url(), &SETTINGS).await;
    for key in KEYS {
        let ids = ["first", "poison-one", "second", "poison-two"].map(|id| format!("{id}-{key}"));
        relay.track(key, &ids).await;
    }
    let stats = relay
        .until(|stats| stats.dead_letters.events == 4 && stats.queue.events == 0)
        .await;
    // Answered once the cursors are on disk: what is settled so far is not to be found waiting again.
    let resume = format!("{}/lanes/{}/resume", relay.admin, stats.lanes[0].id);
    let reply = client().post(resume).send().await.expect("an answer");
    assert_eq!(reply.status(), 200);
    // Its port stays refused until it is dropped.
    segment.down().await;
    for request in 0..16 {
        let event = |n: u64| json!({"type":"track","userId":"u","event":"E","messageId":format!("w-{request}-{n}"),"properties":{"noise":noise(request * 20 + n, 18_000)}});
        let body = json!({ "batch": (0..20).map(event).collect::<Vec<_>>() }).to_string();
        let key = KEYS[request as usize % 2];
        let status = relay.post("/v1/batch", key, body).await.status();
        assert_eq!(status, 200, "{}", relay.log());
    }
    relay.kill();

    let scratch = spool();
    let (reading, seen) = (Cell::new(0), Cell::new(0));
    let mut by_turn: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    let exam = examine(
        dir.path(),
        scratch.path(),
        |read, _| reading.set(read),
        |salvaged| {
            if !salvaged.is_settled {
                let event: Value = serde_json::from_slice(salvaged.event)?;
                let id = event["messageId"].as_str().unwrap_or_default().to_owned();
                by_turn.entry(reading.get()).or_default().insert(id);
                seen.set(seen.get() + 1);
            }
            Ok(())
        },
    );
    let exam = exam.expect("a spool");
    assert!(!exam.is_damaged(), "{exam:?}");
    assert_eq!(seen.get(), 320);
    Left {
        waiting: by_turn
            .into_iter()
            .map(|(turn, ids)| (exam.volumes[turn].number, ids))
            .collect(),
        letters: exam.dead_letters.events,
        dir,
    }
}

fn kind(left: &Left, file: &Path) -> Kind {
    let parts: Vec<_> = file.iter().map(|part| part.to_string_lossy()).collect();
    match &parts[..] {
        [volumes, number, ..] if volumes == "volumes" && !number.contains('.') => {
            let number = number.parse().expect("a volume");
            let summary = left.dir.path().join(format!("volumes/{number}.summary"));
            match summary.exists() {
                true => Kind::Sealed(number),
                false => Kind::Active(number),
            }
        }
        [letters, ..] if letters == "dead-letters" => Kind::Letters,
        _ => Kind::Other,
    }
}

/// Every file below a directory, by its path there.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut unread = vec![dir.to_owned()];
    while let Some(next) = unread.pop() {
        for entry in fs::read_dir(next).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                unread.push(path);
            } else {
                found.push(path.strip_prefix(dir).expect("below it").to_owned());
            }
        }
    }
    found.sort_unstable();
    found
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a directory") {
        let path = entry.expect("an entry").path();
        let to = to.join(path.file_name().expect("an entry has a name"));
        if path.is_dir() {
            fs::create_dir(&to).expect("made");
            copy(&path, &to);
        } else {
            fs::copy(&path, &to).expect("copied");
        }
    }
}

/// Returns false where the file stays as it was.
fn inflict(path: &Path, damage: Damage) -> bool {
    if path.is_dir() {
        fs::remove_dir_all(path).expect("removed");
        return true;
    }
    let before = fs::read(path).expect("read");
    let mut after = before.clone();
    match damage {
        Damage::Emptied => after.clear(),
        Damage::Halved => after.truncate(before.len() / 2),
        Damage::Zeroed => after.fill(0),
        Damage::Flipped(thousandths) => {
            let at = before.len() as u64 * thousandths / 1000;
            if let Some(byte) = after.get_mut(at as usize) {
                *byte ^= 0x10;
            }
        }
        Damage::Gone => {
            fs::remove_file(path).expect("removed");
            return true;
        }
    }
    fs::write(path, &after).expect("written");
    after != before
}
