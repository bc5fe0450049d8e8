//! The profile routes of the ingest listener: who may read, and what.
//!
//! A profile is somebody's personal data. No page in a browser is ever answered, wherever it comes from, whatever `cors_origins` says.

mod reply;

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::HOST;
use hyper::http::request::Parts;
use hyper::http::uri::Scheme;
use hyper::{Method, Request};
use tracing::debug;

use super::admin::bearer;
use super::guard::{Foreign, Guard};
use super::listener::{Peer, Service};
use super::reply::Reply;
use crate::profiles::{self, Address, AddressError, Caller, Profiles};
use crate::stats::Stats;

/// Answers requests for profiles, where there are any to have.
#[derive(Debug)]
pub(super) struct ProfileDesk {
    pub(super) profiles: Option<Profiles>,
    pub(super) stats: Arc<Stats>,
}

/// Why a request is not served.
#[derive(Debug)]
enum Error {
    /// A browser sent it, or it was sent to a name that is none of ours.
    Foreign(Foreign),
    /// There is no token to read with.
    Off,
    /// The client does not bear the token.
    Unauthorized,
    /// It would do more than read.
    Method,
    /// It names no profile.
    Address(AddressError),
    /// There is no answer.
    Read(profiles::Error),
}

impl ProfileDesk {
    /// Answers one request. `guard` must admit no origin.
    pub(super) async fn serve(&self, guard: &Guard, head: &Parts) -> Reply {
        self.stats.profiles.requests.add(1);
        let reply = match self.answer(guard, head).await {
            Ok(reply) => reply,
            Err(error) => {
                debug!(?error, "a profile was not read");
                reply::error(&error)
            }
        };
        let failed = reply.status().as_u16() >= 400;
        self.stats.profiles.errors.add(u64::from(failed));
        reply
    }

    async fn answer(&self, guard: &Guard, head: &Parts) -> Result<Reply, Error> {
        guard.admit(&head.headers).map_err(Error::Foreign)?;
        let profiles = self.profiles.as_ref().ok_or(Error::Off)?;
        if !profiles.admits(bearer(&head.headers)) {
            return Err(Error::Unauthorized);
        }
        let (path, query) = (head.uri.path(), head.uri.query());
        let address = Address::parse(path, query, profiles.space_id());
        if head.method != Method::GET
            && !matches!(
                address,
                Err(AddressError::Path | AddressError::Resource | AddressError::Collection)
            )
        {
            return Err(Error::Method);
        }
        let address = address.map_err(Error::Address)?;
        let (answer, origin) = profiles.read(&address).await.map_err(Error::Read)?;
        let over_tls = head.extensions.get() == Some(&Scheme::HTTPS);
        let caller = Caller {
            scheme: if over_tls { "https" } else { "http" },
            host: head.headers.get(HOST).and_then(|host| host.to_str().ok()),
        };
        let body = caller.reroute(&answer.body);
        Ok(reply::relayed(&answer, body, origin))
    }
}

/// Tells a service that its requests came over TLS.
#[derive(Debug)]
pub(super) struct OverTls<S>(pub(super) Arc<S>);

impl<S: Service> Service for OverTls<S> {
    async fn serve(&self, peer: Peer, mut request: Request<Incoming>) -> Reply {
        request.extensions_mut().insert(Scheme::HTTPS);
        self.0.serve(peer, request).await
    }
}
