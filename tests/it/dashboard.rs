//! The dashboard's page and policy, and who may use what it uses. How it works in a browser is in `tests/clients/dashboard.rs`.

use reqwest::Method;

use crate::support::{Relay, client, segment, spool};

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_one_reply_that_allows_nothing_from_elsewhere() {
    let (dir, segment) = (spool(), segment().await);
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let url = format!("{}/", relay.admin);
    for method in [Method::GET, Method::HEAD] {
        let reply = client().request(method.clone(), &url).send().await;
        let reply = reply.expect("an answer");
        assert_eq!(reply.status(), 200, "{method}");
        for (name, value) in [
            ("content-type", "text/html; charset=utf-8"),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
            ("x-frame-options", "DENY"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(reply.headers()[name], value, "{method} {name}");
        }
        let policy = reply.headers()["content-security-policy"].to_str();
        let policy = policy.expect("text").to_owned();
        for directive in [
            "default-src 'none'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.contains(directive), "{policy} lacks {directive}");
        }
        let html = reply.text().await.expect("text");
        assert_eq!(html.starts_with("<!doctype html>"), method == Method::GET);
    }
    let posted = client().post(&url).send().await.expect("an answer");
    assert_eq!(posted.status(), 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn its_own_page_may_read_and_change_a_link_may_open_it_and_other_pages_may_nothing() {
    let (dir, segment) = (spool(), segment().await);
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    relay.track("KEY-ab12", &["m-1".to_owned()]).await;
    let lane = relay.stats().await.lanes[0].id.clone();
    let port = relay.admin.rsplit(':').next().expect("a port");
    let (own, by_name) = (relay.admin.as_str(), format!("http://localhost:{port}"));
    let other_port = relay.ingest.as_str();
    let rebound = format!("http://attacker.example:{port}");
    let all = [200, 200, 200];
    let none = [403, 403, 403];
    // What the page itself, /stats and a change answer.
    for (headers, expected) in [
        (vec![], all),
        (
            vec![("origin", own), ("sec-fetch-site", "same-origin")],
            all,
        ),
        (vec![("sec-fetch-site", "same-origin")], [200, 200, 403]),
        (vec![("origin", own)], [200, 200, 403]),
        (vec![("sec-fetch-site", "none")], [200, 200, 403]),
        (
            vec![
                ("sec-fetch-site", "cross-site"),
                ("sec-fetch-mode", "navigate"),
                ("sec-fetch-dest", "document"),
            ],
            [200, 403, 403],
        ),
        (
            vec![
                ("sec-fetch-site", "cross-site"),
                ("sec-fetch-mode", "navigate"),
                ("sec-fetch-dest", "iframe"),
            ],
            none,
        ),
        (vec![("sec-fetch-site", "cross-site")], none),
        (
            vec![("origin", other_port), ("sec-fetch-site", "same-site")],
            none,
        ),
        (
            vec![("origin", other_port), ("sec-fetch-site", "same-origin")],
            none,
        ),
        (
            vec![("origin", &by_name), ("sec-fetch-site", "same-origin")],
            none,
        ),
        (vec![("origin", "https://shop.example.test")], none),
        (vec![("origin", "null")], none),
        (
            vec![
                ("host", rebound.trim_start_matches("http://")),
                ("origin", &rebound),
                ("sec-fetch-site", "same-origin"),
            ],
            none,
        ),
    ] {
        for (n, (method, path)) in [
            (Method::GET, "/".to_owned()),
            (Method::GET, "/stats".to_owned()),
            (Method::POST, format!("/lanes/{lane}/resume")),
        ]
        .into_iter()
        .enumerate()
        {
            let url = format!("{}{path}", relay.admin);
            let mut request = client().request(method.clone(), url);
            for (name, value) in &headers {
                request = request.header(*name, *value);
            }
            let reply = request.send().await.expect("an answer");
            assert_eq!(reply.status(), expected[n], "{method} {path} {headers:?}");
            assert!(!reply.headers().contains_key("access-control-allow-origin"));
        }
    }
    // A browser asks first where a page would bear a token; it is told nothing that would let it go on.
    let asked = client()
        .request(Method::OPTIONS, format!("{own}/stats"))
        .header("origin", other_port)
        .header("sec-fetch-site", "same-site")
        .header("access-control-request-method", "GET")
        .header("access-control-request-headers", "authorization");
    let reply = asked.send().await.expect("an answer");
    assert_eq!(reply.status(), 403);
    assert!(!reply.headers().contains_key("access-control-allow-origin"));
}
