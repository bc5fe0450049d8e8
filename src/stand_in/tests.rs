//! Each answer does what it says, seen from the other end of a real socket.

use std::io::{self, Read};
use std::time::Duration;

use tokio::net::TcpStream;

use super::{Answer, Match, Options, Rule, StandIn, Tally, Violation};

const SUCCESS: &str = r#"{"success": true}"#;

/// One keep-alive connection of a client that knows just enough HTTP.
struct Client {
    stream: TcpStream,
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Client {
    async fn connect(stand_in: &StandIn) -> Self {
        let stream = TcpStream::connect(stand_in.address())
            .await
            .expect("the stand-in is listening");
        Self { stream }
    }

    async fn send(&mut self, request_line: &str, headers: &str, body: &[u8]) -> io::Result<()> {
        let length = body.len();
        let head = format!(
            "{request_line} HTTP/1.1\r\nHost: stand-in\r\nContent-Length: {length}\r\n{headers}\r\n"
        );
        self.write(head.as_bytes()).await?;
        self.write(body).await
    }

    async fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn read(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        let mut filled = 0;
        while filled < count {
            self.stream.readable().await?;
            match self.stream.try_read(&mut bytes[filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }

    async fn head(&mut self) -> io::Result<String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(self.read(1).await?);
        }
        Ok(String::from_utf8(head).expect("a head is ASCII"))
    }

    async fn reply(&mut self) -> io::Result<Reply> {
        let head = self.head().await?.to_ascii_lowercase();
        let status = head[9..12].parse().expect("a status is a number");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .expect("every reply tells its length")
            .parse()
            .expect("a length is a number");
        let body = String::from_utf8(self.read(length).await?).expect("a body is text");
        Ok(Reply { status, head, body })
    }

    async fn call(&mut self, request_line: &str, body: &str) -> Reply {
        self.send(request_line, "", body.as_bytes())
            .await
            .expect("the connection is open");
        self.reply().await.expect("there is an answer")
    }

    async fn post(&mut self, body: &str) -> Reply {
        self.call("POST /v1/batch", body).await
    }

    async fn post_and_fail(&mut self, body: &str) -> io::ErrorKind {
        let sent = self.send("POST /v1/batch", "", body.as_bytes()).await;
        let reply = match sent {
            Ok(()) => self.reply().await,
            Err(error) => Err(error),
        };
        reply.expect_err("there is no answer").kind()
    }
}

async fn started() -> StandIn {
    StandIn::start(Options::default())
        .await
        .expect("loopback has a free port")
}

async fn recording() -> StandIn {
    let options = Options {
        record: true,
        ..Options::default()
    };
    StandIn::start(options)
        .await
        .expect("loopback has a free port")
}

fn batch(write_key: &str, ids: &[&str]) -> String {
    let events: Vec<String> = ids
        .iter()
        .map(|id| format!(r#"{{"type":"track","messageId":"{id}"}}"#))
        .collect();
    let events = events.join(",");
    format!(r#"{{"writeKey":"{write_key}","sentAt":"2026-01-01T00:00:00Z","batch":[{events}]}}"#)
}

#[tokio::test]
async fn a_batch_is_answered_as_by_segment_and_its_ids_counted() {
    let stand_in = started().await;
    let mut client = Client::connect(&stand_in).await;
    for (line, body) in [
        ("POST /v1/batch", batch("k1", &["a", "b"])),
        ("POST /v1/import", batch("k2", &["c", "b"])),
        ("POST /v1/batch?debug", batch("k1", &["b"])),
    ] {
        let reply = client.call(line, &body).await;
        assert_eq!((reply.status, reply.body.as_str()), (200, SUCCESS));
        assert!(reply.head.contains("content-type: application/json"));
    }

    let tally = stand_in.tally();
    assert_eq!((tally.requests, tally.batches, tally.events), (3, 3, 5));
    assert_eq!((tally.distinct_events, tally.duplicate_events), (3, 2));
    assert_eq!(tally.answers["200"], 3);
    assert!(tally.violations.is_empty());
    let keys = ["k1", "k2"].map(|key| {
        let key = &tally.write_keys[key];
        (
            key.batches,
            key.events,
            key.distinct_events,
            key.duplicate_events,
        )
    });
    assert_eq!(keys, [(2, 3, 2, 1), (1, 2, 1, 1)]);
    let times = ["a", "b", "c", "d"].map(|id| stand_in.times_delivered(id));
    assert_eq!(times, [1, 3, 1, 0]);

    stand_in.clear_tally();
    assert_eq!(stand_in.tally(), Tally::default());
    assert_eq!(stand_in.times_delivered("b"), 0);
}

#[tokio::test]
async fn a_broken_limit_is_counted_and_answered_as_segment_would() {
    let stand_in = started().await;
    let mut client = Client::connect(&stand_in).await;
    let filler = "x".repeat(500_000);
    let large = format!(r#"{{"writeKey":"k","sentAt":"s","batch":[{{"p":"{filler}"}}]}}"#);
    let many = format!(
        r#"{{"writeKey":"k","sentAt":"s","batch":[{}1]}}"#,
        "1,".repeat(2_500)
    );
    let cases = [
        ("{".to_owned(), 400, "Bad Request", Violation::Unreadable),
        (large, 400, "Exceed payload limit", Violation::BodyTooLarge),
        (
            r#"{"sentAt":"s","batch":[{}]}"#.to_owned(),
            400,
            "Bad Request",
            Violation::NoWriteKey,
        ),
        (many, 200, SUCCESS, Violation::TooManyEvents),
        (batch("k", &[]), 200, SUCCESS, Violation::EmptyBatch),
        (
            r#"{"writeKey":"k","batch":[{}]}"#.to_owned(),
            200,
            SUCCESS,
            Violation::NoSentAt,
        ),
    ];
    for (body, status, text, violation) in cases {
        stand_in.clear_tally();
        let reply = client.post(&body).await;
        assert_eq!((reply.status, reply.body.as_str()), (status, text));
        let tally = stand_in.tally();
        assert_eq!(tally.violations[&violation], 1);
        let delivered = u64::from(violation == Violation::NoSentAt);
        assert_eq!((tally.batches, tally.events), (delivered, delivered));
    }
}

#[tokio::test]
async fn a_lenient_one_takes_what_segment_would_not() {
    let options = Options {
        strict: false,
        ..Options::default()
    };
    let stand_in = StandIn::start(options).await.expect("there is a free port");
    let mut client = Client::connect(&stand_in).await;
    let filler = "x".repeat(600_000);
    let reply = client.post(&format!(r#"{{"batch":["{filler}"]}}"#)).await;
    assert_eq!(reply.status, 200);
    let tally = stand_in.tally();
    assert_eq!(tally.events, 1);
    assert!(tally.violations.is_empty());
}

#[tokio::test]
async fn gzip_basic_and_retry_count_are_understood() {
    let stand_in = recording().await;
    let mut client = Client::connect(&stand_in).await;
    let body = r#"{"sentAt":"s","batch":[{"messageId":"a"}]}"#;
    let mut packed = Vec::new();
    flate2::read::GzEncoder::new(body.as_bytes(), flate2::Compression::fast())
        .read_to_end(&mut packed)
        .expect("memory takes every byte");
    let headers = "Content-Encoding: gzip\r\nAuthorization: Basic azE6\r\nX-Retry-Count: 4\r\n";
    client
        .send("POST /v1/batch", headers, &packed)
        .await
        .expect("the connection is open");
    let reply = client.reply().await.expect("there is an answer");
    assert_eq!(reply.status, 200);

    let tally = stand_in.tally();
    assert_eq!((tally.retried_requests, tally.retry_count_max), (1, 4));
    assert_eq!(tally.body_bytes, body.len() as u64);
    assert_eq!(tally.write_keys["k1"].events, 1);
    assert!(tally.violations.is_empty());
}

#[tokio::test]
async fn delivered_events_are_recorded_in_order_without_a_byte_changed() {
    let stand_in = recording().await;
    let mut client = Client::connect(&stand_in).await;
    let odd = "{ \"messageId\" : \"a\",\n\"n\": 1.0e2, \"n\": \"ü\" }";
    let body = format!(r#"{{"writeKey":"k","sentAt":"s","batch":[{odd}, 2]}}"#);
    client.post(&body).await;
    stand_in.answer(Answer::status(503));
    client.post(&batch("k", &["refused"])).await;
    stand_in.answer(Answer::Ok);
    client.post(&batch("k2", &["b"])).await;

    let seen: Vec<_> = stand_in
        .events()
        .into_iter()
        .map(|event| (event.arrival, event.write_key, event.event.get().to_owned()))
        .collect();
    let last = r#"{"type":"track","messageId":"b"}"#;
    let expected = [(0, "k", odd), (1, "k", "2"), (2, "k2", last)]
        .map(|(arrival, key, event)| (arrival, key.to_owned(), event.to_owned()));
    assert_eq!(seen, expected);

    let lines = client.call("GET /stand-in/events", "").await.body;
    let one_line = odd.replace('\n', " ");
    let first = format!(r#"{{"arrival":0,"write_key":"k","sent_at":"s","event":{one_line}}}"#);
    assert_eq!(lines.lines().next(), Some(first.as_str()));
    assert_eq!(lines.lines().count(), 3);

    assert_eq!(stand_in.take_events().len(), 3);
    assert!(stand_in.events().is_empty());
}

#[tokio::test]
async fn a_status_carries_the_headers_and_body_of_its_rule() {
    let stand_in = started().await;
    let mut client = Client::connect(&stand_in).await;
    let limited = Answer::Status {
        code: 429,
        retry_after: Some("7".into()),
        rate_limit_reset: Some("9".into()),
        body: Some("slower".into()),
    };
    stand_in.set_rules(vec![
        Rule::always(limited).times(1),
        Rule::always(Answer::status(503)),
    ]);

    let reply = client.post(&batch("k", &["a"])).await;
    assert_eq!((reply.status, reply.body.as_str()), (429, "slower"));
    assert!(reply.head.contains("retry-after: 7\r\n"));
    assert!(reply.head.contains("x-ratelimit-reset: 9\r\n"));
    let reply = client.post(&batch("k", &["a"])).await;
    assert_eq!(
        (reply.status, reply.body.as_str()),
        (503, "Service Unavailable")
    );
    assert_eq!(stand_in.tally().batches, 0);

    for impossible in [Answer::status(7), Answer::rate_limited("1\r\n2")] {
        stand_in.answer(impossible);
        assert_eq!(client.post(&batch("k", &["a"])).await.status, 500);
    }
    stand_in.answer(Answer::status(202));
    assert_eq!(client.post(&batch("k", &["a"])).await.body, SUCCESS);
    assert_eq!(stand_in.times_delivered("a"), 1);
}

#[tokio::test]
async fn a_rule_hits_only_the_batches_it_matches() {
    let stand_in = started().await;
    let mut client = Client::connect(&stand_in).await;
    let poison = Match {
        contains: Some("poison".into()),
        ..Match::default()
    };
    stand_in.set_rules(vec![Rule::when(poison, Answer::status(400))]);
    let mut statuses = Vec::new();
    for ids in [["a", "b"], ["c", "poison"], ["d", "e"]] {
        statuses.push(client.post(&batch("k", &ids)).await.status);
    }
    assert_eq!(statuses, [200, 400, 200]);
    assert_eq!(stand_in.tally().distinct_events, 4);
}

#[tokio::test]
async fn a_hanging_batch_is_answered_once_the_rules_change() {
    let stand_in = started().await;
    stand_in.answer(Answer::Hang);
    let mut client = Client::connect(&stand_in).await;
    let body = batch("k", &["a"]);
    let (reply, ()) = tokio::join!(client.post(&body), async {
        stand_in.until(|tally| tally.hanging_batches == 1).await;
        stand_in.answer(Answer::Ok);
    });
    assert_eq!(reply.status, 200);
    let tally = stand_in.tally();
    assert_eq!((tally.hanging_batches, tally.unanswered_batches), (0, 0));
    assert_eq!(tally.batches, 1);
}

#[tokio::test]
async fn a_hanging_batch_is_unanswered_once_the_client_goes_away() {
    let stand_in = started().await;
    stand_in.answer(Answer::Hang);
    let mut client = Client::connect(&stand_in).await;
    let body = batch("k", &["a", "b"]);
    client
        .send("POST /v1/batch", "", body.as_bytes())
        .await
        .expect("the connection is open");
    stand_in.until(|tally| tally.hanging_batches == 1).await;
    drop(client);
    let tally = stand_in.until(|tally| tally.unanswered_batches == 1).await;
    assert_eq!((tally.hanging_batches, tally.unanswered_events), (0, 2));
    assert_eq!(tally.events, 0);
}

#[tokio::test]
async fn a_reset_is_a_tcp_reset_and_delivers_nothing() {
    let stand_in = started().await;
    stand_in.answer(Answer::Reset);
    let mut client = Client::connect(&stand_in).await;
    let failure = client.post_and_fail(&batch("k", &["a"])).await;
    assert_eq!(failure, io::ErrorKind::ConnectionReset);
    let tally = stand_in.tally();
    assert_eq!((tally.events, tally.unanswered_events), (0, 1));
}

#[tokio::test]
async fn a_reset_after_accepting_makes_a_duplicate_of_the_next_attempt() {
    let stand_in = started().await;
    stand_in.set_rules(vec![Rule::always(Answer::ResetAfterAccepting).times(1)]);
    let body = batch("k", &["a"]);
    let failure = Client::connect(&stand_in).await.post_and_fail(&body).await;
    assert_eq!(failure, io::ErrorKind::ConnectionReset);
    let reply = Client::connect(&stand_in).await.post(&body).await;
    assert_eq!(reply.status, 200);
    let tally = stand_in.tally();
    assert_eq!((tally.distinct_events, tally.duplicate_events), (1, 1));
    assert_eq!(tally.answers["reset_after_accepting"], 1);
}

#[tokio::test]
async fn a_drip_comes_one_byte_at_a_time_until_it_is_whole() {
    let stand_in = started().await;
    stand_in.answer(Answer::Drip { every_ms: 3 });
    let mut client = Client::connect(&stand_in).await;
    let begun = std::time::Instant::now();
    let reply = client.post(&batch("k", &["a"])).await;
    assert_eq!((reply.status, reply.body.as_str()), (200, SUCCESS));
    assert!(begun.elapsed() >= Duration::from_millis(3 * SUCCESS.len() as u64));
    assert_eq!(stand_in.times_delivered("a"), 1);
}

#[tokio::test]
async fn down_refuses_and_up_accepts_on_the_same_port() {
    let stand_in = started().await;
    let address = stand_in.address();
    let mut client = Client::connect(&stand_in).await;
    assert_eq!(client.post(&batch("k", &["a"])).await.status, 200);

    stand_in.down().await;
    stand_in.down().await;
    let refused = TcpStream::connect(address).await.expect_err("it is down");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    client.post_and_fail(&batch("k", &["b"])).await;

    stand_in.up().await.expect("the port was kept");
    stand_in.up().await.expect("it is up already");
    assert_eq!(stand_in.address(), address);
    let reply = Client::connect(&stand_in)
        .await
        .post(&batch("k", &["b"]))
        .await;
    assert_eq!(reply.status, 200);
    assert_eq!(stand_in.tally().distinct_events, 2);
}

#[tokio::test]
async fn an_outage_begun_by_a_batch_ends_by_itself_or_with_up() {
    let stand_in = started().await;
    let outage = |for_ms| Rule::always(Answer::RefuseConnections { for_ms }).times(1);
    let body = batch("k", &["a"]);

    stand_in.set_rules(vec![outage(3_600_000)]);
    let mut bystander = Client::connect(&stand_in).await;
    Client::connect(&stand_in).await.post_and_fail(&body).await;
    let cut_off = bystander.read(1).await;
    assert!(cut_off.is_err(), "every connection is closed");
    let refused = TcpStream::connect(stand_in.address()).await;
    assert!(refused.is_err(), "the port was closed before");
    stand_in.up().await.expect("the port was kept");
    let reply = Client::connect(&stand_in).await.post(&body).await;
    assert_eq!(reply.status, 200);

    stand_in.set_rules(vec![outage(20)]);
    Client::connect(&stand_in).await.post_and_fail(&body).await;
    let begun = std::time::Instant::now();
    while TcpStream::connect(stand_in.address()).await.is_err() {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "the outage never ended"
        );
        tokio::task::yield_now().await;
    }
    assert_eq!(stand_in.tally().answers["refuse_connections"], 2);
}

#[tokio::test]
async fn it_is_controlled_over_http_on_the_same_port() {
    let stand_in = started().await;
    let mut client = Client::connect(&stand_in).await;
    let body = batch("k", &["a"]);
    let rules = r#"[{"when":{"write_key":"k"},"answer":{"status":{"code":503}},"times":1}]"#;
    assert_eq!(client.call("PUT /stand-in/rules", rules).await.status, 200);
    assert_eq!(client.post(&body).await.status, 503);
    assert_eq!(client.post(&body).await.status, 200);
    let answer = r#"{"status":{"code":429,"retry_after":"1"}}"#;
    assert_eq!(
        client.call("PUT /stand-in/answer", answer).await.status,
        200
    );
    assert_eq!(client.post(&body).await.status, 429);

    let reply = client.call("GET /stand-in/tally", "").await;
    let tally: Tally = serde_json::from_str(&reply.body).expect("this is a tally");
    assert_eq!(tally, stand_in.tally());
    assert_eq!((tally.requests, tally.events), (3, 1));
    assert_eq!(client.call("DELETE /stand-in/tally", "").await.status, 200);
    assert_eq!(stand_in.tally(), Tally::default());

    for (line, body, status, reason) in [
        ("PUT /stand-in/rules", "[{]", 400, "key must be a string"),
        (
            "PUT /stand-in/answer",
            r#""sulk""#,
            400,
            "unknown variant `sulk`",
        ),
        ("GET /stand-in/nothing", "", 404, "no such endpoint"),
        (
            "GET /stand-in/events",
            "",
            404,
            "events are not being recorded",
        ),
    ] {
        let reply = client.call(line, body).await;
        assert_eq!(reply.status, status);
        let error: serde_json::Value = serde_json::from_str(&reply.body).expect("this is JSON");
        let error = error["error"].as_str().expect("it says why");
        assert!(error.contains(reason), "{error}");
    }
    assert_eq!(client.call("GET /v1/batch", "").await.status, 404);
}

#[tokio::test]
async fn a_webhook_gets_one_signed_event_a_call_and_counts_by_itself() {
    let options = Options {
        record: true,
        hook_secret: Some("s3cret".into()),
        ..Options::default()
    };
    let stand_in = StandIn::start(options).await.expect("a free port");
    let mut client = Client::connect(&stand_in).await;
    let body = r#"{"messageId":"a"}"#;
    let json = "Content-Type: application/json\r\n";
    let signed = format!("{json}X-Signature: 9747404884a7300d608232b3815caee1a682cdc5\r\n");
    for (line, headers, body, status) in [
        ("POST /hook/orders", &*signed, body, 200),
        ("POST /hook/orders", &signed, body, 200),
        ("POST /hook/a/b?c=d", &signed, body, 200),
        ("POST /hook/orders", json, body, 401),
        ("POST /hook/orders", &signed, r#"{"messageId":"b"}"#, 401),
        ("POST /hook/orders", &signed, "[]", 401),
        ("GET /hook/orders", &signed, "", 404),
        ("POST /hook/", &signed, body, 404),
    ] {
        let sent = client.send(line, headers, body.as_bytes()).await;
        sent.expect("the connection is open");
        let reply = client.reply().await.expect("an answer");
        assert_eq!(reply.status, status, "{line} {body}");
    }
    let tally = stand_in.tally();
    let orders = &tally.hooks["orders"];
    assert_eq!((orders.requests, orders.events), (5, 2));
    assert_eq!((orders.distinct_events, orders.duplicate_events), (1, 1));
    assert_eq!(orders.violations[&Violation::NotSigned], 3);
    assert_eq!(orders.violations[&Violation::NotOneObject], 1);
    assert_eq!((orders.answers["200"], orders.answers["401"]), (2, 3));
    assert_eq!(tally.hooks["a/b"].distinct_events, 1, "to each its own");
    assert_eq!((tally.requests, tally.events), (0, 0));
    assert_eq!(stand_in.times_posted("orders", "a"), 2);
    assert_eq!(stand_in.times_delivered("a"), 0);
    let recorded = stand_in.events();
    let recorded: Vec<_> = recorded
        .iter()
        .map(|event| (event.arrival, event.hook.as_deref(), event.event.get()))
        .collect();
    let expected = [
        (0, Some("orders"), body),
        (1, Some("orders"), body),
        (2, Some("a/b"), body),
    ];
    assert_eq!(recorded, expected);
}

#[tokio::test]
async fn a_rule_for_a_webhook_is_for_it_alone() {
    let stand_in = started().await;
    let rules = r#"[{"when":{"hook":"slow"},"answer":"hang"},{"when":{"hook":"*"},"answer":{"status":{"code":503}}}]"#;
    let mut client = Client::connect(&stand_in).await;
    assert_eq!(client.call("PUT /stand-in/rules", rules).await.status, 200);
    let headers = "Content-Type: application/json\r\n";
    let body = br#"{"messageId":"a"}"#;
    let mut slow = Client::connect(&stand_in).await;
    let sent = slow.send("POST /hook/slow", headers, body).await;
    sent.expect("the connection is open");
    let hangs = |tally: &Tally| {
        let slow = tally.hooks.get("slow");
        slow.is_some_and(|hook| hook.hanging_requests == 1)
    };
    stand_in.until(hangs).await;
    let sent = client.send("POST /hook/other", headers, body).await;
    sent.expect("the connection is open");
    assert_eq!(client.reply().await.expect("an answer").status, 503);
    assert_eq!(client.post(&batch("k", &["a"])).await.status, 200);

    stand_in.answer(Answer::status(503));
    assert_eq!(slow.reply().await.expect("an answer").status, 200);
    assert_eq!(client.post(&batch("k", &["b"])).await.status, 503);
    let sent = slow.send("POST /hook/slow", headers, body).await;
    sent.expect("the connection is open");
    assert_eq!(slow.reply().await.expect("an answer").status, 200);
    let tally = stand_in.tally();
    assert_eq!((tally.requests, tally.distinct_events), (2, 1));
    assert_eq!(tally.hooks["slow"].hanging_requests, 0);
    assert_eq!(tally.hooks["slow"].duplicate_events, 1);
}

#[tokio::test]
async fn it_listens_on_loopback_only_unless_told_otherwise() {
    let everywhere = |allow_remote| Options {
        listen: ([0, 0, 0, 0], 0).into(),
        allow_remote,
        ..Options::default()
    };
    let refused = StandIn::start(everywhere(false)).await;
    assert_eq!(
        refused.expect_err("this is not loopback").kind(),
        io::ErrorKind::InvalidInput
    );
    assert!(StandIn::start(everywhere(true)).await.is_ok());
}

#[tokio::test]
async fn a_shut_down_stand_in_has_freed_its_port() {
    let stand_in = started().await;
    let options = Options {
        listen: stand_in.address(),
        ..Options::default()
    };
    stand_in.shutdown().await;
    StandIn::start(options).await.expect("the port is free");
}
