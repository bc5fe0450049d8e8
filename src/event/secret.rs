//! The secret that both ends of a webhook share, and the signatures made with it. Nothing shows it.

use std::fmt;
use std::sync::Arc;

use ring::hmac;
use zeroize::Zeroizing;

/// A shared secret. A body's signature is its HMAC-SHA1 in hexadecimal digits, as Segment has it.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedSecret(Arc<Zeroizing<String>>);

impl SharedSecret {
    /// A secret; none where `text` is empty.
    #[must_use]
    pub fn new(text: String) -> Option<SharedSecret> {
        let text = Zeroizing::new(text);
        (!text.is_empty()).then(|| SharedSecret(Arc::new(text)))
    }

    /// The signature of these bytes.
    #[must_use]
    pub fn sign(&self, bytes: &[u8]) -> String {
        let tag = hmac::sign(&self.key(), bytes);
        tag.as_ref().iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Whether `signature` is that of these bytes. How long that takes says nothing of how much of it was right.
    #[must_use]
    pub fn has_signed(&self, bytes: &[u8], signature: &str) -> bool {
        let digits = signature.trim().as_bytes().chunks(2);
        let tag = digits.map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok());
        let tag: Option<Vec<u8>> = tag.collect();
        tag.is_some_and(|tag| hmac::verify(&self.key(), bytes, &tag).is_ok())
    }

    fn key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, self.0.as_bytes())
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 2202, test case 2.
    #[test]
    fn a_signature_is_that_of_the_rfc_and_no_other_is_taken_for_it() {
        let secret = SharedSecret::new("Jefe".into()).expect("a secret");
        let text = b"what do ya want for nothing?";
        let good = "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79";
        assert_eq!(secret.sign(text), good);
        for (signature, expected) in [
            (good, true),
            (&good.to_uppercase(), true),
            (&good[..38], false),
            (&format!("{good}00"), false),
            ("effcdf6ae5eb2fa2d27416d5f184df9c259a7c78", false),
            ("sha1=effcdf6ae5eb2fa2d27416d5f184df9c259a", false),
            ("é", false),
            ("", false),
        ] {
            assert_eq!(secret.has_signed(text, signature), expected, "{signature}");
        }
        assert!(!secret.has_signed(b"what", good));
        assert!(!format!("{secret:?}").contains("Jefe"));
        assert_eq!(SharedSecret::new(String::new()), None);
    }
}
