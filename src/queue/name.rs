//! What a lane is called: a destination, whose key is a secret, and the identity made of both.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::mask::masked;

/// The kind of lane that leads to a webhook's URL. Its key is the webhook's name, a space, and the URL.
pub const WEBHOOK: &str = "webhook";

/// What a lane is for: a kind of destination and the key of one destination of that kind (a write key, a URL). The key is a
/// secret: `Debug` and `Display` show its last four characters, and the name of a webhook.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LaneName {
    /// The kind of destination, such as `segment`.
    pub destination: String,
    key: String,
}

impl LaneName {
    /// The lane of the destination `key` of the kind `destination`.
    pub fn new(destination: impl Into<String>, key: impl Into<String>) -> LaneName {
        LaneName {
            destination: destination.into(),
            key: key.into(),
        }
    }

    /// The key itself, for the call to the destination and nothing else.
    #[must_use]
    pub fn expose_key(&self) -> &str {
        &self.key
    }

    /// The key as it may be shown: its last four characters, and no more than half of a short one. A webhook's name goes
    /// before them.
    #[must_use]
    pub fn masked_key(&self) -> String {
        match self.key.split_once(' ') {
            Some((name, url)) if self.destination == WEBHOOK => format!("{name} {}", masked(url)),
            _ => masked(&self.key),
        }
    }

    /// The lane's identity in URLs, logs and volumes.
    #[must_use]
    pub fn id(&self) -> LaneId {
        let name = format!("{}\0{}", self.destination, self.key);
        let digest = Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes());
        LaneId(digest.as_u64_pair().0)
    }
}

impl fmt::Display for LaneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.destination, self.masked_key())
    }
}

impl fmt::Debug for LaneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LaneName({self})")
    }
}

/// A lane's identity: a digest of its name, the same in every process. Shown as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub(super) u64);

impl LaneId {
    /// The identity that is shown like this; none where nothing is.
    #[must_use]
    pub fn parse(digits: &str) -> Option<LaneId> {
        let id = u64::from_str_radix(digits, 16).ok().map(LaneId)?;
        (id.to_string() == digits).then_some(id)
    }
}

impl fmt::Display for LaneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_shows_no_more_of_its_key_than_the_last_four_characters() {
        for (destination, key, shown) in [
            ("segment", "0123456789ab12", "…ab12"),
            ("segment", "12345", "…45"),
            ("segment", "1234", "…34"),
            ("segment", "", "…"),
            ("segment", "éäöüß", "…üß"),
            ("segment", "secret key12", "…ey12"),
            (WEBHOOK, "orders https://host/t0ken/hook", "orders …hook"),
            (WEBHOOK, "orders http://host/a b/hook", "orders …hook"),
            (WEBHOOK, "https://host/t0ken/hook", "…hook"),
        ] {
            let name = LaneName::new(destination, key);
            assert_eq!(name.masked_key(), shown);
            assert_eq!(
                format!("{name} {name:?}"),
                format!("{destination} {shown} LaneName({destination} {shown})")
            );
        }
    }

    #[test]
    fn an_id_is_read_as_it_is_shown_and_in_no_other_way() {
        let id = LaneName::new("segment", "key").id();
        assert_eq!(LaneId::parse(&id.to_string()), Some(id));
        for wrong in [
            "",
            "1",
            "+00000000000000f",
            "00000000000000000",
            "gggggggggggggggg",
        ] {
            assert_eq!(LaneId::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_lane_has_the_same_id_in_every_process() {
        assert_eq!(
            LaneName::new("segment", "key").id().to_string(),
            LaneName::new("segment", "key").id().to_string()
        );
        assert_ne!(
            LaneName::new("segment", "key").id(),
            LaneName::new("webhook", "key").id()
        );
    }
}
