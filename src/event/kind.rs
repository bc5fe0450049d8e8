//! The six kinds of event, and the names they go by.

use std::fmt;

/// What an event says: a message's `type`, or the path it was posted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Somebody did something.
    Track,
    /// Who somebody is.
    Identify,
    /// Somebody looked at a web page.
    Page,
    /// Somebody looked at a screen of an app.
    Screen,
    /// Somebody belongs to a group.
    Group,
    /// Two ids are the same somebody.
    Alias,
}

impl Kind {
    /// All kinds, in the order of Segment's documentation.
    pub const ALL: [Kind; 6] = [
        Kind::Track,
        Kind::Identify,
        Kind::Page,
        Kind::Screen,
        Kind::Group,
        Kind::Alias,
    ];

    /// The kind a message's `type` names. Case counts.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The kind that the last segment of a path stands for: `track` or, as browsers send it, `t`.
    pub fn from_path(segment: &str) -> Option<Kind> {
        Kind::ALL
            .into_iter()
            .find(|kind| segment == kind.name() || segment == &kind.name()[..1])
    }

    /// The value of `type`: `track`, `identify`, …
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Track => "track",
            Kind::Identify => "identify",
            Kind::Page => "page",
            Kind::Screen => "screen",
            Kind::Group => "group",
            Kind::Alias => "alias",
        }
    }

    /// The value of `type` as JSON text, quotes included.
    pub(super) const fn json(self) -> &'static str {
        match self {
            Kind::Track => "\"track\"",
            Kind::Identify => "\"identify\"",
            Kind::Page => "\"page\"",
            Kind::Screen => "\"screen\"",
            Kind::Group => "\"group\"",
            Kind::Alias => "\"alias\"",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_goes_by_its_name_and_on_a_path_also_by_its_first_letter() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_name(kind.name()), Some(kind));
            assert_eq!(Kind::from_path(kind.name()), Some(kind));
            assert_eq!(Kind::from_path(&kind.name()[..1]), Some(kind));
            assert_eq!(Kind::from_name(&kind.name()[..1]), None);
            assert_eq!(kind.json(), format!("\"{kind}\""));
        }
        for other in ["", "b", "batch", "Track", "delete", "tr"] {
            assert_eq!(Kind::from_name(other), None, "{other}");
            assert_eq!(Kind::from_path(other), None, "{other}");
        }
    }
}
