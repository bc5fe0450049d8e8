//! The search for secrets that every test makes: it knows those of every setting, and what it finds fails the test.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use crate::support::secrets::Given;
use crate::support::{Relay, segment, spool};

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_in_the_log_fails_the_test_that_gave_it() {
    for (content, is_found) in [("running", true), ("s3cret-token", false)] {
        let (dir, segment) = (spool(), segment().await);
        let file = dir.path().join("token");
        fs::write(&file, content).expect("written");
        let settings = [("ADMIN__TOKEN_FILE", file.to_str().expect("text"))];
        let spool = dir.path().join("spool");
        // Its log says "segspool is running".
        let relay = Relay::start(&spool, &segment.url(), &settings).await;
        let ended = catch_unwind(AssertUnwindSafe(|| drop(relay)));
        assert_eq!(ended.is_err(), is_found, "{content}");
    }
}

#[test]
fn the_secrets_of_every_setting_are_known_and_of_a_url_all_but_the_host() {
    let dir = spool();
    let file = |name: &str| {
        let path = dir.path().join(name);
        fs::write(&path, format!("-----BEGIN-----\nin-{name}\n")).expect("written");
        path.to_str().expect("text").to_owned()
    };
    let config = dir.path().join("config.toml");
    let hook = format!(
        "[[webhook]]\nname = \"a-hook-name\"\nurls = [\"https://u:pass-word@a-host/in/path?k=in-query\"]\n\
         secret_file = \"{}\"\nheaders = {{ authorization = \"Bearer in-header\" }}\n[ingest]\nwrite_key = \"in-config-key\"\n",
        file("hook-secret"),
    );
    fs::write(&config, hook).expect("written");
    let mut command = Command::new("segspool");
    command.args(["serve", "--config"]).arg(&config).envs([
        ("SEGSPOOL_ADMIN__TOKEN_FILE", file("admin-token")),
        ("SEGSPOOL_PROFILES__TOKEN_FILE", file("profile-token")),
        (
            "SEGSPOOL_SEGMENT__OAUTH__PRIVATE_KEY_FILE",
            file("oauth-key"),
        ),
        ("SEGSPOOL_INGEST__TLS__KEY", file("tls-key")),
        (
            "SEGSPOOL_INGEST__ALLOWED_WRITE_KEYS",
            "[\"allowed-key\"]".to_owned(),
        ),
        (
            "SEGSPOOL_SEGMENT__ENDPOINT",
            "http://an-endpoint/".to_owned(),
        ),
        ("HTTPS_PROXY", "http://u:proxy-word@a-proxy:1".to_owned()),
    ]);
    let found: Vec<_> = Given::to(&command).secrets().into_iter().collect();
    assert_eq!(
        found,
        [
            "Bearer in-header",
            "allowed-key",
            "in-admin-token",
            "in-config-key",
            "in-hook-secret",
            "in-oauth-key",
            "in-profile-token",
            "in-tls-key",
            "in/path?k=in-query",
            "k=in-query",
            "pass-word",
            "proxy-word",
        ]
    );
}
