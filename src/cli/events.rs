//! Server-sent events of the daemon, one after another.

use reqwest::Response;

use super::admin::{Failure, gone};

/// A daemon's stream that is being read. It never connects again.
#[derive(Debug)]
pub(super) struct Events {
    answer: Response,
    unread: Vec<u8>,
}

/// One event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// Empty for most.
    pub(super) name: String,
    pub(super) data: String,
}

impl Events {
    pub(super) fn of(answer: Response) -> Events {
        Events {
            answer,
            unread: Vec::new(),
        }
    }

    /// The next event; none once the daemon has ended the stream.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, Failure> {
        loop {
            if let Some(event) = take(&mut self.unread) {
                return Ok(Some(event));
            }
            match self.answer.chunk().await.map_err(|error| gone(&error))? {
                Some(piece) => self.unread.extend_from_slice(&piece),
                None => return Ok(None),
            }
        }
    }
}

/// Takes the first whole event out of what came. Comments are passed over. The daemon ends lines with a line feed, and writes one
/// line of data an event.
fn take(unread: &mut Vec<u8>) -> Option<Event> {
    loop {
        let end = unread.windows(2).position(|pair| pair == b"\n\n")?;
        let block: Vec<u8> = unread.drain(..end + 2).collect();
        let block = String::from_utf8_lossy(&block);
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
        if let Some(data) = field("data: ") {
            return Some(Event {
                name: field("event: ").unwrap_or_default().to_owned(),
                data: data.to_owned(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_taken_whole_and_comments_passed_over() {
        let mut unread = Vec::new();
        let mut taken = Vec::new();
        for piece in [
            ": nothing\n\nevent: hist",
            "ory\ndata: {\"a\":1}\n",
            "\ndata: é\n\nda",
        ] {
            unread.extend_from_slice(piece.as_bytes());
            while let Some(event) = take(&mut unread) {
                taken.push((event.name, event.data));
            }
        }
        let expected = [("history", "{\"a\":1}"), ("", "é")];
        let expected = expected.map(|(name, data)| (name.to_owned(), data.to_owned()));
        assert_eq!(taken, expected);
        assert_eq!(unread, b"da");
    }
}
