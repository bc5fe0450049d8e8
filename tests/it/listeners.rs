//! Where applications post: TCP addresses, Unix sockets and TLS; and what their connections may do there.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};

use crate::life::serve;
use crate::support::{PATIENCE, Relay, ids, segment, spool, within};

const EVENT: &str = r#"{"userId":"u","event":"E"}"#;
const TLS: (&str, &str) = ("INGEST__TLS__LISTEN", "127.0.0.1:0");

/// A connection of any kind.
trait Connection: Read + Write {}

impl<T: Read + Write> Connection for T {}

fn tcp(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream
}

fn unix(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream
}

fn tls(
    address: &str,
    cert: &Path,
    versions: &[&'static SupportedProtocolVersion],
) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    let cert = CertificateDer::from_pem_file(cert).expect("a certificate");
    roots.add(cert).expect("it can be trusted");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = "localhost".try_into().expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    StreamOwned::new(connection, tcp(address))
}

pub(crate) fn client(cert: &Path) -> reqwest::Client {
    let cert = fs::read(cert).expect("a certificate");
    let cert = reqwest::Certificate::from_pem(&cert).expect("a certificate");
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .no_proxy()
        .timeout(PATIENCE)
        .tls_certs_only([cert])
        .build()
        .expect("a client")
}

fn head(fields: &str) -> String {
    format!(
        "POST /v1/track HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic S0VZMTIzNDU6\r\n{fields}\r\n\r\n"
    )
}

fn request() -> String {
    head(&format!("Content-Length: {}", EVENT.len())) + EVENT
}

/// Reads one reply, whose body must be that of a success.
fn success(connection: &mut dyn Connection) {
    let mut reply = Vec::new();
    let end = b"{\"success\":true}";
    while !reply.ends_with(end) {
        let mut byte = [0];
        let len = connection.read(&mut byte).expect("an answer");
        assert_eq!(len, 1, "{}", String::from_utf8_lossy(&reply));
        reply.extend(byte);
    }
    let reply = String::from_utf8(reply).expect("text");
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
}

fn post(connection: &mut dyn Connection) {
    connection.write_all(request().as_bytes()).expect("written");
    success(connection);
}

/// A socket's path in `dir`, and the setting that makes the daemon listen on it and on a TCP address.
fn socket_in(dir: &Path) -> (PathBuf, String) {
    let path = dir.join("ingest.sock");
    let listen = format!("[\"127.0.0.1:0\", \"unix:{}\"]", path.display());
    (path, listen)
}

/// A group that a socket can be given to, other than the process's own where that is allowed.
fn some_group() -> uzers::Group {
    let other = uzers::get_group_by_name("daemon").filter(|_| uzers::get_effective_uid() == 0);
    other
        .or_else(|| uzers::get_group_by_gid(uzers::get_effective_gid()))
        .expect("a group")
}

#[tokio::test(flavor = "multi_thread")]
async fn events_posted_on_every_address_arrive() {
    let (dir, segment) = (spool(), segment().await);
    let (socket, _) = socket_in(dir.path());
    let listen = format!(
        "[\"127.0.0.1:0\", \"127.0.0.1:0\", \"unix:{}\"]",
        socket.display()
    );
    let settings = [("INGEST__LISTEN", listen.as_str()), TLS];
    let relay = Relay::start(&dir.path().join("spool"), &segment.url(), &settings).await;
    assert_eq!(relay.addresses.len(), 3);
    assert_ne!(relay.addresses[0], relay.addresses[1]);
    assert_eq!(relay.addresses[2], format!("unix:{}", socket.display()));
    let cert = dir.path().join("spool/tls/cert.pem");
    let address = relay.ingest_tls.as_deref().expect("TLS is on");
    post(&mut tcp(&relay.addresses[0]));
    post(&mut tcp(&relay.addresses[1]));
    post(&mut unix(&socket));
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut connection = tls(address, &cert, &[version]);
        post(&mut connection);
        assert_eq!(connection.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    }
    within(segment.until(|tally| tally.distinct_events == 5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_has_its_mode_and_group_and_is_gone_after_a_stop() {
    let (dir, segment) = (spool(), segment().await);
    let (socket, listen) = socket_in(dir.path());
    let group = some_group();
    let name = group.name().to_str().expect("text");
    for (settings, mode, gid) in [
        (vec![], 0o660, uzers::get_effective_gid()),
        (
            vec![
                ("INGEST__SOCKET_MODE", "0606"),
                ("INGEST__SOCKET_GROUP", name),
            ],
            0o606,
            group.gid(),
        ),
    ] {
        let settings = [settings, vec![("INGEST__LISTEN", &listen)]].concat();
        let mut relay = Relay::start(&dir.path().join("spool"), &segment.url(), &settings).await;
        let found = fs::metadata(&socket).expect("a socket");
        assert!(found.file_type().is_socket());
        assert_eq!(
            (found.permissions().mode() & 0o7777, found.gid()),
            (mode, gid)
        );
        post(&mut unix(&socket));
        assert!(relay.stop().await.success());
        assert!(!socket.exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_a_dead_process_left_is_replaced() {
    let (dir, segment) = (spool(), segment().await);
    let (socket, listen) = socket_in(dir.path());
    let spool = dir.path().join("spool");
    let settings = [("INGEST__LISTEN", listen.as_str())];
    let mut relay = Relay::start(&spool, &segment.url(), &settings).await;
    relay.kill();
    assert!(socket.exists());
    let _relay = Relay::start(&spool, &segment.url(), &settings).await;
    post(&mut unix(&socket));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_put_in_its_place_by_another_is_not_removed() {
    let (dir, segment) = (spool(), segment().await);
    let (socket, listen) = socket_in(dir.path());
    let settings = [("INGEST__LISTEN", listen.as_str())];
    let mut relay = Relay::start(&dir.path().join("spool"), &segment.url(), &settings).await;
    fs::remove_file(&socket).expect("removed");
    let _other = UnixListener::bind(&socket).expect("bound");
    assert!(relay.stop().await.success());
    assert!(socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_way_of_a_socket_is_said_and_left_alone() {
    let dir = spool();
    let path = |name: &str| dir.path().join(name);
    let _living = UnixListener::bind(path("living.sock")).expect("bound");
    fs::write(path("file"), "precious").expect("written");
    fs::create_dir(path("dir")).expect("made");
    std::os::unix::fs::symlink(path("file"), path("link")).expect("made");
    for (name, group, expected) in [
        ("living.sock", "", "address in use"),
        ("file", "", "there is a file that is no socket"),
        ("dir", "", "there is a file that is no socket"),
        ("link", "", "there is a file that is no socket"),
        ("nowhere/ingest.sock", "", "/nowhere: No such file"),
        (
            "new.sock",
            "no-such-group",
            "there is no group `no-such-group`",
        ),
    ] {
        let address = format!("unix:{}", path(name).display());
        let (code, said) = serve(&[
            ("SEGSPOOL_DATA_DIR", path("spool").to_str().expect("text")),
            ("SEGSPOOL_INGEST__LISTEN", &format!("[\"{address}\"]")),
            ("SEGSPOOL_INGEST__SOCKET_GROUP", group),
        ])
        .await;
        assert_eq!(code, Some(69), "{said}");
        let expected = [format!("failed to listen on {address}: "), expected.into()];
        assert!(expected.iter().all(|part| said.contains(part)), "{said}");
    }
    UnixStream::connect(path("living.sock")).expect("still there");
    assert_eq!(fs::read_to_string(path("file")).expect("read"), "precious");
    assert!(path("dir").is_dir() && path("link").is_symlink() && !path("new.sock").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_self_made_certificate_is_kept_and_only_who_trusts_it_posts() {
    let (dir, segment) = (spool(), segment().await);
    let cert = dir.path().join("tls/cert.pem");
    let settings = [TLS, ("INGEST__ALLOWED_HOSTS", "[\"relay.internal\"]")];
    let mut first = None;
    for _ in 0..2 {
        let mut relay = Relay::start(dir.path(), &segment.url(), &settings).await;
        assert!(relay.log().contains(&cert.display().to_string()));
        let address = relay.ingest_tls.clone().expect("TLS is on");
        let port = address.rsplit_once(':').expect("a port").1;
        let trusting = client(&cert);
        for host in ["127.0.0.1", "localhost"] {
            let url = format!("https://{host}:{port}/v1/track");
            let sent = trusting.post(&url).basic_auth("KEY12345", Some(""));
            let reply = sent.body(EVENT).send().await.expect("an answer");
            assert_eq!(reply.status(), 200);
        }
        let url = format!("https://127.0.0.1:{port}/v1/track");
        let stranger = crate::support::client().post(url).body(EVENT).send().await;
        let refused = format!("{:?}", stranger.expect_err("it is not trusted"));
        assert!(refused.contains("UnknownIssuer"), "{refused}");
        assert!(relay.stop().await.success());
        let content = fs::read(&cert).expect("a certificate");
        assert_eq!(*first.get_or_insert(content.clone()), content);
    }
    let keys = fs::metadata(dir.path().join("tls/key.pem")).expect("a key");
    assert_eq!(keys.permissions().mode() & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_given_certificate_is_used_and_a_bad_one_is_said() {
    let (dir, segment) = (spool(), segment().await);
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
    let (cert, key) = (dir.path().join("cert"), dir.path().join("key"));
    fs::write(&cert, made.cert.pem()).expect("written");
    fs::write(&key, made.signing_key.serialize_pem()).expect("written");
    let (cert_text, key_text) = (cert.to_str().expect("text"), key.to_str().expect("text"));
    let data_dir = dir.path().join("spool");
    let settings = [
        TLS,
        ("INGEST__TLS__CERT", cert_text),
        ("INGEST__TLS__KEY", key_text),
    ];
    let relay = Relay::start(&data_dir, &segment.url(), &settings).await;
    let address = relay.ingest_tls.as_deref().expect("TLS is on");
    post(&mut tls(address, &cert, rustls::DEFAULT_VERSIONS));
    assert!(!data_dir.join("tls").exists());

    let (code, said) = serve(&[
        ("SEGSPOOL_DATA_DIR", dir.path().to_str().expect("text")),
        ("SEGSPOOL_INGEST__TLS__LISTEN", "127.0.0.1:0"),
        ("SEGSPOOL_INGEST__TLS__CERT", cert_text),
        ("SEGSPOOL_INGEST__TLS__KEY", cert_text),
    ])
    .await;
    assert_eq!(code, Some(78), "{said}");
    let expected = format!("failed to set TLS up: {cert_text}: holds no private key in PEM");
    assert!(said.contains(&expected), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_and_silence_on_the_tls_port_disturb_nobody() {
    let (dir, segment) = (spool(), segment().await);
    let mut relay = Relay::start(dir.path(), &segment.url(), &[TLS]).await;
    let address = relay.ingest_tls.clone().expect("TLS is on");
    let silent: Vec<_> = (0..50).map(|_| tcp(&address)).collect();
    for _ in 0..10 {
        let mut plain = tcp(&address);
        plain.write_all(request().as_bytes()).expect("written");
        let mut reply = Vec::new();
        // It may also be reset.
        let _ = plain.read_to_end(&mut reply);
        assert!(!reply.starts_with(b"HTTP"));
    }
    let cert = dir.path().join("tls/cert.pem");
    post(&mut tls(&address, &cert, rustls::DEFAULT_VERSIONS));
    assert!(!relay.log().contains("handshake"), "{}", relay.log());
    assert!(relay.stop().await.success());
    assert!(!relay.log().contains("cut off"), "{}", relay.log());
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_what_is_under_way_on_every_kind_and_closes_what_rests() {
    let (dir, segment) = (spool(), segment().await);
    let (socket, listen) = socket_in(dir.path());
    let spool = dir.path().join("spool");
    let settings = [("INGEST__LISTEN", listen.as_str()), TLS];
    let mut relay = Relay::start(&spool, &segment.url(), &settings).await;
    let (plain, secure) = (
        relay.addresses[0].clone(),
        relay.ingest_tls.clone().expect("TLS is on"),
    );
    let cert = spool.join("tls/cert.pem");
    let open = || -> [Box<dyn Connection>; 3] {
        [
            Box::new(tcp(&plain)),
            Box::new(unix(&socket)),
            Box::new(tls(&secure, &cert, rustls::DEFAULT_VERSIONS)),
        ]
    };
    let (first, rest) = EVENT.split_at(7);
    let (mut silent, mut resting, mut under_way) = (open(), open(), open());
    for connection in &mut resting {
        post(connection);
    }
    for connection in &mut under_way {
        let request = head(&format!("Content-Length: {}", EVENT.len())) + first;
        connection.write_all(request.as_bytes()).expect("written");
    }
    relay.until(|stats| stats.ingest.requests == 6).await;
    relay.signal(Signal::TERM);
    relay.until(|stats| stats.state == "draining").await;
    for connection in &mut under_way {
        connection.write_all(rest.as_bytes()).expect("written");
        success(connection);
    }
    assert!(relay.exit().await.success());
    for connection in silent[..2].iter_mut().chain(&mut resting[..2]) {
        let end = connection.read(&mut [0]).expect("closed in order");
        assert_eq!(end, 0);
    }
    assert!(!relay.log().contains("cut off"), "{}", relay.log());
    assert_eq!(segment.tally().distinct_events, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_serves_several_requests() {
    let (dir, segment) = (spool(), segment().await);
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let mut connection = tcp(&relay.addresses[0]);
    for _ in 0..5 {
        post(&mut connection);
    }
    // In pieces, and two at once.
    for piece in request().as_bytes().chunks(20) {
        connection.write_all(piece).expect("written");
    }
    success(&mut connection);
    let both = request() + &request();
    connection.write_all(both.as_bytes()).expect("written");
    success(&mut connection);
    success(&mut connection);
    let mut fresh = tcp(&relay.addresses[0]);
    for piece in (request() + &request()).as_bytes().chunks(20) {
        fresh.write_all(piece).expect("written");
    }
    success(&mut fresh);
    success(&mut fresh);
    within(segment.until(|tally| tally.distinct_events == 10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_asked_for_where_its_sender_waits_and_only_if_it_is_wanted() {
    let (dir, segment) = (spool(), segment().await);
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let mut connection = tcp(&relay.addresses[0]);
    let asking = head(&format!(
        "Content-Length: {}\r\nExpect: 100-continue",
        EVENT.len()
    ));
    connection.write_all(asking.as_bytes()).expect("written");
    let expected = "HTTP/1.1 100 Continue\r\n\r\n";
    let mut reply = vec![0; expected.len()];
    connection.read_exact(&mut reply).expect("an answer");
    assert_eq!(String::from_utf8_lossy(&reply), expected);
    connection.write_all(EVENT.as_bytes()).expect("written");
    success(&mut connection);

    for (fields, path, status) in [
        ("Content-Length: 900000000", "/v1/track", "413"),
        (
            "Content-Length: 10\r\nContent-Encoding: br",
            "/v1/track",
            "400",
        ),
        ("Content-Length: 10", "/v2/track", "404"),
        (
            "Content-Length: 10\r\nOrigin: https://a.test",
            "/v1/track",
            "403",
        ),
    ] {
        let mut connection = tcp(&relay.addresses[0]);
        let asking = head(&format!("{fields}\r\nExpect: 100-continue"));
        let asking = asking.replace("/v1/track", path);
        connection.write_all(asking.as_bytes()).expect("written");
        let mut reply = String::new();
        connection.read_to_string(&mut reply).expect("an answer");
        let expected = format!("HTTP/1.1 {status} ");
        assert!(reply.starts_with(&expected), "{fields}: {reply}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_http_is_refused_at_once() {
    let (dir, segment) = (spool(), segment().await);
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    for junk in ["\u{16}\u{3}\u{1}\u{2}", "nonsense\r\n"] {
        let mut connection = tcp(&relay.addresses[0]);
        connection.write_all(junk.as_bytes()).expect("written");
        let mut reply = String::new();
        connection.read_to_string(&mut reply).expect("an answer");
        assert!(reply.starts_with("HTTP/1.1 400 "), "{junk:?}: {reply}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_connections_without_a_request_cost_little_memory() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).expect("a limit may be raised to its maximum");
    // A machine that grants fewer files proves it with fewer connections.
    let most = limit.maximum.unwrap_or(u64::MAX).saturating_sub(1000) as usize;
    for sent in [
        "",
        "POST /v1/track HTTP/1.1\r\nHost: localhost\r\nUser-Agent: ",
    ] {
        let (dir, segment) = (spool(), segment().await);
        let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
        let connections: Vec<_> = (0..most.min(10_000))
            .map(|_| {
                let mut connection = tcp(&relay.addresses[0]);
                connection.write_all(sent.as_bytes()).expect("written");
                connection
            })
            .collect();
        // These are accepted behind all the others.
        for n in 0..20 {
            relay.track("KEY12345", &ids("e", n..n + 1)).await;
        }
        within(segment.until(|tally| tally.distinct_events == 20)).await;
        let peak = relay.memory_bytes("VmHWM");
        assert!(peak < 75_000_000, "{peak} bytes of memory after {sent:?}");
        drop(connections);
    }
}
