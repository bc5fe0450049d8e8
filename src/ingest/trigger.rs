//! Which webhooks want an event. Pure; decided once, at acceptance, so that a lane holds only what will be sent.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use crate::event::{Channel, Facts};
use crate::queue::{LaneName, Run, WEBHOOK};

/// The lane that leads to this URL of the webhook `name`.
#[must_use]
pub fn webhook_lane(name: &str, url: &str) -> LaneName {
    LaneName::new(WEBHOOK, format!("{name} {url}"))
}

/// Which events are wanted: those that pass every part. An empty part lets all pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Values of `type`.
    pub types: HashSet<String>,
    /// Names of tracks. What has no name does not pass a list of them.
    pub events: HashSet<String>,
    /// Where events were made.
    pub channels: Vec<Channel>,
    /// The `userId`s of those whose events are not wanted.
    pub ignored_users: HashSet<String>,
}

impl Wanted {
    fn includes(&self, facts: &Facts<'_>) -> bool {
        let is_among = |wanted: &HashSet<String>, found: Option<&str>| {
            wanted.is_empty() || found.is_some_and(|found| wanted.contains(found))
        };
        let is_from = |channel| self.channels.iter().any(|wanted| wanted.covers(channel));
        is_among(&self.types, facts.kind.as_deref())
            && is_among(&self.events, facts.event.as_deref())
            && (self.channels.is_empty() || facts.channel.is_some_and(is_from))
            && !facts
                .user_id
                .as_deref()
                .is_some_and(|user| self.ignored_users.contains(user))
    }
}

/// A webhook, as far as acceptance knows it: what it wants, and the lanes that lead to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trigger {
    /// What it wants.
    pub wanted: Wanted,
    /// One lane for each of its URLs.
    pub lanes: Vec<LaneName>,
}

/// The copies of events that go to webhooks.
#[derive(Debug, Default)]
pub(super) struct Copies(pub(super) HashMap<LaneName, Run>);

impl Copies {
    /// Copies an event to each of `triggers` that wants it.
    pub(super) fn add(&mut self, triggers: &[Trigger], facts: &Facts<'_>, received: Timestamp) {
        let wanting = triggers.iter().filter(|t| t.wanted.includes(facts));
        for lane in wanting.flat_map(|trigger| &trigger.lanes) {
            let run = self.0.entry(lane.clone()).or_default();
            facts.write(received, run.buffer());
            run.close_event();
        }
    }
}
