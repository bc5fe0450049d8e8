//! What browsers may do: nothing, unless the operator lists the origins of the pages that may post.

use crate::support::{Relay, client, segment, spool, within};

const SHOP: &str = "https://shop.example.test";

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_listed_origin_asks_posts_and_may_read_the_reply() {
    let dir = spool();
    let segment = segment().await;
    let origins = format!("[\"{SHOP}\"]");
    let relay = Relay::start(
        dir.path(),
        &segment.url(),
        &[("INGEST__CORS_ORIGINS", &origins)],
    )
    .await;
    let url = format!("{}/v1/t", relay.ingest);

    // As Chromium does on behalf of analytics-next 1.84.3.
    let asked = client()
        .request(reqwest::Method::OPTIONS, &url)
        .header("origin", SHOP)
        .header("access-control-request-method", "POST")
        .header(
            "access-control-request-headers",
            "authorization,x-retry-count",
        )
        .send()
        .await
        .expect("an answer");
    assert!(asked.status().is_success());
    assert_eq!(asked.headers()["access-control-allow-origin"], SHOP);
    for name in ["authorization", "content-type", "x-retry-count"] {
        assert!(
            asked.headers()["access-control-allow-headers"]
                .to_str()
                .expect("text")
                .contains(name)
        );
    }
    assert!(
        asked.headers()["access-control-allow-methods"]
            .to_str()
            .expect("text")
            .contains("POST")
    );

    let posted = client()
        .post(&url)
        .basic_auth("KEY12345", Some(""))
        .header("origin", SHOP)
        .header("content-type", "text/plain")
        .body(r#"{"type":"track","anonymousId":"a","event":"E","writeKey":"KEY12345"}"#)
        .send()
        .await
        .expect("an answer");
    assert_eq!(posted.status(), 200);
    assert_eq!(posted.headers()["access-control-allow-origin"], SHOP);
    assert_eq!(
        posted.headers()["access-control-expose-headers"],
        "Retry-After"
    );
    within(segment.until(|tally| tally.events == 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_origin_or_host_is_refused_and_stores_nothing() {
    let dir = spool();
    let segment = segment().await;
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let good = r#"{"userId":"u","event":"E"}"#;
    for (url, header, value, code) in [
        (
            format!("{}/v1/track", relay.ingest),
            "origin",
            SHOP,
            "origin_not_allowed",
        ),
        (
            format!("{}/v1/track", relay.ingest),
            "host",
            "attacker.example",
            "host_not_allowed",
        ),
        (
            format!("{}/stats", relay.admin),
            "host",
            "attacker.example",
            "host_not_allowed",
        ),
        (
            format!("{}/stats", relay.admin),
            "origin",
            SHOP,
            "origin_not_allowed",
        ),
    ] {
        let request = client()
            .post(&url)
            .basic_auth("KEY12345", Some(""))
            .header(header, value);
        let reply = request.body(good).send().await.expect("an answer");
        assert_eq!(reply.status(), 403, "{url} {header}");
        assert!(!reply.headers().contains_key("access-control-allow-origin"));
        assert!(reply.text().await.expect("text").contains(code));
    }
    assert_eq!(relay.stats().await.ingest.accepted_events, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn short_paths_lead_where_long_ones_do_and_client_metrics_are_counted_and_discarded() {
    let dir = spool();
    let segment = segment().await;
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    for (path, body) in [
        ("/v1/t", r#"{"userId":"u","event":"E"}"#),
        ("/v1/i", r#"{"userId":"u"}"#),
        ("/v1/p", r#"{"userId":"u"}"#),
        ("/v1/s", r#"{"userId":"u"}"#),
        ("/v1/g", r#"{"userId":"u","groupId":"g"}"#),
        ("/v1/a", r#"{"userId":"u","previousId":"p"}"#),
        (
            "/v1/b",
            r#"{"batch":[{"type":"track","userId":"u","event":"E"}]}"#,
        ),
        (
            "/v1/import/",
            r#"{"batch":[{"type":"track","userId":"u","event":"E"}]}"#,
        ),
    ] {
        assert_eq!(
            relay.post(path, "KEY12345", body).await.status(),
            200,
            "{path}"
        );
    }
    let metrics =
        r#"{"series":[{"type":"Counter","metric":"analytics_js.invoke","value":1,"tags":{}}]}"#;
    let reply = client()
        .post(format!("{}/v1/m", relay.ingest))
        .body(metrics)
        .send()
        .await
        .expect("an answer");
    assert_eq!(
        (
            reply.status().as_u16(),
            reply.text().await.expect("text").as_str()
        ),
        (200, r#"{"success":true}"#)
    );
    within(segment.until(|tally| tally.events == 8)).await;
    let stats = relay.stats().await;
    assert_eq!(
        (
            stats.ingest.requests,
            stats.ingest.accepted_events,
            stats.ingest.rejected_events,
            stats.ingest.client_metrics
        ),
        (9, 8, 0, 1)
    );
}
