//! What monitoring reads: the metrics in both formats, the alerts and the dashboard made of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use segspool::stand_in::{Answer, Match, Rule};
use segspool::stats::LaneState;
use serde_json::json;

use crate::support::{Relay, client, ids, segment, skip, spool};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics in both formats of a daemon that has delivered, failed, been refused and rejected, and is quiet now.
async fn scraped() -> Scraped {
    let (dir, segment) = (spool(), segment().await);
    let answers = [
        ("KEY-REFUSED-2222", Answer::status(400)),
        ("KEY-HELD-3333", Answer::status(401)),
    ];
    let rules = answers.map(|(key, answer)| {
        let lane = Match {
            write_key: Some(key.into()),
            ..Match::default()
        };
        Rule::when(lane, answer)
    });
    let passing = Rule::always(Answer::status(503)).times(1);
    segment.set_rules(rules.into_iter().chain([passing]).collect());
    let settings = [("RETRY__HOLD_PROBE", "1h")];
    let relay = Relay::start(dir.path(), &segment.url(), &settings).await;
    relay.track("KEY-FLOWS-1111", &ids("flows", 0..30)).await;
    relay.track("KEY-REFUSED-2222", &ids("refused", 0..1)).await;
    relay.track("KEY-HELD-3333", &ids("held", 0..2)).await;
    let nobody = json!({"type": "track", "event": "hush-hush"}).to_string();
    relay.post("/v1/track", "KEY-FLOWS-1111", nobody).await;
    relay
        .until(|stats| {
            let held = stats.lanes.iter().any(|lane| lane.state == LaneState::Held);
            let idle = stats.lanes.iter().filter(|l| l.state == LaneState::Idle);
            let settled = (stats.delivery.events, stats.dead_letters.events) == (30, 2);
            held && settled && idle.count() == 2
        })
        .await;
    Scraped {
        text: scrape(&relay, "*/*", TEXT).await,
        openmetrics: scrape(&relay, "application/openmetrics-text", OPENMETRICS).await,
    }
}

struct Scraped {
    text: String,
    openmetrics: String,
}

async fn scrape(relay: &Relay, accept: &str, content_type: &str) -> String {
    let request = client().get(format!("{}/metrics", relay.admin));
    let reply = request.header("accept", accept).send().await;
    let reply = reply.expect("an answer");
    assert_eq!(reply.headers()["content-type"], content_type);
    String::from_utf8(reply.bytes().await.expect("a body").into()).expect("text")
}

/// The value of each series; both formats write one a line.
fn series(shown: &str) -> BTreeMap<String, f64> {
    let samples = shown.lines().filter(|line| !line.starts_with('#'));
    let samples = samples.map(|line| {
        let (series, value) = line.rsplit_once(' ').expect("a sample");
        let value = value.parse().expect("a number");
        (in_order(series), value)
    });
    samples.collect()
}

/// A series with its labels in the order of their names, and the bounds of buckets in one spelling.
fn in_order(series: &str) -> String {
    let Some((name, labels)) = series.split_once('{') else {
        return series.to_owned();
    };
    let labels = labels.strip_suffix('}').expect("an end");
    let mut labels: Vec<_> = labels.split(',').collect();
    labels.sort_unstable();
    let labels = labels.into_iter().map(|label| match label {
        bound if bound.starts_with("le=") => bound.replace(".0\"", "\""),
        other => other.to_owned(),
    });
    format!("{name}{{{}}}", labels.collect::<Vec<_>>().join(","))
}

#[tokio::test(flavor = "multi_thread")]
async fn both_formats_tell_what_happened_and_nothing_secret() {
    let Scraped { text, openmetrics } = scraped().await;
    let (by_text, by_openmetrics) = (series(&text), series(&openmetrics));
    let names = |series: &BTreeMap<String, f64>| series.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&by_text), names(&by_openmetrics));
    for (name, expected) in [
        ("segspool_ingest_events_total", 33.0),
        ("segspool_ingest_rejected_events_total", 1.0),
        ("segspool_ingest_accepting", 1.0),
        ("segspool_queue_events", 2.0),
        ("segspool_queue_disk_full", 0.0),
        ("segspool_dead_letters", 2.0),
        ("segspool_lanes{state=\"held\"}", 1.0),
        ("segspool_lanes{state=\"idle\"}", 2.0),
        ("segspool_lanes{state=\"paused\"}", 0.0),
        (
            "segspool_sync_duration_seconds_bucket{le=\"+Inf\"}",
            by_text["segspool_sync_duration_seconds_count"],
        ),
        // One was put off, one taken, one refused, one held.
        (
            "segspool_delivery_duration_seconds_count{destination=\"segment\"}",
            4.0,
        ),
    ] {
        assert_eq!(by_text[name], expected, "{name}");
        assert_eq!(by_openmetrics[name], expected, "{name}");
    }
    let sum = |name: &str| -> f64 {
        let lanes = by_text
            .iter()
            .filter(|(series, _)| series.starts_with(name));
        lanes.map(|(_, value)| value).sum()
    };
    assert_eq!(sum("segspool_delivery_events_total{destination="), 30.0);
    assert_eq!(sum("segspool_delivery_retries_total{destination="), 1.0);
    assert_eq!(
        sum("segspool_delivery_refused_events_total{destination="),
        1.0
    );
    assert_eq!(
        sum("segspool_lane_state{destination="),
        3.0,
        "one state a lane"
    );
    assert!(by_text["segspool_sync_duration_seconds_count"] >= 3.0);

    assert!(openmetrics.ends_with("\n# EOF\n"));
    assert!(openmetrics.contains("# TYPE segspool_ingest_events counter\n"));
    assert!(openmetrics.contains("# UNIT segspool_sync_duration_seconds seconds\n"));
    assert!(text.contains("# TYPE segspool_ingest_events_total counter\n"));
    assert!(text.contains("key=\"…1111\""));
    for secret in ["KEY-", "FLOWS", "hush"] {
        assert!(!text.contains(secret) && !openmetrics.contains(secret));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_finds_nothing_wrong_with_the_metrics() {
    let text = scraped().await.text;
    let Some(output) = promtool(&["check", "metrics"], &text) else {
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
    // It would say so if there were.
    for broken in [
        text.replace("_total", ""),
        text.replace("# TYPE segspool_lanes gauge", "# TYPE segspool_lanes gouge"),
        text.replace("# HELP", "# NO HELP"),
    ] {
        let output = promtool(&["check", "metrics"], &broken).expect("it was there");
        assert!(!output.status.success());
    }
}

#[test]
fn the_alerts_are_sound_and_do_what_their_tests_say() {
    let rules = packaging().join("prometheus/segspool.rules.yml");
    let tests = packaging().join("prometheus/segspool.rules.test.yml");
    for (arguments, file) in [(["check", "rules"], &rules), (["test", "rules"], &tests)] {
        let file = file.to_str().expect("text");
        let Some(output) = promtool(&[&arguments[..], &[file]].concat(), "") else {
            return;
        };
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(output.status.success(), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_and_dashboard_name_only_metrics_that_there_are() {
    let text = scraped().await.text;
    let shown: BTreeSet<_> = series(&text).into_keys().collect();
    let shown: BTreeSet<_> = shown.iter().map(|s| s.split('{').next()).collect();
    for (file, at_least) in [
        ("prometheus/segspool.rules.yml", 6),
        ("prometheus/segspool.rules.test.yml", 6),
        ("grafana/segspool.json", 15),
    ] {
        let used = fs::read_to_string(packaging().join(file)).expect(file);
        let words = used.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let used: BTreeSet<_> = words.filter(|word| word.starts_with("segspool_")).collect();
        assert!(used.len() >= at_least, "{file}: {used:?}");
        for metric in used {
            assert!(shown.contains(&Some(metric)), "{file}: {metric}");
        }
    }
}

#[test]
fn the_dashboard_is_one_that_grafana_reads() {
    let file = packaging().join("grafana/segspool.json");
    let dashboard = fs::read_to_string(file).expect("the dashboard");
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "an id of its own for each");
    for panel in panels {
        let targets = panel["targets"].as_array().expect("targets");
        assert!(!targets.is_empty(), "{}", panel["title"]);
        let place = |of: &str| panel["gridPos"][of].as_u64().expect("a number");
        assert!(place("x") + place("w") <= 24, "{}", panel["title"]);
    }
}

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging")
}

/// Has Prometheus' own tool check something; none where it is not installed, which is said.
fn promtool(arguments: &[&str], input: &str) -> Option<Output> {
    let spawned = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = spawned else {
        skip("promtool", "install Debian's package prometheus");
        return None;
    };
    let mut stdin = child.stdin.take().expect("it is piped");
    // It may have seen enough before the end.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    Some(child.wait_with_output().expect("it ends"))
}
