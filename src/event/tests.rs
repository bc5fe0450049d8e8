//! What holds for the three steps together.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::Value;
use uuid::Uuid;

use super::json::Json;
use super::limits::{EVENT_BYTES_MAX, EVENT_MEMBERS_MAX, REQUEST_EVENTS_MAX};
use super::*;

const NEW_ID: &str = "00000000-0000-4000-8000-00000000002a";
const NOW: &str = "2026-11-23T12:00:00.123Z";

fn stamper() -> Stamp {
    let now: Timestamp = "2026-11-23T12:00:00.123456789Z".parse().expect("a time");
    Stamp::at(now).with_new_id(|| Uuid::from_u128(0x4000_8000_0000_0000_002a))
}

/// Takes every event of an envelope through the last two steps.
fn finish(envelope: &Envelope<'_>) -> Vec<Result<String, Rejection>> {
    finish_with(envelope, &stamper())
}

fn finish_with(envelope: &Envelope<'_>, stamper: &Stamp) -> Vec<Result<String, Rejection>> {
    let finish = |raw| {
        let mut out = b"before".to_vec();
        let event = validate(raw).and_then(|event| stamp(event, envelope, stamper, &mut out))?;
        assert_eq!(event.bytes, "before".len()..out.len());
        Ok(String::from_utf8(out.split_off("before".len())).expect("stamped events are UTF-8"))
    };
    envelope.events.iter().map(finish).collect()
}

fn batch(body: &str) -> Vec<Result<String, Rejection>> {
    finish(&decode_batch(body.as_bytes()).expect("the body is a batch"))
}

fn single(kind: Kind, body: &str) -> Result<String, Rejection> {
    let envelope = decode_single(kind, body.as_bytes()).expect("the body is JSON");
    finish(&envelope).remove(0)
}

/// One event of a batch whose envelope says nothing.
fn item(event: &str) -> Result<String, Rejection> {
    batch(&format!(r#"{{"batch":[{event}]}}"#)).remove(0)
}

fn code(outcome: Result<String, Rejection>) -> &'static str {
    outcome.expect_err("a rejection").code().as_str()
}

#[test]
fn a_body_that_is_no_batch_is_refused_as_a_whole() {
    let too_many = format!(r#"{{"batch":[1{}]}}"#, ",1".repeat(REQUEST_EVENTS_MAX));
    for (body, code) in [
        ("", "invalid_json"),
        ("{", "invalid_json"),
        (r#"{"batch":[}"#, "invalid_json"),
        (r#"{"batch":[{"a":1}]} x"#, "invalid_json"),
        (r#"{"batch":[{"a":"\q"}]}"#, "invalid_json"),
        ("[]", "not_an_object"),
        ("null", "not_an_object"),
        ("\"secret\"", "not_an_object"),
        ("{}", "batch_not_defined"),
        (r#"{"batch":null}"#, "batch_not_defined"),
        (r#"{"batch":{}}"#, "batch_not_array"),
        (r#"{"batch":"secret"}"#, "batch_not_array"),
        (r#"{"batch":[]}"#, "empty_batch"),
        (&too_many, "too_many_events"),
    ] {
        let rejection = decode_batch(body.as_bytes()).expect_err("a rejection");
        assert_eq!(rejection.code().as_str(), code);
        assert!(!rejection.message().contains("secret"), "{rejection}");
    }
}

#[test]
fn a_body_that_is_not_utf_8_is_refused_and_told_where() {
    let rejection = decode_batch(b"{\"batch\":[\"\xff\"]}").expect_err("a rejection");
    assert_eq!(rejection.code(), Code::InvalidJson);
    assert!(rejection.message().contains("byte 11"), "{rejection}");
    assert!(decode_single(Kind::Track, b"\xff").is_err());
}

#[test]
fn an_event_that_segment_would_discard_is_rejected_with_its_reason() {
    for (event, expected) in [
        ("7", "not_an_object"),
        ("null", "not_an_object"),
        ("1e999999", "not_an_object"),
        (r#""\ud800""#, "not_an_object"),
        (r#"[{"type":"track"}]"#, "not_an_object"),
        (r#"{"userId":"u"}"#, "missing_type"),
        (r#"{"type":null,"userId":"u"}"#, "missing_type"),
        (r#"{"type":"delete","userId":"u"}"#, "invalid_type"),
        (
            r#"{"type":"Track","userId":"u","event":"E"}"#,
            "invalid_type",
        ),
        (r#"{"type":1,"userId":"u"}"#, "invalid_type"),
        (r#"{"type":"identify"}"#, "no_user_anon_id"),
        (
            r#"{"type":"page","userId":null,"anonymousId":null}"#,
            "no_user_anon_id",
        ),
        (r#"{"type":"identify","userId":7}"#, "id_not_string"),
        (
            r#"{"type":"identify","userId":7,"anonymousId":"a"}"#,
            "id_not_string",
        ),
        (
            r#"{"type":"identify","userId":"u","anonymousId":[]}"#,
            "id_not_string",
        ),
        (r#"{"type":"identify","userId":""}"#, "id_not_string"),
        (
            r#"{"type":"identify","userId":"","anonymousId":""}"#,
            "id_not_string",
        ),
        (r#"{"type":"track","userId":"u"}"#, "event_not_defined"),
        (
            r#"{"type":"track","userId":"u","event":""}"#,
            "event_not_defined",
        ),
        (
            r#"{"type":"track","userId":"u","event":null}"#,
            "event_not_defined",
        ),
        (
            r#"{"type":"track","userId":"u","event":{}}"#,
            "event_not_string",
        ),
        (
            r#"{"type":"track","userId":"u","event":"E","properties":[]}"#,
            "properties_not_object",
        ),
        (
            r#"{"type":"page","userId":"u","properties":"p"}"#,
            "properties_not_object",
        ),
        (
            r#"{"type":"screen","userId":"u","properties":1}"#,
            "properties_not_object",
        ),
        (
            r#"{"type":"page","userId":"u","name":1}"#,
            "name_not_string",
        ),
        (
            r#"{"type":"screen","userId":"u","name":""}"#,
            "name_not_string",
        ),
        (
            r#"{"type":"page","userId":"u","category":false}"#,
            "category_not_string",
        ),
        (
            r#"{"type":"page","userId":"u","category":""}"#,
            "category_not_string",
        ),
        (
            r#"{"type":"identify","userId":"u","traits":[]}"#,
            "traits_not_object",
        ),
        (
            r#"{"type":"group","userId":"u","groupId":"g","traits":1}"#,
            "traits_not_object",
        ),
        (r#"{"type":"group","userId":"u"}"#, "group_id_not_defined"),
        (
            r#"{"type":"group","userId":"u","groupId":""}"#,
            "group_id_not_defined",
        ),
        (
            r#"{"type":"alias","previousId":"p","anonymousId":"a"}"#,
            "user_id_not_defined",
        ),
        (
            r#"{"type":"alias","previousId":"p","userId":7}"#,
            "id_not_string",
        ),
        (
            r#"{"type":"alias","userId":"u","previousId":null}"#,
            "previous_id_not_defined",
        ),
        (
            r#"{"type":"identify","userId":"u","messageId":7}"#,
            "message_id_not_string",
        ),
        (
            r#"{"type":"identify","userId":"u","userId":null}"#,
            "no_user_anon_id",
        ),
    ] {
        assert_eq!(code(item(event)), expected, "{event}");
    }
}

#[test]
fn an_event_is_kept_where_segment_does_not_say_that_it_discards() {
    for event in [
        r#"{"type":"track","anonymousId":"a","event":"E","name":7,"traits":7}"#,
        r#"{"type":"track","userId":"","anonymousId":"a","event":" "}"#,
        r#"{"type":"identify","userId":"u","traits":null,"properties":7,"event":7}"#,
        r#"{"type":"identify","userId":"u","timestamp":"yesterday"}"#,
        r#"{"type":"identify","userId":"u","timestamp":1795434187080}"#,
        r#"{"type":"identify","userId":"u","context":"c","integrations":[]}"#,
        r#"{"type":"identify","userId":"u","writeKey":7}"#,
        r#"{"type":"group","userId":"u","groupId":7}"#,
        r#"{"type":"alias","userId":"u","previousId":7}"#,
        r#"{"type":"page","userId":"u","name":null,"category":null}"#,
        r#"{"type":"tr\u0061ck","us\u0065rId":"u","event":"E"}"#,
        r#"{"type":"identify","userId":7,"userId":"u"}"#,
    ] {
        let stamped = item(event).expect("a kept event");
        serde_json::from_str::<Value>(&stamped).expect("stamped events are JSON");
    }
}

#[test]
fn a_path_gives_the_kind_unless_the_message_contradicts_it() {
    let stamped = single(
        Kind::Identify,
        r#"{"userId":"u","messageId":"m","timestamp":"t"}"#,
    );
    let expected = r#"{"userId":"u","messageId":"m","timestamp":"t","type":"identify"}"#;
    assert_eq!(stamped.as_deref(), Ok(expected));
    let stamped = single(Kind::Identify, expected);
    assert_eq!(stamped.as_deref(), Ok(expected));

    for (body, expected) in [
        (r#"{"userId":"u","type":"page"}"#, "type_mismatch"),
        (r#"{"userId":"u","type":"nonsense"}"#, "invalid_type"),
        ("[]", "not_an_object"),
        (" 7 ", "not_an_object"),
    ] {
        assert_eq!(code(single(Kind::Identify, body)), expected);
    }
    let rejection = decode_single(Kind::Track, b"{\"a\":1").expect_err("a rejection");
    assert_eq!(rejection.code(), Code::InvalidJson);
}

#[test]
fn one_bad_item_does_not_cost_the_others() {
    let outcomes = batch(
        r#"{"batch":[{"type":"identify","userId":"a"},1e999,{"type":"page"},{"type":"page","userId":"b"}]}"#,
    );
    let kept: Vec<bool> = outcomes.iter().map(Result::is_ok).collect();
    assert_eq!(kept, [true, false, false, true]);
}

#[test]
fn only_what_is_absent_or_null_is_added() {
    let bare = r#""type":"identify","userId":"u""#;
    for (sent, stored) in [
        (
            format!("{{{bare}}}"),
            format!(r#"{{{bare},"messageId":"{NEW_ID}","timestamp":"{NOW}"}}"#),
        ),
        (
            format!(r#"{{"messageId":null,{bare},"timestamp":null,"context":null}}"#),
            format!(r#"{{"messageId":"{NEW_ID}",{bare},"timestamp":"{NOW}","context":null}}"#),
        ),
        (
            format!(r#"{{"messageId":"",{bare},"timestamp":""}}"#),
            format!(r#"{{"messageId":"{NEW_ID}",{bare},"timestamp":""}}"#),
        ),
        (
            format!(
                r#"{{{bare},"sentAt":"s","messageId":"m","originalTimestamp":"2020-01-01T00:00:00+02:00"}}"#
            ),
            format!(
                r#"{{{bare},"messageId":"m","originalTimestamp":"2020-01-01T00:00:00+02:00","timestamp":"2020-01-01T00:00:00+02:00"}}"#
            ),
        ),
        (
            format!(r#"{{{bare},"messageId":"m","originalTimestamp":7}}"#),
            format!(r#"{{{bare},"messageId":"m","originalTimestamp":7,"timestamp":"{NOW}"}}"#),
        ),
        (
            format!(r#"{{{bare},"m\u0065ssageId":null,"timestamp":"t","s\u0065ntAt":"s"}}"#),
            format!(r#"{{{bare},"m\u0065ssageId":"{NEW_ID}","timestamp":"t"}}"#),
        ),
    ] {
        assert_eq!(item(&sent), Ok(stored));
    }
}

#[test]
fn a_foreign_time_is_corrected_by_the_envelopes_sent_at_or_else_the_messages() {
    let stamper = stamper().correcting_clocks(Duration::from_secs(600));
    let bare = r#""type":"identify","userId":"u","messageId":"m""#;
    let behind = r#""sentAt":"2026-11-23T11:00:00.123456789Z""#;
    let right = r#""sentAt":"2026-11-23T11:59:00Z""#;
    let (sent, moved) = (
        r#""2026-11-23T10:00:00+00:00""#,
        r#""2026-11-23T11:00:00.000Z""#,
    );
    let timestamp = format!(r#""timestamp":{sent}"#);
    let corrected = format!(r#""timestamp":{moved},"originalTimestamp":{sent}"#);
    for (envelope, own, stored) in [
        (behind, timestamp.clone(), corrected.clone()),
        (
            r#""sentAt":null"#,
            format!("{behind},{timestamp}"),
            corrected.clone(),
        ),
        (
            r#""sentAt":"""#,
            format!("{behind},{timestamp}"),
            corrected.clone(),
        ),
        (behind, format!("{right},{timestamp}"), corrected),
        (right, format!("{behind},{timestamp}"), timestamp.clone()),
        (
            r#""sentAt":"s""#,
            format!("{behind},{timestamp}"),
            timestamp.clone(),
        ),
        (r#""sentAt":7"#, timestamp.clone(), timestamp.clone()),
        (
            r#""x":1"#,
            format!(r#""sentAt":null,{timestamp}"#),
            timestamp.clone(),
        ),
        (
            behind,
            format!(r#""originalTimestamp":"o",{timestamp}"#),
            format!(r#""originalTimestamp":"o","timestamp":{moved}"#),
        ),
        (
            behind,
            format!(r#""originalTimestamp":null,{timestamp}"#),
            format!(r#""originalTimestamp":{sent},"timestamp":{moved}"#),
        ),
        (
            behind,
            format!(r#""originalTimestamp":{sent}"#),
            format!(r#""originalTimestamp":{sent},"timestamp":{moved}"#),
        ),
        (
            behind,
            r#""timestamp":"t""#.into(),
            r#""timestamp":"t""#.into(),
        ),
        (behind, r#""timestamp":7"#.into(), r#""timestamp":7"#.into()),
        (
            behind,
            r#""x":1"#.into(),
            format!(r#""x":1,"timestamp":"{NOW}""#),
        ),
    ] {
        let body = format!(r#"{{{envelope},"batch":[{{{bare},{own}}}]}}"#);
        let envelope = decode_batch(body.as_bytes()).expect("the body is a batch");
        let stored = format!("{{{bare},{stored}}}");
        assert_eq!(finish_with(&envelope, &stamper), [Ok(stored)], "{body}");
    }

    let body = format!(r#"{{{bare},{timestamp},{behind}}}"#);
    let envelope = decode_single(Kind::Identify, body.as_bytes()).expect("the body is JSON");
    let stored = finish_with(&envelope, &stamper).remove(0);
    assert!(stored.expect("a kept event").contains(moved));
}

#[test]
fn everything_else_is_forwarded_byte_for_byte() {
    let deep = format!("{}1{}", "[{\"a\":".repeat(50_000), "}]".repeat(50_000));
    let shallow = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let digits = "9".repeat(1_000);
    for rest in [
        r#""a":1,"a":2,"a":{"b":1,"b":2}"#,
        r#""lone \ud800 key":"lone \udfff value","pair":"\ud83d\ude00 😀""#,
        r#""nul":"\u0000","\u0000":"\"\\\/\b\f\n\r\t","quote\"":"}{][,:""#,
        r#""":"","big":-123456789012345678901234567890.5e+9999,"zero":-0.0E-0"#,
        r#""spaced":{ "a" : [ 1 , 2 ] , "b":	"c" },"null":null,"t":true,"f":false"#,
        r#""_metadata":{"bundled":[]},"writeKey":"K","options":{},"channel":"server""#,
        &format!(r#""digits":{digits}"#),
        &format!(r#""nested":{shallow}"#),
    ] {
        let event = format!(
            r#"{{{rest},"type":"identify","userId":"u","messageId":"m","timestamp":"t","context":{{"\ud800" : 1}}}}"#
        );
        assert_eq!(item(&event).as_ref(), Ok(&event));
    }

    let event = format!(r#"{{"type":"identify","userId":"u","deep":{deep}}}"#);
    assert_eq!(code(item(&event)), "event_too_large");
}

#[test]
fn white_space_between_members_goes_and_within_values_stays() {
    let sent = "\r\n{ \"type\" :\t\"identify\" , \"userId\": \"u\",\n\"messageId\": \"m\", \"timestamp\": \"t\", \"n\": 1 , \"traits\": { \"a\": 1 } }\n";
    let stored = r#"{"type":"identify","userId":"u","messageId":"m","timestamp":"t","n":1,"traits":{ "a": 1 }}"#;
    assert_eq!(item(sent).as_deref(), Ok(stored));
    assert_eq!(single(Kind::Identify, sent).as_deref(), Ok(stored));
}

#[test]
fn a_known_member_given_twice_is_sent_once_as_it_was_last() {
    let sent = r#"{"type":"page","userId":"a","type":"identify","messageId":"m","us\u0065rId":"b","timestamp":"t"}"#;
    let stored = r#"{"type":"identify","userId":"b","messageId":"m","timestamp":"t"}"#;
    assert_eq!(item(sent).as_deref(), Ok(stored));
}

#[test]
fn the_envelope_is_merged_into_each_message_and_the_message_wins() {
    let bare = r#""type":"identify","userId":"u","messageId":"m","timestamp":"t""#;
    for (envelope, own, merged) in [
        (r#""context":{ "a":1 }"#, "", r#","context":{ "a":1 }"#),
        (
            r#""context":{"a":1}"#,
            r#","context":null"#,
            r#","context":{"a":1}"#,
        ),
        (
            r#""context":{"a":1,"b":2}"#,
            r#","context":{"a":{}}"#,
            r#","context":{"a":{},"b":2}"#,
        ),
        (
            r#""context":{"a":1}"#,
            r#","context":{ }"#,
            r#","context":{"a":1}"#,
        ),
        (
            r#""context":{"a":1}"#,
            r#","context":{ "a" : 2 }"#,
            r#","context":{ "a" : 2 }"#,
        ),
        (
            r#""context":{"\u0061":1}"#,
            r#","context":{"a":2}"#,
            r#","context":{"a":2}"#,
        ),
        (
            r#""context":{"\ud800":1}"#,
            r#","context":{"\ud801":2}"#,
            r#","context":{"\ud801":2,"\ud800":1}"#,
        ),
        (
            r#""context":{}"#,
            r#","context":{"a":2}"#,
            r#","context":{"a":2}"#,
        ),
        (
            r#""context":{"a":1}"#,
            r#","context":"c""#,
            r#","context":"c""#,
        ),
        (r#""context":"c","integrations":null"#, "", ""),
        (
            r#""integrations":{"All":false},"context":{"a":1},"messageId":"x","timestamp":"x","sequence":1"#,
            r#","integrations":{"X":true}"#,
            r#","integrations":{"X":true,"All":false},"context":{"a":1}"#,
        ),
    ] {
        let body = format!(r#"{{{envelope},"batch":[{{{bare}{own}}}]}}"#);
        assert_eq!(batch(&body), [Ok(format!("{{{bare}{merged}}}"))]);
    }
}

#[test]
fn an_event_may_be_32768_bytes_long_once_stamped_and_no_longer() {
    let bare = item(r#"{"type":"identify","userId":"u","x":""}"#).expect("a kept event");
    let room = EVENT_BYTES_MAX - bare.len();
    let event = |bytes| {
        format!(
            r#"{{"type":"identify","userId":"u","x":"{}"}}"#,
            "x".repeat(bytes)
        )
    };
    assert_eq!(
        item(&event(room)).map(|event| event.len()),
        Ok(EVENT_BYTES_MAX)
    );

    let rejection = item(&event(room + 1)).expect_err("a rejection");
    assert_eq!(rejection.code().as_str(), "event_too_large");
    assert!(rejection.message().contains("32769"), "{rejection}");
    assert!(rejection.message().contains("32768"), "{rejection}");
}

#[test]
fn a_rejected_event_leaves_the_buffer_as_it_was() {
    let event = format!(
        r#"{{"type":"identify","userId":"u","x":"{}"}}"#,
        "x".repeat(EVENT_BYTES_MAX)
    );
    let body = format!(r#"{{"batch":[{event}]}}"#);
    let envelope = decode_batch(body.as_bytes()).expect("the body is a batch");
    let checked = validate(&envelope.events[0]).expect("its size is known only once it is stamped");
    let mut out = b"before".to_vec();
    assert!(stamp(checked, &envelope, &stamper(), &mut out).is_err());
    assert_eq!(out, b"before");
}

#[test]
fn an_event_of_countless_members_is_too_large_and_not_collected() {
    let members = r#""":1,"#.repeat(EVENT_MEMBERS_MAX + 1);
    let event = format!(r#"{{{members}"type":"identify","userId":"u"}}"#);
    assert_eq!(code(item(&event)), "event_too_large");
}

#[test]
fn a_huge_envelope_is_not_copied_into_events() {
    let huge = "x".repeat(EVENT_BYTES_MAX);
    let body =
        format!(r#"{{"context":{{"x":"{huge}"}},"batch":[{{"type":"identify","userId":"u"}}]}}"#);
    assert_eq!(code(batch(&body).remove(0)), "event_too_large");
}

#[test]
fn write_keys_are_found_on_the_envelope_and_on_messages() {
    let body = br#"{"writeKey":"WRITEKEY_TEST","batch":[
        {"type":"page","userId":"u","writeKey":"OWN\u005fKEY"},
        {"type":"page","userId":"u","writeKey":null},
        {"type":"page","userId":"u","writeKey":""},
        {"type":"page","userId":"u","writeKey":7}]}"#;
    let envelope = decode_batch(body).expect("the body is a batch");
    assert_eq!(
        envelope.write_key(),
        Ok(WriteKey::new("WRITEKEY_TEST").ok())
    );
    let own: Vec<_> = envelope
        .events
        .iter()
        .map(|raw| {
            validate(raw)
                .expect("a kept event")
                .write_key()
                .map_err(|rejection| rejection.code())
        })
        .collect();
    assert_eq!(
        own,
        [
            Ok(WriteKey::new("OWN_KEY").ok()),
            Ok(None),
            Ok(None),
            Err(Code::WriteKeyNotValid)
        ]
    );

    for (key, expected) in [
        (r#""""#, Ok(None)),
        ("null", Ok(None)),
        ("7", Err(Code::WriteKeyNotValid)),
        (r#""secret\n""#, Err(Code::WriteKeyNotValid)),
    ] {
        let body = format!(r#"{{"writeKey":{key},"batch":[1]}}"#);
        let envelope = decode_batch(body.as_bytes()).expect("the body is a batch");
        let found = envelope.write_key();
        assert!(!format!("{found:?}").contains("secret"));
        assert_eq!(found.map_err(|rejection| rejection.code()), expected);
    }
}

#[test]
fn a_message_id_of_100_characters_is_kept_and_flagged() {
    for (characters, is_long) in [(99, false), (100, true)] {
        let id = "é".repeat(characters);
        let body = format!(r#"{{"userId":"u","messageId":"{id}"}}"#);
        let envelope = decode_single(Kind::Page, body.as_bytes()).expect("the body is JSON");
        let event = validate(&envelope.events[0]).expect("a kept event");
        assert_eq!(event.message_id_is_long(), is_long);
        assert!(
            single(Kind::Page, &body)
                .expect("a kept event")
                .contains(&id)
        );
    }
}

#[test]
fn nothing_shows_a_payload_when_debugged() {
    let envelope =
        decode_batch(br#"{"context":{"a":"secret"},"batch":[{"type":"page","userId":"secret"}]}"#)
            .expect("the body is a batch");
    let event = validate(&envelope.events[0]).expect("a kept event");
    assert!(!format!("{envelope:?}{event:?}").contains("secret"));
}

/// Bodies that real SDKs sent.
mod captured {
    use super::*;

    fn values(outcomes: Vec<Result<String, Rejection>>) -> Vec<Value> {
        let value = |outcome: Result<String, Rejection>| {
            serde_json::from_str(&outcome.expect("a kept event")).expect("stamped events are JSON")
        };
        outcomes.into_iter().map(value).collect()
    }

    fn sent(body: &str) -> Vec<Value> {
        let body: Value = serde_json::from_str(body).expect("captures are JSON");
        body["batch"]
            .as_array()
            .expect("captures are batches")
            .clone()
    }

    const NODE: &str = r#"{"batch":[{"timestamp":"2026-11-23T11:43:07.080Z","integrations":{},"type":"identify","userId":"u-1","traits":{"email":"a@example.test","n":1},"context":{"library":{"name":"@segment/analytics-node","version":"3.1.0"}},"messageId":"node-next-1795434187080-ec8cd791-6f55-4aa0-981f-7af562bdd0c1","_metadata":{"nodeVersion":"v20.20.2","jsRuntime":"node"}},{"timestamp":"2026-11-23T11:43:07.081Z","integrations":{"All":true},"event":"Order Done","type":"track","properties":{"total":12.5,"when":"2026-01-02T00:00:00.000Z"},"context":{"ip":"10.0.0.1","library":{"name":"@segment/analytics-node","version":"3.1.0"}},"userId":"u-1","messageId":"node-next-1795434187081-d7916f55-3aa0-481f-baf5-62bdd0c102c0","_metadata":{"nodeVersion":"v20.20.2","jsRuntime":"node"}},{"timestamp":"2026-11-23T11:43:07.081Z","integrations":{},"type":"page","properties":{"url":"http://x.test/","category":"Docs"},"category":"Docs","name":"Home","context":{"library":{"name":"@segment/analytics-node","version":"3.1.0"}},"userId":"u-1","messageId":"node-next-1795434187081-6f553aa0-d81f-4af5-a2bd-d0c102c09cc9","_metadata":{"nodeVersion":"v20.20.2","jsRuntime":"node"}},{"timestamp":"2026-11-23T11:43:07.081Z","integrations":{},"type":"screen","properties":{"a":1},"category":"Cat","name":"Main","context":{"library":{"name":"@segment/analytics-node","version":"3.1.0"}},"userId":"u-1","messageId":"node-next-1795434187081-3aa0d81f-7af5-42bd-90c1-02c09cc966e6","_metadata":{"nodeVersion":"v20.20.2","jsRuntime":"node"}},{"timestamp":"2026-11-23T11:43:07.082Z","integrations":{},"type":"group","traits":{"name":"Initech"},"groupId":"g-1","context":{"library":{"name":"@segment/analytics-node","version":"3.1.0"}},"userId":"u-1","messageId":"node-next-1795434187082-d81f7af5-62bd-40c1-82c0-9cc966e64472","_metadata":{"nodeVersion":"v20.20.2","jsRuntime":"node"}},{"timestamp":"2026-11-23T11:43:07.082Z","integrations":{},"userId":"u-1","type":"alias","previousId":"anon-9","context":{"library":{"name":"@segment/analytics-node","version":"3.1.0"}},"messageId":"node-next-1795434187082-7af562bd-d0c1-42c0-9cc9-66e64472c8e0","_metadata":{"nodeVersion":"v20.20.2","jsRuntime":"node"}},{"timestamp":"2020-01-01T00:00:00.000Z","integrations":{},"event":"Anon","type":"track","properties":{},"context":{"library":{"name":"@segment/analytics-node","version":"3.1.0"}},"anonymousId":"anon-9","messageId":"custom-message-id-1","_metadata":{"nodeVersion":"v20.20.2","jsRuntime":"node"}}],"writeKey":"WRITEKEY_TEST","sentAt":"2026-11-23T11:43:07.087Z"}"#;
    const PYTHON: &str = r#"{"batch": [{"integrations": {}, "anonymousId": null, "timestamp": "2026-11-23T11:42:29.848+00:00", "context": {"library": {"name": "analytics-python", "version": "2.2.3"}}, "type": "identify", "userId": "u-1", "traits": {"email": "a@example.test", "n": 1}, "messageId": "d3055ffc-a3e4-40be-a76c-ec1a52a97c85"}, {"integrations": {"All": true}, "anonymousId": null, "properties": {"total": 12.5, "when": "2026-01-02T03:04:05"}, "timestamp": "2026-11-23T11:42:29.848+00:00", "context": {"ip": "10.0.0.1", "library": {"name": "analytics-python", "version": "2.2.3"}}, "userId": "u-1", "type": "track", "event": "Order Done", "messageId": "a4863eb1-c6d3-4338-ae13-d44fe2453d59"}, {"integrations": {}, "anonymousId": null, "properties": {"url": "http://x.test/"}, "timestamp": "2026-11-23T11:42:29.848+00:00", "category": "Docs", "context": {"library": {"name": "analytics-python", "version": "2.2.3"}}, "userId": "u-1", "type": "page", "name": "Home", "messageId": "94d4c5b5-a6e0-4c2e-ba88-586a55b174cc"}, {"integrations": {}, "anonymousId": null, "properties": {"a": 1}, "timestamp": "2026-11-23T11:42:29.849+00:00", "category": "Cat", "context": {"library": {"name": "analytics-python", "version": "2.2.3"}}, "userId": "u-1", "type": "screen", "name": "Main", "messageId": "46794cb3-41b5-4be4-9757-dbf436167168"}, {"integrations": {}, "anonymousId": null, "timestamp": "2026-11-23T11:42:29.849+00:00", "groupId": "g-1", "context": {"library": {"name": "analytics-python", "version": "2.2.3"}}, "userId": "u-1", "traits": {"name": "Initech"}, "type": "group", "messageId": "bf8886f8-c445-4e9e-9571-4fd75cb2e682"}, {"integrations": {}, "previousId": "anon-9", "timestamp": "2026-11-23T11:42:29.849+00:00", "context": {"library": {"name": "analytics-python", "version": "2.2.3"}}, "userId": "u-1", "type": "alias", "messageId": "d1463801-06be-476f-a9ed-7ddabf0bed27", "anonymousId": null}, {"integrations": {}, "anonymousId": "anon-9", "properties": {}, "timestamp": "2020-01-01T00:00:00.000+00:00", "context": {"library": {"name": "analytics-python", "version": "2.2.3"}}, "userId": null, "type": "track", "event": "Anon", "messageId": "985e9c99-9fd9-443e-b111-409be9274226"}], "sentAt": "2026-11-23T11:42:30.048781+00:00"}"#;
    const BROWSER_BATCH: &str = r#"{"writeKey":"WRITEKEY_TEST","batch":[{"timestamp":"2026-11-23T11:48:22.312Z","integrations":{"Segment.io":true},"type":"page","properties":{"path":"/p","referrer":"","search":"?q=1","title":"T","url":"http://shop.example.test/p?q=1","category":"Docs","name":"Home"},"category":"Docs","name":"Home","context":{"page":{"path":"/p","referrer":"","search":"?q=1","title":"T","url":"http://shop.example.test/p?q=1"},"userAgent":"Mozilla/5.0 (linux) AppleWebKit/537.36 (KHTML, like Gecko) jsdom/22.1.0","locale":"en-US","library":{"name":"analytics.js","version":"npm:next-1.84.3"},"campaign":{},"timezone":"UTC"},"messageId":"ajs-next-1795434502312-b3574ee2-7968-4a13-a4ea-cd7d38ae29f4","anonymousId":"574ee279-685a-43a4-aacd-7d38ae29f428","writeKey":"WRITEKEY_TEST","userId":null,"_metadata":{"bundled":["Segment.io"],"unbundled":[],"bundledIds":[]}},{"timestamp":"2026-11-23T11:48:22.346Z","integrations":{"Segment.io":true},"type":"identify","userId":"u-1","traits":{"email":"a@example.test"},"context":{"page":{"path":"/p","referrer":"","search":"?q=1","title":"T","url":"http://shop.example.test/p?q=1"},"userAgent":"Mozilla/5.0 (linux) AppleWebKit/537.36 (KHTML, like Gecko) jsdom/22.1.0","locale":"en-US","library":{"name":"analytics.js","version":"npm:next-1.84.3"},"campaign":{},"timezone":"UTC"},"messageId":"ajs-next-1795434502346-e279685a-13a4-4acd-bd38-ae29f4289845","anonymousId":"574ee279-685a-43a4-aacd-7d38ae29f428","writeKey":"WRITEKEY_TEST","_metadata":{"bundled":["Segment.io"],"unbundled":[],"bundledIds":[]}},{"timestamp":"2026-11-23T11:48:22.351Z","integrations":{"Segment.io":true},"event":"Order Done","type":"track","properties":{"total":12.5},"context":{"page":{"path":"/p","referrer":"","search":"?q=1","title":"T","url":"http://shop.example.test/p?q=1"},"userAgent":"Mozilla/5.0 (linux) AppleWebKit/537.36 (KHTML, like Gecko) jsdom/22.1.0","locale":"en-US","library":{"name":"analytics.js","version":"npm:next-1.84.3"},"campaign":{},"timezone":"UTC"},"messageId":"ajs-next-1795434502351-685a13a4-eacd-4d38-ae29-f4289845ee03","userId":"u-1","anonymousId":"574ee279-685a-43a4-aacd-7d38ae29f428","writeKey":"WRITEKEY_TEST","_metadata":{"bundled":["Segment.io"],"unbundled":[],"bundledIds":[]}}],"sentAt":"2026-11-23T11:48:22.356Z"}"#;
    const BROWSER: &str = r#"{"timestamp":"2026-11-23T11:48:18.879Z","integrations":{"Segment.io":true},"type":"page","properties":{"path":"/p","referrer":"","search":"?q=1","title":"T","url":"http://shop.example.test/p?q=1","category":"Docs","name":"Home"},"category":"Docs","name":"Home","context":{"page":{"path":"/p","referrer":"","search":"?q=1","title":"T","url":"http://shop.example.test/p?q=1"},"userAgent":"Mozilla/5.0 (linux) AppleWebKit/537.36 (KHTML, like Gecko) jsdom/22.1.0","locale":"en-US","library":{"name":"analytics.js","version":"npm:next-1.84.3"},"campaign":{},"timezone":"UTC"},"messageId":"ajs-next-1795434498879-3bc338ab-b3dc-4339-8461-8c0b6f82017d","anonymousId":"c338abb3-dc23-4984-a18c-0b6f82017dea","writeKey":"WRITEKEY_TEST","userId":null,"sentAt":"2026-11-23T11:48:18.949Z","_metadata":{"bundled":["Segment.io"],"unbundled":[],"bundledIds":[]}}"#;
    const GO: &str = r#"{"messageId":"4182dfef-9346-43fc-a4e0-5539b79f5de3","sentAt":"2026-11-23T11:52:41.21671846Z","batch":[{"type":"identify","messageId":"4c039e93-8955-4051-81bd-49cebb53e7e6","userId":"u-1","timestamp":"2026-11-23T11:52:41.015630842Z","traits":{"email":"a@example.test"}},{"type":"track","messageId":"abc42ec0-d72d-49e2-bcfb-a3b7666a3b2c","userId":"u-1","event":"Order Done","timestamp":"2026-11-23T11:52:41.015637381Z","properties":{"revenue":12.5}},{"type":"page","messageId":"7ef4965b-da58-435b-a0d7-cb0553586ec6","userId":"u-1","name":"Home","timestamp":"2026-11-23T11:52:41.015638833Z"},{"type":"screen","messageId":"61e6716e-7ee3-4eda-b89e-45acd49c827c","userId":"u-1","name":"Main","timestamp":"2026-11-23T11:52:41.015640034Z"},{"type":"group","messageId":"c361ce82-ea5d-4b69-b590-7643b1ac7888","userId":"u-1","groupId":"g-1","timestamp":"2026-11-23T11:52:41.015641827Z"},{"type":"alias","messageId":"c4d6a720-e297-4795-9f06-356466acb250","previousId":"anon-9","userId":"u-1","timestamp":"2026-11-23T11:52:41.015643541Z"}],"context":{"library":{"name":"analytics-go","version":"3.0.0"}}}"#;
    const RUDDER: &str = r#"{"batch":[{"userId":"u-1","traits":{"email":"a@example.test","n":1},"context":{"traits":{"email":"a@example.test","n":1},"library":{"name":"analytics-node","version":"3.0.13"}},"type":"identify","channel":"server","_metadata":{"nodeVersion":"20.20.2"},"originalTimestamp":"2026-11-23T11:43:07.992Z","messageId":"c9110f82-2bd8-420b-b7b2-037781421807","sentAt":"2026-11-23T11:43:07.993Z"}],"timestamp":"2026-11-23T11:43:07.993Z","sentAt":"2026-11-23T11:43:07.993Z"}"#;
    const RUST: &str = r#"{"userId":"u-1","event":"Order Done","properties":{"total":12.5}}"#;

    #[test]
    fn complete_events_of_node_python_and_browsers_are_stored_as_they_were_sent() {
        for body in [NODE, PYTHON, BROWSER_BATCH] {
            assert_eq!(values(batch(body)), sent(body));
        }
        for (body, event) in [(NODE, 6), (BROWSER_BATCH, 2)] {
            let stored = batch(body).remove(event).expect("a kept event");
            assert!(body.contains(&stored), "it differs in its bytes: {stored}");
        }
    }

    #[test]
    fn a_browsers_single_event_loses_only_its_sent_at() {
        let stored = single(Kind::Page, BROWSER).expect("a kept event");
        assert_eq!(
            stored,
            BROWSER.replace(r#""sentAt":"2026-11-23T11:48:18.949Z","#, "")
        );
    }

    #[test]
    fn events_of_go_take_their_library_from_the_envelope() {
        for stored in values(batch(GO)) {
            assert_eq!(stored["context"]["library"]["name"], "analytics-go");
            assert_ne!(stored["messageId"], "4182dfef-9346-43fc-a4e0-5539b79f5de3");
        }
    }

    #[test]
    fn events_of_rudder_take_their_original_timestamp() {
        let stored = values(batch(RUDDER)).remove(0);
        assert_eq!(stored["timestamp"], "2026-11-23T11:43:07.992Z");
        assert_eq!(stored["sentAt"], Value::Null);
    }

    #[test]
    fn events_of_rust_take_their_type_from_the_path_and_their_time_from_the_relay() {
        let stored = single(Kind::Track, RUST).expect("a kept event");
        let added = format!(r#","type":"track","messageId":"{NEW_ID}","timestamp":"{NOW}"}}"#);
        assert_eq!(stored, RUST.replace("}}", &format!("}}{added}")));
    }
}

/// JSON that looks like events often enough to get through, with every oddity that JSON allows.
fn odd_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("-12345678901234567890.5E+999".to_owned()),
        Just(r#""track""#.to_owned()),
        Just(r#""\ud800 \" \\""#.to_owned()),
        "[a-zé\\[\\]{}:, ]{0,12}".prop_map(|text| format!("\"{text}\"")),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4)
                .prop_map(|items| format!("[ {}]", items.join(" ,"))),
            odd_object(inner),
        ]
    })
}

fn odd_object(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "type",
        "userId",
        "us\\u0065rId",
        "messageId",
        "timestamp",
        "originalTimestamp",
        "sentAt",
        "context",
        "integrations",
        "event",
        "properties",
        "traits",
        "x",
        "x\\ud800",
        "\\\"",
        "",
    ]);
    prop::collection::vec((key, value), 0..8).prop_map(|members| {
        let members: Vec<_> = members
            .iter()
            .map(|(key, value)| format!("\"{key}\" :{value}"))
            .collect();
        format!("{{{}\t}}", members.join(",\n"))
    })
}

/// An event that is valid but for what is odd about it.
fn odd_event() -> impl Strategy<Value = String> {
    odd_object(odd_json()).prop_map(|odd| {
        let comma = if odd == "{\t}" { "" } else { "," };
        format!(
            r#"{{"type":"track","userId":"u","event":"E"{comma}{}"#,
            &odd[1..]
        )
    })
}

/// Everything that stamping promises of its output.
fn check_stamped(envelope: &Envelope<'_>) {
    for stored in finish(envelope).into_iter().flatten() {
        assert!(stored.len() <= EVENT_BYTES_MAX);
        let again = item(&stored).expect("a stamped event is valid");
        assert_eq!(again, stored, "stamping what was stamped changes nothing");
    }
}

proptest! {
    #[test]
    fn an_object_is_cut_as_serde_json_parses_it(object in odd_object(odd_json())) {
        let json: Json<'_> = serde_json::from_str(&object).expect("the object is JSON");
        let parsed: HashMap<Json<'_>, Json<'_>> =
            serde_json::from_str(&object).expect("the object is JSON");
        let cut: HashMap<_, _> = json.members().map(|member| (member.key, member.value)).collect();
        prop_assert!(cut == parsed, "{object}");
    }

    #[test]
    fn any_bytes_are_taken_or_refused_without_a_panic(body in prop::collection::vec(any::<u8>(), 0..256)) {
        if let Ok(envelope) = decode_batch(&body) {
            check_stamped(&envelope);
        }
        for kind in Kind::ALL {
            if let Ok(envelope) = decode_single(kind, &body) {
                check_stamped(&envelope);
            }
        }
    }

    #[test]
    fn stamping_what_was_stamped_changes_nothing(
        events in prop::collection::vec(prop_oneof![odd_event(), odd_json()], 1..4),
        context in odd_json(),
    ) {
        let body = format!(r#"{{"batch":[{}],"context":{context}}}"#, events.join(","));
        let envelope = decode_batch(body.as_bytes()).expect("the body is a batch");
        check_stamped(&envelope);
    }

    #[test]
    fn a_body_cut_short_or_with_a_byte_changed_is_taken_or_refused_without_a_panic(
        event in odd_event(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut body = format!(r#"{{"batch":[{event}]}}"#).into_bytes();
        let at = at.index(body.len());
        prop_assert!(decode_batch(&body[..at]).is_err());
        body[at] = byte;
        if let Ok(envelope) = decode_batch(&body) {
            check_stamped(&envelope);
        }
    }
}
