//! A server that says whatever a test wants it to say, byte by byte, and keeps what it is asked. Never decides anything itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::within;

/// What was asked.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// The connection's number, from 0.
    pub(crate) connection: usize,
    /// Such as `POST /v1/batch HTTP/1.1`.
    pub(crate) line: String,
    headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The body of a Batch call.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// The messageIds of a Batch call.
    pub(crate) fn ids(&self) -> Vec<String> {
        let body = self.json();
        let events = body["batch"].as_array().expect("a batch").iter();
        events
            .map(|event| event["messageId"].as_str().expect("an id").to_owned())
            .collect()
    }
}

/// What it does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Reaction {
    /// Sends these bytes, and waits for the next request.
    Say(String),
    /// Sends these bytes, and closes the connection.
    SayAndClose(String),
    /// Sends nothing, ever.
    Hang,
    /// Sends a head that never ends, a byte now and then.
    Drip,
    /// Opens a tunnel to this address, as a proxy.
    Tunnel(String),
}

/// An answer with this status, these header lines and this body.
pub(crate) fn answer(status: u16, headers: &str, body: &str) -> Reaction {
    let length = body.len();
    Reaction::Say(format!(
        "HTTP/1.1 {status} Status\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    ))
}

/// What Segment answers.
pub(crate) fn success() -> Reaction {
    answer(200, "", r#"{"success":true}"#)
}

type React = dyn Fn(&Request) -> Reaction + Send + Sync;

/// The server, which ends when this is dropped.
pub(crate) struct Server {
    pub(crate) address: String,
    asked: Arc<Mutex<Vec<Request>>>,
    _accepting: JoinSet<()>,
}

impl Server {
    /// Starts one that reacts like this.
    pub(crate) async fn start(
        react: impl Fn(&Request) -> Reaction + Send + Sync + 'static,
    ) -> Server {
        Server::start_with(None, react).await
    }

    /// As [`Server::start`], over TLS where there is a certificate.
    pub(crate) async fn start_with(
        tls: Option<TlsAcceptor>,
        react: impl Fn(&Request) -> Reaction + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (react, keep): (Arc<React>, _) = (Arc::new(react), Arc::clone(&asked));
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            for connection in 0.. {
                let (stream, _) = listener.accept().await.expect("a connection");
                let (react, keep, tls) = (Arc::clone(&react), Arc::clone(&keep), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(stream, connection, &*react, &keep).await,
                        Some(tls) => {
                            // A client that does not trust it goes away.
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, connection, &*react, &keep).await;
                            }
                        }
                    }
                });
            }
        });
        Server {
            address,
            asked,
            _accepting: accepting,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn port(&self) -> &str {
        self.address.rsplit(':').next().expect("a port")
    }

    /// What was asked so far.
    pub(crate) fn asked(&self) -> Vec<Request> {
        self.asked.lock().expect("no panic under this lock").clone()
    }

    /// Waits until what was asked is as wished.
    pub(crate) async fn until(&self, reached: impl Fn(&[Request]) -> bool) -> Vec<Request> {
        within(async {
            loop {
                let asked = self.asked();
                if reached(&asked) {
                    return asked;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    connection: usize,
    react: &React,
    keep: &Mutex<Vec<Request>>,
) {
    while let Some(request) = read(&mut stream, connection).await {
        let reaction = react(&request);
        keep.lock().expect("no panic under this lock").push(request);
        match reaction {
            Reaction::Say(bytes) => {
                let _ = stream.write_all(bytes.as_bytes()).await;
                let _ = stream.flush().await;
            }
            Reaction::SayAndClose(bytes) => {
                let _ = stream.write_all(bytes.as_bytes()).await;
                let _ = stream.shutdown().await;
                return;
            }
            Reaction::Hang => std::future::pending().await,
            Reaction::Drip => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX-Long: ").await;
                while stream.write_all(b"x").await.is_ok() && stream.flush().await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                return;
            }
            Reaction::Tunnel(to) => {
                let mut far = TcpStream::connect(to).await.expect("it listens");
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut far).await;
                return;
            }
        }
    }
}

/// The next request, or none where the connection ends.
async fn read(stream: &mut (impl AsyncRead + Unpin), connection: usize) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).expect("text");
    let mut lines = head.lines();
    let line = lines.next().expect("a request line").to_owned();
    let headers: HashMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").map(|length| length.parse());
    let mut body = vec![0; length.map_or(0, |length| length.expect("a length"))];
    stream.read_exact(&mut body).await.ok()?;
    Some(Request {
        connection,
        line,
        headers,
        body,
    })
}
