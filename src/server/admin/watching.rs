//! What is shown for as long as somebody watches, as server-sent events: the snapshot every second, and the tail.
//!
//! Nothing is made for a watcher who does not read: a piece is made when the one before has left, and a connection that takes
//! nothing any more is closed (`connection.rs`). Watching ends with the daemon.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use serde_json::json;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, interval_at};

use super::query::listening;
use super::{AdminListener, Error};
use crate::queue::LaneId;
use crate::server::reply::{self, Reply};
use crate::server::{Phase, past};
use crate::stats::Listening;

/// Streams at the same time, of both kinds: the dashboards and terminals of a few operators.
const WATCHERS_MAX: usize = 32;
const SECOND: Duration = Duration::from_secs(1);
/// A tail that has nothing to tell says so after this many seconds, so that both ends know of each other.
const QUIET_SECONDS_MAX: u32 = 15;
/// Sightings sent as one piece.
const PIECE_SIGHTINGS_MAX: usize = 100;

/// What all who watch share.
#[derive(Debug)]
pub(in crate::server) struct Watch {
    slots: Arc<Semaphore>,
    /// The snapshot of this second of the process's life: one serves all.
    latest: Mutex<(u64, Bytes)>,
}

impl Default for Watch {
    fn default() -> Watch {
        Watch {
            slots: Arc::new(Semaphore::new(WATCHERS_MAX)),
            latest: Mutex::default(),
        }
    }
}

impl AdminListener {
    /// The last ten minutes, the snapshot at once, and then one a second.
    pub(super) fn stats_stream(&self) -> Result<Reply, Error> {
        struct Watching {
            admin: AdminListener,
            ticks: Option<Interval>,
            _slot: OwnedSemaphorePermit,
        }
        let watching = Watching {
            admin: self.clone(),
            ticks: None,
            _slot: self.watcher()?,
        };
        let pieces = stream::unfold(watching, async |mut watching| {
            let admin = &watching.admin;
            let piece = match &mut watching.ticks {
                Some(ticks) => {
                    ticks.tick().await;
                    admin.latest_snapshot().await
                }
                None => {
                    watching.ticks = Some(admin.whole_seconds());
                    admin.beginning()
                }
            };
            Some((piece, watching))
        });
        Ok(self.live(pieces))
    }

    /// Each event as something happens to it.
    pub(super) fn tail(&self, query: &str) -> Result<Reply, Error> {
        struct Watching {
            listening: Listening,
            ticks: Interval,
            quiet_seconds: u32,
            _slot: OwnedSemaphorePermit,
        }
        let wanted = listening(query)?;
        let lane = wanted.lane.as_deref().and_then(LaneId::parse);
        if lane.is_some_and(|lane| self.queue.find_lane(lane).is_none()) {
            return Err(Error::NoSuch("lane"));
        }
        let watching = Watching {
            _slot: self.watcher()?,
            listening: self.stats.tail.listen(wanted),
            ticks: interval(SECOND),
            quiet_seconds: QUIET_SECONDS_MAX,
        };
        let pieces = stream::unfold(watching, async |mut watching| {
            let mut piece = Vec::new();
            while piece.is_empty() {
                tokio::select! {
                    first = watching.listening.next() => {
                        write(&mut piece, None, &*first);
                        let more = std::iter::from_fn(|| watching.listening.try_next());
                        for sighting in more.take(PIECE_SIGHTINGS_MAX - 1) {
                            write(&mut piece, None, &*sighting);
                        }
                    }
                    _ = watching.ticks.tick() => match watching.listening.skipped() {
                        0 => watching.quiet_seconds += 1,
                        events => write(&mut piece, Some("skipped"), &json!({ "events": events })),
                    }
                }
                if watching.quiet_seconds > QUIET_SECONDS_MAX {
                    piece.extend_from_slice(b": nothing to tell\n\n");
                }
            }
            watching.quiet_seconds = 0;
            Some((Bytes::from(piece), watching))
        });
        Ok(self.live(pieces))
    }

    fn watcher(&self) -> Result<OwnedSemaphorePermit, Error> {
        let slots = Arc::clone(&self.watch.slots);
        slots.try_acquire_owned().map_err(|_| Error::WatchersFull)
    }

    /// The reply of these pieces, until the daemon stops.
    fn live(&self, pieces: impl Stream<Item = Bytes> + Send + 'static) -> Reply {
        let stopped = past(self.phase.clone(), Phase::Draining);
        reply::server_sent(pieces.take_until(Box::pin(stopped)))
    }

    fn beginning(&self) -> Bytes {
        let snapshot = self.snapshot();
        let mut piece = Vec::new();
        let history = self.stats.history(snapshot.queue.events);
        write(&mut piece, Some("history"), &history);
        write(&mut piece, None, &snapshot);
        piece.into()
    }

    /// Ticks when the process has lived for another second, for all who watch at the same time.
    fn whole_seconds(&self) -> Interval {
        let started = Instant::from_std(self.stats.started);
        let next = started + SECOND * (started.elapsed().as_secs() as u32 + 1);
        let mut ticks = interval_at(next, SECOND);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        ticks
    }

    async fn latest_snapshot(&self) -> Bytes {
        let second = self.stats.started.elapsed().as_secs();
        let mut latest = self.watch.latest.lock().await;
        if latest.0 != second {
            let mut piece = Vec::new();
            write(&mut piece, None, &self.snapshot());
            *latest = (second, piece.into());
        }
        latest.1.clone()
    }
}

/// Appends one server-sent event.
fn write(piece: &mut Vec<u8>, name: Option<&str>, data: &impl Serialize) {
    if let Some(name) = name {
        piece.extend_from_slice(format!("event: {name}\n").as_bytes());
    }
    piece.extend_from_slice(b"data: ");
    serde_json::to_writer(&mut *piece, data).expect("it has no map with odd keys");
    piece.extend_from_slice(b"\n\n");
}
