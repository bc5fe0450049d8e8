//! The state that every connection shares: the rules in force and the counts, behind one lock.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard};

use tokio::sync::watch;

use super::Options;
use super::batch::{Batch, Reception, Violation, message_id};
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

    /// The answer for this batch, and a watch that fires when the rules it was picked by are replaced.
    pub(super) fn pick(&self, batch: &Batch<'_>) -> (Answer, watch::Receiver<()>) {
        let mut state = self.lock();
        (state.rules.pick(batch), self.rules_changed.subscribe())
    }

    pub(super) fn count_request(&self, retry_count: Option<u32>, violations: &[Violation]) {
        self.count(|counts| counts.request(retry_count, violations));
    }

    /// Delivers a batch that Segment would accept, throws away one that it would not.
    pub(super) fn settle(&self, batch: &Batch<'_>, reception: Reception, answer: String) {
        let ids: Vec<Option<u64>> = match reception {
            Reception::Accept => self.hashed_ids(batch),
            Reception::Discard | Reception::Refuse(_) => Vec::new(),
        };
        self.count(|counts| {
            counts.answer(answer);
            match reception {
                Reception::Accept => {
                    if self.options.record {
                        counts.record(batch);
                    }
                    counts.deliver(batch, &ids);
                }
                Reception::Discard | Reception::Refuse(_) => counts.reject(batch.events.len()),
            }
        });
    }

    /// Counts an answer that delivers nothing.
    pub(super) fn turn_away(&self, answer: String) {
        self.count(|counts| counts.answer(answer));
    }

    /// Counts a batch that is neither accepted nor answered.
    pub(super) fn leave_unanswered(&self, batch: &Batch<'_>, fault: &str) {
        self.count(|counts| {
            counts.answer(fault.to_owned());
            counts.leave_unanswered(batch.events.len());
        });
    }

    /// Counts a batch as hanging until it is released, or as unanswered if its connection is dropped before.
    pub(super) fn hold(&self, batch: &Batch<'_>) -> Held<'_> {
        self.count(Counts::hold);
        Held {
            desk: self,
            events: batch.events.len(),
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
        let id = self.hasher.hash_one(message_id);
        self.lock().counts.times_delivered(id)
    }

    fn hashed_ids(&self, batch: &Batch<'_>) -> Vec<Option<u64>> {
        let ids = batch.events.iter().map(|event| message_id(event));
        ids.map(|id| id.map(|id| self.hasher.hash_one(id.as_ref())))
            .collect()
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

/// A batch left hanging.
pub(super) struct Held<'a> {
    desk: &'a Desk,
    events: usize,
    released: bool,
}

impl Held<'_> {
    /// The rules have changed: the batch is to be answered after all.
    pub(super) fn release(mut self) {
        self.released = true;
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.desk.count(|counts| {
            counts.let_go();
            if !self.released {
                counts.answer("hang".to_owned());
                counts.leave_unanswered(self.events);
            }
        });
    }
}
