//! Somebody who watches a stream of server-sent events. Never connects again.

use reqwest::{Response, StatusCode};
use serde_json::Value;

use super::{Relay, client, within};

/// A stream that is being read.
pub(crate) struct Watcher {
    reply: Response,
    unread: String,
    /// Everything that came, as it came.
    pub(crate) seen: String,
}

impl Watcher {
    /// Watches a path of the admin listener; an error is the answer of one that cannot be watched.
    pub(crate) async fn open(relay: &Relay, path: &str) -> Result<Watcher, Response> {
        let url = format!("{}{path}", relay.admin);
        let reply = client().get(url).send().await.expect("an answer");
        if reply.status() != StatusCode::OK {
            return Err(reply);
        }
        assert_eq!(reply.headers()["content-type"], "text/event-stream");
        assert_eq!(reply.headers()["cache-control"], "no-store");
        Ok(Watcher {
            reply,
            unread: String::new(),
            seen: String::new(),
        })
    }

    /// The next event and its name, which is empty for most; none at the end. What is a comment is passed over.
    pub(crate) async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            while let Some((event, rest)) = self.unread.split_once("\n\n") {
                let field = |name: &str| {
                    let line = event.lines().find_map(|line| line.strip_prefix(name));
                    line.map(str::to_owned)
                };
                let (name, data) = (field("event: "), field("data: "));
                self.unread = rest.to_owned();
                if let Some(data) = data {
                    let data = serde_json::from_str(&data).expect("JSON");
                    return Some((name.unwrap_or_default(), data));
                }
            }
            let piece = within(self.reply.chunk()).await.expect("it goes on")?;
            let piece = std::str::from_utf8(&piece).expect("text");
            self.unread.push_str(piece);
            self.seen.push_str(piece);
        }
    }

    /// The next event that is as wished.
    pub(crate) async fn until(&mut self, wished: impl Fn(&str, &Value) -> bool) -> Value {
        loop {
            let (name, data) = self.next().await.expect("it goes on");
            if wished(&name, &data) {
                return data;
            }
        }
    }
}
