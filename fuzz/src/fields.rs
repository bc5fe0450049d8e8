//! What `event` promises of the fields of a pixel call, held against a flat list of them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use serde_json::Value;

use crate::body::{check_refusal, check_single};
use crate::event::limits::{EVENT_MEMBERS_MAX, PIXEL_DEPTH_MAX};
use crate::event::{Code, decode_pixel};

/// What a byte of the fields may become, such as a NUL, and what an empty name, value and message take.
const GROWTH_MAX: usize = 6;
const ADDED_BYTES_MAX: usize = 16;

/// The names from the outermost object inwards, and the value they lead to.
type Leaves = BTreeMap<Vec<String>, String>;

/// Takes bytes as the fields of a pixel call and as the message in its `data`, and panics on the first promise that is
/// broken.
pub fn check_fields(fields: &[u8]) {
    match decode_pixel(fields) {
        Ok(message) => {
            assert!(message.len() <= fields.len() * GROWTH_MAX + ADDED_BYTES_MAX);
            if holds_the_message(fields) {
                assert!(message.len() <= fields.len());
            } else {
                assert_eq!(leaves(&message), leaves_sent(fields));
            }
            check_single(&message);
        }
        Err(rejection) => {
            let expected = [Code::PixelNotValid, Code::EventTooLarge];
            assert!(expected.contains(&rejection.code()), "{rejection}");
            check_refusal(fields, &rejection);
        }
    }
    for base64 in [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD] {
        let query = format!("n=1&data={}&m=1", base64.encode(fields));
        let message = decode_pixel(query.as_bytes()).expect("it is base64");
        assert!(fields.is_empty() || *message == *fields, "{query}");
    }
}

fn holds_the_message(fields: &[u8]) -> bool {
    let data = form_urlencoded::parse(fields).filter(|(name, _)| name == "data");
    fields.trim_ascii_start().starts_with(b"{")
        || data.last().is_some_and(|(_, data)| !data.is_empty())
}

/// A later field ends all that it contradicts.
fn leaves_sent(fields: &[u8]) -> Leaves {
    let mut leaves = Leaves::new();
    for (name, value) in form_urlencoded::parse(fields) {
        let path: Vec<String> = name.split('.').map(str::to_owned).collect();
        leaves.retain(|other, _| !other.starts_with(&path) && !path.starts_with(other));
        leaves.insert(path, value.into_owned());
    }
    leaves
}

fn leaves(message: &[u8]) -> Leaves {
    let message: Value = serde_json::from_slice(message).expect("fields become JSON");
    let mut leaves = Leaves::new();
    let mut open = vec![(Vec::new(), message)];
    while let Some((path, value)) = open.pop() {
        assert!(path.len() <= PIXEL_DEPTH_MAX);
        match value {
            Value::String(text) => {
                leaves.insert(path, text);
            }
            Value::Object(members) => {
                assert!(path.is_empty() || !members.is_empty());
                open.extend(members.into_iter().map(|(name, value)| {
                    let mut path = path.clone();
                    path.push(name);
                    (path, value)
                }));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
                panic!("fields become strings and objects")
            }
        }
    }
    assert!(leaves.len() <= EVENT_MEMBERS_MAX);
    leaves
}
