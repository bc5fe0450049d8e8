//! Judges what a destination's answer means for a batch. Pure: no I/O, no clock, no queue.
//!
//! A 2xx is the only answer that lets events leave their lane as delivered. Nothing here ever drops one.

use std::time::Duration;

use super::request::Answer;

/// What an answer means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The destination took every event.
    Delivered,
    /// It may take them later; `after` is how long it asked for.
    Retry { after: Option<Duration> },
    /// It may take them at once, with another token.
    Again,
    /// It does not let this lane in. The events are fine; somebody has to act.
    Hold,
    /// It will never take this batch: halve it, down to the event at fault.
    Refused,
}

/// The verdict table (segment-api.md, sections 2.3 and 4, rules 20 and 21).
pub(super) fn verdict(answer: &Answer) -> Verdict {
    let (status, retry_after) = match answer {
        Answer::Answered {
            status,
            retry_after,
            ..
        } => (status, retry_after),
        Answer::TokenRefused { .. } => return Verdict::Again,
        Answer::Unanswered { .. } => return Verdict::Retry { after: None },
        Answer::Unsent { refused: true, .. } => return Verdict::Hold,
        Answer::Unsent { retry_after, .. } => {
            return Verdict::Retry {
                after: *retry_after,
            };
        }
    };
    match status {
        200..=299 => Verdict::Delivered,
        401 | 403 | 404 => Verdict::Hold,
        // 460 is Segment's own word for a passing fault.
        408 | 410 | 429 | 460 => Verdict::Retry {
            after: *retry_after,
        },
        501 | 505 => Verdict::Refused,
        500..=599 => Verdict::Retry {
            after: *retry_after,
        },
        400..=499 => Verdict::Refused,
        // A redirect, or nothing HTTP knows: something stands between us and the destination, and may go away again.
        _ => Verdict::Retry { after: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16, retry_after: Option<u64>) -> Answer {
        let retry_after = retry_after.map(Duration::from_secs);
        Answer::Answered {
            status,
            retry_after,
            body: String::new(),
        }
    }

    #[test]
    fn every_status_has_its_verdict() {
        use Verdict::{Delivered, Hold, Refused};
        let retry = Verdict::Retry { after: None };
        for (status, expected) in [
            (200, Delivered),
            (202, Delivered),
            (299, Delivered),
            (301, retry.clone()),
            (304, retry.clone()),
            (400, Refused),
            (401, Hold),
            (403, Hold),
            (404, Hold),
            (408, retry.clone()),
            (409, Refused),
            (410, retry.clone()),
            (413, Refused),
            (422, Refused),
            (429, retry.clone()),
            (460, retry.clone()),
            (500, retry.clone()),
            (501, Refused),
            (502, retry.clone()),
            (503, retry.clone()),
            (504, retry.clone()),
            (505, Refused),
            (511, retry.clone()),
            (529, retry.clone()),
            (999, retry.clone()),
        ] {
            assert_eq!(verdict(&answered(status, None)), expected, "{status}");
        }
        assert_eq!(
            verdict(&Answer::Unanswered {
                error: "reset".into()
            }),
            retry
        );
    }

    #[test]
    fn without_a_token_a_lane_is_held_where_somebody_has_to_act_and_retries_elsewhere() {
        let unsent = |refused, retry_after| {
            verdict(&Answer::Unsent {
                error: "no token".into(),
                refused,
                retry_after,
            })
        };
        let pause = Some(Duration::from_secs(7));
        assert_eq!(unsent(true, None), Verdict::Hold);
        assert_eq!(unsent(false, None), Verdict::Retry { after: None });
        assert_eq!(unsent(false, pause), Verdict::Retry { after: pause });
        let refused = Answer::TokenRefused { status: 400 };
        assert_eq!(verdict(&refused), Verdict::Again);
    }

    #[test]
    fn the_pause_a_destination_asks_for_counts_where_a_retry_can_help() {
        let after = |seconds| Verdict::Retry {
            after: Some(Duration::from_secs(seconds)),
        };
        assert_eq!(verdict(&answered(429, Some(7))), after(7));
        assert_eq!(verdict(&answered(503, Some(7))), after(7));
        assert_eq!(verdict(&answered(400, Some(7))), Verdict::Refused);
    }
}
