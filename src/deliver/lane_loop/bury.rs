//! Makes dead letters of events that a lane's loop gives up. They leave their lane only once they are safe there.

use jiff::Timestamp;
use tracing::{error, warn};

use super::{IN_VAIN_MIN, LaneLoop, LaneState, Portion, What, oldest_ms};
use crate::deliver::request::Answer;
use crate::queue::{BuryError, DeadLetter, ReadError, Record};

impl LaneLoop {
    /// Makes an event that was refused on its own a dead letter. It leaves its lane only once it is safe there.
    pub(super) async fn bury_refused(&mut self, event: Portion, answer: Answer) {
        let (status, body) = match answer {
            Answer::Answered { status, body, .. } => (Some(status), body),
            Answer::TokenRefused { .. } | Answer::Unanswered { .. } | Answer::Unsent { .. } => {
                (None, String::new())
            }
        };
        let letter = DeadLetter {
            code: "refused".into(),
            reason: "the destination refused the event".into(),
            status,
            answer: body,
            attempts: event.attempts,
            ..self.letter()
        };
        let buried = match self.reader.read_again(event.ordinals.clone()).await {
            Ok(records) => self
                .bury(&records, &letter)
                .await
                .map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let lane = self.reader.lane().id();
        match buried {
            Ok(()) => {
                warn!(%lane, ?status, "an event was refused for good; it is a dead letter now");
            }
            Err(error) => {
                error!(%lane, error, "a refused event stays in its lane");
                self.again.insert(event);
                self.back_off(LaneState::BackingOff, &error);
            }
        }
    }

    /// Makes dead letters of what was sent in vain and is too old, however long it was to wait until it is sent again.
    pub(super) async fn bury_old(&mut self) -> Result<(), ReadError> {
        let (Some(max_age), _) = self.destination.max_age(true) else {
            return Ok(());
        };
        if self.destination.keeps_order() {
            return Ok(());
        }
        while let Some(portion) = self.again.pop_old(oldest_ms(max_age)) {
            let read = self.reader.read_again(portion.ordinals.clone()).await;
            let left = match read {
                Ok(records) => self.without_expired(records, Some(portion.attempts)).await,
                Err(error) => {
                    self.again.insert(portion);
                    return Err(error);
                }
            };
            if !left.is_empty() {
                // It could not be buried, and the others could not either.
                self.again.insert(portion);
                break;
            }
        }
        Ok(())
    }

    /// Makes dead letters of the events that are older than the operator wants any to become, and returns the others. What cannot
    /// be buried is still good to be delivered.
    pub(super) async fn without_expired(
        &mut self,
        records: Vec<Record>,
        sent: Option<u32>,
    ) -> Vec<Record> {
        let in_trouble = sent.is_some() || self.in_vain >= IN_VAIN_MIN;
        let (Some(max_age), setting) = self.destination.max_age(in_trouble) else {
            return records;
        };
        let oldest = oldest_ms(max_age);
        let (expired, mut fresh): (Vec<_>, Vec<_>) =
            records.into_iter().partition(|r| r.accepted_at_ms < oldest);
        if expired.is_empty() {
            return fresh;
        }
        let letter = DeadLetter {
            code: "expired".into(),
            reason: format!("the event is older than {setting}"),
            attempts: sent.unwrap_or_default(),
            ..self.letter()
        };
        let lane = self.reader.lane().id();
        let events: usize = expired.iter().map(Record::len).sum();
        match self.bury(&expired, &letter).await {
            Ok(()) => {
                warn!(%lane, events, setting, "events are older than a setting allows; they are dead letters now");
            }
            Err(error) => {
                error!(%lane, %error, setting, "events older than a setting allows stay in their lane");
                fresh.splice(..0, expired);
            }
        }
        fresh
    }

    /// A dead letter of this lane, to be filled in.
    fn letter(&self) -> DeadLetter {
        DeadLetter {
            lane: Some(self.reader.lane().name().clone()),
            buried_at_ms: Timestamp::now().as_millisecond(),
            ..DeadLetter::default()
        }
    }

    /// Makes a dead letter like this one of every event, counts and settles them.
    async fn bury(&self, records: &[Record], letter: &DeadLetter) -> Result<(), BuryError> {
        let letters = records.iter().flat_map(|record| {
            (0..record.len()).map(|index| {
                let letter = DeadLetter {
                    accepted_at_ms: record.accepted_at_ms,
                    event: record.event(index).to_vec(),
                    ..letter.clone()
                };
                (record.position, record.skipped + index as u32, letter)
            })
        });
        let dead_letters = self.context.queue.dead_letters();
        dead_letters.bury(letters.collect()).await?;
        for record in records {
            let events = (0..record.len()).map(|index| record.event(index));
            let reason = format!("{}: {}", letter.code, letter.reason);
            let sightings = self.sift(What::Refused, events);
            self.tell(sightings, Some(reason), letter.status);
            let events = record.len() as u64;
            self.context.stats.buried(&self.stats, events);
            self.reader.settle(record.first..record.first + events);
        }
        Ok(())
    }
}
