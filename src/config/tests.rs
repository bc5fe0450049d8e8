use super::*;
use crate::server::TlsConfig;

fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, Error> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("config.toml");
    fs::write(&path, text).expect("written");
    let variables = variables
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Config::load(Some(&path), variables)
}

#[test]
fn an_empty_file_is_the_defaults() {
    assert_eq!(load("", &[]).expect("loaded"), Config::default());
    assert_eq!(
        Config::load(None, std::iter::empty()).expect("loaded"),
        Config::default()
    );
}

#[test]
fn the_packaged_file_is_the_defaults() {
    let packaged = include_str!("../../packaging/config.toml");
    assert_eq!(load(packaged, &[]).expect("loaded"), Config::default());
}

#[test]
fn sizes_and_durations_are_written_as_people_write_them() {
    let config = load(
        "[queue]\nmax_bytes = \"2 GiB\"\n[segment]\nlinger = \"250ms\"\nmax_batch_bytes = 480_000\n",
        &[],
    );
    let config = config.expect("loaded");
    assert_eq!(config.queue.max_bytes, ByteSize::gib(2));
    assert_eq!(config.segment.linger, Duration::from_millis(250));
    assert_eq!(config.segment.max_batch_bytes, 480_000);
}

#[test]
fn the_default_write_key_is_one_of_those_allowed_and_none_is_shown() {
    let keys = "[ingest]\nclock_skew_over = \"10m\"\nallowed_write_keys = [\"aaaaaaAAAA\", \"bbbbbbBBBB\"]\n";
    let config = load(keys, &[]).expect("loaded");
    assert_eq!(config.ingest.allowed_write_keys.len(), 2);
    assert_eq!(
        config.ingest.clock_skew_over,
        Some(Duration::from_secs(600))
    );
    assert!(!format!("{config:?}").contains("bbbb"));
    for (key, expected) in [("bbbbbbBBBB", true), ("ccccccCCCC", false), ("", true)] {
        let loaded = load(keys, &[("SEGSPOOL_INGEST__WRITE_KEY", key)]);
        assert_eq!(loaded.is_ok(), expected, "{key}");
    }
}

#[test]
fn the_environment_wins_over_the_file() {
    let variables = [
        ("SEGSPOOL_SEGMENT__LINGER", "2s"),
        ("SEGSPOOL_SEGMENT__GZIP", "true"),
        ("SEGSPOOL_INGEST__LISTEN", "[\"127.0.0.1:1\"]"),
        ("SEGSPOOL_INGEST__WRITE_KEY", "123456"),
        ("SEGSPOOL_INGEST__SOCKET_MODE", "600"),
        ("SEGSPOOL_DATA_DIR", "/tmp/x"),
        ("SEGSPOOL_POWER_CUTS", "1"),
        ("SEGSPOOL_REQUIRE_CLIENTS", "1"),
        ("SEGSPOOL_SERVICE_HOST", "10.0.0.7"),
        ("SEGSPOOL_SERVICE_PORT_INGEST", "7346"),
        ("SEGSPOOL_PORT", "tcp://10.0.0.7:7346"),
        ("SEGSPOOL_PORT_7346_TCP_ADDR", "10.0.0.7"),
    ];
    let config = load(
        "data_dir = \"/y\"\n[segment]\nlinger = \"1s\"\n",
        &variables,
    )
    .expect("loaded");
    assert_eq!(config.segment.linger, Duration::from_secs(2));
    assert!(config.segment.gzip);
    assert_eq!(config.ingest.listen[0].to_string(), "127.0.0.1:1");
    assert_eq!(config.ingest.socket_mode.bits(), 0o600);
    assert_eq!(config.ingest.write_key.expect("a key").expose(), "123456");
    assert_eq!(config.data_dir, Path::new("/tmp/x"));
}

#[test]
fn applications_post_where_the_operator_says() {
    let config = load(
        "[ingest]\nlisten = [\"[::1]:1\", \"unix:/run/a.sock\"]\nsocket_mode = \"0666\"\nsocket_group = \"www\"\n",
        &[],
    );
    let ingest = config.expect("loaded").ingest;
    let listen: Vec<_> = ingest.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["[::1]:1", "unix:/run/a.sock"]);
    assert_eq!(ingest.socket_mode.bits(), 0o666);
    assert_eq!(ingest.socket_group.as_deref(), Some("www"));
    assert_eq!(ingest.tls, None);
}

#[test]
fn tls_is_on_where_it_has_a_section_or_a_variable() {
    let tls = |text, variables: &[_]| load(text, variables).expect("loaded").ingest.tls;
    assert_eq!(tls("[ingest.tls]\n", &[]), Some(TlsConfig::default()));
    let listen = ("SEGSPOOL_INGEST__TLS__LISTEN", "127.0.0.1:9");
    let cert = ("SEGSPOOL_INGEST__TLS__CERT", "/cert");
    let key = ("SEGSPOOL_INGEST__TLS__KEY", "/key");
    let found = tls("", &[listen, cert, key]).expect("on");
    assert_eq!(found.listen.port(), 9);
    assert_eq!(found.cert.as_deref(), Some(Path::new("/cert")));
    assert_eq!(found.key.as_deref(), Some(Path::new("/key")));
}

#[test]
fn a_webhook_needs_no_more_than_a_name_and_a_url_and_shows_neither_url_nor_headers() {
    let text = "[[webhook]]\nname = \"a\"\nurls = [\"http://host/t0ken\"]\n[webhook.headers]\nX-Key = \"s3cret\"\n\
        [[webhook]]\nname = \"b\"\nurls = [\"http://host/\"]\nmax_age = \"\"\n[receiver]\nenabled = true\n";
    let config = load(text, &[]).expect("loaded");
    let [first, second] = &config.webhook[..] else {
        panic!("two webhooks");
    };
    assert_eq!(first.timeout, Duration::from_secs(5));
    assert_eq!(first.max_age, Some(Duration::from_secs(4 * 3600)));
    assert_eq!(second.max_age, None);
    assert_eq!(config.rules().triggers.len(), 2);
    assert!(config.rules().receiver.is_some());
    let shown = format!("{config:?} {:?} {:?}", config.rules(), config.deliver());
    assert!(
        !shown.contains("t0ken") && !shown.contains("s3cret"),
        "{shown}"
    );
    assert_eq!(load("", &[]).expect("loaded").rules().receiver, None);
}

#[test]
fn every_error_says_where_and_what() {
    for (text, variable, expected) in [
        (
            "\n[segment]\nspeed = 1\n",
            None,
            "config.toml:3: unknown field `speed`",
        ),
        ("[queue]\nmax_bytes = \"lots\"\n", None, "config.toml:2: "),
        ("[segment\n", None, "config.toml:1: "),
        (
            "[ingest]\nwrite_key = 5\n",
            None,
            "config.toml:2: a write key is a string",
        ),
        (
            "[ingest]\nwrite_key = \"a\"\nallowed_write_keys = [\"b\"]\n",
            None,
            "ingest.write_key must be one of ingest.allowed_write_keys",
        ),
        (
            "[ingest]\nallowed_write_keys = [\"\"]\n",
            None,
            "config.toml:2: the write key is empty",
        ),
        (
            "[ingest]\nallowed_write_keys = [5]\n",
            None,
            "config.toml:2: write keys are a list of strings",
        ),
        (
            "[ingest]\nclock_skew_over = \"soon\"\n",
            None,
            "config.toml:2: ",
        ),
        (
            "[ingest]\nlisten = [\n\"unix:ingest.sock\"]\n",
            None,
            "config.toml:2: `unix:ingest.sock` must name a socket by its absolute path",
        ),
        (
            "[ingest]\nlisten = []\n",
            None,
            "ingest.listen needs at least one address",
        ),
        (
            "[ingest]\nsocket_mode = \"0999\"\n",
            None,
            "config.toml:2: `0999` is no mode in octal",
        ),
        (
            "[ingest]\nsocket_mode = 660\n",
            None,
            "config.toml:2: a mode is a string in octal, such as \"0660\"",
        ),
        (
            "[ingest.tls]\ncert = \"/cert.pem\"\n",
            None,
            "ingest.tls needs both cert and key, or neither",
        ),
        (
            "",
            Some(("SEGSPOOL_INGEST__TLS__KEY", "/key.pem")),
            "ingest.tls needs both cert and key, or neither",
        ),
        (
            "[segment]\nconcurrency = 0\n",
            None,
            "segment.concurrency must be between 1 and 32",
        ),
        (
            "[segment.oauth]\n",
            None,
            "segment.oauth.client_id must not be empty where segment.oauth is given",
        ),
        (
            "[segment.oauth]\nclient_id = \"a\"\nkey_id = \"b\"\n",
            None,
            "segment.oauth.private_key_file must not be empty",
        ),
        (
            "",
            Some(("SEGSPOOL_SEGMENT__OAUTH__CLIENT_ID", "a")),
            "segment.oauth.key_id must not be empty",
        ),
        (
            "[segment.oauth]\nkey = 1\n",
            None,
            "config.toml:2: unknown field `key`",
        ),
        (
            "[queue]\nvolume_bytes = 1\n",
            None,
            "queue.volume_bytes must be at least 1 MiB",
        ),
        (
            "",
            Some(("SEGSPOOL_SEGMENT__SPEED", "1")),
            "environment variable SEGSPOOL_SEGMENT__SPEED: unknown field `speed`",
        ),
        (
            "",
            Some(("SEGSPOOL_SEGMENT__GZIP", "perhaps")),
            "environment variable SEGSPOOL_SEGMENT__GZIP: ",
        ),
        (
            "",
            Some(("SEGSPOOL_LOG_LEVEL", "debug")),
            "environment variable SEGSPOOL_LOG_LEVEL: unknown field `log_level`",
        ),
        (
            "",
            Some(("SEGSPOOL_LOG_LEVEL", "debug")),
            "; a key of a section is named as SEGSPOOL_SECTION__KEY is",
        ),
        (
            "",
            Some(("SEGSPOOL_DATADIR", "/var/spool")),
            "environment variable SEGSPOOL_DATADIR: unknown field `datadir`, expected one of `data_dir`, `ingest`",
        ),
        (
            "",
            Some(("SEGSPOOL_PORTS", "1")),
            "environment variable SEGSPOOL_PORTS: unknown field `ports`",
        ),
        (
            "",
            Some(("SEGSPOOL_WEBHOOK__URLS", "[\"http://host/\"]")),
            "environment variable SEGSPOOL_WEBHOOK__URLS: webhooks are tables of the configuration file, [[webhook]]",
        ),
        (
            "",
            Some(("SEGSPOOL_WEBHOOK_URL", "http://host/")),
            "environment variable SEGSPOOL_WEBHOOK_URL: webhooks are tables of the configuration file, [[webhook]]",
        ),
        (
            "[[webhook]]\nname = \"a\"\n\nurls = [\"nowhere\"]\n",
            None,
            "config.toml:4: a webhook's URL is not valid: ",
        ),
        (
            "[[webhook]]\nname = \"a\"\nurls = [\"ftp://host/\"]\n",
            None,
            "config.toml:3: a webhook's URL must begin with https:// or http://",
        ),
        (
            "[[webhook]]\nname = \"a\"\nurls = \"http://host/\"\n",
            None,
            "config.toml:3: `urls` is a list of URLs",
        ),
        (
            "[[webhook]]\nname = \"a\"\nurls = [\"http://host/\"]\n[[webhook]]\nname = \"b\"\n",
            None,
            "config.toml:4: missing field `urls`",
        ),
        (
            "[[webhook]]\nname = \"A b\"\nurls = [\"http://host/\"]\n",
            None,
            "config.toml:2: a webhook's name is made of a to z, 0 to 9 and -",
        ),
        (
            "[[webhook]]\nname = \"a\"\nurls = [\"http://host/\"]\ntypes = [\"tracks\"]\n",
            None,
            "config.toml:4: `tracks` is none of track, identify, page, screen, group, alias and delete",
        ),
        (
            "[[webhook]]\nname = \"a\"\nurls = [\"http://host/\"]\nchannels = [\"web\"]\n",
            None,
            "config.toml:4: `web` is none of server, client, browser and mobile",
        ),
        (
            "[[webhook]]\nname = \"a\"\nurls = [\"http://host/\"]\nheaders = { Host = \"x\" }\n",
            None,
            "config.toml:4: the header `Host` is not for a webhook to set",
        ),
        (
            "[[webhook]]\nname = \"a\"\nurls = [\"http://host/\"]\nmax_age = \"long\"\n",
            None,
            "config.toml:4: ",
        ),
        (
            "[[webhook]]\nname = \"a\"\nurls = [\"http://host/\"]\nspeed = 1\n",
            None,
            "config.toml:4: unknown field `speed`",
        ),
        (
            "[[webhook]]\nname = \"a\"\nurls = [\"http://host/\"]\nsecret_file = \"/nowhere\"\n",
            None,
            "/nowhere: ",
        ),
        (
            "[[webhook]]\nname = \"a\"\nurls = []\n",
            None,
            "webhook needs at least one URL: a",
        ),
        (
            "[[webhook]]\nname = \"a\"\nurls = [\"http://host/\", \"http://host/\"]\n",
            None,
            "webhook must not have the same URL twice: a",
        ),
        (
            "[[webhook]]\nname = \"a\"\nurls = [\"http://host/\"]\n[[webhook]]\nname = \"a\"\nurls = [\"http://other/\"]\n",
            None,
            "webhook must not have the same name twice: a",
        ),
        (
            "[[webhook]]\nname = \"a\"\nurls = [\"http://host/\"]\nmax_age = \"0s\"\n",
            None,
            "webhook needs a max_age above 0, or none: a",
        ),
        (
            "[[webhook]]\nname = \"a\"\nurls = [\"http://host/\"]\ntypes = [\"page\"]\nevents = [\"E\"]\n",
            None,
            "webhook lists `events`, which are tracks, and `types` without track: a",
        ),
        (
            "",
            Some(("SEGSPOOL_RECEIVER_ENABLED", "true")),
            "environment variable SEGSPOOL_RECEIVER_ENABLED: unknown field",
        ),
        (
            "[ingest]\nwrite_key_file = \"/nowhere\"\n",
            None,
            "/nowhere: ",
        ),
        (
            "[profiles]\ntoken_file = \"/nowhere\"\n",
            None,
            "/nowhere: ",
        ),
        (
            "[profiles]\ntoken_file = \"/dev/null\"\n",
            None,
            "/dev/null: a token is one line",
        ),
        (
            "[profiles]\nclient_token_file = \"/etc/hostname\"\n",
            None,
            "profiles.client_token_file has no use without profiles.token_file",
        ),
        (
            "[profiles]\nspace_id = \"a/b\"\n",
            None,
            "profiles.space_id must be letters",
        ),
        (
            "[profiles]\ncache_ttl = \"soon\"\n",
            None,
            "config.toml:2: cache_ttl: ",
        ),
        (
            "[retry]\nmax = 60\n",
            None,
            "max: invalid type: integer `60`, expected an unsigned duration string; a duration is written in quotes, like \"10s\"",
        ),
        (
            "[retry]\nmax = \"soon\"\n",
            None,
            "; a duration is written like \"10s\" or \"5m\"",
        ),
        (
            "",
            Some(("SEGSPOOL_INGEST__LISTEN", "127.0.0.1:7346")),
            "; a list is written like [\"a\", \"b\"]",
        ),
        (
            "",
            Some(("SEGSPOOL_PROFILES__TIMEOUT", "0s")),
            "profiles.timeout must not be 0",
        ),
    ] {
        let error = load(text, variable.as_slice()).expect_err(text).to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
}

#[test]
fn a_webhook_does_not_post_to_the_daemons_own_ingest_address() {
    let listen = "[ingest]\nlisten = [\"127.0.0.1:7346\", \"[::]:80\", \"unix:/run/a.sock\"]\n[ingest.tls]\nlisten = \"10.0.0.7:443\"\n";
    for (url, is_own) in [
        ("http://127.0.0.1:7346/v1/webhook", true),
        ("http://localhost:7346/v1/track", true),
        ("http://LOCALHOST/hook", true),
        ("http://[::1]/hook", true),
        ("http://127.0.0.9/hook", true),
        ("https://10.0.0.7/v1/webhook", true),
        ("http://127.0.0.1:7347/v1/webhook", false),
        ("http://127.0.0.2:7346/v1/webhook", false),
        ("http://10.0.0.7/v1/webhook", false),
        ("http://example.test/v1/webhook", false),
        ("https://localhost/hook", false),
    ] {
        let text = format!("{listen}[[webhook]]\nname = \"a\"\nurls = [\"{url}\"]\n");
        let found = load(&text, &[]).map_err(|error| error.to_string());
        let rule = ":6: webhook must not post to an ingest address of this daemon: a";
        match found {
            Ok(_) => assert!(!is_own, "{url}"),
            Err(said) => assert!(is_own && said.ends_with(rule), "{url}: {said}"),
        }
    }
}

#[test]
fn a_url_without_its_brackets_is_not_shown_since_it_may_hold_a_token() {
    let text = "[[webhook]]\nname = \"a\"\nurls = \"https://example.test/t0ken\"\n";
    let error = load(text, &[]).expect_err("no list").to_string();
    assert!(
        error.contains("config.toml:3: `urls` is a list of URLs"),
        "{error}"
    );
    assert!(!error.contains("t0ken"), "{error}");
}

#[test]
fn no_message_shows_a_key() {
    let long = "k".repeat(300);
    for (text, variable) in [
        (format!("[ingest]\nwrite_key = \"{long}\"\n"), None),
        (
            format!("[ingest]\nallowed_write_keys = [\"{long}\"]\n"),
            None,
        ),
        (
            String::new(),
            Some(("SEGSPOOL_INGEST__ALLOWED_WRITE_KEYS", long.as_str())),
        ),
        (
            String::new(),
            Some(("SEGSPOOL_INGEST__WRITE_KEY", long.as_str())),
        ),
    ] {
        let error = load(&text, variable.as_slice()).expect_err("too long");
        assert!(!format!("{error} {error:?}").contains("kkkk"));
    }
}
