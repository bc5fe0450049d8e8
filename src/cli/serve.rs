//! `segspool serve`: the daemon.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use tracing::error;

use super::{
    EX_CANTCREAT, EX_CONFIG, EX_IOERR, EX_OSERR, EX_SOFTWARE, EX_TEMPFAIL, EX_UNAVAILABLE, complain,
};
use crate::config::{self, Config};
use crate::daemon::{self, Error};
use crate::queue::OpenError;
use crate::server::{Address, BindError};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file; without one, the defaults and SEGSPOOL_SECTION__KEY variables hold
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let file = args.config.clone();
    let load = move || Config::load(file.as_deref(), variables()?.into_iter());
    let config = match load() {
        Ok(config) => config,
        Err(error) => {
            complain(&format_args!("failed to read the configuration: {error}"));
            return ExitCode::from(EX_CONFIG);
        }
    };
    let Err(error) = daemon::run(config, Box::new(load)) else {
        return ExitCode::SUCCESS;
    };
    let (code, remedy) = judge(&error);
    // It is the log's last word: whoever reads that need not look elsewhere.
    match remedy {
        "" => error!("{error}"),
        remedy => error!("{error}. {remedy}"),
    }
    ExitCode::from(code)
}

/// The exit code for what has ended the daemon, and what to do about it, where it does not say so itself.
fn judge(error: &Error) -> (u8, &'static str) {
    match error {
        Error::System(_) => (EX_OSERR, ""),
        Error::Bind(BindError::Listen { address, error }) => {
            (EX_UNAVAILABLE, about_listening(address, error))
        }
        Error::Bind(BindError::Tls(_) | BindError::Handed { .. })
        | Error::Setup(_)
        | Error::Profiles(_) => (EX_CONFIG, ""),
        Error::Open { error, .. } => match error {
            OpenError::InUse { .. } => (
                EX_TEMPFAIL,
                "Stop that one first, or give this one another data_dir",
            ),
            OpenError::Format { .. } => (
                EX_CONFIG,
                "Use the version that made it, or another data_dir",
            ),
            OpenError::Io(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => (
                EX_CANTCREAT,
                "The file system is read-only, for this process at least: under systemd a data_dir other than /var/lib/segspool needs \
                 ReadWritePaths= in a drop-in of the unit",
            ),
            OpenError::Io(error) if cannot_be_made(error) => (
                EX_CANTCREAT,
                "data_dir must be a directory that this user may make and write to",
            ),
            OpenError::Io(_) => (EX_IOERR, ""),
        },
        Error::Died(_) => (EX_SOFTWARE, ""),
    }
}

fn about_listening(address: &Address, error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::AddrInUse {
        "Another process listens there, perhaps a segspool; choose another in [ingest] or [admin]"
    } else if error.kind() == io::ErrorKind::AddrNotAvailable {
        "No interface of this machine has that address; choose another in [ingest] or [admin]"
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        match address {
            Address::Tcp(_) => "This user may not listen there; choose a port above 1023",
            Address::Unix(_) => {
                "This user may not make that socket, or not give it to ingest.socket_group; choose a directory of its own and a group it \
                 is in, or have systemd listen: ListenStream= and SocketGroup= in segspool.socket"
            }
        }
    } else {
        ""
    }
}

fn cannot_be_made(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied
            | io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::AlreadyExists
    )
}

/// The environment. One of ours that is no text is an error; others are not looked at.
pub(super) fn variables() -> Result<Vec<(String, String)>, config::Error> {
    let ours = |name: &OsString| name.to_string_lossy().starts_with(config::VARIABLE_PREFIX);
    let ours = std::env::vars_os().filter(|(name, _)| ours(name));
    let texts = ours.map(
        |(name, value)| match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => Ok((name, value)),
            (name, _) => Err(config::Error::Variable {
                name: name.unwrap_or_else(|name| name.to_string_lossy().into_owned()),
                message: "it is not UTF-8".to_owned(),
            }),
        },
    );
    texts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_under_the_unit_is_told_by_the_setting_of_the_unit() {
        let open = |kind: io::ErrorKind| Error::Open {
            data_dir: PathBuf::from("/srv/spool"),
            error: OpenError::Io(kind.into()),
        };
        let listen = |address: &str| {
            let address = address.parse().expect("an address");
            let error = io::ErrorKind::PermissionDenied.into();
            Error::Bind(BindError::Listen { address, error })
        };
        let (tcp, unix) = (listen("127.0.0.1:80"), listen("unix:/run/a.sock"));
        for (error, code, said) in [
            (
                open(io::ErrorKind::ReadOnlyFilesystem),
                EX_CANTCREAT,
                "ReadWritePaths=",
            ),
            (
                open(io::ErrorKind::PermissionDenied),
                EX_CANTCREAT,
                "this user may make",
            ),
            (tcp, EX_UNAVAILABLE, "a port above 1023"),
            (unix, EX_UNAVAILABLE, "SocketGroup="),
        ] {
            let (found, remedy) = judge(&error);
            assert_eq!(found, code, "{error}");
            assert!(remedy.contains(said), "{error}: {remedy}");
        }
    }
}
