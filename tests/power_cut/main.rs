//! The power is cut, and syncs fail, below the real daemon: what it answered 200 is there afterwards.
//!
//! The daemon's `data_dir` lies on a file system of the tests' own (`disk.rs`, mounted by `mount.rs`), which loses at a cut what was
//! not synced, in the ways in which disks do. It takes FUSE and the right to mount; where they are not to be had the tests say so
//! and pass, unless `SEGSPOOL_REQUIRE_CLIENTS=1`.

mod cuts;
mod disk;
mod failing;
mod mount;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;

use disk::Disk;
use mount::{Mount, Sync};
use segspool::queue::{self, DeadLetter, Queue};
use serde_json::json;

/// Whether a disk of the tests' own can be mounted. If not, says that they are skipped.
fn can_mount() -> bool {
    let point = support::spool();
    match Mount::new(
        Disk::new(),
        point.path(),
        None,
        Box::new(|_: &Path| Sync::Done),
    ) {
        Ok(mount) => {
            mount.unmount();
            true
        }
        Err(error) => {
            let remedy = "run it as root where /dev/fuse is, or install fuse3";
            support::skip(&format!("power cuts ({error})"), remedy);
            false
        }
    }
}

/// Events that no compression makes small, so that volumes fill.
fn large_batch(ids: &[String]) -> String {
    let events = ids.iter().map(|id| {
        let noise: String = (0..8)
            .map(|_| uuid::Uuid::new_v4().simple().to_string())
            .collect();
        json!({"type": "track", "userId": "u", "event": "Test", "messageId": id, "properties": {"noise": noise}})
    });
    json!({"batch": events.collect::<Vec<_>>(), "sentAt": "2026-01-01T00:00:00Z"}).to_string()
}

/// The events of all dead letters, as text.
async fn letters(data_dir: &Path) -> Vec<String> {
    let (data_dir, config) = (data_dir.to_owned(), queue::Config::default());
    let opening = tokio::task::spawn_blocking(move || Queue::open(&data_dir, &config));
    let (queue, _) = opening.await.expect("no panic").expect("opened");
    let letters = queue.dead_letters().all().await;
    queue.close().await;
    let text = |letter: DeadLetter| String::from_utf8_lossy(&letter.event).into_owned();
    letters.into_iter().map(text).collect()
}
