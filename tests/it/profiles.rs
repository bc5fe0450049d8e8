//! Profiles, read through from the Profile API: what is asked there, what comes back, and what happens where it does not.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Method, Response};
use segspool::stand_in::{Options, StandIn};
use serde_json::{Value, json};

use crate::support::server::{Reaction, Request, Server, answer};
use crate::support::wire::Wire;
use crate::support::{Relay, client, spool, within};

/// The space's access token, and its user name form in Basic.
const TOKEN: &str = "access-t0ken-of-the-space";
const BASIC: &str = "Basic YWNjZXNzLXQwa2VuLW9mLXRoZS1zcGFjZTo=";
const CLIENT_TOKEN: &str = "t0ken-of-a-local-client";
const USER: &str = "/v1/spaces/spa_1/collections/users/profiles/user_id:u1";
const JSON: &str = "Content-Type: application/json; charset=utf-8\r\nRequest-Id: req-1\r\n";

/// A daemon that reads profiles at `endpoint`.
async fn start(dir: &Path, endpoint: &str, settings: &[(&str, &str)]) -> Relay {
    let token = file(dir, "token", TOKEN);
    let mut all = vec![
        ("PROFILES__ENDPOINT", endpoint),
        ("PROFILES__SPACE_ID", "spa_1"),
        ("PROFILES__TOKEN_FILE", token.to_str().expect("text")),
        ("LOG__LEVEL", "trace"),
    ];
    all.extend_from_slice(settings);
    Relay::start(&dir.join("spool"), "http://127.0.0.1:9", &all).await
}

fn file(dir: &Path, name: &str, content: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, format!("{content}\n")).expect("written");
    path
}

async fn get(relay: &Relay, path: &str) -> Response {
    let url = format!("{}{path}", relay.ingest);
    client().get(url).send().await.expect("an answer")
}

/// A body in full.
async fn body(response: Response) -> String {
    let bytes = response.bytes().await.expect("a body");
    String::from_utf8(bytes.to_vec()).expect("text")
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    let value = response.headers().get(name)?;
    Some(value.to_str().expect("text"))
}

/// The status and the code of an error in the Profile API's form.
async fn refusal(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let text = body(response).await;
    let error: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(error.as_object().expect("an object").len(), 1, "{error}");
    let said = error["error"]["message"].as_str();
    assert!(said.is_some_and(|said| !said.is_empty()), "{error}");
    let code = error["error"]["code"].as_str().expect("a code");
    (status, code.to_owned())
}

/// What was asked for, in order.
fn targets(server: &Server) -> Vec<String> {
    let asked = server.asked();
    let target = |request: &Request| {
        let target = request.line.strip_prefix("GET ");
        target
            .and_then(|rest| rest.strip_suffix(" HTTP/1.1"))
            .map(str::to_owned)
    };
    asked
        .iter()
        .map(|request| target(request).expect("a GET"))
        .collect()
}

/// An answer that says its number, from 0.
async fn counting() -> Server {
    let number = AtomicUsize::new(0);
    Server::start(move |_| {
        let number = number.fetch_add(1, Ordering::SeqCst);
        answer(200, JSON, &format!("{{\"traits\":{{\"n\":{number}}}}}"))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_resource_is_asked_for_with_our_token_and_its_answer_comes_back_as_it_is() {
    let api = Server::start(|request| {
        let path = request.line.split([' ', '?']).nth(1).expect("a path");
        let resource = path.rsplit('/').next().expect("a resource");
        answer(200, JSON, &format!("{{ \"{resource}\": 1.0 }}\n"))
    })
    .await;
    let dir = spool();
    let relay = start(dir.path(), &api.url(), &[]).await;
    let mut expected = Vec::new();
    for (path, target) in [
        (
            "/v1/profiles/user_id:u1/traits?limit=5&include=a,b",
            format!("{USER}/traits?limit=5&include=a,b"),
        ),
        (
            "/v1/profiles/user_id:u1/external_ids",
            format!("{USER}/external_ids"),
        ),
        (
            "/v1/profiles/user_id:u1/events?start=2026-01-01T00:00:00Z",
            format!("{USER}/events?start=2026-01-01T00:00:00Z"),
        ),
        (
            "/v1/profiles/user_id:u1/metadata",
            format!("{USER}/metadata"),
        ),
        (
            "/v1/profiles/user_id:u1/properties?verbose=true",
            format!("{USER}/metadata?verbose=true"),
        ),
        ("/v1/profiles/user_id:u1/links", format!("{USER}/links")),
        (
            "/v1/spaces/other_2/collections/accounts/profiles/group_id:g1/traits",
            "/v1/spaces/other_2/collections/accounts/profiles/group_id:g1/traits".into(),
        ),
        (
            "/v1/profiles/email:a+b@example.test/traits",
            "/v1/spaces/spa_1/collections/users/profiles/email:a%2Bb%40example.test/traits".into(),
        ),
        (
            "/v1/profiles/user_id%3Aa%2Fb%20%C3%A9:c/traits",
            "/v1/spaces/spa_1/collections/users/profiles/user_id:a%2Fb%20%C3%A9%3Ac/traits".into(),
        ),
    ] {
        let reply = get(&relay, path).await;
        assert_eq!(reply.status(), 200, "{path}");
        assert_eq!(
            header(&reply, "content-type"),
            Some("application/json; charset=utf-8")
        );
        assert_eq!(header(&reply, "request-id"), Some("req-1"));
        assert_eq!(header(&reply, "segspool-cache"), Some("miss"));
        let resource = target
            .split('?')
            .next()
            .and_then(|path| path.rsplit('/').next());
        let resource = resource.expect("a resource");
        assert_eq!(body(reply).await, format!("{{ \"{resource}\": 1.0 }}\n"));
        expected.push(target);
    }
    assert_eq!(targets(&api), expected);
    for request in api.asked() {
        assert_eq!(request.header("authorization"), Some(BASIC));
    }
    assert_eq!(relay.stats().await.profiles.requests, 9);
    assert_eq!(relay.stats().await.profiles.errors, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_follows_the_pages_goes_through_the_relay() {
    let api = Server::start(|request| {
        let page = request.line.contains("next=p2");
        let base = if request.line.contains("/events") {
            // As the Profile API has it for some: the host, or none.
            "https://profiles.segment.com"
        } else {
            ""
        };
        let path = request.line.split([' ', '?']).nth(1).expect("a path");
        let cursor = if page {
            format!("{{\"url\":\"{base}{path}\",\"has_more\":false}}")
        } else {
            format!("{{\"url\":\"{base}{path}?next=p2\",\"has_more\":true,\"next\":\"p2\"}}")
        };
        answer(
            200,
            JSON,
            &format!("{{\"data\":[{page}],\"cursor\":{cursor}}}"),
        )
    })
    .await;
    let dir = spool();
    let relay = start(dir.path(), &api.url(), &[]).await;
    for (resource, base) in [("events", relay.ingest.as_str()), ("external_ids", "")] {
        let first = body(get(&relay, &format!("/v1/profiles/user_id:u1/{resource}")).await).await;
        let first: Value = serde_json::from_str(&first).expect("JSON");
        let url = first["cursor"]["url"].as_str().expect("a next page");
        assert_eq!(url, format!("{base}{USER}/{resource}?next=p2"));
        let path = url.strip_prefix(base).expect("checked above");
        let second = body(get(&relay, path).await).await;
        let second: Value = serde_json::from_str(&second).expect("JSON");
        assert_eq!(
            (&first["data"], &second["data"]),
            (&json!([false]), &json!([true]))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_the_next_page_is_over_tls() {
    let cursor =
        format!("{{\"cursor\":{{\"url\":\"https://profiles.segment.com{USER}/events\"}}}}");
    let api = Server::start(move |_| answer(200, JSON, &cursor)).await;
    let dir = spool();
    let tls = ("INGEST__TLS__LISTEN", "127.0.0.1:0");
    let relay = start(dir.path(), &api.url(), &[tls]).await;
    let client = crate::listeners::client(&dir.path().join("spool/tls/cert.pem"));
    let base = format!(
        "https://{}",
        relay.ingest_tls.as_deref().expect("TLS is on")
    );
    let url = format!("{base}/v1/profiles/user_id:u1/events");
    let reply = client.get(url).send().await.expect("an answer");
    let expected = format!("{{\"cursor\":{{\"url\":\"{base}{USER}/events\"}}}}");
    assert_eq!(body(reply).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_api_refuses_is_told_as_it_said_it_and_asked_once() {
    let refused = r#"{"error":{"code":"a_code","message":"a message"}}"#;
    let statuses = [400, 401, 404, 429, 503];
    let number = AtomicUsize::new(0);
    let api = Server::start(move |_| {
        let status = statuses[number.fetch_add(1, Ordering::SeqCst)];
        answer(status, &format!("{JSON}Retry-After: 7\r\n"), refused)
    })
    .await;
    let dir = spool();
    let relay = start(dir.path(), &api.url(), &[]).await;
    for status in statuses {
        let reply = get(&relay, "/v1/profiles/user_id:u1/traits").await;
        assert_eq!(header(&reply, "retry-after"), Some("7"));
        assert_eq!(header(&reply, "request-id"), Some("req-1"));
        assert_eq!(refusal(reply).await, (status, "a_code".into()));
    }
    assert_eq!(api.asked().len(), statuses.len());
    assert_eq!(relay.stats().await.profiles.errors, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_error_or_a_broken_connection_is_tried_once_more_and_no_more() {
    let broken = answer(500, JSON, "{}");
    for (reactions, status, asked) in [
        (vec![broken.clone(), answer(200, JSON, "{}")], 200, 2),
        (
            vec![
                Reaction::SayAndClose(String::new()),
                answer(200, JSON, "{}"),
            ],
            200,
            2,
        ),
        (vec![broken.clone(), answer(404, JSON, "{}")], 404, 2),
        (
            vec![broken.clone(), broken.clone(), answer(200, JSON, "{}")],
            500,
            2,
        ),
    ] {
        let said = reactions.clone();
        let number = AtomicUsize::new(0);
        let api = Server::start(move |_| said[number.fetch_add(1, Ordering::SeqCst)].clone()).await;
        let dir = spool();
        let relay = start(dir.path(), &api.url(), &[]).await;
        let reply = get(&relay, "/v1/profiles/user_id:u1/traits").await;
        assert_eq!(reply.status(), status, "{reactions:?}");
        assert_eq!(api.asked().len(), asked, "{reactions:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_cannot_be_reached_hangs_or_talks_nonsense_is_told_in_its_form() {
    let redirect = answer(302, "Location: http://127.0.0.1:9/\r\n", "");
    let too_large = answer(200, JSON, &"x".repeat(8 * 1024 * 1024 + 1));
    for (reaction, expected) in [
        (Reaction::Hang, (504, "timeout")),
        (Reaction::Drip, (504, "timeout")),
        (
            Reaction::SayAndClose("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{".into()),
            (502, "unreachable"),
        ),
        (
            Reaction::SayAndClose("nonsense".into()),
            (502, "unreachable"),
        ),
        (redirect, (502, "invalid_answer")),
        (too_large, (502, "invalid_answer")),
    ] {
        let api = Server::start(move |_| reaction.clone()).await;
        let dir = spool();
        let relay = start(dir.path(), &api.url(), &[("PROFILES__TIMEOUT", "900ms")]).await;
        let asked = Instant::now();
        let reply = get(&relay, "/v1/profiles/user_id:u1/traits").await;
        assert!(asked.elapsed() < Duration::from_secs(20));
        let (status, code) = refusal(reply).await;
        assert_eq!((status, code.as_str()), expected);
    }
    let dir = spool();
    // A port that was free a moment ago.
    let gone = Server::start(|_| Reaction::Hang).await.url();
    let relay = start(dir.path(), &gone, &[]).await;
    let reply = get(&relay, "/v1/profiles/user_id:u1/traits").await;
    assert_eq!(refusal(reply).await, (502, "unreachable".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_profile_is_refused_without_asking() {
    let api = counting().await;
    let dir = spool();
    let relay = start(dir.path(), &api.url(), &[]).await;
    for (path, status) in [
        ("/v1/profiles", 404),
        ("/v1/profiles/user_id:u1", 404),
        ("/v1/profiles/user_id:u1/audiences", 404),
        ("/v1/profiles/user_id:u1/traits/more", 404),
        (
            "/v1/spaces/spa_1/collections/things/profiles/user_id:u1/traits",
            404,
        ),
        ("/v1/profiles/u1/traits", 400),
        ("/v1/profiles/:u1/traits", 400),
        ("/v1/profiles/user_id:/traits", 400),
        ("/v1/profiles/user_id:%zz/traits", 400),
        ("/v1/profiles/user_id:%ff/traits", 400),
        ("/v1/profiles/user_id:a%00b/traits", 400),
        (
            "/v1/spaces/a%2Fb/collections/users/profiles/user_id:u1/traits",
            400,
        ),
    ] {
        let mut wire = Wire::connect(&relay);
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        let answer = wire.answer().expect("an answer");
        assert_eq!(answer.status, status, "{path}");
        assert!(answer.json()["error"]["code"].is_string(), "{path}");
    }
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
        let url = format!("{}/v1/profiles/user_id:u1/traits", relay.ingest);
        let reply = client().request(method, url).body("{}").send().await;
        let reply = reply.expect("an answer");
        assert_eq!(header(&reply, "allow"), Some("GET"));
        assert_eq!(refusal(reply).await, (405, "method_not_allowed".into()));
    }
    assert_eq!(targets(&api), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_profiles_are_off_and_say_how_to_turn_them_on() {
    let dir = spool();
    let relay = Relay::start(dir.path(), "http://127.0.0.1:9", &[]).await;
    let reply = get(&relay, "/v1/profiles/user_id:u1/traits").await;
    assert_eq!(reply.status(), 404);
    let said = body(reply).await;
    assert!(said.contains("profiles.token_file"), "{said}");
    assert!(
        said.starts_with(r#"{"error":{"code":"profiles_off""#),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn where_clients_have_a_token_only_its_bearers_read() {
    let api = counting().await;
    let dir = spool();
    let tokens = file(dir.path(), "client-token", CLIENT_TOKEN);
    let setting = (
        "PROFILES__CLIENT_TOKEN_FILE",
        tokens.to_str().expect("text"),
    );
    let relay = start(dir.path(), &api.url(), &[setting]).await;
    let url = format!("{}/v1/profiles/user_id:u1/traits", relay.ingest);
    for (authorization, admitted) in [
        (None, false),
        (Some("Bearer wrong".to_owned()), false),
        (Some(format!("Basic {CLIENT_TOKEN}")), false),
        (Some(format!("Bearer {TOKEN}")), false),
        (Some(format!("Bearer {CLIENT_TOKEN}x")), false),
        (Some(format!("Bearer {CLIENT_TOKEN}")), true),
    ] {
        let mut request = client().get(&url);
        if let Some(value) = &authorization {
            request = request.header("Authorization", value);
        }
        let reply = request.send().await.expect("an answer");
        if admitted {
            assert_eq!(reply.status(), 200);
        } else {
            assert_eq!(header(&reply, "www-authenticate"), Some("Bearer"));
            let expected = (401, "authentication_error".to_owned());
            assert_eq!(refusal(reply).await, expected, "{authorization:?}");
        }
    }
    // The client's token is not the API's business.
    let asked = api.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("authorization"), Some(BASIC));
    let reply = get(&relay, "/v1/profiles/u1/nothing").await;
    assert_eq!(reply.status(), 401, "a stranger is told nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_space_has_a_hundred_requests_a_second_and_no_more() {
    let api = counting().await;
    let dir = spool();
    let relay = start(dir.path(), &api.url(), &[]).await;
    let began = Instant::now();
    let mut wires: Vec<_> = (0..8).map(|_| Wire::connect(&relay)).collect();
    let request = "GET /v1/profiles/user_id:u1/traits HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let (mut answered, mut refused) = (0, 0);
    for _ in 0..40 {
        for wire in &mut wires {
            wire.send(request);
        }
        for wire in &mut wires {
            let answer = wire.answer().expect("an answer");
            if answer.status == 200 {
                answered += 1;
            } else {
                assert_eq!(answer.status, 429);
                assert_eq!(answer.header("retry-after"), Some("1"));
                assert_eq!(answer.json()["error"]["code"], "rate_limit_error");
                refused += 1;
            }
        }
    }
    let seconds = began.elapsed().as_secs();
    assert!(
        answered >= 100 && answered <= 100 * (seconds + 1),
        "{answered} in {seconds} s"
    );
    assert!(refused > 0 || seconds > 2, "{answered} in {seconds} s");
    assert_eq!(u64::try_from(api.asked().len()).expect("small"), answered);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_answer_is_used_until_it_expires() {
    let api = counting().await;
    let dir = spool();
    let relay = start(dir.path(), &api.url(), &[("PROFILES__CACHE_TTL", "2s")]).await;
    let path = "/v1/profiles/user_id:u1/traits";
    let asked = Instant::now();
    let first = get(&relay, path).await;
    assert_eq!(header(&first, "segspool-cache"), Some("miss"));
    let first = body(first).await;
    // The long form is the same profile, another query is another answer.
    let second = get(&relay, &format!("{USER}/traits")).await;
    let in_time = asked.elapsed() < Duration::from_secs(2);
    if in_time {
        assert_eq!(header(&second, "segspool-cache"), Some("hit"));
        assert!(header(&second, "age").is_some_and(|age| age == "0" || age == "1"));
        assert_eq!(header(&second, "request-id"), Some("req-1"));
        assert_eq!(header(&second, "warning"), None);
        assert_eq!(body(second).await, first);
        assert_eq!(relay.stats().await.profiles.cache_hits, 1);
    }
    let other = get(&relay, &format!("{path}?limit=1")).await;
    assert_eq!(header(&other, "segspool-cache"), Some("miss"));
    within(async {
        while body(get(&relay, path).await).await == first {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(asked.elapsed() >= Duration::from_secs(2), "too soon");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_answer_is_given_and_marked_while_the_api_is_down_but_not_when_it_says_no() {
    let state = Arc::new(AtomicUsize::new(200));
    let now = Arc::clone(&state);
    let api = Server::start(move |_| match now.load(Ordering::SeqCst) {
        0 => Reaction::Hang,
        1 => Reaction::SayAndClose(String::new()),
        status => {
            let status = u16::try_from(status).expect("a status");
            answer(status, JSON, &format!("{{\"status\":{status}}}"))
        }
    })
    .await;
    let dir = spool();
    let settings = [
        ("PROFILES__CACHE_TTL", "1ms"),
        ("PROFILES__TIMEOUT", "900ms"),
    ];
    let relay = start(dir.path(), &api.url(), &settings).await;
    let path = "/v1/profiles/user_id:u1/traits";
    assert_eq!(get(&relay, path).await.status(), 200);
    for down in [0, 1, 429, 500, 503] {
        state.store(down, Ordering::SeqCst);
        let reply = get(&relay, path).await;
        assert_eq!(reply.status(), 200, "{down}");
        assert_eq!(header(&reply, "segspool-cache"), Some("stale"));
        assert_eq!(
            header(&reply, "warning"),
            Some("110 - \"Response is Stale\"")
        );
        assert!(header(&reply, "age").is_some());
        assert_eq!(body(reply).await, "{\"status\":200}");
    }
    assert_eq!(relay.stats().await.profiles.stale_answers, 5);
    let other = get(&relay, "/v1/profiles/user_id:u2/traits").await;
    assert_eq!(other.status(), 503, "nothing is kept of another");
    // What is no longer there is not to live on here.
    state.store(404, Ordering::SeqCst);
    assert_eq!(get(&relay, path).await.status(), 404);
    state.store(500, Ordering::SeqCst);
    assert_eq!(get(&relay, path).await.status(), 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_page_and_no_foreign_host_reads_a_profile() {
    let api = counting().await;
    let dir = spool();
    let origins = (
        "INGEST__CORS_ORIGINS",
        "[\"https://shop.example.test\", \"*\"]",
    );
    let relay = start(dir.path(), &api.url(), &[origins]).await;
    let url = format!("{}/v1/profiles/user_id:u1/traits", relay.ingest);
    for (method, headers, code) in [
        (
            Method::GET,
            &[("origin", "https://shop.example.test")][..],
            "origin_not_allowed",
        ),
        (Method::GET, &[("origin", "null")], "origin_not_allowed"),
        (
            Method::OPTIONS,
            &[
                ("origin", "https://shop.example.test"),
                ("access-control-request-method", "GET"),
            ],
            "origin_not_allowed",
        ),
        (
            Method::GET,
            &[
                ("sec-fetch-site", "cross-site"),
                ("referer", "https://shop.example.test/"),
            ],
            "origin_not_allowed",
        ),
        (
            Method::GET,
            &[("host", "attacker.example")],
            "host_not_allowed",
        ),
    ] {
        let mut request = client().request(method, &url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let reply = request.send().await.expect("an answer");
        let cors = reply
            .headers()
            .keys()
            .any(|name| name.as_str().starts_with("access-control"));
        assert!(!cors, "{headers:?}");
        assert_eq!(refusal(reply).await, (403, code.to_owned()), "{headers:?}");
    }
    let reply = get(&relay, "/v1/profiles/user_id:u1/traits").await;
    assert_eq!(reply.status(), 200);
    assert_eq!(header(&reply, "access-control-allow-origin"), None);
    assert_eq!(api.asked().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_and_nobody_s_identifier_is_ever_logged_or_told() {
    let number = AtomicUsize::new(0);
    let api = Server::start(move |_| match number.fetch_add(1, Ordering::SeqCst) {
        0 => answer(200, JSON, r#"{"traits":{"secret-trait":1}}"#),
        1 => answer(401, JSON, "{}"),
        2 => Reaction::Hang,
        _ => Reaction::SayAndClose("nonsense".into()),
    })
    .await;
    let dir = spool();
    let tokens = file(dir.path(), "client-token", CLIENT_TOKEN);
    let settings = [
        (
            "PROFILES__CLIENT_TOKEN_FILE",
            tokens.to_str().expect("text"),
        ),
        ("PROFILES__TIMEOUT", "900ms"),
    ];
    let mut relay = start(dir.path(), &api.url(), &settings).await;
    let mut told = String::new();
    for bearer in [
        CLIENT_TOKEN,
        CLIENT_TOKEN,
        CLIENT_TOKEN,
        CLIENT_TOKEN,
        "wrong-t0ken",
    ] {
        let url = format!(
            "{}/v1/profiles/email:jane@example.test/traits",
            relay.ingest
        );
        let reply = client().get(url).bearer_auth(bearer).send().await;
        let reply = reply.expect("an answer");
        told.push_str(&format!("{:?}", reply.headers()));
        told.push_str(&body(reply).await);
    }
    relay.stop().await;
    let log = relay.log();
    assert!(log.contains("profiles cannot be read"), "{log}");
    assert!(
        log.contains("req-1"),
        "the Request-Id is for the log: {log}"
    );
    for secret in [
        TOKEN,
        CLIENT_TOKEN,
        "wrong-t0ken",
        BASIC,
        &BASIC["Basic ".len()..],
    ] {
        assert!(!log.contains(secret) && !told.contains(secret), "{secret}");
    }
    for personal in ["jane", "secret-trait"] {
        assert!(!log.contains(personal), "{personal}: {log}");
    }
}

/// What a command prints, and how it ends.
fn run(relay: &Relay, args: &[&str]) -> (Option<i32>, String, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_segspool"))
        .arg("profile")
        .args(args)
        .args(["--ingest", &relay.ingest])
        .output()
        .expect("the program is there");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_prints_each_resource_of_the_stand_in_page_by_page() {
    let options = Options {
        profile_token: Some(TOKEN.into()),
        ..Options::default()
    };
    let api = StandIn::start(options).await.expect("a free port");
    let dir = spool();
    let tokens = file(dir.path(), "client-token", CLIENT_TOKEN);
    let tokens = tokens.to_str().expect("text");
    let setting = ("PROFILES__CLIENT_TOKEN_FILE", tokens);
    let relay = start(dir.path(), &api.url(), &[setting]).await;
    let with_token = |args: &[&str]| {
        let args = [args, &["--client-token-file", tokens]].concat();
        run(&relay, &args)
    };
    for (resource, expected) in [
        ("traits", "trait_09"),
        ("events", "Order Completed"),
        ("external-ids", "user_id"),
        ("metadata", "2025-06-01T00:00:00Z"),
        ("links", "g1"),
    ] {
        let (code, out, err) = with_token(&["user_id:u1", resource]);
        assert_eq!(code, Some(0), "{err}");
        assert!(out.contains(expected), "{resource}: {out}");
        let (_, out, _) = with_token(&["user_id:u1", resource, "--json"]);
        let json: Value = serde_json::from_str(&out).expect("JSON");
        assert!(json.is_object(), "{json}");
    }
    // Without a resource, its traits; and the next page where it says.
    let (_, out, err) = with_token(&["user_id:u1", "--limit", "20"]);
    assert!(
        out.contains("trait_19") && !out.contains("trait_20"),
        "{out}"
    );
    assert!(err.contains("--next from-20"), "{err}");
    let (_, out, err) = with_token(&["user_id:u1", "--next", "from-20"]);
    assert!(out.contains("trait_24") && err.is_empty(), "{out}{err}");

    let (code, _, err) = with_token(&["user_id:nobody"]);
    assert_eq!(
        (code, err.trim()),
        (Some(66), "segspool: Profile was not found.")
    );
    assert_eq!(with_token(&["nobody"]).0, Some(64));
    assert_eq!(with_token(&["user_id:u1", "--limit", "1000"]).0, Some(64));
    assert_eq!(run(&relay, &["user_id:u1"]).0, Some(77));
    let gone = Server::start(|_| Reaction::Hang).await.url();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_segspool"))
        .args(["profile", "user_id:u1", "--ingest", &gone])
        .output()
        .expect("the program is there");
    assert_eq!(output.status.code(), Some(69));
}
