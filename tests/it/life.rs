//! The life of the process: start, stop, restart, and what it says when it cannot begin.

use std::process::{Command, Stdio};

use rustix::process::Signal;
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
