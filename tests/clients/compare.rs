//! Whether what an application gave to its SDK is what Segment got.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use segspool::stand_in::RecordedEvent;
use serde_json::value::RawValue;

/// What a client printed, one JSON object a line.
pub(crate) fn lines(printed: &str) -> Vec<Object> {
    let lines = printed.lines().map(serde_json::from_str);
    lines
        .map(|line| object(line.expect("a client prints JSON lines")))
        .collect()
}

/// Every printed event arrived, whole, as one of those delivered. There are as many of these, so nothing else did.
pub(crate) fn compare(printed: &[Object], delivered: &[RecordedEvent]) {
    let delivered: Vec<Object> = delivered
        .iter()
        .map(|recorded| object(&recorded.event))
        .collect();
    for event in &delivered {
        assert!(!event.contains_key("sentAt"), "{event:?}");
        assert!(event.contains_key("timestamp"), "{event:?}");
    }
    for wanted in printed {
        let arrivals = delivered.iter().filter(|event| holds(event, wanted));
        let arrivals = arrivals.count();
        assert_eq!(arrivals, 1, "{}", what_is_wrong(wanted, &delivered));
    }
}

fn holds(event: &Object, wanted: &Object) -> bool {
    wanted
        .iter()
        .all(|(name, value)| event.get(name) == Some(value))
}

fn what_is_wrong(wanted: &Object, delivered: &[Object]) -> String {
    let id = |event: &Object| event.get("messageId").cloned();
    let Some(nearest) = delivered.iter().find(|event| id(event) == id(wanted)) else {
        return format!("did not arrive once: {wanted:?}");
    };
    let mut wrong = format!("{:?} arrived with", id(wanted));
    for (name, value) in wanted {
        let arrived = nearest.get(name);
        if arrived != Some(value) {
            write!(wrong, "\n{name}: {arrived:?}\ninstead of {value:?}")
                .expect("a String can be written to");
        }
    }
    wrong
}

pub(crate) type Object = BTreeMap<String, Json>;

/// JSON whose numbers are compared as they are spelled, since f64 makes different ones equal.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    Object(Object),
    Array(Vec<Json>),
    String(String),
    /// A number, `true`, `false`, `null`, or a string that no Unicode text can hold.
    Spelled(String),
}

fn json(raw: &RawValue) -> Json {
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'{') => Json::Object(object(raw)),
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).expect("this is an array");
            Json::Array(items.into_iter().map(json).collect())
        }
        Some(b'"') => serde_json::from_str(text).map_or_else(
            |_lone_surrogate| Json::Spelled(text.to_owned()),
            Json::String,
        ),
        _ => Json::Spelled(text.to_owned()),
    }
}

fn object(raw: &RawValue) -> Object {
    let members: BTreeMap<String, &RawValue> =
        serde_json::from_str(raw.get()).expect("this is an object");
    let members = members.into_iter();
    members.map(|(name, raw)| (name, json(raw))).collect()
}
