//! Makes the bodies of calls from lines. Each event is checked and completed here as the daemon would, so that a bad line is known
//! by its number, and an event without a messageId gets one that it gets again whenever the same line of the same file is read.
//! Talks to nobody.

use std::fmt;
use std::io::{self, BufRead};
use std::ops::{ControlFlow, Range};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::lines::{LINE_BYTES_MAX, Line, Lines};
use crate::event::{
    Code, Envelope, RawEvent, Rejection, Stamp, WriteKey, decode_batch, decode_event, stamp,
    validate,
};

/// Events in a call: what at most comes twice where the answer to a call is never seen. More would be hardly faster.
pub(super) const CALL_EVENTS_MAX: usize = 1000;
/// Bytes of a call's events, but for the last of them.
const CALL_BYTES: usize = 512 * 1024;
/// Bytes of the bad lines that are held until what was good around them is answered.
const REJECTED_BYTES_MAX: usize = LINE_BYTES_MAX;
/// A file that begins with so many lines of which none is a JSON object is not what anybody meant to import.
const HEAD_LINES_MAX: u64 = 100;

/// What some programs write before the first line.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// What a compressed file begins with.
const GZIP: &[u8] = b"\x1f\x8b";

/// A place between two events of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Place {
    /// The line behind it, from 1.
    pub(super) line: u64,
    /// Where that begins, in bytes.
    pub(super) offset: u64,
    /// How many of its events are before.
    pub(super) item: u64,
}

impl Place {
    pub(super) const START: Place = Place {
        line: 1,
        offset: 0,
        item: 0,
    };
}

/// A line, or an event of a batch, that was not imported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Rejected {
    #[serde(skip)]
    pub(super) place: Place,
    line: u64,
    /// Its place in the batch that the line is.
    #[serde(skip_serializing_if = "Option::is_none")]
    item: Option<u64>,
    code: String,
    message: String,
    text: String,
}

/// What goes into one call, and what lies between its events.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Portion {
    /// The key of all of its events; none where they have their own, or the daemon has one for them.
    key: Option<WriteKey>,
    events: Vec<Sent>,
    /// The events, a comma between them.
    bytes: Vec<u8>,
    /// How many of the events the daemon has rejected.
    refused: usize,
    /// In the order of the file.
    pub(super) rejected: Vec<Rejected>,
    /// Up to where it takes the file.
    pub(super) end: Place,
}

/// An event in the portion's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sent {
    place: Place,
    in_batch: bool,
    bytes: Range<usize>,
}

impl Portion {
    fn at(place: Place) -> Portion {
        Portion {
            key: None,
            events: Vec::new(),
            bytes: Vec::new(),
            refused: 0,
            rejected: Vec::new(),
            end: place,
        }
    }

    /// How many events it has.
    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    /// How many of those were not rejected.
    pub(super) fn accepted(&self) -> usize {
        self.events.len() - self.refused
    }

    /// The body of its call.
    pub(super) fn body(&self) -> Bytes {
        let mut body = Vec::with_capacity(self.bytes.len() + 512);
        body.push(b'{');
        if let Some(key) = &self.key {
            body.extend_from_slice(b"\"writeKey\":");
            // A string always can be written.
            body.extend(serde_json::to_vec(key.expose()).unwrap_or_default());
            body.push(b',');
        }
        body.extend_from_slice(b"\"batch\":[");
        body.extend_from_slice(&self.bytes);
        body.extend_from_slice(b"]}");
        body.into()
    }

    /// Its halves, where it has at least two events.
    pub(super) fn halve(mut self) -> Result<(Portion, Portion), Portion> {
        let half = self.events.len() / 2;
        if half == 0 {
            return Err(self);
        }
        let mut events = self.events.split_off(half);
        let (middle, from) = (events[0].place, events[0].bytes.start);
        for sent in &mut events {
            sent.bytes = sent.bytes.start - from..sent.bytes.end - from;
        }
        let behind = self.rejected.partition_point(|r| r.place < middle);
        let second = Portion {
            key: self.key.clone(),
            events,
            bytes: self.bytes.split_off(from),
            refused: 0,
            rejected: self.rejected.split_off(behind),
            end: self.end,
        };
        // The comma between them.
        self.bytes.pop();
        self.end = middle;
        Ok((self, second))
    }

    /// The event with this index was rejected by the daemon.
    pub(super) fn reject(&mut self, index: usize, code: &str, message: &str) {
        let Some(sent) = self.events.get(index) else {
            return;
        };
        let text = String::from_utf8_lossy(&self.bytes[sent.bytes.clone()]).into_owned();
        let rejected = Rejected {
            place: sent.place,
            line: sent.place.line,
            item: sent.in_batch.then_some(sent.place.item),
            code: code.to_owned(),
            message: message.to_owned(),
            text,
        };
        let at = self.rejected.partition_point(|r| r.place < sent.place);
        self.rejected.insert(at, rejected);
        self.refused += 1;
    }
}

/// What to read, and how.
#[derive(Clone, Debug)]
pub(super) struct Options {
    /// What new messageIds are made from.
    pub(super) seed: Uuid,
    /// The key of events that have none.
    pub(super) key: Option<WriteKey>,
    /// Where to begin; the reader is at that line's beginning.
    pub(super) from: Place,
}

/// Why reading ended early.
#[derive(Debug)]
pub(super) enum ReadError {
    Io(io::Error),
    /// It is something else.
    NotNdjson {
        line: u64,
        message: String,
        is_gzip: bool,
    },
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::Io(error) => write!(f, "{error}"),
            ReadError::NotNdjson { is_gzip: true, .. } => {
                f.write_str("it is compressed; `zcat FILE | segspool import -` imports it")
            }
            ReadError::NotNdjson { line, message, .. } => write!(
                f,
                "it is not NDJSON, one event or one batch body a line; line {line}: {message}. \
                 `jq -c '.[]' FILE | segspool import -` imports an array"
            ),
        }
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> ReadError {
        ReadError::Io(error)
    }
}

/// Reads to the end, and emits portion by portion for as long as they are taken. The first has a single event: what is wrong
/// with an address or a key then costs no more than that.
///
/// # Errors
/// The reader's, or what it reads is not NDJSON; then nothing was emitted.
pub(super) fn read(
    reader: impl BufRead,
    options: Options,
    emit: impl FnMut(Portion) -> ControlFlow<()>,
) -> Result<(), ReadError> {
    let mut lines = Lines::new(reader, options.from.offset);
    let mut maker = Maker {
        at: options.from,
        head: (options.from == Place::START).then(Head::default),
        open: Portion::at(options.from),
        rejected_bytes: 0,
        events_max: 1,
        stamping: Stamp::at(Timestamp::now()),
        options,
        emit,
    };
    let mut skip = maker.at.item;
    while let Some(line) = lines.next()? {
        if maker.line(&line, skip)?.is_break() {
            return Ok(());
        }
        skip = 0;
        maker.at = Place {
            line: maker.at.line + 1,
            offset: lines.offset(),
            item: 0,
        };
        if maker.is_full() && maker.close().is_break() {
            return Ok(());
        }
    }
    if let Some(Head {
        first: Some(error), ..
    }) = maker.head.take()
    {
        return Err(error);
    }
    // Whoever takes no more knows why.
    let _ = maker.close();
    Ok(())
}

/// The beginning of a file, up to the first line that is a JSON object.
#[derive(Debug, Default)]
struct Head {
    lines: u64,
    /// What is wrong with the first line.
    first: Option<ReadError>,
}

struct Maker<F> {
    options: Options,
    stamping: Stamp,
    at: Place,
    open: Portion,
    rejected_bytes: usize,
    events_max: usize,
    head: Option<Head>,
    emit: F,
}

impl<F: FnMut(Portion) -> ControlFlow<()>> Maker<F> {
    fn line(&mut self, line: &Line<'_>, skip: u64) -> Result<ControlFlow<()>, ReadError> {
        let text = match line {
            Line::Whole(text) => *text,
            Line::TooLong(beginning) => {
                let message = format!(
                    "the line is longer than {LINE_BYTES_MAX} bytes; this is its beginning"
                );
                self.reject(None, "line_too_long", &message, beginning);
                self.not_an_object(&message, beginning)?;
                return Ok(ControlFlow::Continue(()));
            }
        };
        let text = match self.at.offset {
            0 => text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text),
            _ => text,
        };
        if text.trim_ascii().is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        if self.is_first() && text.trim_ascii_start().starts_with(b"[") {
            // Of an array that has an event a line, the last one alone looks like a line of its own.
            return Err(ReadError::NotNdjson {
                line: self.at.line,
                message: "it begins an array".to_owned(),
                is_gzip: false,
            });
        }
        let envelope = match decode(text) {
            Ok(envelope) => envelope,
            Err(rejection) => {
                self.reject(None, rejection.code().as_str(), rejection.message(), text);
                match rejection.code() == Code::InvalidJson || rejection.code() == Code::NotAnObject
                {
                    true => self.not_an_object(rejection.message(), text)?,
                    false => self.head = None,
                }
                return Ok(ControlFlow::Continue(()));
            }
        };
        self.head = None;
        Ok(self.events(&envelope, text, skip))
    }

    fn events(&mut self, envelope: &Decoded<'_>, text: &[u8], skip: u64) -> ControlFlow<()> {
        let key = match envelope.envelope.write_key() {
            Ok(key) => key,
            Err(rejection) => {
                self.reject(None, rejection.code().as_str(), rejection.message(), text);
                return ControlFlow::Continue(());
            }
        };
        // The same line of the same file gives the same ids; two that hold the same do not.
        let seed = Uuid::new_v5(
            &self.options.seed,
            &[&self.at.offset.to_be_bytes(), text].concat(),
        );
        let events = envelope.envelope.events.iter().enumerate();
        for (item, raw) in events.skip(usize::try_from(skip).unwrap_or(usize::MAX)) {
            self.at.item = item as u64;
            if let Err(rejection) = self.event(raw, envelope, key.as_ref(), &seed)? {
                let item = envelope.is_batch.then_some(item as u64);
                let (code, text) = (rejection.code().as_str(), raw.json().as_bytes());
                self.reject(item, code, rejection.message(), text);
            }
            // Behind the last, the next line is where to go on.
            if self.is_full() && item + 1 < envelope.envelope.events.len() {
                self.at.item += 1;
                self.close()?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Adds an event, and closes the portion before where that has another key. Breaks off where nothing more is taken.
    fn event(
        &mut self,
        raw: &RawEvent<'_>,
        decoded: &Decoded<'_>,
        key: Option<&WriteKey>,
        seed: &Uuid,
    ) -> ControlFlow<(), Result<(), Rejection>> {
        let checked = match validate(raw) {
            Ok(checked) => checked,
            Err(rejection) => return ControlFlow::Continue(Err(rejection)),
        };
        // Envelope, message, command line: the first that has one. A message's own is in it.
        let key = match (key, checked.write_key()) {
            (Some(key), _) => Some(key.clone()),
            (None, Err(rejection)) => return ControlFlow::Continue(Err(rejection)),
            (None, Ok(Some(_))) => None,
            (None, Ok(None)) => self.options.key.clone(),
        };
        if key != self.open.key && self.open.len() > 0 {
            self.close()?;
        }
        self.open.key = key;
        let before = self.open.bytes.len();
        if before > 0 {
            self.open.bytes.push(b',');
        }
        let seed = Uuid::new_v5(seed, &self.at.item.to_be_bytes());
        let stamping = self.stamping.clone().with_ids_from(seed);
        match stamp(checked, &decoded.envelope, &stamping, &mut self.open.bytes) {
            Ok(event) => self.open.events.push(Sent {
                place: self.at,
                in_batch: decoded.is_batch,
                bytes: event.bytes,
            }),
            Err(rejection) => {
                self.open.bytes.truncate(before);
                return ControlFlow::Continue(Err(rejection));
            }
        }
        ControlFlow::Continue(Ok(()))
    }

    /// Whether nothing but empty lines came before.
    fn is_first(&self) -> bool {
        self.head.as_ref().is_some_and(|head| head.lines == 0)
    }

    fn reject(&mut self, item: Option<u64>, code: &str, message: &str, text: &[u8]) {
        let text = String::from_utf8_lossy(text).into_owned();
        self.rejected_bytes += text.len();
        self.open.rejected.push(Rejected {
            place: self.at,
            line: self.at.line,
            item,
            code: code.to_owned(),
            message: message.to_owned(),
            text,
        });
    }

    /// A line is no JSON object. Where none has been so far, the file may be something else.
    fn not_an_object(&mut self, message: &str, text: &[u8]) -> Result<(), ReadError> {
        let Some(head) = &mut self.head else {
            return Ok(());
        };
        head.lines += 1;
        head.first.get_or_insert_with(|| ReadError::NotNdjson {
            line: self.at.line,
            message: message.to_owned(),
            is_gzip: text.starts_with(GZIP),
        });
        if head.lines < HEAD_LINES_MAX && self.rejected_bytes < REJECTED_BYTES_MAX {
            return Ok(());
        }
        head.first.take().map_or(Ok(()), Err)
    }

    fn is_full(&self) -> bool {
        self.open.len() >= self.events_max
            || self.open.bytes.len() >= CALL_BYTES
            || self.head.is_none()
                && (self.rejected_bytes >= REJECTED_BYTES_MAX
                    || self.open.rejected.len() >= CALL_EVENTS_MAX)
    }

    fn close(&mut self) -> ControlFlow<()> {
        let next = Portion::at(self.at);
        let mut closed = std::mem::replace(&mut self.open, next);
        closed.end = self.at;
        if closed.len() > 0 {
            self.events_max = CALL_EVENTS_MAX;
        }
        self.rejected_bytes = 0;
        self.stamping = Stamp::at(Timestamp::now());
        (self.emit)(closed)
    }
}

/// A line's events, and whether the line is a batch.
struct Decoded<'a> {
    envelope: Envelope<'a>,
    is_batch: bool,
}

fn decode(text: &[u8]) -> Result<Decoded<'_>, Rejection> {
    match decode_batch(text) {
        Ok(envelope) => Ok(Decoded {
            envelope,
            is_batch: true,
        }),
        Err(rejection) if rejection.code() == Code::BatchNotDefined => Ok(Decoded {
            envelope: decode_event(None, text)?,
            is_batch: false,
        }),
        Err(rejection) => Err(rejection),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn options(from: Place) -> Options {
        Options {
            seed: Uuid::nil(),
            key: WriteKey::new("KEY-DEFAULT").ok(),
            from,
        }
    }

    fn portions(text: &[u8], from: Place) -> Vec<Portion> {
        let mut found = Vec::new();
        let rest = &text[usize::try_from(from.offset).expect("small")..];
        read(rest, options(from), |portion| {
            found.push(portion);
            ControlFlow::Continue(())
        })
        .expect("it is NDJSON");
        found
    }

    /// The events of these calls, each with the envelope's key.
    fn events(portions: &[Portion]) -> Vec<(Value, Value)> {
        let bodies = portions.iter().filter(|portion| portion.len() > 0);
        let events = bodies.flat_map(|portion| {
            let body: Value = serde_json::from_slice(&portion.body()).expect("a body is JSON");
            let batch = body["batch"].as_array().expect("a batch").clone();
            assert_eq!(batch.len(), portion.len());
            batch
                .into_iter()
                .map(move |event| (body["writeKey"].clone(), event))
        });
        events.collect()
    }

    fn rejected(portions: &[Portion]) -> Vec<(u64, Option<u64>, &str)> {
        let rejected = portions.iter().flat_map(|portion| &portion.rejected);
        rejected.map(|r| (r.line, r.item, &*r.code)).collect()
    }

    fn track(n: usize) -> Value {
        json!({"type": "track", "userId": "u", "event": "E", "timestamp": "2026-01-01T00:00:00Z", "properties": {"n": n}})
    }

    /// Events with ids and without, with keys and without, batches small and larger than a call, and bad ones among them all.
    fn mixed() -> Vec<u8> {
        let mut lines = vec![String::new(), track(0).to_string(), "{".into()];
        for n in 1..1500 {
            let mut event = track(n);
            if n % 300 < 100 {
                event["writeKey"] = "KEY-OWN".into();
            }
            if n % 7 == 0 {
                event["userId"] = Value::Null;
            }
            lines.push(event.to_string());
        }
        let items: Vec<_> = (0..2500)
            .map(|n| if n % 100 == 5 { json!(n) } else { track(n) })
            .collect();
        lines.push(
            json!({"batch": items, "context": {"ip": "::1"}, "sentAt": "2020-01-01T00:00:00Z"})
                .to_string(),
        );
        lines.push(json!({"batch": [track(1), track(2)], "writeKey": "KEY-BATCH"}).to_string());
        lines.push(json!({"batch": []}).to_string());
        lines.join("\n").into_bytes()
    }

    #[test]
    fn from_wherever_reading_goes_on_the_same_events_come_with_the_same_ids() {
        let text = mixed();
        let all = portions(&text, Place::START);
        assert!(all.len() > 10);
        assert_eq!(all[0].len(), 1, "the first call is a trial");
        assert!(all.iter().all(|portion| portion.len() <= CALL_EVENTS_MAX));
        for (at, portion) in all.iter().enumerate() {
            let rest = portions(&text, portion.end);
            let expected = &all[at + 1..];
            assert_eq!(events(&rest), events(expected), "{:?}", portion.end);
            assert_eq!(rejected(&rest), rejected(expected));
        }
        let ids: std::collections::HashSet<_> = events(&all)
            .iter()
            .map(|(_, event)| event["messageId"].to_string())
            .collect();
        assert_eq!(ids.len(), events(&all).len());
        assert_eq!(all.last().expect("some").end.offset, text.len() as u64);
    }

    #[test]
    fn a_key_is_the_envelopes_else_the_messages_else_the_given_one() {
        let mut own = track(1);
        own["writeKey"] = "KEY-OWN".into();
        let lines = [
            track(0),
            own.clone(),
            json!({"batch": [own.clone(), track(2)]}),
            json!({"batch": [own], "writeKey": "KEY-BATCH"}),
        ];
        let text = lines.map(|line| line.to_string()).join("\n");
        let found = portions(text.as_bytes(), Place::START);
        let keys: Vec<_> = events(&found)
            .into_iter()
            .map(|(envelope, event)| match envelope.is_null() {
                true => event["writeKey"].clone(),
                false => envelope,
            })
            .collect();
        assert_eq!(
            keys,
            [
                "KEY-DEFAULT",
                "KEY-OWN",
                "KEY-OWN",
                "KEY-DEFAULT",
                "KEY-BATCH"
            ]
        );
    }

    #[test]
    fn what_is_bad_is_told_with_line_and_item_and_costs_nothing_else() {
        let mut large = track(3);
        large["properties"]["text"] = "x".repeat(40_000).into();
        let lines = [
            track(0).to_string(),
            "nonsense".into(),
            "[]".into(),
            json!({"type": "track"}).to_string(),
            json!({"batch": [track(1), 5, {"type": "track", "userId": "u"}]}).to_string(),
            json!({"batch": 5}).to_string(),
            json!({"batch": [track(1)], "writeKey": 5}).to_string(),
            "x".repeat(LINE_BYTES_MAX + 1),
            large.to_string(),
            track(2).to_string(),
        ];
        let found = portions(lines.join("\r\n").as_bytes(), Place::START);
        assert_eq!(
            rejected(&found),
            [
                (2, None, "invalid_json"),
                (3, None, "not_an_object"),
                (4, None, "no_user_anon_id"),
                (5, Some(1), "not_an_object"),
                (5, Some(2), "event_not_defined"),
                (6, None, "batch_not_array"),
                (7, None, "write_key_not_valid"),
                (8, None, "line_too_long"),
                (9, None, "event_too_large"),
            ]
        );
        let numbers: Vec<_> = events(&found)
            .into_iter()
            .map(|(_, event)| event["properties"]["n"].clone())
            .collect();
        assert_eq!(numbers, [0, 1, 2]);
    }

    #[test]
    fn halves_hold_what_the_whole_holds() {
        let all = portions(&mixed(), Place::START);
        let whole = all.into_iter().max_by_key(Portion::len).expect("some");
        assert!(!whole.rejected.is_empty());
        let (expected_events, end) = (events(std::slice::from_ref(&whole)), whole.end);
        let expected_rejected = rejected(std::slice::from_ref(&whole)).len();
        let mut left = vec![whole];
        let mut singles = Vec::new();
        while let Some(portion) = left.pop() {
            match portion.halve() {
                Ok((first, second)) => left.extend([second, first]),
                Err(single) => singles.push(single),
            }
        }
        assert_eq!(events(&singles), expected_events);
        assert_eq!(rejected(&singles).len(), expected_rejected);
        assert!(
            singles
                .iter()
                .all(|portion| portion.rejected.iter().all(|r| r.place < portion.end))
        );
        assert_eq!(singles.last().map(|portion| portion.end), Some(end));
    }

    #[test]
    fn what_is_something_else_is_found_out_before_anything_is_sent() {
        let pretty = serde_json::to_string_pretty(&track(1)).expect("JSON");
        for (text, expected) in [
            (
                json!([track(1), track(2)]).to_string().into_bytes(),
                "line 1: it begins an array. `jq -c '.[]' FILE | segspool import -`",
            ),
            (
                format!("\n[\n{},\n{}\n]\n", track(1), track(2)).into_bytes(),
                "line 2: it begins an array",
            ),
            (
                format!(" [{},\n{}\n]\n", track(1), track(2)).into_bytes(),
                "line 1: it begins an array",
            ),
            (pretty.into_bytes(), "line 1: the body is not JSON"),
            (b"one,two\n".repeat(200), "line 1: the body is not JSON"),
            (b"\x1f\x8b\x08binary".to_vec(), "zcat"),
            (vec![b'x'; 2 * LINE_BYTES_MAX], "line 1: the line is longer"),
        ] {
            let error = read(&text[..], options(Place::START), |_| {
                panic!("it was emitted")
            });
            let error = error.expect_err("no NDJSON").to_string();
            assert!(error.contains(expected), "{error}");
        }
        // A line or two may be broken where a log was cut.
        let text = format!("\"userId\":1}}\n{}", track(1));
        assert_eq!(events(&portions(text.as_bytes(), Place::START)).len(), 1);
    }
}
