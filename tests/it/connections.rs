//! What senders do to their connections: stall, vanish, or be in the middle of a request when the daemon stops.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::{Relay, ids, segment, spool, within};

const EVENT: &str = r#"{"userId":"u","event":"E"}"#;

fn connect(relay: &Relay) -> TcpStream {
    let address = relay.ingest.strip_prefix("http://").expect("a URL");
    TcpStream::connect(address).expect("it listens")
}

fn head(framing: &str) -> String {
    format!(
        "POST /v1/track HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic S0VZMTIzNDU6\r\n{framing}\r\n\r\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_stall_hold_up_nobody() {
    let dir = spool();
    let segment = segment().await;
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let stalled: Vec<_> = (0..200)
        .map(|n| {
            let mut stream = connect(&relay);
            let framing = ["Transfer-Encoding: chunked", "Content-Length: 8000000"][n % 2];
            let first = ["1\r\n{\r\n", "{"][n % 2];
            stream
                .write_all((head(framing) + first).as_bytes())
                .expect("written");
            stream
        })
        .collect();
    for n in 0..20 {
        relay.track("KEY12345", &ids("e", n..n + 1)).await;
    }
    within(segment.until(|tally| tally.distinct_events == 20)).await;
    drop(stalled);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_body_is_taken_though_it_arrives_slowly() {
    let dir = spool();
    let segment = segment().await;
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let mut stream = connect(&relay);
    let mut body = EVENT.as_bytes().to_vec();
    // As much as `ingest.max_body` allows. Its second half takes longer than a body may that is in others' way.
    body.resize(8 * 1024 * 1024, b' ');
    let framing = format!("Connection: close\r\nContent-Length: {}", body.len());
    stream
        .write_all(head(&framing).as_bytes())
        .expect("written");
    for piece in body.chunks(512 * 1024) {
        thread::sleep(Duration::from_millis(300));
        stream.write_all(piece).expect("written");
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_clients_that_leave_before_their_answer_are_stored_once_or_not_at_all_and_counted()
 {
    let dir = spool();
    let segment = segment().await;
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    for _ in 0..500 {
        let mut stream = connect(&relay);
        let request = head(&format!("Content-Length: {}", EVENT.len())) + EVENT;
        stream.write_all(request.as_bytes()).expect("written");
    }
    relay.track("KEY12345", &ids("last", 0..1)).await;
    let quiet = relay
        .until(|stats| {
            stats.queue.events == 0 && stats.lanes.iter().all(|lane| lane.conservation().holds())
        })
        .await;
    let tally = segment.tally();
    assert_eq!(
        (quiet.ingest.accepted_events, quiet.delivery.events),
        (tally.events, tally.events)
    );
    assert_eq!(tally.duplicate_events, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_under_way_at_a_stop_is_finished() {
    let dir = spool();
    let segment = segment().await;
    let mut relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let mut stream = connect(&relay);
    let (first, rest) = EVENT.split_at(7);
    let request = head(&format!("Content-Length: {}", EVENT.len())) + first;
    stream.write_all(request.as_bytes()).expect("written");
    // It is under way once the daemon has answered another one that came behind it.
    relay.track("KEY12345", &ids("e", 0..1)).await;
    relay.until(|stats| stats.ingest.requests == 2).await;
    relay.signal(Signal::TERM);
    relay.until(|stats| stats.state == "draining").await;
    stream.write_all(rest.as_bytes()).expect("written");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("read");
    assert!(reply.starts_with("HTTP/1.1 200 OK"), "{reply}");
    assert!(relay.exit().await.success());
    assert_eq!(segment.tally().events, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn junk_costs_little_memory_and_does_not_delay_a_stop() {
    let dir = spool();
    let segment = segment().await;
    let mut relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let junk = format!("{{\"batch\":[1{}]}}", ",1".repeat(49_999));
    for _ in 0..50 {
        assert_eq!(
            relay
                .post("/v1/batch", "KEY12345", junk.clone())
                .await
                .status(),
            400
        );
    }
    assert_eq!(relay.stats().await.ingest.rejected_events, 50 * 50_000);
    let peak = relay.memory_bytes("VmHWM");
    assert!(peak < 150_000_000, "{peak} bytes of memory");
    assert!(relay.stop().await.success());
}
