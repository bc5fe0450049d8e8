//! A disk that is full to the last byte, on a small file system of the tests' own: accepting pauses, everything else goes on, and
//! nobody has to do anything but free the disk. It takes the right to mount; where that is not to be had the tests say so and pass,
//! unless `SEGSPOOL_REQUIRE_CLIENTS=1`.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::Command;

use reqwest::Response;
use segspool::stand_in::{Answer, Match, Rule, StandIn};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Relay, client, noise, segment, skip, spool};

const KEY: &str = "full-disk-key";
const MIB: u64 = 1024 * 1024;
const EVENTS: u64 = 10;
const EVENT_BYTES: usize = 20_000;
const DISK_BYTES: u64 = 32 * MIB;
const SETTINGS: [(&str, &str); 2] = [
    ("QUEUE__MIN_FREE_DISK", "0 B"),
    ("QUEUE__VOLUME_BYTES", "1 MiB"),
];
/// The alarm, and its end.
const FULL: &str = "the disk is full; no events are accepted";
const ROOM: &str = "there is room on the disk again";
/// An event that Segment refuses has this in its messageId.
const REFUSED: &str = "refused";

/// A file system of a few MiB, which is unmounted when this is dropped.
struct SmallDisk {
    point: TempDir,
}

impl SmallDisk {
    /// None where it cannot be mounted.
    fn mount() -> Option<SmallDisk> {
        let point = spool();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={DISK_BYTES}"), "tmpfs"])
            .arg(point.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(SmallDisk { point }),
            Ok(_) | Err(_) => {
                skip(
                    "full disks",
                    "run it as root, or under `unshare --map-root-user --mount`",
                );
                None
            }
        }
    }

    fn spool(&self) -> PathBuf {
        self.point.path().join("spool")
    }

    fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.point.path()).expect("mounted");
        stat.f_bavail * stat.f_frsize
    }

    /// Fills it but for `left` bytes.
    fn fill_but(&self, left: u64) {
        let mut ballast = File::options()
            .append(true)
            .create(true)
            .open(self.ballast())
            .expect("a name takes no room");
        while self.free_bytes() > left {
            let piece = (self.free_bytes() - left).min(MIB);
            match ballast.write(&vec![0xa5; piece as usize]) {
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::StorageFull => break,
                Err(e) => panic!("{e}"),
            }
        }
    }

    fn free(&self) {
        fs::remove_file(self.ballast()).expect("it was there");
    }

    fn ballast(&self) -> PathBuf {
        self.point.path().join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.point.path())
            .status();
    }
}

/// Events that no compression makes small; the first one is refused where that is wanted.
fn batch(request: u64) -> (Vec<String>, String) {
    let ids: Vec<_> = (0..EVENTS)
        .map(|n| {
            let name = if n == 0 { REFUSED } else { "good" };
            format!("{name}-{request}-{n}.")
        })
        .collect();
    let events = ids.iter().enumerate().map(|(n, id)| {
        let noise = noise(request * EVENTS + n as u64, EVENT_BYTES);
        json!({"type": "track", "userId": "u", "event": "E", "messageId": id, "properties": {"noise": noise}})
    });
    let body = json!({ "batch": events.collect::<Vec<_>>() }).to_string();
    (ids, body)
}

async fn start(disk: &SmallDisk, segment: &StandIn) -> Relay {
    Relay::start(&disk.spool(), &segment.url(), &SETTINGS).await
}

/// A Segment that is down, and will refuse some events when it is up.
async fn segment_down() -> StandIn {
    let segment = segment().await;
    let refused = Match {
        contains: Some(REFUSED.into()),
        ..Match::default()
    };
    segment.set_rules(vec![Rule::when(refused, Answer::status(400))]);
    segment.down().await;
    segment
}

/// Posts batches until one is not accepted; the accepted events.
async fn post_until_full(relay: &Relay, from: u64) -> Vec<String> {
    let mut accepted = Vec::new();
    for request in from.. {
        let (ids, body) = batch(request);
        let reply = relay.post("/v1/batch", KEY, body).await;
        if reply.status() == 200 {
            accepted.extend(ids);
            continue;
        }
        assert_refused(reply).await;
        break;
    }
    accepted
}

async fn assert_refused(reply: Response) {
    assert_eq!(reply.status(), 503);
    assert!(reply.headers().contains_key("retry-after"));
    let body = reply.text().await.expect("a body");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(body["code"], "disk_full", "{body}");
}

async fn readiness(relay: &Relay) -> (u16, String) {
    let url = format!("{}/readyz", relay.admin);
    let reply = client().get(url).send().await.expect("an answer");
    let status = reply.status().as_u16();
    let said = reply.text().await.expect("a body");
    (status, said.trim_end().to_owned())
}

/// How often this was logged.
fn times(relay: &Relay, said: &str) -> usize {
    relay.log().matches(said).count()
}

/// Waits until nothing waits; then all that was accepted was delivered once, or is a dead letter, and the books are right.
async fn assert_drained(relay: &Relay, segment: &StandIn, accepted: &[String], what: &str) {
    let stats = relay.until(|stats| stats.queue.events == 0).await;
    let (refused, good): (Vec<_>, Vec<_>) = accepted.iter().partition(|id| id.contains(REFUSED));
    for id in good {
        assert_eq!(segment.times_delivered(id), 1, "{what}: {id}");
    }
    assert_eq!(stats.dead_letters.events, refused.len() as u64, "{what}");
    assert_eq!(
        (stats.queue.lost_events, stats.queue.quarantined_volumes),
        (0, 0),
        "{what}: {}",
        relay.log()
    );
    for lane in &stats.lanes {
        assert!(lane.conservation().holds(), "{what}: {lane:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_pauses_accepting_and_nothing_else_until_there_is_room_again() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let segment = segment_down().await;
    let mut relay = start(&disk, &segment).await;
    // What each step finds full: a new volume, a commit, a summary, cursors, dead letters; with what is left of the disk that changes.
    let mut accepted = Vec::new();
    for (round, left_kib) in [0, 8, 40, 200, 520, 700, 1_030, 1_700, 3_000]
        .into_iter()
        .enumerate()
    {
        let what = format!("{left_kib} KiB left");
        let from = round as u64 * 1_000;
        for request in from..from + 30 {
            let (ids, body) = batch(request);
            let reply = relay.post("/v1/batch", KEY, body).await;
            assert_eq!(reply.status(), 200, "{what}: {}", relay.log());
            accepted.extend(ids);
        }
        disk.fill_but(left_kib * 1024);
        accepted.extend(post_until_full(&relay, from + 30).await);
        for request in 0..20 {
            let reply = relay.post("/v1/batch", KEY, batch(request).1).await;
            assert_refused(reply).await;
        }
        assert_eq!(readiness(&relay).await, (503, "the disk is full".into()));
        let stats = relay.stats().await;
        assert!(stats.queue.disk_is_full && !stats.ingest.accepting);
        assert_eq!(times(&relay, FULL), round + 1, "{what}: {}", relay.log());

        segment.up().await.expect("the port is kept");
        assert_drained(&relay, &segment, &accepted, &what).await;
        // What was delivered gives its disk back, however full that is.
        relay.until(|stats| stats.queue.volumes <= 1).await;
        disk.free();
        relay.until(|stats| stats.ingest.accepting).await;
        assert_eq!(times(&relay, ROOM), round + 1, "{what}: {}", relay.log());
        assert_eq!(readiness(&relay).await.0, 200);
        segment.down().await;
    }
    segment.up().await.expect("the port is kept");
    assert!(relay.stop().await.success(), "{}", relay.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_starts_on_a_full_disk_and_delivers_what_an_open_volume_holds() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let segment = segment_down().await;
    let mut relay = start(&disk, &segment).await;
    let mut accepted = Vec::new();
    for request in 0..33 {
        let (ids, body) = batch(request);
        assert_eq!(relay.post("/v1/batch", KEY, body).await.status(), 200);
        accepted.extend(ids);
    }
    relay.kill();
    drop(relay);
    disk.fill_but(0);

    let mut relay = start(&disk, &segment).await;
    assert_eq!(times(&relay, FULL), 1, "{}", relay.log());
    assert_refused(relay.post("/v1/batch", KEY, batch(100).1).await).await;
    segment.up().await.expect("the port is kept");
    assert_drained(&relay, &segment, &accepted, "after the start").await;
    disk.free();
    relay.until(|stats| stats.ingest.accepting).await;
    let (ids, body) = batch(101);
    assert_eq!(relay.post("/v1/batch", KEY, body).await.status(), 200);
    accepted.extend(ids);
    assert_drained(&relay, &segment, &accepted, "after there was room").await;
    assert!(relay.stop().await.success(), "{}", relay.log());
}
