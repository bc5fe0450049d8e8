//! The port and its connections. One task owns them all; a [`Door`] reaches it.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::control::{self, control};
use super::desk::Desk;
use super::tracking::{Reply, plain_text, take_batch, take_hook};
use super::{hook, profiles};

/// Connections the kernel may hold ready while all threads are busy with others.
const BACKLOG: u32 = 1024;

/// How long to leave a failing `accept` alone: it fails for want of descriptors, and would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Binds the address and starts the task that serves it.
pub(super) async fn start(
    listen: SocketAddr,
    desk: Arc<Desk>,
) -> io::Result<(Door, SocketAddr, JoinHandle<()>)> {
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    let (orders, inbox) = mpsc::channel(1);
    let door = Door { orders };
    let port = Port {
        address,
        listener: Some(listener),
        reserved: None,
        reopen_at: None,
        connections: JoinSet::new(),
    };
    let serving = tokio::spawn(port.serve(inbox, door.clone(), desk));
    Ok((door, address, serving))
}

/// Reaches the task that owns the port.
#[derive(Clone)]
pub(super) struct Door {
    orders: mpsc::Sender<Order>,
}

enum Order {
    Open(oneshot::Sender<io::Result<()>>),
    Close(oneshot::Sender<()>),
    CloseFor(Duration),
}

impl Door {
    pub(super) async fn open(&self) -> io::Result<()> {
        let (done, opened) = oneshot::channel();
        self.order(Order::Open(done)).await;
        opened.await.map_err(io::Error::other)?
    }

    /// Returns when nothing listens and no connection is left.
    pub(super) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        self.order(Order::Close(done)).await;
        // It can only fail once the task has ended, and the port with it.
        let _closed = closed.await;
    }

    /// Called from a connection, which the closing ends, so it does not wait.
    pub(super) async fn close_for(&self, pause: Duration) {
        self.order(Order::CloseFor(pause)).await;
    }

    async fn order(&self, order: Order) {
        // It can only fail once the task has ended; whoever waits for the reply learns it there.
        let _sent = self.orders.send(order).await;
    }
}

struct Port {
    address: SocketAddr,
    listener: Option<TcpListener>,
    // While closed, a socket that does not listen keeps the port from being given to another process, or to a client
    // that would then be talking to itself.
    reserved: Option<TcpSocket>,
    reopen_at: Option<Instant>,
    connections: JoinSet<()>,
}

impl Port {
    async fn serve(mut self, mut inbox: mpsc::Receiver<Order>, door: Door, desk: Arc<Desk>) {
        loop {
            tokio::select! {
                Some(order) = inbox.recv() => self.carry_out(order).await,
                accepted = accept(self.listener.as_ref()) => match accepted {
                    Ok((stream, _peer)) => {
                        let (door, desk) = (door.clone(), Arc::clone(&desk));
                        self.connections.spawn(converse(stream, door, desk));
                    }
                    Err(error) => {
                        warn!(%error, "failed to accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_ended) = self.connections.join_next() => {}
                () = moment(self.reopen_at) => {
                    if let Err(error) = self.open() {
                        warn!(%error, "failed to listen again");
                    }
                }
            }
        }
    }

    async fn carry_out(&mut self, order: Order) {
        // Whoever gave the order may have gone; it is carried out all the same.
        match order {
            Order::Open(done) => {
                let _told = done.send(self.open());
            }
            Order::Close(done) => {
                self.close().await;
                let _told = done.send(());
            }
            Order::CloseFor(pause) => {
                self.close().await;
                self.reopen_at = Some(Instant::now() + pause);
            }
        }
    }

    fn open(&mut self) -> io::Result<()> {
        self.reopen_at = None;
        if self.listener.is_some() {
            return Ok(());
        }
        let socket = match self.reserved.take() {
            Some(reserved) => reserved,
            None => reserve(self.address)?,
        };
        self.listener = Some(socket.listen(BACKLOG)?);
        Ok(())
    }

    async fn close(&mut self) {
        self.reopen_at = None;
        if self.listener.take().is_some() {
            self.reserved = reserve(self.address).ok();
        }
        self.connections.shutdown().await;
    }
}

/// Binds without listening, so that connections are refused.
fn reserve(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Connections just closed still count as users of the address.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

async fn moment(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What a service returns in place of a reply when its connection is to be reset.
#[derive(Debug)]
pub(super) struct Reset;

impl fmt::Display for Reset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection is to be reset")
    }
}

impl Error for Reset {}

async fn converse(stream: TcpStream, door: Door, desk: Arc<Desk>) {
    // Only slower without it.
    let _quick = stream.set_nodelay(true);
    let service = service_fn(move |request| reply(Arc::clone(&desk), door.clone(), request));
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let Err(error) = (&mut connection).await else {
        return;
    };
    if !error.source().is_some_and(|source| source.is::<Reset>()) {
        debug!(%error, "a connection broke off");
        return;
    }
    let stream = connection.into_parts().io.into_inner();
    if let Err(error) = stream.set_zero_linger() {
        warn!(%error, "failed to reset a connection, so it is closed");
    }
}

async fn reply(desk: Arc<Desk>, door: Door, request: Request<Incoming>) -> Result<Reply, Reset> {
    let path = request.uri().path();
    if path.starts_with(control::PREFIX) {
        return Ok(control(&desk, request).await);
    }
    let hook = path.strip_prefix(hook::PREFIX);
    if let Some(name) = hook.filter(|name| !name.is_empty() && request.method() == Method::POST) {
        let name = name.to_owned();
        return take_hook(&desk, &door, request, &name).await;
    }
    match (request.method().as_str(), path) {
        ("POST", "/v1/batch" | "/v1/import") => take_batch(&desk, &door, request).await,
        ("GET", path) if path.starts_with(profiles::PREFIX) => {
            Ok(profiles::read(desk.options(), &request))
        }
        _ => Ok(plain_text(StatusCode::NOT_FOUND, "Not Found")),
    }
}
