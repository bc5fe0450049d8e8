//! One address: accepts connections and has each served in a task of its own.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::activation::Handed;
use super::address::{Address, SocketMode};
use super::connection::{self, Stream};
use super::reply::Reply;
use super::tls::Tls;
use super::unix_socket::UnixSocket;
use super::{BindError, IngestConfig};

/// After this, requests still under way at a stop are cut off. Clients give up after 8 to 15 s.
const FINISH_MAX: Duration = Duration::from_secs(5);
/// After a failed accept, such as one for want of file descriptors, which would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Failed accepts are told once in this time.
const ACCEPT_WARNING_PAUSE: Duration = Duration::from_secs(10);

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
    socket: Socket,
    address: Address,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Tls(TcpListener, Tls),
    Unix(UnixSocket),
}

/// A connection just accepted.
enum Accepted {
    Plain(Box<dyn Stream>, Peer),
    /// Its handshake is still to come.
    Tls(TcpStream, Peer, Tls),
}

impl Listener {
    /// Binds a TCP address.
    pub(super) async fn tcp(address: SocketAddr) -> Result<Listener, BindError> {
        let (tcp, address) = bind(address).await?;
        Ok(Listener {
            socket: Socket::Tcp(tcp),
            address,
        })
    }

    /// Binds a TCP address to be served over TLS.
    pub(super) async fn tls(address: SocketAddr, tls: Tls) -> Result<Listener, BindError> {
        let (tcp, address) = bind(address).await?;
        Ok(Listener {
            socket: Socket::Tls(tcp, tls),
            address,
        })
    }

    /// Binds an address of either kind.
    pub(super) async fn bind(
        address: &Address,
        config: &IngestConfig,
    ) -> Result<Listener, BindError> {
        let path = match address {
            Address::Tcp(address) => return Listener::tcp(*address).await,
            Address::Unix(path) => path,
        };
        let (mode, group): (SocketMode, _) = (config.socket_mode, config.socket_group.as_deref());
        let socket =
            UnixSocket::bind(path, mode, group)
                .await
                .map_err(|error| BindError::Listen {
                    address: address.clone(),
                    error,
                })?;
        Ok(Listener {
            address: address.clone(),
            socket: Socket::Unix(socket),
        })
    }

    /// Takes over what somebody else has bound.
    pub(super) fn handed(handed: Handed) -> io::Result<Listener> {
        match handed {
            Handed::Tcp(tcp) => Ok(Listener {
                address: tcp.local_addr()?.into(),
                socket: Socket::Tcp(TcpListener::from_std(tcp)?),
            }),
            Handed::Unix(unix) => {
                let address = unix.local_addr()?;
                // One without a name, or with an abstract one, has no path.
                let path = address.as_pathname().unwrap_or(Path::new("/"));
                Ok(Listener {
                    address: Address::Unix(path.to_owned()),
                    socket: Socket::Unix(UnixSocket::handed(unix)?),
                })
            }
        }
    }

    /// Takes over a bound TCP socket, to be served over TLS.
    pub(super) fn handed_tls(tcp: std::net::TcpListener, tls: Tls) -> io::Result<Listener> {
        Ok(Listener {
            address: tcp.local_addr()?.into(),
            socket: Socket::Tls(TcpListener::from_std(tcp)?, tls),
        })
    }

    /// What was bound, port 0 resolved.
    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Serves until `stop`; then accepts nothing more and finishes the requests under way. Each connection takes one of `slots`;
    /// where there is none, the next one waits until another has ended.
    pub(super) async fn serve<S: Service>(
        self,
        stop: impl Future<Output = ()>,
        slots: Arc<Semaphore>,
        service: Arc<S>,
    ) {
        let (stopping, connections) = watch::channel(false);
        let mut failures = Failures::default();
        let mut stop = std::pin::pin!(stop);
        loop {
            let accepting = async {
                let slot = Arc::clone(&slots).acquire_owned().await;
                let slot = slot.expect("the slots are never closed");
                (self.socket.accept().await, slot)
            };
            let (accepted, slot) = tokio::select! {
                accepted = accepting => accepted,
                () = &mut stop => break,
            };
            match accepted {
                Ok(accepted) => {
                    let stopping = connections.clone();
                    tokio::spawn(serve(accepted, Arc::clone(&service), stopping, slot));
                }
                Err(error) => {
                    if let Some(failed) = failures.add(Instant::now()) {
                        warn!(%error, failed, address = %self.address, "failed to accept connections");
                    }
                    drop(slot);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop((self.socket, connections));
        stopping.send_replace(true);
        // Each connection holds the other end.
        if tokio::time::timeout(FINISH_MAX, stopping.closed())
            .await
            .is_err()
        {
            warn!(address = %self.address, "requests under way were cut off");
        }
    }
}

impl Socket {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Socket::Tcp(tcp) => {
                let (stream, peer) = accept(tcp).await?;
                Ok(Accepted::Plain(Box::new(stream), peer))
            }
            Socket::Tls(tcp, tls) => {
                let (stream, peer) = accept(tcp).await?;
                Ok(Accepted::Tls(stream, peer, tls.clone()))
            }
            Socket::Unix(socket) => {
                let stream = socket.accept().await?;
                Ok(Accepted::Plain(Box::new(stream), Peer::Local))
            }
        }
    }
}

async fn serve<S: Service>(
    accepted: Accepted,
    service: Arc<S>,
    mut stopping: watch::Receiver<bool>,
    _slot: OwnedSemaphorePermit,
) {
    let (stream, peer) = match accepted {
        Accepted::Plain(stream, peer) => (stream, peer),
        Accepted::Tls(stream, peer, tls) => {
            // Boxed: a connection without TLS has no need of its room.
            let handshake = Box::pin(tls.accept(stream));
            let shaken = tokio::select! {
                shaken = handshake => shaken,
                () = connection::stopped(&mut stopping) => return,
            };
            match shaken {
                Ok(stream) => (Box::new(stream) as Box<dyn Stream>, peer),
                Err(error) => {
                    debug!(%error, "a TLS handshake failed");
                    return;
                }
            }
        }
    };
    connection::serve(stream, peer, service, stopping).await;
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, Address), BindError> {
    let failed = |error: io::Error| BindError::Listen {
        address: address.into(),
        error,
    };
    let tcp = TcpListener::bind(address).await.map_err(failed)?;
    let address = tcp.local_addr().map_err(failed)?.into();
    Ok((tcp, address))
}

async fn accept(tcp: &TcpListener) -> io::Result<(TcpStream, Peer)> {
    let (stream, address) = tcp.accept().await?;
    // A small reply is to leave at once.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "failed to set a connection's options");
    }
    Ok((stream, Peer::at(address)))
}

/// Failed accepts that were not told yet.
#[derive(Debug, Default)]
struct Failures {
    count: u64,
    told: Option<Instant>,
}

impl Failures {
    /// Counts one more, and says how many are to be told now.
    fn add(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        let is_due = self
            .told
            .is_none_or(|told| now.duration_since(told) >= ACCEPT_WARNING_PAUSE);
        is_due.then(|| {
            self.told = Some(now);
            std::mem::take(&mut self.count)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_accepts_are_told_now_and_then_with_their_number() {
        let mut failures = Failures::default();
        let start = Instant::now();
        let told: Vec<_> = (0..=400)
            .filter_map(|n| failures.add(start + n * ACCEPT_PAUSE))
            .collect();
        assert_eq!(told, [1, 200, 200]);
    }

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
