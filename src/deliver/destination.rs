//! Where a lane leads, and what is particular to it: how much goes into a call, how many calls at a time, how old an event may
//! become, and the call itself. A lane's loop is the same for all.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::Semaphore;

use super::request::{Answer, Hook};
use super::{Context, Settings, WEBHOOK_MAX_AGE, WebhookConfig};
use crate::batch::{Batch, Envelope, Limits};
use crate::ingest::SEGMENT;
use crate::queue::{LaneName, WEBHOOK};

/// Calls to one URL under way.
pub(super) const WEBHOOK_CALLS_MAX: usize = 4;
/// What is read ahead of a webhook's lane, in bytes; a call takes one event of it.
const WEBHOOK_READ_BYTES: usize = 64 * 1024;

/// The destination of a lane under the settings of the moment.
#[derive(Debug)]
pub(super) struct Destination {
    settings: Arc<Settings>,
    name: LaneName,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Segment(Envelope),
    /// None where the settings know nothing of it any more.
    Webhook(Option<Arc<Webhook>>),
}

/// One URL of a webhook.
#[derive(Debug)]
pub(super) struct Webhook {
    pub(super) hook: Hook,
    pub(super) config: WebhookConfig,
}

impl PartialEq for Destination {
    /// Whether all that the operator says of it is the same, so that what fails at the one fails at the other.
    fn eq(&self, other: &Destination) -> bool {
        match (&self.kind, &other.kind) {
            (Kind::Segment(_), Kind::Segment(_)) => {
                self.settings.config.segment == other.settings.config.segment
            }
            (Kind::Webhook(own), Kind::Webhook(others)) => {
                own.as_ref().map(|own| &own.config) == others.as_ref().map(|other| &other.config)
            }
            (Kind::Segment(_), Kind::Webhook(_)) | (Kind::Webhook(_), Kind::Segment(_)) => false,
        }
    }
}

impl Destination {
    pub(super) fn of(name: &LaneName, settings: &Arc<Settings>) -> Destination {
        let kind = if name.destination == WEBHOOK {
            Kind::Webhook(settings.webhooks.get(name).cloned())
        } else {
            Kind::Segment(Envelope::segment(name.expose_key()))
        };
        Destination {
            settings: Arc::clone(settings),
            name: name.clone(),
            kind,
        }
    }

    /// What its kind is called.
    pub(super) fn kind_name(&self) -> &'static str {
        match &self.kind {
            Kind::Segment(_) => SEGMENT,
            Kind::Webhook(_) => WEBHOOK,
        }
    }

    /// What one call may hold.
    pub(super) fn limits(&self) -> Limits {
        match &self.kind {
            Kind::Segment(_) => self.settings.config.segment.limits(),
            Kind::Webhook(_) => Limits {
                body_bytes_max: WEBHOOK_READ_BYTES,
                events_max: 1,
            },
        }
    }

    /// What a call's body holds besides the events.
    pub(super) fn envelope_bytes(&self) -> usize {
        match &self.kind {
            Kind::Segment(envelope) => envelope.bytes(),
            Kind::Webhook(_) => 0,
        }
    }

    /// How long a batch may wait to fill.
    pub(super) fn linger(&self) -> Duration {
        match &self.kind {
            Kind::Segment(_) => self.settings.config.segment.linger,
            Kind::Webhook(_) => Duration::ZERO,
        }
    }

    /// Calls under way.
    pub(super) fn concurrency(&self) -> usize {
        match &self.kind {
            Kind::Segment(_) => self.settings.config.segment.concurrency,
            Kind::Webhook(_) => WEBHOOK_CALLS_MAX,
        }
    }

    /// Whether an event that fails holds up those behind it: where it does not, it waits by itself.
    pub(super) fn keeps_order(&self) -> bool {
        match &self.kind {
            Kind::Segment(_) => true,
            Kind::Webhook(_) => false,
        }
    }

    /// How many events may be sent in a second; 0 for any number.
    pub(super) fn events_a_second(&self) -> u32 {
        match &self.kind {
            Kind::Segment(_) => self.settings.config.segment.max_events_per_second,
            Kind::Webhook(_) => 0,
        }
    }

    /// When events become dead letters, and by which setting. `in_trouble` says whether these, or the last others, were sent in vain.
    pub(super) fn max_age(&self, in_trouble: bool) -> (Option<Duration>, &'static str) {
        match &self.kind {
            Kind::Segment(_) => (self.settings.config.retry.max_age, "retry.max_age"),
            // However long it has waited, it is offered once to a webhook that takes others.
            Kind::Webhook(Some(webhook)) => (
                webhook.config.max_age.filter(|_| in_trouble),
                "its webhook's max_age",
            ),
            // Nobody says how long they are to wait, and they must not for ever.
            Kind::Webhook(None) => (Some(WEBHOOK_MAX_AGE), "the default max_age of webhooks"),
        }
    }

    /// Whether it knows for how long an event that comes again is one that it has.
    pub(super) fn deduplicates(&self) -> bool {
        match &self.kind {
            Kind::Segment(_) => true,
            Kind::Webhook(_) => false,
        }
    }

    /// What the next call has to wait for, where the last one failed or not.
    pub(super) fn slots<'a>(&self, context: &'a Context, suspect: bool) -> &'a Arc<Semaphore> {
        match (&self.kind, suspect) {
            (Kind::Segment(_), false) => &context.slots,
            (Kind::Segment(_), true) => &context.suspect_slots,
            (Kind::Webhook(_), _) => &context.webhook_slots,
        }
    }

    /// How long the body of a call is, in bytes.
    pub(super) fn body_bytes(&self, batch: &Batch) -> usize {
        match &self.kind {
            Kind::Segment(envelope) => envelope.body_bytes(batch),
            Kind::Webhook(_) => batch.events().map(<[u8]>::len).sum(),
        }
    }

    /// Makes a call. `attempts` says how often its events were sent before.
    pub(super) async fn call(&self, batch: Batch, attempts: u32) -> Answer {
        match &self.kind {
            Kind::Segment(envelope) => self.call_segment(envelope, batch, attempts).await,
            Kind::Webhook(Some(webhook)) => {
                let event = batch.events().next().map(Bytes::copy_from_slice);
                drop(batch);
                webhook.hook.send(event.unwrap_or_default()).await
            }
            Kind::Webhook(None) => Answer::Unsent {
                error: "its webhook is not configured any more".into(),
                refused: true,
                retry_after: None,
            },
        }
    }

    async fn call_segment(&self, envelope: &Envelope, batch: Batch, attempts: u32) -> Answer {
        let sender = &self.settings.sender;
        match sender.pass().await {
            Ok(pass) => {
                // At every attempt anew, and at its last moment: Segment takes the time between sentAt and its own receipt
                // for the sender's clock error.
                let body = envelope.body(&batch, Timestamp::now());
                drop(batch);
                let key = self.name.expose_key();
                sender.send(&pass, key, body, attempts).await
            }
            Err(unsent) => unsent,
        }
    }
}
