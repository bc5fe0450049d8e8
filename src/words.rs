//! Numbers with their words, as people say them: `1 volume`, `2,000 volumes`. Knows only words that take an `s`.

use std::fmt;

use indicatif::HumanCount;

/// `count` of what `one` names.
pub(crate) fn counted(count: u64, one: &str) -> Counted<'_> {
    Counted { count, one }
}

/// What [`counted`] gives, to be shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted<'a> {
    count: u64,
    one: &'a str,
}

impl fmt::Display for Counted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counted { count, one } = self;
        let s = if *count == 1 { "" } else { "s" };
        write!(f, "{} {one}{s}", HumanCount(*count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_of_a_thing_is_said_without_an_s() {
        for (count, said) in [(0, "0 events"), (1, "1 event"), (2000, "2,000 events")] {
            assert_eq!(counted(count, "event").to_string(), said);
        }
    }
}
