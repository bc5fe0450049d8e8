//! Events in the address of a picture: whatever becomes of them, a picture is the answer.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use reqwest::{Method, RequestBuilder, Response};
use segspool::stand_in::StandIn;
use serde_json::{Value, json};

use crate::support::{Relay, client, segment, spool, within};

async fn start(settings: &[(&str, &str)]) -> (tempfile::TempDir, StandIn, Relay) {
    let (dir, segment) = (spool(), segment().await);
    let relay = Relay::start(dir.path(), &segment.url(), settings).await;
    (dir, segment, relay)
}

fn request(relay: &Relay, method: Method, path: &str) -> RequestBuilder {
    client().request(method, format!("{}{path}", relay.ingest))
}

async fn assert_picture(reply: Response) {
    assert_eq!(reply.status(), 200);
    assert_eq!(reply.headers()["content-type"], "image/gif");
    assert_eq!(reply.headers()["cache-control"], "no-store");
    let gif = reply.bytes().await.expect("a body");
    // Its signature, one by one pixel, and its end.
    assert_eq!(&gif[..10], b"GIF89a\x01\0\x01\0");
    assert_eq!((gif.len(), gif.last()), (43, Some(&b';')));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pixel_call_in_any_form_is_an_event_and_its_answer_a_picture() {
    let (_dir, segment, relay) = start(&[]).await;
    let packed = |message: Value| STANDARD.encode(message.to_string());
    let track =
        |n: u8| json!({"userId": "u", "event": "??>>", "properties": {"n": n}, "writeKey": "KEY"});
    let url_safe = URL_SAFE_NO_PAD.encode(track(2).to_string());
    let basic = |request: RequestBuilder| request.basic_auth("BASIC", Some(""));
    let get = |path: String| request(&relay, Method::GET, &path);
    let post = |path: &str| request(&relay, Method::POST, path);
    let calls = [
        get(format!("/v1/pixel/track?data={}", packed(track(1)))),
        get(format!("//v1/pixel/t/?_=7&data={url_safe}")),
        get("/v1/pixel/identify?userId=u&traits.email=a%40example.test&writeKey=KEY".into()),
        basic(get("/v1/pixel/page?anonymousId=a&name=A+page".into())),
        basic(get(
            "/v1/pixel/s?anonymousId=a&context.page.title=%C3%A9".into()
        )),
        basic(post("/v1/pixel/group?userId=u&groupId=g").body("ignored")),
        basic(post("/v1/pixel/alias")).body(r#"{"userId":"u","previousId":7}"#),
        basic(post("/v1/pixel/i/?&")).body("userId=u&traits.a.b=c"),
        post("/v1/pixel/track").body(format!("data={}", packed(track(3)).replace('+', "%2B"))),
    ];
    let count = calls.len();
    for call in calls {
        assert_picture(call.send().await.expect("an answer")).await;
    }
    within(segment.until(|tally| tally.events as usize == count)).await;
    let mut events: Vec<(String, Value)> = segment
        .events()
        .iter()
        .map(|recorded| {
            let mut event: Value = serde_json::from_str(recorded.event.get()).expect("JSON");
            let object = event.as_object_mut().expect("an object");
            for stamped in ["messageId", "timestamp"] {
                assert!(
                    object
                        .remove(stamped)
                        .is_some_and(|value| value.is_string())
                );
            }
            object.remove("writeKey");
            (recorded.write_key.clone(), event)
        })
        .collect();
    let mut expected: Vec<(String, Value)> = [
        (
            "KEY",
            json!({"type": "track", "userId": "u", "event": "??>>", "properties": {"n": 1}}),
        ),
        (
            "KEY",
            json!({"type": "track", "userId": "u", "event": "??>>", "properties": {"n": 2}}),
        ),
        (
            "KEY",
            json!({"type": "track", "userId": "u", "event": "??>>", "properties": {"n": 3}}),
        ),
        (
            "KEY",
            json!({"type": "identify", "userId": "u", "traits": {"email": "a@example.test"}}),
        ),
        (
            "BASIC",
            json!({"type": "page", "anonymousId": "a", "name": "A page"}),
        ),
        (
            "BASIC",
            json!({"type": "screen", "anonymousId": "a", "context": {"page": {"title": "é"}}}),
        ),
        (
            "BASIC",
            json!({"type": "group", "userId": "u", "groupId": "g"}),
        ),
        (
            "BASIC",
            json!({"type": "alias", "userId": "u", "previousId": 7}),
        ),
        (
            "BASIC",
            json!({"type": "identify", "userId": "u", "traits": {"a": {"b": "c"}}}),
        ),
    ]
    .map(|(key, event)| (key.to_owned(), event))
    .into();
    let order = |a: &(String, Value), b: &(String, Value)| a.1.to_string().cmp(&b.1.to_string());
    events.sort_by(order);
    expected.sort_by(order);
    assert_eq!(events, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pixel_call_that_fails_is_answered_with_the_picture_too_and_counted() {
    let (_dir, segment, relay) = start(&[]).await;
    let get = |path: &str| request(&relay, Method::GET, path);
    let post = || request(&relay, Method::POST, "/v1/pixel/track").basic_auth("KEY12345", Some(""));
    let deep = format!("/v1/pixel/track?{}=1&writeKey=K", "a.".repeat(20_000));
    for (rejected, call) in [
        get("/v1/pixel/track"),
        get("/v1/pixel/track?data=!!&writeKey=KEY12345"),
        get("/v1/pixel/track?data=e30"),
        get("/v1/pixel/track?userId=u&event=E"),
        get("/v1/pixel/track?userId=u&writeKey=KEY12345"),
        get("/v1/pixel/track?userId=u&event=E&type=page&writeKey=KEY12345"),
        get("/v1/pixel/track?userId=u&event.a=1&event=E&userId.a=1&writeKey=KEY12345"),
        get(&deep),
        post().body("{"),
        post().body(vec![0xff; 100]),
        get("/v1/pixel/track?userId=u&event=E&writeKey=K").header("authorization", "Basic !!"),
        post()
            .body("userId=u&event=E")
            .header("content-encoding", "gzip"),
    ]
    .into_iter()
    .enumerate()
    {
        assert_picture(call.send().await.expect("an answer")).await;
        let stats = relay.stats().await;
        assert_eq!(stats.ingest.rejected_events, rejected as u64 + 1);
    }
    // The last two never got as far as to be an event.
    relay.until(|stats| stats.dead_letters.events == 10).await;

    let large = post().body(vec![b'a'; 9 * 1024 * 1024]);
    assert_picture(large.send().await.expect("an answer")).await;
    let stats = relay.stats().await;
    assert_eq!(
        (stats.ingest.refused_requests, stats.ingest.rejected_events),
        (1, 12)
    );
    assert_eq!(
        (stats.ingest.accepted_events, segment.tally().events),
        (0, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_costs_a_pixel_call_its_event_and_not_its_picture() {
    let (_dir, _segment, relay) = start(&[("QUEUE__MIN_FREE_DISK", "1000000 TiB")]).await;
    let path = "/v1/pixel/track?userId=u&event=E&writeKey=KEY12345";
    let reply = request(&relay, Method::GET, path).send().await;
    assert_picture(reply.expect("an answer")).await;
    let ingest = relay.stats().await.ingest;
    assert_eq!((ingest.refused_requests, ingest.accepted_events), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pixel_call_may_be_got_posted_and_asked_about_by_those_who_may_post() {
    let origins = r#"["https://shop.example.test"]"#;
    let (_dir, _segment, relay) = start(&[("INGEST__CORS_ORIGINS", origins)]).await;
    let path = "/v1/pixel/t?userId=u&event=E&writeKey=KEY12345";
    for method in [Method::HEAD, Method::PUT, Method::DELETE] {
        let reply = request(&relay, method, path)
            .send()
            .await
            .expect("an answer");
        assert_eq!(reply.status(), 405);
        assert_eq!(reply.headers()["allow"], "GET, POST, OPTIONS");
    }
    let asked = request(&relay, Method::OPTIONS, path)
        .header("origin", "https://shop.example.test")
        .header("access-control-request-method", "GET");
    let reply = asked.send().await.expect("an answer");
    assert_eq!(reply.status(), 204);
    assert_eq!(reply.headers()["allow"], "GET, POST, OPTIONS");
    assert_eq!(
        reply.headers()["access-control-allow-methods"],
        "POST, GET, OPTIONS"
    );
    for (header, value) in [
        ("host", "attacker.example"),
        ("origin", "https://other.example.test"),
    ] {
        let foreign = request(&relay, Method::GET, path).header(header, value);
        assert_eq!(foreign.send().await.expect("an answer").status(), 403);
    }
    assert_eq!(relay.stats().await.ingest.requests, 0);
}
