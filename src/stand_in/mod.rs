//! A pretend Segment, Tracking API and Profile API, and a receiver of webhooks, with faults on demand, for `segspool demo`, `segspool stand-in`, tests and benches.
//!
//! It answers `POST /v1/batch` and `/v1/import` as Segment would, holds every batch against the limits Segment
//! publishes, and counts what was delivered: each `messageId` once, and again as a duplicate. [`Rule`]s make it fail,
//! hang, reset or drip, and [`StandIn::down`] closes the port, the way an outage does. The same can be done over HTTP,
//! on the same port:
//!
//! | endpoint | what |
//! |---|---|
//! | `GET /stand-in/tally` | the [`Tally`] |
//! | `DELETE /stand-in/tally` | forgets counts, `messageId`s and recorded events |
//! | `PUT /stand-in/rules` | a list of [`Rule`]s, in place of those in force |
//! | `PUT /stand-in/answer` | one [`Answer`] for every batch, and for no webhook, in place of the rules in force |
//! | `GET /stand-in/events` | the [`RecordedEvent`]s, one a line; 404 unless [`Options::record`] |
//!
//! As the receiver of webhooks it answers `POST /hook/<name>`, whatever the name: one JSON object a call, signed with
//! [`Options::hook_secret`] if there is one. A rule whose [`Match`] names a webhook is for its calls; all others are for batches. The
//! tally counts each webhook by itself, and none of its events among those of batches.
//!
//! As the Profile API it knows three users, `user_id:u1` to `u3`, and two accounts, `group_id:g1` and `g2`, in every space, and has
//! no faults but a wrong token.
//!
//! It never stores anything, never looks inside an event beyond its `messageId`, never talks to anyone who did not
//! call it, and listens on loopback only unless told otherwise. What it counts lives in memory: about 30 bytes for
//! each distinct `messageId`, and the events themselves only when asked to record them.

mod batch;
mod control;
mod desk;
mod hook;
mod profiles;
mod rules;
mod serve;
mod tally;
#[cfg(test)]
mod tests;
mod tracking;

pub use batch::Violation;
pub use rules::{Answer, Match, Rule};
pub use tally::{HookTally, KeyTally, RecordedEvent, Tally};

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::task::JoinHandle;

use desk::Desk;
use serve::Door;

/// How a stand-in listens and how closely it looks.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Whether it may listen on an address that is not loopback.
    pub allow_remote: bool,
    /// Whether a batch that breaks Segment's limits is counted as a [`Violation`] and answered as Segment would.
    pub strict: bool,
    /// The largest decoded body that is no violation.
    pub body_bytes_max: usize,
    /// Whether the events themselves are kept, for [`StandIn::events`].
    pub record: bool,
    /// The access token that the Profile API asks for; without one, any will do.
    pub profile_token: Option<String>,
    /// The secret that calls to webhooks are signed with; without one, nobody looks at signatures.
    pub hook_secret: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            allow_remote: false,
            strict: true,
            body_bytes_max: batch::BODY_BYTES_MAX,
            record: false,
            profile_token: None,
            hook_secret: None,
        }
    }
}

/// A running stand-in. Dropping it stops it.
pub struct StandIn {
    desk: Arc<Desk>,
    door: Door,
    address: SocketAddr,
    serving: JoinHandle<()>,
}

impl StandIn {
    /// Binds the address and begins to answer, on the runtime it is called from.
    pub async fn start(options: Options) -> io::Result<Self> {
        if !options.allow_remote && !options.listen.ip().is_loopback() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a stand-in listens on loopback only, unless allow_remote is set",
            ));
        }
        let listen = options.listen;
        let desk = Arc::new(Desk::new(options));
        let (door, address, serving) = serve::start(listen, Arc::clone(&desk)).await?;
        Ok(Self {
            desk,
            door,
            address,
            serving,
        })
    }

    /// Where it is reached, as a base URL without a trailing slash.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The address it listens on; it stays the same through [`Self::down`] and [`Self::up`].
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces the rules in force. Batches left hanging by the old ones are judged again by these.
    pub fn set_rules(&self, rules: Vec<Rule>) {
        self.desk.set_rules(rules);
    }

    /// Gives every batch the same answer from now on.
    pub fn answer(&self, answer: Answer) {
        self.desk.set_rules(vec![Rule::always(answer)]);
    }

    /// What was counted so far.
    pub fn tally(&self) -> Tally {
        self.desk.tally()
    }

    /// Forgets counts, `messageId`s and recorded events; the rules stay.
    pub fn clear_tally(&self) {
        self.desk.clear_tally();
    }

    /// The delivered events in order of arrival; none unless [`Options::record`] is set.
    pub fn events(&self) -> Vec<RecordedEvent> {
        self.desk.events()
    }

    /// Like [`Self::events`], and forgets them.
    pub fn take_events(&self) -> Vec<RecordedEvent> {
        self.desk.take_events()
    }

    /// How often an event with this `messageId` was delivered in a batch.
    pub fn times_delivered(&self, message_id: &str) -> u32 {
        self.desk.times_delivered(message_id)
    }

    /// How often an event with this `messageId` was posted to the webhook of this name, and accepted.
    pub fn times_posted(&self, hook: &str, message_id: &str) -> u32 {
        self.desk.times_posted(hook, message_id)
    }

    /// Waits until the tally is as wished, and returns it. Looks again at each change, never at intervals.
    pub async fn until(&self, reached: impl Fn(&Tally) -> bool) -> Tally {
        let mut changes = self.desk.tally_changes();
        loop {
            let tally = self.tally();
            if reached(&tally) {
                return tally;
            }
            changes
                .changed()
                .await
                .expect("the desk lives as long as the stand-in");
        }
    }

    /// Closes the port and every connection, so that further ones are refused. A batch counted a moment before may lose
    /// its answer, as it would with Segment.
    pub async fn down(&self) {
        self.door.close().await;
    }

    /// Listens again, on the same address.
    pub async fn up(&self) -> io::Result<()> {
        self.door.open().await
    }

    /// Stops, and returns once the port is free.
    pub async fn shutdown(mut self) {
        self.door.close().await;
        self.serving.abort();
        // The only way this task ends is the abort.
        let _cancelled = (&mut self.serving).await;
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl fmt::Debug for StandIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StandIn")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
