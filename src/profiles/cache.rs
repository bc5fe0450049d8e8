//! Answers to use again. In memory alone, within bounds; the one that was not used for longest goes first. Time is an argument.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::Answer;

/// Answers kept.
const ENTRIES_MAX: usize = 10_000;
/// What they take, in bytes.
const BYTES_MAX: usize = 32 * 1024 * 1024;
/// An answer older than this is used no more, whatever becomes of the Profile API: a profile that was erased there is to end here.
const STALE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// What an entry takes besides its texts, about.
const ENTRY_BYTES: usize = 256;

/// Answers by the path and query that they were given to.
#[derive(Debug)]
pub(super) struct Cache {
    ttl: Duration,
    entries: HashMap<String, Entry>,
    /// The key of each entry by its last use.
    uses: BTreeMap<u64, String>,
    next_use: u64,
    bytes: usize,
    /// The calls under way for each key.
    calls: HashMap<String, Calls>,
    next_call: u64,
}

/// The calls under way for one key.
#[derive(Debug, Default)]
struct Calls {
    under_way: usize,
    /// The latest of them whose answer has come.
    answered: u64,
}

/// The place of a call in the order in which calls were begun, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CallNumber(u64);

#[derive(Debug)]
struct Entry {
    answer: Answer,
    since: Instant,
    last_use: u64,
    bytes: usize,
}

/// An answer with its age.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It can be used as it is.
    Fresh(Answer, Duration),
    /// It can be used where there is no other.
    Stale(Answer, Duration),
}

impl Cache {
    /// A cache whose answers are fresh for `ttl`.
    pub(super) fn new(ttl: Duration) -> Cache {
        Cache {
            ttl,
            entries: HashMap::new(),
            uses: BTreeMap::new(),
            next_use: 0,
            bytes: 0,
            calls: HashMap::new(),
            next_call: 0,
        }
    }

    /// The answer kept under a key.
    pub(super) fn get(&mut self, key: &str, now: Instant) -> Option<Found> {
        let age = now.duration_since(self.entries.get(key)?.since);
        if age >= STALE_MAX.max(self.ttl) {
            self.remove(key);
            return None;
        }
        self.next_use += 1;
        let entry = self.entries.get_mut(key)?;
        self.uses.remove(&entry.last_use);
        entry.last_use = self.next_use;
        self.uses.insert(entry.last_use, key.to_owned());
        let answer = entry.answer.clone();
        Some(if age < self.ttl {
            Found::Fresh(answer, age)
        } else {
            Found::Stale(answer, age)
        })
    }

    /// Begins a call for a key. It has to be ended, whatever becomes of it.
    pub(super) fn begin_call(&mut self, key: &str) -> CallNumber {
        self.calls.entry(key.to_owned()).or_default().under_way += 1;
        self.next_call += 1;
        CallNumber(self.next_call)
    }

    /// Ends a call for a key.
    pub(super) fn end_call(&mut self, key: &str) {
        if let Some(calls) = self.calls.get_mut(key) {
            calls.under_way -= 1;
            if calls.under_way == 0 {
                self.calls.remove(key);
            }
        }
    }

    /// Takes up what a call under way has brought: an answer to keep, or, with none, that there is nothing any more. A call that was
    /// begun later may have been answered before: then this one tells of the past, and changes nothing.
    pub(super) fn take_up(
        &mut self,
        key: &str,
        call: CallNumber,
        answer: Option<Answer>,
        now: Instant,
    ) {
        let Some(calls) = self.calls.get_mut(key) else {
            return;
        };
        if call.0 < calls.answered {
            return;
        }
        calls.answered = call.0;
        match answer {
            Some(answer) => self.put(key.to_owned(), answer, now),
            None => self.remove(key),
        }
    }

    /// Keeps an answer in place of an older one. One that would fill the cache by itself is not kept.
    fn put(&mut self, key: String, answer: Answer, now: Instant) {
        self.remove(&key);
        let bytes = ENTRY_BYTES + 2 * key.len() + answer.body.len();
        if bytes > BYTES_MAX {
            return;
        }
        while self.entries.len() >= ENTRIES_MAX || self.bytes + bytes > BYTES_MAX {
            let Some((_, oldest)) = self.uses.pop_first() else {
                break;
            };
            self.remove(&oldest);
        }
        self.next_use += 1;
        self.uses.insert(self.next_use, key.clone());
        self.bytes += bytes;
        let entry = Entry {
            answer,
            since: now,
            last_use: self.next_use,
            bytes,
        };
        self.entries.insert(key, entry);
    }

    /// Forgets an answer.
    fn remove(&mut self, key: &str) {
        if let Some(entry) = self.entries.remove(key) {
            self.uses.remove(&entry.last_use);
            self.bytes -= entry.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    fn answer(bytes: usize) -> Answer {
        Answer {
            status: 200,
            content_type: None,
            request_id: None,
            retry_after: None,
            body: vec![b'x'; bytes].into(),
        }
    }

    #[test]
    fn an_answer_is_fresh_then_stale_then_gone() {
        let (mut cache, start) = (Cache::new(TTL), Instant::now());
        cache.put("a".into(), answer(1), start);
        let second = Duration::from_secs(1);
        let at = |cache: &mut Cache, age| cache.get("a", start + age);
        let fresh = TTL - second;
        assert_eq!(at(&mut cache, fresh), Some(Found::Fresh(answer(1), fresh)));
        assert_eq!(at(&mut cache, TTL), Some(Found::Stale(answer(1), TTL)));
        let late = STALE_MAX - second;
        assert_eq!(at(&mut cache, late), Some(Found::Stale(answer(1), late)));
        assert_eq!(at(&mut cache, STALE_MAX), None);
        assert_eq!(
            (cache.bytes, cache.entries.len(), cache.uses.len()),
            (0, 0, 0)
        );
        assert_eq!(cache.get("b", start), None);
    }

    #[test]
    fn the_answer_unused_for_longest_makes_room() {
        let (mut cache, now) = (Cache::new(TTL), Instant::now());
        for n in 0..ENTRIES_MAX {
            cache.put(n.to_string(), answer(1), now);
        }
        assert!(cache.get("0", now).is_some());
        cache.put("new".into(), answer(1), now);
        assert!(cache.get("0", now).is_some() && cache.get("new", now).is_some());
        assert!(cache.get("1", now).is_none());
        assert_eq!(cache.entries.len(), ENTRIES_MAX);

        cache.put("large".into(), answer(BYTES_MAX - 1_000), now);
        assert!(cache.entries.len() < 5 && cache.bytes <= BYTES_MAX);
        cache.put("too large".into(), answer(BYTES_MAX), now);
        assert!(cache.get("too large", now).is_none() && cache.get("large", now).is_some());
        cache.put("large".into(), answer(1), now);
        let bytes = cache.entries.values().map(|entry| entry.bytes);
        assert_eq!(cache.bytes, bytes.sum::<usize>());
        assert_eq!(cache.uses.len(), cache.entries.len());
    }

    /// A slow 200 that came after a later 404 once put back a profile that had been erased.
    #[test]
    fn of_two_calls_the_one_begun_later_counts_whichever_is_answered_first() {
        let now = Instant::now();
        for (earlier, later) in [(Some(1), None), (None, Some(2)), (Some(1), Some(2))] {
            let expected = later.map(answer);
            for in_order in [true, false] {
                let mut cache = Cache::new(TTL);
                let calls = [(); 2].map(|()| cache.begin_call("a"));
                let mut answers = [(calls[0], earlier), (calls[1], later)];
                if !in_order {
                    answers.reverse();
                }
                for (call, bytes) in answers {
                    cache.take_up("a", call, bytes.map(answer), now);
                    cache.end_call("a");
                }
                let found = cache.get("a", now).map(|found| match found {
                    Found::Fresh(answer, _) | Found::Stale(answer, _) => answer,
                });
                assert_eq!(found, expected, "{earlier:?} {later:?} {in_order}");
                assert!(cache.calls.is_empty());
            }
        }
    }
}
