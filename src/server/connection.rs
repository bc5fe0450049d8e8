//! One connection: waits for its first request, serves HTTP/1.1, and ends in order.
//!
//! The HTTP library takes 16 KiB for each connection it is given. So a connection is handed to it only when the head of a
//! request is there; until then it costs what it has sent, which is nothing for most that rest.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep, timeout};
use tracing::debug;

use super::listener::{Peer, Service};
use super::reply::Live;

/// A connection may rest this long before a request, and a later request's head may take this long. SDKs keep connections for up
/// to 60 s; closing first would cost them a request.
const REST_MAX: Duration = Duration::from_secs(90);
/// The first request's head, once begun, may take this long.
const HEAD_MAX: Duration = Duration::from_secs(30);
/// A request may be on its way when its connection is to end, above all on one that has waited in a socket of systemd's.
const ON_ITS_WAY_MAX: Duration = Duration::from_millis(250);
/// Whoever watches a reply that goes on for ever has to take something of it in this time.
const UNREAD_MAX: Duration = Duration::from_secs(30);
/// What a connection may hold of a request before it is handed on: its head, or a piece of its body.
const BUFFER_BYTES_MAX: usize = 128 * 1024;
/// A longer head is left to the HTTP library, so that it is not looked through again and again as it grows.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// The fields that the HTTP library takes in a head.
const FIELDS_MAX: usize = 100;

/// Both directions of a connection, whatever carries it.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for T {}

/// Serves a connection to its end. Once `stopping` is true, it ends without a request under way at once, else with its answer.
pub(super) async fn serve<S: Service>(
    mut stream: Box<dyn Stream>,
    peer: Peer,
    service: Arc<S>,
    mut stopping: watch::Receiver<bool>,
) {
    match first_head(&mut stream, &mut stopping).await {
        Ok(head) if head.is_empty() => {}
        Ok(head) => {
            let is_live = Arc::new(AtomicBool::new(false));
            let resumed = Resumed {
                head,
                given: 0,
                stream,
                is_live: Arc::clone(&is_live),
                unread: None,
            };
            // Boxed: a connection that rests has no need of its room.
            Box::pin(converse(resumed, peer, service, is_live, stopping)).await;
        }
        Err(error) => debug!(%error, "a connection ended without a request"),
    }
}

/// Returns once `stopping` is true.
pub(super) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // Where the other end is gone, so is the listener.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// What arrives up to the end of the first head, and beyond; nothing if the connection ends before it.
async fn first_head(
    stream: &mut Box<dyn Stream>,
    stopping: &mut watch::Receiver<bool>,
) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let heard = {
        let mut first = pin!(timeout(REST_MAX, read(stream, &mut head)));
        tokio::select! {
            biased;
            first = first.as_mut() => Some(first),
            () = stopped(stopping) => timeout(ON_ITS_WAY_MAX, first.as_mut()).await.ok(),
        }
    };
    match heard {
        Some(first) => first??,
        None => return Ok(head),
    };
    let rest = async {
        while is_partial(&head) && head.len() < HEAD_BYTES_MAX {
            if read(stream, &mut head).await? == 0 {
                head.clear();
                break;
            }
        }
        Ok(head)
    };
    timeout(HEAD_MAX, rest).await?
}

/// Reads what there is. The buffer grows by what came, so waiting costs none.
async fn read(stream: &mut Box<dyn Stream>, into: &mut Vec<u8>) -> io::Result<usize> {
    poll_fn(|context| {
        let mut space = [MaybeUninit::uninit(); HEAD_BYTES_MAX];
        let mut space = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut *stream).poll_read(context, &mut space))?;
        into.extend_from_slice(space.filled());
        Poll::Ready(Ok(space.filled().len()))
    })
    .await
}

/// Whether it may yet become a head. What never will is the HTTP library's to refuse.
fn is_partial(head: &[u8]) -> bool {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    matches!(
        httparse::Request::new(&mut fields).parse(head),
        Ok(httparse::Status::Partial)
    )
}

async fn converse<S: Service>(
    stream: Resumed,
    peer: Peer,
    service: Arc<S>,
    is_live: Arc<AtomicBool>,
    mut stopping: watch::Receiver<bool>,
) {
    let service = service_fn(move |request| {
        let (service, is_live) = (Arc::clone(&service), Arc::clone(&is_live));
        async move {
            let reply = service.serve(peer, request).await;
            is_live.store(
                reply.extensions().get::<Live>().is_some(),
                Ordering::Relaxed,
            );
            Ok::<_, Infallible>(reply)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REST_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        // In this order: it takes up the request that is there before it hears that it is to end.
        biased;
        ended = connection.as_mut() => ended,
        () = stopped(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended with an error");
    }
}

/// A connection of which something has been read already.
struct Resumed {
    head: Vec<u8>,
    given: usize,
    stream: Box<dyn Stream>,
    /// Whether what is written now has to be taken in time.
    is_live: Arc<AtomicBool>,
    /// Runs while the other end takes nothing.
    unread: Option<Pin<Box<Sleep>>>,
}

impl Resumed {
    /// Gives up on somebody who watches and takes nothing any more.
    fn unless_unread<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() || !self.is_live.load(Ordering::Relaxed) {
            self.unread = None;
            return written;
        }
        let unread = self
            .unread
            .get_or_insert_with(|| Box::pin(sleep(UNREAD_MAX)));
        ready!(unread.as_mut().poll(context));
        let error = "a stream is watched by somebody who does not read it";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, error)))
    }
}

impl AsyncRead for Resumed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = &self.head[self.given..];
        if left.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, into);
        }
        let len = left.len().min(into.remaining());
        into.put_slice(&left[..len]);
        self.given += len;
        if self.given == self.head.len() {
            (self.head, self.given) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Resumed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.unless_unread(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.unless_unread(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::{StreamExt, stream};
    use hyper::Request;
    use hyper::body::Incoming;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::server::reply::{self, Reply};

    #[test]
    fn a_head_is_waited_for_as_long_as_it_may_become_one() {
        for (text, expected) in [
            ("", true),
            ("\r\n", true),
            ("POST /v1/track HTTP/1.1\r\nHost: a\r\n", true),
            ("POST /v1/track HTTP/1.1\r\nHost: a\r\n\r\n", false),
            ("POST /v1/track HTTP/1.1\nHost: a\n\n", false),
            ("POST /v1/track HTTP/1.1\r\n\r\n{", false),
            ("\u{16}\u{3}\u{1}", false),
            ("POST /v1/track HTTP/9\r\n", false),
            (&"a: b\r\n".repeat(5000), false),
        ] {
            assert_eq!(is_partial(text.as_bytes()), expected, "{text:.60}");
        }
    }

    /// What becomes of a connection that sends `parts` with pauses before each and stays open.
    async fn heard(parts: &[&str], pause: Duration) -> io::Result<String> {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let (_running, mut stopping) = watch::channel(false);
        let mut server: Box<dyn Stream> = Box::new(server);
        let sending = async {
            for part in parts {
                tokio::time::sleep(pause).await;
                client.write_all(part.as_bytes()).await?;
            }
            std::future::pending().await
        };
        tokio::select! {
            head = first_head(&mut server, &mut stopping) => {
                head.map(|head| String::from_utf8(head).expect("text"))
            }
            sent = sending => sent,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_may_rest_long_but_not_within_a_head() {
        let (rest, head) = ("GET / HTTP/1.1\r\n", "\r\n");
        let within = HEAD_MAX - Duration::from_secs(1);
        let whole = heard(&[rest, head], within).await.expect("in time");
        assert_eq!(whole, "GET / HTTP/1.1\r\n\r\n");
        for (parts, pause) in [
            (&[rest, head][..], HEAD_MAX + Duration::from_secs(1)),
            (&[rest, "a", ":", "b"], HEAD_MAX / 3),
            (
                &["GET / HTTP/1.1\r\n\r\n"],
                REST_MAX + Duration::from_secs(1),
            ),
        ] {
            let error = heard(parts, pause).await.expect_err("too slow");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{parts:?}");
        }
        let late = REST_MAX - Duration::from_secs(1);
        assert!(heard(&["GET / HTTP/1.1\r\n\r\n"], late).await.is_ok());
    }

    /// Answers with a stream that never ends.
    struct Endless {
        is_live: bool,
    }

    impl Service for Endless {
        async fn serve(&self, _peer: Peer, _request: Request<Incoming>) -> Reply {
            let pieces = stream::repeat(Bytes::from_static(&[b'x'; 1024]));
            if self.is_live {
                reply::server_sent(pieces)
            } else {
                reply::stream("text/plain", pieces.map(Ok))
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_watches_has_to_read_and_others_may_take_their_time() {
        for is_live in [true, false] {
            let (mut client, server) = tokio::io::duplex(64 * 1024);
            let (_running, stopping) = watch::channel(false);
            let service = Arc::new(Endless { is_live });
            let mut serving = pin!(serve(Box::new(server), Peer::Local, service, stopping));
            let request = client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            request.await.expect("there is room");
            let reading = async {
                let mut read = vec![0; 64 * 1024];
                for _ in 0..10 {
                    tokio::time::sleep(UNREAD_MAX / 2).await;
                    client.read_exact(&mut read).await.expect("it goes on");
                }
            };
            tokio::select! {
                () = serving.as_mut() => panic!("closed on somebody who reads, though slowly"),
                () = reading => {}
            }
            let ended = timeout(UNREAD_MAX * 2, serving).await;
            assert_eq!(ended.is_ok(), is_live);
        }
    }
}
