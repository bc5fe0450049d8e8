//! The write key: which source of Segment an event belongs to, and a secret.

use std::fmt;
use std::sync::Arc;

use super::limits::WRITE_KEY_BYTES_MAX;
use super::rejection::{Code, Rejection};
use crate::mask::masked;

/// A write key of 1 to [`WRITE_KEY_BYTES_MAX`] bytes without control characters.
///
/// `Debug` and `Display` show its last four characters, as in `…ab12`, and no more than half of a short key.
/// A clone shares the text.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct WriteKey(Arc<str>);

impl WriteKey {
    /// Checks a key.
    ///
    /// # Errors
    /// [`Code::WriteKeyNotValid`] if it is empty, too long or has control characters.
    pub fn new(key: &str) -> Result<WriteKey, Rejection> {
        if key.is_empty() {
            return Err(not_valid("the write key is empty".to_owned()));
        }
        if key.len() > WRITE_KEY_BYTES_MAX {
            let bytes = key.len();
            return Err(not_valid(format!(
                "the write key is {bytes} bytes long, more than {WRITE_KEY_BYTES_MAX}"
            )));
        }
        if key.chars().any(char::is_control) {
            return Err(not_valid(
                "the write key has a control character".to_owned(),
            ));
        }
        Ok(WriteKey(key.into()))
    }

    /// Takes the key from the decoded credentials of HTTP Basic: the user name, which is all before the first colon. The
    /// colon may be missing, and a password is ignored, as Segment does.
    ///
    /// # Errors
    /// As [`WriteKey::new`].
    pub fn from_basic(credentials: &str) -> Result<WriteKey, Rejection> {
        let user = credentials
            .split_once(':')
            .map_or(credentials, |(user, _)| user);
        WriteKey::new(user)
    }

    /// The whole key, to be sent to its destination and shown nowhere.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

fn not_valid(message: String) -> Rejection {
    Rejection::new(Code::WriteKeyNotValid, message)
}

impl fmt::Display for WriteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&masked(&self.0))
    }
}

impl fmt::Debug for WriteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriteKey({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_shows_its_last_four_characters_at_most() {
        for (key, shown) in [("ab12", "…12"), ("WRITEKEY_TEST", "…TEST")] {
            let write_key = WriteKey::new(key).expect("the key is valid");
            assert_eq!(write_key.to_string(), shown);
            assert_eq!(format!("{write_key:?}"), format!("WriteKey({shown})"));
            assert_eq!(write_key.expose(), key);
        }
    }

    #[test]
    fn a_key_that_is_empty_too_long_or_has_control_characters_is_refused_without_showing_it() {
        let longest = "k".repeat(WRITE_KEY_BYTES_MAX);
        assert!(WriteKey::new(&longest).is_ok());
        for key in [
            "",
            "secret\n",
            "sec\0ret",
            "\u{7f}secret",
            &(longest + "secret"),
        ] {
            let rejection = WriteKey::new(key).expect_err("the key is not valid");
            assert_eq!(rejection.code(), Code::WriteKeyNotValid);
            assert!(!rejection.to_string().contains("secret"));
        }
    }

    #[test]
    fn basic_credentials_give_the_user_name_with_or_without_a_colon() {
        for credentials in ["KEY:", "KEY", "KEY:password", "KEY:a:b"] {
            let key = WriteKey::from_basic(credentials).expect("the key is valid");
            assert_eq!(key.expose(), "KEY");
        }
        assert!(WriteKey::from_basic(":password").is_err());
    }
}
