//! Accepts dead letters again: back through validation, into their lanes, and only then out of the dead letters.
//!
//! An event keeps its messageId, and has its timestamp from the time it was first accepted at. One that is rejected again stays a
//! dead letter, with its new reason. What a webhook refused goes to that webhook alone, as it was; and what Segment refused went to
//! the webhooks when it was accepted, and goes there no second time. Replayed events count as accepted again. A crash on the way may
//! leave an event both in its lane and a dead letter, never
//! in neither.

use jiff::Timestamp;
use uuid::Uuid;

use super::trigger::Copies;
use super::{BATCH, Call, Ingest, PIXEL, Refusal, SEGMENT};
use crate::event::{
    Code, Kind, Rejection, Stamp, WriteKey, decode_batch, decode_event, decode_pixel,
};
use crate::queue::{DeadLetter, Filter, LaneName, LetterId, Load, Run, Unavailable, WEBHOOK};

/// Letters that are accepted again with one sync. Their events are in memory meanwhile.
const PORTION_LETTERS: usize = 500;
/// Of so many letters that failed it is said why: they show what is wrong as well as thousands would.
const FAILED_SHOWN_MAX: usize = 100;

/// What became of the letters.
#[derive(Debug, Default)]
pub struct Replayed {
    /// How many were accepted again.
    pub replayed: u64,
    /// How many were rejected again.
    pub failed_events: u64,
    /// Why, for the first of them.
    pub failed: Vec<(LetterId, Rejection)>,
}

/// Why it ended before its time. What was done is done, and the rest is as it was.
#[derive(Debug)]
pub enum Stopped {
    /// The queue did not take more.
    Refused(Refusal),
    /// The dead letters could not be read or changed.
    Unavailable(Unavailable),
}

impl From<Refusal> for Stopped {
    fn from(refusal: Refusal) -> Stopped {
        Stopped::Refused(refusal)
    }
}

impl From<Unavailable> for Stopped {
    fn from(error: Unavailable) -> Stopped {
        Stopped::Unavailable(error)
    }
}

impl Ingest {
    /// Replays the letters that are meant. What is refused and buried again meanwhile is not taken a second time. Must be awaited to
    /// its end, and not run twice at the same time.
    pub async fn replay(&self, filter: &Filter) -> (Replayed, Result<(), Stopped>) {
        let mut replayed = Replayed::default();
        let result = self.replay_all(filter, &mut replayed).await;
        (replayed, result)
    }

    async fn replay_all(&self, filter: &Filter, replayed: &mut Replayed) -> Result<(), Stopped> {
        let filter = Filter {
            before: Some(self.queue.present()),
            ..filter.clone()
        };
        let mut after = None;
        loop {
            let dead_letters = self.queue.dead_letters();
            let portion = dead_letters.read(after, &filter, PORTION_LETTERS).await?;
            self.replay_portion(portion.letters, replayed).await?;
            after = portion.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    async fn replay_portion(
        &self,
        letters: Vec<(LetterId, DeadLetter)>,
        replayed: &mut Replayed,
    ) -> Result<(), Stopped> {
        let (mut runs, mut accepted, mut rejected) = (Vec::new(), Vec::new(), Vec::new());
        for (id, letter) in letters {
            match self.prepare_again(id, &letter) {
                Ok(prepared) => {
                    runs.extend(prepared);
                    accepted.push(id);
                }
                Err(rejection) => rejected.push((id, letter, rejection)),
            }
        }
        if !accepted.is_empty() {
            self.append(runs).await?;
        }
        let count = accepted.len() as u64;
        let changed = rejected.iter().map(|(id, letter, rejection)| {
            let letter = DeadLetter {
                code: rejection.code().as_str().into(),
                reason: rejection.message().into(),
                status: None,
                answer: String::new(),
                ..letter.clone()
            };
            (*id, letter)
        });
        let changed: Vec<_> = changed.collect();
        self.queue.dead_letters().change(accepted, changed).await?;
        replayed.replayed += count;
        replayed.failed_events += rejected.len() as u64;
        let room = FAILED_SHOWN_MAX - replayed.failed.len();
        let failed = rejected
            .into_iter()
            .map(|(id, _, rejection)| (id, rejection));
        replayed.failed.extend(failed.take(room));
        Ok(())
    }

    /// A letter's events, ready for their lanes: all of them, or none.
    fn prepare_again(
        &self,
        id: LetterId,
        letter: &DeadLetter,
    ) -> Result<Vec<(LaneName, Load)>, Rejection> {
        let lane = letter.lane.as_ref();
        if let Some(lane) = lane.filter(|lane| lane.destination == WEBHOOK) {
            let mut run = Run::default();
            run.push(&letter.event);
            return Ok(vec![(lane.clone(), run.into())]);
        }
        let message;
        let call = letter.call.as_deref();
        let envelope = match call.map(|call| (call, call.strip_prefix(PIXEL))) {
            Some((BATCH, _)) => decode_batch(&letter.event)?,
            Some((_, Some(kind))) => {
                message = decode_pixel(&letter.event)?;
                decode_event(Kind::from_name(kind), &message)?
            }
            Some((kind, None)) => decode_event(Kind::from_name(kind), &letter.event)?,
            None => decode_event(None, &letter.event)?,
        };
        let key = match lane.filter(|lane| lane.destination == SEGMENT) {
            Some(lane) => Some(WriteKey::new(lane.expose_key())?),
            None => envelope.write_key()?,
        };
        let accepted_at = Timestamp::from_millisecond(letter.accepted_at_ms);
        // Should a crash leave the letter here, the next replay gives its events the same ids, by which Segment knows them.
        let seed = Uuid::new_v5(&Uuid::NAMESPACE_OID, id.to_string().as_bytes());
        let stamping =
            Stamp::at(accepted_at.unwrap_or_else(|_| Timestamp::now())).with_ids_from(seed);
        let mut prepared = self
            .sort(Call::Batch, &envelope, key, &stamping)
            .map_err(|refusal| Rejection::new(Code::EventTooLarge, refusal.to_string()))?;
        if id.was_accepted() {
            prepared.copies = Copies::default();
        }
        match std::mem::take(&mut prepared.rejected).into_iter().next() {
            Some(item) => Err(item.rejection),
            None => Ok(prepared.loads()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ingest::Rules;
    use crate::queue::{Config, Queue};

    /// A crash between the append and the removal of the letter once sent an event under two ids, which Segment counts as two.
    #[tokio::test]
    async fn every_replay_of_a_letter_gives_its_events_the_same_ids() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (queue, _new_lanes) = Queue::open(dir.path(), &Config::default()).expect("opened");
        let ingest = Ingest::new(Rules::default(), queue.clone(), Arc::default());
        let event = br#"{"userId":"u","event":"E","writeKey":"KEY12345"}"#;
        let letter = DeadLetter {
            call: Some(BATCH.into()),
            event: [
                br#"{"batch":["#,
                &event[..1],
                br#""type":"track","#,
                &event[1..],
                b",",
                &event[..1],
                br#""type":"track","#,
                &event[1..],
                b"]}",
            ]
            .concat(),
            accepted_at_ms: 1_764_000_000_000,
            ..DeadLetter::default()
        };
        let id = |digit: &str| digit.parse::<LetterId>().expect("an id");
        let replay = |id| {
            let prepared = ingest.prepare_again(id, &letter).expect("good events");
            let load = prepared.into_iter().next().expect("a lane").1;
            let events: Vec<&[u8]> = load.iter().collect();
            String::from_utf8(events.concat()).expect("JSON")
        };
        let one = id(&format!("72{}", "0".repeat(40)));
        let other = id(&format!("72{}1", "0".repeat(39)));
        assert_eq!(replay(one), replay(one));
        assert_ne!(replay(one), replay(other));
        let both = replay(one);
        let (first, second) = both.split_at(both.len() / 2);
        assert_ne!(first, second, "two events, two ids");
        queue.close().await;
    }
}
