//! How a secret is shown: by its end, and never by more than half of it.

/// How many characters are shown of a secret that is long enough.
const SHOWN_MAX: usize = 4;

/// `…ab12`
pub(crate) fn masked(secret: &str) -> String {
    let shown = SHOWN_MAX.min(secret.chars().count() / 2);
    let tail = secret.char_indices().rev().take(shown).last();
    let at = tail.map_or(secret.len(), |(at, _)| at);
    format!("…{}", &secret[at..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_characters_are_shown_at_most_and_never_more_than_half() {
        for (secret, shown) in [
            ("", "…"),
            ("a", "…"),
            ("ab12", "…12"),
            ("xab12", "…12"),
            ("KEY-ONE", "…ONE"),
            ("KEY12345", "…2345"),
            ("0123456789ab12", "…ab12"),
            ("ключик", "…чик"),
        ] {
            assert_eq!(masked(secret), shown);
        }
    }
}
