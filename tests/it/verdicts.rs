//! The verdict table over sockets: every answer of a destination, and what becomes of the lane and its events.

use segspool::stand_in::{Answer, Match, Rule, StandIn};
use segspool::stats::{LaneSnapshot, LaneState, Snapshot};

use crate::support::{Relay, ids, segment, spool, within};

/// What is seen of a lane once its only event was answered.
#[derive(Clone, Copy, Debug)]
enum Seen {
    Delivered,
    BackingOff,
    RateLimited { seconds: f64 },
    Held,
    Buried,
}

impl Seen {
    fn holds(self, lane: &LaneSnapshot) -> bool {
        let counts = (lane.delivered_events, lane.dead_letter_events, lane.events);
        match self {
            Seen::Delivered => counts == (1, 0, 0),
            Seen::Buried => counts == (0, 1, 0),
            Seen::BackingOff => {
                counts == (0, 0, 1) && lane.state == LaneState::BackingOff && lane.attempt >= 2
            }
            // Such a pause is no failure.
            Seen::RateLimited { seconds } => {
                counts == (0, 0, 1)
                    && (lane.state, lane.attempt) == (LaneState::RateLimited, 0)
                    && lane
                        .retry_in_seconds
                        .is_some_and(|left| left <= seconds && left > seconds - 2.0)
            }
            Seen::Held => counts == (0, 0, 1) && lane.state == LaneState::Held,
        }
    }
}

/// Each case has a lane of its own, named by the last four characters of its key.
fn key(number: usize) -> String {
    format!("verdict-{number:04}")
}

fn lane(stats: &Snapshot, number: usize) -> Option<&LaneSnapshot> {
    let shown = format!("…{number:04}");
    stats.lanes.iter().find(|lane| lane.key == shown)
}

/// Gives each lane its answer, for as long as it is asked, and one event; returns once all is seen.
async fn see(
    cases: &[(Answer, Seen)],
    settings: &[(&str, &str)],
) -> (tempfile::TempDir, StandIn, Relay) {
    let (dir, segment) = (spool(), segment().await);
    let rules = cases.iter().enumerate().map(|(number, (answer, _))| {
        let lane = Match {
            write_key: Some(key(number)),
            ..Match::default()
        };
        Rule::when(lane, answer.clone())
    });
    segment.set_rules(rules.collect());
    let relay = Relay::start(dir.path(), &segment.url(), settings).await;
    for number in 0..cases.len() {
        relay
            .track(&key(number), &[format!("event-{number}")])
            .await;
    }
    for (number, (answer, seen)) in cases.iter().enumerate() {
        let seeing = relay.until(|stats| lane(stats, number).is_some_and(|lane| seen.holds(lane)));
        let seen = tokio::time::timeout(std::time::Duration::from_secs(20), seeing).await;
        assert!(
            seen.is_ok(),
            "{answer:?} did not lead to {:?} but to {:?}",
            cases[number].1,
            lane(&relay.stats().await, number)
        );
    }
    (dir, segment, relay)
}

fn status(code: u16) -> Answer {
    Answer::status(code)
}

fn asks(code: u16, retry_after: Option<&str>, rate_limit_reset: Option<&str>) -> Answer {
    Answer::Status {
        code,
        retry_after: retry_after.map(str::to_owned),
        rate_limit_reset: rate_limit_reset.map(str::to_owned),
        body: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_leads_to_its_verdict_and_what_is_kept_is_delivered_once_segment_is_well() {
    let mut cases = Vec::new();
    cases.extend([200, 201, 202, 299].map(|code| (status(code), Seen::Delivered)));
    cases.extend([401, 403, 404].map(|code| (status(code), Seen::Held)));
    let passing = [
        301, 302, 304, 408, 410, 429, 460, 500, 502, 503, 504, 511, 529, 599,
    ];
    cases.extend(passing.map(|code| (status(code), Seen::BackingOff)));
    cases.extend([Answer::Reset, Answer::Hang].map(|answer| (answer, Seen::BackingOff)));
    let final_ones = [400, 402, 405, 409, 411, 413, 415, 422, 431, 451, 501, 505];
    cases.extend(final_ones.map(|code| (status(code), Seen::Buried)));
    let (_dir, segment, relay) = see(&cases, &[("SEGMENT__TIMEOUT", "200ms")]).await;

    segment.set_rules(Vec::new());
    let stats = relay.until(|stats| stats.queue.events == 0).await;
    let buried = final_ones.len() as u64;
    assert_eq!(stats.dead_letters.events, buried);
    assert_eq!(stats.delivery.events, cases.len() as u64 - buried);
    let tally = segment.tally();
    assert_eq!(
        (tally.distinct_events, tally.duplicate_events),
        (cases.len() as u64 - buried, 0)
    );
    assert!(stats.lanes.iter().all(|lane| lane.conservation().holds()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_kept_in_whatever_form_it_is_asked_for_and_garbage_asks_for_none() {
    let in_a_minute = jiff::Timestamp::now() + std::time::Duration::from_secs(60);
    let date = jiff::fmt::rfc2822::DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&in_a_minute)
        .expect("a date of this century");
    let limited = |seconds| Seen::RateLimited { seconds };
    let cases = [
        (asks(429, Some("60"), None), limited(60.0)),
        (asks(503, Some("60"), None), limited(60.0)),
        (asks(408, Some("60"), None), limited(60.0)),
        (asks(429, Some(&date), None), limited(60.0)),
        (asks(429, None, Some("60")), limited(60.0)),
        (asks(429, Some("soon"), Some("60")), limited(60.0)),
        (asks(429, Some("40"), Some("60")), limited(40.0)),
        // No more than retry.max_retry_after.
        (asks(429, Some("86400"), None), limited(90.0)),
        (asks(429, Some("18446744073709551615"), None), limited(90.0)),
        (asks(429, Some("0"), None), Seen::BackingOff),
        (asks(429, Some("-60"), None), Seen::BackingOff),
        (asks(429, Some("soon"), None), Seen::BackingOff),
        (asks(429, Some(""), None), Seen::BackingOff),
        (
            asks(429, Some("Mon, 23 Nov 2020 14:00:00 GMT"), None),
            Seen::BackingOff,
        ),
        (asks(429, None, Some("never")), Seen::BackingOff),
        // Where a retry cannot help, a pause cannot either.
        (asks(400, Some("60"), None), Seen::Buried),
        (asks(401, Some("60"), None), Seen::Held),
    ];
    see(&cases, &[("RETRY__MAX_RETRY_AFTER", "90s")]).await;
}

fn poison() -> Match {
    Match {
        contains: Some("poison".into()),
        ..Match::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_the_poisoned_events_of_a_full_batch_are_buried_in_few_calls() {
    for places in [&[1234][..], &[0], &[2499], &[0, 600, 1234, 1235, 2499]] {
        for code in [400, 422, 501] {
            let (dir, segment) = (spool(), segment().await);
            segment.set_rules(vec![Rule::when(poison(), status(code))]);
            let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
            let mut sent = ids("e", 0..2500);
            for place in places {
                sent[*place] = format!("poison-{place}");
            }
            relay.track("KEY12345", &sent).await;
            let stats = relay.until(|stats| stats.queue.events == 0).await;
            let (tally, k) = (segment.tally(), places.len() as u64);
            assert_eq!(stats.dead_letters.events, k);
            assert_eq!(
                (tally.distinct_events, tally.duplicate_events),
                (2500 - k, 0)
            );
            assert!(
                places
                    .iter()
                    .all(|p| segment.times_delivered(&format!("poison-{p}")) == 0)
            );
            let calls_max = (2.0 * k as f64 * 2500f64.log2() + 2.0) as u64;
            assert!(
                tally.requests <= calls_max,
                "{places:?}: {} calls",
                tally.requests
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_too_large_for_a_destination_is_halved_until_it_fits() {
    let (dir, segment) = (spool(), segment().await);
    let large = Match {
        over_bytes: Some(50_000),
        ..Match::default()
    };
    segment.set_rules(vec![Rule::when(large, status(413))]);
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    relay.track("KEY12345", &ids("e", 0..2500)).await;
    let tally = within(segment.until(|tally| tally.distinct_events == 2500)).await;
    assert_eq!(tally.duplicate_events, 0);
    let stats = relay.until(|stats| stats.queue.events == 0).await;
    assert_eq!(stats.dead_letters.events, 0);
}
