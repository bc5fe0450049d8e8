//! The state that every connection shares: the rules in force and the counts, behind one lock.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard};

use tokio::sync::watch;

use super::Options;
use super::batch::{Call, Reception, Violation, message_id};
use super::rules::{Answer, Rule, Rules};
use super::tally::{Counts, RecordedEvent, Tally};

pub(super) struct Desk {
    options: Options,
    state: Mutex<State>,
    hasher: RandomState,
    tally_changed: watch::Sender<()>,
    rules_changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    rules: Rules,
    counts: Counts,
}

impl Desk {
    pub(super) fn new(options: Options) -> Self {
        Self {
            options,
            state: Mutex::default(),
            hasher: RandomState::new(),
            tally_changed: watch::Sender::new(()),
            rules_changed: watch::Sender::new(()),
        }
    }

    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    pub(super) fn set_rules(&self, rules: Vec<Rule>) {
        let mut state = self.lock();
        state.rules = Rules::new(rules);
        // Under the lock, so that a batch picks its answer either before this change and is told of it, or after.
        self.rules_changed.send_replace(());
    }

    /// The answer for this call, and a watch that fires when the rules it was picked by are replaced.
    pub(super) fn pick(&self, call: &Call<'_>) -> (Answer, watch::Receiver<()>) {
        let mut state = self.lock();
        (state.rules.pick(call), self.rules_changed.subscribe())
    }

    pub(super) fn count_request(&self, retry_count: Option<u32>, violations: &[Violation]) {
        self.count(|counts| counts.request(retry_count, violations));
    }

    pub(super) fn count_hook_request(&self, name: &str, violations: &[Violation]) {
        self.count(|counts| counts.hook_request(name, violations));
    }

    /// Delivers a call that is taken, throws away the events of one that is not.
    pub(super) fn settle(&self, call: &Call<'_>, reception: Reception, answer: String) {
        let ids: Vec<Option<u64>> = match reception {
            Reception::Accept => self.hashed_ids(call),
            Reception::Discard | Reception::Refuse(..) => Vec::new(),
        };
        self.count(|counts| {
            counts.answer(call.hook(), answer);
            match (reception, call) {
                (Reception::Accept, _) => {
                    if self.options.record {
                        counts.record(call);
                    }
                    counts.deliver(call, &ids);
                }
                (Reception::Discard | Reception::Refuse(..), Call::Batch(batch)) => {
                    counts.reject(batch.events.len());
                }
                (Reception::Discard | Reception::Refuse(..), Call::Hook(_)) => {}
            }
        });
    }

    /// Counts an answer that delivers nothing, to a batch call or to a call to this webhook.
    pub(super) fn turn_away(&self, hook: Option<&str>, answer: String) {
        self.count(|counts| counts.answer(hook, answer));
    }

    /// Counts a call that is neither accepted nor answered.
    pub(super) fn leave_unanswered(&self, call: &Call<'_>, fault: &str) {
        self.count(|counts| {
            counts.answer(call.hook(), fault.to_owned());
            counts.leave_unanswered(call);
        });
    }

    /// Counts a call as hanging until it is released, or as unanswered if its connection is dropped before.
    pub(super) fn hold<'a>(&'a self, call: &'a Call<'a>) -> Held<'a> {
        self.count(|counts| counts.hold(call.hook()));
        Held {
            desk: self,
            call,
            released: false,
        }
    }

    pub(super) fn tally(&self) -> Tally {
        self.lock().counts.tally()
    }

    pub(super) fn tally_changes(&self) -> watch::Receiver<()> {
        self.tally_changed.subscribe()
    }

    pub(super) fn clear_tally(&self) {
        self.count(Counts::clear);
    }

    pub(super) fn events(&self) -> Vec<RecordedEvent> {
        self.lock().counts.events().to_vec()
    }

    pub(super) fn take_events(&self) -> Vec<RecordedEvent> {
        self.lock().counts.take_events()
    }

    pub(super) fn times_delivered(&self, message_id: &str) -> u32 {
        let id = self.hash(None, message_id);
        self.lock().counts.times_delivered(id)
    }

    /// How often an event with this `messageId` was posted to this webhook, and accepted.
    pub(super) fn times_posted(&self, hook: &str, message_id: &str) -> u32 {
        let id = self.hash(Some(hook), message_id);
        self.lock().counts.times_delivered(id)
    }

    fn hashed_ids(&self, call: &Call<'_>) -> Vec<Option<u64>> {
        let events = call.events();
        let ids = events.iter().map(|event| message_id(event));
        ids.map(|id| id.map(|id| self.hash(call.hook(), &id)))
            .collect()
    }

    fn hash(&self, hook: Option<&str>, message_id: &str) -> u64 {
        self.hasher.hash_one((hook, message_id))
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.lock().counts);
        self.tally_changed.send_replace(());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nothing done under this lock can panic")
    }
}

/// A call left hanging.
pub(super) struct Held<'a> {
    desk: &'a Desk,
    call: &'a Call<'a>,
    released: bool,
}

impl Held<'_> {
    /// The rules have changed: the call is to be answered after all.
    pub(super) fn release(mut self) {
        self.released = true;
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.desk.count(|counts| {
            counts.let_go(self.call.hook());
            if !self.released {
                counts.answer(self.call.hook(), "hang".to_owned());
                counts.leave_unanswered(self.call);
            }
        });
    }
}
