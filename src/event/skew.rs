//! How far a sender's clock is off, and what an event's time is by ours.
//!
//! An event is sent and received at about the same moment. So where the sender says that it sent at one time and ours says
//! another, the difference is between the clocks, and the event's own time is moved by it. A small difference is only the
//! way and the retries, for some SDKs send the same `sentAt` again; hence a threshold.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::json::Json;

/// Digits of a second's fraction that are written at least and at most.
const FRACTION_DIGITS_LEAST: usize = 3;
const FRACTION_DIGITS_MOST: usize = 9;

/// How far a clock is behind ours; ahead of it, if negative.
#[derive(Debug, Clone, Copy)]
pub(super) struct Skew(SignedDuration);

impl Skew {
    /// The skew of a clock that showed `sent_at` when ours showed `received`, if that is a time and off by more than `over`.
    pub(super) fn of(sent_at: Json<'_>, received: Timestamp, over: Duration) -> Option<Skew> {
        let sent: Timestamp = sent_at.text()?.parse().ok()?;
        let skew = received.duration_since(sent);
        (skew.unsigned_abs() > over).then_some(Skew(skew))
    }

    /// What `time` by that clock is by ours, as JSON text: RFC 3339 in UTC, as precise as it came and to a millisecond at
    /// least. `None` if it is no time, or none that can be written once it is moved.
    pub(super) fn correct(self, time: Json<'_>) -> Option<String> {
        let text = time.text()?;
        let moved = text.parse::<Timestamp>().ok()?.checked_add(self.0).ok()?;
        let digits = fraction_digits(&text).clamp(FRACTION_DIGITS_LEAST, FRACTION_DIGITS_MOST);
        Some(format!("\"{moved:.digits$}\""))
    }
}

fn fraction_digits(time: &str) -> usize {
    time.split_once(['.', ',']).map_or(0, |(_, rest)| {
        rest.bytes().take_while(u8::is_ascii_digit).count()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OVER: Duration = Duration::from_secs(600);

    fn corrected(sent_at: &str, time: &str) -> Option<String> {
        let received = "2026-11-23T12:00:00.123456789Z".parse().expect("a time");
        Skew::of(Json::ours(sent_at), received, OVER)?.correct(Json::ours(time))
    }

    #[test]
    fn a_time_moves_by_as_much_as_its_clock_is_off_and_keeps_its_precision() {
        let hour_behind = r#""2026-11-23T11:00:00.123Z""#;
        let years_ahead = r#""2030-11-23T12:00:00.123456789Z""#;
        for (sent_at, time, expected) in [
            (
                hour_behind,
                "2026-11-23T10:59:59Z",
                "2026-11-23T11:59:59.000Z",
            ),
            (
                hour_behind,
                "2026-11-23T10:59:59.5Z",
                "2026-11-23T11:59:59.500Z",
            ),
            (
                hour_behind,
                "2026-11-23T10:59:59.500000Z",
                "2026-11-23T11:59:59.500456Z",
            ),
            (
                hour_behind,
                "2026-11-23T12:59:59.500000001+02:00",
                "2026-11-23T11:59:59.500456790Z",
            ),
            (
                hour_behind,
                "2006-01-02t03:04:05z",
                "2006-01-02T04:04:05.000Z",
            ),
            (
                years_ahead,
                "2030-11-23T11:59:00.000+00:00",
                "2026-11-23T11:59:00.000Z",
            ),
            (
                r#""2026-11-23T13:00:00\u002b01:00""#,
                "2026-11-23T12:00:00Z",
                "None",
            ),
            (
                r#""2026-11-23T12:10:00.124+00:00""#,
                "2026-11-23T12:10:00Z",
                "2026-11-23T11:59:59.999Z",
            ),
            (
                r#""2026-11-23T10:00:00\u002b00:00""#,
                "2026-11-23T10:00:00Z",
                "2026-11-23T12:00:00.123Z",
            ),
        ] {
            let found = corrected(sent_at, &format!("\"{time}\""));
            let expected = (expected != "None").then(|| format!("\"{expected}\""));
            assert_eq!(found, expected, "{sent_at} {time}");
        }
    }

    #[test]
    fn only_a_difference_above_the_threshold_is_one_of_clocks() {
        for (sent_at, is_skew) in [
            ("2026-11-23T11:50:00.123456789Z", false),
            ("2026-11-23T11:50:00.123456788Z", true),
            ("2026-11-23T12:10:00.123456789Z", false),
            ("2026-11-23T12:10:00.123456790Z", true),
        ] {
            let found = corrected(&format!("\"{sent_at}\""), "\"2026-11-23T00:00:00Z\"");
            assert_eq!(found.is_some(), is_skew, "{sent_at}");
        }
    }

    #[test]
    fn what_is_no_time_or_would_leave_the_calendar_is_not_moved() {
        let (old, new) = (r#""-009999-01-03T00:00:00Z""#, r#""9999-12-30T00:00:00Z""#);
        let good = r#""2020-01-01T00:00:00Z""#;
        assert!(corrected(good, good).is_some() && corrected(old, old).is_some());
        for (sent_at, time) in [
            (old, new),
            (new, old),
            (r#""yesterday""#, good),
            (r#""2020-01-01T00:00:00""#, good),
            (r#""""#, good),
            ("1577836800000", good),
            ("{}", good),
            (r#""\ud800""#, good),
            (good, r#""yesterday""#),
            (good, r#""2020-01-01""#),
            (good, "1577836800000"),
            (good, r#""""#),
            (good, r#""\ud800""#),
        ] {
            assert_eq!(corrected(sent_at, time), None, "{sent_at} {time}");
        }
    }
}
