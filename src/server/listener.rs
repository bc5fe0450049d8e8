//! One address: accepts connections, serves HTTP/1.1 on each, and ends them in order.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use super::BindError;
use super::reply::Reply;

/// Connections open at the same time on one listener. The next one waits until another has ended.
const CONNECTIONS_MAX: usize = 16_384;
/// A connection may rest this long between requests, and a request's headers may take this long. SDKs keep connections for up to
/// 60 s; closing first would cost them a request.
const REST_MAX: Duration = Duration::from_secs(90);
/// What a connection may hold of a request before it is handed on: its headers, or a piece of its body.
const BUFFER_BYTES_MAX: usize = 128 * 1024;
/// After this, requests still under way at a stop are cut off. Clients give up after 8 to 15 s.
const FINISH_MAX: Duration = Duration::from_secs(5);
/// After a failed accept, such as one for want of file descriptors, which would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// A program on this machine, which goes by the same clock.
    Local,
    /// Somebody else.
    Remote,
}

impl Peer {
    fn at(address: SocketAddr) -> Peer {
        if address.ip().to_canonical().is_loopback() {
            Peer::Local
        } else {
            Peer::Remote
        }
    }
}

/// What answers the requests of a listener.
pub(super) trait Service: Send + Sync + 'static {
    /// Answers one request.
    fn serve(&self, peer: Peer, request: Request<Incoming>) -> impl Future<Output = Reply> + Send;
}

/// A bound address.
#[derive(Debug)]
pub(super) struct Listener {
    tcp: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds an address.
    pub(super) async fn bind(address: SocketAddr) -> Result<Listener, BindError> {
        let failed = |error: io::Error| BindError { address, error };
        let tcp = TcpListener::bind(address).await.map_err(failed)?;
        let address = tcp.local_addr().map_err(failed)?;
        Ok(Listener { tcp, address })
    }

    /// What was bound, port 0 resolved.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`; then accepts nothing more and finishes the requests under way.
    pub(super) async fn serve<S: Service>(self, stop: impl Future<Output = ()>, service: Arc<S>) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let graceful = GracefulShutdown::new();
        let mut stop = std::pin::pin!(stop);
        loop {
            let slot = Arc::clone(&connections).acquire_owned();
            let accepted = async {
                let slot = slot.await.expect("the slots are never closed");
                (self.tcp.accept().await, slot)
            };
            let (accepted, slot) = tokio::select! {
                accepted = accepted => accepted,
                () = &mut stop => break,
            };
            match accepted {
                Ok((stream, address)) => {
                    let connection = connection(stream, Peer::at(address), Arc::clone(&service));
                    let connection = graceful.watch(connection);
                    tokio::spawn(async move {
                        if let Err(error) = connection.await {
                            debug!(%error, "a connection ended with an error");
                        }
                        drop(slot);
                    });
                }
                Err(error) => {
                    warn!(%error, address = %self.address, "failed to accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.tcp);
        if tokio::time::timeout(FINISH_MAX, graceful.shutdown())
            .await
            .is_err()
        {
            warn!(address = %self.address, "requests under way were cut off");
        }
    }
}

fn connection<S: Service>(
    stream: TcpStream,
    peer: Peer,
    service: Arc<S>,
) -> impl hyper_util::server::graceful::GracefulConnection<Error = hyper::Error> + Send {
    // A small reply is to leave at once.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "failed to set a connection's options");
    }
    let service = service_fn(move |request| {
        let service = Arc::clone(&service);
        async move { Ok::<_, std::convert::Infallible>(service.serve(peer, request).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REST_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_connects_from_a_loopback_address_is_local() {
        for (address, peer) in [
            ("127.0.0.1:1", Peer::Local),
            ("127.9.9.9:1", Peer::Local),
            ("[::1]:1", Peer::Local),
            ("[::ffff:127.0.0.1]:1", Peer::Local),
            ("10.0.0.7:1", Peer::Remote),
            ("[::ffff:10.0.0.7]:1", Peer::Remote),
            ("[fe80::1]:1", Peer::Remote),
            ("0.0.0.0:1", Peer::Remote),
        ] {
            let address = address.parse().expect("an address");
            assert_eq!(Peer::at(address), peer, "{address}");
        }
    }
}
