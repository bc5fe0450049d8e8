//! The load: keep-alive connections, each of which posts, waits for its 200, and posts again. The program runs itself as one.
//!
//! It is as cheap as can be, because it takes its time from the same processors: requests are made before the clock starts, and only
//! the digits of their `messageId`s change, so that no event is posted twice.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Parser;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};

use crate::events::{BATCH_EVENTS, Events, NUMBER_DIGITS, number};

/// `relay load …`: prints lines that a [`crate::process::Load`] reads.
pub(crate) const ROLE: &str = "load";
/// The line that says that the warm-up is over.
pub(crate) const BEGIN: &str = "begin";
/// The line that says that what follows does not count.
pub(crate) const END: &str = "end";

/// What the requests of all connections take together: far more than the processors' caches.
const REQUESTS_BYTES: usize = 48_000_000;
/// A load by number of events says this often how far it is.
const STEPS: u64 = 5;
const ANSWER_BYTES_MAX: usize = 4096;
const SUCCESS: &[u8] = b"\r\n\r\n{\"success\":true}";
const LATENCY_US_MAX: u64 = 120_000_000;

#[derive(Clone, Debug, Parser)]
pub(crate) struct Args {
    #[arg(long)]
    pub(crate) address: SocketAddr,
    /// Events a request; 1 is a post to /v1/track.
    #[arg(long)]
    pub(crate) batch: usize,
    #[arg(long)]
    pub(crate) connections: usize,
    /// The first event's number.
    #[arg(long)]
    pub(crate) first: u64,
    #[arg(long, default_value_t = 0)]
    pub(crate) warm_up_ms: u64,
    /// How long it goes on, unless that is told by `events`.
    #[arg(long, default_value_t = 0)]
    pub(crate) measured_ms: u64,
    /// How many events it posts; 0 for as many as it can.
    #[arg(long, default_value_t = 0)]
    pub(crate) events: u64,
}

/// What it came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Events answered 200 while the clock ran.
    pub(crate) events: u64,
    /// How long the clock ran.
    pub(crate) seconds: f64,
    /// Events answered 200, warm-up and end included.
    pub(crate) posted_events: u64,
    /// Answers by their latency in µs.
    pub(crate) latencies: Vec<(u64, u64)>,
}

pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(LATENCY_US_MAX, 3).expect("bounds that a histogram can have")
}

pub(crate) fn main() {
    let args = Args::parse_from(std::env::args().skip(1));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let outcome = LocalSet::new().block_on(&runtime, post(&args));
    let outcome = outcome.unwrap_or_else(|error| panic!("the load failed: {error}"));
    let line = serde_json::to_string(&outcome).expect("numbers are JSON");
    println!("{line}");
}

async fn post(args: &Args) -> io::Result<Outcome> {
    let mut connections = Vec::new();
    for seed in 0..args.connections {
        connections.push(Connection::open(args, seed as u64).await?);
    }
    let begins = Instant::now() + Duration::from_millis(args.warm_up_ms);
    let course = Rc::new(Course {
        begins,
        ends: (args.events == 0).then(|| begins + Duration::from_millis(args.measured_ms)),
        left: Cell::new(if args.events == 0 {
            u64::MAX
        } else {
            args.events
        }),
        step: (args.events / STEPS).max(1),
        next: Cell::new(args.first),
        outcome: RefCell::default(),
        latencies: RefCell::new(histogram()),
    });
    let mut posting = JoinSet::new();
    for connection in connections {
        posting.spawn_local(connection.post(Rc::clone(&course)));
    }
    tokio::time::sleep_until(course.begins.into()).await;
    println!("{BEGIN}");
    if let Some(ends) = course.ends {
        tokio::time::sleep_until(ends.into()).await;
        println!("{END}");
    }
    while let Some(posted) = posting.join_next().await {
        posted.expect("no panic")?;
    }
    if course.ends.is_none() {
        println!("{END}");
    }
    let ended = course.ends.unwrap_or_else(Instant::now);
    let latencies = course.latencies.borrow();
    let counts = latencies.iter_recorded();
    Ok(Outcome {
        seconds: (ended - course.begins).as_secs_f64(),
        latencies: counts
            .map(|count| (count.value_iterated_to(), count.count_at_value()))
            .collect(),
        ..course.outcome.take()
    })
}

/// What all connections share.
struct Course {
    begins: Instant,
    /// None where the number of events says it.
    ends: Option<Instant>,
    left: Cell<u64>,
    /// Events between two lines that say how far it is.
    step: u64,
    next: Cell<u64>,
    outcome: RefCell<Outcome>,
    latencies: RefCell<Histogram<u64>>,
}

impl Course {
    /// How many of the next request's events are to be posted: none at the end.
    fn take(&self, events: u64) -> Option<u64> {
        let is_over = self.ends.is_some_and(|ends| Instant::now() >= ends);
        let left = self.left.get();
        if is_over || left < events {
            return None;
        }
        self.left.set(left - events);
        let first = self.next.get();
        self.next.set(first + events);
        Some(first)
    }

    fn answered(&self, events: u64, posted: Instant) {
        let now = Instant::now();
        let mut outcome = self.outcome.borrow_mut();
        outcome.posted_events += events;
        if now < self.begins || self.ends.is_some_and(|ends| now > ends) {
            return;
        }
        let step = outcome.events / self.step;
        outcome.events += events;
        if self.ends.is_none() && outcome.events / self.step > step {
            println!("{}", outcome.events);
        }
        let micros = (now - posted).as_micros() as u64;
        self.latencies.borrow_mut().saturating_record(micros);
    }
}

/// One of the applications.
struct Connection {
    stream: TcpStream,
    requests: Vec<Request>,
}

/// A request, and where in it the digits stand that make its events new.
struct Request {
    bytes: Vec<u8>,
    digits: Vec<usize>,
}

impl Connection {
    async fn open(args: &Args, seed: u64) -> io::Result<Connection> {
        let stream = TcpStream::connect(args.address).await?;
        stream.set_nodelay(true)?;
        let mut events = Events::new(args.first ^ (seed << 32));
        let first = Request::new(args.batch, &mut events);
        let others = REQUESTS_BYTES / first.bytes.len() / args.connections;
        let mut requests = vec![first];
        requests.extend((0..others).map(|_| Request::new(args.batch, &mut events)));
        Ok(Connection { stream, requests })
    }

    async fn post(mut self, course: Rc<Course>) -> io::Result<()> {
        let mut turn = 0;
        let mut answer = [0; ANSWER_BYTES_MAX];
        loop {
            let request = &mut self.requests[turn];
            let events = request.digits.len() as u64;
            let Some(first) = course.take(events) else {
                return Ok(());
            };
            request.number(first);
            let posted = Instant::now();
            self.stream.write_all(&request.bytes).await?;
            read_success(&mut self.stream, &mut answer).await?;
            course.answered(events, posted);
            turn = (turn + 1) % self.requests.len();
        }
    }
}

impl Request {
    fn new(batch: usize, events: &mut Events) -> Request {
        let (mut body, mut digits) = (Vec::new(), Vec::new());
        let path = match batch {
            1 => {
                digits.push(events.write(&mut body));
                "/v1/track"
            }
            _ => {
                body.extend_from_slice(b"{\"batch\":[");
                for event in 0..batch {
                    if event > 0 {
                        body.push(b',');
                    }
                    digits.push(events.write(&mut body));
                }
                body.extend_from_slice(b"]}");
                "/v1/batch"
            }
        };
        // The write key is BENCH.
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Basic QkVOQ0g6\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        digits.iter_mut().for_each(|at| *at += head.len());
        Request {
            bytes: [head.into_bytes(), body].concat(),
            digits,
        }
    }

    fn number(&mut self, first: u64) {
        for (at, nth) in self.digits.iter().zip(first..) {
            number(&mut self.bytes[*at..*at + NUMBER_DIGITS], nth);
        }
    }
}

/// Reads one answer; anything but a 200 with nothing rejected is an error.
async fn read_success(stream: &mut TcpStream, answer: &mut [u8]) -> io::Result<()> {
    let mut length = 0;
    loop {
        let read = stream.read(&mut answer[length..]).await?;
        length += read;
        let so_far = &answer[..length];
        if so_far.starts_with(b"HTTP/1.1 200 ") && so_far.ends_with(SUCCESS) {
            return Ok(());
        }
        if read == 0 || is_whole(so_far) {
            let answer = String::from_utf8_lossy(so_far);
            return Err(io::Error::other(format!("it was answered {answer:?}")));
        }
    }
}

fn is_whole(answer: &[u8]) -> bool {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(body)) = head.parse(answer) else {
        return answer.len() == ANSWER_BYTES_MAX;
    };
    let length = head
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok());
    answer.len() >= body + length.unwrap_or(0usize)
}

/// How many events a request of each form holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Form {
    Batches,
    Singles,
}

impl Form {
    pub(crate) fn events(self) -> usize {
        match self {
            Form::Batches => BATCH_EVENTS,
            Form::Singles => 1,
        }
    }
}
