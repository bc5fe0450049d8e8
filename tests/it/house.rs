//! The house rules that a compiler does not check: who imports whom, and who may name which crate.

use std::fs;
use std::path::{Path, PathBuf};

/// Each module with its layer. One imports only from lower layers; neighbours do not import each other.
const LAYERS: &[&[&str]] = &[
    &["mask", "words"],
    &["event", "queue", "stats"],
    &["ingest", "batch"],
    &["deliver", "profiles"],
    &["server"],
    &["config"],
    &["daemon"],
    &["cli"],
];

/// `cli` runs the stand-in, which itself imports nothing.
const EXCEPTIONS: &[(&str, &str)] = &[("cli", "stand_in")];

/// Crates that only one place names.
const HOMES: &[(&str, &[&str])] = &[
    ("sled", &["src/queue/store.rs", "src/queue/store/"]),
    ("backoff::", &["src/deliver/backoff.rs"]),
    ("hyper", &["src/server/", "src/stand_in/"]),
    (
        "reqwest",
        &[
            "src/deliver/request/",
            "src/profiles/upstream.rs",
            "src/cli/",
        ],
    ),
    ("prometheus", &["src/stats/metrics/"]),
    ("rcgen", &["src/server/tls.rs"]),
    ("tokio_rustls", &["src/server/tls.rs"]),
    ("httparse", &["src/server/connection.rs"]),
    ("uzers", &["src/server/unix_socket.rs"]),
    ("signal_hook", &["src/daemon/signals.rs"]),
];

fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut dirs = vec![root.join("src")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("a directory").flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("text");
                found.push((
                    path.strip_prefix(root).expect("below the root").to_owned(),
                    text,
                ));
            }
        }
    }
    assert!(found.len() > 20);
    found
}

fn module_of(path: &Path) -> String {
    let first = path
        .components()
        .nth(1)
        .expect("below src")
        .as_os_str()
        .to_string_lossy()
        .into_owned();
    first.trim_end_matches(".rs").to_owned()
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Code lines: neither comments nor documentation.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("//"))
}

#[test]
fn a_module_imports_only_from_layers_below_its_own() {
    for (path, text) in sources() {
        let module = module_of(&path);
        if module == "lib" || module == "main" {
            continue;
        }
        for line in code(&text) {
            for used in line.split("crate::").skip(1) {
                let used: String = used
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                let allowed = used == module
                    || EXCEPTIONS.contains(&(module.as_str(), used.as_str()))
                    || layer(&module)
                        .zip(layer(&used))
                        .is_some_and(|(own, other)| other < own);
                assert!(allowed, "{}: {module} imports {used}", path.display());
            }
        }
    }
}

#[test]
fn each_crate_with_a_home_is_named_only_there() {
    for (path, text) in sources() {
        let shown = path.to_string_lossy();
        for (name, homes) in HOMES {
            let named = code(&text).any(|line| {
                line.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'))
                    .any(|word| word.starts_with(name))
            });
            assert!(
                !named || homes.iter().any(|home| shown.starts_with(home)),
                "{shown} names {name}"
            );
        }
    }
}

#[test]
fn every_file_opens_with_what_it_is_for() {
    for (path, text) in sources() {
        assert!(
            text.starts_with("//! ") || path.ends_with("tests.rs"),
            "{}",
            path.display()
        );
    }
}

#[test]
fn the_changelog_names_the_version() {
    let changelog = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("CHANGELOG.md"))
        .expect("a changelog");
    assert!(changelog.contains(concat!("## ", env!("CARGO_PKG_VERSION"))));
}
