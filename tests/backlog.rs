//! A long outage: while Segment is down a backlog grows; memory stays flat and the disk small. When Segment is back all of it
//! is delivered in full batches, and the disk comes back.
//!
//! `SEGSPOOL_BACKLOG_EVENTS` sets how many events; the figures are printed with `--nocapture`.

#![allow(
    clippy::print_stdout,
    reason = "the figures are for whoever runs it with --nocapture"
)]

#[path = "support/mod.rs"]
mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use futures_util::future::join_all;
use segspool::stand_in::{Options, StandIn};

use support::{Poster, Relay};

const EVENTS: usize = 1_000_000;
const REQUEST_EVENTS: usize = 100;
const APPLICATIONS: usize = 8;
/// What the daemon may take at its peak, in bytes.
const MEMORY_BYTES_MAX: u64 = 100_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_costs_little_memory_and_disk_and_leaves_in_full_batches() {
    let events =
        std::env::var("SEGSPOOL_BACKLOG_EVENTS").map_or(EVENTS, |n| n.parse().expect("a number"));
    let dir = tempfile::tempdir().expect("a temporary directory");
    let segment = StandIn::start(Options::default())
        .await
        .expect("a free port");
    segment.down().await;
    let settings = [("SEGMENT__LINGER", "1s"), ("RETRY__MAX", "100ms")];
    let mut relay = Relay::start(dir.path(), &segment.url(), &settings).await;

    let began = Instant::now();
    let raw_bytes = post(&relay.poster(), events).await;
    let accepting = began.elapsed();
    let stats = relay.stats().await;
    assert_eq!(stats.queue.events, events as u64);
    let disk_bytes = disk_bytes_of(dir.path());
    println!(
        "accepted {events} events of {} B in {:.1} s ({:.0}/s); disk {:.1} MB, {:.1} % of {:.0} MB; peak memory {:.1} MB",
        raw_bytes / events,
        accepting.as_secs_f64(),
        events as f64 / accepting.as_secs_f64(),
        disk_bytes as f64 / 1e6,
        100.0 * disk_bytes as f64 / raw_bytes as f64,
        raw_bytes as f64 / 1e6,
        relay.memory_bytes("VmHWM") as f64 / 1e6,
    );
    assert!(
        disk_bytes < raw_bytes as u64 / 4,
        "{disk_bytes} bytes of disk for {raw_bytes}"
    );

    let began = Instant::now();
    segment.up().await.expect("the port is kept");
    let tally = segment
        .until(|tally| tally.distinct_events == events as u64)
        .await;
    let draining = began.elapsed();
    let stats = relay.until(|stats| stats.queue.events == 0).await;
    let peak = relay.memory_bytes("VmHWM");
    println!(
        "delivered in {:.1} s ({:.0}/s) in {} batches, {:.2} % full; peak memory {:.1} MB",
        draining.as_secs_f64(),
        events as f64 / draining.as_secs_f64(),
        tally.batches,
        100.0 * tally.mean_fill,
        peak as f64 / 1e6,
    );
    assert!(peak < MEMORY_BYTES_MAX, "{peak} bytes of memory");
    assert!(
        tally.mean_fill >= 0.97,
        "batches are {} full",
        tally.mean_fill
    );
    assert!(
        tally.violations.is_empty() && tally.duplicate_events == 0,
        "{tally:?}"
    );
    assert_eq!(stats.delivery.events, events as u64);

    relay
        .until(|stats| stats.queue.volumes <= 1 && stats.queue.disk_bytes < 5_000_000)
        .await;
    assert!(relay.stop().await.success());
    let left = disk_bytes_of(&dir.path().join("volumes"));
    println!("left on disk after the stop: {left} bytes of volumes");
    assert!(left < 100_000, "{left} bytes left");
}

/// Posts so many events in batches from several applications; returns their bytes as stored.
async fn post(poster: &Poster, events: usize) -> usize {
    let next = Arc::new(AtomicUsize::new(0));
    let applications = (0..APPLICATIONS).map(|_| {
        let (poster, next) = (poster.clone(), Arc::clone(&next));
        tokio::spawn(async move {
            let mut bytes = 0;
            loop {
                let from = next.fetch_add(REQUEST_EVENTS, Ordering::Relaxed);
                if from >= events {
                    return bytes;
                }
                let batch: Vec<String> = (from..events.min(from + REQUEST_EVENTS))
                    .map(event)
                    .collect();
                bytes += batch.iter().map(String::len).sum::<usize>();
                let body = format!("{{\"batch\":[{}]}}", batch.join(","));
                let reply = poster
                    .post("/v1/batch", "KEY12345", body)
                    .await
                    .expect("an answer");
                assert_eq!(reply.status(), 200);
            }
        })
    });
    join_all(applications)
        .await
        .into_iter()
        .map(|bytes| bytes.expect("no panic"))
        .sum()
}

/// An event of about 600 bytes as a web shop's server sends it: ids that do not compress, words that do.
fn event(n: usize) -> String {
    let id = uuid::Uuid::new_v4();
    let user = uuid::Uuid::from_u64_pair(
        0x5eed,
        (n as u64 % 20_000).wrapping_mul(0x9E37_79B9_7F4A_7C15),
    );
    let name = [
        "Product Viewed",
        "Product Added",
        "Checkout Started",
        "Order Completed",
        "Coupon Applied",
    ][n % 5];
    let (price, sku) = (n * 7919 % 100_000, n * 104_729 % 50_000);
    let (minute, second, ms) = (n / 60_000 % 60, n / 1000 % 60, n % 1000);
    format!(
        r#"{{"anonymousId":null,"context":{{"ip":"10.{}.{}.{}","library":{{"name":"analytics-python","version":"2.4.0"}},"locale":"de-DE","page":{{"path":"/shop/item/{sku}","referrer":"https://www.example.test/search?q={sku}","url":"https://shop.example.test/shop/item/{sku}"}}}},"event":"{name}","integrations":{{}},"messageId":"{id}","properties":{{"cart_id":"{:016x}","currency":"EUR","price":{}.{:02},"product_id":"sku-{sku}","quantity":{}}},"timestamp":"2026-11-23T14:{minute:02}:{second:02}.{ms:03}Z","type":"track","userId":"{user}"}}"#,
        n % 200,
        n / 7 % 250,
        n / 3 % 250,
        id.as_u64_pair().1,
        price / 100,
        price % 100,
        1 + n % 4,
    )
}

fn disk_bytes_of(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(dir).expect("a directory").flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => disk_bytes_of(&entry.path()),
        Ok(found) => found.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}
