//! The tail: what happens to single events, told to whoever listens. Never a payload.
//!
//! It costs nothing while nobody does: the steps ask [`Tail::is_heard`] first, which reads one number. While somebody does, it is a
//! sample: no listener is told of more than [`TOLD_A_SECOND_MAX`] events a second, nor are more than [`LOOKS_A_SECOND_MAX`] looked
//! into for all of them together. What is left out is counted for each listener. A listener that does not keep up misses events, and
//! nobody ever waits for it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// More than anybody can read, and little enough to format and send.
pub const TOLD_A_SECOND_MAX: u32 = 100;
/// To know whether a filter lets an event pass, it has to be parsed, which takes some microseconds: a few hundredths of a core.
pub const LOOKS_A_SECOND_MAX: u32 = 5_000;
/// Of a text that a client chose, so many characters are shown: as many as Segment takes of a messageId.
const TEXT_CHARS_MAX: usize = 100;

/// What happened to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// It was answered 200, and is in its lane.
    Accepted,
    /// Its destination took it.
    Delivered,
    /// It left its lane as a dead letter.
    Refused,
    /// It was told to its sender that it can never be accepted.
    Rejected,
}

impl What {
    /// All of them.
    pub const ALL: [What; 4] = [
        What::Accepted,
        What::Delivered,
        What::Refused,
        What::Rejected,
    ];

    /// The one of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<What> {
        What::ALL.into_iter().find(|what| what.name() == name)
    }

    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            What::Accepted => "accepted",
            What::Delivered => "delivered",
            What::Refused => "refused",
            What::Rejected => "rejected",
        }
    }
}

/// What happens to events of one lane.
#[derive(Clone, Debug)]
pub struct Source {
    /// What.
    pub what: What,
    /// The lane's id, where there is a lane.
    pub lane: Option<String>,
    /// The last four characters of its key.
    pub key: Option<String>,
}

/// What an event says of itself, as far as anybody chooses by it.
#[derive(Clone, Debug, Default)]
pub struct Label {
    /// Its `type`.
    pub kind: Option<String>,
    /// The name of a track.
    pub event: Option<String>,
    /// Its `messageId`.
    pub message_id: Option<String>,
}

/// What is told of one event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// When.
    pub time: Timestamp,
    /// What happened to it.
    pub what: What,
    /// Its lane's id, where it has one.
    pub lane: Option<String>,
    /// The last four characters of its lane's key.
    pub key: Option<String>,
    /// Its `type`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The name of a track.
    pub event: Option<String>,
    /// Its `messageId`.
    pub message_id: Option<String>,
    /// How long it is as JSON.
    pub bytes: u64,
    /// Why it was refused or rejected.
    pub reason: Option<String>,
    /// The status of the destination's answer, where there was one.
    pub status: Option<u16>,
}

/// Which events a listener wants to be told of; an empty one wants all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Those of the lane with this id.
    pub lane: Option<String>,
    /// Those of this `type`.
    pub kind: Option<String>,
    /// Tracks of this name.
    pub event: Option<String>,
    /// Those to which this happens.
    pub what: Option<What>,
}

impl Wanted {
    /// What can be said before an event is looked into.
    fn may_include(&self, what: What, lane: Option<&str>) -> bool {
        self.what.is_none_or(|wanted| wanted == what)
            && self
                .lane
                .as_deref()
                .is_none_or(|wanted| lane == Some(wanted))
    }

    fn includes(&self, sighting: &Sighting) -> bool {
        let is = |wanted: &Option<String>, found: &Option<String>| {
            wanted.is_none() || wanted.as_deref().map(short) == *found
        };
        self.may_include(sighting.what, sighting.lane.as_deref())
            && is(&self.kind, &sighting.kind)
            && is(&self.event, &sighting.event)
    }
}

/// Where the steps tell, and listeners listen.
#[derive(Debug, Default)]
pub struct Tail(Arc<Hub>);

#[derive(Debug, Default)]
struct Hub {
    /// How many listen.
    listeners: AtomicUsize,
    ears: Mutex<Ears>,
}

#[derive(Debug, Default)]
struct Ears {
    all: Vec<Ear>,
    looks: Budget,
}

#[derive(Debug)]
struct Ear {
    wanted: Wanted,
    told: mpsc::Sender<Arc<Sighting>>,
    budget: Budget,
    skipped: Arc<AtomicU64>,
}

/// How much of what a second allows is used.
#[derive(Debug, Default)]
struct Budget {
    second: i64,
    used: u32,
}

impl Budget {
    fn is_left(&self, now: Timestamp, max: u32) -> bool {
        self.second != now.as_second() || self.used < max
    }

    fn take(&mut self, now: Timestamp, max: u32) -> bool {
        if !self.is_left(now, max) {
            return false;
        }
        if self.second != now.as_second() {
            (self.second, self.used) = (now.as_second(), 0);
        }
        self.used += 1;
        true
    }
}

impl Tail {
    /// Whether anybody listens.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.0.listeners.load(Ordering::Relaxed) > 0
    }

    /// Listens from now on.
    #[must_use]
    pub fn listen(&self, wanted: Wanted) -> Listening {
        let (told, sightings) = mpsc::channel(TOLD_A_SECOND_MAX as usize);
        let skipped = Arc::new(AtomicU64::new(0));
        let mut ears = self.0.ears();
        ears.all.push(Ear {
            wanted,
            told,
            budget: Budget::default(),
            skipped: Arc::clone(&skipped),
        });
        self.0.listeners.store(ears.all.len(), Ordering::Relaxed);
        Listening {
            hub: Arc::clone(&self.0),
            sightings,
            skipped,
        }
    }

    /// What will be told of an event of `bytes` bytes to which something is about to happen; none where nobody wants to know, or
    /// can be told now. Only then is `label` called. Changes nothing but what is counted as left out.
    pub fn sift(
        &self,
        source: &Source,
        now: Timestamp,
        bytes: usize,
        label: impl FnOnce() -> Label,
    ) -> Option<Sighting> {
        if !self.is_heard() {
            return None;
        }
        let may_be_told = self.0.ears().may_tell(source, now);
        may_be_told.then(|| {
            let Label {
                kind,
                event,
                message_id,
            } = label();
            let shown = |text: Option<String>| text.as_deref().map(short);
            Sighting {
                time: now,
                what: source.what,
                lane: source.lane.clone(),
                key: source.key.clone(),
                kind: shown(kind),
                event: shown(event),
                message_id: shown(message_id),
                bytes: bytes as u64,
                reason: None,
                status: None,
            }
        })
    }

    /// Tells of an event, to which it has happened at `now`. Never waits.
    pub fn tell(&self, sighting: Sighting, now: Timestamp) {
        let sighting = Arc::new(Sighting {
            time: Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now),
            ..sighting
        });
        let mut ears = self.0.ears();
        let wanting = ears.all.iter_mut();
        for ear in wanting.filter(|ear| ear.wanted.includes(&sighting)) {
            let is_told = ear.budget.take(now, TOLD_A_SECOND_MAX)
                && ear.told.try_send(Arc::clone(&sighting)).is_ok();
            ear.skipped
                .fetch_add(u64::from(!is_told), Ordering::Relaxed);
        }
    }
}

impl Hub {
    fn ears(&self) -> MutexGuard<'_, Ears> {
        self.ears.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ears {
    /// Whether an event may be looked into. Where not, it is left out for all who might have wanted it.
    fn may_tell(&mut self, source: &Source, now: Timestamp) -> bool {
        let lane = source.lane.as_deref();
        let mut wanting = self
            .all
            .iter()
            .filter(|ear| ear.wanted.may_include(source.what, lane))
            .peekable();
        if wanting.peek().is_none() {
            return false;
        }
        let has_room = wanting
            .clone()
            .any(|ear| ear.budget.is_left(now, TOLD_A_SECOND_MAX));
        if has_room && self.looks.take(now, LOOKS_A_SECOND_MAX) {
            return true;
        }
        for ear in wanting {
            ear.skipped.fetch_add(1, Ordering::Relaxed);
        }
        false
    }
}

/// A listener, until it is dropped.
#[derive(Debug)]
pub struct Listening {
    hub: Arc<Hub>,
    sightings: mpsc::Receiver<Arc<Sighting>>,
    skipped: Arc<AtomicU64>,
}

impl Listening {
    /// Waits for the next.
    pub async fn next(&mut self) -> Arc<Sighting> {
        let sighting = self.sightings.recv().await;
        sighting.expect("the hub holds the other end until this is dropped")
    }

    /// The next, where there is one already.
    pub fn try_next(&mut self) -> Option<Arc<Sighting>> {
        self.sightings.try_recv().ok()
    }

    /// How many events it was not told of since it last asked, though it wants them or may have.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut ears = self.hub.ears();
        ears.all
            .retain(|ear| !Arc::ptr_eq(&ear.skipped, &self.skipped));
        self.hub.listeners.store(ears.all.len(), Ordering::Relaxed);
    }
}

fn short(text: &str) -> String {
    match text.char_indices().nth(TEXT_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(what: What, lane: &str) -> Source {
        Source {
            what,
            lane: Some(lane.into()),
            key: Some("…ab12".into()),
        }
    }

    fn track(event: &str) -> Label {
        Label {
            kind: Some("track".into()),
            event: Some(event.into()),
            message_id: Some("id".into()),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn happens(tail: &Tail, source: &Source, second: i64, label: Label) {
        if let Some(sighting) = tail.sift(source, at(second), 7, || label) {
            tail.tell(sighting, at(second));
        }
    }

    #[test]
    fn an_event_is_looked_into_only_while_somebody_wants_it() {
        let tail = Tail::default();
        let look = |what| {
            let mut looked = false;
            let sighting = tail.sift(&source(what, "a"), at(1), 7, || {
                looked = true;
                track("E")
            });
            assert_eq!(sighting.is_some(), looked);
            looked
        };
        assert!(!tail.is_heard() && !look(What::Accepted));
        let wanted = Wanted {
            what: Some(What::Delivered),
            ..Wanted::default()
        };
        let listening = tail.listen(wanted);
        assert!(tail.is_heard() && !look(What::Accepted) && look(What::Delivered));
        drop(listening);
        assert!(!tail.is_heard() && !look(What::Delivered));
    }

    #[test]
    fn a_listener_is_told_of_what_it_wants() {
        let tail = Tail::default();
        let wants = |wanted| tail.listen(wanted);
        let lane = Some("a".to_owned());
        let mut heard = [
            (wants(Wanted::default()), 4),
            (
                wants(Wanted {
                    lane,
                    ..Wanted::default()
                }),
                2,
            ),
            (
                wants(Wanted {
                    kind: Some("track".into()),
                    ..Wanted::default()
                }),
                3,
            ),
            (
                wants(Wanted {
                    event: Some("Order".into()),
                    ..Wanted::default()
                }),
                1,
            ),
            (
                wants(Wanted {
                    what: Some(What::Rejected),
                    ..Wanted::default()
                }),
                1,
            ),
        ];
        happens(&tail, &source(What::Accepted, "a"), 1, track("Order"));
        happens(&tail, &source(What::Accepted, "b"), 1, track("Other"));
        happens(&tail, &source(What::Refused, "a"), 1, track("Other"));
        let nameless = Source {
            what: What::Rejected,
            lane: None,
            key: None,
        };
        happens(&tail, &nameless, 1, Label::default());
        for (number, (listening, expected)) in heard.iter_mut().enumerate() {
            let told = std::iter::from_fn(|| listening.try_next()).count();
            assert_eq!((told, listening.skipped()), (*expected, 0), "{number}");
        }
    }

    #[test]
    fn under_load_a_sample_is_told_and_the_rest_counted() {
        let tail = Tail::default();
        let mut listening = tail.listen(Wanted::default());
        let rare = Wanted {
            event: Some("Rare".into()),
            ..Wanted::default()
        };
        let mut picky = tail.listen(rare);
        let often = u64::from(LOOKS_A_SECOND_MAX) * 2;
        for second in 1..=2 {
            for _ in 0..often {
                happens(&tail, &source(What::Accepted, "a"), second, track("E"));
            }
            let told = std::iter::from_fn(|| listening.try_next()).count() as u64;
            assert_eq!(told, u64::from(TOLD_A_SECOND_MAX));
            assert_eq!(listening.skipped(), often - told);
            assert_eq!(picky.try_next(), None);
            assert_eq!(
                picky.skipped(),
                often - u64::from(LOOKS_A_SECOND_MAX),
                "what was looked into is known not to be wanted"
            );
        }
    }

    #[test]
    fn one_who_does_not_read_misses_events_and_keeps_no_more_than_a_second_of_them() {
        let tail = Tail::default();
        let mut listening = tail.listen(Wanted::default());
        for second in 1..=10 {
            for _ in 0..TOLD_A_SECOND_MAX {
                happens(&tail, &source(What::Accepted, "a"), second, track("E"));
            }
        }
        let told = std::iter::from_fn(|| listening.try_next()).count() as u64;
        assert_eq!(told, u64::from(TOLD_A_SECOND_MAX));
        assert_eq!(listening.skipped(), 9 * told);
    }

    #[test]
    fn a_long_text_is_cut_and_still_found() {
        let tail = Tail::default();
        let name = "ü".repeat(TEXT_CHARS_MAX + 1);
        let wanted = Wanted {
            event: Some(name.clone()),
            ..Wanted::default()
        };
        let mut listening = tail.listen(wanted);
        happens(&tail, &source(What::Accepted, "a"), 1, track(&name));
        let told = listening.try_next().expect("it was wanted");
        let shown = told.event.as_deref().map(str::chars).map(Iterator::count);
        assert_eq!(shown, Some(TEXT_CHARS_MAX + 1), "the ellipsis included");
    }
}
