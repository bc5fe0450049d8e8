//! What an application is answered, and what of it is stored.

use reqwest::StatusCode;
use segspool::stand_in::StandIn;
use serde_json::{Value, json};

use crate::support::{Relay, client, gzip, segment, spool, within};

async fn start() -> (tempfile::TempDir, StandIn, Relay) {
    let dir = spool();
    let segment = segment().await;
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    (dir, segment, relay)
}

async fn json_of(reply: reqwest::Response) -> (StatusCode, Value) {
    let status = reply.status();
    assert_eq!(reply.headers()["content-type"], "application/json");
    (
        status,
        serde_json::from_slice(&reply.bytes().await.expect("a body")).expect("JSON"),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_reaches_segment_with_its_type_and_a_stamp() {
    let (_dir, segment, relay) = start().await;
    let calls = [
        (
            "track",
            json!({"userId": "u", "event": "E", "properties": {"a": [1, null, "é"]}}),
        ),
        (
            "identify",
            json!({"anonymousId": "a", "traits": {"email": "a@example.test"}}),
        ),
        ("page", json!({"userId": "u", "name": "Home"})),
        ("screen", json!({"userId": "u", "name": "Main"})),
        ("group", json!({"userId": "u", "groupId": "g"})),
        ("alias", json!({"userId": "u", "previousId": "p"})),
    ];
    for (call, body) in &calls {
        let reply = relay
            .post(&format!("//v1/{call}/?x=1"), "KEY12345", body.to_string())
            .await;
        assert_eq!(reply.headers()["segspool-durability"], "synced");
        assert_eq!(
            json_of(reply).await,
            (StatusCode::OK, json!({"success": true}))
        );
    }
    within(segment.until(|tally| tally.events == 6)).await;
    for recorded in segment.events() {
        let mut event: Value = serde_json::from_str(recorded.event.get()).expect("JSON");
        let object = event.as_object_mut().expect("an object");
        let kind = object.remove("type").expect("a type");
        assert!(object.remove("messageId").is_some_and(|id| id.is_string()));
        assert!(object.remove("timestamp").is_some_and(|at| at.is_string()));
        let (_, sent) = calls
            .iter()
            .find(|(call, _)| kind == *call)
            .expect("one of ours");
        assert_eq!(&event, sent);
    }
    assert!(segment.tally().violations.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_write_key_comes_from_the_header_the_envelope_or_the_message() {
    let (_dir, segment, relay) = start().await;
    let event = |key: Option<&str>| {
        let mut event = json!({"type": "track", "userId": "u", "event": "E"});
        if let Some(key) = key {
            event["writeKey"] = key.into();
        }
        event
    };
    let url = format!("{}/v1/batch", relay.ingest);
    let basic = "Basic V1JJVEVLRVlfVEVTVDo=";
    for (header, body) in [
        (
            Some(basic),
            json!({"batch": [event(Some("MESSAGE"))], "writeKey": "ENVELOPE"}),
        ),
        (
            Some("Bearer abc"),
            json!({"batch": [event(Some("MESSAGE"))], "writeKey": "ENVELOPE"}),
        ),
        (
            None,
            json!({"batch": [event(Some("MESSAGE")), event(Some("OTHER"))]}),
        ),
        // A bad key costs nothing where a better one comes before it.
        (Some(basic), json!({"batch": [event(None)], "writeKey": 7})),
    ] {
        let request = client().post(&url).body(body.to_string());
        let request = header
            .into_iter()
            .fold(request, |r, value| r.header("authorization", value));
        assert_eq!(request.send().await.expect("an answer").status(), 200);
    }
    let tally = within(segment.until(|tally| tally.events == 5)).await;
    let keys: Vec<_> = tally
        .write_keys
        .iter()
        .map(|(key, of)| (key.as_str(), of.events))
        .collect();
    assert_eq!(
        keys,
        [
            ("ENVELOPE", 1),
            ("MESSAGE", 1),
            ("OTHER", 1),
            ("WRITEKEY_TEST", 2)
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_with_a_key_that_is_not_allowed_is_rejected_and_its_key_shown_nowhere() {
    let (dir, segment) = (spool(), segment().await);
    let settings = [
        ("INGEST__ALLOWED_WRITE_KEYS", r#"["ALLOWED1", "ALLOWED2"]"#),
        ("LOG__LEVEL", "trace"),
    ];
    let relay = Relay::start(dir.path(), &segment.url(), &settings).await;
    let foreign = "FOREIGN_KEY_WITH_TAIL";
    let event = |key: &str| json!({"type": "track", "userId": "u", "event": "E", "writeKey": key});
    let not_allowed = |reply: Value, from: &str| {
        assert_eq!(reply["code"], "write_key_not_allowed", "{from}");
        assert!(!reply.to_string().contains("TAIL"), "{from}");
    };

    let single = event("ALLOWED1").to_string();
    let (status, reply) = json_of(relay.post("/v1/track", foreign, single).await).await;
    assert_eq!(status, 400);
    not_allowed(reply, "Basic");

    let url = format!("{}/v1/batch", relay.ingest);
    let post = async |body: Value| {
        let sent = client().post(&url).body(body.to_string()).send().await;
        json_of(sent.expect("an answer")).await
    };
    let (status, reply) = post(json!({"batch": [event("ALLOWED1")], "writeKey": foreign})).await;
    assert_eq!(status, 400);
    not_allowed(reply, "the envelope");

    let mixed = json!({"batch": [event("ALLOWED1"), event(foreign), event("ALLOWED2")]});
    let (status, mut reply) = post(mixed).await;
    assert_eq!((status, &reply["accepted"]), (StatusCode::OK, &json!(2)));
    assert_eq!(reply["rejected"][0]["index"], 1);
    not_allowed(reply["rejected"][0].take(), "a message");

    let pixel = format!("{}/v1/pixel/i?userId=u&writeKey={foreign}", relay.ingest);
    let reply = client().get(pixel).send().await.expect("an answer");
    assert_eq!(reply.status(), 200);

    let tally = within(segment.until(|tally| tally.events == 2)).await;
    let keys: Vec<_> = tally.write_keys.keys().map(String::as_str).collect();
    assert_eq!(keys, ["ALLOWED1", "ALLOWED2"]);
    let stats = relay.until(|stats| stats.dead_letters.events == 4).await;
    assert_eq!(
        (stats.ingest.accepted_events, stats.ingest.rejected_events),
        (2, 4)
    );
    assert!(!format!("{stats:?} {}", relay.log()).contains("TAIL"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_with_a_message_id_that_parts_of_segment_drop_is_kept_and_counted() {
    let (_dir, segment, relay) = start().await;
    let longest = "m".repeat(99);
    relay
        .track("KEY12345", &[longest.clone(), longest + "m"])
        .await;
    within(segment.until(|tally| tally.events == 2)).await;
    assert_eq!(relay.stats().await.ingest.long_message_ids, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mixed_batch_keeps_its_good_events_and_names_the_bad_ones() {
    let (_dir, segment, relay) = start().await;
    let body = json!({"batch": [
        {"type": "track", "userId": "u", "event": "E"},
        {"type": "track", "event": "E"},
        {"type": "identify", "userId": 5},
        "no object",
        {"type": "page", "anonymousId": "a"},
    ]});
    let reply = relay.post("/v1/batch", "KEY12345", body.to_string()).await;
    let (status, reply) = json_of(reply).await;
    assert_eq!(
        (status, &reply["success"], &reply["accepted"]),
        (StatusCode::OK, &json!(true), &json!(2))
    );
    let rejected: Vec<_> = reply["rejected"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|r| (&r["index"], &r["code"]))
        .collect();
    assert_eq!(
        rejected,
        [
            (&json!(1), &json!("no_user_anon_id")),
            (&json!(2), &json!("id_not_string")),
            (&json!(3), &json!("not_an_object"))
        ]
    );
    within(segment.until(|tally| tally.events == 2)).await;
    let stats = relay.until(|stats| stats.dead_letters.events == 3).await;
    assert_eq!(
        (stats.ingest.accepted_events, stats.ingest.rejected_events),
        (2, 3)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_gets_a_clear_error_and_costs_nobody_anything() {
    let (_dir, segment, relay) = start().await;
    let large = format!(
        r#"{{"userId":"u","event":"E","properties":{{"x":"{}"}}}}"#,
        "x".repeat(33_000)
    );
    let bodies: [(&str, &[u8], u16, &str); 14] = [
        ("/v1/track", b"", 400, "invalid_json"),
        ("/v1/track", b"{", 400, "invalid_json"),
        ("/v1/track", b"\xff{}", 400, "invalid_json"),
        ("/v1/track", b"[]", 400, "not_an_object"),
        ("/v1/track", br#"{"userId":"u"}"#, 400, "event_not_defined"),
        ("/v1/track", br#"{"event":"E"}"#, 400, "no_user_anon_id"),
        (
            "/v1/track",
            br#"{"userId":"u","event":"E","type":"page"}"#,
            400,
            "type_mismatch",
        ),
        ("/v1/track", large.as_bytes(), 400, "event_too_large"),
        (
            "/v1/group",
            br#"{"userId":"u"}"#,
            400,
            "group_id_not_defined",
        ),
        ("/v1/batch", br#"{"batch":[]}"#, 400, "empty_batch"),
        ("/v1/batch", br#"{"batch":null}"#, 400, "batch_not_defined"),
        (
            "/v1/batch",
            br#"{"batch":[{"type":"track"}]}"#,
            400,
            "no_user_anon_id",
        ),
        ("/v1/nothing", b"{}", 404, "not_found"),
        ("/", b"{}", 404, "not_found"),
    ];
    for (path, body, status, code) in bodies {
        let (found, reply) = json_of(relay.post(path, "KEY12345", body.to_vec()).await).await;
        assert_eq!(
            (found.as_u16(), reply["code"].as_str()),
            (status, Some(code)),
            "{path} {reply}"
        );
        assert_eq!(reply["success"], false);
        assert!(
            reply["message"].as_str().is_some_and(|m| !m.is_empty())
                && reply["error"] == reply["message"]
        );
    }
    let url = format!("{}/v1/track", relay.ingest);
    let (status, reply) = json_of(client().get(&url).send().await.expect("an answer")).await;
    assert_eq!(
        (status.as_u16(), reply["code"].as_str()),
        (405, Some("method_not_allowed"))
    );
    let good = r#"{"userId":"u","event":"E"}"#;
    let (status, reply) = json_of(
        client()
            .post(&url)
            .body(good)
            .send()
            .await
            .expect("an answer"),
    )
    .await;
    assert_eq!(
        (status.as_u16(), reply["code"].as_str()),
        (400, Some("write_key_not_defined"))
    );

    assert_eq!(
        relay.post("/v1/track", "KEY12345", good).await.status(),
        200
    );
    within(segment.until(|tally| tally.events == 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn packed_bodies_are_unpacked_and_a_bomb_is_refused() {
    let (_dir, segment, relay) = start().await;
    let url = format!("{}/v1/batch", relay.ingest);
    let post = |encoding: &'static str, body: Vec<u8>| {
        let request = client()
            .post(&url)
            .basic_auth("KEY12345", Some(""))
            .header("content-encoding", encoding);
        async move { json_of(request.body(body).send().await.expect("an answer")).await }
    };
    let good = br#"{"batch":[{"type":"track","userId":"u","event":"E"}]}"#;
    assert_eq!(post("gzip", gzip(good)).await.0, 200);
    assert_eq!(post("identity", good.to_vec()).await.0, 200);
    let packed = gzip(good);
    let bomb = gzip(&vec![b' '; 64 * 1024 * 1024]);
    assert!(bomb.len() < 100_000);
    for (encoding, body, status, code) in [
        (
            "gzip",
            packed[..packed.len() - 9].to_vec(),
            400,
            "invalid_gzip",
        ),
        ("gzip", good.to_vec(), 400, "invalid_gzip"),
        ("br", good.to_vec(), 400, "encoding_not_known"),
        ("gzip", bomb, 413, "body_too_large"),
        (
            "identity",
            vec![b' '; 9 * 1024 * 1024],
            413,
            "body_too_large",
        ),
    ] {
        let (found, reply) = post(encoding, body).await;
        assert_eq!(
            (found.as_u16(), reply["code"].as_str()),
            (status, Some(code)),
            "{encoding}"
        );
    }
    within(segment.until(|tally| tally.events == 2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_beyond_segments_limits_is_split() {
    let (_dir, segment, relay) = start().await;
    let events: Vec<_> = (0..6000)
        .map(|n| json!({"type": "track", "userId": "u", "event": "E", "messageId": format!("m-{n}"), "properties": {"x": "y".repeat(n % 700)}}))
        .collect();
    let body = json!({"batch": events}).to_string();
    assert!(body.len() > 2_000_000);
    assert_eq!(
        relay.post("/v1/batch", "KEY12345", body).await.status(),
        200
    );
    let tally = within(segment.until(|tally| tally.distinct_events == 6000)).await;
    assert!(
        tally.violations.is_empty() && tally.duplicate_events == 0,
        "{tally:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_answers_429_with_a_pause_and_takes_events_again_when_it_has_drained() {
    let dir = spool();
    let segment = segment().await;
    segment.down().await;
    let settings = [
        ("QUEUE__MAX_BYTES", "2 MiB"),
        ("QUEUE__VOLUME_BYTES", "1 MiB"),
    ];
    let relay = Relay::start(dir.path(), &segment.url(), &settings).await;
    let mut accepted = 0;
    let refusal = loop {
        // Noise, so that compression does not make the queue endless.
        let noise: String = (0..20_000)
            .map(|_| char::from(fastrand(&mut accepted)))
            .collect();
        let body = json!({"userId": "u", "event": "E", "properties": {"noise": noise}}).to_string();
        let reply = relay.post("/v1/track", "KEY12345", body).await;
        if reply.status() != 200 {
            break reply;
        }
    };
    let seconds: u64 = refusal.headers()["retry-after"]
        .to_str()
        .expect("text")
        .parse()
        .expect("seconds");
    assert!((1..=300).contains(&seconds));
    let (status, reply) = json_of(refusal).await;
    assert_eq!(
        (status.as_u16(), reply["code"].as_str()),
        (429, Some("queue_full"))
    );
    assert!(!relay.stats().await.ingest.accepting);

    segment.up().await.expect("the port is kept");
    relay
        .until(|stats| stats.queue.events == 0 && stats.queue.disk_bytes < 1024 * 1024)
        .await;
    let good = r#"{"userId":"u","event":"E"}"#;
    assert_eq!(
        relay.post("/v1/track", "KEY12345", good).await.status(),
        200
    );
    let stats = relay.stats().await;
    assert!(stats.ingest.accepting);
    assert_eq!(stats.ingest.refused_requests, 1);
}

/// A printable character, at random enough that zstd finds nothing; the state counts the characters drawn.
fn fastrand(state: &mut u64) -> u8 {
    *state += 1;
    let mixed = state.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    b'a' + ((mixed >> 40) % 26) as u8
}
