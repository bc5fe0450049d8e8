//! What came and went in the last ten minutes: the rates, and points for charts. Time is an argument.
//!
//! No timer fills it: whoever counts opens the slot of the moment, and a slot in which nothing happened reads as empty. Nor is
//! the queue asked: how much waited at the end of a slot is what waits now, less what has come since and with what has gone.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::snapshot::{History, Point};

/// Whole seconds of the short window; the one under way comes on top.
const SHORT_SECONDS: u64 = 10;
/// How long a slot of the long ring is: charts of ten minutes need no more than 120 points.
const POINT_SECONDS: u64 = 5;
/// Whole slots of five minutes.
const LONG_POINTS: u64 = 5 * 60 / POINT_SECONDS;
/// Whole slots of ten minutes.
const POINTS: u64 = 10 * 60 / POINT_SECONDS;

/// What came and went, in events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flow {
    /// Accepted, each once.
    pub(super) accepted: u64,
    /// Put into a lane: the accepted ones, and their copies for webhooks.
    pub(super) entered: u64,
    /// Taken by a destination.
    pub(super) delivered: u64,
    /// Gone from a lane in another way.
    pub(super) buried: u64,
}

impl Flow {
    fn add(&mut self, other: Flow) {
        self.accepted += other.accepted;
        self.entered += other.entered;
        self.delivered += other.delivered;
        self.buried += other.buried;
    }

    fn left(&self) -> u64 {
        self.delivered + self.buried
    }
}

/// How many events a second, over the last ten seconds and the last five minutes, or the process's life where that is shorter.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Accepted, each once, over ten seconds.
    pub accepted: f64,
    /// The same over five minutes.
    pub accepted_5m: f64,
    /// Taken by destinations, over ten seconds.
    pub delivered: f64,
    /// The same over five minutes.
    pub delivered_5m: f64,
    /// By how many the queue shrinks, over ten seconds; negative while it grows.
    pub shrinking: f64,
}

/// The slots of both windows.
#[derive(Debug)]
pub(super) struct Recent(Mutex<Rings>);

#[derive(Debug)]
struct Rings {
    short: Ring,
    long: Ring,
}

impl Default for Recent {
    fn default() -> Recent {
        Recent(Mutex::new(Rings {
            short: Ring::new(1, SHORT_SECONDS),
            long: Ring::new(POINT_SECONDS, POINTS),
        }))
    }
}

impl Recent {
    /// Adds what happens at the time `now` since the process began.
    pub(super) fn add(&self, now: Duration, flow: Flow) {
        let mut rings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rings.short.add(now, flow);
        rings.long.add(now, flow);
    }

    pub(super) fn rates(&self, now: Duration) -> Rates {
        let rings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (short, seconds) = rings.short.sum(now, SHORT_SECONDS);
        let (long, long_seconds) = rings.long.sum(now, LONG_POINTS);
        Rates {
            accepted: short.accepted as f64 / seconds,
            accepted_5m: long.accepted as f64 / long_seconds,
            delivered: short.delivered as f64 / seconds,
            delivered_5m: long.delivered as f64 / long_seconds,
            shrinking: (short.left() as f64 - short.entered as f64) / seconds,
        }
    }

    /// A point for each whole slot, the oldest first, when `queued` events wait at the time `now`.
    pub(super) fn points(&self, now: Duration, queued: u64) -> History {
        let rings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let under_way = now.as_secs() / POINT_SECONDS;
        let (mut points, mut queued) = (Vec::new(), queued);
        let mut later = rings.long.slot(under_way);
        for number in (under_way.saturating_sub(POINTS)..under_way).rev() {
            queued = (queued + later.left()).saturating_sub(later.entered);
            later = rings.long.slot(number);
            let end = (number + 1) * POINT_SECONDS;
            points.push(Point {
                seconds_ago: now.as_secs_f64() - end as f64,
                accepted_per_second: later.accepted as f64 / POINT_SECONDS as f64,
                delivered_per_second: later.delivered as f64 / POINT_SECONDS as f64,
                queue_events: queued,
            });
        }
        points.reverse();
        History {
            interval_seconds: POINT_SECONDS,
            points,
        }
    }
}

/// A slot for each of the last few stretches of time, and one for that under way.
#[derive(Debug)]
struct Ring {
    slot_seconds: u64,
    slots: Box<[Slot]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    number: u64,
    flow: Flow,
}

impl Ring {
    fn new(slot_seconds: u64, whole_slots: u64) -> Ring {
        Ring {
            slot_seconds,
            slots: vec![Slot::default(); whole_slots as usize + 1].into(),
        }
    }

    fn place(&self, number: u64) -> usize {
        (number % self.slots.len() as u64) as usize
    }

    fn add(&mut self, now: Duration, flow: Flow) {
        let number = now.as_secs() / self.slot_seconds;
        let place = self.place(number);
        let slot = &mut self.slots[place];
        if slot.number != number {
            *slot = Slot {
                number,
                flow: Flow::default(),
            };
        }
        slot.flow.add(flow);
    }

    fn slot(&self, number: u64) -> Flow {
        let slot = self.slots[self.place(number)];
        if slot.number == number {
            slot.flow
        } else {
            Flow::default()
        }
    }

    /// What happened in so many whole slots and the one under way, and how many seconds they take.
    fn sum(&self, now: Duration, whole_slots: u64) -> (Flow, f64) {
        let under_way = now.as_secs() / self.slot_seconds;
        let oldest = under_way.saturating_sub(whole_slots);
        let mut sum = Flow::default();
        for number in oldest..=under_way {
            sum.add(self.slot(number));
        }
        let seconds = now.as_secs_f64() - (oldest * self.slot_seconds) as f64;
        (sum, seconds.max(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn flow(accepted: u64, delivered: u64) -> Flow {
        Flow {
            accepted,
            entered: accepted,
            delivered,
            buried: 0,
        }
    }

    fn about(rate: f64, expected: f64) -> bool {
        (rate - expected).abs() <= expected.abs() / 10.0
    }

    #[test]
    fn a_rate_is_the_mean_of_its_window() {
        let recent = Recent::default();
        recent.add(at(0.2), flow(0, 10));
        let young = recent.rates(at(0.5));
        assert!(
            about(young.delivered, 10.0) && about(young.delivered_5m, 10.0),
            "a young process counts as one second old"
        );
        for second in 1..=600 {
            let delivered = if second > 560 { 50 } else { 20 };
            recent.add(at(f64::from(second)), flow(30, delivered));
        }
        let rates = recent.rates(at(600.9));
        assert!(about(rates.accepted, 30.0) && about(rates.accepted_5m, 30.0));
        assert!(about(rates.delivered, 50.0), "{rates:?}");
        assert!(about(rates.delivered_5m, 24.0), "{rates:?}");
        assert!(about(rates.shrinking, 20.0), "{rates:?}");
        assert_eq!(recent.rates(at(1000.0)), Rates::default());
    }

    #[test]
    fn the_points_tell_what_waited_though_nobody_asked_the_queue_then() {
        let recent = Recent::default();
        recent.add(at(2.0), flow(100, 0));
        recent.add(at(7.0), flow(0, 40));
        let buried = Flow {
            buried: 10,
            ..Flow::default()
        };
        recent.add(at(8.0), buried);
        recent.add(at(21.0), flow(7, 0));
        let history = recent.points(at(22.0), 57);
        let told: Vec<_> = history
            .points
            .iter()
            .map(|p| (p.seconds_ago, p.accepted_per_second, p.queue_events))
            .collect();
        let expected = [
            (17.0, 20.0, 100),
            (12.0, 0.0, 50),
            (7.0, 0.0, 50),
            (2.0, 0.0, 50),
        ];
        assert_eq!(told, expected);
        assert!((history.points[1].delivered_per_second - 8.0).abs() < 0.01);
    }

    #[test]
    fn the_history_is_ten_minutes_long_and_forgets_what_was_before() {
        let recent = Recent::default();
        for second in (0..3600).step_by(2) {
            recent.add(at(f64::from(second)), flow(2, 2));
        }
        let history = recent.points(at(3601.0), 0);
        assert_eq!(history.points.len() as u64, POINTS);
        assert!(history.points.iter().all(|p| p.queue_events == 0));
        let quiet = recent.points(at(9000.0), 5);
        assert!(
            quiet
                .points
                .iter()
                .all(|p| p.accepted_per_second == 0.0 && p.queue_events == 5)
        );
    }
}
