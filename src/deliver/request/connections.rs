//! The connections to one server. They are kept and used again, but never beyond what their server's name resolves to.
//!
//! A server that moves, or that is one of many, is reached only by a new connection, which resolves its name anew. So the
//! connections at rest are dropped after a failure, and now and then in any case; a call under way ends on its own.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use reqwest::{Client, Url};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{SetupError, describe};

/// A connection at rest is closed before load balancers commonly close theirs at 60 s, so that a call seldom meets a dead one.
const IDLE_CONNECTION_MAX: Duration = Duration::from_secs(45);
/// Segment wants its name resolved at least once a day; a busy connection would never end by itself.
const POOL_LIFE_MAX: Duration = Duration::from_secs(60 * 60);
/// Connections are dropped for a failure no more often than this, so that one lane in trouble leaves the others theirs.
const DROP_PAUSE: Duration = Duration::from_secs(10);

/// The connections to one server.
#[derive(Debug)]
pub(super) struct Connections {
    setup: Setup,
    pool: Mutex<Pool>,
}

#[derive(Debug)]
struct Setup {
    timeout: Duration,
    plain: bool,
}

#[derive(Debug)]
struct Pool {
    client: Client,
    age: Age,
}

/// Makes a call, on whatever connection is free.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) client: Client,
    number: u64,
}

impl Connections {
    /// Connections to the server of `url`, each call on which may take as long as `timeout`.
    ///
    /// # Errors
    /// The system has no usable TLS roots.
    pub(super) fn new(url: &Url, timeout: Duration) -> Result<Connections, SetupError> {
        let setup = Setup {
            timeout,
            plain: url.scheme() == "http",
        };
        let client = setup.client().map_err(|e| SetupError(describe(e)))?;
        Ok(Connections {
            setup,
            pool: Mutex::new(Pool {
                client,
                age: Age::new(Instant::now()),
            }),
        })
    }

    /// What the next call is made with.
    pub(super) fn lease(&self) -> Lease {
        let mut pool = self.pool();
        let now = Instant::now();
        if pool.age.is_over(now) {
            self.open_anew(&mut pool);
            pool.age.renew(now);
        }
        Lease {
            client: pool.client.clone(),
            number: pool.age.number,
        }
    }

    /// Tells that a call made with this got no answer, or one that speaks of a broken server.
    pub(super) fn failed(&self, lease: &Lease) {
        let mut pool = self.pool();
        if pool.age.drop_after_failure(lease.number, Instant::now()) {
            debug!("connections are opened anew after a failure");
            self.open_anew(&mut pool);
        }
    }

    fn open_anew(&self, pool: &mut Pool) {
        match self.setup.client() {
            Ok(client) => pool.client = client,
            // Such as roots that are being replaced at this moment: what is there still works.
            Err(error) => {
                warn!(error = describe(error), "failed to open connections anew");
            }
        }
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().expect("no panic under this lock")
    }
}

impl Setup {
    fn client(&self) -> reqwest::Result<Client> {
        // An error says that another part of the process has chosen one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("segspool/", env!("CARGO_PKG_VERSION")))
            .timeout(self.timeout)
            .pool_idle_timeout(IDLE_CONNECTION_MAX)
            // What was sent is sent again by the lane alone, which counts it.
            .retry(reqwest::retry::never())
            // A redirected POST would arrive as a GET; and a key is not to follow a stranger's word.
            .redirect(reqwest::redirect::Policy::none());
        // Plain HTTP needs no roots, which a bare container may not have.
        let client = if self.plain {
            client.tls_certs_only([])
        } else {
            client
        };
        client.build()
    }
}

/// How old a pool of connections is, and which one.
#[derive(Debug)]
struct Age {
    number: u64,
    opened: Instant,
    dropped: Option<Instant>,
}

impl Age {
    fn new(now: Instant) -> Age {
        Age {
            number: 0,
            opened: now,
            dropped: None,
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.opened) >= POOL_LIFE_MAX
    }

    fn renew(&mut self, now: Instant) {
        self.number += 1;
        self.opened = now;
    }

    /// Whether a failed call of pool `number` ends it. One that another call has ended already is not ended again.
    fn drop_after_failure(&mut self, number: u64, now: Instant) -> bool {
        let lately = |at: Instant| now.duration_since(at) < DROP_PAUSE;
        let drops = number == self.number && !self.dropped.is_some_and(lately);
        if drops {
            self.renew(now);
            self.dropped = Some(now);
        }
        drops
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_end_after_an_hour_or_a_failure_but_not_at_every_failure() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut age = Age::new(start);
        assert!(!age.is_over(after(3_599)));
        assert!(age.is_over(after(3_600)));

        assert!(age.drop_after_failure(0, after(1)));
        assert!(!age.is_over(after(3_600)), "an hour of the new ones");
        assert!(
            !age.drop_after_failure(0, after(2)),
            "a call of those that are gone"
        );
        assert!(
            !age.drop_after_failure(1, after(10)),
            "another failure so soon"
        );
        assert!(age.drop_after_failure(1, after(11)));
    }
}
