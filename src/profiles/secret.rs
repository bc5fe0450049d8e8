//! A token. Nothing shows it.

use std::fmt;
use std::sync::Arc;

use subtle::ConstantTimeEq;

/// A token.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// A token; none where `text` is empty, or holds what no header can.
    #[must_use]
    pub fn new(text: &str) -> Option<Secret> {
        let fits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        fits.then(|| Secret(text.into()))
    }

    /// Whether this is it. How long that takes says nothing of how much of it was right.
    pub(super) fn is(&self, text: &str) -> bool {
        bool::from(text.as_bytes().ct_eq(self.0.as_bytes()))
    }

    /// The token itself, for whoever it lets in.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_fits_into_a_header_and_is_not_shown() {
        for text in ["", "two words", "line\nline", "é"] {
            assert_eq!(Secret::new(text), None, "{text:?}");
        }
        let secret = Secret::new("s3cret").expect("a token");
        assert!(secret.is("s3cret") && !secret.is("s3cre") && !secret.is(""));
        assert!(!format!("{secret:?}").contains("s3cret"));
    }
}
