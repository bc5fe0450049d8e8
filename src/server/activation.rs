//! Sockets that systemd listens on and hands over at the start: while the daemon restarts, connections wait in them, and none is
//! refused. What a unit calls a socket (`FileDescriptorName=`) says what it is for.
//!
//! `admin` is the admin listener, `ingest-tls` the ingest listener over TLS, anything else the ingest listener. What is handed over takes
//! the place of the setting that names an address for it. Here nothing is accepted.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;

use super::BindError;

/// The variable with the names, separated by colons (`sd_listen_fds_with_names`(3)).
const NAMES: &str = "LISTEN_FDNAMES";
pub(super) const INGEST: &str = "ingest";
pub(super) const ADMIN: &str = "admin";
pub(super) const INGEST_TLS: &str = "ingest-tls";

/// A socket that somebody else has bound.
#[derive(Debug)]
pub(super) enum Handed {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// What systemd has handed over.
#[derive(Debug, Default)]
pub struct Activation {
    pub(super) ingest: Vec<Handed>,
    pub(super) ingest_tls: Option<TcpListener>,
    pub(super) admin: Option<TcpListener>,
}

impl Activation {
    /// Takes what is there; nothing where the process was not started with sockets. To be called once, before there are other
    /// threads: it changes the environment.
    ///
    /// # Errors
    /// What was handed over cannot be listened on, or there is more of it than has a use.
    pub fn take() -> Result<Activation, BindError> {
        let names = std::env::var(NAMES).unwrap_or_default();
        let mut names = names.split(':');
        let mut sockets = ListenFd::from_env();
        let mut activation = Activation::default();
        for index in 0..sockets.len() {
            let name = names.next().unwrap_or_default();
            let handed = take(&mut sockets, index);
            activation.add(name, handed).map_err(unusable(name))?;
        }
        Ok(activation)
    }

    fn add(&mut self, name: &str, handed: io::Result<Handed>) -> io::Result<()> {
        let place = match name {
            ADMIN => &mut self.admin,
            INGEST_TLS => &mut self.ingest_tls,
            _ => {
                self.ingest.push(handed?);
                return Ok(());
            }
        };
        let Handed::Tcp(tcp) = handed? else {
            return Err(invalid("a Unix socket cannot be used for it"));
        };
        if place.replace(tcp).is_some() {
            return Err(invalid("there is more than one of it"));
        }
        Ok(())
    }
}

fn take(sockets: &mut ListenFd, index: usize) -> io::Result<Handed> {
    let handed = match sockets.take_tcp_listener(index) {
        Ok(tcp) => tcp.map(Handed::Tcp),
        Err(_) => sockets
            .take_unix_listener(index)
            .map_err(|_| invalid("it is no stream socket of TCP or Unix; each needs Accept=no"))?
            .map(Handed::Unix),
    };
    let handed = handed.ok_or_else(|| invalid("it was taken before"))?;
    match &handed {
        Handed::Tcp(tcp) => tcp.set_nonblocking(true)?,
        Handed::Unix(unix) => unix.set_nonblocking(true)?,
    }
    Ok(handed)
}

/// There is a socket for TLS, and nothing is said of TLS.
pub(super) fn without_tls() -> io::Error {
    invalid("[ingest.tls] is not configured")
}

/// The error of a socket with that name.
pub(super) fn unusable(name: &str) -> impl Fn(io::Error) -> BindError {
    let name = name.to_owned();
    move |error| BindError::Handed {
        name: name.clone(),
        error,
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}
