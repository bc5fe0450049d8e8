//! The token that all lanes share, and what became of the last attempt to get one. Pure: time is an argument.
//!
//! ```text
//!  fetched        half of its life            its end
//!     ├──────────────────┼──────────────────────┤
//!           Fresh        │        Aging         │  Nothing
//! ```

use std::time::Duration;

use tokio::time::Instant;

use super::grant::Secret;

/// After a failure no token is asked for at once, however many lanes wait for one.
const FETCH_PAUSE: Duration = Duration::from_secs(1);
/// Refused calls have a token replaced no more often than this. A call can be refused for what it brings, too.
const REPLACE_PAUSE: Duration = Duration::from_secs(10);

/// A token, and which of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Token {
    pub(super) secret: Secret,
    number: u64,
}

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Failure {
    /// What went wrong, without any secret.
    pub(in super::super) reason: String,
    /// Whether the credentials were refused, so that somebody has to act.
    pub(in super::super) refused: bool,
    /// How long the token endpoint asked to be left alone.
    pub(in super::super) after: Option<Duration>,
}

/// What is at hand.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AtHand {
    /// A token.
    Fresh(Token),
    /// A token that is to be followed by another.
    Aging(Token),
    /// None, and it is too early to ask for one.
    Failed(Failure),
    /// None.
    Nothing,
}

#[derive(Debug, Default)]
pub(super) struct Cache {
    kept: Option<Kept>,
    /// What went wrong, and until when that holds.
    failed: Option<(Failure, Instant)>,
    replaced: Option<Instant>,
    numbers: u64,
}

#[derive(Debug)]
struct Kept {
    token: Token,
    half: Instant,
    end: Instant,
}

impl Cache {
    pub(super) fn at_hand(&self, now: Instant) -> AtHand {
        let failed = self.failed.as_ref().filter(|(_, until)| now < *until);
        match (&self.kept, failed) {
            (Some(kept), _) if now < kept.half => AtHand::Fresh(kept.token.clone()),
            (Some(kept), Some(_)) if now < kept.end => AtHand::Fresh(kept.token.clone()),
            (Some(kept), None) if now < kept.end => AtHand::Aging(kept.token.clone()),
            (_, Some((failure, until))) => AtHand::Failed(Failure {
                after: failure.after.map(|_| *until - now),
                ..failure.clone()
            }),
            (_, None) => AtHand::Nothing,
        }
    }

    /// Keeps a token that is good for `life` from now.
    pub(super) fn keep(&mut self, secret: Secret, life: Duration, now: Instant) -> Token {
        self.numbers += 1;
        let token = Token {
            secret,
            number: self.numbers,
        };
        self.kept = Some(Kept {
            token: token.clone(),
            half: now + life / 2,
            end: now + life,
        });
        self.failed = None;
        token
    }

    /// Remembers that there was none to be had.
    pub(super) fn fail(&mut self, failure: Failure, now: Instant) {
        let pause = failure.after.unwrap_or_default().max(FETCH_PAUSE);
        self.failed = Some((failure, now + pause));
    }

    /// Takes to heart that a call with this token was refused. True if the next call gets another one.
    pub(super) fn refuse(&mut self, token: &Token, now: Instant) -> bool {
        let current = self.kept.as_ref().map(|kept| kept.token.number);
        if current != Some(token.number) {
            return true;
        }
        let lately = |at: Instant| now.duration_since(at) < REPLACE_PAUSE;
        if self.replaced.is_some_and(lately) {
            return false;
        }
        self.kept = None;
        self.replaced = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::grant::{Grant, grant};
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn secret(text: &str) -> Secret {
        let body = format!(r#"{{"access_token":"{text}"}}"#);
        match grant(200, body.as_bytes(), None) {
            Grant::Token { secret, .. } => secret,
            Grant::Later { .. } | Grant::Refused { .. } => panic!("no token"),
        }
    }

    fn failure(after: Option<u64>) -> Failure {
        Failure {
            reason: "no network".into(),
            refused: false,
            after: after.map(Duration::from_secs),
        }
    }

    #[test]
    fn a_token_is_fresh_for_half_of_its_life_and_good_until_its_end() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        assert_eq!(cache.at_hand(now), AtHand::Nothing);
        let token = cache.keep(secret("a"), HOUR, now);
        for (minutes, expected) in [
            (0, AtHand::Fresh(token.clone())),
            (29, AtHand::Fresh(token.clone())),
            (30, AtHand::Aging(token.clone())),
            (59, AtHand::Aging(token)),
            (60, AtHand::Nothing),
        ] {
            assert_eq!(cache.at_hand(now + HOUR * minutes / 60), expected);
        }
    }

    #[test]
    fn after_a_failure_none_is_asked_for_at_once_and_the_old_one_is_used_up() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let later = |seconds| now + Duration::from_secs(seconds);
        cache.fail(failure(None), now);
        assert_eq!(cache.at_hand(now), AtHand::Failed(failure(None)));
        assert_eq!(cache.at_hand(later(1)), AtHand::Nothing);
        cache.fail(failure(Some(30)), now);
        assert_eq!(cache.at_hand(later(10)), AtHand::Failed(failure(Some(20))));
        assert_eq!(cache.at_hand(later(30)), AtHand::Nothing);

        let token = cache.keep(secret("a"), HOUR, now);
        cache.fail(failure(Some(30)), later(1_800));
        assert_eq!(cache.at_hand(later(1_829)), AtHand::Fresh(token.clone()));
        assert_eq!(cache.at_hand(later(1_830)), AtHand::Aging(token));
    }

    #[test]
    fn a_refused_token_is_replaced_once_and_not_again_at_once() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let later = |seconds| now + Duration::from_secs(seconds);
        let first = cache.keep(secret("a"), HOUR, now);
        assert!(cache.refuse(&first, now));
        assert_eq!(cache.at_hand(now), AtHand::Nothing);
        assert!(cache.refuse(&first, now), "another is on its way");

        let second = cache.keep(secret("b"), HOUR, now);
        assert!(cache.refuse(&first, now), "another is there");
        assert_eq!(cache.at_hand(now), AtHand::Fresh(second.clone()));
        assert!(!cache.refuse(&second, later(9)), "that would be a loop");
        assert_eq!(cache.at_hand(now), AtHand::Fresh(second.clone()));
        assert!(cache.refuse(&second, later(10)));
    }
}
