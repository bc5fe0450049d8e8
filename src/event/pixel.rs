//! Turns the fields of a pixel call into the JSON text of one message. Looks at no field's meaning.
//!
//! A picture in a mail or a page can only ask for an address, so the message stands in the query, in one of two forms:
//!
//! - `data=<base64 of the message>`, in either alphabet, with or without padding. A `+` may have arrived raw, which
//!   reads as a space. What else the query holds, such as a number that defeats caches, is ignored.
//! - `userId=u&event=E&properties.subject=S`: a dot in a name opens an object, and every value is a string. Where two
//!   fields contradict each other the later one wins, as a member given twice does: `a=1&a.b=2` is `{"a":{"b":"2"}}`, and
//!   `a.b=2&a=1` is `{"a":"1"}`.
//!
//! Bytes that are no UTF-8 once decoded become U+FFFD. The body of a POST is the same, or the message itself.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

use super::limits::{EVENT_BYTES_MAX, EVENT_MEMBERS_MAX, PIXEL_DEPTH_MAX};
use super::rejection::{Code, Rejection};

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Reads the query of a pixel call, or the body of one that has no query. The result may be no message at all, or no JSON:
/// that is for [`decode_single`](super::decode_single) to find.
///
/// # Errors
/// [`Code::PixelNotValid`], and [`Code::EventTooLarge`] if there are more fields than fit into an event.
pub fn decode_pixel(fields: &[u8]) -> Result<Cow<'_, [u8]>, Rejection> {
    if fields.trim_ascii_start().starts_with(b"{") {
        return Ok(Cow::Borrowed(fields));
    }
    let data = form_urlencoded::parse(fields).filter(|(name, _)| name == "data");
    match data.last() {
        Some((_, data)) if !data.is_empty() => unpack(&data).map(Cow::Owned),
        Some(_) | None => nest(fields).map(Cow::Owned),
    }
}

fn unpack(data: &str) -> Result<Vec<u8>, Rejection> {
    let text: Vec<u8> = data
        .bytes()
        .filter(|byte| !matches!(byte, b'\r' | b'\n'))
        .map(|byte| match byte {
            b'-' | b' ' => b'+',
            b'_' => b'/',
            other => other,
        })
        .collect();
    LENIENT
        .decode(text)
        .map_err(|_| Rejection::new(Code::PixelNotValid, "`data` is not base64"))
}

fn nest(fields: &[u8]) -> Result<Vec<u8>, Rejection> {
    let mut message = Map::new();
    let mut made = 0;
    for (path, value) in form_urlencoded::parse(fields) {
        if path.split('.').count() > PIXEL_DEPTH_MAX {
            return Err(Rejection::new(
                Code::PixelNotValid,
                format!("a field's name has more than {PIXEL_DEPTH_MAX} parts"),
            ));
        }
        let mut names = path.split('.');
        let last = names.next_back().unwrap_or_default();
        let mut object = &mut message;
        for name in names {
            object = open(object, name, &mut made);
        }
        let replaced = object.insert(last.to_owned(), Value::String(value.into_owned()));
        made += usize::from(replaced.is_none());
        if made > EVENT_MEMBERS_MAX {
            return Err(Rejection::new(
                Code::EventTooLarge,
                format!("the call has more fields than fit into {EVENT_BYTES_MAX} bytes"),
            ));
        }
    }
    Ok(serde_json::to_vec(&message).expect("strings and objects are JSON"))
}

/// The object that `name` holds, which replaces a string.
fn open<'a>(
    object: &'a mut Map<String, Value>,
    name: &str,
    made: &mut usize,
) -> &'a mut Map<String, Value> {
    let held = object.entry(name).or_insert(Value::Null);
    if !held.is_object() {
        *held = Value::Object(Map::new());
        *made += 1;
    }
    held.as_object_mut().expect("it was just made one")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn message(fields: &str) -> Value {
        let text = decode_pixel(fields.as_bytes()).expect("a message");
        serde_json::from_slice(&text).expect("JSON")
    }

    #[test]
    fn dotted_names_become_objects_and_values_strings() {
        for (fields, expected) in [
            ("", json!({})),
            ("&&", json!({})),
            ("userId=u", json!({"userId": "u"})),
            (
                "userId=u+1&event=Mail%20Opened&properties.subject=a%26b%3Dc&properties.n=7",
                json!({"userId": "u 1", "event": "Mail Opened", "properties": {"subject": "a&b=c", "n": "7"}}),
            ),
            (
                "a.b.c=1&a.b.d=2&a.e=",
                json!({"a": {"b": {"c": "1", "d": "2"}, "e": ""}}),
            ),
            ("a%2Eb=%C3%A9%F0%9F%98%80", json!({"a": {"b": "é😀"}})),
            ("a", json!({"a": ""})),
            ("a=\"\\%00", json!({"a": "\"\\\0"})),
            ("a=%FF%zz", json!({"a": "\u{fffd}%zz"})),
            ("data=&a=1", json!({"data": "", "a": "1"})),
        ] {
            assert_eq!(message(fields), expected, "{fields}");
        }
    }

    #[test]
    fn of_fields_that_contradict_each_other_the_later_wins() {
        for (fields, expected) in [
            ("a=1&a=2", json!({"a": "2"})),
            ("a=1&a.b=2", json!({"a": {"b": "2"}})),
            ("a.b=2&a=1", json!({"a": "1"})),
            (
                "a.b=1&a.b.c=2&a.d=3",
                json!({"a": {"b": {"c": "2"}, "d": "3"}}),
            ),
            (".=1&=2", json!({"": "2"})),
            ("=2&.=1&..a=3", json!({"": {"": {"a": "3"}}})),
            ("data=e30&data=eyJhIjoxfQ", json!({"a": 1})),
        ] {
            assert_eq!(message(fields), expected, "{fields}");
        }
    }

    #[test]
    fn data_is_base64_in_any_of_its_spellings() {
        // Its base64 has `+`, `/` and padding.
        let sent = json!({"userId": "u>>>???", "event": "~~é"});
        let text = sent.to_string();
        let padded = base64::engine::general_purpose::STANDARD.encode(&text);
        assert!(padded.contains('+') && padded.contains('/') && padded.ends_with('='));
        let bare = padded.trim_end_matches('=');
        let url_safe = |data: &str| data.replace('+', "-").replace('/', "_");
        let percent = |data: &str| {
            let bytes = data.bytes();
            bytes.map(|b| format!("%{b:02x}")).collect::<String>()
        };
        for data in [
            padded.clone(),
            bare.to_owned(),
            url_safe(&padded),
            url_safe(bare),
            percent(&padded),
            percent(&url_safe(bare)),
            padded.replace('+', " "),
            format!("{}%0D%0A{}", &padded[..8], &padded[8..]),
        ] {
            assert_eq!(message(&format!("_=1&data={data}&x=y")), sent, "{data}");
        }
    }

    #[test]
    fn a_body_may_be_the_message_itself() {
        for body in [r#"{"a":1}"#, " \r\n{\"a\" : 1}"] {
            assert_eq!(message(body), json!({"a": 1}));
        }
    }

    #[test]
    fn fields_beyond_the_bounds_are_refused_without_showing_them() {
        let deepest = vec!["s"; PIXEL_DEPTH_MAX].join(".");
        assert!(decode_pixel(format!("{deepest}=1").as_bytes()).is_ok());
        let most: String = (0..EVENT_MEMBERS_MAX).map(|n| format!("{n}=&")).collect();
        assert!(decode_pixel(most.as_bytes()).is_ok());
        for (fields, code) in [
            ("data=secret!".to_owned(), Code::PixelNotValid),
            ("data=s".to_owned(), Code::PixelNotValid),
            (format!("{deepest}.secret=1"), Code::PixelNotValid),
            (".".repeat(1_000_000), Code::PixelNotValid),
            (format!("{most}secret=1"), Code::EventTooLarge),
            (
                "a.secret=1&a=1&".repeat(EVENT_MEMBERS_MAX),
                Code::EventTooLarge,
            ),
        ] {
            let rejection = decode_pixel(fields.as_bytes()).expect_err("out of bounds");
            assert_eq!(rejection.code(), code);
            assert!(!rejection.message().contains("secret"), "{rejection}");
        }
    }

    proptest! {
        #[test]
        fn any_fields_give_json_or_a_rejection(
            bytes in prop::collection::vec(any::<u8>(), 0..64),
            dotted in "([ab.]{0,6}=?[%0-9a-f+]{0,4}&){0,12}",
            data in "data=[A-Za-z0-9+/_ =%-]{0,40}",
        ) {
            for fields in [&bytes[..], data.as_bytes()] {
                let _ = decode_pixel(fields);
            }
            if let Ok(text) = decode_pixel(dotted.as_bytes()) {
                prop_assert!(serde_json::from_slice::<Map<String, Value>>(&text).is_ok());
            }
        }
    }
}
