//! How many dead letters there are, of which kinds, and what they take. Counted, never asked of the disk.

use std::collections::BTreeMap;

use super::letter::DeadLetter;
use crate::queue::name::{LaneId, LaneName};

/// Groups counted by themselves. Clients that invent write keys could make one for each letter.
const GROUPS_MAX: usize = 4_096;
/// What an empty sled database and a letter's key take is not counted against the bound; this much a letter is.
const LETTER_OVERHEAD_BYTES: u64 = 256;

/// Letters of one lane that died of the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// The lane; none where the request named no write key.
    pub lane: Option<LaneId>,
    /// Why they died.
    pub code: String,
    /// The destination's answer, where there was one.
    pub status: Option<u16>,
}

impl Group {
    pub(super) fn of(letter: &DeadLetter) -> Group {
        Group {
            lane: letter.lane.as_ref().map(LaneName::id),
            code: letter.code.clone(),
            status: letter.status,
        }
    }
}

/// What a letter counts for, given its stored length.
pub(super) fn letter_bytes(stored: usize) -> u64 {
    stored as u64 + LETTER_OVERHEAD_BYTES
}

/// The counts.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) events: u64,
    pub(super) bytes: u64,
    /// Empty graves: letters removed, whose events their lanes may still read again.
    pub(super) graves: u64,
    groups: BTreeMap<Group, u64>,
    /// There were too many groups. From then on none is added and none removed, so that each letter leaves the one it came to.
    frozen: bool,
}

impl Tally {
    /// Adds a letter of so many bytes as stored.
    pub(super) fn add(&mut self, group: Group, stored: usize) {
        self.events += 1;
        self.bytes += letter_bytes(stored);
        self.frozen |= self.groups.len() >= GROUPS_MAX;
        if let Some(events) = self.groups.get_mut(&group) {
            *events += 1;
        } else if !self.frozen {
            self.groups.insert(group, 1);
        }
    }

    /// Takes a letter away that was added.
    pub(super) fn remove(&mut self, group: &Group, stored: usize) {
        self.events = self.events.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(letter_bytes(stored));
        if let Some(events) = self.groups.get_mut(group) {
            *events = events.saturating_sub(1);
            if *events == 0 && !self.frozen {
                self.groups.remove(group);
            }
        }
    }

    /// The groups with the number of their letters.
    pub(super) fn groups(&self) -> Vec<(Group, u64)> {
        let groups = self.groups.iter().filter(|(_, events)| **events > 0);
        groups.map(|(group, n)| (group.clone(), *n)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_and_removed_again_leaves_nothing_however_many_groups_there_are() {
        let group = |n: usize| Group {
            lane: None,
            code: n.to_string(),
            status: None,
        };
        let mut tally = Tally::default();
        for n in (0..GROUPS_MAX + 10).chain(0..5) {
            tally.add(group(n), 10);
        }
        assert_eq!(tally.groups().len(), GROUPS_MAX);
        assert_eq!(tally.events as usize, GROUPS_MAX + 15);
        for n in 0..5 {
            tally.remove(&group(n), 10);
            tally.remove(&group(n), 10);
        }
        assert_eq!(tally.groups().len(), GROUPS_MAX - 5);
        for n in 5..GROUPS_MAX + 10 {
            tally.remove(&group(n), 10);
        }
        assert!(tally.groups().is_empty());
        assert_eq!((tally.events, tally.bytes), (0, 0));
    }
}
