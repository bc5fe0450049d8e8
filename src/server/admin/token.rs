//! The token that lets an operator in. A secret: nothing shows it.

use std::fmt;
use std::sync::Arc;

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use subtle::ConstantTimeEq;

/// The token of `admin.token_file`.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminToken(Arc<str>);

impl AdminToken {
    /// A token; none where `text` is empty, or holds what no header can.
    #[must_use]
    pub fn new(text: &str) -> Option<AdminToken> {
        let fits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        fits.then(|| AdminToken(text.into()))
    }

    /// Whether a request's headers bear it. How long that takes says nothing of how much of it was right.
    pub(super) fn is_borne_by(&self, headers: &HeaderMap) -> bool {
        bearer(headers).is_some_and(|token| bool::from(token.as_bytes().ct_eq(self.0.as_bytes())))
    }
}

/// The token that a request's headers bear.
pub(in crate::server) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_itself_as_bearer_lets_in() {
        let token = AdminToken::new("s3cret").expect("a token");
        for (value, admitted) in [
            ("Bearer s3cret", true),
            ("bearer  s3cret ", true),
            ("Bearer s3cre", false),
            ("Bearer s3crets", false),
            ("Basic s3cret", false),
            ("s3cret", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().expect("a header"));
            assert_eq!(token.is_borne_by(&headers), admitted, "{value}");
        }
        assert!(!token.is_borne_by(&HeaderMap::new()));
        assert!(!format!("{token:?}").contains("s3cret"));
    }

    #[test]
    fn a_token_is_text_that_fits_into_a_header() {
        for text in ["", "two words", "line\nline", "é"] {
            assert_eq!(AdminToken::new(text), None, "{text:?}");
        }
    }
}
