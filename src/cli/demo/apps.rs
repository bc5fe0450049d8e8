//! The pretend applications at work: each posts its events at an even pace, and repeats a request until it is answered
//! 200, as a careful SDK does.
//!
//! An application has one request under way at a time and numbers its events, so a count says which of them it was told
//! are safe. It never gives up, and never posts an event under a second `messageId`.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE};
use reqwest::{Client, StatusCode};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};

use super::habits::{CAST, Habit, Request};
use super::{Failure, STALLED_AFTER, loopback_client};

/// How long an application waits before it repeats a request. SDKs begin at about this, and then double it.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The running applications. Dropping them ends them.
#[derive(Debug)]
pub(super) struct Apps {
    events: u64,
    accepted: watch::Receiver<u64>,
    turned_away: watch::Receiver<String>,
    running: JoinSet<Result<(), Failure>>,
}

impl Apps {
    /// Lets them post so many events to the relay, spread over a while.
    pub(super) fn start(events: u64, over: Duration, relay_url: &str) -> Result<Apps, Failure> {
        let client = loopback_client()?;
        let (accepting, accepted) = watch::channel(0);
        let (turning_away, turned_away) = watch::channel("none".to_owned());
        let mut running = JoinSet::new();
        for (habit, share) in cast(events) {
            let app = App {
                habit,
                events: share,
                over,
                client: client.clone(),
                relay_url: relay_url.to_owned(),
                accepted: accepting.clone(),
                turned_away: turning_away.clone(),
            };
            running.spawn(app.run());
        }
        Ok(Apps {
            events,
            accepted,
            turned_away,
            running,
        })
    }

    /// How many events were answered 200 so far.
    pub(super) fn accepted(&self) -> watch::Receiver<u64> {
        self.accepted.clone()
    }

    /// Waits until so many events were answered 200.
    pub(super) async fn reach(&mut self, events: u64) -> Result<(), Failure> {
        while *self.accepted.borrow_and_update() < events {
            tokio::select! {
                changed = timeout(STALLED_AFTER, self.accepted.changed()) => {
                    let stalled = |_elapsed| {
                        let reason = self.turned_away.borrow();
                        Failure(format!(
                            "the relay has accepted nothing for {STALLED_AFTER:?}; its last refusal: {}.", *reason
                        ))
                    };
                    // The last application closes the channel; how it ended is told below.
                    let _open = changed.map_err(stalled)?;
                }
                Some(ended) = self.running.join_next() => {
                    ended.map_err(|error| Failure(format!("a pretend application broke: {error}.")))??;
                }
            }
        }
        Ok(())
    }

    /// The `messageId` of every event there is to post.
    pub(super) fn message_ids(&self) -> impl Iterator<Item = String> {
        cast(self.events).flat_map(|(habit, share)| (0..share).map(|n| habit.message_id(n)))
    }
}

/// Who posts how many of so many events.
fn cast(events: u64) -> impl Iterator<Item = (&'static Habit, u64)> {
    let mut percent = 0;
    CAST.iter().map(move |habit| {
        let before = events * percent / 100;
        percent += habit.percent;
        (habit, events * percent / 100 - before)
    })
}

/// One application.
struct App {
    habit: &'static Habit,
    events: u64,
    over: Duration,
    client: Client,
    relay_url: String,
    accepted: watch::Sender<u64>,
    /// Why a request was not accepted yet, the latest.
    turned_away: watch::Sender<String>,
}

impl App {
    async fn run(self) -> Result<(), Failure> {
        let a_request = self.habit.events_a_request;
        let requests = self.events.div_ceil(a_request).max(1);
        // Ticks missed while the relay was away are made up for, so that the show takes as long as was asked for.
        let mut pace = interval(self.over.div_f64(requests as f64));
        for first in (0..self.events).step_by(a_request as usize) {
            pace.tick().await;
            let events = first..self.events.min(first + a_request);
            let posted = events.end - events.start;
            let request = self.habit.request(events, Timestamp::now());
            self.post_until_accepted(&request).await?;
            self.accepted.send_modify(|accepted| *accepted += posted);
        }
        Ok(())
    }

    async fn post_until_accepted(&self, request: &Request) -> Result<(), Failure> {
        let mut retries = 0;
        loop {
            match self.post(request, retries).await {
                Reply::Accepted => return Ok(()),
                Reply::NotNow(reason) => {
                    self.turned_away.send_replace(reason);
                    sleep(RETRY_PAUSE).await;
                }
                Reply::Refused(reason) => {
                    let (name, path) = (self.habit.name, request.path);
                    return Err(Failure(format!(
                        "the relay refused a request of the application \"{name}\" to {path}: {reason}."
                    )));
                }
            }
            retries += 1;
        }
    }

    async fn post(&self, request: &Request, retries: u32) -> Reply {
        let mut call = self
            .client
            .post(format!("{}{}", self.relay_url, request.path))
            .basic_auth(request.write_key, Some(""))
            .header(CONTENT_TYPE, request.content_type)
            .body(Bytes::clone(&request.body));
        if request.gzip {
            call = call.header(CONTENT_ENCODING, "gzip");
        }
        if retries > 0 {
            call = call.header("X-Retry-Count", retries);
        }
        let answer = match call.send().await {
            Ok(answer) => answer,
            Err(error) => return Reply::NotNow(error.to_string()),
        };
        let status = answer.status();
        if status == StatusCode::OK {
            return Reply::Accepted;
        }
        let body = answer.text().await.unwrap_or_default();
        let reason = format!("{status} {body}");
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            Reply::NotNow(reason)
        } else {
            Reply::Refused(reason)
        }
    }
}

/// What the relay's answer means to an application.
enum Reply {
    /// Its events are safe.
    Accepted,
    /// No answer, or one that asks for patience: they may be safe or not, so they are posted again.
    NotNow(String),
    /// They will never be taken.
    Refused(String),
}
