//! The command line and what it says of itself and of the daemon's settings.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::dead_letters::text;
use crate::support::spool;

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
        commands.len() >= 10 && commands.contains(&"serve"),
        "{help}"
    );
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, script, _) = run(&["completions", shell], &[]);
        assert_eq!(code, Some(0));
        for command in &commands {
            assert!(script.contains(command), "{shell}: {command}");
        }
        assert!(script.contains("token-file"), "{shell}");
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
