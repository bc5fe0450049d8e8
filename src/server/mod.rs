//! The HTTP server: the only folder that names hyper. It reads requests, hands them on and writes replies.
//!
//! Two listeners. On the ingest listener, which may have several addresses, applications post their events; on the admin
//! listener an operator sees what happens. What a request means is decided elsewhere, and `reply` alone knows HTTP statuses. The server and delivery
//! never meet: the queue is between them.

mod activation;
mod address;

mod connection;
mod listener;
mod tls;
mod unix_socket;

mod admin;
mod ingest_listener;
mod profiles;

mod guard;

mod body;
mod reply;
mod routes;

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use futures_util::future::{OptionFuture, join, join_all};
use serde::de::{Error as _, IntoDeserializer as _};
use serde::{Deserialize, Deserializer};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tracing::warn;

use crate::event::WriteKey;
use crate::ingest::{Ingest, Rules};
use crate::profiles::Profiles;
use crate::queue::Queue;
use crate::stats::Stats;

pub use admin::{AdminToken, LetterView};

use activation::{Handed, unusable};
use admin::AdminListener;
use body::Bodies;
use guard::Guard;
use ingest_listener::IngestListener;
use listener::Listener;
use profiles::{OverTls, ProfileDesk};
use tls::Tls;

pub use activation::Activation;
pub use address::{Address, SocketMode};
pub use tls::{TlsConfig, TlsError};

/// Connections open at the same time on all addresses of the ingest listener together.
const INGEST_CONNECTIONS_MAX: usize = 16_384;
/// Those on the admin listener: a few operators, and what watches.
const ADMIN_CONNECTIONS_MAX: usize = 1024;

/// `[ingest]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IngestConfig {
    /// Where applications post.
    pub listen: Vec<Address>,
    /// Who may connect to its Unix sockets.
    pub socket_mode: SocketMode,
    /// The group that its Unix sockets are given to.
    #[serde(deserialize_with = "text_or_none")]
    pub socket_group: Option<String>,
    /// The largest body, decoded.
    pub max_body: ByteSize,
    /// Origins of pages that may post from a browser; `*` for all, empty for none.
    pub cors_origins: Vec<String>,
    /// Names by which the listener may be called, besides addresses and `localhost`.
    pub allowed_hosts: Vec<String>,
    /// The write key of requests that carry none.
    #[serde(deserialize_with = "key_or_none")]
    pub write_key: Option<WriteKey>,
    /// A file that holds it.
    #[serde(deserialize_with = "path_or_none")]
    pub write_key_file: Option<PathBuf>,
    /// The write keys that may be used; empty: any.
    #[serde(deserialize_with = "keys")]
    pub allowed_write_keys: HashSet<WriteKey>,
    /// How far the clock of a peer that is not local may be off before its times are corrected.
    #[serde(deserialize_with = "duration_or_none")]
    pub clock_skew_over: Option<Duration>,
    /// Where they post over TLS; off without it.
    pub tls: Option<TlsConfig>,
}

impl IngestConfig {
    /// What of it concerns events; webhooks are told of elsewhere.
    #[must_use]
    pub fn rules(&self) -> Rules {
        Rules {
            write_key: self.write_key.clone(),
            allowed_write_keys: self.allowed_write_keys.clone(),
            clock_skew_over: self.clock_skew_over,
            ..Rules::default()
        }
    }

    /// Every address that it names; one of port 0 is not known before it is bound.
    pub fn tcp_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        let listen = self.listen.iter().filter_map(|address| match address {
            Address::Tcp(address) => Some(*address),
            Address::Unix(_) => None,
        });
        listen.chain(self.tls.as_ref().map(|tls| tls.listen))
    }

    /// Whether what it names is there: the certificate and the group of the sockets.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn check(&self) -> Result<(), BindError> {
        if let Some(tls) = &self.tls {
            tls.check().map_err(BindError::Tls)?;
        }
        let socket = self
            .listen
            .iter()
            .find(|address| matches!(address, Address::Unix(_)));
        match (socket, &self.socket_group) {
            (Some(address), Some(group)) => match unix_socket::group_id(group) {
                Ok(_) => Ok(()),
                Err(error) => Err(BindError::Listen {
                    address: address.clone(),
                    error,
                }),
            },
            _ => Ok(()),
        }
    }
}

impl Default for IngestConfig {
    fn default() -> IngestConfig {
        IngestConfig {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 7346)).into()],
            socket_mode: SocketMode::default(),
            socket_group: None,
            max_body: ByteSize::mib(8),
            cors_origins: Vec::new(),
            allowed_hosts: Vec::new(),
            write_key: None,
            write_key_file: None,
            allowed_write_keys: HashSet::new(),
            clock_skew_over: None,
            tls: None,
        }
    }
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Where operators look.
    pub listen: SocketAddr,
    /// A file with the token that every operator must bear.
    #[serde(deserialize_with = "path_or_none")]
    pub token_file: Option<PathBuf>,
    /// The token itself, once the file has been read.
    #[serde(skip)]
    pub token: Option<AdminToken>,
}

impl Default for AdminConfig {
    fn default() -> AdminConfig {
        AdminConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 7347)),
            token_file: None,
            token: None,
        }
    }
}

/// The phases of the daemon's life, as far as the server shows them, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Accepting.
    Running,
    /// Accepting nothing more; what waits is being delivered.
    Draining,
    /// Going away.
    Stopped,
}

impl Phase {
    fn as_str(self) -> &'static str {
        match self {
            Phase::Running => "running",
            Phase::Draining => "draining",
            Phase::Stopped => "stopped",
        }
    }
}

/// A listener that could not be made.
#[derive(Debug)]
pub enum BindError {
    /// An address cannot be bound.
    Listen {
        /// Where.
        address: Address,
        /// Why not.
        error: io::Error,
    },
    /// A socket that systemd handed over cannot be used.
    Handed {
        /// What its unit calls it.
        name: String,
        /// Why not.
        error: io::Error,
    },
    /// There is no certificate to use.
    Tls(TlsError),
}

impl std::fmt::Display for BindError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BindError::Listen { address, error } => {
                write!(f, "failed to listen on {address}: {error}")
            }
            BindError::Handed { name, error } => {
                write!(
                    f,
                    "failed to use the socket `{name}` that systemd handed over: {error}"
                )
            }
            BindError::Tls(e) => write!(f, "failed to set TLS up: {e}"),
        }
    }
}

impl std::error::Error for BindError {}

/// The listeners, bound and not yet served.
#[derive(Debug)]
pub struct Server {
    ingest: Vec<Listener>,
    tls: Option<Listener>,
    admin: Listener,
    max_body: usize,
    profiles: Option<Profiles>,
    guard: watch::Sender<Guard>,
    token: Option<AdminToken>,
}

/// Tells the listeners whom to let in from now on.
#[derive(Debug)]
pub struct Doorkeeper(watch::Sender<Guard>);

impl Doorkeeper {
    /// Goes by the hosts and origins of `config`.
    pub fn go_by(&self, config: &IngestConfig) {
        self.0.send_replace(Guard::new(config));
    }
}

impl Server {
    /// Binds every address for which `activation` has no socket. A certificate made for TLS is kept in `data_dir`.
    ///
    /// # Errors
    /// One of them cannot be bound, or there is no certificate to use.
    pub async fn bind(
        ingest: &IngestConfig,
        admin: &AdminConfig,
        data_dir: &Path,
        activation: Activation,
    ) -> Result<Server, BindError> {
        let mut listeners = Vec::new();
        for socket in activation.ingest {
            let listener = Listener::handed(socket);
            listeners.push(listener.map_err(unusable(activation::INGEST))?);
        }
        if listeners.is_empty() {
            for address in &ingest.listen {
                listeners.push(Listener::bind(address, ingest).await?);
            }
        } else {
            tell_of_unused(&ingest.listen, &listeners);
        }
        let tls = match (&ingest.tls, activation.ingest_tls) {
            (Some(config), handed) => {
                let tls = Tls::prepare(config, &ingest.allowed_hosts, data_dir)
                    .map_err(BindError::Tls)?;
                Some(match handed {
                    Some(tcp) => {
                        Listener::handed_tls(tcp, tls).map_err(unusable(activation::INGEST_TLS))?
                    }
                    None => Listener::tls(config.listen, tls).await?,
                })
            }
            (None, Some(_)) => {
                return Err(unusable(activation::INGEST_TLS)(activation::without_tls()));
            }
            (None, None) => None,
        };
        let admin_listener = match activation.admin {
            Some(tcp) => Listener::handed(Handed::Tcp(tcp)).map_err(unusable(activation::ADMIN))?,
            None => Listener::tcp(admin.listen).await?,
        };
        Ok(Server {
            ingest: listeners,
            tls,
            admin: admin_listener,
            guard: watch::Sender::new(Guard::new(ingest)),
            token: admin.token.clone(),
            profiles: None,
            max_body: usize::try_from(ingest.max_body.as_u64()).unwrap_or(usize::MAX),
        })
    }

    /// Reads profiles, too.
    #[must_use]
    pub fn with(self, profiles: Option<Profiles>) -> Server {
        Server { profiles, ..self }
    }

    /// Where applications post in the clear: what was bound, port 0 resolved.
    #[must_use]
    pub fn ingest_addresses(&self) -> Vec<Address> {
        self.ingest
            .iter()
            .map(|listener| listener.address().clone())
            .collect()
    }

    /// Where they post over TLS.
    #[must_use]
    pub fn tls_address(&self) -> Option<&Address> {
        self.tls.as_ref().map(Listener::address)
    }

    /// Where operators look.
    #[must_use]
    pub fn admin_address(&self) -> &Address {
        self.admin.address()
    }

    /// A handle that outlives [`Server::serve`].
    #[must_use]
    pub fn doorkeeper(&self) -> Doorkeeper {
        Doorkeeper(self.guard.clone())
    }

    /// Serves, in tasks of its own, until the phase is [`Phase::Stopped`]. From [`Phase::Draining`] on nothing is accepted: the
    /// ingest listeners are closed, and requests under way are finished.
    #[must_use]
    pub fn serve(
        self,
        ingest: Arc<Ingest>,
        queue: Queue,
        stats: Arc<Stats>,
        phase: watch::Receiver<Phase>,
    ) -> Serving {
        let ingest_listener = Arc::new(IngestListener {
            ingest: Arc::clone(&ingest),
            bodies: Bodies::new(self.max_body),
            profiles: ProfileDesk {
                profiles: self.profiles,
                stats: Arc::clone(&stats),
            },
            stats: Arc::clone(&stats),
            guard: self.guard.subscribe(),
        });
        let admin_listener = Arc::new(AdminListener {
            queue,
            ingest,
            token: self.token,
            spade: Arc::default(),
            watch: Arc::default(),
            metrics: Arc::default(),
            stats,
            phase: phase.clone(),
            guard: self.guard.subscribe(),
        });
        let admin = self.admin.serve(
            past(phase.clone(), Phase::Draining),
            Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX)),
            admin_listener,
        );
        let slots = Arc::new(Semaphore::new(INGEST_CONNECTIONS_MAX));
        let over_tls = self.tls.map(|listener| {
            let stop = past(phase.clone(), Phase::Running);
            let service = Arc::new(OverTls(Arc::clone(&ingest_listener)));
            listener.serve(stop, Arc::clone(&slots), service)
        });
        let ingest: Vec<_> = self
            .ingest
            .into_iter()
            .map(|listener| {
                let stop = past(phase.clone(), Phase::Running);
                listener.serve(stop, Arc::clone(&slots), Arc::clone(&ingest_listener))
            })
            .collect();
        let ingest = join(join_all(ingest), OptionFuture::from(over_tls));
        Serving {
            ingest: tokio::spawn(async {
                ingest.await;
            }),
            admin: tokio::spawn(admin),
        }
    }
}

/// The listeners, being served.
#[derive(Debug)]
pub struct Serving {
    ingest: JoinHandle<()>,
    admin: JoinHandle<()>,
}

impl Serving {
    /// Returns when a listener has ended, and says which.
    pub async fn ended(&mut self) -> &'static str {
        tokio::select! {
            _ = &mut self.ingest => "the ingest listener",
            _ = &mut self.admin => "the admin listener",
        }
    }

    /// Returns once the last request to an ingest listener has its answer.
    pub async fn ingest_ended(&mut self) {
        // An error says that it panicked, which the panic itself has reported.
        let _ = (&mut self.ingest).await;
    }

    /// Returns once the last request to the admin listener has its answer.
    pub async fn admin_ended(&mut self) {
        let _ = (&mut self.admin).await;
    }
}

/// An empty key is none.
fn key_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<WriteKey>, D::Error> {
    let key = String::deserialize(from).map_err(|_| D::Error::custom("a write key is a string"))?;
    if key.is_empty() {
        return Ok(None);
    }
    WriteKey::new(&key)
        .map(Some)
        .map_err(|rejection| D::Error::custom(rejection.message()))
}

fn keys<'de, D: Deserializer<'de>>(from: D) -> Result<HashSet<WriteKey>, D::Error> {
    let keys = Vec::<String>::deserialize(from)
        .map_err(|_| D::Error::custom("write keys are a list of strings"))?;
    let keys = keys.iter().map(|key| WriteKey::new(key));
    keys.collect::<Result<_, _>>()
        .map_err(|rejection| D::Error::custom(rejection.message()))
}

/// An empty duration is none.
fn duration_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(from)?;
    if text.is_empty() {
        return Ok(None);
    }
    let text = text.as_str().into_deserializer();
    jiff::fmt::serde::unsigned_duration::friendly::compact::required::deserialize(text).map(Some)
}

/// An empty path is none.
fn path_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(from)?;
    Ok((!path.as_os_str().is_empty()).then_some(path))
}

/// An empty text is none.
fn text_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(from)?;
    Ok((!text.is_empty()).then_some(text))
}

/// Says which addresses of the configuration are not listened on, since sockets were handed over in their place.
fn tell_of_unused(configured: &[Address], listeners: &[Listener]) {
    let unused = configured
        .iter()
        .filter(|address| listeners.iter().all(|l| l.address() != *address));
    let unused: Vec<_> = unused.map(ToString::to_string).collect();
    if !unused.is_empty() {
        warn!(
            unused = unused.join(", "),
            "systemd's sockets take the place of ingest.listen; add these addresses to the socket unit, or disable it"
        );
    }
}

async fn past(mut phase: watch::Receiver<Phase>, last: Phase) {
    // The daemon holds the other end for as long as it serves; where it is gone, so is the phase.
    let _ = phase.wait_for(|phase| *phase > last).await;
}
