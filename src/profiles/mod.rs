//! Profiles: what Segment knows of a user or an account, read through from its Profile API with the space's own token.
//!
//! ```text
//! address ─▶ cache ─fresh─▶ answer
//!              └─▶ pace ─▶ upstream ─▶ answer, or a stale one from the cache where there is none
//! ```
//! A profile is somebody's personal data: none is ever on disk or in the log, nor is an identifier by which one was asked for. The
//! token goes to the Profile API and nowhere else.

mod config;
mod secret;

mod address;
mod cache;
mod cursor;
mod pace;
mod upstream;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use crate::stats::Stats;

pub use address::{Address, AddressError, is_profile_path, is_space_id};
pub use config::Config;
pub use cursor::Caller;
pub use secret::Secret;
pub use upstream::SetupError;

use cache::{Cache, CallNumber, Found};
use pace::Pace;
use upstream::{Failure, Upstream};

/// Calls under way. Each may hold a body of up to 8 MiB; at the 200 ms that Segment gives for most, so many are 160 a second.
const CALLS_MAX: usize = 32;
/// Before the one retry: a server that is being replaced is often gone for no longer.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Reads profiles.
#[derive(Debug)]
pub struct Profiles {
    space_id: Option<String>,
    client_token: Option<Secret>,
    timeout: Duration,
    upstream: Upstream,
    calls: Semaphore,
    pace: Mutex<Pace>,
    cache: Option<Mutex<Cache>>,
    failing: AtomicBool,
    stats: Arc<Stats>,
}

/// What the Profile API answered, now or before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// `Content-Type`
    pub content_type: Option<String>,
    /// `Request-Id`
    pub request_id: Option<String>,
    /// `Retry-After`
    pub retry_after: Option<String>,
    /// The body.
    pub body: Bytes,
}

/// Where an answer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From the Profile API, just now.
    Upstream,
    /// From the cache, where it has been for so long.
    Cache(Duration),
    /// From the cache, where it has been for longer than it is fresh: the Profile API does not answer.
    Stale(Duration),
}

/// Why there is no answer. Completes "failed to read the profile: …".
#[derive(Debug, PartialEq, Eq)]
pub enum Error {
    /// The space has had all the requests of this second.
    TooFast,
    /// No answer came in time.
    TimedOut,
    /// No answer came.
    Unanswered(String),
    /// What came is not what the Profile API answers.
    Unusable(&'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::TooFast => f.write_str("more than 100 requests in a second"),
            Error::TimedOut => {
                f.write_str("the Profile API has not answered within profiles.timeout")
            }
            Error::Unanswered(why) => write!(f, "the Profile API has not answered: {why}"),
            Error::Unusable(why) => write!(f, "the Profile API's answer {why}"),
        }
    }
}

impl std::error::Error for Error {}

impl Profiles {
    /// Profiles of the space of `config`; none where it has no token.
    ///
    /// # Errors
    /// The endpoint is no URL, or the system has no usable TLS roots.
    pub fn new(config: &Config, stats: Arc<Stats>) -> Result<Option<Profiles>, SetupError> {
        let Some(token) = &config.token else {
            return Ok(None);
        };
        Ok(Some(Profiles {
            space_id: config.space_id.clone(),
            client_token: config.client_token.clone(),
            timeout: config.timeout,
            upstream: Upstream::new(&config.endpoint, token.clone())?,
            calls: Semaphore::new(CALLS_MAX),
            pace: Mutex::default(),
            cache: config.cache_ttl.map(|ttl| Mutex::new(Cache::new(ttl))),
            failing: AtomicBool::new(false),
            stats,
        }))
    }

    /// The space that the short form of a path stands for.
    #[must_use]
    pub fn space_id(&self) -> Option<&str> {
        self.space_id.as_deref()
    }

    /// Whether a client that bears this token may read.
    #[must_use]
    pub fn admits(&self, token: Option<&str>) -> bool {
        match (&self.client_token, token) {
            (None, _) => true,
            (Some(wanted), Some(token)) => wanted.is(token),
            (Some(_), None) => false,
        }
    }

    /// Reads what lies at an address.
    ///
    /// # Errors
    /// There is no answer, fresh or stale.
    pub async fn read(&self, address: &Address) -> Result<(Answer, Origin), Error> {
        let target = address.target();
        let stale = match self.cached(&target) {
            Some(Found::Fresh(answer, age)) => {
                self.stats.profiles.cache_hits.add(1);
                return Ok((answer, Origin::Cache(age)));
            }
            Some(Found::Stale(answer, age)) => Some((answer, age)),
            None => None,
        };
        let begun = self.cache.as_ref().map(|cache| Begun::new(cache, &target));
        let answer = timeout(self.timeout, self.call(&target)).await;
        let answer = answer.unwrap_or(Err(Error::TimedOut));
        self.tell(&answer);
        let is_down = match &answer {
            Ok(answer) => answer.status == 429 || answer.status >= 500,
            Err(_) => true,
        };
        match (answer, stale) {
            (_, Some((answer, age))) if is_down => {
                self.stats.profiles.stale_answers.add(1);
                Ok((answer, Origin::Stale(age)))
            }
            (Ok(answer), _) => {
                if let Some(begun) = begun.filter(|_| !is_down) {
                    begun.keep(&answer);
                }
                Ok((answer, Origin::Upstream))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Calls, and once more where that may help.
    async fn call(&self, target: &str) -> Result<Answer, Error> {
        let call = self.calls.acquire().await;
        let _call = call.expect("the semaphore is never closed");
        // Only now: those that waited here would go out all at once.
        if !self.may_call() {
            return Err(Error::TooFast);
        }
        let first = self.upstream.get(target).await;
        let again = match &first {
            // Who names a time would not like to be asked before.
            Ok(answer) => answer.status >= 500 && answer.retry_after.is_none(),
            Err(Failure::Connection(_)) => true,
            Err(Failure::Unusable(_)) => false,
        };
        let answer = if again {
            sleep(RETRY_PAUSE).await;
            if self.may_call() {
                self.upstream.get(target).await
            } else {
                first
            }
        } else {
            first
        };
        answer.map_err(|failure| match failure {
            Failure::Connection(why) => Error::Unanswered(why),
            Failure::Unusable(why) => Error::Unusable(why),
        })
    }

    fn may_call(&self) -> bool {
        let mut pace = self.pace.lock().expect("no panic under this lock");
        pace.take(Instant::now())
    }

    fn cached(&self, target: &str) -> Option<Found> {
        lock(self.cache.as_ref()?).get(target, Instant::now())
    }

    /// Says in the log when the Profile API begins to fail, and when it no longer does.
    fn tell(&self, answer: &Result<Answer, Error>) {
        let trouble = match answer {
            // That is our own doing.
            Err(Error::TooFast) => return,
            Ok(answer) => {
                let (status, request_id) = (answer.status, answer.request_id.as_deref());
                debug!(status, request_id, "the Profile API has answered");
                let is_trouble = status == 401 || status == 403 || status >= 500;
                is_trouble.then(|| format!("status {status}"))
            }
            Err(error) => Some(error.to_string()),
        };
        let was_failing = self.failing.swap(trouble.is_some(), Ordering::Relaxed);
        match trouble {
            Some(error) if !was_failing => warn!(error, "profiles cannot be read"),
            None if was_failing => info!("profiles can be read again"),
            Some(_) | None => {}
        }
    }
}

/// A call whose answer may be kept, known to the cache until it has ended or its client has gone.
struct Begun<'a> {
    cache: &'a Mutex<Cache>,
    target: &'a str,
    number: CallNumber,
}

impl<'a> Begun<'a> {
    fn new(cache: &'a Mutex<Cache>, target: &'a str) -> Begun<'a> {
        Begun {
            number: lock(cache).begin_call(target),
            cache,
            target,
        }
    }

    /// Keeps a profile that was found, and forgets one that is there no longer.
    fn keep(self, answer: &Answer) {
        let found = (answer.status == 200).then(|| answer.clone());
        lock(self.cache).take_up(self.target, self.number, found, Instant::now());
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        lock(self.cache).end_call(self.target);
    }
}

fn lock(cache: &Mutex<Cache>) -> MutexGuard<'_, Cache> {
    cache.lock().expect("no panic under this lock")
}
