//! Whatever anybody sends, it gets its right answer, and costs nobody else anything: good events beside it and after it arrive,
//! nothing bad does, and the daemon goes on in little memory.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use segspool::stand_in::StandIn;
use serde_json::{Value, json};

use crate::support::wire::{CREDENTIALS, Wire, chunk, head, post};
use crate::support::{Relay, gzip, segment, spool, within};

/// What the daemon may take, whatever it is sent.
const MEMORY_BYTES_MAX: u64 = 150_000_000;
/// The largest body it takes.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The status and the code of an answer; one without a code is hyper's own.
type Told = (u16, &'static str);

/// A daemon, a Segment, and the good events that must get from one to the other.
struct Scene {
    _dir: tempfile::TempDir,
    segment: StandIn,
    relay: Relay,
    good: Vec<String>,
}

impl Scene {
    async fn start() -> Scene {
        let dir = spool();
        let segment = segment().await;
        let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
        Scene {
            _dir: dir,
            segment,
            relay,
            good: Vec::new(),
        }
    }

    /// A new event that must arrive.
    fn good(&mut self) -> String {
        let id = format!("good-{}", self.good.len());
        self.good.push(id.clone());
        event(&id, "")
    }

    /// Sends an event that must be accepted and arrive over a connection that was there before, to show that it still serves.
    fn good_over(&mut self, wire: &mut Wire) {
        let body = self.good();
        wire.send(post("/v1/track", body));
        let answer = wire.answer().expect("the connection still serves");
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    /// And over a new connection.
    fn good_anew(&mut self) {
        self.good_over(&mut Wire::connect(&self.relay));
    }

    /// Waits until all is quiet. Then the good events have arrived, each once, and nothing else has; every number agrees, and the
    /// daemon has stayed small. Returns the arrived events by their id.
    async fn end(mut self) -> BTreeMap<String, String> {
        self.good_anew();
        let quiet = self
            .relay
            .until(|stats| {
                stats.queue.events == 0
                    && stats.lanes.iter().all(|lane| lane.conservation().holds())
            })
            .await;
        let tally = self.segment.tally();
        assert!(tally.violations.is_empty(), "{tally:?}");
        assert_eq!(tally.duplicate_events, 0);
        assert_eq!(
            (quiet.ingest.accepted_events, quiet.delivery.events),
            (tally.events, tally.events)
        );
        let arrived: BTreeMap<String, String> = self
            .segment
            .take_events()
            .into_iter()
            .map(|recorded| {
                let text = recorded.event.get().to_owned();
                let event: BTreeMap<String, &serde_json::value::RawValue> =
                    serde_json::from_str(&text).expect("an object");
                let id = event["messageId"].get().trim_matches('"').to_owned();
                (id, text)
            })
            .collect();
        self.good.sort();
        assert!(arrived.keys().eq(&self.good), "{:?}", arrived.keys());
        assert_small(&self.relay);
        arrived
    }
}

fn assert_small(relay: &Relay) {
    let peak = relay.memory_bytes("VmHWM");
    assert!(peak < MEMORY_BYTES_MAX, "{peak} bytes of memory");
}

/// A track with nothing left to stamp, and `more` members such as `,"a":1`.
fn event(id: &str, more: &str) -> String {
    format!(
        r#"{{"type":"track","userId":"u","event":"E","messageId":"{id}","timestamp":"2026-01-02T03:04:05.678Z"{more}}}"#
    )
}

fn batch_of(events: &[&str]) -> String {
    format!(r#"{{"batch":[{}]}}"#, events.join(","))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_no_batch_is_refused_whole_and_its_connection_goes_on() {
    let mut scene = Scene::start().await;
    let bad = event("bad", "");
    let batch = batch_of(&[&bad]);
    let with = |text: &str| batch.replace("2026", text).into_bytes();
    let wide = |member: &str| format!(r#"{{"batch":{member}}}"#).into_bytes();
    let json = "invalid_json";
    let too_many = batch_of(&vec![bad.as_str(); 50_001]);
    assert!(too_many.len() < BODY_BYTES_MAX);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing", b"".into(), json),
        ("white space", b" \r\n\t ".into(), json),
        ("cut in the envelope", batch[..batch.len() - 1].into(), json),
        ("cut in an event", batch[..batch.len() - 9].into(), json),
        ("a tail", (batch.clone() + "x").into(), json),
        ("two bodies", batch.repeat(2).into(), json),
        ("two lines", (batch.clone() + "\n" + &batch).into(), json),
        (
            "a byte order mark",
            ("\u{feff}".to_owned() + &batch).into(),
            json,
        ),
        (
            "UTF-16",
            batch.encode_utf16().flat_map(u16::to_le_bytes).collect(),
            json,
        ),
        ("Latin-1", replaced(&batch, b"\xe9"), json),
        ("an overlong form", replaced(&batch, b"\xc0\x80"), json),
        (
            "a surrogate as UTF-8",
            replaced(&batch, b"\xed\xa0\x80"),
            json,
        ),
        ("a cut character", replaced(&batch, b"\xf0\x9f\x92"), json),
        ("a NUL in a string", with("\0"), json),
        ("a NUL at the end", (batch.clone() + "\0").into(), json),
        ("a line break in a string", with("\n"), json),
        ("an escape of two digits", with(r"\x41"), json),
        ("half an escape", with(r"\u12"), json),
        ("a trailing comma", batch.replace("]}", ",]}").into(), json),
        ("a comment", (batch.clone() + "//").into(), json),
        ("not a number", wide(r#"[NaN]"#), json),
        ("a number from 0", wide("[01]"), json),
        ("single quotes", batch.replace('"', "'").into(), json),
        ("a form", b"data=e30%3D".into(), json),
        ("a million brackets", vec![b'['; 1_000_000], "not_an_object"),
        (
            "a million braces",
            r#"{"batch":"#.repeat(1_000_000 / 9).into(),
            "batch_not_array",
        ),
        ("a list", b"[]".into(), "not_an_object"),
        ("a string", b"\"batch\"".into(), "not_an_object"),
        ("a number", b"1".into(), "not_an_object"),
        ("null", b"null".into(), "not_an_object"),
        ("no batch", b"{}".into(), "batch_not_defined"),
        ("one event", bad.clone().into(), "batch_not_defined"),
        ("a null batch", wide("null"), "batch_not_defined"),
        ("an object for a batch", wide(&bad), "batch_not_array"),
        ("a string for a batch", wide("\"x\""), "batch_not_array"),
        ("a number for a batch", wide("7"), "batch_not_array"),
        ("a boolean for a batch", wide("true"), "batch_not_array"),
        ("an empty batch", wide("[]"), "empty_batch"),
        (
            "two batches, the last null",
            format!(r#"{{"batch":[{bad}],"batch":null}}"#).into(),
            "batch_not_defined",
        ),
        ("50,001 events", too_many.into(), "too_many_events"),
        ("no good event", wide("[1,null]"), "not_an_object"),
    ];
    let mut wire = Wire::connect(&scene.relay);
    for (name, body, code) in cases {
        wire.send(post("/v1/batch", body));
        let answer = wire.answer().expect(name);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, code),
            "{name}"
        );
        scene.good_over(&mut wire);
    }
    scene.end().await;
}

/// The body with bytes, which need not be UTF-8, in the place of its year.
fn replaced(batch: &str, bytes: &[u8]) -> Vec<u8> {
    let (before, after) = batch.split_once("2026").expect("it has a year");
    [before.as_bytes(), bytes, after.as_bytes()].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_item_is_named_and_kept_while_its_neighbours_arrive() {
    let mut scene = Scene::start().await;
    let long = event("bad", &format!(r#","x":"{}""#, "x".repeat(32_768)));
    let many: String = (0..6_600).map(|n| format!(r#","{n}":1"#)).collect();
    let items: Vec<(String, &str)> = vec![
        ("1".into(), "not_an_object"),
        ("null".into(), "not_an_object"),
        ("true".into(), "not_an_object"),
        ("-1e9".into(), "not_an_object"),
        (r#""{}""#.into(), "not_an_object"),
        ("[]".into(), "not_an_object"),
        (format!("[{}]", event("bad", "")), "not_an_object"),
        (nested("", 100_000), "not_an_object"),
        ("{}".into(), "missing_type"),
        (r#"{"type":null}"#.into(), "missing_type"),
        (r#"{"type":"Track"}"#.into(), "invalid_type"),
        (r#"{"type":"\ud800"}"#.into(), "invalid_type"),
        (r#"{"type":{"type":"track"}}"#.into(), "invalid_type"),
        (r#"{"type":"track"}"#.into(), "no_user_anon_id"),
        (
            r#"{"type":"track","userId":7,"event":"E"}"#.into(),
            "id_not_string",
        ),
        (
            r#"{"type":"track","userId":"u"}"#.into(),
            "event_not_defined",
        ),
        (
            r#"{"type":"track","userId":"u","event":"E","event":null}"#.into(),
            "event_not_defined",
        ),
        (
            event("bad", r#","messageId":["bad"]"#),
            "message_id_not_string",
        ),
        (event("bad", r#","properties":[]"#), "properties_not_object"),
        (long, "event_too_large"),
        (event("bad", &many), "event_too_large"),
        (
            event("bad", &format!(r#","x":{}"#, nested("", 100_000))),
            "event_too_large",
        ),
    ];
    let mut wire = Wire::connect(&scene.relay);
    for (nth, (item, code)) in items.iter().enumerate() {
        let shown = &item[..item.len().min(80)];
        let (before, after) = (scene.good(), scene.good());
        wire.send(post("/v1/batch", batch_of(&[&before, item, &after])));
        let answer = wire.answer().expect(shown);
        assert_eq!(answer.status, 200, "{shown}: {answer:?}");
        let reply = answer.json();
        assert_eq!(
            (&reply["success"], &reply["accepted"]),
            (&json!(true), &json!(2)),
            "{shown}"
        );
        let rejected = reply["rejected"].as_array().expect("a list");
        assert_eq!(rejected.len(), 1, "{shown}");
        assert_eq!(
            (&rejected[0]["index"], &rejected[0]["code"]),
            (&json!(1), &json!(code)),
            "{shown}"
        );
        let kept = nth as u64 + 1;
        scene
            .relay
            .until(|stats| stats.dead_letters.events == kept)
            .await;
    }
    scene.end().await;
}

/// Together they are more than there is room for. They once waited for each other, each with a part of the room, until all were
/// refused as well as whatever came beside them.
#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_that_arrive_together_are_all_read_in_little_memory() {
    let mut scene = Scene::start().await;
    let spaces = " ".repeat(BODY_BYTES_MAX - 100);
    let body = post("/v1/batch", format!(r#"{{"batch":[{spaces}}}"#));
    for _ in 0..3 {
        std::thread::scope(|threads| {
            for _ in 0..16 {
                threads.spawn(|| {
                    let mut sender = Wire::connect(&scene.relay);
                    sender.send(&body);
                    let answer = sender.answer().expect("an answer");
                    assert_eq!(
                        (answer.status, answer.code().as_str()),
                        (400, "invalid_json")
                    );
                });
            }
        });
        scene.good_anew();
    }
    scene.end().await;
}

/// `inside` within so many lists.
fn nested(inside: &str, levels: usize) -> String {
    "[".repeat(levels) + inside + &"]".repeat(levels)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_odd_but_valid_arrives_byte_for_byte() {
    let mut scene = Scene::start().await;
    let digits = "1234567890".repeat(100);
    let mut objects = r#"{"a":"#.repeat(5_000);
    objects += "null";
    objects += &"}".repeat(5_000);
    let odd: Vec<(&str, String)> = vec![
        (
            "lone surrogates",
            r#"["\ud800","\udfff x","\ude00\ud83d"]"#.into(),
        ),
        (
            "a lone surrogate as a key",
            r#"{"\ud800":1,"\udc00":2}"#.into(),
        ),
        ("a pair of surrogates", r#""\ud83d\ude00""#.into()),
        ("an escaped NUL", r#""a\u0000b""#.into()),
        (
            "escapes in every spelling",
            r#""\/\b\f\n\r\t\"\\\u00e9\u00E9""#.into(),
        ),
        (
            "a DEL and what no line may hold",
            "\"\u{7f}\u{85}\u{2028}\u{2029}\"".into(),
        ),
        (
            "no characters",
            "\"\u{ffff}\u{fdd0}\u{10ffff}\u{feff}\"".into(),
        ),
        ("one key twice", r#"{"a":1,"a":2,"\u0061":3}"#.into()),
        ("keys without a name", r#"{"":1," ":2}"#.into()),
        ("white space inside", "{ \"a\" :\t[ 1 ,\r\n2 ] }".into()),
        ("a whole number of 1,000 digits", digits.clone()),
        ("a fraction of 1,000 digits", format!("-0.{digits}")),
        (
            "an exponent that is too large",
            "[1e400,-1E+99999,1e-400]".into(),
        ),
        ("zeros", "[-0,-0.0,0e0,1.00]".into()),
        ("120 levels", nested("1", 120)),
        ("10,000 levels of lists", nested("1", 10_000)),
        ("5,000 levels of objects", objects),
    ];
    let mut expected = BTreeMap::new();
    for (name, value) in &odd {
        let id = name.replace([' ', ','], "-");
        let odd = event(&id, &format!(r#","properties":{{"odd":{value}}}"#));
        let (before, after) = (scene.good(), scene.good());
        scene.good.push(id.clone());
        let mut wire = Wire::connect(&scene.relay);
        wire.send(post("/v1/batch", batch_of(&[&before, &odd, &after])));
        let answer = wire.answer().expect(name);
        assert_eq!(
            (answer.status, answer.json()),
            (200, json!({"success": true})),
            "{name}"
        );
        expected.insert(id, odd);
    }
    let arrived = scene.end().await;
    for (id, odd) in expected {
        assert_eq!(arrived[&id], odd, "{id}");
    }
}

/// What was validated is what is sent.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_member_given_twice_the_last_one_counts() {
    let mut scene = Scene::start().await;
    let mut wire = Wire::connect(&scene.relay);
    let twice = event(
        "first",
        r#","messageId":"last","userId":"v","\u0065vent":"F""#,
    );
    scene.good.push("last".into());
    let bad = event("bad", "");
    let body = format!(r#"{{"batch":[{bad}],"batch":[{twice}]}}"#);
    wire.send(post("/v1/batch", body));
    assert_eq!(wire.answer().expect("an answer").status, 200);
    let arrived = scene.end().await;
    let last: Value = serde_json::from_str(&arrived["last"]).expect("JSON");
    assert_eq!(
        (&last["userId"], &last["event"]),
        (&json!("v"), &json!("F"))
    );
    assert_eq!(arrived["last"].matches("messageId").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_may_have_32768_bytes_once_it_is_stamped() {
    let scene = Scene::start().await;
    let mut wire = Wire::connect(&scene.relay);
    let mut arrives = async |filler: usize| {
        let x = "x".repeat(filler);
        let body = format!(r#"{{"userId":"u","event":"E","properties":{{"x":"{x}"}}}}"#);
        wire.send(post("/v1/track", body));
        let answer = wire.answer().expect("an answer");
        if answer.status != 200 {
            return Err((answer.status, answer.code()));
        }
        let arrival = async {
            scene.segment.until(|tally| tally.events > 0).await;
            let arrived = scene.segment.take_events();
            scene.segment.clear_tally();
            arrived[0].event.get().len()
        };
        Ok(within(arrival).await)
    };
    let least = arrives(0).await.expect("it is small");
    for bytes in [32_767, 32_768] {
        assert_eq!(arrives(bytes - least).await, Ok(bytes));
    }
    let refused = Err((400, "event_too_large".to_owned()));
    assert_eq!(arrives(32_769 - least).await, refused);
    let stats = scene.relay.stats().await;
    assert_eq!(
        (stats.ingest.accepted_events, stats.ingest.rejected_events),
        (3, 1)
    );
    assert_small(&scene.relay);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_may_have_50000_events_and_is_split_to_2500_a_batch() {
    let mut scene = Scene::start().await;
    let mut wire = Wire::connect(&scene.relay);
    for count in [2_501_usize, 50_000] {
        let batches = scene.segment.tally().batches;
        let events: Vec<_> = (0..count).map(|_| scene.good()).collect();
        let events: Vec<_> = events.iter().map(String::as_str).collect();
        wire.send(post("/v1/batch", batch_of(&events)));
        let answer = wire.answer().expect("an answer");
        assert_eq!(
            (answer.status, answer.json()),
            (200, json!({"success": true}))
        );
        let all = scene.good.len() as u64;
        let tally = within(scene.segment.until(|tally| tally.events == all)).await;
        let least = count.div_ceil(2_500) as u64;
        assert!(tally.batches - batches >= least, "{tally:?}");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packed_body_is_taken_whole_or_not_at_all() {
    let mut scene = Scene::start().await;
    let bad = batch_of(&[&event("bad", "")]).into_bytes();
    let packed = gzip(&bad);
    let mebibyte = gzip(&vec![b' '; 1024 * 1024]);
    let cut = |bytes: usize| packed[..packed.len() - bytes].to_vec();
    let flipped = |at: usize| {
        let mut flipped = packed.clone();
        let at = flipped.len() - at;
        flipped[at] ^= 1;
        flipped
    };
    let bomb = bomb(128 * 1024 * 1024);
    assert!(bomb.len() < 1024 * 1024);
    let cases: Vec<(&str, &str, Vec<u8>, Told)> = vec![
        ("nothing", "gzip", Vec::new(), (400, "invalid_gzip")),
        (
            "a header alone",
            "gzip",
            packed[..10].into(),
            (400, "invalid_gzip"),
        ),
        ("no checksum", "gzip", cut(8), (400, "invalid_gzip")),
        ("half a checksum", "gzip", cut(6), (400, "invalid_gzip")),
        ("no length", "gzip", cut(4), (400, "invalid_gzip")),
        (
            "half of it",
            "gzip",
            cut(packed.len() / 2),
            (400, "invalid_gzip"),
        ),
        (
            "another checksum",
            "gzip",
            flipped(8),
            (400, "invalid_gzip"),
        ),
        ("another length", "gzip", flipped(4), (400, "invalid_gzip")),
        ("other data", "gzip", flipped(20), (400, "invalid_gzip")),
        (
            "garbage behind",
            "gzip",
            [&packed[..], b"garbage"].concat(),
            (400, "invalid_gzip"),
        ),
        ("not packed", "gzip", bad.clone(), (400, "invalid_gzip")),
        ("packed twice", "gzip", gzip(&packed), (400, "invalid_json")),
        (
            "packed unsaid",
            "identity",
            packed.clone(),
            (400, "invalid_json"),
        ),
        ("zlib", "deflate", bad.clone(), (400, "encoding_not_known")),
        ("brotli", "br", bad.clone(), (400, "encoding_not_known")),
        ("zstd", "zstd", bad.clone(), (400, "encoding_not_known")),
        (
            "two of them",
            "gzip, gzip",
            gzip(&packed),
            (400, "encoding_not_known"),
        ),
        (
            "no name",
            "\u{e9}",
            bad.clone(),
            (400, "encoding_not_known"),
        ),
        ("a bomb", "gzip", bomb.clone(), (413, "body_too_large")),
        (
            "a bomb of many members",
            "gzip",
            mebibyte.repeat(128),
            (413, "body_too_large"),
        ),
        (
            "one byte too many",
            "gzip",
            [mebibyte.repeat(8), gzip(b" ")].concat(),
            (413, "body_too_large"),
        ),
    ];
    let mut wire = Wire::connect(&scene.relay);
    let request = |encoding: &str, body: &[u8]| {
        let length = format!("Content-Length: {}", body.len());
        let encoding = format!("Content-Encoding: {encoding}");
        let head = head("POST", "/v1/batch", &[&length, &encoding]);
        [head.as_bytes(), body].concat()
    };
    for (name, encoding, body, (status, code)) in cases {
        wire.send(request(encoding, &body));
        let answer = wire.answer().expect(name);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{name}"
        );
        scene.good_over(&mut wire);
    }
    // What just fits.
    let body = batch_of(&[&scene.good()]);
    let spaces = gzip(&vec![b' '; BODY_BYTES_MAX - body.len()]);
    wire.send(request("X-GZIP", &[gzip(body.as_bytes()), spaces].concat()));
    assert_eq!(wire.answer().expect("an answer").status, 200);
    // Many at a time.
    let mut bombers: Vec<_> = (0..16).map(|_| Wire::connect(&scene.relay)).collect();
    for bomber in &mut bombers {
        bomber.send(request("gzip", &bomb));
    }
    for bomber in &mut bombers {
        assert_eq!(bomber.answer().expect("an answer").status, 413);
    }
    scene.end().await;
}

/// So many brackets as one gzip stream.
fn bomb(bytes: u64) -> Vec<u8> {
    let brackets = std::io::repeat(b'[').take(bytes);
    let mut packed = Vec::new();
    flate2::read::GzEncoder::new(brackets, flate2::Compression::fast())
        .read_to_end(&mut packed)
        .expect("to memory");
    packed
}

/// What becomes of a connection after its last answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    /// It goes on serving.
    Serves,
    /// The daemon closes it.
    Closed,
}
use Then::{Closed, Serves};

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_framing_has_its_answer_and_smuggles_nothing() {
    let mut scene = Scene::start().await;
    let bad = event("bad", "");
    let smuggled = String::from_utf8(post("/v1/track", &bad)).expect("text");
    let framed = |framing: &[&str], body: &str| head("POST", "/v1/track", framing) + body;
    let chunked = |body: &str| framed(&["Transfer-Encoding: chunked"], body);
    let lengths = |lengths: &[&str]| {
        let lengths: Vec<_> = lengths
            .iter()
            .map(|l| format!("Content-Length: {l}"))
            .collect();
        let lengths: Vec<_> = lengths.iter().map(String::as_str).collect();
        framed(&lengths, &bad)
    };
    let raw = |line: &str| {
        format!("{line}\r\nHost: localhost\r\n{CREDENTIALS}\r\nContent-Length: 0\r\n\r\n")
    };
    let broken = (400, "");
    let incomplete = (400, "body_not_complete");
    let json = (400, "invalid_json");
    let refused = (413, "body_too_large");
    let length = bad.len().to_string();
    let longer = (bad.len() + 9).to_string();
    let cases: Vec<(&str, String, Vec<Told>, Then)> = vec![
        (
            "a body cut short",
            lengths(&[&longer]),
            vec![incomplete],
            Closed,
        ),
        (
            "a body longer than said",
            lengths(&["7"]),
            vec![json, broken],
            Closed,
        ),
        ("a negative length", lengths(&["-1"]), vec![broken], Closed),
        ("a signed length", lengths(&["+1"]), vec![broken], Closed),
        ("a length in words", lengths(&["ten"]), vec![broken], Closed),
        ("a length in hex", lengths(&["0x10"]), vec![broken], Closed),
        ("an empty length", lengths(&[""]), vec![broken], Closed),
        (
            "a length beyond 64 bits",
            lengths(&["99999999999999999999999"]),
            vec![broken],
            Closed,
        ),
        (
            "a length of 64 bits",
            lengths(&["18446744073709551615"]),
            vec![(431, "")],
            Closed,
        ),
        (
            "a length of 63 bits",
            lengths(&["9223372036854775807"]),
            vec![refused],
            Closed,
        ),
        (
            "a length over the cap",
            lengths(&["8388609"]),
            vec![refused],
            Closed,
        ),
        (
            "two lengths",
            lengths(&[&length, "7"]),
            vec![broken],
            Closed,
        ),
        (
            "two lengths in one",
            lengths(&[&format!("{length}, {length}")]),
            vec![broken],
            Closed,
        ),
        (
            "a length, then chunks",
            framed(
                &["Content-Length: 7", "Transfer-Encoding: chunked"],
                "0\r\n\r\n",
            ) + &smuggled,
            vec![json],
            Closed,
        ),
        (
            "chunks, then a length",
            framed(
                &["Transfer-Encoding: chunked", "Content-Length: 7"],
                "0\r\n\r\n",
            ) + &smuggled,
            vec![json],
            Closed,
        ),
        (
            "chunks that are none",
            framed(&["Transfer-Encoding: chunked, identity"], &bad),
            vec![broken],
            Closed,
        ),
        (
            "an unknown coding",
            framed(&["Transfer-Encoding: xchunked"], &bad),
            vec![broken],
            Closed,
        ),
        (
            "chunks without end",
            chunked(&chunk(&bad)),
            vec![incomplete],
            Closed,
        ),
        (
            "a chunk cut short",
            chunked("ff\r\n{"),
            vec![incomplete],
            Closed,
        ),
        (
            "a chunk longer than said",
            chunked("1\r\n{}\r\n0\r\n\r\n"),
            vec![incomplete],
            Closed,
        ),
        (
            "a size that is none",
            chunked("zz\r\n{}\r\n0\r\n\r\n"),
            vec![incomplete],
            Closed,
        ),
        (
            "no size",
            chunked("\r\n{}\r\n0\r\n\r\n"),
            vec![incomplete],
            Closed,
        ),
        (
            "a negative size",
            chunked("-2\r\n{}\r\n0\r\n\r\n"),
            vec![incomplete],
            Closed,
        ),
        (
            "a size beyond 64 bits",
            chunked("fffffffffffffffff\r\n{}"),
            vec![incomplete],
            Closed,
        ),
        (
            "a size of 64 bits",
            chunked("ffffffffffffffff\r\n{}"),
            vec![incomplete],
            Closed,
        ),
        (
            "an endless extension",
            chunked(&format!("2;{}\r\n{{}}\r\n0\r\n\r\n", "x".repeat(20_000))),
            vec![incomplete],
            Closed,
        ),
        (
            "endless trailers",
            chunked(&format!(
                "2\r\n{{}}\r\n0\r\n{}\r\n",
                "X: y\r\n".repeat(2_000)
            )),
            vec![incomplete],
            Closed,
        ),
        (
            "chunks over the cap",
            chunked(&(chunk(&" ".repeat(1024 * 1024)).repeat(9) + "0\r\n\r\n")),
            vec![refused],
            Serves,
        ),
        (
            "a body over the cap",
            framed(&["Content-Length: 9437184"], &" ".repeat(9 * 1024 * 1024)),
            vec![refused],
            Serves,
        ),
        (
            "chunks in HTTP/1.0",
            chunked("0\r\n\r\n").replace("1.1", "1.0"),
            vec![broken],
            Closed,
        ),
        ("no version", "GET /\r\n\r\n".into(), vec![broken], Closed),
        (
            "an unknown version",
            raw("POST /v1/track HTTP/3.7"),
            vec![broken],
            Closed,
        ),
        (
            "HTTP/2",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
            vec![],
            Closed,
        ),
        (
            "TLS",
            "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{7c}\u{3}\u{3}\r\n\r\n".into(),
            vec![broken],
            Closed,
        ),
        (
            "a line of garbage",
            "garbage\r\n\r\n".into(),
            vec![broken],
            Closed,
        ),
        (
            "a space in the path",
            raw("POST /v1/tr ack HTTP/1.1"),
            vec![broken],
            Closed,
        ),
        (
            "a header without a colon",
            framed(&["Garbage"], ""),
            vec![broken],
            Closed,
        ),
        (
            "a header without a name",
            framed(&[": x"], ""),
            vec![broken],
            Closed,
        ),
        (
            "a space in a name",
            framed(&["X Y: z"], ""),
            vec![broken],
            Closed,
        ),
        (
            "a folded header",
            framed(&["X: y", " z: 1"], ""),
            vec![broken],
            Closed,
        ),
        (
            "a NUL in a header",
            framed(&["X: \0"], ""),
            vec![broken],
            Closed,
        ),
        (
            "1,000 headers",
            framed(&["X: y"; 1_000], ""),
            vec![(431, "")],
            Closed,
        ),
        (
            "a header without end",
            "X".repeat(128 * 1024),
            vec![(431, "")],
            Closed,
        ),
        (
            "a path of 100 KB",
            raw(&format!("POST /{} HTTP/1.1", "x".repeat(100_000))),
            vec![(414, "")],
            Closed,
        ),
        (
            "an unknown path",
            raw("POST /v1/nothing HTTP/1.1"),
            vec![(404, "not_found")],
            Serves,
        ),
        (
            "a path that climbs",
            raw("POST /v1/x/../track HTTP/1.1"),
            vec![(404, "not_found")],
            Serves,
        ),
        (
            "an escaped path",
            raw("POST /v1%2Ftrack HTTP/1.1"),
            vec![(404, "not_found")],
            Serves,
        ),
        (
            "no path",
            raw("OPTIONS * HTTP/1.1"),
            vec![(404, "not_found")],
            Serves,
        ),
        (
            "a wrong path in a URL",
            raw("POST http://localhost/ HTTP/1.1"),
            vec![(404, "not_found")],
            Serves,
        ),
        (
            "a good request, then a bad one",
            smuggled.replace("track", "nothing") + &raw("garbage"),
            vec![(404, "not_found"), broken],
            Closed,
        ),
        (
            "a foreign host behind our own",
            framed(&["Host: attacker.example", "Content-Length: 0"], ""),
            vec![(403, "host_not_allowed")],
            Serves,
        ),
        (
            "a foreign host",
            framed(&["Content-Length: 0"], "").replace("localhost", "attacker.example"),
            vec![(403, "host_not_allowed")],
            Serves,
        ),
        (
            "an empty key",
            smuggled.replace("S0VZMTIzNDU6", "Og=="),
            vec![(400, "write_key_not_defined")],
            Serves,
        ),
        (
            "no credentials",
            smuggled.replace("S0VZMTIzNDU6", "!!"),
            vec![(400, "write_key_not_valid")],
            Serves,
        ),
    ];
    for (name, request, answers, then) in cases {
        let mut wire = Wire::connect(&scene.relay);
        wire.send(request);
        if then == Closed {
            wire.finish();
        }
        for (status, code) in answers {
            let answer = wire.answer().expect(name);
            let found = match answer.body.is_empty() {
                true => String::new(),
                false => answer.code(),
            };
            assert_eq!((answer.status, found.as_str()), (status, code), "{name}");
        }
        match then {
            Serves => scene.good_over(&mut wire),
            Closed => assert!(wire.is_closed(), "{name}"),
        }
        scene.good_anew();
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_methods_are_told_which_ones_there_are() {
    let mut scene = Scene::start().await;
    let mut wire = Wire::connect(&scene.relay);
    for path in ["/v1/track", "/v1/batch"] {
        for method in ["GET", "PUT", "DELETE", "PATCH", "TRACE", "post", "BREW"] {
            wire.send(head(method, path, &["Content-Length: 0"]));
            let answer = wire.answer().expect(method);
            assert_eq!(
                (answer.status, answer.header("allow")),
                (405, Some("POST, OPTIONS")),
                "{method}"
            );
            assert_eq!(answer.code(), "method_not_allowed");
            scene.good_over(&mut wire);
        }
    }
    scene.end().await;
}

/// Spells a request with this body.
type Spelling = fn(&str) -> String;

#[tokio::test(flavor = "multi_thread")]
async fn rare_but_right_framing_is_served() {
    let mut scene = Scene::start().await;
    let requests: Vec<(&str, Then, Spelling)> = vec![
        ("HTTP/1.0", Closed, |b| {
            plain(b).replace("HTTP/1.1", "HTTP/1.0")
        }),
        ("HTTP/1.0 without a host", Closed, |b| {
            plain(b).replace("HTTP/1.1\r\nHost: localhost", "HTTP/1.0")
        }),
        ("HTTP/1.0 kept alive", Serves, |b| {
            plain(b).replace("HTTP/1.1", "HTTP/1.0\r\nConnection: keep-alive")
        }),
        ("the last request", Closed, |b| {
            plain(b).replace("HTTP/1.1", "HTTP/1.1\r\nConnection: close")
        }),
        ("a URL for a path", Serves, |b| {
            plain(b).replace("/v1", "http://localhost:7346/v1")
        }),
        ("an empty line before it", Serves, |b| {
            format!("\r\n{}", plain(b))
        }),
        ("bare line feeds", Serves, |b| plain(b).replace('\r', "")),
        ("the same length twice", Serves, |b| {
            let length = format!("Content-Length: {}", b.len());
            head("POST", "/v1/track", &[&length, &length]) + b
        }),
        ("90 more headers", Serves, |b| {
            plain(b).replace(
                "HTTP/1.1\r\n",
                &("HTTP/1.1\r\n".to_owned() + &"X: y\r\n".repeat(90)),
            )
        }),
        ("100 KB of headers", Serves, |b| {
            plain(b).replace(
                "HTTP/1.1\r\n",
                &format!("HTTP/1.1\r\nX: {}\r\n", "y".repeat(100_000)),
            )
        }),
        ("chunks of one byte", Serves, |b| {
            let chunks: String = b.chars().map(|c| chunk(&c.to_string())).collect();
            head("POST", "/v1/track", &["transfer-encoding: CHUNKED"]) + &chunks + "0\r\n\r\n"
        }),
        ("extensions and trailers", Serves, |b| {
            let head = head("POST", "/v1/track", &["Transfer-Encoding: chunked"]);
            format!("{head}{:X};a=\"b\"\r\n{b}\r\n000\r\nX: y\r\n\r\n", b.len())
        }),
    ];
    for (name, then, request) in requests {
        let mut wire = Wire::connect(&scene.relay);
        let body = scene.good();
        wire.send(request(&body));
        let answer = wire.answer().expect(name);
        assert_eq!(
            (answer.status, answer.json()),
            (200, json!({"success": true})),
            "{name}"
        );
        match then {
            Serves => scene.good_over(&mut wire),
            Closed => assert!(wire.is_closed(), "{name}"),
        }
    }
    // Asks before it sends its body.
    let mut wire = Wire::connect(&scene.relay);
    let body = scene.good();
    let length = format!("Content-Length: {}", body.len());
    wire.send(head(
        "POST",
        "/v1/track",
        &[&length, "Expect: 100-continue"],
    ));
    assert_eq!(wire.answer().expect("it may").status, 100);
    wire.send(body);
    assert_eq!(wire.answer().expect("an answer").status, 200);
    // Does not wait for its answers.
    let pipelined: Vec<_> = (0..100).map(|_| scene.good()).collect();
    for body in &pipelined {
        wire.send(post("/v1/track", body));
    }
    for _ in pipelined {
        assert_eq!(wire.answer().expect("an answer").status, 200);
    }
    scene.end().await;
}

fn plain(body: &str) -> String {
    String::from_utf8(post("/v1/track", body)).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrives_slowly_or_never_ends_in_time_and_delays_nobody() {
    let mut scene = Scene::start().await;
    // Heads that arrive byte by byte and stop.
    let bytes = plain(&event("bad", ""));
    let mut heads: Vec<_> = (0..50).map(|_| Wire::connect(&scene.relay)).collect();
    for byte in bytes.as_bytes().iter().take(100) {
        for head in &mut heads {
            head.send([*byte]);
        }
    }
    scene.good_anew();
    // A body that arrives byte by byte and gets there.
    let mut slow = Wire::connect(&scene.relay);
    for byte in plain(&scene.good()).as_bytes() {
        slow.send([*byte]);
    }
    assert_eq!(slow.answer().expect("an answer").status, 200);
    // Bodies that stop.
    let stopping = |framing: &str, body: &str| {
        let mut wire = Wire::connect(&scene.relay);
        wire.send(head("POST", "/v1/batch", &[framing]) + body);
        wire
    };
    let mut stopped = [
        stopping("Content-Length: 1000", ""),
        stopping("Content-Length: 1000", r#"{"batch":["#),
        stopping("Transfer-Encoding: chunked", "a\r\n{\"batch\":["),
        stopping("Transfer-Encoding: chunked", "a\r\n{\"batch\":[\r\n0\r\n"),
    ];
    let started = Instant::now();
    // One that never stops, and would be there after hours.
    let mut dripping = stopping("Content-Length: 5000", "");
    let dripping = thread::spawn(move || dripping.drip(&[b' '; 5000], Duration::from_millis(300)));
    scene.good_anew();
    assert!(started.elapsed() < Duration::from_secs(5));
    for wire in &mut stopped {
        let answer = wire.answer().expect("it is told");
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (408, "body_too_slow")
        );
        assert!(wire.is_closed());
    }
    let waited = started.elapsed();
    assert!(waited < Duration::from_secs(14), "{waited:?}");
    let told = dripping.join().expect("no panic").expect("it is told");
    assert_eq!((told.status, told.code().as_str()), (408, "body_too_slow"));
    drop(heads);
    scene.end().await;
}

/// Those that went before their answer; some close, some reset, because they had not read what came.
#[tokio::test(flavor = "multi_thread")]
async fn events_of_clients_that_vanish_arrive_once_or_not_at_all() {
    let scene = Scene::start().await;
    let sent = 300;
    for n in 0..sent {
        let mut wire = Wire::connect(&scene.relay);
        let request = plain(&event(&format!("e-{n}"), ""));
        match n % 3 {
            0 => wire.send(request),
            // Resets: the answer to the first request is never read.
            1 => wire.send(request.replace("track", "nothing") + &request),
            _ => wire.send(&request[..request.len() - 1]),
        }
    }
    let mut last = Wire::connect(&scene.relay);
    last.send(post("/v1/track", event("last", "")));
    assert_eq!(last.answer().expect("an answer").status, 200);
    let quiet = scene
        .relay
        .until(|stats| {
            stats.queue.events == 0 && stats.lanes.iter().all(|lane| lane.conservation().holds())
        })
        .await;
    let tally = scene.segment.tally();
    assert_eq!(
        (quiet.ingest.accepted_events, quiet.delivery.events),
        (tally.events, tally.events)
    );
    assert_eq!(
        (
            tally.duplicate_events,
            scene.segment.times_delivered("last")
        ),
        (0, 1)
    );
    for n in (2..sent).step_by(3) {
        assert_eq!(
            scene.segment.times_delivered(&format!("e-{n}")),
            0,
            "{n} was cut"
        );
    }
    assert_small(&scene.relay);
}

/// As many as a listener serves at once, less the few that others need.
const CONNECTIONS: u64 = 10_000;

/// Connections on which nothing was ever sent, and heads that never end. One after the other, since both at once are more files
/// than some machines let one process open.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_idle_connections_cost_little_and_delay_nobody() {
    if !may_open(CONNECTIONS + 2_000) {
        return;
    }
    for first in ["", "POST /v1/batch HTTP/1.1\r\nHost: localhost\r\nX-Half: "] {
        hold_connections(first).await;
    }
}

/// Sends `first` on each of many connections, and events beside them.
async fn hold_connections(first: &str) {
    let mut scene = Scene::start().await;
    let address = scene.relay.ingest.strip_prefix("http://").expect("a URL");
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(address).expect("it accepts");
        stream.write_all(first.as_bytes()).expect("written");
        held.push(stream);
    }
    let started = Instant::now();
    for _ in 0..50 {
        scene.good_anew();
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    scene.end().await;
    drop(held);
}

/// Raises the limit of open files, which the daemon inherits. Says so where it cannot be raised far enough.
fn may_open(files: u64) -> bool {
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|maximum| maximum < files) {
        let most = limit.maximum;
        // Past the test harness, which keeps what a passing test says to itself.
        let _unheard = writeln!(
            std::io::stderr(),
            "SKIPPED: {files} files may not be open at once, only {most:?}"
        );
        return false;
    }
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).expect("up to its maximum anybody may raise it");
    true
}
