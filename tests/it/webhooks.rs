//! Webhooks: each URL gets the events that it wants, signed, and nobody else waits for it. And the way in for those of Segment.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::Signal;
use segspool::stand_in::{Answer, Match, Options, Rule, StandIn, Tally, Violation};
use segspool::stats::{LaneSnapshot, LaneState, Snapshot};
use serde_json::Value;

use crate::dead_letters::{replay, segspool, text};
use crate::support::server::{Server, answer, success};
use crate::support::{Relay, client, ids, segment, spool, within};

const KEY: &str = "KEY12345";

/// A daemon that goes by a file with these webhooks, in whose folder it also spools.
pub(crate) async fn start(dir: &Path, endpoint: &str, webhooks: &str) -> Relay {
    start_with(dir, endpoint, webhooks, &[]).await
}

/// As [`start`], with settings that the file cannot change.
async fn start_with(
    dir: &Path,
    endpoint: &str,
    webhooks: &str,
    settings: &[(&str, &str)],
) -> Relay {
    write(dir, webhooks);
    let mut command = Command::new(env!("CARGO_BIN_EXE_segspool"));
    let config = dir.join("config.toml");
    command.args(["serve", "--config"]).arg(config);
    Relay::start_by(command, &dir.join("spool"), endpoint, settings).await
}

fn write(dir: &Path, webhooks: &str) {
    std::fs::write(dir.join("config.toml"), webhooks).expect("written");
}

/// A `[[webhook]]` with one URL.
pub(crate) fn webhook(name: &str, url: &str, more: &str) -> String {
    format!("[[webhook]]\nname = \"{name}\"\nurls = [\"{url}\"]\n{more}\n")
}

/// The lanes of webhooks.
pub(crate) fn hooks(stats: &Snapshot) -> Vec<&LaneSnapshot> {
    let lanes = stats.lanes.iter();
    lanes.filter(|lane| lane.destination == "webhook").collect()
}

pub(crate) fn id(event: &Value) -> String {
    event["messageId"].as_str().expect("an id").to_owned()
}

/// Waits until nothing is left, and holds every lane against its law.
pub(crate) async fn drained(relay: &Relay) -> Snapshot {
    let stats = relay.until(|stats| stats.queue.events == 0).await;
    for lane in &stats.lanes {
        assert!(lane.conservation().holds(), "{lane:?}");
    }
    stats
}

/// What Python makes of it.
fn signature(secret: &str, body: &[u8]) -> String {
    let program = "import hmac, sys\n\
        print(hmac.new(sys.argv[1].encode(), sys.stdin.buffer.read(), 'sha1').hexdigest())";
    let mut python = Command::new("python3")
        .args(["-c", program, secret])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is there");
    let mut stdin = python.stdin.take().expect("standard input is piped");
    stdin.write_all(body).expect("python reads");
    drop(stdin);
    let output = python.wait_with_output().expect("python ends");
    String::from_utf8(output.stdout)
        .expect("text")
        .trim()
        .to_owned()
}

/// The paths and bodies that SDKs posted.
fn captured() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/captures");
    let files = std::fs::read_dir(folder).expect("the folder is there");
    let texts = files
        .map(|file| file.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .map(|path| std::fs::read_to_string(path).expect("a capture"));
    texts
        .map(|text| serde_json::from_str::<Value>(&text).expect("a capture"))
        .filter(|capture| capture["method"] == "POST")
        .map(|capture| {
            let part = |name: &str| capture[name].as_str().expect("text").to_owned();
            (part("path"), part("body_text"))
        })
        .collect()
}

/// Events of the makes of which there is no capture.
const OTHERS: &str = r#"{"batch":[
    {"type":"track","event":"Opened","userId":"u-2","context":{"library":{"name":"analytics-swift"}}},
    {"type":"screen","userId":"u-3","context":{"library":{"name":"analytics-kotlin"}}},
    {"type":"track","event":"Order Done","userId":"u-2","channel":"client"},
    {"type":"track","event":"Order Done","userId":"u-2","channel":"browser","context":{"channel":"server"}},
    {"type":"track","event":"Order Done","anonymousId":"u-1","context":{"channel":"mobile"}},
    {"type":"track","event":"Order Done","userId":"u-2","channel":"fridge"}
]}"#;

/// Where an event says, or its library tells, that it was made: an account of its own, by hand, of what SDKs send.
fn made_in(event: &Value) -> &str {
    let said = event["channel"].as_str();
    let said = said.or(event["context"]["channel"].as_str());
    said.unwrap_or(match event["context"]["library"]["name"].as_str() {
        Some("analytics.js") => "browser",
        Some("analytics-swift" | "analytics-kotlin") => "mobile",
        _ => "server",
    })
}

type Passes = fn(&Value) -> bool;

const FILTERS: [(&str, Passes); 13] = [
    ("", |_| true),
    ("types = [\"track\"]", |e| e["type"] == "track"),
    ("types = [\"alias\", \"group\"]", |e| {
        e["type"] == "alias" || e["type"] == "group"
    }),
    ("types = [\"delete\"]", |_| false),
    ("events = [\"Order Done\", \"Both\"]", |e| {
        e["event"] == "Order Done" || e["event"] == "Both"
    }),
    ("channels = [\"server\"]", |e| made_in(e) == "server"),
    ("channels = [\"browser\"]", |e| {
        ["browser", "client"].contains(&made_in(e))
    }),
    ("channels = [\"mobile\"]", |e| {
        ["mobile", "client"].contains(&made_in(e))
    }),
    ("channels = [\"client\"]", |e| {
        ["browser", "mobile", "client"].contains(&made_in(e))
    }),
    ("channels = [\"server\", \"mobile\"]", |e| {
        ["server", "mobile", "client"].contains(&made_in(e))
    }),
    ("ignore_users = [\"u-1\", \"u-3\"]", |e| {
        e["userId"] != "u-1" && e["userId"] != "u-3"
    }),
    (
        "types = [\"track\", \"page\"]\nchannels = [\"client\"]\nignore_users = [\"u-2\"]",
        |e| {
            (e["type"] == "track" || e["type"] == "page")
                && ["browser", "mobile", "client"].contains(&made_in(e))
                && e["userId"] != "u-2"
        },
    ),
    (
        "events = [\"Order Done\"]\nchannels = [\"server\"]\nignore_users = [\"u-2\"]",
        |e| e["event"] == "Order Done" && made_in(e) == "server" && e["userId"] != "u-2",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_gets_the_events_that_pass_all_its_filters_as_segment_gets_them() {
    let (dir, segment) = (spool(), segment().await);
    let server = Server::start(|_| success()).await;
    let config: String = (0..)
        .zip(FILTERS)
        .map(|(n, (filter, _))| {
            webhook(
                &format!("hook-{n}"),
                &format!("{}/hook/{n}", server.url()),
                filter,
            )
        })
        .collect();
    let relay = start(dir.path(), &segment.url(), &config).await;
    for (path, body) in captured() {
        assert_eq!(
            relay.post(&path, KEY, body).await.status(),
            200,
            "{}",
            relay.log()
        );
    }
    assert_eq!(relay.post("/v1/batch", KEY, OTHERS).await.status(), 200);
    let stats = drained(&relay).await;

    let at_segment: Vec<(String, Value)> = segment
        .events()
        .iter()
        .map(|recorded| {
            let text = recorded.event.get().to_owned();
            let event = serde_json::from_str(&text).expect("JSON");
            (text, event)
        })
        .collect();
    assert_eq!(stats.ingest.accepted_events, at_segment.len() as u64);
    let asked = server.asked();
    for (n, (filter, passes)) in FILTERS.iter().enumerate() {
        let line = format!("POST /hook/{n} HTTP/1.1");
        let got = asked.iter().filter(|request| request.line == line);
        let mut got: Vec<String> = got
            .map(|request| {
                let body = String::from_utf8(request.body.clone()).expect("text");
                let (event, received) = body
                    .rsplit_once(",\"receivedAt\":\"")
                    .expect("the time of its receipt");
                let time = received.strip_suffix("\"}").expect("the end");
                assert!(time.parse::<jiff::Timestamp>().is_ok(), "{time}");
                format!("{event}}}")
            })
            .collect();
        let passing = at_segment.iter().filter(|(_, event)| passes(event));
        let mut expected: Vec<String> = passing.map(|(text, _)| text.clone()).collect();
        got.sort();
        expected.sort();
        assert_eq!(got, expected, "{filter}");
        assert_eq!(
            expected.len() == at_segment.len(),
            filter.is_empty(),
            "{filter}"
        );
        assert_eq!(expected.is_empty(), filter.contains("delete"), "{filter}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_one_event_signed_as_segment_signs_it() {
    let (dir, segment) = (spool(), segment().await);
    let server = Server::start(|_| answer(202, "", "")).await;
    std::fs::write(dir.path().join("secret"), "s3cret-ü\n").expect("written");
    let more = format!(
        "secret_file = \"{}\"\nheaders = {{ \"X-Team\" = \"growth\", authorization = \"Bearer t0ken\" }}",
        dir.path().join("secret").display()
    );
    let url = format!("{}/hook?token=u-r-l", server.url());
    let relay = start(dir.path(), &segment.url(), &webhook("signed", &url, &more)).await;
    let body = r#"{"userId":"u","event":"Grüße","properties":{"a" : [1.50, "\u00fc"]},"context":{"x":null},"receivedAt":"then"}"#;
    assert_eq!(relay.post("/v1/track", KEY, body).await.status(), 200);
    relay.track(KEY, &ids("e", 0..3)).await;
    drained(&relay).await;
    let asked = server.asked();
    assert_eq!(asked.len(), 4);
    let signatures: BTreeSet<_> = asked
        .iter()
        .map(|request| {
            assert_eq!(request.line, "POST /hook?token=u-r-l HTTP/1.1");
            let header = |name| request.header(name);
            let expected = signature("s3cret-ü", &request.body);
            assert_eq!(header("x-signature"), Some(expected.as_str()));
            assert_eq!(header("content-type"), Some("application/json"));
            assert_eq!(header("x-team"), Some("growth"));
            assert_eq!(header("authorization"), Some("Bearer t0ken"));
            let agent = concat!("segspool/", env!("CARGO_PKG_VERSION"));
            assert_eq!(header("user-agent"), Some(agent));
            let received = request.json()["receivedAt"].clone();
            let received = received.as_str().expect("text");
            assert!(received.parse::<jiff::Timestamp>().is_ok(), "{received}");
            expected
        })
        .collect();
    assert_eq!(signatures.len(), 4);
    for secret in ["s3cret", "t0ken", "u-r-l", "growth", KEY] {
        assert!(!relay.log().contains(secret), "{}", relay.log());
    }
    let stats = relay.stats().await;
    assert_eq!(hooks(&stats)[0].key, "signed …-r-l");
    assert_eq!(hooks(&stats)[0].delivered_batches, 4);
    assert_eq!(stats.ingest.accepted_events, 4, "copies do not count");
}

/// How many different events a webhook of a stand-in has got.
fn distinct(tally: &Tally, hook: &str) -> u64 {
    tally.hooks.get(hook).map_or(0, |hook| hook.distinct_events)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_url_and_a_hanging_one_delay_nobody_and_get_everything_once_they_are_back() {
    let (dir, segment) = (spool(), segment().await);
    // Nothing listens where something did a moment ago.
    let dead = StandIn::start(Options::default()).await.expect("a port");
    dead.down().await;
    segment.set_rules(vec![Rule::when(Match::hook("hanging"), Answer::Hang)]);
    let config = format!(
        "[[webhook]]\nname = \"all\"\nurls = [\"{dead}/hook/dead\", \"{url}/hook/hanging\", \"{url}/hook/healthy\"]\ntimeout = \"30s\"\n",
        dead = dead.url(),
        url = segment.url()
    );
    let mut relay = start(dir.path(), &segment.url(), &config).await;
    let expected = ids("e", 0..200);
    for portion in expected.chunks(20) {
        relay.track(KEY, portion).await;
    }
    within(segment.until(|tally| tally.distinct_events == 200)).await;
    let stats = relay
        .until(|stats| {
            let done = hooks(stats).iter().filter(|lane| lane.events == 0).count();
            done == 1 && stats.queue.events == 400
        })
        .await;
    let tally = segment.tally();
    let healthy = &tally.hooks["healthy"];
    assert_eq!((healthy.events, healthy.distinct_events), (200, 200));
    assert_eq!(stats.queue.events, 400);
    assert!(hooks(&stats).iter().any(|lane| lane.attempt > 0));
    let hanging = &tally.hooks["hanging"];
    assert_eq!(
        (hanging.requests, hanging.hanging_requests),
        (1, 1),
        "the first call hangs, and no other is made"
    );

    relay.kill();
    let gone = |tally: &Tally| tally.hooks["hanging"].unanswered_requests == 1;
    within(segment.until(gone)).await;
    segment.set_rules(Vec::new());
    dead.up().await.expect("the port was kept");
    let relay = start(dir.path(), &segment.url(), &config).await;
    let stats = drained(&relay).await;
    let (tally, at_dead) = (segment.tally(), dead.tally());
    for (tally, hook) in [(&at_dead, "dead"), (&tally, "hanging")] {
        assert_eq!(distinct(tally, hook), 200);
        assert_eq!(tally.hooks[hook].events, 200);
    }
    for id in &expected {
        assert_eq!(dead.times_posted("dead", id), 1);
        assert_eq!(segment.times_posted("hanging", id), 1);
        // What was settled a moment before the crash may come again.
        assert!(segment.times_posted("healthy", id) >= 1);
    }
    for hook in tally.hooks.values().chain(at_dead.hooks.values()) {
        assert!(hook.violations.is_empty(), "{hook:?}");
    }
    assert_eq!(tally.distinct_events, 200);
    assert_eq!(stats.dead_letters.events, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_checks_signatures_holds_the_lane_that_signs_wrongly_and_takes_the_others()
{
    let (dir, segment) = (spool(), segment().await);
    let options = Options {
        hook_secret: Some("s3cret".into()),
        ..Options::default()
    };
    let receiver = StandIn::start(options).await.expect("a port");
    let hook = |name: &str, secret: &str| {
        let file = dir.path().join(name);
        std::fs::write(&file, secret).expect("written");
        let more = format!("secret_file = \"{}\"", file.display());
        webhook(name, &format!("{}/hook/{name}", receiver.url()), &more)
    };
    let good = hook("good", "s3cret");
    let config = good.clone() + &hook("bad", "other");
    let relay = start(dir.path(), &segment.url(), &config).await;
    relay.track(KEY, &ids("e", 0..10)).await;
    within(receiver.until(|tally| distinct(tally, "good") == 10)).await;
    let stats = relay
        .until(|stats| {
            let held = |lane: &&LaneSnapshot| lane.state == LaneState::Held;
            hooks(stats).iter().any(held) && stats.queue.events == 10
        })
        .await;
    assert_eq!(stats.dead_letters.events, 0);
    let tally = receiver.tally();
    assert_eq!(tally.hooks["bad"].events, 0);
    assert!(tally.hooks["bad"].violations[&Violation::NotSigned] >= 1);
    assert!(tally.hooks["good"].violations.is_empty());

    let mended = good + &hook("bad", "s3cret");
    reload(&relay, dir.path(), &mended, 1).await;
    drained(&relay).await;
    assert_eq!(distinct(&receiver.tally(), "bad"), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_webhook_refused_is_replayed_to_it_alone() {
    let (dir, segment) = (spool(), segment().await);
    let refuses = Arc::new(Mutex::new(true));
    let refusing = Arc::clone(&refuses);
    let server = Server::start(move |request| {
        let refusing = *refusing.lock().expect("no panic under this lock");
        let bad = request.line.contains("/picky") && id(&request.json()) == "e-1";
        if bad && refusing {
            answer(422, "", "no such order")
        } else {
            success()
        }
    })
    .await;
    let config = format!(
        "[[webhook]]\nname = \"orders\"\nurls = [\"{url}/picky\", \"{url}/other\"]\n",
        url = server.url()
    );
    let relay = start(dir.path(), &segment.url(), &config).await;
    relay.track(KEY, &ids("e", 0..3)).await;
    let stats = drained(&relay).await;
    assert_eq!(stats.dead_letters.events, 1);
    let asked = |path: &str| {
        let asked = server.asked();
        let of_path = asked.into_iter().filter(|r| r.line.contains(path));
        let of_path = of_path.filter(|r| id(&r.json()) == "e-1");
        of_path.map(|request| request.body).collect::<Vec<_>>()
    };
    assert_eq!(asked("/picky").len(), 1);
    let listed = segspool(&relay.admin, &["dead-letters", "list"]);
    assert!(text(&listed.stdout).contains("orders …icky"), "{listed:?}");
    let lanes = segspool(&relay.admin, &["lanes", "list"]);
    let lanes = text(&lanes.stdout);
    assert!(
        lanes.contains("orders …icky") && lanes.contains("orders …ther"),
        "{lanes}"
    );

    *refuses.lock().expect("no panic under this lock") = false;
    assert_eq!(replay(&relay, "code=refused").await["replayed"], 1);
    let stats = drained(&relay).await;
    assert_eq!(stats.dead_letters.events, 0);
    let picky = asked("/picky");
    assert_eq!((picky.len(), &picky[0]), (2, &picky[1]));
    assert_eq!(asked("/other").len(), 1);
    assert_eq!(segment.tally().events, 3);
    assert_eq!(stats.ingest.accepted_events, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_segment_refused_and_is_replayed_does_not_reach_the_webhooks_twice() {
    let (dir, segment) = (spool(), segment().await);
    segment.answer(Answer::status(400));
    let server = Server::start(|_| success()).await;
    let relay = start(
        dir.path(),
        &segment.url(),
        &webhook("all", &server.url(), ""),
    )
    .await;
    relay.track(KEY, &ids("e", 0..1)).await;
    assert_eq!(drained(&relay).await.dead_letters.events, 1);
    segment.set_rules(Vec::new());
    assert_eq!(replay(&relay, "all=true").await["replayed"], 1);
    drained(&relay).await;
    assert_eq!(segment.times_delivered("e-0"), 1);
    assert_eq!(server.asked().len(), 1);

    // What was never accepted has reached nobody.
    let other_key = "[ingest]\nallowed_write_keys = [\"OTHER123\"]\n".to_owned();
    let all = webhook("all", &server.url(), "");
    reload(&relay, dir.path(), &(other_key + &all), 1).await;
    let late = r#"{"batch":[{"type":"track","event":"E","userId":"u","messageId":"e-1","writeKey":"KEY12345"}]}"#;
    assert_eq!(relay.post("/v1/batch", KEY, late).await.status(), 400);
    relay.until(|stats| stats.dead_letters.events == 1).await;
    reload(&relay, dir.path(), &all, 2).await;
    assert_eq!(replay(&relay, "all=true").await["replayed"], 1);
    drained(&relay).await;
    assert_eq!(segment.times_delivered("e-1"), 1);
    let asked: Vec<_> = server.asked().iter().map(|r| id(&r.json())).collect();
    assert_eq!(asked, ["e-0", "e-1"]);
}

/// Has the daemon take up other settings, for the `nth` time.
async fn reload(relay: &Relay, dir: &Path, settings: &str, nth: usize) {
    write(dir, settings);
    relay.signal(Signal::HUP);
    within(async {
        while relay.log().matches("took up the configuration").count() < nth {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lane_of_a_webhook_that_is_gone_is_held_until_it_is_back() {
    let (dir, segment) = (spool(), segment().await);
    let server = Server::start(|request| match request.line.contains("/new") {
        true => success(),
        false => answer(503, "", ""),
    })
    .await;
    let hook = |path: &str| webhook("orders", &format!("{}{path}", server.url()), "");
    let relay = start(dir.path(), &segment.url(), &hook("/old")).await;
    relay.track(KEY, &ids("e", 0..5)).await;
    let waits = |stats: &Snapshot| hooks(stats).iter().any(|lane| lane.attempt > 0);
    relay.until(waits).await;
    write(dir.path(), &hook("/new"));
    relay.signal(Signal::HUP);
    let stats = relay
        .until(|stats| {
            hooks(stats)
                .iter()
                .any(|lane| lane.state == LaneState::Held)
        })
        .await;
    let lane = hooks(&stats)[0];
    let reason = "its webhook is not configured any more";
    assert_eq!((lane.reason.as_deref(), lane.events), (Some(reason), 5));
    relay.track(KEY, &ids("f", 0..5)).await;
    within(segment.until(|tally| tally.distinct_events == 10)).await;
    let at_new =
        server.until(|asked| asked.iter().filter(|r| r.line.contains("/new")).count() == 5);
    at_new.await;
    let stats = relay.until(|stats| stats.queue.events == 5).await;
    assert_eq!(stats.dead_letters.events, 0);
}

/// A service may say 500 where it misses a header: its lane once waited to the end of its backoff after the header was set.
#[tokio::test(flavor = "multi_thread")]
async fn a_url_in_trouble_is_tried_again_at_once_when_its_webhook_has_changed() {
    let (dir, segment) = (spool(), segment().await);
    let server = Server::start(|request| match request.header("x-team") {
        Some("growth") => success(),
        _ => answer(500, "", ""),
    })
    .await;
    let hook = |more: &str| webhook("orders", &server.url(), more);
    let patience = [("RETRY__BASE", "1h"), ("RETRY__MAX", "1h")];
    let relay = start_with(dir.path(), &segment.url(), &hook(""), &patience).await;
    relay.track(KEY, &ids("e", 0..2)).await;
    let backs_off = |stats: &Snapshot| {
        let mut lanes = hooks(stats).into_iter();
        lanes.any(|lane| lane.state == LaneState::BackingOff)
    };
    relay.until(backs_off).await;
    let other = webhook("other", "http://127.0.0.1:9/", "types = [\"delete\"]");
    reload(&relay, dir.path(), &(other + &hook("")), 1).await;
    assert!(backs_off(&relay.stats().await));
    let mended = hook("headers = { X-Team = \"growth\" }");
    reload(&relay, dir.path(), &mended, 2).await;
    drained(&relay).await;
    assert_eq!(server.asked().len(), 4, "each once in vain, and once more");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_older_than_a_webhooks_max_age_becomes_a_dead_letter() {
    let (dir, segment) = (spool(), segment().await);
    let server = Server::start(|_| answer(503, "", "")).await;
    let config = webhook("brief", &server.url(), "max_age = \"300ms\"")
        + &webhook(
            "patient",
            &format!("{}/patient", server.url()),
            "max_age = \"\"",
        );
    let relay = start(dir.path(), &segment.url(), &config).await;
    relay.track(KEY, &ids("e", 0..4)).await;
    let stats = relay.until(|stats| stats.dead_letters.events == 4).await;
    assert_eq!(stats.queue.events, 4, "the patient one's");
    assert_eq!(segment.tally().distinct_events, 4);
}

async fn receive(relay: &Relay, signature: Option<&str>, body: &str) -> (u16, Value) {
    let request = client()
        .post(format!("{}/v1/webhook", relay.ingest))
        .body(body.to_owned());
    let request = match signature {
        Some(signature) => request.header("X-Signature", signature),
        None => request,
    };
    let reply = request.send().await.expect("an answer");
    let status = reply.status().as_u16();
    let body = reply.bytes().await.expect("a body");
    (status, serde_json::from_slice(&body).expect("JSON"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_segments_webhooks_post_goes_to_those_that_want_it_and_not_back_to_segment() {
    let (dir, segment) = (spool(), segment().await);
    let server = Server::start(|_| success()).await;
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "s3cret").expect("written");
    let config = format!(
        "[receiver]\nenabled = true\nsecret_file = \"{}\"\nbatches = true\n",
        secret.display()
    ) + &webhook("all", &format!("{}/all", server.url()), "")
        + &webhook(
            "tracks",
            &format!("{}/tracks", server.url()),
            "types = [\"track\"]",
        );
    let relay = start(dir.path(), &segment.url(), &config).await;
    let sign = |body: &str| Some(signature("s3cret", body.as_bytes()));

    let lone = r#" {"type": "track", "event":"E", "userId":"u", "messageId":"m-1", "receivedAt":"then", "sentAt":"now"}"#;
    let delete = r#"{"type":"delete","userId":"u","messageId":"m-2"}"#;
    let first = r#"{"type":"track","userId":"u", "event":"E","messageId":"m-3"}"#;
    let several = format!("[ {first} , {{\"type\":\"strange\",\"messageId\":\"m-4\"}}, 7]");
    let large = format!("{{\"type\":\"track\",\"x\":\"{}\"}}", "x".repeat(70_000));
    for (signature, body, status, expected) in [
        (sign(lone), lone, 200, r#"{"success":true}"#),
        (sign(delete), delete, 200, r#"{"success":true}"#),
        (
            sign(first),
            &*several,
            200,
            r#"{"success":true,"accepted":2,"rejected":[{"index":2,"code":"not_an_object"}]}"#,
        ),
        (
            sign(&several),
            &*several,
            401,
            r#"{"code":"signature_not_valid"}"#,
        ),
        (None, lone, 401, r#"{"code":"signature_not_valid"}"#),
        (
            sign(lone.trim()),
            lone,
            401,
            r#"{"code":"signature_not_valid"}"#,
        ),
        (
            Some("é".into()),
            lone,
            401,
            r#"{"code":"signature_not_valid"}"#,
        ),
        (sign("[]"), "[]", 400, r#"{"code":"empty_batch"}"#),
        (sign("7"), "7", 400, r#"{"code":"not_an_object"}"#),
        (sign("{"), "{", 400, r#"{"code":"invalid_json"}"#),
        (sign(&large), &*large, 400, r#"{"code":"event_too_large"}"#),
    ] {
        let (found, reply) = receive(&relay, signature.as_deref(), body).await;
        assert_eq!(found, status, "{body:.80}: {reply}");
        let expected: Value = serde_json::from_str(expected).expect("JSON");
        for (key, value) in expected.as_object().expect("an object") {
            let found = match key.as_str() {
                "rejected" => {
                    let mut rejected = reply[key].clone();
                    rejected[0]
                        .as_object_mut()
                        .expect("an item")
                        .remove("message");
                    rejected
                }
                _ => reply[key].clone(),
            };
            assert_eq!(found, *value, "{body:.80}");
        }
    }
    let stats = drained(&relay).await;
    assert_eq!(segment.tally().events, 0);
    assert_eq!(stats.ingest.received_events, 4);
    assert_eq!(stats.ingest.accepted_events, 0);
    assert_eq!(stats.dead_letters.events, 0);
    let asked = server.asked();
    let at = |path: &str| {
        let of_path = asked.iter().filter(|request| request.line.contains(path));
        of_path.map(|r| id(&r.json())).collect::<BTreeSet<_>>()
    };
    let set = |ids: &[&str]| {
        ids.iter()
            .map(|id| (*id).to_owned())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(at("/all"), set(&["m-1", "m-2", "m-3", "m-4"]));
    assert_eq!(at("/tracks"), set(&["m-1", "m-3"]));
    let whole = asked.iter().find(|r| id(&r.json()) == "m-1");
    let whole = whole.expect("it was posted");
    assert_eq!(String::from_utf8_lossy(&whole.body), lone.trim());
}

#[tokio::test(flavor = "multi_thread")]
async fn several_events_of_which_one_is_signed_are_taken_only_where_the_operator_says_so() {
    let (dir, segment) = (spool(), segment().await);
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "s3cret").expect("written");
    let config = |more: &str| {
        let file = secret.display();
        format!("[receiver]\nenabled = true\nsecret_file = \"{file}\"\n{more}\n")
    };
    let relay = start(dir.path(), &segment.url(), &config("")).await;
    let first = r#"{"type":"track","event":"E","userId":"u"}"#;
    let sign = signature("s3cret", first.as_bytes());
    let (alone, several) = (format!("[{first}]"), format!("[{first},{first}]"));
    assert_eq!(receive(&relay, Some(&sign), &alone).await.0, 200);
    let (status, reply) = receive(&relay, Some(&sign), &several).await;
    assert_eq!((status, &reply["code"]), (401, &"batch_not_signed".into()));
    assert_eq!(relay.stats().await.ingest.received_events, 1);
    reload(&relay, dir.path(), &config("batches = true"), 1).await;
    assert_eq!(receive(&relay, Some(&sign), &several).await.0, 200);
    assert_eq!(relay.stats().await.ingest.received_events, 3);
}

/// An event went round for ever where a webhook posted to the receiver, and each time was durable.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_webhook_posts_to_the_receiver_is_refused_and_a_dead_letter() {
    let (dir, segment) = (spool(), segment().await);
    let receiver = "[receiver]\nenabled = true\n";
    let relay = start(dir.path(), &segment.url(), receiver).await;
    // It listens on a port that the configuration cannot know.
    let own = webhook("own", &format!("{}/v1/webhook", relay.ingest), "");
    reload(&relay, dir.path(), &format!("{receiver}{own}"), 1).await;
    relay.track(KEY, &ids("e", 0..3)).await;
    let stats = drained(&relay).await;
    assert_eq!(
        (stats.dead_letters.events, stats.ingest.received_events),
        (3, 0)
    );
    assert_eq!(hooks(&stats)[0].last_status, Some(400));
    let letters = segspool(&relay.admin, &["dead-letters", "export"]);
    assert!(
        text(&letters.stdout).contains("loop_detected"),
        "{letters:?}"
    );
    assert_eq!(segment.tally().events, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_receiver_is_off_unless_it_is_turned_on_and_is_for_posts_alone() {
    let (dir, segment) = (spool(), segment().await);
    let event = r#"{"type":"track","userId":"u","event":"E"}"#;
    let relay = start(dir.path(), &segment.url(), "").await;
    assert_eq!(receive(&relay, None, event).await.0, 404);
    write(dir.path(), "[receiver]\nenabled = true\n");
    relay.signal(Signal::HUP);
    within(async {
        while receive(&relay, None, event).await.0 != 200 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    for method in [reqwest::Method::GET, reqwest::Method::OPTIONS] {
        let url = format!("{}/v1/webhook", relay.ingest);
        let reply = client().request(method, url).send().await;
        assert_eq!(reply.expect("an answer").status(), 405);
    }
    assert_eq!(segment.tally().events, 0);
}
