//! How a command talks to a running daemon: its admin listener, and what to tell whoever called when that does not work.

use std::error::Error;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{Table, presets};
use reqwest::{Client, Method, Response, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{
    EX_IOERR, EX_NOINPUT, EX_NOPERM, EX_OSERR, EX_PROTOCOL, EX_TEMPFAIL, EX_UNAVAILABLE, EX_USAGE,
    complain,
};
use crate::server::AdminToken;

/// A daemon on this machine accepts at once, or not at all.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A daemon that does not say in this time how it is, is not well.
const PROBE_WITHIN: Duration = Duration::from_secs(4);
/// What a daemon says of a path that it does not know, such as all of the admin listener's on an ingest listener.
const NO_SUCH_PATH: &str = "not_found";

/// Which daemon, and how to be let in.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct AdminArgs {
    /// The daemon's admin listener
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:7347",
        global = true
    )]
    admin: String,
    /// A file with the daemon's admin token
    #[arg(long, value_name = "FILE", global = true)]
    token_file: Option<PathBuf>,
}

/// What went wrong, and with which exit code to end.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    pub(super) fn new(code: u8, message: impl Into<String>) -> Failure {
        Failure {
            code,
            message: message.into(),
        }
    }

    /// The exit code.
    #[cfg(test)]
    pub(super) fn code(&self) -> u8 {
        self.code
    }

    /// The same, with what else there is to know.
    pub(super) fn and(self, more: &str) -> Failure {
        Failure {
            message: format!("{}. {more}", self.message),
            ..self
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::new(EX_IOERR, format!("failed to read or write: {error}"))
    }
}

/// Runs a command that talks to a daemon, and says what went wrong.
pub(super) fn run(
    args: &AdminArgs,
    command: impl AsyncFnOnce(Admin) -> Result<ExitCode, Failure>,
) -> ExitCode {
    finish(async { command(Admin::new(args)?).await })
}

/// Does what a command is for, and says what went wrong.
pub(super) fn finish(command: impl Future<Output = Result<ExitCode, Failure>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => Err(Failure::new(EX_OSERR, error.to_string())),
    };
    done.unwrap_or_else(|failure| {
        complain(&failure);
        ExitCode::from(failure.code)
    })
}

/// The daemon's admin listener.
#[derive(Debug)]
pub(super) struct Admin {
    client: Client,
    url: String,
    token: Option<Token>,
}

/// What lets an operator in, and where it was found.
#[derive(Debug)]
struct Token {
    path: PathBuf,
    text: String,
}

impl Admin {
    fn new(args: &AdminArgs) -> Result<Admin, Failure> {
        let url = base_url("--admin", "http://127.0.0.1:7347", &args.admin)?;
        let token = |path: &PathBuf| {
            Ok::<_, Failure>(Token {
                text: read_token(path)?,
                path: path.clone(),
            })
        };
        Ok(Admin {
            client: client()?,
            url,
            token: args.token_file.as_ref().map(token).transpose()?,
        })
    }

    /// Asks, and reads a JSON answer.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
    ) -> Result<T, Failure> {
        let answer = self.send(method, path).await?;
        let body = answer.bytes().await.map_err(|error| gone(&error))?;
        serde_json::from_slice(&body).map_err(|error| broken(&error))
    }

    /// Asks, and writes the answer out as it comes.
    pub(super) async fn copy(&self, path: &str, to: &mut dyn Write) -> Result<(), Failure> {
        let mut answer = self.send(Method::GET, path).await?;
        while let Some(piece) = answer.chunk().await.map_err(|error| gone(&error))? {
            to.write_all(&piece)?;
        }
        to.flush()?;
        Ok(())
    }

    /// Asks for what goes on for as long as somebody reads.
    pub(super) async fn open(&self, path: &str) -> Result<Response, Failure> {
        self.send(Method::GET, path).await
    }

    /// Asks whether all is well; what is said where it is.
    pub(super) async fn probe(&self, path: &str) -> Result<String, Failure> {
        let request = self.client.get(format!("{}{path}", self.url));
        let answer = request.timeout(PROBE_WITHIN).send().await;
        let answer = answer.map_err(|error| self.unreachable(&error))?;
        let status = answer.status();
        let said = answer.text().await.map_err(|error| gone(&error))?;
        match status {
            StatusCode::OK => Ok(said.trim_end().to_owned()),
            StatusCode::SERVICE_UNAVAILABLE => Err(Failure::new(EX_TEMPFAIL, said.trim_end())),
            _ => Err(stranger(&self.url, status, "admin listener", "--admin URL")),
        }
    }

    async fn send(&self, method: Method, path: &str) -> Result<Response, Failure> {
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        if let Some(token) = &self.token {
            request = request.bearer_auth(&token.text);
        }
        let answer = request
            .send()
            .await
            .map_err(|error| self.unreachable(&error))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let token_file = self.token.as_ref().map(|token| &*token.path);
        Err(refused(answer, &self.url, token_file).await)
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        unreachable(error, &self.url, "--admin URL")
    }
}

/// What talks to a daemon on this machine.
pub(super) fn client() -> Result<Client, Failure> {
    // An error says that another part of the process has chosen one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder()
        .no_proxy()
        .connect_timeout(CONNECT_WITHIN)
        // Nothing here speaks TLS, and a machine without certificates is good enough.
        .tls_certs_only([])
        .build();
    client.map_err(|error| Failure::new(EX_OSERR, error.to_string()))
}

/// The address of a daemon's listener, which `flag` gives, without a slash at its end.
pub(super) fn base_url(flag: &str, example: &str, given: &str) -> Result<String, Failure> {
    let is_usable = given.starts_with("http://") && Url::parse(given).is_ok();
    if !is_usable {
        let message = format!("{flag} takes a URL such as {example}");
        return Err(Failure::new(EX_USAGE, message));
    }
    Ok(given.trim_end_matches('/').to_owned())
}

/// The secret in a file, without the white space around it.
pub(super) fn read_secret(path: &Path) -> Result<String, Failure> {
    let secret = fs::read_to_string(path).map_err(|error| {
        let message = format!("failed to read {}: {error}", path.display());
        Failure::new(EX_NOINPUT, message)
    })?;
    Ok(secret.trim().to_owned())
}

/// The token in a file.
pub(super) fn read_token(path: &Path) -> Result<String, Failure> {
    let (token, path) = (read_secret(path)?, path.display());
    let message = match (token.is_empty(), AdminToken::new(&token)) {
        (true, _) => format!("{path} is empty; it must hold the token"),
        (false, None) => format!(
            "what {path} holds is no token, which is one line of printable ASCII without spaces"
        ),
        (false, Some(_)) => return Ok(token),
    };
    Err(Failure::new(EX_USAGE, message))
}

/// Nobody answers at `url`, which `flag` sets.
pub(super) fn unreachable(error: &reqwest::Error, url: &str, flag: &str) -> Failure {
    let cause = root(error);
    let message = format!(
        "no daemon answers at {url}: {cause}. Start one with `segspool serve`, or name it with {flag}"
    );
    Failure::new(EX_UNAVAILABLE, message)
}

/// The daemon went away while it answered.
pub(super) fn gone(error: &reqwest::Error) -> Failure {
    let cause = root(error);
    let message = format!(
        "the daemon is gone: its answer broke off ({cause}). Its log may say why; try again once it runs"
    );
    Failure::new(EX_UNAVAILABLE, message)
}

/// What was wrong in the end.
fn root<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
}

async fn refused(answer: Response, url: &str, token_file: Option<&Path>) -> Failure {
    #[derive(Deserialize)]
    struct Refusal {
        code: String,
        message: String,
        replayed: Option<u64>,
    }
    let status = answer.status();
    let body = answer.bytes().await.unwrap_or_default();
    let refusal = serde_json::from_slice(&body).ok();
    let Some(Refusal {
        code,
        message,
        replayed,
    }) = refusal
    else {
        return stranger(url, status, "admin listener", "--admin URL");
    };
    if code == NO_SUCH_PATH {
        return stranger(url, status, "admin listener", "--admin URL");
    }
    let code = match status {
        StatusCode::BAD_REQUEST => EX_USAGE,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => EX_NOPERM,
        StatusCode::NOT_FOUND => EX_NOINPUT,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => EX_TEMPFAIL,
        _ => EX_PROTOCOL,
    };
    match (status, replayed) {
        (StatusCode::UNAUTHORIZED, _) => {
            let message = match token_file {
                None => format!("{message}; give it with --token-file FILE"),
                Some(path) => format!(
                    "the token in {} is not the one of the daemon's admin.token_file; give that with --token-file FILE",
                    path.display()
                ),
            };
            Failure::new(code, message)
        }
        (_, Some(replayed)) => {
            Failure::new(code, format!("{message}; {replayed} were replayed before"))
        }
        _ => Failure::new(code, message),
    }
}

/// What answers at `url`, which `flag` sets, is something else than a daemon's `listener`.
pub(super) fn stranger(url: &str, status: StatusCode, listener: &str, flag: &str) -> Failure {
    let message = format!(
        "what answers at {url} is no daemon's {listener} ({status}); name that with {flag}"
    );
    Failure::new(EX_PROTOCOL, message)
}

pub(super) fn broken(error: &dyn Error) -> Failure {
    Failure::new(
        EX_PROTOCOL,
        format!("the daemon's answer cannot be read: {error}"),
    )
}

/// A table without lines around it, so that it can be read and cut.
pub(super) fn table<const N: usize>(columns: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(columns);
    table
}

/// Writes a line to standard output.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    write(format!("{text}\n").as_bytes())
}

/// Writes to standard output. A reader that has seen enough is no failure.
pub(super) fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a value to standard output as JSON that people can read.
pub(super) fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    print(&text)
}
