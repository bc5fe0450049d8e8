//! Looks at the dead letters of a stopped spool, in a copy of their store.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::gravedigger::{buried, scan};
use super::{DeadLetter, LetterId, Position};
use crate::queue::store::{Barrier, Store, StoreError};

/// What the dead letters of a stopped spool are.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LettersExam {
    /// Letters that can be read.
    pub events: u64,
    /// What they take, in bytes.
    pub bytes: u64,
    /// Letters that are there and cannot be read.
    pub damaged_events: u64,
    /// Why there is no more of them.
    pub trouble: Option<String>,
    /// Earlier stores that could not be read and were set aside.
    pub quarantined_stores: u64,
}

impl LettersExam {
    /// Whether something of them is known to be lost. A letter that is gone without a trace is counted nowhere else.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.damaged_events > 0 || self.trouble.is_some() || self.quarantined_stores > 0
    }

    /// Where they lie: the old ones, where a crash came while they were written anew.
    pub(in crate::queue) fn dir(dir: &Path) -> PathBuf {
        let old = dir.with_added_extension("old");
        if !dir.exists() && old.exists() {
            return old;
        }
        dir.to_owned()
    }

    /// How many of their stores lie in quarantine.
    pub(in crate::queue) fn quarantined(quarantine: &Path) -> io::Result<u64> {
        let entries = match fs::read_dir(quarantine) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            entries => entries?,
        };
        let names = entries.flatten().map(|entry| entry.file_name());
        let theirs = names.filter(|name| name.as_encoded_bytes().starts_with(b"dead-letters."));
        Ok(theirs.count() as u64)
    }
}

/// Tells which events of a lane are dead letters. Where their store cannot be read, none is.
#[derive(Debug, Default)]
pub(in crate::queue) struct Buried(Option<Store>);

impl Buried {
    /// Opens a copy of the store and counts what is in it. `damage` is what its files showed before.
    pub(in crate::queue) fn open(copy: &Path, damage: Option<String>) -> (Buried, LettersExam) {
        let mut exam = LettersExam {
            trouble: damage,
            ..LettersExam::default()
        };
        let opened = Store::open(copy, &Barrier::os()).and_then(|store| {
            count(&store, &mut exam)?;
            Ok(store)
        });
        match opened {
            Ok(store) => (Buried(Some(store)), exam),
            Err(error) => {
                exam.trouble = Some(error.to_string());
                (Buried::default(), exam)
            }
        }
    }

    /// The places of those events of a record that are, or were, dead letters.
    pub(in crate::queue) fn of_record(&self, position: Position, accepted_at_ms: i64) -> Vec<u32> {
        let found = self
            .0
            .as_ref()
            .map(|s| buried(s, &[(position, accepted_at_ms)]));
        let found = found.and_then(Result::ok).unwrap_or_default();
        found.into_iter().next().unwrap_or_default()
    }
}

fn count(store: &Store, exam: &mut LettersExam) -> Result<(), StoreError> {
    scan(store, LetterId::ALL, |_, value| {
        match DeadLetter::decode_head(value) {
            Some(_) => {
                exam.events += 1;
                exam.bytes += value.len() as u64;
            }
            None => exam.damaged_events += 1,
        }
        true
    })
}
