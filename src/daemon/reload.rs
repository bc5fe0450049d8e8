//! Taking up a changed configuration while the process runs. What is wrong with it changes nothing.

use std::fmt;
use std::sync::Arc;

use tracing::{error, info, warn};

use super::logging::Level;
use super::notify;
use crate::config::{self, Config};
use crate::deliver::Retune;
use crate::ingest::Ingest;
use crate::server::Doorkeeper;

/// Reads the configuration anew.
pub type Load = Box<dyn Fn() -> Result<Config, config::Error> + Send>;

/// The parts that go by other settings when they are told to.
pub(super) struct Reload {
    pub(super) load: Load,
    pub(super) level: Level,
    pub(super) retune: Retune,
    pub(super) ingest: Arc<Ingest>,
    pub(super) doorkeeper: Doorkeeper,
}

impl Reload {
    /// Reads the configuration and goes by it as far as a running process can. `config` is what it goes by so far.
    pub(super) fn run(&self, config: &mut Config) {
        notify::reloading();
        match self.take_up(config) {
            Ok(kept) if kept.is_empty() => info!("took up the configuration"),
            Ok(kept) => warn!(
                need_a_restart = kept.join(", "),
                "took up the configuration, but for what needs a restart"
            ),
            Err(error) => error!(%error, "the configuration stays as it was"),
        }
        notify::ready();
    }

    fn take_up(&self, config: &mut Config) -> Result<Vec<&'static str>, Error> {
        let read = (self.load)().map_err(Error::Config)?;
        let (new, kept) = config.reloaded(read);
        // First what can fail.
        self.retune.to(&new.deliver()).map_err(Error::Deliver)?;
        self.ingest.go_by(new.rules());
        self.doorkeeper.go_by(&new.ingest);
        self.level.set(new.log.level);
        *config = new;
        Ok(kept)
    }
}

/// Why a configuration was not taken up.
#[derive(Debug)]
enum Error {
    Config(config::Error),
    Deliver(crate::deliver::SetupError),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Config(error) => write!(f, "failed to read the configuration: {error}"),
            Error::Deliver(error) => write!(f, "{error}"),
        }
    }
}
