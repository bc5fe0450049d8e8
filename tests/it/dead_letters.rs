//! The dead letters: seen, replayed and purged, over the admin listener and by the command line, also across a crash.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use reqwest::{Method, StatusCode};
use segspool::stand_in::{Answer, Match, Rule, StandIn};
use segspool::stats::LaneSnapshot;
use serde_json::{Value, json};

use crate::support::{Relay, batch, client, ids, segment, spool, within};

const KEY: &str = "KEY12345";
const POISON: &str = "poison";

/// Events with this in them are refused for good.
fn refusing(text: &str) -> Rule {
    let such = Match {
        contains: Some(text.into()),
        ..Match::default()
    };
    Rule::when(such, Answer::status(400))
}

async fn start(rules: Vec<Rule>, settings: &[(&str, &str)]) -> (tempfile::TempDir, StandIn, Relay) {
    let dir = spool();
    let segment = segment().await;
    segment.set_rules(rules);
    let relay = Relay::start(dir.path(), &segment.url(), settings).await;
    (dir, segment, relay)
}

async fn ask(relay: &Relay, method: Method, path: &str) -> (StatusCode, Value) {
    let url = format!("{}{path}", relay.admin);
    let reply = client().request(method, url).send().await;
    let reply = reply.expect("an answer");
    let status = reply.status();
    let body = reply.bytes().await.expect("a body");
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

async fn get(relay: &Relay, path: &str) -> Value {
    let (status, body) = ask(relay, Method::GET, path).await;
    assert_eq!(status, 200, "{path}: {body}");
    body
}

pub(crate) async fn replay(relay: &Relay, query: &str) -> Value {
    let (status, body) = ask(
        relay,
        Method::POST,
        &format!("/dead-letters/replay?{query}"),
    )
    .await;
    assert_eq!(status, 200, "{query}: {body}");
    body
}

fn list_ids(list: &Value) -> Vec<String> {
    let letters = list["letters"].as_array().expect("letters");
    let ids = letters
        .iter()
        .map(|l| l["id"].as_str().expect("an id").to_owned());
    ids.collect()
}

/// Posts poisoned events and waits until all of them are dead letters.
async fn bury(relay: &Relay, poisoned: &[String]) {
    let before = relay.stats().await.dead_letters.events;
    relay.track(KEY, poisoned).await;
    let buried = before + poisoned.len() as u64;
    relay
        .until(|stats| stats.dead_letters.events == buried && stats.queue.events == 0)
        .await;
}

/// Posts `n` events that are rejected at the door, and waits until they are kept.
async fn reject(relay: &Relay, n: usize, padding: usize) {
    let before = relay.stats().await.dead_letters.events;
    let item = |n| json!({"type": "track", "event": "E", "messageId": format!("bad-{n}"), "properties": {"p": "x".repeat(padding)}});
    let items: Vec<_> = (0..n).map(item).collect();
    let body = json!({ "batch": items }).to_string();
    assert_eq!(
        relay.post("/v1/batch", "OTHERKEY", body).await.status(),
        400
    );
    relay
        .until(|stats| stats.dead_letters.events == before + n as u64)
        .await;
}

fn conserved(lane: &LaneSnapshot) {
    let law = lane.conservation();
    assert!(law.holds(), "{law:?} of {lane:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_listed_by_pages_and_filters_and_shown_with_their_events() {
    let (_dir, _segment, relay) = start(vec![refusing(POISON)], &[]).await;
    bury(&relay, &ids(POISON, 0..5)).await;
    reject(&relay, 3, 0).await;

    let all = get(&relay, "/dead-letters").await;
    assert_eq!((&all["total"], &all["next"]), (&json!(8), &Value::Null));
    let first = &all["letters"][0];
    assert_eq!(
        (
            &first["key"],
            &first["code"],
            &first["status"],
            &first["attempts"].as_u64().is_some_and(|n| n > 0)
        ),
        (&json!("…2345"), &json!("refused"), &json!(400), &true)
    );
    assert!(first.get("event").is_none() && !all.to_string().contains(KEY));
    let groups = all["groups"].as_array().expect("groups");
    let counts: BTreeSet<_> = groups
        .iter()
        .map(|g| {
            (
                g["code"].as_str(),
                g["status"].as_u64(),
                g["events"].as_u64(),
            )
        })
        .collect();
    let expected = [
        (Some("no_user_anon_id"), None, Some(3)),
        (Some("refused"), Some(400), Some(5)),
    ];
    assert_eq!(counts, expected.into());

    let mut paged = Vec::new();
    let mut path = "/dead-letters?limit=3".to_owned();
    loop {
        let page = get(&relay, &path).await;
        paged.extend(list_ids(&page));
        let Some(next) = page["next"].as_str() else {
            break;
        };
        path = format!("/dead-letters?limit=3&after={next}");
    }
    assert_eq!(paged, list_ids(&all));

    let lane = first["lane"].as_str().expect("a lane");
    let buried = first["buried_at"].as_str().expect("a time");
    for (query, events) in [
        (format!("lane={lane}"), 5),
        ("lane=0000000000000000".into(), 0),
        ("code=refused".into(), 5),
        ("code=no_user_anon_id".into(), 3),
        ("status=400".into(), 5),
        ("status=413".into(), 0),
        (format!("since={buried}"), 8),
        (format!("until={buried}"), 0),
        ("since=2999-01-01T00:00:00Z".into(), 0),
        (format!("id={}", paged[2]), 1),
        (format!("lane={lane}&code=no_user_anon_id"), 0),
    ] {
        let list = get(&relay, &format!("/dead-letters?{query}")).await;
        assert_eq!(list_ids(&list).len(), events, "{query}");
    }

    let shown = get(&relay, &format!("/dead-letters/{}", paged[0])).await;
    assert_eq!(
        shown["event"]["properties"]["n"],
        shown["event"]["messageId"]
    );
    assert!(!shown.to_string().contains(KEY));
    assert!(!relay.log().contains("poison-0"), "an event is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_malformed_is_400_what_is_not_there_404_and_nothing_changes() {
    let (_dir, segment, relay) = start(vec![refusing(POISON)], &[]).await;
    bury(&relay, &ids(POISON, 0..3)).await;
    segment.set_rules(Vec::new());
    let absent = "65".repeat(21);
    let by_id = format!("?id={absent}");
    let (list, replay) = ("/dead-letters", "/dead-letters/replay");
    for (method, path, query, expected) in [
        (Method::GET, list, "?status=many", 400),
        (Method::GET, list, "?limit=1001", 400),
        (Method::GET, list, "?colour=red", 400),
        (Method::GET, "/dead-letters/12", "", 400),
        (Method::GET, &format!("/dead-letters/{absent}"), "", 404),
        (Method::GET, "/dead-letters/export", "?since=never", 400),
        (Method::POST, replay, "", 400),
        (Method::POST, replay, "?lane=nonsense", 400),
        (Method::POST, replay, &by_id, 404),
        (Method::DELETE, list, "", 400),
        (Method::DELETE, list, "?all=false", 400),
        (Method::DELETE, list, "?stauts=400", 400),
        (Method::DELETE, list, &by_id, 404),
        (Method::GET, replay, "?all=true", 405),
        (Method::POST, list, "?all=true", 405),
    ] {
        let (status, body) = ask(&relay, method.clone(), &format!("{path}{query}")).await;
        assert_eq!(status, expected, "{method} {path}{query}: {body}");
        assert!(
            body["message"].as_str().is_some_and(|m| !m.is_empty()),
            "{body}"
        );
    }
    let (status, body) = ask(&relay, Method::POST, "/dead-letters/replay?code=other").await;
    assert_eq!((status.as_u16(), &body["replayed"]), (200, &json!(0)));
    let stats = relay.stats().await;
    assert_eq!((stats.dead_letters.events, stats.queue.events), (3, 0));
    assert_eq!(segment.tally().events, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_thousands_is_whole_takes_no_memory_and_its_disk_comes_back_after_a_purge() {
    let (dir, _segment, relay) = start(Vec::new(), &[]).await;
    const REQUESTS: usize = 50;
    for _ in 0..REQUESTS {
        reject(&relay, 100, 6_000).await;
    }
    let before = relay.memory_bytes("VmHWM");
    let url = format!("{}/dead-letters/export", relay.admin);
    let export = client().get(url).send().await.expect("an answer");
    assert_eq!(export.headers()["content-type"], "application/x-ndjson");
    let export = export.text().await.expect("a whole body");
    let lines: Vec<Value> = export
        .lines()
        .map(|line| serde_json::from_str(line).expect("a letter"))
        .collect();
    let distinct: BTreeSet<_> = lines.iter().map(|l| l["id"].to_string()).collect();
    assert_eq!(
        (lines.len(), distinct.len()),
        (100 * REQUESTS, 100 * REQUESTS)
    );
    assert!(lines.iter().all(|l| l["event"]["event"] == "E"));
    let grown = relay.memory_bytes("VmHWM") - before;
    assert!(
        grown < 16 << 20,
        "{grown} bytes for an export of {}",
        export.len()
    );

    let store = dir.path().join("dead-letters");
    let full = disk_bytes(&store);
    assert!(full > 10 << 20, "{full}");
    let (status, body) = ask(&relay, Method::DELETE, "/dead-letters?all=true").await;
    assert_eq!(
        (status.as_u16(), &body),
        (200, &json!({"purged": 100 * REQUESTS}))
    );
    within(async {
        // The reply does not wait for it.
        while disk_bytes(&store) > 2 << 20 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    reject(&relay, 5, 0).await;
    assert_eq!(get(&relay, "/dead-letters").await["total"], 5);
}

fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(dir) else {
        return u64::MAX;
    };
    let sizes = entries
        .flatten()
        .map(|e| e.metadata().map_or(0, |m| m.blocks() * 512));
    sizes.sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn replayed_letters_arrive_once_with_their_original_message_id() {
    let (_dir, segment, relay) = start(vec![refusing(POISON)], &[]).await;
    let poisoned = ids(POISON, 0..20);
    bury(&relay, &poisoned).await;
    reject(&relay, 2, 0).await;
    segment.set_rules(Vec::new());

    let letters = list_ids(&get(&relay, "/dead-letters?code=refused").await);
    let one = replay(&relay, &format!("id={}", letters[0])).await;
    assert_eq!(
        (&one["replayed"], &one["failed_events"]),
        (&json!(1), &json!(0))
    );
    within(segment.until(|tally| tally.distinct_events == 1)).await;
    let (status, _) = ask(
        &relay,
        Method::POST,
        &format!("/dead-letters/replay?id={}", letters[0]),
    )
    .await;
    assert_eq!(status, 404, "it is not there any more");

    assert_eq!(replay(&relay, "status=400").await["replayed"], 19);
    within(segment.until(|tally| tally.distinct_events == 20)).await;
    let rest = replay(&relay, "all=true").await;
    assert_eq!(
        (&rest["replayed"], &rest["failed_events"]),
        (&json!(0), &json!(2))
    );
    assert_eq!(rest["failed"][0]["code"], "no_user_anon_id");

    let stats = relay.until(|stats| stats.queue.events == 0).await;
    assert_eq!(stats.dead_letters.events, 2, "what is rejected again stays");
    for id in &poisoned {
        assert_eq!(segment.times_delivered(id), 1, "{id}");
    }
    let lane = &stats
        .lanes
        .iter()
        .find(|l| l.delivered_events > 0)
        .expect("a lane");
    assert_eq!((lane.accepted_events, lane.dead_letter_events), (40, 20));
    conserved(lane);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_rejected_for_want_of_a_key_is_replayed_once_there_is_one() {
    let (dir, segment) = (spool(), segment().await);
    let mut relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let body = r#"{"userId":"u","event":"Keyless","messageId":"keyless"}"#;
    assert_eq!(relay.post("/v1/track", "", body).await.status(), 400);
    relay.until(|stats| stats.dead_letters.events == 1).await;
    let rejected = get(&relay, "/dead-letters").await["letters"][0].clone();
    assert_eq!(
        (&rejected["code"], &rejected["call"]),
        (&json!("write_key_not_defined"), &json!("track"))
    );
    assert_eq!(replay(&relay, "all=true").await["failed_events"], 1);
    assert!(relay.stop().await.success());

    let relay = Relay::start(dir.path(), &segment.url(), &[("INGEST__WRITE_KEY", KEY)]).await;
    assert_eq!(replay(&relay, "all=true").await["replayed"], 1);
    within(segment.until(|tally| tally.distinct_events == 1)).await;
    let event: Value = serde_json::from_str(segment.events()[0].event.get()).expect("an event");
    assert_eq!(
        (&event["type"], &event["messageId"]),
        (&json!("track"), &json!("keyless"))
    );
    assert_eq!(
        event["timestamp"], rejected["accepted_at"],
        "it happened when it was first sent"
    );
    assert_eq!(relay.stats().await.dead_letters.events, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_again_after_a_replay_is_a_dead_letter_again() {
    let (_dir, segment, relay) = start(vec![refusing(POISON)], &[]).await;
    bury(&relay, &ids(POISON, 0..10)).await;
    let before = list_ids(&get(&relay, "/dead-letters").await);
    assert_eq!(replay(&relay, "all=true").await["replayed"], 10);
    let stats = relay
        .until(|stats| stats.dead_letters.events == 10 && stats.queue.events == 0)
        .await;
    conserved(&stats.lanes[0]);
    let after = list_ids(&get(&relay, "/dead-letters").await);
    assert!(
        before.iter().all(|id| !after.contains(id)),
        "they are other letters"
    );
    assert_eq!(segment.tally().events, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_and_a_purge_outlive_a_restart() {
    let (dir, segment, mut relay) = start(vec![refusing(POISON)], &[]).await;
    bury(&relay, &ids(POISON, 0..6)).await;
    reject(&relay, 4, 0).await;
    let (status, body) = ask(&relay, Method::DELETE, "/dead-letters?code=no_user_anon_id").await;
    assert_eq!((status.as_u16(), &body["purged"]), (200, &json!(4)));
    let before = get(&relay, "/dead-letters").await;
    assert!(relay.stop().await.success());
    segment.set_rules(Vec::new());
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    assert_eq!(get(&relay, "/dead-letters").await, before);
    assert_eq!(before["total"], 6);
    assert_eq!(segment.tally().events, 0);
}

/// A lane whose cursor cannot move, since its first event hangs at Segment, and behind it a poisoned one that is buried.
async fn pinned_cursor() -> (tempfile::TempDir, StandIn, Relay) {
    let hang = Match {
        contains: Some("hang".into()),
        ..Match::default()
    };
    let rules = vec![Rule::when(hang, Answer::Hang), refusing(POISON)];
    let (dir, segment, relay) = start(rules, &[("SEGMENT__TIMEOUT", "60s")]).await;
    relay.track(KEY, &ids("good", 0..1)).await;
    within(segment.until(|tally| tally.distinct_events == 1)).await;
    relay.until(|stats| stats.queue.events == 0).await;
    relay.track(KEY, &ids("hang", 0..1)).await;
    relay
        .until(|stats| stats.lanes[0].in_flight_batches == 1)
        .await;
    relay.track(KEY, &ids(POISON, 0..1)).await;
    relay
        .until(|stats| stats.dead_letters.events == 1 && stats.queue.events == 1)
        .await;
    (dir, segment, relay)
}

/// The cursor was saved a moment after the burial, or, as here, cannot pass it: the event came from its lane once more, was sent
/// and buried again.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_an_event_is_in_its_lane_or_a_dead_letter_and_never_both() {
    let (dir, segment, mut relay) = pinned_cursor().await;
    relay.kill();
    // Else the call that hangs may still be answered, and count.
    within(segment.until(|tally| tally.hanging_batches == 0)).await;
    segment.set_rules(Vec::new());
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let stats = relay.until(|stats| stats.queue.events == 0).await;
    assert_eq!(segment.times_delivered("hang-0"), 1);
    assert_eq!(segment.times_delivered("poison-0"), 0, "it was sent again");
    assert_eq!(stats.dead_letters.events, 1);
    let lane = &stats.lanes[0];
    // Whether that it left its lane was saved before the crash is a matter of a tenth of a second: if not, it is found buried when
    // it is read. The good one before them may come a second time likewise.
    assert!(lane.dead_letter_events <= 1, "{lane:?}");
    assert_eq!(
        lane.delivered_events + lane.dead_letter_events,
        lane.recovered_events
    );
    conserved(lane);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_purge_and_a_crash_nothing_comes_back_from_the_lane() {
    let (dir, segment, mut relay) = pinned_cursor().await;
    let (status, body) = ask(&relay, Method::DELETE, "/dead-letters?all=true").await;
    assert_eq!((status.as_u16(), &body["purged"]), (200, &json!(1)));
    relay.kill();
    // Else the call that hangs may still be answered, and count.
    within(segment.until(|tally| tally.hanging_batches == 0)).await;
    segment.set_rules(Vec::new());
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let stats = relay.until(|stats| stats.queue.events == 0).await;
    assert_eq!(segment.times_delivered("hang-0"), 1);
    assert_eq!(segment.times_delivered("poison-0"), 0, "it came back");
    assert_eq!(stats.dead_letters.events, 0);
    conserved(&stats.lanes[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_in_a_browser_can_neither_replay_nor_purge() {
    let (_dir, _segment, relay) = start(
        vec![refusing(POISON)],
        &[("INGEST__CORS_ORIGINS", "[\"*\"]")],
    )
    .await;
    bury(&relay, &ids(POISON, 0..1)).await;
    for (method, path) in [
        (Method::POST, "/dead-letters/replay?all=true"),
        (Method::DELETE, "/dead-letters?all=true"),
    ] {
        let request = client().request(method, format!("{}{path}", relay.admin));
        let reply = request.header("Origin", "http://127.0.0.1").send().await;
        assert_eq!(reply.expect("an answer").status(), 403, "{path}");
    }
    assert_eq!(relay.stats().await.dead_letters.events, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_only_its_bearer_sees_anything_but_the_probes_and_the_empty_dashboard() {
    let (dir, segment) = (spool(), segment().await);
    let file = dir.path().join("token");
    std::fs::write(&file, "s3cret-token\n").expect("written");
    let file = file.to_string_lossy().into_owned();
    let relay = Relay::start(
        &dir.path().join("spool"),
        &segment.url(),
        &[("ADMIN__TOKEN_FILE", &file)],
    )
    .await;
    for (path, token, expected) in [
        ("/healthz", None, 200),
        ("/readyz", None, 200),
        ("/", None, 200),
        ("/stats", None, 401),
        ("/stats/stream", None, 401),
        ("/tail", None, 401),
        ("//", None, 401),
        ("/stats", Some("wrong"), 401),
        ("/stats", Some("s3cret-token"), 200),
        ("/lanes", None, 401),
        ("/dead-letters", None, 401),
        ("/dead-letters", Some("s3cret-token"), 200),
        ("/nowhere", None, 401),
    ] {
        let mut request = client().get(format!("{}{path}", relay.admin));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let reply = request.send().await.expect("an answer");
        assert_eq!(reply.status(), expected, "{path} {token:?}");
        if expected == 401 {
            assert_eq!(reply.headers()["www-authenticate"], "Bearer");
        }
    }
    let refused = segspool(&relay.admin, &["dead-letters", "list"]);
    assert_eq!(refused.status.code(), Some(77));
    let admitted = segspool(
        &relay.admin,
        &["dead-letters", "list", "--token-file", &file],
    );
    assert_eq!(text(&admitted.stdout), "none of 0 dead letters\n");
    assert!(!relay.log().contains("s3cret"));
}

/// The command line, with a daemon.
pub(crate) fn segspool(admin: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_segspool"));
    command.args(args).args(["--admin", admin]);
    command.output().expect("the program is there")
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_does_all_that_the_listener_does() {
    let (dir, segment, relay) = start(vec![refusing(POISON)], &[]).await;
    bury(&relay, &ids(POISON, 0..4)).await;
    reject(&relay, 1, 0).await;
    let run = |args: &[&str]| {
        let output = segspool(&relay.admin, &[&["dead-letters"], args].concat());
        let (out, err) = (
            text(&output.stdout).to_owned(),
            text(&output.stderr).to_owned(),
        );
        (output.status.code().expect("it was not killed"), out, err)
    };

    let (code, out, _) = run(&["list", "--limit", "2"]);
    assert_eq!(code, 0);
    assert_eq!(out.lines().count(), 4, "{out}");
    assert!(
        out.contains("refused")
            && out.contains("…2345")
            && out.contains("2 of 5 dead letters; go on with --after "),
        "{out}"
    );
    let (_, out, _) = run(&["list", "--code", "refused", "--json"]);
    let list: Value = serde_json::from_str(&out).expect("JSON");
    let letters = list_ids(&list);
    assert_eq!(letters.len(), 4);

    let (code, out, _) = run(&["show", &letters[0]]);
    let shown: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, &shown["event"]["event"]), (0, &json!("Test")));
    let file = dir
        .path()
        .join("export.ndjson")
        .to_string_lossy()
        .into_owned();
    assert_eq!(run(&["export", "--output", &file]).0, 0);
    let exported = std::fs::read_to_string(&file).expect("a file");
    assert_eq!(exported, run(&["export"]).1);
    assert_eq!(exported.lines().count(), 5);

    for (args, expected, why) in [
        (&["show", "12"][..], 64, "42 hexadecimal digits"),
        (&["show", &"65".repeat(21)], 66, "no such dead letter"),
        (&["list", "--since", "soon"], 64, "`since` is a time"),
        (&["replay"], 64, "or --all"),
        (
            &["replay", "--all", "--code", "refused"],
            64,
            "cannot be used with",
        ),
        (&["purge", "--all"], 64, "--yes"),
        (&["export", "--output", &file], 73, "exists"),
    ] {
        let (code, out, err) = run(args);
        assert_eq!((code, &*out), (expected, ""), "{args:?}: {err}");
        assert!(err.contains(why), "{args:?}: {err}");
    }

    segment.set_rules(Vec::new());
    assert_eq!(
        run(&["replay", "--id", &letters[0]]),
        (0, "replayed 1 dead letter\n".into(), String::new())
    );
    let (code, out, _) = run(&["replay", "--all"]);
    assert_eq!(code, 65);
    assert!(
        out.starts_with("replayed 3 dead letters\nrejected again: 1\n")
            && out.contains("no_user_anon_id: "),
        "{out}"
    );
    within(segment.until(|tally| tally.distinct_events == 4)).await;
    assert_eq!(
        run(&["purge", "--all", "--yes", "--json"]).1,
        "{\n  \"purged\": 1\n}\n"
    );
    assert_eq!(get(&relay, "/dead-letters").await["total"], 0);
}

#[test]
fn without_a_daemon_the_command_line_says_what_to_do() {
    // Nothing listens on a port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("an address");
    let output = segspool(&format!("http://{port}"), &["dead-letters", "list"]);
    assert_eq!(output.status.code(), Some(69));
    assert!(
        text(&output.stderr).contains("segspool serve"),
        "{}",
        text(&output.stderr)
    );
    let output = segspool("127.0.0.1:7347", &["lanes", "list"]);
    assert_eq!(output.status.code(), Some(64));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_into_a_full_queue_stops_says_so_and_loses_nothing() {
    let (dir, segment, mut relay) = start(vec![refusing(POISON)], &[]).await;
    let poisoned = ids(POISON, 0..3);
    bury(&relay, &poisoned).await;
    assert!(relay.stop().await.success());
    segment.set_rules(Vec::new());
    // No file system has as much.
    let full = [("QUEUE__MIN_FREE_DISK", "1000 TiB")];
    let mut relay = Relay::start(dir.path(), &segment.url(), &full).await;
    let (status, body) = ask(&relay, Method::POST, "/dead-letters/replay?all=true").await;
    assert_eq!(
        (status.as_u16(), &body["code"], &body["replayed"]),
        (429, &json!("queue_full"), &json!(0))
    );
    let output = segspool(&relay.admin, &["dead-letters", "replay", "--all"]);
    assert_eq!(output.status.code(), Some(75));
    assert_eq!(relay.stats().await.dead_letters.events, 3);
    assert!(relay.stop().await.success());
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    assert_eq!(replay(&relay, "all=true").await["replayed"], 3);
    within(segment.until(|tally| tally.distinct_events == 3)).await;
    assert_eq!(
        relay
            .post("/v1/batch", KEY, batch(&ids("more", 0..1)))
            .await
            .status(),
        200
    );
}
