//! The account at the end: what the applications were told is safe, against what Segment got. Pure: no I/O, no clock.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use indicatif::HumanCount;

use crate::stand_in::{Tally, Violation};
use crate::words::counted;

use super::Failure;

/// What became of the events.
#[derive(Debug)]
pub(super) struct Account {
    accepted: u64,
    delivered: u64,
    lost: u64,
    duplicates: u64,
    batches: u64,
    mean_fill: f64,
    violations: BTreeMap<Violation, u64>,
    took: Duration,
}

impl Account {
    /// Of the accepted events, `lost` are not among those that Segment's tally counts.
    pub(super) fn new(accepted: u64, lost: u64, segment: Tally, took: Duration) -> Account {
        Account {
            accepted,
            delivered: segment.distinct_events,
            lost,
            duplicates: segment.duplicate_events,
            batches: segment.batches,
            mean_fill: segment.mean_fill,
            violations: segment.violations,
            took,
        }
    }

    /// Whether the promise was kept. Duplicates are part of it: what was under way when the relay was killed is sent again.
    pub(super) fn verdict(&self) -> Result<(), Failure> {
        let mut complaints = Vec::new();
        if self.lost > 0 {
            complaints.push(format!(
                "{} of {} accepted events never arrived at Segment",
                HumanCount(self.lost),
                HumanCount(self.accepted)
            ));
        }
        for (violation, times) in &self.violations {
            complaints.push(format!(
                "a batch broke a limit of Segment's {} ({violation:?})",
                counted(*times, "time")
            ));
        }
        if complaints.is_empty() {
            return Ok(());
        }
        Err(Failure(format!("{}.", complaints.join("; "))))
    }

    /// The table that the demo ends with.
    pub(super) fn table(&self) -> Table {
        let count = |count| HumanCount(count).to_string();
        let columns = [
            ("accepted", count(self.accepted)),
            ("delivered", count(self.delivered)),
            ("lost", count(self.lost)),
            ("duplicates", count(self.duplicates)),
            ("batches", count(self.batches)),
            ("mean fill", format!("{:.0} %", self.mean_fill * 100.0)),
            ("seconds", format!("{:.1}", self.took.as_secs_f64())),
        ];
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header(columns.iter().map(|(name, _)| *name));
        table.add_row(columns.iter().map(|(_, value)| value));
        for column in table.column_iter_mut() {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_loss_or_a_broken_limit_is_a_failure() {
        let duplicates = Tally {
            duplicate_events: 7,
            ..Tally::default()
        };
        let broken = Tally {
            violations: BTreeMap::from([(Violation::TooManyEvents, 2)]),
            ..Tally::default()
        };
        for (lost, tally, expected) in [
            (0, Tally::default(), ""),
            (0, duplicates, ""),
            (
                3,
                Tally::default(),
                "3 of 9 accepted events never arrived at Segment.",
            ),
            (
                0,
                broken,
                "a batch broke a limit of Segment's 2 times (TooManyEvents).",
            ),
        ] {
            let verdict = Account::new(9, lost, tally, Duration::ZERO).verdict();
            let complaint = verdict
                .err()
                .map_or(String::new(), |failure| failure.to_string());
            assert_eq!(complaint, expected);
        }
    }
}
