//! What `event` promises of every body, held against what serde_json alone makes of the same bytes.
//!
//! Nothing here shares code with what it checks: an object is read by serde_json into the text of its keys and values, and
//! what must be stored is told from that. No recursion follows the input, so that depth is the relay's to survive.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::RangeInclusive;
use std::sync::LazyLock;
use std::time::Duration;

use jiff::Timestamp;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::event::limits::{EVENT_BYTES_MAX, EVENT_MEMBERS_MAX, REQUEST_EVENTS_MAX};
use crate::event::{
    Code, Envelope, Kind, RawEvent, Rejection, Stamp, WriteKey, decode_batch, decode_single, stamp,
    validate,
};

/// What lies in the buffer before an event is stamped into it.
const BEFORE: &[u8] = b"before";
/// More than the names, ids and times that a stamp adds by itself.
const ADDED_BYTES_MAX: usize = 200;
/// A rejection may not hold so many bytes of what was sent, one after another.
const SHOWN_BYTES: usize = 16;
/// Above this, debug output is taken on trust: it costs more than all else.
const DEBUGGED_BYTES_MAX: usize = 128;

/// When all is received, and what the time is by a clock that is right.
const NOW: &str = "2026-11-23T12:00:00Z";
/// How far a sender's clock may be off where clocks are corrected.
const SKEW_OVER: Duration = Duration::from_secs(600);
/// Digits of a second's fraction in a corrected time.
const FRACTION_DIGITS: RangeInclusive<u32> = 3..=9;

/// The members that are read; `sentAt` is read and left out.
const KNOWN: [&str; 17] = [
    "type",
    "messageId",
    "timestamp",
    "context",
    "integrations",
    "sentAt",
    "userId",
    "anonymousId",
    "previousId",
    "groupId",
    "event",
    "name",
    "category",
    "properties",
    "traits",
    "originalTimestamp",
    "writeKey",
];
/// Those of [`KNOWN`] that a stamp may write.
const WRITTEN: [&str; 6] = [
    "type",
    "messageId",
    "timestamp",
    "originalTimestamp",
    "context",
    "integrations",
];

static TRUSTING: LazyLock<Stamp> = LazyLock::new(|| stamp_of(NOW, || Uuid::from_u128(1)));
static CORRECTING: LazyLock<Stamp> =
    LazyLock::new(|| TRUSTING.clone().correcting_clocks(SKEW_OVER));
static LATER: LazyLock<Stamp> = LazyLock::new(|| {
    stamp_of("2027-01-01T00:00:00Z", || Uuid::from_u128(2)).correcting_clocks(Duration::ZERO)
});

/// Takes a body as a batch and as a single event of each kind through all steps, and panics on the first promise that is
/// broken.
pub fn check_body(body: &[u8]) {
    match decode_batch(body) {
        Ok(envelope) => check_batch(body, &envelope),
        Err(rejection) => check_refusal(body, &rejection),
    }
    check_single(body);
}

/// The same for a single event of each kind alone.
pub(crate) fn check_single(body: &[u8]) {
    if let Err(rejection) = decode_single(Kind::Track, body) {
        assert_eq!(rejection.code(), Code::InvalidJson);
        return check_refusal(body, &rejection);
    }
    for kind in Kind::ALL {
        match decode_single(kind, body) {
            Ok(envelope) => {
                let [raw] = envelope.events.as_slice() else {
                    panic!("a single event is one event");
                };
                check_event(raw, &envelope, &Surroundings::default());
            }
            Err(rejection) => panic!("as {kind}: {rejection}"),
        }
    }
}

fn check_batch(body: &[u8], envelope: &Envelope<'_>) {
    let text = str::from_utf8(body).expect("a batch is UTF-8");
    let members = members(text).expect("a batch is an object");
    let batch = last(&members, "batch").expect("a batch has one");
    let items: Vec<&RawValue> = serde_json::from_str(batch).expect("it is an array");
    assert!((1..=REQUEST_EVENTS_MAX).contains(&items.len()));
    let decoded = envelope.events.iter().map(RawEvent::json);
    assert!(
        decoded.eq(items.iter().map(|item| item.get())),
        "items differ"
    );

    check_write_key(body, &members, envelope.write_key());
    check_debug(body, envelope);

    let sent_at = last(&members, "sentAt");
    let surroundings = Surroundings {
        context: last(&members, "context").filter(|value| is_object(value)),
        integrations: last(&members, "integrations").filter(|value| is_object(value)),
        sent_at: sent_at.filter(|value| !["null", "\"\""].contains(value)),
    };
    for raw in &envelope.events {
        check_event(raw, envelope, &surroundings);
    }
}

/// The envelope's own members that count for each message.
#[derive(Default)]
struct Surroundings<'a> {
    context: Option<&'a str>,
    integrations: Option<&'a str>,
    sent_at: Option<&'a str>,
}

impl Surroundings<'_> {
    fn bytes(&self) -> usize {
        self.context.map_or(0, str::len) + self.integrations.map_or(0, str::len)
    }

    fn are_none(&self) -> bool {
        self.bytes() == 0 && self.sent_at.is_none()
    }
}

fn check_event(raw: &RawEvent<'_>, envelope: &Envelope<'_>, surroundings: &Surroundings<'_>) {
    let sent = raw.json();
    let checked = match validate(raw) {
        Ok(checked) => checked,
        Err(rejection) => {
            assert_eq!(
                rejection.code() == Code::NotAnObject,
                !is_object(sent),
                "{rejection}"
            );
            return check_refusal(sent.as_bytes(), &rejection);
        }
    };
    let kind = checked.kind();
    let own = members(sent).expect("a valid event is an object");
    check_debug(sent.as_bytes(), &checked);
    check_write_key(sent.as_bytes(), &own, checked.write_key());

    for clocks in [Clocks::Trusted, Clocks::Corrected] {
        let checked = validate(raw).expect("it was valid before");
        let mut out = BEFORE.to_vec();
        match stamp(checked, envelope, clocks.stamp(), &mut out) {
            Ok(event) => {
                assert_eq!(event.kind, kind);
                assert_eq!(event.bytes, BEFORE.len()..out.len());
                let stored = out.strip_prefix(BEFORE).expect("nothing before it changes");
                let text = str::from_utf8(stored).expect("it is UTF-8");
                check_stored(&own, text, kind, surroundings, clocks);
                check_again(sent, stored, kind, surroundings, clocks);
            }
            Err(rejection) => {
                assert_eq!(out, BEFORE, "a rejected event leaves the buffer as it was");
                assert_eq!(rejection.code(), Code::EventTooLarge);
                check_refusal(sent.as_bytes(), &rejection);
                let times = ["timestamp", "originalTimestamp"];
                let copied_time = times.map(|time| last(&own, time).map_or(0, str::len));
                let copied = copied_time.into_iter().max().unwrap_or_default();
                let most = sent.len() + copied + surroundings.bytes() + ADDED_BYTES_MAX;
                assert!(most > EVENT_BYTES_MAX, "{most} bytes are not too large");
            }
        }
    }
}

/// Whether a sender's clock is believed.
#[derive(Clone, Copy)]
enum Clocks {
    Trusted,
    Corrected,
}

impl Clocks {
    fn stamp(self) -> &'static Stamp {
        match self {
            Clocks::Trusted => &TRUSTING,
            Clocks::Corrected => &CORRECTING,
        }
    }

    /// What `time` is by our clock, if theirs showed `sent_at` and is off.
    fn corrected(self, sent_at: Option<&str>, time: &str) -> Option<Timestamp> {
        match self {
            Clocks::Trusted => None,
            Clocks::Corrected => {
                let now: Timestamp = NOW.parse().expect("it is a time");
                let skew = now.as_nanosecond() - instant(sent_at?)?.as_nanosecond();
                let moved = instant(time)?.as_nanosecond() + skew;
                let is_off = skew.unsigned_abs() > SKEW_OVER.as_nanos();
                is_off.then(|| Timestamp::from_nanosecond(moved).ok())?
            }
        }
    }
}

fn check_write_key(
    payload: &[u8],
    members: &[Member<'_>],
    found: Result<Option<WriteKey>, Rejection>,
) {
    let key = last(members, "writeKey").filter(|key| *key != "null");
    match found {
        Ok(write_key) => assert_eq!(
            write_key.as_ref().map(WriteKey::expose).unwrap_or_default(),
            key.map_or(Cow::Borrowed(""), |key| name(key)
                .expect("a key is a string"))
        ),
        Err(rejection) => {
            assert!(key.is_some());
            assert_eq!(rejection.code(), Code::WriteKeyNotValid);
            check_refusal(payload, &rejection);
        }
    }
}

/// Holds what is stored against what was sent, member by member.
fn check_stored(
    own: &[Member<'_>],
    text: &str,
    kind: Kind,
    surroundings: &Surroundings<'_>,
    clocks: Clocks,
) {
    assert!(text.len() <= EVENT_BYTES_MAX);
    let stored = members(text).expect("what is stored is a JSON object");
    assert!(stored.len() <= EVENT_MEMBERS_MAX);
    assert_eq!(object_of(&stored), text, "no white space between members");

    let mut kept = Vec::new();
    let mut seen = HashSet::new();
    for member in own {
        match member.known() {
            Some("sentAt") => {}
            Some(known) if !seen.insert(known) => {}
            Some(known) => kept.push((member.key, last(own, known).filter(|_| !is_written(known)))),
            None => kept.push((member.key, Some(member.value))),
        }
    }
    let (in_place, added) = stored.split_at(kept.len());
    for (stored, (key, value)) in in_place.iter().zip(kept) {
        assert_eq!(stored.key, key, "members keep their order and spelling");
        if let Some(value) = value {
            assert_eq!(stored.value, value, "all else is forwarded byte for byte");
        }
    }
    for member in added {
        let known = member.known().expect("only known members are added");
        assert!(is_written(known) && seen.insert(known), "{known} is added");
    }

    let present = |known| last(own, known).filter(|value| *value != "null");
    let stored = |known| last(&stored, known);
    assert_eq!(stored("type").and_then(name).as_deref(), Some(kind.name()));
    match present("messageId").filter(|id| *id != "\"\"") {
        Some(id) => assert_eq!(stored("messageId"), Some(id)),
        None => assert_eq!(
            stored("messageId"),
            Some(format!("\"{}\"", Uuid::from_u128(1)).as_str())
        ),
    }
    let original = present("originalTimestamp");
    let usable = original.filter(|time| time.starts_with('"') && *time != "\"\"");
    let sent = present("timestamp").or(usable);
    let sent_at = surroundings.sent_at.or(present("sentAt"));
    let time = stored("timestamp").expect("every event has a time");
    let kept = last(own, "originalTimestamp");
    match sent.map(|sent| (sent, clocks.corrected(sent_at, sent))) {
        Some((sent, Some(moved))) => {
            check_moved(time, moved, sent);
            assert_eq!(stored("originalTimestamp"), original.or(Some(sent)));
        }
        Some((sent, None)) => {
            assert_eq!(time, sent);
            assert_eq!(stored("originalTimestamp"), kept);
        }
        None => {
            assert_eq!(instant(time), NOW.parse().ok());
            assert_eq!(stored("originalTimestamp"), kept);
        }
    }
    for (known, theirs) in [
        ("context", surroundings.context),
        ("integrations", surroundings.integrations),
    ] {
        assert_eq!(stored(known), joined(last(own, known), theirs).as_deref());
    }
}

/// A corrected time is the one that `sent` became, in UTC and as precise as `sent`.
fn check_moved(time: &str, moved: Timestamp, sent: &str) {
    let (_, fraction) = time.split_once('.').expect("it has a fraction");
    let fraction = fraction.strip_suffix("Z\"").expect("it is in UTC");
    let digits = u32::try_from(fraction.len()).expect("it is short");
    assert!(FRACTION_DIGITS.contains(&digits), "{time}");
    let step = 10_i128.pow(9 - digits);
    let stored = instant(time).expect("it is a time").as_nanosecond();
    let lost = moved.as_nanosecond() - stored;
    assert!((0..step).contains(&lost), "{time} is {lost} ns off");
    let came = instant(sent).expect("only a time is moved").as_nanosecond();
    assert_eq!(came % step, 0, "{time} is less precise than {sent}");
}

/// What was stored is stored again as it is, by every way in and at any later time.
fn check_again(
    sent: &str,
    stored: &[u8],
    kind: Kind,
    surroundings: &Surroundings<'_>,
    clocks: Clocks,
) {
    let single = |body: &[u8], stamper: &Stamp| {
        let envelope = decode_single(kind, body).expect("it is JSON");
        let checked = validate(&envelope.events[0]).expect("it is valid");
        let mut out = Vec::new();
        stamp(checked, &envelope, stamper, &mut out).expect("it is not too large");
        out
    };
    assert!(
        single(stored, &LATER) == stored,
        "stamping what was stamped changes nothing"
    );
    if surroundings.are_none() {
        assert!(
            single(sent.as_bytes(), clocks.stamp()) == stored,
            "a batch and a single call agree"
        );
    }
}

/// Finds what a refusal shows of the payload. One that was told before of another payload shows nothing of this one.
pub(crate) fn check_refusal(payload: &[u8], rejection: &Rejection) {
    thread_local! {
        static TOLD: RefCell<HashSet<u64>> = RefCell::default();
    }
    let shown = rejection.to_string();
    let is_new = TOLD.with_borrow_mut(|told| told.insert(hash(&shown)));
    if is_new {
        assert!(!shares_a_run(payload, shown.as_bytes()), "{shown}");
    }
}

fn check_debug(payload: &[u8], value: &impl fmt::Debug) {
    if payload.len() <= DEBUGGED_BYTES_MAX {
        let shown = format!("{value:?}");
        assert!(!shares_a_run(payload, shown.as_bytes()), "{shown}");
    }
}

/// Stands for a text among others without being compared as one: see [`shares_a_run`].
fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Whether both hold the same [`SHOWN_BYTES`]. They are compared as numbers: the fuzzer watches comparisons of memory and
/// would take the relay's own words from there and send them.
fn shares_a_run(payload: &[u8], shown: &[u8]) -> bool {
    let mut wanted: Vec<u128> = windows(shown).collect();
    wanted.sort_unstable();
    windows(payload).any(|run| wanted.binary_search(&run).is_ok())
}

fn windows(text: &[u8]) -> impl Iterator<Item = u128> {
    text.windows(SHOWN_BYTES).map(|run| {
        u128::from_le_bytes(
            run.try_into()
                .expect("a window is as long as it was asked for"),
        )
    })
}

/// What a stamp makes of a message's object and the envelope's.
fn joined(own: Option<&str>, theirs: Option<&str>) -> Option<String> {
    let Some(theirs) = theirs else {
        return own.map(str::to_owned);
    };
    let Some(own) = own.filter(|own| *own != "null") else {
        return Some(theirs.to_owned());
    };
    let Some(mut both) = members(own) else {
        return Some(own.to_owned());
    };
    let names: HashSet<_> = both.iter().map(|member| member.name.clone()).collect();
    let mut added = members(theirs).expect("only an object is joined");
    added.retain(|member| !names.contains(&member.name));
    if added.is_empty() {
        return Some(own.to_owned());
    }
    both.extend(added);
    Some(object_of(&both))
}

/// A key and a value as they are spelled.
struct Member<'a> {
    key: &'a str,
    value: &'a str,
    /// What the key says; one that no Unicode string can hold, how it is spelled.
    name: Result<Cow<'a, str>, &'a str>,
}

impl Member<'_> {
    fn known(&self) -> Option<&'static str> {
        let name = self.name.as_deref().ok()?;
        KNOWN.into_iter().find(|known| *known == name)
    }
}

fn last<'a>(members: &[Member<'a>], known: &str) -> Option<&'a str> {
    members
        .iter()
        .rfind(|member| member.name.as_deref() == Ok(known))
        .map(|member| member.value)
}

fn name(string: &str) -> Option<Cow<'_, str>> {
    let inner = string.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        serde_json::from_str(string).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(inner))
    }
}

fn instant(string: &str) -> Option<Timestamp> {
    name(string)?.parse().ok()
}

fn is_object(value: &str) -> bool {
    value.starts_with('{')
}

fn is_written(known: &str) -> bool {
    WRITTEN.contains(&known)
}

fn object_of(members: &[Member<'_>]) -> String {
    let mut object = String::from("{");
    for (nth, member) in members.iter().enumerate() {
        object.extend([
            if nth > 0 { "," } else { "" },
            member.key,
            ":",
            member.value,
        ]);
    }
    object + "}"
}

fn members(object: &str) -> Option<Vec<Member<'_>>> {
    struct Object<'a>(Vec<Member<'a>>);

    impl<'de> Deserialize<'de> for Object<'de> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct ObjectVisitor;

            impl<'de> Visitor<'de> for ObjectVisitor {
                type Value = Object<'de>;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("an object")
                }

                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                    let mut members = Vec::new();
                    while let Some((key, value)) = map.next_entry::<&RawValue, &RawValue>()? {
                        members.push(Member {
                            key: key.get(),
                            value: value.get(),
                            name: name(key.get()).ok_or(key.get()),
                        });
                    }
                    Ok(Object(members))
                }
            }

            deserializer.deserialize_map(ObjectVisitor)
        }
    }

    serde_json::from_str(object)
        .ok()
        .map(|Object(members)| members)
}

fn stamp_of(now: &str, new_id: fn() -> Uuid) -> Stamp {
    Stamp::at(now.parse().expect("it is a time")).with_new_id(new_id)
}
