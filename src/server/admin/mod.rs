//! The admin listener: what an operator sees and does.
//!
//! | endpoint | what |
//! |---|---|
//! | `GET /` | the dashboard, a page that asks for all the rest |
//! | `GET /stats` | the snapshot |
//! | `GET /stats/stream` | the last ten minutes, and the snapshot every second |
//! | `GET /tail` | each event as something happens to it |
//! | `GET /metrics` | the same numbers for monitoring, as OpenMetrics or Prometheus text |
//! | `GET /healthz` | 200 while the writer makes progress, else 503 |
//! | `GET /readyz` | 200 while events are accepted, else 503 |
//! | `GET /lanes` | the lanes of the snapshot |
//! | `POST /lanes/{id}/pause`, `…/resume` | stops a lane, or lets it go on at once |
//! | `GET /dead-letters` | the dead letters, without their events |
//! | `GET /dead-letters/{id}` | one of them, with its event |
//! | `GET /dead-letters/export` | all of them, with their events, one a line |
//! | `POST /dead-letters/replay` | back through validation into their lanes |
//! | `DELETE /dead-letters` | gone for ever |
//!
//! `HEAD` is answered as `GET`, without a body. Of the pages in browsers only the dashboard is served. With a token, every request but
//! those for `/`, `/healthz` and `/readyz` must bear it.

mod dashboard;
mod dead_letters;
mod letter_view;
mod metrics;
mod query;
mod stats;
mod token;
mod watching;

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{Method, Request, StatusCode};
use serde_json::json;
use tokio::sync::{Mutex, watch};

use super::Phase;
use super::body;
use super::guard::{Guard, Purpose};
use super::listener::{Peer, Service};
use super::reply::{self, Error, Reply};
use crate::ingest::Ingest;
use crate::queue::{LaneId, Queue};
use crate::stats::{Metrics, Stats};

pub use letter_view::LetterView;
pub use token::AdminToken;
pub(super) use token::bearer;
pub(super) use watching::Watch;

/// A group takes milliseconds to commit; a writer that has been at one for this long is stuck.
const WRITER_STUCK: Duration = Duration::from_secs(30);

/// What the admin listener works with.
#[derive(Clone, Debug)]
pub(super) struct AdminListener {
    pub(super) queue: Queue,
    pub(super) ingest: Arc<Ingest>,
    pub(super) stats: Arc<Stats>,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) guard: watch::Receiver<Guard>,
    pub(super) token: Option<AdminToken>,
    /// Held by whoever replays or purges dead letters: one at a time.
    pub(super) spade: Arc<Mutex<()>>,
    pub(super) watch: Arc<Watch>,
    pub(super) metrics: Arc<Metrics>,
}

impl Service for AdminListener {
    async fn serve(&self, _peer: Peer, request: Request<Incoming>) -> Reply {
        let (head, mut body) = request.into_parts();
        let reply = self.answer(&head).await;
        // No request here has a body that matters.
        body::discard(&mut body).await;
        reply.unwrap_or_else(|error| reply::error(&error))
    }
}

impl AdminListener {
    async fn answer(&self, head: &Parts) -> Result<Reply, Error> {
        let path: Vec<&str> = head.uri.path().split('/').skip(1).collect();
        let purpose = match head.method {
            Method::GET | Method::HEAD if path == [""] => Purpose::Page,
            Method::GET | Method::HEAD => Purpose::Read,
            _ => Purpose::Change,
        };
        let admitted = self.guard.borrow().admit_operator(&head.headers, purpose);
        admitted.map_err(Error::Foreign)?;
        let is_open = matches!(path[..], ["" | "healthz" | "readyz"]);
        if let Some(token) = self.token.as_ref().filter(|_| !is_open)
            && !token.is_borne_by(&head.headers)
        {
            return Err(Error::Unauthorized);
        }
        let query = head.uri.query().unwrap_or_default();
        let takes = |methods: &[Method], allowed| match methods.contains(&head.method) {
            true => Ok(()),
            false => Err(Error::Method { allowed }),
        };
        // The HTTP library leaves the body out of a reply to HEAD.
        let reads = || takes(&[Method::GET, Method::HEAD], "GET, HEAD");
        let changes = || takes(&[Method::POST], "POST");
        match path[..] {
            [""] => reads().map(|()| dashboard::page()),
            ["stats"] => reads().map(|()| {
                let snapshot = self.snapshot();
                reply::json(StatusCode::OK, &snapshot)
            }),
            ["stats", "stream"] => {
                reads()?;
                self.stats_stream()
            }
            ["metrics"] => reads().map(|()| self.metrics(&head.headers)),
            ["tail"] => {
                reads()?;
                self.tail(query)
            }
            ["healthz"] => reads().map(|()| self.health()),
            ["readyz"] => reads().map(|()| self.readiness()),
            ["lanes"] => reads().map(|()| {
                let lanes = json!({ "lanes": self.lanes() });
                reply::json(StatusCode::OK, &lanes)
            }),
            ["lanes", id, hand @ ("pause" | "resume")] => {
                changes()?;
                self.hand_on_lane(id, hand).await
            }
            ["dead-letters"] => match head.method {
                Method::GET | Method::HEAD => self.list(query).await,
                Method::DELETE => self.purge(query).await,
                _ => Err(Error::Method {
                    allowed: "GET, HEAD, DELETE",
                }),
            },
            ["dead-letters", "export"] => {
                reads()?;
                self.export(query)
            }
            ["dead-letters", "replay"] => {
                changes()?;
                self.replay(query).await
            }
            ["dead-letters", id] => {
                reads()?;
                self.show(id).await
            }
            _ => Err(Error::NotFound),
        }
    }

    fn health(&self) -> Reply {
        let busy = self.queue.writer_busy_for();
        if busy < WRITER_STUCK {
            reply::text(StatusCode::OK, "ok")
        } else {
            let line = format!("the writer has been stuck for {} s", busy.as_secs());
            reply::text(StatusCode::SERVICE_UNAVAILABLE, &line)
        }
    }

    fn readiness(&self) -> Reply {
        match self.why_not_accepting() {
            None => reply::text(StatusCode::OK, "ok"),
            Some(why) => reply::text(StatusCode::SERVICE_UNAVAILABLE, why),
        }
    }

    /// Why no events are accepted at present; none while they are.
    fn why_not_accepting(&self) -> Option<&'static str> {
        let phase = *self.phase.borrow();
        match phase {
            Phase::Running if self.queue.is_disk_full() => Some("the disk is full"),
            Phase::Running if self.queue.is_full() => Some("the queue is full"),
            Phase::Running => None,
            Phase::Draining | Phase::Stopped => Some(phase.as_str()),
        }
    }

    /// Pauses or resumes a lane, for good. The reply shows what it is doing now.
    async fn hand_on_lane(&self, id: &str, hand: &str) -> Result<Reply, Error> {
        let id = LaneId::parse(id).ok_or_else(|| {
            Error::Parameter("the id of a lane is 16 hexadecimal digits, in lower case".into())
        })?;
        let lane = self.queue.find_lane(id).ok_or(Error::NoSuch("lane"))?;
        let saved = match hand {
            "pause" => self.queue.pause(&lane).await,
            _ => self.queue.resume(&lane).await,
        };
        saved.map_err(Error::NotSaved)?;
        let stats = self.stats.lane(&id.to_string());
        // Its loop says the same in a moment; the reply is not to wait for it.
        stats.paused(lane.is_paused());
        Ok(reply::json(StatusCode::OK, &self.lane(&lane)))
    }
}
