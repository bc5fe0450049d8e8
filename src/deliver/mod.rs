//! Delivery: one loop a lane, each with its own pace. Never gives up, never drops.
//!
//! `verdict` decides what an answer means, `backoff` how long to wait, `request` makes the call; `lane_loop` performs it:
//! wait, fill, send, judge, settle, or bury; `destination` knows what is particular to Segment and to webhooks. A lane in trouble
//! waits by itself. Calls under way are bounded over all lanes; lanes that have just failed share slots of their own, so that
//! calls into a black hole never use up those of healthy lanes.

mod destination;
mod lane_loop;

mod backoff;
mod portion;
mod request;
mod verdict;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::batch::Limits;
use crate::event::SharedSecret;
use crate::ingest::webhook_lane;
use crate::queue::{LaneName, NewLanes, Pulse, Queue};
use crate::stats::Stats;

pub use request::{SetupError, WebhookHeaders, WebhookUrl};

use destination::{WEBHOOK_CALLS_MAX, Webhook};
use lane_loop::LaneLoop;
use request::{Hook, Sender};

/// Calls under way over all lanes. Each holds a body of up to 500 KB and the records it was made of.
const CALLS_MAX: usize = 32;
/// Calls under way of lanes whose last call failed.
const SUSPECT_CALLS_MAX: usize = 16;

/// URLs of all webhooks together. There is a slot for every call that they may have under way, so none ever waits for another.
pub const WEBHOOK_URLS_MAX: usize = 32;
/// How long a call to a webhook may take, unless the operator says otherwise: Segment waits as long.
pub const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// For how long an event is offered to a webhook, unless the operator says otherwise: Segment does it as long.
pub const WEBHOOK_MAX_AGE: Duration = Duration::from_secs(4 * 60 * 60);

/// Delivery's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Where to, and in what portions.
    pub segment: SegmentConfig,
    /// What to do when that fails.
    pub retry: RetryConfig,
    /// Where else to.
    pub webhooks: Vec<WebhookConfig>,
}

impl Config {
    /// Whether delivery could begin with it.
    ///
    /// # Errors
    /// As for [`Deliver::new`].
    pub fn check(&self) -> Result<(), SetupError> {
        Settings::new(self).map(|_| ())
    }
}

/// A webhook, as far as delivery knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookConfig {
    /// What it is called.
    pub name: String,
    /// Where events are posted; each URL is a lane of its own.
    pub urls: Vec<WebhookUrl>,
    /// What each call says besides.
    pub headers: WebhookHeaders,
    /// What bodies are signed with.
    pub secret: Option<SharedSecret>,
    /// How long a call may take.
    pub timeout: Duration,
    /// Events that have waited longer become dead letters; none for ever.
    pub max_age: Option<Duration>,
}

/// `[segment]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SegmentConfig {
    /// The base URL, without `/v1`.
    pub endpoint: String,
    /// A call's body with its envelope, in bytes. Segment refuses more than 500 KB and does not say whether KB is 1000 or 1024.
    pub max_batch_bytes: usize,
    /// Events a call. Segment answers 200 to more than 2,500, and throws them away.
    pub max_batch_events: usize,
    /// How long a batch may wait to fill.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub linger: Duration,
    /// A lane's calls under way; 1 keeps the order of acceptance.
    pub concurrency: usize,
    /// How long a call may take.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub timeout: Duration,
    /// Whether bodies are compressed.
    pub gzip: bool,
    /// How many events of a lane may be sent in a second; 0 for any number.
    pub max_events_per_second: u32,
    /// Calls are let in by tokens in place of their write keys.
    pub oauth: Option<OauthConfig>,
}

impl Default for SegmentConfig {
    fn default() -> SegmentConfig {
        SegmentConfig {
            endpoint: "https://api.segment.io".into(),
            max_batch_bytes: 500_000,
            max_batch_events: 2_500,
            linger: Duration::from_secs(1),
            concurrency: 4,
            timeout: Duration::from_secs(10),
            gzip: false,
            max_events_per_second: 0,
            oauth: None,
        }
    }
}

/// `[segment.oauth]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OauthConfig {
    /// Who asks for tokens.
    pub client_id: String,
    /// Which of the client's keys signs.
    pub key_id: String,
    /// That key, RSA in PEM.
    pub private_key_file: PathBuf,
    /// Where tokens are fetched.
    pub token_endpoint: String,
    /// What they are for.
    pub scope: String,
}

impl Default for OauthConfig {
    fn default() -> OauthConfig {
        OauthConfig {
            client_id: String::new(),
            key_id: String::new(),
            private_key_file: PathBuf::new(),
            token_endpoint: "https://oauth2.segment.io/token".into(),
            scope: "tracking_api:write".into(),
        }
    }
}

/// `[retry]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryConfig {
    /// The first wait after a failure, about.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub base: Duration,
    /// The longest.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub max: Duration,
    /// The longest pause a destination may ask for.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub max_retry_after: Duration,
    /// How often a held lane tries again.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub hold_probe: Duration,
    /// Events that have waited longer become dead letters; none for ever.
    #[serde(with = "crate::deliver::duration_or_none")]
    pub max_age: Option<Duration>,
}

impl Default for RetryConfig {
    fn default() -> RetryConfig {
        RetryConfig {
            base: Duration::from_millis(500),
            max: Duration::from_secs(60),
            max_retry_after: Duration::from_secs(300),
            hold_probe: Duration::from_secs(60),
            max_age: None,
        }
    }
}

impl SegmentConfig {
    fn limits(&self) -> Limits {
        let events_a_second = match self.max_events_per_second {
            0 => usize::MAX,
            pace => pace as usize,
        };
        Limits {
            body_bytes_max: self.max_batch_bytes,
            // No more than a second's worth, so that no second sees more.
            events_max: self.max_batch_events.min(events_a_second),
        }
    }
}

/// What may change while the process delivers.
#[derive(Debug)]
struct Settings {
    config: Config,
    sender: Sender,
    webhooks: HashMap<LaneName, Arc<Webhook>>,
}

impl Settings {
    fn new(config: &Config) -> Result<Settings, SetupError> {
        let mut webhooks = HashMap::new();
        for webhook in &config.webhooks {
            for url in &webhook.urls {
                let hook = Hook::new(
                    url,
                    &webhook.headers,
                    webhook.secret.as_ref(),
                    webhook.timeout,
                    config.retry.max_retry_after,
                )?;
                let config = webhook.clone();
                let name = webhook_lane(&webhook.name, url.expose());
                webhooks.insert(name, Arc::new(Webhook { hook, config }));
            }
        }
        Ok(Settings {
            sender: Sender::new(config)?,
            config: config.clone(),
            webhooks,
        })
    }
}

/// What every lane's loop works with.
#[derive(Debug)]
struct Context {
    settings: watch::Sender<Arc<Settings>>,
    queue: Queue,
    stats: Arc<Stats>,
    slots: Arc<Semaphore>,
    suspect_slots: Arc<Semaphore>,
    webhook_slots: Arc<Semaphore>,
    /// What the loops are at that is to end soon: reading, judging, burying.
    pulse: Pulse,
    /// Whether batches go without waiting to fill.
    hurry: watch::Sender<bool>,
}

/// Tells delivery that the end is near: from then on no batch waits to fill.
#[derive(Debug)]
pub struct Hurry(watch::Sender<bool>);

impl Hurry {
    /// Sends what waits, however little it is.
    pub fn up(&self) {
        self.0.send_replace(true);
    }
}

/// Gives delivery other settings while it runs.
#[derive(Debug)]
pub struct Retune(watch::Sender<Arc<Settings>>);

impl Retune {
    /// Goes by these from now on. Calls under way end as they began; held lanes try again at once.
    ///
    /// # Errors
    /// As for [`Deliver::new`]; then the settings stay as they were.
    pub fn to(&self, config: &Config) -> Result<(), SetupError> {
        self.0.send_replace(Arc::new(Settings::new(config)?));
        Ok(())
    }
}

/// Delivery, set up and not begun.
#[derive(Debug)]
pub struct Deliver {
    context: Arc<Context>,
    new_lanes: NewLanes,
}

impl Deliver {
    /// Sets delivery up.
    ///
    /// # Errors
    /// An endpoint is no URL, the key file of OAuth holds no key, or the system has no usable TLS roots.
    pub fn new(
        config: &Config,
        queue: Queue,
        new_lanes: NewLanes,
        stats: Arc<Stats>,
    ) -> Result<Deliver, SetupError> {
        let context = Context {
            settings: watch::Sender::new(Arc::new(Settings::new(config)?)),
            queue,
            stats,
            slots: Arc::new(Semaphore::new(CALLS_MAX)),
            suspect_slots: Arc::new(Semaphore::new(SUSPECT_CALLS_MAX)),
            webhook_slots: Arc::new(Semaphore::new(WEBHOOK_URLS_MAX * WEBHOOK_CALLS_MAX)),
            pulse: Pulse::default(),
            hurry: watch::Sender::new(false),
        };
        Ok(Deliver {
            context: Arc::new(context),
            new_lanes,
        })
    }

    /// A handle that outlives [`Deliver::run`].
    #[must_use]
    pub fn hurry(&self) -> Hurry {
        Hurry(self.context.hurry.clone())
    }

    /// Another handle that outlives [`Deliver::run`].
    #[must_use]
    pub fn retune(&self) -> Retune {
        Retune(self.context.settings.clone())
    }

    /// Whether the loops get on. Waiting for events, for a destination or for a slot is not work.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        self.context.pulse.clone()
    }

    /// Delivers until it is dropped, which ends the calls under way: their events stay in their lanes. Returns only if a lane's
    /// loop has died, which must end the process.
    pub async fn run(mut self) {
        let mut loops = JoinSet::new();
        loop {
            tokio::select! {
                reader = self.new_lanes.next() => {
                    loops.spawn(LaneLoop::new(Arc::clone(&self.context), reader).run());
                }
                Some(ended) = loops.join_next() => {
                    tracing::error!(?ended, "a lane's loop has ended");
                    return;
                }
            }
        }
    }
}

/// A duration as people write it, where an empty one is none.
pub(crate) mod duration_or_none {
    use std::time::Duration;

    use jiff::fmt::friendly;
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    #[expect(clippy::ref_option, reason = "serde hands fields over like this")]
    pub(crate) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let printer = friendly::SpanPrinter::new();
        let text = duration.map(|duration| printer.unsigned_duration_to_string(&duration));
        to.serialize_str(text.as_deref().unwrap_or_default())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        let text = String::deserialize(from)?;
        if text.is_empty() {
            return Ok(None);
        }
        let parsed = friendly::SpanParser::new().parse_unsigned_duration(&text);
        parsed.map(Some).map_err(de::Error::custom)
    }
}
