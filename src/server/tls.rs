//! TLS for the ingest listener: the certificate, given or made here, and the handshake.
//!
//! A pair that an operator gives is used as it is and never written to. Without one, a self-signed pair lies in
//! `<data_dir>/tls/`, readable by the daemon's user alone. Clients trust exactly that certificate, so it is kept as long as one of
//! them would accept it, and made anew only when it nears its end or a name is missing.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::Offset;
use jiff::{Timestamp, ToSpan};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{RootCertStore, ServerConfig};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{info, warn};

/// A self-made certificate's life, in days. Some platforms accept none that is longer, whoever has made it.
const LIFE_DAYS: i64 = 825;
/// One that has no more than this left is made anew, so that it outlives the time until the next start.
const LEAST_DAYS: i64 = 30;
/// A handshake that takes longer is given up.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// `[ingest.tls]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// Where applications post over TLS.
    pub listen: SocketAddr,
    /// The certificate and its chain, in PEM.
    #[serde(deserialize_with = "super::path_or_none")]
    pub cert: Option<PathBuf>,
    /// Its private key, in PEM.
    #[serde(deserialize_with = "super::path_or_none")]
    pub key: Option<PathBuf>,
}

impl Default for TlsConfig {
    fn default() -> TlsConfig {
        TlsConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 7348)),
            cert: None,
            key: None,
        }
    }
}

impl TlsConfig {
    /// Whether a given pair can be used. One that is made at the start is not made here.
    pub(super) fn check(&self) -> Result<(), TlsError> {
        match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Pair::read(cert, key)?.server().map(|_| ()),
            _ => Ok(()),
        }
    }
}

/// A certificate or key that cannot be used. Completes "failed to set TLS up: …".
#[derive(Debug)]
pub struct TlsError {
    /// The file at fault.
    pub path: PathBuf,
    /// What is wrong with it. Never shows what it holds.
    pub message: String,
}

impl TlsError {
    fn new(path: &Path, message: impl fmt::Display) -> TlsError {
        TlsError {
            path: path.to_owned(),
            message: message.to_string(),
        }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.message)
    }
}

impl std::error::Error for TlsError {}

/// What makes TLS of a connection.
#[derive(Clone)]
pub(super) struct Tls(TlsAcceptor);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads the given pair, or the self-made one, which is made if there is no good one. `names` are those by which the listener
    /// may be called, besides `localhost` and this machine's own name.
    pub(super) fn prepare(
        config: &TlsConfig,
        names: &[String],
        data_dir: &Path,
    ) -> Result<Tls, TlsError> {
        let pair = match (&config.cert, &config.key) {
            (Some(cert), Some(key)) => Pair::read(cert, key)?,
            _ => self_made(
                &data_dir.join("tls"),
                &all_names(config, names),
                Timestamp::now(),
            )?,
        };
        let mut server = pair.server()?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls(TlsAcceptor::from(Arc::new(server))))
    }

    /// Shakes hands with who has connected.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        tokio::time::timeout(HANDSHAKE_MAX, self.0.accept(stream))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// A certificate chain and its key, and where they come from.
struct Pair {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    cert_path: PathBuf,
    key_path: PathBuf,
}

impl Pair {
    fn read(cert_path: &Path, key_path: &Path) -> Result<Pair, TlsError> {
        let cert = fs::read(cert_path).map_err(|e| TlsError::new(cert_path, e))?;
        let key = fs::read(key_path).map_err(|e| TlsError::new(key_path, e))?;
        Pair::parse(&cert, &key, cert_path, key_path)
    }

    fn parse(cert: &[u8], key: &[u8], cert_path: &Path, key_path: &Path) -> Result<Pair, TlsError> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert).collect();
        let chain = chain
            .ok()
            .filter(|chain| !chain.is_empty())
            .ok_or_else(|| TlsError::new(cert_path, "holds no certificate in PEM"))?;
        // The parser's own words may quote the file.
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| TlsError::new(key_path, "holds no private key in PEM"))?;
        Ok(Pair {
            chain,
            key,
            cert_path: cert_path.to_owned(),
            key_path: key_path.to_owned(),
        })
    }

    fn server(&self) -> Result<ServerConfig, TlsError> {
        let provider = provider();
        provider
            .key_provider
            .load_private_key(self.key.clone_key())
            .map_err(|_| TlsError::new(&self.key_path, "holds a private key of an unknown kind"))?;
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has what TLS 1.2 and 1.3 need");
        builder
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|e| {
                if matches!(e, rustls::Error::InconsistentKeys(_)) {
                    let cert = self.cert_path.display();
                    return TlsError::new(&self.key_path, format!("is not the key of {cert}"));
                }
                TlsError::new(&self.cert_path, e)
            })
    }

    /// Whether a client that trusts it would accept it under each name, now and for a while yet.
    fn will_do(&self, names: &[ServerName<'static>], now: Timestamp) -> bool {
        let [cert] = &self.chain[..] else {
            return false;
        };
        let mut roots = RootCertStore::empty();
        let verifier = roots.add(cert.clone()).ok().and_then(|()| {
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
                .build()
                .ok()
        });
        let Some(verifier) = verifier else {
            return false;
        };
        let times = [now, days_after(now, LEAST_DAYS)];
        self.server().is_ok()
            && times.into_iter().all(|time| {
                let seconds = u64::try_from(time.as_second()).unwrap_or_default();
                let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
                names.iter().all(|name| {
                    verifier
                        .verify_server_cert(cert, &[], name, &[], time)
                        .is_ok()
                })
            })
    }
}

/// The pair in `dir`, made if there is none that will do.
fn self_made(dir: &Path, names: &[ServerName<'static>], now: Timestamp) -> Result<Pair, TlsError> {
    let (cert_path, key_path) = (dir.join("cert.pem"), dir.join("key.pem"));
    let kept = match (read_if_there(&cert_path)?, read_if_there(&key_path)?) {
        (Some(cert), Some(key)) => Pair::parse(&cert, &key, &cert_path, &key_path)
            .ok()
            .filter(|pair| pair.will_do(names, now)),
        _ => None,
    };
    if let Some(pair) = kept {
        info!(cert = %cert_path.display(), "the self-made certificate is used");
        return Ok(pair);
    }
    let (cert, key) = make(names, now).map_err(|e| TlsError::new(&cert_path, e))?;
    create_dir(dir).map_err(|e| TlsError::new(dir, e))?;
    // A crash in between leaves a pair that does not match, and is made anew.
    for (path, content) in [(&key_path, &key), (&cert_path, &cert)] {
        save(path, content.as_bytes()).map_err(|e| TlsError::new(path, e))?;
    }
    info!(cert = %cert_path.display(), "a certificate was made; clients have to trust it");
    Pair::parse(cert.as_bytes(), key.as_bytes(), &cert_path, &key_path)
}

/// A certificate and its key, in PEM.
fn make(names: &[ServerName<'static>], now: Timestamp) -> Result<(String, String), rcgen::Error> {
    let names: Vec<String> = names
        .iter()
        .map(|name| name.to_str().into_owned())
        .collect();
    let mut params = CertificateParams::new(names)?;
    params
        .distinguished_name
        .push(DnType::CommonName, "segspool");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let day = |time: Timestamp| {
        let date = Offset::UTC.to_datetime(time).date();
        let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
        rcgen::date_time_ymd(date.year().into(), month, day)
    };
    // A client's clock may be behind.
    params.not_before = day(days_after(now, -1));
    params.not_after = day(days_after(now, LIFE_DAYS - 1));
    let key = KeyPair::generate()?;
    let cert = params.self_signed(&key)?;
    Ok((cert.pem(), key.serialize_pem()))
}

/// The names by which clients may call the listener.
fn all_names(config: &TlsConfig, given: &[String]) -> Vec<ServerName<'static>> {
    let own = rustix::system::uname();
    let own = own.nodename().to_string_lossy().into_owned();
    let mut names: Vec<ServerName<'static>> = Vec::new();
    let mut add = |name: String| match ServerName::try_from(name.clone()) {
        Ok(name) if !names.contains(&name) => names.push(name),
        Ok(_) => {}
        Err(_) => warn!(name, "the certificate cannot hold a name"),
    };
    add("localhost".into());
    add("127.0.0.1".into());
    add("::1".into());
    if !config.listen.ip().is_unspecified() {
        add(config.listen.ip().to_string());
    }
    add(own);
    for name in given {
        add(name.trim_end_matches('.').to_ascii_lowercase());
    }
    names
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn days_after(time: Timestamp, days: i64) -> Timestamp {
    time.saturating_add((days * 24).hours())
        .expect("a span of hours can be added")
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, TlsError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(TlsError::new(path, e)),
    }
}

/// Creates the directory, and those above it, for its owner alone.
fn create_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    dir.parent()
        .map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Writes a file that only its owner can read, atomically and durably.
fn save(path: &Path, content: &[u8]) -> io::Result<()> {
    let unfinished = path.with_added_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    path.parent()
        .map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(names: &[&str]) -> Vec<ServerName<'static>> {
        names
            .iter()
            .map(|name| ServerName::try_from((*name).to_owned()).expect("a name"))
            .collect()
    }

    #[test]
    fn the_self_made_pair_is_kept_while_it_will_do_and_made_anew_after() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let tls = dir.path().join("tls");
        let own = names(&["localhost", "127.0.0.1", "::1"]);
        let made: Timestamp = "2026-03-01T12:00:00Z".parse().expect("a time");
        let first = self_made(&tls, &own, made).expect("made").chain;
        let kept = |names: &[ServerName<'static>], days| {
            let now = days_after(made, days);
            let old = fs::read(tls.join("cert.pem")).expect("a certificate");
            self_made(&tls, names, now).expect("a pair");
            old == fs::read(tls.join("cert.pem")).expect("a certificate")
        };
        assert!(kept(&own, 0));
        assert!(kept(&own, LIFE_DAYS - LEAST_DAYS - 3));
        assert!(kept(&own[..1], 0), "fewer names");
        let more = [own.clone(), names(&["relay.internal"])].concat();
        assert!(!kept(&more, 0), "a name is missing");
        assert!(kept(&more, 0) && kept(&own, 0));
        assert!(!kept(&own, LIFE_DAYS - LEAST_DAYS + 1), "near its end");
        assert!(!kept(&own, 3 * LIFE_DAYS), "expired");
        assert!(!kept(&own, 0), "not valid yet");
        let last = self_made(&tls, &own, made).expect("kept").chain;
        assert_ne!(first, last);
    }

    #[test]
    fn a_damaged_self_made_pair_is_made_anew() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (own, now) = (names(&["localhost"]), Timestamp::now());
        self_made(dir.path(), &own, now).expect("made");
        let other_key = make(&own, now).expect("made").1;
        for (name, content) in [
            ("key.pem", ""),
            ("cert.pem", "nonsense"),
            ("key.pem", other_key.as_str()),
        ] {
            fs::write(dir.path().join(name), content).expect("written");
            let pair = self_made(dir.path(), &own, now).expect("made");
            assert!(pair.will_do(&own, now), "{name}: {content}");
            let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
            assert!(Pair::read(&cert, &key).expect("read").will_do(&own, now));
        }
    }

    #[test]
    fn the_self_made_key_is_its_owners_alone() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let tls = dir.path().join("tls");
        self_made(&tls, &names(&["localhost"]), Timestamp::now()).expect("made");
        for (path, expected) in [(tls.clone(), 0o700), (tls.join("key.pem"), 0o600)] {
            let mode = fs::metadata(&path).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, expected, "{}", path.display());
        }
    }

    #[test]
    fn a_given_pair_that_cannot_be_used_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = |name: &str, content: &str| {
            let path = dir.path().join(name);
            fs::write(&path, content).expect("written");
            path
        };
        let (cert, key) = make(&names(&["localhost"]), Timestamp::now()).expect("made");
        let other = make(&names(&["localhost"]), Timestamp::now())
            .expect("made")
            .1;
        let (cert, key) = (file("cert", &cert), file("key", &key));
        let other = file("other", &other);
        let junk = file("junk", "-----BEGIN PRIVATE KEY-----\nSECRET\n");
        let nowhere = dir.path().join("nowhere");
        for (cert, key, at_fault, expected) in [
            (&nowhere, &key, &nowhere, "No such file"),
            (&cert, &nowhere, &nowhere, "No such file"),
            (&junk, &key, &junk, "holds no certificate in PEM"),
            (&key, &key, &key, "holds no certificate in PEM"),
            (&cert, &junk, &junk, "holds no private key in PEM"),
            (&cert, &cert, &cert, "holds no private key in PEM"),
            (&cert, &other, &other, "is not the key of "),
        ] {
            let config = TlsConfig {
                cert: Some(cert.clone()),
                key: Some(key.clone()),
                ..TlsConfig::default()
            };
            let error = Tls::prepare(&config, &[], dir.path()).expect_err(expected);
            assert_eq!(error.path, *at_fault);
            assert!(error.message.contains(expected), "{error}");
            assert!(!error.to_string().contains("SECRET"));
        }
    }
}
