//! Tokens in place of write keys: how one is asked for, how long it is used, and what happens where there is none.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use rustls::SignatureScheme;
use segspool::stats::LaneState;
use serde_json::Value;

use crate::life::serve;
use crate::support::server::{Reaction, Request, Server, answer, success};
use crate::support::{Relay, ids, spool};

const KEY: &str = "KEY12345";
const PRIVATE_KEY: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/fixtures/test-only-rsa-key.pem"
);
const PUBLIC_KEY: &[u8] = include_bytes!("../fixtures/test-only-rsa-public-key.der");

/// The token `token-<n>`, good for so many seconds.
fn token(number: usize, seconds: u64) -> Reaction {
    let body = format!(
        r#"{{"access_token":"token-{number}","expires_in":{seconds},"token_type":"Bearer"}}"#
    );
    answer(200, "Content-Type: application/json\r\n", &body)
}

/// A token endpoint that gives `token-0`, `token-1`, …, each good for so many seconds.
async fn tokens(seconds: u64) -> Server {
    let number = AtomicUsize::new(0);
    Server::start(move |_| token(number.fetch_add(1, Ordering::SeqCst), seconds)).await
}

/// A daemon that delivers to `segment` with tokens from `auth`.
async fn start(dir: &Path, segment: &Server, auth: &Server, settings: &[(&str, &str)]) -> Relay {
    let endpoint = format!("{}/token", auth.url());
    let mut all = vec![
        ("SEGMENT__OAUTH__CLIENT_ID", "the-client"),
        ("SEGMENT__OAUTH__KEY_ID", "the-key"),
        ("SEGMENT__OAUTH__PRIVATE_KEY_FILE", PRIVATE_KEY),
        ("SEGMENT__OAUTH__TOKEN_ENDPOINT", endpoint.as_str()),
    ];
    all.extend_from_slice(settings);
    Relay::start(dir, &segment.url(), &all).await
}

/// Posts an event, and waits until nothing is left to deliver.
async fn deliver(relay: &Relay, id: &str) {
    relay.track(KEY, &[id.to_owned()]).await;
    relay.until(|stats| stats.queue.events == 0).await;
}

/// The number of the token with which a call came.
fn bearer(request: &Request) -> usize {
    let token = request
        .header("authorization")
        .and_then(|text| text.strip_prefix("Bearer token-"));
    let number = token.and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("no token: {request:?}"))
}

/// The form in which a token was asked for.
fn form(request: &Request) -> HashMap<String, String> {
    form_urlencoded::parse(&request.body).into_owned().collect()
}

/// The header and claims of the assertion with which a token was asked for. Asserts that it is signed.
fn assertion(request: &Request) -> (Value, Value) {
    let assertion = form(request)["client_assertion"].clone();
    let (message, signature) = assertion.rsplit_once('.').expect("a signature");
    let (header, claims) = message.split_once('.').expect("claims");
    let part = |text: &str| {
        URL_SAFE_NO_PAD
            .decode(text)
            .expect("base64 without padding")
    };
    let json = |text: &str| serde_json::from_slice(&part(text)).expect("JSON");
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    let (_, rs256) = algorithms
        .mapping
        .iter()
        .find(|(scheme, _)| *scheme == SignatureScheme::RSA_PKCS1_SHA256)
        .expect("RS256");
    rs256[0]
        .verify_signature(PUBLIC_KEY, message.as_bytes(), &part(signature))
        .expect("the signature of the test key");
    (json(header), json(claims))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_token_is_asked_for_with_a_signed_assertion_and_lets_in_the_calls_of_all_lanes() {
    let (dir, segment) = (spool(), Server::start(|_| success()).await);
    let auth = tokens(86_400).await;
    let relay = start(dir.path(), &segment, &auth, &[("LOG__LEVEL", "trace")]).await;
    for round in 0..3 {
        for key in ["LANE-AAAA", "LANE-BBBB", "LANE-CCCC"] {
            relay.track(key, &[format!("{key}-{round}")]).await;
        }
    }
    let stats = relay.until(|stats| stats.queue.events == 0).await;
    assert_eq!((stats.delivery.events, stats.delivery.retries), (9, 0));
    for call in segment.asked() {
        assert_eq!(bearer(&call), 0);
        let id = call.ids().remove(0);
        let key = call.json()["writeKey"].as_str().map(str::to_owned);
        assert_eq!(key.as_deref(), Some(&id[.."LANE-AAAA".len()]));
    }

    let asked = auth.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].line, "POST /token HTTP/1.1");
    assert_eq!(
        asked[0].header("content-type"),
        Some("application/x-www-form-urlencoded")
    );
    let form = form(&asked[0]);
    assert_eq!(form.len(), 4);
    assert_eq!(form["grant_type"], "client_credentials");
    assert_eq!(
        form["client_assertion_type"],
        "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    );
    assert_eq!(form["scope"], "tracking_api:write");
    let (header, claims) = assertion(&asked[0]);
    assert_eq!(
        header,
        serde_json::json!({"alg": "RS256", "typ": "JWT", "kid": "the-key"})
    );
    assert_eq!(
        (&claims["iss"], &claims["sub"]),
        (&"the-client".into(), &"the-client".into())
    );
    assert_eq!(claims["aud"], auth.url());
    let now = Timestamp::now().as_second();
    let (iat, exp) = (claims["iat"].as_i64(), claims["exp"].as_i64());
    let (iat, exp) = (iat.expect("a time"), exp.expect("a time"));
    assert!((now - 65..=now - 5).contains(&iat), "{iat} at {now}");
    assert_eq!(exp - iat, 60);
    let id = claims["jti"].as_str().and_then(|id| id.parse().ok());
    assert_eq!(id.map(|id: uuid::Uuid| id.get_version_num()), Some(4));

    let shown = format!(
        "{} {}",
        relay.log(),
        serde_json::to_string(&stats).expect("JSON")
    );
    for secret in ["token-0", "eyJ"] {
        assert!(!shown.contains(secret), "{secret} is shown");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_followed_by_another_at_half_of_its_life_and_no_call_fails() {
    let (dir, segment) = (spool(), Server::start(|_| success()).await);
    let auth = tokens(6).await;
    let relay = start(dir.path(), &segment, &auth, &[]).await;
    let (begun, mut number) = (Instant::now(), 0);
    while segment.asked().last().is_none_or(|last| bearer(last) < 1) {
        deliver(&relay, &format!("e-{number}")).await;
        number += 1;
    }
    let elapsed = begun.elapsed();
    assert!(elapsed < Duration::from_secs(6), "only when it had ended");
    assert!(elapsed > Duration::from_secs(3), "sooner than needed");
    let stats = relay.stats().await;
    assert_eq!((stats.delivery.retries, stats.delivery.events), (0, number));
    let used: Vec<_> = segment.asked().iter().map(bearer).collect();
    assert!(used.is_sorted(), "{used:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_token_endpoint_hangs_the_old_token_is_used_up_and_later_the_lane_recovers() {
    let asked = AtomicUsize::new(0);
    let auth = Server::start(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => token(0, 6),
        1 | 2 => Reaction::Hang,
        _ => token(1, 60),
    });
    let (dir, segment, auth) = (spool(), Server::start(|_| success()).await, auth.await);
    let settings = [("SEGMENT__TIMEOUT", "1500ms")];
    let relay = start(dir.path(), &segment, &auth, &settings).await;
    let mut number = 0;
    while auth.asked().len() < 2 {
        deliver(&relay, &format!("e-{number}")).await;
        number += 1;
    }
    deliver(&relay, "beside-it").await;
    let beside = segment.asked().pop().expect("a call");
    assert_eq!(
        (bearer(&beside), beside.ids().concat()),
        (0, "beside-it".into())
    );
    while segment.asked().last().is_none_or(|last| bearer(last) < 1) {
        deliver(&relay, &format!("e-{number}")).await;
        number += 1;
    }
    let stats = relay.stats().await;
    let ids: std::collections::HashSet<_> = segment.asked().iter().flat_map(Request::ids).collect();
    assert_eq!(
        (ids.len() as u64, stats.delivery.events),
        (number + 1, number + 1)
    );
    assert!(stats.lanes[0].conservation().holds());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_good_is_replaced_when_it_is_refused_and_the_events_sent_again_at_once() {
    for status in [400, 401, 403, 511] {
        let revoked = Arc::new(AtomicBool::new(false));
        let is_revoked = Arc::clone(&revoked);
        let segment = Server::start(move |request| {
            if is_revoked.load(Ordering::SeqCst) && bearer(request) == 0 {
                answer(status, "", "")
            } else {
                success()
            }
        });
        let (dir, segment, auth) = (spool(), segment.await, tokens(86_400).await);
        // A pause would take longer than this test may.
        let settings = [
            ("RETRY__HOLD_PROBE", "600s"),
            ("RETRY__BASE", "600s"),
            ("RETRY__MAX", "600s"),
        ];
        let relay = start(dir.path(), &segment, &auth, &settings).await;
        deliver(&relay, "e-0").await;
        revoked.store(true, Ordering::SeqCst);
        // Several calls under way are refused together.
        for key in ["LANE-AAAA", "LANE-BBBB", KEY] {
            relay.track(key, &ids(key, 0..10)).await;
        }
        let stats = relay.until(|stats| stats.queue.events == 0).await;
        assert_eq!(
            (stats.delivery.events, stats.dead_letters.events),
            (31, 0),
            "{status}"
        );
        assert_eq!(auth.asked().len(), 2, "{status}");
        let repeated = segment.asked();
        let repeated = repeated
            .iter()
            .filter(|call| call.header("x-retry-count").is_some());
        for call in repeated {
            assert_eq!((bearer(call), call.header("x-retry-count")), (1, Some("1")));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_that_is_refused_as_well_holds_the_lane_and_is_not_replaced_in_a_loop() {
    let segment = Server::start(|_| answer(401, "", "")).await;
    let (dir, auth) = (spool(), tokens(86_400).await);
    let relay = start(
        dir.path(),
        &segment,
        &auth,
        &[("RETRY__HOLD_PROBE", "50ms")],
    )
    .await;
    relay.track(KEY, &ids("e", 0..10)).await;
    let asked = segment.until(|asked| asked.len() >= 6).await;
    let used: Vec<_> = asked.iter().take(6).map(bearer).collect();
    assert_eq!(used, [0, 1, 1, 1, 1, 1]);
    let stats = relay
        .until(|stats| stats.lanes[0].state == LaneState::Held)
        .await;
    assert_eq!(stats.lanes[0].reason.as_deref(), Some("answered 401"));
    assert_eq!((stats.queue.events, stats.dead_letters.events), (10, 0));
    assert_eq!(auth.asked().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_token_endpoint_is_in_trouble_the_lane_backs_off_until_it_is_well() {
    let soon = (Timestamp::now().as_millisecond() + 60_000).to_string();
    let close = || Reaction::SayAndClose(String::new());
    for (trouble, expected, reason) in [
        (answer(503, "", ""), LaneState::BackingOff, "answered 503"),
        (answer(408, "", ""), LaneState::BackingOff, "answered 408"),
        (answer(429, "", ""), LaneState::BackingOff, "answered 429"),
        (
            answer(302, "Location: /\r\n", ""),
            LaneState::BackingOff,
            "answered 302",
        ),
        (
            answer(200, "", "<html>"),
            LaneState::BackingOff,
            "answered 200 without a token",
        ),
        (close(), LaneState::BackingOff, "error sending request"),
        (Reaction::Hang, LaneState::BackingOff, "timed out"),
        (Reaction::Drip, LaneState::BackingOff, "timed out"),
        (
            answer(429, "Retry-After: 2\r\n", ""),
            LaneState::RateLimited,
            "answered 429",
        ),
        (
            answer(429, &format!("X-RateLimit-Reset: {soon}\r\n"), ""),
            LaneState::RateLimited,
            "answered 429",
        ),
    ] {
        let asked = AtomicUsize::new(0);
        let first = trouble.clone();
        let auth = Server::start(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
            0 => first.clone(),
            number => token(number, 86_400),
        });
        let (dir, segment, auth) = (spool(), Server::start(|_| success()).await, auth.await);
        let settings = [
            ("SEGMENT__TIMEOUT", "300ms"),
            ("RETRY__MAX_RETRY_AFTER", "3s"),
        ];
        let relay = start(dir.path(), &segment, &auth, &settings).await;
        relay.track(KEY, &ids("e", 0..10)).await;
        let stats = relay
            .until(|stats| {
                stats
                    .lanes
                    .first()
                    .is_some_and(|lane| lane.retry_in_seconds.is_some())
            })
            .await;
        let lane = &stats.lanes[0];
        assert_eq!(lane.state, expected, "{trouble:?}: {lane:?}");
        let said = lane.reason.as_deref().unwrap_or_default();
        assert!(
            said.starts_with("failed to fetch an OAuth token: ") && said.contains(reason),
            "{trouble:?}: {said}"
        );
        assert_eq!(segment.asked().len(), 0, "nothing goes without a token");

        let stats = relay.until(|stats| stats.queue.events == 0).await;
        assert_eq!(stats.delivery.events, 10);
        let calls = segment.asked();
        // What was never sent is not repeated.
        assert_eq!(calls.len(), 1);
        assert_eq!(
            (bearer(&calls[0]), calls[0].header("x-retry-count")),
            (1, None)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_hold_the_lane_until_they_are_accepted() {
    for (status, body, reason) in [
        (
            401,
            r#"{"error":"invalid_client"}"#,
            "the OAuth credentials are refused: answered 401 invalid_client",
        ),
        (
            400,
            "Bad Request",
            "the OAuth credentials are refused: answered 400",
        ),
        (415, "", "the OAuth credentials are refused: answered 415"),
    ] {
        let accepted = Arc::new(AtomicBool::new(false));
        let is_accepted = Arc::clone(&accepted);
        let auth = Server::start(move |_| {
            if is_accepted.load(Ordering::SeqCst) {
                token(0, 86_400)
            } else {
                answer(status, "", body)
            }
        });
        let (dir, segment, auth) = (spool(), Server::start(|_| success()).await, auth.await);
        let relay = start(dir.path(), &segment, &auth, &[]).await;
        relay.track(KEY, &ids("e", 0..10)).await;
        let held = |stats: &segspool::stats::Snapshot| {
            let lane = stats.lanes.first();
            lane.is_some_and(|lane| lane.state == LaneState::Held)
        };
        let stats = relay.until(held).await;
        assert_eq!(stats.lanes[0].reason.as_deref(), Some(reason));
        assert_eq!(stats.dead_letters.events, 0);
        assert!(!relay.log().contains("eyJ"), "an assertion is logged");
        auth.until(|asked| asked.len() >= 2).await;
        assert_eq!(segment.asked().len(), 0);
        accepted.store(true, Ordering::SeqCst);
        let stats = relay.until(|stats| stats.queue.events == 0).await;
        assert_eq!(stats.delivery.events, 10);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assertion_goes_by_the_clock_of_the_token_endpoint() {
    const AHEAD: Duration = Duration::from_secs(3 * 60 * 60);
    let auth = Server::start(|request| {
        let now = Timestamp::now() + AHEAD;
        let (_, claims) = assertion(request);
        let expires = claims["exp"].as_i64().expect("a time");
        let date = jiff::fmt::rfc2822::DateTimePrinter::new()
            .timestamp_to_rfc9110_string(&now)
            .expect("a date of this century");
        let headers = format!("Date: {date}\r\n");
        if (now.as_second()..=now.as_second() + 60).contains(&expires) {
            let body = r#"{"access_token":"token-7","expires_in":86400}"#;
            answer(200, &headers, body)
        } else {
            answer(400, &headers, r#"{"error":"invalid_client"}"#)
        }
    });
    let (dir, segment, auth) = (spool(), Server::start(|_| success()).await, auth.await);
    // Held, it would try again too late.
    let settings = [("RETRY__HOLD_PROBE", "600s")];
    let relay = start(dir.path(), &segment, &auth, &settings).await;
    deliver(&relay, "e-0").await;
    assert_eq!((auth.asked().len(), segment.asked().len()), (2, 1));
    assert_eq!(bearer(&segment.asked()[0]), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_cannot_be_used_and_settings_that_are_missing_are_said_at_the_start() {
    let dir = spool();
    let nonsense = dir.path().join("nonsense.pem");
    std::fs::write(&nonsense, "PRIVATE STUFF").expect("written");
    let elliptic = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/test-only-ec-key.pem"
    );
    let nonsense = nonsense.to_str().expect("text");
    for (key_file, key_id, expected) in [
        (
            "/nowhere/key.pem",
            "k",
            "segment.oauth.private_key_file /nowhere/key.pem: No such file",
        ),
        (nonsense, "k", "nonsense.pem: holds no private key in PEM"),
        (
            elliptic,
            "k",
            "test-only-ec-key.pem: holds no RSA private key",
        ),
        (PRIVATE_KEY, "", "segment.oauth.key_id must not be empty"),
    ] {
        let (code, said) = serve(&[
            ("SEGSPOOL_DATA_DIR", dir.path().to_str().expect("text")),
            ("SEGSPOOL_SEGMENT__OAUTH__CLIENT_ID", "c"),
            ("SEGSPOOL_SEGMENT__OAUTH__KEY_ID", key_id),
            ("SEGSPOOL_SEGMENT__OAUTH__PRIVATE_KEY_FILE", key_file),
        ])
        .await;
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains(expected), "{said}");
        assert!(!said.contains("STUFF"), "{said}");
    }
}
