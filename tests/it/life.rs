//! The life of the process: start, stop, restart, and what it says when it cannot begin.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use segspool::queue::{Barrier, BuryError, Config, DeadLetter, LaneName, Queue, Repacking, Run};
use segspool::stand_in::Answer;

use crate::support::{Relay, client, ids, segment, spool, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_delivers_what_waits_and_a_start_right_after_it_works() {
    let (dir, segment) = (spool(), segment().await);
    for life in 0..3 {
        let mut relay =
            Relay::start(dir.path(), &segment.url(), &[("SEGMENT__LINGER", "10s")]).await;
        relay
            .track("KEY12345", &ids(&format!("l{life}"), 0..10))
            .await;
        assert!(relay.stop().await.success(), "{}", relay.log());
    }
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let stats = relay.until(|stats| stats.queue.events == 0).await;
    assert_eq!(
        (
            stats.queue.recovered_events,
            segment.tally().distinct_events
        ),
        (0, 30)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_the_destination_is_dead_deletes_nothing() {
    let (dir, segment) = (spool(), segment().await);
    segment.down().await;
    let mut relay = Relay::start(dir.path(), &segment.url(), &[("SHUTDOWN__DRAIN", "100ms")]).await;
    relay.track("KEY12345", &ids("e", 0..1000)).await;
    assert!(relay.stop().await.success());
    segment.up().await.expect("the port is kept");
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let stats = relay.until(|stats| stats.queue.events == 0).await;
    assert_eq!(
        (
            stats.queue.recovered_events,
            segment.tally().distinct_events
        ),
        (1000, 1000)
    );
    assert_eq!(segment.tally().duplicate_events, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_drains_it_accepts_nothing_and_says_so() {
    let (dir, segment) = (spool(), segment().await);
    segment.answer(Answer::Hang);
    let mut relay = Relay::start(dir.path(), &segment.url(), &[("SHUTDOWN__DRAIN", "60s")]).await;
    relay.track("KEY12345", &ids("e", 0..1)).await;
    relay.signal(Signal::TERM);
    let stats = relay.until(|stats| stats.state == "draining").await;
    assert!(!stats.ingest.accepting);
    let ready = client()
        .get(format!("{}/readyz", relay.admin))
        .send()
        .await
        .expect("an answer");
    assert_eq!(
        (
            ready.status().as_u16(),
            ready.text().await.expect("text").as_str()
        ),
        (503, "draining\n")
    );
    let alive = client()
        .get(format!("{}/healthz", relay.admin))
        .send()
        .await
        .expect("an answer");
    assert_eq!(alive.status(), 200);
    assert!(
        client()
            .post(format!("{}/v1/track", relay.ingest))
            .send()
            .await
            .is_err(),
        "the port is closed"
    );
    segment.answer(Answer::Ok);
    assert!(relay.exit().await.success());
    assert_eq!(segment.tally().distinct_events, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once_and_loses_nothing() {
    let (dir, segment) = (spool(), segment().await);
    segment.answer(Answer::Hang);
    let mut relay = Relay::start(dir.path(), &segment.url(), &[("SHUTDOWN__DRAIN", "600s")]).await;
    relay.track("KEY12345", &ids("e", 0..1)).await;
    relay.signal(Signal::TERM);
    relay.until(|stats| stats.state == "draining").await;
    relay.signal(Signal::TERM);
    assert_eq!(relay.exit().await.code(), Some(128 + 15));
    segment.answer(Answer::Ok);
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    relay.until(|stats| stats.queue.events == 0).await;
    assert!(segment.tally().distinct_events == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_spool_is_refused_with_a_word() {
    let (dir, segment) = (spool(), segment().await);
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let (code, said) = serve(&[("SEGSPOOL_DATA_DIR", dir.path().to_str().expect("text"))]).await;
    assert_eq!(code, Some(75));
    assert!(
        said.contains(&format!(
            "is in use by another segspool, process {}",
            relay.pid()
        )),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_it_from_starting_is_said_with_an_exit_code() {
    let dir = spool();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = format!("[\"{}\"]", taken.local_addr().expect("an address"));
    let data_dir = dir.path().to_str().expect("text");
    for (settings, code, expected) in [
        (
            vec![("SEGSPOOL_INGEST__LISTEN", taken.as_str())],
            69,
            "failed to listen on 127.0.0.1:",
        ),
        (
            vec![("SEGSPOOL_DATA_DIR", "/proc/nowhere")],
            73,
            "failed to open the spool in /proc/nowhere: ",
        ),
        (
            vec![("SEGSPOOL_SEGMENT__SPEED", "1")],
            78,
            "unknown field `speed`",
        ),
        (
            vec![("SEGSPOOL_SEGMENT__ENDPOINT", "nonsense")],
            78,
            "failed to set delivery up: ",
        ),
    ] {
        let mut all = vec![("SEGSPOOL_DATA_DIR", data_dir)];
        all.extend(settings);
        let (found, said) = serve(&all).await;
        assert_eq!(found, Some(code), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}

/// Whatever takes such a thread down, nobody does its work any more. For the dead letters that meant a daemon which lived on and
/// could never again bury an event, nor read a lane's backlog.
#[tokio::test(flavor = "multi_thread")]
async fn a_thread_of_the_queue_that_panics_ends_the_queue_and_loses_nothing() {
    for dying in ["segspool-writer", "segspool-dead"] {
        let dir = spool();
        let barrier = Barrier::new(move |db| {
            let is_dying = std::thread::current().name() == Some(dying);
            assert!(!is_dying, "a bug");
            db.sync_data()
        });
        let queue = open(dir.path(), barrier).await;
        let lane = queue.lane(&LaneName::new("segment", "KEY12345"));
        let lane = lane.expect("there are not too many lanes");
        let mut event = Run::default();
        event.push(b"{}");
        let appended = queue.append(vec![(lane, event)]).await;
        assert_eq!(appended.is_ok(), dying != "segspool-writer", "{dying}");
        let buried = queue.dead_letters().bury(vec![(0, 0, letter())]).await;
        assert_eq!(buried.is_ok(), dying != "segspool-dead", "{dying}");
        within(queue.ended()).await;
        within(queue.close()).await;
        drop(queue);

        let queue = open(dir.path(), Barrier::synced()).await;
        assert_eq!(queue.usage().quarantined_volumes, 0);
        assert!(queue.depth().events >= u64::from(appended.is_ok()));
        assert!(queue.dead_letters().all().await.len() >= usize::from(buried.is_ok()));
        within(queue.close()).await;
    }
}

/// A store whose sync failed may be read and not be added to: what is written behind a page that never reaches the disk is lost with it.
#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_whose_sync_failed_are_written_anew_before_more_are_buried() {
    let (dir, failing) = (spool(), Arc::new(AtomicBool::new(false)));
    let fails = Arc::clone(&failing);
    let barrier = Barrier::new(move |db| match fails.load(Ordering::Relaxed) {
        true => Err(std::io::Error::from_raw_os_error(5)),
        false => db.sync_data(),
    });
    let queue = open(dir.path(), barrier).await;
    let file = || std::fs::metadata(dir.path().join("dead-letters/db")).map(|file| file.ino());
    let letters = queue.dead_letters();
    assert_eq!(letters.bury(vec![(0, 0, letter())]).await, Ok(()));
    let first = file().expect("a file");
    failing.store(true, Ordering::Relaxed);
    for _ in 0..2 {
        let buried = letters.bury(vec![(1, 0, letter())]).await;
        assert_eq!(buried, Err(BuryError::Storage));
        assert!(letters.all().await.contains(&letter()));
        assert_eq!(file().expect("a file"), first);
    }
    failing.store(false, Ordering::Relaxed);
    assert_eq!(letters.bury(vec![(1, 0, letter())]).await, Ok(()));
    assert_ne!(file().expect("a file"), first);
    assert_eq!((letters.events(), letters.all().await.len()), (2, 2));
    within(queue.close()).await;
}

fn letter() -> DeadLetter {
    DeadLetter {
        lane: Some(LaneName::new("segment", "KEY12345")),
        call: None,
        code: "refused".into(),
        reason: "the destination refused it".into(),
        status: Some(400),
        answer: String::new(),
        attempts: 1,
        accepted_at_ms: 1,
        buried_at_ms: 2,
        event: b"{}".to_vec(),
    }
}

async fn open(data_dir: &Path, barrier: Barrier) -> Queue {
    let (data_dir, config) = (data_dir.to_owned(), Config::default());
    let opening = tokio::task::spawn_blocking(move || {
        Queue::open_with(&data_dir, &config, barrier, Repacking::WhenWorthIt)
    });
    opening.await.expect("no panic").expect("opened").0
}

/// Runs a daemon that is expected to end by itself.
pub(crate) async fn serve(settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_segspool"));
    command
        .arg("serve")
        .env("SEGSPOOL_INGEST__LISTEN", "[\"127.0.0.1:0\"]")
        .env("SEGSPOOL_ADMIN__LISTEN", "127.0.0.1:0")
        .envs(settings.iter().copied())
        .stdin(Stdio::null());
    let output = within(tokio::task::spawn_blocking(move || command.output())).await;
    let output = output
        .expect("no panic")
        .expect("the daemon's program is there");
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}
