//! Accepts what Segment's own webhooks post: it goes to the webhooks of this daemon that want it, and never back to Segment.
//!
//! What is wrong with it is told and counted, and not kept: Segment has it still.

use super::trigger::Copies;
use super::{Accepted, Ingest, Refusal, RejectedItem, STAMPED_BYTES_MAX};
use crate::event::limits::RECEIVED_BYTES_MAX;
use crate::event::{Code, Facts, RawEvent, Rejection, SharedSecret, decode_received};
use crate::queue::AppendError;

/// How events from Segment are received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receiver {
    /// What Segment signs with; none where anybody may post.
    pub secret: Option<SharedSecret>,
    /// Whether several events at a time are taken though only the first of them is signed.
    pub batches: bool,
}

impl Receiver {
    /// Segment signs a lone event by the whole body, and of several only the first.
    fn trusts(&self, signature: Option<&str>, body: &[u8], first: Option<&RawEvent<'_>>) -> bool {
        let Some(secret) = &self.secret else {
            return true;
        };
        let is_array = body.trim_ascii_start().starts_with(b"[");
        let signed = first.filter(|_| is_array);
        let signed = signed.map_or(body, |first| first.json().as_bytes());
        signature.is_some_and(|signature| secret.has_signed(signed, signature))
    }
}

impl Ingest {
    /// How events from Segment are received; none where they are not.
    #[must_use]
    pub fn receiver(&self) -> Option<Receiver> {
        self.rules().receiver.clone()
    }

    /// Accepts the events of a body for the webhooks that want them. `signature` is what the request says that it is signed with.
    ///
    /// # Errors
    /// A [`Refusal`]: then no event of the request was accepted.
    pub async fn receive(
        &self,
        receiver: &Receiver,
        signature: Option<&str>,
        body: &[u8],
    ) -> Result<Accepted, Refusal> {
        let envelope = decode_received(body);
        let events = envelope.as_ref().map(|envelope| &envelope.events[..]);
        let first = events.ok().and_then(<[_]>::first);
        if !receiver.trusts(signature, body, first) {
            return Err(Refusal::NotSigned);
        }
        let envelope = envelope.map_err(|rejection| self.count_rejected(rejection, body))?;
        if receiver.secret.is_some() && !receiver.batches && envelope.events.len() > 1 {
            return Err(Refusal::PartlySigned);
        }
        let (rules, now) = (self.rules(), (self.now)());
        let (mut copies, mut rejected) = (Copies::default(), Vec::new());
        for (index, raw) in envelope.events.iter().enumerate() {
            match check(raw) {
                Ok(facts) => copies.add(&rules.triggers, &facts, now),
                Err(rejection) => {
                    let (code, json) = (rejection.code().as_str(), raw.json().as_bytes());
                    self.tell_rejected(None, code, rejection.message(), json);
                    rejected.push(RejectedItem { index, rejection });
                }
            }
            if copies.bytes() > STAMPED_BYTES_MAX {
                return Err(Refusal::TooLarge);
            }
        }
        let accepted = envelope.events.len() - rejected.len();
        if accepted == 0 {
            let first = rejected.into_iter().next();
            let first = first.expect("a request without events was rejected when it was decoded");
            self.stats.rejected_events.add(1);
            return Err(Refusal::Rejected(first.rejection));
        }
        let (loads, left_out) = self.leave_out(copies.loads(&rules.triggers));
        if loads.is_empty() && !left_out.is_empty() {
            // Nobody else has these events, and Segment posts them again.
            return Err(Refusal::Queue(AppendError::Full));
        }
        let durability = self.append(loads).await?;
        left_out.count();
        self.stats.received_events.add(accepted as u64);
        self.stats.rejected_events.add(rejected.len() as u64);
        Ok(Accepted {
            accepted,
            rejected,
            durability,
        })
    }

    fn count_rejected(&self, rejection: Rejection, body: &[u8]) -> Refusal {
        self.stats.rejected_events.add(1);
        self.tell_rejected(None, rejection.code().as_str(), rejection.message(), body);
        Refusal::Rejected(rejection)
    }
}

fn check<'a>(raw: &RawEvent<'a>) -> Result<Facts<'a>, Rejection> {
    let json = raw.json();
    if json.len() > RECEIVED_BYTES_MAX {
        let bytes = json.len();
        let message = format!("the event is {bytes} bytes long, more than {RECEIVED_BYTES_MAX}");
        return Err(Rejection::new(Code::EventTooLarge, message));
    }
    Facts::of_received(json.as_bytes())
        .ok_or_else(|| Rejection::new(Code::NotAnObject, "the event is not a JSON object"))
}
