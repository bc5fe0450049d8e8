//! The command line where something is wrong: one line that says what to do, and an exit code of sysexits. And what it says of itself.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::dead_letters::text;
use crate::support::{Relay, ids, segment, spool};

/// What a command prints, and how it ends.
fn run(args: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_segspool"));
    command
        .args(args)
        .envs(variables.iter().copied())
        .stdin(Stdio::null());
    let output = command.output().expect("the program is there");
    (
        output.status.code(),
        text(&output.stdout).to_owned(),
        text(&output.stderr).to_owned(),
    )
}

fn file(dir: &Path, name: &str, content: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, content).expect("written");
    path.to_str().expect("text").to_owned()
}

/// Nothing listens on a port that was free a moment ago.
fn nobody() -> String {
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr());
    format!("http://{}", port.expect("an address"))
}

/// A wrong address was once told as a wrong id.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_there_is_one_line_that_says_what_to_do_and_an_exit_code() {
    let (dir, segment, files) = (spool(), segment().await, spool());
    let files = files.path();
    let token = file(files, "token", "s3cret");
    let settings = [("ADMIN__TOKEN_FILE", &*token)];
    let relay = Relay::start(dir.path(), &segment.url(), &settings).await;
    relay.track("KEY12345", &ids("e", 0..1)).await;
    let (ingest, admin, nobody) = (&*relay.ingest, &*relay.admin, &*nobody());
    let data_dir = dir.path().to_str().expect("text");
    let taken = format!("[\"{}\"]", relay.addresses[0]);
    let events = file(
        files,
        "events.ndjson",
        "{\"type\":\"track\",\"userId\":\"u\",\"event\":\"E\"}\n",
    );
    let array = file(
        files,
        "array.json",
        "[{\"type\":\"track\"},\n{\"type\":\"track\"}]\n",
    );
    let begun = file(files, "begun.ndjson", "{}\n");
    file(files, "begun.ndjson.rejected", "");
    let locked = file(files, "locked.ndjson", "{}\n");
    let lock = fs::File::open(&locked).expect("opened");
    lock.try_lock().expect("nobody else has it");
    let wrong_token = file(files, "wrong-token", "wrong");
    let directory = files.to_str().expect("text");
    let port_0 = [
        ("SEGSPOOL_INGEST__LISTEN", "[\"127.0.0.1:0\"]"),
        ("SEGSPOOL_ADMIN__LISTEN", "127.0.0.1:0"),
    ];
    let serve = |settings: &[(&'static str, &str)]| {
        let mut all: Vec<(&str, String)> = Vec::new();
        for (name, value) in port_0.iter().chain(settings) {
            all.push((name, (*value).to_owned()));
        }
        all
    };
    type Case<'a> = (&'a [&'a str], Vec<(&'a str, String)>, i32, &'a [&'a str]);
    let cases: &[Case<'_>] = &[
        // No daemon.
        (
            &["lanes", "list", "--admin", nobody],
            vec![],
            69,
            &["no daemon answers", "segspool serve", "--admin URL"],
        ),
        (
            &["profile", "user_id:u", "--ingest", nobody],
            vec![],
            69,
            &["no daemon answers", "--ingest URL"],
        ),
        (
            &["import", &events, "--ingest", nobody],
            vec![],
            69,
            &["no daemon answers", "--ingest URL"],
        ),
        // A wrong address.
        (
            &["lanes", "list", "--admin", ingest],
            vec![],
            76,
            &["no daemon's admin listener", "--admin URL"],
        ),
        (
            &["lanes", "pause", "0000000000000000", "--admin", ingest],
            vec![],
            76,
            &["--admin URL"],
        ),
        (
            &["dead-letters", "list", "--admin", ingest],
            vec![],
            76,
            &["--admin URL"],
        ),
        (
            &["profile", "user_id:u", "--ingest", admin],
            vec![],
            76,
            &["no daemon's ingest listener", "--ingest URL"],
        ),
        (
            &["import", &events, "--ingest", admin],
            vec![],
            76,
            &["no daemon's ingest listener", "--ingest URL"],
        ),
        (
            &["import", &events, "--ingest", "https://127.0.0.1"],
            vec![],
            64,
            &["--ingest takes a URL"],
        ),
        (
            &["lanes", "list", "--admin", "127.0.0.1:7347"],
            vec![],
            64,
            &["--admin takes a URL"],
        ),
        // A wrong token.
        (
            &["lanes", "list", "--admin", admin],
            vec![],
            77,
            &["--token-file FILE"],
        ),
        (
            &[
                "lanes",
                "list",
                "--admin",
                admin,
                "--token-file",
                &wrong_token,
            ],
            vec![],
            77,
            &["--token-file FILE"],
        ),
        (
            &[
                "lanes",
                "list",
                "--admin",
                admin,
                "--token-file",
                "/nowhere",
            ],
            vec![],
            66,
            &["failed to read /nowhere"],
        ),
        // What was named is not there.
        (
            &[
                "lanes",
                "pause",
                "0000000000000000",
                "--admin",
                admin,
                "--token-file",
                &token,
            ],
            vec![],
            66,
            &["no such lane"],
        ),
        (
            &["import", "/nowhere", "--ingest", ingest],
            vec![],
            66,
            &["failed to read /nowhere"],
        ),
        (
            &["import", directory, "--ingest", ingest],
            vec![],
            66,
            &["no regular file", "segspool import -"],
        ),
        // A file that is something else, or in the way.
        (
            &["import", &array, "--ingest", ingest],
            vec![],
            65,
            &["not NDJSON", "line 1", "jq"],
        ),
        (
            &["import", &events, "--ingest", ingest],
            vec![],
            64,
            &["write key", "--write-key-file FILE"],
        ),
        (
            &["import", &events, "--ingest", ingest, "--write-key", ""],
            vec![],
            64,
            &["the write key is empty"],
        ),
        (
            &["import", &begun, "--ingest", ingest],
            vec![],
            73,
            &["earlier import", "--rejected FILE"],
        ),
        (
            &[
                "import",
                &events,
                "--ingest",
                ingest,
                "--state",
                "/proc/nowhere/state",
            ],
            vec![],
            73,
            &["--state FILE"],
        ),
        (
            &["import", &locked, "--ingest", ingest],
            vec![],
            75,
            &["another import", "wait"],
        ),
        // The daemon itself.
        (
            &["serve"],
            serve(&[
                ("SEGSPOOL_DATA_DIR", directory),
                ("SEGSPOOL_INGEST__LISTEN", &taken),
            ]),
            69,
            &[
                "failed to listen on",
                "choose another in [ingest] or [admin]",
            ],
        ),
        (
            &["serve"],
            serve(&[
                ("SEGSPOOL_DATA_DIR", directory),
                ("SEGSPOOL_INGEST__LISTEN", "[\"192.0.2.1:1\"]"),
            ]),
            69,
            &["No interface of this machine"],
        ),
        (
            &["serve"],
            serve(&[("SEGSPOOL_DATA_DIR", data_dir)]),
            75,
            &["is in use by another segspool", "another data_dir"],
        ),
        (
            &["serve"],
            serve(&[("SEGSPOOL_DATA_DIR", "/proc/nowhere")]),
            73,
            &[
                "failed to open the spool in /proc/nowhere",
                "data_dir must be",
            ],
        ),
        (
            &["serve"],
            serve(&[("SEGSPOOL_DATA_DIR", &events)]),
            73,
            &["data_dir must be"],
        ),
        (
            &["serve", "--config", "/nowhere"],
            vec![],
            78,
            &["failed to read the configuration: /nowhere"],
        ),
        (
            &["man", "--out", "/proc/nowhere"],
            vec![],
            73,
            &["failed to write to /proc/nowhere"],
        ),
        (&["completions", "cmd"], vec![], 64, &["bash"]),
        (&["nonsense"], vec![], 64, &["--help"]),
    ];
    for (args, variables, code, expected) in cases {
        let variables: Vec<_> = variables.iter().map(|(k, v)| (*k, &**v)).collect();
        let (found, out, err) = run(args, &variables);
        assert_eq!(found, Some(*code), "{args:?}: {err}");
        for words in *expected {
            assert!(err.contains(words), "{args:?}: {err}");
        }
        assert_eq!(out, "", "{args:?}");
        // The daemon says it in its log, once it has one, and clap has a form of its own.
        let lines: Vec<_> = err
            .lines()
            .filter(|line| line.starts_with("segspool: ") || line.contains(" ERROR "))
            .collect();
        assert!(
            lines.len() == 1 || err.starts_with("error: "),
            "{args:?}: {err}"
        );
        assert!(
            !err.contains("s3cret") && !err.contains("panicked"),
            "{err}"
        );
    }
}

#[test]
fn check_config_prints_every_setting_with_its_source_and_no_secret() {
    let dir = spool();
    let secret = file(dir.path(), "secret", "s3cret-in-a-file");
    let config = file(
        dir.path(),
        "config.toml",
        &format!(
            "[ingest]\nwrite_key = \"s3cret-ab12\"\n[admin]\ntoken_file = \"{secret}\"\n[ingest.tls]\n\
             [[webhook]]\nname = \"one\"\nurls = [\"http://host/s3cret\"]\n\
             [[webhook]]\nname = \"two\"\nurls = [\"http://other/\"]\nsecret_file = \"{secret}\"\n"
        ),
    );
    let variables = [("SEGSPOOL_SEGMENT__LINGER", "2s")];
    let (code, out, err) = run(&["check-config", "--config", &config], &variables);
    assert_eq!((code, &*err), (Some(0), ""));
    assert!(
        !out.contains("s3cret-ab") && !out.contains("/s3cret") && !out.contains("in-a-file"),
        "{out}"
    );
    let line = |beginning: &str| {
        let line = out.lines().find(|line| line.starts_with(beginning));
        line.unwrap_or_else(|| panic!("{beginning}: {out}"))
            .to_owned()
    };
    for (setting, source) in [
        ("data_dir = \"/var/lib/segspool\"", "# default".to_owned()),
        ("write_key = \"…ab12\"", format!("# {config}:2")),
        ("token_file = ", format!("# {config}:4")),
        (
            "linger = \"2s\"",
            "# environment variable SEGSPOOL_SEGMENT__LINGER".into(),
        ),
        ("listen = \"127.0.0.1:7348\"", "# default".into()),
        ("name = \"two\"", format!("# {config}:10")),
        ("secret_file = \"/", format!("# {config}:12")),
    ] {
        let line = line(setting);
        assert!(line.ends_with(&source), "{line}");
    }
    assert_eq!(out.matches("[[webhook]]\n").count(), 2, "{out}");
    assert!(!out.contains("redentials"), "there are none: {out}");
    // It is a configuration itself.
    out.parse::<toml::Table>().expect("TOML");
}

#[test]
fn check_config_names_file_line_key_and_remedy_and_exits_with_78() {
    let dir = spool();
    let path = dir.path().join("config.toml");
    let config = path.to_str().expect("text");
    for (content, variable, expected) in [
        (
            "[segment]\nspeed = 1\n",
            None,
            "config.toml:2: unknown field `speed`, expected one of",
        ),
        (
            "\n[queue]\nmax_bytes = \"1 MiB\"\n",
            None,
            "config.toml:3: queue.max_bytes must not be below",
        ),
        (
            "[retry]\nmax = \"1s\"\nbase = \"2s\"\n",
            None,
            "config.toml:3: retry.base must be above 0",
        ),
        (
            "",
            Some(("SEGSPOOL_SEGMENT__CONCURRENCY", "99")),
            "environment variable SEGSPOOL_SEGMENT__CONCURRENCY: segment.concurrency must be between",
        ),
        (
            "[admin]\n\ntoken_file = \"/nowhere\"\n",
            None,
            "config.toml:3: admin.token_file: /nowhere: No such file",
        ),
        // Nobody hands over credentials here.
        (
            "[admin]\ntoken_file = \"credential:no-such-credential\"\n",
            None,
            "no-such-credential: there is no credential `no-such-credential` in /etc/segspool/credentials",
        ),
        (
            "[[webhook]]\nname = \"a\"\nurls = [\"http://h/\"]\n[[webhook]]\nname = \"b\"\nurls = []\n",
            None,
            "config.toml:5: webhook needs at least one URL: b",
        ),
        (
            "[segment]\nendpoint = \"nonsense\"\n",
            None,
            "failed to set delivery up: segment.endpoint",
        ),
        (
            "[ingest.tls]\ncert = \"/nowhere\"\nkey = \"/nowhere\"\n",
            None,
            "failed to set TLS up: /nowhere",
        ),
        (
            "[ingest]\nlisten = [\"unix:/tmp/a.sock\"]\nsocket_group = \"no-such-group\"\n",
            None,
            "no-such-group",
        ),
        (
            "[ingest]\nlisten = [\"localhost:1\"]\n",
            None,
            "config.toml:2: `localhost:1` is neither",
        ),
    ] {
        fs::write(&path, content).expect("written");
        let (code, out, err) = run(&["check-config", "--config", config], variable.as_slice());
        assert_eq!((code, &*out), (Some(78), ""), "{err}");
        assert!(err.contains(expected), "{err:?} lacks {expected:?}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let (_, help, _) = run(&["--help"], &[]);
    let (_, commands) = help.split_once("Commands:\n").expect("a list of commands");
    let commands: Vec<_> = commands
        .lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    assert!(
        commands.len() >= 10 && commands.contains(&"import"),
        "{help}"
    );
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, script, _) = run(&["completions", shell], &[]);
        assert_eq!(code, Some(0));
        for command in &commands {
            assert!(script.contains(command), "{shell}: {command}");
        }
        assert!(script.contains("write-key-file"), "{shell}");
    }
    let (code, page, _) = run(&["man"], &[]);
    assert_eq!(code, Some(0));
    assert!(page.contains(".TH segspool 1"), "{page}");
    let dir = spool();
    let (code, out, _) = run(&["man", "--out", dir.path().to_str().expect("text")], &[]);
    assert_eq!((code, &*out), (Some(0), ""));
    for command in &commands {
        let page = fs::read_to_string(dir.path().join(format!("segspool-{command}.1")));
        let page = page.expect(command).replace('\\', "");
        assert!(
            page.contains(&format!("segspool {command}"))
                || page.contains(&format!("segspool-{command}")),
            "{page}"
        );
    }
}
