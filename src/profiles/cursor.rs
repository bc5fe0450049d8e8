//! Where the next page of an answer is: back through whoever was asked for this one. Pure.
//!
//! Only the text of `cursor.url` is changed; every other byte of a body stays as it came. A body without one is left alone.

use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

/// What every path of the Profile API begins with. What comes before, in its URLs, is how to reach it.
const ROOT: &str = "/v1/spaces/";

/// How a client reached us, as far as it told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller<'a> {
    /// `http` or `https`.
    pub scheme: &'a str,
    /// The host that it called, with its port.
    pub host: Option<&'a str>,
}

impl Caller<'_> {
    /// The body with a next page that this client can ask us for.
    #[must_use]
    pub fn reroute(self, body: &Bytes) -> Bytes {
        let Some((place, url)) = find(body) else {
            return body.clone();
        };
        let Some(url) = self.url(&url) else {
            return body.clone();
        };
        let url = serde_json::to_vec(&url).expect("a string is JSON");
        [&body[..place.start], &url, &body[place.end..]]
            .concat()
            .into()
    }

    /// An absolute URL stays absolute, a bare path bare.
    fn url(self, url: &str) -> Option<String> {
        let path = &url[url.find(ROOT)?..];
        let is_absolute = url.starts_with("http://") || url.starts_with("https://");
        Some(match self.host.filter(|_| is_absolute) {
            Some(host) => format!("{}://{host}{path}", self.scheme),
            None => path.to_owned(),
        })
    }
}

/// The string `cursor.url` of a body, and where it stands.
fn find(body: &[u8]) -> Option<(Range<usize>, String)> {
    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow)]
        cursor: Option<Cursor<'a>>,
    }
    #[derive(Deserialize)]
    struct Cursor<'a> {
        #[serde(borrow)]
        url: Option<&'a RawValue>,
    }
    let parsed: Body<'_> = serde_json::from_slice(body).ok()?;
    let raw = parsed.cursor?.url?.get();
    let url = serde_json::from_str(raw).ok()?;
    // A raw value is borrowed from the body, so its address tells its place.
    let start = (raw.as_ptr() as usize).checked_sub(body.as_ptr() as usize)?;
    let place = start..start + raw.len();
    (body.get(place.clone())? == raw.as_bytes()).then_some((place, url))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_asked_of_us_and_no_other_byte_changes() {
        let called = Caller {
            scheme: "http",
            host: Some("localhost:7346"),
        };
        let secure = Caller {
            scheme: "https",
            ..called
        };
        let unnamed = Caller {
            host: None,
            ..called
        };
        let path = "/v1/spaces/s/collections/users/profiles/a:b/events?next=x";
        let absolute = format!("https://profiles.segment.com{path}");
        for (caller, url, expected) in [
            (called, path, path.to_owned()),
            (called, &absolute, format!("http://localhost:7346{path}")),
            (secure, &absolute, format!("https://localhost:7346{path}")),
            (unnamed, &absolute, path.to_owned()),
            (called, &format!("/behind{path}"), path.to_owned()),
            (
                called,
                &format!("http://proxy.test/p{path}"),
                format!("http://localhost:7346{path}"),
            ),
            (called, "", String::new()),
            (
                called,
                "https://elsewhere.test/x",
                "https://elsewhere.test/x".into(),
            ),
        ] {
            let body = |url: &str| {
                Bytes::from(format!(
                    "{{ \"data\":[ 1.0, {{\"url\":\"{absolute}\"}}],\n \"cursor\" : {{\"next\":\"n\", \"url\": \"{url}\" ,\"has_more\":true}}, \"é\":1e2 }}\n"
                ))
            };
            assert_eq!(caller.reroute(&body(url)), body(&expected), "{url}");
        }
        let escaped = r#"{"cursor":{"url":"https:\/\/p.test\/v1\/spaces\/s\/\"é"}}"#;
        assert_eq!(
            called.reroute(&Bytes::from(escaped)),
            r#"{"cursor":{"url":"http://localhost:7346/v1/spaces/s/\"é"}}"#
        );
    }

    #[test]
    fn a_body_without_a_cursor_is_left_alone() {
        let caller = Caller {
            scheme: "http",
            host: Some("localhost"),
        };
        for body in [
            "",
            "no JSON",
            "[]",
            "{}",
            "null",
            r#"{"cursor":null}"#,
            r#"{"cursor":5}"#,
            r#"{"cursor":{}}"#,
            r#"{"cursor":{"url":null}}"#,
            r#"{"cursor":{"url":5}}"#,
            r#"{"data":{"cursor":{"url":"http://p.test/v1/spaces/s"}}}"#,
            r#"{"cursor":{"url":"http://p.test/v1/spaces/s"}"#,
        ] {
            let body = Bytes::from(body);
            assert_eq!(caller.reroute(&body), body);
        }
    }
}
