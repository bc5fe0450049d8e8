//! What a call to a webhook says, and what its receiver would say to it. Pure: no I/O, no clock.

use serde_json::value::RawValue;

use ring::hmac;

use super::batch::{Reception, Violation};

/// Every path below it is a webhook's: what follows is its name.
pub(super) const PREFIX: &str = "/hook/";

/// The decoded body of a call to a webhook, and what its headers say.
#[derive(Clone, Copy, Debug)]
pub(super) struct HookCall<'a> {
    pub(super) name: &'a str,
    pub(super) body: &'a [u8],
    pub(super) content_type: Option<&'a str>,
    pub(super) signature: Option<&'a str>,
}

impl<'a> HookCall<'a> {
    /// The event that it is; none where it is not one JSON object.
    pub(super) fn event(&self) -> Option<&'a RawValue> {
        let event: &RawValue = serde_json::from_slice(self.body).ok()?;
        event.get().starts_with('{').then_some(event)
    }

    /// What is wrong with it, what decides the answer first. Without a secret nothing is said of signatures.
    pub(super) fn violations(&self, secret: Option<&str>) -> Vec<Violation> {
        let is_json = self.content_type.is_some_and(|content_type| {
            let essence = content_type.split(';').next().unwrap_or_default();
            essence.trim().eq_ignore_ascii_case("application/json")
        });
        [
            (
                Violation::NotSigned,
                secret.is_some_and(|secret| !self.is_signed_with(secret)),
            ),
            (Violation::NotOneObject, self.event().is_none()),
            (Violation::NotJsonType, !is_json),
        ]
        .into_iter()
        .filter_map(|(violation, broken)| broken.then_some(violation))
        .collect()
    }

    /// How it is taken: with a violation it is refused, and so is what is no event at all.
    pub(super) fn reception(&self, violations: &[Violation]) -> Reception {
        match violations.first() {
            Some(violation) => violation.reception(),
            None if self.event().is_none() => Violation::NotOneObject.reception(),
            None => Reception::Accept,
        }
    }

    fn is_signed_with(&self, secret: &str) -> bool {
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
        let tag = hmac::sign(&key, self.body);
        let digits: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        self.signature == Some(digits.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_one_signed_json_object_of_its_type() {
        // By openssl.
        let good = "9747404884a7300d608232b3815caee1a682cdc5";
        let body = r#"{"messageId":"a"}"#;
        let json = Some("application/json");
        for (body, content_type, signature, secret, expected) in [
            (body, json, Some(good), Some("s3cret"), vec![]),
            (body, json, None, None, vec![]),
            (
                body,
                Some("Application/JSON; charset=utf-8"),
                None,
                None,
                vec![],
            ),
            (body, json, None, Some("s3cret"), vec![Violation::NotSigned]),
            (
                body,
                json,
                Some(good),
                Some("other"),
                vec![Violation::NotSigned],
            ),
            (
                r#"{"messageId":"b"}"#,
                json,
                Some(good),
                Some("s3cret"),
                vec![Violation::NotSigned],
            ),
            (
                body,
                Some("text/plain"),
                None,
                None,
                vec![Violation::NotJsonType],
            ),
            (body, None, None, None, vec![Violation::NotJsonType]),
            ("[{}]", json, None, None, vec![Violation::NotOneObject]),
            ("{} {}", json, None, None, vec![Violation::NotOneObject]),
            (
                "",
                None,
                None,
                None,
                vec![Violation::NotOneObject, Violation::NotJsonType],
            ),
        ] {
            let call = HookCall {
                name: "orders",
                body: body.as_bytes(),
                content_type,
                signature,
            };
            assert_eq!(call.violations(secret), expected, "{body} {content_type:?}");
        }
    }
}
