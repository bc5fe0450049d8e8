//! Syncs that fail: what was answered 200 before stays safe, what was not synced is not answered 200, and the daemon goes on as far
//! as it can. A page that was not synced never will be, as Linux has it, so a sync that is merely tried again would show here.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use segspool::stand_in::{Answer, Match, Rule, StandIn};

use crate::disk::{Dice, Disk, Kept};
use crate::mount::{Mount, Sync};
use crate::support::{Relay, batch, ids, segment, spool};
use crate::{can_mount, large_batch, letters};

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_of_a_volume_ends_that_volume_and_is_answered_503() {
    if !can_mount() {
        return;
    }
    let (point, segment, faults) = (spool(), segment().await, Faults::default());
    segment.down().await;
    let mount = faults.mount(Disk::new(), point.path());
    let data_dir = point.path().join("spool");
    let mut relay = Relay::start(&data_dir, &segment.url(), &[]).await;
    let before = ids("before", 0..100);
    relay.track("KEY12345", &before).await;

    faults.fail(is_volume, 1);
    let reply = relay.post("/v1/batch", "KEY12345", batch(&ids("failed", 0..100)));
    let reply = reply.await;
    assert_eq!(reply.status(), 503);
    assert!(reply.headers().contains_key("retry-after"));
    assert_eq!(relay.stats().await.queue.events, 100);

    let after = ids("after", 0..100);
    relay.track("KEY12345", &after).await;
    let stats = relay.stats().await;
    assert_eq!((stats.queue.events, stats.queue.volumes), (200, 2));

    // Nothing but what was synced is there when the power is back.
    relay.kill();
    let mut disk = mount.unmount();
    disk.cut(Kept::Nothing, &mut Dice(1));
    let mount = faults.mount(disk, point.path());
    segment.up().await.expect("the port is kept");
    let mut relay = Relay::start(&data_dir, &segment.url(), &[]).await;
    let stats = relay.until(|stats| stats.queue.events == 0).await;
    assert_eq!(
        (stats.queue.lost_events, stats.queue.quarantined_volumes),
        (0, 0)
    );
    assert_delivered(&segment, &[before, after].concat());
    assert!(relay.stop().await.success(), "{}", relay.log());
    mount.unmount();
}

#[tokio::test(flavor = "multi_thread")]
async fn three_failed_volumes_in_a_row_end_the_daemon_which_says_so() {
    if !can_mount() {
        return;
    }
    let (point, segment, faults) = (spool(), segment().await, Faults::default());
    segment.down().await;
    let mount = faults.mount(Disk::new(), point.path());
    let data_dir = point.path().join("spool");
    let mut relay = Relay::start(&data_dir, &segment.url(), &[]).await;
    let before = ids("before", 0..100);
    relay.track("KEY12345", &before).await;
    faults.fail(is_volume, u32::MAX);
    for n in 0..3 {
        let body = batch(&ids("failed", n..n + 1));
        let reply = relay.post("/v1/batch", "KEY12345", body).await;
        assert_eq!(reply.status(), 503);
    }
    assert_eq!(relay.exit().await.code(), Some(70), "{}", relay.log());
    let log = relay.log();
    for said in ["three volumes in a row failed", "the queue has died"] {
        assert!(log.contains(said), "{log}");
    }
    drop(relay);

    // A disk that is well again has all that was answered 200.
    faults.fail(is_volume, 0);
    let mut disk = mount.unmount();
    disk.cut(Kept::Nothing, &mut Dice(1));
    let mount = faults.mount(disk, point.path());
    segment.up().await.expect("the port is kept");
    let mut relay = Relay::start(&data_dir, &segment.url(), &[]).await;
    relay.until(|stats| stats.queue.events == 0).await;
    assert_delivered(&segment, &before);
    assert!(relay.stop().await.success(), "{}", relay.log());
    mount.unmount();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_of_anything_else_stops_nothing_and_loses_nothing() {
    if !can_mount() {
        return;
    }
    let cases: [(&str, IsFaulty); 6] = [
        ("the cursors", |path| {
            path.to_string_lossy().contains("cursors")
        }),
        ("data_dir", |path| path.ends_with("spool")),
        ("the directory of volumes", |path| path.ends_with("volumes")),
        ("a volume's directory", |path| {
            path.parent()
                .is_some_and(|parent| parent.ends_with("volumes"))
                && path.extension().is_none()
        }),
        ("a summary", |path| {
            path.to_string_lossy().contains(".summary")
        }),
        ("the dead letters", |path| path.ends_with("dead-letters/db")),
    ];
    for (what, is_faulty) in cases {
        let (point, segment, faults) = (spool(), segment().await, Faults::default());
        let refused = Match {
            contains: Some("refused".into()),
            ..Match::default()
        };
        segment.set_rules(vec![Rule::when(refused, Answer::status(400))]);
        let mount = faults.mount(Disk::new(), point.path());
        let data_dir = point.path().join("spool");
        let settings = [("QUEUE__VOLUME_BYTES", "1 MiB")];
        let mut relay = Relay::start(&data_dir, &segment.url(), &settings).await;

        // A disk that fails while the daemon starts may keep it from starting; from now on it may not stop it.
        faults.fail(is_faulty, 2);
        let mut accepted = Vec::new();
        for n in 0.. {
            let ids = [ids(&format!("e{n}"), 0..400), vec![format!("refused-{n}.")]].concat();
            let reply = relay.post("/v1/batch", "KEY12345", large_batch(&ids)).await;
            match reply.status().as_u16() {
                200 => accepted.extend(ids),
                status => assert_eq!(status, 503),
            }
            relay.until(|stats| stats.queue.events == 0).await;
            if faults.failed() == 2 && accepted.len() >= 4 * 401 {
                break;
            }
            assert!(
                n < 200,
                "{what}: such a sync was never due: {}",
                relay.log()
            );
        }
        relay.kill();
        let mut disk = mount.unmount();
        disk.cut(Kept::Nothing, &mut Dice(1));
        let mount = faults.mount(disk, point.path());
        let mut relay = Relay::start(&data_dir, &segment.url(), &[]).await;
        let stats = relay.until(|stats| stats.queue.events == 0).await;
        assert_eq!(
            (stats.queue.lost_events, stats.queue.quarantined_volumes),
            (0, 0),
            "{what}"
        );
        let (refused, good): (Vec<_>, Vec<_>) =
            accepted.into_iter().partition(|id| id.contains("refused"));
        assert_delivered(&segment, &good);
        assert!(relay.stop().await.success(), "{}", relay.log());
        let letters = letters(&data_dir).await;
        for id in refused {
            let is_buried = letters.iter().any(|event| event.contains(&id));
            assert!(is_buried, "{what}: {id} is no dead letter");
        }
        mount.unmount();
    }
}

fn assert_delivered(segment: &StandIn, ids: &[String]) {
    let lost: Vec<_> = ids
        .iter()
        .filter(|id| segment.times_delivered(id) == 0)
        .collect();
    assert!(lost.is_empty(), "lost {lost:?}");
}

/// The path of the data of a volume.
fn is_volume(path: &Path) -> bool {
    path.starts_with("spool/volumes") && path.ends_with("db")
}

type IsFaulty = fn(&Path) -> bool;

/// Which syncs of a disk fail, to be changed while it is in use.
#[derive(Clone, Default)]
struct Faults(Arc<Mutex<Due>>);

#[derive(Default)]
struct Due {
    is_faulty: Option<IsFaulty>,
    left: u32,
    failed: u32,
}

impl Faults {
    fn mount(&self, disk: Disk, point: &Path) -> Mount {
        let faults = self.clone();
        let react = move |path: &Path| {
            let mut due = faults.lock();
            if due.left == 0 || !due.is_faulty.is_some_and(|is_faulty| is_faulty(path)) {
                return Sync::Done;
            }
            due.left -= 1;
            due.failed += 1;
            Sync::Failed
        };
        Mount::new(disk, point, None, Box::new(react)).expect("mounted before")
    }

    /// From now on so many syncs of these paths fail.
    fn fail(&self, is_faulty: IsFaulty, times: u32) {
        *self.lock() = Due {
            is_faulty: Some(is_faulty),
            left: times,
            failed: 0,
        };
    }

    /// How many have failed.
    fn failed(&self) -> u32 {
        self.lock().failed
    }

    fn lock(&self) -> MutexGuard<'_, Due> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
