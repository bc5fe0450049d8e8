//! Which webhooks want an event. Pure; decided once, at acceptance, so that a lane holds only what will be sent.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;

use crate::event::{Channel, Facts};
use crate::queue::{LaneName, Load, Run, WEBHOOK};

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

/// The copies of a request's events that go to webhooks: each once, however many want it.
#[derive(Debug, Default)]
pub(super) struct Copies {
    run: Run,
    /// For each trigger the events that it wants, by their places in the run.
    picked: Vec<Vec<u32>>,
    bytes: usize,
}

impl Copies {
    /// Copies an event if any of `triggers` wants it. They must be the same each time.
    pub(super) fn add(&mut self, triggers: &[Trigger], facts: &Facts<'_>, received: Timestamp) {
        self.picked.resize_with(triggers.len(), Vec::new);
        let (before, place) = (self.bytes, self.run.len() as u32);
        for (trigger, picked) in triggers.iter().zip(&mut self.picked) {
            if trigger.wanted.includes(facts) {
                picked.push(place);
                self.bytes += size_of_val(&place);
            }
        }
        if self.bytes > before {
            let start = self.run.byte_len();
            facts.write(received, self.run.buffer());
            self.run.close_event();
            self.bytes += self.run.byte_len() - start;
        }
    }

    /// What they take in memory.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What each lane of `triggers`, which are those of [`Copies::add`], is to get.
    pub(super) fn loads(self, triggers: &[Trigger]) -> Vec<(LaneName, Load)> {
        let run = Arc::new(self.run);
        let mut loads = Vec::new();
        let picked = self.picked.into_iter();
        for (trigger, picked) in triggers.iter().zip(picked).filter(|(_, p)| !p.is_empty()) {
            let picked: Arc<[u32]> = picked.into();
            for lane in &trigger.lanes {
                let load = Load::of(Arc::clone(&run), Arc::clone(&picked));
                loads.push((lane.clone(), load));
            }
        }
        loads
    }
}
