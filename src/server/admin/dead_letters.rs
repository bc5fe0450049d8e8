//! What an operator asks of the dead letters, and does with them.
//!
//! Whatever is read is read in bounded portions. What is changed is changed in a task of its own, to its end, though the client
//! goes away; replaying and purging run one at a time.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use hyper::StatusCode;
use serde::Serialize;
use serde_json::json;
use tracing::info;

use super::letter_view::LetterView;
use super::query::{Query, letter_id};
use super::{AdminListener, Error};
use crate::ingest::{Replayed, Stopped};
use crate::queue::{Filter, LetterId, Portion, Queue};
use crate::server::reply::{self, Reply};

/// Letters read at a time for an export or a purge.
const PORTION_LETTERS: usize = 500;

impl AdminListener {
    /// A page of letters without their events, and what there is altogether.
    pub(super) async fn list(&self, query: &str) -> Result<Reply, Error> {
        #[derive(Serialize)]
        struct List {
            total: u64,
            bytes: u64,
            groups: Vec<serde_json::Value>,
            letters: Vec<LetterView>,
            next: Option<String>,
        }
        let query = Query::paging(query)?;
        let dead_letters = self.queue.dead_letters();
        let (mut letters, mut after) = (Vec::new(), query.after);
        loop {
            let wanted = query.limit - letters.len();
            let portion = dead_letters.read(after, &query.filter, wanted).await?;
            let heads = portion.letters.iter();
            letters.extend(heads.map(|(id, letter)| LetterView::head(*id, letter)));
            after = portion.next;
            if after.is_none() || letters.len() >= query.limit {
                break;
            }
        }
        let groups = dead_letters.groups().into_iter().map(|(group, events)| {
            json!({
                "lane": group.lane.map(|lane| lane.to_string()),
                "code": group.code,
                "status": group.status,
                "events": events,
            })
        });
        let list = List {
            total: dead_letters.events(),
            bytes: dead_letters.bytes(),
            groups: groups.collect(),
            letters,
            next: after.map(|id| id.to_string()),
        };
        Ok(reply::json(StatusCode::OK, &list))
    }

    /// One letter with its event.
    pub(super) async fn show(&self, id: &str) -> Result<Reply, Error> {
        let id = letter_id(id)?;
        let portion = only(&self.queue, id).await?;
        let (id, letter) = portion
            .letters
            .first()
            .ok_or(Error::NoSuch("dead letter"))?;
        Ok(reply::json(StatusCode::OK, &LetterView::whole(*id, letter)))
    }

    /// Letters with their events, one a line. What cannot be read on breaks the reply off, so that nobody takes it for whole.
    pub(super) fn export(&self, query: &str) -> Result<Reply, Error> {
        let filter = Query::selecting(query)?.filter;
        // None at the end.
        let from = Some((self.queue.clone(), filter, None));
        let lines = stream::try_unfold(from, async |from| {
            let Some((queue, filter, after)) = from else {
                return Ok(None);
            };
            let dead_letters = queue.dead_letters();
            let portion = dead_letters.read(after, &filter, PORTION_LETTERS).await;
            let Portion { letters, next } = portion.map_err(io::Error::other)?;
            let mut lines = Vec::new();
            for (id, letter) in &letters {
                serde_json::to_writer(&mut lines, &LetterView::whole(*id, letter))?;
                lines.push(b'\n');
            }
            let rest = next.map(|next| (queue, filter, Some(next)));
            Ok(Some((Bytes::from(lines), rest)))
        });
        Ok(reply::stream("application/x-ndjson", lines))
    }

    /// Sends letters back through validation into their lanes.
    pub(super) async fn replay(&self, query: &str) -> Result<Reply, Error> {
        let filter = Query::changing(query)?.filter;
        let (ingest, queue) = (Arc::clone(&self.ingest), self.queue.clone());
        self.to_the_end(async move {
            must_be_there(&queue, &filter).await?;
            let (replayed, result) = ingest.replay(&filter).await;
            info!(
                events = replayed.replayed,
                failed = replayed.failed_events,
                "replayed dead letters"
            );
            Ok(reply_to_replay(&replayed, result))
        })
        .await
    }

    /// Deletes letters for ever.
    pub(super) async fn purge(&self, query: &str) -> Result<Reply, Error> {
        // Not those that come while it works.
        let filter = Filter {
            before: Some(self.queue.present()),
            ..Query::changing(query)?.filter
        };
        let queue = self.queue.clone();
        self.to_the_end(async move {
            must_be_there(&queue, &filter).await?;
            let (mut purged, mut after) = (0, None);
            loop {
                let dead_letters = queue.dead_letters();
                let portion = dead_letters.read(after, &filter, PORTION_LETTERS).await?;
                let ids = portion.letters.into_iter().map(|(id, _)| id).collect();
                purged += dead_letters.change(ids, Vec::new()).await?;
                after = portion.next;
                if after.is_none() {
                    break;
                }
            }
            info!(events = purged, "purged dead letters");
            Ok(reply::json(StatusCode::OK, &json!({ "purged": purged })))
        })
        .await
    }

    /// Does a change in a task of its own, when the change before it has ended.
    async fn to_the_end(
        &self,
        change: impl Future<Output = Result<Reply, Error>> + Send + 'static,
    ) -> Result<Reply, Error> {
        let spade = Arc::clone(&self.spade).lock_owned().await;
        let changing = tokio::spawn(async move {
            let _spade = spade;
            change.await
        });
        // It panics only if the change did, and ends only with the runtime.
        changing.await.expect("a change ends with a reply")
    }
}

async fn only(queue: &Queue, id: LetterId) -> Result<Portion, Error> {
    let filter = Filter {
        id: Some(id),
        ..Filter::default()
    };
    Ok(queue.dead_letters().read(None, &filter, 1).await?)
}

/// Whoever names one letter is to know that it is not there. Of others there may well be none.
async fn must_be_there(queue: &Queue, filter: &Filter) -> Result<(), Error> {
    let Some(id) = filter.id else {
        return Ok(());
    };
    match only(queue, id).await?.letters.is_empty() {
        true => Err(Error::NoSuch("dead letter")),
        false => Ok(()),
    }
}

fn reply_to_replay(replayed: &Replayed, result: Result<(), Stopped>) -> Reply {
    let failed = replayed.failed.iter().map(|(id, rejection)| {
        json!({
            "id": id.to_string(),
            "code": rejection.code().as_str(),
            "message": rejection.message(),
        })
    });
    let done = json!({
        "replayed": replayed.replayed,
        "failed_events": replayed.failed_events,
        "failed": failed.collect::<Vec<_>>(),
    });
    match result {
        Ok(()) => reply::json(StatusCode::OK, &done),
        Err(Stopped::Refused(refusal)) => reply::error_after(&Error::Refused(refusal), done),
        Err(Stopped::Unavailable(error)) => reply::error_after(&Error::DeadLetters(error), done),
    }
}
