//! Secrets that systemd hands over: a setting that names a file may say `credential:NAME` in place of a path.
//!
//! What it names is `$CREDENTIALS_DIRECTORY/NAME`, where systemd puts what a unit's `LoadCredential=` lists (`systemd.exec`(5)). Of a directory,
//! which segspool.service lists under the name `segspool`, each file is called `segspool_NAME` there. Reads no secret.

use std::env;
use std::path::{Path, PathBuf};

/// The variable with the directory.
const DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
const SCHEME: &str = "credential:";
/// The directory that segspool.service lists.
pub const CREDENTIALS: &str = "/etc/segspool/credentials";
/// What systemd puts before the name of each file of the directory that segspool.service lists.
const OF_DIRECTORY: &str = "segspool_";

/// Where systemd has put what it hands over; none where it has handed over nothing, as to whoever is not a unit.
#[must_use]
pub fn credentials_handed_over() -> Option<PathBuf> {
    env::var_os(DIRECTORY).map(PathBuf::from)
}

/// The name of the credential that a setting names; none where it is a path.
#[must_use]
pub fn credential_name(setting: &str) -> Option<&str> {
    setting.strip_prefix(SCHEME)
}

/// The file that a setting names. Credentials are looked for in `directory`.
///
/// # Errors
/// It names a credential, and none of that name is there.
pub(super) fn file(named: &Path, directory: Option<&Path>) -> Result<PathBuf, String> {
    let Some(name) = named.to_str().and_then(credential_name) else {
        return Ok(named.to_owned());
    };
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(format!("`{name}` is no name of a credential"));
    }
    let directory = directory.ok_or_else(|| {
        format!("systemd has handed over no credentials: ${DIRECTORY} is not set")
    })?;
    for candidate in [name, &format!("{OF_DIRECTORY}{name}")] {
        let file = directory.join(candidate);
        let is_there = file.try_exists();
        if is_there.map_err(|e| format!("failed to look into {}: {e}", directory.display()))? {
            return Ok(file);
        }
    }
    Err(format!(
        "there is no credential `{name}` in {}: put the file {name} into {CREDENTIALS}, or list it with LoadCredential=",
        directory.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_found_by_its_name_or_as_a_file_of_the_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["token", "segspool_key"] {
            std::fs::write(dir.path().join(name), name).expect("it can be written");
        }
        for (named, expected) in [
            ("/etc/token", Ok(PathBuf::from("/etc/token"))),
            ("credential:token", Ok(dir.path().join("token"))),
            ("credential:key", Ok(dir.path().join("segspool_key"))),
            ("credential:secret", Err("no credential `secret`")),
            ("credential:", Err("`` is no name")),
            ("credential:../token", Err("`../token` is no name")),
            ("credential:..", Err("`..` is no name")),
        ] {
            match (file(Path::new(named), Some(dir.path())), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{named}"),
                (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
                (found, expected) => panic!("{named}: {found:?}, not {expected:?}"),
            }
        }
        let none = file(Path::new("credential:token"), None).expect_err("there is no directory");
        assert!(none.contains("CREDENTIALS_DIRECTORY is not set"), "{none}");
    }
}
