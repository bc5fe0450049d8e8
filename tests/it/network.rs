//! Delivery over networks as they are: connections that end at any moment, certificates that are wrong, proxies.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::pki_types::PrivateKeyDer;
use segspool::stats::{LaneSnapshot, LaneState, Snapshot};
use tokio_rustls::TlsAcceptor;

use crate::support::server::{Reaction, Request, Server, answer, success};
use crate::support::{Relay, ids, spool};

const KEY: &str = "KEY12345";

/// Posts an event, and waits until nothing is left to deliver.
async fn deliver(relay: &Relay, id: &str) {
    relay.track(KEY, &[id.to_owned()]).await;
    relay.until(|stats| stats.queue.events == 0).await;
}

/// A daemon with this variable in its environment.
fn command(variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_segspool"));
    command.arg("serve").envs(variables.iter().copied());
    command
}

/// How often each event came, in order of messageId.
fn times(asked: &[Request]) -> Vec<(String, usize)> {
    let mut times = std::collections::BTreeMap::new();
    for id in asked.iter().flat_map(Request::ids) {
        *times.entry(id).or_default() += 1;
    }
    times.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_says_who_makes_it_and_a_repeated_one_says_so() {
    let calls = AtomicUsize::new(0);
    let server = Server::start(move |_| match calls.fetch_add(1, Ordering::SeqCst) {
        0 | 1 => answer(500, "", ""),
        _ => success(),
    });
    let (dir, server) = (spool(), server.await);
    let relay = Relay::start(dir.path(), &server.url(), &[]).await;
    deliver(&relay, "e-0").await;
    let asked = server.asked();
    let counts: Vec<_> = asked.iter().map(|r| r.header("x-retry-count")).collect();
    assert_eq!(counts, [None, Some("1"), Some("2")]);
    for request in &asked {
        assert_eq!(request.line, "POST /v1/batch HTTP/1.1");
        assert_eq!(request.header("content-type"), Some("application/json"));
        let agent = format!("segspool/{}", env!("CARGO_PKG_VERSION"));
        assert_eq!(request.header("user-agent"), Some(agent.as_str()));
        assert_eq!(request.header("authorization"), Some("Basic S0VZMTIzNDU6"));
        assert_eq!(request.json()["writeKey"], KEY);
        assert_eq!(request.ids(), ["e-0"]);
    }
    let sent_at = |n: usize| asked[n].json()["sentAt"].to_string();
    assert!(sent_at(0) < sent_at(1) && sent_at(1) < sent_at(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_used_again_until_the_server_fails() {
    let server = Server::start(|request| {
        let failing = request.ids() == ["e-2"] && request.header("x-retry-count").is_none();
        if failing {
            answer(503, "", "")
        } else {
            success()
        }
    });
    let (dir, server) = (spool(), server.await);
    let relay = Relay::start(dir.path(), &server.url(), &[]).await;
    for id in ids("e", 0..5) {
        deliver(&relay, &id).await;
    }
    let connections: Vec<_> = server.asked().iter().map(|r| r.connection).collect();
    // The third event comes twice.
    assert_eq!(connections, [0, 0, 0, 1, 1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_in_trouble_leaves_the_others_their_connections() {
    let server = Server::start(|request| {
        if request.json()["writeKey"] == "BROKEN99" {
            answer(500, "", "")
        } else {
            success()
        }
    });
    let (dir, server) = (spool(), server.await);
    let relay = Relay::start(dir.path(), &server.url(), &[("RETRY__MAX", "50ms")]).await;
    relay.track("BROKEN99", &ids("broken", 0..1)).await;
    for (delivered, id) in (1..).zip(ids("e", 0..10)) {
        relay.track(KEY, &[id]).await;
        relay
            .until(|stats| stats.delivery.events == delivered)
            .await;
    }
    let asked = server.until(|asked| asked.len() >= 40).await;
    // One for each lane, and the same again after the first failure, and after others much later.
    let last = asked.iter().map(|request| request.connection).max();
    assert!(last < Some(10), "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_ends_between_calls_costs_nothing() {
    let Reaction::Say(success) = success() else {
        panic!("a success is said");
    };
    let server = Server::start(move |_| Reaction::SayAndClose(success.clone()));
    let (dir, server) = (spool(), server.await);
    let relay = Relay::start(dir.path(), &server.url(), &[]).await;
    for id in ids("e", 0..10) {
        deliver(&relay, &id).await;
    }
    let expected: Vec<_> = ids("e", 0..10).into_iter().map(|id| (id, 1)).collect();
    assert_eq!(times(&server.asked()), expected);
    let stats = relay.stats().await;
    assert_eq!((stats.delivery.retries, stats.delivery.events), (0, 10));
}

/// The HTTP library must not send a request again by itself that may have arrived.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_gets_no_answer_on_a_kept_connection_is_repeated_by_the_lane_and_counted() {
    let server = Server::start(|request| {
        let dying = request.ids() == ["e-1"] && request.header("x-retry-count").is_none();
        if dying {
            Reaction::SayAndClose(String::new())
        } else {
            success()
        }
    });
    let (dir, server) = (spool(), server.await);
    let relay = Relay::start(dir.path(), &server.url(), &[]).await;
    for id in ids("e", 0..3) {
        deliver(&relay, &id).await;
    }
    let asked = server.asked();
    let seen: Vec<_> = asked
        .iter()
        .map(|r| (r.connection, r.ids().concat(), r.header("x-retry-count")))
        .collect();
    let expected = [
        (0, "e-0".to_owned(), None),
        (0, "e-1".to_owned(), None),
        (1, "e-1".to_owned(), Some("1")),
        (1, "e-2".to_owned(), None),
    ];
    assert_eq!(seen, expected);
    let stats = relay.stats().await;
    assert_eq!((stats.delivery.retries, stats.delivery.events), (1, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_none_is_no_answer_and_a_2xx_counts_by_its_head() {
    let close = |text: &str| Reaction::SayAndClose(text.into());
    for (reaction, repeated) in [
        (close("HTTP/1.1 200 OK\r\nContent-Le"), true),
        (
            close("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{}"),
            true,
        ),
        (close("SSH-2.0-OpenSSH_10.0\r\n"), true),
        (close("\u{1}\u{2}\u{3}\r\n\r\n"), true),
        (
            close("HTTP/1.1 503 No\r\nContent-Length: 99\r\n\r\nno"),
            true,
        ),
        (Reaction::Hang, true),
        (Reaction::Drip, true),
        (
            close("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"),
            false,
        ),
        (
            Reaction::Say("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{}surplus".into()),
            false,
        ),
        (
            close("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
            false,
        ),
    ] {
        let first = reaction.clone();
        let server = Server::start(move |request| {
            if request.ids() == ["e-0"] && request.header("x-retry-count").is_none() {
                first.clone()
            } else {
                success()
            }
        });
        let (dir, server) = (spool(), server.await);
        let settings = [("SEGMENT__TIMEOUT", "300ms")];
        let relay = Relay::start(dir.path(), &server.url(), &settings).await;
        deliver(&relay, "e-0").await;
        deliver(&relay, "e-1").await;
        let expected = [
            ("e-0".to_owned(), if repeated { 2 } else { 1 }),
            ("e-1".to_owned(), 1),
        ];
        assert_eq!(times(&server.asked()), expected, "{reaction:?}");
        let stats = relay.stats().await;
        let retries = u64::from(repeated);
        assert_eq!(
            (stats.delivery.retries, stats.delivery.events),
            (retries, 2)
        );
        assert_eq!(stats.dead_letters.events, 0);
    }
}

/// A certificate for `name`, good until the first day of `until`, in PEM, and what serves with it.
fn certificate(name: &str, until: i32) -> (String, TlsAcceptor) {
    let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(until, 1, 1);
    let key = KeyPair::generate().expect("a key");
    let cert = params.self_signed(&key).expect("a certificate");
    let der = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], der)
        .expect("a pair");
    (cert.pem(), TlsAcceptor::from(Arc::new(config)))
}

/// Whether the lane has failed more than once and waits for the next time.
fn backs_off(stats: &Snapshot) -> bool {
    let waits = |lane: &LaneSnapshot| lane.attempt >= 2 && lane.state == LaneState::BackingOff;
    stats.lanes.first().is_some_and(waits)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_does_not_prove_its_name_gets_nothing() {
    let (trusted, good) = certificate("localhost", 4000);
    let (_, unknown) = certificate("localhost", 4000);
    let (named, other_name) = certificate("segment.example", 4000);
    let (old, expired) = certificate("localhost", 2024);
    for (case, roots, tls, delivered) in [
        ("good", &trusted, good, true),
        ("not trusted", &trusted, unknown, false),
        ("of another name", &named, other_name, false),
        ("expired", &old, expired, false),
    ] {
        let (dir, server) = (spool(), Server::start_with(Some(tls), |_| success()).await);
        let file = dir.path().join("roots.pem");
        fs::write(&file, roots).expect("written");
        let command = command(&[("SSL_CERT_FILE", file.to_str().expect("text"))]);
        let endpoint = format!("https://localhost:{}", server.port());
        let spool = dir.path().join("spool");
        let relay = Relay::start_by(command, &spool, &endpoint, &[]).await;
        relay.track(KEY, &ids("e", 0..1)).await;
        let stats = relay
            .until(|stats| stats.delivery.events == 1 || backs_off(stats))
            .await;
        assert_eq!(stats.delivery.events, u64::from(delivered), "{case}");
        assert_eq!(server.asked().len(), usize::from(delivered), "{case}");
        if !delivered {
            let lane = &stats.lanes[0];
            let reason = lane.reason.as_deref().unwrap_or_default();
            assert!(reason.contains("certificate"), "{case}: {reason}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_of_the_environment_is_used_for_names_that_only_it_knows() {
    let (dir, proxy) = (spool(), Server::start(|_| success()).await);
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
        let url = format!("http://user:proxy-secret@{}", proxy.address);
        let command = command(&[(name, &url)]);
        let spool = dir.path().join(name);
        let settings = [("LOG__LEVEL", "trace")];
        let relay = Relay::start_by(command, &spool, "http://segment.test", &settings).await;
        let before = proxy.asked().len();
        deliver(&relay, name).await;
        let asked = proxy.asked();
        assert_eq!(asked.len(), before + 1, "{name}");
        let request = &asked[before];
        assert_eq!(request.line, "POST http://segment.test/v1/batch HTTP/1.1");
        assert_eq!(request.header("host"), Some("segment.test"));
        assert_eq!(
            request.header("proxy-authorization"),
            Some("Basic dXNlcjpwcm94eS1zZWNyZXQ=")
        );
        assert_eq!(request.ids(), [name]);
        assert!(!relay.log().contains("proxy-secret"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_only_carries_what_is_meant_for_a_destination_with_tls() {
    let (roots, tls) = certificate("localhost", 4000);
    let (dir, server) = (spool(), Server::start_with(Some(tls), |_| success()).await);
    let to = server.address.clone();
    let proxy = Server::start(move |_| Reaction::Tunnel(to.clone())).await;
    let file = dir.path().join("roots.pem");
    fs::write(&file, roots).expect("written");
    let url = proxy.url();
    let command = command(&[
        ("HTTPS_PROXY", &url),
        ("SSL_CERT_FILE", file.to_str().expect("text")),
    ]);
    let spool = dir.path().join("spool");
    let relay = Relay::start_by(command, &spool, "https://localhost:8443", &[]).await;
    deliver(&relay, "e-0").await;
    let lines: Vec<_> = proxy.asked().into_iter().map(|r| r.line).collect();
    assert_eq!(lines, ["CONNECT localhost:8443 HTTP/1.1"]);
    assert_eq!(times(&server.asked()), [("e-0".to_owned(), 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_no_proxy_goes_without() {
    let (dir, server) = (spool(), Server::start(|_| success()).await);
    let proxy = Server::start(|_| success()).await;
    let url = proxy.url();
    for (no_proxy, through) in [
        ("localhost", true),
        ("127.0.0.0/8", false),
        ("a.test,127.0.0.1", false),
    ] {
        let command = command(&[("HTTP_PROXY", &url), ("NO_PROXY", no_proxy)]);
        let spool = dir.path().join(no_proxy.replace('/', "-"));
        let relay = Relay::start_by(command, &spool, &server.url(), &[]).await;
        let before = (proxy.asked().len(), server.asked().len());
        deliver(&relay, "e-0").await;
        let after = (proxy.asked().len(), server.asked().len());
        let expected = if through {
            (before.0 + 1, before.1)
        } else {
            (before.0, before.1 + 1)
        };
        assert_eq!(after, expected, "{no_proxy}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_fails_is_waited_for_and_its_password_is_not_shown() {
    let dir = spool();
    let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = gone.local_addr().expect("an address");
    drop(gone);
    let url = format!("http://user:proxy-secret@{address}");
    let command = command(&[("HTTP_PROXY", &url)]);
    let settings = [("LOG__LEVEL", "trace")];
    let relay = Relay::start_by(command, dir.path(), "http://segment.test", &settings).await;
    relay.track(KEY, &ids("e", 0..1)).await;
    let stats = relay.until(backs_off).await;
    let shown = serde_json::to_string(&stats).expect("JSON");
    assert!(!format!("{shown} {}", relay.log()).contains("proxy-secret"));
}
