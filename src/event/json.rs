//! JSON text that is known to be well formed, and how to cut it.
//!
//! serde_json checks every body once. Afterwards a value only has to be cut into its members, and for that it is enough
//! to find where each ends: half the time of parsing again, no recursion, and nothing is decoded.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// One JSON value as the text it came as, without white space around it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Json<'a>(&'a str);

/// A key and its value. The key is the text between and including its quotes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member<'a> {
    pub(super) key: Json<'a>,
    pub(super) value: Json<'a>,
}

impl<'a> Json<'a> {
    /// Text made by this module.
    pub(super) const fn ours(text: &'a str) -> Json<'a> {
        Json(text)
    }

    pub(super) const fn as_str(self) -> &'a str {
        self.0
    }

    pub(super) fn is_object(self) -> bool {
        self.0.starts_with('{')
    }

    pub(super) fn is_string(self) -> bool {
        self.0.starts_with('"')
    }

    pub(super) fn is_empty_string(self) -> bool {
        self.0 == "\"\""
    }

    pub(super) fn is_null(self) -> bool {
        self.0 == "null"
    }

    /// What a string says, its escapes resolved. `None` if this is no string, or one that no Unicode string can hold
    /// because of a lone surrogate.
    pub(super) fn text(self) -> Option<Cow<'a, str>> {
        let inner = self.0.strip_prefix('"')?.strip_suffix('"')?;
        if inner.contains('\\') {
            serde_json::from_str(self.0).ok().map(Cow::Owned)
        } else {
            Some(Cow::Borrowed(inner))
        }
    }

    /// The members of an object in their order; of anything else, none.
    pub(super) fn members(self) -> Members<'a> {
        Members {
            rest: self.0.strip_prefix('{').unwrap_or_default(),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Json<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&RawValue>::deserialize(deserializer).map(|checked| Json(checked.get()))
    }
}

impl fmt::Debug for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of JSON", self.0.len())
    }
}

/// See [`Json::members`].
#[derive(Debug)]
pub(super) struct Members<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Members<'a> {
    type Item = Member<'a>;

    fn next(&mut self) -> Option<Member<'a>> {
        let key = self.cut()?;
        let value = self.cut()?;
        Some(Member { key, value })
    }
}

impl<'a> Members<'a> {
    /// Cuts off the next key or value.
    fn cut(&mut self) -> Option<Json<'a>> {
        let rest = self.rest.trim_start_matches(is_between);
        let (value, rest) = rest.split_at_checked(value_bytes(rest.as_bytes())?)?;
        self.rest = rest;
        Some(Json(value))
    }
}

/// Whether it may stand between keys and values.
fn is_between(c: char) -> bool {
    matches!(c, ' ' | '\n' | '\r' | '\t' | ',' | ':')
}

/// The length of the value that `text` begins with, if it begins with one.
fn value_bytes(text: &[u8]) -> Option<usize> {
    match text.first()? {
        b'"' => string_bytes(text),
        b'{' | b'[' => container_bytes(text),
        b'}' | b']' => None,
        _ => text
            .iter()
            .position(|byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t')),
    }
}

/// Most of an event is strings, so this looks at eight bytes at a time.
fn string_bytes(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        if let Some(word) = text.get(at..)?.first_chunk() {
            let word = u64::from_le_bytes(*word);
            let found = zero_bytes(word ^ QUOTES) | zero_bytes(word ^ BACKSLASHES);
            if found == 0 {
                at += 8;
                continue;
            }
            at += found.trailing_zeros() as usize / 8;
        }
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

const EACH_BYTE: u64 = 0x0101_0101_0101_0101;
const QUOTES: u64 = EACH_BYTE * b'"' as u64;
const BACKSLASHES: u64 = EACH_BYTE * b'\\' as u64;

/// Sets the high bit of the lowest byte that is zero; of those above it, perhaps also of others.
const fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(EACH_BYTE) & !word & (EACH_BYTE * 0x80)
}

fn container_bytes(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    let mut depth = 0_usize;
    loop {
        match text.get(at)? {
            b'"' => at += string_bytes(&text[at..])?,
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' => {
                depth -= 1;
                at += 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(object: &str) -> Vec<(&str, &str)> {
        let object: Json<'_> = serde_json::from_str(object).expect("the object is JSON");
        object
            .members()
            .map(|member| (member.key.0, member.value.0))
            .collect()
    }

    #[test]
    fn an_object_is_cut_into_its_members_whatever_their_values_hold() {
        for (object, members) in [
            ("{}", vec![]),
            (" { \n} ", vec![]),
            (r#"{"a":1}"#, vec![(r#""a""#, "1")]),
            (
                "{ \"a\" :\t-1.5e+9\r\n, \"b\":null }",
                vec![(r#""a""#, "-1.5e+9"), (r#""b""#, "null")],
            ),
            (
                r#"{"a":"}\"","\\":"\\\\"}"#,
                vec![(r#""a""#, r#""}\"""#), (r#""\\""#, r#""\\\\""#)],
            ),
            (
                r#"{"a":[{"]":"["}],"":{"a":{}}}"#,
                vec![(r#""a""#, r#"[{"]":"["}]"#), (r#""""#, r#"{"a":{}}"#)],
            ),
            ("[1,2]", vec![]),
        ] {
            assert_eq!(cut(object), members, "{object}");
        }
    }

    #[test]
    fn a_string_ends_at_its_quote_wherever_that_lies_among_eight_bytes() {
        for bytes in 0..20 {
            for inner in [
                "x".repeat(bytes),
                "x".repeat(bytes) + r#"\""#,
                "!]#".repeat(bytes) + r"\\",
            ] {
                let value = format!("\"{inner}\"");
                let object = format!(r#"{{"k":{value},"l":"tail"}}"#);
                assert_eq!(
                    cut(&object),
                    [(r#""k""#, value.as_str()), (r#""l""#, r#""tail""#)]
                );
            }
        }
    }

    #[test]
    fn nesting_of_a_hundred_thousand_levels_takes_no_stack() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let object = format!(r#"{{"deep":{deep},"last":1}}"#);
        assert_eq!(
            cut(&object),
            [(r#""deep""#, deep.as_str()), (r#""last""#, "1")]
        );
    }
}
