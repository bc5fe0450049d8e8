//! The daemon, as an application sees it: one call, and what its answer means for the events in it.

use std::time::Duration;

use reqwest::header::RETRY_AFTER;
use reqwest::{Client, StatusCode};
use serde::Deserialize;

use super::portion::Portion;
use crate::cli::EX_NOPERM;
use crate::cli::admin::{self, Failure};

/// A call that has no answer by then has none. The daemon answers, or asks to wait, within a few seconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Where the daemon does not say how long to wait.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest that the daemon may ask for.
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// What every daemon says with a 200, and nobody else does.
const DURABILITY: &str = "segspool-durability";

/// What became of a call.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It need not be made again.
    Settled(Answer),
    /// None of its events were accepted now.
    Later { after: Duration, message: String },
    /// Whether they were accepted is not known; where `unsent`, they were not.
    Unanswered { unsent: bool, failure: Failure },
}

/// What the daemon says of a call's events.
#[derive(Debug)]
pub(super) enum Answer {
    /// They are on disk, but for those that were rejected.
    Accepted { rejected: Vec<RejectedItem> },
    /// None of them can ever be accepted.
    Rejected { code: String, message: String },
    /// They are too much for one call.
    TooLarge { code: String, message: String },
}

/// An event that was rejected.
#[derive(Debug, Deserialize)]
pub(super) struct RejectedItem {
    pub(super) index: usize,
    pub(super) code: String,
    pub(super) message: String,
}

/// The daemon's ingest listener.
#[derive(Debug)]
pub(super) struct Daemon {
    client: Client,
    url: String,
}

impl Daemon {
    pub(super) fn at(url: &str) -> Result<Daemon, Failure> {
        Ok(Daemon {
            client: admin::client()?,
            url: admin::base_url("--ingest", "http://127.0.0.1:7346", url)?,
        })
    }

    /// Makes a call.
    ///
    /// # Errors
    /// What answers is no daemon, or lets nobody in: no later call will fare better.
    pub(super) async fn call(&self, portion: &Portion) -> Result<Outcome, Failure> {
        let call = self.client.post(format!("{}/v1/batch", self.url));
        let call = call
            .header("content-type", "application/json")
            .timeout(ANSWER_WITHIN)
            .body(portion.body());
        let answer = match call.send().await {
            Ok(answer) => answer,
            Err(error) => return Ok(self.unanswered(&error)),
        };
        let (status, retry_after) = (answer.status(), answer.headers().get(RETRY_AFTER).cloned());
        let is_ours = answer.headers().contains_key(DURABILITY);
        let body = match answer.bytes().await {
            Ok(body) => body,
            Err(error) => return Ok(self.unanswered(&error)),
        };
        if status == StatusCode::OK {
            if !is_ours {
                return Err(self.stranger(status));
            }
            return match serde_json::from_slice(&body) {
                Ok(Success {
                    success: true,
                    rejected,
                }) => Ok(Outcome::Settled(Answer::Accepted { rejected })),
                _ => Err(self.stranger(status)),
            };
        }
        let Ok(Refusal { code, message }) = serde_json::from_slice(&body) else {
            return Err(self.stranger(status));
        };
        match status.as_u16() {
            400 => Ok(Outcome::Settled(Answer::Rejected { code, message })),
            413 => Ok(Outcome::Settled(Answer::TooLarge { code, message })),
            408 | 429 | 503 => {
                let seconds = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
                let after = seconds.map_or(PAUSE, Duration::from_secs).min(PAUSE_MAX);
                Ok(Outcome::Later { after, message })
            }
            403 => Err(Failure::new(EX_NOPERM, message)),
            _ => Err(self.stranger(status)),
        }
    }

    fn unanswered(&self, error: &reqwest::Error) -> Outcome {
        Outcome::Unanswered {
            unsent: error.is_connect(),
            failure: admin::unreachable(error, &self.url, "--ingest URL"),
        }
    }

    fn stranger(&self, status: StatusCode) -> Failure {
        admin::stranger(&self.url, status, "ingest listener", "--ingest URL")
    }
}

#[derive(Deserialize)]
struct Success {
    success: bool,
    #[serde(default)]
    rejected: Vec<RejectedItem>,
}

#[derive(Deserialize)]
struct Refusal {
    code: String,
    message: String,
}
